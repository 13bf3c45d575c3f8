//! The built server, on a free port and with a directory of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

use super::watchdog::Watched;

/// A running server, which is killed when dropped.
pub struct TestServer {
    /// Its endpoint, as in `OHURI`.
    pub uri: String,
    /// Its first user.
    pub user: String,
    /// The secret key of that user.
    pub key: String,
    /// Its data directory.
    pub data: PathBuf,
    /// The command that runs it, if it is not run directly: a program and its first arguments.
    within: Vec<OsString>,
    args: Vec<String>,
    child: Child,
    own_directory: TempDir,
    _watched: Watched,
}

impl TestServer {
    /// A server on an empty directory, with a random user.
    pub fn start() -> Self {
        Self::with_args(&[])
    }

    /// The same with more arguments.
    pub fn with_args(args: &[&str]) -> Self {
        let own_directory = TempDir::new().unwrap();
        let data = own_directory.path().join("data");
        Self::launch(&[], args, data, own_directory)
    }

    /// The same, run by another program.
    pub fn within(within: &[OsString], args: &[&str]) -> Self {
        let own_directory = TempDir::new().unwrap();
        let data = own_directory.path().join("data");
        Self::launch(within, args, data, own_directory)
    }

    /// A server with the faults of this plan.
    pub fn with_plan(plan: &serde_json::Value) -> Self {
        let own_directory = TempDir::new().unwrap();
        let file = own_directory.path().join("plan.json");
        std::fs::write(&file, plan.to_string()).unwrap();
        let data = own_directory.path().join("data");
        let args = ["--fault-plan", file.to_str().unwrap()];
        Self::launch(&[], &args, data, own_directory)
    }

    /// Sets another plan, for the next start of a server that has one.
    pub fn set_plan(&self, plan: &serde_json::Value) {
        let file = self.own_directory.path().join("plan.json");
        std::fs::write(file, plan.to_string()).unwrap();
    }

    /// A server on the directory `data`, which is not removed afterwards.
    pub fn start_with(args: &[&str], data: &Path) -> Self {
        Self::launch(&[], args, data.to_owned(), TempDir::new().unwrap())
    }

    fn launch(within: &[OsString], args: &[&str], data: PathBuf, own_directory: TempDir) -> Self {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let log = own_directory.path().join("log");
        let (child, uri, user, key) = spawn(within, &args, &data, &log);
        Self {
            within: within.to_vec(),
            uri,
            user,
            key,
            data,
            args,
            child,
            own_directory,
            _watched: Watched::this_test(),
        }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        let (_, rest) = self.uri.split_once("://").unwrap();
        rest.trim_end_matches('/').parse().unwrap()
    }

    /// `USER:KEY`, as in `OHAUTH`.
    pub fn auth(&self) -> String {
        format!("{}:{}", self.user, self.key)
    }

    /// The file with the bytes of a drive.
    pub fn drive_file(&self, drive: &str) -> PathBuf {
        self.data.join("drives").join(format!("{drive}.data"))
    }

    /// The file with the metadata of a drive.
    pub fn metadata_file(&self, drive: &str) -> PathBuf {
        self.data.join("drives").join(format!("{drive}.meta"))
    }

    /// What the server has written to stderr so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.own_directory.path().join("log")).unwrap_or_default()
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(status.unwrap().success(), "cannot signal the server");
    }

    /// Waits until the process ends.
    pub fn wait(&mut self) -> ExitStatus {
        for _ in 0..12_000 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the server does not end: {}", self.log());
    }

    /// Stops the server with SIGTERM and waits until it ends.
    pub fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.wait()
    }

    /// Kills the server with SIGKILL and waits until it ends.
    pub fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.wait();
    }

    /// Starts the server again on the same directory after it ended. The port is a different one.
    pub fn start_again(&mut self) {
        let log = self.own_directory.path().join("log");
        let (child, uri, user, key) = spawn(&self.within, &self.args, &self.data, &log);
        (self.child, self.uri, self.user, self.key) = (child, uri, user, key);
    }

    /// Stops the server and starts it again on the same directory.
    pub fn restart(&mut self) {
        let status = self.stop();
        assert!(status.success(), "{status}: {}", self.log());
        self.start_again();
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        kill_guests(&self.data);
        if std::thread::panicking() {
            eprintln!("Log of the server:\n{}", self.log());
        }
    }
}

/// Kills the guests of the server that ran on `data`. They keep running without the server, and
/// must not outlive a test, however that ended.
fn kill_guests(data: &Path) {
    for pid in working_below(&data.join("servers")) {
        let _ = Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .status();
        while Path::new(&format!("/proc/{pid}/cwd")).read_link().is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The processes whose working directory is this one or below it.
pub fn working_below(directory: &Path) -> Vec<u32> {
    let Ok(directory) = directory.canonicalize() else {
        return Vec::new();
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let works_there = |pid: &u32| {
        let cwd = Path::new(&format!("/proc/{pid}/cwd")).read_link();
        cwd.is_ok_and(|cwd| cwd.starts_with(&directory))
    };
    pids.filter(works_there).collect()
}

fn spawn(
    within: &[OsString],
    args: &[String],
    data: &Path,
    log: &Path,
) -> (Child, String, String, String) {
    let stderr = File::options().create(true).append(true).open(log).unwrap();
    let server = [OsString::from(env!("CARGO_BIN_EXE_openhosting-server"))];
    let mut words = within.iter().chain(&server);
    // Tests run side by side, and a port that is free now is another one's soon.
    let has_address = args.iter().any(|arg| arg == "--listen");
    let listen: &[&str] = if has_address {
        &[]
    } else {
        &["--listen", "127.0.0.1:0"]
    };
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .arg("--data")
        .arg(data)
        .arg("--verbose")
        .args(listen)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (sender, receiver) = mpsc::channel();
    // Only guards against a test that hangs; the time is no requirement.
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut line = |prefix: &str| {
        let line = receiver.recv_timeout(Duration::from_secs(60));
        let line = line.ok().and_then(|line| {
            // The value is quoted for a shell if necessary.
            let value = line.strip_prefix(prefix)?;
            let inner = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\''));
            Some(inner.map_or(value.to_owned(), |v| v.replace("'\\''", "'")))
        });
        line.unwrap_or_else(|| {
            let _ = child.kill();
            let log = std::fs::read_to_string(log).unwrap_or_default();
            panic!("the server did not print {prefix}: {log}")
        })
    };
    let uri = line("export OHURI=");
    // The keys of users from a file are not printed.
    let users_file = args.iter().position(|arg| arg == "--users-file");
    let auth = match users_file {
        Some(flag) => {
            let users = std::fs::read_to_string(&args[flag + 1]).unwrap();
            let mut users = users.lines().filter(|line| !line.starts_with('#'));
            users.next().unwrap().to_owned()
        }
        None => line("export OHAUTH="),
    };
    let (user, key) = auth.split_once(':').unwrap();
    let (user, key) = (user.to_owned(), key.to_owned());
    (child, uri, user, key)
}
