//! `linesight doctor`: what it finds of a configuration whose endpoint, clocks, spool, audit log or broker are not right, and
//! what it says to do; it changes nothing.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

#[path = "support/broker.rs"]
mod broker;
#[path = "support/plant.rs"]
mod plant;
mod support;

use bad_server::{Act, Server};
use broker::Broker;
use plant::{Plant, line};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use support::*;

fn sample() -> String {
    asset("sample-run.mp4").display().to_string()
}

struct Seen(Vec<Value>, Option<i32>);

impl Seen {
    /// State, and detail with remedy, of a check.
    #[track_caller]
    fn of(&self, check: &str) -> (String, String) {
        let found = self.0.iter().find(|f| f["check"] == check);
        let found = found.unwrap_or_else(|| panic!("no finding \"{check}\": {:#?}", self.0));
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        (text("state"), format!("{} | {}", text("detail"), text("remedy")))
    }

    #[track_caller]
    fn says(&self, check: &str, state: &str, pieces: &[&str]) {
        let (got, text) = self.of(check);
        assert!(got == state && pieces.iter().all(|p| text.contains(p)), "{check}: {got}: {text}");
    }
}

fn doctor(arguments: &[&str], environment: &[(&str, &str)]) -> Seen {
    let mut command = program();
    command.args(["doctor", "--json"]).args(arguments).envs(environment.iter().copied());
    let run: Run = command.output().unwrap().into();
    let report: Value = serde_json::from_str(&run.out).unwrap_or_else(|e| panic!("{e}: {run:?}"));
    let findings = report["findings"].as_array().unwrap().clone();
    let bad = findings.iter().any(|f| f["state"] == "bad");
    assert_eq!((report["ok"].as_bool().unwrap(), run.code), (!bad, Some(if bad { 3 } else { 0 })), "{report:#}");
    Seen(findings, run.code)
}

fn of(plant: &Plant) -> Seen {
    doctor(&["--config", plant.config().to_str().unwrap()], &[])
}

/// Every file below a folder, with its bytes.
fn files(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_file())
        .map(|p| (p.clone(), std::fs::read(&p).unwrap()))
        // each reader of SQLite makes the log's index anew, and an empty log
        .filter(|(p, bytes)| {
            let name = p.to_string_lossy();
            !name.ends_with("-shm") && (!name.ends_with("-wal") || !bytes.is_empty())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_good_configuration_is_found_good_and_nothing_is_changed() {
    let server = sink();
    let broker = Broker::start();
    let shared = format!("[review]\nurl = \"{}\"\n[mqtt]\nurl = \"{}\"", server.url(), broker.url());
    let mut plant = Plant::new(&shared, &line("a", &sample(), washer(), "realtime = false"));
    let before = files(plant.home.path());
    let seen = of(&plant);
    assert_eq!(seen.1, Some(0), "{:#?}", seen.0);
    seen.says("configuration", "ok", &["1 lines"]);
    seen.says("model", "ok", &["line \"a\""]);
    seen.says("spool", "ok", &["is made at the first run"]);
    seen.says("audit log", "ok", &["spool.audit.jsonl\" can be written"]);
    seen.says("broker", "ok", &["takes connections"]);
    seen.says("endpoint", "ok", &["api/v1/anomalies answers 405 without a token"]);
    assert_eq!(files(plant.home.path()), before, "doctor made files");
    assert!(server.seen().kept.is_empty(), "something was posted");
    // while it runs, too: the answers to the plant go on
    plant.start();
    plant.until("parts", |p| p.counter("a", "parts") > 0);
    let seen = of(&plant);
    seen.says("spool", if seen.of("spool").0 == "ok" { "ok" } else { "note" }, &["in use by a linesight"]);
    seen.says("broker", "ok", &[]);
    plant.end();
    assert_eq!(plant.count("SELECT count(*) FROM spool"), 0);
    let before = files(plant.home.path());
    of(&plant).says("spool", "ok", &["0 anomalies wait", "1 journals", "not in use"]);
    let after = files(plant.home.path());
    let changed: Vec<_> = after.iter().filter(|f| !before.contains(f)).map(|f| &f.0).collect();
    assert!(changed.is_empty() && after.len() == before.len(), "doctor changed files: {changed:?}");
}

#[test]
fn endpoints_that_are_not_right_are_named_with_the_remedy() {
    let ask = |url: &str| doctor(&["--review", url], &[]);
    ask(&format!("http://{}", nobody())).says("endpoint", "bad", &["no answer from", "refused", "firewall"]);
    ask("http://no-such-host.invalid/").says("endpoint", "bad", &["no answer from", "check the address"]);
    for (status, state, piece) in [
        (401, "bad", "token_file"),
        (403, "bad", "token_file"),
        (404, "note", "is the address complete?"),
        (405, "ok", "answers 405"),
        (302, "bad", "redirects are not followed"),
        (503, "note", "trouble of its own"),
    ] {
        let server = Server::start(move |_| Act::Answer(status, "", ""));
        ask(&server.url()).says("endpoint", state, &[&status.to_string(), piece]);
    }
    for (header, state, pieces) in [
        ("Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n", "note", ["ahead of the endpoint", "NTP"]),
        ("Date: Fri, 01 Jan 2100 00:00:00 GMT\r\n", "note", ["behind the endpoint", "NTP"]),
    ] {
        let server = Server::start(move |_| Act::Answer(200, header, ""));
        ask(&server.url()).says("clock skew", state, &pieces);
    }
    // a real one: its clock is this machine's
    let home = folder();
    let config = linesight::review::Config::new(home.path(), ([127, 0, 0, 1], 0).into());
    let review = linesight::review::Server::start(config).unwrap();
    let seen = ask(&review.url());
    seen.says("endpoint", "ok", &["answers 200"]);
    assert!(!seen.0.iter().any(|f| f["check"] == "clock skew" && f["state"] != "ok"), "{:#?}", seen.0);
    review.stop();
}

/// A real TLS server: a certificate that nobody vouches for, one that is trusted and ends soon, one of another name.
#[test]
fn certificates_are_looked_at() {
    let home = folder();
    let openssl = |arguments: &str| {
        let done = Command::new("openssl").args(arguments.split(' ')).current_dir(home.path()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 30 -subj /CN=authority"));
    for (who, name, days) in [("good", "localhost", 9), ("other", "elsewhere.example", 9)] {
        openssl(&format!("req {key} -keyout {who}.key -out {who}.csr -subj /CN={who}"));
        std::fs::write(home.path().join("names"), format!("subjectAltName=DNS:{name}")).unwrap();
        let sign = format!("x509 -req -in {who}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days}");
        openssl(&format!("{sign} -extfile names -out {who}.pem"));
    }
    let ca = home.path().join("ca.pem").display().to_string();
    let asked = |who: &str, environment: &[(&str, &str)]| {
        let port = nobody().port();
        let mut server = Command::new("openssl")
            .args(["s_server", "-www", "-quiet", "-accept", &port.to_string()])
            .args(["-cert", &format!("{who}.pem"), "-key", &format!("{who}.key")])
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the server", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        let seen = doctor(&["--review", &format!("https://localhost:{port}/hook")], environment);
        let _ = server.kill();
        let _ = server.wait();
        seen
    };
    asked("good", &[]).says("endpoint", "bad", &["certificate", "update-ca-certificates"]);
    asked("other", &[("SSL_CERT_FILE", &ca)]).says("endpoint", "bad", &["certificate", "is it of this name"]);
    let seen = asked("good", &[("SSL_CERT_FILE", &ca)]);
    seen.says("endpoint", "ok", &["answers 200"]);
    seen.says("certificate", "note", &["good for ", " days, until", "renewed"]);
}

#[test]
fn what_is_wrong_on_this_machine_is_named_with_the_remedy() {
    let shared = format!("[mqtt]\nurl = \"mqtt://{}\"", nobody());
    let mut plant = Plant::new(&shared, &line("a", &sample(), washer(), "realtime = false"));
    plant.start();
    plant.end();
    let seen = of(&plant);
    seen.says("spool", "note", &["anomalies wait, the oldest for", "they are sent when linesight runs"]);
    seen.says("broker", "bad", &["no connection to the broker", "is it running"]);
    seen.says("endpoint", "note", &["none is configured", "[review]"]);
    // pages in the middle of the file are written over
    let text = std::fs::read(plant.database()).unwrap();
    let mut damaged = text.clone();
    let from = damaged.len() / 4;
    damaged[from..from + 30_000].fill(0x5a);
    std::fs::write(plant.database(), damaged).unwrap();
    of(&plant).says("spool", "bad", &["the file is damaged", "keep a copy"]);
    std::fs::write(plant.database(), "no database at all, but some text that is long enough").unwrap();
    of(&plant).says("spool", "bad", &["is not a database", "move it away"]);
    // an audit log that cannot be
    let text = std::fs::read_to_string(plant.config()).unwrap();
    std::fs::write(plant.config(), format!("[audit]\nfile = \"line.toml/audit\"\n{text}")).unwrap();
    of(&plant).says("audit log", "bad", &["cannot be written", "[audit] in line.toml"]);
    std::fs::write(plant.config(), format!("[audit]\nfile = \"off\"\n{text}")).unwrap();
    of(&plant).says("audit log", "note", &["off"]);
    std::fs::write(plant.config(), "sit = 3").unwrap();
    of(&plant).says("configuration", "bad", &["unknown key", "did you mean \"site\"?"]);
}
