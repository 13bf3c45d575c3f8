//! Each command of the server in raw HTTP: formats, answers and errors.

use serde_json::json;
use sha2::Digest;

use crate::support::http::{Ask, basic, create, raw, read_all};
use crate::support::server::TestServer;
use crate::support::watchdog::wait_until;
use crate::support::{gunzip, gzip, noise, ramp, recorded};

const NOBODY: &str = "0012e24a-6eae-4279-9912-3432f698cec8";
const A: &str = "2164ce57-591c-43ee-ade5-e2fe0ee13c3e:key-a";
const B: &str = "58ca3c1f-7629-4771-9b71-863f40153ba4:key-b";

#[test]
fn a_drive_does_not_claim_to_be_encrypted() {
    let server = TestServer::start();
    for wanted in [
        "",
        "encryption:cipher aes-xts-plain\n",
        "encryption:cipher none\n",
    ] {
        let body = format!("size 4096\n{wanted}");
        let created = Ask::of(&server).post("/drives/create", body).expect(200);
        assert_eq!(created.key("encryption:cipher"), Some("none"), "{wanted}");
        let drive = created.key("drive").unwrap();
        let info = Ask::of(&server).get(&format!("/drives/{drive}/info"));
        assert_eq!(info.expect(200).key("encryption:cipher"), Some("none"));
    }
}

#[test]
fn create_info_list_and_destroy_in_text() {
    let server = TestServer::start();
    let list = Ask::of(&server).get("/drives/list").expect(200);
    assert_eq!(
        (list.text(), list.header("x-elastic-output")),
        ("", Some("list"))
    );

    let body = "name with space.img\nsize 10000000\ntier disk";
    let created = Ask::of(&server).post("/drives/create", body).expect(200);
    assert_eq!(created.header("content-type"), Some("text/plain"));
    assert_eq!(created.header("x-elastic-output"), Some("properties"));
    let drive = created.key("drive").unwrap().to_owned();
    let expected = include_str!("../../fixtures/wire/drives_create.txt")
        .replace("DRIVE", &drive)
        .replace("USER", &server.user);
    assert_eq!(created.text(), expected);

    for path in [
        format!("/drives/{drive}/info"),
        format!("//drives/{drive}//info/full"),
    ] {
        for method in ["GET", "POST"] {
            let info = Ask::of(&server).send(method, &path, b"").expect(200);
            assert_eq!(info.text(), expected);
        }
    }
    let other = create(&server, 1);
    let list = Ask::of(&server).get("/drives/list").expect(200);
    let mut ids = [drive.as_str(), other.as_str()];
    ids.sort_unstable();
    assert_eq!(list.text(), format!("{}\n{}\n", ids[0], ids[1]));
    let infos = Ask::of(&server).get("/drives/info").expect(200);
    assert_eq!(infos.text().split("\n\n").count(), 2);

    let destroyed = Ask::of(&server).post(&format!("/drives/{drive}/destroy"), "");
    assert!(destroyed.expect(204).body.is_empty());
    let info = Ask::of(&server).get(&format!("/drives/{drive}/info"));
    assert_eq!(info.error(), (404, "missing"));
    assert!(!server.drive_file(&drive).exists());
}

#[test]
fn json_input_and_output_are_selected_by_separate_headers() {
    let server = TestServer::start();
    let json_in = "Content-Type: application/json; charset=utf-8";
    let json_out = "Accept: application/json";
    let created = Ask::of(&server)
        .with(json_in)
        .with(json_out)
        .post(
            "/drives/create",
            r#"{"name": "n", "size": "160G", "tags": ["a", "b"]}"#,
        )
        .expect(200);
    assert_eq!(created.header("content-type"), Some("application/json"));
    assert_eq!(created.header("x-elastic-output"), None);
    let object = created.json();
    assert_eq!(object["size"], json!(171_798_691_840_u64));
    assert_eq!(object["read:bytes"], json!("4096"));
    assert_eq!(object["tags"], json!("a b"));

    let drive = object["drive"].as_str().unwrap();
    let list = Ask::of(&server)
        .with(json_out)
        .get("/drives/list")
        .expect(200);
    assert_eq!(list.json(), json!([{"drive": drive, "uuid": drive}]));
    let infos = Ask::of(&server)
        .with(json_out)
        .get("/drives/info")
        .expect(200);
    assert_eq!(infos.json(), json!([object]));
    let text = Ask::of(&server)
        .with(json_in)
        .with("Accept: */*")
        .post(
            &format!("/drives/{drive}/set"),
            r#"{"size": 5, "tags": null}"#,
        )
        .expect(200);
    assert_eq!((text.key("size"), text.key("tags")), (Some("5"), None));
    // Errors are text, whichever format was requested.
    let error = Ask::of(&server)
        .with(json_out)
        .get(&format!("/drives/{NOBODY}/info"));
    assert_eq!(error.header("content-type"), Some("text/plain"));
    assert_eq!(error.text().lines().count(), 1);
    assert!(error.text().ends_with('\n'));
}

#[test]
fn answers_have_the_shape_of_recorded_ones() {
    let server = TestServer::with_args(&["--round-size"]);
    let body = "name madeupname\nsize 10000000";
    let created = Ask::of(&server).post("/drives/create", body).expect(200);
    let ours = created
        .text()
        .replace(created.key("drive").unwrap(), "{guid}")
        .replace(&server.user, "eeeeeee-1111-1111-ffff-6f6f6f6f6f6");
    // This server encrypts nothing, and says so.
    let is_cipher = |line: &&str| line.starts_with("encryption:cipher ");
    let others = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !is_cipher(line));
        lines.map(str::to_owned).collect()
    };
    let theirs = recorded("mattparker/drives_create.txt");
    assert_eq!(others(&ours), others(&theirs));
    let ciphers = [&ours, &theirs].map(|text| text.lines().position(|line| is_cipher(&line)));
    assert_eq!(ciphers[0], ciphers[1]);

    let created = Ask::of(&server)
        .with("Content-Type: application/json")
        .with("Accept: application/json")
        .post("/drives/create", r#"{"name": "test drive", "size": "10G"}"#)
        .expect(200);
    let theirs = recorded("libcloud/drives_create.json");
    let mut theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
    let ours = created.json();
    for key in ["drive", "user", "tier", "encryption:cipher"] {
        theirs[key] = ours[key].clone();
    }
    assert_eq!(ours, theirs);

    let theirs = recorded("retyped/drive_info.json");
    let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
    let ours = Ask::of(&server)
        .with("Accept: application/json")
        .post("/drives/create", "name n\nsize 17179869184")
        .expect(200)
        .json();
    for (key, value) in theirs.as_object().unwrap() {
        assert!(!ours[key].is_null(), "{key}");
        assert_eq!(ours[key].is_number(), value.is_number(), "{key}");
    }

    for name in ["jclouds/create_drive.txt", "jclouds/drive_data.txt"] {
        let text = recorded(name);
        let path = match name {
            "jclouds/create_drive.txt" => "/drives/create".to_owned(),
            _ => format!("/drives/{}/set", create(&server, 1)),
        };
        let answer = Ask::of(&server).post(&path, &text).expect(200);
        let is_answered = |line: &&str| !line.starts_with("avoid") && !is_cipher(line);
        for line in text.lines().filter(is_answered) {
            assert!(answer.text().contains(&format!("{line}\n")), "{line}");
        }
    }
}

#[test]
fn a_changing_command_requires_post() {
    let server = TestServer::start();
    let drive = create(&server, 10);
    let changing = [
        "destroy",
        "set",
        "write",
        "write/0",
        &format!("image/{NOBODY}"),
    ];
    let mut paths: Vec<_> = changing.map(|c| format!("/drives/{drive}/{c}")).into();
    paths.push("/drives/create".to_owned());
    for path in &paths {
        let reply = Ask::of(&server).get(path);
        assert_eq!(reply.error(), (405, "method"), "{path}");
        assert_eq!(reply.header("allow"), Some("POST"));
    }
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
        for path in ["/drives/info", &paths[0]] {
            let reply = Ask::of(&server).send(method, path, b"");
            assert_eq!(reply.error(), (405, "method"), "{method} {path}");
        }
    }
    assert_eq!(read_all(&server, &drive), [0; 10]);
}

#[test]
fn errors_agree_with_the_table() {
    let server = TestServer::start();
    let drive = create(&server, 10);
    let cases: [(&str, &str, (u16, &str)); 18] = [
        ("/drives/create", "name x", (400, "usage")),
        ("/drives/create", "size 0", (400, "usage")),
        ("/drives/create", "size -1", (400, "usage")),
        ("/drives/create", "size 1\nsiez 2", (400, "usage")),
        ("/drives/create", "size 1\n\nsize 2", (400, "usage")),
        (
            "/drives/create",
            "size 18446744073709551615",
            (400, "usage"),
        ),
        ("/drives/nosuch/info", "", (404, "missing")),
        (&format!("/drives/{NOBODY}/info"), "", (404, "missing")),
        (&format!("/drives/{NOBODY}/destroy"), "", (404, "missing")),
        (&format!("/drives/{NOBODY}/write"), "x", (404, "missing")),
        ("/drives/%2e%2e/info", "", (404, "missing")),
        ("/profile/info", "", (404, "missing")),
        ("/drives/list?x", "", (404, "missing")),
        (&format!("/drives/{drive}/resize"), "", (404, "missing")),
        (
            &format!("/drives/{drive}/image/{drive}"),
            "",
            (400, "usage"),
        ),
        (
            &format!("/drives/{drive}/image/{NOBODY}"),
            "",
            (404, "missing"),
        ),
        (
            &format!("/drives/{drive}/set"),
            "encryption:cipher aes-xts-plain",
            (400, "usage"),
        ),
        (&format!("/drives/{drive}/set"), "size", (400, "usage")),
    ];
    for (path, body, error) in cases {
        assert_eq!(
            Ask::of(&server).post(path, body).error(),
            error,
            "{path} {body}"
        );
    }
    let long = format!("size 1\nname {}", "x".repeat(70_000));
    assert_eq!(
        Ask::of(&server).post("/drives/create", long).error(),
        (400, "usage")
    );
    let json = Ask::of(&server).with("Content-Type: application/json");
    assert_eq!(
        json.post("/drives/create", "{\"size\":").error(),
        (400, "usage")
    );
    assert_eq!(
        Ask::of(&server).get("/drives/list").text(),
        format!("{drive}\n")
    );
}

#[test]
fn reads_are_exact_and_never_short() {
    let server = TestServer::start();
    let len = 5 * 1024 * 1024 + 3;
    let drive = create(&server, len as u64);
    let data = ramp(0, len);
    Ask::of(&server)
        .post(&format!("/drives/{drive}/write"), &data)
        .expect(204);
    let read = |what: &str| Ask::of(&server).get(&format!("/drives/{drive}/read{what}"));
    let part = read("/7/300001").expect(200);
    assert_eq!(
        part.header("content-type"),
        Some("application/octet-stream")
    );
    assert!(part.body == data[7..300_008]);
    assert!(read("/0/4194304").expect(200).body == data[..4_194_304]);
    assert!(read("").expect(200).body == data);
    assert!(read("/5000000").expect(200).body == data[5_000_000..]);
    assert_eq!(read(&format!("/{len}/0")).expect(200).body, b"");
    assert_eq!(read(&format!("/{len}")).expect(200).body, b"");
    for bad in [
        "/0/4194305",
        "/1/5242883",
        &format!("/{len}/1"),
        &format!("/{}/0", len + 1),
        "/18446744073709551615/2",
        "/18446744073709551616",
        "/+1/1",
        "/0/1k",
    ] {
        assert_eq!(read(bad).error(), (400, "usage"), "{bad}");
    }
    // Some existing clients read with POST.
    let post = Ask::of(&server).post(&format!("/drives/{drive}/read/1/3"), "");
    assert_eq!(post.expect(200).body, data[1..4]);
    let info = Ask::of(&server).get(&format!("/drives/{drive}/info/full"));
    assert_eq!(
        info.key("write:bytes"),
        Some((4096 + len).to_string().as_str())
    );
    assert_eq!(info.key("write:requests"), Some("2"));
    assert_eq!(info.key("read:requests"), Some("8"));
}

#[test]
fn the_maximum_size_of_a_read_is_configurable() {
    let server = TestServer::with_args(&["--read-max", "10"]);
    let drive = create(&server, 100);
    let read = |what: &str| Ask::of(&server).get(&format!("/drives/{drive}/read{what}"));
    assert_eq!(read("/0/10").expect(200).body, [0; 10]);
    assert_eq!(read("/0/11").error(), (400, "usage"));
    assert_eq!(read("").expect(200).body, [0; 100]);
}

#[test]
fn set_merges_grows_and_shrinks() {
    let server = TestServer::start();
    let drive = create(&server, 10_000);
    Ask::of(&server)
        .post(&format!("/drives/{drive}/write"), ramp(1, 10_000))
        .expect(204);
    let set = |body: &str| Ask::of(&server).post(&format!("/drives/{drive}/set"), body);
    let answer = set("name new\nuser:k v\nsize 5000").expect(200);
    assert_eq!(answer.key("size"), Some("5000"));
    assert_eq!(
        (answer.key("name"), answer.key("user:k")),
        (Some("new"), Some("v"))
    );
    let answer = set("size 20k\nuser:k").expect(200);
    assert_eq!(
        (answer.key("name"), answer.key("user:k")),
        (Some("new"), None)
    );
    // Bytes that were cut off must not reappear.
    let mut expected = ramp(1, 5000);
    expected.resize(20 * 1024, 0);
    assert!(read_all(&server, &drive) == expected);
    let past = Ask::of(&server).post(&format!("/drives/{drive}/write/20480"), "x");
    assert_eq!(past.error(), (400, "usage"));
}

#[test]
fn drives_of_others_are_missing_unless_readable() {
    let server = TestServer::with_args(&["--user", A, "--user", B]);
    let drive = create(&server, 10);
    Ask::of(&server)
        .post(&format!("/drives/{drive}/write"), "0123456789")
        .expect(204);
    let commands = [
        ("info", ""),
        ("info/full", ""),
        ("read/0/1", ""),
        ("read", ""),
        ("set", "name x"),
        ("write", "x"),
        ("destroy", ""),
    ];
    for (command, body) in commands {
        let ask = |id: &str| {
            let path = format!("/drives/{id}/{command}");
            Ask::of(&server).by(B).post(&path, body)
        };
        let (theirs, nobodys) = (ask(&drive), ask(NOBODY));
        assert_eq!(theirs.error(), (404, "missing"), "{command}");
        assert_eq!(theirs.body, nobodys.body);
    }
    assert_eq!(
        Ask::of(&server)
            .by(B)
            .get("/drives/info")
            .expect(200)
            .text(),
        ""
    );

    let b = &B[..36];
    for readers in [b, "ffffffff-ffff-ffff-ffff-ffffffffffff"] {
        let body = format!("readers {NOBODY} {readers}");
        Ask::of(&server)
            .post(&format!("/drives/{drive}/set"), body)
            .expect(200);
        let ask = |command: &str| {
            Ask::of(&server)
                .by(B)
                .post(&format!("/drives/{drive}/{command}"), "")
        };
        assert_eq!(ask("read/3/2").expect(200).body, b"34");
        ask("info").expect(200);
        for command in ["set", "write", "destroy"] {
            assert_eq!(ask(command).error(), (404, "missing"), "{command}");
        }
        let copy = Ask::of(&server)
            .by(B)
            .post("/drives/create", "size 10")
            .expect(200);
        let image = format!("/drives/{}/image/{drive}", copy.key("drive").unwrap());
        Ask::of(&server).by(B).post(&image, "").expect(204);
        let standard = Ask::of(&server)
            .by(B)
            .get("/drives/list/standard")
            .expect(200);
        assert_eq!(standard.text().contains(&drive), readers != b);
        let info = Ask::of(&server)
            .by(B)
            .get("/drives/info/standard")
            .expect(200);
        assert_eq!(info.text().contains(&drive), readers != b);
    }
}

#[test]
fn imaging_copies_compresses_and_decompresses() {
    let server = TestServer::start();
    let len = 3_000_000;
    let data = ramp(0, len);
    let packed = gzip(&data);
    let source = create(&server, len as u64);
    Ask::of(&server)
        .post(&format!("/drives/{source}/write"), &data)
        .expect(204);
    let image = |to: &str, from: &str| {
        Ask::of(&server).post(&format!("/drives/{to}/image/{from}"), "junk is ignored")
    };

    let copy = create(&server, len as u64 + 7);
    Ask::of(&server)
        .post(&format!("/drives/{copy}/write"), vec![9; len])
        .expect(204);
    image(&copy, &source).expect(204);
    settle(&server, &copy);
    assert!(read_all(&server, &copy)[..len] == data);

    let zipped = create(&server, len as u64);
    image(&zipped, &format!("{source}/gzip")).expect(204);
    settle(&server, &zipped);
    assert!(gunzip(&read_all(&server, &zipped)) == data);

    // The drive is longer than the gzip file at its beginning.
    let from = create(&server, packed.len() as u64 + 5000);
    Ask::of(&server)
        .post(&format!("/drives/{from}/write"), &packed)
        .expect(204);
    let unzipped = create(&server, len as u64);
    image(&unzipped, &format!("{from}/gunzip")).expect(204);
    let info = settle(&server, &unzipped);
    assert!(info.contains("status active\n"), "{info}");
    assert!(read_all(&server, &unzipped) == data);

    // A failed imaging stays visible until something is written to the drive.
    let small = create(&server, 10);
    assert_eq!(image(&small, &source).error(), (400, "usage"));
    for (to, from) in [(&small, &from), (&copy, &source)] {
        image(to, &format!("{from}/gunzip")).expect(204);
        let info = settle(&server, to);
        assert!(info.contains("status inactive\n"), "{info}");
    }
    Ask::of(&server)
        .post(&format!("/drives/{small}/write"), "x")
        .expect(204);
    assert!(settle(&server, &small).contains("status active\n"));
}

#[test]
fn both_drives_are_claimed_while_imaging() {
    let mut server = TestServer::with_plan(&json!({"imaging_bytes_per_s": 1000}));
    let source = create(&server, 60_000);
    Ask::of(&server)
        .post(&format!("/drives/{source}/write"), noise(3, 60_000))
        .expect(204);
    let [first, second, third] = [(); 3].map(|()| create(&server, 60_000));
    let image = |to: &str| {
        let path = format!("/drives/{to}/image/{source}");
        Ask::of(&server).post(&path, "")
    };
    for drive in [&first, &second, &third] {
        image(drive).expect(204);
    }
    let info = |drive: &str, what: &str| {
        let info = Ask::of(&server).get(&format!("/drives/{drive}/{what}"));
        info.expect(200)
    };
    for drive in [&first, &second, &third] {
        assert!(info(drive, "info").key("claimed").is_some());
        let refused = [
            image(drive),
            Ask::of(&server).post(&format!("/drives/{drive}/write"), "x"),
            Ask::of(&server).get(&format!("/drives/{drive}/read/0/1")),
        ];
        for reply in refused {
            assert_eq!(reply.error(), (409, "busy"));
        }
    }
    assert!(info(&source, "info").key("claimed").is_some());
    for (command, body) in [("write", "x"), ("destroy", ""), ("set", "size 1")] {
        let reply = Ask::of(&server).post(&format!("/drives/{source}/{command}"), body);
        assert_eq!(reply.error(), (409, "busy"), "{command}");
    }
    // Two imagings run at a time, so the third one waits.
    wait_until("two copies under way", || {
        [&first, &second].map(|copy| info(copy, "info").key("imaging") == Some("true")) == [true; 2]
    });
    let full = info(&first, "info/full");
    let percent = full.key("imaging").unwrap().strip_suffix('%');
    assert!(percent.unwrap().parse::<u64>().unwrap() < 100);
    for what in ["info", "info/full"] {
        assert_eq!(info(&third, what).key("imaging"), Some("queued"));
    }
    server.kill9();
}

#[test]
fn an_imaging_cut_off_by_kill_9_is_resumed_at_the_next_start() {
    for packing in ["", "/gzip", "/gunzip"] {
        let plain = noise(4, 400_000);
        let image = match packing {
            "/gunzip" => gzip(&plain),
            _ => plain.clone(),
        };
        let plan = json!({"imaging_bytes_per_s": 800_000});
        let mut server = TestServer::with_plan(&plan);
        let source = create(&server, image.len() as u64);
        // Old content must not be mistaken for the content that is still to be copied.
        let copy = create(&server, 900_000);
        for (drive, bytes) in [(&source, &image), (&copy, &vec![9; 900_000])] {
            let path = format!("/drives/{drive}/write");
            Ask::of(&server).post(&path, bytes).expect(204);
        }
        let path = format!("/drives/{copy}/image/{source}{packing}");
        Ask::of(&server).post(&path, "").expect(204);
        for _ in 0..3 {
            // It is somewhere in the middle; or, on a slow machine, already finished.
            let is_waiting = |value: &str| value == "queued" || value == "0%";
            let full = format!("/drives/{copy}/info/full");
            wait_until("the first bytes of the copy", || {
                let info = Ask::of(&server).get(&full);
                !info.key("imaging").is_some_and(is_waiting)
            });
            server.kill9();
            server.start_again();
            let write = Ask::of(&server).post(&format!("/drives/{source}/write"), &image[..1]);
            let read = Ask::of(&server).get(&format!("/drives/{copy}/read/0/1"));
            // They are claimed again before any client can use them, unless the imaging has ended.
            assert!(matches!((write.status, read.status), (409, 409) | (_, 200)));
        }
        assert!(settle(&server, &copy).contains("status active\n"));
        let got = read_all(&server, &copy);
        match packing {
            "/gzip" => assert!(gunzip(&got[..got.len() - 300_000]) == plain),
            _ => assert!(got[..plain.len()] == plain && got[plain.len()..] == vec![9; 500_000]),
        }
    }
}

#[test]
fn a_stored_imaging_is_resumed_or_fails_without_its_source() {
    let mut server = TestServer::with_plan(&json!({"imaging_bytes_per_s": 1}));
    let source = create(&server, 100);
    Ask::of(&server)
        .post(&format!("/drives/{source}/write"), ramp(0, 100))
        .expect(204);
    let drives = [(); 2].map(|()| create(&server, 100));
    for drive in &drives {
        let path = format!("/drives/{drive}/image/{source}");
        Ask::of(&server).post(&path, "").expect(204);
    }
    server.kill9();
    for (drive, order) in drives
        .iter()
        .zip([format!("copy {source} 60"), format!("copy {NOBODY} 0")])
    {
        let file = server.metadata_file(drive).with_extension("imaging");
        let kept = std::fs::read_to_string(&file).unwrap();
        let kept = kept[..kept.rfind("digest ").unwrap()].replace(
            &format!("imaging copy {source} 0"),
            &format!("imaging {order}"),
        );
        let hex: String = sha2::Sha256::digest(&kept)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        std::fs::write(&file, format!("{kept}digest {hex}\n")).unwrap();
    }
    let server = TestServer::start_with(&[], &server.data);
    assert!(settle(&server, &drives[0]).contains("status active\n"));
    let got = read_all(&server, &drives[0]);
    assert!(got[..60] == [0; 60] && got[60..] == ramp(60, 40));
    assert!(settle(&server, &drives[1]).contains("status inactive\n"));
}

/// Waits until an imaging ends, and returns the info after it.
fn settle(server: &TestServer, drive: &str) -> String {
    loop {
        let info = Ask::of(server)
            .get(&format!("/drives/{drive}/info"))
            .expect(200);
        if info.key("imaging").is_none() {
            assert_eq!(info.key("claimed"), None);
            return info.text().to_owned();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn one_connection_carries_many_requests() {
    let server = TestServer::start();
    let ask = Ask::of(&server).with("Content-Length: 0");
    let (first, second) = (
        ask.head("GET", "/drives/list"),
        ask.head("POST", "/drives/nosuch"),
    );
    let request = format!("{first}\r\n{second}\r\n");
    let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let mut status = || {
        crate::support::http::read_reply(&mut stream)
            .unwrap()
            .status
    };
    assert_eq!((status(), status()), (200, 404));
    // A client that closed only its sending direction still receives its answer.
    let reply = raw(server.address(), format!("{first}\r\n").as_bytes());
    assert_eq!(reply.unwrap().status, 200);
}

#[test]
fn a_request_with_two_meanings_is_refused() {
    let server = TestServer::start();
    let key = basic(&server.auth());
    let other = basic(B);
    for (head, status) in [
        (
            format!("GET /drives/list HTTP/1.1\r\nHost: a\r\n{key}"),
            200,
        ),
        (
            format!("GET /drives/list HTTP/1.1\r\nHost: a\r\n{other}{key}"),
            400,
        ),
        (
            format!("GET http://A/drives/list HTTP/1.1\r\nHost: a\r\n{key}"),
            200,
        ),
        (
            format!("GET http://b/drives/list HTTP/1.1\r\nHost: a\r\n{key}"),
            400,
        ),
    ] {
        let reply = raw(server.address(), format!("{head}\r\n").as_bytes());
        assert_eq!(reply.unwrap().status, status, "{head}");
    }
    // libcloud relies on this (docs/dev/reference.md, 2.2).
    let twice = "name a\nsize 1\nsize 4096";
    let reply = Ask::of(&server).post("/drives/create", twice);
    assert_eq!(reply.expect(200).key("size"), Some("4096"));
}
