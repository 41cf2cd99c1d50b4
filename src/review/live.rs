//! What changes while people look: told to every page that is open.
//!
//! Thread: any; telling never waits. Who reads too slowly misses some and is told to load anew.

use tokio::sync::broadcast;
use uuid::Uuid;

/// Changes that a slow reader may be behind.
const BEHIND: usize = 256;

/// Something changed in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An anomaly arrived.
    Anomaly { id: Uuid, line: String },
    /// An anomaly was reviewed, or a review taken back.
    Review { id: Uuid },
    /// A line reported.
    Line { line: String },
}

/// Where changes are told.
#[derive(Debug, Clone)]
pub struct Live(broadcast::Sender<Change>);

impl Default for Live {
    fn default() -> Live {
        Live(broadcast::Sender::new(BEHIND))
    }
}

impl Live {
    /// Tells whoever listens.
    pub fn tell(&self, change: Change) {
        let _ = self.0.send(change); // nobody listens
    }
    /// Hears what is told from now on.
    pub fn listen(&self) -> broadcast::Receiver<Change> {
        self.0.subscribe()
    }
}
