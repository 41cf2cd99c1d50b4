//! Files of a model package: checksums, safetensors, PNGs.

use crate::detect::head::{Detector, Family, Member, Term, View};
use crate::detect::patchcore::Bank;
use crate::detect::ppca::{BLOCK, BLOCK_STEPS, Basis, MIXED, Ppca, RANK};
use crate::error::{Context, Error, Result};
use crate::hex::sha256;
use crate::prepare::register::Reference;
use crate::prepare::shrink::Size;
use image::ImageEncoder;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A package being read: every file is checked against the manifest's checksum.
pub(super) struct Package<'a> {
    dir: &'a Path,
    sums: &'a BTreeMap<String, String>,
}

impl<'a> Package<'a> {
    pub(super) fn new(dir: &'a Path, sums: &'a BTreeMap<String, String>) -> Self {
        Package { dir, sums }
    }

    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let wanted = self
            .sums
            .get(name)
            .ok_or_else(|| self.damaged(name, Error::failed("model.toml has no checksum for it")))?;
        let plain = Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if !plain {
            return Err(self.damaged(name, Error::failed("the name leaves the package")));
        }
        let bytes = fs::read(self.dir.join(name))
            .map_err(|e| self.damaged(name, Error::failed("it cannot be read").because(e)))?;
        let found = sha256(&bytes);
        if found != *wanted {
            return Err(self.damaged(name, Error::failed(format!("its checksum is {found}, model.toml says {wanted}"))));
        }
        Ok(bytes)
    }

    pub(super) fn damaged(&self, name: &str, why: Error) -> Error {
        Error::failed(format!("model package \"{}\": file \"{name}\" is missing or damaged", self.dir.display()))
            .because(why)
            .hint("copy the package again from where it was made, or teach the model again")
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A member of the detector as model.toml has it; its numbers are in the safetensors file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemberEntry {
    family: String,
    #[serde(flatten)]
    view: ViewEntry,
    /// Of a bank; packages of before there were several have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    neighbours: Option<usize>,
    sigma: f32,
    terms: Vec<Term>,
}

/// [`View`] without the refusal of unknown fields, which does not go with flattening.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ViewEntry {
    cell: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    standardise: Option<f32>,
}

pub(super) fn entries(detector: &Detector) -> Vec<MemberEntry> {
    let family = |m: &Member| match m.family {
        Family::Ppca(_) => PPCA,
        Family::Patchcore(_) => PATCHCORE,
    };
    detector
        .members
        .iter()
        .map(|m| MemberEntry {
            family: family(m).into(),
            view: ViewEntry { cell: m.view.cell, standardise: m.view.standardise },
            neighbours: match &m.family {
                Family::Ppca(_) => None,
                Family::Patchcore(bank) => Some(bank.neighbours()),
            },
            sigma: m.sigma,
            terms: m.terms.clone(),
        })
        .collect()
}

const PPCA: &str = "ppca";
const PATCHCORE: &str = "patchcore";

/// The detector's numbers and the reference's luma as safetensors: `<member>.<tensor>`.
pub(super) fn normality_bytes(d: &Detector, reference: &Reference) -> Result<Vec<u8>> {
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (i, m) in d.members.iter().enumerate() {
        let grid = m.view.grid(d.grid);
        let (h, w) = (grid.height as usize, grid.width as usize);
        if let Family::Ppca(p) = &m.family {
            let steps = bytemuck::cast_slice(&p.basis.steps).to_vec();
            let mix = p.basis.mix.iter().flat_map(|m| m.to_le_bytes()).collect();
            tensors.push((format!("{i}.steps"), Dtype::I8, vec![h, w, p.channels / BLOCK, BLOCK_STEPS], steps));
            tensors.push((format!("{i}.mix"), Dtype::I16, vec![h, w, MIXED, RANK], mix));
        }
        let mut put = |name: &str, shape: Vec<usize>, values: &[f32]| {
            tensors.push((format!("{i}.{name}"), Dtype::F32, shape, floats(values)));
        };
        match &m.family {
            Family::Ppca(p) => {
                put("mean", vec![h, w, p.channels], &p.mean);
                put("scale", vec![h, w, RANK], &p.basis.scale);
                put("mix_scale", vec![h, w], &p.basis.mix_scale);
                put("inverse_noise", vec![h, w], &p.inverse_noise);
            }
            Family::Patchcore(bank) => {
                put("vectors", vec![bank.len(), bank.channels], bank.vectors());
                put("centre", vec![bank.channels], bank.centre());
            }
        }
        if let Some(usual) = &m.usual {
            put("usual", vec![h, w], usual);
        }
    }
    let size = reference.size;
    let shape = vec![size.height as usize, size.width as usize];
    tensors.push((REFERENCE_LUMA.into(), Dtype::U8, shape, reference.luma.clone()));
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| {
            TensorView::new(*dtype, shape.clone(), data).map(|v| (name.as_str(), v)).failed(|| "normality tensors")
        })
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize(views, None).failed(|| "normality tensors cannot be written")
}

const REFERENCE_LUMA: &str = "reference_luma";

/// The detector for a network grid and features a cell, and the reference's luma.
pub(super) fn parse_normality(
    bytes: &[u8],
    members: &[MemberEntry],
    grid: Size,
    channels: usize,
) -> Result<(Detector, Vec<u8>)> {
    let tensors = SafeTensors::deserialize(bytes).failed(|| "not a safetensors file")?;
    let tensor = |name: &str, dtype, rank| {
        let t = tensors.tensor(name).failed(|| format!("tensor \"{name}\" is missing"))?;
        if t.dtype() != dtype || t.shape().len() != rank {
            return Err(Error::failed(format!("tensor \"{name}\" is {:?} {:?}", t.dtype(), t.shape())));
        }
        Ok(t)
    };
    let read = |name: &str, rank| -> Result<Vec<f32>> {
        let t = tensor(name, Dtype::F32, rank)?;
        Ok(t.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    let shorts = |name: &str| -> Result<Vec<i16>> {
        let bytes = tensor(name, Dtype::I16, 4)?.data();
        Ok(bytes.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect())
    };
    let basis = |i: usize| -> Result<Basis> {
        let older = format!("{i}.basis");
        match tensors.tensor(&older).map(|t| t.dtype()) {
            // packages of before the 8-bit directions have them in 16 bits, those of before that in f32
            Ok(Dtype::F32) => Ok(Basis::quantised(&read(&older, 4)?, channels)),
            Ok(_) => {
                let (steps, scale) = (shorts(&older)?, read(&format!("{i}.basis_scale"), 3)?);
                let scales = scale.chunks_exact(RANK).flat_map(|s| s.iter().cycle().take(channels * RANK));
                let values: Vec<f32> = steps.iter().zip(scales).map(|(b, s)| f32::from(*b) * s).collect();
                Ok(Basis::quantised(&values, channels))
            }
            Err(_) => Ok(Basis {
                steps: bytemuck::cast_slice(tensor(&format!("{i}.steps"), Dtype::I8, 4)?.data()).to_vec(),
                scale: read(&format!("{i}.scale"), 3)?,
                mix: shorts(&format!("{i}.mix"))?,
                mix_scale: read(&format!("{i}.mix_scale"), 2)?,
            }),
        }
    };
    let members = members
        .iter()
        .enumerate()
        .map(|(i, m)| {
            let view = View { cell: m.view.cell.max(1), standardise: m.view.standardise };
            let named = |name: &str| format!("{i}.{name}");
            let family = match m.family.as_str() {
                PPCA => Family::Ppca(Ppca {
                    grid: view.grid(grid),
                    channels,
                    mean: read(&named("mean"), 3)?,
                    basis: basis(i)?,
                    inverse_noise: read(&named("inverse_noise"), 2)?,
                }),
                PATCHCORE => {
                    let (vectors, centre) = (read(&named("vectors"), 2)?, read(&named("centre"), 1)?);
                    Family::Patchcore(Bank::new(channels, vectors, centre, m.neighbours.unwrap_or(1))?)
                }
                other => return Err(Error::failed(format!("family \"{other}\" is not known"))),
            };
            let usual = tensors.tensor(&named("usual")).is_ok().then(|| read(&named("usual"), 2)).transpose()?;
            Ok(Member { view, family, usual, sigma: m.sigma, terms: m.terms.clone() })
        })
        .collect::<Result<Vec<_>>>()?;
    let detector = Detector { grid, channels, members };
    detector.validate()?;
    Ok((detector, tensor(REFERENCE_LUMA, Dtype::U8, 2)?.data().to_vec()))
}

fn png(pixels: &[u8], size: Size, colour: image::ExtendedColorType) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    image::codecs::png::PngEncoder::new(&mut out)
        .write_image(pixels, size.width, size.height, colour)
        .failed(|| "a PNG cannot be made")?;
    Ok(out)
}

pub(super) fn rgb_png(pixels: &[u8], size: Size) -> Result<Vec<u8>> {
    png(pixels, size, image::ExtendedColorType::Rgb8)
}

pub(super) fn gray_png(pixels: &[u8], size: Size) -> Result<Vec<u8>> {
    png(pixels, size, image::ExtendedColorType::L8)
}

fn read_png(bytes: &[u8], size: Size) -> Result<image::DynamicImage> {
    let image = image::load_from_memory_with_format(bytes, image::ImageFormat::Png).failed(|| "not a PNG")?;
    if (image.width(), image.height()) != (size.width, size.height) {
        return Err(Error::failed(format!(
            "{}x{} pixels, {}x{} are wanted",
            image.width(),
            image.height(),
            size.width,
            size.height
        )));
    }
    Ok(image)
}

pub(super) fn read_rgb_png(bytes: &[u8], size: Size) -> Result<Vec<u8>> {
    Ok(read_png(bytes, size)?.into_rgb8().into_raw())
}

pub(super) fn read_gray_png(bytes: &[u8], size: Size) -> Result<Vec<u8>> {
    Ok(read_png(bytes, size)?.into_luma8().into_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Size = Size { width: 3, height: 2 };
    const CHANNELS: usize = 16;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..n).map(|_| rng.f32() - 0.5).collect()
    }

    fn detector(directions: &[f32]) -> Detector {
        let n = GRID.area();
        let ppca = Ppca {
            grid: GRID,
            channels: CHANNELS,
            mean: numbers(n * CHANNELS, 1),
            basis: Basis::quantised(directions, CHANNELS),
            inverse_noise: vec![2.0; n],
        };
        let bank = Bank::new(CHANNELS, numbers(5 * CHANNELS, 2), numbers(CHANNELS, 3), 2).unwrap();
        let member = |family, usual| Member {
            view: View::PLAIN,
            family,
            usual,
            sigma: 1.5,
            terms: vec![Term { top: 0.0, weight: 0.5 }],
        };
        let members = vec![member(Family::Ppca(ppca), Some(vec![1.5; n])), member(Family::Patchcore(bank), None)];
        Detector { grid: GRID, channels: CHANNELS, members }
    }

    fn reference() -> Reference {
        Reference { size: GRID, luma: vec![7; GRID.area()], rgb: Vec::new(), mean: 0.0, deviation: 1.0 }
    }

    #[test]
    fn what_was_written_is_read() {
        let written = detector(&numbers(GRID.area() * CHANNELS * RANK, 4));
        let bytes = normality_bytes(&written, &reference()).unwrap();
        let (read, luma) = parse_normality(&bytes, &entries(&written), GRID, CHANNELS).unwrap();
        assert_eq!((read, luma), (written, vec![7; GRID.area()]));
    }

    /// Directions in f32 under the name "basis", and in 16 bits with their scales beside them.
    #[test]
    fn packages_of_older_versions_are_read() {
        let (h, w) = (GRID.height as usize, GRID.width as usize);
        // short ones, so that they explain less than all
        let directions: Vec<f32> = numbers(GRID.area() * CHANNELS * RANK, 5).iter().map(|v| 0.1 * v).collect();
        let wanted = detector(&directions);
        let bytes = normality_bytes(&wanted, &reference()).unwrap();
        let now = SafeTensors::deserialize(&bytes).unwrap();
        let kept = now
            .tensors()
            .into_iter()
            .filter(|(name, _)| !["0.steps", "0.scale", "0.mix", "0.mix_scale"].contains(&name.as_str()));
        let kept: Vec<_> = kept.collect();
        let scale = 0.05 / 32_767.0;
        let short: Vec<u8> = directions.iter().flat_map(|v| ((v / scale).round() as i16).to_le_bytes()).collect();
        let scales = floats(&vec![scale; GRID.area() * RANK]);
        let long = floats(&directions);
        let view = |dtype, shape, data| TensorView::new(dtype, shape, data).unwrap();
        let older: [Vec<(&str, TensorView<'_>)>; 2] = [
            vec![("0.basis", view(Dtype::F32, vec![h, w, CHANNELS, RANK], &long))],
            vec![
                ("0.basis", view(Dtype::I16, vec![h, w, CHANNELS, RANK], &short)),
                ("0.basis_scale", view(Dtype::F32, vec![h, w, RANK], &scales)),
            ],
        ];
        for older in older {
            let all = older.into_iter().map(|(name, t)| (name.to_owned(), t)).chain(kept.clone());
            let bytes = safetensors::serialize(all, None).unwrap();
            let (read, _) = parse_normality(&bytes, &entries(&wanted), GRID, CHANNELS).unwrap();
            let (Family::Ppca(read), Family::Ppca(wanted)) = (&read.members[0].family, &wanted.members[0].family)
            else {
                panic!("no Gaussians")
            };
            let features = numbers(GRID.area() * CHANNELS, 6);
            let (mut a, mut b) = (vec![0.0; GRID.area()], vec![0.0; GRID.area()]);
            read.distances(&features, &mut a);
            wanted.distances(&features, &mut b);
            a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() < 1e-3 * b && *b > 0.1, "{a} {b}"));
        }
    }

    #[test]
    fn tensors_of_another_size_are_refused() {
        let written = detector(&numbers(GRID.area() * CHANNELS * RANK, 7));
        let bytes = normality_bytes(&written, &reference()).unwrap();
        let e = parse_normality(&bytes, &entries(&written), Size { width: 4, height: 2 }, CHANNELS).unwrap_err();
        assert!(e.to_string().contains("tensor \"steps\" has"), "{e}");
    }
}
