//! Recorded answers of real clouds (fixtures/recorded), parsed with the grammar that client and
//! server share.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use openhosting::drive::DriveInfo;
use openhosting::wire::{Format, Properties};
use serde_json::Value;

use crate::support::recorded;

/// Recorded values that our server prints differently, with the reason.
const ODDITIES: [(&str, &str); 2] = [
    ("nic:0:dhcp", "an array of two addresses in 2010"),
    (
        "tx:packets",
        "a string in 2010, where rx:packets was a number",
    ),
];

fn parse(name: &str) -> Vec<Properties> {
    let format = match name.ends_with(".json") {
        true => Format::Json,
        false => Format::Text,
    };
    Properties::parse_all(format, recorded(name).as_bytes()).unwrap()
}

#[test]
fn recorded_text_is_read_and_printed_as_it_was() {
    for name in [
        "jclouds/create_drive.txt",
        "jclouds/create_server.txt",
        "jclouds/create_server_2010.txt",
        "jclouds/drive.txt",
        "jclouds/drive_data.txt",
        "jclouds/new_server_2010.txt",
        "jclouds/standard_drives.txt",
        "mattparker/drives_create.txt",
        "mattparker/servers_create.txt",
    ] {
        // Generation 1 did not sort its keys.
        let sorted = |text: &str| {
            let objects = text.split("\n\n").map(|object| {
                let lines: BTreeSet<_> = object.lines().map(str::to_owned).collect();
                lines
            });
            objects.collect::<Vec<_>>()
        };
        let printed = Properties::print_all(&parse(name), Format::Text);
        assert_eq!(sorted(&printed), sorted(&recorded(name)), "{name}");
    }
}

/// docs/dev/reference.md, 2.4
#[test]
fn values_are_numbers_and_strings_as_they_were_recorded() {
    for name in [
        "libcloud/drives_create.json",
        "libcloud/servers_info.json",
        "retyped/drive_info.json",
        "retyped/server_info_full.json",
    ] {
        let theirs: Value = serde_json::from_str(&recorded(name)).unwrap();
        let theirs = match theirs {
            Value::Array(objects) => objects,
            object => vec![object],
        };
        let ours = Properties::print_all(&parse(name), Format::Json);
        let ours: Vec<Value> = serde_json::from_str(&ours).unwrap();
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            for (key, value) in theirs.as_object().unwrap() {
                let is_odd = ODDITIES.iter().any(|(odd, _)| odd == key);
                if !(is_odd && name.starts_with("libcloud")) {
                    assert_eq!(&ours[key], value, "{name}: {key}");
                }
            }
        }
    }
}

/// docs/dev/reference.md, 1.3 and docs/dev/reference.md, 1.6
#[test]
fn recorded_drives_agree_with_the_reference() {
    let drives = parse("jclouds/standard_drives.txt");
    assert_eq!(drives.len(), 36);
    for drive in drives {
        for key in ["size", "rawsize"] {
            let bytes = drive.get(key).map(|value| value.parse::<u64>().unwrap());
            assert!(
                bytes.is_none_or(|bytes| bytes % (4 << 20) == 0),
                "{drive:?}"
            );
        }
        DriveInfo::from_properties(drive).unwrap();
    }
    let drive = DriveInfo::from_properties(parse("jclouds/drive.txt").remove(0)).unwrap();
    let counter = |key| drive.properties.get(key).unwrap().parse::<u64>().unwrap();
    assert_eq!(counter("write:bytes"), drive.size + 4096);
    assert_eq!(counter("write:requests"), drive.size / 4096 + 1);
    let claims: Vec<_> = drive.claimed().unwrap().split(' ').collect();
    assert_eq!(claims.len(), 5);
    for claim in claims {
        assert_eq!(claim.split(':').nth(1), Some("guest"), "{claim}");
    }
    let list = recorded("jclouds/uuids.txt");
    assert_eq!(list.lines().map(str::len).collect::<Vec<_>>(), [36; 3]);
}

#[test]
fn the_index_names_every_recorded_file_with_its_source() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let index = fs::read_to_string(fixtures.join("INDEX.md")).unwrap();
    let named = index.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("| `recorded/")?.split_once("` |")?;
        Some(name.to_owned())
    });
    let mut there = BTreeSet::new();
    for entry in fs::read_dir(fixtures.join("recorded")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        match entry.file_type().unwrap().is_dir() {
            false => drop(there.insert(name)),
            true => there.extend(fs::read_dir(entry.path()).unwrap().map(|file| {
                let file = file.unwrap().file_name().into_string().unwrap();
                format!("{name}/{file}")
            })),
        }
    }
    assert_eq!(named.collect::<BTreeSet<_>>(), there);
}
