//! Runs the built tools in a clean environment with a random secret key, and checks after each run
//! that the key appears nowhere.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use base64::Engine;
use tempfile::TempDir;

use super::needs::{Need, needs};
use super::proxy::FaultProxy;
use super::server::TestServer;
use super::watchdog::Watched;
use super::{PLAIN, is_plain};

/// Only guards against a test that hangs; the time is no requirement.
const WATCHDOG: Duration = Duration::from_secs(120);
/// Larger files are images, and are not searched for the key.
const SCANNED_BYTES_MAX: u64 = 32 << 20;

pub const UPLOAD: &str = env!("CARGO_BIN_EXE_openhosting-upload");
pub const DOWNLOAD: &str = env!("CARGO_BIN_EXE_openhosting-download");
pub const SIMPLE: &str = env!("CARGO_BIN_EXE_openhosting");

/// Runs a tool on a terminal of its own. Types the given text when the tool asks for it, which is
/// when the terminal hides what is typed or shows a question that ends in `[y/N]`.
const ON_A_TERMINAL: &str = r#"
import os, pty, select, sys, termios, time
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
shown, answers, answered = b"", sys.argv[1].encode().splitlines(True), 0
while True:
    asks_for_key = b":" in shown and not termios.tcgetattr(fd)[3] & termios.ECHO
    # The question for a key is shown a moment before the terminal hides what is typed.
    asks_for_text = shown.endswith(b": ") and not shown.endswith(b"key: ")
    asks = asks_for_key or asks_for_text or b"[y/N]" in shown
    if answers and asks and len(shown) > answered:
        answered = len(shown)
        os.write(fd, answers.pop(0))
    if select.select([fd], [], [], 0.02)[0]:
        try:
            part = os.read(fd, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

/// Runs a tool on a terminal with the given number of columns, types Ctrl-C once the terminal
/// received a match of a regular expression, if one is given, and prints everything that the
/// terminal received.
const ON_A_SCREEN: &str = r#"
import fcntl, os, pty, re, struct, sys, termios
columns, stop_at, command = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3:]
pid, fd = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    os.execvp(command[0], command)
shown = b""
while True:
    try:
        part = os.read(fd, 65536)
    except OSError:
        break
    if not part:
        break
    shown += part
    if stop_at and re.search(stop_at, shown):
        os.write(fd, b"\x03")
        stop_at = b""
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

/// Whether a Python is available that creates terminals. Without it the test is skipped.
pub fn has_terminals() -> bool {
    needs(&[Need::Command("python3")])
}

/// A directory for the tools, and the user whose credentials they have.
pub struct Desk {
    root: TempDir,
    pub user: String,
    /// A random secret key.
    pub key: String,
    own: Mutex<Vec<PathBuf>>,
    _watched: Watched,
}

impl Desk {
    pub fn new() -> Self {
        let root = TempDir::new().unwrap();
        // One test runs as another user, who must be able to enter the directory.
        std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["work", "home", "tmp"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let hex = || uuid::Uuid::new_v4().simple().to_string();
        Self {
            root,
            user: uuid::Uuid::new_v4().to_string(),
            // Contains characters that could be changed by curl's configuration file or in a URL.
            key: format!("k{}/+\"\\%{}", hex(), hex()),
            own: Mutex::default(),
            _watched: Watched::this_test(),
        }
    }

    /// Starts a server that knows the user.
    pub fn server(&self) -> TestServer {
        self.server_with(&[])
    }

    pub fn server_with(&self, args: &[&str]) -> TestServer {
        let auth = self.auth();
        let mut all = vec!["--user", &auth];
        all.extend_from_slice(args);
        TestServer::with_args(&all)
    }

    /// A server, and a proxy in front of it.
    pub fn pair(&self) -> (TestServer, FaultProxy) {
        let server = self.server();
        let proxy = FaultProxy::to(&server);
        (server, proxy)
    }

    pub fn auth(&self) -> String {
        format!("{}:{}", self.user, self.key)
    }

    /// The directory in which the tools run.
    pub fn work(&self) -> PathBuf {
        self.root.path().join("work")
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.work().join(name)
    }

    /// Writes a file.
    pub fn file(&self, name: impl AsRef<Path>, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        self.own(&path);
        path
    }

    /// A file of this size with only these pieces of data, and holes in between.
    pub fn sparse(&self, name: &str, size: u64, pieces: &[(u64, &[u8])]) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        self.own(&path);
        path
    }

    /// Excludes a file from the search for the key, because the test itself wrote it there.
    pub fn own(&self, path: &Path) {
        self.own.lock().unwrap().push(path.to_owned());
    }

    /// The files of a certificate for a name, and of its key.
    pub fn certificate(&self, name: &str) -> [PathBuf; 2] {
        let files = super::certificate(&self.work(), name);
        files.iter().for_each(|file| self.own(file));
        files
    }

    /// The upload tool, for an endpoint.
    pub fn upload(&self, endpoint: &str) -> Tool<'_> {
        self.tool(UPLOAD).env("OHURI", endpoint)
    }

    /// The download tool, for an endpoint.
    pub fn download(&self, endpoint: &str) -> Tool<'_> {
        self.tool(DOWNLOAD).env("OHURI", endpoint)
    }

    /// The journals of uploads that exist.
    pub fn journals(&self) -> Vec<PathBuf> {
        let directory = self
            .root
            .path()
            .join("home/.local/state/openhosting/journals");
        let Ok(entries) = std::fs::read_dir(directory) else {
            return Vec::new();
        };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The simple tool, for an endpoint.
    pub fn simple(&self, endpoint: &str) -> Tool<'_> {
        self.tool(SIMPLE).env("OHURI", endpoint)
    }

    /// A tool on a terminal of its own, where the next line of `typed` is typed when the tool asks
    /// for something.
    pub fn on_a_terminal(&self, typed: &str, tool: &str) -> Tool<'_> {
        let python = self.tool("python3").arg("-c").arg(ON_A_TERMINAL);
        python.arg(typed).arg(tool)
    }

    /// A tool on a terminal with `columns` columns, on which Ctrl-C is typed once it received a
    /// match of the regular expression `stop_at`; never if that is empty.
    pub fn on_a_screen(&self, columns: u16, stop_at: &str, tool: &str) -> Tool<'_> {
        let python = self.tool("python3").arg("-c").arg(ON_A_SCREEN);
        let python = python.env("TERM", "xterm-256color").env("LANG", "C.UTF-8");
        python.arg(columns.to_string()).arg(stop_at).arg(tool)
    }

    /// Any program, with the environment of the tools.
    pub fn tool(&self, program: impl AsRef<OsStr>) -> Tool<'_> {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.root.path().join("home"))
            .env("TMPDIR", self.root.path().join("tmp"))
            .env("OHAUTH", self.auth())
            .current_dir(self.work())
            .stdin(Stdio::null());
        if is_plain() {
            command.env(PLAIN, "1");
        }
        Tool {
            desk: self,
            command,
            input: None,
            closed_stdout: false,
        }
    }

    /// Checks that these bytes do not contain the secret key in any form.
    #[track_caller]
    pub fn check_hidden(&self, what: &str, bytes: &[u8]) {
        for (form, needle) in self.forms() {
            assert!(
                !contains(bytes, needle.as_bytes()),
                "{what} holds the secret key, {form}"
            );
        }
    }

    #[track_caller]
    fn check_files(&self) {
        let own = self.own.lock().unwrap().clone();
        let mut directories = vec![self.root.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let Ok(metadata) = path.symlink_metadata() else {
                    continue;
                };
                if metadata.is_dir() {
                    directories.push(path);
                } else if metadata.is_file()
                    && metadata.len() <= SCANNED_BYTES_MAX
                    && !own.contains(&path)
                {
                    let bytes = std::fs::read(&path).unwrap();
                    self.check_hidden(&path.display().to_string(), &bytes);
                }
            }
        }
    }

    fn forms(&self) -> Vec<(&'static str, String)> {
        let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let key = self.key.as_bytes();
        let plain = |b: u8| b.is_ascii_alphanumeric();
        let percent = |upper: bool| -> String {
            let encode = |b: &u8| match (plain(*b), upper) {
                (true, _) => char::from(*b).to_string(),
                (false, true) => format!("%{b:02X}"),
                (false, false) => format!("%{b:02x}"),
            };
            key.iter().map(encode).collect()
        };
        let hex: String = key.iter().map(|b| format!("{b:02x}")).collect();
        let mut forms = vec![
            ("raw", self.key.clone()),
            ("as Rust prints it", self.key.escape_debug().to_string()),
            ("base64 of user:key", base64(self.auth().as_bytes())),
            ("percent-encoded", percent(true)),
            ("percent-encoded", percent(false)),
            ("hex", hex.to_uppercase()),
            ("hex", hex),
        ];
        for before in 0..3 {
            let encoded = base64(&[&b"xx"[..before], key].concat());
            // Only the characters of the encoding that depend on nothing but the key.
            let range = (before * 8).div_ceil(6)..(before + key.len()) * 8 / 6;
            forms.push(("base64", encoded[range].to_owned()));
        }
        forms
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|b| *b == first) {
        if haystack[from + at..].starts_with(needle) {
            return true;
        }
        from += at + 1;
    }
    false
}

/// A run that is being prepared.
pub struct Tool<'a> {
    desk: &'a Desk,
    command: Command,
    input: Option<Vec<u8>>,
    closed_stdout: bool,
}

impl<'a> Tool<'a> {
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Words separated by spaces.
    pub fn args(mut self, words: &str) -> Self {
        self.command.args(words.split_whitespace());
        self
    }

    pub fn list<I: Into<OsString>>(mut self, args: impl IntoIterator<Item = I>) -> Self {
        for arg in args {
            self.command.arg(arg.into());
        }
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn unset(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Connects stdin to a pipe with these bytes.
    pub fn input(mut self, bytes: &[u8]) -> Self {
        self.input = Some(bytes.to_owned());
        self
    }

    /// Connects stdin to a file, or to something else.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.command.stdin(stdin);
        self
    }

    /// Closes the reading end of stdout.
    pub fn closed_stdout(mut self) -> Self {
        self.closed_stdout = true;
        self
    }

    pub fn spawn(mut self) -> Running<'a> {
        if self.input.is_some() {
            self.command.stdin(Stdio::piped());
        }
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if self.closed_stdout {
            // Closed before the tool starts: a quick one would have written everything by then.
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            self.command.stdout(writer);
        }
        let mut child = self.command.spawn().unwrap();
        if let Some(input) = self.input.take() {
            let mut stdin = child.stdin.take().unwrap();
            // The tool may end before it has read everything.
            std::thread::spawn(move || stdin.write_all(&input));
        }
        let (alive, dead) = mpsc::channel::<()>();
        let pid = child.id().to_string();
        std::thread::spawn(move || {
            if dead.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("The watchdog kills process {pid}");
                let _ = Command::new("kill").args(["-KILL", &pid]).status();
            }
        });
        Running {
            desk: self.desk,
            stderr: Heard::from(child.stderr.take().unwrap()),
            stdout: child.stdout.take().map(Heard::from).unwrap_or_default(),
            child,
            alive: Some(alive),
        }
    }

    #[track_caller]
    pub fn run(self) -> Outcome {
        self.spawn().wait()
    }
}

/// The bytes of a stream so far, and whether the stream ended.
type Said = (Mutex<(Vec<u8>, bool)>, Condvar);

/// The output of a stream so far.
#[derive(Default)]
struct Heard {
    bytes: Arc<Said>,
    /// Whether a thread reads the stream to its end.
    is_read: bool,
}

impl Heard {
    fn from(mut stream: impl Read + Send + 'static) -> Self {
        let bytes: Arc<Said> = Arc::default();
        let shared = Arc::clone(&bytes);
        std::thread::spawn(move || {
            let mut step = vec![0; 16 * 1024];
            loop {
                let n = stream.read(&mut step).unwrap_or(0);
                let mut heard = shared.0.lock().unwrap();
                heard.0.extend_from_slice(&step[..n]);
                heard.1 = n == 0;
                shared.1.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        Self {
            bytes,
            is_read: true,
        }
    }

    fn wait_for(&self, text: &str) -> bool {
        let heard = self.bytes.0.lock().unwrap();
        let missing = |heard: &mut (Vec<u8>, bool)| {
            !heard.1 && !String::from_utf8_lossy(&heard.0).contains(text)
        };
        let (heard, _) = self
            .bytes
            .1
            .wait_timeout_while(heard, WATCHDOG, missing)
            .unwrap();
        String::from_utf8_lossy(&heard.0).contains(text)
    }

    /// All output. A process that the tool left behind may hold the pipe open for ever, so the wait
    /// is limited.
    fn all(self) -> Vec<u8> {
        let heard = self.bytes.0.lock().unwrap();
        let is_open = |heard: &mut (Vec<u8>, bool)| self.is_read && !heard.1;
        let (mut heard, timeout) = self
            .bytes
            .1
            .wait_timeout_while(heard, WATCHDOG, is_open)
            .unwrap();
        assert!(
            !timeout.timed_out(),
            "the tool ended, but something holds its output open"
        );
        std::mem::take(&mut heard.0)
    }
}

/// A tool that is running.
pub struct Running<'a> {
    desk: &'a Desk,
    child: Child,
    stdout: Heard,
    stderr: Heard,
    alive: Option<mpsc::Sender<()>>,
}

impl Running<'_> {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, such as `INT` or `TERM`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        let (name, pid) = (format!("-{name}"), self.pid().to_string());
        let status = Command::new("kill").args([&name, &pid]).status();
        assert!(status.unwrap().success(), "cannot signal the tool");
    }

    #[track_caller]
    pub fn wait_stderr(&self, text: &str) {
        assert!(
            self.stderr.wait_for(text),
            "stderr never said {text:?}, only: {}",
            String::from_utf8_lossy(&self.stderr.bytes.0.lock().unwrap().0)
        );
    }

    /// Whether the tool has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends SIGKILL and waits for its end.
    #[track_caller]
    pub fn kill9(mut self) -> Outcome {
        let _ = self.child.kill();
        self.end()
    }

    #[track_caller]
    pub fn wait(self) -> Outcome {
        let outcome = self.end();
        assert!(outcome.status.signal() != Some(9), "{outcome:?}");
        outcome
    }

    #[track_caller]
    pub fn end(mut self) -> Outcome {
        let status = self.child.wait().unwrap();
        self.alive.take();
        let outcome = Outcome {
            status,
            stdout: self.stdout.all(),
            stderr: String::from_utf8_lossy(&self.stderr.all()).into_owned(),
        };
        let (stdout, stderr) = (&outcome.stdout, outcome.stderr.as_bytes());
        self.desk.check_hidden("stdout", stdout);
        self.desk.check_hidden("stderr", stderr);
        self.desk.check_files();
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        outcome
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Outcome {
    /// Checks the exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        let stdout = String::from_utf8_lossy(&self.stdout);
        let got = self.status.code();
        assert_eq!(got, Some(code), "{stdout}\n{}", self.stderr);
        self
    }

    /// Checks that stderr contains this.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no {text:?} in {}", self.stderr);
        self
    }

    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// The drive in the line `Created drive UUID of size SIZE`.
    #[track_caller]
    pub fn created(&self) -> String {
        let line = self.text().lines().next().unwrap_or_default();
        let rest = line.strip_prefix("Created drive ");
        let rest = rest.unwrap_or_else(|| panic!("no drive was created: {self:?}"));
        rest.split(' ').next().unwrap().to_owned()
    }

    /// The `-d UUID -o BYTES` of the line that explains how to continue.
    #[track_caller]
    pub fn hint(&self) -> (String, u64) {
        let hint = self
            .stderr
            .lines()
            .find_map(|line| line.strip_prefix("Restart with '-d "))
            .and_then(|line| line.strip_suffix("' to resume the upload"))
            .and_then(|hint| hint.split_once(" -o "));
        let (drive, offset) = hint.unwrap_or_else(|| panic!("no hint: {}", self.stderr));
        (drive.to_owned(), offset.parse().unwrap())
    }
}

#[test]
fn a_secret_is_found_in_every_form() {
    let desk = Desk::new();
    let base64 = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
    let shown = [
        desk.key.clone(),
        base64(desk.auth()),
        base64(format!("Basic {}!", desk.key)),
        base64(format!("12345{}", desk.key)),
        base64(format!("123456{} and more", desk.key)),
        format!("{:?}", desk.auth()),
        desk.key.bytes().map(|b| format!("{b:02X}")).collect(),
        reqwest::Url::parse_with_params("http://h/", [("k", &desk.key)])
            .unwrap()
            .to_string(),
    ];
    for text in shown {
        let line = format!("something {text} something");
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            desk.check_hidden("a line", line.as_bytes());
        }));
        assert!(found.is_err(), "not found in {line}");
    }
    desk.check_hidden("nothing", b"something else");
}
