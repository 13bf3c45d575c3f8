//! An independent client that was written for the real service: apache-libcloud 3.7.0, the last
//! version that includes its driver.

use std::path::Path;
use std::process::Command;

use crate::servers::has_qemu;
use crate::support::python;
use crate::support::server::TestServer;

#[test]
fn libcloud_works_with_the_server() {
    let Some(python) = python::with("apache-libcloud==3.7.0") else {
        return;
    };
    let server = TestServer::start();
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images/boot.img");
    let can_run = has_qemu();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/libcloud.py");
    let out = Command::new(python)
        // Isolated, because the script's own name must not hide the library.
        .arg("-I")
        .arg(script)
        .arg(server.address().port().to_string())
        .args(can_run.then_some(image))
        .env("OHAUTH", server.auth())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    let failed = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}{failed}");
    assert!(said.ends_with("all passed\n"), "{said}{failed}");
    assert_eq!(said.contains("walked a node"), can_run, "{said}");
}
