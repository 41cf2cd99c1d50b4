//! The model package: a folder with everything a verdict depends on.
//!
//! Invariants:
//! 1. A package is complete or not there: it is written beside its destination and renamed
//!    (test `tests/bad_input.rs::unwritable_output`).
//! 2. A package that was changed, cut short or made by a newer version is refused with the file's name
//!    (test `tests/bad_input.rs`).

mod files;
pub(crate) mod mask;

use crate::detect::{Detector, Precision, backbone, head};
use crate::error::{Context, Error, Result};
use crate::event::ModelId;
use crate::hex::sha256;
use crate::judge::Calibration;
use crate::picture;
use crate::prepare::light::Light;
use crate::prepare::locate::Locator;
use crate::prepare::register::Reference;
use crate::prepare::rigid::Rigid;
use crate::prepare::shrink::{Crop, KERNEL, Size};
use crate::prepare::{Preparation, Registration, Roi};
use crate::staging::{self, Staging};
use clap::ValueEnum;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the package's layout.
pub const SCHEMA: u32 = 1;
/// The file that makes a folder a package.
pub const MANIFEST: &str = "model.toml";
const NORMALITY: &str = "normality.safetensors";
const CALIBRATION: &str = "calibration.json";
const MASK: &str = "mask.png";
const NORMAL: &str = "normal.png";
const OVERVIEW: &str = "overview.png";

/// When a frame becomes a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// Each frame is a part (image folders, hardware-triggered cameras).
    Frame,
    /// A part is found on the belt, followed, and judged once when it crosses the middle of the picture.
    Presence,
}

impl Trigger {
    /// The word of command line and package.
    pub fn as_str(self) -> &'static str {
        match self {
            Trigger::Frame => "frame",
            Trigger::Presence => "presence",
        }
    }
}

/// Family of the normality model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The usual method for how alike the parts are, unless another finds clearly more synthetic defects on held-out parts.
    Auto,
    /// Position-wise low-rank Gaussian: parts that show the same place at the same position.
    Ppca,
    /// Memory bank of patches: parts in any pose, textures.
    Patchcore,
    /// Mean of both z-scores.
    MeanZ,
}

impl Method {
    /// The word of command line and package.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Auto => "auto",
            Method::Ppca => "ppca",
            Method::Patchcore => "patchcore",
            Method::MeanZ => "mean-z",
        }
    }
}

/// `model.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    schema: u32,
    name: String,
    version: String,
    created: Timestamp,
    kind: String,
    method: Method,
    /// Uses the form of the method for parts that each differ.
    differing: bool,
    /// Start of the pseudo-random choices of teaching.
    seed: u64,
    /// Wall seconds that teaching took; 0 in packages of versions that did not record it.
    #[serde(default)]
    teach_s: f64,
    precision: Precision,
    /// The device that ran the network when the model was taught.
    device: String,
    threshold: f32,
    input: Input,
    backbone: BackboneId,
    preprocessing: Preprocessing,
    trigger: Trigger,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    roi: Option<Roi>,
    /// Millimetres of the part that a source pixel shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mm_per_pixel: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    locator: Option<Locator>,
    detector: Vec<files::MemberEntry>,
    reference: Vec<ReferencePart>,
    files: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    width: u32,
    height: u32,
    channels: u32,
    color: String,
}

/// Which feature network the model was taught with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneId {
    pub id: String,
    pub sha256: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Preprocessing {
    kernel: String,
    registration: Registration,
    light: Light,
    max_shift: f32,
    /// Cut from each side of a located part before it is shrunk, as a fraction of its size.
    inset: f32,
    /// Mean and deviation of the reference picture.
    reference_mean: f32,
    reference_deviation: f32,
    /// With registration rigid: what was learned about the pose of parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rigid: Option<Rigid>,
}

/// A taught part with the score that the model gave it: the parity check replays it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferencePart {
    /// File in the package: the network's input as PNG.
    pub file: String,
    pub score: f32,
}

/// A model in memory.
#[derive(Debug, Clone)]
pub struct Model {
    pub name: String,
    pub version: String,
    pub created: Timestamp,
    pub method: Method,
    /// Uses the form of the method for parts that each differ.
    pub differing: bool,
    pub seed: u64,
    /// Wall seconds that teaching took; 0 where it was not recorded.
    pub teach_s: f64,
    pub precision: Precision,
    pub device: String,
    pub backbone: BackboneId,
    pub trigger: Trigger,
    pub roi: Option<Roi>,
    pub locator: Option<Locator>,
    pub inset: f32,
    pub preparation: Preparation,
    pub detector: Detector,
    pub calibration: Calibration,
    /// Of the anomaly map's size, 0 where the map is ignored.
    pub mask: Option<Vec<u8>>,
    /// Millimetres of the part that a source pixel shows, finite and above 0.
    pub mm_per_pixel: Option<f32>,
    /// Network inputs with their scores.
    pub reference: Vec<(Vec<u8>, f32)>,
    /// Hex SHA-256 of model.toml; empty for a model that was not saved yet.
    pub sha256: String,
}

impl Model {
    pub fn threshold(&self) -> f32 {
        self.calibration.threshold
    }

    /// Sets the threshold on a person's word: a new version of the model.
    pub fn set_threshold(&mut self, threshold: f32, by: &str, why: &str) -> Result<()> {
        self.calibration.set_threshold(threshold, by, why)?;
        self.next_version();
        Ok(())
    }

    /// Leaves out, besides what the package's own mask does, what is black in a picture of the part.
    pub fn leave_out(&mut self, path: &Path) -> Result<()> {
        let map = head::map_size(self.detector.grid);
        let input = self.preparation.input;
        let given = mask::shrunk(&mask::load(path, [input.width, input.height], map)?, map)?;
        let merged: Vec<u8> = match &self.mask {
            Some(own) => own.iter().zip(&given).map(|(a, b)| a & b).collect(),
            None => given,
        };
        if merged.iter().all(|&v| v == 0) {
            return Err(Error::usage(format!(
                "mask \"{}\" and the model's own leave nothing to judge",
                path.display()
            ))
            .hint("white marks what is judged"));
        }
        self.mask = Some(merged);
        Ok(())
    }

    /// Counts the version up and dates it now.
    pub fn next_version(&mut self) {
        self.version =
            self.version.parse::<u64>().map_or_else(|_| format!("{}+1", self.version), |v| (v + 1).to_string());
        self.created = Timestamp::now();
    }

    /// What events carry.
    pub fn id(&self) -> ModelId {
        ModelId { name: self.name.clone(), version: self.version.clone(), sha256: self.sha256.clone() }
    }

    /// The crop of a part: the whole ROI, or the located box without its rim.
    pub fn crop_of(&self, part: Crop) -> Crop {
        if self.trigger == Trigger::Presence { part.inset(self.inset) } else { part }
    }

    /// Writes the package to `dir`, which must be new, empty, or hold an older model package.
    pub fn save(&mut self, dir: &Path) -> Result<()> {
        let staging = Staging::new(dir, MANIFEST)?;
        let mut sums = BTreeMap::new();
        let mut put = |name: &str, bytes: &[u8]| -> Result<()> {
            sums.insert(name.to_owned(), sha256(bytes));
            staging.write(name, bytes)
        };
        put(NORMALITY, &files::normality_bytes(&self.detector, &self.preparation.reference)?)?;
        let calibration = serde_json::to_vec_pretty(&self.calibration).failed(|| "calibration cannot be written")?;
        put(CALIBRATION, &calibration)?;
        if let Some(mask) = &self.mask {
            put(MASK, &files::gray_png(mask, head::map_size(self.detector.grid))?)?;
        }
        let p = &self.preparation;
        put(NORMAL, &files::rgb_png(&p.reference.rgb, p.input)?)?;
        let (overview, size) =
            picture::overview(&p.reference, self.mask.as_deref(), head::map_size(self.detector.grid));
        put(OVERVIEW, &files::rgb_png(&overview, size)?)?;
        let mut reference = Vec::new();
        for (i, (pixels, score)) in self.reference.iter().enumerate() {
            let file = format!("reference/{i:02}.png");
            put(&file, &files::rgb_png(pixels, p.input)?)?;
            reference.push(ReferencePart { file, score: *score });
        }
        let manifest = Manifest {
            schema: SCHEMA,
            name: self.name.clone(),
            version: self.version.clone(),
            created: self.created,
            kind: "normality".into(),
            method: self.method,
            differing: self.differing,
            seed: self.seed,
            teach_s: self.teach_s,
            precision: self.precision,
            device: self.device.clone(),
            threshold: self.calibration.threshold,
            input: Input { width: p.input.width, height: p.input.height, channels: 3, color: "rgb".into() },
            backbone: self.backbone.clone(),
            preprocessing: Preprocessing {
                kernel: KERNEL.into(),
                registration: p.registration,
                light: p.light,
                max_shift: p.max_shift,
                inset: self.inset,
                reference_mean: p.reference.mean,
                reference_deviation: p.reference.deviation,
                rigid: p.rigid.clone(),
            },
            trigger: self.trigger,
            roi: self.roi,
            mm_per_pixel: self.mm_per_pixel,
            locator: self.locator.clone(),
            detector: files::entries(&self.detector),
            reference,
            files: sums,
        };
        let text = toml::to_string_pretty(&manifest).failed(|| "model.toml cannot be written")?;
        self.sha256 = sha256(text.as_bytes());
        staging.write(MANIFEST, text.as_bytes())?;
        staging.publish()
    }

    /// Reads and checks the package in `dir`.
    pub fn load(dir: &Path) -> Result<Model> {
        let path = dir.join(MANIFEST);
        let text = std::fs::read_to_string(&path)
            .usage(|| format!("model package \"{}\" cannot be read: no readable {MANIFEST}", dir.display()))
            .map_err(|e| e.hint("give the folder that `linesight teach --out` made"))?;
        // the schema first: a newer one may have fields that this version does not know
        let damaged = |e: Error| e.hint("copy the package again from where it was made, or teach the model again");
        let schema = toml::from_str::<toml::Table>(&text)
            .failed(|| format!("\"{}\" is not valid TOML", path.display()))
            .map_err(damaged)?
            .get("schema")
            .and_then(toml::Value::as_integer);
        if schema != Some(i64::from(SCHEMA)) {
            let found = schema.map_or("none".into(), |s| s.to_string());
            return Err(Error::failed(format!(
                "model package \"{}\" has schema {found}, this program reads schema {SCHEMA}",
                dir.display()
            ))
            .hint("update linesight, or teach the model again with this version"));
        }
        let m: Manifest =
            toml::from_str(&text).failed(|| format!("\"{}\" is not understood", path.display())).map_err(damaged)?;
        let package = files::Package::new(dir, &m.files);
        let input = Size { width: m.input.width, height: m.input.height };
        if backbone::checksum(&m.backbone.id, m.precision)? != m.backbone.sha256 {
            let taught = Precision::value_variants().iter().find_map(|p| {
                (backbone::checksum(&m.backbone.id, *p).ok()? == m.backbone.sha256).then_some(p.as_str())
            });
            return Err(match taught {
                Some(taught) => Error::failed(format!(
                    "model package \"{}\" was taught in {taught} and its {MANIFEST} says precision \"{}\"",
                    dir.display(),
                    m.precision.as_str()
                ))
                .hint(format!(
                    "set precision = \"{taught}\" there; `linesight model calibrate --precision` changes it properly"
                )),
                None => Error::failed(format!(
                    "model package \"{}\" was taught with another build of backbone \"{}\" for precision {}",
                    dir.display(),
                    m.backbone.id,
                    m.precision.as_str()
                ))
                .hint("teach the model again with this version"),
            });
        }
        if m.kind != "normality" || m.preprocessing.kernel != KERNEL {
            return Err(Error::failed(format!(
                "model package \"{}\" is of kind \"{}\" with kernel \"{}\"; this program runs kind \"normality\" with kernel \"{KERNEL}\"",
                dir.display(),
                m.kind,
                m.preprocessing.kernel
            ))
            .hint("teach the model again with this version"));
        }
        let grid = backbone::grid_of(input);
        let (detector, luma) =
            files::parse_normality(&package.read(NORMALITY)?, &m.detector, grid, backbone::channels(&m.backbone.id)?)
                .map_err(|e| package.damaged(NORMALITY, e))?;
        let calibration: Calibration = serde_json::from_slice(&package.read(CALIBRATION)?)
            .failed(|| "not the JSON of a calibration")
            .and_then(|c: Calibration| c.validate().map(|()| c))
            .map_err(|e| package.damaged(CALIBRATION, e))?;
        if luma.len() != input.area() {
            return Err(package.damaged(
                NORMALITY,
                Error::failed(format!("its size does not fit the input {}x{}", input.width, input.height)),
            ));
        }
        let mask = match m.files.contains_key(MASK) {
            true => Some(
                files::read_gray_png(&package.read(MASK)?, head::map_size(grid))
                    .map_err(|e| package.damaged(MASK, e))?,
            ),
            false => None,
        };
        // packages made before there was a colour picture show the grey one
        let rgb = match m.files.contains_key(NORMAL) {
            true => files::read_rgb_png(&package.read(NORMAL)?, input).map_err(|e| package.damaged(NORMAL, e))?,
            false => luma.iter().flat_map(|&v| [v; 3]).collect(),
        };
        check_extras(&m).map_err(|e| package.damaged(MANIFEST, e))?;
        let mut reference = Vec::new();
        for r in &m.reference {
            let pixels =
                files::read_rgb_png(&package.read(&r.file)?, input).map_err(|e| package.damaged(&r.file, e))?;
            reference.push((pixels, r.score));
        }
        if m.trigger == Trigger::Presence && m.locator.is_none() {
            return Err(Error::failed(format!("model package \"{}\" has no [locator]", dir.display()))
                .hint("teach the model again with --trigger presence"));
        }
        Ok(Model {
            name: m.name,
            version: m.version,
            created: m.created,
            method: m.method,
            differing: m.differing,
            seed: m.seed,
            teach_s: m.teach_s,
            precision: m.precision,
            device: m.device,
            backbone: m.backbone,
            trigger: m.trigger,
            roi: m.roi,
            locator: m.locator,
            inset: m.preprocessing.inset,
            preparation: Preparation {
                input,
                registration: m.preprocessing.registration,
                light: m.preprocessing.light,
                max_shift: m.preprocessing.max_shift,
                rigid: m.preprocessing.rigid,
                reference: Reference {
                    size: input,
                    luma,
                    rgb,
                    mean: m.preprocessing.reference_mean,
                    deviation: m.preprocessing.reference_deviation,
                },
            },
            detector,
            calibration,
            mask,
            mm_per_pixel: m.mm_per_pixel,
            reference,
            sha256: sha256(text.as_bytes()),
        })
    }
}

/// Values that types alone do not keep sound.
fn check_extras(m: &Manifest) -> Result<()> {
    check_scale(m.mm_per_pixel)?;
    match (m.preprocessing.registration, &m.preprocessing.rigid) {
        (Registration::Rigid, None) => Err(Error::failed("registration \"rigid\" without [preprocessing.rigid]")),
        (_, Some(rigid)) => rigid.validate(),
        _ => Ok(()),
    }
}

/// Refuses a scale that is no length.
pub fn check_scale(mm_per_pixel: Option<f32>) -> Result<()> {
    match mm_per_pixel {
        Some(mm) if !(mm.is_finite() && mm > 0.0) => {
            Err(Error::usage(format!("\"{mm}\" millimetres per pixel is no scale"))
                .hint("give a positive number, for example --mm-per-pixel 0.05"))
        }
        _ => Ok(()),
    }
}

/// Default name of a model: its folder's.
pub fn name_from(dir: &Path) -> String {
    dir.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}

/// Refuses a destination that holds something else, before any work is done.
pub fn check_destination(dir: &Path) -> Result<()> {
    staging::check_destination(dir, MANIFEST)
}
