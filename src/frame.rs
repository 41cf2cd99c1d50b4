//! One captured frame: a mapped GStreamer buffer in the format the decoder or camera gave.
//!
//! Invariants:
//! 1. Pixels are never copied: a [`Frame`] keeps the buffer mapped until its last holder drops it, and planes are slices of
//!    that mapping (test `frame::tests::planes_are_views_of_the_buffer`).
//! 2. `seq` counts the frames of one capture from 0 without gaps.

use crate::error::{Error, Result};
use gstreamer_video as gst_video;
use gstreamer_video::prelude::*;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Instant;

/// Pixel layouts that linesight reads as they are; anything else is converted by GStreamer to the nearest of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelFormat {
    /// Three planes, chroma halved both ways.
    I420,
    /// Luma plane and interleaved chroma plane, chroma halved both ways.
    Nv12,
    /// Three planes, chroma halved horizontally (JPEG 4:2:2).
    Y42b,
    /// Three full planes (JPEG 4:4:4).
    Y444,
    Gray8,
    Rgb,
    Bgr,
}

impl PixelFormat {
    /// The GStreamer names, in the order of preference; the caps of every pipeline's appsink.
    pub const GST_NAMES: [&'static str; 7] = ["I420", "NV12", "Y42B", "Y444", "GRAY8", "RGB", "BGR"];

    fn from_gst(format: gst_video::VideoFormat) -> Option<Self> {
        Some(match format {
            gst_video::VideoFormat::I420 => PixelFormat::I420,
            gst_video::VideoFormat::Nv12 => PixelFormat::Nv12,
            gst_video::VideoFormat::Y42b => PixelFormat::Y42b,
            gst_video::VideoFormat::Y444 => PixelFormat::Y444,
            gst_video::VideoFormat::Gray8 => PixelFormat::Gray8,
            gst_video::VideoFormat::Rgb => PixelFormat::Rgb,
            gst_video::VideoFormat::Bgr => PixelFormat::Bgr,
            _ => return None,
        })
    }

    /// Width and height of the chroma planes over those of the luma plane.
    pub fn chroma_scale(self) -> (f64, f64) {
        match self {
            PixelFormat::I420 | PixelFormat::Nv12 => (0.5, 0.5),
            PixelFormat::Y42b => (0.5, 1.0),
            PixelFormat::Y444 | PixelFormat::Gray8 | PixelFormat::Rgb | PixelFormat::Bgr => (1.0, 1.0),
        }
    }

    /// Whether plane 0 is luma.
    pub fn is_yuv(self) -> bool {
        matches!(self, PixelFormat::I420 | PixelFormat::Nv12 | PixelFormat::Y42b | PixelFormat::Y444)
    }
}

/// How YUV values are to be read, from the stream's colorimetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colorimetry {
    /// True for 0..255 luma (JPEG, many cameras), false for 16..235 (most video).
    pub full_range: bool,
    /// True for ITU-R BT.709, false for BT.601.
    pub bt709: bool,
}

/// A view of one plane: `data[y * stride + x * channels + c]`.
#[derive(Debug, Clone, Copy)]
pub struct Plane<'a> {
    pub data: &'a [u8],
    pub stride: usize,
    pub width: usize,
    pub height: usize,
    pub channels: usize,
}

/// One frame; shared as `Arc<Frame>`.
pub struct Frame {
    video: gst_video::VideoFrame<gst_video::video_frame::Readable>,
    format: PixelFormat,
    colorimetry: Colorimetry,
    /// Number of this frame in its capture, from 0, without gaps.
    pub seq: u64,
    /// The camera's own number of this frame, where it has one; begins anew whenever the source is opened.
    pub source_seq: Option<u64>,
    /// Presentation time in the stream, nanoseconds.
    pub pts_ns: Option<u64>,
    /// When it was taken from the pipeline (monotonic).
    pub captured: Instant,
    /// The same moment on the wall clock.
    pub captured_at: Timestamp,
    /// The file it came from, for image folders.
    pub file: Option<Arc<str>>,
}

impl Frame {
    /// Maps `buffer` for reading.
    pub fn map(
        buffer: gstreamer::Buffer,
        info: &gst_video::VideoInfo,
        seq: u64,
        file: Option<Arc<str>>,
    ) -> Result<Self> {
        let format = PixelFormat::from_gst(info.format()).ok_or_else(|| {
            Error::failed(format!("pixel format \"{:?}\" reached the appsink", info.format()))
                .hint(format!("end the pipeline in one of: {}", PixelFormat::GST_NAMES.join(", ")))
        })?;
        let pts_ns = buffer.pts().map(|t| t.nseconds());
        let colorimetry = info.colorimetry();
        let colorimetry = Colorimetry {
            full_range: colorimetry.range() == gst_video::VideoColorRange::Range0_255,
            bt709: colorimetry.matrix() == gst_video::VideoColorMatrix::Bt709,
        };
        let video = gst_video::VideoFrame::from_buffer_readable(buffer, info)
            .map_err(|_| Error::failed(format!("frame {seq} cannot be mapped as {:?}", info.format())))?;
        Ok(Frame {
            video,
            format,
            colorimetry,
            seq,
            source_seq: None,
            pts_ns,
            captured: Instant::now(),
            captured_at: Timestamp::now(),
            file,
        })
    }

    pub fn format(&self) -> PixelFormat {
        self.format
    }
    pub fn colorimetry(&self) -> Colorimetry {
        self.colorimetry
    }
    pub fn width(&self) -> u32 {
        self.video.width()
    }
    pub fn height(&self) -> u32 {
        self.video.height()
    }
    /// Bytes of the decoded picture.
    pub fn byte_size(&self) -> usize {
        self.video.info().size()
    }

    /// A copy of a part of the frame, for teaching, which keeps many parts in memory. `x` and `y` are rounded down to even
    /// numbers; the position of the copy's top left pixel is returned with it.
    pub fn copy_region(&self, x: u32, y: u32, width: u32, height: u32) -> Result<(Frame, u32, u32)> {
        let (x, y) = (x.min(self.width() - 2) & !1, y.min(self.height() - 2) & !1);
        let (width, height) = (width.min(self.width() - x), height.min(self.height() - y));
        let info = gst_video::VideoInfo::builder(self.video.format(), width, height)
            .colorimetry(&self.video.info().colorimetry())
            .build()
            .map_err(|e| Error::failed(format!("a {width}x{height} region cannot be copied")).because(e))?;
        let mut bytes = vec![0u8; info.size()];
        for i in 0..self.video.n_planes() {
            let plane = self.plane(i);
            let scale_x = self.plane(0).width.div_ceil(plane.width);
            let scale_y = self.plane(0).height.div_ceil(plane.height);
            let (px, py) = (x as usize / scale_x, y as usize / scale_y);
            let row = (width as usize).div_ceil(scale_x) * plane.channels;
            let (offset, stride) = (info.offset()[i as usize], info.stride()[i as usize] as usize);
            for line in 0..(height as usize).div_ceil(scale_y) {
                let from = (py + line) * plane.stride + px * plane.channels;
                let to = offset + line * stride;
                bytes[to..to + row].copy_from_slice(&plane.data[from..from + row]);
            }
        }
        let mut copy = Frame::map(gstreamer::Buffer::from_mut_slice(bytes), &info, self.seq, self.file.clone())?;
        (copy.pts_ns, copy.captured, copy.captured_at) = (self.pts_ns, self.captured, self.captured_at);
        copy.source_seq = self.source_seq;
        Ok((copy, x, y))
    }

    /// Plane `i`; I420, Y42B and Y444 have three, NV12 two, the others one.
    ///
    /// # Panics
    /// If the format has no such plane.
    pub fn plane(&self, i: u32) -> Plane<'_> {
        let (w, h) = (self.video.width() as usize, self.video.height() as usize);
        let (width, height, channels) = match (self.format, i) {
            (PixelFormat::I420, 1 | 2) => (w.div_ceil(2), h.div_ceil(2), 1),
            (PixelFormat::Nv12, 1) => (w.div_ceil(2), h.div_ceil(2), 2),
            (PixelFormat::Y42b, 1 | 2) => (w.div_ceil(2), h, 1),
            (PixelFormat::Y444, 1 | 2) => (w, h, 1),
            (PixelFormat::Rgb | PixelFormat::Bgr, 0) => (w, h, 3),
            (_, 0) => (w, h, 1),
            (format, i) => panic!("{format:?} has no plane {i}"),
        };
        let data = self.video.plane_data(i).unwrap_or_default();
        Plane { data, stride: self.video.plane_stride()[i as usize].unsigned_abs() as usize, width, height, channels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_views_of_the_buffer() {
        gstreamer::init().unwrap();
        let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::I420, 6, 4).build().unwrap();
        let buffer = gstreamer::Buffer::from_slice((0..info.size()).map(|i| i as u8).collect::<Vec<_>>());
        let address = buffer.map_readable().unwrap().as_slice().as_ptr() as usize;
        let frame = Frame::map(buffer, &info, 7, None).unwrap();
        assert_eq!(frame.plane(0).data.as_ptr() as usize, address);
        let v = frame.plane(2);
        assert_eq!((v.width, v.height, v.stride), (3, 2, info.stride()[2] as usize));
        assert_eq!(v.data.as_ptr() as usize - address, info.offset()[2]);
    }

    #[test]
    fn a_copied_region_shows_the_same_pixels() {
        gstreamer::init().unwrap();
        let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::I420, 16, 12).build().unwrap();
        let buffer = gstreamer::Buffer::from_slice((0..info.size()).map(|i| (i * 7) as u8).collect::<Vec<_>>());
        let frame = Frame::map(buffer, &info, 0, None).unwrap();
        let (copy, x, y) = frame.copy_region(5, 3, 7, 6).unwrap();
        assert_eq!((x, y, copy.width(), copy.height()), (4, 2, 7, 6));
        for (i, scale) in [(0, 1), (1, 2), (2, 2)] {
            let (a, b) = (frame.plane(i), copy.plane(i));
            for yy in 0..b.height {
                for xx in 0..b.width {
                    let (fx, fy) = (4 / scale + xx, 2 / scale + yy);
                    assert_eq!(b.data[yy * b.stride + xx], a.data[fy * a.stride + fx], "plane {i} {xx},{yy}");
                }
            }
        }
    }
}
