//! Files that another user planted where a program creates or looks for its own. The program
//! neither follows, overwrites nor trusts them, and names their owner.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use openhosting::digest::ChunkDigest;
use openhosting::journal::{Direction, HEADER_BYTES, Header, RECORD_BYTES, Record};

use crate::support::cli::{DOWNLOAD, Desk, Outcome, SIMPLE, Tool, UPLOAD};
use crate::support::needs::{Need, needs};
use crate::support::noise;
use crate::support::server::TestServer;

const C: usize = 64 * 1024;
const SIZE: usize = 8 * C;
/// The user who plants files, and another one who is not root either.
const PLANTER: u32 = 65_533;
const NOBODY: u32 = 65_534;
const SERVER: &str = env!("CARGO_BIN_EXE_openhosting-server");

/// Who runs a program, in a directory that others can write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    Nobody,
}

/// The owner of the directory, and its mode.
const PLACES: [(Who, u32, u32); 3] = [
    // Root works in the directory of a user.
    (Who::Root, PLANTER, 0o755),
    // As /tmp.
    (Who::Root, 0, 0o1777),
    (Who::Nobody, 0, 0o1777),
];

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// The files on these paths are essential for a program, and must not change.
struct Scene {
    desk: Desk,
    server: TestServer,
    drive: String,
    image: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let desk = Desk::new();
        let server = desk.server();
        let image = noise(5, SIZE);
        desk.file("in", &image);
        let up = desk.upload(&server.uri).args("-q in").run().code(0);
        let home = desk.work().with_file_name("home-of-nobody");
        std::fs::create_dir(&home).unwrap();
        let _ = chown(&home, Some(NOBODY), Some(NOBODY));
        Self {
            drive: up.created(),
            desk,
            server,
            image,
        }
    }

    /// A new directory with this owner and mode.
    fn place(&self, owner: u32, mode: u32) -> PathBuf {
        let place = self.desk.path(format!("place-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&place).unwrap();
        chown(&place, Some(owner), Some(owner)).unwrap();
        chmod(&place, mode);
        place
    }

    fn tool(&self, who: Who, program: &str) -> Tool<'_> {
        let tool = match who {
            Who::Root => self.desk.tool(program),
            Who::Nobody => self
                .desk
                .tool("setpriv")
                .args(&format!("--reuid={NOBODY} --regid={NOBODY} --clear-groups"))
                .arg(program)
                .env("HOME", self.desk.work().with_file_name("home-of-nobody")),
        };
        tool.env("OHURI", &self.server.uri)
    }

    fn download(&self, who: Who, flags: &str, out: &Path) -> Outcome {
        let tool = self.tool(who, DOWNLOAD).args("-q -c 65536").args(flags);
        tool.arg(&self.drive).arg(out).run()
    }

    /// Plants a file with these bytes, writable by everybody.
    fn plant(&self, path: &Path, bytes: &[u8]) {
        // With fs.protected_regular, as Debian sets it, not even root may open somebody else's file
        // for creation in a sticky directory.
        let _ = std::fs::remove_file(path);
        std::fs::write(path, bytes).unwrap();
        chmod(path, 0o666);
        chown(path, Some(PLANTER), Some(PLANTER)).unwrap();
    }

    /// The journal of a download that has all of `image`.
    fn journal(&self, image: &[u8]) -> Vec<u8> {
        let header = Header {
            direction: Direction::Download,
            session: [7; 16],
            token: [0; 16],
            size: image.len() as u64,
            chunk: C as u64,
            first: 0,
            source: None,
            endpoint: self.server.uri.clone(),
            user: self.desk.user.clone(),
        };
        let drive = Record::Drive {
            id: self.drive.parse().unwrap(),
            is_ours: false,
        };
        let done = (0..)
            .zip(image.chunks(C))
            .map(|(index, chunk)| Record::Done {
                index,
                len: C as u32,
                digest: ChunkDigest::of(chunk),
            });
        let mut bytes = header.encode().unwrap().to_vec();
        for (number, record) in (0..).zip([drive].into_iter().chain(done)) {
            bytes.extend_from_slice(&record.encode(number, &header.session));
        }
        bytes
    }
}

#[test]
fn a_download_refuses_a_foreign_part_file_or_journal() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scene = Scene::new();
    let mut wrong = scene.image.clone();
    wrong[C..2 * C].fill(b'!');
    for (who, owner, mode) in PLACES {
        let place = scene.place(owner, mode);
        let (out, part, journal) = (
            place.join("out"),
            place.join("out.oh-part"),
            place.join("out.ohj"),
        );
        let plant_all = || {
            scene.plant(&part, &wrong);
            scene.plant(&journal, &scene.journal(&wrong));
        };
        plant_all();
        let refused = scene.download(who, "--verify none", &out);
        let refused = refused
            .code(1)
            .says("it belongs to user 65533")
            .says("out.ohj");
        assert!(refused.stderr.contains("--restart"), "{refused:?}");
        std::fs::remove_file(&journal).unwrap();
        let refused = scene.download(who, "--verify none", &out);
        let _ = refused.code(1).says("out.oh-part").says("--restart");
        assert!(!out.exists() && std::fs::read(&part).unwrap() == wrong);
        plant_all();
        let again = scene.download(who, "--restart", &out);
        if who == Who::Root {
            let _ = again.code(0);
            assert!(std::fs::read(&out).unwrap() == scene.image);
            assert_eq!((out.metadata().unwrap().uid(), part.exists()), (0, false));
        } else {
            // Only its owner can remove it there.
            let _ = again.code(1).says("Cannot remove").says("--journal PATH");
        }
    }
}

#[test]
fn a_foreign_part_file_is_not_used_by_shards() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scene = Scene::new();
    for (who, owner, mode) in PLACES {
        let place = scene.place(owner, mode);
        let (out, part) = (place.join("out"), place.join("out.oh-part"));
        scene.plant(&part, &vec![b'!'; SIZE]);
        let refused = scene.download(who, "--shard 1/1", &out).code(1);
        let _ = refused.says("it belongs to user 65533");
        assert!(std::fs::read(&part).unwrap() == vec![b'!'; SIZE]);
        scene.plant(&out, b"!");
        let refused = scene.download(who, "-o 0", &out).code(1);
        let _ = refused.says("it belongs to user 65533").says("--force");
        assert_eq!(std::fs::read(&out).unwrap(), b"!");
        let _ = scene.download(who, "-o 0 --force", &out).code(0);
        assert!(std::fs::read(&out).unwrap() == scene.image);
    }
}

#[test]
fn copying_a_damaged_journal_follows_no_link() {
    let scene = Scene::new();
    let place = scene.desk.path("place");
    std::fs::create_dir(&place).unwrap();
    let path = |name: &str| place.join(name);
    let victim = scene.desk.file("victim", b"precious");
    let mut journal = scene.journal(&scene.image);
    // Enough is recorded as synced that the rest does not count as the tail of a crash.
    let synced = Record::Synced { records: 9 }.encode(9, &[7; 16]);
    journal.extend_from_slice(&synced);
    journal[HEADER_BYTES + 2 * RECORD_BYTES] ^= 1;
    for (name, bytes) in [("out.oh-part", &scene.image), ("out.ohj", &journal)] {
        std::fs::write(path(name), bytes).unwrap();
        chmod(&path(name), 0o600);
    }
    symlink(&victim, path("out.ohj.bad")).unwrap();
    let _ = lchown(path("out.ohj.bad"), Some(PLANTER), Some(PLANTER));
    let _ = scene.download(Who::Root, "", &path("out")).code(0);
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    let copy = path("out.ohj.bad").symlink_metadata().unwrap();
    assert!(copy.is_file() && copy.mode() & 0o777 == 0o600, "{copy:?}");
    assert!(std::fs::read(path("out.ohj.bad")).unwrap() == journal);
    assert!(std::fs::read(path("out")).unwrap() == scene.image);
}

/// Runs a server on this directory, which it must refuse.
fn serve(scene: &Scene, who: Who, data: &Path) -> Outcome {
    let server = scene.tool(who, SERVER).args("--json --listen 127.0.0.1:0");
    server.arg("--data").arg(data).run()
}

#[test]
fn a_foreign_data_directory_is_refused_and_links_in_it_are_not_followed() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scene = Scene::new();
    // A directory of a server in which a drive's bytes were replaced by a link.
    let mut own = TestServer::start();
    let drive = {
        let tool = scene.desk.upload(&own.uri).env("OHAUTH", own.auth());
        tool.args("-q in").run().code(0).created()
    };
    assert!(own.stop().success());
    let victim = scene.desk.path("victim");
    let plant_in = |data: &Path| {
        std::fs::create_dir_all(data.join("drives")).unwrap();
        std::fs::copy(
            own.metadata_file(&drive),
            data.join(format!("drives/{drive}.meta")),
        )
        .unwrap();
        symlink(&victim, data.join(format!("drives/{drive}.data"))).unwrap();
        symlink(&victim, data.join("lock")).unwrap();
    };
    let check = |outcome: Outcome| {
        assert_eq!(victim.metadata().unwrap().len(), 3 * SIZE as u64);
        outcome
    };
    for (who, owner, mode) in PLACES {
        std::fs::write(&victim, vec![1; 3 * SIZE]).unwrap();
        chmod(&victim, 0o666);
        let place = scene.place(owner, mode);
        let data = place.join("data");
        plant_in(&data);
        for path in [&data, &data.join("drives")] {
            chown(path, Some(PLANTER), Some(PLANTER)).unwrap();
            chmod(path, 0o777);
        }
        let refused = check(serve(&scene, who, &data).code(1));
        let _ = refused.says("it belongs to user 65533").says("--data DIR");
        let local = scene.tool(who, UPLOAD).arg("--local").arg(&data).arg("in");
        let _ = check(local.run().code(1)).says("it belongs to user 65533");
        // Through a link that another user created, to a directory of ours.
        let user = match who {
            Who::Root => 0,
            Who::Nobody => NOBODY,
        };
        let ours = scene.place(user, 0o700);
        symlink(&ours, place.join("link")).unwrap();
        lchown(place.join("link"), Some(PLANTER), Some(PLANTER)).unwrap();
        let refused = check(serve(&scene, who, &place.join("link")).code(1));
        let _ = refused.says("it belongs to user 65533");
        assert_eq!(std::fs::read_dir(&ours).unwrap().count(), 0);
    }
    // Everybody may write to it.
    let open = scene.place(0, 0o1777).join("open");
    std::fs::create_dir(&open).unwrap();
    chmod(&open, 0o1777);
    let refused = serve(&scene, Who::Root, &open).code(1);
    let _ = refused.says("everybody may write to it").says("chmod o-w");
}

#[test]
fn a_link_in_place_of_a_drive_is_not_followed() {
    let scene = Scene::new();
    let mut server = TestServer::start();
    let tool = scene.desk.upload(&server.uri).env("OHAUTH", server.auth());
    let drive = tool.args("-q in").run().code(0).created();
    assert!(server.stop().success());
    let victim = scene.desk.file("victim", &vec![1; 3 * SIZE]);
    std::fs::remove_file(server.drive_file(&drive)).unwrap();
    symlink(&victim, server.drive_file(&drive)).unwrap();
    server.start_again();
    assert_eq!(victim.metadata().unwrap().len(), 3 * SIZE as u64);
    assert!(
        server.log().contains("it is a symbolic link"),
        "{}",
        server.log()
    );
    // Neither is the lock: nothing is created where the link leads.
    assert!(server.stop().success());
    let lock = server.data.join("lock");
    std::fs::remove_file(&lock).unwrap();
    symlink(scene.desk.path("elsewhere"), &lock).unwrap();
    let server = scene.desk.tool(SERVER).arg("--data").arg(&server.data);
    let _ = server.run().code(1).says("it is a symbolic link");
    assert!(!scene.desk.path("elsewhere").exists());
}

#[test]
fn a_foreign_journal_directory_or_trace_is_refused() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scene = Scene::new();
    for (who, owner, mode) in PLACES {
        let place = scene.place(owner, mode);
        let journals = place.join("state/openhosting/journals");
        std::fs::create_dir_all(&journals).unwrap();
        chmod(&journals, 0o777);
        chown(&journals, Some(PLANTER), Some(PLANTER)).unwrap();
        let upload = || scene.tool(who, UPLOAD).arg("-q");
        let state = upload().env("XDG_STATE_HOME", place.join("state"));
        let refused = state.arg("in").run().code(2);
        let _ = refused
            .says("it belongs to user 65533")
            .says("--journal PATH");
        let trace = place.join("trace");
        scene.plant(&trace, b"planted");
        let refused = upload().arg("--trace").arg(&trace).arg("in").run().code(1);
        let _ = refused.says("it belongs to user 65533");
        assert_eq!(std::fs::read(&trace).unwrap(), b"planted");
    }
}

#[test]
fn manual_pages_and_completions_replace_links() {
    let scene = Scene::new();
    let victim = scene.desk.file("victim", b"precious");
    for (words, name) in [
        ("man out", "openhosting.1"),
        ("completions bash out", "openhosting.bash"),
    ] {
        let link = scene.desk.path("out").join(name);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&victim, &link).unwrap();
        let _ = scene.desk.tool(SIMPLE).args(words).run().code(0);
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        let text = std::fs::read_to_string(&link).unwrap();
        assert!(text.contains("openhosting"), "{text}");
    }
}

#[test]
fn a_pipe_in_place_of_a_staged_file_does_not_block() {
    let scene = Scene::new();
    let place = scene.place(0, 0o1777);
    let out = place.join("out");
    let made = Command::new("mkfifo")
        .arg(place.join("out.oh-part"))
        .status();
    assert!(made.unwrap().success());
    let _ = scene
        .download(Who::Root, "", &out)
        .code(1)
        .says("out.oh-part");
    std::fs::rename(place.join("out.oh-part"), place.join("pipe")).unwrap();
    symlink(place.join("pipe"), place.join("out.oh-part")).unwrap();
    let _ = scene.download(Who::Root, "--restart", &out).code(0);
    assert_eq!(std::fs::read(&out).unwrap(), scene.image);
}

#[test]
fn a_pipe_in_place_of_a_file_does_not_block() {
    let scene = Scene::new();
    let pipe = scene.desk.path("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    chmod(&pipe, 0o600);
    let receipt = scene.desk.path("r.json");
    let simple = || scene.tool(Who::Root, SIMPLE);
    std::fs::write(&receipt, "{}").unwrap();
    let signature = scene.desk.path("r.json.minisig");
    let made = Command::new("mkfifo").arg(&signature).status();
    assert!(made.unwrap().success());
    let config = scene.desk.path("config/openhosting/config.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    let made = Command::new("mkfifo").arg(&config).status();
    assert!(made.unwrap().success());
    chmod(&config, 0o600);
    let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    let verify = |words: &str| simple().args("verify").args(words);
    let upload = |words: &str| scene.tool(Who::Root, UPLOAD).args(words).arg("in");
    let server = |words: &str| scene.desk.tool(SERVER).args("--data data").args(words);
    for (tool, code) in [
        (verify("pipe"), 1),
        (verify(&format!("--pubkey {key} r.json")), 4),
        (verify("--pubkey pipe r.json"), 1),
        (upload("--sha256-file pipe"), 1),
        (upload("--cacert pipe"), 1),
        (upload("--trace pipe"), 1),
        (
            upload("")
                .unset("OHAUTH")
                .env("XDG_CONFIG_HOME", scene.desk.path("config")),
            1,
        ),
        (server("--users-file pipe"), 1),
        (server("--fault-plan pipe"), 1),
    ] {
        let _ = tool.run().code(code).says("it is not a regular file");
    }
    // The pipe that a shell creates for `<(COMMAND)` is read.
    let digest = openhosting::digest::Digest::of(&scene.image);
    let script = format!("exec {UPLOAD} -q --sha256-file <(sleep 0.2; echo {digest}) in");
    let bash = scene.tool(Who::Root, "bash").arg("-c").arg(script);
    let _ = bash.run().code(0);
}
