//! A bad link between two network namespaces, made by benches/links/link.py.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use super::needs::{Need, skip};
use super::server::TestServer;

/// Exit code of the script if no link can be made.
const CANNOT: i32 = 77;

/// A link, which is removed with its namespaces when dropped.
pub struct BadLink {
    script: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    client: String,
    server: String,
}

impl BadLink {
    /// A link with these settings of the script. `None` if no link can be made here.
    pub fn new(settings: &str) -> Option<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/links/link.py");
        let mut script = Command::new("python3")
            .arg(path)
            .args(settings.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut answers = BufReader::new(script.stdout.take().unwrap());
        let mut ready = String::new();
        answers.read_line(&mut ready).unwrap();
        let mut words = ready.split_whitespace().skip(1).map(str::to_owned);
        let (Some(client), Some(server)) = (words.next(), words.next()) else {
            assert_eq!(script.wait().unwrap().code(), Some(CANNOT));
            skip(
                Need::Other("network namespaces and /dev/net/tun"),
                "no link can be made",
            );
            return None;
        };
        Some(Self {
            commands: script.stdin.take(),
            script,
            answers,
            client,
            server,
        })
    }

    /// The command that runs a program at the near end: a program and its first arguments.
    pub fn near(&self) -> [OsString; 4] {
        ["ip", "netns", "exec", &self.client].map(OsString::from)
    }

    /// Starts a server at the far end.
    pub fn server(&self, args: &[&str]) -> TestServer {
        let within = ["ip", "netns", "exec", &self.server].map(OsString::from);
        TestServer::within(&within, args)
    }

    fn command(&mut self, line: &str) -> String {
        writeln!(self.commands.as_mut().unwrap(), "{line}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer
    }

    /// Drops all packets from now on, or lets them pass again.
    pub fn hole(&mut self, is_hole: bool) {
        let command = if is_hole { "hole" } else { "through" };
        assert_eq!(self.command(command), "ok\n");
    }

    /// Bytes of packets that passed so far, in the direction `up` or `down`.
    pub fn passed(&mut self, way: &str) -> u64 {
        let counts: Value = serde_json::from_str(&self.command("counts")).unwrap();
        counts[way]["bytes"].as_u64().unwrap()
    }

    /// Resets all connections of the near end, and returns how many there were. `None` if this
    /// kernel does not support that.
    pub fn kill_connections(&self) -> Option<usize> {
        let [program, args @ ..] = self.near();
        let killed = Command::new(program)
            .args(args)
            .args(["ss", "-K", "-H", "-t", "state", "established"])
            .output()
            .unwrap();
        let lines = String::from_utf8(killed.stdout).unwrap().lines().count();
        killed.status.success().then_some(lines)
    }
}

impl Drop for BadLink {
    fn drop(&mut self) {
        // The script ends when its stdin ends.
        self.commands = None;
        let _ = self.script.wait();
    }
}
