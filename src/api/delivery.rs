//! Estimates how many bytes of bodies have arrived at the other end.
//!
//! A body is handed over to a connection long before it arrives. HTTP and TLS buffer some of it
//! ([`super::buffers`]), and the system buffers what the link has not carried yet: up to some MiB
//! for each connection, and more while connections grow. So in the first seconds, the bytes that
//! were handed over say little about the link. Linux reports how many bytes it buffers; on other
//! systems, only the buffers of HTTP and TLS are subtracted.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::Client;

/// Minimum time between two readings: one sample of the controller of the number of requests
/// ([`crate::policy::Concurrency`]).
const INTERVAL: Duration = Duration::from_millis(250);
/// The interval is at least this many times the duration of a reading, because the kernel walks the
/// table of all connections, which takes milliseconds on a machine with much memory. On a busy
/// machine most of that duration is waiting, so the interval has a maximum.
const INTERVAL_COSTS: u32 = 50;
const INTERVAL_MAX: Duration = Duration::from_millis(500);

/// Reads how many bytes have arrived.
#[derive(Debug)]
pub(crate) struct Delivery {
    client: Client,
    /// The one of [`TABLES`] that last had connections of this process.
    table: usize,
    due: Option<Instant>,
    /// The last result; it never decreases.
    bytes: u64,
}

/// The tables of IPv4 and IPv6 connections.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

impl Delivery {
    /// For the bodies of a client.
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            table: 0,
            due: None,
            bytes: 0,
        }
    }

    /// Bytes of bodies that have arrived since the client was created; `None` before
    /// [`due`](Self::due).
    pub(crate) fn bytes(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.due.is_some_and(|due| now < due) {
            return None;
        }
        // Received bytes are not in send buffers.
        let waiting = if self.client.has_sent() {
            self.waiting_bytes()
                .saturating_add(self.client.buffers().bytes(now))
        } else {
            0
        };
        let cost = now.elapsed().saturating_mul(INTERVAL_COSTS);
        let interval = cost.clamp(INTERVAL, INTERVAL_MAX);
        self.due = now.checked_add(interval);
        let arrived = self.client.moved_bytes().saturating_sub(waiting);
        self.bytes = self.bytes.max(arrived);
        Some(self.bytes)
    }

    /// When the next reading may be made; `None` before the first one.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Bytes in the send buffers of this process; 0 if the system does not report them.
    fn waiting_bytes(&mut self) -> u64 {
        let sockets = sockets();
        for table in [self.table, usize::from(self.table == 0)] {
            if let Some(bytes) = TABLES.get(table).and_then(|path| read(path, &sockets)) {
                self.table = table;
                return bytes;
            }
        }
        0
    }
}

/// The send queues of these sockets in a table, in bytes; `None` if it contains none of them.
fn read(table: &str, sockets: &HashSet<u64>) -> Option<u64> {
    queued(&std::fs::read_to_string(table).ok()?, sockets)
}

/// The inodes of the sockets that this process has open.
fn sockets() -> HashSet<u64> {
    let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") else {
        return HashSet::new();
    };
    descriptors
        .filter_map(|descriptor| std::fs::read_link(descriptor.ok()?.path()).ok())
        .filter_map(|link| {
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            inode.parse().ok()
        })
        .collect()
}

/// The sum of the send queues of these sockets in a table of connections, in bytes, as described in
/// proc(5): state, queues and inode are columns 4, 5 and 10. Listening sockets are omitted, because
/// their queues count connections.
fn queued(table: &str, sockets: &HashSet<u64>) -> Option<u64> {
    const LISTENS: &str = "0A";
    let mut sum: Option<u64> = None;
    for line in table.lines().skip(1) {
        let mut columns = line.split_ascii_whitespace().skip(3);
        let (Some(state), Some(queues)) = (columns.next(), columns.next()) else {
            continue;
        };
        let inode = columns.nth(4).and_then(|inode| inode.parse().ok());
        if state == LISTENS || !inode.is_some_and(|inode| sockets.contains(&inode)) {
            continue;
        }
        let (send, _) = queues.split_once(':')?;
        let bytes = u64::from_str_radix(send, 16).ok()?;
        sum = Some(sum.unwrap_or(0).saturating_add(bytes));
    }
    sum
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000007:00000000 00:00000000 00000000     0        0 11 1 00 100 0 0 10 0
   1: 0100007F:1F91 0100007F:8CA2 01 0000FF10:00000000 01:00000014 00000000     0        0 12 2 00 22 4 30 10 -1
   2: 0100007F:8CA2 0100007F:1F91 01 00000010:0000000A 00:00000000 00000000     0        0 13 1 00 20 4 30 10 -1
";

    #[test]
    fn the_queues_of_own_connections_are_summed() {
        let sockets = |inodes: &[u64]| inodes.iter().copied().collect();
        assert_eq!(queued(TABLE, &sockets(&[11, 12, 13])), Some(0xff20));
        assert_eq!(queued(TABLE, &sockets(&[13, 99])), Some(0x10));
        // A listening socket has nothing to send.
        assert_eq!(queued(TABLE, &sockets(&[11])), None);
        assert_eq!(queued("", &sockets(&[11])), None);
    }

    #[test]
    fn unread_bytes_are_counted_as_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        sender.set_nonblocking(true).unwrap();
        let _reader = listener.accept().unwrap();
        // As much as both ends buffer.
        while sender.write(&[7; 65536]).is_ok() {}
        let sockets = sockets();
        assert!(!sockets.is_empty());
        assert!(read(TABLES[0], &sockets).is_some_and(|bytes| bytes > 65536));
    }

    proptest::proptest! {
        #[test]
        fn no_socket_table_makes_the_parser_panic(table in "(\n|[0-9A-F: ]{0,80}){0,6}", inode: u64) {
            let _ = queued(&table, &HashSet::from([inode, 1]));
        }
    }
}
