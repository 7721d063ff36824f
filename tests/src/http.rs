//! Owns a plain HTTP/1.1 client over a standard socket: requests, whole responses, chunked bodies and server-sent events.
//! Knows no API and shares no code with the server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Nothing a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A response whose body has been read to its end.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("a body in UTF-8")
    }

    /// The body as JSON; the test fails when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in {:?}", String::from_utf8_lossy(&self.body)))
    }
}

/// One request on a connection of its own.
pub fn request(at: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let mut connection = Connection::open(at);
    connection.send(method, path, headers, body);
    connection.response()
}

pub fn get(at: SocketAddr, path: &str) -> Response {
    request(at, "GET", path, &[], b"")
}

pub fn post(at: SocketAddr, path: &str, body: &Value) -> Response {
    request(at, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

/// Starts a request and returns its events as they come.
pub fn stream(at: SocketAddr, path: &str, body: &Value) -> Events {
    let mut connection = Connection::open(at);
    connection.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes());
    connection.events()
}

/// A whole stream of server-sent events that have names: each with its data.
pub fn named_events(response: &Response) -> Vec<(String, Value)> {
    assert_eq!(response.status, 200, "{}", response.text());
    let text = response.text();
    assert!(text.ends_with("\n\n"), "no half event at the end");
    let event = |event: &str| {
        let lines: Vec<&str> = event.lines().collect();
        let [name, data] = lines[..] else { panic!("a name and data: {event:?}") };
        let name = name.strip_prefix("event: ").unwrap_or_else(|| panic!("a name: {event:?}"));
        let data = data.strip_prefix("data: ").unwrap_or_else(|| panic!("data: {event:?}"));
        (name.to_owned(), serde_json::from_str(data).expect("JSON in an event"))
    };
    text.trim_end().split("\n\n").map(event).collect()
}

/// A connection that can be kept, misused and hung up.
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(at: SocketAddr) -> Self {
        let stream = TcpStream::connect(at).expect("a server that listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        Self { reader: BufReader::new(stream) }
    }

    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
        headers.iter().for_each(|(n, v)| head += &format!("{n}: {v}\r\n"));
        if !body.is_empty() || method == "POST" {
            head += &format!("content-length: {}\r\n", body.len());
        }
        self.raw(&[head.as_bytes(), b"\r\n", body].concat());
    }

    /// Sends bytes as they are. A server that has hung up already is no failure: it may have answered before.
    pub fn raw(&mut self, bytes: &[u8]) {
        let _ = self.reader.get_mut().write_all(bytes);
    }

    /// The next response, read to its end.
    pub fn response(&mut self) -> Response {
        let (status, headers) = self.head();
        let mut response = Response { status, headers, body: vec![] };
        if response.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                response.body.extend(chunk);
            }
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().expect("a length");
            response.body.resize(length, 0);
            self.reader.read_exact(&mut response.body).expect("a whole body");
        }
        response
    }

    /// True when the server has closed the connection and sent nothing more.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.reader.fill_buf(), Ok([]) | Err(_))
    }

    /// The next response is a head with this status and nothing else.
    pub fn is_head_only(&mut self, status: u16) -> bool {
        self.head().0 == status && self.is_closed()
    }

    fn events(mut self) -> Events {
        let (status, headers) = self.head();
        let chunked = headers.iter().any(|(n, v)| n == "transfer-encoding" && v == "chunked");
        Events { connection: self, status, headers, chunked, pending: vec![], ended: false }
    }

    fn head(&mut self) -> (u16, Vec<(String, String)>) {
        let status = self.line();
        let status =
            status.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status: {status:?}"));
        let mut headers = vec![];
        loop {
            let line = self.line();
            if line.is_empty() {
                return (status, headers);
            }
            let (name, value) = line.split_once(':').expect("a header");
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next chunk; `None` at the end of the body.
    fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.line();
        let length = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("no chunk length: {line:?}"));
        let mut chunk = vec![0; length + 2];
        self.reader.read_exact(&mut chunk).expect("a whole chunk");
        chunk.truncate(length);
        (length > 0).then_some(chunk)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line in time");
        line.trim_end_matches(['\r', '\n']).to_owned()
    }
}

/// Server-sent events. Dropping it hangs up.
pub struct Events {
    connection: Connection,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    chunked: bool,
    pending: Vec<u8>,
    ended: bool,
}

impl Events {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The data of all events as JSON. The test fails unless `[DONE]` is the last.
    pub fn all(mut self) -> Vec<Value> {
        assert_eq!(self.status, 200, "a stream");
        let data: Vec<String> = self.by_ref().collect();
        assert_eq!(data.last().map(String::as_str), Some("[DONE]"), "the last event");
        data[..data.len() - 1].iter().map(|d| serde_json::from_str(d).expect("JSON in an event")).collect()
    }
}

impl Iterator for Events {
    type Item = String;

    /// The data of the next event.
    fn next(&mut self) -> Option<String> {
        assert!(self.chunked, "a stream of events is chunked");
        loop {
            if let Some(end) = self.pending.windows(2).position(|w| w == b"\n\n") {
                let event: Vec<u8> = self.pending.drain(..end + 2).collect();
                let event = String::from_utf8(event).expect("whole characters in every event");
                let data = event.trim_end().strip_prefix("data: ").unwrap_or_else(|| panic!("an event: {event:?}"));
                assert!(!data.contains('\n'), "one line an event");
                return Some(data.to_owned());
            }
            if self.ended {
                assert!(self.pending.is_empty(), "no half event at the end");
                return None;
            }
            match self.connection.chunk() {
                Some(chunk) => self.pending.extend(chunk),
                None => self.ended = true,
            }
        }
    }
}
