//! The commands of servers (docs/dev/reference.md, 1.9) and of resources
//! (docs/dev/reference.md, 1.12): one arm for each.

use std::sync::Arc;

use hyper::Request;
use hyper::header::{HeaderName, HeaderValue};

use super::answer::{self, Answer, Refusal};
use super::body::Incoming;
use super::drives::{Api, blocking, broke_off, keys_and_values};
use super::machine::{Machine, MachineId};
use super::resources::{Kind, ResourceId};
use crate::wire::{EXTENSIONS_OF_SERVERS, Format, Properties, X_OPENHOSTING_EXTENSIONS};

/// A command of `servers/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerCall {
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
pub(super) enum MachineCall {
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
pub(super) enum ResourceCall {
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

type Result<T = Answer> = std::result::Result<T, Refusal>;

impl ServerCall {
    /// The command that these segments of a path name, after `servers`.
    pub(super) fn parse(segments: &[&str]) -> Result<Self> {
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
    pub(super) fn name(self) -> &'static str {
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
    pub(super) fn changes(self) -> bool {
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
    pub(super) fn parse(segments: &[&str]) -> Result<Self> {
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
    pub(super) fn name(self) -> &'static str {
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
    pub(super) fn changes(self) -> bool {
        !matches!(self, Self::List(_) | Self::InfoAll(_) | Self::Info(_))
    }
}

impl Api {
    /// Does what `user` asks for about servers.
    pub(super) async fn call_server(
        self: &Arc<Self>,
        user: Arc<str>,
        call: ServerCall,
        request: Request<Incoming>,
        format: Format,
    ) -> Result {
        match call {
            ServerCall::List => {
                let machines = self.machines.of_user(&user);
                let ids = machines.into_iter().map(|m| m.id.to_string());
                Ok(answer::list("server", ids, format))
            }
            ServerCall::Info => {
                let own = self.machines.of_user(&user);
                for machine in &own {
                    self.machines.refresh(machine).await;
                }
                let machines = Arc::clone(&self.machines);
                let infos = own.into_iter().map(move |m| machines.info_as_known(&m));
                Ok(answer::objects(infos, format))
            }
            ServerCall::Create | ServerCall::CreateStopped => {
                let body = keys_and_values(request).await?;
                let api = Arc::clone(self);
                let made = detached(async move {
                    let is_started = call == ServerCall::Create;
                    api.machines.create(&user, &body, is_started).await
                });
                self.server(&*made.await?, format).await
            }
            ServerCall::Of(id, call) => {
                let machine = self.machines.own(&user, id)?;
                self.call_machine(machine, call, request, format).await
            }
        }
    }

    async fn call_machine(
        self: &Arc<Self>,
        machine: Arc<Machine>,
        call: MachineCall,
        request: Request<Incoming>,
        format: Format,
    ) -> Result {
        use MachineCall as M;
        if matches!(call, M::Suspend | M::Resume | M::Console | M::Screen) && !self.has_extensions {
            return Err(Refusal::no_command());
        }
        let machines = Arc::clone(&self.machines);
        let no_content = |()| answer::no_content();
        match call {
            M::Info => self.server(&machine, format).await,
            M::Console => {
                let console = machines.console(&machine).await?;
                Ok(answer::file(console, "text/plain"))
            }
            M::Screen => {
                let screen = machines.screen(&machine).await?;
                Ok(answer::file(screen, "image/png"))
            }
            M::Set => {
                let body = keys_and_values(request).await?;
                let changed = Arc::clone(&machine);
                detached(async move { machines.set(&changed, &body).await }).await?;
                self.server(&machine, format).await
            }
            M::Start => {
                let started = Arc::clone(&machine);
                detached(async move { machines.start(&started).await }).await?;
                self.server(&machine, format).await
            }
            M::Stop => {
                let stopped = detached(async move { machines.stop(&machine).await });
                stopped.await.map(no_content)
            }
            M::Destroy => {
                let destroyed = detached(async move { machines.destroy(&machine).await });
                destroyed.await.map(no_content)
            }
            M::Shutdown => {
                let pressed = machines.with_running(&machine, |r| r.press_power_button());
                pressed.await.map(no_content)
            }
            M::Reset => {
                let reset = machines.with_running(&machine, |running| running.reset());
                reset.await.map(no_content)
            }
            M::Suspend => {
                let paused = machines.with_running(&machine, |running| running.pause());
                paused.await.map(no_content)
            }
            M::Resume => {
                let resumed = machines.with_running(&machine, |running| running.resume());
                resumed.await.map(no_content)
            }
        }
    }

    /// The answer with one server. It may be gone by now: then it is as it was.
    async fn server(&self, machine: &Machine, format: Format) -> Result {
        let info = self.machines.info(machine).await;
        let mut answer = answer::object(&info, format);
        if self.has_extensions {
            let name = HeaderName::from_static(X_OPENHOSTING_EXTENSIONS);
            let names = HeaderValue::from_static(EXTENSIONS_OF_SERVERS);
            answer.headers_mut().insert(name, names);
        }
        Ok(answer)
    }

    /// Does what `user` asks for about resources.
    pub(super) async fn call_resource(
        self: &Arc<Self>,
        user: Arc<str>,
        call: ResourceCall,
        request: Request<Incoming>,
        format: Format,
    ) -> Result {
        let machines = Arc::clone(&self.machines);
        let resources = &self.machines.resources;
        let object = |info: Properties| answer::object(&info, format);
        match call {
            ResourceCall::List(kind) => Ok(answer::resources(
                resources.infos(&user, kind).into_iter(),
                format,
            )),
            ResourceCall::InfoAll(kind) => Ok(answer::objects(
                resources.infos(&user, kind).into_iter(),
                format,
            )),
            ResourceCall::Info(id) => resources.info(&user, id).map(object),
            ResourceCall::Create(kind) => {
                let body = keys_and_values(request).await?;
                let made = blocking(move || machines.resources.create(&user, kind, &body));
                made.await.map(object)
            }
            ResourceCall::Set(id) => {
                let body = keys_and_values(request).await?;
                let changed = blocking(move || machines.resources.change(&user, id, &body));
                changed.await.map(object)
            }
            ResourceCall::Destroy(id) => {
                let destroyed = blocking(move || machines.resources.destroy(&user, id));
                destroyed.await.map(|()| answer::no_content())
            }
        }
    }
}

/// Does `work`, which goes on when the client has gone.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|error| Err(broke_off(&error)))
}
