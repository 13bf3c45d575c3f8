//! Ends the whole run when one test hangs, and prints its name.
//!
//! libtest would wait for ever. A test that hangs would only be noticed as a CI job that was killed
//! after an hour, without the name of the test.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// No test takes longer than this, not even on a machine that is many times slower than ours: the
/// longest takes a minute. `OH_TEST_LIMIT` (seconds) changes it, for long runs by hand.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Far longer than anything that a test waits for.
const PATIENCE: Duration = Duration::from_secs(100);

/// The tests that are running, and when they started.
static RUNNING: Mutex<BTreeMap<u64, (String, Instant)>> = Mutex::new(BTreeMap::new());

/// A test that is running until this is dropped.
pub struct Watched(u64);

impl Watched {
    /// Watches the test of the current thread.
    pub fn this_test() -> Self {
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        let mut running = RUNNING.lock().unwrap();
        if running.is_empty() {
            std::thread::spawn(watch);
        }
        let number = running.last_key_value().map_or(0, |(last, _)| last + 1);
        running.insert(number, (name, Instant::now()));
        Self(number)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Ok(mut running) = RUNNING.lock() {
            running.remove(&self.0);
        }
    }
}

/// Waits until a condition holds, and fails if it never does.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "{what} never came");
        std::thread::sleep(Duration::from_micros(300));
    }
}

fn limit() -> Duration {
    std::env::var("OH_TEST_LIMIT")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .map_or(LIMIT, Duration::from_secs)
}

/// Checks every few seconds, and ends when no test is running.
fn watch() {
    loop {
        std::thread::sleep(Duration::from_secs(5));
        let running = RUNNING.lock().unwrap();
        if running.is_empty() {
            return;
        }
        let hung = running
            .values()
            .find(|(_, since)| since.elapsed() > limit());
        if let Some((name, since)) = hung {
            let seconds = since.elapsed().as_secs();
            eprintln!("The test {name} hangs: it has run for {seconds} s. The processes:");
            let _ = Command::new("ps")
                .args(["-e", "-H", "-o", "pid,ppid,etimes,stat,args"])
                .status();
            std::process::exit(101);
        }
    }
}
