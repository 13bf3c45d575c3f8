//! Answers of a server, head and body, which the real client reads through a socket. Whatever they
//! contain, the client accepts only data about the drive and range of the request, and everything
//! else is an error that can be printed. The first byte of the input selects the call.
#![no_main]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use openhosting::Credentials;
use openhosting::api::{Client, ClientConfig, Upload, Web, WebUrl};
use openhosting::chunk::Encoding;
use openhosting::failure::Failure;
use openhosting::wire::Properties;
use openhosting_base::drive::{DRIVE_BYTES_MAX, DriveId};
use tokio::runtime::{Builder, Runtime};

const DRIVE: &str = "0012e24a-6eae-4279-9912-3432f698cec8";
const LEN: u64 = 16;

/// The answer to each request.
static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static SERVER: LazyLock<SocketAddr> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
});

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// Reads a request, whose body has no more than [`LEN`] bytes, and answers it.
fn answer(mut stream: TcpStream) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.and_then(|text| text.parse().ok()).unwrap_or(0)];
    let _ = stream.read_exact(&mut body);
    let answer = ANSWER.lock().expect("no panic").clone();
    let _ = stream.write_all(&answer);
}

fn drive() -> DriveId {
    DRIVE.parse().expect("a UUID")
}

fn config() -> ClientConfig {
    ClientConfig {
        stall: Duration::from_secs(3),
        outage: Duration::from_secs(3),
        ..ClientConfig::default()
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((call, answer)) = data.split_first() else {
        return;
    };
    answer.clone_into(&mut ANSWER.lock().expect("no panic"));
    RUNTIME.with(|runtime| runtime.block_on(ask(*call, answer)));
});

async fn ask(call: u8, answer: &[u8]) {
    let address = *SERVER;
    // A redirection could lead to other machines.
    let is_redirect = answer
        .to_ascii_lowercase()
        .windows(8)
        .any(|part| part == b"location");
    if call % 8 == 7 && !is_redirect {
        return shown(web(address).await);
    }
    let endpoint = format!("http://{address}/").parse().expect("an endpoint");
    let credentials = Credentials::new(DRIVE, "key").expect("credentials");
    let client = Client::new(endpoint, &credentials, &config()).expect("a client");
    let info = client.info(drive()).await;
    if let Ok(info) = &info {
        assert!(info.id == drive() && info.size <= DRIVE_BYTES_MAX);
    }
    shown(info.map(drop));
    match call % 8 {
        0 => {
            let mut drives = 0;
            let each = client.each_drive(async |drive| {
                assert!(drive.size <= DRIVE_BYTES_MAX);
                drives += 1;
            });
            shown(each.await);
            assert!(drives <= answer.len());
        }
        1 => shown(client.create(&Properties::new()).await.map(drop)),
        2 => shown(client.set(drive(), &Properties::new()).await),
        3 => shown(client.destroy(drive()).await.map(drop)),
        4 => {
            let body = Upload::Bytes(vec![1; LEN as usize].into());
            let written = client
                .write_body(drive(), 0, Encoding::Identity, body)
                .await;
            shown(written.map(drop));
        }
        5 => {
            let (mut bytes, mut came) = ([0; LEN as usize], 0);
            let read = client.read_into(drive(), 0, &mut bytes, &mut came).await;
            assert!(came <= bytes.len() && (read.is_err() || came == bytes.len()));
            shown(read);
            let length = client.read_length(drive(), 0, LEN).await;
            assert!(length.as_ref().is_ok_and(|length| *length <= LEN) || length.is_err());
            shown(length.map(drop));
        }
        _ => {
            // Called only if the first answer announced digests.
            shown(client.digest(drive(), 0, LEN).await.map(drop));
            let extents = client.extents(drive(), 5..5 + LEN).await;
            if let Ok(Some(extents)) = &extents {
                assert!(extents.end() > 5 && extents.end() <= 5 + LEN);
            }
            shown(extents.map(drop));
        }
    }
}

/// A part of a file on a web server.
async fn web(address: SocketAddr) -> Result<(), Failure> {
    let url: WebUrl = format!("http://{address}/a").parse().expect("a URL");
    let web = Web::new(&config()).expect("a client");
    let mut answer = web.get(&url, Some(5..5 + LEN), None, true).await?;
    assert!(answer.pin.size.is_none_or(|size| size <= DRIVE_BYTES_MAX));
    let mut came = 0;
    while let Some(part) = answer.next_part().await? {
        came += part.len() as u64;
        assert!(answer.from.is_none() || came <= LEN);
    }
    Ok(())
}

/// A failure is one line of text, and does not demand a wait so long that calculating its end would
/// overflow.
fn shown(answered: Result<(), Failure>) {
    if let Err(failure) = answered {
        let wait = failure.retry_after().unwrap_or_default();
        assert!(wait <= Duration::from_secs(7 * 24 * 3600));
        let text = failure.into_error("Cannot ask").chain();
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}
