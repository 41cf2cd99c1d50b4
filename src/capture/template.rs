//! From a source and its options to the text of its pipeline: the templates in `pipelines/`, filled in.

use super::Source;
use super::options::{CameraOptions, DEFAULT_LATENCY_MS, Decode, Protocol, V4L2_FORMATS};
use super::source::unescape;
use crate::error::{Error, Result};
use gstreamer as gst;
use gstreamer::glib;
use gstreamer::prelude::*;
use std::path::Path;
use std::sync::Once;

const FILE: &str = include_str!("../../pipelines/file.launch");
const IMAGE: &str = include_str!("../../pipelines/image.launch");
const WATCH: &str = include_str!("../../pipelines/watch.launch");
const WHOLE_IMAGE: &str = include_str!("../../pipelines/whole-image.launch");
const URI: &str = include_str!("../../pipelines/uri.launch");
const RTSP: &str = include_str!("../../pipelines/rtsp.launch");
const V4L2: &str = include_str!("../../pipelines/v4l2.launch");
const GENICAM: &str = include_str!("../../pipelines/genicam.launch");
const PIPELINE: &str = include_str!("../../pipelines/pipeline.launch");

/// A pipeline as text, and what goes with it.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) launch: String,
    /// What messages call the source.
    pub(super) name: String,
    /// What no message may hold.
    pub(super) secrets: Vec<String>,
    /// Element, property and value that must not stand in the text.
    pub(super) properties: Vec<(&'static str, &'static str, glib::SendValue)>,
    /// Whether the text is the user's.
    pub(super) is_users: bool,
    /// Frames that may wait at the end.
    pub(super) queue: u32,
}

/// The template without comments, its keys replaced.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let text = template.lines().filter(|l| !l.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    // values are not searched for keys
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text.as_str();
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match values.iter().find(|(key, _)| rest.starts_with(key)) {
            Some((key, value)) => {
                out.push_str(value);
                rest = &rest[key.len()..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Has decodebin leave out hardware decoders, or not.
fn decoded(launch: String, software: bool) -> String {
    let bins = ["uridecodebin name=decode", "decodebin name=decode"];
    match bins.iter().find(|bin| software && launch.contains(*bin)) {
        Some(bin) => launch.replace(bin, &format!("{bin} force-sw-decoders=true")),
        None => launch,
    }
}

fn text(launch: String, name: String, queue: u32) -> Text {
    Text { launch, name, secrets: Vec::new(), properties: Vec::new(), is_users: false, queue }
}

/// A recording, or one image.
pub(super) fn file(path: &Path, software: bool) -> Result<Text> {
    of_path(if needs_all(path) { WHOLE_IMAGE } else { FILE }, path, software)
}

/// An image of a folder.
pub(super) fn image(path: &Path, watched: bool) -> Result<Text> {
    let template = match (needs_all(path), watched) {
        (true, _) => WHOLE_IMAGE,
        (false, true) => WATCH,
        (false, false) => IMAGE,
    };
    of_path(template, path, false)
}

fn of_path(template: &str, path: &Path, software: bool) -> Result<Text> {
    let location = path.to_str().ok_or_else(|| {
        Error::usage(format!("path \"{}\" is not valid UTF-8", path.display())).hint("rename the file or its folder")
    })?;
    let launch = fill(template, &[("{location}", &quote(location))]);
    Ok(text(decoded(launch, software), path.display().to_string(), 4))
}

/// Anything with an address; also the live ones.
pub(super) fn stream(source: &Source, camera: &CameraOptions, queue: u32, software: bool) -> Result<Text> {
    let number = queue.to_string();
    let mut all = match source {
        Source::Uri(uri) => {
            text(decoded(fill(URI, &[("{uri}", &quote(uri)), ("{queue}", &number)]), software), source.name(), queue)
        }
        Source::Rtsp(uri) => rtsp(uri, camera, &number, software, text(String::new(), source.name(), queue))?,
        Source::V4l2(device) => text(decoded(v4l2(device, camera, &number), software), source.name(), queue),
        Source::Pipeline(user) => {
            let has_end = user.split_whitespace().any(|w| w == "name=frames" || w == "name=\"frames\"");
            let launch = match has_end {
                true => user.clone(),
                false => fill(PIPELINE, &[("{text}", user), ("{queue}", &number)]),
            };
            Text { is_users: true, ..text(launch, source.name(), queue) }
        }
        Source::Genicam(_) | Source::File(_) | Source::Folder { .. } | Source::Watch(_) => {
            return Err(Error::failed(format!("\"{}\" has no template of this kind", source.name())));
        }
    };
    all.secrets.extend(source.secrets());
    Ok(all)
}

/// A camera that is opened already, and is Bayer or not.
pub(super) fn genicam(source: &Source, is_bayer: bool, queue: u32) -> Text {
    let debayer = if is_bayer { "! bayer2rgb" } else { "" };
    let launch = fill(GENICAM, &[("{debayer}", debayer), ("{queue}", &queue.to_string())]);
    text(launch, source.name(), queue)
}

fn rtsp(uri: &str, camera: &CameraOptions, queue: &str, software: bool, rest: Text) -> Result<Text> {
    let mut address = url::Url::parse(uri).map_err(|e| Error::usage(format!("an RTSP source is not valid: {e}")))?;
    let mut credentials = camera.credentials()?;
    if credentials.is_none() && !address.username().is_empty() {
        credentials = Some(super::options::Credentials {
            user: unescape(address.username()),
            password: unescape(address.password().unwrap_or_default()),
        });
    }
    // an address without a host was refused before
    let _ = address.set_username("");
    let _ = address.set_password(None);
    let protocol = match camera.protocol.unwrap_or(Protocol::Tcp) {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let latency = camera.latency_ms.unwrap_or(DEFAULT_LATENCY_MS).to_string();
    let values = [
        ("{location}", quote(address.as_str())),
        ("{protocol}", protocol.to_owned()),
        ("{latency}", latency),
        ("{queue}", queue.to_owned()),
    ];
    let launch = fill(RTSP, &values.each_ref().map(|(key, value)| (*key, value.as_str())));
    let mut text = Text { launch: decoded(launch, software), ..rest };
    if let Some(c) = credentials {
        if !c.password.is_empty() {
            text.secrets.push(c.password.clone());
        }
        text.properties.push(("source", "user-id", c.user.to_send_value()));
        text.properties.push(("source", "user-pw", c.password.to_send_value()));
    }
    Ok(text)
}

fn v4l2(device: &str, camera: &CameraOptions, queue: &str) -> String {
    let mut size = String::new();
    if let Some(w) = camera.width {
        size.push_str(&format!(",width={w}"));
    }
    if let Some(h) = camera.height {
        size.push_str(&format!(",height={h}"));
    }
    if let Some(f) = camera.fps.and_then(gst::Fraction::approximate_f64) {
        size.push_str(&format!(",framerate={}/{}", f.numer(), f.denom()));
    }
    let format = camera.format.as_ref().and_then(|f| V4L2_FORMATS.iter().find(|(name, _)| name == f)).map(|f| f.1);
    let caps = match format {
        Some(format) => format!("{format}{size}"),
        None => format!("video/x-raw{size};image/jpeg{size}"),
    };
    let mut controls = Vec::new();
    if let Some(us) = camera.exposure_us {
        // the driver's unit is 100 us; 1 is manual
        let units = (us / 100.0).round().max(1.0);
        controls
            .push(format!("auto_exposure=1,exposure_auto=1,exposure_time_absolute={units},exposure_absolute={units}"));
    }
    if let Some(gain) = camera.gain {
        controls.push(format!("autogain=0,gain={}", gain.round()));
    }
    let controls = match controls.is_empty() {
        true => String::new(),
        false => format!("extra-controls={}", quote(&format!("c,{}", controls.join(",")))),
    };
    let is_bayer = format.is_some_and(|f| f.starts_with("video/x-bayer"));
    let decode = if is_bayer { "bayer2rgb" } else { "decodebin name=decode caps=\"video/x-raw\"" };
    fill(
        V4L2,
        &[
            ("{device}", &quote(device)),
            ("{controls}", &controls),
            ("{caps}", &quote(&caps)),
            ("{decode}", decode),
            ("{queue}", queue),
        ],
    )
}

/// Prefers the graphics unit's decoders for video whose decoding is defined to the bit, so that a model taught in software
/// sees the same pictures; JPEG is left to software. Done once for the process.
pub(super) fn prefer_hardware() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for factory in video_decoders(gst::Rank::NONE).iter() {
            let name = factory.name();
            let ours = ["va", "vaapi", "qsv", "msdk"].iter().any(|p| name.starts_with(p));
            let exact = ["h264", "h265", "vp9", "av1"].iter().any(|c| name.contains(c));
            if ours && exact && is_hardware(factory) {
                factory.set_rank(gst::Rank::PRIMARY + 64);
            }
        }
    });
}

/// Loads the plugins that a source needs, which GStreamer would do as its pipeline is made, and when the first packets are there:
/// libav's takes tenths of a second on a small PC, in which the frames of a camera that plays already pile up, all of them late.
/// H.264 and H.265 stand for all video: on most systems one plugin has the decoders of them all. What is loaded stays so, and costs
/// nothing again.
pub(super) fn load_elements(source: &Source) {
    for factory in elements(source) {
        // what cannot be loaded is told by the pipeline that needs it
        if let Err(e) = factory.load() {
            tracing::debug!(element = %factory.name(), "cannot be loaded: {e}");
        }
    }
}

/// Elements of the plugins that most sources like this one need: of the decoders of video those that decodebin tries first, the
/// CPU's also beside other hardware's, for who wants it and for when that fails.
fn elements(source: &Source) -> Vec<gst::ElementFactory> {
    let mut names = vec!["decodebin", "videoconvert", "appsink"];
    if source.is_decoded() && source.is_live() {
        names.extend(["udpsrc", "rtpjitterbuffer", "rtph264depay", "h264parse"]);
    }
    let mut found: Vec<_> = names.into_iter().filter_map(gst::ElementFactory::find).collect();
    if source.is_decoded() {
        let (hardware, software): (Vec<_>, Vec<_>) =
            video_decoders(gst::Rank::MARGINAL).into_iter().partition(is_hardware);
        for media in ["video/x-h264", "video/x-h265"] {
            let caps = gst::Caps::new_empty_simple(media);
            let first = |of: &[gst::ElementFactory]| {
                of.iter().filter(|f| f.can_sink_any_caps(&caps)).max_by_key(|f| f.rank()).cloned()
            };
            found.extend([first(&hardware), first(&software)].into_iter().flatten());
        }
    }
    found
}

fn video_decoders(at_least: gst::Rank) -> glib::List<gst::ElementFactory> {
    let kind = gst::ElementFactoryType::DECODER | gst::ElementFactoryType::MEDIA_VIDEO;
    gst::ElementFactory::factories_with_type(kind, at_least)
}

/// Names of the video decoders that use a graphics unit. GStreamer has been started before.
pub fn hardware_decoders() -> Vec<String> {
    video_decoders(gst::Rank::MARGINAL).into_iter().filter(is_hardware).map(|d| d.name().to_string()).collect()
}

fn is_hardware(decoder: &gst::ElementFactory) -> bool {
    decoder.metadata("klass").is_some_and(|klass| klass.contains("Hardware"))
}

/// Whether `camera` keeps decoding on the CPU.
pub(super) fn wants_software(camera: &CameraOptions) -> bool {
    camera.decode == Some(Decode::Software)
}

/// Whether this is an image of a kind whose decoder must be given the whole file.
fn needs_all(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    ["bmp", "tif", "tiff"].iter().any(|e| ending == *e)
}

/// Quotes a value for gst_parse_launch.
fn quote(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(source: &str, options: &str) -> String {
        let source = Source::parse(source).unwrap();
        let options: CameraOptions = toml::from_str(options).unwrap();
        options.check(&source).unwrap();
        let text = stream(&source, &options, 4, wants_software(&options)).unwrap().launch;
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_v4l2_device_is_asked_for_what_was_set() {
        let end = "! videoconvert n-threads=1 ! appsink name=frames sync=false drop=false max-buffers=4";
        assert_eq!(
            launch(
                "v4l2:/dev/video3",
                "format = \"yuy2\"\nwidth = 1280\nheight = 720\nfps = 29.97\nexposure_us = 5000\ngain = 12"
            ),
            format!(
                "v4l2src name=source device=\"/dev/video3\" io-mode=mmap extra-controls=\"c,auto_exposure=1,exposure_auto=1,\
                 exposure_time_absolute=50,exposure_absolute=50,autogain=0,gain=12\" ! capsfilter \
                 caps=\"video/x-raw,format=YUY2,width=1280,height=720,framerate=2997/100\" ! decodebin name=decode \
                 caps=\"video/x-raw\" {end}"
            )
        );
        assert_eq!(
            launch("v4l2:/dev/video0", "decode = \"software\""),
            format!(
                "v4l2src name=source device=\"/dev/video0\" io-mode=mmap ! capsfilter caps=\"video/x-raw;image/jpeg\" \
                 ! decodebin name=decode force-sw-decoders=true caps=\"video/x-raw\" {end}"
            )
        );
        let bayer = launch("v4l2:/dev/video0", "format = \"bayer-gr8\"\nwidth = 640");
        assert!(bayer.contains("\"video/x-bayer,format=grbg,width=640\" ! bayer2rgb !"), "{bayer}");
        // GStreamer reads what was filled in
        gst::init().unwrap();
        for text in [bayer, launch("v4l2:/dev/video0", "format = \"mjpeg\"\nexposure_us = 100\ngain = 1")] {
            gst::parse::launch(&text).unwrap();
        }
    }

    #[test]
    fn what_decodes_a_stream_is_loaded_before_it_is_opened() {
        let source = Source::parse("rtsp://h/s").unwrap();
        crate::capture::get_ready(&source).unwrap();
        let loaded: Vec<_> = elements(&source)
            .into_iter()
            .map(|f| (f.name(), f.plugin().is_some_and(|plugin| plugin.is_loaded())))
            .collect();
        assert!(loaded.iter().any(|(name, _)| name.contains("dec")), "{loaded:?}");
        assert!(loaded.iter().all(|(_, is_loaded)| *is_loaded), "{loaded:?}");
    }

    #[test]
    fn an_rtsp_text_holds_no_credentials() {
        let text = launch("rtsp://me:sec%40ret@h:8554/s?channel=1", "protocol = \"udp\"\nlatency_ms = 80");
        assert!(text.contains("location=\"rtsp://h:8554/s?channel=1\" protocols=udp latency=80 "), "{text}");
        assert!(!text.contains("sec") && !text.contains("me:"), "{text}");
        let source = Source::parse("rtsp://me:sec%40ret@h/s").unwrap();
        let all = stream(&source, &CameraOptions::default(), 4, false).unwrap();
        assert_eq!(all.properties.len(), 2);
        assert!(all.secrets.contains(&"sec@ret".to_owned()), "{:?}", all.secrets);
    }

    #[test]
    fn values_are_not_searched_for_keys() {
        assert_eq!(fill("# {a}\nx {a} {b} {c}", &[("{a}", "{b}"), ("{b}", "1")]), "x {b} 1 {c}");
    }
}
