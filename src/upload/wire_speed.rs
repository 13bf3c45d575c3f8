//! How fast the wire is, found out before the first chunk is compressed: where it
//! takes bytes as fast as they can be read, whatever is compressed until that is
//! seen is compressed in vain, and a transfer of little data is nothing else.

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

/// Less than this in bytes, holes included, is not worth two more requests.
pub(super) const WORTH_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Bytes of the first body. At 10 Mbit/s it takes 50 ms, where gzip would have
/// saved 30.
const FIRST_BYTES: u64 = 64 * 1024;
/// Bytes of the second body, which tells more, where the first was no sooner there
/// than its connection.
const SECOND_BYTES: u64 = 512 * 1024;
/// The second one is for a wire that has the first within this time, a new connection
/// and a busy machine included. For another wire nobody waits any longer.
const SOON: Duration = Duration::from_millis(20);
/// Within this time a fast wire has the second one. If it was later, it is sent again and
/// the soonest counts: on a busy machine something else was in the way.
const FAST: Duration = Duration::from_millis(2);
/// So often in all.
const TRIES: usize = 3;
/// Longer than this nobody waits for a guess.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A write that may still be on its way. It is to be over before the transfer is: until
/// then the endpoint could write its bytes over later ones.
#[derive(Debug, Default)]
pub(super) struct Sounding(JoinSet<bool>);

impl Sounding {
    /// Waits for its end, which comes soon.
    pub(super) async fn end(&mut self) {
        while self.0.join_next().await.is_some() {}
    }
}

/// Finds out how fast the wire to a drive is.
pub(super) struct WireProbe<'a> {
    pub(super) client: &'a Client,
    pub(super) drive: DriveId,
    /// What learns from it.
    pub(super) pace: &'a Pace,
    /// Most bytes of one body.
    pub(super) body_bytes_max: u64,
}

impl WireProbe<'_> {
    /// Writes the first data of the image as it is, and tells `pace` how long that took.
    /// The chunk that it belongs to is sent all the same, with the same bytes. Nothing
    /// that goes wrong with the requests counts: it will go wrong again. Once the wire is seen
    /// not to be fast, the transfer begins at once: on a long link the answer takes round trips.
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
        let bytes: u64 = todo.iter().map(|range| plan.bytes_in(range)).sum();
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

/// The first bytes that are to be sent and are data, as many as are wanted, and where
/// they are. `None` of an image that can be read in order only: there they are gone
/// once they are read.
fn first_data(image: &Image, todo: &[Range<u64>]) -> Result<Option<(u64, Bytes)>> {
    let Some(disk) = image.disk() else {
        return Ok(None);
    };
    for bytes in todo {
        let mut from = bytes.start;
        // Extents that are too short to tell anything are passed over.
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
        // It was on its way for this long at least.
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

/// The least time that it took to write this, of so many tries at most; `None` if one
/// failed.
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
