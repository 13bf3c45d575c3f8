//! A slow link that counts bytes, so that a tool can be killed in the middle of something.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::connections::Connections;
use super::server::TestServer;

/// Bytes that are passed on in one step.
const STEP_BYTES: usize = 16 * 1024;

/// When a connection is cut off.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// After this many bytes from the client.
    Up(u64),
    /// After this many bytes to the client.
    Down(u64),
    /// At this age.
    After(Duration),
}

struct Shared {
    behind: Mutex<SocketAddr>,
    pause: Duration,
    cut: Mutex<Option<Cut>>,
    cuts: AtomicU64,
    open: Arc<Connections>,
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
    /// A link to `server` with a pause after each step.
    pub fn to(server: &TestServer, pause: Duration) -> Self {
        Self::start(server, pause, None)
    }

    /// A link to `server` with a pause after each step. Each connection is cut off as `cut` says.
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
            open: Arc::default(),
            ended: AtomicBool::new(false),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            loop {
                let accepted = listener.accept();
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok((client, from)) = accepted else {
                    continue;
                };
                let Some(open) = accepting.open.accepted(from).map(Arc::new) else {
                    continue;
                };
                let behind = *accepting.behind.lock().unwrap();
                // Without a server there, the client's connection is closed.
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
                    let (shared, open) = (Arc::clone(&accepting), Arc::clone(&open));
                    std::thread::spawn(move || {
                        shared.pass(&from, &to, is_up);
                        drop(open);
                    });
                }
            }
        });
        Self { address, shared }
    }

    /// The address, as in `OHURI`.
    pub fn uri(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Forwards new connections to another server from now on.
    pub fn redirect_to(&self, server: &TestServer) {
        *self.shared.behind.lock().unwrap() = server.address();
    }

    /// From now on connections are not cut off.
    pub fn heal(&self) {
        *self.shared.cut.lock().unwrap() = None;
    }

    /// The number of connections that were cut off.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// After a client ended: waits until all that it sent is passed on and counted.
    #[track_caller]
    pub fn settle(&self) {
        self.shared.open.settle(self.address);
    }

    /// Bytes from the client and to the client since the last call.
    pub fn take_counts(&self) -> (u64, u64) {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::SeqCst);
        (take(&self.shared.up), take(&self.shared.down))
    }

    /// Bytes in both directions since the last call of `take_counts`.
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
        // Wakes the thread that accepts connections.
        let _ = TcpStream::connect(self.address);
    }
}
