//! The share of the processors that a server gets: a control group of version 2, if the operator
//! provided one (`--cgroup`). Without it, all servers have equal shares.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::ids::MachineId;

/// A directory of the cgroup file system in which we may create groups, with the controller `cpu`.
#[derive(Clone, Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Uses `directory`, if its groups can have the controller.
    pub fn open(directory: &Path) -> io::Result<Self> {
        // Child groups get a controller only if it is listed here.
        let control = directory.join("cgroup.subtree_control");
        let has_cpu = |text: String| text.split_whitespace().any(|word| word == "cpu");
        if !has_cpu(fs::read_to_string(&control)?) {
            fs::write(&control, "+cpu")?;
        }
        Ok(Self(directory.to_owned()))
    }

    fn of(&self, id: MachineId) -> PathBuf {
        self.0.join(id.to_string())
    }

    /// Moves the process of a server to its own group.
    pub(super) fn place(&self, id: MachineId, pid: u32, cpu_mhz: u32) -> io::Result<()> {
        let group = self.of(id);
        match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.set(id, cpu_mhz)?;
        fs::write(group.join("cgroup.procs"), pid.to_string())
    }

    /// Changes its share.
    pub(super) fn set(&self, id: MachineId, cpu_mhz: u32) -> io::Result<()> {
        let weight = weight(cpu_mhz).to_string();
        fs::write(self.of(id).join("cpu.weight"), weight)
    }

    /// Removes the group of a server that has ended.
    pub(super) fn remove(&self, id: MachineId) -> io::Result<()> {
        fs::remove_dir(self.of(id))
    }
}

/// The weight for a number of MHz: 1000 MHz are 100, the default of a group. The kernel accepts 1
/// to 10000.
fn weight(cpu_mhz: u32) -> u32 {
    (cpu_mhz / 10).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses plain files instead of the kernel's.
    #[test]
    fn a_server_has_a_group_with_its_share() {
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("cgroup.subtree_control");
        assert!(Cgroup::open(directory.path()).is_err());
        fs::write(&control, "memory").unwrap();
        let cgroup = Cgroup::open(directory.path()).unwrap();
        assert_eq!(fs::read_to_string(&control).unwrap(), "+cpu");
        let id = MachineId::from_u128(7);
        cgroup.place(id, 42, 2000).unwrap();
        cgroup.place(id, 43, 2000).unwrap();
        let group = directory.path().join(id.to_string());
        let read = |name: &str| fs::read_to_string(group.join(name)).unwrap();
        assert_eq!(
            (read("cgroup.procs"), read("cpu.weight")),
            ("43".into(), "200".into())
        );
        cgroup.set(id, 500).unwrap();
        assert_eq!(read("cpu.weight"), "50");
        assert_eq!((weight(1), weight(1_000_000)), (1, 10_000));
    }
}
