//! The emulated driver, if the process has it: where device memory is, and when it is flushed.
//!
//! The driver is never opened from here. It has the SONAME `libcuda.so.1`, by which the dynamic loader finds it wherever
//! it was opened from; a driver that is not the emulated one has none of these functions, and so no device memory for
//! the emulated adapters.

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_NOW};

const NAME: &str = "libcuda.so.1";
/// `CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL`.
const DEVICE_ORDINAL: c_int = 9;

type Memory = unsafe extern "C" fn(u64, *mut c_int, *mut u64, *mut u64) -> c_uint;
type OnFlush = unsafe extern "C" fn(Option<extern "C" fn(i32, u32, *mut c_void)>, *mut c_void) -> c_uint;
type PointerAttribute = unsafe extern "C" fn(*mut c_void, c_int, u64) -> c_uint;

struct Driver {
    memory: Memory,
    on_flush: OnFlush,
    pointer_attribute: PointerAttribute,
    /// Keeps the code in memory.
    _library: Library,
}

/// Device memory as a file.
pub(crate) struct DeviceFile {
    /// The file, a descriptor of our own.
    pub(crate) file: OwnedFd,
    /// Where in it the address is.
    pub(crate) offset: u64,
    /// Bytes from there to the end of the allocation.
    pub(crate) bytes: u64,
    /// The device, as the program numbers them.
    pub(crate) device: Option<i32>,
}

fn driver() -> Option<&'static Driver> {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    if let Some(driver) = DRIVER.get() {
        return Some(driver);
    }
    // SAFETY: a library that is in the process already is opened again, which runs nothing.
    let library = unsafe { Library::open(Some(NAME), RTLD_NOW | libc::RTLD_NOLOAD) }.ok()?;
    // SAFETY: the emulated driver's functions of these names have these signatures; no other driver has the first two.
    let (memory, on_flush, pointer_attribute) = unsafe {
        (
            *library.get::<Memory>(b"meshreduceEmulatorMemory\0").ok()?,
            *library.get::<OnFlush>(b"meshreduceEmulatorOnFlush\0").ok()?,
            *library.get::<PointerAttribute>(b"cuPointerGetAttribute\0").ok()?,
        )
    };
    Some(DRIVER.get_or_init(|| Driver { memory, on_flush, pointer_attribute, _library: library }))
}

/// The device memory at `address`, if it is that.
pub(crate) fn device_memory(address: u64) -> Option<DeviceFile> {
    let driver = driver()?;
    let (mut fd, mut offset, mut bytes) = (-1, 0, 0);
    // SAFETY: the places for the answer are valid.
    if unsafe { (driver.memory)(address, &mut fd, &mut offset, &mut bytes) } != 0 || fd < 0 {
        return None;
    }
    // SAFETY: the driver gave the descriptor to us.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    Some(DeviceFile { file, offset, bytes, device: ordinal(driver, address) })
}

/// The device that an address is of.
pub(crate) fn device_of(address: u64) -> Option<i32> {
    ordinal(driver()?, address)
}

fn ordinal(driver: &Driver, address: u64) -> Option<i32> {
    let mut ordinal: c_int = -1;
    // SAFETY: the attribute is an int, and the place for it valid.
    let code = unsafe { (driver.pointer_attribute)((&raw mut ordinal).cast(), DEVICE_ORDINAL, address) };
    (code == 0 && ordinal >= 0).then_some(ordinal)
}

/// Who is told of flushes.
static FLUSHED: OnceLock<fn(Option<i32>)> = OnceLock::new();

/// Has the driver tell of flushes: of which device, or of all.
pub(crate) fn watch_flushes(told: fn(Option<i32>)) {
    if let Some(driver) = driver() {
        FLUSHED.get_or_init(|| told);
        // SAFETY: the function lives as long as the process: this library stays in memory.
        let _ = unsafe { (driver.on_flush)(Some(flushed), ptr::null_mut()) };
    }
}

/// The scope in which the writes are to be seen by all devices, not the owner alone.
const TO_ALL_DEVICES: u32 = 200;

extern "C" fn flushed(device: i32, scope: u32, _: *mut c_void) {
    if let Some(told) = FLUSHED.get() {
        told(Some(device).filter(|_| scope != TO_ALL_DEVICES));
    }
}
