//! A link that takes its time and counts bytes, so that what is killed is killed
//! in the middle of something.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::server::TestServer;

/// Bytes passed on at a time.
const STEP_BYTES: usize = 16 * 1024;

/// When a connection is cut.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// When this many bytes came from the client.
    Up(u64),
    /// When this many bytes went to it.
    Down(u64),
    /// When it is so old.
    After(Duration),
}

struct Shared {
    behind: Mutex<SocketAddr>,
    pause: Duration,
    cut: Mutex<Option<Cut>>,
    cuts: AtomicU64,
    ended: AtomicBool,
    up: AtomicU64,
    down: AtomicU64,
}

/// See the module.
pub struct SlowLink {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl SlowLink {
    /// To `server`, with a pause after each step.
    pub fn to(server: &TestServer, pause: Duration) -> Self {
        Self::start(server, pause, None)
    }

    /// To `server`, with a pause after each step; no connection lives longer than `cut`
    /// says.
    pub fn cutting(server: &TestServer, pause: Duration, cut: Cut) -> Self {
        Self::start(server, pause, Some(cut))
    }

    fn start(server: &TestServer, pause: Duration, cut: Option<Cut>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            behind: Mutex::new(server.address()),
            pause,
            cut: Mutex::new(cut),
            cuts: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                let behind = *accepting.behind.lock().unwrap();
                // Nobody there: the client sees its connection end.
                let Ok(server) = TcpStream::connect(behind) else {
                    continue;
                };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let pairs = [
                    (client.try_clone(), server.try_clone(), true),
                    (Ok(server), Ok(client), false),
                ];
                for (from, to, is_up) in pairs {
                    let (Ok(from), Ok(to)) = (from, to) else {
                        continue;
                    };
                    let shared = Arc::clone(&accepting);
                    std::thread::spawn(move || shared.pass(&from, &to, is_up));
                }
            }
        });
        Self { address, shared }
    }

    /// As `OHURI`.
    pub fn uri(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Goes to another server from now on, on new connections.
    pub fn redirect_to(&self, server: &TestServer) {
        *self.shared.behind.lock().unwrap() = server.address();
    }

    /// From now on connections live as long as they like.
    pub fn heal(&self) {
        *self.shared.cut.lock().unwrap() = None;
    }

    /// Connections that were cut.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Bytes from the client, and to it, since the last time.
    pub fn take_counts(&self) -> (u64, u64) {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::SeqCst);
        (take(&self.shared.up), take(&self.shared.down))
    }

    /// Bytes both ways since then.
    pub fn passed(&self) -> u64 {
        self.shared.up.load(Ordering::SeqCst) + self.shared.down.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn pass(&self, mut from: &TcpStream, mut to: &TcpStream, is_up: bool) {
        let counter = if is_up { &self.up } else { &self.down };
        let mut step = vec![0; STEP_BYTES];
        let (began, mut passed) = (Instant::now(), 0);
        loop {
            let n = from.read(&mut step).unwrap_or(0);
            let cut = *self.cut.lock().unwrap();
            let left = match cut {
                Some(Cut::Up(most)) if is_up => most - passed,
                Some(Cut::Down(most)) if !is_up => most - passed,
                Some(Cut::After(age)) if began.elapsed() >= age => 0,
                _ => u64::MAX,
            };
            if n as u64 > left {
                self.cuts.fetch_add(1, Ordering::SeqCst);
                let left = usize::try_from(left).unwrap();
                let _ = to.write_all(&step[..left]);
                counter.fetch_add(left as u64, Ordering::SeqCst);
                break;
            }
            passed += n as u64;
            if n == 0 || to.write_all(&step[..n]).is_err() {
                break;
            }
            counter.fetch_add(n as u64, Ordering::SeqCst);
            std::thread::sleep(self.pause);
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}
