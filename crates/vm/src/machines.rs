//! All machines, in the data directory:
//!
//! ```text
//! host                UUID of this host, as in `claimed`
//! servers/UUID.meta   its record (`machine.rs`); it exists if and only if this does
//! servers/UUID.run/   what its last run left, and what the hypervisor keeps (`qemu.rs`)
//! ```
//!
//! A start claims drives and an address, has the hypervisor start the machine paused, stores that
//! it is running, and only then lets it execute its first instruction. So a crash leaves one of two
//! things: a machine whose record says that it runs, which is taken over, or one that has not
//! executed anything yet, which is killed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::claims::{Claim, Drive, Drives, Holder};
use super::console;
use super::hypervisor::{
    Control, End, Failure, Net, Password, Reach, Spec, SpecDrive, SpecNic, Status,
};
use super::ids::MachineId;
use super::machine::{Live, Machine, MachineRecord, SavedRun, StoppedStatus, now};
use super::qemu::{Qemu, QemuServer};
use super::resources::Resources;
use super::settings::{Device, Settings};
use super::vnc;
use openhosting_base::locks::{read, write};
use openhosting_base::wire::Properties;
use openhosting_filesystem::private_directory;
use openhosting_tenancy::{Amounts, QuotaKind, Quotas, Refusal, stored_file, unless_missing};

/// How often counters are read and consoles saved. A crash of the host loses at most this much of
/// them.
const REFRESH_EVERY: Duration = Duration::from_secs(5);
/// How long to wait for the end of a machine that closed its connection, to answer that it is not
/// active. If it has not ended by then, the command failed for another reason.
const END_NOTICED_MAX: Duration = Duration::from_secs(2);

type Result<T = ()> = std::result::Result<T, Refusal>;

/// What machines need from the server.
#[derive(Debug)]
pub struct Backing {
    /// The data directory.
    pub data: PathBuf,
    /// A directory for temporary files on the same file system.
    pub staging: PathBuf,
    /// The drives that machines may use.
    pub drives: Arc<dyn Drives>,
    /// The quotas of users.
    pub quotas: Quotas,
}

/// What guests can reach, and what can reach them.
#[derive(Debug)]
pub struct GuestNetwork {
    /// TCP ports of a machine's address that are forwarded to its guest.
    pub forward: Vec<u16>,
    /// What guests can reach.
    pub reach: Reach,
    /// Whether screens can be seen at the port of VNC.
    pub has_vnc_port: bool,
}

/// All machines of the server.
#[derive(Debug)]
pub struct Machines {
    directory: PathBuf,
    staging: PathBuf,
    host: Uuid,
    drives: Arc<dyn Drives>,
    quotas: Quotas,
    /// The addresses and private networks of users.
    pub resources: Resources,
    qemu: Qemu,
    network: GuestNetwork,
    cores_here: u32,
    machines: RwLock<BTreeMap<MachineId, Arc<Machine>>>,
    /// Stored runs, for [`find_running`](Self::find_running).
    stored_runs: BTreeMap<MachineId, SavedRun>,
}

impl Machines {
    /// Loads what is stored in the data directory. Blocks on the disk.
    pub fn open(backing: Backing, qemu: Qemu, network: GuestNetwork) -> io::Result<Self> {
        // Canonical, as the kernel reports the directory of a process.
        let data = backing.data.canonicalize()?;
        let directory = data.join("servers");
        private_directory(&directory)?;
        let mut machines = Self {
            host: host(&data.join("host"), &backing.staging)?,
            resources: Resources::open(&data, &backing.staging, backing.quotas.clone())?,
            directory,
            staging: backing.staging,
            drives: backing.drives,
            quotas: backing.quotas,
            qemu,
            network,
            cores_here: std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            machines: RwLock::default(),
            stored_runs: BTreeMap::new(),
        };
        machines.load()?;
        Ok(machines)
    }

    fn load(&mut self) -> io::Result<()> {
        let mut machines = BTreeMap::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().and_then(OsStr::to_str) != Some("meta") {
                continue;
            }
            let id = path.file_stem().and_then(OsStr::to_str);
            let loaded = match id.and_then(MachineId::parse) {
                Some(id) => match stored_file::read(&path) {
                    Err(error) if stored_file::is_of_the_file(&error) => None,
                    read => MachineRecord::parse(id, &read?).map(|record| (id, record)),
                },
                None => None,
            };
            let Some((id, record)) = loaded else {
                tracing::error!(?path, "A server is damaged, the others are served");
                continue;
            };
            if let Some(run) = record.run {
                self.stored_runs.insert(id, run);
            }
            let machine = self.machine(id, record);
            let held = self.quotas.hold_anyway(&machine.user, one());
            machine.state().held = Some(held);
            machines.insert(id, Arc::new(machine));
        }
        self.machines = RwLock::new(machines);
        Ok(())
    }

    fn machine(&self, id: MachineId, record: MachineRecord) -> Machine {
        let path = self.directory.join(format!("{id}.meta"));
        let directory = self.directory.join(format!("{id}.run"));
        Machine::new(id, record, path, directory)
    }

    /// Takes over the machines that an earlier process left running, and kills those that it was
    /// only starting. Call it before the first request.
    pub async fn find_running(self: &Arc<Self>) {
        // All at the same time: a hypervisor that hangs does not answer for 30 s.
        let mut searches = JoinSet::new();
        for (&id, &run) in &self.stored_runs {
            let Some(machine) = self.get(id) else {
                continue;
            };
            let this = Arc::clone(self);
            searches.spawn(async move {
                let _turn = machine.turn.lock().await;
                if !this.take_over(&machine, run).await {
                    tracing::warn!(%id, "A server ended while this program was not running");
                    this.settle(&machine, End::Died).await;
                }
            });
        }
        while searches.join_next().await.is_some() {}
        let (this, live) = (Arc::clone(self), self.all_live());
        let cleared = spawn_blocking(move || this.clear_leftovers(&live));
        if let Ok(Err(error)) | Err(error) = cleared.await.map_err(io::Error::from) {
            tracing::warn!(%error, "Cannot look for what was left running");
        }
    }

    async fn take_over(self: &Arc<Self>, machine: &Arc<Machine>, run: SavedRun) -> bool {
        let found = self.qemu.find(machine.id, &machine.directory).await;
        let Some(running) = found else { return false };
        let settings = machine.state().settings.clone();
        let vlans = vlans(&settings);
        let taken = self.claim_again(machine, &settings).and_then(|claims| {
            self.resources.mark(run.address, &vlans)?;
            Ok(claims)
        });
        let claims = match taken {
            Ok(claims) => claims,
            Err(refusal) => {
                tracing::error!(id = %machine.id, %refusal, "Ended a server whose drives are not there");
                running.cut_power().await;
                return false;
            }
        };
        tracing::info!(id = %machine.id, "Took over a server that runs");
        let held = self.running(&settings);
        let held = self.quotas.hold_anyway(&machine.user, held);
        machine.state().held_running = Some(held);
        let is_paused = running.status() == Status::Paused;
        let live = Live::new(running, run, claims, vlans);
        let live = self.watch(machine, live).await;
        live.take_counters_as_known().await;
        // The earlier process may have ended before its first instruction.
        if !is_paused && let Err(failure) = live.running.control(Control::Resume).await {
            tracing::warn!(id = %machine.id, %failure, "Cannot let a server go on");
        }
        true
    }

    /// Adds what guests read and wrote to the counters of their drives, when this program ends.
    pub async fn count_all(&self) {
        let live: Vec<_> = self
            .all()
            .iter()
            .filter_map(|machine| machine.live())
            .collect();
        if !live.is_empty() {
            tracing::info!(
                servers = live.len(),
                "Servers run on, the next start takes them over"
            );
        }
        for live in live {
            live.refresh().await;
        }
    }

    fn get(&self, id: MachineId) -> Option<Arc<Machine>> {
        read(&self.machines).get(&id).cloned()
    }

    /// Every machine, sorted by UUID.
    pub fn all(&self) -> Vec<Arc<Machine>> {
        read(&self.machines).values().cloned().collect()
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<MachineId, Arc<Machine>>) -> T) -> T {
        change(&mut write(&self.machines))
    }

    fn all_live(&self) -> Vec<MachineId> {
        let all = self.all();
        let live = all.iter().filter(|machine| machine.live().is_some());
        live.map(|machine| machine.id).collect()
    }

    /// Kills unknown machines that are running, and removes directories of machines that no longer
    /// exist.
    fn clear_leftovers(&self, live: &[MachineId]) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().and_then(OsStr::to_str) != Some("run") {
                continue;
            }
            let id = path
                .file_stem()
                .and_then(OsStr::to_str)
                .and_then(MachineId::parse);
            let Some(id) = id else { continue };
            if !live.contains(&id) {
                Qemu::clear(&path);
            }
            if !self.directory.join(format!("{id}.meta")).try_exists()? {
                fs::remove_dir_all(&path)?;
            }
        }
        Ok(())
    }

    /// The machine `id`, if `user` owns it.
    pub fn own(&self, user: &str, id: MachineId) -> Result<Arc<Machine>> {
        let machine = self.get(id).filter(|machine| machine.user == user);
        machine.ok_or_else(Refusal::no_server)
    }

    /// The user's machines, sorted by UUID.
    pub fn of_user(&self, user: &str) -> Vec<Arc<Machine>> {
        let mut all = self.all();
        all.retain(|machine| machine.user == user);
        all
    }

    /// The answer to `info` for a machine, with current counters.
    pub async fn info(&self, machine: &Machine) -> Properties {
        self.refresh(machine).await;
        self.info_as_known(machine)
    }

    /// Reads the counters of a running machine.
    pub async fn refresh(&self, machine: &Machine) {
        if let Some(live) = machine.live() {
            live.refresh().await;
        }
    }

    /// Creates a machine, and starts it unless it should stay stopped. If starting fails, the
    /// machine does not exist.
    pub async fn create(
        self: &Arc<Self>,
        user: &str,
        body: &Properties,
        is_started: bool,
    ) -> Result<Arc<Machine>> {
        let settings = Settings::create(body)?;
        self.check(user, &settings)?;
        let held = self.quotas.hold(user, one())?;
        let record = MachineRecord {
            user: user.to_owned(),
            settings,
            rest: StoppedStatus::Stopped,
            run: None,
        };
        let machine = Arc::new(self.machine(MachineId::random(), record));
        machine.state().held = Some(held);
        let _turn = machine.turn.lock().await;
        let made = match is_started {
            true => self.launch(&machine).await,
            false => self.keep(&machine).await,
        };
        if let Err(refusal) = made {
            // No answer mentioned the machine yet, so whatever remains of it is removed.
            let _ = self.forget(&machine).await;
            return Err(refusal);
        }
        self.change(|machines| machines.insert(machine.id, Arc::clone(&machine)));
        Ok(Arc::clone(&machine))
    }

    /// Starts a machine that is not running.
    pub async fn start(self: &Arc<Self>, machine: &Arc<Machine>) -> Result {
        let _turn = Self::turn(machine).await?;
        if let Some(live) = machine.live() {
            return Err(Refusal::busy(match live.running.status() {
                Status::Paused => "Server is paused: resume it",
                _ => "Server is active already",
            }));
        }
        self.launch(machine).await
    }

    /// Cuts the power of a machine. If it is already off, that is no error.
    pub async fn stop(self: &Arc<Self>, machine: &Arc<Machine>) -> Result {
        let _turn = Self::turn(machine).await?;
        self.end(machine).await;
        Ok(())
    }

    /// Stops a machine and removes it. Its drives stay.
    pub async fn destroy(self: &Arc<Self>, machine: &Arc<Machine>) -> Result {
        let _turn = Self::turn(machine).await?;
        self.end(machine).await;
        if !machine.state().is_gone {
            self.forget(machine).await?;
        }
        Ok(())
    }

    async fn end(self: &Arc<Self>, machine: &Arc<Machine>) {
        if let Some(live) = machine.live() {
            live.refresh().await;
            let end = live.running.cut_power().await;
            self.settle(machine, end).await;
        }
    }

    /// Merges keys into the settings of a machine.
    pub async fn set(self: &Arc<Self>, machine: &Arc<Machine>, body: &Properties) -> Result {
        let _turn = Self::turn(machine).await?;
        let old = machine.state().settings.clone();
        let mut new = old.clone();
        let live = machine.live();
        match &live {
            Some(_) => new.merge_active(body)?,
            None => {
                new.merge(body)?;
                self.check(&machine.user, &new)?;
            }
        }
        if let Some(live) = &live {
            if new.password() != old.password() {
                live.running.set_password(new.password()).await?;
            }
            if new.cpu_mhz() != old.cpu_mhz() {
                live.running.set_cpu(new.cpu_mhz());
            }
        }
        let record = MachineRecord {
            settings: new.clone(),
            ..machine.record()
        };
        self.keep_record(machine, record).await?;
        machine.state().settings = new;
        Ok(())
    }

    /// Uses a control of a running machine.
    pub async fn control(&self, machine: &Machine, control: Control) -> Result {
        let _turn = Self::turn(machine).await?;
        let live = active(machine)?;
        let done = live.running.control(control).await;
        unless_ended(&live, done).await
    }

    /// The screen of a running machine, as PNG. It does not take the turn, so it delays no command,
    /// even if the hypervisor hangs.
    pub async fn screen(&self, machine: &Machine) -> Result<Bytes> {
        let live = active(machine)?;
        let drawn = live.screen().await;
        unless_ended(&live, drawn).await
    }

    /// Whether screens are available at the VNC port.
    pub fn has_vnc_port(&self) -> bool {
        self.network.has_vnc_port
    }

    /// The answer to `info` for a machine, with the last known counters, which are up to 5 s old.
    /// Does not ask the hypervisor.
    pub fn info_as_known(&self, machine: &Machine) -> Properties {
        machine.info(self.cores_here)
    }

    /// The last MiB that a machine wrote to its serial port in its last run.
    pub async fn console(&self, machine: &Machine) -> Result<Vec<u8>> {
        if let Some(live) = machine.live() {
            live.running.keep_console().await;
        }
        let path = machine.directory.join("console");
        let read = spawn_blocking(move || console::read(&path));
        Ok(read.await.map_err(io::Error::from)??)
    }

    /// The right to change a machine, if it still exists.
    async fn turn(machine: &Machine) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        let turn = machine.turn.lock().await;
        match machine.state().is_gone {
            true => Err(Refusal::no_server()),
            false => Ok(turn),
        }
    }

    /// Checks before a start what can be known to be wrong: drives and resources that do not exist,
    /// or that this user may not use.
    fn check(&self, user: &str, settings: &Settings) -> Result {
        for device in settings.devices() {
            let drive = self.drives.readable(user, device.drive)?;
            drive.check(user, device.slot, !device.is_cdrom)?;
        }
        self.resources
            .check(user, settings.static_address(), &vlans(settings))
    }

    /// Claims the drives of a machine.
    fn claim(
        &self,
        machine: &Machine,
        settings: &Settings,
    ) -> Result<(Vec<Claim>, Vec<SpecDrive>)> {
        self.check(&machine.user, settings)?;
        let (mut claims, mut drives) = (Vec::new(), Vec::new());
        for device in settings.devices() {
            let drive = self.drives.readable(&machine.user, device.drive)?;
            claims.push(self.claim_drive(machine, &device, Arc::clone(&drive))?);
            drives.push(SpecDrive {
                slot: device.slot,
                path: drive.path().canonicalize()?,
                // The size does not change while it is claimed.
                size: drive.size(),
                is_cdrom: device.is_cdrom,
                is_shared: drive.is_shared(),
                boot_index: device.boot_index,
            });
        }
        Ok((claims, drives))
    }

    fn claim_drive(
        &self,
        machine: &Machine,
        device: &Device,
        drive: Arc<dyn Drive>,
    ) -> Result<Claim> {
        let holder = Holder {
            user: machine.user.clone(),
            host: self.host,
            server: machine.id,
            slot: device.slot,
            may_write: !device.is_cdrom,
        };
        drive.claim(holder)
    }

    /// Claims the drives of a machine that continued to run while this program was not running. A
    /// drive of another user may have been destroyed or withdrawn since; that is no reason to cut
    /// the machine's power.
    fn claim_again(&self, machine: &Machine, settings: &Settings) -> Result<Vec<Claim>> {
        let mut claims = Vec::new();
        for device in settings.devices() {
            let drive = self.drives.readable(&machine.user, device.drive);
            match drive.and_then(|drive| self.claim_drive(machine, &device, drive)) {
                Ok(claim) => claims.push(claim),
                Err(refusal) if device.is_cdrom => {
                    tracing::warn!(id = %machine.id, drive = %device.drive, %refusal, "A server runs without one of its drives");
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(claims)
    }

    async fn launch(self: &Arc<Self>, machine: &Arc<Machine>) -> Result {
        let settings = machine.state().settings.clone();
        let (claims, drives) = self.claim(machine, &settings)?;
        let running = self.running(&settings);
        let held = self.quotas.hold(&machine.user, running)?;
        let vlans = vlans(&settings);
        let address = self
            .resources
            .lend(&machine.user, settings.static_address(), &vlans)?;
        let run = SavedRun {
            address,
            started: now(),
        };
        let made = self.make(machine, &settings, drives, run).await;
        let running = match made {
            Ok(running) => running,
            Err(refusal) => {
                self.resources.take_back(address, &vlans);
                return Err(refusal);
            }
        };
        machine.state().held_running = Some(held);
        let live = Live::new(running, run, claims, vlans);
        let live = self.watch(machine, live).await;
        let started = match self.keep(machine).await {
            Ok(()) => live
                .running
                .control(Control::Resume)
                .await
                .map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = started {
            live.running.cut_power().await;
            self.settle(machine, End::PowerCut).await;
            return Err(refusal);
        }
        live.refresh().await;
        tracing::info!(id = %machine.id, "Started a server");
        Ok(())
    }

    /// What a machine with these settings counts towards its user's quotas while it runs.
    fn running(&self, settings: &Settings) -> Amounts {
        Amounts::of([
            (QuotaKind::Memory, u64::from(settings.mem_mb()) << 20),
            (QuotaKind::Cores, u64::from(settings.cores(self.cores_here))),
        ])
    }

    async fn make(
        &self,
        machine: &Machine,
        settings: &Settings,
        drives: Vec<SpecDrive>,
        run: SavedRun,
    ) -> Result<Arc<QemuServer>> {
        let directory = machine.directory.clone();
        let prepared = spawn_blocking(move || {
            // Nothing should be running there any more; this is a precaution.
            Qemu::clear(&directory);
            unless_missing(fs::remove_dir_all(&directory))?;
            private_directory(&directory)
        });
        prepared.await.map_err(io::Error::from)??;
        let nics = settings.nics().into_iter().map(|nic| SpecNic {
            index: nic.index,
            model: nic.model,
            mac: nic.mac.unwrap_or_else(|| machine.id.mac(nic.index)),
            net: match nic.vlan {
                Some(vlan) => Net::Vlan(vlan),
                None => Net::Outside {
                    forward: self.network.forward.clone(),
                    reach: self.network.reach,
                },
            },
        });
        let spec = Spec {
            id: machine.id,
            directory: machine.directory.clone(),
            cpu_mhz: settings.cpu_mhz(),
            cores: settings.cores(self.cores_here),
            mem_mb: settings.mem_mb(),
            drives,
            nics: nics.collect(),
            address: run.address,
            password: settings
                .password()
                .map(|password| Password(password.to_owned())),
        };
        Ok(self.qemu.start(&spec).await?)
    }

    /// Registers a running machine, and watches it until it ends.
    async fn watch(self: &Arc<Self>, machine: &Arc<Machine>, live: Live) -> Arc<Live> {
        let live = Arc::new(live);
        if self.network.has_vnc_port {
            show(machine.id, &live).await;
        }
        machine.state().live = Some(Arc::clone(&live));
        let (this, machine, watched) = (Arc::clone(self), Arc::clone(machine), Arc::clone(&live));
        tokio::spawn(async move {
            let ended = watched.running.ended();
            tokio::pin!(ended);
            let end = loop {
                tokio::select! {
                    end = &mut ended => break end,
                    () = sleep(REFRESH_EVERY) => {
                        watched.refresh().await;
                        watched.running.keep_console().await;
                    }
                }
            };
            // A command that ended it holds the turn, and settles it first.
            let _turn = machine.turn.lock().await;
            if machine
                .live()
                .is_some_and(|live| Arc::ptr_eq(&live, &watched))
            {
                this.settle(&machine, end).await;
            }
        });
        live
    }

    /// Handles the end of a machine: its claims and address become free, and it is removed unless
    /// it is persistent.
    async fn settle(&self, machine: &Arc<Machine>, end: End) {
        let is_persistent = {
            let live = machine.live();
            if let Some(live) = &live {
                live.end_viewers().await;
            }
            let mut state = machine.state();
            if let Some(live) = state.live.take() {
                self.resources.take_back(live.run.address, &live.vlans);
                live.release_drives();
            }
            state.held_running = None;
            state.rest = match end {
                End::Died => StoppedStatus::Dead,
                End::ShutDown | End::PowerCut => StoppedStatus::Stopped,
            };
            state.settings.is_persistent()
        };
        match end {
            End::Died => tracing::warn!(id = %machine.id, "A server died"),
            End::ShutDown => tracing::info!(id = %machine.id, "A server was shut down"),
            End::PowerCut => tracing::info!(id = %machine.id, "Stopped a server"),
        }
        let kept = match is_persistent {
            true => self.keep(machine).await,
            false => self.forget(machine).await,
        };
        if let Err(refusal) = kept {
            tracing::error!(id = %machine.id, %refusal, "Cannot keep the end of a server");
        }
    }

    async fn keep(&self, machine: &Machine) -> Result {
        self.keep_record(machine, machine.record()).await
    }

    async fn keep_record(&self, machine: &Machine, record: MachineRecord) -> Result {
        let (text, path) = (record.print(machine.id), machine.path.clone());
        let staging = self.staging.clone();
        let written = spawn_blocking(move || stored_file::write(&text, &path, &staging));
        Ok(written.await.map_err(io::Error::from)??)
    }

    /// Removes a machine that does not run. After an error, it is still there, as after a restart.
    async fn forget(&self, machine: &Machine) -> Result {
        let (path, directory) = (machine.path.clone(), machine.directory.clone());
        let removed = spawn_blocking(move || {
            stored_file::remove(&path)?;
            if let Err(error) = unless_missing(fs::remove_dir_all(&directory)) {
                tracing::warn!(?directory, %error, "Cannot remove a directory, the next start does");
            }
            io::Result::Ok(())
        });
        removed.await.map_err(io::Error::from)??;
        {
            let mut state = machine.state();
            state.is_gone = true;
            (state.held, state.held_running) = (None, None);
        }
        self.change(|machines| machines.remove(&machine.id));
        Ok(())
    }
}

/// Serves the viewers of a machine at its address, until the task is ended.
async fn show(id: MachineId, live: &Live) {
    let address = live.run.address;
    match vnc::listen(address).await {
        Ok(listener) => {
            let viewers = vnc::serve(listener, Arc::clone(&live.running));
            live.set_viewers(tokio::spawn(viewers));
        }
        Err(error) => tracing::warn!(%id, %error, %address, "Cannot listen for VNC"),
    }
}

/// One machine, as quotas count it.
fn one() -> Amounts {
    Amounts::of([(QuotaKind::Servers, 1)])
}

/// The resources of a machine; an error if it is not running.
fn active(machine: &Machine) -> Result<Arc<Live>> {
    let live = machine.live();
    let live = live.filter(|live| !matches!(live.running.status(), Status::Ended(_)));
    live.ok_or_else(not_active)
}

fn not_active() -> Refusal {
    Refusal::usage("Server is not active")
}

/// The result of a command. It did not fail if the machine ended meanwhile, which is detected
/// shortly after.
async fn unless_ended<T>(live: &Live, done: std::result::Result<T, Failure>) -> Result<T> {
    match done {
        Err(Failure::Silent(_)) if timeout(END_NOTICED_MAX, live.running.ended()).await.is_ok() => {
            Err(not_active())
        }
        done => Ok(done?),
    }
}

/// The private networks of a machine.
fn vlans(settings: &Settings) -> Vec<Uuid> {
    settings.nics().iter().filter_map(|nic| nic.vlan).collect()
}

/// The UUID of this host, which is generated once.
fn host(path: &Path, staging: &Path) -> io::Result<Uuid> {
    match stored_file::read(path) {
        Ok(text) => Uuid::try_parse_ascii(text.trim_ascii()).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let host = Uuid::new_v4();
            stored_file::write(&format!("{host}\n"), path, staging)?;
            Ok(host)
        }
        Err(error) => Err(error),
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Missing(_) => {
                tracing::warn!(%failure, "A server cannot be started");
                Self::failed("No hypervisor: servers need QEMU (Debian: qemu-system-x86)")
            }
            Failure::Local(error) => error.into(),
            Failure::Refused(_) | Failure::Silent(_) => {
                tracing::error!(%failure, "The hypervisor failed");
                Self::failed("The hypervisor failed; the server's log has the reason")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_name_is_stable_and_a_garbled_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host");
        let name = || host(&path, directory.path());
        assert_eq!(name().unwrap(), name().unwrap());
        fs::write(&path, "x").unwrap();
        assert!(name().is_err());
    }
}
