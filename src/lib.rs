//! Moves disk images in and out of an OpenHosting cloud, or one of the same
//! family.
//!
//! The example starts a server with its own data directory, uploads an image to it, and downloads
//! it again. With an account, `endpoint` and `credentials` are those of the cloud.
//!
//! ```
//! use openhosting::api::{Client, ClientConfig};
//! use openhosting::image::Image;
//! use openhosting::monitor::Event;
//! use openhosting::server::{Config, Server};
//! use openhosting::{Download, Upload};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let work = tempfile::tempdir()?;
//! # let (directory, image, copy) =
//! #     (work.path().join("drives"), work.path().join("disk.img"), work.path().join("copy.img"));
//! # std::fs::create_dir(&directory)?;
//! # std::fs::write(&image, vec![7; 1 << 20])?;
//! let server = Server::open(Config::new(directory))?;
//! let credentials = server.credentials().clone();
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let endpoint = format!("http://{}/", listener.local_addr()?).parse()?;
//! let serving = tokio::spawn(server.run(listener, std::future::pending()));
//!
//! let client = Client::new(endpoint, &credentials, &ClientConfig::default())?;
//! let mut done_bytes = 0;
//! let uploaded = Upload::new(&client, Image::open_raw(&image)?, "nightly")
//!     .journal(work.path().join("nightly.journal"))
//!     .monitor(|event: &Event| {
//!         if let Event::Progress(progress) = event {
//!             done_bytes = progress.done_bytes;
//!         }
//!     })
//!     .run()
//!     .await?;
//! assert_eq!(done_bytes, 1 << 20);
//!
//! Download::new(&client, uploaded.drive, &copy).run().await?;
//! assert_eq!(std::fs::read(copy)?, std::fs::read(image)?);
//! # serving.abort();
//! # Ok(()) }
//! ```
//!
//! An image ([`image`]) is read chunk by chunk, zeros are left out, and the rest is compressed
//! ([`codec`]) and written to a drive ([`api`]). A single task does this ([`transfer`]) and records
//! its progress ([`journal`]) so that a later run can continue. A download is the reverse.
//! [`publish`] maintains a drive that holds an image under a name. [`server`] is the API on one
//! machine, and [`cli`] contains the four programs.
//!
//! Start at [`Upload`] and [`Download`]; [`transfer`] contains their parts. The README's example is
//! compiled as a test of this documentation.

/// A struct is printed, and caused, as the [`Error`] in its field `error` is.
macro_rules! displays_as_its_error {
    ($name:ident) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(&self.error, f)
            }
        }

        impl std::error::Error for $name {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                std::error::Error::source(&self.error)
            }
        }
    };
}

pub mod api;
#[cfg(feature = "cli")]
pub mod cli;
pub mod findings;
pub mod journal;
pub mod monitor;
pub mod publish;
pub mod receipt;
pub mod shard;
pub mod transfer;

mod blocking;
mod builder;
mod commands;
mod download;
mod driver;
mod probe;
mod upload;
mod verify;
mod web_image;

/// Whole transfers in virtual time, against an endpoint and a disk with faults.
#[cfg(test)]
#[path = "../tests/simulator/mod.rs"]
mod simulator;

pub use openhosting_base::credentials;
use openhosting_base::{amounts, buffer, locks, plan, quoting};
use openhosting_engine as policy;
use openhosting_filesystem as filesystem;
#[cfg(feature = "cli")]
use openhosting_filesystem::nonblocking;
use openhosting_system as system;

#[cfg(all(target_os = "linux", feature = "server"))]
pub use openhosting_server as server;

pub use builder::{Download, Upload};
pub use credentials::Credentials;
pub use error::{Error, ErrorKind, Result};

// Of the crates in crates/, a user of the library needs only a part.

/// Advice on an error, with the options that would help as data.
pub mod advice {
    pub use openhosting_base::advice::{Advice, Amount, Remedy};
}

/// Parts of a drive, as requests write them.
pub mod chunk {
    pub(crate) use openhosting_base::chunk::*;
    pub use openhosting_base::chunk::{Encoding, Part};
}

/// Compression of requests and of downloaded files.
pub mod codec {
    pub(crate) use openhosting_base::codec::*;
    pub use openhosting_base::codec::{Compression, Level, Packing};
}

/// The digests of an image's blocks, which receipts contain.
pub mod content {
    pub use openhosting_base::content::Content;
    pub(crate) use openhosting_base::content::*;
}

/// SHA-256 of chunks and of whole images.
pub mod digest {
    pub(crate) use openhosting_base::digest::*;
    pub use openhosting_base::digest::{ChunkDigest, Digest};
}

/// Drives: their identifiers, properties and sizes.
pub mod drive {
    pub(crate) use openhosting_base::condition::*;
    pub(crate) use openhosting_base::drive::*;
    pub use openhosting_base::drive::{DriveId, DriveInfo, DriveSpec};
}

/// Errors, classified by what the reader can do about them.
pub mod error {
    pub(crate) use openhosting_base::error::*;
    pub use openhosting_base::error::{Error, ErrorKind, Result};
}

/// Why a single request failed.
pub mod failure {
    pub(crate) use openhosting_base::failure::*;
    pub use openhosting_base::failure::{Failure, Obstacle, Refusal};
}

/// Disks in files: formats, archives and compressed streams.
pub mod image {
    pub(crate) use openhosting_image::*;
    pub use openhosting_image::{
        ClusterPacking, Disk, FalseHole, Fingerprint, Format, Holes, Image, ImageOptions, Input,
        Length, MappedImage, RawImage, StreamFormat, StreamImage, StreamOptions, TargetFormat,
    };
}

/// The grammar of the API.
pub mod wire {
    pub(crate) use openhosting_base::wire::*;
    pub use openhosting_base::wire::{ErrorType, Extents, Format, Properties, READ_BYTES_MAX};
}

/// The examples of the README compile.
#[cfg(all(doctest, feature = "server"))]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
