//! The query of a list: which anomalies, in what order, from where. The API, the pages and the exports read it the same way, and
//! the pages write it into their links.
//!
//! Invariants:
//! 1. Reading what was written gives the same listing. Test: `what_is_written_is_read_again`.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, OneOfBuilder, Schema, SchemaFormat, Type};

use super::LIMIT;
use crate::event::Verdict;
use crate::review::problem::Problem;
use crate::review::store::{Cursor, Decision, Filter, Reviewed, Sort};

/// Characters of a text in a query.
const MAX_TEXT: usize = 200;
/// The verdicts that a list can be limited to.
pub const VERDICTS: [Verdict; 3] = [Verdict::Reject, Verdict::Unsure, Verdict::Missed];

/// As typed. Empty means not given, because forms send it so; what is not known is passed over.
#[derive(Debug, Default, Deserialize)]
pub struct ListQuery {
    #[serde(flatten)]
    page: PageQuery,
    #[serde(flatten)]
    pub filter: FilterQuery,
}

/// Which page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Where the page starts: `next` or `previous` of another page.
    cursor: Option<String>,
    /// Items in the page; 50 when it is not given.
    #[param(schema_with = limit_schema)]
    limit: Option<String>,
}

/// Which anomalies, in what order.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FilterQuery {
    /// What is first: the newest, or the most unusual.
    #[param(schema_with = order_schema)]
    pub sort: Option<String>,
    /// Name of the line.
    #[param(max_length = 200)]
    pub line: Option<String>,
    /// What the line decided.
    #[param(schema_with = verdict_schema)]
    pub verdict: Option<String>,
    /// `no`, `yes`, or the decision that holds.
    #[param(schema_with = reviewed_schema)]
    pub reviewed: Option<String>,
    /// Captured then or later (RFC 3339).
    #[param(schema_with = time_schema)]
    pub since: Option<String>,
    /// Captured before (RFC 3339).
    #[param(schema_with = time_schema)]
    pub until: Option<String>,
    #[param(schema_with = share_schema)]
    pub confidence_min: Option<String>,
    #[param(schema_with = share_schema)]
    pub confidence_max: Option<String>,
    /// `name@version`.
    #[param(max_length = 200)]
    pub model: Option<String>,
    #[param(max_length = 200)]
    pub lot: Option<String>,
    #[param(max_length = 200)]
    pub serial: Option<String>,
    /// Of the decision that holds.
    #[param(max_length = 200)]
    pub defect_type: Option<String>,
}

/// What a query takes as well where it takes something: nothing.
fn or_empty(schema: ObjectBuilder) -> Schema {
    let empty = ObjectBuilder::new().schema_type(Type::String).max_length(Some(0));
    OneOfBuilder::new().item(schema).item(empty).into()
}

pub(in crate::review) fn words(words: impl IntoIterator<Item = &'static str>) -> Schema {
    let words = words.into_iter().chain([""]);
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).into()
}

fn order_schema() -> Schema {
    words(["time", "confidence"])
}

fn verdict_schema() -> Schema {
    words(VERDICTS.map(Verdict::as_str))
}

fn reviewed_schema() -> Schema {
    words(["no", "yes"].into_iter().chain(Decision::ALL.map(Decision::as_str)))
}

fn limit_schema() -> Schema {
    or_empty(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).maximum(Some(LIMIT.1)))
}

fn share_schema() -> Schema {
    or_empty(ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)).maximum(Some(1)))
}

/// A number that is not negative.
pub(super) fn number_schema() -> Schema {
    or_empty(ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)))
}

/// An instant.
pub(super) fn time_schema() -> Schema {
    let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
    or_empty(ObjectBuilder::new().schema_type(Type::String).format(Some(format)))
}

/// Checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    pub filter: Filter,
    pub sort: Sort,
    pub start: Option<Cursor>,
    pub limit: Option<usize>,
}

/// Reads and checks a query as axum extracts it.
pub fn listing(query: Result<Query<ListQuery>, QueryRejection>) -> Result<Listing, Problem> {
    query.map_err(|e| Problem::bad_request(e.body_text()))?.0.check()
}

impl ListQuery {
    /// Checks every value that was given.
    pub fn check(self) -> Result<Listing, Problem> {
        let limit = given(self.page.limit).map(|text| {
            let limit = text.parse::<usize>().ok().filter(|n| (1..=LIMIT.1).contains(n));
            limit
                .ok_or_else(|| Problem::bad_request(format!("limit is {text:?}, it must be between 1 and {}", LIMIT.1)))
        });
        let listing = self.filter.check()?;
        let start = given(self.page.cursor);
        let start = start.map(|c| c.parse::<Cursor>().map_err(|e| Problem::bad_request(e.to_string()))).transpose()?;
        if start.is_some_and(|start| start.from.sort() != listing.sort) {
            return Err(Problem::bad_request("cursor is of a list in another order, give the same sort as there"));
        }
        Ok(Listing { start, limit: limit.transpose()?, ..listing })
    }
}

impl FilterQuery {
    /// Checks every value that was given; the listing is all that fits.
    pub fn check(self) -> Result<Listing, Problem> {
        let verdicts = VERDICTS.map(|v| (v.as_str(), v));
        let [defect, false_alarm, unclear] = Decision::ALL.map(|d| (d.as_str(), Reviewed::As(d)));
        let reviewed = [("no", Reviewed::No), ("yes", Reviewed::Yes), defect, false_alarm, unclear];
        let filter = Filter {
            line: text("line", self.line)?,
            verdict: word("verdict", self.verdict, &verdicts)?,
            reviewed: word("reviewed", self.reviewed, &reviewed)?,
            since: time("since", self.since)?,
            until: time("until", self.until)?,
            confidence_min: share("confidence_min", self.confidence_min)?,
            confidence_max: share("confidence_max", self.confidence_max)?,
            model: text("model", self.model)?,
            lot: text("lot", self.lot)?,
            serial: text("serial", self.serial)?,
            defect_type: text("defect_type", self.defect_type)?,
        };
        let sort = word("sort", self.sort, &[("time", Sort::Time), ("confidence", Sort::Confidence)])?;
        Ok(Listing { filter, sort: sort.unwrap_or_default(), ..Listing::default() })
    }
}

impl Listing {
    /// `path` with this listing as its query.
    pub fn link(&self, path: &str) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        let mut add = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        };
        let f = &self.filter;
        add("line", f.line.as_deref());
        add("verdict", f.verdict.map(Verdict::as_str));
        add(
            "reviewed",
            f.reviewed.map(|r| match r {
                Reviewed::No => "no",
                Reviewed::Yes => "yes",
                Reviewed::As(decision) => decision.as_str(),
            }),
        );
        add("since", f.since.map(|t| t.to_string()).as_deref());
        add("until", f.until.map(|t| t.to_string()).as_deref());
        add("confidence_min", f.confidence_min.map(|c| c.to_string()).as_deref());
        add("confidence_max", f.confidence_max.map(|c| c.to_string()).as_deref());
        add("model", f.model.as_deref());
        add("lot", f.lot.as_deref());
        add("serial", f.serial.as_deref());
        add("defect_type", f.defect_type.as_deref());
        add("sort", (self.sort == Sort::Confidence).then_some("confidence"));
        add("limit", self.limit.map(|n| n.to_string()).as_deref());
        add("cursor", self.start.map(|c| c.to_string()).as_deref());
        let query = query.finish();
        if query.is_empty() { path.to_string() } else { format!("{path}?{query}") }
    }
}

pub(super) fn given(value: Option<String>) -> Option<String> {
    value.filter(|v| !v.is_empty())
}

pub(super) fn text(name: &str, value: Option<String>) -> Result<Option<String>, Problem> {
    match given(value) {
        Some(text) if text.chars().count() > MAX_TEXT => {
            Err(Problem::bad_request(format!("{name} has more than {MAX_TEXT} characters")))
        }
        value => Ok(value),
    }
}

fn word<T: Copy>(name: &str, value: Option<String>, known: &[(&str, T)]) -> Result<Option<T>, Problem> {
    let Some(text) = given(value) else { return Ok(None) };
    if let Some((_, found)) = known.iter().find(|(word, _)| *word == text) {
        return Ok(Some(*found));
    }
    let (last, first) = known.split_last().map_or((String::new(), Vec::new()), |(last, first)| {
        (format!("{:?}", last.0), first.iter().map(|(word, _)| format!("{word:?}")).collect())
    });
    Err(Problem::bad_request(format!("{name} is {text:?}, it must be {} or {last}", first.join(", "))))
}

pub(super) fn time(name: &str, value: Option<String>) -> Result<Option<Timestamp>, Problem> {
    let Some(text) = given(value) else { return Ok(None) };
    let time = text.parse::<Timestamp>().ok().and_then(|time| {
        // beyond what can be stored nothing was captured: the ends mean the same
        let ns = time.as_nanosecond().clamp(i64::MIN.into(), i64::MAX.into());
        Timestamp::from_nanosecond(ns).ok()
    });
    let wrong = || Problem::bad_request(format!("{name} is {text:?}, it must be a time as 2030-01-31T06:00:00Z"));
    time.map(Some).ok_or_else(wrong)
}

fn share(name: &str, value: Option<String>) -> Result<Option<f32>, Problem> {
    let Some(text) = given(value) else { return Ok(None) };
    // as it was typed: what is just above 1 would be 1 in fewer digits
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share
        .map(|share| Some(share as f32))
        .ok_or_else(|| Problem::bad_request(format!("{name} is {text:?}, it must be between 0 and 1")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(link: &str) -> Result<Listing, Problem> {
        let uri = link.parse().unwrap();
        listing(Query::try_from_uri(&uri))
    }

    #[test]
    fn empty_means_not_given() {
        let all =
            "/?cursor=&limit=&sort=&line=&verdict=&reviewed=&since=&until=&confidence_min=&model=&serial=&unknown=7";
        assert_eq!(read(all).unwrap(), Listing::default());
        assert_eq!(Listing::default().link("/"), "/");
    }

    #[test]
    fn wrong_values_say_what_is_taken() {
        let table = [
            ("limit=0", "limit is \"0\", it must be between 1 and 200"),
            ("limit=201", "limit is \"201\", it must be between 1 and 200"),
            ("limit=99999999999999999999999", "limit is \"99999999999999999999999\", it must be between 1 and 200"),
            ("verdict=pass", "verdict is \"pass\", it must be \"reject\", \"unsure\" or \"missed\""),
            ("sort=score", "sort is \"score\", it must be \"time\" or \"confidence\""),
            ("confidence_min=nan", "confidence_min is \"nan\", it must be between 0 and 1"),
            (
                "confidence_max=1.0000000000000002",
                "confidence_max is \"1.0000000000000002\", it must be between 0 and 1",
            ),
            ("since=yesterday", "since is \"yesterday\", it must be a time as 2030-01-31T06:00:00Z"),
            ("cursor=x", "cursor \"x\" is not one that this server gave out"),
            (
                "cursor=oc0.5_01930000-0000-7000-8000-000000000001",
                "cursor is of a list in another order, give the same sort as there",
            ),
        ];
        for (query, detail) in table {
            assert_eq!(read(&format!("/?{query}")).unwrap_err().detail(), detail, "{query}");
        }
        assert!(read("/?line=a&line=b").is_err());
        let far = read("/?until=9999-01-01T00:00:00Z&since=0001-01-01T00:00:00Z").unwrap().filter;
        let ns = |time: Option<Timestamp>| time.unwrap().as_nanosecond();
        assert_eq!((ns(far.since), ns(far.until)), (i64::MIN.into(), i64::MAX.into()));
    }

    fn text() -> impl Strategy<Value = Option<String>> {
        proptest::option::of("[a-z&=?# ü<>\"'%]{1,12}")
    }

    fn time() -> impl Strategy<Value = Option<Timestamp>> {
        proptest::option::of((0_i64..4_000_000_000).prop_map(|s| Timestamp::from_second(s).unwrap()))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            texts in (text(), text(), text(), text(), text()),
            verdict in proptest::option::of(0..3_usize),
            reviewed in proptest::option::of(0..5_usize),
            times in (time(), time()),
            shares in (proptest::option::of(0.0..1.0_f32), proptest::option::of(0.0..1.0_f32)),
            by_confidence: bool,
            start in proptest::option::of((any::<bool>(), any::<i64>(), any::<u128>(), 0.0..1.0_f32)),
            limit in proptest::option::of(1..=200_usize),
        ) {
            use crate::review::store::{Key, Position, Walk};
            let reviewed = reviewed.map(|n| match n {
                0 => Reviewed::No,
                1 => Reviewed::Yes,
                n => Reviewed::As(Decision::ALL[n - 2]),
            });
            let start = start.map(|(older, ns, id, confidence)| Cursor {
                walk: if older { Walk::Older } else { Walk::Newer },
                from: Position {
                    key: if by_confidence { Key::Confidence(confidence) } else { Key::Time(ns) },
                    id: uuid::Uuid::from_u128(id),
                },
            });
            let (line, model, lot, serial, defect_type) = texts;
            let listing = Listing {
                filter: Filter {
                    line, model, lot, serial, defect_type, reviewed,
                    verdict: verdict.map(|n| VERDICTS[n]),
                    since: times.0, until: times.1,
                    confidence_min: shares.0, confidence_max: shares.1,
                },
                sort: if by_confidence { Sort::Confidence } else { Sort::Time },
                start, limit,
            };
            prop_assert_eq!(read(&listing.link("/")).unwrap(), listing);
        }
    }
}
