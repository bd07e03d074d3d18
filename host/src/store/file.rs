//! A store in a folder that all ranks share.
//!
//! A key is a file, a value is replaced by renaming a finished file over it, so that a reader sees the old record or
//! the new one and a writer that is killed leaves no half. Writers hold `flock` on the file `.lock`, which the
//! kernel releases with a dying process. They all write through the one file `.writing`, so a killed writer leaves
//! nothing that the next one does not take over. A record carries its length and a checksum: a torn one (a disk that
//! was full, a host that lost power) is an error and never a value. Nothing is synced to disk: a rendezvous does not
//! outlive the host.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use super::{Pause, Store, StoreError};

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
const LONGEST_KEY: usize = 120;
/// How long a writer waits for the others. They hold the lock for microseconds; a second means one is stopped.
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
        let invalid = |problem| StoreError::InvalidKey { key: key.to_owned(), problem };
        if key.is_empty() {
            return Err(invalid("it is empty"));
        }
        if key.len() > LONGEST_KEY {
            return Err(invalid("it is longer than 120 bytes"));
        }
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
        match fs::read(self.path(key)?) {
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
        let corrupt =
            |problem: &str| StoreError::Corrupt { key: key.to_owned(), problem: problem.to_owned() };
        let old = match self.read(key)? {
            Some(value) => std::str::from_utf8(&value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .ok_or_else(|| corrupt("it is no number"))?,
            None => 0,
        };
        let sum = old.checked_add(delta).ok_or_else(|| corrupt("the sum is beyond 64 bits"))?;
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
    use proptest::prelude::*;
    use std::process::Command;
    use std::time::Instant;

    fn store() -> (tempfile::TempDir, FileStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::open(folder.path().join("store")).unwrap();
        (folder, store)
    }

    #[test]
    fn a_value_is_what_was_set_last() {
        let (_folder, store) = store();
        assert_eq!(store.try_get("k").unwrap(), None);
        store.set("k", b"one").unwrap();
        store.set("k", b"").unwrap();
        assert_eq!(store.try_get("k").unwrap().as_deref(), Some(&b""[..]));
        assert!(store.delete("k").unwrap());
        assert!(!store.delete("k").unwrap());
    }

    #[test]
    fn compare_set_exchanges_exactly_what_is_expected() {
        let (_folder, store) = store();
        assert_eq!(store.compare_set("k", Some(b"x"), Some(b"y")).unwrap(), None);
        assert_eq!(store.try_get("k").unwrap(), None, "nothing is not x");
        assert_eq!(store.compare_set("k", None, Some(b"y")).unwrap(), None);
        assert_eq!(store.compare_set("k", None, Some(b"z")).unwrap().as_deref(), Some(&b"y"[..]));
        assert_eq!(store.compare_set("k", Some(b"y"), None).unwrap().as_deref(), Some(&b"y"[..]));
        assert_eq!(store.try_get("k").unwrap(), None);
    }

    #[test]
    fn waiting_ends_with_the_missing_keys_or_with_the_value() {
        let (_folder, store) = store();
        store.set("here", b"1").unwrap();
        let timeout = Duration::from_millis(20);
        match store.wait(&["here", "there"], timeout) {
            Err(StoreError::Timeout { keys, .. }) => assert_eq!(keys, ["there"]),
            other => panic!("{other:?}"),
        }
        assert!(matches!(store.get("there", timeout), Err(StoreError::Timeout { .. })));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(timeout);
                store.set("there", b"2").unwrap();
            });
            assert_eq!(store.get("there", Duration::from_secs(30)).unwrap(), b"2");
            store.wait(&["here", "there"], timeout).unwrap();
        });
    }

    #[test]
    fn threads_that_add_lose_nothing_and_readers_never_see_a_half() {
        let (_folder, store) = store();
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let store = &store;
                scope.spawn(move || {
                    for _ in 0..50 {
                        store.add("n", 1).unwrap();
                        store.set("blob", &[thread; 5000]).unwrap();
                        let blob = store.try_get("blob").unwrap().unwrap();
                        assert!(blob.iter().all(|byte| *byte == blob[0]));
                    }
                });
            }
        });
        assert_eq!(store.add("n", 0).unwrap(), 200);
    }

    /// Not a test of its own: what [`processes_that_add_lose_nothing`] runs in several processes.
    #[test]
    fn add_in_this_process() {
        if let Some(folder) = std::env::var_os("MESHREDUCE_TEST_ADD") {
            let store = FileStore::open(folder).unwrap();
            for _ in 0..100 {
                store.add("n", 1).unwrap();
            }
        }
    }

    #[test]
    fn processes_that_add_lose_nothing() {
        let (_folder, store) = store();
        let children: Vec<_> = (0..4)
            .map(|_| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "store::file::tests::add_in_this_process"])
                    .env("MESHREDUCE_TEST_ADD", store.folder())
                    .stdout(std::process::Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        assert_eq!(store.add("n", 0).unwrap(), 400);
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
    fn keys_are_checked() {
        let (_folder, store) = store();
        for bad in ["", &"x".repeat(121)] {
            assert!(matches!(store.set(bad, b""), Err(StoreError::InvalidKey { .. })));
        }
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
    }
}
