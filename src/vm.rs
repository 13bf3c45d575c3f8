//! Virtual servers on QEMU, which this program calls machines.
//!
//! ```text
//! machines -> machine (one: settings, ids) -> hypervisor (two traits) <- qemu
//!    |  resources: addresses, private networks     vnc: who looks at a screen
//!    +-> claims: the drives, which somebody else serves
//! ```
//!
//! It answers no requests and knows no HTTP: [`server`](crate::server) does that, and serves
//! the drives. Start reading at `machines`.

mod claims;
mod console;
mod hypervisor;
mod ids;
mod machine;
mod machines;
mod qemu;
mod resources;
mod settings;
mod vnc;

pub(crate) use self::claims::{Claim, Claims, Drive, Drives, Holder};
pub use self::hypervisor::Reach;
pub(crate) use self::ids::{MachineId, Slot};
pub(crate) use self::machine::Machine;
pub(crate) use self::machines::{Backing, GuestNetwork, Machines};
pub(crate) use self::qemu::{Cgroup, Qemu};
pub(crate) use self::resources::{ResourceId, ResourceKind};
