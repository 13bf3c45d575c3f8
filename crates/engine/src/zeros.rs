//! What to do with chunks that are all zero.

/// A hole may be left out only on a drive that is known to read as zeros where
/// nothing was written. That is never so for a drive that was there before, and
/// not for sure for one made just now: the service encrypts drives by default,
/// and an encrypted drive need not read as zeros (docs/dev/faults.md, 1.4). So it is proven
/// first, by reading back a range that was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// Zeros are sent like any other bytes.
    Write,
    /// The drive is new; whether it reads as zeros is not known yet.
    Unproven,
    /// A range of the new drive is being read back.
    Proving,
    /// The drive is new and reads as zeros: holes are left out.
    Skip,
}

impl Zeros {
    /// The policy for a drive: `is_fresh` if this very transfer created it.
    pub fn for_drive(is_fresh: bool) -> Self {
        if is_fresh {
            Self::Unproven
        } else {
            Self::Write
        }
    }
}
