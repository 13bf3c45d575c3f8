//! Distinguishes a body that arrives slowly from one that does not arrive: by a minimum of bytes
//! per time, not by a total time.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::{Instant, timeout};

use super::cause::{Contact, no_answer};
use super::route::Route;
use crate::failure::Failure;

/// A body hangs if it brings fewer bytes per second than this during one `--stall-timeout`. If 16
/// requests share a modem of 2 KB/s, each gets four times as much. No more than one TCP segment is
/// demanded, because that is how bytes arrive on a slow link.
const HANG_BYTES_PER_S: u64 = 32;
const HANG_BYTES_MAX: u64 = 1024;

/// A body that is not hung can still trickle, so that a chunk would take days. Over a longer time,
/// more bytes must arrive: enough of them to end an outage. On a link of 256 kbit/s that 64 requests
/// share, each gets nine times as much on average, and on that modem twice as much.
const TRICKLE_STALLS: u32 = 10;
const TRICKLE_BYTES_PER_S: u64 = 64;
/// Fewer bytes than this are no progress of a transfer, so what a trickle brought before it was
/// aborted does not end an outage.
pub(crate) const TRICKLE_BYTES_MAX: u64 = 16 * 1024;

/// What has to arrive of a body within some time, so that it does not count as stalled.
#[derive(Debug)]
struct Floor {
    time: Duration,
    bytes: u64,
    /// Time spent waiting, and bytes received, since the minimum was last reached.
    waited: Duration,
    came: u64,
}

impl Floor {
    fn of(time: Duration, bytes_per_s: u64, bytes_max: u64) -> Self {
        let bytes = bytes_per_s.saturating_mul(time.as_secs());
        Self {
            time,
            bytes: bytes.clamp(1, bytes_max),
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// The time in which the rest of the minimum has to arrive.
    fn left(&self) -> Duration {
        self.time.saturating_sub(self.waited)
    }

    fn add(&mut self, waited: Duration, came: u64) {
        self.waited = self.waited.saturating_add(waited);
        self.came = self.came.saturating_add(came);
        if self.came >= self.bytes {
            (self.waited, self.came) = (Duration::ZERO, 0);
        }
    }
}

/// The body of one answer. Only the time spent in [`next_part`](Self::next_part) counts: a caller
/// may take as long as it needs between two parts.
#[derive(Debug)]
pub struct Flow {
    hang: Floor,
    trickle: Floor,
}

impl Flow {
    /// A body of which at least the minimum has to arrive within each `stall`, and a larger one
    /// within ten of them.
    pub(super) fn of(stall: Duration) -> Self {
        let longer = stall.saturating_mul(TRICKLE_STALLS);
        Self {
            hang: Floor::of(stall, HANG_BYTES_PER_S, HANG_BYTES_MAX),
            trickle: Floor::of(longer, TRICKLE_BYTES_PER_S, TRICKLE_BYTES_MAX),
        }
    }

    /// The next part of the body; `None` at its end.
    ///
    /// # Errors
    /// [`Failure::Stalled`] if less than a minimum arrived in its time, or another [`Failure`] if
    /// the connection breaks.
    pub async fn next_part(&mut self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        let began = Instant::now();
        let first = match self.trickle.left() < self.hang.left() {
            true => &self.trickle,
            false => &self.hang,
        };
        let part = match timeout(first.left(), response.chunk()).await {
            Ok(Ok(part)) => part,
            Ok(Err(error)) => return Err(no_answer(error, &Route::default(), Contact::Again)),
            Err(_) => return Err(Failure::Stalled(first.time)),
        };
        let (waited, came) = (began.elapsed(), part.as_ref().map_or(0, Bytes::len) as u64);
        self.hang.add(waited, came);
        self.trickle.add(waited, came);
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// An answer of `parts` parts of `bytes` bytes each, each after a wait.
    fn answer(parts: usize, bytes: usize, wait: Duration) -> Response {
        let (to, body) = async_channel::bounded(1);
        tokio::spawn(async move {
            for _ in 0..parts {
                tokio::time::sleep(wait).await;
                let part = Bytes::from(vec![7; bytes]);
                if to.send(Ok::<_, std::io::Error>(part)).await.is_err() {
                    return;
                }
            }
        });
        let upload = crate::api::Upload::Stream {
            len: (parts * bytes) as u64,
            parts: body,
        };
        let progress = super::super::patience::Progress::of(upload.len());
        let body = super::super::body::UploadBody::new(upload, progress, Default::default());
        hyper::http::Response::new(reqwest::Body::wrap(body)).into()
    }

    /// Number of bytes received, with a wait after each part.
    async fn read(
        mut response: Response,
        stall: Duration,
        pause: Duration,
    ) -> Result<u64, Failure> {
        let (mut flow, mut came) = (Flow::of(stall), 0);
        while let Some(part) = flow.next_part(&mut response).await? {
            came += part.len() as u64;
            tokio::time::sleep(pause).await;
        }
        Ok(came)
    }

    #[tokio::test(start_paused = true)]
    async fn a_drip_is_a_stall() {
        let drip = Duration::from_millis(100);
        for (stall, wait) in [(30 * S, drip), (2 * S, drip), (30 * S, S), (60 * S, 20 * S)] {
            let began = Instant::now();
            let read = read(answer(100_000, 1, wait), stall, Duration::ZERO).await;
            assert_eq!(read, Err(Failure::Stalled(stall)));
            assert_eq!(began.elapsed().as_secs(), stall.as_secs());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_a_stall_after_ten_times_as_long() {
        let ms = Duration::from_millis;
        for (stall, bytes, wait) in [
            (30 * S, 4, ms(100)),
            (30 * S, 53, S),
            (2 * S, 5, ms(100)),
            (60 * S, 1024, 59 * S),
        ] {
            let began = Instant::now();
            let read = read(answer(100_000, bytes, wait), stall, Duration::ZERO).await;
            assert_eq!(read, Err(Failure::Stalled(10 * stall)));
            assert_eq!(began.elapsed().as_secs(), 10 * stall.as_secs());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_link_is_not_a_stall() {
        // A modem of 2 KB/s that 16 requests share, evenly or one segment at a time; one that
        // delivers segments just before the timeout; and a link of 256 kbit/s that serves each of 64
        // requests for a second, and then the others.
        let ms = Duration::from_millis;
        for (bytes, wait) in [
            (13, ms(100)),
            (1460, ms(11_400)),
            (2 * 1460, ms(29_900)),
            (32_000, ms(29_900)),
        ] {
            let all = read(answer(500, bytes, wait), 30 * S, Duration::ZERO).await;
            assert_eq!(all, Ok(500 * bytes as u64));
        }
        // A body that is shorter than the minimum does not stall.
        let short = read(answer(3, 5, 5 * S), 30 * S, Duration::ZERO).await;
        assert_eq!(short, Ok(15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_caller_is_not_a_stall() {
        let all = read(answer(100, 10, Duration::ZERO), 2 * S, 5 * S).await;
        assert_eq!(all, Ok(1000));
    }
}
