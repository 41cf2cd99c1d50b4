//! Streams end when who opened them is no longer let in: logged out, expired, revoked, removed, or a stranger now that there are
//! accounts.
//!
//! Thread: the server's; the database is read through [`Desk::run`].
//!
//! Invariants:
//! 1. A stream gives nothing later than [`EVERY`] after who opened it lost the right to see it. Test:
//!    `a_stream_ends_with_its_session` in tests/review_accounts.rs.

use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::gate::{Need, known, may};
use super::store::Credential;
use super::{Desk, Who};

/// How often it is asked again.
const EVERY: Duration = Duration::from_secs(2);

/// How somebody was let in. The gate puts it into every request that it lets through.
#[derive(Clone)]
pub struct Stay {
    pub(super) desk: Desk,
    pub(super) credential: Credential,
    pub(super) who: Who,
}

impl Stay {
    /// Whether the same would be let in now, to look. Where that cannot be found out, it would not.
    async fn holds(&self) -> bool {
        let credential = self.credential.clone();
        let found = self.desk.run(move |a| a.who(&credential, Timestamp::now())).await;
        let Ok(found) = found else { return false };
        let now = known(found, &self.desk, self.who.from);
        now.is_some_and(|now| now.name == self.who.name && may(&now, Need::Read))
    }

    /// The stream as long as it may be seen.
    pub fn of<S: Stream + Send + 'static>(self, stream: S) -> impl Stream<Item = S::Item> + Send
    where
        S::Item: Send,
    {
        let next_look = Instant::now() + EVERY;
        stream::unfold((self, Box::pin(stream), next_look), |(stay, mut stream, mut next_look)| async move {
            loop {
                let next = timeout_at(next_look, stream.next()).await;
                if Instant::now() >= next_look {
                    if !stay.holds().await {
                        return None;
                    }
                    next_look = Instant::now() + EVERY;
                }
                if let Ok(item) = next {
                    return Some((item?, (stay, stream, next_look)));
                }
            }
        })
    }
}
