//! The network by itself, with the same requests as in a line: what `bench` measures beside the whole line.

use super::Network;
use super::measure::{Latency, Recorder};
use crate::detect::backbone::Request;
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Runs `count` inferences with all of the network's requests in flight. Each request gets one of the `inputs` and keeps it:
/// filling them is not the network's work.
pub fn infer_only(network: Network, inputs: &[&[u8]], count: u64) -> Result<()> {
    let mut inputs = inputs.iter().cycle();
    let mut idle: Vec<Request> = network.requests;
    let mut running: VecDeque<Request> = VecDeque::with_capacity(idle.len());
    for _ in 0..count {
        let mut request = match idle.pop() {
            Some(mut request) => {
                if let Some(pixels) = inputs.next() {
                    request.input()?.copy_from_slice(pixels);
                }
                request
            }
            None => {
                let mut oldest = running.pop_front().ok_or_else(|| Error::failed("the network has no request"))?;
                oldest.wait()?;
                oldest
            }
        };
        request.start()?;
        running.push_back(request);
    }
    for mut request in running {
        request.wait()?;
    }
    Ok(())
}

/// Times of `count` single inferences, one every `period`, each from its start until its result is there: what a line at
/// that rate cannot do without.
pub fn infer_paced(network: Network, inputs: &[&[u8]], count: u64, period: Duration) -> Result<Latency> {
    let mut inputs = inputs.iter().cycle();
    let mut requests = network.requests;
    let request = requests.first_mut().ok_or_else(|| Error::failed("the network has no request"))?;
    let times = Recorder::new();
    let mut due = Instant::now();
    for _ in 0..count {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += period;
        if let Some(pixels) = inputs.next() {
            request.input()?.copy_from_slice(pixels);
        }
        let started = Instant::now();
        request.start()?;
        request.wait()?;
        times.record(started.elapsed());
    }
    Ok(times.latency())
}
