//! Virtual machines on QEMU, which the API calls servers.
//!
//! ```text
//! machines -> machine (one: settings, ids) -> qemu (hypervisor: its vocabulary)
//!    |  resources: addresses, private networks     vnc: who looks at a screen
//!    +-> claims: the drives, which somebody else serves
//! ```
//!
//! It answers no requests and does not know HTTP: `openhosting-server` does that, and serves the
//! drives. Start reading at `machines`.

#![cfg(target_os = "linux")]

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

pub use self::claims::{Claim, Claims, Drive, Drives, Holder};
pub use self::hypervisor::{Control, Reach};
pub use self::ids::{MachineId, Slot};
pub use self::machine::Machine;
pub use self::machines::{Backing, GuestNetwork, Machines};
pub use self::qemu::{Cgroup, Qemu};
pub use self::resources::{ResourceId, ResourceKind, Resources};
pub use self::settings::Device;
