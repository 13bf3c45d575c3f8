//! The commands of servers (docs/dev/reference.md, 1.9) and of resources
//! (docs/dev/reference.md, 1.12).

use openhosting_tenancy::Refusal;
use openhosting_vm::{MachineId, ResourceId, ResourceKind};

/// A command of `servers/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerCall {
    /// `servers/list`
    List,
    /// `servers/info`
    Info,
    /// `servers/create`
    Create,
    /// `servers/create/stopped`
    CreateStopped,
    /// `servers/ID/...`
    Of(MachineId, MachineCall),
}

/// A command of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MachineCall {
    /// `info` and `info/full`, which are the same
    Info,
    /// `start`
    Start,
    /// `stop`
    Stop,
    /// `shutdown`
    Shutdown,
    /// `reset`
    Reset,
    /// `destroy`
    Destroy,
    /// `set`
    Set,
    /// `suspend`: an extension of our own, as all that follow
    Suspend,
    /// `resume`
    Resume,
    /// `console`
    Console,
    /// `screen`
    Screen,
}

impl MachineCall {
    /// Each with its word in a path, and its name in metrics and the log, in order.
    const ALL: [(Self, &'static str, &'static str); 11] = [
        (Self::Info, "info", "servers-info"),
        (Self::Start, "start", "servers-start"),
        (Self::Stop, "stop", "servers-stop"),
        (Self::Shutdown, "shutdown", "servers-shutdown"),
        (Self::Reset, "reset", "servers-reset"),
        (Self::Destroy, "destroy", "servers-destroy"),
        (Self::Set, "set", "servers-set"),
        (Self::Suspend, "suspend", "servers-suspend"),
        (Self::Resume, "resume", "servers-resume"),
        (Self::Console, "console", "servers-console"),
        (Self::Screen, "screen", "servers-screen"),
    ];
}

/// A command of `resources/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResourceCall {
    /// `resources[/TYPE]/list`
    List(Option<ResourceKind>),
    /// `resources[/TYPE]/info`
    InfoAll(Option<ResourceKind>),
    /// `resources/TYPE/create`
    Create(ResourceKind),
    /// `resources/TYPE/RESOURCE/info`
    Info(ResourceId),
    /// `resources/TYPE/RESOURCE/set`
    Set(ResourceId),
    /// `resources/TYPE/RESOURCE/destroy`
    Destroy(ResourceId),
}

impl ServerCall {
    /// The command for these segments of a path, after `servers`.
    pub(crate) fn parse(segments: &[&str]) -> Result<Self, Refusal> {
        let (id, word) = match segments {
            ["list"] => return Ok(Self::List),
            ["info"] => return Ok(Self::Info),
            ["create"] => return Ok(Self::Create),
            ["create", "stopped"] => return Ok(Self::CreateStopped),
            [id, word] | [id, word @ "info", "full"] => (id, word),
            _ => return Err(Refusal::no_command()),
        };
        let mut all = MachineCall::ALL.into_iter();
        let call = all.find(|(_, known, _)| known == word);
        let (call, ..) = call.ok_or_else(Refusal::no_command)?;
        let id = MachineId::parse(id).ok_or_else(Refusal::no_server)?;
        Ok(Self::Of(id, call))
    }

    /// The name of the command in metrics and the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::List => "servers-list",
            Self::Info => "servers-info-all",
            Self::Create | Self::CreateStopped => "servers-create",
            Self::Of(_, call) => MachineCall::ALL[call as usize].2,
        }
    }

    /// Whether it allows POST only.
    pub(crate) fn changes(self) -> bool {
        match self {
            Self::List | Self::Info => false,
            Self::Create | Self::CreateStopped => true,
            Self::Of(_, call) => !matches!(
                call,
                MachineCall::Info | MachineCall::Console | MachineCall::Screen
            ),
        }
    }
}

impl ResourceCall {
    /// The command for these segments of a path, after `resources`.
    pub(crate) fn parse(segments: &[&str]) -> Result<Self, Refusal> {
        let kind = |word: &str| ResourceKind::parse(word).ok_or_else(Refusal::no_command);
        let id = |of: &str, name: &str| {
            ResourceId::parse(kind(of)?, name).ok_or_else(Refusal::no_resource)
        };
        match segments {
            ["list"] => Ok(Self::List(None)),
            ["info"] => Ok(Self::InfoAll(None)),
            [of, "list"] => Ok(Self::List(Some(kind(of)?))),
            [of, "info"] => Ok(Self::InfoAll(Some(kind(of)?))),
            [of, "create"] => Ok(Self::Create(kind(of)?)),
            [of, name, "info"] => Ok(Self::Info(id(of, name)?)),
            [of, name, "set"] => Ok(Self::Set(id(of, name)?)),
            [of, name, "destroy"] => Ok(Self::Destroy(id(of, name)?)),
            _ => Err(Refusal::no_command()),
        }
    }

    /// The name of the command in metrics and the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::List(_) => "resources-list",
            Self::InfoAll(_) => "resources-info-all",
            Self::Create(_) => "resources-create",
            Self::Info(_) => "resources-info",
            Self::Set(_) => "resources-set",
            Self::Destroy(_) => "resources-destroy",
        }
    }

    /// Whether it allows POST only.
    pub(crate) fn changes(self) -> bool {
        !matches!(self, Self::List(_) | Self::InfoAll(_) | Self::Info(_))
    }
}
