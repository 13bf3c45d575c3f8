//! From a file of digests, one of those in it is selected, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use openhosting_base::digest::digest_for;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for name in [None, Some("a.img")] {
        if let Ok(digest) = digest_for(&text, name) {
            let digest = digest.to_string();
            assert!(text.to_ascii_lowercase().contains(&digest));
        }
    }
});
