//! What a person looks at: a listing as the pages read and write it. It differs from the API's in one thing: where nothing is
//! said about reviews, pages show what is still to be reviewed, which is why one opens them; `reviewed=all` shows all.
//!
//! Thread: none; plain values.
//!
//! Invariants:
//! 1. Reading what was written gives the same view. Test: `what_is_written_is_read_again`.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;

use crate::review::api::query::{ListQuery, Listing};
use crate::review::problem::Problem;
use crate::review::store::{Cursor, Filter, Reviewed};

const ALL: &str = "all";

/// A listing on a page.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View(pub Listing);

impl View {
    /// Reads and checks the query of a page.
    pub fn read(query: Result<Query<ListQuery>, QueryRejection>) -> Result<View, Problem> {
        let mut query = query.map_err(|e| Problem::bad_request(e.body_text()))?.0;
        let reviewed = &mut query.filter.reviewed;
        *reviewed = match reviewed.as_deref() {
            None | Some("") => Some("no".into()),
            Some(ALL) => None,
            _ => reviewed.take(),
        };
        query.check().map(View)
    }

    /// A view of what fits the filter.
    pub fn of(filter: Filter) -> View {
        View(Listing { filter, ..Listing::default() })
    }

    /// The same with another filter, from its start.
    pub fn with(&self, change: impl FnOnce(&mut Filter)) -> View {
        let mut listing = Listing { start: None, ..self.0.clone() };
        change(&mut listing.filter);
        View(listing)
    }

    /// The same from its start.
    pub fn first(&self) -> View {
        self.with(|_| ())
    }

    /// The same from another place.
    pub fn from(&self, start: Cursor) -> View {
        View(Listing { start: Some(start), ..self.0.clone() })
    }

    /// `path` with this view as its query.
    pub fn link(&self, path: &str) -> String {
        let reviewed = self.0.filter.reviewed;
        if reviewed == Some(Reviewed::No) {
            return self.api().link(path);
        }
        let link = self.0.link(path);
        match reviewed {
            None => format!("{link}{}reviewed={ALL}", if link.contains('?') { '&' } else { '?' }),
            Some(_) => link,
        }
    }

    /// Whether it is limited by more than whether it was reviewed.
    pub fn is_narrow(&self) -> bool {
        Filter { reviewed: None, ..self.0.filter.clone() } != Filter::default()
    }

    fn api(&self) -> Listing {
        let filter = Filter { reviewed: None, ..self.0.filter.clone() };
        Listing { filter, ..self.0.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::store::{Decision, Sort};

    fn read(link: &str) -> View {
        View::read(Query::try_from_uri(&link.parse().unwrap())).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let reviewed = [None, Some(Reviewed::No), Some(Reviewed::Yes), Some(Reviewed::As(Decision::Unclear))];
        for reviewed in reviewed {
            for line in [None, Some("a&b=c d".to_owned())] {
                for sort in [Sort::Time, Sort::Confidence] {
                    let filter = Filter { reviewed, line: line.clone(), ..Filter::default() };
                    let view = View(Listing { filter, sort, ..Listing::default() });
                    assert_eq!(read(&view.link("/")), view);
                }
            }
        }
    }

    #[test]
    fn pages_open_with_what_is_to_be_reviewed() {
        assert_eq!(read("/").0.filter.reviewed, Some(Reviewed::No));
        assert_eq!(read("/?reviewed=").0.filter.reviewed, Some(Reviewed::No));
        assert_eq!(read("/?reviewed=all").0.filter.reviewed, None);
        assert_eq!(read("/").link("/"), "/");
    }
}
