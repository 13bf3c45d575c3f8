//! A client of QMP, the protocol that controls QEMU: lines of JSON over a Unix socket, with answers
//! that are matched to commands by number, and events in between.
//!
//! It is our own because the only existing crate (qapi 0.15) calls itself passively maintained,
//! panics or closes the connection when a command is cancelled, and parses answers by the schema of
//! one version of QEMU, so that those of another version may fail. Here only about a dozen keys are
//! used, and all others are ignored.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::hypervisor::Failure;
use openhosting_base::locks::lock;

/// Maximum time for an answer. A process answers within milliseconds unless it waits for a disk.
/// One that is silent for longer counts as hung.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Maximum bytes of a line, so that a process that misbehaves cannot fill the memory. The answers
/// to our commands are far shorter.
const LINE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Connects to a socket in `directory`, however long its path is: the address of a socket is
/// limited to about 100 bytes.
pub(super) async fn connect(directory: &Path, socket: &str) -> io::Result<UnixStream> {
    let directory = File::open(directory)?;
    let fd = directory.as_raw_fd();
    UnixStream::connect(format!("/proc/self/fd/{fd}/{socket}")).await
}

/// An event.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: Value,
}

/// A connection. A command can be cancelled at any moment: only whole lines are written, and an
/// answer without a receiver is dropped.
#[derive(Debug)]
pub(super) struct Qmp {
    lines: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Arc<Mutex<Pending>>,
}

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    answers: HashMap<u64, oneshot::Sender<Result<Value, String>>>,
    is_over: bool,
}

impl Qmp {
    /// Exchanges greetings. The receiver of events ends with the connection.
    pub(super) async fn open(
        stream: UnixStream,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>), Failure> {
        let (read, write) = stream.into_split();
        let mut reader = BufReader::new(read);
        let greeting = timeout(ANSWER_MAX, next(&mut reader)).await;
        let greeting = greeting.map_err(|_| silent("it does not greet"))??;
        if greeting.is_none_or(|value| value.get("QMP").is_none()) {
            return Err(silent("its greeting is not that of QMP"));
        }
        let (lines, to_write) = mpsc::unbounded_channel();
        let (events, received) = mpsc::unbounded_channel();
        let waiting = Arc::<Mutex<Pending>>::default();
        tokio::spawn(write_all(write, to_write));
        tokio::spawn(read_all(reader, Arc::clone(&waiting), events));
        let qmp = Self { lines, waiting };
        qmp.run("qmp_capabilities", json!({})).await?;
        Ok((qmp, received))
    }

    /// Runs a command and returns its result.
    pub(super) async fn run(&self, command: &str, arguments: Value) -> Result<Value, Failure> {
        let over = || silent("its connection has ended");
        let (id, answer) = {
            let mut waiting = lock(&self.waiting);
            if waiting.is_over {
                return Err(over());
            }
            let (sender, receiver) = oneshot::channel();
            let id = waiting.next;
            waiting.next += 1;
            waiting.answers.insert(id, sender);
            (id, receiver)
        };
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        self.lines.send(line.into_bytes()).map_err(|_| over())?;
        match timeout(ANSWER_MAX, answer).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(what))) => Err(Failure::Refused(what)),
            Ok(Err(_)) => Err(over()),
            Err(_) => {
                lock(&self.waiting).answers.remove(&id);
                Err(silent(&format!("no answer to {command}")))
            }
        }
    }
}

fn silent(what: &str) -> Failure {
    Failure::Silent(what.to_owned())
}

async fn write_all(mut to: OwnedWriteHalf, mut lines: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if to.write_all(&line).await.is_err() {
            // The reader detects the broken connection as well, and reports it.
            return;
        }
    }
}

async fn read_all(
    mut from: BufReader<OwnedReadHalf>,
    waiting: Arc<Mutex<Pending>>,
    events: mpsc::UnboundedSender<Event>,
) {
    loop {
        match next(&mut from).await {
            Ok(Some(value)) => take(value, &waiting, &events),
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "A connection to QEMU broke");
                break;
            }
        }
    }
    let mut waiting = lock(&waiting);
    waiting.is_over = true;
    waiting.answers.clear();
}

fn take(mut value: Value, waiting: &Mutex<Pending>, events: &mpsc::UnboundedSender<Event>) {
    if let Some(name) = value.get("event").and_then(Value::as_str) {
        let name = name.to_owned();
        let data = value.get_mut("data").map(Value::take).unwrap_or_default();
        let _ = events.send(Event { name, data });
        return;
    }
    let id = value.get("id").and_then(Value::as_u64);
    let Some(sender) = id.and_then(|id| lock(waiting).answers.remove(&id)) else {
        return;
    };
    let answer = match value.get_mut("return") {
        Some(value) => Ok(value.take()),
        None => Err(value["error"]["desc"]
            .as_str()
            .unwrap_or("no reason given")
            .to_owned()),
    };
    let _ = sender.send(answer);
}

/// The next line; `None` at the end.
async fn next(from: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Value>> {
    let mut line = Vec::new();
    let n = (&mut *from)
        .take(LINE_BYTES_MAX)
        .read_until(b'\n', &mut line)
        .await?;
    if n == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_match_their_commands_despite_events() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = tokio::spawn(async move {
            let (read, mut write) = theirs.into_split();
            let mut reader = BufReader::new(read);
            write
                .write_all(b"{\"QMP\": {\"capabilities\": []}}\r\n")
                .await
                .unwrap();
            let mut commands = Vec::new();
            for n in 0..3 {
                let command = next(&mut reader).await.unwrap().unwrap();
                let id = command["id"].clone();
                commands.push((command["execute"].as_str().unwrap().to_owned(), id));
                if n == 0 {
                    let answer = json!({"return": {}, "id": commands[0].1}).to_string();
                    write
                        .write_all(format!("{answer}\n").as_bytes())
                        .await
                        .unwrap();
                }
            }
            // The answer to the second command comes first, with an event and an unknown answer
            // before it.
            let said = [
                json!({"event": "STOP", "data": {"x": 1}, "timestamp": {}}),
                json!({"return": 9, "id": 99}),
                json!({"return": commands[2].0, "id": commands[2].1}),
                json!({"error": {"class": "GenericError", "desc": commands[1].0}, "id": commands[1].1}),
            ];
            for value in said {
                write
                    .write_all(format!("{value}\n").as_bytes())
                    .await
                    .unwrap();
            }
        });
        let (qmp, mut events) = Qmp::open(ours).await.unwrap();
        let (first, second) = tokio::join!(qmp.run("a", json!({})), qmp.run("b", json!({})));
        assert!(matches!(first, Err(Failure::Refused(what)) if what == "a"));
        assert_eq!(second.unwrap(), json!("b"));
        let event = events.recv().await.unwrap();
        assert_eq!((event.name.as_str(), event.data), ("STOP", json!({"x": 1})));
        qemu.await.unwrap();
        assert!(events.recv().await.is_none());
        assert!(matches!(
            qmp.run("c", json!({})).await,
            Err(Failure::Silent(_))
        ));
    }

    #[tokio::test]
    async fn a_socket_without_a_greeting_is_not_qemu() {
        for said in [&b""[..], b"hello\n", b"{}\n", b"{\"QMP\""] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(said).await.unwrap();
            drop(theirs);
            assert!(Qmp::open(ours).await.is_err(), "{said:?}");
        }
    }
}
