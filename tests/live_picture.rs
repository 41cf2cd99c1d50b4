//! Live pictures: a line sends them to the review server while somebody looks, and only then.

#![allow(clippy::unwrap_used)]

#[path = "support/plant.rs"]
mod plant;
mod support;

use linesight::review;
use plant::{Plant, line};
use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::bad_server::{Act, Server};
use support::*;

fn plant(url: &str, more: &str) -> Plant {
    let source = asset("sample-run.mp4").display().to_string();
    let lines = line("a-b", &source, washer(), &format!("repeat = true\n{more}"));
    let mut plant = Plant::new(&format!("[review]\nurl = \"{url}\""), &lines);
    plant.start();
    plant
}

/// The next picture of a stream.
fn next(stream: &mut impl BufRead) -> image::DynamicImage {
    let mut length = None;
    loop {
        let mut header = String::new();
        assert!(stream.read_line(&mut header).unwrap() > 0, "the stream ended");
        match header.trim_end() {
            "" if length.is_some() => break,
            header => length = header.strip_prefix("content-length: ").map(|n| n.parse::<usize>().unwrap()).or(length),
        }
    }
    let mut jpeg = vec![0; length.unwrap()];
    stream.read_exact(&mut jpeg).unwrap();
    image::load_from_memory_with_format(&jpeg, image::ImageFormat::Jpeg).unwrap()
}

/// A browser sees the line as it is, small; a line that does not want it is not shown.
#[test]
fn somebody_looks_at_a_line() {
    let data = folder();
    let config = review::Config::new(data.path(), ([127, 0, 0, 1], 0).into());
    let server = review::Server::start(config).unwrap();
    let client = reqwest::blocking::Client::builder().timeout(LONG).build().unwrap();
    let look = || client.get(format!("{}/api/v1/lines/a-b/live.mjpeg", server.url())).send().unwrap();
    let mut hidden = plant(&server.url(), "");
    hidden.until("frames", |p| p.counter("a-b", "frames") > 30);
    assert_eq!(look().status(), 404);
    hidden.stop();
    let mut plant = plant(&server.url(), "live_picture = true");
    let since = Instant::now();
    let stream = loop {
        let answer = look();
        if answer.status() == 200 {
            break answer;
        }
        assert!(since.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(stream.headers()["content-type"], "multipart/x-mixed-replace; boundary=picture");
    let mut stream = BufReader::new(stream);
    let pictures: Vec<_> = (0..3).map(|_| next(&mut stream)).collect();
    for picture in &pictures {
        assert!(picture.width() <= 640 && picture.width() > 300, "{}", picture.width());
    }
    assert!(pictures[0] != pictures[2], "the picture moves");
    drop(stream);
    // whoever asks in the line's place is told that nobody looks any more
    plant.until("the end of looking", |_| {
        client.get(format!("{}/api/v1/lines/a-b/picture", server.url())).send().unwrap().status() == 204
    });
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}");
}

#[test]
fn a_line_sends_only_while_somebody_looks() {
    let (questions, pictures) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (asked, sent) = (questions.clone(), pictures.clone());
    let server = Server::start(move |request| match request.line.split(' ').next().unwrap() {
        "GET" if request.line.contains("/picture?hold=") => match asked.fetch_add(1, Relaxed) {
            1 => Act::Answer(200, "", "{\"fps\": 5.0}"),
            _ => Act::Answer(204, "", ""),
        },
        "PUT" => {
            let mut sent = sent.lock().unwrap();
            sent.push(Instant::now());
            if sent.len() < 4 { Act::Answer(200, "", "{\"fps\": 1000.0}") } else { Act::Answer(204, "", "") }
        }
        _ => Act::Answer(503, "", ""),
    });
    let mut plant = plant(&server.url(), "live_picture = true");
    plant.until("four pictures", |_| pictures.lock().unwrap().len() == 4);
    let until = questions.load(Relaxed) + 2;
    plant.until("more questions", |_| questions.load(Relaxed) > until);
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}");
    let sent = pictures.lock().unwrap();
    assert_eq!(sent.len(), 4, "nobody looked any more");
    let longest = sent[3] - sent[0];
    assert!(longest >= Duration::from_millis(500), "no more than five a second, whatever is wanted: {longest:?}");
}

#[test]
fn a_silent_server_does_not_hold_it() {
    let server = Server::start(|request| match request.line.contains("/picture") {
        true => Act::Silent,
        false => Act::Answer(503, "", ""),
    });
    let mut plant = plant(&server.url(), "live_picture = true");
    plant.until("frames", |p| p.counter("a-b", "frames") > 30);
    let since = Instant::now();
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}");
    // the server would hold the question for 15 s, and for ever
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}
