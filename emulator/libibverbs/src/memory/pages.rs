//! A process's own memory, reached through the kernel: what is not there, or may not be written, is an error.

use std::ffi::c_void;

use crate::abi::{Answer, Errno};

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;
/// Ranges in one call of the kernel.
const RANGES: usize = 1024;

/// Whether the memory is there as an adapter needs it: mapped, readable, writable if it is to be, and with pages behind
/// it. EFAULT otherwise.
pub(super) fn check(address: u64, length: u64, writable: bool) -> Answer<()> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|_| Errno(libc::EFAULT))?;
    let end = address + length;
    let mut reached = address;
    for line in maps.lines() {
        let Some((from, to, access)) = mapping(line) else { continue };
        if to <= reached {
            continue;
        }
        let allowed = access.starts_with('r') && (!writable || access.as_bytes()[1] == b'w');
        if from > reached || !allowed {
            break;
        }
        reached = to;
        if reached >= end {
            return touch(address, end);
        }
    }
    Err(Errno(libc::EFAULT))
}

/// First address, end and access of a line of `/proc/self/maps`.
fn mapping(line: &str) -> Option<(u64, u64, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (from, to) = range.split_once('-')?;
    let access = rest.get(..4)?;
    Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?, access))
}

/// Reads a byte of every page: a file can be shorter than its mapping.
fn touch(address: u64, end: u64) -> Answer<()> {
    let mut byte = [0_u8; RANGES];
    let first = address / PAGE * PAGE;
    let pages: Vec<u64> = (first..end).step_by(PAGE as usize).map(|page| page.max(address)).collect();
    for pages in pages.chunks(RANGES) {
        let remote: Vec<_> = pages.iter().map(|&page| range(page as *mut u8, 1)).collect();
        let local = [range(byte.as_mut_ptr(), pages.len())];
        // SAFETY: `local` is a buffer of this function's; the others are read only if they are there.
        let count = unsafe {
            libc::process_vm_readv(libc::getpid(), local.as_ptr(), 1, remote.as_ptr(), remote.len() as u64, 0)
        };
        if count != pages.len() as isize {
            return Err(Errno(libc::EFAULT));
        }
    }
    Ok(())
}

pub(super) fn read(address: u64, bytes: &mut [u8]) -> bool {
    let local = range(bytes.as_mut_ptr(), bytes.len());
    let remote = range(address as *mut u8, bytes.len());
    // SAFETY: `bytes` is a valid place, and memory that is not there is answered with an error.
    let count = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    count == bytes.len() as isize
}

/// The program gave the memory to the adapter when it registered it and posted the request, or let a peer write to it:
/// by its own contract nothing relies on what is in it meanwhile.
pub(super) fn write(address: u64, bytes: &[u8]) -> bool {
    let local = range(bytes.as_ptr().cast_mut(), bytes.len());
    let remote = range(address as *mut u8, bytes.len());
    // SAFETY: `bytes` is only read. The memory is registered for being written (above); if it is not there any more the
    // kernel answers with an error.
    let count = unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) };
    count == bytes.len() as isize
}

fn range(start: *mut u8, length: usize) -> libc::iovec {
    libc::iovec { iov_base: start.cast::<c_void>(), iov_len: length }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_where_they_are_meant_and_nowhere_else() {
        let mut memory = vec![1_u8; 10_000];
        let base = memory.as_mut_ptr() as u64;
        assert!(write(base + 5, &[2; 5000]));
        let mut seen = vec![0; 10_000];
        assert!(read(base, &mut seen));
        assert_eq!(seen, [vec![1; 5], vec![2; 5000], vec![1; 4995]].concat());
        assert_eq!(seen, memory);
    }

    #[test]
    fn memory_that_is_not_there_is_no_crash() {
        // The first page is never mapped.
        assert!(!read(8, &mut [0; 8]));
        assert!(!write(8, &[0; 8]));
        assert_eq!(check(8, 8, false), Err(Errno(libc::EFAULT)));
    }

    #[test]
    fn memory_that_may_not_be_written_is_not_registered_for_writing() {
        static TEXT: [u8; 64] = [7; 64];
        let address = TEXT.as_ptr() as u64;
        assert_eq!(check(address, 64, false), Ok(()));
        assert_eq!(check(address, 64, true), Err(Errno(libc::EFAULT)));
    }
}
