//! Whether the client of a connection is still there.
//!
//! A client that closes its connection and one that closes only its sending side both send a FIN,
//! and a half-closed client still reads. So a FIN has no effect on requests that are answered soon.
//! Longer work ends a moment after the FIN: by then the client has gone, or it has to keep its side
//! open.

use std::future::pending;
use std::io;
use std::net::TcpStream as Socket;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::sleep;

/// How long an answer may still take after the client's FIN. A client that closed only its sending
/// side gets every answer that takes less; for one that has gone, the server works in vain for this
/// long.
const AFTER_FIN: Duration = Duration::from_secs(1);
/// A client that vanished without a FIN is detected after this time of silence and this many
/// probes, one per interval.
const SILENCE: Duration = Duration::from_secs(30);
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;

/// The other end of a connection.
#[derive(Debug)]
pub(super) struct Peer(OwnedFd);

impl Peer {
    /// Observes `stream`, through a descriptor of its own.
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        set_socket_keepalive(stream, true)?;
        set_tcp_keepidle(stream, SILENCE)?;
        set_tcp_keepintvl(stream, PROBE_INTERVAL)?;
        set_tcp_keepcnt(stream, PROBES)?;
        Ok(Self(stream.as_fd().try_clone_to_owned()?))
    }

    /// Waits until the client has gone. It reads nothing from the connection, where the next
    /// request may be waiting.
    pub(super) async fn gone(&self) {
        match self.fin().await {
            Ok(()) => sleep(AFTER_FIN).await,
            Err(error) => {
                tracing::warn!(%error, "Cannot watch a connection");
                pending::<()>().await;
            }
        }
    }

    async fn fin(&self) -> io::Result<()> {
        // A separate descriptor, so that its readiness is independent of the connection's.
        let socket = TcpStream::from_std(Socket::from(self.0.try_clone()?))?;
        loop {
            if socket.ready(Interest::READABLE).await?.is_read_closed() {
                return Ok(());
            }
            // More bytes arrived. The kernel reports this once for all of them, and again at the
            // FIN after them.
            let taken = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = socket.try_io(Interest::READABLE, taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await;
        (client.unwrap(), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_closed_connection_is_detected_behind_unread_bytes() {
        let (mut client, mut server) = pair().await;
        let peer = Peer::of(&server).unwrap();
        client.write_all(b"next request").await.unwrap();
        let still_there = timeout(Duration::from_millis(50), peer.fin()).await;
        assert!(still_there.is_err());
        client.write_all(b", and one more").await.unwrap();
        let (seen, ()) = tokio::join!(timeout(Duration::from_secs(60), peer.fin()), async {
            client.shutdown().await.unwrap();
        });
        seen.unwrap().unwrap();
        let mut all = String::new();
        server.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "next request, and one more");
    }

    #[tokio::test]
    async fn a_reset_connection_is_detected() {
        let (client, server) = pair().await;
        let peer = Peer::of(&server).unwrap();
        client.set_zero_linger().unwrap();
        drop(client);
        let seen = timeout(Duration::from_secs(60), peer.fin()).await;
        seen.unwrap().unwrap();
    }
}
