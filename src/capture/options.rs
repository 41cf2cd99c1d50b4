//! What can be set on a source: size, rate, exposure, trigger, transport, credentials.
//!
//! Plain data, read by the thread that opens the source. Invariants:
//! 1. An option that the kind of source does not know is refused with the ones it knows; nothing is ignored silently
//!    (test `an_option_of_another_kind_is_refused`).
//! 2. Credentials are read when the source is opened and are in no message, name or `Debug` text
//!    (test `tests/sources.rs::credentials_are_said_nowhere`).

use super::Source;
use crate::error::{Context, Error, Result};
use schemars::JsonSchema;
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;

/// Settings of a camera or stream; everything may be left out. A setting that is left out stays as the camera has it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CameraOptions {
    /// Picture width, pixels, 1 to 65535 (v4l2, genicam).
    pub width: Option<u32>,
    /// Picture height, pixels, 1 to 65535 (v4l2, genicam).
    pub height: Option<u32>,
    /// Frames a second, above 0, at most 10000 (v4l2, genicam). With trigger `software` the rate of the triggers.
    pub fps: Option<f64>,
    /// Pixel format, one of [`V4L2_FORMATS`] or [`GENICAM_FORMATS`].
    pub format: Option<String>,
    /// Exposure time, microseconds, at least 1; switches automatic exposure off (v4l2, genicam).
    pub exposure_us: Option<f64>,
    /// Gain, 0 or more: dB for genicam, the driver's own unit for v4l2; switches automatic gain off.
    pub gain: Option<f64>,
    /// Bytes of a GigE Vision stream packet, 576 to 65500 (genicam). Negotiated with the camera when left out.
    pub packet_size: Option<u32>,
    /// What starts an exposure (genicam).
    pub trigger: Option<CameraTrigger>,
    /// Input of the camera that a hardware trigger comes in on; `Line0` when left out (genicam).
    pub trigger_source: Option<String>,
    /// Transport of RTP packets (rtsp); tcp when left out.
    pub protocol: Option<Protocol>,
    /// How long to wait for a lost or late RTP packet, and how much may wait for the decoder, milliseconds, 10 to 10000 (rtsp);
    /// [`DEFAULT_LATENCY_MS`] when left out. Packets that come in order are not held back.
    pub latency_ms: Option<u32>,
    /// A file whose first line is `user:password` (rtsp).
    pub credentials_file: Option<PathBuf>,
    /// A variable of the environment that holds `user:password` (rtsp).
    pub credentials_env: Option<String>,
    /// Where compressed video is decoded (rtsp, v4l2, files, URIs); `auto` when left out.
    pub decode: Option<Decode>,
    /// Whether files that are in a watched folder at the start are taken too (watch); false when left out.
    pub existing: Option<bool>,
}

/// What starts an exposure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CameraTrigger {
    /// The camera runs freely.
    Off,
    /// linesight asks for each picture, `fps` times a second.
    Software,
    /// A signal at the camera's input.
    Hardware,
}

/// How RTP packets travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Where compressed video is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decode {
    /// By the graphics unit where a decoder for it is installed; in software when there is none or it fails to start.
    Auto,
    /// By the CPU.
    Software,
}

/// See [`CameraOptions::latency_ms`].
pub const DEFAULT_LATENCY_MS: u32 = 500;

/// Formats of v4l2 devices, with what they are in GStreamer.
pub const V4L2_FORMATS: [(&str, &str); 13] = [
    ("mjpeg", "image/jpeg"),
    ("yuy2", "video/x-raw,format=YUY2"),
    ("uyvy", "video/x-raw,format=UYVY"),
    ("nv12", "video/x-raw,format=NV12"),
    ("i420", "video/x-raw,format=I420"),
    ("mono8", "video/x-raw,format=GRAY8"),
    ("rgb8", "video/x-raw,format=RGB"),
    ("bgr8", "video/x-raw,format=BGR"),
    ("bgrx", "video/x-raw,format=BGRx"),
    ("bayer-rg8", "video/x-bayer,format=rggb"),
    ("bayer-gr8", "video/x-bayer,format=grbg"),
    ("bayer-gb8", "video/x-bayer,format=gbrg"),
    ("bayer-bg8", "video/x-bayer,format=bggr"),
];

/// Formats of GenICam cameras, with the names that cameras have for them.
pub const GENICAM_FORMATS: [(&str, &[&str]); 9] = [
    ("mono8", &["Mono8"]),
    ("mono16", &["Mono16"]),
    ("rgb8", &["RGB8", "RGB8Packed"]),
    ("bgr8", &["BGR8", "BGR8Packed"]),
    ("yuv422", &["YUV422_8_UYVY", "YUV422Packed", "YUV422_8"]),
    ("bayer-rg8", &["BayerRG8"]),
    ("bayer-gr8", &["BayerGR8"]),
    ("bayer-gb8", &["BayerGB8"]),
    ("bayer-bg8", &["BayerBG8"]),
];

impl CameraOptions {
    /// Whether pictures come when something asks for them, so that none for a long time is no fault.
    pub fn is_triggered(&self) -> bool {
        self.trigger.is_some_and(|t| t != CameraTrigger::Off)
    }

    /// Refuses options that `source` does not know and values out of range. Opens nothing.
    pub fn check(&self, source: &Source) -> Result<()> {
        let given = [
            ("width", self.width.is_some()),
            ("height", self.height.is_some()),
            ("fps", self.fps.is_some()),
            ("format", self.format.is_some()),
            ("exposure_us", self.exposure_us.is_some()),
            ("gain", self.gain.is_some()),
            ("packet_size", self.packet_size.is_some()),
            ("trigger", self.trigger.is_some()),
            ("trigger_source", self.trigger_source.is_some()),
            ("protocol", self.protocol.is_some()),
            ("latency_ms", self.latency_ms.is_some()),
            ("credentials_file", self.credentials_file.is_some()),
            ("credentials_env", self.credentials_env.is_some()),
            ("decode", self.decode.is_some()),
            ("existing", self.existing.is_some()),
        ];
        let (kind, known): (_, &[&str]) = match source {
            Source::V4l2(_) => {
                ("a v4l2 device", &["width", "height", "fps", "format", "exposure_us", "gain", "decode"])
            }
            Source::Genicam(_) => (
                "a GenICam camera",
                &[
                    "width",
                    "height",
                    "fps",
                    "format",
                    "exposure_us",
                    "gain",
                    "packet_size",
                    "trigger",
                    "trigger_source",
                ],
            ),
            Source::Rtsp(_) => {
                ("an RTSP stream", &["protocol", "latency_ms", "credentials_file", "credentials_env", "decode"])
            }
            Source::File(_) => ("a file", &["decode"]),
            Source::Uri(_) => ("a URI", &["decode"]),
            Source::Folder { .. } => ("a folder", &[]),
            Source::Watch(_) => ("a watched folder", &["existing"]),
            Source::Pipeline(_) => ("a pipeline, which sets everything itself,", &[]),
        };
        if let Some((name, _)) = given.iter().find(|(name, given)| *given && !known.contains(name)) {
            return Err(Error::usage(format!("{kind} has no option \"{name}\"")).hint(match known {
                [] => "leave it out: this kind of source has no options".to_owned(),
                known => format!("it has: {}", known.join(", ")),
            }));
        }
        let range = |name, value: Option<f64>, least: f64, most: f64, unit: &str| match value {
            Some(v) if !(least..=most).contains(&v) => {
                Err(Error::usage(format!("{name} is {v}")).hint(format!("give {least} to {most}{unit}")))
            }
            _ => Ok(()),
        };
        range("width", self.width.map(f64::from), 1.0, 65535.0, " pixels")?;
        range("height", self.height.map(f64::from), 1.0, 65535.0, " pixels")?;
        range("fps", self.fps, 0.001, 10_000.0, " frames a second")?;
        range("exposure_us", self.exposure_us, 1.0, 1e8, " microseconds")?;
        range("gain", self.gain, 0.0, 1e6, "")?;
        range("packet_size", self.packet_size.map(f64::from), 576.0, 65500.0, " bytes")?;
        range("latency_ms", self.latency_ms.map(f64::from), 10.0, 10_000.0, " milliseconds")?;
        if let Some(format) = &self.format {
            let known: Vec<&str> = match source {
                Source::V4l2(_) => V4L2_FORMATS.iter().map(|f| f.0).collect(),
                _ => GENICAM_FORMATS.iter().map(|f| f.0).collect(),
            };
            if !known.contains(&format.as_str()) {
                return Err(
                    Error::usage(format!("format is \"{format}\"")).hint(format!("give one of: {}", known.join(", ")))
                );
            }
        }
        let is_bayer = self.format.as_ref().is_some_and(|f| f.starts_with("bayer"));
        if let Some(odd) = [self.width, self.height].into_iter().flatten().find(|n| is_bayer && n % 2 != 0) {
            return Err(Error::usage(format!("a Bayer picture has a side of {odd} pixels"))
                .hint("set width and height to even numbers: the pattern has two by two pixels"));
        }
        if self.trigger == Some(CameraTrigger::Software) && self.fps.is_none() {
            return Err(Error::usage("trigger is \"software\" and there is no fps")
                .hint("set fps: so many times a second linesight asks the camera for a picture"));
        }
        if self.trigger_source.is_some() && self.trigger != Some(CameraTrigger::Hardware) {
            return Err(Error::usage("trigger_source is set and trigger is not \"hardware\"")
                .hint("set trigger = \"hardware\", or leave trigger_source out"));
        }
        if let Some(line) = &self.trigger_source
            && (line.is_empty() || !line.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        {
            return Err(Error::usage(format!("trigger_source is \"{line}\""))
                .hint("give the name of an input as the camera calls it, such as \"Line0\""));
        }
        if self.credentials_file.is_some() && self.credentials_env.is_some() {
            return Err(Error::usage("credentials_file and credentials_env are both set").hint("keep one of the two"));
        }
        Ok(())
    }

    /// Reads the credentials, if there are any.
    pub(super) fn credentials(&self) -> Result<Option<Credentials>> {
        let (text, from) = if let Some(path) = &self.credentials_file {
            let from = format!("credentials_file \"{}\"", path.display());
            let text = std::fs::read_to_string(path)
                .usage(|| format!("{from} cannot be read"))
                .map_err(|e| e.hint("it is a text file that holds user:password"))?;
            (text, from)
        } else if let Some(name) = &self.credentials_env {
            let text = std::env::var(name).map_err(|_| {
                Error::usage(format!("the environment has no variable \"{name}\" (credentials_env)"))
                    .hint("set it to user:password where linesight is started")
            })?;
            (text, format!("variable \"{name}\" (credentials_env)"))
        } else {
            return Ok(None);
        };
        let line = text.lines().next().unwrap_or_default().trim_end_matches('\r');
        match line.split_once(':') {
            Some((user, password)) if !user.is_empty() => {
                Ok(Some(Credentials { user: user.to_owned(), password: password.to_owned() }))
            }
            // what is there may be a password: it is not repeated
            _ => Err(Error::usage(format!("{from} does not hold user:password"))
                .hint("write the user's name, a colon and the password into its first line")),
        }
    }
}

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> CameraOptions {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn an_option_of_another_kind_is_refused() {
        let refused = |source: &str, text: &str| {
            let e = options(text).check(&Source::parse(source).unwrap()).unwrap_err();
            assert_eq!(e.kind(), crate::error::Kind::Usage);
            format!("{e}; {}", e.hint_text().unwrap())
        };
        assert_eq!(
            refused("rtsp://h/s", "exposure_us = 100"),
            "an RTSP stream has no option \"exposure_us\"; it has: protocol, latency_ms, credentials_file, \
             credentials_env, decode"
        );
        assert!(refused("v4l2:/dev/video0", "protocol = \"tcp\"").starts_with("a v4l2 device has no option"));
        assert!(refused("genicam:a", "decode = \"auto\"").contains("packet_size"));
        assert!(refused("pipeline:videotestsrc", "fps = 3").contains("no options"));
        assert!(refused("genicam:a", "fps = 0").contains("fps is 0"));
        assert!(refused("genicam:a", "format = \"yuy2\"").contains("mono8, mono16"));
        assert!(refused("v4l2:/dev/video0", "format = \"YUY2\"").contains("mjpeg, yuy2"));
        assert!(refused("genicam:a", "trigger = \"software\"").contains("set fps"));
        assert!(refused("v4l2:/dev/video0", "format = \"bayer-rg8\"\nwidth = 321").contains("even"));
        assert!(refused("genicam:a", "trigger_source = \"Line0\"").contains("trigger = \"hardware\""));
        assert!(refused("genicam:a", "trigger = \"hardware\"\ntrigger_source = \"a b\"").contains("\"a b\""));
        let fine = "trigger = \"hardware\"\ntrigger_source = \"Line1\"\nformat = \"bayer-rg8\"\nfps = 12.5";
        options(fine).check(&Source::parse("genicam:a").unwrap()).unwrap();
    }

    #[test]
    fn credentials_that_cannot_be_read_are_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let with = |text: &str| {
            std::fs::write(&path, text).unwrap();
            CameraOptions { credentials_file: Some(path.clone()), ..Default::default() }.credentials()
        };
        let c = with("me:a:b\r\n").unwrap().unwrap();
        assert_eq!((c.user.as_str(), c.password.as_str()), ("me", "a:b"));
        assert_eq!(format!("{c:?}"), "Credentials(***)");
        let e = with("hunter2\n").unwrap_err();
        assert!(!e.to_string().contains("hunter2") && e.to_string().contains("user:password"), "{e}");
        let e = CameraOptions { credentials_env: Some("LINESIGHT_NO_SUCH".into()), ..Default::default() };
        assert!(e.credentials().unwrap_err().to_string().contains("LINESIGHT_NO_SUCH"));
    }
}
