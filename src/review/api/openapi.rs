//! The description of the API (OpenAPI 3.1), which follows from the handlers, and a page that shows it.
//!
//! Thread: none; made once.
//!
//! Invariants:
//! 1. What is served is what is committed as docs/api/openapi.yaml. Test: `the_committed_description_is_this_one` in
//!    tests/review_api.rs, which also writes it anew.
//! 2. A route of the API has a description: both come from the same annotation of the handler. Routes of other modules join in
//!    [`documented`](super::documented).

use std::sync::Arc;

use axum::Router;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use maud::{Markup, html};
use serde_json::Value;
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::App;
use crate::review::pages::Frame;
use crate::review::problem::Problem;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "linesight review",
        description = "Anomalies that lines deliver, what people decide about them, and the numbers that follow. \
            Every answer other than success is a problem detail (RFC 9457).",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
        contact(),
    ),
    components(schemas(Problem)),
    modifiers(&Refusals),
)]
pub(super) struct Description;

/// Whatever else an operation answers is a problem detail.
struct Refusals;

impl Modify for Refusals {
    fn modify(&self, document: &mut Document) {
        for item in document.paths.paths.values_mut() {
            let operations = [
                &mut item.get,
                &mut item.put,
                &mut item.post,
                &mut item.delete,
                &mut item.patch,
                &mut item.head,
                &mut item.options,
            ];
            for operation in operations.into_iter().flatten() {
                let problem = ContentBuilder::new().schema(Some(RefOr::Ref(Ref::from_schema_name("Problem")))).build();
                let response = ResponseBuilder::new()
                    .description("It was not done; the problem says why")
                    .content("application/problem+json", problem)
                    .build();
                operation.responses.responses.entry("default".into()).or_insert(RefOr::T(response));
            }
        }
    }
}

/// The description of all routes that were given.
pub(super) fn complete(mut document: Document) -> Document {
    Refusals.modify(&mut document);
    document
}

/// Routes that serve a description.
pub(super) fn routes(document: &Document) -> Router<App> {
    let json: Arc<str> = serde_json::to_string(document).unwrap_or_default().into();
    let value = serde_json::to_value(document).unwrap_or_default();
    let page: Arc<str> = Frame::new("API").around(page(&value)).into_string().into();
    Router::new()
        .route(
            "/api/v1/openapi.json",
            get(async move || -> Response {
                ([("content-type", "application/json")], json.to_string()).into_response()
            }),
        )
        .route("/api/v1/docs", get(async move || Html(page.to_string())))
}

/// The description as text for people, without any script.
fn page(document: &Value) -> Markup {
    let empty = serde_json::Map::new();
    let paths = document["paths"].as_object().unwrap_or(&empty);
    let schemas = document["components"]["schemas"].as_object().unwrap_or(&empty);
    html! {
        main .api {
            h1 { (text(&document["info"]["title"])) " API" }
            p { (text(&document["info"]["description"])) }
            p { "Version " (text(&document["info"]["version"])) " · " a href="/api/v1/openapi.json" { "openapi.json" } }
            @for (path, item) in paths {
                @for (method, operation) in item.as_object().unwrap_or(&empty) {
                    (operation_of(path, method, operation))
                }
            }
            h2 { "Types" }
            @for (name, schema) in schemas {
                details id=(format!("type-{name}")) {
                    summary { code { (name) } }
                    (description(schema))
                    (fields(schema))
                }
            }
        }
    }
}

fn operation_of(path: &str, method: &str, operation: &Value) -> Markup {
    let none = Vec::new();
    let empty = serde_json::Map::new();
    html! {
        details .operation {
            summary { b { (method.to_uppercase()) } " " code { (path) } " " span { (text(&operation["summary"])) } }
            (description(operation))
            @let parameters = operation["parameters"].as_array().unwrap_or(&none);
            @if !parameters.is_empty() {
                h3 { "Parameters" }
                table {
                    thead { tr { th { "name" } th { "in" } th { "type" } th { "" } } }
                    @for p in parameters {
                        tr {
                            td { code { (text(&p["name"])) } @if p["required"] == true { " *" } }
                            td { (text(&p["in"])) }
                            td { (kind(&p["schema"])) }
                            td { (text(&p["description"])) }
                        }
                    }
                }
            }
            @if let Some(content) = operation["requestBody"]["content"].as_object() {
                h3 { "Body" }
                ul { @for (media, body) in content { li { code { (media) } " " (kind(&body["schema"])) } } }
            }
            h3 { "Answers" }
            table {
                @for (status, answer) in operation["responses"].as_object().unwrap_or(&empty) {
                    tr {
                        td { code { (status) } }
                        td { (text(&answer["description"])) }
                        td {
                            @for (media, body) in answer["content"].as_object().unwrap_or(&empty) {
                                code { (media) } " " (kind(&body["schema"]))
                            }
                        }
                    }
                }
            }
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn description(value: &Value) -> Markup {
    html! { @if let Some(text) = value["description"].as_str() { p { (text) } } }
}

fn fields(schema: &Value) -> Markup {
    let empty = serde_json::Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    html! {
        @if properties.is_empty() {
            p { (kind(schema)) }
        } @else {
            table {
                @for (name, property) in properties {
                    tr { td { code { (name) } } td { (kind(property)) } td { (text(&property["description"])) } }
                }
            }
        }
    }
}

/// A type in a few words, with a link where it has a name.
fn kind(schema: &Value) -> Markup {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
        return html! { a href=(format!("#type-{name}")) { (name) } };
    }
    let alternatives = ["oneOf", "anyOf", "allOf"].iter().find_map(|key| schema[*key].as_array());
    if let Some(alternatives) = alternatives {
        return html! { @for (i, one) in alternatives.iter().enumerate() { @if i > 0 { " or " } (kind(one)) } };
    }
    if let Some(words) = schema["enum"].as_array() {
        let words: Vec<String> = words.iter().map(Value::to_string).collect();
        return html! { code { (words.join(" | ")) } };
    }
    let word = match &schema["type"] {
        Value::Array(types) => types.iter().map(text).collect::<Vec<_>>().join(" or "),
        other => text(other).to_owned(),
    };
    html! {
        (word)
        @if let Some(format) = schema["format"].as_str() { " (" (format) ")" }
        @if !schema["items"].is_null() { " of " (kind(&schema["items"])) }
    }
}
