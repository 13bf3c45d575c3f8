//! One server of the API, which this program calls a machine: what a client set, how it
//! stands, and what it has while it runs.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::claims::Claim;
use super::hypervisor::{Failure, Running, Status};
use super::ids::{MachineId, Slot};
use super::settings::{Device, Settings};
use openhosting_base::locks::lock;
use openhosting_base::wire::Properties;
use openhosting_tenancy::{Counters, Grant, kept, set};

/// Keys of a kept file that no client sets.
const RUN_ADDRESS: &str = "run:address";
const RUN_STARTED: &str = "run:started";
const REST: &str = "rest";
/// For how long a picture of a screen is shown to others who look.
const PICTURE_AGE: Duration = Duration::from_millis(250);

/// How a machine stands that does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    Stopped,
    /// It ended, and neither it nor a client wanted it to.
    Dead,
}

impl Rest {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Dead => "dead",
        }
    }
}

/// What is kept of a run, so that it is found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SavedRun {
    /// The address of this machine that the server has.
    pub(crate) address: Ipv4Addr,
    /// When it was started, in seconds since 1970.
    pub(crate) started: u64,
}

/// What is kept of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MachineRecord {
    pub(crate) user: String,
    pub(crate) settings: Settings,
    pub(crate) rest: Rest,
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
        kept::print(&kept)
    }

    /// Reads what [`print`](Self::print) made; `None` if that is not what it holds.
    pub(crate) fn parse(id: MachineId, bytes: &[u8]) -> Option<Self> {
        let mut kept = kept::parse(bytes)?;
        if kept.remove("server")? != id.to_string() {
            return None;
        }
        let user = kept.remove("user")?;
        let rest = match kept.remove(REST)?.as_str() {
            "stopped" => Rest::Stopped,
            "dead" => Rest::Dead,
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
            settings: Settings::from_kept(&kept)?,
            rest,
            run,
        })
    }
}

/// What a machine has while it runs.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) running: Arc<dyn Running>,
    pub(crate) run: SavedRun,
    claims: Mutex<Vec<Claim>>,
    pub(crate) vlans: Vec<Uuid>,
    /// What was last heard of its drives.
    counters: Mutex<BTreeMap<Slot, Counters>>,
    /// The last picture of its screen, and when it was asked for.
    picture: tokio::sync::Mutex<Option<(Instant, Bytes)>>,
    /// What serves those who look at its screen over VNC.
    viewers: Mutex<Option<JoinHandle<()>>>,
}

impl Live {
    /// A machine that was just made, or found.
    pub(crate) fn new(
        running: Arc<dyn Running>,
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

    /// Notes what serves viewers.
    pub(crate) fn set_viewers(&self, viewers: JoinHandle<()>) {
        *lock(&self.viewers) = Some(viewers);
    }

    /// Ends what serves viewers, so that the port is free again.
    pub(crate) async fn end_viewers(&self) {
        let viewers = lock(&self.viewers).take();
        if let Some(viewers) = viewers {
            viewers.abort();
            let _ = viewers.await;
        }
    }

    /// A picture of its screen, PNG. One is drawn at a time and no more often than
    /// [`PICTURE_AGE`] says, however many look.
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

    /// Takes the counters of a machine that was found for counted: an earlier process
    /// did that.
    pub(crate) async fn take_counters_as_known(&self) {
        if let Ok(counters) = self.running.counters().await {
            *lock(&self.counters) = counters;
        }
    }

    /// Ends its claims.
    pub(crate) fn release_drives(&self) {
        lock(&self.claims).clear();
    }

    /// Asks for the counters of its drives, and adds to those of the drives what is
    /// new. What was heard last stays where there is no answer.
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
            // An answer that was overtaken by another is not counted backwards.
            claim.drive.count_guest(new.zip(*old, u64::saturating_sub));
            *old = new.zip(*old, u64::max);
        }
    }
}

/// A machine on this server.
#[derive(Debug)]
pub struct Machine {
    /// Its name.
    pub id: MachineId,
    pub(crate) user: String,
    /// The file of its record.
    pub(crate) path: PathBuf,
    /// Its own directory, of its last run.
    pub(crate) directory: PathBuf,
    /// Held by a command that changes it, from its start to its end: they come one
    /// after the other.
    pub(crate) turn: tokio::sync::Mutex<()>,
    state: Mutex<MachineState>,
}

/// How a machine stands.
#[derive(Debug)]
pub(crate) struct MachineState {
    pub(crate) settings: Settings,
    pub(crate) rest: Rest,
    pub(crate) live: Option<Arc<Live>>,
    pub(crate) is_gone: bool,
    /// What it takes of its user's quotas while it exists, and while it runs.
    pub(crate) held: Option<Grant>,
    pub(crate) held_running: Option<Grant>,
}

impl MachineState {
    /// As `info` tells it.
    pub(crate) fn status(&self) -> &'static str {
        let Some(live) = &self.live else {
            return self.rest.as_str();
        };
        match live.running.status() {
            Status::Active => "active",
            Status::Paused => "paused",
            // The end is seen, and about to be kept.
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

    /// Its state, for a moment.
    pub(crate) fn state(&self) -> MutexGuard<'_, MachineState> {
        lock(&self.state)
    }

    /// How it stands, as `info` tells it.
    pub fn status(&self) -> &'static str {
        self.state().status()
    }

    /// The drives that are attached to it.
    pub fn devices(&self) -> Vec<Device> {
        self.state().settings.devices()
    }

    /// What it has while it runs.
    pub(crate) fn live(&self) -> Option<Arc<Live>> {
        self.state().live.clone()
    }

    /// What is to be kept of it now.
    pub(crate) fn record(&self) -> MachineRecord {
        let state = self.state();
        MachineRecord {
            user: self.user.clone(),
            settings: state.settings.clone(),
            rest: state.rest,
            run: state.live.as_ref().map(|live| live.run),
        }
    }

    /// What `info` tells, in the keys of the second generation
    /// (docs/dev/reference.md, 1.11). `cores_here` are those of this machine.
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
            rest: Rest::Dead,
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
