//! What can be captured, as typed on the command line: a recording, a folder of images, one image, a URI.

use crate::error::{Context, Error, Result};
use std::path::{Path, PathBuf};

/// Where frames come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// One file: a recording or a single image.
    File(PathBuf),
    /// A folder of images, taken in the order of their names (numbers in names count as numbers).
    Folder { path: PathBuf, files: Vec<PathBuf> },
    /// Anything else that GStreamer can open.
    Uri(String),
}

/// File name endings that a folder is searched for.
pub const IMAGE_ENDINGS: [&str; 6] = ["png", "jpg", "jpeg", "bmp", "tif", "tiff"];

impl Source {
    /// Reads a command-line argument; checks that a path exists and that a folder holds images.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some((scheme, _)) = text.split_once("://")
            && !scheme.is_empty()
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        {
            return Ok(Source::Uri(text.to_owned()));
        }
        let path = Path::new(text);
        let meta = std::fs::metadata(path).usage(|| format!("source \"{text}\" cannot be read")).map_err(|e| {
            e.hint("give a video file, an image, a folder of images or a URI such as rtsp://host/stream")
        })?;
        if !meta.is_dir() {
            return Ok(Source::File(path.to_owned()));
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).failed(|| format!("folder \"{text}\" cannot be listed"))? {
            let path = entry.failed(|| format!("folder \"{text}\" cannot be listed"))?.path();
            let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
            if path.is_file() && IMAGE_ENDINGS.contains(&ending.as_str()) {
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

    /// The source as a person would name it; of a URI without credentials and query, which can hold tokens.
    pub fn name(&self) -> String {
        match self {
            Source::File(path) | Source::Folder { path, .. } => path.display().to_string(),
            Source::Uri(uri) => match url::Url::parse(uri) {
                Ok(mut u) => {
                    // a URI that cannot carry credentials refuses the change and needs none
                    let _ = u.set_password(None);
                    let _ = u.set_username("");
                    u.set_query(None);
                    u.set_fragment(None);
                    u.to_string()
                }
                Err(_) => uri.clone(),
            },
        }
    }
}

pub(super) fn file_size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).usage(|| format!("source \"{}\" cannot be read", path.display()))?.len())
}

/// Sort key under which `img2` comes before `img10`: runs of digits are padded.
fn natural_key(name: &str) -> String {
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
    }

    #[test]
    fn a_missing_path_says_what_can_be_given() {
        let e = Source::parse("/no/such.mp4").unwrap_err();
        assert_eq!(e.kind(), crate::error::Kind::Usage);
        assert!(e.to_string().starts_with("source \"/no/such.mp4\" cannot be read"), "{e}");
    }
}
