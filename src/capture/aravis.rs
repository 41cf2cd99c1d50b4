//! The few calls of libaravis that linesight makes, safe to use. The library is opened at run time, so that linesight starts on
//! machines without it.
//!
//! Objects are GObjects and counted by glib. A [`Camera`] and its [`Stream`] belong to one thread at a time. Invariants:
//! 1. A [`Lent`] buffer keeps its memory until it is dropped, even when stream and camera are gone by then; the stream gets it
//!    back only then (test `tests/sources.rs::frames_outlive_their_camera`).

use crate::error::{Error, Result};
use glib::translate::{FromGlibPtrFull, FromGlibPtrNone, ToGlibPtr};
use gstreamer::glib;
use gstreamer::glib::prelude::*;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Acquire};
use std::time::Duration;

/// Its ABI has been the same through all of 0.8.
const LIBRARY: &str = "libaravis-0.8.so.0";

type Object = *mut glib::gobject_ffi::GObject;
type Fault = *mut *mut glib::ffi::GError;
type Text = *const c_char;

macro_rules! functions {
    ($($name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// Functions of the library, called `arv_` and the name here.
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }
        impl Functions {
            /// # Safety
            /// `library` must be libaravis 0.8 and stay open.
            unsafe fn find(library: &libloading::Library) -> Result<Self, libloading::Error> {
                // SAFETY: the types are those of the headers of 0.8
                unsafe {
                    Ok(Functions { $($name: *library.get(concat!("arv_", stringify!($name), "\0").as_bytes())?,)* })
                }
            }
        }
    };
}

functions! {
    update_device_list();
    get_n_devices() -> c_uint;
    get_device_id(c_uint) -> Text;
    get_device_vendor(c_uint) -> Text;
    get_device_model(c_uint) -> Text;
    get_device_serial_nbr(c_uint) -> Text;
    get_device_address(c_uint) -> Text;
    get_device_protocol(c_uint) -> Text;
    camera_new(Text, Fault) -> Object;
    camera_get_device(Object) -> Object;
    camera_is_gv_device(Object) -> c_int;
    camera_gv_set_packet_size(Object, c_int, Fault);
    camera_gv_auto_packet_size(Object, Fault) -> c_uint;
    camera_get_width_bounds(Object, *mut c_int, *mut c_int, Fault);
    camera_get_height_bounds(Object, *mut c_int, *mut c_int, Fault);
    camera_get_region(Object, *mut c_int, *mut c_int, *mut c_int, *mut c_int, Fault);
    camera_set_region(Object, c_int, c_int, c_int, c_int, Fault);
    camera_dup_available_pixel_formats_as_strings(Object, *mut c_uint, Fault) -> *mut Text;
    camera_get_pixel_format(Object, Fault) -> u32;
    camera_get_pixel_format_as_string(Object, Fault) -> Text;
    camera_set_pixel_format_from_string(Object, Text, Fault);
    camera_is_frame_rate_available(Object, Fault) -> c_int;
    camera_get_frame_rate_bounds(Object, *mut f64, *mut f64, Fault);
    camera_get_frame_rate(Object, Fault) -> f64;
    camera_set_frame_rate(Object, f64, Fault);
    camera_is_exposure_time_available(Object, Fault) -> c_int;
    camera_is_exposure_auto_available(Object, Fault) -> c_int;
    camera_set_exposure_time(Object, f64, Fault);
    camera_set_exposure_time_auto(Object, c_int, Fault);
    camera_is_gain_available(Object, Fault) -> c_int;
    camera_is_gain_auto_available(Object, Fault) -> c_int;
    camera_set_gain(Object, f64, Fault);
    camera_set_gain_auto(Object, c_int, Fault);
    camera_clear_triggers(Object, Fault);
    camera_set_trigger(Object, Text, Fault);
    camera_software_trigger(Object, Fault);
    camera_set_acquisition_mode(Object, c_int, Fault);
    camera_get_payload(Object, Fault) -> c_uint;
    camera_create_stream(Object, *mut c_void, *mut c_void, Fault) -> Object;
    camera_start_acquisition(Object, Fault);
    camera_stop_acquisition(Object, Fault);
    pixel_format_to_gst_caps_string(u32) -> Text;
    stream_push_buffer(Object, Object);
    stream_timeout_pop_buffer(Object, u64) -> Object;
    buffer_new(usize, *mut c_void) -> Object;
    buffer_get_status(Object) -> c_int;
    buffer_get_data(Object, *mut usize) -> *const c_void;
    buffer_get_image_region(Object, *mut c_int, *mut c_int, *mut c_int, *mut c_int);
    buffer_get_timestamp(Object) -> u64;
    buffer_get_frame_id(Object) -> u64;
}

/// The library, opened once for the process.
fn library() -> Result<&'static Functions> {
    static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
    let found = FUNCTIONS.get_or_init(|| {
        // SAFETY: libaravis has no start-up code beyond registering types; it is never closed, which GObject types demand
        unsafe {
            let library = libloading::Library::new(LIBRARY).map_err(|e| e.to_string())?;
            Functions::find(Box::leak(Box::new(library))).map_err(|e| e.to_string())
        }
    });
    found.as_ref().map_err(|e| {
        Error::missing("GenICam cameras need Aravis, which is not installed")
            .because(e.clone())
            .hint("install libaravis-0.8-0 (`make setup` does)")
    })
}

/// Whether GenICam cameras can be used on this machine.
pub(crate) fn is_installed() -> Result<()> {
    library().map(|_| ())
}

/// Calls `call` with a place for an error.
fn tried<T>(call: impl FnOnce(Fault) -> T) -> Result<T, glib::Error> {
    let mut fault = std::ptr::null_mut();
    let value = call(&mut fault);
    if fault.is_null() {
        return Ok(value);
    }
    // SAFETY: the library hands over a GError of its own
    Err(unsafe { glib::Error::from_glib_full(fault) })
}

/// # Safety
/// `text` is null or ends with a zero.
unsafe fn text(text: Text) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as above
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// What is attached, as cameras announce themselves.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) id: String,
    pub(crate) vendor: String,
    pub(crate) model: String,
    pub(crate) serial: String,
    pub(crate) address: String,
    /// `GigEVision`, `USB3Vision`.
    pub(crate) protocol: String,
}

/// Looks for cameras on all networks and USB ports; takes a second.
pub(crate) fn devices() -> Result<Vec<Device>> {
    let f = library()?;
    // SAFETY: the texts belong to the library until the list is updated again, and are copied here
    unsafe {
        (f.update_device_list)();
        let n = (f.get_n_devices)();
        Ok((0..n)
            .map(|i| Device {
                id: text((f.get_device_id)(i)),
                vendor: text((f.get_device_vendor)(i)),
                model: text((f.get_device_model)(i)),
                serial: text((f.get_device_serial_nbr)(i)),
                address: text((f.get_device_address)(i)),
                protocol: text((f.get_device_protocol)(i)),
            })
            .collect())
    }
}

/// A camera that was opened.
pub(crate) struct Camera {
    f: &'static Functions,
    object: glib::Object,
}

// SAFETY: an ArvCamera may be used from any thread, by one at a time
unsafe impl Send for Camera {}

type Call1<T> = unsafe extern "C" fn(Object, Fault) -> T;

impl Camera {
    /// Connects to the camera with this address or name.
    pub(crate) fn open(name: &str) -> Result<Camera> {
        let f = library()?;
        let c_name = CString::new(name).map_err(|_| Error::usage("a camera's name has a zero byte in it"))?;
        // SAFETY: on success the object is ours
        let object = tried(|e| unsafe { (f.camera_new)(c_name.as_ptr(), e) })
            .and_then(|o| match o.is_null() {
                true => Err(glib::Error::new(glib::FileError::Noent, "no such camera")),
                false => Ok(unsafe { glib::Object::from_glib_full(o) }),
            })
            .map_err(|e| {
                Error::missing(format!("camera \"{name}\" cannot be opened")).because(e).hint(
                    "check its power, cable and address (`linesight cameras` lists what answers), and that no other program has it",
                )
            })?;
        Ok(Camera { f, object })
    }

    fn raw(&self) -> Object {
        self.object.to_glib_none().0
    }

    fn call<T>(&self, function: Call1<T>) -> Result<T, glib::Error> {
        // SAFETY: the object is a camera and alive
        tried(|e| unsafe { function(self.raw(), e) })
    }

    fn can(&self, function: Call1<c_int>) -> bool {
        self.call(function).is_ok_and(|yes| yes != 0)
    }

    /// Runs `lost` on another thread when the camera does not answer any more. To be dropped after the camera and its streams.
    pub(crate) fn on_lost(&self, lost: impl Fn() + Send + Sync + 'static) -> LossWatch {
        // SAFETY: the device belongs to the camera; the reference taken here is dropped at the end
        let device: glib::Object = unsafe { glib::Object::from_glib_none((self.f.camera_get_device)(self.raw())) };
        let handler = device.connect("control-lost", false, move |_| {
            lost();
            None
        });
        LossWatch { device, handler: Some(handler) }
    }

    pub(crate) fn is_gige(&self) -> bool {
        // SAFETY: as in `call`
        unsafe { (self.f.camera_is_gv_device)(self.raw()) != 0 }
    }

    pub(crate) fn set_packet_size(&self, bytes: u32) -> Result<(), glib::Error> {
        // SAFETY: as in `call`
        tried(|e| unsafe { (self.f.camera_gv_set_packet_size)(self.raw(), bytes as c_int, e) })
    }

    /// Finds the largest packet that arrives, by trying.
    pub(crate) fn negotiate_packet_size(&self) -> Result<u32, glib::Error> {
        self.call(self.f.camera_gv_auto_packet_size)
    }

    /// Largest width and height.
    pub(crate) fn largest(&self) -> Result<(u32, u32), glib::Error> {
        let (mut least, mut w, mut h) = (0, 0, 0);
        // SAFETY: as in `call`
        tried(|e| unsafe { (self.f.camera_get_width_bounds)(self.raw(), &mut least, &mut w, e) })?;
        // SAFETY: as in `call`
        tried(|e| unsafe { (self.f.camera_get_height_bounds)(self.raw(), &mut least, &mut h, e) })?;
        Ok((w.max(0) as u32, h.max(0) as u32))
    }

    /// Left, top, width and height of what it sends.
    pub(crate) fn region(&self) -> Result<[i32; 4], glib::Error> {
        let [mut x, mut y, mut w, mut h] = [0; 4];
        // SAFETY: as in `call`
        tried(|e| unsafe { (self.f.camera_get_region)(self.raw(), &mut x, &mut y, &mut w, &mut h, e) })?;
        Ok([x, y, w, h])
    }

    pub(crate) fn set_region(&self, [x, y, w, h]: [i32; 4]) -> Result<(), glib::Error> {
        // SAFETY: as in `call`
        tried(|e| unsafe { (self.f.camera_set_region)(self.raw(), x, y, w, h, e) })
    }

    /// Names of the pixel formats that it has.
    pub(crate) fn formats(&self) -> Result<Vec<String>, glib::Error> {
        let mut n = 0;
        // SAFETY: the array is ours to free, its texts are the library's
        unsafe {
            let names = tried(|e| (self.f.camera_dup_available_pixel_formats_as_strings)(self.raw(), &mut n, e))?;
            if names.is_null() {
                return Ok(Vec::new());
            }
            let list = std::slice::from_raw_parts(names, n as usize).iter().map(|t| text(*t)).collect();
            glib::ffi::g_free(names.cast());
            Ok(list)
        }
    }

    pub(crate) fn format(&self) -> Result<String, glib::Error> {
        // SAFETY: the text is the library's
        Ok(unsafe { text(self.call(self.f.camera_get_pixel_format_as_string)?) })
    }

    pub(crate) fn set_format(&self, name: &str) -> Result<(), glib::Error> {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: as in `call`
        tried(|e| unsafe { (self.f.camera_set_pixel_format_from_string)(self.raw(), name.as_ptr(), e) })
    }

    /// What GStreamer calls the present pixel format, if it knows it.
    pub(crate) fn caps(&self) -> Result<Option<String>, glib::Error> {
        let format = self.call(self.f.camera_get_pixel_format)?;
        // SAFETY: the text is static
        let caps = unsafe { text((self.f.pixel_format_to_gst_caps_string)(format)) };
        Ok(Some(caps).filter(|c| !c.is_empty()))
    }

    /// Lowest and highest rate, where it can be set.
    pub(crate) fn rates(&self) -> Option<(f64, f64)> {
        let (mut least, mut most) = (0.0, 0.0);
        // SAFETY: as in `call`
        self.can(self.f.camera_is_frame_rate_available)
            .then(|| tried(|e| unsafe { (self.f.camera_get_frame_rate_bounds)(self.raw(), &mut least, &mut most, e) }))?
            .ok()?;
        Some((least, most))
    }

    pub(crate) fn rate(&self) -> Option<f64> {
        self.can(self.f.camera_is_frame_rate_available)
            .then(|| self.call(self.f.camera_get_frame_rate).ok())
            .flatten()
            .filter(|r| *r > 0.0)
    }

    pub(crate) fn set_rate(&self, fps: f64) -> Result<(), glib::Error> {
        // SAFETY: as in `call`
        tried(|e| unsafe { (self.f.camera_set_frame_rate)(self.raw(), fps, e) })
    }

    /// False when the camera has no exposure time to set.
    pub(crate) fn set_exposure(&self, us: f64) -> Result<bool, glib::Error> {
        if !self.can(self.f.camera_is_exposure_time_available) {
            return Ok(false);
        }
        // SAFETY: as in `call`; 0 is ARV_AUTO_OFF
        unsafe {
            if self.can(self.f.camera_is_exposure_auto_available) {
                tried(|e| (self.f.camera_set_exposure_time_auto)(self.raw(), 0, e))?;
            }
            tried(|e| (self.f.camera_set_exposure_time)(self.raw(), us, e))?;
        }
        Ok(true)
    }

    /// False when the camera has no gain to set.
    pub(crate) fn set_gain(&self, gain: f64) -> Result<bool, glib::Error> {
        if !self.can(self.f.camera_is_gain_available) {
            return Ok(false);
        }
        // SAFETY: as in `call`; 0 is ARV_AUTO_OFF
        unsafe {
            if self.can(self.f.camera_is_gain_auto_available) {
                tried(|e| (self.f.camera_set_gain_auto)(self.raw(), 0, e))?;
            }
            tried(|e| (self.f.camera_set_gain)(self.raw(), gain, e))?;
        }
        Ok(true)
    }

    pub(crate) fn clear_triggers(&self) -> Result<(), glib::Error> {
        self.call(self.f.camera_clear_triggers)
    }

    pub(crate) fn set_trigger(&self, source: &str) -> Result<(), glib::Error> {
        let source = CString::new(source).unwrap_or_default();
        // SAFETY: as in `call`
        tried(|e| unsafe { (self.f.camera_set_trigger)(self.raw(), source.as_ptr(), e) })
    }

    pub(crate) fn trigger(&self) -> Result<(), glib::Error> {
        self.call(self.f.camera_software_trigger)
    }

    pub(crate) fn set_continuous(&self) -> Result<(), glib::Error> {
        // SAFETY: as in `call`; 0 is ARV_ACQUISITION_MODE_CONTINUOUS
        tried(|e| unsafe { (self.f.camera_set_acquisition_mode)(self.raw(), 0, e) })
    }

    /// Bytes of a picture as it is sent.
    pub(crate) fn payload(&self) -> Result<usize, glib::Error> {
        Ok(self.call(self.f.camera_get_payload)? as usize)
    }

    /// Opens the way that pictures come, with `buffers` of `bytes` each.
    pub(crate) fn stream(&self, buffers: usize, bytes: usize) -> Result<Stream, glib::Error> {
        let none = std::ptr::null_mut;
        // SAFETY: without a callback; the stream and the buffers are new objects, the stream takes the buffers
        unsafe {
            let stream = tried(|e| (self.f.camera_create_stream)(self.raw(), none(), none(), e))?;
            if stream.is_null() {
                return Err(glib::Error::new(glib::FileError::Failed, "the camera gives no stream"));
            }
            for _ in 0..buffers {
                (self.f.stream_push_buffer)(stream, (self.f.buffer_new)(bytes, none()));
            }
            Ok(Stream { f: self.f, object: glib::Object::from_glib_full(stream) })
        }
    }

    pub(crate) fn start(&self) -> Result<(), glib::Error> {
        self.call(self.f.camera_start_acquisition)
    }

    pub(crate) fn stop(&self) -> Result<(), glib::Error> {
        self.call(self.f.camera_stop_acquisition)
    }
}

/// Waits for the loss of a camera, and sees to it that the device does not end on its own heartbeat thread.
///
/// That thread says that control is lost, and holds a reference to the device while it does. Were it the last one, the thread
/// would take the device apart, wait for its own end, and GLib would abort the process (aravis issue 50 is the same for streams).
pub(crate) struct LossWatch {
    device: glib::Object,
    handler: Option<glib::SignalHandlerId>,
}

// SAFETY: as for the camera
unsafe impl Send for LossWatch {}

/// How long the heartbeat thread may take to end what it says.
const EMISSION: Duration = Duration::from_secs(5);
/// How long it takes at most from its decision to speak until it holds the device.
const BEGUN: Duration = Duration::from_millis(20);

impl Drop for LossWatch {
    fn drop(&mut self) {
        if let Some(handler) = self.handler.take() {
            // from now on there is nobody to be told, and GLib takes no reference for that
            self.device.disconnect(handler);
        }
        let object: *mut glib::gobject_ffi::GObject = self.device.as_ptr();
        let until = std::time::Instant::now() + EMISSION;
        // one that has just begun to speak may not have taken its reference yet
        std::thread::sleep(BEGUN);
        loop {
            // SAFETY: our reference keeps the object alive; GLib changes its counter by atomic operations, too
            let count = unsafe { AtomicU32::from_ptr(&raw mut (*object).ref_count) }.load(Acquire);
            if count <= 1 || std::time::Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The way that pictures come.
pub(crate) struct Stream {
    f: &'static Functions,
    object: glib::Object,
}

// SAFETY: as for the camera; popping and pushing buffers is thread-safe
unsafe impl Send for Stream {}

/// A picture, or what is left of it.
pub(crate) struct Picture {
    pub(crate) buffer: Lent,
    /// Whether all of it arrived.
    pub(crate) whole: bool,
    /// The camera's number for it.
    pub(crate) id: u64,
    /// The camera's clock, nanoseconds.
    pub(crate) time_ns: u64,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl Stream {
    /// The next picture, waited for as long as `wait`.
    pub(crate) fn next(&self, wait: Duration) -> Option<Picture> {
        let f = self.f;
        // SAFETY: the buffer popped is ours until it is pushed again; a picture's region is asked only when there is one
        unsafe {
            let buffer = (f.stream_timeout_pop_buffer)(self.object.to_glib_none().0, wait.as_micros() as u64);
            if buffer.is_null() {
                return None;
            }
            let whole = (f.buffer_get_status)(buffer) == 0;
            let (mut len, [mut x, mut y, mut w, mut h]) = (0, [0; 4]);
            let data = (f.buffer_get_data)(buffer, &mut len).cast();
            if whole {
                (f.buffer_get_image_region)(buffer, &mut x, &mut y, &mut w, &mut h);
            }
            Some(Picture {
                whole,
                id: (f.buffer_get_frame_id)(buffer),
                time_ns: (f.buffer_get_timestamp)(buffer),
                width: w.max(0) as usize,
                height: h.max(0) as usize,
                buffer: Lent { f, stream: self.object.downgrade(), buffer, data, len },
            })
        }
    }
}

/// The memory of a picture; goes back to its stream, if that is still there, when it is dropped.
pub(crate) struct Lent {
    f: &'static Functions,
    stream: glib::WeakRef<glib::Object>,
    buffer: Object,
    data: *const u8,
    len: usize,
}

// SAFETY: nobody writes into the memory before the buffer is given back, which is done once, through thread-safe calls
unsafe impl Send for Lent {}
// SAFETY: as above
unsafe impl Sync for Lent {}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        if self.data.is_null() {
            return &[];
        }
        // SAFETY: the buffer is alive as long as this, and has that many bytes
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: the buffer is ours, and given away here in one way or the other
        unsafe {
            match self.stream.upgrade() {
                Some(stream) => (self.f.stream_push_buffer)(stream.to_glib_none().0, self.buffer),
                None => glib::gobject_ffi::g_object_unref(self.buffer),
            }
        }
    }
}
