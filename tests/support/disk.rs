//! A disk that can be filled.

use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A small disk of its own.
pub struct Disk(pub TempDir);

impl Disk {
    /// None, with a word to stderr, where that is not allowed.
    pub fn new(size: &str) -> Option<Disk> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).stderr(Stdio::null());
        let mounted = mount.status().is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("skipped: mounting a tmpfs needs root");
        }
        mounted.then(|| Disk(folder))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
