//! What runs servers. The rest of the program uses only these two traits; QEMU is the only
//! implementation.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::UnixStream;
use uuid::Uuid;

use super::ids::{MachineId, Slot};
use openhosting_tenancy::Counters;

/// A boxed future, for methods of trait objects.
pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Starts servers, and finds those that are running.
pub trait Hypervisor: fmt::Debug + Send + Sync {
    /// Starts a server, paused: its first instruction runs after [`Running::resume`].
    fn start<'a>(&'a self, spec: &'a Spec) -> Later<'a, Result<Arc<dyn Running>, Failure>>;

    /// The server that an earlier process of ours left running in `directory`.
    fn find<'a>(
        &'a self,
        id: MachineId,
        directory: &'a Path,
    ) -> Later<'a, Option<Arc<dyn Running>>>;

    /// Kills the server that an earlier process of ours left running in `directory`, if there is
    /// one. Blocks until it has ended.
    fn clear(&self, directory: &Path);
}

/// A running server.
pub trait Running: fmt::Debug + Send + Sync {
    /// Its current status.
    fn status(&self) -> Status;

    /// Waits for its end.
    fn ended(&self) -> Later<'_, End>;

    /// Cuts its power, and waits for its end.
    fn cut_power(&self) -> Later<'_, End>;

    /// Presses the power button; the guest decides what happens.
    fn press_power_button(&self) -> Later<'_, Result<(), Failure>>;

    /// Presses the reset button.
    fn reset(&self) -> Later<'_, Result<(), Failure>>;

    /// Stops its processors; the memory stays.
    fn pause(&self) -> Later<'_, Result<(), Failure>>;

    /// Continues its processors.
    fn resume(&self) -> Later<'_, Result<(), Failure>>;

    /// Sets another VNC password; with `None`, nobody gets access.
    fn set_password<'a>(&'a self, password: Option<&'a str>) -> Later<'a, Result<(), Failure>>;

    /// Sets another share of the processors.
    fn set_cpu(&self, cpu_mhz: u32);

    /// What it read and wrote since its start, by drive.
    fn counters(&self) -> Later<'_, Result<BTreeMap<Slot, Counters>, Failure>>;

    /// A picture of its screen, as PNG.
    fn screen(&self) -> Later<'_, Result<Vec<u8>, Failure>>;

    /// Updates the file `console` in its directory. The file's size is bounded; `console.rs` reads
    /// it.
    fn keep_console(&self) -> Later<'_, ()>;

    /// A connection to its VNC server, which requires the password.
    fn vnc(&self) -> Later<'_, std::io::Result<UnixStream>>;
}

/// The server that a hypervisor should start.
#[derive(Debug)]
pub struct Spec {
    pub id: MachineId,
    /// Its own directory, for the hypervisor's files. The path contains no symbolic link.
    pub directory: PathBuf,
    pub cpu_mhz: u32,
    pub cores: u32,
    pub mem_mb: u32,
    pub drives: Vec<SpecDrive>,
    pub nics: Vec<SpecNic>,
    /// The address of this machine for its ports.
    pub address: Ipv4Addr,
    pub password: Option<Password>,
}

/// A drive of a [`Spec`].
#[derive(Debug)]
pub struct SpecDrive {
    pub slot: Slot,
    pub path: PathBuf,
    /// In bytes.
    pub size: u64,
    pub is_cdrom: bool,
    /// Whether other servers write to it too.
    pub is_shared: bool,
    pub boot_index: Option<usize>,
}

/// A network card of a [`Spec`].
#[derive(Debug)]
pub struct SpecNic {
    pub index: u8,
    /// `e1000`, `rtl8139` or `virtio`.
    pub model: &'static str,
    pub mac: [u8; 6],
    pub net: Net,
}

/// What a network card is connected to.
#[derive(Debug)]
pub enum Net {
    /// The outside, behind network address translation. These TCP ports of the server's address are
    /// forwarded to the guest.
    Outside { forward: Vec<u16>, reach: Reach },
    /// The servers that use the same private network.
    Vlan(Uuid),
}

/// What guests can reach from their first network card, as the operator decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Nothing: they only answer at the forwarded ports.
    #[default]
    None,
    /// Public IPv4 addresses, and the resolver of this machine.
    Internet,
    /// Everything that this machine reaches, including its loopback interface.
    Host,
}

/// A password, which `Debug` does not show.
#[derive(Clone)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// The status of a running server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Active,
    Paused,
    Ended(End),
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest switched it off.
    ShutDown,
    /// Its power was cut.
    PowerCut,
    /// The hypervisor process ended without being asked to.
    Died,
}

/// Why a hypervisor could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It is not installed.
    #[error("No hypervisor: {0:?} is not installed")]
    Missing(PathBuf),
    /// It ended at once, or refused; with its message.
    #[error("The hypervisor refused: {0}")]
    Refused(String),
    /// It did not answer, or is gone.
    #[error("The hypervisor does not answer: {0}")]
    Silent(String),
    /// A local operation failed.
    #[error("Cannot run a server")]
    Local(#[from] std::io::Error),
}
