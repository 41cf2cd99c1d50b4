//! Tests that measure their own process: what it uses, or what it holds.

/// Not run beside each other: tests of this kind run themselves in a process of their own.
pub fn alone(test: &str, work: impl FnOnce()) {
    const ALONE: &str = "LINESIGHT_TEST_ALONE";
    if std::env::var(ALONE).is_ok_and(|name| name == test) {
        return work();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ALONE, test)
        .output()
        .unwrap();
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
