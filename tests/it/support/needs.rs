//! What a test requires of the machine. A test whose requirements are missing is skipped. libtest
//! cannot express that: it prints `ok` and hides the output of the test. So each skip is also
//! written to a record under the target directory. `.ci/skips` prints that record after the tests,
//! and CI fails if it contains a skip that `.ci/skips.txt` does not allow.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::panic::Location;
use std::path::{Path, PathBuf};

/// Something that a machine has or lacks.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A program in `PATH` or in a directory with programs for root.
    Command(&'static str),
    /// The rights of root.
    Root,
    /// Anything else. The test itself finds out whether it is available. `.ci/skips.txt` uses the
    /// same text, so it must contain neither paths nor numbers.
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

/// Whether the machine has all of these. If not, records that the running test is skipped.
#[track_caller]
pub fn needs(needs: &[Need]) -> bool {
    let missing: Vec<_> = needs.iter().filter(|need| !need.is_met()).collect();
    for need in &missing {
        skip(**need, "it is not here");
    }
    missing.is_empty()
}

/// Records that the running test ends early, or leaves out a part, because this is missing.
#[track_caller]
pub fn skip(need: Need, detail: impl fmt::Display) {
    eprintln!("SKIPPED: needs {need}: {detail}");
    let record = Path::new(env!("CARGO_TARGET_TMPDIR")).join("skipped");
    write(&record, &test(Location::caller()), need);
}

/// The name of the running test. libtest gives the thread of a test that name, but not with
/// `--test-threads 1`, and threads that a test starts have no name. In these cases it is the name
/// of the file.
fn test(caller: &Location<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().filter(|name| name.contains("::"));
    name.unwrap_or(caller.file()).to_owned()
}

/// Adds a line with one write to a file that is opened for appending, so that lines of several
/// tests do not mix.
pub fn write(record: &Path, test: &str, need: Need) {
    let file = File::options().create(true).append(true).open(record);
    file.unwrap()
        .write_all(format!("{test}: {need}\n").as_bytes())
        .unwrap();
}
