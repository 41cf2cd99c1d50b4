//! The connection to the broker: what the thread "respond-mqtt" does.
//!
//! Invariants:
//! 1. Each connection has a client of its own. What the one before had not got rid of dies with it: a client that were kept
//!    would send it again (test `the_broker_is_killed_and_returns` in tests/respond.rs).
//! 2. A connection whose broker leaves a message without acknowledgement for [`ACK_TIMEOUT`] is given up: what is written
//!    after that would arrive late (test `a_broker_that_hangs_delivers_no_stale_pass`).
//! 3. At most as many messages are on their way as the broker takes at once; the others wait where they can still expire.
//! 4. The client's `poll` is never cancelled: it would lose what it is about to write. It is stepped by a future that is
//!    kept until it is ready ([`step`]).

use super::mqtt::{Dropped, HEARTBEATS_MISSED, Shared};
use super::options::Plan;
use super::{Answer, SCHEMA};
use crate::error::{Error, Result};
use crate::event::LineState;
use jiff::Timestamp;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, DisconnectReasonCode, LastWill, LastWillProperties, PubAckReason, PublishProperties,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, Incoming, StateError};
use rumqttc::{NetworkOptions, Outgoing, TlsConfiguration, Transport};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use uuid::Uuid;

/// Longest wait for an acknowledgement.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after a failure; it doubles up to [`SLOWEST_PAUSE`], and is up to a half shorter by chance.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const SLOWEST_PAUSE: Duration = Duration::from_secs(2);
/// A connection must stand within this many seconds.
const CONNECT_TIMEOUT_S: u64 = 5;
/// A silent connection is asked for life this often: the shortest that the client library takes.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Most messages on their way; brokers mostly take fewer at once.
const IN_FLIGHT: u16 = 256;
/// Room in the client's own channel, which is emptied at once: messages in flight, heartbeats and the states of lines.
const CLIENT_QUEUE: usize = 1024;
/// A line's part counter is published at most this often.
const COUNTER_EVERY: Duration = Duration::from_secs(1);

/// An answer on its way to the thread.
#[derive(Debug)]
pub(super) struct Handed {
    pub topic: Arc<str>,
    pub payload: Vec<u8>,
    pub part: u64,
    pub captured: std::time::Instant,
    pub expires: std::time::Instant,
}

#[derive(Serialize)]
struct VerdictMessage<'a> {
    schema: u32,
    #[serde(flatten)]
    answer: &'a Answer,
}

#[derive(Serialize)]
struct StateMessage<'a> {
    schema: u32,
    line: &'a str,
    state: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    next_part: u64,
    at: Timestamp,
}

#[derive(Serialize)]
struct HeartbeatMessage<'a> {
    schema: u32,
    run: Uuid,
    seq: u64,
    at: Timestamp,
    period_ms: u64,
    lines: BTreeMap<&'a str, &'static str>,
}

fn json<T: Serialize>(message: &T) -> Vec<u8> {
    // these are structs of plain values; what cannot be read is a reject at the receiver
    serde_json::to_vec(message).unwrap_or_default()
}

pub(super) fn payload(answer: &Answer) -> Vec<u8> {
    json(&VerdictMessage { schema: SCHEMA, answer })
}

/// Whole seconds, at least one: MQTT has no shorter ones.
fn seconds(time: Duration) -> u32 {
    time.as_millis().div_ceil(1000).max(1) as u32
}

type Step = Pin<Box<dyn Future<Output = (Box<EventLoop>, Result<Event, ConnectionError>)>>>;

async fn step(mut events: Box<EventLoop>) -> (Box<EventLoop>, Result<Event, ConnectionError>) {
    let event = events.poll().await;
    (events, event)
}

/// How a connection ended.
enum End {
    /// Something to try again after.
    Lost(Error),
    /// On demand; true when the broker has everything.
    Stopped(bool),
}

/// Connects, serves, connects again, until it is told to stop. True when everything was acknowledged.
pub(super) async fn run(
    plan: Plan,
    shared: Arc<Shared>,
    mut answers: mpsc::Receiver<Handed>,
    mut stop: mpsc::Receiver<std::time::Instant>,
) -> bool {
    let run = Uuid::now_v7();
    let mut beats = 0;
    let mut pause = FIRST_PAUSE;
    loop {
        // without a connection there is nobody to say anything to: the broker has already published the will
        let opened = tokio::select! {
            opened = Link::open(&plan) => opened,
            _ = stop.recv() => return false,
        };
        let error = match opened {
            Err(error) => error,
            Ok(mut link) => {
                let since = Instant::now();
                drop_waiting(&shared, &mut answers);
                let before = shared.counts().connects;
                shared.connection_stands();
                tracing::info!(broker = plan.shown, reconnects = before, "connected to the MQTT broker");
                let end = link.serve(&plan, &shared, &mut answers, &mut stop, run, &mut beats).await;
                link.settle(&shared);
                if since.elapsed() > SLOWEST_PAUSE {
                    pause = FIRST_PAUSE;
                }
                match end {
                    End::Lost(error) => error,
                    End::Stopped(clean) => {
                        shared.connected.store(false, Relaxed);
                        answers.close();
                        drop_waiting(&shared, &mut answers);
                        return clean;
                    }
                }
            }
        };
        if shared.connection_is_away(&error) {
            let hint = error.hint_text().unwrap_or_default();
            tracing::warn!(hint, "{error}; answers are dropped until the broker is back: every part is a reject");
        }
        drop_waiting(&shared, &mut answers);
        tokio::select! {
            () = sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())) => {}
            _ = stop.recv() => return false,
        }
        pause = (2 * pause).min(SLOWEST_PAUSE);
    }
}

/// Nothing that waited is sent later.
fn drop_waiting(shared: &Shared, answers: &mut mpsc::Receiver<Handed>) {
    while answers.try_recv().is_ok() {
        shared.drop_answer(Dropped::Away);
    }
}

/// What a message that was given to the client is.
#[derive(Debug, Clone, Copy)]
enum What {
    Verdict { captured: std::time::Instant },
    Other { qos: QoS },
}

/// Where the end stands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Serving,
    /// No new answers; those that wait are sent and acknowledged.
    Draining,
    /// `stopped` is on its way.
    Farewell,
    /// DISCONNECT is on its way.
    Leaving,
}

struct Said {
    state: LineState,
    next_part: u64,
    at: Instant,
}

/// One connection.
pub(super) struct Link {
    client: AsyncClient,
    step: Step,
    /// Given to the client and not yet written, in order.
    unwritten: VecDeque<(What, Instant)>,
    /// Written and not yet acknowledged, in order, by packet id.
    unacked: VecDeque<(u16, What, Instant)>,
    limit: usize,
    /// What receivers know of each line.
    said: BTreeMap<String, Said>,
    left: bool,
}

impl Link {
    fn options(plan: &Plan) -> Result<rumqttc::v5::MqttOptions> {
        let o = &plan.options;
        let mut options = rumqttc::v5::MqttOptions::new(&plan.client_id, &plan.host, plan.port);
        if let Some(username) = &o.username {
            options.set_credentials(username, plan.password()?.unwrap_or_default());
        }
        if plan.tls.is_some() {
            // files may have been renewed since
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(plan.tls_config()?)));
        }
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        options.set_connection_timeout(CONNECT_TIMEOUT_S);
        options.set_keep_alive(KEEP_ALIVE);
        // no session outlives its connection: nothing is kept for later on either side
        options.set_clean_start(true);
        options.set_outgoing_inflight_upper_limit(IN_FLIGHT);
        Ok(options)
    }

    /// Connects and leaves: no will, no message.
    pub async fn visit(plan: &Plan) -> Result<()> {
        let (client, events) = AsyncClient::new(Self::options(plan)?, CLIENT_QUEUE);
        let (events, first) = step(Box::new(events)).await;
        match first {
            Ok(Event::Incoming(Incoming::ConnAck(_))) => {}
            Ok(other) => return Err(away(plan).because(format!("{other:?} came before CONNACK"))),
            Err(e) => return Err(explain(plan, e)),
        }
        // how it takes leave is of no matter: nothing hangs on it
        if client.try_disconnect().is_ok() {
            let _ = step(events).await;
        }
        Ok(())
    }

    async fn open(plan: &Plan) -> Result<Link> {
        let mut options = Self::options(plan)?;
        let will = LastWillProperties {
            delay_interval: Some(0),
            payload_format_indicator: Some(1),
            message_expiry_interval: None,
            content_type: Some("text/plain".into()),
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        };
        options.set_last_will(LastWill::new(alive_topic(plan), "dead", QoS::AtLeastOnce, true, Some(will)));
        let (client, events) = AsyncClient::new(options, CLIENT_QUEUE);
        let (events, first) = step(Box::new(events)).await;
        let connack = match first {
            Ok(Event::Incoming(Incoming::ConnAck(connack))) => connack,
            Ok(other) => return Err(away(plan).because(format!("{other:?} came before CONNACK"))),
            Err(e) => return Err(explain(plan, e)),
        };
        let limit = limit(plan, &connack)?;
        let (unwritten, unacked) = (VecDeque::new(), VecDeque::new());
        Ok(Link { client, step: Box::pin(step(events)), unwritten, unacked, limit, said: BTreeMap::new(), left: false })
    }

    async fn serve(
        &mut self,
        plan: &Plan,
        shared: &Shared,
        answers: &mut mpsc::Receiver<Handed>,
        stop: &mut mpsc::Receiver<std::time::Instant>,
        run: Uuid,
        beats: &mut u64,
    ) -> End {
        if !self.say(alive_topic(plan), "alive".into(), QoS::AtLeastOnce, true, None) {
            return End::Lost(away(plan));
        }
        let mut tick = interval(plan.heartbeat());
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut phase = Phase::Serving;
        let mut patience = Instant::now();
        let mut drained = false;
        loop {
            let idle = self.unwritten.is_empty() && self.unacked.is_empty();
            match phase {
                Phase::Draining if drained && idle => {
                    for (name, line) in shared.lines() {
                        let next = line.next_part.load(Relaxed);
                        self.say_state(plan, &name, LineState::Stopped, None, next);
                    }
                    self.say(alive_topic(plan), "stopped".into(), QoS::AtLeastOnce, true, None);
                    phase = Phase::Farewell;
                }
                Phase::Farewell if idle => {
                    if self.client.try_disconnect().is_err() {
                        return End::Stopped(false);
                    }
                    phase = Phase::Leaving;
                }
                Phase::Leaving if self.left => return End::Stopped(true),
                _ => {}
            }
            let oldest = self.unacked.front().map(|m| m.2).into_iter().chain(self.unwritten.front().map(|m| m.1)).min();
            let overdue = oldest.map(|at| at + ACK_TIMEOUT);
            // verdicts in flight only: heartbeats are not acknowledged
            let room = self.unwritten.len() + self.unacked.len() < self.limit;
            tokio::select! {
                biased;
                (events, event) = &mut self.step => {
                    match event {
                        Ok(event) => if let Err(e) = self.note(plan, shared, event) { return End::Lost(e) },
                        Err(_) if phase == Phase::Leaving => return End::Stopped(self.left),
                        Err(e) => return End::Lost(explain(plan, e)),
                    }
                    self.step = Box::pin(step(events));
                }
                _ = tick.tick(), if matches!(phase, Phase::Serving | Phase::Draining) => {
                    self.heartbeat(plan, shared, run, *beats);
                    *beats += 1;
                }
                end = stop.recv(), if phase == Phase::Serving => match end {
                    Some(end) => {
                        patience = end.into();
                        phase = Phase::Draining;
                        answers.close();
                    }
                    None => return End::Stopped(false),
                },
                () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {
                    let late = format!("a message was not acknowledged within {} s", ACK_TIMEOUT.as_secs());
                    return End::Lost(away(plan).because(late));
                }
                () = sleep_until(patience), if phase != Phase::Serving => return End::Stopped(false),
                answer = answers.recv(), if room && !drained => match answer {
                    Some(answer) => self.give(shared, answer),
                    None => drained = true,
                },
            }
        }
    }

    fn give(&mut self, shared: &Shared, answer: Handed) {
        let left = answer.expires.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return shared.drop_answer(Dropped::Expired);
        }
        let properties = PublishProperties {
            payload_format_indicator: Some(1),
            message_expiry_interval: Some(seconds(left)),
            correlation_data: Some(answer.part.to_string().into_bytes().into()),
            content_type: Some("application/json".into()),
            ..PublishProperties::default()
        };
        let topic = answer.topic.to_string();
        match self.client.try_publish_with_properties(topic, QoS::AtLeastOnce, false, answer.payload, properties) {
            Ok(()) => self.unwritten.push_back((What::Verdict { captured: answer.captured }, Instant::now())),
            // the client's channel is larger than what may be in flight
            Err(_) => shared.drop_answer(Dropped::Full),
        }
    }

    fn say(&mut self, topic: String, payload: Vec<u8>, qos: QoS, retain: bool, expires: Option<Duration>) -> bool {
        let properties = PublishProperties {
            payload_format_indicator: Some(1),
            message_expiry_interval: expires.map(seconds),
            content_type: Some(if payload.starts_with(b"{") { "application/json" } else { "text/plain" }.into()),
            ..PublishProperties::default()
        };
        let taken = self.client.try_publish_with_properties(topic, qos, retain, payload, properties).is_ok();
        if taken {
            self.unwritten.push_back((What::Other { qos }, Instant::now()));
        }
        taken
    }

    fn say_state(&mut self, plan: &Plan, line: &str, state: LineState, reason: Option<String>, next_part: u64) {
        let message =
            StateMessage { schema: SCHEMA, line, state: state.as_str(), reason, next_part, at: Timestamp::now() };
        if self.say(format!("{}/{line}/state", plan.prefix), json(&message), QoS::AtLeastOnce, true, None) {
            self.said.insert(line.to_owned(), Said { state, next_part, at: Instant::now() });
        }
    }

    /// The heartbeat, and the states that have changed.
    fn heartbeat(&mut self, plan: &Plan, shared: &Shared, run: Uuid, seq: u64) {
        let lines = shared.lines();
        let states: BTreeMap<&str, LineState> = lines.iter().map(|(n, l)| (n.as_str(), l.status.state())).collect();
        let message = HeartbeatMessage {
            schema: SCHEMA,
            run,
            seq,
            at: Timestamp::now(),
            period_ms: plan.options.heartbeat_ms,
            lines: states.iter().map(|(n, s)| (*n, s.as_str())).collect(),
        };
        let good_for = plan.heartbeat() * HEARTBEATS_MISSED;
        self.say(format!("{}/heartbeat", plan.prefix), json(&message), QoS::AtMostOnce, false, Some(good_for));
        for (name, line) in &lines {
            let (state, next_part) = (states[name.as_str()], line.next_part.load(Relaxed));
            let news = self.said.get(name).is_none_or(|said| {
                said.state != state || (said.next_part != next_part && said.at.elapsed() >= COUNTER_EVERY)
            });
            if news {
                self.say_state(plan, name, state, line.status.snapshot().reason, next_part);
            }
        }
        let gone: Vec<(String, u64)> =
            self.said.iter().filter(|s| !lines.contains_key(s.0)).map(|(n, s)| (n.clone(), s.next_part)).collect();
        for (name, next_part) in gone {
            self.say_state(plan, &name, LineState::Stopped, None, next_part);
            self.said.remove(&name);
        }
    }

    fn note(&mut self, plan: &Plan, shared: &Shared, event: Event) -> Result<()> {
        match event {
            Event::Outgoing(Outgoing::Publish(id)) => match self.unwritten.pop_front() {
                Some((what, at)) => {
                    if let What::Verdict { captured } = what {
                        shared.handed_to_socket(captured);
                    }
                    if !matches!(what, What::Other { qos: QoS::AtMostOnce }) {
                        self.unacked.push_back((id, what, at));
                    }
                }
                None => return Err(away(plan).because("the client wrote a message that nobody gave to it")),
            },
            // acknowledgements out of order: the client would hold its messages back
            Event::Outgoing(Outgoing::AwaitAck(id)) => {
                return Err(away(plan).because(format!("the broker left message {id} without acknowledgement")));
            }
            Event::Outgoing(Outgoing::Disconnect) => self.left = true,
            Event::Incoming(Incoming::PubAck(ack)) => {
                // nearly always the first
                let Some(at) = self.unacked.iter().position(|m| m.0 == ack.pkid) else { return Ok(()) };
                let Some((_, what, _)) = self.unacked.remove(at) else { return Ok(()) };
                match (what, ack.reason) {
                    (What::Verdict { captured }, PubAckReason::Success) => shared.acknowledged(captured, true),
                    (What::Verdict { captured }, PubAckReason::NoMatchingSubscribers) => {
                        shared.acknowledged(captured, false);
                    }
                    (What::Verdict { .. }, reason) => {
                        let mut counts = shared.counts();
                        counts.refused += 1;
                        counts.last_error =
                            Some(format!("the broker \"{}\" refuses a verdict: {reason:?}", plan.shown));
                    }
                    (What::Other { .. }, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) => {}
                    (What::Other { .. }, reason) => {
                        shared.counts().last_error =
                            Some(format!("the broker \"{}\" refuses a state: {reason:?}", plan.shown));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The connection is over: counts what it leaves.
    fn settle(&mut self, shared: &Shared) {
        for (what, _) in self.unwritten.drain(..) {
            if matches!(what, What::Verdict { .. }) {
                shared.drop_answer(Dropped::Away);
            }
        }
        let lost = self.unacked.drain(..).filter(|m| matches!(m.1, What::Verdict { .. })).count();
        shared.counts().lost += lost as u64;
    }
}

fn alive_topic(plan: &Plan) -> String {
    format!("{}/alive", plan.prefix)
}

/// How many messages the broker takes at once; refuses one that cannot keep the contract.
fn limit(plan: &Plan, connack: &ConnAck) -> Result<usize> {
    let properties = connack.properties.as_ref();
    if properties.and_then(|p| p.max_qos) == Some(0) {
        return Err(Error::missing(format!("the broker \"{}\" takes no messages of QoS 1", plan.shown))
            .hint("allow QoS 1 at the broker"));
    }
    if properties.and_then(|p| p.retain_available) == Some(0) {
        return Err(Error::missing(format!("the broker \"{}\" keeps no retained messages", plan.shown))
            .hint("allow retained messages at the broker"));
    }
    Ok(usize::from(properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX).clamp(1, IN_FLIGHT)))
}

fn away(plan: &Plan) -> Error {
    Error::missing(format!("no connection to the broker \"{}\"", plan.shown))
        .hint("is it running, and is host and port right?")
}

fn explain(plan: &Plan, error: ConnectionError) -> Error {
    match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
        ) => {
            let login = match (&plan.options.username, &plan.options.password_file) {
                (Some(user), Some(file)) => {
                    format!("the user is \"{user}\", the password is what \"{}\" holds at each attempt", file.display())
                }
                (Some(user), None) => format!("the user is \"{user}\", no password file is given"),
                _ => "no user name is given".into(),
            };
            Error::missing(format!("the broker \"{}\" refuses user name or password", plan.shown)).hint(login)
        }
        ConnectionError::ConnectionRefused(code) => {
            Error::missing(format!("the broker \"{}\" refuses the connection: {code:?}", plan.shown))
                .hint("its log says why; MQTT 5 is needed")
        }
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code: DisconnectReasonCode::SessionTakenOver,
            ..
        }) => Error::missing(format!(
            "another client has come to the broker \"{}\" as \"{}\"",
            plan.shown, plan.client_id
        ))
        .hint("each client needs an id of its own, and each machine a topic prefix of its own"),
        ConnectionError::Timeout(_) => away(plan).because(format!("no answer within {CONNECT_TIMEOUT_S} s")),
        ConnectionError::Io(e) => away(plan).because(e),
        ConnectionError::Tls(e) => Error::missing(format!("no encrypted connection to the broker \"{}\"", plan.shown))
            .because(e)
            .hint("its certificate must be for this host and come from the ca file"),
        // mosquitto 2.0 does not say which
        ConnectionError::MqttState(StateError::ConnectionAborted) => away(plan)
            .because(format!("the broker closed it (it ends, or another client has come as \"{}\")", plan.client_id)),
        other => away(plan).because(other),
    }
}
