//! When a GigE Vision stream listens to its camera only.
//!
//! A program that may (root, or `CAP_NET_RAW`) receives pictures by a packet socket, which the thread of aravis's stream opens,
//! binds to the interface and then limits to the camera's pictures (0.8, `arvgvstream.c`, `_ring_buffer_loop`). Whatever arrives
//! before that limit, an answer of the camera to our commands among it, is taken for a picture with a number far off, and the real
//! ones for late: up to 100 of them are lost. Nothing tells when the limit is set; that the socket is bound, which is right before,
//! can be seen in `/proc/net/packet`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long a stream may take to bind its socket; a thread that has not begun by then is a machine's that is far too busy.
const BOUND: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(2);
/// The bit of `CAP_NET_RAW` (capabilities(7)).
const NET_RAW: u32 = 13;

/// The packet sockets that were bound before the stream was opened; none for a program that receives by plain sockets.
pub(super) struct Before(Option<BTreeSet<u64>>);

impl Before {
    pub fn now() -> Before {
        Before(may_open_any().then(bound))
    }

    /// Waits for a socket that was not there before; false when none comes in time.
    pub fn wait(&self) -> bool {
        let Some(before) = &self.0 else { return true };
        let since = Instant::now();
        while bound().is_subset(before) {
            if since.elapsed() > BOUND {
                return false;
            }
            std::thread::sleep(AGAIN);
        }
        true
    }
}

fn may_open_any() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|bits| bits >> NET_RAW & 1 == 1)
}

/// Inodes of the packet sockets that are bound to an interface.
fn bound() -> BTreeSet<u64> {
    inodes(&std::fs::read_to_string("/proc/net/packet").unwrap_or_default())
}

fn inodes(table: &str) -> BTreeSet<u64> {
    // sk RefCnt Type Proto Iface R Rmem User Inode
    let inode = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, _, interface, _, _, _, inode] = columns[..] else { return None };
        (interface != "0").then(|| inode.parse().ok())?
    };
    table.lines().filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let table = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                     0000000000000000 3      3    0003   0     1 0      0      71\n\
                     0000000000000000 3      3    0800   1     1 0      0      72\n";
        assert_eq!(inodes(table), BTreeSet::from([72]));
        assert!(inodes("").is_empty());
    }
}
