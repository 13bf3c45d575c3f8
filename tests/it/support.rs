//! What the tests share.
#![allow(dead_code, unreachable_pub)]

pub mod cli;
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

/// Makes a debug build do without what some file systems lack.
pub const PLAIN: &str = "OPENHOSTING_PLAIN_FILESYSTEM";

/// Whether the programs do so in this run of the tests.
pub fn is_plain() -> bool {
    std::env::var_os(PLAIN).is_some()
}

/// Makes a file that only its owner may read, as one with a key must be.
pub fn only_for_its_owner(path: impl AsRef<std::path::Path>) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// The files of a certificate for a name, and of its key, which only this user may read.
pub fn certificate(directory: &std::path::Path, name: &str) -> [std::path::PathBuf; 2] {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let files = ["pem", "key"].map(|end| directory.join(format!("{name}.{end}")));
    std::fs::write(&files[0], made.cert.pem()).unwrap();
    std::fs::write(&files[1], made.signing_key.serialize_pem()).unwrap();
    only_for_its_owner(&files[1]);
    files
}

/// Bytes that tell their place: each follows from its offset, modulo a prime,
/// so what lands at the wrong place cannot look right. A disk of them has a boot signature,
/// so that nobody asks whether it is one.
pub fn ramp(offset: u64, len: usize) -> Vec<u8> {
    let byte = |i| match i {
        510 => 0x55,
        511 => 0xaa,
        i => (i % 251) as u8,
    };
    (offset..).take(len).map(byte).collect()
}

/// Bytes that no compressor makes smaller, with a boot signature.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    if let Some(signature) = bytes.get_mut(510..512) {
        signature.copy_from_slice(&[0x55, 0xaa]);
    }
    bytes
}

/// The seed of a random test: `OH_SEED`, or another one each time; printed, so
/// that a failure can be played again.
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

/// What `packed` unpacks to.
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
