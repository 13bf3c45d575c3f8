//! Config files: any file is read or refused, and messages about a line do not quote it, because it
//! may contain a secret.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use openhosting::ErrorKind;
use openhosting::cli::check_config;

/// Does not occur in a config by chance.
const SECRET: &str = "canary-7f3a9c";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Err(error) = check_config(text, Path::new("/config.toml")) {
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
    // The same text with a secret in the place of credentials, after the input.
    let secret = format!("{text}\n[profiles.fuzz]\nkey = \"{SECRET}\"\n");
    let error = check_config(&secret, Path::new("/config.toml")).expect_err("a secret");
    assert!(!error.chain().contains(SECRET), "{}", error.chain());
});
