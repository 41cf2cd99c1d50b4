//! line.toml: every broken file is refused with file, line, key and remedy; the example is the default; the schema is current.

#![allow(clippy::unwrap_used)]

mod support;

use linesight::config::{self, Config};
use linesight::deliver::{Kind as TargetKind, Order};
use linesight::error::Kind;
use proptest::prelude::*;
use std::path::Path;
use support::*;

/// A folder with what a good file names.
fn home() -> tempfile::TempDir {
    let home = folder();
    std::fs::create_dir(home.path().join("model")).unwrap();
    for name in ["model/model.toml", "run.mp4", "mask.png"] {
        std::fs::write(home.path().join(name), "x").unwrap();
    }
    std::fs::write(home.path().join("token"), "secret\n").unwrap();
    std::fs::write(home.path().join("empty"), "\n").unwrap();
    std::fs::write(home.path().join("two-lines"), "secret\nsecret\n").unwrap();
    std::fs::write(home.path().join("keys"), "[default]\naws_access_key_id = a\naws_secret_access_key = secret\n")
        .unwrap();
    home
}

const GOOD: &str = "[[line]]\nname = \"a\"\nsource = \"run.mp4\"\nmodel = \"model\"\n";

/// Name, text, line that is named (0: none can be), key, a piece of the message, a piece of the hint.
type Case = (&'static str, String, usize, &'static str, &'static str, &'static str);

/// A target with these lines.
fn target(lines: &str) -> String {
    format!("[[target]]\nname = \"t\"\n{lines}\n{GOOD}")
}

/// What is wrong with where anomalies go.
fn target_cases() -> Vec<Case> {
    let review = |more: &str| format!("[review]\nurl = \"https://h\"\n{more}\n{GOOD}");
    vec![
        ("review, unknown key", review("ca = \"x\""), 3, "review.ca", "unknown key", "ca_file"),
        ("review, no authority", review("ca_file = \"no\""), 3, "review.ca_file", "cannot be read", "PEM"),
        (
            "review, junk for one",
            review("ca_file = \"token\""),
            3,
            "review.ca_file",
            "no certificate in PEM",
            "authority",
        ),
        (
            "review, key without certificate",
            review("key_file = \"token\""),
            3,
            "review.key_file",
            "no cert_file",
            "both",
        ),
        (
            "review, certificate without key",
            review("cert_file = \"token\""),
            3,
            "review.cert_file",
            "no key_file",
            "both",
        ),
        (
            "review, junk for both",
            review("cert_file = \"token\"\nkey_file = \"token\""),
            3,
            "review.cert_file",
            "hold no certificate",
            "chain",
        ),
        (
            "review, certificate without encryption",
            format!("[review]\nurl = \"http://h\"\nca_file = \"token\"\n{GOOD}"),
            3,
            "review.ca_file",
            "is not encrypted",
            "https",
        ),
        ("review, no proxy", review("proxy = \"proxy\""), 3, "review.proxy", "no http or https address", "3128"),
        (
            "review, proxy with a login",
            review("proxy = \"http://me:pw@p\""),
            3,
            "review.proxy",
            "holds a login",
            "HTTPS_PROXY",
        ),
        ("review, none at a time", review("parallel = 0"), 3, "review.parallel", "0 is out of range", "1 to 16"),
        ("review, unknown order", review("order = \"oldest\""), 3, "review.order", "unknown value", "oldest-first"),
        ("review, too thin", review("max_kbit_s = 7"), 3, "review.max_kbit_s", "7 is out of range", "8 or more"),
        ("token of two lines", review("token_file = \"two-lines\""), 3, "review.token_file", "no header", "one line"),
        ("target without a kind", target(""), 1, "target[0].kind", "this key is missing", "add kind"),
        ("unknown kind", target("kind = \"ftp\""), 3, "target[0].kind", "unknown value \"ftp\"", "webhook, s3, folder"),
        (
            "unknown key of a target",
            target("kind = \"folder\"\npaht = \"/a\""),
            4,
            "target[0].paht",
            "unknown key",
            "path",
        ),
        (
            "key of another kind",
            target("kind = \"folder\"\npath = \"/a\"\nbucket = \"b\""),
            5,
            "target[0].bucket",
            "kind \"folder\" has no such key",
            "path, mounted",
        ),
        (
            "token of a bucket",
            target("kind = \"s3\"\nbucket = \"b\"\ntoken_file = \"token\""),
            5,
            "target[0].token_file",
            "no such key",
            "credentials_file",
        ),
        ("folder without a path", target("kind = \"folder\""), 1, "target[0].path", "this key is missing", "add path"),
        ("webhook without a url", target("kind = \"webhook\""), 1, "target[0].url", "this key is missing", "add url"),
        ("bucket without a name", target("kind = \"s3\""), 1, "target[0].bucket", "this key is missing", "add bucket"),
        (
            "bucket with a slash",
            target("kind = \"s3\"\nbucket = \"a/b\""),
            4,
            "target[0].bucket",
            "is no bucket",
            "as the service shows it",
        ),
        (
            "bucket in the url",
            target("kind = \"s3\"\nbucket = \"b\"\nurl = \"http://h/b\"\ncredentials_file = \"keys\""),
            5,
            "target[0].url",
            "has a path",
            "key of its own",
        ),
        (
            "prefix that leads out",
            target("kind = \"s3\"\nbucket = \"b\"\nprefix = \"a/../b\"\ncredentials_file = \"keys\""),
            5,
            "target[0].prefix",
            "cannot begin a key",
            "steps",
        ),
        (
            "file without keys",
            target("kind = \"s3\"\nbucket = \"b\"\ncredentials_file = \"token\""),
            5,
            "target[0].credentials_file",
            "has no keys in [default]",
            "aws_access_key_id",
        ),
        (
            "file without that section",
            target("kind = \"s3\"\nbucket = \"b\"\ncredentials_file = \"keys\"\nprofile = \"x\""),
            5,
            "target[0].credentials_file",
            "has no keys in [x]",
            "aws_access_key_id",
        ),
        (
            "profile of nothing",
            target("kind = \"s3\"\nbucket = \"b\"\nprofile = \"x\""),
            5,
            "target[0].profile",
            "no credentials_file",
            "leave profile out",
        ),
        (
            "header of ours",
            target("kind = \"webhook\"\nurl = \"http://h\"\nheaders = { Authorization = \"Bearer secret\" }"),
            5,
            "target[0].headers",
            "is set by linesight",
            "token_file",
        ),
        (
            "header that is none",
            target("kind = \"webhook\"\nurl = \"http://h\"\nheaders = { \"a b\" = \"x\" }"),
            5,
            "target[0].headers",
            "is no name of a header",
            "X-Api-Key",
        ),
        (
            "header file missing",
            target("kind = \"webhook\"\nurl = \"http://h\"\nheader_files = { X-Key = \"no\" }"),
            5,
            "target[0].header_files",
            "cannot be read",
            "holds",
        ),
        (
            "header twice",
            target(
                "kind = \"webhook\"\nurl = \"http://h\"\nheaders = { X-Key = \"a\" }\nheader_files = { x-key = \"token\" }",
            ),
            6,
            "target[0].header_files",
            "given twice",
            "once",
        ),
        (
            "webhook with a login",
            target("kind = \"webhook\"\nurl = \"http://me:pw@h\""),
            4,
            "target[0].url",
            "holds a login",
            "token_file",
        ),
        (
            "name of the review endpoint",
            format!(
                "[review]\nurl = \"http://h\"\n[[target]]\nname = \"review\"\nkind = \"folder\"\npath = \"/a\"\n{GOOD}"
            ),
            4,
            "target[0].name",
            "that of [review] too",
            "a name of its own",
        ),
        (
            "target twice",
            format!(
                "[[target]]\nname = \"a\"\nkind = \"folder\"\npath = \"/a\"\n[[target]]\nname = \"a\"\nkind = \"folder\"\npath = \"/b\"\n{GOOD}"
            ),
            6,
            "target[1].name",
            "that of another target too",
            "a name of its own",
        ),
        (
            "name that is none",
            format!("[[target]]\nname = \"a/b\"\nkind = \"folder\"\npath = \"/a\"\n{GOOD}"),
            2,
            "target[0].name",
            "is no name",
            "letters",
        ),
    ]
}

fn cases() -> Vec<Case> {
    let with = |more: &str| format!("{GOOD}{more}\n");
    let before = |more: &str| format!("{more}\n{GOOD}");
    let replaced = |from: &str, to: &str| GOOD.replace(from, to);
    vec![
        ("empty file", String::new(), 0, "", "no line is configured", "[[line]]"),
        ("no TOML", before("site = "), 1, "", "", "TOML"),
        ("string without end", before("site = \"a"), 1, "", "", "TOML"),
        ("key twice", before("site = \"a\"\nsite = \"b\""), 2, "", "duplicate key", "TOML"),
        ("unknown key", before("sit = \"a\""), 1, "sit", "unknown key", "did you mean \"site\"?"),
        ("unknown table", before("[spol]"), 1, "spol", "unknown key", "did you mean \"spool\"?"),
        ("unknown key in a line", with("overlaod = \"block\""), 5, "line[0].overlaod", "unknown key", "\"overload\""),
        (
            "unknown key in camera",
            with("[line.camera]\nexposure = 3.0"),
            6,
            "line[0].camera.exposure",
            "unknown key",
            "exposure_us",
        ),
        (
            "unknown key in debounce",
            with("[line.debounce]\nn = 3"),
            6,
            "line[0].debounce.n",
            "unknown key",
            "reject, of",
        ),
        ("unknown key far from all", before("zzzzzzzz = 1"), 1, "zzzzzzzz", "unknown key", "accepted here: site"),
        (
            "unknown value",
            with("overload = \"newset\""),
            5,
            "line[0].overload",
            "unknown value \"newset\"",
            "did you mean \"newest\"?",
        ),
        (
            "unknown trigger",
            with("trigger = \"edge\""),
            5,
            "line[0].trigger",
            "unknown value",
            "accepted: frame, presence",
        ),
        ("number for text", before("site = 7"), 1, "site", "invalid type: integer `7`", "docs/3-run.md"),
        ("text for number", with("queue = \"4\""), 5, "line[0].queue", "invalid type: string", "docs/3-run.md"),
        (
            "negative",
            with("deadline_ms = -5"),
            5,
            "line[0].deadline_ms",
            "invalid value: integer `-5`",
            "docs/3-run.md",
        ),
        ("line is no table", "line = 3\n".into(), 1, "line", "invalid type", "docs/3-run.md"),
        ("name left out", replaced("name = \"a\"\n", ""), 1, "line[0].name", "this key is missing", "add name"),
        (
            "source left out",
            replaced("source = \"run.mp4\"\n", ""),
            1,
            "line[0].source",
            "this key is missing",
            "add source",
        ),
        ("model left out", replaced("model = \"model\"\n", ""), 1, "line[0].model", "this key is missing", "add model"),
        ("empty name", replaced("\"a\"", "\"\""), 2, "line[0].name", "is no name", "letters"),
        ("name with a slash", replaced("\"a\"", "\"a/b\""), 2, "line[0].name", "\"a/b\" is no name", "letters"),
        ("name of dots", replaced("\"a\"", "\"..\""), 2, "line[0].name", "is no name", "letters"),
        ("same name twice", format!("{GOOD}{GOOD}"), 6, "line[1].name", "the name of line[0] too", "a name of its own"),
        ("missing recording", replaced("run.mp4", "no.mp4"), 3, "line[0].source", "no.mp4\" cannot be read", "give"),
        ("empty source", replaced("run.mp4", ""), 3, "line[0].source", "", ""),
        ("missing watched folder", replaced("run.mp4", "watch:nowhere"), 3, "line[0].source", "nowhere", ""),
        (
            "missing model",
            replaced("\"model\"", "\"modle\""),
            4,
            "line[0].model",
            "is no model package",
            "linesight teach",
        ),
        ("missing mask", with("mask = \"no.png\""), 5, "line[0].mask", "cannot be read", "PNG"),
        ("roi of three numbers", with("roi = \"1,2,3\""), 5, "line[0].roi", "is not X,Y,W,H", "X,Y,W,H"),
        ("tiny roi", with("roi = \"0,0,4,4\""), 5, "line[0].roi", "at least 32x32", "X,Y,W,H"),
        ("unknown device", with("device = \"\""), 5, "line[0].device", "", "CPU"),
        ("queue 0", with("queue = 0"), 5, "line[0].queue", "0 is out of range", "accepted: 1 to 64"),
        ("queue too long", with("queue = 65"), 5, "line[0].queue", "65 is out of range", "accepted: 1 to 64"),
        ("deadline 0", with("deadline_ms = 0"), 5, "line[0].deadline_ms", "out of range", "accepted: 1 to 60000"),
        ("requests 0", with("requests = 0"), 5, "line[0].requests", "out of range", "accepted: 1 to 64"),
        (
            "debounce 3 of 2",
            with("[line.debounce]\nreject = 3\nof = 2"),
            6,
            "line[0].debounce.reject",
            "out of range",
            "1 to 2",
        ),
        ("debounce of 0", with("[line.debounce]\nof = 0"), 6, "line[0].debounce.of", "out of range", "1 to 16"),
        (
            "impatient watchdog",
            with("[line.watchdog]\nstall_periods = 0.5"),
            6,
            "line[0].watchdog.stall_periods",
            "out of range",
            "2 to 10000",
        ),
        (
            "watchdog upside down",
            with("[line.watchdog]\nstall_min_ms = 900\nstall_max_ms = 800"),
            7,
            "line[0].watchdog.stall_max_ms",
            "out of range",
            "stall_min_ms",
        ),
        ("camera key of another source", with("[line.camera]\ngain = 3.0"), 5, "line[0].camera", "gain", ""),
        (
            "repeat a camera",
            replaced("run.mp4", "rtsp://10.0.0.1/a") + "repeat = true\n",
            5,
            "line[0].repeat",
            "has no end",
            "recordings",
        ),
        (
            "review is no address",
            before("[review]\nurl = \"localhost\""),
            2,
            "review.url",
            "no http or https address",
            "http://",
        ),
        (
            "review over ftp",
            before("[review]\nurl = \"ftp://a/\""),
            2,
            "review.url",
            "no http or https address",
            "http://",
        ),
        (
            "login in the address",
            before("[review]\nurl = \"http://me:pw@host/\""),
            2,
            "review.url",
            "holds a login",
            "token_file",
        ),
        (
            "token file missing",
            before("[review]\nurl = \"http://h\"\ntoken_file = \"no\""),
            3,
            "review.token_file",
            "cannot be read",
            "token",
        ),
        (
            "token file empty",
            before("[review]\nurl = \"http://h\"\ntoken_file = \"empty\""),
            3,
            "review.token_file",
            "is empty",
            "token",
        ),
        (
            "observe is no address",
            before("[observe]\nlisten = \"9464\""),
            2,
            "observe.listen",
            "is no address",
            "127.0.0.1:9464",
        ),
        ("broker is no address", before("[mqtt]\nurl = \"localhost\""), 1, "mqtt", "localhost", ""),
        ("heartbeat too fast", before("[mqtt]\nurl = \"mqtt://h\"\nheartbeat_ms = 1"), 1, "mqtt", "heartbeat", ""),
        (
            "audit too small",
            before("[audit]\nmax_mb = 0"),
            2,
            "audit.max_mb",
            "0 is out of range",
            "accepted: 1 to 4096",
        ),
        ("audit keeps none", before("[audit]\nkeep = 0"), 2, "audit.keep", "0 is out of range", "accepted: 1 to 1000"),
        ("audit is a folder", before("[audit]\nfile = \"model\""), 2, "audit.file", "is a folder", "name a file"),
        (
            "keep nothing",
            before("[spool]\nretention_days = 0"),
            2,
            "spool.retention_days",
            "0 would keep nothing",
            "leave the key out",
        ),
    ]
}

#[test]
fn every_broken_file_says_file_line_key_and_remedy() {
    let home = home();
    let file = home.path().join("line.toml");
    let all: Vec<Case> = cases().into_iter().chain(target_cases()).collect();
    assert!(all.len() >= 40, "{}", all.len());
    let mut wrong = Vec::new();
    for (name, text, line, key, message, hint) in all {
        let e = Config::parse(&text, &file).expect_err(name);
        let (said, remedy) = (e.to_string(), e.hint_text().unwrap_or_default().to_owned());
        let at = if line > 0 { format!("line.toml\" line {line}") } else { "line.toml\"".to_owned() };
        let named = if key.is_empty() { String::new() } else { format!("key \"{key}\"") };
        let fits = e.kind() == Kind::Usage
            && [at.as_str(), &named, message].iter().all(|piece| said.contains(piece))
            && remedy.contains(hint)
            && !remedy.is_empty()
            && !said.contains("pw@")
            && !said.contains("secret");
        if !fits {
            wrong.push(format!(
                "{name}: wanted {at}, {named}, \"{message}\", hint \"{hint}\"\n  error: {said}\n  hint: {remedy}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_good_file_is_taken_and_paths_are_relative_to_it() {
    let home = home();
    let text = format!("[review]\nurl = \"http://h\"\ntoken_file = \"token\"\n{GOOD}deadline_ms = 50\n");
    let config = Config::parse(&text, &home.path().join("line.toml")).unwrap();
    assert_eq!(config.lines[0].model, home.path().join("model"));
    assert_eq!(config.lines[0].deadline.unwrap().as_millis(), 50);
    assert!(!format!("{config:?}").contains("secret"), "a token is printed");
}

/// Every kind of target at once, and what a change of one is called.
#[test]
fn targets_of_every_kind_are_taken() {
    let home = home();
    let file = home.path().join("line.toml");
    let text = |rate: u64| {
        format!(
            "[review]\nurl = \"https://h\"\nparallel = 4\norder = \"newest-first\"\nmax_kbit_s = {rate}\n\
             [[target]]\nname = \"hook\"\nkind = \"webhook\"\nurl = \"http://h/x\"\nheaders = {{ X-A = \"b\" }}\n\
             header_files = {{ X-Key = \"token\" }}\n\
             [[target]]\nname = \"archive\"\nkind = \"s3\"\nbucket = \"b\"\nregion = \"eu-1\"\ncredentials_file = \"keys\"\n\
             [[target]]\nname = \"share\"\nkind = \"folder\"\npath = \"share\"\n\
             [[target]]\nname = \"second\"\nkind = \"review\"\nurl = \"http://other\"\ntoken_file = \"token\"\n{GOOD}"
        )
    };
    let config = Config::parse(&text(80), &file).unwrap();
    let names: Vec<&str> = config.targets.iter().map(|target| target.name.as_str()).collect();
    assert_eq!(names, ["review", "hook", "archive", "share", "second"]);
    let review = &config.targets[0];
    assert_eq!((review.parallel, review.order, review.bytes_per_s), (4, Order::NewestFirst, Some(10_000)));
    let TargetKind::Bucket(bucket) = &config.targets[2].kind else { panic!("{config:?}") };
    assert_eq!(bucket.endpoint.url.as_str(), "https://s3.eu-1.amazonaws.com/");
    let TargetKind::Folder(share) = &config.targets[3].kind else { panic!("{config:?}") };
    assert_eq!(share.path, home.path().join("share"));
    assert!(!format!("{config:?}").contains("secret"), "{config:?}");
    assert_eq!(config.shared_changes(&Config::parse(&text(88), &file).unwrap()), ["review"]);
    let other = text(80).replace("eu-1", "eu-2");
    assert_eq!(config.shared_changes(&Config::parse(&other, &file).unwrap()), ["target"]);
    // alone, it may have the name
    let alone = format!("[[target]]\nname = \"review\"\nkind = \"folder\"\npath = \"/a\"\n{GOOD}");
    assert_eq!(Config::parse(&alone, &file).unwrap().targets.len(), 1);
}

/// The example holds every key, and those that it sets are the defaults.
#[test]
fn the_example_equals_the_defaults() {
    let home = home();
    let example = std::fs::read_to_string(asset("line.toml")).unwrap();
    let adapted = example.replace("sample-run.mp4", "run.mp4").replace("taught/sample", "model");
    let file = home.path().join("line.toml");
    let with_all = Config::parse(&adapted, &file).unwrap();
    let bare = Config::parse(&GOOD.replace("\"a\"", "\"sample\""), &file).unwrap();
    assert_eq!(with_all.lines, bare.lines);
    assert!(with_all.shared_changes(&bare).is_empty(), "{:?}", with_all.shared_changes(&bare));
    let schema: serde_json::Value = serde_json::from_str(&config::schema().unwrap()).unwrap();
    let mut tables: Vec<&serde_json::Value> = schema["$defs"].as_object().unwrap().values().collect();
    tables.push(&schema);
    for key in tables.iter().filter_map(|t| t["properties"].as_object()).flat_map(|p| p.keys()) {
        let said = example.lines().any(|l| {
            let l = l.trim_start_matches(['#', ' ', '[']);
            l.starts_with(key.as_str()) || l.contains(&format!(".{key}]"))
        });
        assert!(said, "assets/line.toml does not show \"{key}\"");
    }
}

#[test]
fn the_committed_schema_is_current() {
    let committed = std::fs::read_to_string(asset("line.schema.json")).unwrap();
    let now = linesight(["run", "--schema"]).succeeds().out.clone();
    assert_eq!(committed, now, "run `linesight run --schema > assets/line.schema.json`");
}

/// A camera that is not there, a broker and an endpoint that nobody runs: the file is good all the same.
#[test]
fn check_opens_nothing() {
    let home = home();
    let text = "[review]\nurl = \"http://127.0.0.1:9\"\n[mqtt]\nurl = \"mqtt://127.0.0.1:9\"\n[[line]]\nname = \"a\"\n\
                source = \"genicam:no-such-camera\"\nmodel = \"model\"\n";
    let file = home.path().join("line.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(&file).unwrap();
    // the model is read; this one is none
    linesight(["run", "--check", "--config", file.to_str().unwrap()]).fails(1, &["model"], "");
}

#[test]
fn a_missing_file_says_so() {
    linesight(["run", "--config", "/no/line.toml"]).fails(
        2,
        &["configuration \"/no/line.toml\" cannot be read"],
        "assets/line.toml",
    );
}

fn cases_wanted() -> u32 {
    if std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full") { 200_000 } else { 2_000 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases_wanted(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Never a panic; an error names the file and says what to do.
    #[test]
    fn any_text_is_read_or_refused(text in text()) {
        if let Err(e) = Config::parse(&text, Path::new("line.toml")) {
            prop_assert!(e.to_string().contains("line.toml"), "{e}");
            prop_assert!(e.hint_text().is_some_and(|h| !h.is_empty()), "{e}");
        }
    }
}

/// Arbitrary text, and good files with a piece changed.
fn text() -> impl Strategy<Value = String> {
    let example = std::fs::read_to_string(asset("line.toml")).unwrap();
    let sources = [GOOD.to_owned(), example.clone(), example.replace("# ", "")];
    let piece = prop_oneof![
        "\\PC{0,20}",
        Just("[[line]]".to_owned()),
        Just("= 99999999999999999999".to_owned()),
        Just("[line.camera]\nfps = nan".to_owned()),
        Just("\"\\u0000\"".to_owned()),
        Just("inf".to_owned()),
        Just("1979-05-27".to_owned()),
    ];
    prop_oneof![
        "\\PC{0,200}".prop_map(|s| s),
        (0..sources.len(), any::<prop::sample::Index>(), any::<prop::sample::Index>(), piece).prop_map(
            move |(which, from, to, piece)| {
                let text = &sources[which];
                let ends: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
                let (a, b) = (ends[from.index(ends.len())], ends[to.index(ends.len())]);
                // mostly a small hole
                let (a, b) = (a.min(b), a.max(b).min(a.min(b) + 40));
                let b = (b..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
                format!("{}{piece}{}", &text[..a], &text[b..])
            }
        ),
    ]
}
