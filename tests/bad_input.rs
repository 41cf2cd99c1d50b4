//! Bad input: each is refused with one paragraph that names the cause and the remedy, the right exit code, nothing left
//! behind, and nothing lost that was judged before.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use support::*;
use tempfile::TempDir;

/// A folder of one test, in which only what the test made may be afterwards.
struct Place {
    folder: TempDir,
    made: Vec<String>,
}

impl Place {
    fn new() -> Place {
        Place { folder: folder(), made: Vec::new() }
    }

    /// A path for a file that the test makes.
    fn make(&mut self, name: &str) -> PathBuf {
        self.made.push(name.into());
        self.folder.path().join(name)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.make(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// `inspect SOURCE` with the washers' model.
    fn inspect(&self, source: &Path, more: &[&str]) -> Run {
        let (model, out) = (washer().to_str().unwrap(), self.out());
        let arguments = ["inspect", "--model", model, source.to_str().unwrap(), "--out", out.to_str().unwrap()];
        linesight(arguments.iter().chain(more))
    }

    fn inspect_with(&self, model: &Path) -> Run {
        let (source, out) = (asset("sample-run.mp4"), self.out());
        linesight([Path::new("inspect"), Path::new("--model"), model, &source, Path::new("--out"), &out])
    }

    fn teach(&self, good: &Path, more: &[&str]) -> Run {
        let out = self.out();
        let arguments = ["teach", "--good", good.to_str().unwrap(), "--out", out.to_str().unwrap()];
        linesight(arguments.iter().chain(more))
    }

    /// No output and no leftover of one.
    #[track_caller]
    fn is_clean(&self) {
        holds_only(self.folder.path(), &self.made.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// Bytes that are nothing; the same each time.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(n)
    .collect()
}

/// A recording that is not there is named.
#[test]
fn missing_video() {
    let place = Place::new();
    place.inspect(&place.folder.path().join("no.mp4"), &[]).fails(
        2,
        &["no.mp4\" cannot be read", "No such file or directory"],
        "give a video file, an image, a folder of images, watch:FOLDER",
    );
    place.is_clean();
}

/// A file that is no recording at all is named, as is an empty one.
#[test]
fn random_bytes() {
    let mut place = Place::new();
    for (name, bytes, cause) in [
        ("random.mp4", noise(300_000), "Could not determine type of stream"),
        ("empty.mp4", Vec::new(), "Stream contains no data"),
        ("random.jpg", noise(3000), "Could not determine type of stream"),
    ] {
        let file = place.file(name, &bytes);
        let run = place.inspect(&file, &[]);
        run.fails(1, &[name, "cannot be decoded", cause], "check that the file plays");
        assert!(!run.err.contains(".c("), "places in GStreamer's source help nobody: {run:#?}");
        place.teach(&file, &[]).fails(1, &[name, "cannot be decoded", cause], "check that the file plays");
    }
    place.is_clean();
}

/// Frames that are lost in the middle of a recording are no success: the damage is named, and what was judged before and
/// after it is delivered.
#[test]
fn damaged_middle() {
    let mut place = Place::new();
    let mut bytes = std::fs::read(asset("sample-run.mp4")).unwrap();
    bytes[700_000..900_000].copy_from_slice(&noise(200_000));
    let file = place.file("damaged.mp4", &bytes);
    let (endpoint, spool) = (sink(), place.make("spool.db"));
    place.made.push("spool.db.lock".into());
    let run = place.inspect(&file, &["--review", &endpoint.url(), "--spool", spool.to_str().unwrap()]);
    run.fails(1, &["frames of recording", "damaged.mp4\" could not be decoded, the first at "], "the file is damaged");
    place.is_clean();
    let frames: BTreeSet<u64> = events(&endpoint).iter().map(|e| e["frame"].as_u64().unwrap()).collect();
    assert!(frames.contains(&159) && frames.iter().any(|f| *f > 1500), "before and after: {frames:?}");
    assert_eq!(count(&spool, "SELECT count(*) FROM spool"), 0);
}

/// A file with sound only says so, whatever its container.
#[test]
fn audio_only() {
    let mut place = Place::new();
    for (name, elements, encode) in [
        ("sound.wav", &["wavenc"][..], "wavenc"),
        ("sound.ogg", &["vorbisenc", "oggmux"], "audioconvert ! vorbisenc ! oggmux"),
        ("sound.m4a", &["avenc_aac", "mp4mux"], "audioconvert ! avenc_aac ! mp4mux"),
    ] {
        if !has(elements) {
            println!("skipped {name}: no {elements:?}");
            continue;
        }
        let file = place.make(name);
        play(&format!("audiotestsrc num-buffers=40 ! {encode} ! filesink location=\"{}\"", file.display()));
        place.inspect(&file, &[]).fails(
            1,
            &[name, "has no video stream"],
            "a file with sound only cannot be inspected",
        );
    }
    place.is_clean();
}

/// A recording that ends in the middle of a frame fails with its name, leaves no --out, and delivers every anomaly that was
/// judged before the cut.
#[test]
fn cut_off_in_a_frame() {
    let mut place = Place::new();
    let bytes = std::fs::read(asset("sample-run.mp4")).unwrap();
    let file = place.file("cut.mp4", &bytes[..1_400_000]);
    let (endpoint, spool) = (sink(), place.make("spool.db"));
    place.made.push("spool.db.lock".into());
    let run = place.inspect(&file, &["--review", &endpoint.url(), "--spool", spool.to_str().unwrap()]);
    run.fails(1, &["cut.mp4\" ends early", "of 62.57 s could be decoded"], "the file is cut off or damaged");
    place.is_clean();
    let seconds: f64 = run.err.split("ends early: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    // a defect right at the cut may be seen on either side of it
    let wanted = defective(&truth("sample-run"), (seconds * 30.0) as u64 - 5);
    let parts: BTreeSet<u64> = events(&endpoint).iter().map(|e| e["part"].as_u64().unwrap()).collect();
    assert!(wanted.len() >= 2 && parts.is_superset(&wanted), "{parts:?} of {wanted:?}");
    let ids: BTreeSet<String> = endpoint.seen().order.iter().cloned().collect();
    assert_eq!(ids, ledger_events(&spool).into_iter().collect(), "all that were judged, each once");
}

/// A header that is cut off is no recording.
#[test]
fn cut_off_in_the_header() {
    let mut place = Place::new();
    let file = place.file("head.mp4", &std::fs::read(asset("sample-run.mp4")).unwrap()[..5000]);
    place.inspect(&file, &[]).fails(1, &["head.mp4\" cannot be decoded", "incomplete"], "complete");
    place.is_clean();
}

/// A folder without images says which endings are looked for.
#[test]
fn folder_without_images() {
    let mut place = Place::new();
    let empty = place.make("empty");
    std::fs::create_dir(&empty).unwrap();
    std::fs::write(empty.join("notes.txt"), "x").unwrap();
    for run in [place.inspect(&empty, &[]), place.teach(&empty, &[])] {
        run.fails(1, &["empty\" holds no images"], "files ending in png, jpg, jpeg, bmp, tif, tiff");
    }
    place.is_clean();
}

/// One spoilt image in a folder is named.
#[test]
fn folder_with_a_spoilt_image() {
    let mut place = Place::new();
    let images = place.make("images");
    copy(good_stills(), &images);
    std::fs::write(images.join("good-5.png"), noise(5000)).unwrap();
    for run in [
        place.teach(&images, &[]),
        linesight([
            Path::new("inspect"),
            Path::new("--model"),
            still_model(),
            &images,
            Path::new("--out"),
            &place.out(),
        ]),
    ] {
        run.fails(1, &["good-5.png\" cannot be decoded"], "check that the file plays");
    }
    place.is_clean();
}

/// A ROI too small to hold a part is refused before anything is decoded.
#[test]
fn one_pixel_roi() {
    let place = Place::new();
    let run = place.teach(&asset("sample-teach.mp4"), &["--roi", "100,100,1,1"]);
    run.fails(2, &["ROI \"100,100,1,1\" is 1x1 pixels, at least 32x32 are needed"], "--help");
    place.is_clean();
}

/// A ROI outside the frame says how large the frame is.
#[test]
fn roi_outside_the_frame() {
    let place = Place::new();
    for trigger in ["frame", "presence"] {
        let run = place.teach(&asset("sample-teach.mp4"), &["--roi", "1200,0,400,720", "--trigger", trigger]);
        run.fails(2, &["ROI 1200,0,400,720 lies outside the 1280x720 frame"], "X + W <= 1280 and Y + H <= 720");
    }
    place.is_clean();
}

/// Four good parts are too few; how many make a good model is said.
#[test]
fn too_few_good_parts() {
    let mut place = Place::new();
    let images = place.make("four");
    std::fs::create_dir(&images).unwrap();
    for i in 0..4 {
        std::fs::copy(good_stills().join(format!("good-{i}.png")), images.join(format!("{i}.png"))).unwrap();
    }
    let run = place.teach(&images, &[]);
    run.fails(1, &["4 good parts were found, at least 5 are needed"], "30 to 50 good parts make a good model");
    let run = place.teach(&clip("sample-teach", 110), &["--trigger", "presence"]);
    run.fails(1, &["3 good parts were found, at least 5 are needed"], "give a longer recording");
    place.is_clean();
}

/// A picture of something else among the good parts is named, left out, and the model is as good as without it.
#[test]
fn one_good_part_is_wildly_different() {
    let mut place = Place::new();
    let images = place.make("images");
    copy(good_stills(), &images);
    let other = image::RgbImage::from_fn(STILL, STILL, |x, y| {
        let v = if (x / 25 + y / 25) % 2 == 0 { 230 } else { 20 };
        image::Rgb([v, 255 - v, (x * 255 / STILL) as u8])
    });
    other.save(images.join("good-7b.png")).unwrap();
    let run = place.teach(&images, &["--json", "--method", "ppca"]);
    let report = run.json();
    assert_eq!(report["parts"], GOOD_STILLS);
    assert_eq!(report["left_out"], serde_json::json!(["\"good-7b.png\""]));
    assert!(run.err.contains("good part \"good-7b.png\" is wildly different from the others"), "{}", run.err);
    let threshold = |toml: &Path| {
        let text = std::fs::read_to_string(toml.join("model.toml")).unwrap();
        text.parse::<toml::Table>().unwrap()["threshold"].as_float().unwrap()
    };
    let (with, without) = (threshold(&place.out()), threshold(still_model()));
    assert!((with / without - 1.0).abs() < 0.25, "{with} and {without}");
}

/// The washers' model with one thing changed.
fn spoilt(place: &mut Place, change: impl FnOnce(&Path)) -> PathBuf {
    let model = place.make("model");
    copy(washer(), &model);
    change(&model);
    model
}

/// A file that is not the one that was taught is refused by its checksum.
#[test]
fn package_with_a_wrong_checksum() {
    let mut place = Place::new();
    let model = spoilt(&mut place, |m| {
        let file = m.join("calibration.json");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, text.replacen("\"scores\"", "\"scores\" ", 1)).unwrap();
    });
    let run = place.inspect_with(&model);
    run.fails(1, &["file \"calibration.json\" is missing or damaged", "its checksum is"], "copy the package again");
    place.is_clean();
}

/// A package of a newer version is refused by its schema, although it has keys that this version does not know.
#[test]
fn package_with_an_unknown_schema() {
    let mut place = Place::new();
    let model = spoilt(&mut place, |m| {
        let file = m.join("model.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, text.replacen("schema = 1", "schema = 99\nnovelty = true", 1)).unwrap();
    });
    let run = place.inspect_with(&model);
    run.fails(1, &["has schema 99, this program reads schema 1"], "update linesight, or teach the model again");
    place.is_clean();
}

/// A file that is missing in the package is named.
#[test]
fn package_without_a_file() {
    let mut place = Place::new();
    let model = spoilt(&mut place, |m| std::fs::remove_file(m.join("normality.safetensors")).unwrap());
    let run = place.inspect_with(&model);
    run.fails(1, &["file \"normality.safetensors\" is missing or damaged", "No such file"], "copy the package again");
    place.is_clean();
}

/// A folder that is no package says how one is made.
#[test]
fn no_package() {
    let place = Place::new();
    let run = place.inspect_with(place.folder.path());
    run.fails(2, &["cannot be read: no readable model.toml"], "the folder that `linesight teach --out` made");
    place.is_clean();
}

/// Numbers that are not finite are refused even when the checksum is right.
#[test]
fn package_with_nan() {
    let mut place = Place::new();
    let model = spoilt(&mut place, |m| {
        let file = m.join("normality.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        let sum = |b: &[u8]| Sha256::digest(b).iter().map(|b| format!("{b:02x}")).collect::<String>();
        let before = sum(&bytes);
        let head = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + head]).unwrap();
        let at = 8 + head + header["0.mean"]["data_offsets"][0].as_u64().unwrap() as usize + 4 * 5;
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&file, &bytes).unwrap();
        let manifest = m.join("model.toml");
        let text = std::fs::read_to_string(&manifest).unwrap();
        assert_eq!(text.matches(&before).count(), 1);
        std::fs::write(manifest, text.replace(&before, &sum(&bytes))).unwrap();
    });
    let run = place.inspect_with(&model);
    run.fails(1, &["\"normality.safetensors\"", "tensor \"mean\" holds NaN at index 5"], "teach the model again");
    place.is_clean();
}

/// A manifest that is cut short is refused, wherever the cut is.
#[test]
fn package_with_a_truncated_manifest() {
    let mut place = Place::new();
    let model = spoilt(&mut place, |_| ());
    let text = std::fs::read(washer().join("model.toml")).unwrap();
    for at in [0, 5, text.len() / 3, text.len() / 2, text.len() - 30] {
        std::fs::write(model.join("model.toml"), &text[..at]).unwrap();
        place.inspect_with(&model).fails(1, &["model"], "teach the model again");
    }
    place.is_clean();
}

/// Output that cannot be written is refused before any work, and what is there stays as it is.
#[test]
fn unwritable_output() {
    let mut place = Place::new();
    let file = place.file("file", b"mine");
    let foreign = place.make("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("letter.txt"), "mine").unwrap();
    let (source, good) = (asset("sample-run.mp4"), asset("sample-teach.mp4"));
    let below = file.join("out");
    let deep = place.folder.path().join("no/such/out");
    for (out, code, cause, remedy) in [
        (below.as_path(), 2, "\"".to_owned() + file.to_str().unwrap() + "\" is not a folder", "--out"),
        (file.as_path(), 1, "cannot be written: Not a directory".into(), "--out"),
        (deep.as_path(), 2, "has no parent folder".into(), "first"),
        (Path::new("/proc/out"), 1, "output folder \"/proc/out\" cannot be written".into(), "--out"),
        (foreign.as_path(), 2, "is not empty and holds no".into(), "nothing was changed"),
    ] {
        let inspect = [Path::new("inspect"), Path::new("--model"), washer(), &source, Path::new("--out"), out];
        let teach = [Path::new("teach"), Path::new("--good"), &good, Path::new("--out"), out];
        linesight(inspect).fails(code, &[&cause], remedy);
        linesight(teach).fails(code, &[&cause], remedy);
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    holds_only(&foreign, &["letter.txt"]);
    assert_eq!(std::fs::read(foreign.join("letter.txt")).unwrap(), b"mine");
    place.is_clean();
}

/// An older output is replaced when all went well, and stays whole when the run fails.
#[test]
fn older_output_survives_a_failure() {
    let mut place = Place::new();
    let out = place.make("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("results.jsonl"), "old\n").unwrap();
    std::fs::write(out.join("part-00000-frame.jpg"), "old").unwrap();
    let file = place.file("head.mp4", &std::fs::read(asset("sample-run.mp4")).unwrap()[..60_000]);
    place.inspect(&file, &[]).fails(1, &["head.mp4"], "");
    holds_only(&out, &["part-00000-frame.jpg", "results.jsonl"]);
    place.inspect(&clip("sample-run", 60), &[]).succeeds();
    holds_only(&out, &["results.jsonl"]);
    assert_eq!(results(&out).len(), 1);
    place.is_clean();
}

/// An endpoint that refuses connections: exit 3, the spool keeps the anomalies, and a second run delivers them, none lost.
#[test]
fn endpoint_that_refuses() {
    let mut place = Place::new();
    let (address, spool) = (nobody(), place.make("spool.db"));
    place.made.push("spool.db.lock".into());
    let clip = clip("sample-run", 200);
    let (url, path) = (format!("http://{address}"), spool.to_str().unwrap());
    let first = place.inspect(&clip, &["--review", &url, "--spool", path]);
    assert_eq!(first.code, Some(3), "{first:#?}");
    let error = first.err.lines().find(|l| l.starts_with("error: ")).unwrap();
    assert!(
        error.contains("1 anomalies could not be delivered to the review endpoint") && error.contains("onnect"),
        "{error}"
    );
    assert!(
        first.err.trim_end().ends_with(
            "hint: they are safe in the spool and are sent by the next run with --review and the same --spool"
        )
    );
    let waiting = ledger_events(&spool);
    assert_eq!((waiting.len(), count(&spool, "SELECT count(*) FROM spool")), (1, 1));
    // the work itself was done
    assert_eq!(results(&place.out()).len(), count(&spool, "SELECT count(*) FROM ledger") as usize);

    let endpoint = bad_server::Server::start_at(address, |_| bad_server::Act::Take);
    let second = place.inspect(&clip, &["--review", &url, "--spool", path, "--json"]).json();
    assert_eq!((&second["delivered"], &second["waiting"]), (&2.into(), &0.into()));
    let ids: BTreeSet<String> = endpoint.seen().order.iter().cloned().collect();
    assert!(ids.contains(&waiting[0]));
    assert_eq!(ids, ledger_events(&spool).into_iter().collect());
    assert_eq!((endpoint.seen().repeats, count(&spool, "SELECT count(*) FROM spool")), (0, 0));
}

/// Devices that do not exist, no longer exist, or are not in this machine.
#[test]
fn devices_that_are_not_there() {
    let place = Place::new();
    let source = asset("sample-run.mp4");
    let run = |device: &str| place.inspect(&source, &["--device", device]);
    run("TPU").fails(2, &["device \"TPU\" is not known; accepted: AUTO, CPU, GPU"], "--help");
    run("MYRIAD").fails(
        2,
        &["\"MYRIAD\" (Movidius) left OpenVINO after release 2022.3", "use CPU, GPU or NPU"],
        "--help",
    );
    let devices = linesight(["doctor"]);
    for device in ["GPU", "NPU"] {
        if devices.out.contains(&format!("note  device: no {device}")) {
            let cause = format!("device \"{device}\" was asked for and this machine has no {device}");
            run(device).fails(3, &[&cause], "choose among CPU with --device, or pass --allow-fallback");
        } else {
            println!("skipped {device}: this machine has one");
        }
    }
    place.is_clean();
}

/// A truth file that is missing or is not one is refused before the recording is decoded.
#[test]
fn bad_truth_file() {
    let mut place = Place::new();
    let source = asset("sample-run.mp4");
    for (text, cause) in [
        ("{}", "is not understood: missing field `parts`"),
        ("part,label\n0,good\n", "is not understood: expected value"),
        ("{\"parts\": []}", "holds no parts"),
    ] {
        let file = place.file("truth.json", text.as_bytes());
        let run = place.inspect(&source, &["--truth", file.to_str().unwrap()]);
        run.fails(2, &["truth.json\" ", cause], "it needs parts[{part, label, defective, centre}]");
    }
    let run = place.inspect(&source, &["--truth", "no.json"]);
    run.fails(2, &["truth file \"no.json\" cannot be read"], "--truth");
    place.is_clean();
}

/// A mask that is no picture, that is black everywhere or that has another shape is refused; nothing is taught.
#[test]
fn bad_mask() {
    let mut place = Place::new();
    let text = place.file("mask.txt", b"white");
    let black = place.make("black.png");
    image::GrayImage::new(STILL, STILL).save(&black).unwrap();
    let wide = place.make("wide.png");
    image::GrayImage::from_pixel(2 * STILL, STILL, image::Luma([255])).save(&wide).unwrap();
    let none = place.folder.path().join("none.png");
    for (mask, code, cause, remedy) in [
        (&text, 2, "mask.txt\" is not a picture", "white where parts are judged"),
        (&black, 2, "black.png\" is black everywhere: nothing would be judged", "white marks what is judged"),
        (&wide, 2, "wide.png\" is 800x400, the judged area is 400x400", "shape of the judged area"),
        (&none, 2, "none.png\" cannot be read", "--mask"),
    ] {
        place.teach(good_stills(), &["--mask", mask.to_str().unwrap()]).fails(code, &[cause], remedy);
    }
    place.is_clean();
}

/// Parts cannot be followed through a folder of images: the other trigger is named.
#[test]
fn presence_with_a_folder() {
    let place = Place::new();
    let run = place.teach(good_stills(), &["--trigger", "presence"]);
    run.fails(2, &["trigger \"presence\" needs recordings, ", "good\" is a folder of images"], "use --trigger frame");
    place.is_clean();
}

/// A recording in which nothing moves teaches no parts.
#[test]
fn presence_without_movement() {
    let mut place = Place::new();
    let still = place.make("still.mp4");
    play(&format!(
        "videotestsrc pattern=smpte75 num-buffers=90 ! video/x-raw,width=640,height=360,framerate=30/1 ! x264enc ! mp4mux \
         ! filesink location=\"{}\"",
        still.display()
    ));
    let run = place.teach(&still, &["--trigger", "presence"]);
    run.fails(1, &["still.mp4", "nothing moves"], "parts that move through the picture");
    place.is_clean();
}

/// A false-reject rate that is none, and a token file that is missing or empty.
#[test]
fn values_out_of_range() {
    let mut place = Place::new();
    let run = place.teach(good_stills(), &["--false-reject-rate", "1.5"]);
    run.fails(2, &["false-reject rate \"1.5\" is not between 0 and 0.5"], "0.005 lets 5 of 1000 good parts");
    let token = place.file("token", b"\n");
    let source = asset("sample-run.mp4");
    let review = ["--review", "http://127.0.0.1:9", "--token-file"];
    let run = place.inspect(&source, &[&review[..], &[token.to_str().unwrap()]].concat());
    run.fails(2, &["token\" is empty"], "token");
    let run = place.inspect(&source, &[&review[..], &["no-token"]].concat());
    run.fails(2, &["token file \"no-token\" cannot be read"], "token");
    place.is_clean();
}

/// A model of a belt refuses frames of another size.
#[test]
fn frames_of_another_size() {
    let mut place = Place::new();
    let small = place.make("small.mp4");
    play(&format!(
        "videotestsrc num-buffers=10 ! video/x-raw,width=640,height=360 ! x264enc ! mp4mux ! filesink location=\"{}\"",
        small.display()
    ));
    let run = place.inspect(&small, &[]);
    run.fails(1, &["frames are 640x360, the model was taught with parts located in 1280x720"], "resolution");
    place.is_clean();
}
