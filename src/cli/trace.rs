//! `--trace FILE`: how each chunk was compressed, and why (docs/user/trace.md).

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::written_files::start_of;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Untrusted, overwrite};
use crate::monitor::{Encoded, Event, Monitor, Reason};

/// A monitor that writes a line for each compressed chunk, and passes every event to another
/// monitor. If the file cannot be written, the transfer continues; [`finish`](Self::finish) returns
/// the error.
pub(super) struct TraceMonitor<'a> {
    path: PathBuf,
    lines: BufWriter<File>,
    /// The first failure, after which nothing more is written.
    failed: Option<std::io::Error>,
    next: &'a mut dyn Monitor,
}

impl<'a> TraceMonitor<'a> {
    /// Writes to `path`; an existing regular file of this user is overwritten. `is_trace` has
    /// checked it.
    pub(super) fn create(path: &Path, next: &'a mut dyn Monitor) -> Result<Self> {
        let file = overwrite(path).map_err(|cause| {
            let hint = Untrusted::of(&cause).map(|why| why.remedy(path, "or choose another file"));
            let what = format!("Cannot write the trace {}", path.display());
            Error::new(ErrorKind::Local, what)
                .because(cause)
                .hint_if(hint)
        })?;
        Ok(Self {
            path: path.to_owned(),
            lines: BufWriter::new(file),
            failed: None,
            next,
        })
    }

    /// Ends the trace, and returns an error if it could not be written.
    pub(super) fn finish(mut self) -> Result<()> {
        let flushed = self.lines.flush();
        self.failed.map_or(flushed, Err).map_err(|cause| {
            let what = format!("The trace {} is incomplete", self.path.display());
            Error::new(ErrorKind::Local, what).because(cause)
        })
    }
}

impl Monitor for TraceMonitor<'_> {
    fn event(&mut self, event: &Event) {
        if let Event::Encoded(encoded) = event
            && self.failed.is_none()
        {
            self.failed = writeln!(self.lines, "{}", line(encoded)).err();
        }
        self.next.event(event);
    }
}

/// Whether a file is a trace, or begins as one.
pub(super) fn is_trace(path: &Path) -> bool {
    let start = start_of(path);
    let first = start.split(|byte| *byte == b'\n').next();
    let first = serde_json::from_slice::<serde_json::Value>(first.unwrap_or_default());
    first.is_ok_and(|line| {
        ["at_ms", "chunk", "reason"]
            .iter()
            .all(|key| line.get(key).is_some())
    })
}

/// The keys are documented in docs/user/trace.md; `benches/tools/plot.rs` reads them.
fn line(encoded: &Encoded) -> serde_json::Value {
    let three_decimals = |number: f64| (number * 1000.0).round() / 1000.0;
    serde_json::json!({
        "at_ms": three_decimals(encoded.at.as_secs_f64() * 1000.0),
        "chunk": encoded.chunk,
        "level": encoded.level,
        "effort": three_decimals(encoded.effort),
        "ready": encoded.ready,
        "in_flight": encoded.in_flight,
        "raw_bytes": encoded.raw_bytes,
        "body_bytes": encoded.body_bytes,
        "encode_us": u64::try_from(encoded.took.as_micros()).unwrap_or(u64::MAX),
        "reason": match encoded.reason {
            Reason::Auto => "auto",
            Reason::Fixed => "fixed",
            Reason::Incompressible => "incompressible",
        },
    })
}
