//! What can be captured, as typed on the command line or in line.toml: a recording, images, a folder, a camera, a stream.

use crate::error::{Context, Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};

/// Where frames come from.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// One file: a recording or a single image.
    File(PathBuf),
    /// A folder of images, taken in the order of their names (numbers in names count as numbers).
    Folder { path: PathBuf, files: Vec<PathBuf> },
    /// A folder in which each new image is a part: `watch:FOLDER`.
    Watch(PathBuf),
    /// A network camera: `rtsp://` or `rtsps://`, perhaps with credentials.
    Rtsp(String),
    /// A camera of the kernel's video interface: `v4l2:/dev/videoN`.
    V4l2(String),
    /// A GigE Vision or USB3 Vision camera: `genicam:` and its address or name.
    Genicam(String),
    /// The user's own GStreamer text: `pipeline:TEXT`.
    Pipeline(String),
    /// Anything else that GStreamer can open.
    Uri(String),
}

/// Without credentials.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Source::File(_) => "File",
            Source::Folder { .. } => "Folder",
            Source::Watch(_) => "Watch",
            Source::Rtsp(_) => "Rtsp",
            Source::V4l2(_) => "V4l2",
            Source::Genicam(_) => "Genicam",
            Source::Pipeline(_) => "Pipeline",
            Source::Uri(_) => "Uri",
        };
        write!(f, "{kind}({:?})", self.name())
    }
}

/// What a source can look like, for hints.
const FORMS: &str = "give a video file, an image, a folder of images, watch:FOLDER, rtsp://HOST/PATH, v4l2:/dev/videoN, \
                     genicam:ADDRESS, pipeline:GSTREAMER-TEXT or another URI";
/// URI schemes of streams that never end by themselves.
const LIVE_SCHEMES: [&str; 9] = ["rtmp", "rtmps", "srt", "udp", "rtp", "tcp", "rtspt", "rtspu", "rtsph"];

/// File name endings that a folder is searched for.
pub const IMAGE_ENDINGS: [&str; 6] = ["png", "jpg", "jpeg", "bmp", "tif", "tiff"];

impl Source {
    /// Reads a command-line argument; checks that a path exists and that a folder holds images.
    pub fn parse(text: &str) -> Result<Self> {
        let named = |rest: &str, what: &str| match rest.trim() {
            "" => Err(Error::usage(format!("source \"{text}\" names no {what}")).hint(FORMS)),
            rest => Ok(rest.to_owned()),
        };
        if let Some(rest) = text.strip_prefix("watch:") {
            let path = PathBuf::from(named(rest, "folder")?);
            let meta = std::fs::metadata(&path).usage(|| format!("source \"{text}\" cannot be read"));
            let meta = meta.map_err(|e| e.hint("give a folder that is there: watch:FOLDER"))?;
            if !meta.is_dir() {
                return Err(Error::usage(format!("source \"{text}\" is no folder"))
                    .hint("only a folder can be watched; a file is given as it is, without watch:"));
            }
            return Ok(Source::Watch(path));
        }
        if let Some(rest) = text.strip_prefix("v4l2:") {
            let device = named(rest, "device")?;
            if !device.starts_with('/') {
                return Err(Error::usage(format!("source \"{text}\" names no device")).hint(
                    "give the device's path, such as v4l2:/dev/video0; `linesight cameras` lists what is there",
                ));
            }
            return Ok(Source::V4l2(device));
        }
        if let Some(rest) = text.strip_prefix("genicam:") {
            return Ok(Source::Genicam(named(rest, "camera")?));
        }
        if let Some(rest) = text.strip_prefix("pipeline:") {
            return Ok(Source::Pipeline(named(rest, "GStreamer element")?));
        }
        if ["rtsp://", "rtsps://"].iter().any(|s| text.get(..s.len()).is_some_and(|t| t.eq_ignore_ascii_case(s))) {
            let uri = url::Url::parse(text).map_err(|e| {
                // the text itself may hold a password
                Error::usage(format!("an RTSP source is not a valid address: {e}"))
                    .hint("give rtsp://HOST:PORT/PATH; credentials go into credentials_file or credentials_env")
            })?;
            if uri.host_str().unwrap_or_default().is_empty() {
                return Err(Error::usage("an RTSP source names no host").hint("give rtsp://HOST:PORT/PATH"));
            }
            return Ok(Source::Rtsp(text.to_owned()));
        }
        if let Some((scheme, _)) = text.split_once("://")
            && !scheme.is_empty()
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        {
            return Ok(Source::Uri(text.to_owned()));
        }
        let path = Path::new(text);
        let meta =
            std::fs::metadata(path).usage(|| format!("source \"{text}\" cannot be read")).map_err(|e| e.hint(FORMS))?;
        if !meta.is_dir() {
            return Ok(Source::File(path.to_owned()));
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).failed(|| format!("folder \"{text}\" cannot be listed"))? {
            let path = entry.failed(|| format!("folder \"{text}\" cannot be listed"))?.path();
            if path.is_file() && is_image(&path) {
                files.push(path);
            }
        }
        if files.is_empty() {
            return Err(Error::failed(format!("folder \"{text}\" holds no images"))
                .hint(format!("linesight looks for files ending in {}", IMAGE_ENDINGS.join(", "))));
        }
        files.sort_by_cached_key(|p| natural_key(&p.file_name().unwrap_or_default().to_string_lossy()));
        Ok(Source::Folder { path: path.to_owned(), files })
    }

    /// Whether it goes on until somebody stops it: its end is a fault, and it is opened again.
    pub fn is_live(&self) -> bool {
        match self {
            Source::Watch(_) | Source::Rtsp(_) | Source::V4l2(_) | Source::Genicam(_) | Source::Pipeline(_) => true,
            Source::Uri(uri) => {
                let scheme = uri.split("://").next().unwrap_or_default().to_ascii_lowercase();
                LIVE_SCHEMES.contains(&scheme.as_str())
            }
            Source::File(_) | Source::Folder { .. } => false,
        }
    }

    /// Whether it is compressed video, as far as one can tell without opening it.
    pub(super) fn is_decoded(&self) -> bool {
        match self {
            Source::Rtsp(_) | Source::Uri(_) => true,
            Source::File(path) => !is_image(path),
            Source::Pipeline(text) => text.contains("decodebin"),
            Source::Folder { .. } | Source::Watch(_) | Source::V4l2(_) | Source::Genicam(_) => false,
        }
    }

    /// The source as a person would name it; of a URI without credentials and query, which can hold tokens.
    pub fn name(&self) -> String {
        match self {
            Source::File(path) | Source::Folder { path, .. } => path.display().to_string(),
            Source::Watch(path) => format!("watch:{}", path.display()),
            Source::V4l2(device) => format!("v4l2:{device}"),
            Source::Genicam(camera) => format!("genicam:{camera}"),
            Source::Pipeline(text) => format!("pipeline:{}", without(text.clone(), &self.secrets())),
            Source::Uri(uri) | Source::Rtsp(uri) => match url::Url::parse(uri) {
                Ok(mut u) => {
                    // a URI that cannot carry credentials refuses the change and needs none
                    let _ = u.set_password(None);
                    let _ = u.set_username("");
                    u.set_query(None);
                    u.set_fragment(None);
                    u.to_string()
                }
                Err(_) => without(uri.clone(), &self.secrets()),
            },
        }
    }

    /// Parts of the text that must not be repeated in messages.
    pub(super) fn secrets(&self) -> Vec<String> {
        let (Source::Uri(text) | Source::Rtsp(text) | Source::Pipeline(text)) = self else { return Vec::new() };
        let ends = |c: char| c.is_whitespace() || c == '"' || c == '\'';
        let mut found = Vec::new();
        for (at, _) in text.match_indices("://") {
            let rest = &text[at + 3..];
            let authority = &rest[..rest.find(|c| ends(c) || "/?#".contains(c)).unwrap_or(rest.len())];
            if let Some((user, _)) = authority.rsplit_once('@') {
                found.push(user.to_owned());
                found.extend(user.split_once(':').map(|(_, password)| password.to_owned()));
            }
            let uri = &rest[..rest.find(ends).unwrap_or(rest.len())];
            if let Some((_, query)) = uri.split_once('?') {
                found.push(query.to_owned());
            }
        }
        for key in ["user-pw", "proxy-pw", "password", "passphrase", "token"] {
            for (at, _) in text.match_indices(&format!("{key}=")) {
                let value = text[at + key.len() + 1..].trim_start_matches(['"', '\'']);
                found.push(value[..value.find(ends).unwrap_or(value.len())].to_owned());
            }
        }
        // what a URI writes as %40 is reported as @
        let decoded: Vec<String> = found.iter().map(|s| unescape(s)).collect();
        found.extend(decoded);
        found.retain(|s| !s.is_empty());
        // the longer first: it may hold the shorter
        found.sort_by_key(|s| std::cmp::Reverse(s.len()));
        found.dedup();
        found
    }
}

/// `text` with each of `secrets` replaced.
pub(super) fn without(text: String, secrets: &[String]) -> String {
    secrets.iter().fold(text, |text, secret| text.replace(secret.as_str(), "***"))
}

/// A part of a URI with its %-escapes resolved.
pub(super) fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).filter(|_| *first == b'%').and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a folder's file is one that linesight reads, by its name.
pub(super) fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    IMAGE_ENDINGS.contains(&ending.as_str())
}

pub(super) fn file_size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).usage(|| format!("source \"{}\" cannot be read", path.display()))?.len())
}

/// Sort key under which `img2` comes before `img10`: runs of digits are padded.
pub(super) fn natural_key(name: &str) -> String {
    let mut key = String::with_capacity(name.len() + 16);
    let mut digits = String::new();
    for c in name.chars().chain(std::iter::once('\0')) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        if !digits.is_empty() {
            key.push_str(&format!("{:0>20}", digits));
            digits.clear();
        }
        key.push(c);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_people_count() {
        let mut names = vec!["b10.png", "b9.png", "a.png", "b09x.png"];
        names.sort_by_cached_key(|n| natural_key(n));
        assert_eq!(names, ["a.png", "b9.png", "b09x.png", "b10.png"]);
    }

    #[test]
    fn credentials_are_not_part_of_the_name() {
        let name = |uri| Source::parse(uri).unwrap().name();
        assert_eq!(name("rtsp://me:secret@10.0.0.1/live"), "rtsp://10.0.0.1/live");
        assert_eq!(name("https://cam.example/a?token=abc#b"), "https://cam.example/a");
        assert_eq!(
            name("pipeline:rtspsrc location=rtsp://me:sec%40ret@h/s?k=v user-pw=\"other\" ! decodebin"),
            "pipeline:rtspsrc location=rtsp://***@h/s?*** user-pw=\"***\" ! decodebin"
        );
        for text in ["rtsp://me:secret@h/s?a=secret", "pipeline:a password=secret ! b", "srt://h?passphrase=secret"] {
            let source = Source::parse(text).unwrap();
            assert!(!format!("{source:?} {}", source.name()).contains("secret"), "{source:?}");
        }
        let message =
            without("cannot reach sec@ret".into(), &Source::parse("rtsp://me:sec%40ret@h/s").unwrap().secrets());
        assert_eq!(message, "cannot reach ***");
        assert!(!Source::parse("rtsp://me:secret@:x").unwrap_err().to_string().contains("secret"));
    }

    #[test]
    fn each_kind_has_its_form() {
        let parse = |text| Source::parse(text).unwrap();
        assert_eq!(parse("v4l2:/dev/video2"), Source::V4l2("/dev/video2".into()));
        assert_eq!(parse("genicam:10.0.0.7"), Source::Genicam("10.0.0.7".into()));
        assert_eq!(parse("pipeline: videotestsrc ! queue"), Source::Pipeline("videotestsrc ! queue".into()));
        assert_eq!(parse("RTSPS://h/s"), Source::Rtsp("RTSPS://h/s".into()));
        assert_eq!(parse("srt://h:9"), Source::Uri("srt://h:9".into()));
        let dir = tempfile::tempdir().unwrap();
        let watch = format!("watch:{}", dir.path().display());
        assert_eq!(parse(&watch), Source::Watch(dir.path().to_owned()));
        assert_eq!(parse(&watch).name(), watch);
        for live in ["v4l2:/dev/video0", "genicam:a", "pipeline:x", "rtsp://h", "srt://h:9"] {
            assert!(parse(live).is_live(), "{live}");
        }
        assert!(!parse("https://h/clip.mp4").is_live());
        for bad in ["v4l2:", "v4l2:video0", "genicam: ", "pipeline:", "watch:/no/such", "watch:Cargo.toml", "rtsp://"] {
            let e = Source::parse(bad).unwrap_err();
            assert!(e.kind() == crate::error::Kind::Usage && e.hint_text().is_some(), "{bad}: {e}");
        }
    }

    #[test]
    fn a_missing_path_says_what_can_be_given() {
        let e = Source::parse("/no/such.mp4").unwrap_err();
        assert_eq!(e.kind(), crate::error::Kind::Usage);
        assert!(e.to_string().starts_with("source \"/no/such.mp4\" cannot be read"), "{e}");
    }
}
