//! Many users at the same time: nothing is refused, nothing is lost, and memory stays bounded.
//! `cargo bench --bench load` is the long version, with figures.

use std::path::Path;
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

/// More than the bodies of this load and the program itself need together.
const MEMORY_BYTES_MAX: u64 = (256 + 64) << 20;

fn users(number: u64) -> Vec<String> {
    let user = |i| format!("00000000-0000-4000-8000-{i:012}:key-{i}");
    (0..number).map(user).collect()
}

/// A server with these users, whose list is in `directory`.
fn server_for(users: &[String], directory: &Path) -> TestServer {
    let file = directory.join("users");
    std::fs::write(&file, users.join("\n")).unwrap();
    crate::support::only_for_its_owner(&file);
    TestServer::with_args(&["--users-file", file.to_str().unwrap()])
}

fn load(time: Duration) -> Load {
    Load {
        kind: Kind::Both,
        body_bytes: 200_000,
        slots: 4,
        time,
    }
}

/// A drive for each user.
fn places(server: &TestServer, users: &[String], load: Load) -> Vec<Place> {
    let size = (load.body_bytes * load.slots) as u64;
    let place = |auth: &String| Place::Drive {
        id: client::create(server.address(), auth, size).unwrap(),
        auth: auth.clone(),
    };
    users.iter().map(place).collect()
}

#[test]
fn sixty_four_users_at_once_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let users = users(64);
    let server = server_for(&users, directory.path());
    let load = load(Duration::from_secs(2));
    let places = places(&server, &users, load);
    let report = client::run(server.address(), &places, load);
    assert_eq!(report.errors, Vec::<String>::new());
    // Each user wrote something, and everything that was confirmed last is there.
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
fn a_greedy_user_fails_no_request_of_others() {
    let honest = users(16);
    let all = [vec![hostile::USER.to_owned()], honest.clone()].concat();
    let directory = tempfile::tempdir().unwrap();
    let server = server_for(&all, directory.path());
    let load = load(Duration::from_millis(700));
    let places = places(&server, &honest, load);
    for attack in Attack::ALL {
        let held = hostile::begin(server.address(), attack).unwrap();
        let report = client::run(server.address(), &places, load);
        assert_eq!(report.errors, Vec::<String>::new(), "{attack:?}");
        assert!(report.verified_bytes > 0, "{attack:?}: {report}");
        drop(held);
    }
}
