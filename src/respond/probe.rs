//! A look at the broker, for `linesight doctor`: a connection under an id of its own, without a will and without a message, so
//! that neither the plant nor a linesight that runs notices.

use super::MqttOptions;
use super::link::Link;
use crate::error::{Context, Error, Result};
use std::time::Duration;

/// Time for the connection to stand.
const PATIENCE: Duration = Duration::from_secs(8);

/// Connects, logs in, and leaves; the broker as a person reads it.
pub fn probe(options: &MqttOptions) -> Result<String> {
    let mut plan = options.plan()?;
    plan.client_id.push_str("-doctor");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.failed(|| "cannot look at the broker")?;
    let outcome = runtime.block_on(async {
        match tokio::time::timeout(PATIENCE, Link::visit(&plan)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::missing(format!("\"{}\" does not answer", plan.shown))),
        }
    });
    runtime.shutdown_background();
    outcome.map(|()| plan.shown)
}
