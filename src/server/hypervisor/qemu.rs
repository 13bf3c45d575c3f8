//! QEMU: one process for each server, driven over QMP.
//!
//! A process works in the directory of its server, with what it keeps there:
//!
//! ```text
//! qmp       the socket that it is driven over
//! console   what the guest wrote to its serial port
//! log       what QEMU has to say
//! ```
//!
//! It is a group of processes of its own, has no pipe to us, and so goes on when we
//! end, however we do. Who it is, is proven by the socket: the kernel names the process
//! that listens on it, and QEMU the server. One that does not listen is found by the
//! directory that it works in, and killed.
//!
//! A guest that switches itself off is kept for a moment (`-no-shutdown`), so that
//! one that ended while nobody watched is told from one that died.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::{OnceCell, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::process::{self, Process};
use super::qmp::{Event, Qmp};
use super::{
    Cgroup, End, Failure, Hypervisor, IoCounters, Later, Net, Running, Spec, SpecDrive, Status,
};
use crate::server::machine::{MachineId, Slot};

/// Longest wait for a process to listen.
const STARTING: Duration = Duration::from_secs(60);
/// How often it is asked whether it does.
const STEP: Duration = Duration::from_millis(20);
/// Longest wait for a process to go by itself.
const GOING: Duration = Duration::from_secs(10);
/// Longest look at whether KVM works.
const PROBING: Duration = Duration::from_secs(20);
const KVM: &str = "/dev/kvm";
/// What is read of a log.
const LOG_BYTES: usize = 4096;

/// QEMU, the program.
#[derive(Debug)]
pub(in crate::server) struct Qemu {
    program: PathBuf,
    cgroup: Option<Cgroup>,
    /// Found out at the first start.
    accelerator: OnceCell<&'static str>,
}

impl Qemu {
    /// Runs servers with `program`, a name that is looked for or a path.
    pub(in crate::server) fn new(program: PathBuf, cgroup: Option<Cgroup>) -> Self {
        Self {
            program,
            cgroup,
            accelerator: OnceCell::new(),
        }
    }

    /// `kvm` where it works: that it is there does not say so.
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
        matches!(timeout(PROBING, probe).await, Ok(Some(())))
    }

    async fn launch(&self, spec: &Spec) -> Result<Arc<QemuServer>, Failure> {
        let accelerator = self.accelerator().await;
        let log = File::create(spec.directory.join("log"))?;
        let mut command = Command::new(&self.program);
        command
            .args(arguments(spec, accelerator))
            .current_dir(&spec.directory)
            // Credentials that tools take from there are no business of a guest.
            .env_remove("OHAUTH")
            .env_remove("EHAUTH")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // A Ctrl-C on our terminal is not for it.
            .process_group(0);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Failure::Missing(self.program.clone()),
            _ => Failure::Local(error),
        })?;
        let pid = child.id().unwrap_or_default();
        let process = Process::open(pid);
        // Whatever becomes of it, it leaves no zombie.
        tokio::spawn(async move { child.wait().await });
        let process = process?;
        let made = self.greet(spec, pid, &process).await;
        if made.is_err() {
            process.kill();
            process.ended().await;
        }
        let server = made.map_err(|failure| match last_line(&spec.directory.join("log")) {
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
        let deadline = Instant::now() + STARTING;
        let stream = loop {
            if let Ok(stream) = connect(&spec.directory).await {
                break stream;
            }
            tokio::select! {
                () = process.ended() => return Err(Failure::Refused("it ended at once".into())),
                () = sleep(STEP) => {}
            }
            if Instant::now() > deadline {
                return Err(Failure::Silent("it did not start in time".into()));
            }
        };
        let server = self.attach(spec.id, &spec.directory, stream).await?;
        if server.pid != pid {
            return Err(Failure::Silent("another process answers for it".into()));
        }
        if let Some(password) = &spec.password {
            server.set_password(Some(&password.0)).await?;
        }
        Ok(server)
    }

    /// Takes over the process at the other end of `stream`.
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
        // It answers, so it was there when the descriptor was opened.
        let uuid = qmp.run("query-uuid", json!({})).await?;
        if uuid["UUID"].as_str() != Some(id.to_string().as_str()) {
            return Err(Failure::Silent("it is another server".into()));
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
            is_asked: AtomicBool::new(false),
            is_shut_down: AtomicBool::new(false),
            screens: AtomicU64::new(0),
            cgroup: self.cgroup.clone(),
        });
        tokio::spawn(Arc::clone(&server).watch(events));
        if status == "shutdown" {
            server.switched_off();
        }
        Ok(server)
    }
}

impl Hypervisor for Qemu {
    fn start<'a>(&'a self, spec: &'a Spec) -> Later<'a, Result<Arc<dyn Running>, Failure>> {
        Box::pin(async move {
            let server: Arc<dyn Running> = self.launch(spec).await?;
            Ok(server)
        })
    }

    fn find<'a>(
        &'a self,
        id: MachineId,
        directory: &'a Path,
    ) -> Later<'a, Option<Arc<dyn Running>>> {
        Box::pin(async move {
            let stream = connect(directory).await.ok()?;
            match self.attach(id, directory, stream).await {
                Ok(server) => {
                    let server: Arc<dyn Running> = server;
                    Some(server)
                }
                Err(failure) => {
                    tracing::warn!(%id, %failure, "Cannot take over a server");
                    None
                }
            }
        })
    }

    fn clear(&self, directory: &Path) {
        if let Err(error) = process::kill_within(directory) {
            tracing::warn!(%error, ?directory, "Cannot look for hypervisors");
        }
    }
}

/// Connects to the socket in `directory`, however long its path is: the address of a
/// socket has room for some 100 bytes.
async fn connect(directory: &Path) -> std::io::Result<UnixStream> {
    let directory = File::open(directory)?;
    let fd = directory.as_raw_fd();
    UnixStream::connect(format!("/proc/self/fd/{fd}/qmp")).await
}

/// The last line of what QEMU said, without its name. Warnings are none.
fn last_line(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_BYTES)..]);
    let mut lines = text.lines().rev().map(str::trim);
    let line = lines.find(|line| !line.is_empty() && !line.contains(": warning: "))?;
    Some(
        line.strip_prefix("qemu-system-x86_64: ")
            .unwrap_or(line)
            .to_owned(),
    )
}

/// A process of QEMU.
#[derive(Debug)]
struct QemuServer {
    id: MachineId,
    pid: u32,
    directory: PathBuf,
    qmp: Qmp,
    process: Process,
    status: watch::Sender<Status>,
    /// Whether we asked it to end.
    is_asked: AtomicBool,
    /// Whether the guest switched itself off.
    is_shut_down: AtomicBool,
    screens: AtomicU64,
    cgroup: Option<Cgroup>,
}

impl QemuServer {
    async fn watch(self: Arc<Self>, mut events: mpsc::UnboundedReceiver<Event>) {
        while let Some(event) = events.recv().await {
            tracing::debug!(id = %self.id, event = event.name, data = %event.data, "A server tells");
            match event.name.as_str() {
                // A guest that is off stops as well.
                "STOP" if self.is_shut_down.load(Ordering::Relaxed) => {}
                "STOP" => drop(self.status.send_replace(Status::Paused)),
                "RESUME" => drop(self.status.send_replace(Status::Active)),
                "SHUTDOWN" if event.data["guest"] == true => self.switched_off(),
                _ => {}
            }
        }
        // Without a connection it is of no use.
        if timeout(GOING, self.process.ended()).await.is_err() {
            tracing::warn!(id = %self.id, "Killed a hypervisor that hung up");
            self.process.kill();
            self.process.ended().await;
        }
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.remove(self.id)
        {
            tracing::debug!(id = %self.id, %error, "Cannot remove a control group");
        }
        let end = if self.is_shut_down.load(Ordering::Relaxed) {
            End::ShutDown
        } else if self.is_asked.load(Ordering::Relaxed) {
            End::PowerCut
        } else {
            End::Died
        };
        self.status.send_replace(Status::Ended(end));
    }

    /// The guest is off: the process may go.
    fn switched_off(self: &Arc<Self>) {
        self.is_shut_down.store(true, Ordering::Relaxed);
        let server = Arc::clone(self);
        tokio::spawn(async move { server.quit().await });
    }

    async fn quit(&self) {
        // That it went before it answered is as good.
        let _ = timeout(GOING, self.qmp.run("quit", json!({}))).await;
        if timeout(GOING, self.process.ended()).await.is_err() {
            self.process.kill();
        }
    }

    async fn wait(&self) -> End {
        let mut status = self.status.subscribe();
        let is_over = |status: &Status| matches!(status, Status::Ended(_));
        match status.wait_for(is_over).await.as_deref() {
            Ok(Status::Ended(end)) => *end,
            _ => End::Died,
        }
    }

    async fn command(&self, command: &str) -> Result<(), Failure> {
        self.qmp.run(command, json!({})).await.map(drop)
    }

    async fn set_vnc_password(&self, password: Option<&str>) -> Result<(), Failure> {
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

    async fn read_counters(&self) -> Result<BTreeMap<Slot, IoCounters>, Failure> {
        let stats = self.qmp.run("query-blockstats", json!({})).await?;
        let one = |entry: &Value| {
            let slot = Slot::parse(&entry["node-name"].as_str()?.replace('-', ":"))?;
            let count = |key: &str| entry["stats"][key].as_u64().unwrap_or_default();
            let counters = IoCounters {
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

    async fn draw_screen(&self) -> Result<Vec<u8>, Failure> {
        let n = self.screens.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(format!("screen-{n}.png"));
        let arguments = json!({"filename": path, "format": "png"});
        let drawn = self.qmp.run("screendump", arguments).await;
        let picture = drawn.and_then(|_| Ok(fs::read(&path)?));
        let _ = fs::remove_file(&path);
        picture
    }
}

impl Running for QemuServer {
    fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    fn ended(&self) -> Later<'_, End> {
        Box::pin(self.wait())
    }

    fn cut_power(&self) -> Later<'_, End> {
        self.is_asked.store(true, Ordering::Relaxed);
        Box::pin(async {
            self.quit().await;
            self.wait().await
        })
    }

    fn press_power_button(&self) -> Later<'_, Result<(), Failure>> {
        Box::pin(self.command("system_powerdown"))
    }

    fn reset(&self) -> Later<'_, Result<(), Failure>> {
        Box::pin(self.command("system_reset"))
    }

    fn pause(&self) -> Later<'_, Result<(), Failure>> {
        Box::pin(self.command("stop"))
    }

    fn resume(&self) -> Later<'_, Result<(), Failure>> {
        Box::pin(self.command("cont"))
    }

    fn set_password<'a>(&'a self, password: Option<&'a str>) -> Later<'a, Result<(), Failure>> {
        Box::pin(self.set_vnc_password(password))
    }

    fn set_cpu(&self, cpu_mhz: u32) {
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.set(self.id, cpu_mhz)
        {
            tracing::warn!(id = %self.id, %error, "Cannot change the share of a server");
        }
    }

    fn counters(&self) -> Later<'_, Result<BTreeMap<Slot, IoCounters>, Failure>> {
        Box::pin(self.read_counters())
    }

    fn screen(&self) -> Later<'_, Result<Vec<u8>, Failure>> {
        Box::pin(self.draw_screen())
    }
}

/// The command line. Nothing secret is in it, and no text of a client.
fn arguments(spec: &Spec, accelerator: &str) -> Vec<String> {
    let mut args = Vec::new();
    let mut put = |words: &[&str]| args.extend(words.iter().map(|&word| word.to_owned()));
    let id = spec.id.to_string();
    put(&["-nodefaults", "-no-user-config", "-no-shutdown", "-S"]);
    put(&[
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny",
    ]);
    put(&["-name", &id, "-uuid", &id]);
    put(&[
        "-machine",
        &format!("pc,accel={accelerator}"),
        "-cpu",
        "max",
    ]);
    put(&[
        "-smp",
        &spec.cores.to_string(),
        "-m",
        &format!("{}M", spec.mem_mb),
    ]);
    put(&["-rtc", "base=utc", "-vga", "std"]);
    put(&["-vnc", &format!("{}:0,password=on", spec.address)]);
    put(&["-chardev", "socket,id=qmp,path=qmp,server=on,wait=off"]);
    put(&["-mon", "chardev=qmp,mode=control"]);
    put(&["-chardev", "file,id=console,path=console,append=on"]);
    put(&["-serial", "chardev:console"]);
    if spec.drives.iter().any(|drive| drive.boot_index.is_some()) {
        put(&["-boot", "strict=on"]);
    }
    if spec
        .drives
        .iter()
        .any(|drive| matches!(drive.slot, Slot::Scsi(_)))
    {
        put(&["-device", "lsi53c895a,id=scsi0"]);
    }
    if spec
        .drives
        .iter()
        .any(|drive| matches!(drive.slot, Slot::Ata(_)))
    {
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
    }
    args
}

fn name(slot: Slot) -> String {
    slot.to_string().replace(':', "-")
}

/// The file of a drive. What a guest discards or fills with zeros becomes a hole.
fn node(drive: &SpecDrive) -> Value {
    // Whole sectors only: the guest would see, and make, the last one whole.
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
        Net::Outside { forward } => {
            let address = spec.address;
            let forward = forward
                .iter()
                .map(|port| format!(",hostfwd=tcp:{address}:{port}-:{port}"));
            format!("user{}", forward.collect::<String>())
        }
        // A group of the addresses that stay on this machine, told by the UUID.
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

    use super::super::{Password, SpecNic};
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
    fn a_server_is_made_as_its_keys_say() {
        let spec = spec(vec![SpecDrive {
            boot_index: Some(0),
            is_shared: true,
            ..drive(Slot::Ide(0, 1))
        }]);
        let line = line(&spec);
        for part in [
            "-machine pc,accel=tcg",
            "-smp 3 -m 64M",
            "-vnc 127.70.1.2:0,password=on",
            "-boot strict=on",
            "-netdev user,hostfwd=tcp:127.70.1.2:22-:22,hostfwd=tcp:127.70.1.2:80-:80,id=nic0",
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
            // Whole sectors, whatever the file is called.
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
            assert!(!line.contains("strict"), "{line}");
        }
    }

    #[test]
    fn what_qemu_said_last_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        assert_eq!(last_line(&log), None);
        fs::write(
            &log,
            "x\nqemu-system-x86_64: no room\nqemu-system-x86_64: warning: y\n\n",
        )
        .unwrap();
        assert_eq!(last_line(&log).as_deref(), Some("no room"));
    }

    #[tokio::test]
    async fn without_qemu_it_is_told_which_program_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let qemu = Qemu::new("/nonexistent/qemu".into(), None);
        let mut spec = spec(vec![]);
        directory.path().clone_into(&mut spec.directory);
        let failure = qemu.start(&spec).await.unwrap_err();
        assert!(matches!(failure, Failure::Missing(_)), "{failure}");
    }
}
