//! Reviewed anomalies in the formats of other tools, as one download: `GET /api/v1/exports/{format}` with the query of the list.
//!
//! Thread: handlers run on the server's thread. An export is made in `spawn_blocking` and handed over in chunks; at most
//! [`AT_ONCE`] at a time, because each keeps a thread for as long as its download takes.
//!
//! The list is walked twice: first for what must be known before the first byte (counts, labels, sizes of parts: [`Survey`]), then
//! for the content, page by page. What is reviewed in between comes in as it is then.
//!
//! Invariants:
//! 1. Memory does not grow with the number of items. Test: `twenty_thousand_items_stream` in tests/review_export.rs.
//! 2. A download that is given up, or does not move for [`STALLED`], ends the work; one that fails ends broken, never short. Tests:
//!    `a_download_that_is_given_up_ends_the_work` there, `what_fails_ends_broken`.
//! 3. Nothing from an event or a person becomes a path, a formula or markup. Test: `hostile_names_are_inert` there.

mod coco;
mod csv;
mod cvat;
mod label_studio;
mod mvtec;
mod page;
mod shape;
mod zip;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum::{Extension, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};

use utoipa::openapi::Schema;
use utoipa::{IntoParams, ToSchema};

use super::accounts::{Role, Who};
use super::api::App;
use super::api::query::{FilterQuery, Listing, words};
use super::problem::Problem;
use super::store::{Anomaly, Decision, Filter, ObjectName, Reviewed, Sort, Store};
use crate::error::{Context, Error, Result};

/// Where exports are.
pub const EXPORTS: &str = "/api/v1/exports";
/// Exports that are made at the same time.
const AT_ONCE: usize = 3;
/// How long a download may stand still.
const STALLED: Duration = Duration::from_secs(60);
/// Bytes of a chunk, about, and chunks that wait for the network.
const CHUNK: (usize, usize) = (64 << 10, 4);
/// Anomalies that are read at once.
const PAGE: usize = 50;
/// Frames whose size is looked at to foretell that of all.
const SAMPLED: usize = 16;
/// Label of a defect without a type.
const DEFECT: &str = "defect";

/// A format to export to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    Coco,
    LabelStudio,
    Cvat,
    Mvtec,
    Csv,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 5] = [Format::Coco, Format::LabelStudio, Format::Cvat, Format::Mvtec, Format::Csv];

    /// The word in URLs.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Coco => "coco",
            Format::LabelStudio => "label-studio",
            Format::Cvat => "cvat",
            Format::Mvtec => "mvtec",
            Format::Csv => "csv",
        }
    }
    fn from_word(word: &str) -> Option<Format> {
        Self::ALL.into_iter().find(|f| f.as_str() == word)
    }
    /// Whether an anomaly with that decision has a place in it. COCO and MVTec AD know good and defective only.
    fn takes(self, decision: Option<Decision>) -> bool {
        match self {
            Format::Coco | Format::Mvtec => matches!(decision, Some(Decision::Defect | Decision::FalseAlarm)),
            Format::LabelStudio | Format::Cvat | Format::Csv => true,
        }
    }
}

/// What exports share.
#[derive(Debug)]
pub struct Exports {
    turns: Arc<Semaphore>,
    /// Where what has to wait for the end of an archive waits.
    dir: PathBuf,
}

impl Exports {
    /// Exports that put what has to wait into a data directory.
    pub fn new(data_dir: &Path) -> Exports {
        Exports { turns: Arc::new(Semaphore::new(AT_ONCE)), dir: data_dir.to_path_buf() }
    }
}

/// The routes of exports and of their page.
pub fn routes(exports: Exports) -> Router<App> {
    Router::new()
        .route(&format!("{EXPORTS}/{{format}}"), get(export))
        .route(&format!("{EXPORTS}/{{format}}/plan"), get(plan))
        .route("/exports", get(page::page))
        .layer(Extension(Arc::new(exports)))
}

/// What an export writes to. An item that it does not take is never given to it.
trait Export: Send {
    /// One more.
    fn item(&mut self, item: &Item<'_>) -> Result<()>;
    /// That was all.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// An anomaly that is exported.
struct Item<'a> {
    anomaly: &'a Anomaly,
    store: &'a dyn Store,
    /// Whether pictures are wanted.
    pictures: bool,
}

impl Item<'_> {
    fn decision(&self) -> Option<Decision> {
        self.anomaly.review.as_ref().and_then(|r| r.decision)
    }

    /// Its defect type, when it is among those that were announced.
    fn label(&self, labels: &[String]) -> String {
        self.label_of(|label| labels.iter().any(|l| l == label))
    }

    fn label_of(&self, known: impl Fn(&str) -> bool) -> String {
        let given = self.anomaly.review.as_ref().and_then(|r| r.defect_type.as_deref());
        given.filter(|label| known(label)).unwrap_or(DEFECT).to_owned()
    }

    /// Puts the frame into the archive, as it was received. `false`: it was removed meanwhile.
    fn add_frame<W: Write>(&self, zip: &mut zip::Zip<W>, name: &str) -> Result<bool> {
        if !self.pictures {
            return Ok(true);
        }
        let id = self.anomaly.event.id;
        let Some(frame) = self.store.object(id, ObjectName::Frame)? else { return Ok(false) };
        zip.add(name, &frame.bytes).failed(|| format!("cannot write the frame of anomaly {id}"))?;
        Ok(true)
    }

    /// The heatmap, when there is one that can be read.
    fn heat(&self) -> Result<Option<shape::Heat>> {
        let png = self.store.object(self.anomaly.event.id, ObjectName::Heatmap)?;
        Ok(png.and_then(|png| shape::Heat::read(&png.bytes)))
    }
}

/// What an export will hold.
#[derive(Debug, Default)]
struct Survey {
    defects: u64,
    false_alarms: u64,
    unclear: u64,
    not_reviewed: u64,
    types: BTreeSet<String>,
    /// Largest judged box of each line.
    parts: BTreeMap<String, (u32, u32)>,
    sampled: (u64, u64),
}

impl Survey {
    /// Walks the list. Ends early when nobody waits for it.
    fn take(store: &dyn Store, wanted: &Wanted, asked: &Weak<()>) -> Result<Survey> {
        let mut survey = Survey::default();
        walk(store, wanted, |anomaly| {
            if asked.strong_count() == 0 {
                return Err(Error::failed("the export was given up"));
            }
            let review = anomaly.review.as_ref();
            let decision = review.and_then(|r| r.decision);
            *match decision {
                Some(Decision::Defect) => &mut survey.defects,
                Some(Decision::FalseAlarm) => &mut survey.false_alarms,
                Some(Decision::Unclear) => &mut survey.unclear,
                None => &mut survey.not_reviewed,
            } += 1;
            if !wanted.format.takes(decision) {
                return Ok(());
            }
            survey.types.extend(review.and_then(|r| r.defect_type.clone()));
            let part = shape::judged(&anomaly.event);
            let largest = survey.parts.entry(anomaly.event.line.clone()).or_default();
            *largest = (largest.0.max(part.w), largest.1.max(part.h));
            if wanted.pictures && survey.sampled.0 < SAMPLED as u64 {
                let frame = store.object(anomaly.event.id, ObjectName::Frame)?;
                survey.sampled.0 += 1;
                survey.sampled.1 += frame.map_or(0, |f| f.bytes.len() as u64);
            }
            Ok(())
        })?;
        Ok(survey)
    }

    /// Labels of regions: that of defects without a type, then the types.
    fn labels(&self) -> Vec<String> {
        std::iter::once(DEFECT.to_owned()).chain(self.types.iter().filter(|t| *t != DEFECT).cloned()).collect()
    }

    /// Items that the format takes.
    fn items(&self, format: Format) -> u64 {
        let judged = self.defects + self.false_alarms;
        if format.takes(None) { judged + self.unclear + self.not_reviewed } else { judged }
    }
}

/// A checked request.
#[derive(Debug, Clone)]
struct Wanted {
    format: Format,
    filter: Filter,
    sort: Sort,
    pictures: bool,
    /// MVTec AD: whole frames instead of cut parts.
    whole: bool,
}

/// What the query has beyond that of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::review) struct Options {
    /// `no`: what is said about the pictures, without them.
    #[param(schema_with = images_schema)]
    images: Option<String>,
    /// `frame`: MVTec AD with whole frames.
    #[param(schema_with = cut_schema)]
    cut: Option<String>,
}

/// Whether pictures are wanted, and how MVTec AD has them: what is usual first.
const IMAGES: [&str; 2] = ["yes", "no"];
const CUT: [&str; 2] = ["part", "frame"];

fn images_schema() -> Schema {
    words(IMAGES)
}

fn cut_schema() -> Schema {
    words(CUT)
}

impl Wanted {
    fn check(
        format: &str,
        query: Result<Query<FilterQuery>, QueryRejection>,
        options: Result<Query<Options>, QueryRejection>,
    ) -> Result<Wanted, Problem> {
        let format = Format::from_word(format).ok_or_else(|| {
            let known = Format::ALL.map(Format::as_str).join(", ");
            Problem::not_found(format!("there is no export to {format:?}")).hint(format!("there are {known}"))
        })?;
        let Query(query) = query.map_err(|e| Problem::bad_request(e.body_text()))?;
        let Listing { filter, sort, .. } = query.check()?;
        let Query(Options { images, cut }) = options.map_err(|e| Problem::bad_request(e.body_text()))?;
        let one_of = |name: &str, value: Option<String>, [usual, other]: [&str; 2]| match value.as_deref() {
            None | Some("") => Ok(false),
            Some(word) if word == usual => Ok(false),
            Some(word) if word == other => Ok(true),
            Some(word) => Err(Problem::bad_request(format!("{name} is {word:?}, it must be {usual:?} or {other:?}"))),
        };
        let pictures = !one_of("images", images, IMAGES)?;
        let whole = one_of("cut", cut, CUT)?;
        Ok(Wanted { format, filter: reviewed(filter), sort, pictures, whole })
    }
}

/// What people have decided on, where the query does not say otherwise.
fn reviewed(filter: Filter) -> Filter {
    Filter { reviewed: filter.reviewed.or(Some(Reviewed::Yes)), ..filter }
}

/// Gives each anomaly that fits, in the order of the list.
fn walk(store: &dyn Store, wanted: &Wanted, mut each: impl FnMut(&Anomaly) -> Result<()>) -> Result<()> {
    let mut start = None;
    loop {
        let page = store.list(&wanted.filter, wanted.sort, start, PAGE)?;
        for anomaly in &page.items {
            each(anomaly)?;
        }
        start = page.older;
        if start.is_none() || page.items.is_empty() {
            return Ok(());
        }
    }
}

/// What an export would hold, for who wants to show how far a download is.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::review) struct Plan {
    format: Format,
    /// That the download holds.
    items: u64,
    defects: u64,
    false_alarms: u64,
    unclear: u64,
    not_reviewed: u64,
    /// Of these, what the format has no place for.
    left_out: u64,
    labels: Vec<String>,
    /// Foretold from the first pictures; null without pictures.
    bytes_about: Option<u64>,
}

/// Say what a download would hold
#[utoipa::path(
    get,
    path = "/api/v1/exports/{format}/plan",
    tag = "exports",
    params(("format" = inline(Format), Path, description = "The format"), FilterQuery, Options),
    responses(
        (status = 200, description = "What it would hold", body = Plan),
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such format", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(in crate::review) async fn plan(
    State(app): State<App>,
    who: Who,
    UrlPath(format): UrlPath<String>,
    query: Result<Query<FilterQuery>, QueryRejection>,
    options: Result<Query<Options>, QueryRejection>,
) -> Result<Response, Problem> {
    who.must(Role::Viewer)?;
    let wanted = Wanted::check(&format, query, options)?;
    let format = wanted.format;
    let survey = survey(&app, wanted).await?;
    let items = survey.items(format);
    let (frames, bytes) = survey.sampled;
    Ok(Json(Plan {
        format,
        items,
        defects: survey.defects,
        false_alarms: survey.false_alarms,
        unclear: survey.unclear,
        not_reviewed: survey.not_reviewed,
        left_out: survey.defects + survey.false_alarms + survey.unclear + survey.not_reviewed - items,
        labels: survey.labels(),
        bytes_about: (frames > 0 && format != Format::Csv).then(|| bytes * items / frames.max(1)),
    })
    .into_response())
}

async fn survey(app: &App, wanted: Wanted) -> Result<Survey, Problem> {
    let here = Arc::new(()); // goes when the request is given up
    let asked = Arc::downgrade(&here);
    let survey = app.run(move |store| Survey::take(store, &wanted, &asked)).await;
    drop(here);
    survey
}

/// Download what was reviewed, in another tool's format
///
/// The query is that of the list; what is reviewed unless it says otherwise. A zip of pictures and annotations, or CSV.
#[utoipa::path(
    get,
    path = "/api/v1/exports/{format}",
    tag = "exports",
    params(("format" = inline(Format), Path, description = "The format"), FilterQuery, Options),
    responses(
        (status = 200, description = "The download", content((Vec<u8> = "application/zip"), (String = "text/csv; charset=utf-8"))),
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such format", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Too many downloads at a time", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(in crate::review) async fn export(
    State(app): State<App>,
    Extension(exports): Extension<Arc<Exports>>,
    who: Who,
    UrlPath(format): UrlPath<String>,
    query: Result<Query<FilterQuery>, QueryRejection>,
    options: Result<Query<Options>, QueryRejection>,
) -> Result<Response, Problem> {
    who.must(Role::Viewer)?;
    let wanted = Wanted::check(&format, query, options)?;
    let Ok(turn) = exports.turns.clone().try_acquire_owned() else {
        let detail = format!("{AT_ONCE} exports are being downloaded, try again when one is done");
        return Ok(([(RETRY_AFTER, "10")], Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)).into_response());
    };
    let survey = survey(&app, wanted.clone()).await?;
    let count = survey.items(wanted.format);
    let (feed, body) = feed();
    let (kind, ending) = match wanted.format {
        Format::Csv => ("text/csv; charset=utf-8", "csv"),
        _ => ("application/zip", "zip"),
    };
    let name = wanted.format.as_str();
    let app = app.clone();
    tokio::spawn(async move {
        let _turn = turn;
        // what goes wrong is in the log; the download ends broken
        let _ = app.run(move |store| write(store, &wanted, &survey, feed, &exports.dir)).await;
    });
    let headers = [
        (CONTENT_TYPE, kind.to_owned()),
        (CONTENT_DISPOSITION, format!("attachment; filename=\"linesight-{name}.{ending}\"")),
        (HeaderName::from_static("x-total-count"), count.to_string()),
    ];
    Ok((headers, body).into_response())
}

/// Makes the whole export. Blocks.
fn write(store: &dyn Store, wanted: &Wanted, survey: &Survey, feed: Feed, dir: &Path) -> Result<()> {
    let (gone, whole) = (feed.to.clone(), feed.whole.clone());
    let make = || -> Result<()> {
        let archive = |feed| zip::Zip::new(feed, dir).failed(|| format!("cannot make files in \"{}\"", dir.display()));
        let mut export: Box<dyn Export> = match wanted.format {
            Format::Csv => Box::new(csv::Csv::new(feed)?),
            Format::Coco => Box::new(coco::Coco::new(archive(feed)?, survey)?),
            Format::LabelStudio => Box::new(label_studio::LabelStudio::new(archive(feed)?, survey)?),
            Format::Cvat => Box::new(cvat::Cvat::new(archive(feed)?, survey)?),
            Format::Mvtec => Box::new(mvtec::Mvtec::new(archive(feed)?, survey, wanted.whole)?),
        };
        walk(store, wanted, |anomaly| {
            if gone.is_closed() {
                return Err(Error::failed("the download was given up"));
            }
            let item = Item { anomaly, store, pictures: wanted.pictures };
            if wanted.format.takes(item.decision()) { export.item(&item) } else { Ok(()) }
        })?;
        export.finish()
    };
    match make() {
        Ok(()) => whole.store(true, Ordering::Release),
        Err(_) if gone.is_closed() => tracing::debug!(format = wanted.format.as_str(), "an export was given up"),
        Err(e) => return Err(e),
    }
    Ok(())
}

/// Where an export is written to: chunks for the network.
struct Feed {
    to: mpsc::Sender<Bytes>,
    waiting: Vec<u8>,
    /// Set when all was written.
    whole: Arc<AtomicBool>,
}

/// The other end: an answer's body.
struct FeedBody {
    from: mpsc::Receiver<Bytes>,
    whole: Arc<AtomicBool>,
}

fn feed() -> (Feed, Body) {
    let (to, from) = mpsc::channel(CHUNK.1);
    let whole = Arc::new(AtomicBool::new(false));
    let body = Body::new(FeedBody { from, whole: whole.clone() });
    (Feed { to, waiting: Vec::with_capacity(CHUNK.0), whole }, body)
}

impl Feed {
    fn send(&mut self) -> io::Result<()> {
        let mut chunk = Bytes::from(std::mem::replace(&mut self.waiting, Vec::with_capacity(CHUNK.0)));
        let start = Instant::now();
        // polled, because a timer of the runtime must not be used while that stops
        loop {
            match self.to.try_send(chunk) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(mpsc::error::TrySendError::Full(_)) if start.elapsed() > STALLED => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the download does not move"));
                }
                Err(mpsc::error::TrySendError::Full(back)) => chunk = back,
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Write for Feed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= CHUNK.0 {
            self.send()?;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() { Ok(()) } else { self.send() }
    }
}

impl http_body::Body for FeedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<io::Result<http_body::Frame<Bytes>>>> {
        Poll::Ready(match ready!(self.from.poll_recv(cx)) {
            Some(chunk) => Some(Ok(http_body::Frame::data(chunk))),
            None if self.whole.load(Ordering::Acquire) => None,
            None => Some(Err(io::Error::other("the export failed"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn what_fails_ends_broken() {
        let (mut feed, body) = feed();
        feed.write_all(b"half").unwrap();
        feed.flush().unwrap();
        drop(feed);
        assert!(body.collect().await.is_err());
        let (mut feed, body) = super::feed();
        feed.write_all(b"all").unwrap();
        feed.flush().unwrap();
        feed.whole.store(true, Ordering::Release);
        drop(feed);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "all");
    }

    #[test]
    fn wrong_words_say_what_is_taken() {
        let check = |format: &str, query: &str| {
            let uri = format!("/?{query}").parse().unwrap();
            Wanted::check(format, Query::try_from_uri(&uri), Query::try_from_uri(&uri))
        };
        assert_eq!(check("yolo", "").unwrap_err().status(), StatusCode::NOT_FOUND);
        assert_eq!(check("coco", "images=7").unwrap_err().detail(), "images is \"7\", it must be \"yes\" or \"no\"");
        let usual = check("mvtec", "images=&cut=&reviewed=").unwrap();
        assert!(usual.pictures && !usual.whole && usual.filter.reviewed == Some(Reviewed::Yes));
        assert_eq!(check("csv", "reviewed=no").unwrap().filter.reviewed, Some(Reviewed::No));
    }
}
