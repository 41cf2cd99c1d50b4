//! Reads a folder in the layout of MVTec AD (Bergmann et al. 2021): `test/good/`, `test/<defect>/`,
//! `ground_truth/<defect>/<image>_mask.png`.
//!
//! Everything that can be wrong with a data set is found here, before anything is scored.

use crate::capture::Source;
use crate::error::{Context, Error, Result};
use crate::evaluate::pixels::Mask;
use crate::prepare::shrink::Size;
use std::path::{Path, PathBuf};

/// The folder of good images in `test/`.
pub const GOOD: &str = "good";
/// What a mask's name has after the image's.
const MASK_ENDING: &str = "_mask.png";
const LAYOUT: &str =
    "the layout is test/good, test/<defect> and, for pixel metrics, ground_truth/<defect>/<image>_mask.png";

/// One image of the test set.
#[derive(Debug, Clone)]
pub struct Sample {
    pub path: PathBuf,
    /// Index into [`Dataset::labels`].
    pub label: usize,
    /// Where its defect is marked; `None` for good images and where there is no mask.
    pub mask: Option<PathBuf>,
}

/// A test set.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub dir: PathBuf,
    /// Names of the folders in `test/`: `good` first, then the defects by name.
    pub labels: Vec<String>,
    /// Good images first, then defect by defect, each in the order of their names.
    pub samples: Vec<Sample>,
    /// What a reader of the result should know.
    pub notes: Vec<String>,
}

impl Dataset {
    /// Reads the layout and checks all masks.
    pub fn open(dir: &Path) -> Result<Dataset> {
        let test = dir.join("test");
        if !test.is_dir() {
            return Err(Error::usage(format!("data set \"{}\" has no folder \"test\"", dir.display())).hint(LAYOUT));
        }
        if !test.join(GOOD).is_dir() {
            return Err(Error::usage(format!(
                "data set \"{}\" has no good images: no folder test/{GOOD}",
                dir.display()
            ))
            .hint("false rejects and AUROC are measured on good parts that were not taught; put some into test/good"));
        }
        let mut labels = vec![GOOD.to_owned()];
        labels.extend(folders(&test)?.into_iter().filter(|name| name != GOOD));
        let mut out = Dataset { dir: dir.to_owned(), labels: Vec::new(), samples: Vec::new(), notes: Vec::new() };
        for label in labels {
            out.add(&test, label)?;
        }
        let good = out.samples.iter().filter(|s| s.label == 0).count();
        if out.samples.len() == 1 {
            return Err(Error::usage(format!("data set \"{}\" holds one part only", dir.display()))
                .hint("at least one good and one defective part are needed, and a few dozen to say anything"));
        }
        if good == out.samples.len() {
            return Err(Error::usage(format!(
                "data set \"{}\" has no defective images: no folder beside test/{GOOD}",
                dir.display()
            ))
            .hint(LAYOUT));
        }
        Ok(out)
    }

    fn add(&mut self, test: &Path, label: String) -> Result<()> {
        let folder = test.join(&label);
        let Source::Folder { files, .. } = Source::parse(&folder.to_string_lossy())? else {
            return Err(Error::failed(format!("\"{}\" is not a folder", folder.display())));
        };
        let (index, count, good) = (self.labels.len(), files.len(), label == GOOD);
        let masks = self.dir.join("ground_truth").join(&label);
        let mut marked = 0;
        for path in files {
            let name = format!("{}{MASK_ENDING}", path.file_stem().unwrap_or_default().to_string_lossy());
            let mask = Some(masks.join(name)).filter(|m| !good && m.is_file());
            if let Some(mask) = &mask {
                marked += 1;
                check(mask, &path)?;
            }
            self.samples.push(Sample { path, label: index, mask });
        }
        if !good && marked < count {
            self.notes.push(match marked {
                0 if masks.is_dir() => format!(
                    "{label}: no mask in ground_truth/{label} is named <image>{MASK_ENDING}, so it counts in no pixel metric"
                ),
                0 => format!("{label}: no masks, so it counts in no pixel metric"),
                _ => format!("{label}: {} of {count} images have no mask and count in no pixel metric", count - marked),
            });
        }
        self.labels.push(label);
        Ok(())
    }

    /// The file as results name it, relative to the data set.
    pub fn name(&self, sample: &Sample) -> String {
        sample.path.strip_prefix(&self.dir).unwrap_or(&sample.path).display().to_string()
    }

    /// Whether any defective image has a mask.
    pub fn has_masks(&self) -> bool {
        self.samples.iter().any(|s| s.mask.is_some())
    }
}

/// Names of the folders in `dir`, sorted; hidden ones are not looked at.
fn folders(dir: &Path) -> Result<Vec<String>> {
    let unlisted = || format!("folder \"{}\" cannot be listed", dir.display());
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).failed(unlisted)? {
        let entry = entry.failed(unlisted)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            out.push(name);
        }
    }
    out.sort();
    Ok(out)
}

/// Refuses a mask that does not fit its image or marks nothing.
fn check(mask: &Path, image: &Path) -> Result<()> {
    let regions = read_mask(mask)?;
    // only PNG and JPEG tell their size without being decoded; others are compared with the decoded frame
    if let Ok((width, height)) = image::image_dimensions(image) {
        fits(mask, &regions, image, Size { width, height })?;
    }
    if regions.regions() == 0 {
        return Err(Error::usage(format!("mask \"{}\" marks no defect: it is black everywhere", mask.display()))
            .hint("defect pixels are not 0; an image without a defect belongs into test/good"));
    }
    Ok(())
}

/// Refuses a mask of another size than its image.
pub fn fits(mask: &Path, regions: &Mask, image: &Path, size: Size) -> Result<()> {
    if regions.size == size {
        return Ok(());
    }
    Err(Error::usage(format!(
        "mask \"{}\" is {}x{}, its image \"{}\" is {}x{}",
        mask.display(),
        regions.size.width,
        regions.size.height,
        image.display(),
        size.width,
        size.height
    ))
    .hint("a mask has the size of its image; make it again, or remove it to evaluate without"))
}

/// Reads a mask: pixels that are not 0 are defect.
pub fn read_mask(path: &Path) -> Result<Mask> {
    let image = image::open(path)
        .usage(|| format!("mask \"{}\" cannot be read", path.display()))
        .map_err(|e| e.hint("a mask is a grey PNG: 0 is normal, everything else is defect"))?
        .into_luma8();
    let size = Size { width: image.width(), height: image.height() };
    Mask::new(image.as_raw(), size)
}
