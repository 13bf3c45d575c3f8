//! State of drives: what is stored agrees with what the server answers, in spite of concurrent
//! requests, failures and crashes.

use std::path::Path;

use tempfile::TempDir;

use crate::support::disk::Tmpfs;
use crate::support::http::{Ask, Reply, create, drives, info, read_all};
use crate::support::noise;
use crate::support::server::TestServer;

const MIB: usize = 1 << 20;
const OWNER: &str = "2164ce57-591c-43ee-ade5-e2fe0ee13c3e:key-a";
const READER: &str = "58ca3c1f-7629-4771-9b71-863f40153ba4:key-b";

fn post(server: &TestServer, drive: &str, command: &str, body: impl AsRef<[u8]>) -> Reply {
    Ask::of(server).post(&format!("/drives/{drive}/{command}"), body)
}

/// Waits until an imaging into a drive ends, and returns the status of the drive.
fn status_after_imaging(server: &TestServer, drive: &str) -> String {
    loop {
        let info = Ask::of(server).get(&format!("/drives/{drive}/info"));
        let info = info.expect(200);
        if info.key("imaging").is_none() {
            return info.key("status").unwrap().to_owned();
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Names of the files of drives.
fn files(server: &TestServer) -> Vec<String> {
    let entries = std::fs::read_dir(server.data.join("drives")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// A server whose data directory is a file system of this size.
fn on_small_disk(root: &Path, bytes: usize) -> Option<(Tmpfs, TestServer)> {
    let disk = Tmpfs::mount(root, bytes)?;
    let server = TestServer::start_with(&[], &root.join("data"));
    Some((disk, server))
}

#[test]
fn an_imaging_that_fills_the_disk_is_not_retried() {
    let root = tempfile::tempdir().unwrap();
    let Some((_disk, mut server)) = on_small_disk(root.path(), 8 * MIB) else {
        return;
    };
    let source = create(&server, 5 * MIB as u64);
    let image = noise(1, 5 * MIB);
    post(&server, &source, "write", &image).expect(204);
    let filler = create(&server, MIB as u64);
    post(&server, &filler, "write", noise(2, MIB)).expect(204);
    let copy = create(&server, 5 * MIB as u64);
    post(&server, &copy, &format!("image/{source}"), "").expect(204);
    assert_eq!(status_after_imaging(&server, &copy), "inactive");
    // The filler is not needed in what follows, nor after a crash.
    post(&server, &filler, "destroy", "").expect(204);
    let written = noise(3, 4096);
    post(&server, &source, "write/8192", &written).expect(204);
    server.kill9();
    server.start_again();
    assert_eq!(status_after_imaging(&server, &copy), "inactive");
    post(&server, &copy, "write", &written).expect(204);
    assert_eq!(info(&server, &copy, "status").as_deref(), Some("active"));
    server.kill9();
    server.start_again();
    assert_eq!(status_after_imaging(&server, &copy), "active");
    assert!(read_all(&server, &copy)[..4096] == written[..]);
}

/// The same with a disk that is only full at the end of the imaging.
#[test]
fn a_write_after_a_failed_imaging_is_not_overwritten_at_the_next_start() {
    let root = tempfile::tempdir().unwrap();
    let Some((_disk, mut server)) = on_small_disk(root.path(), 8 * MIB) else {
        return;
    };
    let source = create(&server, 6 * MIB as u64);
    post(&server, &source, "write", noise(1, 5 * MIB)).expect(204);
    let filler = create(&server, MIB as u64);
    post(&server, &filler, "write", noise(2, MIB)).expect(204);
    let copy = create(&server, 6 * MIB as u64);
    post(&server, &copy, &format!("image/{source}"), "").expect(204);
    status_after_imaging(&server, &copy);
    post(&server, &filler, "destroy", "").expect(204);
    let written = noise(3, 4096);
    post(&server, &copy, "write", &written).expect(204);
    post(&server, &source, "write", vec![0; 5 * MIB]).expect(204);
    server.kill9();
    server.start_again();
    assert_eq!(status_after_imaging(&server, &copy), "active");
    assert!(read_all(&server, &copy)[..4096] == written[..]);
}

#[test]
fn a_drive_that_is_set_while_it_is_destroyed_does_not_come_back() {
    let mut server = TestServer::start();
    for round in 0..60 {
        let drive = create(&server, 4096);
        std::thread::scope(|scope| {
            for client in 0..3 {
                let (server, drive) = (&server, &drive);
                scope.spawn(move || {
                    for i in 0..3 {
                        let name = format!("name {client}-{i}");
                        let set = post(server, drive, "set", name);
                        assert!(matches!(set.status, 200 | 404), "{}", set.head);
                    }
                });
            }
            scope.spawn(|| post(&server, &drive, "destroy", "").expect(204));
        });
        assert_eq!(
            post(&server, &drive, "set", "name x").error(),
            (404, "missing")
        );
        assert_eq!(files(&server), [""; 0], "round {round}");
    }
    server.restart();
    assert_eq!(drives(&server), [""; 0]);
}

/// A server that images slowly, with a drive of OWNER that READER images into two drives.
fn imaged_by_a_reader() -> (TempDir, TestServer, String, [String; 2]) {
    let directory = tempfile::tempdir().unwrap();
    let plan = directory.path().join("plan.json");
    std::fs::write(&plan, r#"{"imaging_bytes_per_s": 1000}"#).unwrap();
    let plan = plan.to_str().unwrap();
    let args = ["--user", OWNER, "--user", READER, "--fault-plan", plan];
    let server = TestServer::with_args(&args);
    let drive = create(&server, MIB as u64);
    post(&server, &drive, "write", noise(1, MIB)).expect(204);
    let readers = format!("readers {}", &READER[..36]);
    post(&server, &drive, "set", readers).expect(200);
    let copies = [(); 2].map(|()| {
        let made = by_reader(&server, "/drives/create", format!("size {MIB}"));
        let copy = made.expect(200).key("drive").unwrap().to_owned();
        by_reader(&server, &format!("/drives/{copy}/image/{drive}"), "").expect(204);
        copy
    });
    (directory, server, drive, copies)
}

fn by_reader(server: &TestServer, path: &str, body: impl AsRef<[u8]>) -> Reply {
    Ask::of(server).by(READER).post(path, body)
}

/// Waits until an imaging by READER has ended, and checks that its drive is incomplete.
fn has_failed(server: &TestServer, copy: &str) {
    loop {
        let info = by_reader(server, &format!("/drives/{copy}/info"), "").expect(200);
        if info.key("imaging").is_none() {
            assert_eq!(info.key("status"), Some("inactive"));
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn imagings_of_a_reader_do_not_block_destroying() {
    let (_plan, mut server, drive, copies) = imaged_by_a_reader();
    post(&server, &drive, "destroy", "").expect(204);
    for copy in &copies {
        has_failed(&server, copy);
    }
    server.kill9();
    server.start_again();
    for copy in &copies {
        has_failed(&server, copy);
    }
}

#[test]
fn imagings_end_when_their_user_is_removed_from_the_readers() {
    let (_plan, server, drive, copies) = imaged_by_a_reader();
    let write = post(&server, &drive, "write", "x");
    assert_eq!(write.error(), (409, "busy"));
    assert!(
        write.text().contains("taken off its readers"),
        "{}",
        write.text()
    );
    post(&server, &drive, "set", "readers").expect(200);
    post(&server, &drive, "write", "x").expect(204);
    post(&server, &drive, "set", "size 5").expect(200);
    for copy in &copies {
        has_failed(&server, copy);
    }
}

/// Bytes on disk of the deleted or present files with this name that a process has open.
fn open_bytes(pid: u32, name: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_named = |path: &std::path::PathBuf| {
        let target = path.read_link();
        target.is_ok_and(|target| target.to_string_lossy().contains(name))
    };
    let open = paths
        .filter(is_named)
        .filter_map(|path| path.metadata().ok());
    open.map(|file| file.blocks() * 512).sum()
}

#[test]
fn an_unread_answer_keeps_no_space_of_a_destroyed_drive() {
    use std::io::{Read, Write};
    let server = TestServer::with_args(&["--max-bytes", "64M"]);
    let drive = create(&server, 64 << 20);
    post(&server, &drive, "write", noise(1, 64 << 20)).expect(204);
    let head = Ask::of(&server).head("GET", &format!("/drives/{drive}/read"));
    let mut reader = std::net::TcpStream::connect(server.address()).unwrap();
    reader.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    let mut begin = [0; 20];
    reader.read_exact(&mut begin).unwrap();
    assert!(open_bytes(server.pid(), &drive) >= 64 << 20);
    post(&server, &drive, "destroy", "").expect(204);
    assert_eq!(open_bytes(server.pid(), &drive), 0);
    // Its space is free again, so another drive can use it.
    create(&server, 64 << 20);
    // The rest of the answer is not filled with bytes of another drive.
    let mut rest = Vec::new();
    let _ = reader.read_to_end(&mut rest);
    assert!(rest.len() < 64 << 20, "{}", rest.len());
}
