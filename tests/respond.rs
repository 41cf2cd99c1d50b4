//! Verdicts by MQTT to a real broker that is killed and hung, out of processes that are killed and hung, to a receiver that
//! keeps to the contract of docs/5-integrate.md.

#![allow(clippy::unwrap_used)]

#[path = "support/broker.rs"]
mod broker;

use broker::{Broker, LONG, Out, Receiver, signal, summary, until};
use hdrhistogram::Histogram;
use linesight::event::Verdict;
use linesight::observe::LineStatus;
use linesight::respond::{Answer, Mqtt, MqttOptions, MqttStatus, Respond};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::{Client, Event, Incoming};
use rustix::process::Signal;
use serde::Deserialize;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

const PREFIX: &str = "linesight/hall";
const PERIOD: Duration = Duration::from_millis(200);
/// From the light barrier to the gate.
const WAY: Duration = Duration::from_millis(700);
const SIXTY: Duration = Duration::from_nanos(1_000_000_000 / 60);

/// Whether the full counts are wanted.
fn full() -> bool {
    std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full")
}

/// What part `n` really is.
fn truth(part: u64) -> Verdict {
    match part {
        n if n % 5 == 3 => Verdict::Reject,
        n if n % 11 == 7 => Verdict::Unsure,
        _ => Verdict::Pass,
    }
}

fn answer(part: u64, verdict: Verdict) -> Answer {
    Answer {
        line: "a".into(),
        part,
        verdict,
        captured_at: jiff::Timestamp::now(),
        score: 1.25,
        confidence: 0.5,
        latency_ms: 0.1,
        reasons: if verdict == Verdict::Pass { vec![] } else { vec!["score above threshold".into()] },
        model: "washer@1".into(),
        lot: None,
        serial: Some(format!("S{part}")),
        captured: Instant::now(),
    }
}

fn options(broker: &Broker) -> MqttOptions {
    MqttOptions { heartbeat_ms: PERIOD.as_millis() as u64, ..MqttOptions::new(&broker.url(), "hall") }
}

fn live(line: &str) -> Arc<LineStatus> {
    let status = Arc::new(LineStatus::new(line, "camera"));
    status.frame();
    status
}

/// An output in this process, connected, with line `a`.
fn connected(options: MqttOptions) -> Mqtt {
    let mqtt = Mqtt::connect(options).unwrap();
    mqtt.watch(live("a"), 0, None).unwrap();
    mqtt.wait(LONG).unwrap();
    mqtt
}

// ---- a line in a process of its own -----------------------------------------------------------------------------------

const CHILD: &str = "LINESIGHT_TEST_RESPOND_CHILD";

#[derive(Debug, Deserialize)]
struct Report {
    status: MqttStatus,
    fds: usize,
    threads: usize,
    rss_kb: u64,
    stopped: bool,
}

/// Not a test of its own: the line that other tests trigger, kill and hang. A number on stdin triggers that part; `status`
/// and `stop` make it report.
#[test]
fn child_with_a_line() {
    let Ok(url) = std::env::var(CHILD) else { return };
    let options = MqttOptions { heartbeat_ms: PERIOD.as_millis() as u64, ..MqttOptions::new(&url, "hall") };
    let mqtt = Mqtt::connect(options).unwrap();
    mqtt.watch(live("a"), 0, Some(WAY)).unwrap();
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    let report = |stopped| {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        let report = serde_json::json!({
            "status": mqtt.status(), "fds": count("/proc/self/fd"), "threads": count("/proc/self/task"),
            "rss_kb": 4 * pages, "stopped": stopped,
        });
        println!("\n{report}");
    };
    for line in std::io::stdin().lines().map(Result::unwrap) {
        match line.as_str() {
            "status" => report(false),
            "stop" => {
                let stopped = mqtt.stop(LONG);
                return report(stopped);
            }
            part => {
                let part = part.parse().unwrap();
                mqtt.answer(&answer(part, truth(part)));
            }
        }
    }
}

struct Line {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Line {
    fn start(broker: &Broker) -> Line {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_with_a_line", "--nocapture"])
            .env(CHILD, broker.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut line = Line { stdin: child.stdin.take().unwrap(), child, stdout };
        until("the connection", || line.ask("status").status.connected);
        line
    }

    /// The camera's light barrier and the receiver's are the same.
    fn trigger(&mut self, receiver: &Receiver, part: u64) {
        receiver.trigger(part);
        writeln!(self.stdin, "{part}").unwrap();
    }

    /// Triggers a part every sixtieth of a second until `enough`; returns the number of the next one.
    fn parts(&mut self, receiver: &Receiver, from: u64, mut enough: impl FnMut(u64) -> bool) -> u64 {
        let (start, mut part) = (Instant::now(), from);
        while !enough(part) {
            assert!(start.elapsed() < 2 * LONG, "it takes too long: {}", summary(&receiver.came_out()));
            self.trigger(receiver, part);
            part += 1;
            let next = start + SIXTY * (part - from) as u32;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        part
    }

    fn ask(&mut self, what: &str) -> Report {
        writeln!(self.stdin, "{what}").unwrap();
        loop {
            let line = self.stdout.next().unwrap_or_else(|| panic!("the line has ended")).unwrap();
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap();
            }
        }
    }

    /// Ends as it should; every answer is accounted for.
    fn stop(mut self) -> MqttStatus {
        let report = self.ask("stop");
        assert!(report.stopped && report.status.adds_up(), "{report:#?}");
        assert!(self.child.wait().unwrap().success());
        report.status
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn receiver(broker: &Broker) -> Receiver {
    Receiver::start(broker.port, PREFIX, "a", PERIOD, WAY)
}

/// Nothing but a good part came out as a pass.
#[track_caller]
fn no_wrong_pass(receiver: &Receiver) {
    for (part, out) in receiver.came_out() {
        assert!(out != Out::Pass || truth(part) == Verdict::Pass, "part {part} is {:?} and passed", truth(part));
    }
}

/// Until every triggered part is at the gate.
fn all_out(receiver: &Receiver) {
    until("the last part", || receiver.came_out().len() == receiver.with(|t| t.triggered.len()));
}

/// Delivers a part until one comes out as a pass; returns the number of the next part.
fn until_parts_pass(line: &mut Line, receiver: &Receiver, from: u64) -> u64 {
    line.parts(receiver, from, |_| receiver.came_out().range(from..).any(|o| *o.1 == Out::Pass))
}

// ---- the tests --------------------------------------------------------------------------------------------------------

/// Each part is answered, in order, at 60 parts a second; how long it takes is printed.
#[test]
fn sixty_parts_a_second() {
    let broker = Broker::start();
    // slow enough that a busy machine is no dead one
    let receiver = Receiver::start(broker.port, PREFIX, "a", 20 * PERIOD, LONG);
    let mut line = Line::start(&broker);
    until("the heartbeat", || receiver.with(|t| !t.heartbeats.is_empty()) && receiver.alive().is_some());
    let count = if full() { 3600 } else { 600 };
    line.parts(&receiver, 0, |part| part == count);
    until("the last answer", || receiver.with(|t| t.answers.last().is_some_and(|a| a.1 == count - 1)));
    let status = line.stop();
    assert_eq!((status.offered, status.acked, status.unheard, status.reconnects), (count, count, 0, 0), "{status:#?}");

    receiver.with(|told| {
        let order: Vec<u64> = told.answers.iter().map(|a| a.1).collect();
        assert!(order.is_sorted(), "in order");
        assert_eq!(order.iter().collect::<std::collections::BTreeSet<_>>().len() as u64, count, "each part");
        let mut times = Histogram::<u64>::new(3).unwrap();
        for (at, part, answer) in &told.answers {
            let answer = answer.as_ref().unwrap();
            assert_eq!(answer["verdict"], truth(*part).as_str());
            assert_eq!((&answer["line"], &answer["serial"]), (&"a".into(), &format!("S{part}").into()));
            times.record((*at - told.triggered[part]).as_micros() as u64).unwrap();
        }
        let beats: Vec<u64> = told.heartbeats.iter().map(|h| h.1["seq"].as_u64().unwrap()).collect();
        assert!(beats.windows(2).all(|w| w[1] == w[0] + 1), "{beats:?}");
        assert_eq!(told.heartbeats[0].1["lines"]["a"], "live");
        let at = |q| times.value_at_quantile(q) as f64 / 1e3;
        println!("{count} parts at 60/s, ms (p50 p95 p99 max)");
        let (s, a) = (status.to_socket, status.to_ack);
        println!("  trigger -> written to the socket {:7.3} {:7.3} {:7.3} {:7.3}", s.p50, s.p95, s.p99, s.max);
        println!("  trigger -> acknowledged          {:7.3} {:7.3} {:7.3} {:7.3}", a.p50, a.p95, a.p99, a.max);
        println!(
            "  trigger -> at the receiver       {:7.3} {:7.3} {:7.3} {:7.3}",
            at(0.5),
            at(0.95),
            at(0.99),
            at(1.0)
        );
    });
}

/// A broker that goes and returns costs rejects and nothing else.
#[test]
fn the_broker_is_killed_and_returns() {
    let cycles = if full() { 20 } else { 3 };
    let mut broker = Broker::start();
    let receiver = receiver(&broker);
    let mut line = Line::start(&broker);
    let mut part = 0;
    let mut before = None;
    for cycle in 0..cycles {
        part = until_parts_pass(&mut line, &receiver, part);
        let report = line.ask("status");
        before.get_or_insert((report.fds, report.threads, report.rss_kb));
        broker.kill();
        let gone = part;
        part = line.parts(&receiver, part, |p| p > gone + 20 && receiver.came_out().contains_key(&(gone + 10)));
        assert!(!line.ask("status").status.connected);
        broker.start_again();
        let returned = Instant::now();
        part = line.parts(&receiver, part, |p| {
            p % 4 == 0 && receiver.alive().is_some() && {
                receiver.with(|t| t.answers.last().is_some_and(|a| a.0 > returned))
            }
        });
        println!("cycle {cycle}: answers again {:.2} s after the broker's return", returned.elapsed().as_secs_f64());
    }
    part = until_parts_pass(&mut line, &receiver, part);
    let report = line.ask("status");
    all_out(&receiver);
    let status = line.stop();
    assert_eq!(status.offered, part);
    assert_eq!(status.reconnects, cycles);
    assert!(status.dropped["away"] >= 10 * cycles, "{status:#?}");
    // both sides tell the same story: what was dropped never reached the receiver, what was acknowledged did
    let seen = receiver.with(|t| t.answers.iter().map(|a| a.1).collect::<std::collections::BTreeSet<_>>());
    assert!(seen.len() as u64 <= status.sent, "{} > {status:#?}", seen.len());
    no_wrong_pass(&receiver);
    for (part, out) in receiver.came_out() {
        assert!(seen.contains(&part) || out != Out::Pass, "part {part}: {out:?}");
    }
    let (fds, threads, rss) = before.unwrap();
    println!("parts {part}: {}; {status:?}", summary(&receiver.came_out()));
    println!("fds {fds} -> {}, threads {threads} -> {}, RSS {rss} -> {} kB", report.fds, report.threads, report.rss_kb);
    assert_eq!((report.fds, report.threads), (fds, threads));
}

/// A broker that hangs is left; what it takes up when it wakes comes too late to be taken for a pass.
#[test]
fn a_broker_that_hangs_delivers_no_stale_pass() {
    let cycles = if full() { 5 } else { 1 };
    let broker = Broker::start();
    let receiver = receiver(&broker);
    let mut line = Line::start(&broker);
    let mut part = 0;
    for _ in 0..cycles {
        part = until_parts_pass(&mut line, &receiver, part);
        let hung = part;
        broker.hang();
        part = line.parts(&receiver, part, |p| {
            let last = receiver.came_out().last_key_value().map(|o| *o.0);
            p % 8 == 0 && last > Some(hung + 10)
        });
        until("the end of the connection", || !line.ask("status").status.connected);
        broker.go_on();
        part = until_parts_pass(&mut line, &receiver, part);
        // nothing that was triggered while the broker hung passed: its answers came after the gate
        let out = receiver.came_out();
        assert!(out.range(hung + 1..hung + 10).all(|o| *o.1 != Out::Pass), "{out:?}");
    }
    all_out(&receiver);
    no_wrong_pass(&receiver);
    let status = line.stop();
    println!("{}; {status:?}", summary(&receiver.came_out()));
    assert!(status.lost > 0 && status.reconnects == cycles, "{status:#?}");
    assert!(status.last_error.unwrap().contains("a message was not acknowledged within 2 s"));
}

/// The broker says that a killed process is dead, and every part is a reject until another one is there.
#[test]
fn a_killed_process_is_seen_as_dead() {
    let cycles = if full() { 20 } else { 3 };
    let broker = Broker::start();
    let receiver = receiver(&broker);
    let mut part = 0;
    for cycle in 0..cycles {
        let mut line = Line::start(&broker);
        part = until_parts_pass(&mut line, &receiver, part);
        line.kill();
        let killed = Instant::now();
        until("the will", || receiver.alive().is_some_and(|a| a == "dead"));
        println!("cycle {cycle}: the will came {:.1} ms after SIGKILL", killed.elapsed().as_secs_f64() * 1e3);
        let (first, beats) = (part, receiver.with(|t| t.heartbeats.len()));
        while part < first + 10 {
            receiver.trigger(part);
            part += 1;
        }
        all_out(&receiver);
        let out = receiver.came_out();
        assert!(out.range(first..).all(|o| *o.1 == Out::NotAlive), "{out:?}");
        // the silent heartbeat says the same, in case the will is lost
        receiver.with(|t| {
            assert_eq!(t.heartbeats.len(), beats, "no heartbeat since");
            let (last, gate) = (t.heartbeats.last().unwrap().0, t.triggered[&first] + WAY);
            let without = broker::Told {
                alive: vec![(last, "alive".into())],
                heartbeats: t.heartbeats.clone(),
                ..broker::Told::default()
            };
            assert_eq!(without.decide(first, gate, PERIOD), Out::NoHeartbeat);
        });
    }
    no_wrong_pass(&receiver);
}

/// A process that hangs keeps its connection: the missing heartbeat gives it away.
#[test]
fn a_hung_process_is_seen_as_dead() {
    let cycles = if full() { 10 } else { 2 };
    let broker = Broker::start();
    let receiver = receiver(&broker);
    let mut line = Line::start(&broker);
    let mut part = 0;
    for _ in 0..cycles {
        part = until_parts_pass(&mut line, &receiver, part);
        signal(&line.child, Signal::STOP);
        let hung = Instant::now();
        // until three parts in a row have met a silent heartbeat
        part = line.parts(&receiver, part, |_| {
            let out = receiver.came_out();
            out.len() > 3 && out.values().rev().take(3).all(|o| *o == Out::NoHeartbeat)
        });
        assert_eq!(receiver.alive().unwrap(), "alive", "the will has nothing to say");
        println!("hung for {:.1} s", hung.elapsed().as_secs_f64());
        signal(&line.child, Signal::CONT);
        // what it now answers at once is for parts that are through the gate
        part = until_parts_pass(&mut line, &receiver, part);
    }
    all_out(&receiver);
    no_wrong_pass(&receiver);
    println!("{}", summary(&receiver.came_out()));
    line.stop();
}

/// A receiver whose subscription outlives its connection is not given old passes when it returns.
#[test]
fn a_stale_answer_is_not_kept_for_a_receiver_that_was_away() {
    let broker = Broker::start();
    let mqtt = Mqtt::connect(options(&broker)).unwrap();
    mqtt.watch(live("a"), 0, Some(Duration::from_millis(300))).unwrap();
    mqtt.wait(LONG).unwrap();
    let verdicts = |first_part: u64, count: u64| -> Vec<u64> {
        let mut options = rumqttc::v5::MqttOptions::new("keeper", "127.0.0.1", broker.port);
        options.set_keep_alive(Duration::from_secs(5)).set_clean_start(false);
        options.set_session_expiry_interval(Some(600));
        let (client, mut connection) = Client::new(options, 16);
        client.subscribe(format!("{PREFIX}/a/verdict"), QoS::AtLeastOnce).unwrap();
        let mut seen = Vec::new();
        while seen.len() < count as usize {
            match connection.recv().unwrap().unwrap() {
                // one at a time, after the subscription and after each answer
                Event::Incoming(Incoming::SubAck(_)) => drop(mqtt.answer(&answer(first_part, Verdict::Pass))),
                Event::Incoming(Incoming::Publish(p)) => {
                    let properties = p.properties.unwrap();
                    assert_eq!(properties.message_expiry_interval, Some(1), "whole seconds, rounded up");
                    assert_eq!(properties.content_type.unwrap(), "application/json");
                    seen.push(std::str::from_utf8(&properties.correlation_data.unwrap()).unwrap().parse().unwrap());
                    mqtt.answer(&answer(first_part + seen.len() as u64, Verdict::Pass));
                }
                _ => {}
            }
        }
        client.disconnect().unwrap();
        while connection.recv().is_ok_and(|e| e.is_ok()) {}
        seen
    };
    assert_eq!(verdicts(0, 3), [0, 1, 2]);
    // part 3 was answered to nobody; so are these
    for part in 4..10 {
        assert!(mqtt.answer(&answer(part, Verdict::Pass)));
    }
    until("the broker's acknowledgements", || mqtt.status().acked == 10);
    let kept = Instant::now();
    until("the end of what they are good for", || kept.elapsed() > Duration::from_secs(3));
    assert_eq!(verdicts(10, 2), [10, 11], "nothing of what was kept meanwhile");
    assert!(mqtt.stop(LONG) && mqtt.status().adds_up());
}

/// A pass that is handed over after the deadline is not sent; any other verdict is.
#[test]
fn a_late_pass_is_not_sent() {
    let broker = Broker::start();
    let receiver = receiver(&broker);
    let mqtt = Mqtt::connect(options(&broker)).unwrap();
    mqtt.watch(live("a"), 0, Some(Duration::from_millis(50))).unwrap();
    mqtt.wait(LONG).unwrap();
    let late = Instant::now() - Duration::from_millis(51);
    mqtt.answer(&Answer { captured: late, ..answer(0, Verdict::Pass) });
    mqtt.answer(&Answer { captured: late, ..answer(1, Verdict::Missed) });
    mqtt.answer(&Answer { line: "b".into(), ..answer(0, Verdict::Pass) });
    until("the answer", || receiver.with(|t| !t.answers.is_empty()));
    assert!(mqtt.stop(LONG));
    let status = mqtt.status();
    assert!(!mqtt.answer(&answer(2, Verdict::Pass)), "after the end");
    assert_eq!((status.dropped["expired"], status.dropped["line"], status.acked), (1, 1, 1), "{status:#?}");
    assert!(status.adds_up() && mqtt.status().dropped["stopped"] == 1);
    receiver.with(|t| assert_eq!((t.answers.len(), t.answers[0].1), (1, 1)));
}

/// Nobody waits for a broker that does not answer or is not there.
#[test]
fn a_full_queue_is_counted_and_nobody_waits() {
    let mut broker = Broker::start();
    let mqtt = connected(MqttOptions { queue: 8, ..options(&broker) });
    let timed = |what: &str, count: u64| {
        let (mut times, mut taken) = (Histogram::<u64>::new(3).unwrap(), 0);
        for part in 0..count {
            let answer = answer(part, Verdict::Pass);
            let start = Instant::now();
            taken += u64::from(mqtt.answer(&answer));
            times.record(start.elapsed().as_nanos() as u64).unwrap();
        }
        let at = |q| times.value_at_quantile(q) as f64 / 1e3;
        println!(
            "answer() {what}: p50 {:.1} p99 {:.1} max {:.1} us, {taken} of {count} taken",
            at(0.5),
            at(0.99),
            at(1.0)
        );
        taken
    };
    broker.hang();
    let taken = timed("while the broker hangs", 2000);
    let status = mqtt.status();
    // the broker's own limit on its way, 8 in the queue
    assert!(taken < 2000 && status.dropped["full"] == 2000 - taken, "{status:#?}");
    until("the end of the connection", || !mqtt.status().connected);
    broker.kill();
    assert_eq!(timed("while the broker is away", 10_000), 0);
    let status = mqtt.status();
    assert!(status.dropped["away"] >= 10_000 && status.sent == status.lost, "{status:#?}");
    assert!(status.adds_up(), "{status:#?}");
    assert!(!mqtt.stop(LONG), "there is nobody to say it to");
}

/// Ends with `stopped`, and the will stays silent.
#[test]
fn a_clean_stop_says_so() {
    let broker = Broker::start();
    let receiver = receiver(&broker);
    let status = live("a");
    let mqtt = Mqtt::connect(options(&broker)).unwrap();
    mqtt.watch(status.clone(), 7, None).unwrap();
    mqtt.watch(live("b"), 0, None).unwrap();
    mqtt.wait(LONG).unwrap();
    let state = || receiver.with(|t| t.states.last().map(|s| (s.1["state"].clone(), s.1["next_part"].clone())));
    until("the state", || state() == Some(("live".into(), 7.into())));
    status.set_state(linesight::event::LineState::Stalled, Some("no frame for 2 s".into()));
    until("the state", || state() == Some(("stalled".into(), 7.into())));
    receiver.with(|t| assert_eq!(t.states.last().unwrap().1["reason"], "no frame for 2 s"));
    mqtt.answer(&answer(7, Verdict::Pass));
    until("the part counter", || state() == Some(("stalled".into(), 8.into())));
    mqtt.forget("b");
    for part in 8..100 {
        mqtt.answer(&answer(part, Verdict::Pass));
    }
    assert!(mqtt.stop(LONG));
    assert!(!mqtt.stop(LONG), "once");
    until("the farewell", || receiver.alive().is_some_and(|a| a == "stopped"));
    let after = mqtt.status();
    assert!(after.adds_up() && after.acked == 93, "{after:#?}");
    receiver.with(|t| {
        assert_eq!(t.answers.len(), 93, "what waited was sent");
        assert_eq!(t.states.last().unwrap().1["state"], "stopped");
        let words: Vec<&str> = t.alive.iter().map(|a| a.1.as_str()).collect();
        assert_eq!(words, ["alive", "stopped"]);
    });
    // a receiver that comes later is told at once
    let later = Receiver::start(broker.port, PREFIX, "a", PERIOD, WAY);
    until("what is kept", || later.alive().is_some_and(|a| a == "stopped"));
    drop(mqtt);
    assert_eq!(receiver.alive().unwrap(), "stopped");
}

/// Nobody being subscribed is counted; a handle that is dropped without a stop is dead.
#[test]
fn answers_that_nobody_hears_are_counted() {
    let broker = Broker::start();
    let mqtt = connected(options(&broker));
    mqtt.answer(&answer(0, Verdict::Pass));
    until("the acknowledgement", || mqtt.status().acked == 1);
    assert_eq!(mqtt.status().unheard, 1);
    drop(mqtt);
    let receiver = receiver(&broker);
    until("the will", || receiver.alive().is_some_and(|a| a == "dead"));
}

/// All that was logged in this process, libraries included.
fn logged() -> String {
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    #[derive(Clone)]
    struct Into(Arc<Mutex<Vec<u8>>>);
    impl Write for Into {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = LOG.get_or_init(|| {
        let log = Into(Arc::default());
        let writer = log.clone();
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).init();
        log.0
    });
    String::from_utf8_lossy(&log.lock().unwrap()).into_owned()
}

/// It is refused with a reason, the right one is taken up without a restart, and neither is ever printed.
#[test]
fn a_wrong_password_is_said_clearly() {
    logged();
    let broker = Broker::start_with("allow_anonymous false\npassword_file {}/passwords\n", |folder| {
        let file = folder.join("passwords");
        let made =
            Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(file).args(["line", "r1ght-secret"]).status();
        assert!(made.unwrap().success());
    });
    let file = broker.path("password");
    std::fs::write(&file, "wr0ng-secret\n").unwrap();
    let options = MqttOptions { username: Some("line".into()), password_file: Some(file.clone()), ..options(&broker) };
    let mut shown = format!("{options:?}");
    let mqtt = Mqtt::connect(options).unwrap();
    until("the refusal", || mqtt.status().last_error.is_some());
    let error = mqtt.wait(Duration::ZERO).unwrap_err();
    assert_eq!(error.to_string(), format!("the broker \"{}\" refuses user name or password", broker.url()));
    let hint = format!("the user is \"line\", the password is what \"{}\" holds at each attempt", file.display());
    assert_eq!((error.hint_text(), error.kind().exit_code()), (Some(hint.as_str()), 3));
    std::fs::write(&file, "r1ght-secret\n").unwrap();
    mqtt.wait(LONG).unwrap();
    shown += &format!("{mqtt:?} {:?} {error:?} {}", mqtt.status(), logged());
    assert!(mqtt.stop(LONG));
    shown += &logged();
    assert!(shown.contains("refuses user name or password"), "the log is read");
    assert!(!shown.contains("r1ght") && !shown.contains("wr0ng"));
}

#[test]
fn a_broker_that_is_not_there_is_said_clearly() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (url, cause) in [
        (format!("mqtt://127.0.0.1:{port}"), "Connection refused"),
        ("mqtt://no-such-host.invalid:1883".to_owned(), "lookup"),
    ] {
        let mqtt = Mqtt::connect(MqttOptions::new(&url, "hall")).unwrap();
        until("the attempt", || mqtt.status().last_error.is_some());
        let error = mqtt.wait(Duration::ZERO).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("no connection to the broker \"{url}\": ")) && text.contains(cause),
            "{text}"
        );
        assert_eq!(error.hint_text(), Some("is it running, and is host and port right?"));
        assert!(!mqtt.stop(LONG));
    }
}

/// Two clients with one id throw each other out, and say so.
#[test]
fn a_second_client_with_the_same_id_is_said_clearly() {
    let broker = Broker::start();
    let first = connected(options(&broker));
    let _second = connected(options(&broker));
    // brokers that say why they close a connection, and those that do not
    let wanted = "another client has come";
    until("the takeover", || {
        first.status().last_error.is_some_and(|e| e.contains(wanted) && e.contains("linesight-hall"))
    });
}

/// Both sides show a certificate; a certificate from elsewhere is refused.
#[test]
fn an_encrypted_connection() {
    let openssl = |folder: &Path, arguments: &str| {
        let done = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let settings = "allow_anonymous true\ncafile {}/ca.pem\ncertfile {}/broker.pem\nkeyfile {}/broker.key\nrequire_certificate true\n";
    let broker = Broker::start_with(settings, |folder| {
        for ca in ["ca", "other"] {
            openssl(folder, &format!("req -x509 {key} -keyout {ca}.key -out {ca}.pem -days 2 -subj /CN={ca}"));
        }
        std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1").unwrap();
        for who in ["broker", "line"] {
            openssl(folder, &format!("req {key} -keyout {who}.key -out {who}.csr -subj /CN={who}"));
            let sign =
                format!("x509 -req -in {who}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {who}.pem -days 2");
            openssl(folder, &format!("{sign} -extfile names"));
        }
    });
    let options = MqttOptions {
        url: format!("mqtts://localhost:{}", broker.port),
        ca_file: Some(broker.path("ca.pem")),
        cert_file: Some(broker.path("line.pem")),
        key_file: Some(broker.path("line.key")),
        ..options(&broker)
    };
    let mqtt = connected(options.clone());
    mqtt.answer(&answer(0, Verdict::Reject));
    assert!(mqtt.stop(LONG) && mqtt.status().acked == 1);

    let stranger = MqttOptions { ca_file: Some(broker.path("other.pem")), ..options.clone() };
    let mqtt = Mqtt::connect(stranger).unwrap();
    until("the attempt", || mqtt.status().last_error.is_some());
    let error = mqtt.wait(Duration::ZERO).unwrap_err();
    assert!(error.to_string().starts_with("no encrypted connection to the broker"), "{error}");
    assert!(error.hint_text().unwrap().contains("come from the ca file"));

    let nobody = MqttOptions { cert_file: None, key_file: None, ..options };
    let mqtt = Mqtt::connect(nobody).unwrap();
    until("the attempt", || mqtt.status().last_error.is_some());
    assert!(!mqtt.status().connected);
}
