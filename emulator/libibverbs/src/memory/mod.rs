//! Registered memory.
//!
//! The adapter reaches a process's own memory through the kernel (`process_vm_readv`), because the program may unmap it
//! under the registration, which is then an error of the work request and no crash. A device's memory is the memfd of
//! its allocation, and a dma-buf is one too.

mod backing;
mod pages;
pub(crate) mod staged;

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::fs::SeekFrom;

use crate::abi::*;
use crate::context::Pd;
use crate::object::{CObject, Use};
use crate::process::Process;
use crate::{count, cuda, fault};
use backing::Backing;
use meshreduce_emulator_node::node::Peermem;
use pages::PAGE;

/// A registered region.
pub(crate) struct Region {
    pub(crate) raw: CObject<ibv_mr>,
    pd: Arc<Pd>,
    user: Use,
    key: u32,
    /// Its first address, as segments and peers name it.
    address: u64,
    length: u64,
    access: u32,
    pinned: u64,
    backing: Arc<Backing>,
    /// Whether it is deregistered. Held while its bytes are moved: once deregistering has returned none are.
    gone: Mutex<bool>,
}

/// All regions, by the address of their structure.
pub(crate) static REGIONS: Registry<Region> = Registry::new();
/// All regions, by their key.
static KEYS: RwLock<Option<HashMap<u32, Arc<Region>>>> = RwLock::new(None);
/// Bytes that are registered, in whole pages; held while it is found out whether more may be.
static PINNED: Mutex<u64> = Mutex::new(0);

/// What is to be registered.
pub(crate) struct Wanted {
    pub(crate) address: u64,
    pub(crate) length: u64,
    pub(crate) iova: u64,
    pub(crate) access: u32,
}

impl Region {
    /// `ibv_reg_mr` and its kin.
    pub(crate) fn register(pd: Arc<Pd>, wanted: &Wanted) -> Answer<Arc<Self>> {
        counted(|| {
            check_access(wanted)?;
            let backing = match cuda::device_memory(wanted.address) {
                Some(memory) => {
                    if Process::get()?.node.peermem == Peermem::None || memory.bytes < wanted.length {
                        return Err(Errno(libc::EFAULT));
                    }
                    Backing::Device(memory.file, memory.offset, memory.device)
                }
                None => {
                    let writable = wanted.access & ACCESS_LOCAL_WRITE != 0;
                    pages::check(wanted.address, wanted.length, writable)?;
                    Backing::Process(wanted.address)
                }
            };
            Self::insert(pd, wanted, backing)
        })
    }

    /// `ibv_reg_dmabuf_mr`.
    pub(crate) fn register_dma_buf(
        pd: Arc<Pd>,
        wanted: &Wanted,
        offset: u64,
        fd: c_int,
    ) -> Answer<Arc<Self>> {
        counted(|| {
            if !Process::get()?.node.dma_buf {
                return Err(Errno(libc::EOPNOTSUPP));
            }
            check_access(wanted)?;
            let (file, start) = dma_buf(fd)?;
            let size = rustix::fs::fstat(&file).map_err(os)?.st_size as u64;
            let start = start.checked_add(offset).ok_or(Errno(libc::EINVAL))?;
            if start.checked_add(wanted.length).is_none_or(|end| end > size.next_multiple_of(PAGE)) {
                return Err(Errno(libc::EINVAL));
            }
            Self::insert(pd, wanted, Backing::Device(file, start, cuda::device_of(wanted.iova)))
        })
    }

    fn insert(pd: Arc<Pd>, wanted: &Wanted, backing: Backing) -> Answer<Arc<Self>> {
        let first = wanted.address / PAGE * PAGE;
        let pinned = (wanted.address + wanted.length).next_multiple_of(PAGE) - first;
        let mut total = PINNED.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = Process::get()?.node.memlock_kib;
        if limit.is_some_and(|kib| *total + pinned > kib << 10) {
            return Err(Errno(libc::ENOMEM));
        }
        *total += pinned;
        drop(total);
        if matches!(backing, Backing::Device(..)) {
            cuda::watch_flushes(staged::flush);
        }
        let key = next_key();
        let raw = CObject::new(ibv_mr {
            context: pd.context.raw.pointer(),
            pd: pd.raw.pointer(),
            addr: wanted.address as *mut c_void,
            length: wanted.length as usize,
            handle: key,
            lkey: key,
            rkey: key,
        });
        let (address, length, access) = (wanted.iova, wanted.length, wanted.access);
        let user = pd.users.add();
        let region = Arc::new(Self {
            raw,
            pd,
            user,
            key,
            address,
            length,
            access,
            pinned,
            backing: Arc::new(backing),
            gone: Mutex::new(false),
        });
        REGIONS.insert(region.raw.pointer(), Arc::clone(&region));
        let mut keys = KEYS.write().unwrap_or_else(PoisonError::into_inner);
        keys.get_or_insert_default().insert(key, Arc::clone(&region));
        count::add(&count::live_mr, 1);
        count::add(&count::pinned_bytes, pinned);
        Ok(region)
    }

    /// `ibv_dereg_mr`: requests that still use it fail.
    pub(crate) fn deregister(handle: *mut ibv_mr) -> Answer<c_int> {
        let region = REGIONS.remove(handle)?;
        if let Some(keys) = KEYS.write().unwrap_or_else(PoisonError::into_inner).as_mut() {
            keys.remove(&region.key);
        }
        *region.gone.lock().unwrap_or_else(PoisonError::into_inner) = true;
        staged::flush_backing(&region.backing);
        region.user.end();
        *PINNED.lock().unwrap_or_else(PoisonError::into_inner) -= region.pinned;
        count::sub(&count::live_mr, 1);
        count::sub(&count::pinned_bytes, region.pinned);
        Ok(0)
    }

    /// The region of a key, if it is of this domain and has these bytes, and all of `access` is allowed.
    pub(crate) fn find(key: u32, pd: &Arc<Pd>, address: u64, length: u64, access: u32) -> Option<Arc<Self>> {
        let keys = KEYS.read().unwrap_or_else(PoisonError::into_inner);
        let region = keys.as_ref()?.get(&key)?;
        let offset = address.checked_sub(region.address)?;
        let inside = offset <= region.length && length <= region.length - offset;
        (inside && region.access & access == access && Arc::ptr_eq(&region.pd, pd))
            .then(|| Arc::clone(region))
    }

    /// Reads bytes of it; false if they are not there any more.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if *gone {
            return false;
        }
        if matches!(*self.backing, Backing::Device(..)) {
            staged::flush_backing(&self.backing);
        }
        self.backing.read(address - self.address, bytes)
    }

    /// Writes bytes of it, as an adapter does: a device may see them later. False if they are not there any more.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> bool {
        let offset = address - self.address;
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*self.backing, fault::late_visibility()) {
            _ if *gone => false,
            (Backing::Device(_, _, device), Some(delay)) => {
                staged::add(&self.backing, offset, bytes, delay, *device);
                true
            }
            (backing, _) => backing.write(offset, bytes),
        }
    }
}

fn os(error: rustix::io::Errno) -> Errno {
    Errno(error.raw_os_error())
}

fn counted(register: impl FnOnce() -> Answer<Arc<Region>>) -> Answer<Arc<Region>> {
    let answer = register();
    count::add(if answer.is_ok() { &count::reg_mr } else { &count::reg_mr_failed }, 1);
    answer
}

fn check_access(wanted: &Wanted) -> Answer<()> {
    let known = ACCESS_LOCAL_WRITE
        | ACCESS_REMOTE_WRITE
        | ACCESS_REMOTE_READ
        | ACCESS_REMOTE_ATOMIC
        | ACCESS_MW_BIND
        | ACCESS_OPTIONAL_RANGE;
    let needs_local = wanted.access & (ACCESS_REMOTE_WRITE | ACCESS_REMOTE_ATOMIC) != 0;
    let ends = wanted.address.checked_add(wanted.length).is_some_and(|end| end <= u64::MAX - PAGE)
        && wanted.iova.checked_add(wanted.length).is_some();
    if wanted.access & !known != 0
        || needs_local && wanted.access & ACCESS_LOCAL_WRITE == 0
        || wanted.length == 0
        || !ends
    {
        return Err(Errno(libc::EINVAL));
    }
    Ok(())
}

/// The file of a dma-buf in a descriptor of our own, and where in it the buffer begins: at the position of the
/// descriptor, which the emulated driver leaves there.
fn dma_buf(fd: c_int) -> Answer<(OwnedFd, u64)> {
    if fd < 0 {
        return Err(Errno(libc::EBADF));
    }
    // SAFETY: a descriptor that is not open is answered with EBADF by all that is done with it.
    let given = unsafe { BorrowedFd::borrow_raw(fd) };
    let file = rustix::io::fcntl_dupfd_cloexec(given, 3).map_err(os)?;
    let name = std::fs::read_link(format!("/proc/self/fd/{fd}")).map_err(|_| Errno(libc::EBADF))?;
    // The kernel's check of what a dma-buf is has the same answer.
    if !name.to_string_lossy().starts_with("/memfd:") {
        return Err(Errno(libc::EINVAL));
    }
    let start = rustix::fs::seek(&file, SeekFrom::Current(0)).map_err(os)?;
    Ok((file, start))
}

/// A key that no region has: a number in its upper bits, and in the lowest eight something that cannot be guessed, as
/// adapters have it.
fn next_key() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Relaxed) % (1 << 24);
    number << 8 | (RandomState::new().hash_one(number) & 0xff) as u32
}
