//! What a transfer tells while it runs. The library reports, the terminal draws.

use std::fmt;
use std::time::Duration;

use crate::drive::DriveId;
use crate::failure::{Failure, HTML_PAGE, Refusal};

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The drive is known, and fit for the transfer.
    Drive {
        /// Which one.
        id: DriveId,
        /// Its size in bytes; of a drive made just now the size that was asked for.
        size: u64,
        /// Whether this transfer created it.
        is_new: bool,
    },
    /// The chunks begin to move.
    Started {
        /// How many there are to transfer, if that is known.
        chunks: Option<u64>,
        /// Bytes of each but the last.
        chunk_bytes: u64,
        /// Byte of the image that the transfer starts at.
        offset: u64,
        /// Bytes of all of them, if that is known.
        bytes: Option<u64>,
        /// Bytes of the image that need not be transferred, since an earlier run did that or
        /// they are the same on the other side: together with `bytes` the size of it all.
        earlier_bytes: u64,
    },
    /// A part of the run begins in which no chunk is transferred.
    Phase {
        /// What is done.
        phase: Phase,
        /// Bytes that it goes over, if that is known.
        bytes: Option<u64>,
    },
    /// How many bytes the last phase has done.
    PhaseProgress {
        /// Of those that it goes over.
        done_bytes: u64,
    },
    /// The run continues an earlier one.
    Resuming {
        /// Bytes of the image that the earlier run settled.
        done_bytes: u64,
        /// Bytes of the image, if that is known.
        size: Option<u64>,
        /// The same in a line for a log.
        line: String,
    },
    /// The end of an image was found whose size nobody knew.
    Ended {
        /// How many chunks there are to transfer.
        chunks: u64,
        /// Bytes of all of them.
        bytes: u64,
    },
    /// How far it is now.
    Progress(Progress),
    /// A chunk was compressed, or not.
    Encoded(Encoded),
    /// The endpoint refused requests for their size. Comes when the last chunk has moved, or
    /// no more will.
    BodyRefused {
        /// The smallest body in bytes that was refused.
        refused_bytes: u64,
        /// The largest that was sent since.
        accepted_bytes: u64,
    },
    /// The user may want to know this: one line.
    Notice(String),
    /// The user should look at this: something is not as it should be, or costs more
    /// than it had to. One line.
    Warning(String),
    /// The run waits, since something failed; not told of each attempt.
    Waiting(Waiting),
    /// What was waited for, and told of, is over.
    WaitOver {
        /// Who answers again, as "the endpoint".
        who: String,
        /// How long that took.
        time: Duration,
    },
}

/// A part of a run in which no chunk is transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The image is opened, and the other side looked at.
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

/// Why a run waits, and for how long. Its `Display` is the line to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The HTTP status that was answered, if it was an answer of HTTP.
    pub status: Option<u16>,
    /// How long it is to the next attempt.
    pub wait: Duration,
    /// How long it is until the run gives up, if nothing succeeds until then; `None`
    /// while nothing failed yet.
    pub gives_up_in: Option<Duration>,
    /// The reason alone, such as `502 (bad gateway)`.
    pub cause: String,
    line: String,
}

impl Waiting {
    /// Why, without anything that changes from one attempt to the next.
    pub(crate) fn why(failure: &Failure) -> String {
        match failure {
            Failure::Refused(refusal) => refusal.status.to_string(),
            Failure::Connect(_) | Failure::Broken(_) | Failure::Stalled(_) => "outage".to_owned(),
            Failure::Barred(_) => "barred".to_owned(),
            Failure::Certificate(_) | Failure::NotApi(_) => "foreign".to_owned(),
            Failure::WrongLength(_) => "length".to_owned(),
        }
    }

    /// After this failure of a request to `who`.
    pub(crate) fn after(
        failure: &Failure,
        who: &str,
        wait: Duration,
        gives_up_in: Duration,
    ) -> Self {
        let left = span(gives_up_in);
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
                        span(asked)
                    ),
                    _ => format!(
                        "{} from {who}{meaning}, trying again for up to {left}",
                        refusal.status
                    ),
                }
            }
            Failure::Connect(_) | Failure::Broken(_) | Failure::Stalled(_) => format!(
                "{} does not answer, waiting; giving up in {left} ({failure})",
                capital(who)
            ),
            Failure::Certificate(_) | Failure::NotApi(_) => format!(
                "Something answers in place of {who} ({failure}), trying again for up to {left}"
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

    /// Nothing came from `who` for so long.
    pub(crate) fn silent(who: &str, silence: Duration) -> Self {
        Self {
            status: None,
            wait: Duration::ZERO,
            gives_up_in: None,
            cause: "no answer yet".to_owned(),
            line: format!(
                "{} does not answer, waiting (nothing came for {})",
                capital(who),
                span(silence)
            ),
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// The last cause of a chain in lower case, without the number that the system has for it.
fn innermost(chain: &str) -> String {
    let cause = chain.rsplit(": ").next().unwrap_or_default();
    let cause = cause.split(" (os error").next().unwrap_or_default();
    let mut chars = cause.chars();
    let first = chars.next().map(|c| c.to_lowercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

/// What an error answer means, where its status does not tell all.
fn meaning(refusal: &Refusal) -> String {
    let words = match (refusal.status, refusal.error) {
        (300..=399, _) => refusal.message.as_str(),
        (409, _) => "the drive is busy",
        (500, _) => "internal error",
        (502, _) => "bad gateway",
        (503, _) => "not available",
        (504, _) => "gateway timeout",
        _ if refusal.message.starts_with(HTML_PAGE) => HTML_PAGE,
        _ => return String::new(),
    };
    format!(" ({words})")
}

/// A length of time for people: exact where it is short.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs() + u64::from(time.subsec_millis() >= 500);
    match seconds {
        0..600 => format!("{seconds} s"),
        600..7200 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h", (seconds + 1800) / 3600),
    }
}

/// The text with a capital.
pub(crate) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Chunks settled without a gap from the first one on.
    pub chunks_in_order: u64,
    /// Chunks that are settled.
    pub done_chunks: u64,
    /// Bytes of the image that are settled: confirmed, or left out as zero.
    pub done_bytes: u64,
    /// Bytes of bodies sent or received, those of failed attempts included.
    pub wire_bytes: u64,
    /// Bytes of zeros that were left out.
    pub skipped_bytes: u64,
    /// Requests in flight.
    pub in_flight: usize,
    /// How many there may be now.
    pub workers: u32,
    /// Attempts beyond the first one of each chunk.
    pub retries: u64,
}

/// How a chunk was encoded, and why so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoded {
    /// When a compressor took it up, since the transfer began.
    pub at: Duration,
    /// Its index.
    pub chunk: u64,
    /// The level; 0 if it was left as it is.
    pub level: u8,
    /// What the level would be if it were no whole number: for `auto` a place on the
    /// controller's ladder, from 0.
    pub effort: f64,
    /// Chunks that waited to be sent at that moment.
    pub ready: usize,
    /// Requests in flight at that moment.
    pub in_flight: usize,
    /// Bytes of the chunk.
    pub raw_bytes: u64,
    /// Bytes of its bodies.
    pub body_bytes: u64,
    /// Time of a processor that it took.
    pub took: Duration,
    /// Why this level.
    pub reason: Reason,
}

/// Why a chunk has its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The controller chose it.
    Auto,
    /// It is the level of all chunks.
    Fixed,
    /// It would not get smaller.
    Incompressible,
}

/// Somebody who wants to know.
pub trait Monitor: Send {
    /// Something happened. Called often: must not block.
    fn event(&mut self, event: &Event);
}

/// A closure is a monitor.
impl<F: FnMut(&Event) + Send> Monitor for F {
    fn event(&mut self, event: &Event) {
        self(event);
    }
}

/// Nobody wants to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn event(&mut self, _: &Event) {}
}
