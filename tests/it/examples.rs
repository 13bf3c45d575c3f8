//! The programs in examples/ do what their first lines say.

use std::path::{Path, PathBuf};

use crate::support::cli::Desk;
use crate::support::http::{assert_drive, create, drives};
use crate::support::noise;

/// Cargo builds them for `cargo test`, beside the directory of the tests.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let built = tests.parent().and_then(Path::parent).unwrap();
    let path = built.join("examples").join(name);
    assert!(
        path.exists(),
        "run: cargo build --examples ({})",
        path.display()
    );
    path
}

#[test]
fn an_upload_with_a_progress_bar_names_its_drive() {
    let desk = Desk::new();
    let server = desk.server();
    let image = noise(1, 3_000_000);
    desk.file("a.img", &image);
    let run = desk.tool(example("progress_bar")).env("OHURI", &server.uri);
    let outcome = run.arg("a.img").run().code(0);
    let drive = outcome.text().trim().to_owned();
    assert_drive(&server, &drive, &image);
}

#[test]
fn a_download_is_complete_and_leaves_no_journal() {
    let desk = Desk::new();
    let server = desk.server();
    let image = noise(2, 20 << 20);
    let drive = create(&server, image.len() as u64);
    std::fs::write(server.drive_file(&drive), &image).unwrap();
    let download = desk.tool(example("resumable_download"));
    let download = download.env("OHURI", &server.uri);
    let outcome = download.arg(&drive).arg("copy.img").run().code(0);
    assert!(
        outcome.text().contains("bytes are in copy.img"),
        "{outcome:?}"
    );
    assert!(std::fs::read(desk.path("copy.img")).unwrap() == image);
    assert!(!desk.path("copy.img.journal").exists());
}

#[test]
fn a_second_publication_sends_what_changed() {
    let desk = Desk::new();
    let server = desk.server();
    let mut image = noise(3, 6 << 20);
    desk.file("a.img", &image);
    let publish = || {
        let run = desk.tool(example("publish")).env("OHURI", &server.uri);
        run.arg("nightly").arg("a.img").run().code(0)
    };
    assert!(publish().text().contains("bytes were sent"));
    image[100] ^= 1;
    desk.file("a.img", &image);
    let outcome = publish();
    assert!(
        !outcome.text().contains(" 0 bytes were sent"),
        "{outcome:?}"
    );
    assert_eq!(drives(&server).len(), 2);
    let drive = outcome.text().split(' ').next().unwrap().to_owned();
    assert_drive(&server, &drive, &image);
}

#[test]
fn examples_without_an_endpoint_run() {
    let desk = Desk::new();
    let outcome = desk.tool(example("cancel_and_resume")).run().code(0);
    assert!(outcome.text().contains("is complete"), "{outcome:?}");
    let outcome = desk.tool(example("embedded_server")).run().code(0);
    assert!(outcome.text().contains("equal to the image"), "{outcome:?}");
}
