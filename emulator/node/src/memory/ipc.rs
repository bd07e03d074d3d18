//! Handles by which one process opens another's device memory or event.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::{error::MemoryError, mapping::PAGE};

/// What a handle stands for. The number tells it from other handles, and from those of a real driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Exported {
    /// Device memory.
    Memory = u64::from_le_bytes(*b"MRIPC\x00\x02\xe5"),
    /// An event.
    Event = u64::from_le_bytes(*b"MRIPC\x01\x02\xe5"),
}

/// The 64 bytes of a `CUipcMemHandle` or a `CUipcEventHandle`.
///
/// It names the exporter's descriptor (process, start time, number) and what must be found there (inode, size), so
/// that neither a recycled process id nor a recycled descriptor is mistaken for what was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpcHandle {
    what: Exported,
    instance: u64,
    pid: u32,
    fd: i32,
    start_time: u64,
    inode: u64,
    offset: u64,
    len: u64,
    device: u32,
}

impl IpcHandle {
    /// A handle of what lies at `offset` of the file behind `fd` and is `len` bytes long.
    pub(super) fn new(
        what: Exported,
        instance: u64,
        fd: BorrowedFd<'_>,
        inode: u64,
        (offset, len): (u64, u64),
        device: usize,
    ) -> Result<Self, MemoryError> {
        let pid = std::process::id();
        let start_time = start_time(pid).ok_or(MemoryError::BadHandle("/proc does not show this process"))?;
        let (fd, device) = (fd.as_raw_fd(), device as u32);
        Ok(Self { what, instance, pid, fd, start_time, inode, offset, len, device })
    }

    /// The handle as the driver's callers carry it about.
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        let words = [
            self.what as u64,
            self.instance,
            u64::from(self.pid) | u64::from(self.fd as u32) << 32,
            self.start_time,
            self.inode,
            self.len,
            u64::from(self.device),
            self.offset,
        ];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads a handle back.
    ///
    /// # Errors
    ///
    /// [`MemoryError::BadHandle`] if the bytes are no handle of that kind of any emulated node.
    pub fn from_bytes(bytes: &[u8; 64], what: Exported) -> Result<Self, MemoryError> {
        let mut words = [0u64; 8];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut raw = [0; 8];
            raw.copy_from_slice(chunk);
            *word = u64::from_le_bytes(raw);
        }
        let [magic, instance, process, start_time, inode, len, device, offset] = words;
        if magic != what as u64 || offset >= PAGE || device > u64::from(u32::MAX) || len == 0 {
            return Err(MemoryError::BadHandle("the bytes are not those of a handle"));
        }
        let (pid, fd) = (process as u32, (process >> 32) as i32);
        Ok(Self { what, instance, pid, fd, start_time, inode, offset, len, device: device as u32 })
    }

    /// The process that exported it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where in the file it begins: within the first page.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The exporter's device and the size, if this process can be meant to open it at all.
    pub(super) fn check(&self, instance: u64, devices: usize) -> Result<(usize, u64), MemoryError> {
        if self.instance != instance {
            return Err(MemoryError::BadHandle("it belongs to another emulated node"));
        }
        if self.device as usize >= devices || self.fd < 0 {
            return Err(MemoryError::BadHandle("the bytes are not those of a handle"));
        }
        if self.pid == std::process::id() && start_time(self.pid) == Some(self.start_time) {
            return Err(MemoryError::SameProcess);
        }
        Ok((self.device as usize, self.len))
    }

    /// Opens the exporter's descriptor.
    pub(super) fn open(&self) -> Result<OwnedFd, MemoryError> {
        const GONE: MemoryError = MemoryError::BadHandle("the process that exported it has ended");
        const FREED: MemoryError = MemoryError::BadHandle("what was exported has been freed");
        if start_time(self.pid) != Some(self.start_time) {
            return Err(GONE);
        }
        let open = |task: &str| {
            let path = format!("{task}/fd/{}", self.fd);
            rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        };
        // A process whose main thread has ended shows its descriptors under its other threads.
        let opened = open(&format!("/proc/{}", self.pid))
            .or_else(|errno| live_threads(self.pid).find_map(|thread| open(&thread).ok()).ok_or(errno));
        let file = match opened {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) if start_time(self.pid) == Some(self.start_time) => {
                return Err(FREED);
            }
            Err(rustix::io::Errno::NOENT) => return Err(GONE),
            Err(errno) => {
                return Err(MemoryError::System { what: "what another process has exported", errno });
            }
        };
        let found = rustix::fs::fstat(&file)
            .map_err(|errno| MemoryError::System { what: "the identity of what was exported", errno })?;
        if found.st_ino != self.inode || Some(found.st_size as u64) != self.offset.checked_add(self.len) {
            return Err(FREED);
        }
        Ok(file)
    }
}

pub(super) fn inode(fd: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    Ok(rustix::fs::fstat(fd)?.st_ino)
}

/// When a process started, in clock ticks since boot, if it is there. With the process id, this names a process for
/// good. A zombie has no descriptors and counts as gone; one of which only the main thread has ended looks like one.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let (state, start_time) = stat(&format!("/proc/{pid}"))?;
    (state != "Z" || live_threads(pid).next().is_some()).then_some(start_time)
}

/// State and start time of a process or thread, by its folder in `/proc`.
fn stat(folder: &str) -> Option<(String, u64)> {
    let stat = std::fs::read_to_string(format!("{folder}/stat")).ok()?;
    // The second field is the command in parentheses and may contain anything; fields are counted after its end.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.to_owned();
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The folders of a process's threads that have not ended.
fn live_threads(pid: u32) -> impl Iterator<Item = String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| thread.path().into_os_string().into_string().ok())
        .filter(|thread| stat(thread).is_some_and(|(state, _)| state != "Z" && state != "X"))
}
