//! Tests a program against the API without an account: a server in the same process, whose drives
//! are files of a temporary directory, and which can be told to fail.
//!
//! ```sh
//! cargo run --example embedded_server
//! ```

#![allow(clippy::print_stdout)]

use std::error::Error;

use openhosting::api::{Client, ClientConfig};
use openhosting::image::Image;
use openhosting::monitor::Event;
use openhosting::server::{Config, Server};
use openhosting::{Download, Upload};

/// Every third request is answered with 503 (docs/user/fault-plan.md).
const FAULTS: &str = "every = { requests = 3, status = 503 }";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let work = tempfile::tempdir()?;
    let image = work.path().join("disk.img");
    std::fs::write(&image, vec![0x5a; 8 << 20])?;

    let server = Server::open(Config {
        faults: FAULTS.parse()?,
        ..Config::new(work.path().join("drives"))
    })?;
    let credentials = server.credentials().clone();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}/", listener.local_addr()?).parse()?;
    let serving = tokio::spawn(server.run(listener, std::future::pending()));
    let client = Client::new(endpoint, &credentials, &ClientConfig::default())?;

    let mut retries = 0;
    let uploaded = Upload::new(&client, Image::open_raw(&image)?, "example")
        .chunk((1 << 20).try_into()?)
        .monitor(|event: &Event| {
            if let Event::Progress(progress) = event {
                retries = progress.retries;
            }
        })
        .run()
        .await?;
    assert!(retries > 0, "the server did not fail");

    let copy = work.path().join("copy.img");
    Download::new(&client, uploaded.drive, &copy).run().await?;
    assert_eq!(std::fs::read(&image)?, std::fs::read(&copy)?);
    println!("the drive is equal to the image, after {retries} retries");
    serving.abort();
    Ok(())
}
