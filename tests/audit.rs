//! The audit log: whole lines whatever happens, numbers without gaps, losses that are said, and what a run writes down.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/plant.rs"]
mod plant;
mod support;

use disk::Disk;
use linesight::observe::audit::{AuditLog, Entry, Fate, Line, Options, check, note, user};
use plant::{Plant, line};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use support::*;

/// Whether the full counts are wanted (`make fault`).
fn full() -> bool {
    std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full")
}

fn options(file: PathBuf) -> Options {
    Options { file, max_bytes: 64 << 20, keep: 10 }
}

fn failed(n: usize) -> Entry {
    Entry::LineFailed { line: "a".into(), error: format!("\"number\" {n}\nof many"), hint: None }
}

/// The files of a log, the oldest first.
fn files(file: &Path) -> Vec<PathBuf> {
    let old = |n: u32| PathBuf::from(format!("{}.{n}", file.display()));
    let mut all: Vec<PathBuf> = (1..100).map(old).filter(|p| p.exists()).collect();
    all.reverse();
    all.push(file.to_owned());
    all
}

/// Every line of a log; each is whole.
#[track_caller]
fn lines(file: &Path) -> Vec<Line> {
    let text: String = files(file).iter().map(|f| std::fs::read_to_string(f).unwrap()).collect();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line has no end");
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

#[track_caller]
fn without_gaps(lines: &[Line]) {
    let gap = lines.windows(2).find(|w| w[1].seq != w[0].seq + 1);
    assert!(gap.is_none(), "{gap:#?}");
}

#[test]
fn numbers_go_on_over_files_and_processes() {
    let home = folder();
    let options = Options { max_bytes: 8 << 10, keep: 90, ..options(home.path().join("a.jsonl")) };
    let each = 100;
    for _ in 0..3 {
        let log = AuditLog::open(options.clone()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let audit = log.handle().by(&format!("thread {thread}"));
                scope.spawn(move || (0..each).for_each(|n| audit.say(failed(n))));
            }
            // commands of other processes, between the lines of this one
            scope.spawn(|| (0..each).for_each(|n| note(&options, "a command", vec![failed(n)]).unwrap()));
        });
        let status = log.close();
        assert_eq!((status.lost, status.failing), (0, false), "{status:?}");
    }
    let lines = lines(&options.file);
    without_gaps(&lines);
    assert_eq!(lines[0].seq, 1);
    let mut by: BTreeMap<&str, usize> = BTreeMap::new();
    for line in lines.iter().filter(|l| matches!(l.entry, Entry::LineFailed { .. })) {
        *by.entry(line.who.as_str()).or_default() += 1;
    }
    assert_eq!(by.values().copied().collect::<Vec<_>>(), [3 * each; 4], "{by:?}");
    let n = files(&options.file).len();
    assert!(n > 10, "{n} files");
}

#[test]
fn full_files_move_on() {
    let home = folder();
    let options = Options { max_bytes: 4096, keep: 3, ..options(home.path().join("deep/folder/a.jsonl")) };
    for n in 0..200 {
        note(&options, "a", vec![failed(n)]).unwrap();
    }
    let files = files(&options.file);
    assert_eq!(files.len(), 4, "{files:?}");
    for file in &files {
        assert!(file.metadata().unwrap().len() <= 4096, "{}", file.display());
    }
    let lines = lines(&options.file);
    without_gaps(&lines);
    assert!(lines[0].seq > 1, "nothing was removed");
    assert_eq!(lines.last().unwrap().entry, failed(199));
    let removed = |l: &&Line| matches!(&l.entry, Entry::Rotated { removed: Some(f) } if f.ends_with("a.jsonl.3"));
    assert!(lines.iter().filter(removed).count() >= 3, "a removal is said in the file that follows");
}

#[test]
fn a_torn_line_is_ended_and_said() {
    let home = folder();
    let options = options(home.path().join("a.jsonl"));
    note(&options, "a", vec![failed(1)]).unwrap();
    let torn = b"{\"at\":\"2030-01-01T0";
    OpenOptions::new().append(true).open(&options.file).unwrap().write_all(torn).unwrap();
    let log = AuditLog::open(options.clone()).unwrap();
    log.handle().say(failed(2));
    log.close();
    let text = std::fs::read_to_string(&options.file).unwrap();
    let all: Vec<Result<Line, _>> = text.lines().map(serde_json::from_str).collect();
    assert!(all.len() == 4 && all[1].is_err(), "{text}");
    let read: Vec<&Line> = all.iter().flatten().collect();
    assert_eq!(read.iter().map(|l| l.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(read[1].entry, Entry::TornLine { bytes: torn.len() as u64 });
    assert_eq!(read[2].entry, failed(2));
}

const CHILD: &str = "LINESIGHT_TEST_AUDIT";

/// Writes until it is killed, when it is the child of the test below.
#[test]
fn child_that_writes() {
    let Some(file) = std::env::var_os(CHILD) else { return };
    let log = AuditLog::open(Options { max_bytes: 256 << 10, ..options(file.into()) }).unwrap();
    let audit = log.handle();
    for n in 0.. {
        audit.say(failed(n));
        while audit.status().written + 2000 < n as u64 {
            std::thread::yield_now();
        }
    }
}

/// SIGKILL while lines are written as fast as the disk takes them: what is there is whole, and the next process goes on.
#[test]
fn killed_at_any_moment_lines_are_whole() {
    let home = folder();
    let options = Options { max_bytes: 256 << 10, keep: 90, ..options(home.path().join("a.jsonl")) };
    let kills = if full() { 300 } else { 10 };
    let mut random = fastrand::Rng::with_seed(5);
    let (mut torn, mut before) = (0, 0);
    for _ in 0..kills {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes", "--nocapture"])
            .env(CHILD, &options.file)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        until("a line", || options.file.metadata().is_ok_and(|m| m.len() > 0 && m.len() != before));
        std::thread::sleep(std::time::Duration::from_micros(random.u64(0..20_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        note(&options, "after the kill", vec![failed(0)]).unwrap();
        before = options.file.metadata().unwrap().len();
    }
    let mut last = None;
    for file in files(&options.file) {
        for text in std::fs::read_to_string(&file).unwrap().lines() {
            match serde_json::from_str::<Line>(text) {
                Ok(line) => {
                    assert!(last.is_none_or(|last| line.seq == last + 1), "{line:?} after {last:?}");
                    last = Some(line.seq);
                }
                Err(_) => torn += 1,
            }
        }
    }
    let said = lines_that_can_be_read(&options.file).into_iter();
    let said = said.filter(|l| matches!(l.entry, Entry::TornLine { .. })).count();
    eprintln!("{kills} kills, {} lines, {torn} torn", last.unwrap());
    assert_eq!(torn, said, "a torn line is not said");
}

fn lines_that_can_be_read(file: &Path) -> Vec<Line> {
    let text: String = files(file).iter().map(|f| std::fs::read_to_string(f).unwrap()).collect();
    text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

/// Another process holds the lock for ever: what is said is taken or counted, and nobody waits.
#[test]
fn nobody_waits_for_a_log_that_hangs() {
    let home = folder();
    let options = options(home.path().join("a.jsonl"));
    let log = AuditLog::open(options.clone()).unwrap();
    let audit = log.handle();
    let other = OpenOptions::new().append(true).open(&options.file).unwrap();
    other.lock().unwrap();
    let all = 10_000;
    // returns while the lock is held: it would stay here for ever
    (0..all).for_each(|n| audit.say(failed(n)));
    let lost = audit.status().lost;
    assert!(lost > 0 && audit.status().written == 0, "{:?}", audit.status());
    until("the failure", || audit.status().failing);
    other.unlock().unwrap();
    until("what was kept", || audit.status().written >= all as u64 - lost);
    until("the end of the failure", || !audit.status().failing);
    log.close();
    let lines = lines(&options.file);
    without_gaps(&lines);
    assert!(lines.iter().any(|l| l.entry == Entry::EntriesLost { entries: lost }), "the loss is not said");
    assert_eq!(lines.len() as u64, all as u64 - lost + 1);
}

#[test]
fn a_full_disk_loses_only_what_it_says() {
    let Some(disk) = Disk::new("2m") else { return };
    let options = options(disk.0.path().join("a.jsonl"));
    let log = AuditLog::open(options.clone()).unwrap();
    let audit = log.handle();
    audit.say(failed(0));
    until("the first", || audit.status().written == 1);
    let ballast = disk.0.path().join("ballast");
    // the write that finds no room leaves what fits
    let _ = std::fs::write(&ballast, vec![1; 2 << 20]);
    let all = 20_000;
    for n in 1..all {
        audit.say(failed(n));
    }
    until("the failure", || audit.status().failing);
    std::fs::remove_file(&ballast).unwrap();
    until("writing", || !audit.status().failing);
    audit.say(failed(all));
    let status = log.close();
    let lines = lines(&options.file);
    without_gaps(&lines);
    let (mut kept, mut lost) = (0, 0);
    for line in &lines {
        match line.entry {
            Entry::EntriesLost { entries } => lost += entries,
            _ => kept += 1,
        }
    }
    eprintln!("{kept} kept, {lost} lost");
    assert!(lost > 0);
    assert_eq!((kept + lost, status.lost), (all as u64 + 1, lost));
    assert_eq!(lines.last().unwrap().entry, failed(all));
}

#[test]
fn a_log_that_cannot_be_is_refused() {
    let home = folder();
    std::fs::write(home.path().join("file"), "x").unwrap();
    let e = check(&options(home.path().join("file/a.jsonl"))).unwrap_err();
    assert!(e.to_string().contains("audit log") && e.to_string().contains("cannot be written"), "{e}");
    assert!(e.hint_text().unwrap().contains("[audit] in line.toml"));
    let plant = Plant::new("[audit]\nfile = \"line.toml/a\"", &line("a", "run.mp4", Path::new("model"), ""));
    std::fs::write(plant.home.path().join("run.mp4"), "x").unwrap();
    std::fs::create_dir(plant.home.path().join("model")).unwrap();
    std::fs::write(plant.home.path().join("model/model.toml"), "x").unwrap();
    linesight(["run", "--config", plant.config().to_str().unwrap()]).fails(2, &["audit log"], "[audit]");
}

/// A run from start to end: who started and stopped what, which model judged, what was changed by whom, what was refused, and
/// as many parts as the lines counted.
#[test]
fn a_run_is_written_down() {
    let model = folder().keep();
    copy(washer(), &model.join("washer"));
    let model = model.join("washer");
    let good = |lot: &str| {
        [
            line("a", &sample(), &model, "repeat = true\nrealtime = false"),
            line("b", &sample(), &model, &format!("repeat = true\nlot = \"{lot}\"")),
        ]
        .concat()
    };
    let mut plant = Plant::new("", &good("one"));
    plant.start();
    plant.until("parts", |p| p.counter("a", "parts") > 20 && p.counter("b", "frames") > 0);
    plant.write("", "nonsense");
    plant.signal(rustix::process::Signal::HUP);
    plant.until("the refusal", |p| p.log().contains("configuration not reloaded"));
    // somebody sets another threshold, and line b takes it when it is started anew
    let config = folder();
    let named = config.path().join("line.toml");
    plant.write("", &good("two"));
    std::fs::copy(plant.config(), &named).unwrap();
    let set = ["model", "set-threshold", model.to_str().unwrap(), "9.5", "--by", "anna", "--why", "too many rejects"];
    linesight(set.into_iter().chain(["--config", named.to_str().unwrap()])).succeeds();
    plant.signal(rustix::process::Signal::HUP);
    let has = |p: &Plant, holds: &dyn Fn(&Entry) -> bool| p.audit().iter().any(|l| holds(&l.entry));
    plant.until("the new threshold", |p| {
        has(p, &|e| matches!(e, Entry::ThresholdChanged { line: Some(l), to, .. } if l == "b" && *to == 9.5))
    });
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    let all = plant.audit();
    without_gaps(&all);
    let me = user();
    let with = |who: &str, holds: &dyn Fn(&Entry) -> bool| {
        let found: Vec<&Line> = all.iter().filter(|l| holds(&l.entry)).collect();
        assert!(!found.is_empty(), "{all:#?}");
        found.iter().for_each(|l| assert_eq!(l.who, who, "{l:?}"));
        found.len()
    };
    let sums = [&all[0], all.last().unwrap()].map(|l| match &l.entry {
        Entry::ProcessStarted { config_sha256, .. } | Entry::ProcessStopped { config_sha256, .. } => config_sha256,
        _ => panic!("{l:?}"),
    });
    assert!(sums[0] != sums[1] && sums.iter().all(|s| s.len() == 64), "{sums:?}");
    with(&me, &|e| matches!(e, Entry::ProcessStarted { .. } | Entry::ProcessStopped { .. }));
    let started: Vec<&str> =
        all.iter().filter(|l| matches!(l.entry, Entry::LineStarted { .. })).map(|l| l.who.as_str()).collect();
    assert!(started[..2] == [me.as_str(); 2] && started[2..].len() == 1, "{started:?}");
    assert!(["SIGHUP", "reload by file"].contains(&started[2]), "{started:?}");
    let loaded = |e: &Entry| matches!(e, Entry::ModelLoaded { name, sha256, threshold, device, precision, .. } if name == "washer" && sha256.len() == 64 && *threshold > 0.0 && device == "CPU" && precision == "int8");
    assert_eq!(with("itself", &loaded), 3);
    with(
        &format!("anna (process of {me})"),
        &|e| matches!(e, Entry::ThresholdChanged { line: None, why: Some(w), .. } if w == "too many rejects"),
    );
    assert!(has(&plant, &|e| matches!(e, Entry::ConfigRefused { error, .. } if error.contains("line.toml"))));
    let change = all.iter().find_map(|l| match &l.entry {
        Entry::ConfigChanged { changes, .. } if !changes.is_empty() => Some(changes),
        _ => None,
    });
    let change = &change.unwrap()[0];
    let values = [change.line.as_deref(), Some(&change.key), change.from.as_deref(), change.to.as_deref()];
    assert_eq!(values, [Some("b"), Some("lot"), Some("one"), Some("two")]);
    let mut judged: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in all.iter().map(|l| &l.entry) {
        match entry {
            Entry::Parts { line, passed, rejected, unsure, missed, .. } => {
                *judged.entry(line).or_default() += passed + rejected + unsure + missed;
            }
            Entry::LineStopped { line, .. } => assert!(["a", "b"].contains(&line.as_str())),
            _ => {}
        }
    }
    let rows = ["a", "b"].map(|l| plant.parts(l).len() as u64);
    assert_eq!(rows.map(Some), ["a", "b"].map(|l| Some(judged.get(l).copied().unwrap_or(0))), "{judged:?}");
    assert!(rows[0] > 20);
}

fn sample() -> String {
    asset("sample-run.mp4").display().to_string()
}

/// A fate, its target and why.
type Told = (Fate, Option<String>, Option<String>);

/// What the log says of each anomaly, in its order.
fn fates(plant: &Plant) -> BTreeMap<String, Vec<Told>> {
    let mut found: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for line in plant.audit() {
        if let Entry::Anomaly { event, fate, target, why, line: name, part } = line.entry {
            assert_eq!(line.who, "itself");
            let id = event.to_string();
            let row = format!("SELECT part FROM ledger WHERE event = '{id}' AND line = '{name}'");
            assert_eq!(plant.count(&row), part as i64);
            found.entry(id).or_default().push((fate, target, why));
        }
    }
    found
}

#[track_caller]
fn played(shared: &str, more: &str) -> Plant {
    let mut plant = Plant::new(shared, &line("a", &sample(), washer(), "realtime = false"));
    if !more.is_empty() {
        let text = std::fs::read_to_string(plant.config()).unwrap();
        std::fs::write(plant.config(), text.replacen("[spool]\n", &format!("[spool]\n{more}\n"), 1)).unwrap();
    }
    plant.start();
    let (report, code) = plant.end();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    plant
}

/// Delivered, refused for good, and dropped by a spool that is full.
#[test]
fn each_anomaly_has_its_fate() {
    let review = |url: &str| format!("[review]\nurl = \"{url}\"");
    let server = sink();
    let plant = played(&review(&server.url()), "");
    let all = fates(&plant);
    assert_eq!(all.keys().collect::<Vec<_>>(), ledger_events(&plant.database()).iter().collect::<Vec<_>>());
    assert!(all.len() > 8);
    for (id, fates) in &all {
        let told: Vec<_> = fates.iter().map(|f| (f.0, f.1.as_deref())).collect();
        assert_eq!(told, [(Fate::Spooled, None), (Fate::Delivered, Some("review"))], "{id}");
    }
    let refusing = bad_server::Server::start(|_| bad_server::Act::Answer(422, "", "no such lot"));
    let plant = played(&review(&refusing.url()), "");
    for (id, fates) in fates(&plant) {
        let [(Fate::Spooled, ..), (Fate::Dead, Some(target), Some(why))] = &fates[..] else {
            panic!("{id}: {fates:?}")
        };
        assert!(target == "review" && why.contains("422") && why.contains("no such lot"), "{why}");
    }
    let plant = played("", "max_items = 3\nwhen_full = \"drop-oldest\"");
    let all = fates(&plant);
    let dropped = all.values().filter(|f| f.last().unwrap().0 == Fate::Dropped).count();
    assert_eq!(dropped, all.len() - 3, "{all:#?}");
    assert!(all.values().all(|f| f[0].0 == Fate::Spooled));
}

/// After a kill the anomalies that come from the journal are in the log as well.
#[test]
fn after_a_kill_every_anomaly_is_in_the_log() {
    let mut plant = Plant::new("", &line("a", &sample(), washer(), "realtime = false\nrepeat = true"));
    let kills = if full() { 30 } else { 4 };
    for n in 0..kills {
        plant.start();
        let sql = "SELECT count(*) FROM ledger WHERE event IS NOT NULL";
        let before = plant.count_or(sql);
        plant.until("anomalies", |p| p.count_or(sql) > before + n % 3);
        plant.kill();
    }
    plant.start();
    plant.until("the line", |p| p.counter("a", "parts") > 0);
    plant.stop();
    let known = plant.audit_that_can_be_read();
    let told: std::collections::BTreeSet<String> = known
        .iter()
        .filter_map(|l| match &l.entry {
            Entry::Anomaly { event, fate: Fate::Spooled, .. } => Some(event.to_string()),
            _ => None,
        })
        .collect();
    let rows = ledger_events(&plant.database());
    let missing: Vec<_> = rows.iter().filter(|id| !told.contains(*id)).collect();
    // committed, and killed before the log's own thread had written it: at most the last commit of each run
    eprintln!("{} anomalies after {kills} kills, {} not in the log", rows.len(), missing.len());
    assert!(missing.len() as i64 <= 2 * kills, "{missing:?}");
}
