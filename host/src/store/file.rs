//! A store in a folder that all ranks share.
//!
//! A key is a file, a value is replaced by renaming a finished file over it, so that a reader sees the old record or
//! the new one and a writer that is killed leaves no half. Writers hold `flock` on the file `.lock`, which the
//! kernel releases with a dying process. They all write through the one file `.writing`, so a killed writer leaves
//! nothing that the next one does not take over. A record carries its length and a checksum: a torn one (a disk that
//! was full, a host that lost power) is an error and never a value. Nothing is synced to disk: a rendezvous does not
//! outlive the host.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use super::{MAX_VALUE, Pause, Store, StoreError, check, check_key, sum};

/// A [`Store`] in a folder.
///
/// The folder may lie on any file system that all ranks share and that has `flock` and atomic renames; for ranks on
/// one host, best on a memory-backed one. It stays when the store is dropped, with nothing in it but an empty lock
/// file once every rendezvous over it has ended.
#[derive(Debug)]
pub struct FileStore {
    folder: PathBuf,
}

const LOCK: &str = ".lock";
const WRITING: &str = ".writing";
const MAGIC: &[u8; 4] = b"MRS1";
const HEADER: usize = 4 + 8 + 8;
/// How long a writer waits for the others. They hold the lock for microseconds: after this time one is stopped.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

impl FileStore {
    /// Opens the store in `folder`, which is created if it is missing.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotWritable`] if the folder cannot be created or written.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let folder = folder.into();
        let not_writable = |source| StoreError::NotWritable { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(not_writable)?;
        // Opening the lock for writing finds a read-only file system too.
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join(LOCK))
            .map_err(|source| StoreError::NotWritable { path: folder.clone(), source })?;
        Ok(Self { folder })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, key: &str) -> Result<PathBuf, StoreError> {
        check_key(key)?;
        let mut name = String::with_capacity(key.len());
        for (index, byte) in key.bytes().enumerate() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte as char),
                b'.' if index > 0 => name.push('.'),
                b'/' => name.push('+'),
                // Longer than 255 bytes only if most of 120 bytes are unusual: the file system then says so.
                _ => name.push_str(&format!("%{byte:02x}")),
            }
        }
        Ok(self.folder.join(name))
    }

    /// The writers' lock, held until the file is dropped.
    fn lock(&self) -> Result<File, StoreError> {
        // Not created here: a folder that was removed is a lost store, not a new one.
        let path = self.folder.join(LOCK);
        let file = OpenOptions::new().append(true).open(&path).map_err(|error| self.lost(error))?;
        let mut pause = Pause::new(LOCK_TIMEOUT);
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.lost(error.into())),
            }
            if !pause.again() {
                return Err(StoreError::Timeout {
                    keys: vec![path.display().to_string()],
                    waited: LOCK_TIMEOUT,
                });
            }
        }
    }

    fn lost(&self, error: io::Error) -> StoreError {
        StoreError::Lost { place: self.folder.display().to_string(), source: error.into() }
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        // A file that is longer than any record is not read to its end.
        let read = |path| -> io::Result<Vec<u8>> {
            let mut record = Vec::new();
            File::open(path)?.take((HEADER + MAX_VALUE + 1) as u64).read_to_end(&mut record)?;
            Ok(record)
        };
        match read(self.path(key)?) {
            Ok(record) => unseal(&record)
                .map(|value| Some(value.to_vec()))
                .map_err(|problem| StoreError::Corrupt { key: key.to_owned(), problem }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // No such key, or no such folder any more?
                fs::metadata(&self.folder).map_err(|error| self.lost(error))?;
                Ok(None)
            }
            Err(error) => Err(self.lost(error)),
        }
    }

    /// Replaces the record of `key`. The caller holds the lock.
    fn write(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let path = self.path(key)?;
        let writing = self.folder.join(WRITING);
        let replace = || {
            let mut file = File::create(&writing)?;
            file.write_all(&seal(value))?;
            drop(file);
            fs::rename(&writing, path)
        };
        replace().map_err(|error| self.lost(error))
    }

    /// Removes the record of `key`. The caller holds the lock.
    fn remove(&self, key: &str) -> Result<bool, StoreError> {
        match fs::remove_file(self.path(key)?) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.lost(error)),
        }
    }
}

impl Store for FileStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check(key, value)?;
        let _lock = self.lock()?;
        self.write(key, value)
    }

    fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(key)
    }

    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        desired: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        check(key, desired.unwrap_or_default())?;
        let _lock = self.lock()?;
        let found = self.read(key)?;
        if found.as_deref() == expected {
            match desired {
                Some(value) => self.write(key, value)?,
                None => {
                    self.remove(key)?;
                }
            }
        }
        Ok(found)
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        let _lock = self.lock()?;
        let sum = sum(key, self.read(key)?.as_deref(), delta)?;
        self.write(key, sum.to_string().as_bytes())?;
        Ok(sum)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        let _lock = self.lock()?;
        self.remove(key)
    }
}

fn digest(value: &[u8]) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&Sha256::digest(value)[..8]);
    first
}

fn seal(value: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER + value.len());
    record.extend_from_slice(MAGIC);
    record.extend_from_slice(&(value.len() as u64).to_le_bytes());
    record.extend_from_slice(&digest(value));
    record.extend_from_slice(value);
    record
}

fn unseal(record: &[u8]) -> Result<&[u8], String> {
    let Some((header, value)) = record.split_at_checked(HEADER) else {
        return Err(format!("{} bytes are shorter than a record's header", record.len()));
    };
    if &header[..4] != MAGIC {
        return Err("it does not begin as a record does".to_owned());
    }
    if header[4..12] != (value.len() as u64).to_le_bytes() {
        return Err(format!("its value has {} bytes, its header says otherwise", value.len()));
    }
    if header[12..20] != digest(value) {
        return Err("wrong checksum".to_owned());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::clock::fake;
    use proptest::prelude::*;
    use std::time::Instant;

    fn store() -> (tempfile::TempDir, FileStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::open(folder.path().join("store")).unwrap();
        (folder, store)
    }

    #[test]
    fn what_a_killed_writer_left_is_taken_over() {
        let (_folder, store) = store();
        fs::write(store.folder().join(WRITING), b"half a rec").unwrap();
        store.set("k", b"whole").unwrap();
        assert_eq!(store.try_get("k").unwrap().as_deref(), Some(&b"whole"[..]));
        let names: Vec<_> = fs::read_dir(store.folder()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!names.iter().any(|name| name == WRITING), "{names:?}");
    }

    #[test]
    fn a_torn_record_is_an_error_that_names_the_key() {
        let (_folder, store) = store();
        store.set("a/k", b"a value of some length").unwrap();
        let path = store.path("a/k").unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            match store.try_get("a/k") {
                Err(StoreError::Corrupt { key, .. }) => assert_eq!(key, "a/k"),
                other => panic!("{length} bytes: {other:?}"),
            }
        }
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&path, flipped).unwrap();
        assert!(matches!(store.try_get("a/k"), Err(StoreError::Corrupt { .. })));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        for bad in [file.join("store"), file.clone(), PathBuf::from("/proc/meshreduce")] {
            match FileStore::open(&bad) {
                Err(StoreError::NotWritable { path, .. }) => assert_eq!(path, bad),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_folder_that_is_gone_is_a_lost_store() {
        let (_folder, store) = store();
        fs::remove_dir_all(store.folder()).unwrap();
        assert!(matches!(store.try_get("k"), Err(StoreError::Lost { .. })));
        assert!(matches!(store.set("k", b""), Err(StoreError::Lost { .. })));
        let start = Instant::now();
        assert!(matches!(store.get("k", Duration::from_secs(60)), Err(StoreError::Lost { .. })));
        assert!(start.elapsed() < Duration::from_secs(30), "a lost store is not waited for");
    }

    #[test]
    fn a_lock_that_is_never_released_is_waited_for_in_full() {
        let (_folder, store) = store();
        let stopped = store.lock().unwrap();
        let (result, took) = fake::timed(|| store.set("k", b""));
        assert!(took >= LOCK_TIMEOUT);
        match result {
            Err(StoreError::Timeout { keys, .. }) => assert!(keys[0].ends_with(LOCK), "{keys:?}"),
            other => panic!("{other:?}"),
        }
        drop(stopped);
        store.set("k", b"").unwrap();
    }

    proptest! {
        #[test]
        fn different_keys_are_different_files(a in "[a-z./+% é]{1,12}", b in "[a-z./+% é]{1,12}") {
            let store = FileStore { folder: PathBuf::from("/store") };
            prop_assert_eq!(a == b, store.path(&a).unwrap() == store.path(&b).unwrap());
            let path = store.path(&a).unwrap();
            prop_assert_eq!(path.parent(), Some(Path::new("/store")));
        }

        #[test]
        fn records_survive_the_round_trip(value in prop::collection::vec(any::<u8>(), 0..300)) {
            let record = seal(&value);
            prop_assert_eq!(unseal(&record), Ok(&value[..]));
        }

        #[test]
        fn no_truncation_and_no_extension_is_taken_for_a_record(
            value in prop::collection::vec(any::<u8>(), 0..300),
            cut in any::<prop::sample::Index>(),
            more in prop::collection::vec(any::<u8>(), 1..40),
        ) {
            let record = seal(&value);
            prop_assert!(unseal(&record[..cut.index(record.len())]).is_err());
            let longer = [&record[..], &more[..]].concat();
            prop_assert!(unseal(&longer).is_err());
        }

        #[test]
        fn no_flipped_bit_goes_unnoticed(
            value in prop::collection::vec(any::<u8>(), 0..300),
            bits in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        ) {
            let record = seal(&value);
            let mut torn = record.clone();
            for bit in bits {
                let bit = bit.index(record.len() * 8);
                torn[bit / 8] ^= 1 << (bit % 8);
            }
            prop_assume!(torn != record); // one bit flipped twice
            prop_assert!(unseal(&torn).is_err());
        }

        #[test]
        fn noise_is_no_record(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(unseal(&noise).is_err());
        }
    }
}
