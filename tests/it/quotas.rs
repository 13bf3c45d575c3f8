//! Quotas of a user: servers, addresses, private networks, guest memory and cores.

use crate::neighbours::{HONEST, HOSTILE, Scene};
use crate::servers::has_qemu;
use crate::support::http::Reply;

const STOPPED: &str = "/servers/create/stopped";

fn post(scene: &Scene, auth: &str, path: &str, body: &str) -> Reply {
    scene.by(auth).post(path, body)
}

fn used(scene: &Scene, quota: &str) -> f64 {
    let sample = format!("openhosting_quota_used{{quota=\"{quota}\"}}");
    scene.metric(&sample).unwrap()
}

#[track_caller]
fn refused(reply: &Reply, what: &str) {
    assert_eq!(reply.error(), (402, "billing"));
    assert!(reply.text().contains(what), "{}", reply.text());
}

#[test]
fn servers_addresses_and_networks_of_a_user_are_limited() {
    let limits = [
        "--max-servers",
        "2",
        "--max-addresses",
        "3",
        "--max-vlans",
        "1",
    ];
    let mut scene = Scene::new(&limits);
    let server = "name guest\ncpu 500\nmem 16\npersistent true";
    for (path, body, most, key, what, quota) in [
        (STOPPED, server, 2, "server", "2 servers", "servers"),
        (
            "/resources/ip/create",
            "name a",
            3,
            "resource",
            "3 addresses",
            "addresses",
        ),
        (
            "/resources/vlan/create",
            "name a",
            1,
            "resource",
            "1 private",
            "vlans",
        ),
    ] {
        // However many requests come at the same time, and whatever others have.
        let replies: Vec<_> = std::thread::scope(|scope| {
            let scene = &scene;
            let try_one = |_| scope.spawn(move || post(scene, HOSTILE, path, body));
            let tries: Vec<_> = (0..10).map(try_one).collect();
            tries.into_iter().map(|made| made.join().unwrap()).collect()
        });
        let (made, others): (Vec<_>, Vec<_>) = replies.into_iter().partition(|r| r.status == 200);
        assert_eq!(made.len(), most);
        for reply in &others {
            refused(reply, what);
        }
        post(&scene, HONEST, path, body).expect(200);
        assert_eq!(used(&scene, quota), most as f64 + 1.0);
        let sample = format!("openhosting_quota_refused_total{{quota=\"{quota}\"}}");
        assert_eq!(scene.metric(&sample), Some(10.0 - most as f64));
        // Destroying one makes room for another.
        let name = made[0].key(key).unwrap();
        let destroy = match quota {
            "servers" => format!("/servers/{name}/destroy"),
            _ => path.replace("create", &format!("{name}/destroy")),
        };
        post(&scene, HOSTILE, &destroy, "").expect(204);
        post(&scene, HOSTILE, path, body).expect(200);
        refused(&post(&scene, HOSTILE, path, body), what);
    }
    scene.server.restart();
    for (path, body) in [
        (STOPPED, server),
        ("/resources/ip/create", ""),
        ("/resources/vlan/create", ""),
    ] {
        assert_eq!(post(&scene, HOSTILE, path, body).error(), (402, "billing"));
    }
    // One that cannot be created counts for nothing.
    for _ in 0..5 {
        let bad = post(&scene, HONEST, STOPPED, "name guest\ncpu x");
        assert_eq!(bad.error(), (400, "usage"));
    }
    post(&scene, HONEST, STOPPED, server).expect(200);
}

#[test]
fn default_quotas_apply_and_can_be_disabled() {
    let limit = |scene: &Scene, quota: &str| {
        let sample = format!("openhosting_quota_limit{{quota=\"{quota}\"}}");
        scene.metric(&sample).unwrap()
    };
    let scene = Scene::new(&[]);
    for (quota, expected) in [
        ("drives", 1000.0),
        ("drive_bytes", -1.0),
        ("servers", 100.0),
        ("addresses", 100.0),
        ("vlans", 100.0),
        ("guest_cores", 64.0),
    ] {
        assert_eq!(limit(&scene, quota), expected, "{quota}");
    }
    assert!(limit(&scene, "guest_memory_bytes") > 1e6);
    let off = ["--max-drives", "none", "--max-memory", "none"];
    let scene = Scene::new(&off);
    for quota in ["drives", "guest_memory_bytes"] {
        assert_eq!(limit(&scene, quota), -1.0, "{quota}");
    }
}

#[test]
fn memory_and_cores_of_active_servers_are_limited() {
    if !has_qemu() {
        return;
    }
    let mut scene = Scene::new(&["--max-memory", "40M", "--max-cores", "3"]);
    let guest = |smp: u32| format!("name guest\ncpu 500\nmem 16\nsmp {smp}\npersistent true");
    let made = |scene: &Scene, path: &str, smp: u32| {
        let made = post(scene, HOSTILE, path, &guest(smp)).expect(200);
        made.key("server").unwrap().to_owned()
    };
    let command = |scene: &Scene, id: &str, command: &str| {
        post(scene, HOSTILE, &format!("/servers/{id}/{command}"), "")
    };
    let first = made(&scene, "/servers/create", 2);
    let wide = made(&scene, STOPPED, 2);
    refused(&command(&scene, &wide, "start"), "3 cores");
    let second = made(&scene, "/servers/create", 1);
    let third = made(&scene, STOPPED, 1);
    refused(&command(&scene, &third, "start"), "bytes of memory");
    // Nothing remains of a server that could not be started.
    let before = scene.by(HOSTILE).get("/servers/list").body;
    refused(
        &post(&scene, HOSTILE, "/servers/create", &guest(1)),
        "memory",
    );
    assert_eq!(scene.by(HOSTILE).get("/servers/list").body, before);
    assert_eq!(used(&scene, "guest_cores"), 3.0);
    assert_eq!(used(&scene, "guest_memory_bytes"), f64::from(32 << 20));
    // Servers that continue to run while this program is restarted count as well.
    scene.server.kill9();
    scene.server.start_again();
    refused(&command(&scene, &third, "start"), "bytes of memory");
    command(&scene, &second, "stop").expect(204);
    command(&scene, &third, "start").expect(200);
    for id in [&first, &third] {
        command(&scene, id, "destroy").expect(204);
    }
    command(&scene, &wide, "start").expect(200);
    command(&scene, &wide, "destroy").expect(204);
}
