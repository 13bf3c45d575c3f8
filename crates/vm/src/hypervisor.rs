//! What runs servers. The rest of the program knows these two traits; QEMU is the one
//! that is there.

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

/// A future behind a trait object.
pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What can start servers, and find those that run.
pub trait Hypervisor: fmt::Debug + Send + Sync {
    /// Makes a server, which waits for [`Running::resume`] before its first step.
    fn start<'a>(&'a self, spec: &'a Spec) -> Later<'a, Result<Arc<dyn Running>, Failure>>;

    /// The server that runs in `directory`, as an earlier process of ours left it.
    fn find<'a>(
        &'a self,
        id: MachineId,
        directory: &'a Path,
    ) -> Later<'a, Option<Arc<dyn Running>>>;

    /// Ends the server that an earlier process of ours left in `directory`, if there is
    /// one. Blocks until it has ended.
    fn clear(&self, directory: &Path);
}

/// A server that runs.
pub trait Running: fmt::Debug + Send + Sync {
    /// How it stands, at this moment.
    fn status(&self) -> Status;

    /// Waits for its end.
    fn ended(&self) -> Later<'_, End>;

    /// Takes its power, and waits for its end.
    fn cut_power(&self) -> Later<'_, End>;

    /// Presses the power button; the guest does what it likes.
    fn press_power_button(&self) -> Later<'_, Result<(), Failure>>;

    /// Presses the reset button.
    fn reset(&self) -> Later<'_, Result<(), Failure>>;

    /// Stops its processors; memory stays.
    fn pause(&self) -> Later<'_, Result<(), Failure>>;

    /// Lets its processors go on.
    fn resume(&self) -> Later<'_, Result<(), Failure>>;

    /// Gives VNC another password; with `None` nobody gets in.
    fn set_password<'a>(&'a self, password: Option<&'a str>) -> Later<'a, Result<(), Failure>>;

    /// Gives it another share of the processors.
    fn set_cpu(&self, cpu_mhz: u32);

    /// What it read and wrote since it was started, by drive.
    fn counters(&self) -> Later<'_, Result<BTreeMap<Slot, Counters>, Failure>>;

    /// A picture of its screen, PNG.
    fn screen(&self) -> Later<'_, Result<Vec<u8>, Failure>>;

    /// Brings the file `console` in its directory up to date. It never grows without
    /// bounds, and `console.rs` reads it.
    fn keep_console(&self) -> Later<'_, ()>;

    /// A connection to its VNC server, which asks for the password.
    fn vnc(&self) -> Later<'_, std::io::Result<UnixStream>>;
}

/// A server as a hypervisor is to make it.
#[derive(Debug)]
pub struct Spec {
    pub id: MachineId,
    /// Its own, where the hypervisor keeps what it needs. No symbolic link in it.
    pub directory: PathBuf,
    pub cpu_mhz: u32,
    pub cores: u32,
    pub mem_mb: u32,
    pub drives: Vec<SpecDrive>,
    pub nics: Vec<SpecNic>,
    /// The address of this machine at which its ports are.
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
    /// Whether others write to it too.
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

/// What a network card leads to.
#[derive(Debug)]
pub enum Net {
    /// Outside, behind an address translation; these TCP ports of the address of the
    /// server lead to the guest.
    Outside { forward: Vec<u16>, reach: Reach },
    /// The servers that name the same network.
    Vlan(Uuid),
}

/// What guests reach from their first network card, as the operator decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Nothing: they answer at the ports that are forwarded to them.
    #[default]
    None,
    /// Public addresses of IPv4, and the resolver of this machine.
    Internet,
    /// Whatever this machine reaches, its loopback interface included.
    Host,
}

/// A password, which is not shown.
#[derive(Clone)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// How a server that runs stands.
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
    /// Its power was taken.
    PowerCut,
    /// The hypervisor went, and nobody asked it to.
    Died,
}

/// Why a hypervisor did not do something.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is none.
    #[error("No hypervisor: {0:?} is not installed")]
    Missing(PathBuf),
    /// It ended at once, or refused; what it said.
    #[error("The hypervisor refused: {0}")]
    Refused(String),
    /// It did not answer, or is gone.
    #[error("The hypervisor does not answer: {0}")]
    Silent(String),
    /// Something of this machine failed.
    #[error("Cannot run a server")]
    Local(#[from] std::io::Error),
}
