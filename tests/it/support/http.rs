//! HTTP/1.1 over a plain socket, without a client library.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use base64::Engine;

use super::server::TestServer;

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    /// A header, by its name in lower-case letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The value of a key of a text answer.
    pub fn key(&self, key: &str) -> Option<&str> {
        let lines = self.text().lines();
        let mut pairs = lines.filter_map(|line| line.split_once(' '));
        pairs.find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and type of an error.
    pub fn error(&self) -> (u16, &str) {
        let error = self.header("x-elastic-error").unwrap_or("none");
        (self.status, error)
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{}\n{body}", self.head);
        self
    }
}

/// Reads one answer. `None` if the connection ended before it.
pub fn read_reply(stream: &mut impl Read) -> Option<Reply> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    let mut reply = Reply {
        status: 0,
        head: String::from_utf8(head).unwrap(),
        body: Vec::new(),
    };
    reply.status = reply.head[9..12].parse().unwrap();
    let len = reply.header("content-length").unwrap_or("0").parse();
    reply.body = vec![0; len.unwrap()];
    stream.read_exact(&mut reply.body).ok()?;
    Some(reply)
}

/// Sends bytes as they are and reads one answer.
pub fn raw(address: SocketAddr, request: &[u8]) -> Option<Reply> {
    let mut stream = TcpStream::connect(address).unwrap();
    // The server may answer and close the connection before it has read everything.
    let _ = stream.write_all(request);
    read_reply(&mut stream)
}

/// The header of HTTP Basic for `USER:KEY`.
pub fn basic(auth: &str) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(auth);
    format!("Authorization: Basic {encoded}\r\n")
}

/// A request of a certain user; one of the last methods sends it.
pub struct Ask<'a> {
    server: &'a TestServer,
    auth: String,
    headers: String,
}

impl<'a> Ask<'a> {
    pub fn of(server: &'a TestServer) -> Self {
        Self {
            server,
            auth: server.auth(),
            headers: String::new(),
        }
    }

    pub fn by(mut self, auth: &str) -> Self {
        auth.clone_into(&mut self.auth);
        self
    }

    pub fn with(mut self, header: &str) -> Self {
        self.headers += header;
        self.headers += "\r\n";
        self
    }

    pub fn head(&self, method: &str, path: &str) -> String {
        let (auth, headers) = (basic(&self.auth), &self.headers);
        format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{auth}{headers}")
    }

    #[track_caller]
    pub fn send(self, method: &str, path: &str, body: &[u8]) -> Reply {
        let head = self.head(method, path);
        let mut request = format!("{head}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
        request.extend_from_slice(body);
        raw(self.server.address(), &request).expect("no answer")
    }

    #[track_caller]
    pub fn get(self, path: &str) -> Reply {
        self.send("GET", path, b"")
    }

    #[track_caller]
    pub fn post(self, path: &str, body: impl AsRef<[u8]>) -> Reply {
        self.send("POST", path, body.as_ref())
    }

    #[track_caller]
    pub fn post_gzip(self, path: &str, body: impl AsRef<[u8]>) -> Reply {
        self.with("Content-Encoding: gzip").post(path, body)
    }
}

/// Creates a drive and returns its UUID.
#[track_caller]
pub fn create(server: &TestServer, size: u64) -> String {
    let reply = Ask::of(server).post("/drives/create", format!("name test\nsize {size}"));
    reply.expect(200).key("drive").unwrap().to_owned()
}

/// Reads all bytes of a drive.
#[track_caller]
pub fn read_all(server: &TestServer, drive: &str) -> Vec<u8> {
    let reply = Ask::of(server).get(&format!("/drives/{drive}/read"));
    reply.expect(200).body
}

/// Checks that a drive holds exactly these bytes.
#[track_caller]
pub fn assert_drive(server: &TestServer, drive: &str, image: &[u8]) {
    let bytes = std::fs::read(server.drive_file(drive)).unwrap();
    assert_eq!(bytes.len(), image.len());
    let wrong = bytes.iter().zip(image).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "first byte that differs");
}

/// The drives of the server's only user.
pub fn drives(server: &TestServer) -> Vec<String> {
    let list = Ask::of(server).get("/drives/list").expect(200);
    list.text().lines().map(str::to_owned).collect()
}

/// The value of a key in a drive's info.
pub fn info(server: &TestServer, drive: &str, key: &str) -> Option<String> {
    let info = Ask::of(server).get(&format!("/drives/{drive}/info"));
    info.expect(200).key(key).map(str::to_owned)
}
