//! Capture: every frame of a source arrives, in order, with the pixels that were encoded.

#![allow(clippy::unwrap_used)]

mod support;

use linesight::capture::{Capture, Source};
use linesight::frame::{Frame, PixelFormat};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use support::*;

fn open(text: &str) -> Capture {
    Capture::open(&Source::parse(text).unwrap(), false).unwrap()
}

fn frames(text: &str) -> Vec<Arc<Frame>> {
    let mut capture = open(text);
    std::iter::from_fn(|| capture.next_frame().unwrap()).collect()
}

/// Every frame of a recording arrives once, in order, on time and with its own format, as many as its truth says.
#[test]
fn every_frame_of_a_recording_arrives_in_order() {
    let truth = truth("sample-teach");
    let file = asset("sample-teach.mp4");
    let mut capture = open(file.to_str().unwrap());
    let mut next = 0;
    while let Some(frame) = capture.next_frame().unwrap() {
        assert_eq!(frame.seq, next, "no gap");
        assert_eq!((u64::from(frame.width()), u64::from(frame.height())), (truth.width.into(), truth.height.into()));
        assert_eq!(frame.format(), PixelFormat::I420, "as the decoder gave it");
        let due = next * 1_000_000_000 / 30;
        assert!(frame.pts_ns.unwrap().abs_diff(due) < 1_000_000, "frame {next} at {:?}", frame.pts_ns);
        assert_eq!(frame.byte_size(), 1280 * 720 * 3 / 2);
        next += 1;
    }
    assert_eq!((next, capture.frames(), capture.expected_frames()), (truth.frames, truth.frames, None));
    assert_eq!((capture.bytes_in(), capture.warnings()), (std::fs::metadata(&file).unwrap().len(), 0));
    assert!(capture.next_frame().unwrap().is_none(), "the end stays the end");
}

/// A slow reader loses nothing: the pipeline waits.
#[test]
fn a_slow_reader_loses_nothing() {
    let clip = clip("sample-teach", 40);
    let mut capture = open(clip.to_str().unwrap());
    let mut held = Vec::new();
    while let Some(frame) = capture.next_frame().unwrap() {
        // all are held at once, more than any queue has room for
        held.push(frame);
    }
    assert_eq!(held.iter().map(|f| f.seq).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
    let distinct: std::collections::BTreeSet<u64> = held.iter().map(|f| sum(f)).collect();
    assert!(distinct.len() > 30, "each keeps its own pixels");
}

/// What the decoder is still predicting from and what is being read is not written to: frames show the same while they are held,
/// however long that is, as when each is let go at once.
#[test]
fn frames_that_are_held_stay_as_they_were() {
    let folder = folder();
    for (name, options) in [("p.mp4", "tune=zerolatency"), ("b.mp4", "bframes=3 ref=4"), ("i.mp4", "key-int-max=1")] {
        let file = folder.path().join(name);
        // 360 rows are encoded as 368
        play(&format!(
            "videotestsrc num-buffers=90 pattern=ball motion=sweep ! video/x-raw,format=I420,width=640,height=360,framerate=30/1 \
             ! x264enc {options} ! mp4mux ! filesink location={}",
            file.display()
        ));
        let file = file.to_str().unwrap();
        let mut capture = open(file);
        let at_once: Vec<u64> = std::iter::from_fn(|| capture.next_frame().unwrap()).map(|f| hash(&f)).collect();
        assert_eq!(at_once.len(), 90);
        let (mut capture, mut held, mut later) = (open(file), std::collections::VecDeque::new(), Vec::new());
        // some are held for short, some for long, some to the end
        while let Some(frame) = capture.next_frame().unwrap() {
            held.push_back(frame);
            if held.len() > 40 || held.back().unwrap().seq % 3 == 0 {
                let frame = held.pop_front().unwrap();
                later.push((frame.seq, hash(&frame)));
            }
        }
        later.extend(held.iter().map(|f| (f.seq, hash(f))));
        assert_eq!(later, at_once.into_iter().enumerate().map(|(i, s)| (i as u64, s)).collect::<Vec<_>>(), "{name}");
    }
}

/// The number of frames is known ahead where the container says it.
#[test]
fn the_length_is_known_ahead() {
    let clip = clip("sample-teach", 40);
    let mut capture = open(clip.to_str().unwrap());
    capture.next_frame().unwrap().unwrap();
    assert_eq!(capture.expected_frames(), Some(40));
    assert_eq!(open(good_stills().to_str().unwrap()).expected_frames(), Some(GOOD_STILLS as u64));
}

/// Grey value of picture `i` at `x, y`: a level of its own, and a texture that a wrong stride would tear.
fn grey(i: usize, x: usize, y: usize) -> u8 {
    (40 + 25 * i + (x / 16 + y / 16) % 2 * 30) as u8
}

const PICTURES: usize = 5;

/// Rows as GStreamer wants them: padded to four bytes.
fn picture(i: usize, w: usize, h: usize, channels: usize) -> Vec<u8> {
    let stride = (w * channels).div_ceil(4) * 4;
    let mut bytes = vec![0; stride * h];
    for (y, row) in bytes.chunks_exact_mut(stride).enumerate() {
        for (x, pixel) in row[..w * channels].chunks_exact_mut(channels).enumerate() {
            pixel.fill(grey(i, x, y));
        }
    }
    bytes
}

fn sum(frame: &Frame) -> u64 {
    let plane = frame.plane(0);
    let row = plane.width * plane.channels;
    (0..plane.height).flat_map(|y| &plane.data[y * plane.stride..y * plane.stride + row]).map(|v| u64::from(*v)).sum()
}

/// Stands for the pixels of the first plane.
fn hash(frame: &Frame) -> u64 {
    let plane = frame.plane(0);
    let mut hasher = std::hash::DefaultHasher::new();
    plane.data.chunks(plane.stride).for_each(|row| row[..plane.width * plane.channels].hash(&mut hasher));
    hasher.finish()
}

/// Mean of the luma, or of the grey pixels in RGB, brought to 0..255.
fn mean(frame: &Frame) -> f64 {
    let plane = frame.plane(0);
    let mean = sum(frame) as f64 / (plane.width * plane.height * plane.channels) as f64;
    match frame.format().is_yuv() && !frame.colorimetry().full_range {
        true => (mean - 16.0) * 255.0 / 219.0,
        false => mean,
    }
}

/// Asserts that `frame` shows picture `i`: its size, its mean, and light and dark where they belong.
#[track_caller]
fn shows(frame: &Frame, i: usize, (w, h): (usize, usize), what: &str) {
    assert_eq!((frame.width() as usize, frame.height() as usize), (w, h), "{what}");
    let wanted = (0..h).flat_map(|y| (0..w).map(move |x| f64::from(grey(i, x, y)))).sum::<f64>() / (w * h) as f64;
    assert!((mean(frame) - wanted).abs() < 2.5, "{what}, picture {i}: mean {} of {wanted}", mean(frame));
    // the middle of a dark and of a light square near the far corner: a wrong stride would mix them
    let plane = frame.plane(0);
    let at = |x: usize, y: usize| f64::from(plane.data[y * plane.stride + x * plane.channels]);
    let (x, y) = ((w / 16 - 2) * 16 + 8, (h / 16 - 2) * 16 + 8);
    let difference = at(x + 16, y) - at(x, y);
    let expected = f64::from(grey(i, x + 16, y)) - f64::from(grey(i, x, y));
    assert!(difference * expected > 0.0 && difference.abs() > 15.0, "{what}, picture {i}: {difference} of {expected}");
}

/// Recordings in each container and codec, of even and of odd size, decode to the pictures that were encoded.
#[test]
fn recordings_show_what_was_encoded() {
    let folder = folder();
    for (name, elements, format, (w, h), tail) in [
        (
            "h264.mp4",
            &["x264enc"][..],
            "RGB",
            (640, 360),
            "videoconvert ! video/x-raw,format=I420 ! x264enc quantizer=12 pass=quant ! mp4mux",
        ),
        (
            "h264-odd.mp4",
            &["x264enc"],
            "RGB",
            (427, 241),
            "videoconvert ! video/x-raw,format=Y444 ! x264enc quantizer=12 pass=quant ! mp4mux",
        ),
        (
            "h264.mkv",
            &["x264enc"],
            "RGB",
            (426, 240),
            "videoconvert ! video/x-raw,format=I420 ! x264enc quantizer=12 pass=quant ! matroskamux",
        ),
        (
            "mjpeg.avi",
            &["avimux"],
            "RGB",
            (640, 360),
            "videoconvert ! video/x-raw,format=I420,colorimetry=1:4:0:0 ! jpegenc quality=95 ! avimux",
        ),
        (
            "mjpeg-odd.avi",
            &["avimux"],
            "RGB",
            (427, 241),
            "videoconvert ! video/x-raw,format=I420,colorimetry=1:4:0:0 ! jpegenc quality=95 ! avimux",
        ),
        (
            "mjpeg-422.mkv",
            &["matroskamux"],
            "RGB",
            (427, 241),
            "videoconvert ! video/x-raw,format=Y42B,colorimetry=1:4:0:0 ! jpegenc quality=95 ! matroskamux",
        ),
        ("mjpeg-grey.avi", &["avimux"], "GRAY8", (427, 241), "jpegenc quality=95 ! avimux"),
        (
            "vp8-odd.webm",
            &["vp8enc", "webmmux"],
            "RGB",
            (427, 241),
            "videoconvert ! vp8enc deadline=1 min-quantizer=2 max-quantizer=6 ! webmmux",
        ),
        ("raw.avi", &["avimux"], "RGB", (427, 241), "videoconvert ! video/x-raw,format=BGR ! avimux"),
    ] {
        if !has(elements) {
            println!("skipped {name}: no {elements:?}");
            continue;
        }
        let file = folder.path().join(name);
        let channels = if format == "RGB" { 3 } else { 1 };
        let pictures = (0..PICTURES).map(|i| (i, picture(i, w, h, channels)));
        let caps = format!("format={format},width={w},height={h},framerate=25/1");
        encode(&caps, &format!("{tail} ! filesink location=\"{}\"", file.display()), 25, pictures);
        let decoded = frames(file.to_str().unwrap());
        assert_eq!(decoded.len(), PICTURES, "{name}");
        for (i, frame) in decoded.iter().enumerate() {
            assert_eq!(frame.seq, i as u64, "{name}");
            shows(frame, i, (w, h), name);
        }
        // the same file by its URI
        let uri = url::Url::from_file_path(&file).unwrap();
        assert_eq!(
            frames(uri.as_str()).iter().map(|f| sum(f)).collect::<Vec<_>>(),
            decoded.iter().map(|f| sum(f)).collect::<Vec<_>>(),
            "{name}"
        );
    }
}

/// Images of each kind and ending in one folder, colour and grey, even and odd, arrive in the order of their names with
/// their names.
#[test]
fn images_show_what_was_encoded() {
    let folder = folder();
    let kinds = [
        ("image-1.png", "RGB", "pngenc", (640, 360)),
        ("image-2.png", "GRAY8", "pngenc", (427, 241)),
        ("image-3.png", "RGBA", "pngenc", (427, 241)),
        (
            "image-9.jpg",
            "RGB",
            "videoconvert ! video/x-raw,format=I420,colorimetry=1:4:0:0 ! jpegenc quality=95",
            (427, 241),
        ),
        ("image-10.jpeg", "GRAY8", "jpegenc quality=95", (427, 241)),
        (
            "image-11.JPG",
            "RGB",
            "videoconvert ! video/x-raw,format=Y444,colorimetry=1:4:0:0 ! jpegenc quality=95",
            (64, 48),
        ),
        ("image-12.bmp", "RGB", "videoconvert ! avenc_bmp", (428, 241)),
        ("image-13.tif", "RGB", "avenc_tiff", (427, 241)),
        ("image-14.png", "GRAY16_LE", "videoconvert ! pngenc", (426, 240)),
    ];
    let mut wanted = Vec::new();
    for (i, (name, format, tail, (w, h))) in kinds.into_iter().enumerate() {
        let file = folder.path().join(name);
        let caps = format!("format={format},width={w},height={h},framerate=25/1");
        let (level, channels) = (
            i % PICTURES,
            match format {
                "RGB" => 3,
                "RGBA" => 4,
                "GRAY16_LE" => 2,
                _ => 1,
            },
        );
        let mut bytes = picture(level, w, h, channels);
        if format == "RGBA" {
            // opaque
            bytes.iter_mut().skip(3).step_by(4).for_each(|a| *a = 255);
        }
        encode(&caps, &format!("{tail} ! filesink location=\"{}\"", file.display()), 25, [(0, bytes)]);
        wanted.push((name, level, (w, h)));
    }
    std::fs::write(folder.path().join("image-4.txt"), "no image").unwrap();
    let mut capture = open(folder.path().to_str().unwrap());
    for (i, (name, level, size)) in wanted.iter().enumerate() {
        let frame = capture.next_frame().unwrap().unwrap();
        assert_eq!((frame.seq, frame.file.as_deref()), (i as u64, Some(*name)));
        shows(&frame, *level, *size, name);
    }
    assert!(capture.next_frame().unwrap().is_none());
}

/// Formats that cameras give come through a URI as they are, without a conversion; others become the nearest of these.
/// (What GStreamer 1.22 complains of meanwhile is its testsrcbin's own: it lets go of the caps of its capsfilter twice.)
#[test]
fn camera_formats_through_a_uri() {
    if !has(&["testsrcbin"]) {
        println!("skipped: no testsrcbin, which gives raw pictures through a URI");
        return;
    }
    for (format, wanted) in [
        ("NV12", PixelFormat::Nv12),
        ("RGB", PixelFormat::Rgb),
        ("BGR", PixelFormat::Bgr),
        ("I420", PixelFormat::I420),
        ("GRAY8", PixelFormat::Gray8),
        ("Y42B", PixelFormat::Y42b),
        ("YUY2", PixelFormat::Y42b),
        ("Y444", PixelFormat::Y444),
    ] {
        for (w, h) in [(426, 240), (427, 241)] {
            // white, so that the level is known in each format
            let uri = format!(
                "testbin://video,pattern=white,num-buffers=4,caps=[video/x-raw,format={format},width={w},height={h}]"
            );
            let mut capture = open(&uri);
            let mut n = 0;
            while let Some(frame) = capture.next_frame().unwrap() {
                assert_eq!((frame.seq, frame.format(), frame.width(), frame.height()), (n, wanted, w, h), "{uri}");
                // videotestsrc paints grey as if it were luma
                let white = if wanted == PixelFormat::Gray8 { 235.0 } else { 255.0 };
                assert!((mean(&frame) - white).abs() < 1.5, "{uri}: {}", mean(&frame));
                n += 1;
            }
            assert_eq!((n, capture.bytes_in()), (4, 0), "{uri}");
        }
    }
}

/// A recording of a camera that dropped frames is whole: gaps in time are not damage.
#[test]
fn gaps_in_time_are_not_damage() {
    let folder = folder();
    let file = folder.path().join("gaps.mkv");
    // two of three frames never came
    let pictures = (0..30).map(|i| (3 * i, picture(i % PICTURES, 320, 240, 3)));
    let tail = format!("videoconvert ! x264enc ! matroskamux ! filesink location=\"{}\"", file.display());
    encode("format=RGB,width=320,height=240,framerate=30/1", &tail, 30, pictures);
    let frames = frames(file.to_str().unwrap());
    let times: Vec<u64> = frames.iter().map(|f| f.pts_ns.unwrap() / 1_000_000).collect();
    assert_eq!(times, (0..30).map(|i| 100 * i).collect::<Vec<_>>());
}
