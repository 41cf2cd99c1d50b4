//! Files of a model package: checksums, safetensors, PNGs.

use crate::detect::head::{Normality, RANK};
use crate::error::{Context, Error, Result};
use crate::prepare::register::Reference;
use crate::prepare::shrink::Size;
use image::ImageEncoder;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

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

pub(super) fn normality_bytes(n: &Normality, reference: &Reference) -> Result<Vec<u8>> {
    let (h, w, c) = (n.grid.height as usize, n.grid.width as usize, n.channels);
    let (mean, basis, noise) = (floats(&n.mean), floats(&n.basis), floats(&n.inverse_noise));
    let size = reference.size;
    let view = |dtype, shape, data| TensorView::new(dtype, shape, data).failed(|| "normality tensors");
    let tensors = [
        ("mean", view(Dtype::F32, vec![h, w, c], &mean)?),
        ("basis", view(Dtype::F32, vec![h, w, c, RANK], &basis)?),
        ("inverse_noise", view(Dtype::F32, vec![h, w], &noise)?),
        ("reference_luma", view(Dtype::U8, vec![size.height as usize, size.width as usize], &reference.luma)?),
    ];
    safetensors::serialize(tensors, None).failed(|| "normality tensors cannot be written")
}

/// The normality model and the reference's luma.
pub(super) fn parse_normality(bytes: &[u8]) -> Result<(Normality, Vec<u8>)> {
    let tensors = SafeTensors::deserialize(bytes).failed(|| "not a safetensors file")?;
    let tensor = |name: &'static str, dtype, rank| {
        let t = tensors.tensor(name).failed(|| format!("tensor \"{name}\" is missing"))?;
        if t.dtype() != dtype || t.shape().len() != rank {
            return Err(Error::failed(format!("tensor \"{name}\" is {:?} {:?}", t.dtype(), t.shape())));
        }
        Ok(t)
    };
    let read = |t: &TensorView<'_>| -> Vec<f32> {
        t.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let mean = tensor("mean", Dtype::F32, 3)?;
    let basis = tensor("basis", Dtype::F32, 4)?;
    let noise = tensor("inverse_noise", Dtype::F32, 2)?;
    let luma = tensor("reference_luma", Dtype::U8, 2)?;
    let [h, w, c] = mean.shape() else { return Err(Error::failed("tensor \"mean\" has no shape")) };
    let normality = Normality {
        grid: Size { width: *w as u32, height: *h as u32 },
        channels: *c,
        mean: read(&mean),
        basis: read(&basis),
        inverse_noise: read(&noise),
    };
    normality.validate()?;
    Ok((normality, luma.data().to_vec()))
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
