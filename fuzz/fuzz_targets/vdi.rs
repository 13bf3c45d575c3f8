//! Any file is refused as vdi, or can be read within its bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use openhosting::image::Format;

fuzz_target!(|data: &[u8]| openhosting_fuzz::explore(data, Format::Vdi));
