//! Processor time.

use std::time::Duration;

/// Processor time of this process, all threads together. If the system does not report it, the time
/// since the first call.
pub fn process_time() -> Duration {
    process()
}

/// Processor time of this thread. If the system does not report it, the time since the process
/// first called this, so that differences include waiting.
pub fn thread_time() -> Duration {
    thread()
}

#[cfg(unix)]
use unix::{process, thread};

#[cfg(unix)]
mod unix {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    pub(super) fn process() -> Duration {
        of(ClockId::ProcessCPUTime)
    }

    pub(super) fn thread() -> Duration {
        of(ClockId::ThreadCPUTime)
    }

    fn of(clock: ClockId) -> Duration {
        let time = clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        Duration::from_secs(seconds)
            + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or_default())
    }
}

#[cfg(not(unix))]
use elapsed as process;
#[cfg(not(unix))]
use elapsed as thread;

#[cfg(not(unix))]
fn elapsed() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;
    static FIRST: OnceLock<Instant> = OnceLock::new();
    FIRST.get_or_init(Instant::now).elapsed()
}
