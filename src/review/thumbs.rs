//! Small pictures for the pages: the judged box of a frame for cards, the whole frame for a quick look, and the heatmap over
//! the same place. A queue of frames at full size would be megabytes a page.
//!
//! Thread: handlers run on the server's thread; store, disk, decoding and encoding in `spawn_blocking`, at most
//! [`Thumbs::at_once`] pictures at a time, so that pages that want hundreds leave a core to the uploads.
//!
//! Layout, as that of the objects: `thumbs/<last two hex digits of id>/<id>/<file>`. It is a cache: it may be removed at any time.
//!
//! Invariants:
//! 1. A picture and its heatmap show the same place. Test: `a_card_shows_the_part_and_its_heatmap_the_same_place`.
//! 2. A picture of more than [`PIXELS`], or that takes more than [`DECODED`], is not decoded. Test: `a_bomb_is_refused`.
//! 3. Many requests for the same picture make it once; afterwards it comes from the disk. Tests:
//!    `who_asks_at_the_same_time_gets_what_is_made_once`, `what_was_made_is_not_made_again`.
//! 4. The folder does not stay above its limit: what was made first goes first. Test: `what_was_made_first_goes_first`.
//! 5. What is gone from the store is gone from here. Test: `what_is_gone_is_not_shown`.

use std::collections::HashMap;
use std::fs::{self, DirEntry};
use std::io::{Cursor, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use image::{DynamicImage, ImageDecoder, ImageFormat, Limits};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::accounts::{Role, Who};
use super::api::{ANOMALIES, App, immutable};
use super::problem::Problem;
use super::show;
use super::store::{Anomaly, ObjectName, Store};
use super::upload::MAX_SIDE;
use crate::error::{Context, Result};
use crate::hex::sha256;
use linesight_kernels::resample::{Axis, Resampler, Source};

/// Width by height of the place that a card shows, where the picture allows it.
pub const CARD_ASPECT: f64 = 4.0 / 3.0;
/// Room around the part on a card, in part sizes.
pub const CARD_MARGIN: f64 = 0.08;
/// Pixels that a picture may have to be decoded.
const PIXELS: u64 = 50_000_000;
/// Bytes that it may take, decoded.
const DECODED: u64 = 256 << 20;
/// Bytes of the cache.
const CACHE: u64 = 1 << 30;
/// Quality of the JPEGs, 1..100: 20 cards are to stay well below 200 KB, and whoever looks closely gets the frame itself.
const QUALITY: u8 = 50;

/// A small picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Thumb {
    /// The judged box with some room.
    Card,
    /// The heatmap of the same place.
    CardHeat,
    /// The whole frame.
    Preview,
    /// The whole heatmap.
    PreviewHeat,
}

impl Thumb {
    /// All of them.
    pub const ALL: [Thumb; 4] = [Thumb::Card, Thumb::CardHeat, Thumb::Preview, Thumb::PreviewHeat];

    /// Name of the file on disk and in the URL.
    pub fn file_name(self) -> &'static str {
        match self {
            Thumb::Card => "card.jpg",
            Thumb::CardHeat => "card-heat.png",
            Thumb::Preview => "preview.jpg",
            Thumb::PreviewHeat => "preview-heat.png",
        }
    }
    fn content_type(self) -> &'static str {
        if self.is_heat() { "image/png" } else { "image/jpeg" }
    }
    fn is_heat(self) -> bool {
        matches!(self, Thumb::CardHeat | Thumb::PreviewHeat)
    }
    /// What it is made from.
    fn source(self) -> ObjectName {
        if self.is_heat() { ObjectName::Heatmap } else { ObjectName::Frame }
    }
    /// It is no larger than this. A heatmap has no detail that would need more.
    fn most(self) -> (u32, u32) {
        match self {
            Thumb::Card => (320, 240),
            Thumb::CardHeat => (120, 90),
            Thumb::Preview => (1280, MAX_SIDE),
            Thumb::PreviewHeat => (480, MAX_SIDE),
        }
    }
}

/// Path and name of a small picture of an anomaly.
pub fn url(id: Uuid, thumb: Thumb) -> String {
    format!("{ANOMALIES}/{id}/{}", thumb.file_name())
}

/// Who makes which picture at the moment.
type Makers = HashMap<(Uuid, Thumb), Weak<tokio::sync::Mutex<()>>>;

/// Makes small pictures and keeps them.
#[derive(Debug)]
pub struct Thumbs {
    dir: PathBuf,
    limit: u64,
    turns: Semaphore,
    /// Held by who makes it; an entry without a holder is removed when its last holder is done.
    making: Mutex<Makers>,
    /// Bytes written since the folder was last looked through.
    written: AtomicU64,
    sweeping: Mutex<()>,
}

/// The routes of the small pictures.
pub fn routes(thumbs: Thumbs) -> Router<App> {
    let mut routes = Router::new();
    for thumb in Thumb::ALL {
        let serve = move |State(app): State<App>,
                          Extension(thumbs): Extension<Arc<Thumbs>>,
                          who: Who,
                          UrlPath(id): UrlPath<String>,
                          headers: HeaderMap| async move {
            who.must(Role::Viewer)?;
            let id = Uuid::try_parse(&id)
                .map_err(|_| Problem::bad_request(format!("{id:?} is not the id of an anomaly")))?;
            let bytes = thumbs.get(&app, id, thumb).await?;
            Ok::<Response, Problem>(immutable(&headers, &sha256(&bytes), thumb.content_type(), bytes))
        };
        routes = routes.route(&format!("{ANOMALIES}/{{id}}/{}", thumb.file_name()), get(serve));
    }
    routes.layer(Extension(Arc::new(thumbs)))
}

impl Thumbs {
    /// Keeps them in the folder `thumbs` of a data directory.
    pub fn new(data_dir: &Path) -> Thumbs {
        Self::with_limit(data_dir.join("thumbs"), CACHE)
    }

    fn with_limit(dir: PathBuf, limit: u64) -> Thumbs {
        Thumbs {
            dir,
            limit,
            turns: Semaphore::new(Self::at_once()),
            making: Mutex::default(),
            written: AtomicU64::new(limit), // what is there from before counts
            sweeping: Mutex::default(),
        }
    }

    /// Pictures that are made at the same time.
    pub fn at_once() -> usize {
        std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1)).clamp(1, 4)
    }

    /// The picture, from the disk or made.
    async fn get(self: Arc<Self>, app: &App, id: Uuid, thumb: Thumb) -> Result<Vec<u8>, Problem> {
        if let Some(bytes) = self.clone().kept(app, id, thumb).await? {
            return Ok(bytes);
        }
        let mine = self.maker(id, thumb);
        let holding = mine.lock().await;
        // whoever held it before has made it
        let made = match self.clone().kept(app, id, thumb).await? {
            Some(bytes) => Ok(bytes),
            None => {
                let stopping = |_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
                let _turn = self.turns.acquire().await.map_err(stopping)?;
                let thumbs = self.clone();
                app.run(move |store| thumbs.make(store, id, thumb)).await?
            }
        };
        drop(holding);
        drop(mine);
        self.making().retain(|_, maker| maker.strong_count() > 0);
        made
    }

    fn making(&self) -> MutexGuard<'_, Makers> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn maker(&self, id: Uuid, thumb: Thumb) -> Arc<tokio::sync::Mutex<()>> {
        let mut making = self.making();
        if let Some(maker) = making.get(&(id, thumb)).and_then(Weak::upgrade) {
            return maker;
        }
        let maker = Arc::default();
        making.insert((id, thumb), Arc::downgrade(&maker));
        maker
    }

    fn folder(&self, id: Uuid) -> PathBuf {
        let id = id.to_string();
        self.dir.join(id.get(34..).unwrap_or("00")).join(&id)
    }

    /// What was made before, as long as the anomaly is there.
    async fn kept(self: Arc<Self>, app: &App, id: Uuid, thumb: Thumb) -> Result<Option<Vec<u8>>, Problem> {
        let kept = app.run(move |store| {
            let folder = self.folder(id);
            if store.get(id)?.is_none() {
                let _ = fs::remove_dir_all(folder); // there is none, or the next sweep has it
                return Ok(Err(Problem::not_found(format!("there is no anomaly {id}"))));
            }
            Ok(Ok(fs::read(folder.join(thumb.file_name())).ok().filter(|bytes| is_whole(bytes, thumb))))
        });
        kept.await?
    }

    /// Makes one. Blocks.
    fn make(&self, store: &dyn Store, id: Uuid, thumb: Thumb) -> Result<Result<Vec<u8>, Problem>> {
        let Some(anomaly) = store.get(id)? else {
            return Ok(Err(Problem::not_found(format!("there is no anomaly {id}"))));
        };
        let Some(source) = store.object(id, thumb.source())? else {
            return Ok(Err(Problem::not_found(format!("anomaly {id} has no {}", thumb.source().file_name()))));
        };
        let decoded = match decode(&source.bytes) {
            Ok(decoded) => decoded,
            Err(e) => {
                let name = thumb.source().file_name();
                return Ok(Err(Problem::unprocessable(format!("{name} of anomaly {id} cannot be decoded: {e}"))
                    .hint("its file can still be opened as it is")));
            }
        };
        let bytes = small(&anomaly, decoded, thumb)?;
        if let Err(e) = self.keep(id, thumb, &bytes) {
            tracing::warn!(error = %e, "a small picture is not kept and has to be made each time");
        }
        Ok(Ok(bytes))
    }

    fn keep(&self, id: Uuid, thumb: Thumb, bytes: &[u8]) -> Result<()> {
        let folder = self.folder(id);
        let cannot = || format!("cannot write \"{}\"", folder.join(thumb.file_name()).display());
        fs::create_dir_all(&folder).failed(cannot)?;
        // not synced: one that a power cut leaves incomplete is made again
        let mut file = tempfile::NamedTempFile::new_in(&folder).failed(cannot)?;
        file.write_all(bytes).failed(cannot)?;
        file.persist(folder.join(thumb.file_name())).failed(cannot)?;
        let written = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if written >= self.limit / 16
            && let Ok(_only) = self.sweeping.try_lock()
        {
            self.written.store(0, Ordering::Relaxed);
            sweep(&self.dir, self.limit)?;
        }
        Ok(())
    }
}

/// Removes what was made first until a sixteenth of the limit is free.
fn sweep(dir: &Path, limit: u64) -> Result<()> {
    fn within(dir: &Path) -> std::io::Result<Vec<DirEntry>> {
        match fs::read_dir(dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            entries => entries?.collect(),
        }
    }
    let cannot = || format!("cannot look through \"{}\"", dir.display());
    let mut files: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
    for shelf in within(dir).failed(cannot)? {
        for folder in within(&shelf.path()).failed(cannot)? {
            for file in within(&folder.path()).failed(cannot)? {
                let Ok(facts) = file.metadata() else { continue }; // gone meanwhile
                files.push((facts.modified().unwrap_or(SystemTime::UNIX_EPOCH), file.path(), facts.len()));
            }
        }
    }
    let mut all: u64 = files.iter().map(|(_, _, size)| size).sum();
    if all <= limit - limit / 16 {
        return Ok(());
    }
    files.sort_unstable();
    for (_, path, size) in files {
        if all <= limit - limit / 16 {
            break;
        }
        let _ = fs::remove_file(&path); // the next sweep finds it again
        if let Some(folder) = path.parent() {
            let _ = fs::remove_dir(folder); // only when it is empty
        }
        all -= size;
    }
    Ok(())
}

/// Whether a file is complete: after a power cut it may be cut off.
fn is_whole(bytes: &[u8], thumb: Thumb) -> bool {
    if thumb.is_heat() {
        bytes.starts_with(b"\x89PNG") && bytes.ends_with(b"IEND\xae\x42\x60\x82")
    } else {
        bytes.starts_with(&[0xff, 0xd8]) && bytes.ends_with(&[0xff, 0xd9])
    }
}

/// Decodes a picture within [`PIXELS`] and [`DECODED`].
pub(super) fn decode(bytes: &[u8]) -> image::ImageResult<DynamicImage> {
    let too_large = || image::error::LimitError::from_kind(image::error::LimitErrorKind::DimensionError);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(DECODED);
    let mut reader = image::ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    if !matches!(reader.format(), Some(ImageFormat::Jpeg | ImageFormat::Png)) {
        return Err(image::ImageError::Unsupported(image::error::ImageFormatHint::Unknown.into()));
    }
    reader.limits(limits);
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS {
        return Err(image::ImageError::Limits(too_large()));
    }
    DynamicImage::from_decoder(decoder)
}

/// The place that a thumb shows, small, encoded.
fn small(anomaly: &Anomaly, source: DynamicImage, thumb: Thumb) -> Result<Vec<u8>> {
    let event = &anomaly.event;
    let cannot = || format!("cannot make {} of anomaly {}", thumb.file_name(), event.id);
    let part = event.part_box.filter(|_| matches!(thumb, Thumb::Card | Thumb::CardHeat));
    let place = show::crop(event.image, part, CARD_ASPECT, CARD_MARGIN);
    // from pixels of the frame to those of the source, which covers the same
    let (sx, sy) = (
        f64::from(source.width()) / f64::from(event.image.width.max(1)),
        f64::from(source.height()) / f64::from(event.image.height.max(1)),
    );
    let left = (place.x * sx).min(f64::from(source.width()) - 1.0).max(0.0);
    let top = (place.y * sy).min(f64::from(source.height()) - 1.0).max(0.0);
    let width = (place.w * sx).min(f64::from(source.width()) - left);
    let height = (place.h * sy).min(f64::from(source.height()) - top);
    let (most_w, most_h) = thumb.most();
    // never enlarged: the browser does that as well
    let scale = (f64::from(most_w) / width).min(f64::from(most_h) / height).min(1.0);
    let (w, h) = (((width * scale).round() as usize).max(1), ((height * scale).round() as usize).max(1));

    let (source_w, source_h) = (source.width() as usize, source.height() as usize);
    let (mut data, channels) =
        if thumb.is_heat() { (source.into_rgba8().into_raw(), 4) } else { (source.into_rgb8().into_raw(), 3) };
    // colours weigh as much as they cover, so that what is clear leaves no seam
    if thumb.is_heat() {
        for [colour @ .., alpha] in data.as_chunks_mut::<4>().0 {
            colour.iter_mut().for_each(|c| *c = (u32::from(*c) * u32::from(*alpha) / 255) as u8);
        }
    }
    let across = Axis { start: left, length: width, limit: source_w, n: w };
    let down = Axis { start: top, length: height, limit: source_h, n: h };
    let mut pixels = vec![0; w * h * channels];
    let source = Source { data: &data, stride: source_w * channels, channels };
    Resampler::default().resample(source, across, down, &mut pixels);
    if thumb.is_heat() {
        for [colour @ .., alpha] in pixels.as_chunks_mut::<4>().0 {
            colour.iter_mut().for_each(|c| *c = (u32::from(*c) * 255 / u32::from(*alpha).max(1)).min(255) as u8);
        }
    }

    let mut out = Vec::new();
    if thumb.is_heat() {
        paletted_png(&mut out, &pixels, w, h).failed(cannot)?;
    } else {
        let side = |side| u16::try_from(side).failed(cannot);
        let mut encoder = jpeg_encoder::Encoder::new(&mut out, QUALITY);
        encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
        encoder.encode(&pixels, side(w)?, side(h)?, jpeg_encoder::ColorType::Rgb).failed(cannot)?;
    }
    Ok(out)
}

/// RGBA as PNG with a palette: a third of the size. Colours lose their last bits until 256 are enough; what is clear is one.
fn paletted_png(
    out: &mut Vec<u8>,
    rgba: &[u8],
    width: usize,
    height: usize,
) -> std::result::Result<(), png::EncodingError> {
    let mut bits = 0;
    let (palette, indices) = loop {
        let mut known: HashMap<[u8; 4], u8> = HashMap::new();
        let mut palette: Vec<[u8; 4]> = Vec::new();
        let mut indices = Vec::with_capacity(rgba.len() / 4);
        for pixel in rgba.as_chunks::<4>().0 {
            let colour = if pixel[3] == 0 { [0; 4] } else { pixel.map(|v| v >> bits << bits) };
            let index = match (known.get(&colour), u8::try_from(palette.len())) {
                (Some(&index), _) => index,
                (None, Ok(next)) => {
                    palette.push(colour);
                    known.insert(colour, next);
                    next
                }
                (None, Err(_)) => break,
            };
            indices.push(index);
        }
        if indices.len() == rgba.len() / 4 {
            break (palette, indices);
        }
        bits += 1; // ends: with 7 there are 16 colours
    };
    let mut encoder = png::Encoder::new(out, width as u32, height as u32);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(palette.iter().flat_map(|c| [c[0], c[1], c[2]]).collect::<Vec<u8>>());
    encoder.set_trns(palette.iter().map(|c| c[3]).collect::<Vec<u8>>());
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&indices)?;
    writer.finish()
}

#[cfg(test)]
#[path = "thumbs_tests.rs"]
mod tests;
