//! Determines the command of a path (docs/dev/reference.md, 1). Double slashes count as one. No
//! part of a path is used as text: a drive is parsed to 128 bits, an offset to a number.

mod servers;

pub(super) use self::servers::{MachineCall, ResourceCall, ServerCall};

use super::fill::Packing;
use openhosting_base::drive::DriveId;
use openhosting_tenancy::Refusal;

/// A command of the API, with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// `drives/list`
    List,
    /// `drives/info`
    InfoAll,
    /// `drives/list/standard`
    ListStandard,
    /// `drives/info/standard`
    InfoStandard,
    /// `drives/create`
    Create,
    /// `drives/ID/info`
    Info(DriveId),
    /// `drives/ID/info/full`
    InfoFull(DriveId),
    /// `drives/ID/destroy`
    Destroy(DriveId),
    /// `drives/ID/set`
    Set(DriveId),
    /// `drives/ID/image/SOURCE[/gzip|/gunzip]`
    Image(DriveId, DriveId, Packing),
    /// `drives/ID/image/cancel`: an extension of our own
    CancelImage(DriveId),
    /// `drives/ID/read[/OFFSET[/SIZE]]`, in bytes
    Read(DriveId, u64, Option<u64>),
    /// `drives/ID/digest/OFFSET/SIZE`, in bytes: an extension of our own
    Digest(Part),
    /// `drives/ID/extents/OFFSET/SIZE`, in bytes: an extension of our own
    Extents(Part),
    /// `drives/ID/write[/OFFSET]`, in bytes
    Write(DriveId, u64),
    /// `servers/...`
    Server(ServerCall),
    /// `resources/...`
    Resource(ResourceCall),
}

/// A part of a drive, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) drive: DriveId,
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Call {
    /// The command for `path`.
    pub(super) fn parse(path: &str) -> Result<Self, Refusal> {
        let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        match segments.as_slice() {
            ["drives", "list"] => Ok(Self::List),
            ["drives", "info"] => Ok(Self::InfoAll),
            ["drives", "list", "standard"] => Ok(Self::ListStandard),
            ["drives", "info", "standard"] => Ok(Self::InfoStandard),
            ["drives", "create"] => Ok(Self::Create),
            ["drives", id, command @ ..] => Self::parse_of_drive(id, command),
            ["servers", command @ ..] => ServerCall::parse(command).map(Self::Server),
            ["resources", command @ ..] => ResourceCall::parse(command).map(Self::Resource),
            _ => Err(Refusal::no_command()),
        }
    }

    fn parse_of_drive(id: &str, command: &[&str]) -> Result<Self, Refusal> {
        // Something that is not a UUID names no drive; but an unknown command is reported first.
        let id = || drive(id);
        let part = |offset: &str, size: &str| {
            Ok::<_, Refusal>(Part {
                drive: id()?,
                offset: number(offset)?,
                size: number(size)?,
            })
        };
        match command {
            ["info"] => Ok(Self::Info(id()?)),
            ["info", "full"] => Ok(Self::InfoFull(id()?)),
            ["destroy"] => Ok(Self::Destroy(id()?)),
            ["set"] => Ok(Self::Set(id()?)),
            ["image", "cancel"] => Ok(Self::CancelImage(id()?)),
            ["image", source] => Ok(Self::Image(id()?, drive(source)?, Packing::Copy)),
            ["image", source, "gzip"] => Ok(Self::Image(id()?, drive(source)?, Packing::Gzip)),
            ["image", source, "gunzip"] => Ok(Self::Image(id()?, drive(source)?, Packing::Gunzip)),
            ["read"] => Ok(Self::Read(id()?, 0, None)),
            ["read", offset] => Ok(Self::Read(id()?, number(offset)?, None)),
            ["read", offset, size] => Ok(Self::Read(id()?, number(offset)?, Some(number(size)?))),
            ["digest", offset, size] => Ok(Self::Digest(part(offset, size)?)),
            ["extents", offset, size] => Ok(Self::Extents(part(offset, size)?)),
            ["write"] => Ok(Self::Write(id()?, 0)),
            ["write", offset] => Ok(Self::Write(id()?, number(offset)?)),
            _ => Err(Refusal::no_command()),
        }
    }

    /// The name of the command in metrics and the log.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::List => "list",
            Self::InfoAll => "info-all",
            Self::ListStandard => "list-standard",
            Self::InfoStandard => "info-standard",
            Self::Create => "create",
            Self::Info(_) => "info",
            Self::InfoFull(_) => "info-full",
            Self::Destroy(_) => "destroy",
            Self::Set(_) => "set",
            Self::Image(..) => "image",
            Self::CancelImage(_) => "image-cancel",
            Self::Read(..) => "read",
            Self::Digest(_) => "digest",
            Self::Extents(_) => "extents",
            Self::Write(..) => "write",
            Self::Server(call) => call.name(),
            Self::Resource(call) => call.name(),
        }
    }

    /// Whether another budget bounds how many of these a user may have in progress: memory for
    /// bodies and answers, or turns for digests. All others share the budget for requests.
    pub(super) fn has_own_budget(&self) -> bool {
        matches!(
            self,
            Self::Read(..) | Self::Write(..) | Self::Digest(_) | Self::Extents(_)
        )
    }

    /// The drive whose bytes it transfers.
    pub(super) fn moves(&self) -> Option<DriveId> {
        match *self {
            Self::Read(id, ..) | Self::Write(id, _) => Some(id),
            _ => None,
        }
    }

    /// Whether the command changes something and so allows POST only.
    pub(super) fn changes(&self) -> bool {
        match self {
            Self::List | Self::InfoAll | Self::ListStandard | Self::InfoStandard => false,
            Self::Info(_) | Self::InfoFull(_) => false,
            Self::Read(..) | Self::Digest(_) | Self::Extents(_) => false,
            Self::Create | Self::Destroy(_) | Self::Set(_) => true,
            Self::Image(..) | Self::CancelImage(_) | Self::Write(..) => true,
            Self::Server(call) => call.changes(),
            Self::Resource(call) => call.changes(),
        }
    }
}

fn drive(text: &str) -> Result<DriveId, Refusal> {
    text.parse().map_err(|_| Refusal::no_drive())
}

/// Parses digits only: no sign, no suffix, no exponent.
fn number(text: &str) -> Result<u64, Refusal> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number.ok_or_else(|| Refusal::usage("Offset or size in the path is not a number of bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use openhosting_base::wire::ErrorType;
    use openhosting_vm::ResourceKind;

    const ID: &str = "0012e24a-6eae-4279-9912-3432f698cec8";

    #[test]
    fn commands_are_recognised_by_their_path() {
        let id: DriveId = ID.parse().unwrap();
        let part = Part {
            drive: id,
            offset: 7,
            size: 9,
        };
        let cases = [
            ("/drives/list", Call::List),
            ("//drives///info/", Call::InfoAll),
            ("/drives/ID/info/full", Call::InfoFull(id)),
            ("/drives/ID/read/7/9", Call::Read(id, 7, Some(9))),
            ("/drives/ID/read", Call::Read(id, 0, None)),
            ("/drives/ID/digest/7/9", Call::Digest(part)),
            ("/drives/ID/extents/7/9", Call::Extents(part)),
            ("/drives/ID/write", Call::Write(id, 0)),
            ("/drives/ID/image/cancel", Call::CancelImage(id)),
            (
                "/servers/create/stopped",
                Call::Server(ServerCall::CreateStopped),
            ),
            (
                "/resources//ip/list",
                Call::Resource(ResourceCall::List(Some(ResourceKind::Ip))),
            ),
            (
                "/drives/ID/image/ID/gunzip",
                Call::Image(id, id, Packing::Gunzip),
            ),
        ];
        for (path, call) in cases {
            assert_eq!(Call::parse(&path.replace("ID", ID)).unwrap(), call);
            assert_eq!(
                Call::parse(&path.replace("ID", &ID.to_uppercase())),
                Ok(call)
            );
        }
    }

    #[test]
    fn unknown_paths_are_refused() {
        use ErrorType::{Missing, Usage};
        let cases = [
            ("/", Missing),
            ("/servers", Missing),
            ("/servers/ID", Missing),
            ("/servers/IDx/info", Missing),
            ("/servers/ID/start/now", Missing),
            ("/servers/ID/snapshot", Missing),
            ("/resources/info/ip", Missing),
            ("/resources/ip/nosuch/info", Missing),
            ("/resources/vlan/127.0.0.1/info", Missing),
            ("/resources/disk/list", Missing),
            ("/profile/info", Missing),
            ("/drives/ID", Missing),
            ("/drives/ID/resize", Missing),
            ("/drives/ID/info/full/more", Missing),
            ("/drives/ID/image/nosuch", Missing),
            ("/drives/../info", Missing),
            ("/drives/%2e%2e%2f/info", Missing),
            ("/drives/IDx/info", Missing),
            ("/drives/ID/digest/7", Missing),
            ("/drives/ID/digest/7/x", Usage),
            ("/drives/ID/extents/7", Missing),
            ("/drives/ID/extents/x/7", Usage),
            ("/drives/ID/write/+1", Usage),
            ("/drives/ID/write/1e3", Usage),
            ("/drives/ID/write/0x10", Usage),
            ("/drives/ID/write/18446744073709551616", Usage),
            ("/drives/ID/read/0/4M", Usage),
        ];
        for (path, error) in cases {
            let refusal = Call::parse(&path.replace("ID", ID)).unwrap_err();
            assert_eq!(refusal.error(), error, "{path}");
        }
    }
}
