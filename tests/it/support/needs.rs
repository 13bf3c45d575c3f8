//! What a test needs of the machine. A test without it is skipped, which libtest has no
//! word for: it prints `ok` and hides what the test printed. So every skip is also written
//! to a record under the target directory. `.ci/skips` prints that record when the tests
//! have ended, and CI fails on what `.ci/skips.txt` does not allow.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::panic::Location;
use std::path::{Path, PathBuf};

/// Something that a machine has or lacks.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A program in `PATH` or in a directory for root's programs.
    Command(&'static str),
    /// The rights of root.
    Root,
    /// Anything else. Its test finds out whether it is there; the text is what
    /// `.ci/skips.txt` calls it, so it names neither a path nor a number.
    Other(&'static str),
}

impl Need {
    fn is_met(self) -> bool {
        match self {
            Self::Command(name) => has_command(name),
            Self::Root => rustix::process::geteuid().is_root(),
            Self::Other(_) => true,
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(name) => write!(f, "command {name}"),
            Self::Root => f.write_str("root"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

fn has_command(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(more);
    places.any(|place| place.join(name).is_file())
}

/// Whether the machine has all of these; records the skip of the running test if not.
#[track_caller]
pub fn needs(needs: &[Need]) -> bool {
    let missing: Vec<_> = needs.iter().filter(|need| !need.is_met()).collect();
    for need in &missing {
        skip(**need, "it is not here");
    }
    missing.is_empty()
}

/// The running test goes no further, or leaves a part out, for lack of this.
#[track_caller]
pub fn skip(need: Need, detail: impl fmt::Display) {
    eprintln!("SKIPPED: needs {need}: {detail}");
    let record = Path::new(env!("CARGO_TARGET_TMPDIR")).join("skipped");
    write(&record, &test(Location::caller()), need);
}

/// The running test. libtest names the thread of a test after it, but not with
/// `--test-threads 1`, nor are threads named that a test starts: then it is the file.
fn test(caller: &Location<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().filter(|name| name.contains("::"));
    name.unwrap_or(caller.file()).to_owned()
}

/// Adds a line. It is one write to a file opened for appending, so lines of several
/// tests do not mix.
pub fn write(record: &Path, test: &str, need: Need) {
    let file = File::options().create(true).append(true).open(record);
    file.unwrap()
        .write_all(format!("{test}: {need}\n").as_bytes())
        .unwrap();
}
