//! Stops an upload in the middle, as a service does that is asked to shut down, and lets a second
//! run continue it. Everything happens on this machine.
//!
//! ```sh
//! cargo run --example cancel_and_resume
//! ```

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::num::NonZeroU64;

use openhosting::Upload;
use openhosting::api::{Client, ClientConfig};
use openhosting::error::ErrorKind;
use openhosting::image::Image;
use openhosting::monitor::Event;
use openhosting::server::{Config, Server};
use openhosting::transfer::stop_channel;

const CHUNK: NonZeroU64 = NonZeroU64::new(64 << 10).unwrap();

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let work = tempfile::tempdir()?;
    let (image, journal) = (work.path().join("disk.img"), work.path().join("journal"));
    let content: Vec<u8> = (0..4 << 20_u32).map(|byte| (byte % 251) as u8).collect();
    std::fs::write(&image, &content)?;

    let server = Server::open(Config::new(work.path().join("drives")))?;
    let credentials = server.credentials().clone();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}/", listener.local_addr()?).parse()?;
    let serving = tokio::spawn(server.run(listener, std::future::pending()));
    let client = Client::new(endpoint, &credentials, &ClientConfig::default())?;

    // A clean stop: requests in flight finish, and no new one starts.
    let (handle, stop) = stop_channel();
    let first = Upload::new(&client, Image::open_raw(&image)?, "example")
        .chunk(CHUNK)
        .journal(&journal)
        .stop(stop)
        .monitor(|event: &Event| {
            if let Event::Progress(progress) = event
                && progress.done_bytes >= 1 << 20
            {
                handle.drain();
            }
        })
        .run()
        .await;
    let interrupted = first.err().ok_or("the first run was not stopped")?;
    assert_eq!(interrupted.error.kind(), ErrorKind::Cancelled);
    println!("stopped: {}", interrupted.error);

    // The same call with the same journal continues it.
    let mut sent_bytes = 0;
    let uploaded = Upload::new(&client, Image::open_raw(&image)?, "example")
        .chunk(CHUNK)
        .journal(&journal)
        .monitor(|event: &Event| {
            if let Event::Progress(progress) = event {
                sent_bytes = progress.wire_bytes;
            }
        })
        .run()
        .await?;
    assert!(sent_bytes < content.len() as u64);
    println!("drive {} is complete", uploaded.drive);
    serving.abort();
    Ok(())
}
