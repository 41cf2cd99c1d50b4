//! Who gets a core first.

/// Makes the calling thread, and those that it starts later, run when the lines leave a core free: for work beside the verdict path
/// that may come late.
///
/// The lowest niceness, which on Linux is a thread's own and needs no privilege. Such a thread still gets about a sixtieth of a
/// core that is never free.
pub fn behind_the_lines() {
    /// setpriority(2)
    const LOWEST: i32 = 19;
    if let Err(e) = rustix::process::setpriority_process(None, LOWEST) {
        tracing::debug!(error = %e, "a thread keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The thread that asks for it and what it starts, and no other.
    #[test]
    fn only_the_thread_that_asks_stands_behind() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let inside = std::thread::spawn(move || {
            behind_the_lines();
            [nice(), std::thread::spawn(nice).join().unwrap()]
        });
        assert_eq!(inside.join().unwrap(), [19, 19]);
        assert_eq!(nice(), before);
    }
}
