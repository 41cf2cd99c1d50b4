//! An HTTP endpoint that honours the idempotency key and misbehaves on request.

// each test binary uses a part of it
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

/// What to do with one request.
#[derive(Debug, Clone)]
pub enum Act {
    /// 201, or 200 for a repeat.
    Take,
    /// This status, with these header lines and this body.
    Answer(u16, &'static str, &'static str),
    /// Close at once.
    Reset,
    /// Read a little of the body and close.
    CutShort,
    /// Keep the anomaly and close without an answer.
    LoseAnswer,
    /// Half a status line.
    HalfHead,
    /// Take it; the answer's body breaks off.
    HalfBody,
    /// Never answer.
    Silent,
    /// A 500 whose body does not end.
    Endless,
    /// An answer whose head comes a byte at a time and never ends.
    Trickle,
}

#[derive(Debug, Clone)]
pub struct Request {
    /// The request line.
    pub line: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub id: String,
    pub body: Vec<u8>,
}

impl Request {
    /// The multipart fields: content type and content.
    pub fn fields(&self) -> BTreeMap<String, (String, Vec<u8>)> {
        let boundary = self.headers["content-type"].split("boundary=").nth(1).unwrap();
        let mark = format!("--{boundary}");
        let mut fields = BTreeMap::new();
        let mut rest = &self.body[..];
        while let Some(at) = find(rest, mark.as_bytes()) {
            let chunk = rest[..at].strip_suffix(b"\r\n");
            if let Some((chunk, split)) = chunk.and_then(|chunk| find(chunk, b"\r\n\r\n").map(|split| (chunk, split))) {
                let head = String::from_utf8_lossy(&chunk[..split]).to_lowercase();
                let name = head.split(" name=\"").nth(1).unwrap().split('"').next().unwrap();
                let kind = head.split("content-type: ").nth(1).unwrap().lines().next().unwrap();
                fields.insert(name.to_owned(), (kind.to_owned(), chunk[split + 4..].to_vec()));
            }
            rest = &rest[at + mark.len()..];
        }
        fields
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle)
}

#[derive(Default)]
pub struct Seen {
    /// Each request, with its time.
    pub requests: Vec<(Instant, String)>,
    /// Ids kept, in order.
    pub order: Vec<String>,
    /// The first request of each id that was kept.
    pub kept: BTreeMap<String, Request>,
    /// Requests for an id that was kept before.
    pub repeats: usize,
    /// Body bytes of requests answered with a 2xx.
    pub acknowledged: u64,
    /// Keeps the event of each request and no pictures.
    pub light: bool,
}

pub struct Server {
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

type Script = dyn FnMut(&Request) -> Act + Send;

impl Server {
    pub fn start(script: impl FnMut(&Request) -> Act + Send + 'static) -> Server {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script)
    }

    pub fn start_at(address: SocketAddr, script: impl FnMut(&Request) -> Act + Send + 'static) -> Server {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let script: Arc<Mutex<Box<Script>>> = Arc::new(Mutex::new(Box::new(script)));
        let (kept, stopped) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Relaxed) {
                    break;
                }
                let (stream, seen, script) = (stream.unwrap(), kept.clone(), script.clone());
                // a client that leaves in the middle is part of the game
                std::thread::spawn(move || serve(stream, &seen, &script));
            }
        });
        Server { address, seen, stop, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it saw, also after its end.
    pub fn book(&self) -> Arc<Mutex<Seen>> {
        self.seen.clone()
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(stream: TcpStream, seen: &Mutex<Seen>, script: &Mutex<Box<Script>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let id = headers.get("idempotency-key").cloned().unwrap_or_default();
    let length: usize = match headers.get("content-length") {
        Some(length) => length.parse().ok()?,
        None if line.starts_with("GET ") => 0,
        None => return None,
    };
    let posted = !line.starts_with("GET ");
    let mut request = Request { line: line.trim_end().to_owned(), headers, id: id.clone(), body: Vec::new() };
    let act = match script.lock().unwrap()(&request) {
        // there is nothing to take
        Act::Take if !posted => Act::Answer(405, "", ""),
        act => act,
    };
    seen.lock().unwrap().requests.push((Instant::now(), id.clone()));
    match act {
        Act::Reset => return None,
        Act::CutShort => {
            let mut some = vec![0; length.min(100)];
            return reader.read_exact(&mut some).ok();
        }
        _ => {}
    }
    request.body = vec![0; length];
    reader.read_exact(&mut request.body).ok()?;
    let mut out = stream;
    let (status, extra, body) = match act {
        Act::Take | Act::HalfBody | Act::LoseAnswer => {
            let mut seen = seen.lock().unwrap();
            let status = match seen.kept.contains_key(&id) {
                true => {
                    // a repeat is the same anomaly, but for its time in the spool, or the same report
                    match request.headers["content-type"].starts_with("multipart/") {
                        _ if seen.light => {}
                        true => assert_eq!(seen.kept[&id].fields()["frame"], request.fields()["frame"]),
                        false => assert_eq!(seen.kept[&id].body, request.body),
                    }
                    seen.repeats += 1;
                    200
                }
                false => {
                    seen.order.push(id.clone());
                    if seen.light && request.headers["content-type"].starts_with("multipart/") {
                        request.body = request.fields().remove("event").map(|event| event.1).unwrap_or_default();
                    }
                    seen.kept.insert(id, request);
                    201
                }
            };
            if !matches!(act, Act::LoseAnswer) {
                seen.acknowledged += length as u64;
            }
            drop(seen);
            match act {
                Act::LoseAnswer => return None,
                Act::HalfBody => {
                    return out.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\nthis is not").ok();
                }
                _ => (status, "", "{}"),
            }
        }
        Act::HalfHead => return out.write_all(b"HTTP/1.1 20").ok(),
        Act::Silent => {
            // until the client gives up
            let _ = reader.read(&mut [0]);
            return None;
        }
        Act::Endless => {
            out.write_all(b"HTTP/1.1 500 Oh\r\n\r\n").ok()?;
            while out.write_all(&[b'x'; 4096]).is_ok() {}
            return None;
        }
        Act::Trickle => {
            for byte in b"HTTP/1.1 201 Created\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'a')) {
                out.write_all(&[*byte]).ok()?;
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            return None;
        }
        Act::Answer(status, extra, body) => (status, extra, body),
        Act::Reset | Act::CutShort => return None,
    };
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n{extra}\r\n", body.len());
    out.write_all(format!("{head}{body}").as_bytes()).ok()
}
