//! A real broker (mosquitto) that can be killed, hung and started again on its port, and a receiver that keeps to the
//! contract of docs/5-integrate.md.

// each test binary uses a part of it
#![allow(dead_code, clippy::unwrap_used)]

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Filter;
use rumqttc::v5::{Client, Event, Incoming, MqttOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Far beyond what anything here takes.
pub const LONG: Duration = Duration::from_secs(60);

/// Waits for something that happens elsewhere.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} took too long");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A broker on a free port of this machine; keeps nothing on disk.
pub struct Broker {
    folder: TempDir,
    pub port: u16,
    child: Option<Child>,
}

impl Broker {
    /// Anybody may come.
    pub fn start() -> Broker {
        Broker::start_with("allow_anonymous true\n", |_| ())
    }

    /// `settings` follow the listener's line of mosquitto.conf; `{}` in them is the broker's folder, which `prepare` fills.
    pub fn start_with(settings: &str, prepare: impl FnOnce(&Path)) -> Broker {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let mut broker = Broker { folder, port: 0, child: None };
        // another process may take the free port before the broker does
        until("a free port", || {
            broker.port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut text = format!("user root\nlistener {} 127.0.0.1\n", broker.port);
            text += &settings.replace("{}", broker.folder.path().to_str().unwrap());
            text += "persistence false\nset_tcp_nodelay true\nlog_type all\n";
            std::fs::write(broker.path("mosquitto.conf"), text).unwrap();
            broker.try_start()
        });
        broker
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn try_start(&mut self) -> bool {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let program = if Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" };
        let mut child = Command::new(program)
            .arg("-c")
            .arg(self.path("mosquitto.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("mosquitto cannot be started (make setup installs it): {e}"));
        let mut ended = false;
        until("the broker's start", || {
            ended = child.try_wait().unwrap().is_some();
            ended || TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        self.child = (!ended).then_some(child);
        !ended
    }

    /// On the same port, without anything of before.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none());
        until("the broker's start", || self.try_start());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// It keeps its connections and does nothing.
    pub fn hang(&self) {
        signal(self.child.as_ref().unwrap(), Signal::STOP);
    }

    pub fn go_on(&self) {
        signal(self.child.as_ref().unwrap(), Signal::CONT);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a part came out as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Out {
    Pass,
    /// The answer said so.
    Rejected,
    /// The last word on `alive` is not `alive`.
    NotAlive,
    /// No heartbeat for three periods.
    NoHeartbeat,
    /// No answer, or none in time.
    NoAnswer,
    /// An answer that is not understood.
    Unknown,
}

/// All that a receiver was told, with the time. The rules of the contract are in [`Told::decide`] and nowhere else.
#[derive(Debug, Default)]
pub struct Told {
    pub alive: Vec<(Instant, String)>,
    pub heartbeats: Vec<(Instant, Value)>,
    /// In the order of arrival; None: not understood.
    pub answers: Vec<(Instant, u64, Option<Value>)>,
    pub states: Vec<(Instant, Value)>,
    /// Parts that the receiver has seen itself, at its own light barrier.
    pub triggered: BTreeMap<u64, Instant>,
    pub connects: u64,
}

impl Told {
    fn last<T>(list: &[(Instant, T)], at: Instant) -> Option<&(Instant, T)> {
        list[..list.partition_point(|e| e.0 <= at)].last()
    }

    /// Decides on a part at the moment when it reaches the gate.
    pub fn decide(&self, part: u64, at: Instant, period: Duration) -> Out {
        if Told::last(&self.alive, at).is_none_or(|a| a.1 != "alive") {
            return Out::NotAlive;
        }
        if Told::last(&self.heartbeats, at).is_none_or(|h| at - h.0 > 3 * period) {
            return Out::NoHeartbeat;
        }
        // an answer that came before the part was there is not about this part
        let from = self.triggered.get(&part).copied().unwrap_or(at);
        let mut out = Out::NoAnswer;
        for (_, _, answer) in self.answers.iter().filter(|a| a.1 == part && a.0 >= from && a.0 <= at) {
            let Some(answer) = answer.as_ref().filter(|a| a["schema"] == 1) else { return Out::Unknown };
            if answer["verdict"] != "pass" {
                return Out::Rejected;
            }
            out = Out::Pass;
        }
        out
    }
}

/// A receiver in the plant: one line, one broker.
pub struct Receiver {
    pub told: Arc<Mutex<Told>>,
    pub period: Duration,
    /// From the light barrier to the gate.
    pub way: Duration,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    pub fn start(port: u16, prefix: &str, line: &str, period: Duration, way: Duration) -> Receiver {
        let told = Arc::new(Mutex::new(Told::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let topics: BTreeMap<String, QoS> = BTreeMap::from([
            (format!("{prefix}/alive"), QoS::AtLeastOnce),
            (format!("{prefix}/heartbeat"), QoS::AtMostOnce),
            (format!("{prefix}/{line}/verdict"), QoS::AtLeastOnce),
            (format!("{prefix}/{line}/state"), QoS::AtLeastOnce),
        ]);
        let mut options = MqttOptions::new(format!("receiver-{}", uuid::Uuid::now_v7()), "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(5));
        let (into, ended) = (told.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !ended.load(Relaxed) {
                receive(&options, &topics, &into, &ended);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let receiver = Receiver { told, period, way, stop, thread: Some(thread) };
        until("the receiver's subscription", || receiver.told.lock().unwrap().connects > 0);
        receiver
    }

    /// A part passes the light barrier.
    pub fn trigger(&self, part: u64) {
        self.told.lock().unwrap().triggered.insert(part, Instant::now());
    }

    /// What each part that has reached the gate came out as.
    pub fn came_out(&self) -> BTreeMap<u64, Out> {
        let (told, now) = (self.told.lock().unwrap(), Instant::now());
        let gates = told.triggered.iter().map(|(part, at)| (*part, *at + self.way)).filter(|(_, gate)| *gate <= now);
        gates.map(|(part, gate)| (part, told.decide(part, gate, self.period))).collect()
    }

    pub fn with<T>(&self, look: impl FnOnce(&Told) -> T) -> T {
        look(&self.told.lock().unwrap())
    }

    /// The last word on `alive`.
    pub fn alive(&self) -> Option<String> {
        self.with(|t| t.alive.last().map(|a| a.1.clone()))
    }
}

fn receive(options: &MqttOptions, topics: &BTreeMap<String, QoS>, told: &Mutex<Told>, ended: &AtomicBool) {
    let (client, mut connection) = Client::new(options.clone(), 64);
    while !ended.load(Relaxed) {
        let publish = match connection.recv_timeout(Duration::from_secs(1)) {
            Ok(Ok(Event::Incoming(Incoming::ConnAck(_)))) => {
                let filters = topics.iter().map(|(topic, qos)| Filter::new(topic, *qos));
                client.try_subscribe_many(filters).unwrap();
                continue;
            }
            Ok(Ok(Event::Incoming(Incoming::SubAck(_)))) => {
                told.lock().unwrap().connects += 1;
                continue;
            }
            Ok(Ok(Event::Incoming(Incoming::Publish(publish)))) => publish,
            Ok(Ok(_)) | Err(rumqttc::v5::RecvTimeoutError::Timeout) => continue,
            Ok(Err(_)) | Err(_) => return,
        };
        let (at, topic) = (Instant::now(), std::str::from_utf8(&publish.topic).unwrap());
        let mut told = told.lock().unwrap();
        let value = || serde_json::from_slice::<Value>(&publish.payload).ok();
        match topic.rsplit('/').next().unwrap() {
            "alive" => told.alive.push((at, String::from_utf8(publish.payload.to_vec()).unwrap())),
            "heartbeat" => told.heartbeats.extend(value().map(|v| (at, v))),
            "state" => told.states.extend(value().map(|v| (at, v))),
            _ => {
                let properties = publish.properties.clone().unwrap();
                let part = std::str::from_utf8(&properties.correlation_data.unwrap()).unwrap().parse().unwrap();
                let answer = value().filter(|v| v["part"] == part && !publish.retain);
                told.answers.push((at, part, answer));
            }
        }
    }
    let _ = client.try_disconnect();
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `Pass 12, NoAnswer 3`: for what tests print.
pub fn summary(came_out: &BTreeMap<u64, Out>) -> String {
    let mut kinds: BTreeMap<Out, u64> = BTreeMap::new();
    for out in came_out.values() {
        *kinds.entry(*out).or_default() += 1;
    }
    let mut text = String::new();
    for (out, n) in kinds {
        write!(text, "{out:?} {n}, ").unwrap();
    }
    text.trim_end_matches(", ").to_owned()
}
