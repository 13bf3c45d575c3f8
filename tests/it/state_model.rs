//! Random operations of several clients, all at once, compared with a simple model of drives. The
//! server is killed with `kill -9` and restarted, and its disk is full for a while.
//!
//! In each round every client performs a few operations one after the other, while the other
//! clients do the same. Afterwards there must be one order of all operations that keeps the order
//! of each client, in which the model gives each answer that was received and ends in the observed
//! state. Operations without an answer, because the server was killed, may be part of that order or
//! not.
//!
//! Set `OH_ROUNDS=5000` for more rounds, and `OH_SEED=N` to repeat the same operations (how they
//! overlap still depends on the machine).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use fastrand::Rng;

use crate::support::disk::Tmpfs;
use crate::support::http::{Ask, Reply, read_reply};
use crate::support::server::TestServer;
use crate::support::{rounds, seed};

const USERS: [&str; 2] = [
    "2164ce57-591c-43ee-ade5-e2fe0ee13c3e:key-a",
    "58ca3c1f-7629-4771-9b71-863f40153ba4:key-b",
];
/// The user of each client.
const CLIENTS: [usize; 3] = [0, 0, 1];
const DRIVES_MAX: usize = 5;
const BYTES_MAX: usize = 40 * 1024;
const SIZES: [usize; 5] = [1, 5000, 8192, 10_000, 16_384];

/// The UUID of a user.
fn id(user: usize) -> &'static str {
    &USERS[user][..36]
}

#[derive(Clone, Debug, PartialEq)]
struct Drive {
    owner: usize,
    name: String,
    /// Whether the other user may read the drive.
    is_readable: bool,
    is_shared: bool,
    is_whole: bool,
    /// The bytes; `None` is a byte that may have any value.
    data: Vec<Option<u8>>,
}

type Model = BTreeMap<String, Drive>;

#[derive(Clone, Debug)]
enum What {
    Create { name: String, size: usize },
    Set(Set),
    Destroy,
    Write { offset: usize, data: Vec<u8> },
    Read { offset: usize, len: usize },
    Image { from: String },
    Info,
    List,
}

#[derive(Clone, Debug, Default)]
struct Set {
    name: Option<String>,
    size: Option<usize>,
    is_readable: Option<bool>,
    is_shared: Option<bool>,
}

/// An operation of a user, and the drive that it is about, if any.
#[derive(Clone, Debug)]
struct Op {
    user: usize,
    drive: String,
    what: What,
}

/// An operation and its result. Without a reply it may have happened or not.
#[derive(Debug)]
struct Done {
    op: Op,
    reply: Option<Reply>,
}

impl Op {
    fn random(rng: &mut Rng, user: usize, model: &Model, drives: &[String]) -> Self {
        // Mostly own drives, and mostly one of the oldest two, so that clients conflict there.
        let own: Vec<_> = drives
            .iter()
            .filter(|id| model[*id].owner == user)
            .collect();
        let any = |rng: &mut Rng| {
            let all: Vec<_> = match own.is_empty() || rng.u8(..5) == 0 {
                true => drives.iter().collect(),
                false => own.clone(),
            };
            let few = if rng.bool() {
                all.len().min(2)
            } else {
                all.len()
            };
            all[rng.usize(..few)].clone()
        };
        let size = |rng: &mut Rng| SIZES[rng.usize(..SIZES.len())];
        let name = |rng: &mut Rng| format!("n{}", rng.u64(..));
        if drives.is_empty() {
            return Self::create(user, name(rng), size(rng));
        }
        let drive = any(rng);
        let len = model[&drive].data.len();
        let what = match rng.u8(..20) {
            0..3 => return Self::create(user, name(rng), size(rng)),
            3..8 => What::Set(Set {
                name: rng.bool().then(|| name(rng)),
                size: rng.bool().then(|| size(rng)),
                is_readable: rng.bool().then(|| rng.u8(..3) > 0),
                is_shared: rng.bool().then(|| rng.bool()),
            }),
            8..10 => What::Destroy,
            10..14 => {
                // Some writes go past the end of the drive, by one byte or by many.
                let offset = rng.usize(..=len);
                let most = (len - offset + usize::from(rng.u8(..8) == 0)).min(30_000);
                let byte = rng.u8(..3) * 85;
                let data = vec![byte; rng.usize(..=most)];
                What::Write { offset, data }
            }
            14..16 => {
                let offset = rng.usize(..=len);
                let len = rng.usize(..=(len - offset));
                What::Read { offset, len }
            }
            16..18 => What::Image {
                from: match rng.bool() {
                    true => drives[rng.usize(..drives.len())].clone(),
                    false => any(rng),
                },
            },
            18 => What::Info,
            _ => What::List,
        };
        Self { user, drive, what }
    }

    fn create(user: usize, name: String, size: usize) -> Self {
        Self {
            user,
            drive: String::new(),
            what: What::Create { name, size },
        }
    }

    /// The path and the body of the request.
    fn request(&self) -> (String, Vec<u8>) {
        let of = |command: String| format!("/drives/{}/{command}", self.drive);
        match &self.what {
            What::Create { name, size } => {
                let body = format!("name {name}\nsize {size}");
                ("/drives/create".into(), body.into())
            }
            What::Set(set) => {
                let mut body = String::new();
                let mut key = |key: &str, value: Option<String>| {
                    if let Some(value) = value {
                        body += &format!("{key} {value}\n");
                    }
                };
                key("name", set.name.clone());
                key("size", set.size.map(|size| size.to_string()));
                let readers = |yes| {
                    if yes {
                        id(0).to_owned() + " " + id(1)
                    } else {
                        String::new()
                    }
                };
                key("readers", set.is_readable.map(readers));
                let kind = |yes| if yes { "shared" } else { "exclusive" };
                key("claim:type", set.is_shared.map(|yes| kind(yes).into()));
                (of("set".into()), body.into())
            }
            What::Destroy => (of("destroy".into()), Vec::new()),
            What::Write { offset, data } => (of(format!("write/{offset}")), data.clone()),
            What::Read { offset, len } => (of(format!("read/{offset}/{len}")), Vec::new()),
            What::Image { from } => (of(format!("image/{from}")), Vec::new()),
            What::Info => (of("info".into()), Vec::new()),
            What::List => ("/drives/list".into(), Vec::new()),
        }
    }

    /// Sends the request; `None` without a complete answer.
    fn send(&self, server: &TestServer) -> Option<Reply> {
        let (path, body) = self.request();
        let ask = Ask::of(server).by(USERS[self.user]);
        let head = ask.head("POST", &path);
        let mut stream = TcpStream::connect(server.address()).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .ok()?;
        let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), &body].concat()).ok()?;
        read_reply(&mut stream)
    }

    fn drives(&self) -> Vec<&String> {
        match &self.what {
            What::Create { .. } | What::List => Vec::new(),
            What::Image { from } => vec![&self.drive, from],
            _ => vec![&self.drive],
        }
    }

    /// Whether the operation may keep others from the drives, or change what they read there.
    fn disturbs(&self, drive: &String) -> bool {
        let is_heavy = match &self.what {
            What::Write { .. } | What::Destroy | What::Image { .. } => true,
            What::Set(set) => set.size.is_some(),
            _ => false,
        };
        is_heavy && self.drives().contains(&drive)
    }

    /// How much more of its user's quota it may need, in bytes.
    fn wants(&self) -> usize {
        match &self.what {
            What::Create { size, .. } => *size,
            What::Set(set) => set.size.unwrap_or(0),
            _ => 0,
        }
    }
}

/// What else is known about a round.
struct Round<'a> {
    all: Vec<&'a Op>,
    is_full: bool,
    before: &'a Model,
    after: &'a Model,
}

impl Round<'_> {
    /// Whether an answer that says that nothing happened is justified.
    fn allows_refusal(&self, op: &Op, status: u16) -> bool {
        let others = || self.all.iter().filter(|other| !std::ptr::eq(**other, op));
        match status {
            409 => others().any(|other| op.drives().iter().any(|drive| other.disturbs(drive))),
            507 => self.is_full,
            402 => {
                let own = || self.before.values().filter(|drive| drive.owner == op.user);
                let rivals = || self.all.iter().filter(|other| other.user == op.user);
                let bytes: usize = own().map(|drive| drive.data.len()).sum();
                let wanted: usize = rivals().map(|other| other.wants()).sum();
                let is_create = |op: &Op| matches!(op.what, What::Create { .. });
                let created = rivals().filter(|other| is_create(other)).count();
                let too_many = is_create(op) && own().count() + created > DRIVES_MAX;
                too_many || bytes + wanted > BYTES_MAX
            }
            _ => false,
        }
    }

    /// Whether the imaging of `op` may fail after it began.
    fn may_imaging_fail(&self, from: &String, to: &Op) -> bool {
        let ends_it = |op: &&&Op| match &op.what {
            What::Destroy => op.drive == *from,
            What::Set(set) => op.drive == *from && set.is_readable == Some(false),
            _ => false,
        };
        let of_another = self
            .before
            .get(from)
            .is_none_or(|drive| drive.owner != to.user);
        self.is_full || of_another && self.all.iter().any(|op| ends_it(&op))
    }

    /// The models that `model` may become if `done` happens now and gives its answer. Empty if that
    /// is impossible.
    fn apply(&self, model: &Model, done: &Done) -> Vec<Model> {
        let (op, reply) = (&done.op, done.reply.as_ref());
        let status = reply.map(|reply| reply.status);
        if let Some(status @ (402 | 409 | 507)) = status {
            if !self.allows_refusal(op, status) {
                return Vec::new();
            }
            let mut model = model.clone();
            // A write to a full disk may have been made in part.
            if let (507, What::Write { offset, data }, Some(drive)) =
                (status, &op.what, model.get_mut(&op.drive))
            {
                let end = drive.data.len().min(offset + data.len());
                drive.data[(*offset).min(end)..end].fill(None);
            }
            return vec![model];
        }
        let (expected, mut happened) = self.perform(model, op, reply);
        match status {
            Some(status) if status == expected => happened,
            Some(_) => Vec::new(),
            None => {
                happened.retain(|new| new != model);
                happened.push(model.clone());
                happened
            }
        }
    }

    /// The status that the model answers, and the models that it may become.
    fn perform(&self, model: &Model, op: &Op, reply: Option<&Reply>) -> (u16, Vec<Model>) {
        let mut new = model.clone();
        let drive = new.get_mut(&op.drive);
        let own = |drive: &&mut Drive| drive.owner == op.user;
        let may_read = |drive: &Drive| drive.owner == op.user || drive.is_readable;
        let nothing = |status| (status, vec![model.clone()]);
        match &op.what {
            What::Create { name, size } => {
                // A drive whose creation got no answer is found by its name, which is unique.
                let answered = reply
                    .and_then(|reply| reply.key("drive"))
                    .map(str::to_owned);
                let found = || self.after.iter().find(|(_, drive)| drive.name == *name);
                let Some(id) = answered.or_else(|| found().map(|(id, _)| id.clone())) else {
                    return nothing(200);
                };
                let made = Drive {
                    owner: op.user,
                    name: name.clone(),
                    is_readable: false,
                    is_shared: false,
                    is_whole: true,
                    data: vec![Some(0); *size],
                };
                new.insert(id, made);
                (200, vec![new])
            }
            What::List => {
                let own = model.iter().filter(|(_, drive)| drive.owner == op.user);
                let ids: Vec<_> = own.map(|(id, _)| id.as_str()).collect();
                let is_right = reply.is_none_or(|r| r.text().lines().eq(ids.iter().copied()));
                nothing(if is_right { 200 } else { 0 })
            }
            What::Info => match drive.filter(|drive| may_read(drive)) {
                Some(drive) => {
                    let is_right = reply.is_none_or(|reply| {
                        reply.key("name") == Some(&drive.name)
                            && reply.key("size") == Some(&drive.data.len().to_string())
                    });
                    nothing(if is_right { 200 } else { 0 })
                }
                None => nothing(404),
            },
            What::Read { offset, len } => {
                let Some(drive) = drive.filter(|drive| may_read(drive)) else {
                    return nothing(404);
                };
                let Some(data) = drive.data.get(*offset..offset + len) else {
                    return nothing(400);
                };
                // A read beside a write may see any part of that write.
                let is_calm = !self.all.iter().any(|other| other.disturbs(&op.drive));
                let is_right = |body: &Vec<u8>| {
                    let mut pairs = data.iter().zip(body);
                    body.len() == *len
                        && (!is_calm || pairs.all(|(a, b)| a.is_none_or(|a| a == *b)))
                };
                let is_right = reply.is_none_or(|reply| is_right(&reply.body));
                nothing(if is_right { 200 } else { 0 })
            }
            What::Set(set) => {
                let Some(drive) = drive.filter(own) else {
                    return nothing(404);
                };
                if let Some(name) = &set.name {
                    drive.name.clone_from(name);
                }
                if let Some(size) = set.size {
                    drive.data.resize(size, Some(0));
                }
                drive.is_readable = set.is_readable.unwrap_or(drive.is_readable);
                drive.is_shared = set.is_shared.unwrap_or(drive.is_shared);
                (200, vec![new])
            }
            What::Destroy => match drive.filter(own) {
                Some(_) => {
                    new.remove(&op.drive);
                    (204, vec![new])
                }
                None => nothing(404),
            },
            What::Write { offset, data } => {
                let Some(drive) = drive.filter(own) else {
                    return nothing(404);
                };
                let Some(place) = drive.data.get_mut(*offset..offset + data.len()) else {
                    return nothing(400);
                };
                if reply.is_some() {
                    place.copy_from_slice(&data.iter().copied().map(Some).collect::<Vec<_>>());
                    drive.is_whole = true;
                    return (204, vec![new]);
                }
                place.fill(None);
                let mut landed = vec![new.clone()];
                new.get_mut(&op.drive).unwrap().is_whole = true;
                landed.push(new);
                (204, landed)
            }
            What::Image { from } => {
                if drive.filter(own).is_none() {
                    return nothing(404);
                }
                let Some(source) = model.get(from).filter(|drive| may_read(drive)) else {
                    return nothing(404);
                };
                let destination = new.get_mut(&op.drive).unwrap();
                if *from == op.drive || source.data.len() > destination.data.len() {
                    return nothing(400);
                }
                let mut models = Vec::new();
                if self.may_imaging_fail(from, op) {
                    let mut failed = model.clone();
                    let destination = failed.get_mut(&op.drive).unwrap();
                    destination.data.fill(None);
                    destination.is_whole = false;
                    models.push(failed);
                }
                destination.data[..source.data.len()].copy_from_slice(&source.data);
                destination.is_whole = true;
                models.push(new);
                (204, models)
            }
        }
    }

    /// Whether there is an order that explains all answers and the state.
    fn is_explained(&self, model: &Model, queues: &[&[Done]]) -> bool {
        if queues.iter().all(|queue| queue.is_empty()) {
            return agrees(model, self.after);
        }
        (0..queues.len()).any(|client| {
            let Some((first, rest)) = queues[client].split_first() else {
                return false;
            };
            let mut left = queues.to_vec();
            left[client] = rest;
            let becomes = self.apply(model, first);
            becomes.iter().any(|model| self.is_explained(model, &left))
        })
    }
}

/// Whether the model agrees with what was observed.
fn agrees(model: &Model, observed: &Model) -> bool {
    model.len() == observed.len()
        && model.iter().all(|(id, drive)| {
            observed.get(id).is_some_and(|seen| {
                let data = drive.data.iter().zip(&seen.data);
                let without_data = |drive: &Drive| Drive {
                    data: Vec::new(),
                    ..drive.clone()
                };
                drive.data.len() == seen.data.len()
                    && without_data(drive) == without_data(seen)
                    && data.into_iter().all(|(a, b)| a.is_none() || a == b)
            })
        })
}

/// The state of all drives once no imaging is under way. Checks that it agrees with the files.
fn observe(server: &TestServer) -> Model {
    let mut model = Model::new();
    for (owner, auth) in USERS.iter().enumerate() {
        let ask = |path: &str| Ask::of(server).by(auth).get(path).expect(200);
        let infos = loop {
            let infos = ask("/drives/info");
            let mut lines = infos.text().lines();
            // A drive that another user's imaging reads is only claimed.
            if !lines.any(|line| line.starts_with("imaging ") || line.starts_with("claimed ")) {
                break infos;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        for info in infos.text().split("\n\n").filter(|info| !info.is_empty()) {
            let mut keys: BTreeMap<_, _> = BTreeMap::new();
            keys.extend(info.lines().filter_map(|line| line.split_once(' ')));
            let id = keys["drive"];
            let data = ask(&format!("/drives/{id}/read")).body;
            assert_eq!(keys["size"], data.len().to_string());
            let drive = Drive {
                owner,
                name: keys["name"].to_owned(),
                is_readable: keys.contains_key("readers"),
                is_shared: keys.contains_key("claim:type"),
                is_whole: keys["status"] == "active",
                data: data.into_iter().map(Some).collect(),
            };
            model.insert(id.to_owned(), drive);
        }
        let own = || model.values().filter(|drive| drive.owner == owner);
        let bytes: usize = own().map(|drive| drive.data.len()).sum();
        assert!(bytes <= BYTES_MAX && own().count() <= DRIVES_MAX);
    }
    let mut expected: Vec<String> = Vec::new();
    for (id, drive) in &model {
        expected.extend(["meta", "data"].map(|end| format!("{id}.{end}")));
        if !drive.is_whole {
            expected.push(format!("{id}.incomplete"));
        }
        let len = server.drive_file(id).metadata().unwrap().len();
        assert_eq!(len, drive.data.len() as u64);
    }
    let entries = std::fs::read_dir(server.data.join("drives")).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    expected.sort();
    files.sort();
    assert_eq!(files, expected);
    model
}

/// Sends the operations of each client one after the other, all clients at once. Kills the server
/// meanwhile if `kill_after` is set.
fn play(server: &TestServer, queues: Vec<Vec<Op>>, kill_after: Option<Duration>) -> Vec<Vec<Done>> {
    let barrier = Barrier::new(queues.len() + 1);
    std::thread::scope(|scope| {
        let clients: Vec<_> = queues
            .into_iter()
            .map(|ops| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let mut done = Vec::new();
                    for op in ops {
                        let reply = op.send(server);
                        done.push(Done { op, reply });
                    }
                    done
                })
            })
            .collect();
        barrier.wait();
        if let Some(wait) = kill_after {
            std::thread::sleep(wait);
            let pid = server.pid().to_string();
            let status = Command::new("kill").args(["-KILL", &pid]).status();
            assert!(status.unwrap().success());
        }
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    })
}

/// Fills a disk until only `left` bytes are free.
fn fill_disk(root: &Path, left: usize) {
    let path = root.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    let mut len = 0;
    while file.write_all(&[1; 4096]).is_ok() {
        len += 4096;
    }
    file.set_len(u64::try_from(len - left.min(len)).unwrap())
        .unwrap();
}

#[test]
fn concurrent_requests_have_an_equivalent_order() {
    let mut rng = Rng::with_seed(seed("model"));
    let rounds = rounds(250);
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("disk");
    let disk = Tmpfs::mount(&root, 2 << 20);
    let (drives_max, bytes_max) = (DRIVES_MAX.to_string(), BYTES_MAX.to_string());
    let args = ["--user", USERS[0], "--user", USERS[1]];
    let limits = ["--max-drives", &drives_max, "--max-bytes", &bytes_max];
    // Each imaging takes some milliseconds, so that other operations happen meanwhile.
    let plan = directory.path().join("plan.json");
    std::fs::write(&plan, r#"{"imaging_bytes_per_s": 2000000}"#).unwrap();
    let plan = ["--fault-plan", plan.to_str().unwrap()];
    let args = [&args[..], &limits[..], &plan[..]].concat();
    let mut server = TestServer::start_with(&args, &root.join("data"));
    let mut model = Model::new();
    // In the order of their creation, so that a seed makes the same choices again.
    let mut drives: Vec<String> = Vec::new();
    let mut is_full = false;
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..rounds {
        match rng.u8(..8) {
            0 if disk.is_some() && !is_full => {
                fill_disk(&root, rng.usize(..6) * 4096);
                is_full = true;
            }
            1 | 2 if is_full => {
                std::fs::remove_file(root.join("filler")).unwrap();
                is_full = false;
            }
            _ => {}
        }
        // Sending the signal takes some time as well.
        let kill_after = (rng.u8(..10) == 0).then(|| Duration::from_micros(rng.u64(..1500)));
        let ops_min = if kill_after.is_some() { 2 } else { 0 };
        let queues = CLIENTS.map(|user| {
            let ops = rng.usize(ops_min..=2);
            (0..ops)
                .map(|_| Op::random(&mut rng, user, &model, &drives))
                .collect::<Vec<_>>()
        });
        let is_restarted = rng.u8(..25) == 0;
        let done = play(&server, queues.into(), kill_after);
        if kill_after.is_some() {
            server.wait();
            server.start_again();
            *counts.entry("kills".into()).or_default() += 1;
        } else if is_restarted {
            server.restart();
        }
        let after = observe(&server);
        let explained = Round {
            all: done.iter().flatten().map(|done| &done.op).collect(),
            is_full,
            before: &model,
            after: &after,
        };
        let queues: Vec<_> = done.iter().map(Vec::as_slice).collect();
        if !explained.is_explained(&model, &queues) {
            report(round, is_full, &model, &done, &after);
        }
        for done in done.iter().flatten() {
            let status = done.reply.as_ref().map_or(0, |reply| reply.status);
            let what = format!("{:?}", done.op.what);
            let what = what.split([' ', '(']).next().unwrap();
            *counts.entry(format!("{what} {status}")).or_default() += 1;
        }
        let incomplete = after.values().filter(|drive| !drive.is_whole).count() as u64;
        *counts.entry("incomplete".into()).or_default() += incomplete;
        drives.retain(|id| after.contains_key(id));
        let new = after.keys().filter(|id| !model.contains_key(*id));
        drives.extend(new.cloned());
        model = after;
    }
    eprintln!("model: {rounds} rounds: {counts:?}");
    drop(server);
}

/// Fails with the operations that cannot be explained, without the bytes.
fn report(round: usize, is_full: bool, before: &Model, done: &[Vec<Done>], after: &Model) -> ! {
    let short = |model: &Model| {
        let line = |(id, drive): (&String, &Drive)| {
            let Drive {
                owner,
                name,
                is_readable,
                is_shared,
                is_whole,
                data,
            } = drive;
            let len = data.len();
            let changes = data.windows(2).filter(|pair| pair[0] != pair[1]).count();
            format!(
                "  {id} owner {owner} {name} readable {is_readable} shared {is_shared} whole {is_whole} {len} bytes, {changes} edges\n"
            )
        };
        model.iter().map(line).collect::<String>()
    };
    let one = |done: &Done| {
        let what = match &done.op.what {
            What::Write { offset, data } => {
                format!("write {offset} +{} of {:?}", data.len(), data.first())
            }
            what => format!("{what:?}"),
        };
        let reply = done.reply.as_ref().map(|reply| reply.status);
        format!(
            "  user {} {} {what}: {reply:?}\n",
            done.op.user, done.op.drive
        )
    };
    let ops: Vec<String> = done
        .iter()
        .map(|queue| queue.iter().map(one).collect())
        .collect();
    panic!(
        "round {round}, full {is_full}: no order explains\n{}\nbefore:\n{}after:\n{}",
        ops.join("\n"),
        short(before),
        short(after)
    );
}
