//! A drive that somebody else uses.

use crate::drive::{DriveId, DriveInfo};
use crate::error::{Error, ErrorKind};

/// Who uses a drive, in words.
pub(crate) fn claim(drive: &DriveInfo) -> Option<String> {
    if let Some(by) = drive.claimed() {
        return Some(format!("claimed by {by}"));
    }
    drive
        .imaging()
        .map(|progress| format!("being imaged ({progress})"))
}

pub(crate) fn claimed(drive: DriveId, by: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("Drive {drive} is {by}"))
        .hint_to("Stop the server that uses it, or wait until the imaging is done")
}
