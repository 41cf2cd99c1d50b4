//! The feature network: compiled for one input size on one device, with a pool of asynchronous requests.
//!
//! Invariants:
//! 1. What really runs is known: [`Backbone::device`] is the runtime's own EXECUTION_DEVICES, and a device that was named
//!    and does not run is an error (test `tests/devices.rs`).
//! 2. Precision is always set explicitly; the CPU plugin would otherwise choose bf16 by itself and move the scores.

use crate::detect::runtime;
use crate::error::{Context, Error, Result};
use crate::prepare::shrink::Size;
use openvino::{CompiledModel, DeviceType, ElementType, InferRequest, PropertyKey, RwPropertyKey, Shape, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Cells of the feature grid are this many input pixels wide and high.
pub const STRIDE: u32 = 8;
/// Input width and height must be multiples of this: the deepest tap's stride.
pub const INPUT_MULTIPLE: u32 = 16;

/// The networks that come with the program, see models/README.md.
const BACKBONES: [(&str, &[u8], &[u8], usize); 2] = [
    (
        "efficientnet-lite0-b4b10",
        include_bytes!("../../models/efficientnet-lite0-b4b10.xml"),
        include_bytes!("../../models/efficientnet-lite0-b4b10.bin"),
        152,
    ),
    (
        "efficientnet-lite0-b2b4b10",
        include_bytes!("../../models/efficientnet-lite0-b2b4b10.xml"),
        include_bytes!("../../models/efficientnet-lite0-b2b4b10.bin"),
        176,
    ),
];

/// The backbone that teaching uses.
pub const DEFAULT_BACKBONE: &str = BACKBONES[0].0;

/// Arithmetic of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    pub fn as_str(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }
}

/// A device as the user names it: AUTO, CPU, GPU, GPU.1, NPU, HETERO:GPU,CPU, MULTI:GPU,CPU ...
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Device(String);

impl Default for Device {
    fn default() -> Self {
        Device("AUTO".into())
    }
}

impl Device {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The device to compile for on a machine that has `available`. Devices that are not there are an error; with
    /// `allow_fallback` they are left out. AUTO chooses by itself.
    fn on(&self, available: &[String], allow_fallback: bool) -> Result<String> {
        let (kept, gone): (Vec<&str>, Vec<&str>) =
            self.named().into_iter().partition(|n| available.iter().any(|a| is_named(a, n)));
        if gone.is_empty() || self.0.starts_with("AUTO") {
            return Ok(self.0.clone());
        }
        if !allow_fallback {
            return Err(Error::missing(format!(
                "device \"{self}\" was asked for and this machine has no {}",
                gone.join(", ")
            ))
            .hint(format!("choose among {} with --device, or pass --allow-fallback", available.join(", "))));
        }
        tracing::warn!("this machine has no {}: falling back from \"{self}\"", gone.join(", "));
        Ok(match (kept.as_slice(), self.0.split_once(':')) {
            ([], _) => "AUTO".into(),
            ([one], _) => (*one).into(),
            (several, Some((kind, _))) => format!("{kind}:{}", several.join(",")),
            (several, None) => several.join(","),
        })
    }

    /// Devices that were named one by one, without the virtual device in front.
    fn named(&self) -> Vec<&str> {
        match self.0.split_once(':') {
            Some((_, list)) => list.split(',').collect(),
            None if matches!(self.0.as_str(), "AUTO" | "MULTI" | "HETERO") => Vec::new(),
            None => vec![self.0.as_str()],
        }
    }
}

/// Whether the runtime's `device` ("GPU.0") is the one that was `named` ("GPU.0" or "GPU").
fn is_named(device: &str, named: &str) -> bool {
    device == named || device.split('.').next() == Some(named)
}

/// OpenVINO's exceptions come as a trace of several lines: what they say, without where in its sources.
fn one_line(text: &str) -> String {
    let said: Vec<&str> = text
        .lines()
        .map(|l| l.split("Exception from src/").next().unwrap_or(l).trim().trim_end_matches(':'))
        .filter(|l| !l.is_empty())
        .collect();
    said.join("; ")
}

impl From<Device> for String {
    fn from(d: Device) -> String {
        d.0
    }
}

impl TryFrom<String> for Device {
    type Error = String;
    fn try_from(s: String) -> std::result::Result<Self, String> {
        s.parse()
    }
}

impl std::str::FromStr for Device {
    type Err = String;
    fn from_str(s: &str) -> std::result::Result<Self, String> {
        let upper = s.trim().to_uppercase();
        const WANTED: &str =
            "AUTO, CPU, GPU, GPU.n, NPU, or AUTO:, MULTI:, HETERO: with a list, for example HETERO:GPU,CPU";
        let (kind, list) = match upper.split_once(':') {
            Some((kind @ ("AUTO" | "MULTI" | "HETERO"), list)) => (Some(kind), list),
            Some((other, _)) => return Err(format!("device \"{other}:\" is not known; accepted: {WANTED}")),
            None => (None, upper.as_str()),
        };
        for one in list.split(',') {
            let base = one.split_once('.').map_or(one, |(base, n)| if n.parse::<u32>().is_ok() { base } else { "" });
            if base == "MYRIAD" || base == "HDDL" {
                return Err(format!(
                    "device \"{one}\" (Movidius) left OpenVINO after release 2022.3 and this runtime cannot drive it; use CPU, GPU or NPU"
                ));
            }
            let plain = matches!(base, "CPU" | "GPU" | "NPU") || (kind.is_none() && one == "AUTO");
            if !plain {
                return Err(format!("device \"{s}\" is not known; accepted: {WANTED}"));
            }
        }
        Ok(Device(upper))
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a network is compiled for.
#[derive(Debug, Clone)]
pub struct Options {
    /// One of the built-in networks, by id.
    pub backbone: String,
    pub input: Size,
    pub device: Device,
    pub precision: Precision,
    /// Accept that a named device does not run and another does.
    pub allow_fallback: bool,
    /// Many frames at once (recordings, teaching) rather than each as soon as possible (live lines).
    pub throughput: bool,
}

/// A compiled network and its pool size.
pub struct Backbone {
    model: CompiledModel,
    input: Size,
    channels: usize,
    device: String,
    precision: Precision,
    requests: usize,
}

/// Hex SHA-256 over a built-in network's graph and weights.
pub fn checksum(id: &str) -> Result<String> {
    let (_, xml, bin, _) = built_in(id)?;
    let mut hash = Sha256::new();
    hash.update(xml);
    hash.update(bin);
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Features of a grid cell that a built-in network gives.
pub fn channels(id: &str) -> Result<usize> {
    built_in(id).map(|b| b.3)
}

fn built_in(id: &str) -> Result<&'static (&'static str, &'static [u8], &'static [u8], usize)> {
    BACKBONES.iter().find(|b| b.0 == id).ok_or_else(|| {
        let known: Vec<&str> = BACKBONES.iter().map(|b| b.0).collect();
        Error::failed(format!("backbone \"{id}\" is not part of this program"))
            .hint(format!("known: {}; teach the model again with this version", known.join(", ")))
    })
}

impl Backbone {
    /// Reads the built-in network, shapes it to the input and compiles it.
    pub fn compile(options: &Options) -> Result<Self> {
        let Size { width, height } = options.input;
        if width == 0 || height == 0 || width % INPUT_MULTIPLE != 0 || height % INPUT_MULTIPLE != 0 {
            return Err(Error::failed(format!(
                "network input {width}x{height} is not made of multiples of {INPUT_MULTIPLE}"
            )));
        }
        let (_, xml, bin, channels) = built_in(&options.backbone)?;
        let mut core = runtime::core()?;
        let mut weights = Shape::new(&[bin.len() as i64])
            .and_then(|s| Tensor::new(ElementType::U8, &s))
            .failed(|| "weights tensor")?;
        weights.get_raw_data_mut().failed(|| "weights tensor")?.copy_from_slice(bin);
        let mut model =
            core.read_model_from_buffer(xml, Some(&weights)).failed(|| "the backbone network cannot be read")?;
        let shape = openvino::PartialShape::new_static(4, &[1, i64::from(height), i64::from(width), 3])
            .failed(|| "input shape")?;
        model.reshape_single_input(&shape).failed(|| format!("the backbone cannot take {width}x{height}"))?;

        let available: Vec<String> = core
            .available_devices()
            .failed(|| "OpenVINO does not list its devices")?
            .iter()
            .map(|d| d.as_ref().to_owned())
            .collect();
        let device = Device(options.device.on(&available, options.allow_fallback)?);
        let named = device.named();
        let concerned = |d: &&String| named.is_empty() || named.iter().any(|n| is_named(d, n));
        for device in available.iter().filter(concerned) {
            let d = DeviceType::from(device.as_str());
            let mut set =
                |key: &'static str, value: &str| core.set_property(&d, &RwPropertyKey::Other(key.into()), value);
            let precise = set("INFERENCE_PRECISION_HINT", options.precision.as_str());
            // a virtual device may pick another one: what was really taken is checked below
            if !named.is_empty() {
                precise
                    .failed(|| format!("device {device} does not run {}", options.precision.as_str()))
                    .map_err(|e| e.hint("use --precision f32"))?;
            }
            set("PERFORMANCE_HINT", if options.throughput { "THROUGHPUT" } else { "LATENCY" })
                .failed(|| format!("device {device} takes no performance hint"))?;
        }
        let wanted = options.device.as_str();
        let compiled = core.compile_model(&model, DeviceType::from(device.as_str())).map_err(|e| {
            Error::missing(format!("device \"{wanted}\" cannot run the network"))
                .because(one_line(&e.to_string()))
                .hint(format!("this machine has: {}; choose with --device", available.join(", ")))
        })?;
        let property = |key: &'static str| {
            compiled.get_property(&PropertyKey::Other(key.into())).map(|v| v.trim().to_owned()).unwrap_or_default()
        };
        let device = property("EXECUTION_DEVICES").replace(['(', ')'], "");
        let device = if device.is_empty() { wanted.to_owned() } else { device };
        let running: Vec<&str> = device.split([',', ' ']).filter(|d| !d.is_empty()).collect();
        let idle: Vec<&str> = options
            .device
            .named()
            .into_iter()
            // AUTO with a list asks for the first that works; the others ask for all of the list
            .filter(|_| !wanted.starts_with("AUTO:"))
            .filter(|n| !running.iter().any(|r| is_named(r, n)))
            .collect();
        if !idle.is_empty() && !options.allow_fallback {
            return Err(Error::missing(format!(
                "device \"{wanted}\" was asked for, {} does not run and {device} would",
                idle.join(", ")
            ))
            .hint(format!(
                "name a device that this machine has ({}), or pass --allow-fallback",
                available.join(", ")
            )));
        }
        let taken = property("INFERENCE_PRECISION_HINT");
        if !taken.is_empty() && taken != options.precision.as_str() {
            return Err(Error::failed(format!(
                "device {device} runs the network in {taken}, {} was asked for",
                options.precision.as_str()
            ))
            .hint("scores of another precision are not comparable: use --precision f32"));
        }
        let requests = compiled
            .get_property(&PropertyKey::OptimalNumberOfInferRequests)
            .ok()
            .and_then(|n| n.trim().parse().ok())
            .unwrap_or(1usize)
            .clamp(1, 64);
        Ok(Backbone {
            model: compiled,
            input: options.input,
            channels: *channels,
            device,
            precision: options.precision,
            requests,
        })
    }

    /// The devices that really run the network, for example "CPU".
    pub fn device(&self) -> &str {
        &self.device
    }
    pub fn precision(&self) -> Precision {
        self.precision
    }
    pub fn input(&self) -> Size {
        self.input
    }
    /// Width and height of the feature grid.
    pub fn grid(&self) -> Size {
        Size { width: self.input.width / STRIDE, height: self.input.height / STRIDE }
    }
    /// Features of a grid cell.
    pub fn channels(&self) -> usize {
        self.channels
    }
    /// How many requests the device wants in flight.
    pub fn pool_size(&self) -> usize {
        self.requests
    }

    /// A new request with its own input and output memory.
    pub fn request(&mut self) -> Result<Request> {
        let mut request = self.model.create_infer_request().failed(|| "no inference request")?;
        let Size { width, height } = self.input;
        let input = Shape::new(&[1, i64::from(height), i64::from(width), 3])
            .and_then(|s| Tensor::new(ElementType::U8, &s))
            .failed(|| "no input tensor")?;
        request.set_input_tensor(&input).failed(|| "the input tensor is refused")?;
        let output = request.get_output_tensor().failed(|| "no output tensor")?;
        Ok(Request { request, input, output })
    }
}

/// One inference in flight or waiting to be filled. Moves between the thread that submits and the thread that scores.
pub struct Request {
    request: InferRequest,
    input: Tensor,
    output: Tensor,
}

impl Request {
    /// The network's input: RGB, `3 * width * height` bytes.
    pub fn input(&mut self) -> Result<&mut [u8]> {
        self.input.get_raw_data_mut().failed(|| "input tensor")
    }
    pub fn start(&mut self) -> Result<()> {
        self.request.infer_async().failed(|| "inference cannot be started")
    }
    /// Waits for the inference and returns the features, `[grid height][grid width][channels]`.
    pub fn wait(&mut self) -> Result<&[f32]> {
        // far beyond any inference: a device that hangs is an error, not a freeze
        self.request.wait(60_000).failed(|| "inference failed")?;
        self.output.get_data::<f32>().failed(|| "output tensor")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_are_not_there_are_refused_or_left_out() {
        let on = |d: &str, fallback| d.parse::<Device>().unwrap().on(&["CPU".into(), "GPU.0".into()], fallback);
        assert_eq!(on("HETERO:GPU,CPU", false).unwrap(), "HETERO:GPU,CPU");
        assert_eq!(on("AUTO:NPU,CPU", false).unwrap(), "AUTO:NPU,CPU");
        let e = on("MULTI:NPU,CPU", false).unwrap_err();
        assert_eq!(e.to_string(), "device \"MULTI:NPU,CPU\" was asked for and this machine has no NPU");
        assert_eq!(on("MULTI:NPU,CPU", true).unwrap(), "CPU");
        assert_eq!(on("MULTI:NPU,GPU,CPU", true).unwrap(), "MULTI:GPU,CPU");
        assert_eq!(on("NPU", true).unwrap(), "AUTO");
    }

    #[test]
    fn exceptions_are_one_line() {
        let text =
            "general error: Exception from src/a.cpp:1:\nException from src/b.cpp:2:\nCheck 'x' failed\nno device\n\n";
        assert_eq!(one_line(text), "general error; Check 'x' failed; no device");
    }

    #[test]
    fn device_names_are_checked() {
        for ok in ["auto", "CPU", "GPU.1", "npu", "HETERO:GPU,CPU", "MULTI:GPU.0,CPU", "AUTO:NPU,CPU"] {
            assert!(ok.parse::<Device>().is_ok(), "{ok}");
        }
        for (text, part) in [
            ("MYRIAD", "left OpenVINO after release 2022.3"),
            ("HETERO:MYRIAD,CPU", "left OpenVINO after release 2022.3"),
            ("TPU", "device \"TPU\" is not known; accepted: AUTO, CPU"),
            ("BATCH:CPU", "device \"BATCH:\" is not known"),
            ("GPU.x", "is not known"),
            ("", "is not known"),
        ] {
            let e = text.parse::<Device>().unwrap_err();
            assert!(e.contains(part), "{text}: {e}");
        }
    }
}
