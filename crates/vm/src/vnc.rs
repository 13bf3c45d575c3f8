//! The screens of servers over VNC, at port 5900 of their addresses.
//!
//! QEMU listens only on a socket in its private directory. This program accepts the connections and
//! relays them. The only proof of a viewer is the VNC password, which has at most eight characters,
//! so the number of attempts is limited. They are counted for each server before the password is
//! checked, including correct ones, so that parallel attempts gain nothing. An attempt must finish
//! in time, and a server has a limited number of viewers.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::qemu::QemuServer;
use openhosting_tenancy::{Limiter, Rate};

/// The port of a machine's first screen, by convention.
const PORT: u16 = 5900;
/// Maximum time from the connection to the correct password, which a person may have to type.
const HANDSHAKE_MAX: Duration = Duration::from_secs(120);
/// Maximum time for sending a viewer the reason of a refusal.
const REFUSAL_MAX: Duration = Duration::from_secs(5);
/// Maximum concurrent viewers of one server; further ones are refused. The number is a choice,
/// which bounds the sockets that a stranger without the password can open.
const VIEWERS_MAX: usize = 16;
const BUSY: &str = "Too many attempts: try again in a minute";
/// Versions of the protocol (RFC 6143) that a client may choose.
const VERSIONS: [(&[u8; 12], bool); 5] = [
    (b"RFB 003.003\n", false),
    (b"RFB 003.004\n", false),
    (b"RFB 003.005\n", false),
    (b"RFB 003.007\n", true),
    (b"RFB 003.008\n", true),
];
/// The security type that QEMU offers: a password.
const BY_PASSWORD: u8 = 2;

/// Listens for the viewers of a server at `address`.
pub(crate) async fn listen(address: Ipv4Addr) -> io::Result<TcpListener> {
    TcpListener::bind((address, PORT)).await
}

/// Serves viewers until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, running: Arc<QemuServer>) {
    let attempts = Limiter::new(Rate::VNC_ATTEMPTS);
    let room = Arc::new(Semaphore::new(VIEWERS_MAX));
    let mut viewers = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = viewers.join_next() => continue,
        };
        let Ok((viewer, _)) = accepted else {
            // Most likely there are no free descriptors; other connections will release some.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let place = Arc::clone(&room).try_acquire_owned();
        let (Ok(place), Ok(())) = (place, attempts.take((), Instant::now())) else {
            tracing::debug!("Refused a viewer: too many attempts");
            // The number of viewers that receive a refusal is limited as well.
            if viewers.len() < 2 * VIEWERS_MAX {
                viewers.spawn(async move {
                    let _ = timeout(REFUSAL_MAX, refuse(viewer)).await;
                });
            }
            continue;
        };
        let running = Arc::clone(&running);
        viewers.spawn(async move {
            let _place = place;
            if let Err(error) = relay(viewer, &running).await {
                tracing::debug!(%error, "A viewer has gone");
            }
        });
    }
}

async fn relay(mut viewer: TcpStream, running: &QemuServer) -> io::Result<()> {
    viewer.set_nodelay(true)?;
    let mut screen = running.vnc().await?;
    let is_in = timeout(HANDSHAKE_MAX, let_in(&mut viewer, &mut screen)).await;
    match is_in.map_err(io::Error::from)?? {
        true => copy_bidirectional(&mut viewer, &mut screen).await.map(drop),
        // The reason that QEMU sends.
        false => {
            let said = timeout(REFUSAL_MAX, copy(&mut screen, &mut viewer)).await;
            said.map_err(io::Error::from)?.map(drop)
        }
    }
}

/// Relays the messages before the screen is shown, and returns whether the password was correct.
async fn let_in(viewer: &mut TcpStream, screen: &mut UnixStream) -> io::Result<bool> {
    pass::<12>(screen, viewer).await?;
    let version = pass::<12>(viewer, screen).await?;
    let known = VERSIONS.iter().find(|(known, _)| **known == version);
    let (_, chooses) = known.ok_or(io::ErrorKind::InvalidData)?;
    let way = if *chooses {
        let [ways] = pass::<1>(screen, viewer).await?;
        if ways == 0 {
            return Ok(false);
        }
        for _ in 0..ways {
            pass::<1>(screen, viewer).await?;
        }
        pass::<1>(viewer, screen).await?[0]
    } else {
        pass::<4>(screen, viewer).await?[3]
    };
    if way != BY_PASSWORD {
        return Ok(false);
    }
    pass::<16>(screen, viewer).await?;
    pass::<16>(viewer, screen).await?;
    Ok(pass::<4>(screen, viewer).await? == [0; 4])
}

async fn pass<const N: usize>(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).await?;
    to.write_all(&bytes).await?;
    Ok(bytes)
}

/// Sends a refusal in the form of the protocol, so that a viewer can show it.
async fn refuse(mut viewer: TcpStream) -> io::Result<()> {
    viewer.write_all(b"RFB 003.008\n").await?;
    let mut version = [0; 12];
    viewer.read_exact(&mut version).await?;
    let no_way: &[u8] = match &version {
        b"RFB 003.007\n" | b"RFB 003.008\n" => &[0],
        _ => &[0; 4],
    };
    viewer.write_all(no_way).await?;
    viewer.write_u32(BUSY.len() as u32).await?;
    viewer.write_all(BUSY.as_bytes()).await
}
