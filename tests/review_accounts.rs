//! Accounts of the review server over real HTTP: who gets in, how, and what each may do.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use linesight::review::accounts::{Accounts, Actor, Role, Scope, SqliteAccounts, secret, throttle};
use linesight::review::tls::TlsFiles;
use linesight::review::{Config, Server};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use reqwest::Method;
use reqwest::blocking::multipart::{Form, Part};
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::redirect::Policy;
use rusqlite::Connection;
use serde_json::{Value, json};
use uuid::Uuid;

const PASSWORD: &str = "correct horse battery";
const DEADLINE: Duration = Duration::from_secs(60);

/// Does not follow redirects.
fn client() -> Client {
    Client::builder().timeout(DEADLINE).redirect(Policy::none()).build().unwrap()
}

fn config(dir: &Path) -> Config {
    Config::new(dir, ([127, 0, 0, 1], 0).into())
}

/// A server with one account for each role, named as the role, and one token for each scope, named as the scope.
struct Plant {
    server: Server,
    client: Client,
    tokens: Vec<(Scope, String)>,
    dir: tempfile::TempDir,
}

fn populate(dir: &Path) -> Vec<(Scope, String)> {
    let accounts = SqliteAccounts::open_beside(dir).unwrap();
    let (by, hash) = (Actor::command_line(), secret::hash(PASSWORD).unwrap());
    for role in [Role::Admin, Role::Reviewer, Role::Viewer] {
        accounts.add(&by, role.as_str(), role, &hash).unwrap();
    }
    let add = |scope: Scope| {
        let token = format!("lst_{}", secret::token().unwrap());
        accounts.add_token(&by, scope.as_str(), scope, &secret::digest(&token), None).unwrap();
        (scope, token)
    };
    Scope::ALL.map(add).to_vec()
}

impl Plant {
    fn new() -> Plant {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Plant {
        let dir = support::folder();
        let mut config = config(dir.path());
        change(&mut config);
        let server = Server::start(config).unwrap();
        let tokens = populate(dir.path());
        Plant { server, client: client(), tokens, dir }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.local_addr())
    }

    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.ask(Method::GET, path)
    }

    /// A form, as a browser sends it from a page of this server.
    fn form(&self, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
        let origin = format!("http://{}", self.server.local_addr());
        send_form(&self.client, &origin, path, fields)
    }

    fn login(&self, name: &str, password: &str) -> Response {
        self.form("/login", &[("name", name), ("password", password)]).send().unwrap()
    }

    /// The cookie of somebody who has just logged in.
    fn cookie(&self, name: &str) -> String {
        let answer = self.login(name, PASSWORD);
        assert_eq!(answer.status(), 303, "{name}");
        cookie(&answer)
    }

    fn token(&self, scope: Scope) -> String {
        self.tokens.iter().find(|(s, _)| *s == scope).unwrap().1.clone()
    }

    fn database(&self) -> Connection {
        let db = Connection::open(self.dir.path().join("review.db")).unwrap();
        db.busy_timeout(Duration::from_secs(10)).unwrap();
        db
    }

    /// Newest first: who, action, target.
    fn audit(&self) -> Vec<(String, String, String)> {
        let answer = self.get("/api/v1/audit?limit=1000").bearer_auth(self.token(Scope::Admin)).send().unwrap();
        let audit: Value = answer.error_for_status().unwrap().json().unwrap();
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let items = audit["items"].as_array().unwrap();
        items.iter().map(|e| (text(&e["who"]), text(&e["action"]), text(&e["target"]))).collect()
    }
}

fn send_form(client: &Client, origin: &str, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let request = client.post(format!("{origin}{path}")).header("origin", origin);
    request.header("content-type", "application/x-www-form-urlencoded").body(body)
}

/// Name and value, without attributes.
fn cookie(answer: &Response) -> String {
    let set = answer.headers()["set-cookie"].to_str().unwrap();
    set.split(';').next().unwrap().to_owned()
}

fn location(answer: &Response) -> &str {
    answer.headers()["location"].to_str().unwrap()
}

/// An upload that is good.
fn anomaly(id: Uuid) -> Form {
    use image::{DynamicImage, ImageFormat, RgbImage, RgbaImage};
    let encode = |image: DynamicImage, format| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    let event = json!({
        "schema": 1, "id": id, "site": "plant", "line": "east", "camera": "c", "part": 1, "frame": 2,
        "captured_at": "2030-01-02T03:04:05Z", "score": 3.5, "confidence": 0.9, "threshold": 1.25, "verdict": "reject",
        "model": {"name": "m", "version": "1", "sha256": "ab"}, "device": "CPU", "precision": "f32",
        "image": {"width": 8, "height": 6}
    });
    let part = |bytes: Vec<u8>, kind| Part::bytes(bytes).mime_str(kind).unwrap();
    Form::new()
        .part("event", part(event.to_string().into_bytes(), "application/json"))
        .part("frame", part(encode(RgbImage::new(8, 6).into(), ImageFormat::Jpeg), "image/jpeg"))
        .part("heatmap", part(encode(RgbaImage::new(8, 6).into(), ImageFormat::Png), "image/png"))
}

fn report(seq: u64) -> Value {
    json!({
        "schema": 1, "site": "plant", "line": "east", "run": "01930000-0000-7000-8000-000000000001", "seq": seq,
        "at": "2030-01-02T03:04:05Z", "state": "live", "fps": 1.0,
        "counters": {"frames": 0, "parts": 0, "passed": 0, "rejected": 0, "unsure": 0, "missed": 0, "late": 0,
                     "dropped": {}, "reconnects": 0},
        "spool": {"waiting": 0, "set_aside": 0}, "health": {}, "drift": {},
        "model": {"name": "m", "version": "1", "sha256": "ab"}, "threshold": 1.25, "rows": []
    })
}

#[test]
fn the_first_account() {
    let dir = support::folder();
    let start = || Server::start(Config { accounts: true, ..config(dir.path()) }).unwrap();
    let first = start();
    let stale = first.welcome().unwrap().split_once("key=").unwrap().1.to_owned();
    first.stop();
    let server = start();
    let link = server.welcome().unwrap().to_owned();
    assert!(link.starts_with(&format!("{}/welcome?key=", server.url())), "{link}");
    let (client, origin) = (client(), server.url());
    let get = |url: &str| client.get(url).send().unwrap();

    // nothing is open but the way to the first account
    assert_eq!(get(&format!("{origin}/healthz")).status(), 200);
    assert_eq!(location(&get(&format!("{origin}/"))), "/welcome");
    assert_eq!(location(&get(&format!("{origin}/login"))), "/welcome");
    let refused = get(&format!("{origin}/api/v1/anomalies"));
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key("www-authenticate")), (401, true));
    let upload = client.post(format!("{origin}/api/v1/anomalies")).header("idempotency-key", "x").body("x").send();
    assert_eq!(upload.unwrap().status(), 401);
    assert_eq!(get(&format!("{origin}/welcome?key={stale}")).status(), 401, "the link of the start before");
    assert_eq!(get(&format!("{origin}/welcome")).status(), 401);
    assert_eq!(get(&link).status(), 200);

    let key = link.split_once("key=").unwrap().1;
    let send = |key: &str, name: &str, password: &str, again: &str| {
        let fields = [("key", key), ("name", name), ("password", password), ("again", again)];
        send_form(&client, &origin, "/welcome", &fields).send().unwrap()
    };
    assert_eq!(send(key, "ann", "short", "short").status(), 422);
    assert_eq!(send(key, "ann", PASSWORD, "another one entirely").status(), 422);
    assert_eq!(send(key, "local", PASSWORD, PASSWORD).status(), 422);
    assert_eq!(send("guess", "ann", PASSWORD, PASSWORD).status(), 403);
    let made = send(key, "ann", PASSWORD, PASSWORD);
    assert_eq!((made.status().as_u16(), location(&made)), (303, "/admin"));
    let admin = client.get(format!("{origin}/admin")).header("cookie", cookie(&made)).send().unwrap();
    assert_eq!(admin.status(), 200, "and is logged in");
    assert_eq!(send(key, "eve", PASSWORD, PASSWORD).status(), 403, "once only");
    assert_eq!(location(&get(&link)), "/login");
    assert_eq!(location(&get(&format!("{origin}/lines"))), "/login?next=%2Flines");
    server.stop();
    assert_eq!(start().welcome(), None);
}

#[test]
fn login_and_logout() {
    let plant = Plant::new();
    let page = plant.get("/anomalies/1?x=1").send().unwrap();
    assert_eq!(location(&page), "/login?next=%2Fanomalies%2F1%3Fx%3D1");
    let form = plant.get(location(&page)).send().unwrap().text().unwrap();
    assert!(form.contains("name=\"next\" value=\"/anomalies/1?x=1\""), "{form}");
    let fields = [("name", "VIEWER"), ("password", PASSWORD), ("next", "//evil.example")];
    let answer = plant.form("/login", &fields).send().unwrap();
    assert_eq!((answer.status().as_u16(), location(&answer)), (303, "/"));
    let set = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(
        set.starts_with("linesight=") && set.ends_with("; Path=/; Max-Age=604800; HttpOnly; SameSite=Strict"),
        "{set}"
    );
    let one = cookie(&answer);
    let two = plant.cookie("viewer");
    assert_ne!(one, two, "each login has a session of its own");
    let status = |cookie: &str| plant.get("/").header("cookie", cookie).send().unwrap().status().as_u16();
    assert_eq!((status(&one), status(&two), status("linesight=guess")), (200, 200, 303));

    let out = plant.form("/logout", &[]).header("cookie", &one).send().unwrap();
    assert!(out.headers()["set-cookie"].to_str().unwrap().starts_with("linesight=; Path=/; Max-Age=0"));
    assert_eq!((status(&one), status(&two)), (303, 200));

    // a new password ends the other sessions, and needs the old one
    let three = plant.cookie("viewer");
    let change = |current: &str, new: &str| {
        let fields = [("current", current), ("password", new), ("again", new)];
        plant.form("/account/password", &fields).header("cookie", &two).send().unwrap().status().as_u16()
    };
    assert_eq!(change("wrong", "an entirely new one"), 403);
    assert_eq!(change(PASSWORD, "short"), 422);
    assert_eq!(change(PASSWORD, "an entirely new one"), 200);
    assert_eq!((status(&two), status(&three)), (200, 303));
    assert_eq!(plant.login("viewer", PASSWORD).status(), 401);
    assert_eq!(plant.login("viewer", "an entirely new one").status(), 303);

    // one's own sessions can be ended, those of others not
    let db = plant.database();
    let id = |name: &str| {
        let sql = "SELECT CAST(MAX(id) AS TEXT) FROM sessions WHERE account = ?";
        db.query_row(sql, [name], |row| row.get::<_, String>(0)).unwrap()
    };
    plant.cookie("admin");
    let end = |id: &str| plant.form("/account/session", &[("id", id)]).header("cookie", &two).send().unwrap().status();
    assert_eq!(end(&id("admin")), 404);
    assert_eq!(end(&id("viewer")), 303);
}

#[test]
fn a_stream_ends_with_its_session() {
    let plant = Plant::new();
    let (cookie, token) = (plant.cookie("viewer"), plant.token(Scope::Read));
    let listen = |request: RequestBuilder| {
        let answer = request.send().unwrap();
        assert_eq!(answer.status(), 200);
        BufReader::new(answer)
    };
    let by_cookie = listen(plant.get("/api/v1/live").header("cookie", &cookie));
    let by_token = listen(plant.get("/api/v1/live").bearer_auth(&token));
    let mut stays = listen(plant.get("/api/v1/live").bearer_auth(plant.token(Scope::Admin)));
    let begun = Instant::now();
    plant.form("/logout", &[]).header("cookie", &cookie).send().unwrap();
    // as the command line does it, in another process
    SqliteAccounts::open_beside(plant.dir.path()).unwrap().revoke_token(&Actor::command_line(), "read").unwrap();
    for mut ended in [by_cookie, by_token] {
        while ended.read_line(&mut String::new()).unwrap() > 0 {}
    }
    // a fresh stream is not broken off while these were
    let id = Uuid::now_v7();
    let form = anomaly(id);
    let upload = plant.ask(Method::POST, "/api/v1/anomalies").header("idempotency-key", id.to_string());
    assert_eq!(upload.bearer_auth(plant.token(Scope::Upload)).multipart(form).send().unwrap().status(), 201);
    let told = |line: String| line.contains(&id.to_string());
    let mut lines = std::iter::from_fn(|| {
        let mut line = String::new();
        (stays.read_line(&mut line).unwrap() > 0).then_some(line)
    });
    assert!(lines.any(told), "who may still look hears of it");
    assert!(begun.elapsed() < DEADLINE / 4, "{:?}", begun.elapsed());
}

#[test]
fn sessions_and_tokens_expire() {
    let plant = Plant::new();
    let status = |cookie: &str| plant.get("/").header("cookie", cookie).send().unwrap().status().as_u16();
    let (hour, db) = (3_600_000_000_000_i64, plant.database());
    for column in ["seen_at", "created_at"] {
        let cookie = plant.cookie("viewer");
        let age = |hours: i64| {
            let sql = format!("UPDATE sessions SET {column} = {column} - ? WHERE id = (SELECT MAX(id) FROM sessions)");
            db.execute(&sql, [hours * hour]).unwrap();
        };
        let most = if column == "seen_at" { 12 } else { 7 * 24 };
        age(most - 1);
        assert_eq!(status(&cookie), 200, "{column}");
        // what was just used is noted as seen
        age(if column == "seen_at" { most } else { 1 });
        assert_eq!(status(&cookie), 303, "{column}");
    }
    let read = plant.token(Scope::Read);
    let look = || plant.get("/api/v1/anomalies").bearer_auth(&read).send().unwrap();
    assert_eq!(look().status(), 200);
    db.execute("UPDATE tokens SET expires_at = 1 WHERE name = 'read'", []).unwrap();
    let answer = look();
    assert_eq!(answer.status(), 401);
    let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
    assert_eq!(challenge, "Bearer realm=\"linesight\", error=\"invalid_token\"");
}

#[test]
fn strangers_pages_cannot_act() {
    let plant = Plant::new();
    let mine = plant.cookie("admin");
    let own = format!("http://{}", plant.server.local_addr());
    // Origin, Sec-Fetch-Site: what the defect types' PUT and the login get
    let table = [
        (Some(own.as_str()), None, 200),
        (None, Some("same-origin"), 200),
        (Some(&own), Some("same-origin"), 200),
        (None, None, 403),
        (Some("http://evil.example"), None, 403),
        (Some("null"), None, 403),
        (Some("https://127.0.0.1"), None, 403),
        (Some(&own), Some("cross-site"), 403),
        (Some(&own), Some("same-site"), 403),
        (None, Some("cross-site"), 403),
    ];
    for (origin, site, wanted) in table {
        let said = |mut request: RequestBuilder| {
            for (name, value) in [("origin", origin), ("sec-fetch-site", site)] {
                request = value.into_iter().fold(request, |request, value| request.header(name, value));
            }
            request.send().unwrap().status().as_u16()
        };
        let put = plant.ask(Method::PUT, "/api/v1/defect-types").header("cookie", &mine);
        assert_eq!(said(put.json(&json!({ "items": ["dent"] }))), wanted, "{origin:?} {site:?}");
        let body = format!("name=admin&password={}", PASSWORD.replace(' ', "+"));
        let login = plant.ask(Method::POST, "/login").header("content-type", "application/x-www-form-urlencoded");
        let wanted = if wanted == 200 { 303 } else { wanted };
        assert_eq!(said(login.body(body)), wanted, "login: {origin:?} {site:?}");
    }
    // a token is nothing that a browser adds by itself
    let put = plant.ask(Method::PUT, "/api/v1/defect-types").bearer_auth(plant.token(Scope::Admin));
    assert_eq!(put.json(&json!({ "items": ["dent"] })).send().unwrap().status(), 200);
}

#[test]
fn roles_and_routes() {
    let plant = Plant::new();
    let id = Uuid::now_v7();
    let upload =
        |request: RequestBuilder, id: Uuid| request.header("idempotency-key", id.to_string()).multipart(anomaly(id));
    let posted = upload(plant.ask(Method::POST, "/api/v1/anomalies").bearer_auth(plant.token(Scope::Upload)), id);
    assert_eq!(posted.send().unwrap().status(), 201);

    let cookies = ["viewer", "reviewer", "admin"].map(|name| plant.cookie(name));
    let origin = format!("http://{}", plant.server.local_addr());
    let review = format!("/api/v1/anomalies/{id}/reviews");
    let (undo, item, frame) =
        (format!("{review}/undo"), format!("/anomalies/{id}"), format!("/api/v1/anomalies/{id}/frame.jpg"));
    // nobody, viewer, reviewer, admin; tokens upload, read, admin
    let table: [(&str, &str, [u16; 7]); 21] = [
        ("GET", "/healthz", [200; 7]),
        ("GET", "/login", [200, 303, 303, 303, 303, 303, 303]),
        ("GET", "/", [303, 200, 200, 200, 403, 200, 200]),
        ("GET", &item, [303, 200, 200, 200, 403, 200, 200]),
        ("GET", "/lines", [303, 200, 200, 200, 403, 200, 200]),
        ("GET", "/account", [303, 200, 200, 200, 403, 200, 200]),
        ("GET", "/admin", [303, 403, 403, 200, 403, 403, 200]),
        ("GET", "/admin/audit", [303, 403, 403, 200, 403, 403, 200]),
        ("GET", "/api/v1/audit", [401, 403, 403, 200, 403, 403, 200]),
        ("GET", "/api/v1/anomalies", [401, 200, 200, 200, 403, 200, 200]),
        ("GET", &frame, [401, 200, 200, 200, 403, 200, 200]),
        ("GET", &review, [401, 200, 200, 200, 403, 200, 200]),
        ("GET", "/api/v1/lines", [401, 200, 200, 200, 403, 200, 200]),
        ("GET", "/api/v1/defect-types", [401, 200, 200, 200, 403, 200, 200]),
        ("GET", "/nowhere", [303, 404, 404, 404, 403, 404, 404]),
        ("POST", &review, [401, 403, 201, 201, 403, 403, 201]),
        ("POST", &undo, [401, 403, 409, 409, 403, 403, 201]),
        ("PUT", "/api/v1/defect-types", [401, 403, 403, 200, 403, 403, 200]),
        ("POST", "/api/v1/anomalies", [401, 403, 403, 201, 201, 403, 201]),
        ("POST", "/api/v1/lines/east/report", [401, 403, 403, 201, 201, 403, 201]),
        ("DELETE", "/api/v1/anomalies", [401, 403, 405, 405, 403, 403, 405]),
    ];
    let mut seq = 0;
    for (method, path, wanted) in table {
        let mut found = Vec::new();
        for who in 0..7 {
            let mut request = plant.ask(method.parse().unwrap(), path);
            request = match who {
                0 => request,
                1..4 => request.header("cookie", &cookies[who - 1]).header("origin", &origin),
                _ => request.bearer_auth(&plant.tokens[who - 4].1),
            };
            seq += 1;
            request = match (method, path) {
                ("POST", "/api/v1/anomalies") => upload(request, Uuid::now_v7()),
                ("POST", path) if path.ends_with("report") => {
                    request.header("idempotency-key", seq.to_string()).json(&report(seq))
                }
                ("POST", path) if path == review => request.json(&json!({ "decision": "unclear" })),
                ("PUT", _) => request.json(&json!({ "items": ["dent"] })),
                _ => request,
            };
            found.push(request.send().unwrap().status().as_u16());
        }
        assert_eq!(found, wanted, "{method} {path}");
    }
    // who did it is kept as who asked
    let reviews: Value = plant.get(&review).bearer_auth(plant.token(Scope::Read)).send().unwrap().json().unwrap();
    let by: Vec<&str> = reviews["items"].as_array().unwrap().iter().map(|r| r["reviewer"].as_str().unwrap()).collect();
    assert!(by.contains(&"reviewer") && by.contains(&"admin") && by.contains(&"token admin"), "{by:?}");
    let audit = plant.audit();
    for (who, action) in
        [("reviewer", "review"), ("admin", "review"), ("token admin", "review undo"), ("admin", "defect types")]
    {
        assert!(audit.iter().any(|(w, a, _)| w == who && a == action), "{who} {action}: {audit:?}");
    }
}

#[test]
fn tokens_and_scopes() {
    let plant = Plant::new();
    let mine = plant.cookie("admin");
    let made = plant.form("/admin/token/add", &[("name", "cam-7"), ("scope", "read"), ("days", "30")]);
    let made = made.header("cookie", &mine).send().unwrap();
    assert_eq!(made.status(), 201);
    let page = made.text().unwrap();
    let start = page.find("value=\"lst_").unwrap() + 7;
    let token = page[start..].split('"').next().unwrap().to_owned();
    let look = || plant.get("/api/v1/anomalies").bearer_auth(&token).send().unwrap().status().as_u16();
    assert_eq!(look(), 200);
    let again = plant.get("/admin").header("cookie", &mine).send().unwrap().text().unwrap();
    assert!(again.contains("cam-7") && !again.contains(&token), "shown once");
    assert!(again.contains("just now"), "its use is noted");
    let add = |fields: &[(&str, &str)]| {
        plant.form("/admin/token/add", fields).header("cookie", &mine).send().unwrap().status().as_u16()
    };
    assert_eq!(add(&[("name", "cam-7"), ("scope", "read")]), 409);
    assert_eq!(add(&[("name", "cam 8"), ("scope", "read")]), 422);
    assert_eq!(add(&[("name", "cam-8"), ("scope", "root")]), 422);
    assert_eq!(add(&[("name", "cam-8"), ("scope", "read"), ("days", "-1")]), 422);
    let revoke = plant.form("/admin/token/revoke", &[("name", "cam-7")]).header("cookie", &mine).send().unwrap();
    assert_eq!(revoke.status(), 303);
    assert_eq!(look(), 401, "at once");

    // what accounts can be made to do
    let post = |path: &str, fields: &[(&str, &str)]| {
        plant.form(path, fields).header("cookie", &mine).send().unwrap().status().as_u16()
    };
    assert_eq!(post("/admin/account/add", &[("name", "eve"), ("role", "viewer"), ("password", PASSWORD)]), 303);
    assert_eq!(post("/admin/account/add", &[("name", "EVE"), ("role", "viewer"), ("password", PASSWORD)]), 409);
    let eve = plant.cookie("eve");
    let status = || plant.get("/").header("cookie", &eve).send().unwrap().status().as_u16();
    assert_eq!(post("/admin/account/role", &[("name", "eve"), ("role", "reviewer")]), 303);
    assert_eq!(status(), 200);
    assert_eq!(post("/admin/account/remove", &[("name", "eve")]), 303);
    assert_eq!(status(), 303, "sessions end with their account");
    assert_eq!(post("/admin/account/role", &[("name", "admin"), ("role", "viewer")]), 409, "the last admin");
}

#[test]
fn guessing_is_slowed() {
    let plant = Plant::new();
    let began = Instant::now();
    // many at once: no more than the free ones and one are judged, whoever is first
    let answers: Vec<u16> = std::thread::scope(|s| {
        let tries: Vec<_> = (0..20).map(|_| s.spawn(|| plant.login("viewer", "wrong").status().as_u16())).collect();
        tries.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let judged = answers.iter().filter(|status| **status == 401).count();
    let free = throttle::FREE.0 as usize + 1;
    // each second that passes meanwhile may let one more through
    assert!((free..=free + began.elapsed().as_secs() as usize).contains(&judged), "{answers:?}");
    let slowed = plant.login("viewer", PASSWORD);
    assert_eq!(slowed.status(), 429, "the right one must wait too");
    assert!(slowed.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(plant.login("admin", PASSWORD).status(), 303, "others do not wait");
    let failed = plant.audit().iter().filter(|(_, action, on)| action == "login failed" && on == "viewer").count();
    assert_eq!(failed, judged, "each is in the audit");
}

#[test]
fn unknown_names_are_slowed_alike() {
    let plant = Plant::new();
    // until it is slowed
    let tries = |name: &str| -> Vec<(u16, String)> {
        let mut answers = Vec::new();
        while answers.len() < 8 && answers.last().is_none_or(|(status, _)| *status == 401) {
            let answer = plant.login(name, "wrong");
            answers.push((answer.status().as_u16(), answer.text().unwrap().replace(name, "NAME")));
        }
        answers
    };
    let (known, unknown) = (tries("viewer"), tries("nobody"));
    assert_eq!(known[0], unknown[0], "the same page");
    for answers in [known, unknown] {
        assert!(answers.len() > throttle::FREE.0 as usize, "{answers:?}");
        assert_eq!(answers.last().unwrap().0, 429);
    }

    // the same work: the quicker of two
    let quickest = |names: &[&str]| {
        let took = names.iter().map(|name| {
            let began = Instant::now();
            assert_eq!(plant.login(name, "wrong").status(), 401);
            began.elapsed()
        });
        took.min().unwrap()
    };
    let there = quickest(&["admin", "reviewer"]);
    let not = quickest(&["a1", "a2"]);
    assert!(not > there / 4, "an unknown name is answered in {not:?}, a known one in {there:?}");
}

#[test]
fn markup_in_forms_is_text() {
    let plant = Plant::new();
    let evil = "\"><script>alert(1)</script>";
    let wrong = plant.login(evil, "wrong");
    assert_eq!(wrong.status(), 401);
    assert!(wrong.headers()["content-security-policy"].to_str().unwrap().contains("form-action 'self'"));
    let page = wrong.text().unwrap();
    assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;"), "{page}");
    let audit = plant.get("/admin/audit").header("cookie", plant.cookie("admin")).send().unwrap().text().unwrap();
    assert!(!audit.contains("<script>alert") && audit.contains("&lt;script&gt;alert"), "{audit}");
}

#[test]
fn no_secret_is_in_the_database() {
    let plant = Plant::new();
    let session = plant.cookie("viewer").split_once('=').unwrap().1.to_owned();
    plant.database().pragma_update(None, "wal_checkpoint", "TRUNCATE").ok();
    for file in ["review.db", "review.db-wal"] {
        let bytes = std::fs::read(plant.dir.path().join(file)).unwrap_or_default();
        let tokens = plant.tokens.iter().map(|(_, token)| token.as_str());
        for secret in tokens.chain([PASSWORD, &session]) {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret} is in {file}");
        }
    }
}

#[test]
fn the_audit_is_paged() {
    let plant = Plant::new();
    let accounts = SqliteAccounts::open(plant.dir.path()).unwrap();
    for n in 0..25 {
        accounts.record(&Actor::command_line(), "test", &n.to_string(), "").unwrap();
    }
    let all = plant.audit().len();
    let (mut seen, mut before) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/v1/audit?limit=7{before}");
        let page: Value = plant.get(&path).bearer_auth(plant.token(Scope::Admin)).send().unwrap().json().unwrap();
        seen.extend(page["items"].as_array().unwrap().iter().map(|e| e["seq"].as_i64().unwrap()));
        let Some(next) = page["next"].as_i64() else { break };
        before = format!("&before={next}");
    }
    assert!(seen.is_sorted_by(|a, b| a > b));
    assert_eq!(seen.len(), all);
    for bad in ["limit=0", "limit=1001", "limit=x", "before=x"] {
        let answer = plant.get(&format!("/api/v1/audit?{bad}")).bearer_auth(plant.token(Scope::Admin)).send().unwrap();
        assert_eq!(answer.status(), 400, "{bad}");
    }
}

/// An authority that signs what the tests need.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, Uuid::now_v7().to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes a certificate of this machine and its key.
    fn issue(&self, folder: &Path) -> TlsFiles {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(names).unwrap().signed_by(&key, &self.0).unwrap();
        let files = TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::write(&files.cert, cert.pem()).unwrap();
        files
    }

    fn trusting(&self) -> Client {
        let root = reqwest::Certificate::from_pem(self.0.pem().as_bytes()).unwrap();
        let client = Client::builder().timeout(DEADLINE).redirect(Policy::none());
        client.tls_certs_only([root]).pool_max_idle_per_host(0).build().unwrap()
    }
}

#[test]
fn cookies_over_tls() {
    let (folder, authority) = (support::folder(), Authority::new());
    let files = authority.issue(folder.path());
    let plant = Plant::with(|c| c.tls = Some(files));
    let (client, origin) = (authority.trusting(), plant.server.url());
    assert!(origin.starts_with("https://127.0.0.1:"));
    let login = |origin: &str| send_form(&client, origin, "/login", &[("name", "viewer"), ("password", PASSWORD)]);
    let answer = login(&origin).send().unwrap();
    let set = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(set.starts_with("__Host-linesight="), "{set}");
    assert!(set.ends_with("; Path=/; Max-Age=604800; HttpOnly; SameSite=Strict; Secure"), "{set}");
    let mine = cookie(&answer);
    assert_eq!(client.get(&origin).header("cookie", &mine).send().unwrap().status(), 200);
    let weak = mine.replace("__Host-", "");
    assert_eq!(client.get(&origin).header("cookie", weak).send().unwrap().status(), 303, "without the prefix");
    let plain = login(&origin).header("origin", origin.replace("https", "http")).send().unwrap();
    assert_eq!(plain.status(), 403, "two origins");
    assert!(plant.get("/").send().is_err(), "no plain HTTP");
    assert!(crate::client().get(&origin).send().is_err(), "an authority that nobody trusts");
}

#[test]
fn a_renewed_certificate_is_taken() {
    let (folder, old, new) = (support::folder(), Authority::new(), Authority::new());
    let files = old.issue(folder.path());
    let plant = Plant::with(|c| c.tls = Some(files.clone()));
    let url = format!("{}/healthz", plant.server.url());
    let (old, trusting) = (old.trusting(), new.trusting());
    assert!(old.get(&url).send().is_ok() && trusting.get(&url).send().is_err());
    // half of it: what served goes on serving
    let good = std::fs::read(&files.cert).unwrap();
    std::fs::write(&files.cert, &good[..good.len() / 2]).unwrap();
    std::thread::sleep(2 * linesight::review::tls::LOOK);
    assert!(old.get(&url).send().is_ok());
    new.issue(folder.path());
    support::until("the new certificate serves", || trusting.get(&url).send().is_ok());

    // files that cannot be used are said at the start
    let dir = support::folder();
    let other = TlsFiles { cert: files.cert.clone(), key: dir.path().join("key.pem") };
    let start = |tls| Server::start(Config { tls: Some(tls), ..config(dir.path()) }).unwrap_err().to_string();
    assert!(start(other.clone()).starts_with("cannot read the key "));
    std::fs::write(&other.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(start(other).contains("is not the key of"));
}

#[test]
fn proxies() {
    let forwarded = [
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "review.plant.example"),
        ("origin", "https://review.plant.example"),
    ];
    let public = "https://review.plant.example".parse::<url::Url>().unwrap();
    for trusted in [true, false] {
        let plant = Plant::with(|c| {
            c.public_urls = vec![public.clone()];
            c.trusted_proxies = if trusted { vec!["127.0.0.0/8".parse().unwrap()] } else { vec![] };
        });
        assert_eq!(plant.server.url(), "https://review.plant.example");
        let login = |headers: &[(&str, &str)]| {
            let request = plant.ask(Method::POST, "/login").header("content-type", "application/x-www-form-urlencoded");
            let request = request.body(format!("name=viewer&password={}", PASSWORD.replace(' ', "+")));
            headers.iter().fold(request, |r, (name, value)| r.header(*name, *value)).send().unwrap()
        };
        let answer = login(&forwarded);
        if trusted {
            assert_eq!(answer.status(), 303);
            assert!(answer.headers()["set-cookie"].to_str().unwrap().starts_with("__Host-linesight="));
            let elsewhere = login(&[("x-forwarded-host", "evil.example"), ("sec-fetch-site", "same-origin")]);
            assert_eq!(elsewhere.status(), 403);
        } else {
            assert_eq!(answer.status(), 403, "a client that says it was forwarded");
            let own = [("origin", "http://review.plant.example"), ("host", "review.plant.example")];
            assert_eq!(login(&own).status(), 303);
        }
        let sql = "SELECT origin FROM audit WHERE action = 'login' ORDER BY seq DESC LIMIT 1";
        let from: String = plant.database().query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(from, if trusted { "203.0.113.9" } else { "127.0.0.1" });
        let host = plant.get("/healthz").header("host", "evil.example").send().unwrap();
        assert_eq!(host.status(), 403);
    }
}

/// The program as a server, and what it printed.
struct Program(Child, String);

impl Program {
    fn start(dir: &Path, more: &[&str]) -> Program {
        let mut command = support::program();
        command.args(["review", "--listen", "127.0.0.1:0", "--data"]).arg(dir).args(more);
        let mut child = command.spawn().unwrap();
        let mut printed = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            printed += &(line.unwrap() + "\n");
            if printed.contains("review page: ") {
                break;
            }
        }
        Program(child, printed)
    }
    /// Without a slash at its end.
    fn url(&self) -> String {
        let line = self.1.lines().find_map(|l| l.strip_prefix("review page: ")).unwrap();
        line.split(' ').next().unwrap().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(dir: &Path, arguments: &[&str], stdin: &str) -> support::Run {
    let mut command = support::program();
    command.arg("review").args(arguments).arg("--data").arg(dir).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

#[test]
fn the_program_from_first_start_to_kill() {
    let folder = support::folder();
    let dir = folder.path().join("data");
    let password = format!("{PASSWORD}\n");
    assert!(command(&dir, &["user", "list"], "").err.contains("there is no folder"));
    let first = Program::start(&dir, &["--accounts"]);
    let link = first.1.lines().find_map(|l| l.strip_prefix("make the first account: ")).unwrap();
    assert!(link.starts_with(&format!("{}/welcome?key=", first.url())), "{link}");

    // accounts can be made beside a running server, which knows them at once
    assert!(
        command(&dir, &["user", "add", "eve", "--role", "viewer"], &password).err.contains("there must be an admin")
    );
    assert_eq!(command(&dir, &["user", "add", "ann"], &password).succeeds().out, "ann is admin\n");
    assert!(command(&dir, &["user", "add", "bob"], "short\n").err.contains("between 12 and 256 characters"));
    command(&dir, &["user", "add", "bob"], &password).succeeds();
    command(&dir, &["user", "set-role", "bob", "viewer"], "").succeeds();
    assert!(command(&dir, &["user", "remove", "ann"], "").err.contains("there must be an admin"));
    let users: Value = serde_json::from_str(&command(&dir, &["user", "list"], "").succeeds().out).unwrap();
    assert_eq!((&users[0]["name"], &users[1]["role"]), (&json!("ann"), &json!("viewer")));
    assert!(users[0].get("password").is_none());
    let token = command(&dir, &["token", "add", "cam", "--days", "2"], "").succeeds().out.trim().to_owned();
    assert!(token.starts_with("lst_"), "{token}");

    let client = client();
    let login =
        |url: &str| send_form(&client, url, "/login", &[("name", "ann"), ("password", PASSWORD)]).send().unwrap();
    let mine = cookie(&login(&first.url()));
    let look = |url: &str| client.get(url).header("cookie", &mine).send().unwrap().status().as_u16();
    assert_eq!(look(&first.url()), 200);
    drop(first); // kill -9

    let second = Program::start(&dir, &[]);
    assert!(!second.1.contains("first account"), "{}", second.1);
    assert_eq!(look(&second.url()), 200, "sessions survive");
    assert_eq!(client.get(second.url()).send().unwrap().status(), 303, "accounts exist: loopback is not open");
    command(&dir, &["user", "set-password", "ann"], "another password at all\n").succeeds();
    assert_eq!(look(&second.url()), 303, "a new password ends sessions");
    let upload = || {
        let id = Uuid::now_v7();
        let post = client.post(format!("{}/api/v1/anomalies", second.url())).bearer_auth(&token);
        post.header("idempotency-key", id.to_string()).multipart(anomaly(id)).send().unwrap().status().as_u16()
    };
    assert_eq!(upload(), 201);
    command(&dir, &["token", "revoke", "cam"], "").succeeds();
    assert_eq!(upload(), 401);
    let tokens: Value = serde_json::from_str(&command(&dir, &["token", "list"], "").succeeds().out).unwrap();
    assert!(tokens[0]["revoked_at"].is_string() && tokens[0]["used_at"].is_string(), "{tokens}");
    assert!(!tokens.to_string().contains(&token));
}

#[test]
fn an_inspection_delivers_over_tls_with_a_token() {
    let (folder, authority) = (support::folder(), Authority::new());
    let files = authority.issue(folder.path());
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let ca = write("ca.pem", &authority.0.pem());
    let plant = Plant::with(|c| c.tls = Some(files));
    let address: SocketAddr = plant.server.local_addr();
    let inspect = |token: &str, spool: &str| {
        let mut command = support::program();
        command.arg("inspect").arg("--model").arg(support::washer()).arg(support::asset("sample-run.mp4"));
        command.args(["--review", &format!("https://localhost:{}/", address.port()), "--line", "east"]);
        command.arg("--token-file").arg(write("token", token)).arg("--ca-file").arg(&ca);
        command.arg("--spool").arg(folder.path().join(spool));
        support::Run::from(command.output().unwrap())
    };
    let refused = inspect(&plant.token(Scope::Read), "spool-a");
    assert_ne!(refused.code, Some(0), "{refused:?}");
    inspect(&plant.token(Scope::Upload), "spool-b").succeeds();
    let list = authority.trusting().get(format!("{}/api/v1/anomalies?limit=200", plant.server.url()));
    let list: Value = list.bearer_auth(plant.token(Scope::Read)).send().unwrap().json().unwrap();
    let items = list["items"].as_array().unwrap();
    assert!(!items.is_empty() && items.iter().all(|i| i["event"]["line"] == "east"), "{list}");
}
