//! `linesight cameras`: what is attached, each with the line to paste into line.toml and what it can do.

use super::{print_json, print_text};
use crate::capture::aravis;
use crate::error::{Error, Result};
use gstreamer as gst;
use gstreamer::prelude::*;
use serde::Serialize;
use std::collections::BTreeSet;

/// Modes of one camera that are printed as text; `--json` has all.
const MODES_SHOWN: usize = 12;

#[derive(clap::Args)]
pub struct Arguments {
    /// Print the list as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Camera {
    /// `v4l2` or `genicam`.
    kind: &'static str,
    name: String,
    /// For line.toml, and for commands that take a source.
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    /// Formats, sizes and rates.
    modes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    cameras: Vec<Camera>,
    /// Why some kind of camera could not be looked for.
    notes: Vec<String>,
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    gst::init().map_err(|e| Error::missing("GStreamer cannot be initialised").because(e).hint("run `make setup`"))?;
    let mut report = Report { cameras: Vec::new(), notes: Vec::new() };
    v4l2(&mut report);
    genicam(&mut report);
    if a.json {
        print_json(&report)?;
        return Ok(0);
    }
    if report.cameras.is_empty() {
        print_text("no camera found: no v4l2 device, and no GenICam camera answers on the network or USB")?;
        print_text("network cameras with RTSP are not searched for: source = \"rtsp://HOST/PATH\"")?;
    }
    for camera in &report.cameras {
        let serial = camera.serial.as_ref().map(|s| format!(", serial {s}")).unwrap_or_default();
        print_text(&format!("{}{serial}", camera.name))?;
        print_text(&format!("  source = {}", toml::Value::from(camera.source.as_str())))?;
        for mode in camera.modes.iter().take(MODES_SHOWN) {
            print_text(&format!("    {mode}"))?;
        }
        if camera.modes.len() > MODES_SHOWN {
            print_text(&format!("    and {} more (--json lists all)", camera.modes.len() - MODES_SHOWN))?;
        }
        if let Some(note) = &camera.note {
            print_text(&format!("    {note}"))?;
        }
    }
    for note in &report.notes {
        print_text(&format!("note: {note}"))?;
    }
    Ok(0)
}

fn v4l2(report: &mut Report) {
    let monitor = gst::DeviceMonitor::new();
    monitor.add_filter(Some("Video/Source"), None);
    let mut known = BTreeSet::new();
    for device in monitor.devices() {
        let properties = device.properties();
        let path = ["device.path", "api.v4l2.path"]
            .into_iter()
            .find_map(|key| properties.as_ref().and_then(|p| p.get::<String>(key).ok()));
        // providers of other kinds list screens and capture cards, which have no form of source
        let Some(path) = path.filter(|p| p.starts_with("/dev/video")) else { continue };
        if !known.insert(path.clone()) {
            continue;
        }
        report.cameras.push(Camera {
            kind: "v4l2",
            name: device.display_name().to_string(),
            source: format!("v4l2:{path}"),
            serial: properties.and_then(|p| p.get::<String>("device.serial").ok()),
            modes: device.caps().map(|caps| modes(&caps)).unwrap_or_default(),
            note: None,
        });
    }
}

/// Caps as people write them, each once, in the device's order.
fn modes(caps: &gst::Caps) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for s in caps.iter() {
        let text = |key: &str| s.value(key).ok().and_then(|v| v.serialize().ok()).map(|t| t.to_string());
        let format = match s.name().as_str() {
            "image/jpeg" => "mjpeg".to_owned(),
            "video/x-raw" | "video/x-bayer" => text("format").unwrap_or_else(|| s.name().to_string()),
            other => other.to_owned(),
        };
        let format = format.trim_matches('"').to_lowercase();
        let size = match (text("width"), text("height")) {
            (Some(w), Some(h)) => format!(" {w} x {h}"),
            _ => String::new(),
        };
        let rate = text("framerate").map(|r| format!(" at {r} fps")).unwrap_or_default();
        let mode = format!("{format}{size}{}", rate.replace("(fraction)", ""));
        if !list.contains(&mode) {
            list.push(mode);
        }
    }
    list
}

fn genicam(report: &mut Report) {
    let devices = match aravis::devices() {
        Ok(devices) => devices,
        Err(e) => {
            let hint = e.hint_text().map(|h| format!("; {h}")).unwrap_or_default();
            report.notes.push(format!("{e}{hint}"));
            return;
        }
    };
    for d in devices {
        // an address is found at once, a name by asking all networks
        let by = if d.protocol == "GigEVision" && !d.address.is_empty() { &d.address } else { &d.id };
        let (modes, note) = match look(by) {
            Ok(modes) => (modes, None),
            Err(e) => (Vec::new(), Some(format!("it cannot be looked into: {e}"))),
        };
        report.cameras.push(Camera {
            kind: "genicam",
            name: format!("{} {} ({})", d.vendor, d.model, d.protocol),
            source: format!("genicam:{by}"),
            serial: Some(d.serial).filter(|s| !s.is_empty()),
            modes,
            note,
        });
    }
}

fn look(name: &str) -> Result<Vec<String>> {
    let camera = aravis::Camera::open(name)?;
    let asked = |e: gst::glib::Error| Error::failed("it does not say what it can do").because(e);
    let (w, h) = camera.largest().map_err(asked)?;
    let rates = camera.rates().map(|(least, most)| format!(" at {least:.1} to {most:.1} fps")).unwrap_or_default();
    let formats = camera.formats().map_err(asked)?;
    let options = crate::capture::GENICAM_FORMATS;
    Ok(formats
        .iter()
        .map(|f| {
            let ours = options.iter().find(|(_, names)| names.contains(&f.as_str())).map(|o| o.0);
            let as_option = ours.map(|o| format!(" (format = \"{o}\")")).unwrap_or_default();
            format!("{f} up to {w} x {h}{rates}{as_option}")
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_people_write_them() {
        gst::init().unwrap();
        let caps: gst::Caps = "video/x-raw,format=YUY2,width=640,height=480,framerate=30/1;\
             image/jpeg,width=1280,height=720,framerate={(fraction)30/1,(fraction)15/1};\
             image/jpeg,width=1280,height=720,framerate={(fraction)30/1,(fraction)15/1}"
            .parse()
            .unwrap();
        assert_eq!(modes(&caps), ["yuy2 640 x 480 at 30/1 fps", "mjpeg 1280 x 720 at { 30/1, 15/1 } fps"]);
    }
}
