//! What changes while people look: told to every page that is open.
//!
//! Thread: any; telling never waits. Who reads too slowly misses some and is told to load anew.

use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

/// Changes that a slow reader may be behind.
const BEHIND: usize = 256;
/// Pages that may listen at the same time.
pub const STREAMS: usize = 64;

/// Something changed in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An anomaly arrived.
    Anomaly { id: Uuid, line: String },
    /// An anomaly was reviewed, or a review taken back.
    Review { id: Uuid },
    /// A line reported.
    Line { line: String },
    /// The server stops.
    Stop,
}

/// Where changes are told.
#[derive(Debug, Clone)]
pub struct Live {
    changes: broadcast::Sender<Change>,
    streams: Arc<Semaphore>,
}

impl Default for Live {
    fn default() -> Live {
        Live { changes: broadcast::Sender::new(BEHIND), streams: Arc::new(Semaphore::new(STREAMS)) }
    }
}

impl Live {
    /// Tells whoever listens.
    pub fn tell(&self, change: Change) {
        let _ = self.changes.send(change); // nobody listens
    }
    /// Hears what is told from now on; `None` when [`STREAMS`] listen already.
    pub fn listen(&self) -> Option<Listener> {
        let place = self.streams.clone().try_acquire_owned().ok()?;
        Some(Listener { changes: self.changes.subscribe(), _place: place })
    }
}

/// One of those that listen.
#[derive(Debug)]
pub struct Listener {
    changes: broadcast::Receiver<Change>,
    /// Given back when it goes.
    _place: OwnedSemaphorePermit,
}

impl Listener {
    /// The next change.
    pub async fn next(&mut self) -> Result<Change, RecvError> {
        self.changes.recv().await
    }
}
