//! Any body that can be parsed, as text or as JSON, prints and parses back to the same value in
//! both formats. The lowest bit of the first byte selects the format of the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use openhosting::wire::{Format, Properties};

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else {
        return;
    };
    let format = if first & 1 == 0 {
        Format::Text
    } else {
        Format::Json
    };
    let Ok(mut objects) = Properties::parse_all(format, body) else {
        return;
    };
    reads_back(&objects, Format::Json);
    // The text format cannot represent an object without keys.
    objects.retain(|object| !object.is_empty());
    reads_back(&objects, Format::Text);

    for object in &objects {
        for format in [Format::Text, Format::Json] {
            let printed = object.print(format);
            let parsed = Properties::parse(format, printed.as_bytes());
            assert_eq!(parsed.as_ref(), Ok(object), "{format:?}: {printed:?}");
        }
    }
});

fn reads_back(objects: &[Properties], format: Format) {
    let printed = Properties::print_all(objects, format);
    let parsed = Properties::parse_all(format, printed.as_bytes());
    assert_eq!(parsed.as_deref(), Ok(objects), "{format:?}: {printed:?}");
}
