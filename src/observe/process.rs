//! What this process takes of the machine, from /proc. Where that is not readable a figure is left out, never made up.

use jiff::Timestamp;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Figures under the names that Prometheus has for them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Process {
    pub cpu_s: f64,
    pub started_s: f64,
    /// Bytes.
    pub resident: Option<f64>,
    pub virtual_memory: Option<f64>,
    pub threads: Option<f64>,
    pub open_fds: Option<f64>,
    pub max_fds: Option<f64>,
}

impl Process {
    pub(super) fn read(started: Timestamp) -> Process {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        // the folder that is being read has a descriptor of its own
        let fds = std::fs::read_dir("/proc/self/fd").ok().map(|d| (d.count() as f64 - 1.0).max(0.0));
        Process {
            cpu_s: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            started_s: started.as_duration().as_secs_f64(),
            resident: field("VmRSS").map(|kb| kb * 1024.0),
            virtual_memory: field("VmSize").map(|kb| kb * 1024.0),
            threads: field("Threads"),
            open_fds: fds,
            max_fds: getrlimit(Resource::Nofile).current.map(|n| n as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_threads_and_descriptors() {
        let before = Process::read(Timestamp::now());
        let _file = std::fs::File::open("/proc/self/status").unwrap();
        let p = Process::read(Timestamp::now());
        assert!(p.resident.unwrap() > 1e6 && p.virtual_memory.unwrap() >= p.resident.unwrap(), "{p:?}");
        assert!(p.threads.unwrap() >= 1.0 && p.open_fds.unwrap() >= 1.0, "{p:?}");
        assert!(p.max_fds.unwrap() >= p.open_fds.unwrap() && p.cpu_s >= before.cpu_s, "{p:?}");
    }
}
