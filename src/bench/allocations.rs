//! Counts what the program allocates: [`Counting`] is the system's allocator with counters that are off but while
//! [`count`](Session) is wanted.
//!
//! It sees Rust's allocations only. GStreamer, the decoder and OpenVINO call malloc themselves; what they take is in
//! docs/6-operate.md.

use serde::Serialize;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The program's allocator. While nothing is counted it costs one relaxed load of a flag that nobody writes.
pub struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
/// From this size on an allocation has the size of a frame.
static LARGE: AtomicUsize = AtomicUsize::new(usize::MAX);
static TOTAL: AtomicU64 = AtomicU64::new(0);
static LARGE_TOTAL: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

#[cold]
fn add(size: usize) {
    TOTAL.fetch_add(1, Relaxed);
    BYTES.fetch_add(size as u64, Relaxed);
    if size >= LARGE.load(Relaxed) {
        LARGE_TOTAL.fetch_add(1, Relaxed);
    }
}

fn see(size: usize) {
    if COUNTS.load(Relaxed) {
        add(size);
    }
}

// SAFETY: each function hands its arguments to the system's allocator and returns what that returns; counting touches
// statics only, allocates nothing and cannot panic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        see(layout.size());
        // SAFETY: the caller keeps GlobalAlloc's contract, which is System's
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        see(layout.size());
        // SAFETY: as in `alloc`
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`; all memory comes from System
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        see(size);
        // SAFETY: as in `dealloc`
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Rust's allocations, all threads; growing one counts as one of the new size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Allocations {
    /// Smaller than `frame_sized`.
    pub small: f64,
    /// At least half as large as a frame's luma plane.
    pub frame_sized: f64,
    /// Of both.
    pub bytes: f64,
}

/// Counts from its start on; one at a time.
pub(super) struct Session(());

impl Session {
    /// Allocations from `large` bytes on have the size of a frame. None when the program has another allocator.
    pub fn start(large: usize) -> Option<Session> {
        LARGE.store(large, Relaxed);
        COUNTS.store(true, Relaxed);
        let before = TOTAL.load(Relaxed);
        drop(std::hint::black_box(Box::new(0u8)));
        if TOTAL.load(Relaxed) == before {
            COUNTS.store(false, Relaxed);
            return None;
        }
        for counter in [&TOTAL, &LARGE_TOTAL, &BYTES] {
            counter.store(0, Relaxed);
        }
        Some(Session(()))
    }

    /// What was allocated since the start, for each of `frames`.
    pub fn per_frame(&self, frames: u64) -> Allocations {
        let [all, large, bytes] = [&TOTAL, &LARGE_TOTAL, &BYTES].map(|c| c.load(Relaxed) as f64);
        let n = frames.max(1) as f64;
        Allocations { small: (all - large).max(0.0) / n, frame_sized: large / n, bytes: bytes / n }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        COUNTS.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library's tests run on the usual allocator: that is seen, not reported as no allocations. What counts gives the
    /// system's memory. One test: side by side, the second would count for the first.
    #[test]
    fn another_allocator_is_told_from_one_that_counts_nothing() {
        assert!(Session::start(1).is_none());
        assert!(!COUNTS.load(Relaxed));

        let layout = Layout::from_size_align(64, 8).unwrap();
        // SAFETY: the layout has a size; the memory is written within its bounds and given back with the size it has
        unsafe {
            let memory = Counting.alloc_zeroed(layout);
            assert_eq!(*memory.add(63), 0);
            *memory = 7;
            let memory = Counting.realloc(memory, layout, 128);
            assert_eq!(*memory, 7);
            Counting.dealloc(memory, Layout::from_size_align(128, 8).unwrap());
        }
    }
}
