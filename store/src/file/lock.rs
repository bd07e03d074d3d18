//! The lock of a store: whoever changes something holds it.
//!
//! It is a record lock (`fcntl`) on the file `.lock`, which the kernel releases with a dying process and which, unlike `flock`,
//! a forked child does not have a part in: a child may outlive by days the moment in which it was forked. Two properties of
//! record locks need care:
//!
//! - They do not exclude threads of one process, and a process that closes any descriptor of the file loses its lock. So a
//!   thread first takes a [`Seat`], one of the process for each folder, and nobody without it opens the file.
//! - The file may go: cleaners of temporary folders remove what is old. Then there would be two files of this name one after
//!   the other, each with a holder. So a holder makes its file for writing *before* it looks whether the lock that it has is
//!   still the one of this name, and whoever finds a new lock looks *after* that for such files of others, and waits for
//!   those whose writers live: of two holders at once, one sees the other. A lock is new until it has something in it.
//!
//! The file for writing is named after the inode of the lock: whoever holds that lock and finds one knows that its writer was
//! killed. Whether that is so of another one, a record lock on it tells too.

use std::fs::File;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, Pid, fcntl_getlk};

use super::folder::Folder;
use super::seat::{Seat, Stand, Waiting};
use crate::StoreError;
use crate::clock::Pause;
use crate::codec;

pub(super) const NAME: &str = ".lock";
const WRITING: &str = ".writing";
const ABOUT: &[u8] = b"The lock of a meshreduce store.\n";

/// Why there is no lock yet.
enum Busy {
    /// Another one has it, or what it needs: a process, where the system tells.
    HeldBy(Option<u32>),
    /// A file that is to be had was another one's, which is gone.
    Replaced,
}

/// The right to change the store. Released when dropped.
#[derive(Debug)]
pub(super) struct Lock<'a> {
    folder: &'a Folder,
    /// What to write to, and its name until it gets that of a record.
    writing: File,
    name: Option<String>,
    /// Closing it releases the lock, which ends before another thread may open it: fields are dropped in this order.
    _lock: File,
    _seat: Seat,
}

/// Makes the lock's file if there is none, so that a folder that cannot be written is found.
pub(super) fn prepare(folder: &Folder, limit: Duration) -> Result<(), StoreError> {
    seated(folder, limit, |_seat, _| folder.writable_or_new(NAME).map(|_| Ok(())))
}

/// Tries what needs a seat until the time is up, and then once more and asks who is in the way.
fn seated<T>(
    folder: &Folder,
    limit: Duration,
    attempt: impl Fn(Seat, bool) -> Result<Result<T, Busy>, StoreError>,
) -> Result<T, StoreError> {
    let stand = Stand::of(folder.inode());
    let mut pause = Pause::brief(limit);
    let mut waiting = None;
    let mut is_last = false;
    loop {
        // Others look meanwhile.
        let gives_way = waiting.is_none() && stand.is_waited_at();
        if gives_way {
            pause.lengthen();
        }
        let busy = match if gives_way { None } else { Seat::take(stand) } {
            Some(seat) => match attempt(seat, is_last)? {
                Ok(done) => return Ok(done),
                Err(busy) => busy,
            },
            None => Busy::HeldBy(Some(std::process::id())),
        };
        if is_last {
            let holder = match busy {
                Busy::HeldBy(holder) => holder,
                Busy::Replaced => None,
            };
            return Err(StoreError::Locked { path: folder.path().join(NAME), holder, waited: limit });
        }
        waiting.get_or_insert_with(|| Waiting::at(stand));
        is_last = !pause.again();
    }
}

impl<'a> Lock<'a> {
    /// Waits for the lock at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] if it cannot be had in time, [`StoreError::Unsafe`] if something else is in its place.
    pub(super) fn acquire(folder: &'a Folder, limit: Duration) -> Result<Self, StoreError> {
        seated(folder, limit, |seat, asks| Self::attempt(folder, seat, asks))
    }

    fn attempt(folder: &'a Folder, seat: Seat, asks: bool) -> Result<Result<Self, Busy>, StoreError> {
        let lock = folder.writable_or_new(NAME)?;
        if lock.is_linked {
            return Err(folder.refuse(NAME, "it has other names too and may be the lock of another store"));
        }
        if let Some(busy) = try_lock(folder, &lock.file, asks)? {
            return Ok(Err(busy));
        }
        let name = format!("{WRITING}-{:x}", lock.inode.number);
        let Some(writing) = folder.new_file(&name)? else {
            // Made anew with the next attempt.
            return clear(folder, &name, asks).map(|busy| Err(busy.unwrap_or(Busy::Replaced)));
        };
        let held = Self { folder, writing, name: Some(name), _lock: lock.file, _seat: seat };
        if let Some(busy) = try_lock(folder, &held.writing, asks)? {
            return Ok(Err(busy));
        }
        match folder.look(NAME)? {
            Some((inode, bytes)) if inode == lock.inode => {
                if bytes == 0 {
                    if let Some(busy) = held.clear_others(asks)? {
                        return Ok(Err(busy));
                    }
                    folder.write(&held._lock, ABOUT)?;
                }
                Ok(Ok(held))
            }
            _ => Ok(Err(Busy::Replaced)),
        }
    }

    /// Removes what killed writers have left that had a lock before this one.
    fn clear_others(&self, asks: bool) -> Result<Option<Busy>, StoreError> {
        for (name, _) in self.folder.names()? {
            if name.starts_with(WRITING)
                && self.name.as_deref() != Some(&name)
                && let Some(busy) = clear(self.folder, &name, asks)?
            {
                return Ok(Some(busy));
            }
        }
        Ok(None)
    }

    /// Makes `bytes` the file `name`, in place of a record that has it.
    pub(super) fn replace(mut self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.check_record(name)?;
        self.folder.write(&self.writing, bytes)?;
        if let Some(written) = &self.name {
            self.folder.rename(written, name)?;
        }
        self.name = None;
        Ok(())
    }

    /// Removes the record `name`; says whether it was there.
    pub(super) fn remove(self, name: &str) -> Result<bool, StoreError> {
        Ok(self.check_record(name)? && self.folder.remove(name)?)
    }

    /// Whether there is a record `name`, whole or not.
    ///
    /// A store in a folder with other things in it would take the place of what has the name of a key.
    fn check_record(&self, name: &str) -> Result<bool, StoreError> {
        match self.folder.read(name, codec::TELLING)? {
            Some(beginning) if codec::sealed_as(&beginning).is_none() => {
                Err(self.folder.refuse(name, "it is no record of a store"))
            }
            found => Ok(found.is_some()),
        }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // What cannot be removed now, the next holder removes.
            let _ = self.folder.remove(name);
        }
    }
}

/// Removes a file for writing if whoever made it is dead.
fn clear(folder: &Folder, name: &str, asks: bool) -> Result<Option<Busy>, StoreError> {
    let Some(left) = folder.writable(name)? else { return Ok(None) };
    match try_lock(folder, &left.file, asks)? {
        Some(busy) => Ok(Some(busy)),
        None => folder.remove(name).map(|_| None),
    }
}

/// Takes the record lock of a file, or finds it busy and says who has it if that is asked for.
fn try_lock(folder: &Folder, file: &File, asks: bool) -> Result<Option<Busy>, StoreError> {
    match rustix::fs::fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(None),
        Err(Errno::AGAIN | Errno::ACCESS | Errno::INTR) => {
            let held = if asks { fcntl_getlk(file, &Flock::from(FlockType::WriteLock)) } else { Ok(None) };
            let holder = held.ok().flatten().and_then(|lock| lock.pid).map(Pid::as_raw_pid);
            // A process that is not seen from here has the number 0, or on another host one below.
            Ok(Some(Busy::HeldBy(holder.and_then(|pid| u32::try_from(pid).ok()))))
        }
        Err(errno) => Err(folder.not_writable(errno)),
    }
}
