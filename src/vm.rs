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

pub(crate) mod claims;
mod console;
pub(crate) mod hypervisor;
pub(crate) mod ids;
pub(crate) mod machine;
pub(crate) mod machines;
pub(crate) mod qemu;
pub(crate) mod resources;
pub(crate) mod settings;
mod vnc;
