//! Config files: whatever they hold, they are read or refused, and what a message says of a
//! line does not quote it, since a secret could be in it.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use openhosting::ErrorKind;
use openhosting::cli::check_config;

/// In no config by chance.
const SECRET: &str = "canary-7f3a9c";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Err(error) = check_config(text, Path::new("/config.toml")) {
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
    // The same with a secret where credentials belong, after what was given.
    let secret = format!("{text}\n[profiles.fuzz]\nkey = \"{SECRET}\"\n");
    let error = check_config(&secret, Path::new("/config.toml")).expect_err("a secret");
    assert!(!error.chain().contains(SECRET), "{}", error.chain());
});
