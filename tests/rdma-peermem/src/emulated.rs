//! The memory of emulated GPUs, mapped where the kernel can pin it.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// `meshreduceEmulatorMemory` of the emulated driver: the file behind a device address, where in it the address lies, and
/// how many bytes of the allocation follow. The caller closes the descriptor.
type EmulatorMemory = unsafe extern "C" fn(u64, *mut c_int, *mut u64, *mut u64) -> c_int;

/// A part of a file in this process's memory, until it is dropped.
pub(crate) struct Mapping {
    base: *mut c_void,
    bytes: usize,
    /// Where in the mapping the part begins: mappings begin at pages, parts anywhere.
    skip: usize,
}

// SAFETY: nothing of the mapping is read or written here, and unmapping may happen on any thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `length` bytes of `file` from `offset`; the error is an `errno`.
    pub(crate) fn new(file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<Self, c_int> {
        // SAFETY: no pointers.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let skip = usize::try_from(offset % page as u64).map_err(|_| libc::EINVAL)?;
        let bytes = length.checked_add(skip).ok_or(libc::EINVAL)?;
        let from = libc::off_t::try_from(offset - skip as u64).map_err(|_| libc::EINVAL)?;
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: the kernel chooses a free range of addresses.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, from) };
        if base == libc::MAP_FAILED { Err(errno()) } else { Ok(Self { base, bytes, skip }) }
    }

    /// Where the part begins.
    pub(crate) fn start(&self) -> *mut c_void {
        self.base.wrapping_byte_add(self.skip)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own, and whoever pinned it has let go of it.
        unsafe { libc::munmap(self.base, self.bytes) };
    }
}

/// Maps `length` bytes of device memory from `address`. `None` if it is no device address, or this process has no emulated
/// driver; the error is an `errno`: EFAULT if the allocation ends before.
pub(crate) fn device_memory(address: u64, length: usize) -> Result<Option<Mapping>, c_int> {
    let Some(memory) = driver() else { return Ok(None) };
    let (mut fd, mut offset, mut bytes) = (-1, 0, 0);
    // SAFETY: three words for the answers.
    if unsafe { memory(address, &mut fd, &mut offset, &mut bytes) } != 0 {
        return Ok(None);
    }
    // SAFETY: the driver gave this descriptor away.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    if u64::try_from(length).is_ok_and(|length| length > bytes) {
        return Err(libc::EFAULT);
    }
    Mapping::new(std::os::fd::AsFd::as_fd(&file), offset, length).map(Some)
}

/// Where in its file a dma-buf of the emulated driver begins: at the descriptor's position. `None` if the descriptor is none
/// of those. (Of all files, those of memory alone have seals.)
pub(crate) fn dma_buf_begin(fd: c_int) -> Option<u64> {
    // SAFETY: no pointers.
    let is_memory = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) >= 0 };
    // SAFETY: no pointers. The position is asked for, not changed.
    let position = || unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) };
    is_memory.then(position).and_then(|begin| u64::try_from(begin).ok())
}

/// The emulated driver's function, if this process has opened that driver. Asked for anew each time, because a driver may
/// be opened after this library.
fn driver() -> Option<EmulatorMemory> {
    // SAFETY: a text that ends in NUL. Nothing is loaded; an open library is found by its SONAME, whatever its path.
    let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if library.is_null() {
        return None;
    }
    // SAFETY: an open library and a text that ends in NUL.
    let function = unsafe { libc::dlsym(library, c"meshreduceEmulatorMemory".as_ptr()) };
    // SAFETY: the handle is this function's own. The driver cannot be unloaded (`nodelete`), so `function` stays.
    unsafe { libc::dlclose(library) };
    // SAFETY: the emulated driver's function of this name has this prototype, and no other library has one.
    (!function.is_null()).then(|| unsafe { std::mem::transmute::<*mut c_void, EmulatorMemory>(function) })
}

/// This thread's `errno`.
pub(crate) fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Sets this thread's `errno`.
pub(crate) fn set_errno(number: c_int) {
    // SAFETY: a word of this thread's own.
    unsafe { *libc::__errno_location() = number };
}
