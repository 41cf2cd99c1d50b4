//! Finds and loads the OpenVINO runtime library. The library is opened once for the process.

use crate::error::{Context, Error, Result};
use openvino::{DeviceType, PropertyKey};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Environment variable that names the folder of the runtime's libraries.
pub const DIR_VARIABLE: &str = "LINESIGHT_OPENVINO_DIR";

/// Folders that are searched, in order; see docs/1-install.md.
fn places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(exe) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        places.push(exe.join("openvino"));
        places.push(exe.join("../lib/linesight"));
        // a build inside the project: target/<profile>[/deps]/ lies two or three folders below it
        places.extend(exe.ancestors().skip(1).take(3).map(|p| p.join(".openvino")));
    }
    if let Ok(here) = std::env::current_dir() {
        places.push(here.join(".openvino"));
    }
    places.push("/opt/intel/openvino/runtime/lib/intel64".into());
    if let Ok(opt) = std::fs::read_dir("/opt/intel") {
        let mut versions: Vec<PathBuf> = opt.flatten().map(|e| e.path().join("runtime/lib/intel64")).collect();
        versions.sort();
        places.extend(versions.into_iter().rev());
    }
    places.extend(["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from));
    places
}

/// The C library in `dir`: the plain name or the newest versioned one.
fn library_in(dir: &Path) -> Option<PathBuf> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libopenvino_c.so")))
        .collect();
    names.sort();
    names.pop()
}

/// Path of the runtime's C library.
pub fn find() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os(DIR_VARIABLE) {
        return library_in(Path::new(&dir)).ok_or_else(|| {
            Error::missing(format!("{DIR_VARIABLE}=\"{}\" holds no libopenvino_c.so", dir.to_string_lossy()))
                .hint("point it to the folder with OpenVINO's libraries, or unset it")
        });
    }
    let places = places();
    places.iter().find_map(|p| library_in(p)).ok_or_else(|| {
        Error::missing(format!(
            "the OpenVINO runtime is not found in any of: {}",
            places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
        ))
        .hint(format!("run `make setup` in the project, or set {DIR_VARIABLE} to the folder with libopenvino_c.so"))
    })
}

/// Loads the runtime on the first call; later calls return the same answer.
pub fn load() -> Result<&'static Path> {
    static LOADED: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    // finding comes first, so that its error keeps its kind and hint
    if LOADED.get().is_none() {
        let path = find()?;
        LOADED.get_or_init(|| openvino_sys::library::load_from(&path).map(|()| path));
    }
    match LOADED.get() {
        Some(Ok(path)) => Ok(path),
        Some(Err(e)) => Err(Error::missing("the OpenVINO runtime cannot be loaded")
            .because(e.clone())
            .hint("its folder must hold all libraries of one version; `make setup` fetches a complete one")),
        None => Err(Error::failed("the OpenVINO runtime was not loaded")),
    }
}

/// The process's OpenVINO core: all lines share it, with its devices' threads and caches. Device properties are those of the
/// core, so whoever compiles a network keeps the lock from the first property to the compiled network.
pub fn core() -> Result<MutexGuard<'static, openvino::Core>> {
    static CORE: OnceLock<Mutex<openvino::Core>> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    load()?;
    if CORE.get().is_none() {
        // who comes second waits, instead of starting another one
        let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if CORE.get().is_none() {
            let core = openvino::Core::new().missing(|| "OpenVINO cannot be started");
            let _ = CORE.set(Mutex::new(core.map_err(|e| e.hint("run `linesight doctor`"))?));
        }
    }
    let core = CORE.get().ok_or_else(|| Error::failed("OpenVINO was not started"))?;
    Ok(core.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What graphics units and NPUs are reached through: Linux' DRM and accelerator nodes, and those of Windows' Linux subsystem.
const NODES: [&str; 3] = ["/dev/dri", "/dev/accel", "/dev/dxg"];

/// What a compiled network depends on besides itself: the runtime's file and the processor.
pub fn identity() -> Result<&'static str> {
    static KNOWN: OnceLock<String> = OnceLock::new();
    let library = load()?;
    Ok(KNOWN.get_or_init(|| identity_with(library)))
}

fn identity_with(library: &Path) -> String {
    let size = std::fs::metadata(library).map(|m| m.len()).unwrap_or_default();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let told = |line: &&str| ["model", "vendor", "stepping", "flags"].iter().any(|k| line.starts_with(k));
    // one processor stands for all
    let cpu: Vec<&str> = cpu.split("\n\n").next().unwrap_or_default().lines().filter(told).collect();
    format!("{} {size} {}", library.display(), cpu.join(" "))
}

/// Names of this machine's devices, for example CPU, GPU.0, NPU.
pub fn devices() -> Result<Vec<String>> {
    let core = core()?;
    devices_of(&core)
}

/// Names of the devices that a core sees.
pub fn devices_of(core: &openvino::Core) -> Result<Vec<String>> {
    // asking loads the plugins of all kinds of devices: a second and tens of megabytes, which a machine that has none of them
    // does not need to spend
    if !NODES.iter().any(|node| Path::new(node).exists()) {
        return Ok(vec!["CPU".into()]);
    }
    let devices = core.available_devices().failed(|| "OpenVINO does not list its devices")?;
    Ok(devices.iter().map(|d| d.as_ref().to_owned()).collect())
}

/// What a device says it computes fast (OPTIMIZATION_CAPABILITIES), for example "FP32 BF16 INT8"; empty if it does not say.
pub fn capabilities(core: &openvino::Core, device: &DeviceType<'_>) -> String {
    core.get_property(device, &PropertyKey::DeviceCapabilities).map(|c| c.trim().to_owned()).unwrap_or_default()
}
