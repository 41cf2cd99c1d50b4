//! What the outputs to the plant count, for the metrics.

use crate::observe::{Extra, Kind};
use crate::respond::{Mqtt, MqttStatus};
use std::sync::Arc;

/// Counters of the MQTT output.
pub(super) fn mqtt_metrics(mqtt: &Arc<Mqtt>) -> Vec<Extra> {
    let one = |name, help, kind, labels: Vec<(String, String)>, read: fn(&MqttStatus) -> f64| {
        let mqtt = mqtt.clone();
        Extra { name, help, kind, labels, read: Box::new(move || read(&mqtt.status())) }
    };
    let none = Vec::new;
    let mut all = vec![
        one("linesight_mqtt_connected", "Whether the broker is connected", Kind::Gauge, none(), |s| {
            f64::from(u8::from(s.connected))
        }),
        one("linesight_mqtt_reconnects", "Connections to the broker after the first", Kind::Counter, none(), |s| {
            s.reconnects as f64
        }),
        one("linesight_mqtt_answers_sent", "Answers written to the connection", Kind::Counter, none(), |s| {
            s.sent as f64
        }),
        one("linesight_mqtt_answers_acked", "Answers that the broker has", Kind::Counter, none(), |s| s.acked as f64),
        one("linesight_mqtt_answers_lost", "Answers whose acknowledgement was cut off", Kind::Counter, none(), |s| {
            s.lost as f64
        }),
    ];
    for reason in mqtt.status().dropped.into_keys() {
        let mqtt = mqtt.clone();
        all.push(Extra {
            name: "linesight_mqtt_answers_dropped",
            help: "Answers that were not sent",
            kind: Kind::Counter,
            labels: vec![("reason".into(), reason.clone())],
            read: Box::new(move || mqtt.status().dropped.get(&reason).copied().unwrap_or_default() as f64),
        });
    }
    all
}
