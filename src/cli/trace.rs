//! `--trace FILE`: how each chunk was compressed, and why (docs/user/trace.md).

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Foreign, overwrite};
use crate::monitor::{Encoded, Event, Monitor, Reason};

/// A monitor that writes a line for each chunk and passes everything on.
pub(super) struct Traced<'a> {
    path: PathBuf,
    lines: BufWriter<File>,
    failed: Option<std::io::Error>,
    monitor: &'a mut dyn Monitor,
}

impl<'a> Traced<'a> {
    /// Writes to `path`; an existing regular file of this user is overwritten.
    pub(super) fn create(path: &Path, monitor: &'a mut dyn Monitor) -> Result<Self> {
        let file = overwrite(path).map_err(|cause| {
            let hint = Foreign::of(&cause).map(|why| why.remedy(path, "or choose another file"));
            let what = format!("Cannot write the trace {}", path.display());
            Error::new(ErrorKind::Local, what)
                .because(cause)
                .hint_if(hint)
        })?;
        Ok(Self {
            path: path.to_owned(),
            lines: BufWriter::new(file),
            failed: None,
            monitor,
        })
    }

    /// Ends the trace, and returns an error if it could not be written.
    pub(super) fn finish(mut self) -> Result<()> {
        let flushed = self.lines.flush();
        let cannot = |cause| {
            let what = format!("The trace {} is incomplete", self.path.display());
            Err(Error::new(ErrorKind::Local, what).because(cause))
        };
        self.failed.map_or(flushed, Err).or_else(cannot)
    }
}

impl Monitor for Traced<'_> {
    fn event(&mut self, event: &Event) {
        if let Event::Encoded(encoded) = event
            && self.failed.is_none()
        {
            self.failed = writeln!(self.lines, "{}", line(encoded)).err();
        }
        self.monitor.event(event);
    }
}

fn line(encoded: &Encoded) -> serde_json::Value {
    let thousandths = |number: f64| (number * 1000.0).round() / 1000.0;
    serde_json::json!({
        "at_ms": thousandths(encoded.at.as_secs_f64() * 1000.0),
        "chunk": encoded.chunk,
        "level": encoded.level,
        "effort": thousandths(encoded.effort),
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
