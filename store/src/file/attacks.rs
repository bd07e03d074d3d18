//! What others may have put where a store is to be, or where it writes: nothing of it is followed, waited for or changed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};

use super::record::Kind;
use super::{FileStore, lock};
use crate::{MAX_VALUE, Store, StoreError};

const LONG: Duration = Duration::from_secs(30);

/// What `act` returns, if it returns soon.
fn soon<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(act()));
    receiver.recv_timeout(LONG).expect("it comes to an end, and without a panic")
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipping what needs files of another user: this is not root");
    }
    is_root
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn open_error(folder: impl Into<PathBuf>) -> String {
    let folder = folder.into();
    match soon(move || FileStore::open(folder)) {
        Err(error @ StoreError::Unsafe { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_is_made_for_its_owner_alone() {
    let parent = tempfile::tempdir().unwrap();
    // As /tmp is.
    set_mode(parent.path(), 0o1777);
    let folder = parent.path().join("jobs/mine");
    let store = FileStore::open(&folder).unwrap();
    assert_eq!((mode(&folder), mode(&parent.path().join("jobs"))), (0o700, 0o700));
    assert_eq!(mode(parent.path()), 0o1777);
    store.set("k", b"").unwrap();
    for name in ["k", lock::NAME] {
        assert_eq!(mode(&folder.join(name)) & 0o077, 0, "{name}");
    }
    assert_eq!(store.folder(), folder);
    assert_eq!(fs::read(folder.join(lock::NAME)).unwrap(), b"The lock of a meshreduce store.\n");
}

#[test]
fn an_own_folder_that_others_may_use_is_closed_to_them() {
    let folder = tempfile::tempdir().unwrap();
    for (before, after) in [(0o777, 0o700), (0o720, 0o700), (0o701, 0o700), (0o2750, 0o2700), (0o700, 0o700)]
    {
        set_mode(folder.path(), before);
        FileStore::open(folder.path()).unwrap().set("k", b"").unwrap();
        assert_eq!(mode(folder.path()), after, "{before:o}");
    }
}

#[test]
fn a_folder_of_somebody_else_is_refused() {
    if !is_root() {
        return;
    }
    for folder_mode in [0o700, 0o777] {
        let folder = tempfile::tempdir().unwrap();
        set_mode(folder.path(), folder_mode);
        std::os::unix::fs::chown(folder.path(), Some(4711), None).unwrap();
        let said = open_error(folder.path());
        assert!(
            said.contains("belongs to user 4711, and this process runs as user 0: name a folder"),
            "{said}"
        );
        assert_eq!((mode(folder.path()), fs::read_dir(folder.path()).unwrap().count()), (folder_mode, 0));
    }
}

#[test]
fn a_link_to_a_folder_is_refused_however_it_is_written() {
    let parent = tempfile::tempdir().unwrap();
    let (target, link, dangling) =
        (parent.path().join("target"), parent.path().join("link"), parent.path().join("dangling"));
    fs::create_dir(&target).unwrap();
    set_mode(&target, 0o755);
    symlink(&target, &link).unwrap();
    symlink("nowhere", &dangling).unwrap();
    for path in [link.clone(), link.join("."), format!("{}//", link.display()).into(), dangling] {
        let said = open_error(&path);
        assert!(said.contains("it is a symbolic link, name the folder that it leads to: "), "{said}");
    }
    assert_eq!((mode(&target), fs::read_dir(&target).unwrap().count()), (0o755, 0));
    assert!(!parent.path().join("nowhere").exists());
    // A link on the way is none of our concern: /tmp is one on some systems.
    FileStore::open(link.join("below")).unwrap();
}

#[test]
fn what_is_no_folder_is_refused_and_what_cannot_be_one_is_not_writable() {
    let parent = tempfile::tempdir().unwrap();
    let (file, fifo) = (parent.path().join("file"), parent.path().join("fifo"));
    fs::write(&file, "a user's").unwrap();
    make_fifo(&fifo);
    assert!(open_error(&file).contains("it is a file: name a folder"));
    assert!(open_error(&fifo).contains("it is a FIFO: name a folder"));
    assert_eq!(fs::read(&file).unwrap(), b"a user's");
    for path in ["/proc/self/meshreduce", ""].map(PathBuf::from).into_iter().chain([file.join("below")]) {
        match FileStore::open(&path) {
            Err(StoreError::NotWritable { path: found, .. }) => assert_eq!(found, path),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_store_whose_folder_is_removed_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    store.set("k", b"").unwrap();
    fs::remove_dir_all(folder.path()).unwrap();
    // One in its place is another one.
    FileStore::open(folder.path()).unwrap().set("k", b"other").unwrap();
    let place = folder.path().display().to_string();
    for result in [
        store.get("k", LONG).map(drop),
        store.wait(&["k"], LONG),
        store.compare_set("k", b"x", b"x").map(drop),
        store.set("k", b""),
        store.delete("k").map(drop),
        store.queue_pop("k", LONG).map(drop),
        store.list_keys().map(drop),
        store.barrier("k", 2, LONG),
    ] {
        match result {
            Err(StoreError::Lost { place: found, .. }) => assert_eq!(found, place),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_store_stays_in_its_folder_whatever_its_path_leads_to() {
    let parent = tempfile::tempdir().unwrap();
    let (path, moved, other) =
        (parent.path().join("store"), parent.path().join("moved"), parent.path().join("other"));
    let store = FileStore::open(&path).unwrap();
    store.set("k", b"1").unwrap();
    fs::rename(&path, &moved).unwrap();
    fs::create_dir(&other).unwrap();
    symlink(&other, &path).unwrap();
    store.set("k", b"2").unwrap();
    assert_eq!(store.get("k", LONG).unwrap(), b"2");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
    assert_eq!(FileStore::open(&moved).unwrap().get("k", LONG).unwrap(), b"2");
}

fn make_fifo(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// What may be in the place of a file, made at a path beside the file `victim`, and what it is called. Says whether it is.
type Plant = (&'static str, fn(&Path, &Path) -> bool);

const PLANTS: [Plant; 8] = [
    ("a symbolic link", |at, victim| symlink(victim, at).is_ok()),
    ("a symbolic link", |at, victim| symlink(victim.with_extension("none"), at).is_ok()),
    ("a FIFO", |at, _| {
        make_fifo(at);
        true
    }),
    ("a folder", |at, _| fs::create_dir(at).is_ok()),
    ("a socket", |at, _| UnixListener::bind(at).is_ok()),
    ("a device", |at, _| {
        // The null device, where a process may make one.
        let null = rustix::fs::makedev(1, 3);
        let made = rustix::fs::mknodat(CWD, at, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, null);
        if made.is_err() {
            eprintln!("skipping devices: this process may not make them");
        }
        made.is_ok()
    }),
    ("it belongs to user 4711", |at, _| {
        fs::write(at, Kind::Value.seal("k", |out| out.bytes(b"theirs"))).unwrap();
        is_root() && std::os::unix::fs::chown(at, Some(4711), None).is_ok()
    }),
    ("it belongs to user 4711", |at, _| {
        fs::write(at, "").unwrap();
        set_mode(at, 0o666);
        is_root() && std::os::unix::fs::chown(at, Some(4711), None).is_ok()
    }),
];

type Act = fn(&FileStore) -> Result<(), StoreError>;

/// Puts each of the plants in the place of `name` in a folder and says what comes of `acts` there.
fn with_plants(name: &dyn Fn(&Path) -> String, acts: &[Act]) {
    for (said, plant) in PLANTS {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let victim = outside.path().join("victim");
        fs::write(&victim, "a user's").unwrap();
        let store = FileStore::open(folder.path()).unwrap();
        let at = folder.path().join(name(folder.path()));
        let _ = fs::remove_file(&at);
        if !plant(&at, &victim) {
            continue;
        }
        let before = fs::symlink_metadata(&at).unwrap();
        let results = {
            let acts = acts.to_vec();
            soon(move || acts.into_iter().map(|act| act(&store)).collect::<Vec<_>>())
        };
        for (number, result) in results.into_iter().enumerate() {
            match result {
                Err(StoreError::Unsafe { path, problem }) => {
                    assert_eq!(path, at);
                    assert!(problem.contains(said) && problem.contains("a folder of its own"), "{problem}");
                }
                other => panic!("{number} with {said}: {other:?}"),
            }
        }
        let after = fs::symlink_metadata(&at).unwrap();
        assert_eq!((after.file_type(), after.len()), (before.file_type(), before.len()));
        assert_eq!(fs::read(&victim).unwrap(), b"a user's");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "nothing is made through a link");
    }
}

#[test]
fn nothing_but_an_own_file_is_taken_for_a_record() {
    with_plants(
        &|_| "k".to_owned(),
        &[
            |store| store.get("k", LONG).map(drop),
            |store| store.check(&["k"]).map(drop),
            |store| store.wait(&["k"], LONG),
            |store| store.compare_set("k", b"x", b"x").map(drop),
            |store| store.compare_set("k", b"", b"x").map(drop),
            |store| store.set("k", b"x"),
            |store| store.add("k", 1).map(drop),
            |store| store.append("k", b"x"),
            |store| store.delete("k").map(drop),
        ],
    );
    with_plants(
        &|_| "k~queue".to_owned(),
        &[
            |store| store.queue_push("k", b"x"),
            |store| store.queue_pop("k", LONG).map(drop),
            |store| store.queue_len("k").map(drop),
            |store| store.wait(&["k"], LONG),
            |store| store.get("k", LONG).map(drop),
        ],
    );
    with_plants(&|_| "k~barrier".to_owned(), &[|store| store.barrier("k", 2, LONG)]);
}

const WRITES: [Act; 6] = [
    |store| store.set("other", b"x"),
    |store| store.add("n", 1).map(drop),
    |store| store.append("k", b"x"),
    |store| store.compare_set("k", b"", b"x").map(drop),
    |store| store.queue_push("q", b"x"),
    |store| store.barrier("k", 1, LONG),
];

#[test]
fn nothing_but_an_own_file_is_taken_for_the_lock() {
    with_plants(&|_| lock::NAME.to_owned(), &WRITES);
    with_plants(&|_| lock::NAME.to_owned(), &[|store| FileStore::open(store.folder()).map(drop)]);
}

#[test]
fn nothing_but_an_own_file_is_taken_for_what_a_killed_writer_left() {
    use std::os::unix::fs::MetadataExt;
    with_plants(
        &|folder| format!(".writing-{:x}", fs::metadata(folder.join(lock::NAME)).unwrap().ino()),
        &WRITES,
    );
}

#[test]
fn what_a_link_or_a_second_name_leads_to_is_not_written() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let victim = outside.path().join("victim");
    fs::write(&victim, "a user's").unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    // Under all names that a store is known or was known to write to.
    for name in [".writing", ".writing-1", "k", "n", "q~queue"] {
        fs::hard_link(&victim, folder.path().join(name)).unwrap();
    }
    for result in [store.set("k", b"x"), store.delete("k").map(drop)] {
        let said = result.unwrap_err().to_string();
        assert!(said.contains("it is no record of a store: move it away"), "{said}");
    }
    assert!(matches!(store.add("n", 1), Err(StoreError::Corrupt { .. })));
    assert!(matches!(store.queue_push("q", b""), Err(StoreError::Corrupt { .. })));
    assert_eq!(fs::read(&victim).unwrap(), b"a user's");
    fs::remove_file(folder.path().join(lock::NAME)).unwrap();
    fs::hard_link(&victim, folder.path().join(lock::NAME)).unwrap();
    let said = store.set("other", b"x").unwrap_err().to_string();
    assert!(said.contains("/.lock is not used as a store: it has other names too"), "{said}");
    assert_eq!(fs::read(&victim).unwrap(), b"a user's");
}

#[test]
fn a_lock_that_is_a_users_file_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let lock = folder.path().join(lock::NAME);
    fs::write(&lock, "4711\n").unwrap();
    FileStore::open(folder.path()).unwrap().set("k", b"").unwrap();
    assert_eq!(fs::read(&lock).unwrap(), b"4711\n");
}

#[test]
fn a_record_under_another_name_is_corrupt_and_both_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    store.set("a/b", b"1").unwrap();
    store.set("n", b"2").unwrap();
    fs::copy(folder.path().join("a+b"), folder.path().join("n")).unwrap();
    let problem = "it is the record of \"a/b\", in the file n";
    for result in [
        store.get("n", LONG).map(drop),
        store.check(&["n"]).map(drop),
        store.compare_set("n", b"x", b"x").map(drop),
        store.add("n", 1).map(drop),
        store.append("n", b""),
    ] {
        match result {
            Err(StoreError::Corrupt { key, problem: found }) => assert_eq!((&*key, &*found), ("n", problem)),
            other => panic!("{other:?}"),
        }
    }
    match store.list_keys() {
        Err(StoreError::Corrupt { key, problem }) => {
            assert_eq!((&*key, &*problem), ("a/b", "it is in the file n, which is not its own"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(store.get("a/b", LONG).unwrap(), b"1");
    // Whoever sets it or deletes it knows what it is to be.
    store.set("n", b"2").unwrap();
    assert_eq!(store.add("n", 1).unwrap(), 3);
    // A queue is no value, whatever it is called.
    store.queue_push("n", b"4").unwrap();
    fs::rename(folder.path().join("n~queue"), folder.path().join("n")).unwrap();
    assert!(store.get("n", LONG).unwrap_err().to_string().contains("it is of kind 241, 240 is expected"));
    assert!(store.delete("n").unwrap());
}

#[test]
fn torn_records_are_corrupt_until_they_are_set_or_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    let path = folder.path().join("k");
    store.set("k", b"value").unwrap();
    let record = fs::read(&path).unwrap();
    for length in [0, 3, 7, record.len() - 1] {
        fs::write(&path, &record[..length]).unwrap();
        assert!(matches!(store.get("k", LONG), Err(StoreError::Corrupt { .. })), "{length}");
        assert!(matches!(store.compare_set("k", b"", b""), Err(StoreError::Corrupt { .. })), "{length}");
    }
    assert!(matches!(store.list_keys(), Err(StoreError::Corrupt { .. })), "it is not hidden");
    store.set("k", b"again").unwrap();
    assert_eq!(store.get("k", LONG).unwrap(), b"again");
    // Longer than any record: not read to its end, which would take all memory.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(matches!(soon(move || store.get("k", LONG)), Err(StoreError::Corrupt { .. })));
    let store = FileStore::open(folder.path()).unwrap();
    assert!(store.delete("k").unwrap());
    assert!(store.list_keys().unwrap().is_empty());
}

#[test]
fn a_folder_that_others_use_is_not_closed_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |before: u32| {
        set_mode(folder.path(), before);
        match FileStore::open(folder.path()) {
            Err(StoreError::Unsafe { problem, .. }) => {
                assert!(problem.contains("of the store's own"), "{problem}")
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(mode(folder.path()), before);
    };
    // As /tmp and /dev/shm are, also when nothing is in them.
    refused(0o1777);
    // As a home is.
    fs::write(folder.path().join(".profile"), "").unwrap();
    refused(0o755);
    // What a store has left is closed, and what belongs to nobody else is used.
    fs::remove_file(folder.path().join(".profile")).unwrap();
    drop(FileStore::open(folder.path()).unwrap());
    fs::write(folder.path().join("other"), "").unwrap();
    set_mode(folder.path(), 0o755);
    FileStore::open(folder.path()).unwrap();
    assert_eq!(mode(folder.path()), 0o700);
}

#[test]
fn what_else_is_in_the_folder_is_no_key_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    set_mode(folder.path(), 0o700);
    fs::write(folder.path().join("README"), "a user's").unwrap();
    fs::write(folder.path().join("empty"), "").unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    symlink("README", folder.path().join("link")).unwrap();
    make_fifo(&folder.path().join("fifo"));
    let store = FileStore::open(folder.path()).unwrap();
    store.set("k", &vec![1; MAX_VALUE]).unwrap();
    store.queue_push("q", b"").unwrap();
    let _ = store.barrier("b", 2, Duration::ZERO);
    store.barrier("b", 1, LONG).unwrap();
    assert_eq!(store.list_keys().unwrap(), ["k"]);
    for key in ["README", "empty"] {
        assert!(matches!(store.get(key, LONG), Err(StoreError::Corrupt { .. })));
        assert!(matches!(store.set(key, b""), Err(StoreError::Unsafe { .. })));
        assert!(matches!(store.delete(key), Err(StoreError::Unsafe { .. })));
    }
    assert_eq!(fs::read(folder.path().join("README")).unwrap(), b"a user's");
    // Neither what was done nor what was refused leaves anything else.
    store.add("k", 1).unwrap_err();
    assert!(store.delete("k").unwrap());
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, [".lock", "README", "b~barrier", "empty", "fifo", "link", "q~queue", "sub"]);
}
