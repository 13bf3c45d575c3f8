//! Names of drives, and sizes: parsed values represent exactly the input, and a drive never prints
//! anything but the 36 characters of a UUID.
#![no_main]

use libfuzzer_sys::fuzz_target;
use openhosting::drive::{DriveId, DriveInfo};
use openhosting_base::wire::{Format, Properties, parse_size};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(id) = text.parse::<DriveId>() {
        let printed = id.to_string();
        assert_eq!(printed, text.to_ascii_lowercase());
        assert!(printed.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'));
        assert_eq!(printed.parse::<DriveId>().ok(), Some(id));
    }
    if let Ok(bytes) = parse_size(text) {
        assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
        // The same calculation by hand, in numbers too wide to overflow here.
        let trimmed = text.trim();
        let digits = trimmed.trim_end_matches(['k', 'K', 'M', 'G', 'T']);
        let unit = match &trimmed[digits.len()..] {
            "" => 0,
            "k" | "K" => 1,
            "M" => 2,
            "G" => 3,
            "T" => 4,
            other => panic!("{other:?} is no unit"),
        };
        let number: u128 = digits.parse().expect("digits");
        assert_eq!(u128::from(bytes), number << (10 * unit));
    }
    if let Ok(object) = Properties::parse(Format::Text, data)
        && let Ok(info) = DriveInfo::from_properties(object)
    {
        assert_eq!(
            info.properties.get("size").map(parse_size),
            Some(Ok(info.size))
        );
    }
});
