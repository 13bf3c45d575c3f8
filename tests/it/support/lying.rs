//! Runs a tool whose file system reports holes wrongly, as some file systems did: `lying.py`
//! filters its system calls.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::cli::{Desk, Tool};
use super::needs::{Need, skip};

/// The calls that fail: `lseek` with this `whence`, from this offset on.
#[derive(Clone, Copy, Debug)]
pub struct Lie {
    pub whence: u32,
    pub errno: u32,
    pub from: u64,
}

pub const SEEK_DATA: u32 = 3;
pub const SEEK_HOLE: u32 = 4;
/// The error of `SEEK_DATA` that means that no data follows the offset.
pub const ENXIO: u32 = 6;

/// Reports that no data follows this byte, even if some does.
pub const fn no_data(from: u64) -> Lie {
    Lie {
        whence: SEEK_DATA,
        errno: ENXIO,
        from,
    }
}

fn script() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/it/support/lying.py")
}

/// Whether system calls can be filtered here. Prints a message if not.
pub fn can() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    let can = *CAN.get_or_init(|| {
        let mut python = std::process::Command::new("python3");
        let tried = python.arg(script()).args(["3", "6", "0", "true"]).status();
        tried.is_ok_and(|status| status.success())
    });
    if !can {
        skip(Need::Other("filters of system calls"), "lying.py fails");
    }
    can
}

/// A program that receives these wrong reports.
pub fn with_lies<'a>(desk: &'a Desk, lie: Lie, program: &str) -> Tool<'a> {
    let words = [lie.whence, lie.errno].map(|word| word.to_string());
    let tool = desk.tool("python3").arg(script()).list(words);
    tool.arg(lie.from.to_string()).arg(program)
}
