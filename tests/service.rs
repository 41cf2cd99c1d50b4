//! linesight as a service: what the service manager is told, over a real socket, the unit, and the dashboard.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

#[path = "support/plant.rs"]
mod plant;
mod support;

use plant::{Plant, line};
use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use support::*;

/// Whether the full counts are wanted (`make fault`).
fn full() -> bool {
    std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full")
}

fn sample() -> String {
    asset("sample-run.mp4").display().to_string()
}

/// The service manager's end of the socket.
struct Manager(UnixDatagram);

impl Manager {
    /// Listens, and tells the plant's process where.
    fn of(plant: &mut Plant, watchdog_ms: Option<u64>) -> Manager {
        let path = plant.home.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        plant.environment.push(("NOTIFY_SOCKET".into(), path.display().to_string()));
        if let Some(ms) = watchdog_ms {
            plant.environment.push(("WATCHDOG_USEC".into(), (ms * 1000).to_string()));
        }
        Manager(socket)
    }

    /// The next message.
    #[track_caller]
    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let n = self.0.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    /// Messages up to the one that holds this, which is the last.
    #[track_caller]
    fn until(&self, piece: &str) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            all.push(self.next());
            if all.last().unwrap().contains(piece) {
                return all;
            }
        }
    }
}

fn any(messages: &[String], piece: &str) -> bool {
    messages.iter().any(|m| m.contains(piece))
}

/// Ready when the lines take frames, or have failed as one of them does; then status, reload and stop are told.
#[test]
fn ready_comes_after_the_lines() {
    let lines = |lot: &str| {
        let more = format!("repeat = true\nlot = \"{lot}\"");
        let broken = line("broken", "rtsp://127.0.0.1:9/nothing", still_model(), "");
        [line("a", &sample(), washer(), &more), line("b", &sample(), washer(), "repeat = true"), broken].concat()
    };
    let mut plant = Plant::new("", &lines("one"));
    let manager = Manager::of(&mut plant, Some(8000));
    plant.start();
    let before = manager.until("READY=1");
    assert!(!any(&before, "STOPPING=1"), "{before:?}");
    for name in ["a", "b", "broken"] {
        assert!(plant.line(name).unwrap()["model"].is_object(), "{name} has no model yet");
    }
    let petted = manager.until("WATCHDOG=1");
    eprintln!("{before:?} {petted:?}");
    manager.until("STATUS=3 lines: 2 live, 1 reconnecting");
    plant.write("", &lines("two"));
    plant.signal(rustix::process::Signal::HUP);
    let reload = manager.until("RELOADING=1");
    assert!(reload.last().unwrap().contains("MONOTONIC_USEC="), "{reload:?}");
    let after = manager.until("READY=1");
    assert!(after.len() <= 2, "{after:?}");
    plant.signal(rustix::process::Signal::TERM);
    manager.until("STOPPING=1");
    let (report, code) = plant.end();
    assert_eq!(code, Some(0), "{report:#}");
}

/// A recording that ends at once: the service manager must not take it for a service that did not start.
#[test]
fn a_short_run_is_ready_before_it_stops() {
    let mut plant = Plant::new("", &line("a", good_stills().to_str().unwrap(), still_model(), "realtime = false"));
    let manager = Manager::of(&mut plant, None);
    plant.start();
    let (_, code) = plant.end();
    assert_eq!(code, Some(0), "{}", plant.log());
    let all = manager.until("STOPPING=1");
    assert!(any(&all, "READY=1") && !any(&all, "WATCHDOG=1"), "{all:?}");
}

/// A thread of the process that does not run any more, as one that hangs in a driver; runs again when it drops.
struct Stopped(libc::pid_t);

impl Stopped {
    /// None, with a word to stderr, where tracing is not allowed.
    fn thread(pid: u32, name: &str) -> Option<Stopped> {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let tid = tasks
            .map(|t| t.unwrap().path())
            .find(|t| std::fs::read_to_string(t.join("comm")).is_ok_and(|comm| comm.trim_end() == name));
        let tid = tid.unwrap_or_else(|| panic!("no thread \"{name}\""));
        let tid: libc::pid_t = tid.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: ptrace of another process touches no memory of this one
        let traced = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, tid, none, none) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, tid, none, none) == 0
        };
        if !traced {
            eprintln!("skipped: threads of other processes cannot be stopped here (ptrace)");
            return None;
        }
        // SAFETY: as above; the thread is stopped when this returns
        unsafe { libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL) };
        Some(Stopped(tid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as above
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) };
    }
}

/// Each thread of a line is stopped in turn: the petting stops and the status says which; it goes on when the thread does.
#[test]
fn a_hung_line_thread_stops_the_petting() {
    let more = "repeat = true";
    let lines = [line("a", &sample(), washer(), more), line("b", &sample(), washer(), more)].concat();
    let mut plant = Plant::new("", &lines);
    let manager = Manager::of(&mut plant, Some(4000));
    plant.start();
    manager.until("READY=1");
    manager.until("STATUS=2 lines: 2 live");
    for (thread, stage) in [("line-a", "line"), ("capture", "capture"), ("prepare", "prepare")] {
        manager.until("WATCHDOG=1");
        let Some(stopped) = Stopped::thread(plant.pid(), thread) else { return };
        manager.until(&format!("its thread \"{stage}\" hangs"));
        // the seconds in it change, so that more of them come
        for _ in 0..3 {
            let silent = manager.until("hangs: no sign of life for");
            assert!(!any(&silent, "WATCHDOG=1"), "{thread} hangs: {silent:?}");
        }
        if full() {
            plant.until("an answer of the probe", |p| p.get("/healthz").0 == 503);
        }
        drop(stopped);
        manager.until("STATUS=2 lines: 2 live");
        manager.until("WATCHDOG=1");
    }
    let log = plant.log();
    assert!(log.contains("the service manager's watchdog is left to restart linesight"), "{log}");
    assert_eq!(plant.get("/healthz").0, 200);
    let (_, code) = plant.stop();
    assert_eq!(code, Some(0), "{log}");
}

fn unit() -> std::path::PathBuf {
    root().join("packaging/linesight.service")
}

/// The package's example is the project's, with the places where things are installed.
#[test]
fn the_installed_example_is_in_step() {
    let mut text = std::fs::read_to_string(asset("line.toml")).unwrap();
    for (from, to) in [
        (r#"#:schema line.schema.json"#, r#"#:schema /usr/share/linesight/assets/line.schema.json"#),
        (
            r#"# database = "spool.db"            # default: linesight/spool.db in the user's state folder"#,
            r#"database = "/var/lib/linesight/spool.db""#,
        ),
        (r#"source = "sample-run.mp4"  "#, r#"source = "/usr/share/linesight/assets/sample-run.mp4"  "#),
        (r#"model = "taught/sample"   "#, r#"model = "/var/lib/linesight/models/sample"   "#),
    ] {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        text = text.replace(from, to);
    }
    assert_eq!(std::fs::read_to_string(root().join("packaging/line.toml")).unwrap(), text);
}

/// systemd takes every directive of the unit.
#[test]
fn the_unit_verifies() {
    let home = folder();
    let text = std::fs::read_to_string(unit()).unwrap();
    // the program and the user are there only where the package is installed
    let text = text.replace("/usr/bin/linesight", "/bin/true");
    let file = home.path().join("linesight.service");
    std::fs::write(&file, text).unwrap();
    let Ok(run) = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output() else {
        return eprintln!("skipped: there is no systemd-analyze");
    };
    let said = String::from_utf8_lossy(&run.stderr);
    // it looks at the machine's other units, too
    let ours: Vec<&str> = said.lines().filter(|l| l.contains("linesight")).collect();
    assert!(ours.is_empty(), "{said}");
}

/// How much a break-in could reach, by systemd's own measure: 0 is nothing, 10 is all.
#[test]
fn the_unit_is_sandboxed() {
    let run = Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(unit()).output();
    let Ok(run) = run else { return eprintln!("skipped: there is no systemd-analyze") };
    let said = String::from_utf8_lossy(&run.stdout);
    let Some(exposure) = said.lines().find(|l| l.contains("Overall exposure level")) else {
        return eprintln!("skipped: this systemd-analyze rates no files: {}", String::from_utf8_lossy(&run.stderr));
    };
    let figure: f64 = exposure.split_whitespace().find_map(|w| w.parse().ok()).unwrap();
    eprintln!("{exposure}");
    assert!(figure <= 2.5, "{said}");
}

/// Every metric that the dashboard asks for is there when a line is overloaded, watched, and has outputs.
#[test]
fn the_dashboard_asks_for_what_is_exported() {
    let text = std::fs::read_to_string(asset("grafana.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut asked = BTreeSet::new();
    let mut panels = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            panels += 1;
            asked.extend(metrics(target["expr"].as_str().unwrap()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        asked.extend(metrics(variable["definition"].as_str().unwrap_or_default()));
    }
    assert!(panels > 40 && asked.len() > 35, "{panels} queries, {asked:#?}");
    let source = "pipeline:videotestsrc is-live=true ! video/x-raw,format=I420,width=320,height=240,framerate=1000/1";
    let shared = format!("[mqtt]\nurl = \"mqtt://{}\"\n[review]\nurl = \"http://{}\"", nobody(), nobody());
    let overloaded = line("a", source, still_model(), "overload = \"newest\"\nqueue = 1");
    // parts that pass, for the drift of their scores
    let good = line("b", &sample(), washer(), "repeat = true\nrealtime = false");
    let mut plant = Plant::new(&shared, &(overloaded + &good));
    plant.start();
    let exported = |plant: &Plant| -> BTreeSet<String> {
        let (_, text) = plant.get("/metrics");
        let samples = text.lines().filter(|l| !l.starts_with('#'));
        samples.filter_map(|l| l.split(['{', ' ']).next().map(str::to_owned)).collect()
    };
    let mut missing = asked.clone();
    let deadline = std::time::Instant::now() + LONG;
    while !missing.is_empty() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(200));
        missing = asked.difference(&exported(&plant)).cloned().collect();
    }
    assert!(
        missing.is_empty(),
        "the dashboard asks for what is not exported: {missing:#?}\n{}",
        plant.get("/metrics").1
    );
    let all = exported(&plant);
    let unseen: Vec<&String> = all.difference(&asked).filter(|m| m.starts_with("linesight_")).collect();
    eprintln!("{} metrics asked for, of {}; not on the dashboard: {unseen:?}", asked.len(), all.len());
    plant.stop();
}

/// Names of metrics in a query.
fn metrics(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|w| w.starts_with("linesight_") || w.starts_with("process_")).map(str::to_owned).collect()
}
