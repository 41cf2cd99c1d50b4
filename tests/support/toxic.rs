//! A network that is hostile: a TCP proxy that delays, cuts, throttles and swallows what goes through it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

/// What may happen to a connection; which, is drawn anew for each.
#[derive(Debug, Clone, Copy)]
pub enum Toxic {
    /// Everything passes.
    None,
    /// Each piece waits.
    Delay(Duration),
    /// Pieces of this size, each followed by a pause.
    Thin { bytes: usize, pause: Duration },
    /// Closed after so many bytes to the server.
    CutAfter(usize),
    /// The server's answer is closed after so many bytes.
    CutAnswerAfter(usize),
    /// What goes to the server disappears after so many bytes, and nobody says so.
    Swallow(usize),
}

pub struct Proxy {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    pub connections: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// `draw` says what happens to each connection.
    pub fn start(to: SocketAddr, mut draw: impl FnMut() -> Toxic + Send + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), connections.clone());
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Relaxed) {
                    break;
                }
                count.fetch_add(1, Relaxed);
                let (client, toxic) = (client.unwrap(), draw());
                std::thread::spawn(move || {
                    let Ok(server) = TcpStream::connect(to) else { return };
                    let (from, back) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                    let there = std::thread::spawn(move || pass(from, server, toxic, true));
                    pass(back, client, toxic, false);
                    let _ = there.join();
                });
            }
        });
        Proxy { address, stop, connections, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, toxic: Toxic, to_server: bool) {
    let size = match toxic {
        Toxic::Thin { bytes, .. } => bytes,
        _ => 4096,
    };
    let (mut piece, mut passed) = (vec![0; size], 0);
    while let Ok(n @ 1..) = from.read(&mut piece) {
        passed += n;
        match toxic {
            Toxic::Delay(time) | Toxic::Thin { pause: time, .. } => std::thread::sleep(time),
            Toxic::CutAfter(most) if to_server && passed > most => break,
            Toxic::CutAnswerAfter(most) if !to_server && passed > most => {
                let _ = to.write_all(&piece[..n.saturating_sub(passed - most)]);
                break;
            }
            Toxic::Swallow(most) if to_server && passed > most => continue,
            _ => {}
        }
        if to.write_all(&piece[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
