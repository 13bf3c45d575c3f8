//! Decides what to do with chunks that are all zero.

/// Whether a hole may be left out. That is allowed only on a drive that is known to read as zeros
/// where nothing was written. It is never known for a drive that existed before, and not certain
/// for a new one: the service encrypts drives by default, and an encrypted drive need not read as
/// zeros (docs/dev/faults.md, 1.4). So the transfer proves it first, by reading back a range that
/// was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// Zeros are sent like any other bytes.
    Write,
    /// The drive is new; it is not yet known whether it reads as zeros.
    Unproven,
    /// A range of the new drive is being read back.
    Proving,
    /// The drive is new and reads as zeros: holes are left out.
    Skip,
}

impl Zeros {
    /// The initial policy for a drive. `is_fresh` says whether this transfer created it.
    pub fn for_drive(is_fresh: bool) -> Self {
        if is_fresh {
            Self::Unproven
        } else {
            Self::Write
        }
    }
}
