//! Uploads an image to a new drive, and shows a progress bar.
//!
//! ```sh
//! export OHURI=https://api-east1.openhosting.com OHAUTH=USER-UUID:SECRET-KEY
//! cargo run --example progress_bar -- disk.img
//! ```

#![allow(clippy::print_stdout)]

use std::error::Error;

use indicatif::{ProgressBar, ProgressStyle};
use openhosting::api::{Client, ClientConfig};
use openhosting::image::Image;
use openhosting::monitor::Event;
use openhosting::{Credentials, Upload};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: progress_bar IMAGE")?;
    let auth = std::env::var("OHAUTH")?;
    let (user, key) = Credentials::split(&auth);
    let credentials = Credentials::new(user, key.ok_or("OHAUTH has no key")?)?;
    let endpoint = std::env::var("OHURI")?.parse()?;
    let client = Client::new(endpoint, &credentials, &ClientConfig::default())?;

    let image = Image::open_raw(path.as_ref())?;
    let bar = ProgressBar::new(image.length().known().unwrap_or(0));
    bar.set_style(ProgressStyle::with_template(
        "{percent:>3} % {wide_bar} {binary_bytes_per_sec} {eta}",
    )?);
    let uploaded = Upload::new(&client, image, path)
        .monitor(|event: &Event| match event {
            // Zeros that are left out count too, so the bar reaches its end.
            Event::Progress(progress) => bar.set_position(progress.done_bytes),
            Event::Waiting(waiting) => bar.println(waiting.to_string()),
            _ => {}
        })
        .run()
        .await?;
    bar.finish();
    println!("{}", uploaded.drive);
    Ok(())
}
