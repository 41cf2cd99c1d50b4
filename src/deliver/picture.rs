//! Pictures that stand in for those that could not be encoded. Called on the writer thread.
//!
//! Invariants, each with the test that holds it:
//! 1. A placeholder has the size that the event states, so that its regions stay where they are: `a_placeholder_has_the_size`.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{GrayImage, ImageEncoder, Luma};

use super::Pictures;
use crate::error::{Error, Result};
use crate::event::{Event, ImageSize};

/// The largest picture that is spooled.
const LARGEST: usize = 64 << 20;
/// The most pixels of a placeholder; the event's size is changed when it states more.
const MOST_PIXELS: u64 = 32 << 20;

pub(super) fn panicked() -> Error {
    Error::failed("the encoder panicked")
}

pub(super) fn no_room() -> Error {
    Error::failed("the disk is full")
}

/// Pictures that can be sent.
pub(super) fn checked(pictures: Pictures) -> Result<Pictures> {
    let Pictures { frame_jpeg, heatmap_png, normal_jpeg } = &pictures;
    for (name, picture) in
        [("frame", Some(frame_jpeg)), ("heatmap", Some(heatmap_png)), ("normal", normal_jpeg.as_ref())]
    {
        let Some(picture) = picture else { continue };
        if picture.is_empty() || picture.len() > LARGEST {
            return Err(Error::failed(format!("the {name} picture has {} bytes", picture.len())));
        }
    }
    Ok(pictures)
}

/// Plain grey and plain black, as large as the event says.
pub(super) fn placeholder(event: &mut Event) -> Pictures {
    let ImageSize { width, height } = event.image;
    if u64::from(width) * u64::from(height) > MOST_PIXELS || [width, height].iter().any(|n| !(1..=65_535).contains(n)) {
        event.image = ImageSize { width: 16, height: 16 };
    }
    let ImageSize { width, height } = event.image;
    let plain = |grey, png: bool| {
        let picture = GrayImage::from_pixel(width, height, Luma([grey]));
        let mut out = Cursor::new(Vec::new());
        let encoded = match png {
            true => PngEncoder::new(&mut out).write_image(&picture, width, height, image::ExtendedColorType::L8),
            false => JpegEncoder::new_with_quality(&mut out, 30).write_image(
                &picture,
                width,
                height,
                image::ExtendedColorType::L8,
            ),
        };
        // writing to memory; should it fail all the same, the receiver decides about an empty picture
        encoded.map(|()| out.into_inner()).unwrap_or_default()
    };
    Pictures { frame_jpeg: plain(0x80, false), heatmap_png: plain(0, true), normal_jpeg: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_has_the_size() {
        for (stated, made) in [((640, 480), (640, 480)), ((0, 9), (16, 16)), ((60_000, 60_000), (16, 16))] {
            let (mut event, _) = crate::deliver::tests::sample(0);
            event.image = ImageSize { width: stated.0, height: stated.1 };
            let pictures = placeholder(&mut event);
            assert_eq!((event.image.width, event.image.height), made);
            for bytes in [&pictures.frame_jpeg, &pictures.heatmap_png] {
                let picture = image::load_from_memory(bytes).unwrap();
                assert_eq!((picture.width(), picture.height()), made);
                assert!(bytes.len() < 20_000, "{} bytes", bytes.len());
            }
        }
    }

    #[test]
    fn empty_and_huge_pictures_are_not_sent() {
        let good = Pictures { frame_jpeg: vec![1], heatmap_png: vec![1], normal_jpeg: None };
        assert!(checked(good.clone()).is_ok());
        let e = checked(Pictures { heatmap_png: vec![], ..good.clone() }).unwrap_err();
        assert_eq!(e.to_string(), "the heatmap picture has 0 bytes");
        assert!(checked(Pictures { normal_jpeg: Some(vec![0; LARGEST + 1]), ..good }).is_err());
    }
}
