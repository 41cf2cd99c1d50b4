//! Memory that is brought near before it is read.

/// Bytes of a line of the cache.
pub const LINE: usize = 64;

/// Has the line of the cache that holds `data[at]` brought near, if there is such a byte: for what processors do not foresee,
/// which is all that lies beyond the page they read. Into the second-level cache: the first one has too few lines on their way
/// at a time, which costs a fifth.
#[inline(always)]
pub fn fetch<T: bytemuck::Pod>(data: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if at < data.len() {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: the address lies within `data`; besides, an instruction that fetches ahead reads nothing that can be
        // seen, and none of its addresses faults. All x86-64 processors have it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(data.as_ptr().add(at).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, at);
}
