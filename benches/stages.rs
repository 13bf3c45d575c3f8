//! The stages of a transfer, each measured by itself on one thread.
//!
//! ```text
//! cargo bench --bench stages              all of them
//! cargo bench --bench stages -- gzip      those with this in their name
//! ```
//!
//! The chunks are from an ext4 image with files of this machine, which `benches/compare/images.py`
//! creates when needed (with python3 and mke2fs), or from the image in OPENHOSTING_BENCH_IMAGE.
//! Bytes per second are always bytes of the image, in either direction.

// If a benchmark cannot be set up, nothing can handle the error.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use openhosting::digest::Digest;
use openhosting_base::buffer::BufferPool;
use openhosting_base::chunk::{DataChunk, Encoding, Part, RawChunk, is_zero};
use openhosting_base::codec::{Gzip, Level, ZeroRuns};
use openhosting_base::plan::Span;

const CHUNK: usize = 5 << 20;
/// More than fit into any cache.
const CHUNKS: usize = 16;

fn main() {
    divan::main();
}

/// Chunks with data, distributed over the whole image.
static DATA: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let image = std::env::var_os("OPENHOSTING_BENCH_IMAGE")
        .map_or_else(|| make_image(directory.path()), PathBuf::from);
    let file = File::open(&image).unwrap();
    let count = file.metadata().unwrap().len() / CHUNK as u64;
    let mut chunks: Vec<_> = (0..count)
        .map(|index| {
            let mut bytes = vec![0; CHUNK];
            file.read_exact_at(&mut bytes, index * CHUNK as u64)
                .unwrap();
            bytes
        })
        .filter(|bytes| !is_zero(bytes))
        .collect();
    let step = (chunks.len() / CHUNKS).max(1);
    chunks = chunks.into_iter().step_by(step).take(CHUNKS).collect();
    assert!(!chunks.is_empty(), "{} holds no data", image.display());
    chunks
});

fn make_image(directory: &Path) -> PathBuf {
    let image = directory.join("image");
    let done = Command::new("python3")
        .args(["-m", "compare.images", "256", "160"])
        .arg(&image)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches"))
        .status();
    match done {
        Ok(status) if status.success() => image,
        done => panic!("No image: {done:?}. Are python3 and mke2fs (Debian: e2fsprogs) there?"),
    }
}

/// Measures `work` on one chunk after the other.
fn each_chunk<T>(bencher: Bencher<'_, '_>, mut work: impl FnMut(&[u8]) -> T) {
    let next = Cell::new(0);
    let take = || {
        let index = next.get();
        next.set((index + 1) % DATA.len());
        index
    };
    let bencher = bencher.counter(BytesCount::new(CHUNK));
    bencher
        .with_inputs(take)
        .bench_local_values(|index| work(black_box(&DATA[index])));
}

/// A chunk of zeros must be read completely, while the first bytes show whether a chunk has data.
#[divan::bench]
fn zero_check(bencher: Bencher<'_, '_>) {
    let zeros = vec![0; CHUNK * CHUNKS];
    let mut parts = zeros.chunks(CHUNK).cycle();
    bencher
        .counter(BytesCount::new(CHUNK))
        .bench_local(|| is_zero(black_box(parts.next().unwrap_or_default())));
}

mod gzip {
    use super::*;

    /// Compression as in the uploader, from a buffer of the pool into another one.
    #[divan::bench(args = [1, 2, 3, 6, 9, 12], sample_count = 32, sample_size = 1)]
    fn libdeflate(bencher: Bencher<'_, '_>, level: u8) {
        let pool = BufferPool::new(3);
        let scratch = pool.take(0).unwrap();
        let mut gzip = Gzip::new(scratch);
        let level = Level::new(level).unwrap();
        let mut next = 0;
        bencher
            .counter(BytesCount::new(CHUNK))
            .with_inputs(|| {
                next = (next + 1) % DATA.len();
                data_chunk(&pool, &DATA[next])
            })
            .bench_local_values(|chunk| gzip.encode(chunk, level, ZeroRuns::Send));
    }

    /// The alternative that was not chosen: flate2 with the backend that is used for decoding.
    #[divan::bench(args = [1, 3, 6], sample_count = 32, sample_size = 1)]
    fn zlib_rs(bencher: Bencher<'_, '_>, level: u32) {
        each_chunk(bencher, |bytes| flate2_gzip(bytes, level));
    }
}

fn data_chunk(pool: &BufferPool, bytes: &[u8]) -> DataChunk {
    let mut buffer = pool.take(bytes.len()).unwrap();
    buffer.copy_from_slice(bytes);
    let span = Span {
        index: 0,
        offset: 0,
        len: bytes.len() as u64,
    };
    RawChunk::new(span, buffer).check().unwrap()
}

fn flate2_gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let out = Vec::with_capacity(bytes.len());
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

mod gunzip {
    use super::*;

    /// Decompression as in the server, which does not trust the stream.
    #[divan::bench(sample_count = 64, sample_size = 1)]
    fn zlib_rs(bencher: Bencher<'_, '_>) {
        let mut out = vec![0; CHUNK];
        each_packed(bencher, |packed| {
            let mut decoder = flate2::bufread::GzDecoder::new(packed);
            decoder.read_exact(&mut out).unwrap();
        });
    }

    /// The alternative: whole chunks in memory.
    #[divan::bench(sample_count = 64, sample_size = 1)]
    fn libdeflate(bencher: Bencher<'_, '_>) {
        let mut out = vec![0; CHUNK];
        let mut decompressor = libdeflater::Decompressor::new();
        each_packed(bencher, |packed| {
            decompressor.gzip_decompress(packed, &mut out).unwrap()
        });
    }

    fn each_packed<T>(bencher: Bencher<'_, '_>, mut work: impl FnMut(&[u8]) -> T) {
        let packed: Vec<_> = DATA.iter().map(|bytes| flate2_gzip(bytes, 1)).collect();
        let mut packed = packed.iter().cycle();
        bencher
            .counter(BytesCount::new(CHUNK))
            .bench_local(|| work(black_box(packed.next().map_or(&[], Vec::as_slice))));
    }
}

#[divan::bench]
fn sha256(bencher: Bencher<'_, '_>) {
    each_chunk(bencher, Digest::of);
}

#[divan::bench]
fn memory_copy(bencher: Bencher<'_, '_>) {
    let mut target = vec![0; CHUNK];
    each_chunk(bencher, |bytes| {
        target.copy_from_slice(bytes);
        black_box(&mut target);
    });
}

mod journal {
    use super::*;
    use openhosting::journal::{Direction, Header, Journal, Record};

    /// The highest number of records that are synced together.
    const RECORDS: u64 = 64;

    fn journal() -> (tempfile::TempDir, Journal) {
        // Not in TMPDIR, which is in memory on some machines.
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let header = Header {
            direction: Direction::Upload,
            session: [1; 16],
            token: [2; 16],
            size: 1 << 40,
            chunk: CHUNK as u64,
            first: 0,
            source: None,
            endpoint: "https://example.com/".into(),
            user: "user".into(),
        };
        let journal = Journal::create(&directory.path().join("j.ohj"), &header).unwrap();
        (directory, journal)
    }

    fn record(index: u64) -> Record {
        Record::Done {
            index,
            len: CHUNK.try_into().unwrap(),
            digest: Digest::from_bytes([7; 32]).into(),
        }
    }

    #[divan::bench(args = [1, RECORDS])]
    fn append_and_sync(bencher: Bencher<'_, '_>, records: u64) {
        let (_directory, journal) = journal();
        let mut index = 0;
        bencher.bench_local(|| {
            let records: Vec<_> = (index..index + records).map(record).collect();
            journal.record(&records).unwrap();
            index += records.len() as u64;
        });
    }
}

mod wire {
    use super::*;
    use openhosting::wire::{Format, Properties};

    fn info(format: Format) -> String {
        let mut info = Properties::new();
        for (key, value) in [
            ("claim:type", "exclusive"),
            ("drive", "0012e24a-6eae-4279-9912-3432f698cec8"),
            ("encryption:cipher", "aes-xts-plain"),
            ("name", "nightly"),
            ("size", "10737418240"),
            ("status", "active"),
            ("tier", "disk"),
            ("user", "2164ce57-591c-43ee-ade5-e2fe0ee13c3e"),
        ] {
            info.insert(key, value).unwrap();
        }
        info.print(format)
    }

    #[divan::bench]
    fn parse_text_info(bencher: Bencher<'_, '_>) {
        let body = info(Format::Text);
        bencher.bench(|| Properties::parse(Format::Text, black_box(body.as_bytes())).unwrap());
    }

    #[divan::bench]
    fn parse_json_info(bencher: Bencher<'_, '_>) {
        let body = info(Format::Json);
        bencher.bench(|| Properties::parse(Format::Json, black_box(body.as_bytes())).unwrap());
    }

    /// One write request of our client over loopback to a server that ignores the body, until the
    /// answer. A body of one byte shows the cost of the request itself.
    #[divan::bench(args = [1, CHUNK])]
    fn write_request(bencher: Bencher<'_, '_>, len: usize) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (client, drive) = runtime.block_on(loopback());
        let body = Bytes::from(vec![1; len]);
        bencher.counter(BytesCount::new(len)).bench_local(|| {
            let part = Part {
                offset: 0,
                len: body.len() as u64,
                body: body.clone(),
                encoding: Encoding::Identity,
            };
            runtime.block_on(client.write(drive, part)).unwrap();
        });
    }

    async fn loopback() -> (openhosting::api::Client, openhosting::drive::DriveId) {
        use http_body_util::{BodyExt, Empty};
        use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
        use openhosting::api::{Client, ClientConfig};

        async fn forget(
            mut request: Request<Incoming>,
        ) -> Result<Response<Empty<Bytes>>, hyper::Error> {
            while let Some(frame) = request.frame().await {
                frame?;
            }
            let mut answer = Response::new(Empty::new());
            *answer.status_mut() = StatusCode::NO_CONTENT;
            Ok(answer)
        }

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let io = hyper_util::rt::TokioIo::new(stream);
                let serving = hyper::server::conn::http1::Builder::new();
                tokio::spawn(serving.serve_connection(io, service_fn(forget)));
            }
        });
        let user = "2164ce57-591c-43ee-ade5-e2fe0ee13c3e";
        let credentials = openhosting::Credentials::new(user, "any".to_owned()).unwrap();
        let config = ClientConfig::default();
        let client = Client::new(endpoint.parse().unwrap(), &credentials, &config).unwrap();
        (client, openhosting::drive::DriveId::random())
    }
}
