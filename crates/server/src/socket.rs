//! A TCP connection that neither hangs on a client that does not read, nor loses an answer to one
//! that is still sending.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// Maximum time until a client reads more of an answer. The kernel asks for more data when a third
/// of its buffer is free: for a client that shared 256 kbit/s with three others, this took more
/// than 30 s although all of them made progress (docs/dev/faults.md, S17).
const WRITE_STALL: Duration = Duration::from_secs(120);
/// How long a client may continue to send after the last answer: maximum silence, and maximum
/// total. The server reads and ignores it, because the client would lose the answer if the
/// connection were closed while it still sends.
const LINGER_SILENCE: Duration = Duration::from_secs(1);
const LINGER: Duration = Duration::from_secs(30);

/// Maximum time for the header of a request. An idle connection is closed after this time as well.
const HEADER_WAIT: Duration = Duration::from_secs(10);
/// Maximum bytes of the header of a request. Requests of the API have far shorter ones.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// The HTTP settings of every connection.
pub(super) fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_WAIT)
        .max_header_size(HEADER_BYTES_MAX);
    http
}

/// A TCP connection of the server.
///
/// Closing a connection with unread bytes makes the kernel reset it, which can destroy the answer
/// on its way: a 409 to a write would look like a broken network. So the end of the answer is sent
/// first, and bytes that still arrive are discarded.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    stall: Option<Pin<Box<Sleep>>>,
    linger: Option<Linger>,
    is_reset: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Linger {
    silence: Pin<Box<Sleep>>,
    until: Instant,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            stall: None,
            linger: None,
            is_reset: Arc::default(),
        }
    }

    /// Set this to end the connection with a reset instead of closing it regularly.
    pub(super) fn reset_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_reset)
    }

    /// Passes the result of a write on; fails it if none succeeded for too long.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stall = None;
            return result;
        }
        let stall = self
            .stall
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + WRITE_STALL)));
        match stall.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.is_reset.load(Ordering::Relaxed) {
            // If that fails, the connection is closed regularly.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, data);
        self.watch(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.watch(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            match Pin::new(&mut this.stream).poll_shutdown(context) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        }
        let now = Instant::now();
        let linger = this.linger.get_or_insert_with(|| Linger {
            silence: Box::pin(sleep_until(now + LINGER_SILENCE)),
            until: now + LINGER,
        });
        let mut scratch = [0; 16 * 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if now >= linger.until => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => linger.silence.as_mut().reset(now + LINGER_SILENCE),
                Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                Poll::Pending => return linger.silence.as_mut().poll(context).map(Ok),
            }
        }
    }
}
