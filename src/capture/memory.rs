//! Memory for decoded pictures that linesight reads while the decoder still refers to them.
//!
//! libav keeps the pictures that later ones are predicted from mapped for writing, and what is mapped so cannot be shared:
//! GStreamer copies each such picture when it leaves the decoder, which is each picture of a stream without B-frames. Nobody
//! writes to it any more, though. A copy of [`FrameMemory`] therefore shares the bytes and cannot be written to. Of 1080 rows
//! every picture was copied: without a pool from downstream the decoder takes one for the 1088 rows that are encoded, and does
//! not recognise it as its own.
//!
//! Only for pipelines whose elements are known: one that asks for a copy in order to draw on it would be refused.
//!
//! Invariants:
//! 1. Bytes that somebody can still read are not written to again: a buffer whose memory has copies does not go back to its
//!    pool, and its bytes are free when the last of them is gone (tests `a_copy_shares_and_outlives`,
//!    `tests/capture.rs::frames_that_are_held_stay_as_they_were`).
//! 2. Bytes are used again: once as many exist as are ever used at once none are allocated (test `a_copy_shares_and_outlives`,
//!    `frame_sized` of `linesight bench`).

use gstreamer as gst;
use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer_video as gst_video;

glib::wrapper! {
    /// Allocates memory whose copies share its bytes.
    pub struct FrameMemory(ObjectSubclass<allocator::FrameMemory>) @extends gst::Allocator, gst::Object;
}

glib::wrapper! {
    /// A pool of pictures that does not take back what is still read.
    pub struct FramePool(ObjectSubclass<pool::FramePool>)
        @extends gst_video::VideoBufferPool, gst::BufferPool, gst::Object;
}

/// Tells what is before the sink that frames may have padding and any place of their planes, which [`crate::frame`] reads, and
/// where to put them; with `shared`, into memory that is not copied for us.
pub(super) fn offer(sink: &gst::Element, shared: bool) {
    let Some(pad) = sink.static_pad("sink") else { return };
    let memory = shared.then(glib::Object::new::<FrameMemory>);
    pad.add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, move |_, info| match info.query_mut().map(|q| q.view_mut()) {
        Some(gst::QueryViewMut::Allocation(query)) => {
            query.add_allocation_meta::<gst_video::VideoMeta>(None);
            query.add_allocation_param(memory.as_ref(), gst::AllocationParams::default());
            let info = query.get().0.and_then(|caps| gst_video::VideoInfo::from_caps(caps).ok());
            if let Some(size) = info.and_then(|info| u32::try_from(info.size()).ok()) {
                query.add_allocation_pool(Some(&glib::Object::new::<FramePool>()), size, 0, 0);
            }
            gst::PadProbeReturn::Handled
        }
        _ => gst::PadProbeReturn::Ok,
    });
}

mod allocator {
    use gstreamer as gst;
    use gstreamer::glib;
    use gstreamer::prelude::*;
    use gstreamer::subclass::prelude::*;
    use std::alloc::Layout;
    use std::ffi::c_void;
    use std::ptr::{NonNull, null_mut};
    use std::sync::{Arc, Mutex, PoisonError};

    /// What a memory and its copies share.
    struct Bytes {
        start: NonNull<u8>,
        layout: Layout,
    }

    // SAFETY: it owns what it points to, and nothing here is read or written through it; GStreamer's locks guard that.
    unsafe impl Send for Bytes {}
    // SAFETY: as above.
    unsafe impl Sync for Bytes {}

    impl Bytes {
        fn new(layout: Layout) -> Option<Self> {
            // SAFETY: the size of a layout that `alloc` makes is not 0.
            NonNull::new(unsafe { std::alloc::alloc(layout) }).map(|start| Bytes { start, layout })
        }
    }

    impl Drop for Bytes {
        fn drop(&mut self) {
            // SAFETY: allocated with this layout, and freed only here.
            unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) };
        }
    }

    /// GStreamer's view of the bytes; begins with what GStreamer knows of any memory.
    #[repr(C)]
    struct Block {
        memory: gst::ffi::GstMemory,
        bytes: Arc<Bytes>,
    }

    impl Block {
        /// # Safety
        /// `allocator` is a living [`super::FrameMemory`], and `offset + size` bytes at most are `bytes`.
        unsafe fn make(
            allocator: *mut gst::ffi::GstAllocator,
            flags: gst::ffi::GstMemoryFlags,
            bytes: Arc<Bytes>,
            [align, offset, size]: [usize; 3],
        ) -> *mut gst::ffi::GstMemory {
            let whole = bytes.layout.size();
            let mut block = Box::<Block>::new_uninit();
            let memory = block.as_mut_ptr();
            // SAFETY: both parts of the block are written before it counts as one; `gst_memory_init` writes all of its part.
            unsafe {
                gst::ffi::gst_memory_init(
                    &raw mut (*memory).memory,
                    flags,
                    allocator,
                    null_mut(),
                    whole,
                    align,
                    offset,
                    size,
                );
                (&raw mut (*memory).bytes).write(bytes);
                Box::into_raw(block.assume_init()).cast()
            }
        }
    }

    /// So many areas are made together, more than queues, threads and the decoder hold as a rule; they take memory when they are
    /// written to.
    const READY: usize = 24;
    /// But no more bytes than this: some systems count memory before it is written to.
    const READY_BYTES: usize = 128 << 20;

    #[derive(Default)]
    pub struct FrameMemory {
        spare: Mutex<Spare>,
    }

    /// Bytes that nobody uses; as with any pool, as many as were ever used at once stay until the source is closed.
    #[derive(Default)]
    struct Spare {
        /// Of all of them.
        layout: Option<Layout>,
        bytes: Vec<Bytes>,
    }

    impl Spare {
        fn take(&mut self, layout: Layout) -> Option<Bytes> {
            if self.layout != Some(layout) {
                // pictures of another size do not come back
                self.bytes.clear();
                let ready = READY.min(READY_BYTES / layout.size());
                self.bytes.extend((0..ready).map_while(|_| Bytes::new(layout)));
                self.layout = Some(layout);
            }
            // the last used is the nearest
            self.bytes.pop().or_else(|| Bytes::new(layout))
        }

        fn put(&mut self, bytes: Bytes) {
            if self.layout == Some(bytes.layout) {
                self.bytes.push(bytes);
            }
        }
    }

    #[glib::object_subclass]
    impl ObjectSubclass for FrameMemory {
        const NAME: &'static str = "LinesightFrameMemory";
        type Type = super::FrameMemory;
        type ParentType = gst::Allocator;
    }

    impl ObjectImpl for FrameMemory {
        fn constructed(&self) {
            self.parent_constructed();
            let allocator = self.obj().upcast_ref::<gst::Allocator>().as_ptr();
            // SAFETY: nobody else has the allocator yet, and these fields are there to be set by who implements one.
            unsafe {
                (*allocator).mem_type = c"LinesightFrameMemory".as_ptr();
                (*allocator).mem_map = Some(map);
                (*allocator).mem_unmap = Some(unmap);
                (*allocator).mem_copy = Some(share);
                (*allocator).mem_share = Some(share);
            }
        }
    }

    impl GstObjectImpl for FrameMemory {}

    // SAFETY: `alloc` gives a new memory of this allocator or none, and `free` takes only such.
    unsafe impl AllocatorImpl for FrameMemory {
        unsafe fn alloc(&self, size: usize, params: &gst::AllocationParams) -> *mut gst::ffi::GstMemory {
            let whole = size.checked_add(params.prefix()).and_then(|s| s.checked_add(params.padding()));
            // alignments are masks of the low bits
            let align = params.align() | gst::Memory::default_alignment();
            let Some(layout) = whole.and_then(|s| Layout::from_size_align(s.max(1), align + 1).ok()) else {
                return null_mut();
            };
            let taken = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take(layout);
            let Some(bytes) = taken else { return null_mut() };
            let zeroed = |flag, from: usize, n: usize| {
                if params.flags().contains(flag) {
                    // SAFETY: prefix, bytes and padding together are as many as the layout has.
                    unsafe { bytes.start.add(from).write_bytes(0, n) };
                }
            };
            zeroed(gst::MemoryFlags::ZERO_PREFIXED, 0, params.prefix());
            zeroed(gst::MemoryFlags::ZERO_PADDED, params.prefix() + size, params.padding());
            let place = [align, params.prefix(), size];
            let allocator = self.obj().upcast_ref::<gst::Allocator>().as_ptr();
            // SAFETY: it is this allocator, and prefix and size fit into the layout.
            unsafe { Block::make(allocator, params.flags().bits(), Arc::new(bytes), place) }
        }

        unsafe fn free(&self, memory: *mut gst::ffi::GstMemory) {
            // SAFETY: made by `Block::make`, and given back once, when nobody refers to it any more.
            let block = unsafe { Box::from_raw(memory.cast::<Block>()) };
            if let Some(bytes) = Arc::into_inner(block.bytes) {
                self.spare.lock().unwrap_or_else(PoisonError::into_inner).put(bytes);
            }
        }
    }

    /// Whether copies of a memory exist that others can read.
    pub(super) fn is_shared(memory: &gst::MemoryRef) -> bool {
        memory.allocator().is_some_and(|a| a.is::<super::FrameMemory>())
            // SAFETY: memories of this allocator are blocks.
            && Arc::strong_count(unsafe { &(*memory.as_ptr().cast::<Block>()).bytes }) > 1
    }

    unsafe extern "C" fn map(
        memory: *mut gst::ffi::GstMemory,
        _size: usize,
        _flags: gst::ffi::GstMapFlags,
    ) -> *mut c_void {
        // SAFETY: memories of this allocator are blocks; GStreamer adds the offset.
        let bytes = unsafe { &(*memory.cast::<Block>()).bytes };
        bytes.start.as_ptr().cast()
    }

    unsafe extern "C" fn unmap(_memory: *mut gst::ffi::GstMemory) {}

    /// The same bytes, or a part of them, to be read only; a negative size is all that follows.
    unsafe extern "C" fn share(
        memory: *mut gst::ffi::GstMemory,
        offset: isize,
        size: isize,
    ) -> *mut gst::ffi::GstMemory {
        // SAFETY: memories of this allocator are blocks, and GStreamer asks for no more than they have.
        unsafe {
            let bytes = &(*memory.cast::<Block>()).bytes;
            let from = (*memory).offset.wrapping_add_signed(offset);
            let size = usize::try_from(size).unwrap_or((*memory).size.wrapping_add_signed(offset.wrapping_neg()));
            let place = [(*memory).align, from, size];
            Block::make((*memory).allocator, gst::ffi::GST_MEMORY_FLAG_READONLY, bytes.clone(), place)
        }
    }
}

mod pool {
    use gstreamer as gst;
    use gstreamer::glib;
    use gstreamer::subclass::prelude::*;
    use gstreamer_video as gst_video;

    #[derive(Default)]
    pub struct FramePool;

    #[glib::object_subclass]
    impl ObjectSubclass for FramePool {
        const NAME: &'static str = "LinesightFramePool";
        type Type = super::FramePool;
        type ParentType = gst_video::VideoBufferPool;
    }

    impl ObjectImpl for FramePool {}
    impl GstObjectImpl for FramePool {}

    impl BufferPoolImpl for FramePool {
        /// Those of the parent, which a subclass does not inherit.
        fn options() -> &'static [&'static str] {
            &["GstBufferPoolOptionVideoMeta", "GstBufferPoolOptionVideoAlignment"]
        }

        fn release_buffer(&self, mut buffer: gst::Buffer) {
            let shared = buffer.iter_memories().any(super::allocator::is_shared);
            if let Some(buffer) = buffer.get_mut().filter(|_| shared) {
                // a pool gives up what has other memory than it was given
                buffer.set_flags(gst::BufferFlags::TAG_MEMORY);
            }
            self.parent_release_buffer(buffer);
        }
    }

    // SAFETY: adds nothing to the class of a pool.
    unsafe impl IsSubclassable<FramePool> for gst_video::VideoBufferPool {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shares_and_outlives() {
        gst::init().unwrap();
        let memory = glib::Object::new::<FrameMemory>();
        let caps = gst_video::VideoInfo::builder(gst_video::VideoFormat::I420, 64, 36).build().unwrap();
        let pool = glib::Object::new::<FramePool>();
        let mut config = pool.config();
        config.set_params(Some(&caps.to_caps().unwrap()), caps.size() as u32, 0, 0);
        config.set_allocator(Some(&memory), None);
        pool.set_config(config).unwrap();
        pool.set_active(true).unwrap();
        let place = |b: &gst::BufferRef| b.map_readable().unwrap().as_ptr() as usize;
        let take = |value: u8| {
            let mut buffer = pool.acquire_buffer(None).unwrap();
            buffer.get_mut().unwrap().map_writable().unwrap().fill(value);
            buffer
        };

        // as a decoder does that still refers to a picture
        let picture = take(1);
        let first = place(&picture);
        let mapped = gst_video::VideoFrame::from_buffer_readable(picture, &caps).unwrap();
        let written = mapped.buffer().peek_memory(0);
        let copy = written.copy();
        assert_eq!(copy.map_readable().unwrap().as_ptr() as usize, first);
        let part = written.share(10..20);
        assert_eq!(part.map_readable().unwrap().as_ptr() as usize, first + 10);
        assert_eq!(part.size(), 10);
        drop(part);
        let mut copy = copy;
        assert!(copy.get_mut().unwrap().map_writable().is_err(), "a copy can be written to");

        // the decoder has done with it, we have not
        drop(mapped);
        let second = take(2);
        assert_ne!(place(&second), first);
        assert!(copy.map_readable().unwrap().iter().all(|v| *v == 1));
        // now we have, too
        drop(copy);
        let third = take(3);
        assert_eq!(place(&third), first);
        assert!(second.map_readable().unwrap().iter().all(|v| *v == 2));

        // without copies a buffer goes back to its pool
        let (buffer, at) = (third.as_ptr(), place(&third));
        drop(third);
        let fourth = take(4);
        assert_eq!((fourth.as_ptr(), place(&fourth)), (buffer, at));
    }
    /// 180 rows are encoded as 192, and each picture is predicted from the one before.
    #[test]
    fn pictures_of_a_decoder_are_not_copied() {
        gst::init().unwrap();
        let text = "videotestsrc num-buffers=30 pattern=ball ! video/x-raw,format=I420,width=320,height=180 \
                    ! x264enc tune=zerolatency ! h264parse ! avdec_h264 max-threads=1 ! appsink name=frames sync=false";
        let pipeline = gst::parse::launch(text).unwrap().downcast::<gst::Pipeline>().unwrap();
        let sink = pipeline.by_name("frames").unwrap().downcast::<gstreamer_app::AppSink>().unwrap();
        offer(sink.upcast_ref(), true);
        pipeline.set_state(gst::State::Playing).unwrap();
        let buffers: Vec<gst::Buffer> =
            std::iter::from_fn(|| sink.pull_sample().ok()).map(|s| s.buffer_owned().unwrap()).collect();
        assert_eq!(buffers.len(), 30);
        let shared = |b: &&gst::Buffer| b.peek_memory(0).flags().contains(gst::MemoryFlags::READONLY);
        // the first is decoded before it is known where to
        let count = buffers.iter().filter(shared).count();
        assert!(count >= 28, "{count} of 30");
        let _ = pipeline.set_state(gst::State::Null);
    }
}
