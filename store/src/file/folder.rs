//! The folder of a store, and what may be in it.
//!
//! A store may lie where others write too (`/tmp`, `/dev/shm`), and then nothing that they can do there makes this process
//! read, write or wait for anything but files of its own in a folder of its own. The folder is opened once and everything in
//! it is reached from that descriptor, so what its path leads to later does not matter.

use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use crate::StoreError;

/// Nobody but the owner.
const OWNER_ONLY: Mode = Mode::RWXU;
const RECORD_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// What others could do.
const OTHERS: Mode = Mode::RWXG.union(Mode::RWXO);
/// A FIFO is not waited for and a terminal is not taken over: what it is comes out when it is open.
const CAREFUL: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

/// A file or a folder, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) device: u64,
    pub(super) number: u64,
}

impl Inode {
    fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, number: stat.st_ino }
    }
}

/// A file of the store that is open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) inode: Inode,
    bytes: u64,
    /// Whether it has more names than one.
    pub(super) is_linked: bool,
}

#[derive(Debug)]
pub(super) struct Folder {
    descriptor: OwnedFd,
    path: PathBuf,
    inode: Inode,
    /// Whose it is, and everything in it.
    owner: u32,
}

impl Folder {
    /// Opens the folder at `path`, or makes it.
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let not_writable = |source| StoreError::NotWritable { path: path.clone(), source };
        // A slash or a dot at the end would follow a link.
        let plain: PathBuf = path.components().collect();
        let open = || {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            retry_on_intr(|| rustix::fs::open(&plain, flags, Mode::empty()))
        };
        let mut opened = open();
        if opened.as_ref().err() == Some(&Errno::NOENT) {
            let made = DirBuilder::new().recursive(true).mode(OWNER_ONLY.bits()).create(&plain);
            opened = open();
            if opened.is_err() {
                // A link that leads nowhere is told below.
                made.or_else(|source| match rustix::fs::lstat(&plain) {
                    Ok(_) => Ok(()),
                    Err(_) => Err(not_writable(source)),
                })?;
            }
        }
        let owner = rustix::process::geteuid().as_raw();
        let descriptor = opened.map_err(|errno| {
            let problem = rustix::fs::lstat(&plain).ok().and_then(|stat| match of_mode(&stat) {
                FileType::Symlink => {
                    let target = std::fs::read_link(&plain).unwrap_or_default();
                    Some(format!(
                        "it is a symbolic link, name the folder that it leads to: {}",
                        target.display()
                    ))
                }
                FileType::Directory => of_others(&stat, owner),
                other => Some(format!("it is {}: name a folder", noun(other))),
            });
            match problem {
                Some(problem) => StoreError::Unsafe { path: path.clone(), problem },
                None => not_writable(errno.into()),
            }
        })?;
        let stat = rustix::fs::fstat(&descriptor).map_err(|errno| not_writable(errno.into()))?;
        if let Some(problem) = of_others(&stat, owner) {
            return Err(StoreError::Unsafe { path, problem });
        }
        let folder = Self { descriptor, path, inode: Inode::of(&stat), owner };
        folder.close_to_others(&stat)?;
        Ok(folder)
    }

    /// Keeps all others out.
    fn close_to_others(&self, stat: &Stat) -> Result<(), StoreError> {
        let mode = Mode::from_raw_mode(stat.st_mode);
        if !mode.intersects(OTHERS) {
            return Ok(());
        }
        // A home, or a place that all users share, is not closed by whoever names it here.
        if mode.contains(Mode::SVTX) || !self.is_empty_or_a_stores()? {
            let problem =
                "others may use it too, and it is not the store's alone: name a folder of the store's own";
            return Err(StoreError::Unsafe { path: self.path.clone(), problem: problem.to_owned() });
        }
        let closed = rustix::fs::fchmod(&self.descriptor, mode.difference(OTHERS));
        let mode = rustix::fs::fstat(&self.descriptor).map(|stat| Mode::from_raw_mode(stat.st_mode));
        // Some file systems say that they do it.
        if closed.is_ok() && mode.is_ok_and(|mode| !mode.intersects(OTHERS)) {
            return Ok(());
        }
        let why = closed.err().map(|errno| format!(" ({errno})")).unwrap_or_default();
        let problem = format!("others may use it too and that cannot be changed{why}: name another folder");
        Err(StoreError::Unsafe { path: self.path.clone(), problem })
    }

    /// Whether nothing is in the folder, or what a store begins with.
    fn is_empty_or_a_stores(&self) -> Result<bool, StoreError> {
        let read = || -> Result<bool, Errno> {
            let mut is_empty = true;
            for entry in Dir::read_from(&self.descriptor)? {
                match entry?.file_name().to_bytes() {
                    b"." | b".." => {}
                    name if name == super::lock::NAME.as_bytes() => return Ok(true),
                    _ => is_empty = false,
                }
            }
            Ok(is_empty)
        };
        read().map_err(|errno| StoreError::NotWritable { path: self.path.clone(), source: errno.into() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn inode(&self) -> Inode {
        self.inode
    }

    /// That the store is gone, or what of it does not work any more.
    pub(super) fn lost(&self, error: impl Into<std::io::Error>) -> StoreError {
        StoreError::Lost { place: self.path.display().to_string(), source: error.into().into() }
    }

    /// That something cannot be written.
    pub(super) fn not_writable(&self, errno: Errno) -> StoreError {
        match errno {
            // What is written to is there, unless all is gone.
            Errno::NOENT | Errno::STALE => self.lost(errno),
            errno => StoreError::NotWritable { path: self.path.clone(), source: errno.into() },
        }
    }

    /// That something in the folder is none of the store's.
    pub(super) fn refuse(&self, name: &str, what: &str) -> StoreError {
        let problem = format!("{what}: move it away, or give the store a folder of its own");
        StoreError::Unsafe { path: self.path.join(name), problem }
    }

    fn check(&self, name: &str, stat: &Stat) -> Result<(), StoreError> {
        match of_mode(stat) {
            FileType::RegularFile if stat.st_uid == self.owner => Ok(()),
            FileType::RegularFile => Err(self.refuse(name, &format!("it belongs to user {}", stat.st_uid))),
            other => Err(self.refuse(name, &format!("it is {} and no file", noun(other)))),
        }
    }

    /// Opens a file of ours; `None` if there is none of this name.
    fn open_file(&self, name: &str, flags: OFlags) -> Result<Option<Opened>, StoreError> {
        let open = || rustix::fs::openat(&self.descriptor, name, flags | CAREFUL, RECORD_MODE);
        let descriptor = match retry_on_intr(open) {
            Ok(descriptor) => descriptor,
            Err(Errno::NOENT) => return self.is_there().map(|()| None),
            Err(errno) => {
                // What it is says more than why it cannot be opened.
                if let Ok(stat) = rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
                    self.check(name, &stat)?;
                }
                let writes = flags.intersects(OFlags::WRONLY);
                return Err(if writes { self.not_writable(errno) } else { self.lost(errno) });
            }
        };
        let stat = rustix::fs::fstat(&descriptor).map_err(|errno| self.lost(errno))?;
        self.check(name, &stat)?;
        Ok(Some(Opened {
            file: descriptor.into(),
            inode: Inode::of(&stat),
            bytes: stat.st_size.unsigned_abs(),
            is_linked: stat.st_nlink > 1,
        }))
    }

    /// That the folder has not been removed: no key is there in one that has.
    fn is_there(&self) -> Result<(), StoreError> {
        match rustix::fs::fstat(&self.descriptor) {
            Ok(stat) if stat.st_nlink > 0 => Ok(()),
            Ok(_) => Err(self.lost(Errno::NOENT)),
            Err(errno) => Err(self.lost(errno)),
        }
    }

    /// A file for writing, which is not changed by that; `None` if there is none.
    pub(super) fn writable(&self, name: &str) -> Result<Option<Opened>, StoreError> {
        self.open_file(name, OFlags::WRONLY)
    }

    /// A file for writing that is there or made.
    pub(super) fn writable_or_new(&self, name: &str) -> Result<Opened, StoreError> {
        self.open_file(name, OFlags::WRONLY | OFlags::CREATE)?.ok_or_else(|| self.lost(Errno::NOENT))
    }

    /// A file that was not there; `None` if something is.
    pub(super) fn new_file(&self, name: &str) -> Result<Option<File>, StoreError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | CAREFUL;
        match retry_on_intr(|| rustix::fs::openat(&self.descriptor, name, flags, RECORD_MODE)) {
            Ok(descriptor) => Ok(Some(descriptor.into())),
            Err(Errno::EXIST) => Ok(None),
            Err(errno) => Err(self.not_writable(errno)),
        }
    }

    /// At most `most` bytes and one of a file; `None` if there is none.
    pub(super) fn read(&self, name: &str, most: usize) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(opened) = self.open_file(name, OFlags::RDONLY)? else { return Ok(None) };
        let most = (most as u64).saturating_add(1);
        let mut bytes = Vec::with_capacity(opened.bytes.min(most).min(1 << 24) as usize);
        opened.file.take(most).read_to_end(&mut bytes).map_err(|error| self.lost(error))?;
        Ok(Some(bytes))
    }

    /// Writes all of `bytes` to a file.
    pub(super) fn write(&self, mut file: &File, bytes: &[u8]) -> Result<(), StoreError> {
        file.write_all(bytes).map_err(|source| StoreError::NotWritable { path: self.path.clone(), source })
    }

    /// The file that has this name now, and how many bytes are in it.
    pub(super) fn look(&self, name: &str) -> Result<Option<(Inode, u64)>, StoreError> {
        match rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((Inode::of(&stat), stat.st_size.unsigned_abs()))),
            Err(Errno::NOENT) => self.is_there().map(|()| None),
            Err(errno) => Err(self.lost(errno)),
        }
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        rustix::fs::renameat(&self.descriptor, from, &self.descriptor, to)
            .map_err(|errno| self.not_writable(errno))
    }

    /// Takes a name away, without following it; says whether it was there.
    pub(super) fn remove(&self, name: &str) -> Result<bool, StoreError> {
        match rustix::fs::unlinkat(&self.descriptor, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => self.is_there().map(|()| false),
            Err(Errno::ISDIR) => Err(self.refuse(name, "it is a folder and no file")),
            Err(errno) => Err(self.not_writable(errno)),
        }
    }

    /// The names of all files and which file each has, in order. Names that no store makes are left out.
    pub(super) fn names(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.is_there()?;
        let entries = Dir::read_from(&self.descriptor).map_err(|errno| self.lost(errno))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|errno| self.lost(errno))?;
            let may_be_a_file = matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown);
            if let (true, Ok(name)) = (may_be_a_file, entry.file_name().to_str()) {
                names.push((name.to_owned(), entry.ino()));
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

fn of_mode(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn of_others(stat: &Stat, owner: u32) -> Option<String> {
    let theirs = stat.st_uid;
    (theirs != owner).then(|| {
        format!(
            "it belongs to user {theirs}, and this process runs as user {owner}: name a folder of its own"
        )
    })
}

fn noun(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "of no known type",
    }
}
