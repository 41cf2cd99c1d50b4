//! `linesight run` as a process: its configuration, its status, its end, and what its ledger says afterwards.

// each test binary uses a part of it
#![allow(dead_code, clippy::unwrap_used)]

use super::support::{LONG, count, linesight, program};
use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// A folder with a line.toml, and the process that runs it, if one does.
pub struct Plant {
    pub home: tempfile::TempDir,
    database: PathBuf,
    port: u16,
    child: Option<Child>,
    /// For the process, besides what the tests have.
    pub environment: Vec<(String, String)>,
}

impl Plant {
    /// `lines` follows after the shared keys.
    pub fn new(shared: &str, lines: &str) -> Plant {
        let home = super::support::folder();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let database = home.path().join("spool.db");
        let plant = Plant { home, database, port, child: None, environment: Vec::new() };
        plant.write(shared, lines);
        plant
    }

    pub fn write(&self, shared: &str, lines: &str) {
        let port = self.port;
        let database = self.database.display();
        let text = format!(
            "[spool]\ndatabase = \"{database}\"\n[observe]\nlisten = \"127.0.0.1:{port}\"\n{shared}\n{lines}\n"
        );
        std::fs::write(self.config(), text).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.home.path().join("line.toml")
    }

    pub fn database(&self) -> PathBuf {
        self.database.clone()
    }

    /// Puts the database elsewhere.
    pub fn move_database(&mut self, to: &Path) {
        let text = std::fs::read_to_string(self.config()).unwrap();
        let (from, to_text) = (self.database.display().to_string(), to.display().to_string());
        std::fs::write(self.config(), text.replace(&from, &to_text)).unwrap();
        self.database = to.to_owned();
    }

    pub fn start(&mut self) {
        assert!(self.child.is_none());
        let mut command = program();
        command.args(["run", "--json", "--config"]).arg(self.config());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.home.path().join("log")).unwrap();
        self.child = Some(command.stderr(log).spawn().unwrap());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_raw(self.pid() as i32).unwrap(), signal).unwrap();
    }

    /// The lines of its audit log.
    pub fn audit(&self) -> Vec<linesight::observe::audit::Line> {
        let text = std::fs::read_to_string(self.database.with_file_name("spool.audit.jsonl")).unwrap_or_default();
        text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    }

    /// The same without lines that a kill tore.
    pub fn audit_that_can_be_read(&self) -> Vec<linesight::observe::audit::Line> {
        let text = std::fs::read_to_string(self.database.with_file_name("spool.audit.jsonl")).unwrap_or_default();
        text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    /// As when somebody pulls the plug of the process alone.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; what it printed and its exit code.
    pub fn stop(&mut self) -> (Value, Option<i32>) {
        self.signal(rustix::process::Signal::TERM);
        self.end()
    }

    /// Waits for its end.
    pub fn end(&mut self) -> (Value, Option<i32>) {
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}\n{}", self.log()));
        (json, output.status.code())
    }

    /// Code and text of an answer; 0 while nobody listens.
    pub fn get(&self, path: &str) -> (u16, String) {
        let answer = reqwest::blocking::get(format!("http://127.0.0.1:{}{path}", self.port));
        answer.map_or((0, String::new()), |a| (a.status().as_u16(), a.text().unwrap_or_default()))
    }

    /// Asks for the status; none while nobody listens.
    pub fn status(&self) -> Option<Value> {
        let url = format!("http://127.0.0.1:{}/status", self.port);
        reqwest::blocking::get(url).ok().and_then(|r| r.json().ok())
    }

    /// The status of a line.
    pub fn line(&self, name: &str) -> Option<Value> {
        self.status()?["lines"].as_array()?.iter().find(|l| l["line"] == name).cloned()
    }

    pub fn counter(&self, line: &str, counter: &str) -> u64 {
        self.line(line).and_then(|l| l["counters"][counter].as_u64()).unwrap_or(0)
    }

    #[track_caller]
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Plant) -> bool) {
        let deadline = Instant::now() + LONG;
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what} took too long: {:#?}\n{}", self.status(), self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The ledger verifies and everything in it is accounted for.
    #[track_caller]
    pub fn reconciles(&self) {
        let database = self.database();
        for command in ["verify", "reconcile"] {
            let run = linesight(["ledger".as_ref(), command.as_ref(), "--spool".as_ref(), database.as_os_str()]);
            assert_eq!(run.code, Some(0), "{command}: {run:#?}\n{}", self.log());
        }
    }

    /// Part, frame and verdict of a line's parts, in the order of their numbers.
    pub fn parts(&self, line: &str) -> Vec<(u64, u64, String)> {
        let db = rusqlite::Connection::open(self.database()).unwrap();
        let sql = "SELECT part, frame, verdict FROM ledger WHERE line = ?1 AND part >= 0 ORDER BY part";
        let mut statement = db.prepare(sql).unwrap();
        let rows =
            statement.query_map([line], |r| Ok((r.get::<_, i64>(0)? as u64, r.get::<_, i64>(1)? as u64, r.get(2)?)));
        rows.unwrap().map(Result::unwrap).collect()
    }

    /// 0 while the database cannot be read.
    pub fn count_or(&self, sql: &str) -> i64 {
        let Ok(db) = rusqlite::Connection::open(&self.database) else { return 0 };
        db.query_row(sql, [], |row| row.get(0)).unwrap_or(0)
    }

    pub fn count(&self, sql: &str) -> i64 {
        count(&self.database(), sql)
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Resident memory (kB), descriptors and threads of a process.
pub fn footprint(pid: u32) -> (u64, usize, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    let rss = rss.trim().trim_end_matches(" kB").parse().unwrap();
    let entries = |what: &str| std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join(what)).unwrap().count();
    (rss, entries("fd"), entries("task"))
}

/// One line of line.toml.
pub fn line(name: &str, source: &str, model: &Path, more: &str) -> String {
    format!("[[line]]\nname = \"{name}\"\nsource = '{source}'\nmodel = '{}'\n{more}\n", model.display())
}
