//! Publishes an image under a name. Of an image that was published before, only what changed is
//! sent; the newest three drives of the name are kept.
//!
//! ```sh
//! export OHURI=https://api-east1.openhosting.com OHAUTH=USER-UUID:SECRET-KEY
//! cargo run --example publish -- nightly disk.img
//! ```

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::num::NonZeroU32;

use openhosting::Credentials;
use openhosting::api::{Client, ClientConfig};
use openhosting::image::Image;
use openhosting::monitor::Silent;
use openhosting::publish::{PublishOptions, publish};
use openhosting::transfer::Stop;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (name, path) = words
        .next()
        .zip(words.next())
        .ok_or("usage: publish NAME IMAGE")?;
    let auth = std::env::var("OHAUTH")?;
    let (user, key) = Credentials::split(&auth);
    let credentials = Credentials::new(user, key.ok_or("OHAUTH has no key")?)?;
    let endpoint = std::env::var("OHURI")?;
    let client = Client::new(endpoint.parse()?, &credentials, &ClientConfig::default())?;

    let image = Image::open_raw(path.as_ref())?;
    let options = PublishOptions {
        keep: NonZeroU32::new(3),
        ..PublishOptions::to(name, endpoint)
    };
    let published = publish(&client, image, &options, &mut Silent, Stop::never()).await;
    let published = published.map_err(|unpublished| unpublished.error)?;
    println!(
        "{} has the content {}; {} bytes were sent",
        published.drive, published.root, published.sent_bytes
    );
    Ok(())
}
