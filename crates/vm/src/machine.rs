//! One server of the API, called a machine in this program: its settings, its status, and its
//! resources while it runs.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::claims::Claim;
use super::hypervisor::{Failure, Status};
use super::ids::{MachineId, Slot};
use super::qemu::QemuServer;
use super::settings::{Device, Settings};
use openhosting_base::locks::lock;
use openhosting_base::wire::Properties;
use openhosting_tenancy::{Counters, Grant, set, stored_file};

/// Keys in a stored file that clients cannot set.
const RUN_ADDRESS: &str = "run:address";
const RUN_STARTED: &str = "run:started";
const REST: &str = "rest";
/// For this long, a picture of a screen is reused for other viewers. The page requests one a
/// second, so this is not seen, and many viewers cost no more than four pictures a second.
const PICTURE_AGE: Duration = Duration::from_millis(250);

/// The status of a machine that is not running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoppedStatus {
    Stopped,
    /// It ended although neither the guest nor a client wanted it to.
    Dead,
}

impl StoppedStatus {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Dead => "dead",
        }
    }
}

/// What is stored about a run, so that it is found again after a restart of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SavedRun {
    /// The address of this host that the server uses.
    pub(crate) address: Ipv4Addr,
    /// When it was started, in seconds since 1970.
    pub(crate) started: u64,
}

/// What is stored about a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MachineRecord {
    pub(crate) user: String,
    pub(crate) settings: Settings,
    pub(crate) rest: StoppedStatus,
    pub(crate) run: Option<SavedRun>,
}

impl MachineRecord {
    /// The text of its file.
    pub(crate) fn print(&self, id: MachineId) -> String {
        let mut kept = self.settings.keys().clone();
        set(&mut kept, "server", id.to_string());
        set(&mut kept, "user", &self.user);
        set(&mut kept, REST, self.rest.as_str());
        if let Some(run) = &self.run {
            set(&mut kept, RUN_ADDRESS, run.address.to_string());
            set(&mut kept, RUN_STARTED, run.started.to_string());
        }
        stored_file::print(&kept)
    }

    /// Parses what [`print`](Self::print) wrote; `None` if it is damaged.
    pub(crate) fn parse(id: MachineId, bytes: &[u8]) -> Option<Self> {
        let mut kept = stored_file::parse(bytes)?;
        if kept.remove("server")? != id.to_string() {
            return None;
        }
        let user = kept.remove("user")?;
        let rest = match kept.remove(REST)?.as_str() {
            "stopped" => StoppedStatus::Stopped,
            "dead" => StoppedStatus::Dead,
            _ => return None,
        };
        let run = match (kept.remove(RUN_ADDRESS), kept.remove(RUN_STARTED)) {
            (None, None) => None,
            (Some(address), Some(started)) => Some(SavedRun {
                address: address.parse().ok()?,
                started: started.parse().ok()?,
            }),
            _ => return None,
        };
        Some(Self {
            user,
            settings: Settings::from_stored(&kept)?,
            rest,
            run,
        })
    }
}

/// The resources of a running machine.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) running: Arc<QemuServer>,
    pub(crate) run: SavedRun,
    claims: Mutex<Vec<Claim>>,
    pub(crate) vlans: Vec<Uuid>,
    /// The last known counters of its drives.
    counters: Mutex<BTreeMap<Slot, Counters>>,
    /// The last picture of its screen, and when it was requested.
    picture: tokio::sync::Mutex<Option<(Instant, Bytes)>>,
    /// The task that serves its VNC viewers.
    viewers: Mutex<Option<JoinHandle<()>>>,
}

impl Live {
    /// A machine that was just started, or found running.
    pub(crate) fn new(
        running: Arc<QemuServer>,
        run: SavedRun,
        claims: Vec<Claim>,
        vlans: Vec<Uuid>,
    ) -> Self {
        Self {
            running,
            run,
            claims: Mutex::new(claims),
            vlans,
            counters: Mutex::default(),
            picture: tokio::sync::Mutex::default(),
            viewers: Mutex::default(),
        }
    }

    /// Sets the task that serves viewers.
    pub(crate) fn set_viewers(&self, viewers: JoinHandle<()>) {
        *lock(&self.viewers) = Some(viewers);
    }

    /// Ends the task that serves viewers, so that the port is free again.
    pub(crate) async fn end_viewers(&self) {
        let viewers = lock(&self.viewers).take();
        if let Some(viewers) = viewers {
            viewers.abort();
            let _ = viewers.await;
        }
    }

    /// A picture of its screen, as PNG. Only one picture is made at a time, at most every
    /// [`PICTURE_AGE`], however many viewers there are.
    pub(crate) async fn screen(&self) -> Result<Bytes, Failure> {
        let mut last = self.picture.lock().await;
        if let Some((asked, picture)) = &*last
            && asked.elapsed() < PICTURE_AGE
        {
            return Ok(picture.clone());
        }
        let asked = Instant::now();
        let picture = Bytes::from(self.running.screen().await?);
        *last = Some((asked, picture.clone()));
        Ok(picture)
    }

    /// Treats the counters of a machine that was found running as already counted, by an earlier
    /// process.
    pub(crate) async fn take_counters_as_known(&self) {
        if let Ok(counters) = self.running.counters().await {
            *lock(&self.counters) = counters;
        }
    }

    /// Releases its claims.
    pub(crate) fn release_drives(&self) {
        lock(&self.claims).clear();
    }

    /// Reads the counters of its drives from the hypervisor, and adds what is new to those of the
    /// drives. If there is no answer, the last values stay.
    pub(crate) async fn refresh(&self) {
        let Ok(new) = self.running.counters().await else {
            return;
        };
        let mut old = lock(&self.counters);
        for claim in &*lock(&self.claims) {
            let Some(new) = new.get(&claim.slot()) else {
                continue;
            };
            let old = old.entry(claim.slot()).or_default();
            // An answer that was overtaken by a newer one must not count backwards.
            claim.drive.count_guest(new.zip(*old, u64::saturating_sub));
            *old = new.zip(*old, u64::max);
        }
    }
}

/// A machine of this server.
#[derive(Debug)]
pub struct Machine {
    /// Its identifier.
    pub id: MachineId,
    pub(crate) user: String,
    /// The file of its record.
    pub(crate) path: PathBuf,
    /// The directory of its current or last run.
    pub(crate) directory: PathBuf,
    /// Held by a command that changes it, from its start to its end, so that commands run one after
    /// the other.
    pub(crate) turn: tokio::sync::Mutex<()>,
    state: Mutex<MachineState>,
}

/// The state of a machine.
#[derive(Debug)]
pub(crate) struct MachineState {
    pub(crate) settings: Settings,
    pub(crate) rest: StoppedStatus,
    pub(crate) live: Option<Arc<Live>>,
    pub(crate) is_gone: bool,
    /// What it counts towards its user's quotas while it exists, and while it runs.
    pub(crate) held: Option<Grant>,
    pub(crate) held_running: Option<Grant>,
}

impl MachineState {
    /// The status as shown in `info`.
    pub(crate) fn status(&self) -> &'static str {
        let Some(live) = &self.live else {
            return self.rest.as_str();
        };
        match live.running.status() {
            Status::Active => "active",
            Status::Paused => "paused",
            // Its end was detected and is about to be stored.
            Status::Ended(_) => "stopped",
        }
    }
}

impl Machine {
    pub(crate) fn new(
        id: MachineId,
        record: MachineRecord,
        path: PathBuf,
        directory: PathBuf,
    ) -> Self {
        Self {
            id,
            user: record.user,
            path,
            directory,
            turn: tokio::sync::Mutex::default(),
            state: Mutex::new(MachineState {
                settings: record.settings,
                rest: record.rest,
                live: None,
                is_gone: false,
                held: None,
                held_running: None,
            }),
        }
    }

    /// Locks its state.
    pub(crate) fn state(&self) -> MutexGuard<'_, MachineState> {
        lock(&self.state)
    }

    /// The status as shown in `info`.
    pub fn status(&self) -> &'static str {
        self.state().status()
    }

    /// The drives that are attached to it.
    pub fn devices(&self) -> Vec<Device> {
        self.state().settings.devices()
    }

    /// Its resources while it runs.
    pub(crate) fn live(&self) -> Option<Arc<Live>> {
        self.state().live.clone()
    }

    /// What to store about it now.
    pub(crate) fn record(&self) -> MachineRecord {
        let state = self.state();
        MachineRecord {
            user: self.user.clone(),
            settings: state.settings.clone(),
            rest: state.rest,
            run: state.live.as_ref().map(|live| live.run),
        }
    }

    /// The answer to `info`, in the keys of the second generation (docs/dev/reference.md, 1.11).
    /// `cores_here` is the number of cores of this host.
    pub(crate) fn info(&self, cores_here: u32) -> Properties {
        let state = self.state();
        let mut info = state.settings.keys().clone();
        set(&mut info, "server", self.id.to_string());
        set(&mut info, "user", &self.user);
        set(&mut info, "type", "vm");
        for nic in state.settings.nics() {
            let mac = nic.mac.unwrap_or_else(|| self.id.mac(nic.index));
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            set(&mut info, &format!("nic:{}:mac", nic.index), mac);
        }
        set(&mut info, "status", state.status());
        let Some(live) = &state.live else {
            return info;
        };
        set(&mut info, "started", live.run.started.to_string());
        let cores = state.settings.cores(cores_here);
        set(&mut info, "smp:cores", cores.to_string());
        let address = live.run.address.to_string();
        if state.settings.has_dhcp() {
            set(&mut info, "nic:0:dhcp:ip", &address);
            set(&mut info, "nic:0:ip", &address);
        }
        if state.settings.password().is_some() {
            set(&mut info, "vnc:ip", &address);
        }
        for (slot, mut counters) in lock(&live.counters).clone() {
            for (key, value) in counters.fields() {
                set(&mut info, &format!("{slot}:{key}"), value.to_string());
            }
        }
        info
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use openhosting_base::wire::Format;

    #[test]
    fn a_record_reads_back_and_a_garbled_one_does_not() {
        let body = "name a b\ncpu 500\nmem 64\npersistent true\npassword secret\nuser:x y";
        let body = Properties::parse(Format::Text, body.as_bytes()).unwrap();
        let id = MachineId::random();
        let mut record = MachineRecord {
            user: "u".into(),
            settings: Settings::create(&body).unwrap(),
            rest: StoppedStatus::Dead,
            run: None,
        };
        for run in [
            None,
            Some(SavedRun {
                address: Ipv4Addr::new(127, 70, 0, 1),
                started: 1_291_493_868,
            }),
        ] {
            record.run = run;
            let text = record.print(id);
            assert_eq!(
                MachineRecord::parse(id, text.as_bytes()).as_ref(),
                Some(&record)
            );
            assert_eq!(
                MachineRecord::parse(MachineId::random(), text.as_bytes()),
                None
            );
            assert_eq!(
                MachineRecord::parse(id, text.replace("500", "501").as_bytes()),
                None
            );
        }
        assert!(!format!("{record:?}").contains("secret"));
    }
}
