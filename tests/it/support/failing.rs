//! Makes one system call of a tool on its files fail, or kills the tool there. This is a library
//! that is preloaded (`failing.c`), because strace counts the calls of each thread separately.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::cli::{Desk, Tool};
use super::needs::{Need, skip};

/// The error that a call returns.
pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;
/// Kills the process with SIGKILL instead of returning an error.
pub const KILL: i32 = 0;

/// The call that should fail.
#[derive(Clone, Copy, Debug)]
pub struct Failing<'a> {
    /// The name of a call that `failing.c` lists.
    pub call: &'a str,
    /// The number of the call, from 1, counted over all threads.
    pub nth: usize,
    pub errno: i32,
    /// Counts only calls for a file whose name ends with this. The journal of a first run has no
    /// name when it is opened, so it appears as `(deleted)`.
    pub file: Option<&'a str>,
}

/// The library, or `None`, with a message, if it cannot be compiled.
pub fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let made = LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/failing.c");
        let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("failing.so");
        // Written under another name first, since another run of the tests may be using the file.
        let new = made.with_extension(format!("{}.so", std::process::id()));
        let mut cc = Command::new("cc");
        let cc = cc.args(["-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-o"]);
        let status = cc.arg(&new).arg(source).arg("-ldl").status();
        if !status.is_ok_and(|status| status.success()) {
            return None;
        }
        std::fs::rename(&new, &made).unwrap();
        Some(made)
    });
    if made.is_none() {
        skip(Need::Command("cc"), "it makes no library");
    }
    made.as_deref()
}

impl Failing<'_> {
    /// Runs the tool so that this call fails.
    pub fn within<'d>(&self, library: &Path, desk: &Desk, tool: Tool<'d>) -> Tool<'d> {
        let log = log(desk);
        let _ = std::fs::remove_file(&log);
        let tool = tool
            .env("LD_PRELOAD", library)
            .env("OH_FAIL_CALL", self.call)
            .env("OH_FAIL_NTH", self.nth.to_string())
            .env("OH_FAIL_ERRNO", self.errno.to_string())
            .env("OH_FAIL_LOG", log);
        match self.file {
            Some(file) => tool.env("OH_FAIL_FILE", file),
            None => tool,
        }
    }
}

fn log(desk: &Desk) -> PathBuf {
    desk.path("calls.log")
}

/// A call that a tool made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    pub path: String,
    /// Whether this is the call that should fail.
    pub is_hit: bool,
}

/// The calls of the last run, in their order.
pub fn calls(desk: &Desk) -> Vec<Call> {
    let log = std::fs::read_to_string(log(desk)).unwrap_or_default();
    let call = |line: &str| {
        let (call, result) = line.split_once(" = ").unwrap();
        let (name, path) = call.split_once(' ').unwrap();
        Call {
            name: name.to_owned(),
            path: path.to_owned(),
            is_hit: result.ends_with('!'),
        }
    };
    log.lines().map(call).collect()
}
