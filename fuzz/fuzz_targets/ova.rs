//! Any archive is refused, or its disk can be read within its bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| openhosting_fuzz::explore_archive(data));
