//! Counts the open connections of a proxy, so that a test can wait until a client that ended has
//! left nothing behind.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Only guards against a test that hangs; the time is no requirement.
const WATCHDOG: Duration = Duration::from_secs(100);

/// See the module.
#[derive(Default)]
pub struct Connections {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    open: usize,
    /// The connection of [`Connections::settle`], until it is accepted.
    last: Option<SocketAddr>,
}

/// A connection that is open until this is dropped.
pub struct Open(Arc<Connections>);

impl Connections {
    /// Counts a connection that was accepted from this address; `None` for that of
    /// [`settle`](Self::settle), which nobody serves.
    pub fn accepted(self: &Arc<Self>, from: SocketAddr) -> Option<Open> {
        let is_last = {
            let state = &mut *self.state.lock().unwrap();
            let is_last = state.last.take_if(|last| *last == from).is_some();
            state.open += usize::from(!is_last);
            is_last
        };
        self.changed.notify_all();
        (!is_last).then(|| Open(Arc::clone(self)))
    }

    /// Waits until all connections to `address` are closed. Those that the kernel has opened and
    /// the proxy has not accepted yet are included: a client that was killed may have sent requests
    /// on them, and they would be recorded as those of the next client.
    #[track_caller]
    pub fn settle(&self, address: SocketAddr) {
        let mut state = self.state.lock().unwrap();
        // Connections are accepted in their order, so this one comes after all of them.
        // `accepted` waits for the lock, and thus knows the address.
        let last = TcpStream::connect(address).unwrap();
        state.last = Some(last.local_addr().unwrap());
        let is_busy = |state: &mut State| state.open > 0 || state.last.is_some();
        let wait = self.changed.wait_timeout_while(state, WATCHDOG, is_busy);
        let (state, timeout) = wait.unwrap();
        let open = state.open;
        drop(state);
        assert!(!timeout.timed_out(), "{open} connections stayed open");
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().open -= 1;
        self.0.changed.notify_all();
    }
}
