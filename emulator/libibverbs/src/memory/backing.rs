//! Where the bytes of a region are.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{pread, pwrite};

use super::pages::{self, PAGE};

/// Where a region's bytes are.
pub(super) enum Backing {
    /// At this address of this process.
    Process(u64),
    /// In this file from this offset on, of that device.
    Device(OwnedFd, u64, Option<i32>),
}

impl Backing {
    /// Reads bytes; false if they are not there any more.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> bool {
        match self {
            Backing::Process(base) => pages::read(base + offset, bytes),
            Backing::Device(file, start, _) => read_all(file.as_fd(), bytes, start + offset),
        }
    }

    /// Writes bytes, which are seen at once; false if their places are not there any more.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        match self {
            Backing::Process(base) => pages::write(base + offset, bytes),
            Backing::Device(file, start, _) => write_all(file.as_fd(), bytes, start + offset),
        }
    }
}

fn read_all(file: BorrowedFd<'_>, mut bytes: &mut [u8], mut at: u64) -> bool {
    while !bytes.is_empty() {
        match pread(file, &mut *bytes, at) {
            Ok(0) | Err(_) => return false,
            Ok(count) => {
                bytes = &mut bytes[count..];
                at += count as u64;
            }
        }
    }
    true
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8], mut at: u64) -> bool {
    // A write beyond the end would make the file longer.
    let end = at + bytes.len() as u64;
    if rustix::fs::fstat(file).map_or(true, |stat| (stat.st_size as u64).next_multiple_of(PAGE) < end) {
        return false;
    }
    while !bytes.is_empty() {
        match pwrite(file, bytes, at) {
            Ok(0) | Err(_) => return false,
            Ok(count) => {
                bytes = &bytes[count..];
                at += count as u64;
            }
        }
    }
    true
}
