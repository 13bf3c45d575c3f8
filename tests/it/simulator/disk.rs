//! A file on a disk that may lose power. Changes that were not synced are then lost, torn or kept,
//! by chance.

/// A change of a file since its last sync.
#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

/// A file as the program sees it, and as it is on the disk.
#[derive(Clone, Debug, Default)]
pub struct SimFile {
    seen: Vec<u8>,
    disk: Vec<u8>,
    unsynced: Vec<Change>,
    /// A sync failed: what the program sees may be only in memory, and is not written again.
    has_failed: bool,
}

/// `fdatasync` failed.
#[derive(Clone, Copy, Debug)]
pub struct Eio;

impl SimFile {
    /// A file that is complete and synced.
    pub fn synced(bytes: Vec<u8>) -> Self {
        Self {
            disk: bytes.clone(),
            seen: bytes,
            unsynced: Vec::new(),
            has_failed: false,
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.seen
    }

    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let change = Change::Write(at, bytes.to_vec());
        apply(&mut self.seen, &change);
        self.unsynced.push(change);
    }

    pub fn set_len(&mut self, len: usize) {
        apply(&mut self.seen, &Change::Len(len));
        self.unsynced.push(Change::Len(len));
    }

    /// Even a failed sync marks the pages as clean (docs/dev/faults.md, 1.6), so what is on the
    /// disk afterwards depends on chance.
    pub fn sync(&mut self, fails: bool, rng: &mut fastrand::Rng) -> Result<(), Eio> {
        if fails {
            self.lose(rng);
            self.has_failed = true;
            return Err(Eio);
        }
        for change in self.unsynced.drain(..) {
            apply(&mut self.disk, &change);
        }
        // The size is written again, even if an earlier sync failed.
        self.disk.resize(self.seen.len(), 0);
        Ok(())
    }

    /// The kernel reuses the memory, so what could not be written is lost.
    pub fn evict(&mut self) {
        if std::mem::take(&mut self.has_failed) {
            self.seen.clone_from(&self.disk);
            // Changes that are still to be written remain.
            for change in &self.unsynced {
                apply(&mut self.seen, change);
            }
        }
    }

    /// Power is lost.
    pub fn power_loss(&mut self, rng: &mut fastrand::Rng) {
        self.lose(rng);
        self.seen.clone_from(&self.disk);
    }

    fn lose(&mut self, rng: &mut fastrand::Rng) {
        for change in std::mem::take(&mut self.unsynced) {
            match (rng.u8(..4), change) {
                (0, _) => {}
                (1, Change::Write(at, bytes)) => {
                    // The write is cut off at any byte.
                    let len = rng.usize(..=bytes.len());
                    apply(&mut self.disk, &Change::Write(at, bytes[..len].to_vec()));
                }
                (2, Change::Write(at, bytes)) => {
                    // Some sectors of the write, in any order.
                    let mut start = 0;
                    while start < bytes.len() {
                        let end = (512 - (at + start) % 512 + start).min(bytes.len());
                        if rng.bool() {
                            let part = bytes[start..end].to_vec();
                            apply(&mut self.disk, &Change::Write(at + start, part));
                        }
                        start = end;
                    }
                }
                (_, change) => apply(&mut self.disk, &change),
            }
        }
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Len(len) => bytes.resize(*len, 0),
        Change::Write(at, new) => {
            let end = at + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(new);
        }
    }
}
