//! Helpers for all tests.
#![allow(dead_code, unreachable_pub)]

pub mod cli;
pub mod connections;
pub mod disk;
pub mod failing;
pub mod http;
pub mod link;
pub mod lying;
pub mod needs;
pub mod proxy;
pub mod python;
pub mod schema;
pub mod server;
pub mod slow;
pub mod watchdog;

/// A variable with which debug builds do not use features that some file systems lack.
pub const PLAIN: &str = "OPENHOSTING_PLAIN_FILESYSTEM";

/// Whether this run of the tests sets that variable.
pub fn is_plain() -> bool {
    std::env::var_os(PLAIN).is_some()
}

/// Makes a file readable for its owner only, which is required of files with a key.
pub fn only_for_its_owner(path: impl AsRef<std::path::Path>) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Creates a certificate for a name, and its key, which only this user can read. Returns both
/// paths.
pub fn certificate(directory: &std::path::Path, name: &str) -> [std::path::PathBuf; 2] {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let files = ["pem", "key"].map(|end| directory.join(format!("{name}.{end}")));
    std::fs::write(&files[0], made.cert.pem()).unwrap();
    std::fs::write(&files[1], made.signing_key.serialize_pem()).unwrap();
    only_for_its_owner(&files[1]);
    files
}

/// Bytes that depend on their offset, modulo a prime, so that bytes at the wrong place are noticed.
/// Bytes 510 and 511 are a boot signature, so that the tools accept an image of them as a disk.
pub fn ramp(offset: u64, len: usize) -> Vec<u8> {
    let byte = |i| match i {
        510 => 0x55,
        511 => 0xaa,
        i => (i % 251) as u8,
    };
    (offset..).take(len).map(byte).collect()
}

/// Random bytes, which cannot be compressed, with a boot signature.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    if let Some(signature) = bytes.get_mut(510..512) {
        signature.copy_from_slice(&[0x55, 0xaa]);
    }
    bytes
}

/// The seed of a random test: `OH_SEED`, or a new one each time. It is printed, so that a failure
/// can be repeated.
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("OH_SEED").ok().map(|seed| seed.parse());
    let seed = given.map_or_else(|| fastrand::u64(..), Result::unwrap);
    eprintln!("{test}: OH_SEED={seed}");
    seed
}

/// The number of rounds: `OH_ROUNDS`, or `usual`.
pub fn rounds(usual: usize) -> usize {
    let given = std::env::var("OH_ROUNDS").ok();
    given.map_or(usual, |rounds| rounds.parse().unwrap())
}

/// gzip of `plain`.
pub fn gzip(plain: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let level = flate2::Compression::fast();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// The unpacked content of `packed`.
pub fn gunzip(packed: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut plain = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(packed);
    decoder.read_to_end(&mut plain).unwrap();
    plain
}

/// A file of `fixtures/recorded`.
pub fn recorded(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/recorded")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
