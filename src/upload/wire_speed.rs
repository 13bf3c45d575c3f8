//! Measures the speed of the wire before the first chunk is compressed. If the wire is as fast as
//! the image can be read, everything that is compressed before this is known is compressed in vain,
//! and a small transfer would consist of nothing else.

use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::pace::Pace;
use crate::api::Client;
use crate::chunk::{Encoding, Part};
use crate::drive::DriveId;
use crate::driver::blocking::blocking;
use crate::error::Result;
use crate::image::Image;
use crate::plan::Plan;

/// With fewer bytes to send, including holes, two more requests are not worthwhile.
pub(super) const WORTH_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Bytes of the first body. At 10 Mbit/s it takes 50 ms, of which gzip would have saved 30.
const FIRST_BYTES: u64 = 64 * 1024;
/// Bytes of the second body. It is more informative if the first one had to wait for its
/// connection.
const SECOND_BYTES: u64 = 512 * 1024;
/// The second body is sent only if the first took at most this long, including a new connection on
/// a busy machine. On a slower wire, the transfer starts at once.
const SOON: Duration = Duration::from_millis(20);
/// A fast wire transfers the second body within this time. If it took longer, it is sent again and
/// the shortest time counts, because on a busy machine something else may have delayed it.
const FAST: Duration = Duration::from_millis(2);
/// Maximum number of attempts.
const TRIES: usize = 3;
/// Maximum wait for a measurement.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A write that may still be in flight. It must end before the transfer does, because the endpoint
/// could otherwise write its bytes over later ones.
#[derive(Debug, Default)]
pub(super) struct Sounding(JoinSet<bool>);

impl Sounding {
    /// Waits for its end, which is soon.
    pub(super) async fn end(&mut self) {
        while self.0.join_next().await.is_some() {}
    }
}

/// Measures the speed of the wire to a drive.
pub(super) struct WireProbe<'a> {
    pub(super) client: &'a Client,
    pub(super) drive: DriveId,
    /// Receives the measurements.
    pub(super) pace: &'a Pace,
    /// Maximum bytes of one body.
    pub(super) body_bytes_max: u64,
}

impl WireProbe<'_> {
    /// Writes the first data of the image uncompressed, and reports to `pace` how long that took.
    /// The chunk that contains it is sent nevertheless, with the same bytes. Failures of these
    /// requests are ignored, because the transfer will encounter them again. As soon as the wire is
    /// seen not to be fast, the transfer begins: on a long link, the answer takes round trips.
    ///
    /// # Errors
    /// [`ErrorKind::Image`](crate::ErrorKind::Image) if the image cannot be read.
    pub(super) async fn sound(
        self,
        image: Image,
        plan: &Plan,
        todo: &[Range<u64>],
    ) -> Result<(Image, Sounding)> {
        let Self {
            client,
            drive,
            pace,
            body_bytes_max,
        } = self;
        let bytes = plan.bytes_in_all(todo);
        if bytes < WORTH_BYTES_MIN || pace.is_fixed() || body_bytes_max < FIRST_BYTES {
            return Ok((image, Sounding::default()));
        }
        let todo: Vec<_> = todo.iter().map(|range| plan.bytes_of(range)).collect();
        let (image, data) = blocking(move || {
            let data = first_data(&image, &todo)?;
            Ok((image, data))
        })
        .await?;
        if let Some((offset, bytes)) = data {
            let most = usize::try_from(body_bytes_max).unwrap_or(usize::MAX);
            let bytes = bytes.slice(..bytes.len().min(most));
            return Ok((image, send(client, drive, offset, bytes, pace).await));
        }
        Ok((image, Sounding::default()))
    }
}

/// The first data to be sent, as many bytes as requested, and their offset. `None` for an image
/// that can only be read in order, because its bytes could not be read again.
fn first_data(image: &Image, todo: &[Range<u64>]) -> Result<Option<(u64, Bytes)>> {
    let Some(disk) = image.disk() else {
        return Ok(None);
    };
    for bytes in todo {
        let mut from = bytes.start;
        // Extents that are too short for a measurement are skipped.
        while let Some(extent) = disk.data_after(from)?
            && extent.start < bytes.end
        {
            let start = extent.start.max(from);
            let len = (extent.end.min(bytes.end) - start).min(SECOND_BYTES);
            if len >= FIRST_BYTES {
                let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
                disk.read_at(&mut data, start)?;
                return Ok(Some((start, Bytes::from(data))));
            }
            from = extent.end.min(bytes.end);
        }
    }
    Ok(None)
}

async fn send(client: &Client, drive: DriveId, offset: u64, bytes: Bytes, pace: &Pace) -> Sounding {
    let part_of = |body: Bytes| Part {
        offset,
        len: body.len() as u64,
        body,
        encoding: Encoding::Identity,
    };
    let first = part_of(bytes.slice(..FIRST_BYTES as usize));
    let (writer, part, began) = (client.clone(), first.clone(), Instant::now());
    let mut sounding = Sounding::default();
    sounding.0.spawn(async move {
        let written = timeout(WAIT_MAX, writer.write(drive, part)).await;
        matches!(written, Ok(Ok(())))
    });
    match timeout(SOON, sounding.0.join_next()).await {
        Ok(Some(Ok(true))) => pace.sounded(first.len, began.elapsed()),
        // It was in flight for at least this long.
        Err(_) => {
            pace.sounded(first.len, SOON);
            return sounding;
        }
        _ => return sounding,
    }
    let second = part_of(bytes);
    if let Ok(Some(took)) = timeout(WAIT_MAX, soonest(client, drive, &second, TRIES)).await {
        pace.sounded(second.len, took);
    }
    sounding
}

/// The shortest time for writing this in at most `tries` attempts; `None` if one failed.
async fn soonest(client: &Client, drive: DriveId, part: &Part, tries: usize) -> Option<Duration> {
    let mut least = Duration::MAX;
    for _ in 0..tries {
        let began = Instant::now();
        client.write(drive, part.clone()).await.ok()?;
        let took = began.elapsed();
        least = least.min(took);
        if took <= FAST || took > SOON {
            break;
        }
    }
    Some(least)
}
