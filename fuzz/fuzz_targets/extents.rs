//! Lists of extents, as a server or an attacker may send them. An accepted list is in order and
//! within the requested range, covers at least the beginning of it, and prints and parses back to
//! the same list. The first 16 bytes of the input are the requested range, and the rest is the
//! body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use openhosting::wire::{Extents, Format, Properties};

fuzz_target!(|data: &[u8]| {
    let Some((range, body)) = data.split_at_checked(16) else {
        return;
    };
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    let asked = number(&range[..8])..number(&range[8..]);
    for format in [Format::Text, Format::Json] {
        let Ok(properties) = Properties::parse(format, body) else {
            continue;
        };
        let Ok(extents) = Extents::from_properties(&properties, &asked) else {
            continue;
        };
        assert!(asked.is_empty() || extents.end() > asked.start);
        assert!(extents.end() <= asked.end);
        let mut reached = asked.start;
        for extent in extents.data() {
            assert!(reached <= extent.start && extent.start < extent.end);
            reached = extent.end;
        }
        assert!(extents.data().is_empty() || reached <= extents.end());
        let printed = extents.to_properties().expect("numbers fit").print(format);
        let parsed = Properties::parse(format, printed.as_bytes()).expect("it was printed");
        let again = Extents::from_properties(&parsed, &asked);
        assert_eq!(again.as_ref(), Ok(&extents));
    }
});
