//! What figures were measured on, so that they can be compared or left alone.

use crate::detect::runtime;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::time::Duration;

/// Instruction sets that decide what a network costs, as /proc/cpuinfo names them.
const ARITHMETIC: [&str; 8] =
    ["avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"];

/// The machine as this process sees it.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    pub arithmetic: Vec<&'static str>,
    pub memory_gb: f64,
    pub system: String,
    pub kernel: String,
    pub gstreamer: String,
    pub openvino: String,
    pub linesight: &'static str,
    /// Built without optimisation: figures say nothing.
    pub debug_build: bool,
}

impl Machine {
    /// Reads what it can; what it cannot is empty.
    pub fn read() -> Machine {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = text("/proc/cpuinfo");
        let of_cpu = |key: &str| {
            let line = cpuinfo.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key));
            line.and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
        };
        let flags = of_cpu("flags");
        let release = text("/etc/os-release");
        let system = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
        Machine {
            cpu: of_cpu("model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            arithmetic: ARITHMETIC.into_iter().filter(|a| flags.split(' ').any(|f| f == *a)).collect(),
            memory_gb: kilobytes(&text("/proc/meminfo"), "MemTotal").map_or(0.0, |kb| (kb / 1e5).round() / 10.0),
            system: system.trim_matches('"').to_owned(),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            gstreamer: gstreamer::version_string().to_string(),
            openvino: runtime::load().map(|_| openvino::version().build_number.to_string()).unwrap_or_default(),
            linesight: env!("CARGO_PKG_VERSION"),
            debug_build: cfg!(debug_assertions),
        }
    }
}

fn kilobytes(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and system time of all threads.
pub(super) fn process_cpu() -> Duration {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec as u32)
}

/// Lets [`peak_rss_mb`] begin anew from what is resident now; where the kernel does not let us it goes on.
pub(super) fn forget_peak_rss() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Peak resident memory from the kernel's account of this process.
pub(super) fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    kilobytes(&status, "VmHWM").map_or(0.0, |kb| kb / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_processor_and_memory() {
        assert_eq!(kilobytes("A: 1 kB\nVmHWM:\t  2048 kB\n", "VmHWM"), Some(2048.0));
        assert!(peak_rss_mb() > 1.0 && process_cpu() > Duration::ZERO);
        let m = Machine::read();
        assert!(m.cores > 0 && m.memory_gb > 0.1 && !m.kernel.is_empty(), "{m:?}");
    }
}
