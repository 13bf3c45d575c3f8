//! Fills a drive from another one (docs/dev/reference.md, 5.1), in the background.
//!
//! The bytes of the destination beyond the source's data stay unchanged. The task is stored
//! (`fill.rs`) until it is done: after a crash or a stop, the next start resumes it, from what is
//! safely on the disk for a plain copy, otherwise from the beginning. Until then the destination
//! shows as being imaged, and cannot be read. After a failed imaging it has the status `inactive`,
//! until something is written to it.
//!
//! Both drives stay claimed until the end is stored, so nobody can write to them while the next
//! start would still resume the imaging.
//!
//! Imagings take turns (`work.rs`): each user has the same share, in which the oldest is first. An
//! imaging shows as `queued` until its first turn. The owner of the destination can cancel it, or
//! destroy the drive.

mod filling;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::spawn_blocking;

use self::filling::{Filling, Task};
use super::budget::Share;
use super::fill::{Fill, Order, Packing};
use super::hosted::{Hosted, Lease, Pass, Progress, Purpose, Turn};
use super::metrics::Metrics;
use super::store::Store;
use super::work::{Turns, Worked, in_turns_until};
use openhosting_tenancy::Refusal;

/// Maximum imagings that work at the same time; others wait for their turn. The number is a choice:
/// each may keep a disk and a processor busy for hours, beside the requests of all users.
const AT_ONCE: usize = 2;
/// Maximum sleep between two checks whether the server stops.
const NAP: Duration = Duration::from_millis(100);

/// How long to wait before another attempt to store the end of an imaging. An attempt fails if the
/// disk is full or broken, so soon after it another one would fail as well.
const RETRY: Duration = Duration::from_secs(5);

/// All imagings of a server.
#[derive(Debug)]
pub(super) struct Imagings {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    turns: Arc<Turns>,
    /// Number of imagings, including those that wait.
    under_way: watch::Sender<usize>,
    is_stopping: watch::Sender<bool>,
    /// Maximum bytes of the source per second, if a fault plan limits it.
    bytes_per_s: Option<u64>,
}

impl Imagings {
    pub(super) fn new(
        store: Arc<Store>,
        metrics: Arc<Metrics>,
        bytes_per_s: Option<u64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            metrics,
            turns: Turns::new(AT_ONCE),
            under_way: watch::Sender::new(0),
            is_stopping: watch::Sender::new(false),
            bytes_per_s,
        })
    }

    fn is_stopping(&self) -> bool {
        *self.is_stopping.borrow()
    }

    /// Waits for imagings to end. Those that do not end in time are stopped, and the next start
    /// resumes them.
    pub(super) async fn stop(&self, patience: Duration) {
        let all = async || {
            // The sender exists as long as `self`.
            let _ = self.under_way.subscribe().wait_for(|&n| n == 0).await;
        };
        if tokio::time::timeout(patience, all()).await.is_err() {
            self.is_stopping.send_replace(true);
            all().await;
        }
    }

    fn count(&self) -> UnderWay<'_> {
        self.under_way.send_modify(|n| *n += 1);
        UnderWay(self)
    }
}

/// Counts an imaging until it is dropped.
struct UnderWay<'a>(&'a Imagings);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|n| *n -= 1);
    }
}

/// An imaging. It holds both drives until it is dropped.
#[derive(Debug)]
pub(super) struct Imaging {
    source: Pass,
    lease: Arc<Lease>,
    destination: Pass,
    progress: Arc<Progress>,
    order: Order,
}

impl Imaging {
    /// Claims both drives.
    pub(super) fn claim(
        source: &Arc<Hosted>,
        destination: &Arc<Hosted>,
        order: Order,
    ) -> Result<Self, Refusal> {
        if destination.id == source.id {
            return Err(Refusal::usage("A drive cannot be its own source"));
        }
        // From here on, the size of the source does not change.
        let lease = Lease::of(destination.with_metadata(|metadata| metadata.user.clone()));
        let source = source.pass(Purpose::ImageFrom(Arc::clone(&lease)))?;
        let progress = Arc::new(Progress::new(source.drive.id, source.drive.size()));
        progress.reach(order.offset);
        let destination = destination.pass(Purpose::ImageInto(Arc::clone(&progress)))?;
        let (size, room) = (source.drive.size(), destination.drive.size());
        if order.packing == Packing::Copy && size > room {
            return Err(Refusal::usage("The source is larger than the drive"));
        }
        if order.offset > size {
            return Err(Refusal::system("The source is shorter than it was"));
        }
        Ok(Self {
            source,
            lease,
            destination,
            progress,
            order,
        })
    }
}

impl Imagings {
    /// Claims both drives and stores the task; the rest happens in the background. Blocks on the
    /// disk.
    pub(super) fn begin(
        &self,
        turn: &Turn,
        source: &Arc<Hosted>,
        order: Order,
    ) -> Result<Imaging, Refusal> {
        let imaging = Imaging::claim(source, turn.drive(), order)?;
        self.store.store_order(turn, order)?;
        Ok(imaging)
    }

    /// Resumes what a crash or a stop left. Call it before the first request is served, so that no
    /// request can use these drives first.
    pub(super) fn resume_stored(self: &Arc<Self>) {
        for drive in self.store.select(|_| true) {
            let Fill::Imaging(order) = drive.fill() else {
                continue;
            };
            let source = self.store.any(order.source);
            let claimed = source.and_then(|source| Imaging::claim(&source, &drive, order));
            match claimed {
                Ok(imaging) => {
                    tracing::info!(id = %drive.id, %order, "Resumes an imaging");
                    tokio::spawn(Arc::clone(self).run(imaging, None));
                }
                Err(refusal) => {
                    tracing::warn!(id = %drive.id, %order, %refusal, "Cannot resume an imaging");
                    self.fail(&drive, order);
                }
            }
        }
    }

    /// Ends an imaging that cannot be resumed. Its destination is claimed until then.
    fn fail(self: &Arc<Self>, drive: &Arc<Hosted>, order: Order) {
        let progress = Arc::new(Progress::new(order.source, 0));
        match drive.pass(Purpose::ImageInto(progress)) {
            Ok(pass) => {
                let this = Arc::clone(self);
                drop(spawn_blocking(move || this.end(&pass.drive, false)));
            }
            Err(refusal) => {
                tracing::error!(id = %drive.id, %refusal, "Cannot end an imaging, the next start does");
            }
        }
    }

    /// Carries out an imaging when it gets turns. The share of the budget is returned at its end.
    pub(super) async fn run(self: Arc<Self>, imaging: Imaging, _share: Option<Share>) {
        let _under_way = self.count();
        let result = self.fill(&imaging).await;
        let (this, span) = (Arc::clone(&self), tracing::Span::current());
        let work = spawn_blocking(move || span.in_scope(|| this.finish(&imaging, result)));
        if work.await.is_err() {
            tracing::error!("An imaging broke off");
        }
    }

    /// Fills the destination, and returns the number of bytes written.
    async fn fill(self: &Arc<Self>, imaging: &Imaging) -> io::Result<u64> {
        let mut filling = Filling::new(self.task(imaging));
        let started = Arc::clone(&imaging.progress);
        let step = move || {
            started.start();
            Ok(filling.step().transpose())
        };
        let destination = &imaging.destination.drive;
        let user = destination.with_metadata(|metadata| Arc::from(&*metadata.user));
        let job = self.turns.join(&user);
        match in_turns_until(job, self.halted(imaging), step).await {
            Ok(Worked::Done(result)) => result,
            Ok(Worked::Halted(())) => self.check(&imaging.progress, &imaging.lease).map(|()| 0),
            Err(refusal) => Err(io::Error::other(refusal.to_string())),
        }
    }

    /// Waits until an imaging that waits for its turn has to end.
    async fn halted(&self, imaging: &Imaging) {
        let mut is_stopping = self.is_stopping.subscribe();
        tokio::select! {
            _ = is_stopping.wait_for(|is_stopping| *is_stopping) => {}
            () = imaging.progress.cancelled() => {}
            () = imaging.lease.ended() => {}
        }
    }

    /// Fails if an imaging has to stop.
    fn check(&self, progress: &Progress, lease: &Lease) -> io::Result<()> {
        let why = if progress.is_cancelled() {
            "it was cancelled"
        } else if lease.has_ended() {
            "the source may not be read any more"
        } else if self.is_stopping() {
            "the server stops"
        } else {
            return Ok(());
        };
        Err(io::Error::other(why))
    }

    fn task(self: &Arc<Self>, imaging: &Imaging) -> Task {
        let (source, destination) = (&imaging.source.drive, &imaging.destination.drive);
        let (store, order, kept) = (
            Arc::clone(&self.store),
            imaging.order,
            Arc::clone(destination),
        );
        let keep = move |offset| {
            kept.file.sync_data()?;
            let turn = kept.turn_blocking();
            let stored = turn.map(|turn| store.store_order(&turn, Order { offset, ..order }));
            if let Ok(Err(error)) = stored {
                // The stored progress is still valid, although the next start would repeat more
                // than necessary.
                tracing::warn!(id = %kept.id, %error, "Cannot store how far an imaging is");
            }
            Ok(())
        };
        let (this, lease) = (Arc::clone(self), Arc::clone(&imaging.lease));
        let progress = Arc::clone(&imaging.progress);
        let check = move || this.check(&progress, &lease);
        Task {
            source: Arc::clone(source),
            destination: Arc::clone(destination),
            order,
            progress: Arc::clone(&imaging.progress),
            metrics: Arc::clone(&self.metrics),
            bytes_per_s: self.bytes_per_s,
            check: Box::new(check),
            keep: Box::new(keep),
        }
    }

    /// Stores the outcome of an imaging.
    fn finish(&self, imaging: &Imaging, result: io::Result<u64>) {
        let (source, destination) = (&imaging.source.drive, &imaging.destination.drive);
        // What is reported as done must survive a loss of power, too.
        let result = result.and_then(|bytes| destination.file.sync_data().map(|()| bytes));
        // If the right to read has ended, the bytes read since are arbitrary.
        let result = match imaging.lease.has_ended() {
            true => result.and_then(|_| self.check(&imaging.progress, &imaging.lease).map(|()| 0)),
            false => result,
        };
        match &result {
            Ok(bytes) => {
                source.count_read(source.size());
                destination.count_write(*bytes);
            }
            Err(_) if imaging.progress.is_cancelled() => {
                tracing::info!(id = %destination.id, "An imaging was cancelled");
            }
            Err(_) if self.is_stopping() => {
                tracing::info!(id = %destination.id, "An imaging waits for the next start");
                return;
            }
            Err(error) => tracing::warn!(id = %destination.id, %error, "Imaging failed"),
        }
        self.end(destination, result.is_ok());
    }

    /// Stores the end of an imaging. The caller holds the drives until then. A full disk is no
    /// reason to fail (`fill.rs`). While a broken disk refuses, the imaging has not ended.
    fn end(&self, destination: &Arc<Hosted>, is_complete: bool) {
        loop {
            let Ok(turn) = destination.turn_blocking() else {
                return;
            };
            let stored = match is_complete {
                true => self.store.mark_whole(&turn),
                false => self.store.mark_incomplete(&turn),
            };
            drop(turn);
            match stored {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(id = %destination.id, %error, "Cannot store the end of an imaging, trying again");
                }
            }
            let tried = Instant::now();
            while tried.elapsed() < RETRY {
                if self.is_stopping() {
                    return;
                }
                std::thread::sleep(NAP);
            }
        }
    }
}
