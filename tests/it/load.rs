//! Many users at once: nothing is refused, nothing is lost, and memory stays bounded.
//! `cargo bench --bench load` is the long version of it, with figures.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::server::TestServer;

#[path = "../../benches/load/client.rs"]
#[expect(
    unreachable_pub,
    dead_code,
    reason = "a benchmark of its own uses the rest"
)]
pub mod client;

#[path = "../../benches/load/hostile.rs"]
#[expect(unreachable_pub, reason = "a benchmark uses it too")]
mod hostile;

use client::{Kind, Load, Place};
use hostile::Attack;

/// What bodies may take together (`src/server/writing.rs`), and the program itself.
const MEMORY_BYTES_MAX: u64 = (256 + 64) << 20;

#[test]
fn sixty_four_users_at_once_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let users: Vec<String> = (0..64)
        .map(|i| format!("00000000-0000-4000-8000-{i:012}:key-{i}"))
        .collect();
    let file = directory.path().join("users");
    std::fs::write(&file, users.join("\n")).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let server = TestServer::with_args(&["--users-file", file.to_str().unwrap()]);
    let load = Load {
        kind: Kind::Both,
        body_bytes: 200_000,
        slots: 4,
        time: Duration::from_secs(2),
    };
    let size = (load.body_bytes * load.slots) as u64;
    let places: Vec<_> = users
        .into_iter()
        .map(|auth| Place::Drive {
            id: client::create(server.address(), &auth, size).unwrap(),
            auth,
        })
        .collect();
    let report = client::run(server.address(), &places, load);
    assert_eq!(report.errors, Vec::<String>::new());
    // Each of them wrote something, and all that was confirmed last is there.
    assert!(report.requests >= 64, "{report}");
    assert!(
        report.verified_bytes >= 64 * load.body_bytes as u64,
        "{report}"
    );
    let peak = client::peak_resident_bytes(server.pid()).unwrap();
    assert!(peak < MEMORY_BYTES_MAX, "{} MiB", peak >> 20);
    eprintln!("{report}; at most {} MiB", peak >> 20);
}

#[test]
fn what_one_user_takes_fails_no_request_of_others() {
    let mut users = vec![hostile::USER.to_owned()];
    users.extend((0..16).map(|i| format!("00000000-0000-4000-8000-{i:012}:key-{i}")));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("users");
    std::fs::write(&file, users.join("\n")).unwrap();
    crate::support::only_for_its_owner(&file);
    let server = TestServer::with_args(&["--users-file", file.to_str().unwrap()]);
    let load = Load {
        kind: Kind::Both,
        body_bytes: 200_000,
        slots: 4,
        time: Duration::from_millis(700),
    };
    let size = (load.body_bytes * load.slots) as u64;
    let places: Vec<_> = users[1..]
        .iter()
        .map(|auth| Place::Drive {
            id: client::create(server.address(), auth, size).unwrap(),
            auth: auth.clone(),
        })
        .collect();
    for attack in Attack::ALL {
        let held = hostile::begin(server.address(), attack).unwrap();
        let report = client::run(server.address(), &places, load);
        assert_eq!(report.errors, Vec::<String>::new(), "{attack:?}");
        assert!(report.verified_bytes > 0, "{attack:?}: {report}");
        drop(held);
    }
}
