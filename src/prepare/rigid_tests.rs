//! Poses of drawn parts: right at every angle, and doubted where there is no part, half a part or two.

use super::*;
use crate::prepare::register::statistics;
use gstreamer_video as gst_video;

const WIDTH: usize = 480;
const HEIGHT: usize = 400;
const BACKGROUND: f64 = 200.0;

/// Grey value of a part at a place around its origin, in pixels; `None` is background.
type Shape = fn(f64, f64) -> Option<f64>;

/// A bar with a head at one end.
fn bolt(x: f64, y: f64) -> Option<f64> {
    let head = (-100.0..-70.0).contains(&x) && y.abs() < 26.0;
    let shank = (-70.0..95.0).contains(&x) && y.abs() < 12.0;
    (head || shank).then_some(if head { 70.0 } else { 110.0 })
}

/// A disc with a notch and a hole: only they tell the angle.
fn disc(x: f64, y: f64) -> Option<f64> {
    let notch = x > 70.0 && y.abs() < 8.0;
    let hole = (x + 10.0).hypot(y - 40.0) < 14.0;
    (x.hypot(y) < 85.0 && !notch && !hole).then_some(60.0)
}

/// A square with something in one quarter: four angles look nearly alike. Brighter than the background.
fn square(x: f64, y: f64) -> Option<f64> {
    let chip = (15.0..50.0).contains(&x) && (10.0..60.0).contains(&y);
    (x.abs() < 75.0 && y.abs() < 75.0).then_some(if chip { 150.0 } else { 250.0 })
}

/// Parts at poses (x, y, degrees), four samples a pixel each way, with a gradient and some noise.
fn picture(parts: &[(Shape, f64, f64, f64)]) -> Frame {
    gstreamer::init().unwrap();
    let mut seed = 9u32;
    let mut pixels = Vec::with_capacity(WIDTH * HEIGHT);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let light = 1.0 - 0.12 * x as f64 / WIDTH as f64;
            let mut sum = 0.0;
            for s in 0..16 {
                let (px, py) = (x as f64 + (f64::from(s % 4) + 0.5) / 4.0, y as f64 + (f64::from(s / 4) + 0.5) / 4.0);
                let value = parts.iter().find_map(|(shape, cx, cy, degrees)| {
                    let (dx, dy) = turn(-degrees.to_radians(), px - cx, py - cy);
                    shape(dx, dy)
                });
                sum += value.unwrap_or(BACKGROUND);
            }
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            pixels.push((sum / 16.0 * light + f64::from(seed >> 24) / 64.0 - 2.0).clamp(0.0, 255.0) as u8);
        }
    }
    let info =
        gst_video::VideoInfo::builder(gst_video::VideoFormat::Gray8, WIDTH as u32, HEIGHT as u32).build().unwrap();
    Frame::map(gstreamer::Buffer::from_mut_slice(pixels), &info, 0, None).unwrap()
}

fn whole() -> Crop {
    Crop { x: 0, y: 0, width: WIDTH as u32, height: HEIGHT as u32 }
}

/// A matcher taught with one upright part, and where its centroid lies from its origin.
fn taught(shape: Shape, turn: Turn, strip: [f64; 4], size: Size) -> (Matcher, [f64; 2]) {
    let frame = picture(&[(shape, 240.0, 200.0, 0.0)]);
    let mut shrinker = Shrinker::new();
    let blob = Segmenter::new().unwrap().find(&mut shrinker, &frame, whole()).unwrap().unwrap();
    let rigid = Rigid {
        turn,
        angle: 0.0,
        strip,
        area: blob.area,
        area_tolerance: 0.25,
        contrast: blob.contrast,
        min_likeness: 0.8,
    };
    let (n, mut rgb, mut luma) = (size.area(), vec![0; 3 * size.area()], Vec::new());
    let blank = Reference { size, luma: vec![0; n], rgb: rgb.clone(), mean: 0.0, deviation: 0.0 };
    Matcher::new(&rigid, &blank).unwrap().cut_at(&mut shrinker, &frame, blob.centre, 0.0, &mut rgb).unwrap();
    luma_of(&rgb, &mut luma);
    let (mean, deviation) = statistics(&rgb);
    let matcher = Matcher::new(&rigid, &Reference { size, luma, rgb, mean, deviation }).unwrap();
    (matcher, [blob.centre[0] - 240.0, blob.centre[1] - 200.0])
}

fn bolts() -> (Matcher, [f64; 2]) {
    taught(bolt, Turn::Axis, [-112.0, -36.0, 224.0, 72.0], Size { width: 448, height: 144 })
}

fn found(matcher: &mut Matcher, frame: &Frame) -> Located {
    let mut out = vec![0; matcher.input.area() * 3];
    matcher.cut_out(&mut Shrinker::new(), frame, whole(), &mut out).unwrap()
}

/// Largest error of angle (degrees) and place (pixels) over many poses.
fn errors(matcher: &mut Matcher, offset: [f64; 2], shape: Shape) -> (f64, f64) {
    let (mut worst_turn, mut worst_move) = (0f64, 0f64);
    for i in 0..24 {
        let degrees = f64::from(i) * 15.0 + 1.7 * f64::from(i % 4);
        let (x, y) = (240.3 + f64::from(i % 5) * 7.0 - 14.0, 199.6 + f64::from(i % 7) * 5.0 - 15.0);
        let frame = picture(&[(shape, x, y, degrees)]);
        let l = found(matcher, &frame);
        assert_eq!(l.doubt, None, "{degrees} degrees: {l:?}");
        let (dx, dy) = turn(degrees.to_radians(), offset[0], offset[1]);
        let wrong = (l.angle.to_degrees() - degrees + 180.0).rem_euclid(360.0) - 180.0;
        worst_turn = worst_turn.max(wrong.abs());
        worst_move = worst_move.max((l.centre[0] - x - dx).hypot(l.centre[1] - y - dy));
    }
    (worst_turn, worst_move)
}

#[test]
fn elongated_parts_are_found_at_every_angle_and_turned_the_right_way() {
    let (mut matcher, offset) = bolts();
    let (turned, moved) = errors(&mut matcher, offset, bolt);
    println!("bolt: {turned:.3} degrees, {moved:.3} px");
    assert!(turned < 0.5 && moved < 0.75, "{turned} degrees, {moved} px");
}

#[test]
fn parts_without_an_axis_are_turned_by_their_features() {
    for (name, shape, side) in [("disc", disc as Shape, 192.0), ("square", square, 176.0)] {
        let strip = [-side / 2.0, -side / 2.0, side, side];
        let (mut matcher, offset) = taught(shape, Turn::Polar, strip, Size { width: 256, height: 256 });
        let (turned, moved) = errors(&mut matcher, offset, shape);
        println!("{name}: {turned:.3} degrees, {moved:.3} px");
        assert!(turned < 0.75 && moved < 1.0, "{name}: {turned} degrees, {moved} px");
    }
}

/// The cut-out shows the same at every pose: the warp and its half pixels are right.
#[test]
fn the_upright_part_is_the_same_whatever_its_pose() {
    let (mut matcher, _) = bolts();
    let mut first = vec![0; matcher.input.area() * 3];
    let mut out = first.clone();
    let upright = picture(&[(bolt, 240.0, 200.0, 0.0)]);
    matcher.cut_out(&mut Shrinker::new(), &upright, whole(), &mut first).unwrap();
    for degrees in [33.0, 118.0, 200.0, 301.0] {
        let frame = picture(&[(bolt, 230.4, 204.7, degrees)]);
        matcher.cut_out(&mut Shrinker::new(), &frame, whole(), &mut out).unwrap();
        let mean = out.iter().zip(&first).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / out.len() as f64;
        // the gradient of the light turns with the part: some levels
        assert!(mean < 6.0, "{degrees}: {mean:.2} grey levels");
    }
}

#[test]
fn what_is_no_taught_part_is_doubted_and_says_why() {
    let (mut matcher, _) = bolts();
    let stub: Shape = |x, y| bolt(x, y).filter(|_| x < 0.0);
    let grid: Shape =
        |x, y| (x.abs() < 62.0 && y.abs() < 26.0).then_some(if (x + y).rem_euclid(20.0) < 10.0 { 40.0 } else { 150.0 });
    for (name, frame, reason, scorable) in [
        ("nothing", picture(&[]), "no part found", false),
        ("speck", picture(&[(|x, y| (x.hypot(y) < 9.0).then_some(60.0), 200.0, 200.0, 0.0)]), "no part found", false),
        (
            "two",
            picture(&[(bolt, 150.0, 120.0, 20.0), (bolt, 300.0, 300.0, 75.0)]),
            "more than one part in the picture",
            false,
        ),
        ("cut", picture(&[(bolt, 40.0, 200.0, 0.0)]), "part is cut by the picture's edge", false),
        ("half", picture(&[(stub, 240.0, 200.0, 40.0)]), "% of the taught part", true),
        ("other", picture(&[(grid, 240.0, 200.0, 40.0)]), "does not look like the taught part in any pose", true),
    ] {
        let l = found(&mut matcher, &frame);
        let doubt = l.doubt.unwrap_or_else(|| panic!("{name} is not doubted"));
        assert!(doubt.reason.contains(reason), "{name}: {doubt:?}");
        assert_eq!(doubt.scorable, scorable, "{name}");
    }
}

/// A large defect moves centroid and axis; the pose follows the rest of the part.
#[test]
fn a_defect_does_not_pull_the_pose_away() {
    let (mut matcher, offset) = bolts();
    // something sticks to the end of the shank
    let burr: Shape =
        |x, y| bolt(x, y).or_else(|| ((60.0..95.0).contains(&x) && (0.0..30.0).contains(&y)).then_some(90.0));
    let l = found(&mut matcher, &picture(&[(burr, 240.0, 200.0, 50.0)]));
    let (dx, dy) = turn(50f64.to_radians(), offset[0], offset[1]);
    assert!((l.angle.to_degrees() - 50.0).abs() < 1.0, "{l:?}");
    assert!((l.centre[0] - 240.0 - dx).hypot(l.centre[1] - 200.0 - dy) < 1.5, "{l:?}");
}
