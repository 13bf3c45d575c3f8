//! Finds out who else uses a block device that is to be read, or a device that is made from a file.
//! If it is written to during the copy, the copy matches no single moment.
//!
//! Only Linux is supported; on other systems no use is known.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;

/// A use of a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A file system on it is mounted here.
    Mounted(PathBuf),
    /// The machine uses it as swap.
    Swap,
    /// Another device is built on it (a volume group, an array), with this name.
    Holder(String),
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mounted(path) => write!(f, "is mounted at {}", path.display()),
            Self::Swap => f.write_str("is used as swap"),
            Self::Holder(name) => write!(f, "is used by /dev/{name}"),
        }
    }
}

/// The uses of a block device, of its partitions, and of devices built on these; for a regular
/// file, those of loop devices on it. What the system does not report is omitted.
pub fn uses_of(file: &File) -> BTreeSet<Use> {
    #[cfg(target_os = "linux")]
    return linux::of(file);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        BTreeSet::new()
    }
}

/// Whether another process has locked a file. Linux has a list of locks. On other systems the lock
/// is taken and released, so a process that starts at this very moment may find it taken.
pub fn is_locked(file: &File) -> bool {
    #[cfg(target_os = "linux")]
    return linux::is_in_list(file);
    #[cfg(not(target_os = "linux"))]
    match file.try_lock_shared() {
        Ok(()) => file.unlock().is_err(),
        Err(_) => true,
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeSet;
    use std::fs::{File, read_dir, read_to_string};
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::path::{Path, PathBuf};

    use rustix::fs::{major, minor};

    use super::Use;

    /// Maximum devices to visit, in case they form a loop.
    const DEVICES_MAX: usize = 256;

    /// A device by its numbers, such as `8:1`.
    type Number = String;

    /// See [`uses_of`](super::uses_of).
    pub(super) fn of(file: &File) -> BTreeSet<Use> {
        let Ok(metadata) = file.metadata() else {
            return BTreeSet::new();
        };
        let first = if metadata.file_type().is_block_device() {
            vec![number_of(metadata.rdev())]
        } else {
            loops_over(metadata.dev(), metadata.ino())
        };
        let (devices, mut uses) = devices_on(first);
        let is_one = |path: &Path| {
            let device = std::fs::metadata(path).ok();
            let device = device.filter(|metadata| metadata.file_type().is_block_device());
            device.is_some_and(|metadata| devices.contains(&number_of(metadata.rdev())))
        };
        let mounts = read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for mount in mounts.lines().filter_map(Mount::parse) {
            // Some file systems have a device number of their own, so that only the name identifies
            // the device.
            if devices.contains(mount.device) || is_one(&unescaped(mount.source)) {
                uses.insert(Use::Mounted(unescaped(mount.point)));
            }
        }
        let swaps = read_to_string("/proc/swaps").unwrap_or_default();
        let swaps = swaps
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next());
        if swaps.map(unescaped).any(|path| is_one(&path)) {
            uses.insert(Use::Swap);
        }
        uses
    }

    fn number_of(device: u64) -> Number {
        format!("{}:{}", major(device), minor(device))
    }

    /// The loop devices on a file.
    fn loops_over(device: u64, inode: u64) -> Vec<Number> {
        let blocks = read_dir("/sys/class/block").into_iter().flatten().flatten();
        blocks
            .filter_map(|block| {
                let name = read_to_string(block.path().join("loop/backing_file")).ok()?;
                let file = std::fs::metadata(name.trim_end_matches('\n')).ok()?;
                let is_it = (file.dev(), file.ino()) == (device, inode);
                is_it.then(|| number_at(&block.path())).flatten()
            })
            .collect()
    }

    /// These devices, their partitions, and everything built on them; and the devices that are
    /// built on others, as uses.
    fn devices_on(mut todo: Vec<Number>) -> (BTreeSet<Number>, BTreeSet<Use>) {
        let (mut devices, mut uses) = (BTreeSet::new(), BTreeSet::new());
        while let Some(number) = todo.pop() {
            let at = Path::new("/sys/dev/block").join(&number);
            if devices.len() == DEVICES_MAX || !devices.insert(number) {
                continue;
            }
            let entries = read_dir(&at).into_iter().flatten().flatten();
            let partitions = entries.filter(|entry| entry.path().join("partition").exists());
            todo.extend(partitions.filter_map(|entry| number_at(&entry.path())));
            for holder in read_dir(at.join("holders")).into_iter().flatten().flatten() {
                let name = holder.file_name().to_string_lossy().into_owned();
                todo.extend(number_at(&holder.path()));
                uses.insert(Use::Holder(name));
            }
        }
        (devices, uses)
    }

    fn number_at(block: &Path) -> Option<Number> {
        let number = read_to_string(block.join("dev")).ok()?;
        Some(number.trim().to_owned())
    }

    /// A line of `mountinfo`, see proc(5).
    #[derive(Debug, PartialEq, Eq)]
    struct Mount<'a> {
        device: &'a str,
        point: &'a str,
        source: &'a str,
    }

    impl<'a> Mount<'a> {
        fn parse(line: &'a str) -> Option<Self> {
            let (fields, more) = line.split_once(" - ")?;
            let mut fields = fields.split(' ').skip(2);
            let (device, point) = (fields.next()?, fields.nth(1)?);
            Some(Self {
                device,
                point,
                source: more.split(' ').nth(1)?,
            })
        }
    }

    /// A path in which blanks and backslashes are escaped as three octal digits.
    fn unescaped(text: &str) -> PathBuf {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let [first, after @ ..] = rest {
            let digits = after.first_chunk::<3>().filter(|_| *first == b'\\');
            let byte = digits.and_then(|digits| {
                let digits = std::str::from_utf8(digits).ok()?;
                u8::from_str_radix(digits, 8).ok()
            });
            bytes.push(byte.unwrap_or(*first));
            rest = if byte.is_some() { &after[3..] } else { after };
        }
        PathBuf::from(std::ffi::OsString::from_vec(bytes))
    }

    /// Whether a process has locked the file with this inode, on any device. Trying to take the
    /// lock instead would make a process that is just starting believe that it is taken.
    pub(super) fn is_in_list(file: &File) -> bool {
        let Ok(metadata) = file.metadata() else {
            return true;
        };
        let locks = read_to_string("/proc/locks").unwrap_or_default();
        let end = format!(":{}", metadata.ino());
        locks
            .lines()
            .flat_map(str::split_whitespace)
            .any(|word| word.ends_with(&end) && word.matches(':').count() == 2)
    }

    #[cfg(test)]
    mod tests {
        use std::os::unix::ffi::OsStrExt;

        use super::*;

        #[test]
        fn a_mount_has_its_device_its_point_and_its_source() {
            let line = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/a\\134b rw";
            let mount = Mount::parse(line).unwrap();
            assert_eq!((mount.device, mount.point), ("98:0", "/mnt\\0402"));
            assert_eq!(unescaped(mount.point).as_os_str().as_bytes(), b"/mnt 2");
            assert_eq!(unescaped(mount.source).as_os_str().as_bytes(), b"/dev/a\\b");
            // A line without optional fields, then one with too few fields.
            let line = "36 35 0:5 / /x rw - tmpfs none rw";
            assert_eq!(Mount::parse(line).unwrap().source, "none");
            assert_eq!(Mount::parse("36 35 0:5 / /x rw"), None);
            assert_eq!(unescaped("a\\9").as_os_str(), "a\\9");
            assert_eq!(unescaped("a\\04").as_os_str(), "a\\04");
        }

        #[test]
        fn an_unused_file_has_no_uses() {
            let file = tempfile::tempfile().unwrap();
            assert_eq!(of(&file), BTreeSet::new());
        }
    }
}
