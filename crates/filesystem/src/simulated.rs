//! A disk that a test simulates: it decides what a sync does, and which boot of the machine this is.
//! It applies to one thread.

use std::cell::RefCell;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::rc::Rc;

use crate::PageCache;

/// See the [module](self).
pub trait Simulated: Debug {
    /// Syncs the bytes of a file.
    ///
    /// # Errors
    /// As the sync of a real disk.
    fn sync(&self, file: &File) -> io::Result<()>;
    /// What identifies the boot of the machine.
    fn boot(&self) -> [u8; 16];
}

thread_local! {
    static DISK: RefCell<Option<Rc<dyn Simulated>>> = const { RefCell::new(None) };
}

/// From now on this thread uses `disk`, or the real one again.
pub fn simulate(disk: Option<Rc<dyn Simulated>>) {
    DISK.with(|slot| *slot.borrow_mut() = disk);
}

pub(super) fn disk() -> Option<Rc<dyn Simulated>> {
    DISK.with(|slot| slot.borrow().clone())
}

/// The page cache as it is in this boot.
pub(super) fn in_this_boot(real: PageCache) -> PageCache {
    match disk() {
        Some(disk) => PageCache {
            boot: disk.boot(),
            ..real
        },
        None => real,
    }
}
