//! A Python with packages from PyPI.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::needs::{Need, skip};

/// A Python with `package` (`NAME==VERSION`), which is installed once under the target directory.
/// Returns `None`, with a message, if that is impossible.
pub fn with(package: &str) -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join(package.replace("==", "-"));
    let (python, done) = (venv.join("bin/python"), venv.join("done"));
    if done.exists() {
        return Some(python);
    }
    let run = |program: &Path, args: &[&str]| {
        let out = Command::new(program).args(args).output();
        match out {
            Ok(out) if out.status.success() => true,
            Ok(out) => {
                let said = String::from_utf8_lossy(&out.stderr);
                let detail = format_args!("{} {args:?}: {said}", program.display());
                skip(Need::Other("packages of Python"), detail);
                false
            }
            Err(error) => {
                let detail = format_args!("{}: {error}", program.display());
                skip(Need::Other("packages of Python"), detail);
                false
            }
        }
    };
    let is_made = run(Path::new("python3"), &["-m", "venv", venv.to_str()?])
        && run(&python, &["-m", "pip", "install", "-q", package])
        && std::fs::write(done, "").is_ok();
    is_made.then_some(python)
}
