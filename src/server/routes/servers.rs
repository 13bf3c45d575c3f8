//! The commands of servers (docs/dev/reference.md, 1.9) and of resources
//! (docs/dev/reference.md, 1.12).

use crate::tenancy::refusal::Refusal;
use crate::vm::ids::MachineId;
use crate::vm::resources::{Kind, ResourceId};

/// A command of `servers/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum ServerCall {
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
pub(in crate::server) enum MachineCall {
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

/// A command of `resources/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum ResourceCall {
    /// `resources[/TYPE]/list`
    List(Option<Kind>),
    /// `resources[/TYPE]/info`
    InfoAll(Option<Kind>),
    /// `resources/TYPE/create`
    Create(Kind),
    /// `resources/TYPE/RESOURCE/info`
    Info(ResourceId),
    /// `resources/TYPE/RESOURCE/set`
    Set(ResourceId),
    /// `resources/TYPE/RESOURCE/destroy`
    Destroy(ResourceId),
}

impl ServerCall {
    /// The command that these segments of a path name, after `servers`.
    pub(in crate::server) fn parse(segments: &[&str]) -> Result<Self, Refusal> {
        use MachineCall as M;
        let (id, call) = match segments {
            ["list"] => return Ok(Self::List),
            ["info"] => return Ok(Self::Info),
            ["create"] => return Ok(Self::Create),
            ["create", "stopped"] => return Ok(Self::CreateStopped),
            [id, "info"] | [id, "info", "full"] => (id, M::Info),
            [id, "start"] => (id, M::Start),
            [id, "stop"] => (id, M::Stop),
            [id, "shutdown"] => (id, M::Shutdown),
            [id, "reset"] => (id, M::Reset),
            [id, "destroy"] => (id, M::Destroy),
            [id, "set"] => (id, M::Set),
            [id, "suspend"] => (id, M::Suspend),
            [id, "resume"] => (id, M::Resume),
            [id, "console"] => (id, M::Console),
            [id, "screen"] => (id, M::Screen),
            _ => return Err(Refusal::no_command()),
        };
        let id = MachineId::parse(id).ok_or_else(Refusal::no_server)?;
        Ok(Self::Of(id, call))
    }

    /// The command in a word, as figures and the log tell it.
    pub(in crate::server) fn name(self) -> &'static str {
        match self {
            Self::List => "servers-list",
            Self::Info => "servers-info-all",
            Self::Create | Self::CreateStopped => "servers-create",
            Self::Of(_, call) => match call {
                MachineCall::Info => "servers-info",
                MachineCall::Start => "servers-start",
                MachineCall::Stop => "servers-stop",
                MachineCall::Shutdown => "servers-shutdown",
                MachineCall::Reset => "servers-reset",
                MachineCall::Destroy => "servers-destroy",
                MachineCall::Set => "servers-set",
                MachineCall::Suspend => "servers-suspend",
                MachineCall::Resume => "servers-resume",
                MachineCall::Console => "servers-console",
                MachineCall::Screen => "servers-screen",
            },
        }
    }

    /// Whether it takes POST only.
    pub(in crate::server) fn changes(self) -> bool {
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
    /// The command that these segments of a path name, after `resources`.
    pub(in crate::server) fn parse(segments: &[&str]) -> Result<Self, Refusal> {
        let kind = |word: &str| Kind::parse(word).ok_or_else(Refusal::no_command);
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

    /// The command in a word, as figures and the log tell it.
    pub(in crate::server) fn name(self) -> &'static str {
        match self {
            Self::List(_) => "resources-list",
            Self::InfoAll(_) => "resources-info-all",
            Self::Create(_) => "resources-create",
            Self::Info(_) => "resources-info",
            Self::Set(_) => "resources-set",
            Self::Destroy(_) => "resources-destroy",
        }
    }

    /// Whether it takes POST only.
    pub(in crate::server) fn changes(self) -> bool {
        !matches!(self, Self::List(_) | Self::InfoAll(_) | Self::Info(_))
    }
}
