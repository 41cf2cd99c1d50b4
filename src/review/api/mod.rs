//! The HTTP API: anomalies come in as multipart uploads and go out as JSON and pictures.
//!
//! Thread: handlers run on the server's thread and never block it: store calls and checks go through [`App::run`].
//!
//! Invariants:
//! 1. 201 is answered only after the store has the anomaly on disk; a repeat gets 200 and changes nothing. Tests in
//!    tests/review_server.rs: `first_201_then_200_and_content_comes_back_byte_exact`, `acknowledged_anomalies_survive_kill_9`.
//! 2. A name in a URL never becomes a path: ids are parsed as UUID, files are one of three. Test:
//!    `bad_ids_and_files_are_refused` in tests/review_server.rs.
//! 3. At most [`UPLOADS`] bodies are in memory; further senders wait, each no longer than [`upload::UPLOAD_TIME`] for its turn
//!    and its body. Test: `a_stalled_upload_does_not_hold_up_the_stop` in tests/review_server.rs.

pub mod answer;
mod openapi;
pub mod query;
pub mod reviews;
pub mod stats;

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Query, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{any, get};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use utoipa::{OpenApi as _, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::review::accounts::{Role, Who};
use crate::review::lines;
use crate::review::live::{Change, Live};
use crate::review::live_picture::Pictures;
use crate::review::problem::Problem;
use crate::review::store::{Anomaly, Inserted, ObjectName, Page, Review, Store};
use crate::review::upload;
pub use answer::immutable;
use answer::{Segments, ranged, tagged, unchanged};
use query::{FilterQuery, ListQuery, Listing, PageQuery, listing};

/// Uploads that are read at the same time.
pub const UPLOADS: usize = 8;
/// Statistics that are computed at the same time: they can take a second, and must not take all threads.
const STATISTICS: usize = 2;
/// Items in a page when `limit` is not given, and at most.
pub const LIMIT: (usize, usize) = (50, 200);
/// Path of the collection.
pub const ANOMALIES: &str = "/api/v1/anomalies";

/// What every handler can reach.
#[derive(Clone)]
pub struct App {
    store: Arc<dyn Store>,
    uploads: Arc<Semaphore>,
    statistics: Arc<Semaphore>,
    /// Tells open pages what changed.
    pub live: Live,
    /// Live pictures of lines.
    pub pictures: Arc<Pictures>,
}

impl App {
    /// Handlers on top of a store.
    pub fn new(store: Arc<dyn Store>) -> App {
        App {
            store,
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            statistics: Arc::new(Semaphore::new(STATISTICS)),
            live: Live::default(),
            pictures: Arc::default(),
        }
    }

    /// Waits for one of the places for bodies in memory.
    pub async fn turn(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let turn = self.uploads.clone().acquire_owned().await;
        turn.map_err(|_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping"))
    }

    /// Runs something that may take long, [`STATISTICS`] at a time.
    pub async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Store) -> Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let stopping = |_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
        let turn = self.statistics.clone().acquire_owned().await.map_err(stopping)?;
        self.run(move |store| {
            let _turn = turn; // also when nobody waits for it any more
            work(store)
        })
        .await
    }

    /// Runs something that blocks, off the server's thread.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Store) -> Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || work(&*store)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(cause)) => Err(Problem::internal(&cause)),
            Err(panic) => Err(Problem::internal(&Error::failed("a review request panicked").because(panic))),
        }
    }
}

/// Every route of the API that is described; a module with more of them joins in here.
pub(in crate::review) fn documented() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::Description::openapi())
        .routes(routes!(list, post))
        .routes(routes!(one))
        .routes(routes!(picture))
        .merge(reviews::routes())
        .merge(lines::routes())
        .merge(stats::routes())
}

/// The description of the API, as it is served and committed.
pub fn description() -> utoipa::openapi::OpenApi {
    openapi::complete(documented().into_openapi())
}

/// The routes under /api and /healthz.
pub fn routes() -> Router<App> {
    let (described, document) = documented().split_for_parts();
    described
        .merge(openapi::routes(&openapi::complete(document)))
        .route("/api", any(unknown))
        .route("/api/{*rest}", any(unknown))
        .route("/healthz", get(health))
        .layer(DefaultBodyLimit::max(upload::MAX_BODY))
}

async fn unknown() -> Problem {
    Problem::not_found("there is no such resource")
}

/// Answer for methods that a resource does not have.
pub async fn wrong_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this resource does not have that method")
}

async fn health(State(app): State<App>) -> Result<Response, Problem> {
    app.run(|store| store.get(Uuid::nil())).await?;
    Ok(Json(serde_json::json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") })).into_response())
}

/// An upload, as OpenAPI puts it; [`upload`] reads it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read field by field")]
struct UploadForm {
    /// JSON (`application/json`).
    event: Event,
    /// What the camera saw (`image/jpeg`), of the size that the event says.
    #[schema(format = Binary, value_type = String, content_media_type = "image/jpeg")]
    frame: Vec<u8>,
    /// Where it is unusual (`image/png`); covers the whole frame.
    #[schema(format = Binary, value_type = String, content_media_type = "image/png")]
    heatmap: Vec<u8>,
    /// What the place should look like (`image/jpeg`).
    #[schema(format = Binary, value_type = Option<String>, content_media_type = "image/jpeg")]
    normal: Option<Vec<u8>>,
}

/// Deliver an anomaly
///
/// Durable and idempotent: the answer comes when all is on disk, and a repeat changes nothing.
#[utoipa::path(
    post,
    path = "/api/v1/anomalies",
    tag = "anomalies",
    params(("idempotency-key" = Uuid, Header, description = "The event's id")),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "It was there before", body = Kept),
        (status = 201, description = "It is new and on disk", body = Kept, headers(("location" = String))),
        (status = 400, description = "The upload cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The upload took too long", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "More than this server takes", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Another media type", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The upload contradicts itself", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn post(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let slow = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the upload took too long");
    let key = match preconditions(request.headers()) {
        Ok(key) => key,
        Err(problem) => {
            upload::read_over(request).await;
            return Err(problem);
        }
    };
    let receive = async {
        let turn = app.turn().await?;
        let multipart = Multipart::from_request(request, &app)
            .await
            .map_err(|e| Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, e.body_text()))?;
        Ok::<_, Problem>((turn, upload::read(multipart).await?))
    };
    let (turn, fields) = timeout(upload::UPLOAD_TIME, receive).await.map_err(slow)??;
    let inserted = app
        .run(move |store| {
            let _turn = turn; // until the memory is free again
            let new = match upload::check(fields, key) {
                Ok(new) => new,
                Err(problem) => return Ok(Err(problem)),
            };
            let line = new.event.line.clone();
            store.insert(&new).map(|inserted| Ok((inserted, line)))
        })
        .await?;
    let (inserted, line) = inserted?;
    if inserted == Inserted::New {
        app.live.tell(Change::Anomaly { id: key, line });
    }
    let status = if inserted == Inserted::New { StatusCode::CREATED } else { StatusCode::OK };
    let location = format!("{ANOMALIES}/{key}");
    Ok((status, [(LOCATION, location)], Json(Kept { id: key })).into_response())
}

/// What can be refused before the body is read; gives the idempotency key.
fn preconditions(headers: &HeaderMap) -> Result<Uuid, Problem> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let media = text(CONTENT_TYPE.as_str()).unwrap_or("").to_ascii_lowercase();
    if media.split(';').next().map(str::trim) != Some("multipart/form-data") {
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the request must be multipart/form-data"));
    }
    let length: Option<u64> = text(CONTENT_LENGTH.as_str()).and_then(|l| l.parse().ok());
    if length.is_some_and(|length| length > upload::MAX_BODY as u64) {
        return Err(Problem::too_large("the request", upload::MAX_BODY));
    }
    let mut keys = headers.get_all("idempotency-key").iter();
    match (keys.next().map(|k| k.to_str()), keys.next()) {
        (Some(Ok(key)), None) => Uuid::try_parse(key)
            .map_err(|_| Problem::bad_request(format!("header Idempotency-Key is {key:?}, it must be the event's id"))),
        (None, _) => Err(Problem::bad_request("header Idempotency-Key is missing, it must be the event's id")),
        _ => Err(Problem::bad_request("header Idempotency-Key must be the event's id, once")),
    }
}

/// Path and name of the pictures of an anomaly.
pub fn picture_url(id: Uuid, name: ObjectName) -> String {
    format!("{ANOMALIES}/{id}/{}", name.file_name())
}

/// What was delivered.
#[derive(Serialize, ToSchema)]
struct Kept {
    id: Uuid,
}

/// An anomaly.
#[derive(Serialize, ToSchema)]
#[schema(as = Anomaly)]
struct ItemJson {
    id: Uuid,
    received_at: Timestamp,
    /// As it was posted, unknown fields included.
    #[schema(value_type = Event)]
    event: Box<RawValue>,
    images: ImagesJson,
    /// The review that holds.
    review: Option<Review>,
}

/// Paths of the pictures.
#[derive(Serialize, ToSchema)]
#[schema(as = Images)]
struct ImagesJson {
    frame: String,
    heatmap: String,
    normal: Option<String>,
}

impl ItemJson {
    fn new(anomaly: Anomaly) -> Result<ItemJson, Problem> {
        let id = anomaly.event.id;
        let event = RawValue::from_string(anomaly.raw).map_err(|e| {
            Problem::internal(&Error::failed(format!("the stored event of anomaly {id} is not JSON")).because(e))
        })?;
        let images = ImagesJson {
            frame: picture_url(id, ObjectName::Frame),
            heatmap: picture_url(id, ObjectName::Heatmap),
            normal: anomaly.has_normal.then(|| picture_url(id, ObjectName::Normal)),
        };
        Ok(ItemJson { id, received_at: anomaly.received_at, event, images, review: anomaly.review })
    }
}

/// A page of a list.
#[derive(Serialize, ToSchema)]
#[schema(as = Page)]
struct PageJson {
    items: Vec<ItemJson>,
    /// Cursor to what is older.
    next: Option<String>,
    /// Cursor to what is newer.
    previous: Option<String>,
    /// Changes when anything in the store does.
    revision: i64,
}

/// List anomalies
///
/// The greatest first. `next` and `previous` lead on; a weak ETag follows from the revision of the store.
#[utoipa::path(
    get,
    path = "/api/v1/anomalies",
    tag = "anomalies",
    params(PageQuery, FilterQuery),
    responses(
        (status = 200, description = "A page of the list", body = PageJson, headers(("etag" = String))),
        (status = 304, description = "Nothing has changed in the store"),
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn list(
    State(app): State<App>,
    who: Who,
    headers: HeaderMap,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    who.must(Role::Viewer)?;
    let Listing { filter, sort, start, limit } = listing(query)?;
    let tag = |revision: i64| format!("W/\"{revision}\"");
    let revision = app.run(|store| store.revision()).await?;
    if let Some(answer) = unchanged(&headers, &tag(revision)) {
        return Ok(answer);
    }
    let Page { items, older, newer, revision } =
        app.run(move |store| store.list(&filter, sort, start, limit.unwrap_or(LIMIT.0))).await?;
    let page = PageJson {
        items: items.into_iter().map(ItemJson::new).collect::<Result<_, _>>()?,
        next: older.map(|c| c.to_string()),
        previous: newer.map(|c| c.to_string()),
        revision,
    };
    tagged(&headers, &page, Some(tag(revision)))
}

fn parse_id(id: &str) -> Result<Uuid, Problem> {
    Uuid::try_parse(id).map_err(|_| Problem::bad_request(format!("{id:?} is not the id of an anomaly")))
}

/// Get an anomaly
#[utoipa::path(
    get,
    path = "/api/v1/anomalies/{id}",
    tag = "anomalies",
    params(("id" = Uuid, Path, description = "The event's id")),
    responses(
        (status = 200, description = "The anomaly", body = ItemJson, headers(("etag" = String))),
        (status = 304, description = "The client has it"),
        (status = 400, description = "Not an id", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such anomaly", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn one(
    State(app): State<App>,
    who: Who,
    headers: HeaderMap,
    Segments(id): Segments<String>,
) -> Result<Response, Problem> {
    who.must(Role::Viewer)?;
    let id = parse_id(&id)?;
    let anomaly = app.run(move |store| store.get(id)).await?;
    let anomaly = anomaly.ok_or_else(|| Problem::not_found(format!("there is no anomaly {id}")))?;
    tagged(&headers, &ItemJson::new(anomaly)?, None)
}

/// The pictures of an anomaly, as they are named in paths.
#[derive(ToSchema)]
#[schema(as = Picture)]
#[expect(dead_code, reason = "describes what ObjectName and Thumb have as file names")]
enum PictureName {
    #[schema(rename = "frame.jpg")]
    Frame,
    #[schema(rename = "heatmap.png")]
    Heatmap,
    #[schema(rename = "normal.jpg")]
    Normal,
    #[schema(rename = "card.jpg")]
    Card,
    #[schema(rename = "card-heat.png")]
    CardHeat,
    #[schema(rename = "preview.jpg")]
    Preview,
    #[schema(rename = "preview-heat.png")]
    PreviewHeat,
}

/// Get a picture of an anomaly
///
/// `frame.jpg`, `heatmap.png` and `normal.jpg` are byte-exact as they were delivered, and a single range may be asked for. The
/// others are small ones for lists, made when they are first asked for: the judged part on a card, the whole frame as a preview,
/// and the heatmap of each. All are for ever the same.
#[utoipa::path(
    get,
    path = "/api/v1/anomalies/{id}/{file}",
    tag = "anomalies",
    params(
        ("id" = Uuid, Path, description = "The event's id"),
        ("file" = inline(PictureName), Path, description = "Which picture"),
        ("range" = Option<String>, Header, description = "A part of it, as `bytes=0-999`"),
    ),
    responses(
        (status = 200, description = "The picture", content((Vec<u8> = "image/jpeg"), (Vec<u8> = "image/png")), headers(("etag" = String))),
        (status = 206, description = "The part that was asked for", content((Vec<u8> = "image/jpeg"), (Vec<u8> = "image/png")), headers(("content-range" = String))),
        (status = 304, description = "The client has it"),
        (status = 400, description = "Not an id", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such anomaly or picture", body = Problem, content_type = "application/problem+json"),
        (status = 416, description = "The picture has no such part", body = Problem, content_type = "application/problem+json", headers(("content-range" = String))),
        (status = 422, description = "A small one cannot be made of this picture", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn picture(
    State(app): State<App>,
    who: Who,
    Segments((id, file)): Segments<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    who.must(Role::Viewer)?;
    let id = parse_id(&id)?;
    let name = ObjectName::from_file_name(&file)
        .ok_or_else(|| Problem::not_found(format!("an anomaly has no picture {file:?}")))?;
    let object = app.run(move |store| store.object(id, name)).await?;
    let object = object.ok_or_else(|| Problem::not_found(format!("anomaly {id} has no {}", name.file_name())))?;
    Ok(ranged(&headers, &object.sha256, name.content_type(), object.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in values {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn every_picture_is_described() {
        let description = serde_json::to_value(description()).unwrap();
        let parameters = &description["paths"][format!("{ANOMALIES}/{{id}}/{{file}}")]["get"]["parameters"];
        let file = parameters.as_array().unwrap().iter().find(|p| p["name"] == "file").unwrap();
        let stored = ObjectName::ALL.map(ObjectName::file_name);
        let small = crate::review::thumbs::Thumb::ALL.map(crate::review::thumbs::Thumb::file_name);
        assert_eq!(file["schema"]["enum"], serde_json::json!([&stored[..], &small[..]].concat()));
    }

    #[test]
    fn preconditions_of_an_upload() {
        let form = ("content-type", "multipart/form-data; boundary=x");
        let key = ("idempotency-key", "01930000-0000-7000-8000-000000000001");
        assert!(preconditions(&headers(&[form, key])).is_ok());
        let too_long = (upload::MAX_BODY + 1).to_string();
        let table: [(&[(&'static str, &str)], u16); 7] = [
            (&[form], 400),
            (&[form, key, key], 400),
            (&[form, ("idempotency-key", "../../etc/passwd")], 400),
            (&[form, ("idempotency-key", "")], 400),
            (&[key], 415),
            (&[key, ("content-type", "application/json")], 415),
            (&[form, key, ("content-length", &too_long)], 413),
        ];
        for (given, wanted) in table {
            assert_eq!(preconditions(&headers(given)).unwrap_err().status().as_u16(), wanted, "{given:?}");
        }
    }
}
