//! Downloads a drive. If the program is killed, or the endpoint is gone for too long, running it
//! again fetches only what is missing.
//!
//! ```sh
//! export OHURI=https://api-east1.openhosting.com OHAUTH=USER-UUID:SECRET-KEY
//! cargo run --example resumable_download -- DRIVE-UUID copy.img
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::process::ExitCode;

use openhosting::api::{Client, ClientConfig};
use openhosting::{Credentials, Download};

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (drive, path) = words
        .next()
        .zip(words.next())
        .ok_or("usage: resumable_download DRIVE FILE")?;
    let auth = std::env::var("OHAUTH")?;
    let (user, key) = Credentials::split(&auth);
    let credentials = Credentials::new(user, key.ok_or("OHAUTH has no key")?)?;
    let endpoint = std::env::var("OHURI")?.parse()?;
    let client = Client::new(endpoint, &credentials, &ClientConfig::default())?;

    // The journal records which chunks are in the file; it is removed at the end.
    let download = Download::new(&client, drive.parse()?, &path).journal(format!("{path}.journal"));
    match download.run().await {
        Ok(downloaded) => {
            println!("{} bytes are in {path}", downloaded.progress.done_bytes);
            Ok(ExitCode::SUCCESS)
        }
        Err(interrupted) => {
            eprintln!("{}", interrupted.error.chain());
            eprintln!("Run the same command again to continue");
            Ok(ExitCode::from(75))
        }
    }
}
