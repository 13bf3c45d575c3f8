//! Events that a transfer reports while it runs. The library reports them; the command line
//! displays them.

use std::fmt;
use std::time::Duration;

use crate::advice::Advice;
use crate::amounts::duration;
use crate::drive::DriveId;
use crate::failure::{Failure, HTML_PAGE, Refusal};

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The drive is known and suitable for the transfer.
    Drive {
        /// Its identifier.
        id: DriveId,
        /// Its size in bytes; for a new drive, the requested size.
        size: u64,
        /// Whether this transfer created it.
        is_new: bool,
    },
    /// The transfer of chunks begins.
    Started {
        /// Number of chunks to transfer, if known.
        chunks: Option<u64>,
        /// Bytes of each chunk except the last.
        chunk_bytes: u64,
        /// The byte of the image at which the transfer starts.
        offset: u64,
        /// Total bytes of these chunks, if known.
        bytes: Option<u64>,
        /// Bytes of the image that need not be transferred, because an earlier run did that or they
        /// are the same on the other side. Together with `bytes`, this is the total size.
        earlier_bytes: u64,
    },
    /// A phase of the run begins in which no chunk is transferred.
    Phase {
        /// The kind of phase.
        phase: Phase,
        /// Bytes that it processes, if known.
        bytes: Option<u64>,
    },
    /// How many bytes the current phase has processed.
    PhaseProgress {
        /// Bytes processed so far.
        done_bytes: u64,
    },
    /// The run continues an earlier one.
    Resuming {
        /// Bytes of the image that the earlier run settled.
        done_bytes: u64,
        /// Bytes of the image, if known.
        size: Option<u64>,
        /// The same as a line for a log.
        line: String,
    },
    /// The size of the image was unknown and is known now, while the transfer runs.
    SizeKnown {
        /// Number of chunks to transfer, without those of earlier runs.
        chunks: u64,
        /// Their total bytes.
        bytes: u64,
        /// As in [`Started`](Self::Started), now that the length of the last chunk is known.
        earlier_bytes: u64,
    },
    /// The current progress.
    Progress(Progress),
    /// A chunk was encoded.
    Encoded(Encoded),
    /// The endpoint refused requests for their size. Reported when the last chunk was transferred,
    /// or the transfer ends.
    BodyRefused {
        /// The smallest refused body, in bytes.
        refused_bytes: u64,
        /// The largest body that has been sent since.
        accepted_bytes: u64,
    },
    /// Information for the user: one line.
    Notice(Advice),
    /// Something that the user should check: it is wrong, or costs more than necessary. One line.
    Warning(Advice),
    /// The run waits because something failed. Not reported for every attempt.
    Waiting(Waiting),
    /// A reported wait is over.
    WaitOver {
        /// What answers again, such as "the endpoint".
        who: String,
        /// How long the wait took.
        time: Duration,
    },
}

/// A part of a run in which no chunk is transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The image is opened, and the other side is checked.
    Prepare,
    /// The image is read to compute its digests.
    Hash,
    /// The cloud copies a drive.
    Copy,
    /// A drive is compared with the image.
    Compare,
    /// What was transferred is read back.
    Check,
}

/// Why a run waits, and for how long. Its `Display` is the line for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The HTTP status, if there was an HTTP answer.
    pub status: Option<u16>,
    /// Time until the next attempt.
    pub wait: Duration,
    /// Time until the run gives up, if nothing succeeds before; `None` while nothing has failed.
    pub gives_up_in: Option<Duration>,
    /// The reason alone, such as `502 (bad gateway)`.
    pub cause: String,
    line: String,
}

impl Waiting {
    /// The reason, without anything that changes from one attempt to the next.
    pub(crate) fn why(failure: &Failure) -> String {
        match failure {
            Failure::Refused(refusal) => refusal.status.to_string(),
            Failure::Connect(_)
            | Failure::NoServer(_)
            | Failure::Broken(_)
            | Failure::Stalled(_) => "outage".to_owned(),
            Failure::Barred(_) => "barred".to_owned(),
            Failure::Certificate(_) | Failure::NotApi(_) => "foreign".to_owned(),
            Failure::WrongLength(_) => "length".to_owned(),
        }
    }

    /// The wait after this failure of a request to `who`.
    pub(crate) fn after(
        failure: &Failure,
        who: &str,
        wait: Duration,
        gives_up_in: Duration,
    ) -> Self {
        let left = duration(to_the_minute(gives_up_in));
        let (mut status, asked) = (None, failure.retry_after());
        let cause = match failure {
            Failure::Refused(refusal) => format!("{}{}", refusal.status, meaning(refusal)),
            Failure::Connect(why) => format!("cannot connect: {}", innermost(why)),
            Failure::Broken(_) => "the connection broke".to_owned(),
            Failure::Stalled(_) => "no answer".to_owned(),
            failure => failure.to_string(),
        };
        let line = match failure {
            Failure::Refused(refusal) => {
                status = Some(refusal.status);
                let meaning = meaning(refusal);
                match asked {
                    Some(asked) if asked > Duration::from_secs(1) => format!(
                        "{} from {who}{meaning}, waiting {}",
                        refusal.status,
                        duration(asked)
                    ),
                    _ => format!(
                        "{} from {who}{meaning}, trying again for up to {left}",
                        refusal.status
                    ),
                }
            }
            Failure::Connect(_)
            | Failure::NoServer(_)
            | Failure::Broken(_)
            | Failure::Stalled(_) => {
                format!(
                    "{} does not answer: {}; giving up in {left}",
                    capital(who),
                    without_number(&failure.to_string())
                )
            }
            Failure::Certificate(_) | Failure::NotApi(_) => format!(
                "Something answers in place of {who}: {failure}; trying again for up to {left}"
            ),
            Failure::Barred(_) | Failure::WrongLength(_) => {
                format!("{failure}, from {who}: trying again for up to {left}")
            }
        };
        Self {
            status,
            wait,
            gives_up_in: Some(gives_up_in),
            cause,
            line,
        }
    }

    /// Nothing was received from `who` for this long.
    pub(crate) fn silent(who: &str, silence: Duration) -> Self {
        Self {
            status: None,
            wait: Duration::ZERO,
            gives_up_in: None,
            cause: "no answer yet".to_owned(),
            line: format!(
                "{} has sent nothing for {}, waiting",
                capital(who),
                duration(silence)
            ),
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// The last cause of a chain in lower case, without its error number.
fn innermost(chain: &str) -> String {
    let cause = chain.rsplit(": ").next().unwrap_or_default();
    let cause = without_number(cause);
    let mut chars = cause.chars();
    let first = chars.next().map(|c| c.to_lowercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

/// The text without the number of the system's error.
fn without_number(text: &str) -> String {
    match text.split_once(" (os error ") {
        Some((before, after)) => {
            let after = after.split_once(')').map_or("", |(_, after)| after);
            format!("{before}{after}")
        }
        None => text.to_owned(),
    }
}

/// The meaning of an error answer, if its status alone is not clear.
fn meaning(refusal: &Refusal) -> String {
    let words = match (refusal.status, refusal.error) {
        (300..=399, _) => refusal.message.as_str(),
        (409, _) => "the drive is busy",
        (500, _) => "internal error",
        (502, _) => "bad gateway",
        (503, _) => "not available",
        (504, _) => "gateway timeout",
        _ if refusal.is_page() => HTML_PAGE,
        _ => return String::new(),
    };
    format!(" ({words})")
}

/// A long time without its seconds, which mean nothing in an estimate.
fn to_the_minute(time: Duration) -> Duration {
    match time.as_secs() {
        0..600 => time,
        seconds => Duration::from_secs(seconds.saturating_add(30) / 60 * 60),
    }
}

/// The text with a capital letter at its start.
pub(crate) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

/// The progress of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Number of settled chunks without a gap from the first one on.
    pub chunks_in_order: u64,
    /// Number of settled chunks.
    pub done_chunks: u64,
    /// Bytes of the image that are settled: confirmed, or left out as zeros.
    pub done_bytes: u64,
    /// Bytes of the image, beyond [`done_bytes`](Self::done_bytes), to show as progress: an estimate
    /// of what requests in flight have moved. They are not confirmed, and may have to move again.
    /// The sum never decreases, and is complete only when everything is settled.
    pub in_flight_bytes: u64,
    /// Bytes of bodies sent or received, including those of failed attempts.
    pub wire_bytes: u64,
    /// Bytes of zeros that were left out.
    pub skipped_bytes: u64,
    /// Requests in flight.
    pub in_flight: usize,
    /// How many requests there may be now.
    pub workers: u32,
    /// Attempts beyond the first of each chunk.
    pub retries: u64,
}

/// How a chunk was encoded, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoded {
    /// When the compression began, since the start of the transfer.
    pub at: Duration,
    /// Its index.
    pub chunk: u64,
    /// The level; 0 if it was not compressed.
    pub level: u8,
    /// The level before rounding: for `auto`, a position on the controller's ladder, from 0.
    pub effort: f64,
    /// Number of chunks that waited to be sent at that moment.
    pub ready: usize,
    /// Requests in flight at that moment.
    pub in_flight: usize,
    /// Bytes of the chunk.
    pub raw_bytes: u64,
    /// Bytes of its bodies.
    pub body_bytes: u64,
    /// Processor time that it took.
    pub took: Duration,
    /// Why this level.
    pub reason: Reason,
}

/// Why a chunk has its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The controller chose it.
    Auto,
    /// The same level is used for all chunks.
    Fixed,
    /// It would not become smaller.
    Incompressible,
}

/// Receives events.
pub trait Monitor: Send {
    /// Receives an event. Called often, so it must not block.
    fn event(&mut self, event: &Event);
}

impl dyn Monitor + '_ {
    /// Reports something that the user may want to know, in one line.
    pub(crate) fn notice(&mut self, line: impl Into<Advice>) {
        self.event(&Event::Notice(line.into()));
    }

    /// Reports something that the user should check, in one line.
    pub(crate) fn warn(&mut self, line: impl Into<Advice>) {
        self.event(&Event::Warning(line.into()));
    }
}

/// A closure is a monitor.
impl<F: FnMut(&Event) + Send> Monitor for F {
    fn event(&mut self, event: &Event) {
        self(event);
    }
}

/// Ignores all events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn event(&mut self, _: &Event) {}
}
