//! The feature network: compiled for one input size on one device, with a pool of asynchronous requests.
//!
//! Invariants:
//! 1. What really runs is known: [`Backbone::device`] is the runtime's own EXECUTION_DEVICES, and a device that was named
//!    and does not run is an error (test `tests/devices.rs`).
//! 2. Precision is always set explicitly; the CPU plugin would otherwise choose bf16 by itself and move the scores.
//! 3. int8 is a graph of its own with its own checksum, so a package cannot be run in int8 that was taught without, nor
//!    the other way round (test `tests/devices.rs`).

use crate::detect::cache::Cache;
use crate::detect::runtime;
use crate::error::{Context, Error, Result};
use crate::hex::hex;
use crate::prepare::shrink::Size;
use openvino::{CompiledModel, DeviceType, ElementType, InferRequest, PropertyKey, RwPropertyKey, Shape, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Cells of the feature grid are this many input pixels wide and high.
pub const STRIDE: u32 = 8;
/// Input width and height must be multiples of this: the deepest tap's stride.
pub const INPUT_MULTIPLE: u32 = 16;

/// A network that comes with the program, see models/README.md.
struct BuiltIn {
    id: &'static str,
    /// Graph and weights that are computed in f32 or bf16.
    plain: (&'static [u8], &'static [u8]),
    /// The same network after quantisation.
    quantised: (&'static [u8], &'static [u8]),
    channels: usize,
}

/// Graph and weights of models/`name`.
macro_rules! network {
    ($name:literal) => {
        (
            include_bytes!(concat!("../../models/", $name, ".xml")).as_slice(),
            include_bytes!(concat!("../../models/", $name, ".bin")).as_slice(),
        )
    };
}

static BACKBONES: [BuiltIn; 1] = [BuiltIn {
    id: DEFAULT_BACKBONE,
    plain: network!("efficientnet-lite0-b4b10"),
    quantised: network!("efficientnet-lite0-b4b10-int8"),
    channels: 152,
}];

/// The backbone that teaching uses.
pub const DEFAULT_BACKBONE: &str = "efficientnet-lite0-b4b10";

/// Arithmetic of the network. The head computes in f32 with each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    Bf16,
    /// The quantised graph: 8-bit convolutions; what lies between and after them is f32.
    Int8,
}

impl Precision {
    pub fn as_str(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }

    /// What a device is told with INFERENCE_PRECISION_HINT. A quantised graph carries its 8-bit layers itself; the hint
    /// is for the rest.
    fn hint(self) -> &'static str {
        match self {
            Precision::Bf16 => "bf16",
            Precision::F32 | Precision::Int8 => "f32",
        }
    }

    /// The precision to teach in when none is named: int8 where all that `device` comes down to on this machine is a CPU or
    /// an NPU; f32 elsewhere.
    ///
    /// # Errors
    /// The runtime is missing or does not list its devices.
    pub fn default_for(device: &Device) -> Result<Self> {
        Ok(device.default_precision(&runtime::devices()?))
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
        if let [only] = available
            && self.0.starts_with("AUTO")
        {
            // there is nothing to choose from
            return Ok(only.clone());
        }
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

    /// The devices that will run on a machine that has `available`, as far as that can be said before compiling. AUTO takes
    /// the first of its list; without a list a GPU where there is one, else the CPU.
    fn resolved<'a>(&self, available: &'a [String]) -> Vec<&'a str> {
        let find = |n: &str| available.iter().map(String::as_str).find(|a| is_named(a, n));
        let named = self.named().into_iter().filter_map(find);
        let kept: Vec<&str> = if self.0.starts_with("AUTO") { named.take(1).collect() } else { named.collect() };
        if !kept.is_empty() {
            return kept;
        }
        find("GPU").or_else(|| find("CPU")).into_iter().collect()
    }

    /// See [`Precision::default_for`].
    fn default_precision(&self, available: &[String]) -> Precision {
        let resolved = self.resolved(available);
        let fast = |d: &&str| is_named(d, "NPU") || is_named(d, "CPU");
        if !resolved.is_empty() && resolved.iter().all(fast) { Precision::Int8 } else { Precision::F32 }
    }

    /// Whether it can be decided that the CPU runs the network.
    pub fn may_be_cpu(&self) -> bool {
        let named = self.named();
        named.is_empty() || named.iter().any(|d| is_named(d, "CPU"))
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

/// What a device is to be good at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Hint {
    /// Each frame as soon as possible: for what comes at its own rate.
    Latency,
    /// Many frames at once: for what is read as fast as possible.
    Throughput,
}

impl Options {
    /// Hex digits that stand for the network compiled for `device`.
    fn key(&self, device: &str) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(checksum(&self.backbone, self.precision)?);
        let Size { width, height } = self.input;
        let (precision, hint) = (self.precision.as_str(), self.hint.as_str());
        hash.update(format!("{width}x{height} {device} {precision} {hint} {:?}", self.streams));
        // a processor of another kind runs other code, another runtime has another format
        hash.update(runtime::identity()?);
        Ok(hex(&hash.finalize()))
    }
}

/// Inferences that a CPU with so many `cores` should run at once beside the decoding of one source's `frames`: all cores but
/// one where that is enough, so that no stream takes the decoder's core, else all. Measured on two cores.
///
/// With d, n, o the times of decoding, network and all else a frame, c cores make c / (d + n + o) frames and s streams s / n: so
/// c - 1 are enough where (c - 1) (d + o) >= n. Times are in proportion to the pixels, and to each other the same on most machines
/// (docs/6-operate.md).
pub fn streams_beside(frames: Size, input: Size, precision: Precision, cores: usize) -> usize {
    /// Nanoseconds a pixel of the frame: decoding H.264, and shrinking; and of the network's input.
    const FRAME: f64 = 1.9;
    let network = match precision {
        Precision::Int8 => 42.0,
        Precision::Bf16 => 47.0,
        Precision::F32 => 93.0,
    };
    let rest = cores.saturating_sub(1);
    let is_enough = rest as f64 * FRAME * frames.area() as f64 >= network * input.area() as f64;
    if is_enough { rest } else { cores.max(1) }
}

impl Hint {
    /// What suits a source: one that comes at its own rate (`paced`), or one that waits for us.
    pub fn for_source(paced: bool) -> Self {
        if paced { Hint::Latency } else { Hint::Throughput }
    }

    /// As OpenVINO's PERFORMANCE_HINT has it.
    fn as_str(self) -> &'static str {
        match self {
            Hint::Latency => "LATENCY",
            Hint::Throughput => "THROUGHPUT",
        }
    }
}

/// What a network is compiled for.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// One of the built-in networks, by id.
    pub backbone: String,
    pub input: Size,
    pub device: Device,
    pub precision: Precision,
    /// Accept that a named device does not run and another does.
    pub allow_fallback: bool,
    pub hint: Hint,
    /// Inferences that a CPU runs at once, each on one core; none: what OpenVINO makes of the hint. See [`streams_beside`].
    pub streams: Option<usize>,
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

/// Hex SHA-256 over the graph and weights that a built-in network runs with at a precision; f32 and bf16 share theirs.
pub fn checksum(id: &str, precision: Precision) -> Result<String> {
    let (xml, bin) = built_in(id)?.graph(precision);
    let mut hash = Sha256::new();
    hash.update(xml);
    hash.update(bin);
    Ok(hex(&hash.finalize()))
}

/// Width and height of the feature grid of an input.
pub fn grid_of(input: Size) -> Size {
    Size { width: input.width / STRIDE, height: input.height / STRIDE }
}

/// Features of a grid cell that a built-in network gives.
pub fn channels(id: &str) -> Result<usize> {
    built_in(id).map(|b| b.channels)
}

impl BuiltIn {
    /// Graph and weights.
    fn graph(&self, precision: Precision) -> (&'static [u8], &'static [u8]) {
        match precision {
            Precision::F32 | Precision::Bf16 => self.plain,
            Precision::Int8 => self.quantised,
        }
    }
}

fn built_in(id: &str) -> Result<&'static BuiltIn> {
    BACKBONES.iter().find(|b| b.id == id).ok_or_else(|| {
        let known: Vec<&str> = BACKBONES.iter().map(|b| b.id).collect();
        Error::failed(format!("backbone \"{id}\" is not part of this program"))
            .hint(format!("known: {}; teach the model again with this version", known.join(", ")))
    })
}

/// Refuses a device that does not compute in `precision`, by what it says of itself.
fn check_capability(device: &str, capabilities: &str, precision: Precision) -> Result<()> {
    let wanted = match precision {
        Precision::F32 => return Ok(()),
        Precision::Bf16 => "BF16",
        Precision::Int8 => "INT8",
    };
    if capabilities.split([' ', ',']).any(|c| c == wanted) {
        return Ok(());
    }
    Err(Error::failed(format!("device {device} does not run {}; it says it runs: {capabilities}", precision.as_str()))
        .hint("use --precision f32; `linesight doctor` says what each device runs"))
}

/// Refuses a precision that the compiled network took and that was not meant. An NPU has no f32: what is not 8-bit runs
/// in f16 there.
fn check_taken(device: &str, taken: &str, precision: Precision) -> Result<()> {
    let npu = precision == Precision::Int8 && device.split([',', ' ']).all(|d| is_named(d, "NPU"));
    if taken.is_empty() || taken == precision.hint() || (npu && taken == "f16") {
        return Ok(());
    }
    let rest = if precision == Precision::Int8 { ", all but its 8-bit layers" } else { "" };
    Err(Error::failed(format!(
        "device {device} runs the network{rest} in {taken}, {} was asked for{}",
        precision.as_str(),
        if rest.is_empty() { "" } else { ", which keeps them in f32" }
    ))
    .hint("scores of another precision are not comparable: use --precision f32"))
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
        let network = built_in(&options.backbone)?;
        let (xml, bin) = network.graph(options.precision);
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

        let available = runtime::devices_of(&core)?;
        let device = Device(options.device.on(&available, options.allow_fallback)?);
        let named = device.named();
        let concerned = |d: &&String| named.is_empty() || named.iter().any(|n| is_named(d, n));
        for device in available.iter().filter(concerned) {
            let d = DeviceType::from(device.as_str());
            // a virtual device may pick another one: what was really taken is checked below
            if !named.is_empty() {
                check_capability(device, &runtime::capabilities(&core, &d), options.precision)?;
            }
            let mut set =
                |key: &'static str, value: &str| core.set_property(&d, &RwPropertyKey::Other(key.into()), value);
            let precise = set("INFERENCE_PRECISION_HINT", options.precision.hint());
            // an NPU takes no f32 and a quantised graph does not need it
            let optional = named.is_empty() || (options.precision == Precision::Int8 && is_named(device, "NPU"));
            if !optional {
                precise
                    .failed(|| format!("device {device} does not run {}", options.precision.as_str()))
                    .map_err(|e| e.hint("use --precision f32"))?;
            }
            set("PERFORMANCE_HINT", options.hint.as_str())
                .failed(|| format!("device {device} takes no performance hint"))?;
            if is_named(device, "CPU") {
                // pinned to a core, a stream starves the decoder that happens to run there while another core is idle
                set("ENABLE_CPU_PINNING", "NO").failed(|| format!("device {device} does not let go of its cores"))?;
                if let Some(n) = options.streams {
                    set("NUM_STREAMS", &n.to_string())
                        .and_then(|()| set("INFERENCE_NUM_THREADS", &n.to_string()))
                        .failed(|| format!("device {device} does not run {n} inferences at once"))?;
                }
            }
        }
        let wanted = options.device.as_str();
        let cache = Cache::open(&options.key(device.as_str())?);
        if let Some(folder) = cache.as_ref().and_then(|c| c.path().to_str()) {
            for device in available.iter().filter(concerned) {
                core.set_property(&DeviceType::from(device.as_str()), &RwPropertyKey::CacheDir, folder)
                    .failed(|| format!("device {device} takes no cache folder"))?;
            }
        }
        let compiled = core.compile_model(&model, DeviceType::from(device.as_str())).map_err(|e| {
            Error::missing(format!("device \"{wanted}\" cannot run the network"))
                .because(one_line(&e.to_string()))
                .hint(format!("this machine has: {}; choose with --device", available.join(", ")))
        })?;
        if let Some(cache) = cache {
            cache.publish();
        }
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
        for one in &running {
            let capabilities = runtime::capabilities(&core, &DeviceType::from(*one));
            check_capability(one, &capabilities, options.precision)?;
        }
        check_taken(&device, &property("INFERENCE_PRECISION_HINT"), options.precision)?;
        let requests = compiled
            .get_property(&PropertyKey::OptimalNumberOfInferRequests)
            .ok()
            .and_then(|n| n.trim().parse().ok())
            .unwrap_or(1usize)
            .clamp(1, 64);
        Ok(Backbone {
            model: compiled,
            input: options.input,
            channels: network.channels,
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
        grid_of(self.input)
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
    /// Waits for the inference at most this long; false when it is still running.
    pub fn wait_for(&mut self, time: Duration) -> Result<bool> {
        match self.request.wait(i64::try_from(time.as_millis()).unwrap_or(i64::MAX)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind == openvino::InferenceErrorKind::ResultNotReady => Ok(false),
            Err(e) => Err(Error::failed("inference failed").because(e)),
        }
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
    fn a_core_is_left_to_the_decoder_where_the_others_are_enough() {
        let input = Size { width: 336, height: 192 };
        let streams = |width, height, cores| streams_beside(Size { width, height }, input, Precision::Int8, cores);
        assert_eq!([1, 2, 3, 8].map(|cores| streams(1280, 720, cores)), [1, 2, 2, 7]);
        assert_eq!([1, 2, 3, 8].map(|cores| streams(1920, 1080, cores)), [1, 1, 2, 7]);
        assert_eq!([2, 4].map(|cores| streams(640, 360, cores)), [2, 4]);
        let f32 = |cores| streams_beside(Size { width: 1920, height: 1080 }, input, Precision::F32, cores);
        assert_eq!([2, 3].map(f32), [2, 2]);
    }

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

    /// int8 is the default exactly where all that runs is a CPU or an NPU.
    #[test]
    fn int8_is_the_default_where_all_that_runs_has_it() {
        for (device, available, wanted) in [
            ("AUTO", "CPU", Precision::Int8),
            ("AUTO", "CPU GPU.0", Precision::F32),
            ("AUTO", "CPU NPU", Precision::Int8),
            ("AUTO:GPU,CPU", "CPU", Precision::Int8),
            ("AUTO:NPU,GPU", "CPU GPU NPU", Precision::Int8),
            ("AUTO:GPU,CPU", "CPU GPU.0", Precision::F32),
            ("CPU", "CPU GPU", Precision::Int8),
            ("NPU", "CPU NPU", Precision::Int8),
            ("NPU", "CPU", Precision::Int8), // with --allow-fallback the CPU runs
            ("GPU.1", "CPU GPU.0 GPU.1", Precision::F32),
            ("HETERO:NPU,CPU", "CPU NPU", Precision::Int8),
            ("MULTI:GPU,CPU", "CPU GPU", Precision::F32),
            ("AUTO", "", Precision::F32),
        ] {
            let available: Vec<String> = available.split_whitespace().map(str::to_owned).collect();
            let got = device.parse::<Device>().unwrap().default_precision(&available);
            assert_eq!(got, wanted, "{device} of {available:?}");
        }
    }

    /// A device without int8 or bf16 is refused by name, and what was taken must be what was asked for.
    #[test]
    fn precisions_that_do_not_run_are_refused() {
        let cpu = "FP32 INT8 BIN EXPORT_IMPORT";
        for precision in [Precision::F32, Precision::Int8] {
            check_capability("CPU", cpu, precision).unwrap();
        }
        let e = check_capability("CPU", cpu, Precision::Bf16).unwrap_err();
        assert_eq!(e.to_string(), format!("device CPU does not run bf16; it says it runs: {cpu}"));
        let e = check_capability("GPU.0", "FP32 FP16", Precision::Int8).unwrap_err();
        assert_eq!(e.to_string(), "device GPU.0 does not run int8; it says it runs: FP32 FP16");
        for (device, taken, precision) in [
            ("CPU", "f32", Precision::F32),
            ("CPU", "f32", Precision::Int8),
            ("CPU", "bf16", Precision::Bf16),
            ("NPU", "f16", Precision::Int8),
            ("NPU", "", Precision::Int8),
        ] {
            check_taken(device, taken, precision).unwrap();
        }
        let e = check_taken("CPU", "bf16", Precision::F32).unwrap_err();
        assert_eq!(e.to_string(), "device CPU runs the network in bf16, f32 was asked for");
        let e = check_taken("GPU.0", "f16", Precision::Int8).unwrap_err();
        assert_eq!(
            e.to_string(),
            "device GPU.0 runs the network, all but its 8-bit layers in f16, int8 was asked for, which keeps them in f32"
        );
    }

    /// int8 is another network than f32, which bf16 shares; all have a checksum.
    #[test]
    fn int8_has_a_checksum_of_its_own() {
        for b in &BACKBONES {
            let [f32, bf16, int8] =
                [Precision::F32, Precision::Bf16, Precision::Int8].map(|p| checksum(b.id, p).unwrap());
            assert!(f32 == bf16 && f32 != int8, "{}", b.id);
        }
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
