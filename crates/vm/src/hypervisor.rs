//! What the rest of the program says to QEMU and hears from it: how to run a server, its status, its
//! end, and failures.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use uuid::Uuid;

use super::ids::{MachineId, Slot};

/// What can be done to a running server at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Presses the power button; the guest decides what happens.
    PowerButton,
    /// Presses the reset button.
    Reset,
    /// Stops its processors; the memory stays.
    Pause,
    /// Continues its processors.
    Resume,
}

/// The server that a hypervisor should start.
#[derive(Debug)]
pub(crate) struct Spec {
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
pub(crate) struct SpecDrive {
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
pub(crate) struct SpecNic {
    pub index: u8,
    /// `e1000`, `rtl8139` or `virtio`.
    pub model: &'static str,
    pub mac: [u8; 6],
    pub net: Net,
}

/// What a network card is connected to.
#[derive(Debug)]
pub(crate) enum Net {
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
pub(crate) struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// The status of a running server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Active,
    Paused,
    Ended(End),
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
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
