//! QEMU: one process for each server, controlled over QMP.
//!
//! A process runs in the directory of its server, with these files:
//!
//! ```text
//! process   which process it is (`process.rs`)
//! qmp       the socket that it is driven over
//! vnc       the socket of its screen
//! to-filter0, from-filter0   the sockets of a network card's filter (`frames.rs`)
//! screen.png a picture of its screen, while it is read
//! console   what the guest wrote to its serial port, its last MiB (`console.rs`)
//! log       what QEMU wrote to its stderr, once it has ended (`log.rs`)
//! ```
//!
//! Each QEMU process is detached (own process group, no inherited pipes) and survives an end of
//! this program, however it ends. Its socket proves its identity: the kernel names the process that
//! listens on it, and QEMU names the server. A process of an unknown server is killed if the record
//! names it, or if it listens on the socket.
//!
//! A guest is hostile. QEMU is confined (`-sandbox`), has only the file descriptors, file sizes and
//! environment that it needs, writes to nothing that grows except its drives, and gives the guest
//! the network that the operator chose ([`Reach`]).
//!
//! After a guest switches itself off, QEMU stays for a moment (`-no-shutdown`), so that a shutdown
//! while this program was not running can be distinguished from a crash.

mod cgroup;
mod frames;
mod log;
mod process;
mod qmp;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::{Mutex, OnceCell, mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

pub use self::cgroup::Cgroup;
use self::log::Log;
use self::process::Process;
use self::qmp::{Event, Qmp, connect};
use super::console;
use super::hypervisor::{Control, End, Failure, Net, Reach, Spec, SpecDrive, Status};
use super::ids::{MachineId, Slot};
use openhosting_tenancy::Counters;

/// Maximum time until a new process accepts commands. It takes a fraction of a second; on a machine
/// under load it may take much longer, and nothing is lost by waiting.
const START_MAX: Duration = Duration::from_secs(60);
/// How often to check whether it does.
const START_CHECK_EVERY: Duration = Duration::from_millis(20);
/// Maximum time for each step in which a process ends by itself, before it is killed. It may have
/// to write back data of its drives first.
const END_MAX: Duration = Duration::from_secs(10);
/// Maximum time for testing whether KVM works. Without an answer, guests are emulated.
const KVM_PROBE_MAX: Duration = Duration::from_secs(20);
const KVM: &str = "/dev/kvm";
/// The sockets.
const QMP: &str = "qmp";
const VNC: &str = "vnc";
/// The file of a picture of the screen. Whoever requests one may not wait for it, and then the next
/// picture replaces the file.
const SCREEN: &str = "screen.png";
/// Maximum file descriptors of a process: its drives, and one for each connection of its guest
/// through QEMU's user network. It keeps a guest from using up those of the system.
const FILES_MAX: u64 = 4096;
/// Maximum bytes of a picture of a screen: 2560 x 1600 in noise.
const PICTURE_BYTES_MAX: u64 = 16 << 20;
/// Maximum file size that a process may write, unless a drive is larger: enough for a picture of
/// the screen.
const FILE_BYTES_MIN: u64 = 64 << 20;

/// QEMU, the program.
#[derive(Debug)]
pub struct Qemu {
    program: PathBuf,
    /// Its complete environment.
    environment: Vec<(OsString, OsString)>,
    cgroup: Option<Cgroup>,
    /// Determined at the first start.
    accelerator: OnceCell<&'static str>,
}

impl Qemu {
    /// Runs servers with `program`, a path or a name to look up, in exactly this `environment`.
    pub fn new(
        program: PathBuf,
        environment: Vec<(OsString, OsString)>,
        cgroup: Option<Cgroup>,
    ) -> Self {
        Self {
            program,
            environment,
            cgroup,
            accelerator: OnceCell::new(),
        }
    }

    /// `kvm` if it works, which its presence does not prove.
    async fn accelerator(&self) -> &'static str {
        let found = self.accelerator.get_or_init(|| async {
            let has_kvm = File::options().read(true).write(true).open(KVM).is_ok();
            let accelerator = match has_kvm && self.kvm_works().await {
                true => "kvm",
                false => "tcg",
            };
            tracing::info!(accelerator, "Servers run with this accelerator");
            accelerator
        });
        found.await
    }

    async fn kvm_works(&self) -> bool {
        let probe = async {
            let mut command = Command::new(&self.program);
            command
                .args(["-nodefaults", "-no-user-config", "-display", "none", "-S"])
                .args(["-machine", "pc,accel=kvm", "-cpu", "max", "-m", "16"])
                .args(["-qmp", "stdio"])
                .env_clear()
                .envs(self.environment.iter().cloned())
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true);
            let mut child = command.spawn().ok()?;
            let mut stdin = child.stdin.take()?;
            let commands = b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n";
            stdin.write_all(commands).await.ok()?;
            child.wait().await.ok()?.success().then_some(())
        };
        matches!(timeout(KVM_PROBE_MAX, probe).await, Ok(Some(())))
    }

    /// The server that an earlier process of ours left running in `directory`.
    pub(crate) async fn find(&self, id: MachineId, directory: &Path) -> Option<Arc<QemuServer>> {
        let stream = connect(directory, QMP).await.ok()?;
        let found = self.attach(id, directory, stream).await;
        found
            .inspect_err(|failure| tracing::warn!(%id, %failure, "Cannot take over a server"))
            .ok()
    }

    /// Kills the server that an earlier process of ours left running in `directory`, if there is
    /// one. Blocks until it has ended.
    pub(crate) fn clear(directory: &Path) {
        process::kill_recorded(directory, QMP);
    }

    /// Starts a server, paused: its first instruction runs after [`Control::Resume`].
    pub(crate) async fn start(&self, spec: &Spec) -> Result<Arc<QemuServer>, Failure> {
        let accelerator = self.accelerator().await;
        let log = Log::create()?;
        let mut command = Command::new(&self.program);
        command
            .args(arguments(spec, accelerator))
            .current_dir(&spec.directory)
            .env_clear()
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.writer()?)
            // A Ctrl-C on our terminal must not reach it.
            .process_group(0);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Failure::Missing(self.program.clone()),
            _ => Failure::Local(error),
        })?;
        let pid = child.id().unwrap_or_default();
        let process = Process::open(pid);
        // Waits for the process, whatever happens, so that it does not become a zombie.
        tokio::spawn(async move { child.wait().await });
        let process = process?;
        let made = match limit(spec, pid).and_then(|()| process::record(&spec.directory, pid)) {
            Ok(()) => self.greet(spec, pid, &process).await,
            Err(error) => Err(Failure::Local(error)),
        };
        if made.is_err() {
            process.kill();
            process.ended().await;
        }
        let server = made.map_err(|failure| match log.last_line() {
            Some(line) => Failure::Refused(line),
            None => failure,
        })?;
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.place(spec.id, pid, spec.cpu_mhz)
        {
            tracing::warn!(id = %spec.id, %error, "Cannot give a server its share");
        }
        Ok(server)
    }

    async fn greet(
        &self,
        spec: &Spec,
        pid: u32,
        process: &Process,
    ) -> Result<Arc<QemuServer>, Failure> {
        let deadline = Instant::now() + START_MAX;
        let stream = loop {
            if let Ok(stream) = connect(&spec.directory, QMP).await {
                break stream;
            }
            tokio::select! {
                () = process.ended() => return Err(Failure::Refused("it ended at once".into())),
                () = sleep(START_CHECK_EVERY) => {}
            }
            if Instant::now() > deadline {
                return Err(Failure::Silent("it did not start in time".into()));
            }
        };
        let server = self.attach(spec.id, &spec.directory, stream).await?;
        if server.pid != pid {
            return Err(Failure::Silent("another process answers for it".into()));
        }
        // The directory is private. The sockets must be private too, because they may be moved.
        for socket in [QMP, VNC] {
            let path = spec.directory.join(socket);
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        }
        if let Some(password) = &spec.password {
            server.set_password(Some(&password.0)).await?;
        }
        Ok(server)
    }

    /// Connects to the process at the other end of `stream`.
    async fn attach(
        &self,
        id: MachineId,
        directory: &Path,
        stream: UnixStream,
    ) -> Result<Arc<QemuServer>, Failure> {
        let pid = stream
            .peer_cred()?
            .pid()
            .and_then(|pid| pid.try_into().ok());
        let pid = pid.ok_or_else(|| Failure::Silent("it has no process number".into()))?;
        let process = Process::open(pid)?;
        let (qmp, events) = Qmp::open(stream).await?;
        // It answers, so it was running when the descriptor was opened.
        let uuid = qmp.run("query-uuid", json!({})).await?;
        if uuid["UUID"].as_str() != Some(id.to_string().as_str()) {
            return Err(Failure::Silent("it is another server".into()));
        }
        // If its frames cannot be filtered, the guest has no network. That is no reason to end it.
        if let Err(failure) = frames::attend(&qmp, directory).await {
            tracing::warn!(%id, %failure, "Cannot filter the frames of a server");
        }
        let status = qmp.run("query-status", json!({})).await?;
        let status = status["status"].as_str().unwrap_or_default().to_owned();
        let first = match status.as_str() {
            "running" | "prelaunch" | "shutdown" => Status::Active,
            _ => Status::Paused,
        };
        let server = Arc::new(QemuServer {
            id,
            pid,
            directory: directory.to_owned(),
            qmp,
            process,
            status: watch::Sender::new(first),
            end_requested: AtomicBool::new(false),
            is_shut_down: AtomicBool::new(false),
            console: Mutex::default(),
            log: Log::of_process(pid),
            cgroup: self.cgroup.clone(),
        });
        tokio::spawn(Arc::clone(&server).watch(events));
        if status == "shutdown" {
            server.switched_off();
        }
        Ok(server)
    }
}

/// Reads the picture in `path`. A guest can draw one that does not compress.
fn read_picture(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut picture = Vec::new();
    let file = File::open(path)?;
    file.take(PICTURE_BYTES_MAX + 1).read_to_end(&mut picture)?;
    match picture.len() as u64 > PICTURE_BYTES_MAX {
        true => Err(Failure::Refused("its screen is too large to show".into())),
        false => Ok(picture),
    }
}

/// Limits the resources of the process `pid` before its guest executes anything. Core files, which
/// would contain the guest's memory, are disabled.
fn limit(spec: &Spec, pid: u32) -> std::io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let largest = spec.drives.iter().map(|drive| drive.size).max();
    for (resource, most) in [
        (Resource::Core, 0),
        (Resource::Nofile, FILES_MAX),
        (Resource::Fsize, largest.unwrap_or(0).max(FILE_BYTES_MIN)),
    ] {
        // Only root may raise the hard limit.
        let most = getrlimit(resource)
            .maximum
            .map_or(most, |here| most.min(here));
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        prlimit(pid, resource, limit)?;
    }
    Ok(())
}

/// A process of QEMU.
#[derive(Debug)]
pub(crate) struct QemuServer {
    id: MachineId,
    pid: u32,
    directory: PathBuf,
    qmp: Qmp,
    process: Process,
    status: watch::Sender<Status>,
    /// Whether this program asked it to end.
    end_requested: AtomicBool,
    /// Whether the guest switched itself off.
    is_shut_down: AtomicBool,
    /// Held while console output is moved from QEMU to its file.
    console: Mutex<()>,
    log: Option<Log>,
    cgroup: Option<Cgroup>,
}

impl QemuServer {
    async fn watch(self: Arc<Self>, mut events: mpsc::UnboundedReceiver<Event>) {
        while let Some(event) = events.recv().await {
            tracing::debug!(id = %self.id, event = event.name, data = %event.data, "Event of a server");
            match event.name.as_str() {
                // A guest that shut down emits this event as well.
                "STOP" if self.is_shut_down.load(Ordering::Relaxed) => {}
                "STOP" => drop(self.status.send_replace(Status::Paused)),
                "RESUME" => drop(self.status.send_replace(Status::Active)),
                "SHUTDOWN" if event.data["guest"] == true => self.switched_off(),
                _ => {}
            }
        }
        // Without a connection the process is useless.
        if timeout(END_MAX, self.process.ended()).await.is_err() {
            tracing::warn!(id = %self.id, "Killed a hypervisor that hung up");
            self.process.kill();
            self.process.ended().await;
        }
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.remove(self.id)
        {
            tracing::debug!(id = %self.id, %error, "Cannot remove a control group");
        }
        let died_of = self.keep_log();
        let end = if self.is_shut_down.load(Ordering::Relaxed) {
            End::ShutDown
        } else if self.end_requested.load(Ordering::Relaxed) {
            End::PowerCut
        } else {
            tracing::warn!(id = %self.id, last_line = died_of, "QEMU ended");
            End::Died
        };
        self.status.send_replace(Status::Ended(end));
    }

    /// The guest is off: the process may end.
    fn switched_off(self: &Arc<Self>) {
        self.is_shut_down.store(true, Ordering::Relaxed);
        let server = Arc::clone(self);
        tokio::spawn(async move { server.quit().await });
    }

    /// Writes QEMU's messages to the file `log`, and returns the last line.
    fn keep_log(&self) -> Option<String> {
        let text = self.log.as_ref()?.text();
        if !text.is_empty()
            && let Err(error) = console::append(&self.directory.join("log"), text.as_bytes())
        {
            tracing::debug!(id = %self.id, %error, "Cannot keep a log");
        }
        self.log.as_ref()?.last_line()
    }

    /// Moves what the guest wrote to its serial port since the last call to the file.
    async fn move_console(&self) -> Result<(), Failure> {
        let _turn = self.console.lock().await;
        let arguments = json!({
            "device": "console", "size": console::RING_BYTES, "format": "base64",
        });
        let text = self.qmp.run("ringbuf-read", arguments).await?;
        let engine = base64::engine::general_purpose::STANDARD;
        let bytes = engine.decode(text.as_str().unwrap_or_default());
        let bytes = bytes.map_err(|_| Failure::Silent("its console is not base64".into()))?;
        if bytes.is_empty() {
            return Ok(());
        }
        let path = self.directory.join("console");
        let kept = spawn_blocking(move || console::append(&path, &bytes)).await;
        Ok(kept.map_err(std::io::Error::from)??)
    }

    async fn quit(&self) {
        let _ = timeout(END_MAX, self.move_console()).await;
        // If it ended before it answered, that is fine too.
        let _ = timeout(END_MAX, self.qmp.run("quit", json!({}))).await;
        if timeout(END_MAX, self.process.ended()).await.is_err() {
            self.process.kill();
        }
    }

    /// Its current status.
    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) -> End {
        let mut status = self.status.subscribe();
        let is_over = |status: &Status| matches!(status, Status::Ended(_));
        match status.wait_for(is_over).await.as_deref() {
            Ok(Status::Ended(end)) => *end,
            _ => End::Died,
        }
    }

    /// Cuts its power, and waits for its end.
    pub(crate) async fn cut_power(&self) -> End {
        self.end_requested.store(true, Ordering::Relaxed);
        self.quit().await;
        self.ended().await
    }

    pub(crate) async fn control(&self, control: Control) -> Result<(), Failure> {
        let command = match control {
            Control::PowerButton => "system_powerdown",
            Control::Reset => "system_reset",
            Control::Pause => "stop",
            Control::Resume => "cont",
        };
        self.qmp.run(command, json!({})).await.map(drop)
    }

    /// Sets another VNC password; with `None`, nobody gets access.
    pub(crate) async fn set_password(&self, password: Option<&str>) -> Result<(), Failure> {
        let time = match password {
            Some(password) => {
                let arguments = json!({"protocol": "vnc", "password": password});
                self.qmp.run("set_password", arguments).await?;
                "never"
            }
            None => "now",
        };
        let arguments = json!({"protocol": "vnc", "time": time});
        self.qmp.run("expire_password", arguments).await.map(drop)
    }

    /// Sets another share of the processors.
    pub(crate) fn set_cpu(&self, cpu_mhz: u32) {
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.set(self.id, cpu_mhz)
        {
            tracing::warn!(id = %self.id, %error, "Cannot change the share of a server");
        }
    }

    /// What it read and wrote since its start, by drive.
    pub(crate) async fn counters(&self) -> Result<BTreeMap<Slot, Counters>, Failure> {
        let stats = self.qmp.run("query-blockstats", json!({})).await?;
        let one = |entry: &Value| {
            let slot = Slot::parse(&entry["node-name"].as_str()?.replace('-', ":"))?;
            let count = |key: &str| entry["stats"][key].as_u64().unwrap_or_default();
            let counters = Counters {
                read_bytes: count("rd_bytes"),
                read_requests: count("rd_operations"),
                write_bytes: count("wr_bytes"),
                write_requests: count("wr_operations"),
            };
            Some((slot, counters))
        };
        let entries = stats.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(entries.iter().filter_map(one).collect())
    }

    /// A picture of its screen, as PNG.
    pub(crate) async fn screen(&self) -> Result<Vec<u8>, Failure> {
        let path = self.directory.join(SCREEN);
        let arguments = json!({"filename": path, "format": "png"});
        let drawn = self.qmp.run("screendump", arguments).await;
        let read = spawn_blocking(move || {
            let picture = drawn.and_then(|_| read_picture(&path));
            let _ = fs::remove_file(&path);
            picture
        });
        read.await.map_err(std::io::Error::other)?
    }

    /// Updates the file `console` in its directory. The file's size is bounded; `console.rs` reads
    /// it.
    pub(crate) async fn keep_console(&self) {
        if let Err(failure) = self.move_console().await {
            tracing::debug!(id = %self.id, %failure, "Cannot read a console");
        }
    }

    /// A connection to its VNC server, which requires the password.
    pub(crate) async fn vnc(&self) -> std::io::Result<UnixStream> {
        connect(&self.directory, VNC).await
    }
}

/// The command line. It contains neither secrets nor text from clients.
fn arguments(spec: &Spec, accelerator: &str) -> Vec<String> {
    let mut args = Vec::new();
    let mut put = |words: &[&str]| args.extend(words.iter().map(|&word| word.to_owned()));
    let id = spec.id.to_string();
    put(&["-nodefaults", "-no-user-config", "-no-shutdown", "-S"]);
    put(&[
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]);
    put(&["-name", &id, "-uuid", &id]);
    put(&[
        "-machine",
        // Memory is not merged with that of other guests, which could measure its content.
        &format!("pc,accel={accelerator},dump-guest-core=off,mem-merge=off,vmport=off"),
        "-cpu",
        // Nested virtualization would be a way to attack the kernel.
        "max,vmx=off,svm=off",
    ]);
    put(&["-smp", &spec.cores.to_string()]);
    put(&["-m", &format!("{}M", spec.mem_mb)]);
    put(&["-rtc", "base=utc", "-vga", "std"]);
    put(&["-vnc", &format!("unix:{VNC},password=on")]);
    let qmp = format!("socket,id=qmp,path={QMP},server=on,wait=off");
    put(&["-chardev", &qmp]);
    put(&["-mon", "chardev=qmp,mode=control"]);
    let ring = format!("ringbuf,id=console,size={}", console::RING_BYTES);
    put(&["-chardev", &ring]);
    put(&["-serial", "chardev:console"]);
    if spec.drives.iter().any(|drive| drive.boot_index.is_some()) {
        put(&["-boot", "strict=on"]);
    }
    let has = |is_on: fn(Slot) -> bool| spec.drives.iter().any(|drive| is_on(drive.slot));
    if has(|slot| matches!(slot, Slot::Scsi(_))) {
        put(&["-device", "lsi53c895a,id=scsi0"]);
    }
    if has(|slot| matches!(slot, Slot::Ata(_))) {
        put(&["-device", "ahci,id=ata0"]);
    }
    for drive in &spec.drives {
        put(&["-blockdev", &node(drive).to_string()]);
        put(&["-device", &device(drive).to_string()]);
    }
    for nic in &spec.nics {
        let name = format!("nic{}", nic.index);
        put(&["-netdev", &format!("{},id={name}", netdev(&nic.net, spec))]);
        let driver = match nic.model {
            "virtio" => "virtio-net-pci",
            model => model,
        };
        let mac = nic.mac.map(|byte| format!("{byte:02x}")).join(":");
        let device = json!({"driver": driver, "id": name, "netdev": name, "mac": mac});
        put(&["-device", &device.to_string()]);
        if let Net::Outside {
            reach: Reach::Internet,
            ..
        } = nic.net
        {
            for words in frames::arguments(nic.index) {
                put(&[&words[0], &words[1]]);
            }
        }
    }
    args
}

fn name(slot: Slot) -> String {
    slot.to_string().replace(':', "-")
}

/// The file of a drive. What a guest discards or fills with zeros becomes a hole.
fn node(drive: &SpecDrive) -> Value {
    // Only whole sectors: otherwise the guest would see, and create, a full last sector.
    let sectors = drive.size / 512 * 512;
    json!({
        "driver": "raw",
        "node-name": name(drive.slot),
        "read-only": drive.is_cdrom,
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "size": sectors,
        "file": {
            "driver": "file",
            "filename": drive.path,
            "read-only": drive.is_cdrom,
            "discard": "unmap",
        },
    })
}

fn device(drive: &SpecDrive) -> Value {
    let cdrom = |of_cd: &'static str, of_disk: &'static str| match drive.is_cdrom {
        true => of_cd,
        false => of_disk,
    };
    let id = name(drive.slot);
    let mut device = match drive.slot {
        Slot::Ide(channel, unit) => json!({
            "driver": cdrom("ide-cd", "ide-hd"), "bus": format!("ide.{channel}"), "unit": unit,
        }),
        Slot::Scsi(unit) => json!({
            "driver": cdrom("scsi-cd", "scsi-hd"), "bus": "scsi0.0", "scsi-id": unit,
        }),
        Slot::Ata(unit) => json!({
            "driver": cdrom("ide-cd", "ide-hd"), "bus": format!("ata0.{unit}"),
        }),
        Slot::Block(_) => json!({"driver": "virtio-blk-pci"}),
    };
    device["id"] = json!(id);
    device["drive"] = json!(id);
    if drive.is_shared {
        device["share-rw"] = json!(true);
    }
    if let Some(index) = drive.boot_index {
        device["bootindex"] = json!(index);
    }
    device
}

fn netdev(net: &Net, spec: &Spec) -> String {
    match net {
        Net::Outside { forward, reach } => {
            let address = spec.address;
            let forward = forward
                .iter()
                .map(|port| format!(",hostfwd=tcp:{address}:{port}-:{port}"));
            let restricted = match reach {
                Reach::None => ",restrict=on,ipv6=off",
                Reach::Internet => ",ipv6=off",
                Reach::Host => "",
            };
            format!("user{restricted}{}", forward.collect::<String>())
        }
        // A multicast group of addresses that stay on this machine, derived from the UUID.
        Net::Vlan(vlan) => {
            let [a, b, c, d, e, ..] = vlan.into_bytes();
            let port = 20_000 + u16::from_be_bytes([d, e]) % 40_000;
            format!("socket,mcast=239.{a}.{b}.{c}:{port},localaddr=127.0.0.1")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use uuid::Uuid;

    use super::super::hypervisor::{Password, SpecNic};
    use super::*;

    fn drive(slot: Slot) -> SpecDrive {
        SpecDrive {
            slot,
            path: "/data/a, b=\"c\".data".into(),
            size: 10_000_000,
            is_cdrom: false,
            is_shared: false,
            boot_index: None,
        }
    }

    fn spec(drives: Vec<SpecDrive>) -> Spec {
        Spec {
            id: MachineId::from_u128(1),
            directory: "/run".into(),
            cpu_mhz: 2000,
            cores: 3,
            mem_mb: 64,
            drives,
            nics: vec![
                SpecNic {
                    index: 0,
                    model: "virtio",
                    mac: [0x52, 0, 0, 0, 0, 9],
                    net: Net::Outside {
                        forward: vec![22, 80],
                        reach: Reach::None,
                    },
                },
                SpecNic {
                    index: 1,
                    model: "rtl8139",
                    mac: [0x52, 0, 0, 0, 1, 9],
                    net: Net::Vlan(Uuid::from_bytes([7; 16])),
                },
            ],
            address: Ipv4Addr::new(127, 70, 1, 2),
            password: Some(Password("canary".into())),
        }
    }

    fn line(spec: &Spec) -> String {
        arguments(spec, "tcg").join(" ")
    }

    #[test]
    fn the_command_line_of_qemu_follows_the_keys() {
        let spec = spec(vec![SpecDrive {
            boot_index: Some(0),
            is_shared: true,
            ..drive(Slot::Ide(0, 1))
        }]);
        let line = line(&spec);
        for part in [
            "-machine pc,accel=tcg,",
            "-smp 3 -m 64M",
            "-vnc unix:vnc,password=on",
            "-boot strict=on",
            "-netdev user,restrict=on,ipv6=off,hostfwd=tcp:127.70.1.2:22-:22,hostfwd=tcp:127.70.1.2:80-:80,id=nic0",
            "\"driver\":\"virtio-net-pci\"",
            "\"mac\":\"52:00:00:00:00:09\"",
            "-netdev socket,mcast=239.7.7.7:21799,localaddr=127.0.0.1,id=nic1",
            "\"driver\":\"rtl8139\"",
            "\"bus\":\"ide.0\"",
            "\"driver\":\"ide-hd\"",
            "\"id\":\"ide-0-1\"",
            "\"share-rw\":true",
            "\"unit\":1",
            "\"bootindex\":0",
            // Whole sectors, whatever the name of the file.
            "\"size\":9999872",
            "\"filename\":\"/data/a, b=\\\"c\\\".data\"",
            "\"detect-zeroes\":\"unmap\"",
        ] {
            assert!(line.contains(part), "{part}\n{line}");
        }
        assert!(!line.contains("canary") && !format!("{spec:?}").contains("canary"));
    }

    #[test]
    fn each_slot_has_its_controller() {
        for (slot, is_cdrom, controller, driver) in [
            (Slot::Ide(1, 0), true, "-vga std", "ide-cd"),
            (Slot::Scsi(3), false, "lsi53c895a,id=scsi0", "scsi-hd"),
            (Slot::Scsi(3), true, "lsi53c895a,id=scsi0", "scsi-cd"),
            (Slot::Ata(5), false, "ahci,id=ata0", "\"bus\":\"ata0.5\""),
            (Slot::Block(7), false, "-vga std", "virtio-blk-pci"),
        ] {
            let line = line(&spec(vec![SpecDrive {
                is_cdrom,
                ..drive(slot)
            }]));
            assert!(line.contains(controller) && line.contains(driver), "{line}");
            assert!(
                line.contains(&format!("\"read-only\":{is_cdrom}")),
                "{line}"
            );
            assert!(!line.contains("-boot"), "{line}");
        }
    }

    #[test]
    fn a_network_card_is_connected_as_the_operator_configured() {
        for (reach, netdev, filters) in [
            (Reach::None, "user,restrict=on,ipv6=off,", 0),
            (Reach::Internet, "user,ipv6=off,", 1),
            (Reach::Host, "user,hostfwd=", 0),
        ] {
            let mut spec = spec(vec![]);
            if let Net::Outside { reach: at, .. } = &mut spec.nics[0].net {
                *at = reach;
            }
            let line = line(&spec);
            assert!(line.contains(&format!("-netdev {netdev}")), "{line}");
            assert_eq!(line.matches("filter-redirector").count(), filters, "{line}");
        }
    }

    #[tokio::test]
    async fn without_qemu_the_missing_program_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let qemu = Qemu::new("/nonexistent/qemu".into(), vec![], None);
        let mut spec = spec(vec![]);
        directory.path().clone_into(&mut spec.directory);
        let failure = qemu.start(&spec).await.unwrap_err();
        assert!(matches!(failure, Failure::Missing(_)), "{failure}");
    }
}
