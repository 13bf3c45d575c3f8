//! Distinguishes a body that arrives slowly from one that does not arrive: by a minimum of bytes
//! per time, not by a total time.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::{Instant, timeout};

use super::cause::{Contact, no_answer};
use super::route::Route;
use crate::failure::Failure;

/// Fewer bytes per second do not count as progress. If 16 requests share a modem of 2 KB/s, each
/// gets four times as much.
const FLOOR_BYTES_PER_S: u64 = 32;
/// Maximum bytes to demand at a time: one TCP segment, because that is how bytes arrive on a slow
/// link.
const FLOOR_BYTES_MAX: u64 = 1024;

/// The body of one answer. Only the time spent in [`next_part`](Self::next_part) counts: a caller
/// may take as long as it needs between two parts.
#[derive(Debug)]
pub struct Flow {
    stall: Duration,
    floor: u64,
    /// Time spent waiting, and bytes received, since the minimum was last reached.
    waited: Duration,
    came: u64,
}

impl Flow {
    /// A body of which at least the minimum has to arrive within each `stall`.
    pub(super) fn of(stall: Duration) -> Self {
        let floor = FLOOR_BYTES_PER_S.saturating_mul(stall.as_secs());
        Self {
            stall,
            floor: floor.clamp(1, FLOOR_BYTES_MAX),
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// The next part of the body; `None` at its end.
    ///
    /// # Errors
    /// [`Failure::Stalled`] if less than the minimum arrived in time, or another [`Failure`] if the
    /// connection breaks.
    pub async fn next_part(&mut self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        let began = Instant::now();
        let left = self.stall.saturating_sub(self.waited);
        let part = match timeout(left, response.chunk()).await {
            Ok(Ok(part)) => part,
            Ok(Err(error)) => return Err(no_answer(error, &Route::default(), Contact::Again)),
            Err(_) => return Err(Failure::Stalled(self.stall)),
        };
        self.waited = self.waited.saturating_add(began.elapsed());
        let came = part.as_ref().map_or(0, |part| part.len() as u64);
        self.came = self.came.saturating_add(came);
        if self.came >= self.floor {
            (self.waited, self.came) = (Duration::ZERO, 0);
        }
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
    async fn a_slow_link_is_not_a_stall() {
        // A modem of 2 KB/s that 16 requests share, evenly or one segment at a time; and one that
        // delivers a segment just before the timeout.
        let ms = Duration::from_millis;
        for (bytes, wait) in [(13, ms(100)), (1460, ms(11_400)), (1460, ms(29_900))] {
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
