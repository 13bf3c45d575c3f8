//! One arm for each command about servers (docs/dev/reference.md, 1.9) and about resources
//! (docs/dev/reference.md, 1.12).

use std::sync::Arc;

use hyper::Request;
use hyper::header::HeaderValue;

use super::answer::{self, Answer};
use super::body::{Incoming, keys_and_values};
use super::routes::{MachineCall, ResourceCall, ServerCall};
use super::shared::Api;
use super::tasks::{blocking, detached};
use openhosting_base::wire::{EXTENSIONS_OF_SERVERS, Format, Properties, X_OPENHOSTING_EXTENSIONS};
use openhosting_tenancy::Refusal;
use openhosting_vm::{Control, Machine};

type Result<T = Answer> = std::result::Result<T, Refusal>;

impl Api {
    /// Carries out a command of `user` about servers.
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
        let done = match call {
            M::Info => return self.server(&machine, format).await,
            M::Console => {
                let console = machines.console(&machine).await?;
                return Ok(answer::file(console, "text/plain"));
            }
            M::Screen => {
                let screen = machines.screen(&machine).await?;
                return Ok(answer::file(screen, "image/png"));
            }
            M::Set => {
                let body = keys_and_values(request).await?;
                let changed = Arc::clone(&machine);
                detached(async move { machines.set(&changed, &body).await }).await?;
                return self.server(&machine, format).await;
            }
            M::Start => {
                let started = Arc::clone(&machine);
                detached(async move { machines.start(&started).await }).await?;
                return self.server(&machine, format).await;
            }
            M::Stop => detached(async move { machines.stop(&machine).await }).await,
            M::Destroy => detached(async move { machines.destroy(&machine).await }).await,
            M::Shutdown => machines.control(&machine, Control::PowerButton).await,
            M::Reset => machines.control(&machine, Control::Reset).await,
            M::Suspend => machines.control(&machine, Control::Pause).await,
            M::Resume => machines.control(&machine, Control::Resume).await,
        };
        done.map(|()| answer::no_content())
    }

    /// The answer with one server. If it has been removed meanwhile, with its last state.
    async fn server(&self, machine: &Machine, format: Format) -> Result {
        let info = self.machines.info(machine).await;
        let mut answer = answer::object(&info, format);
        if self.has_extensions {
            let names = HeaderValue::from_static(EXTENSIONS_OF_SERVERS);
            answer.headers_mut().insert(X_OPENHOSTING_EXTENSIONS, names);
        }
        Ok(answer)
    }

    /// Carries out a command of `user` about resources.
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
