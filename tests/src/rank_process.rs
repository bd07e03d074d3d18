//! Ranks as processes of the calling test program: a test that does something only where it was started as a rank.
#![forbid(unsafe_code)]

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use meshreduce::store::{FileStore, Store, TcpStore};
use meshreduce_checks::emulated_node::EmulatedNode;
use tempfile::TempDir;

const RANK: &str = "MESHREDUCE_TEST_RANK";
const WORLD_SIZE: &str = "MESHREDUCE_TEST_WORLD_SIZE";
const STORE: &str = "MESHREDUCE_TEST_STORE";

/// At how many moments tests kill a rank of what is this library's: 200, or as `MESHREDUCE_TEST_KILLS` says.
///
/// # Panics
/// If that is no number.
pub fn kills() -> usize {
    let said = std::env::var("MESHREDUCE_TEST_KILLS").ok();
    said.map_or(200, |said| said.parse().unwrap_or_else(|_| panic!("MESHREDUCE_TEST_KILLS is {said:?}")))
}

/// Where processes meet.
#[derive(Debug)]
enum Meeting {
    Folder(TempDir),
    /// Hosted by the test.
    Tcp(TcpStore),
}

/// A store, and where devices are needed an emulated HGX H100, on which processes meet.
#[derive(Debug)]
pub struct Stage {
    node: Option<EmulatedNode>,
    meeting: Meeting,
    test: &'static str,
    world_size: usize,
}

impl Stage {
    /// For `world_size` ranks, each of which runs the test named `test` of the calling program.
    ///
    /// # Panics
    /// If the emulated node's libraries have not been built.
    pub fn new(test: &'static str, world_size: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        Self::at(Meeting::Folder(folder), test, world_size)
    }

    /// The same for ranks without devices.
    ///
    /// # Panics
    /// If there can be no folder.
    pub fn without_a_node(test: &'static str, world_size: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        Self { node: None, meeting: Meeting::Folder(folder), test, world_size }
    }

    /// The same for ranks without devices, over a [`TcpStore`] that this process hosts.
    ///
    /// # Panics
    /// If no store can be hosted.
    pub fn without_a_node_over_tcp(test: &'static str, world_size: usize) -> Self {
        let host = TcpStore::host("127.0.0.1:0").expect("a store");
        Self { node: None, meeting: Meeting::Tcp(host), test, world_size }
    }

    /// The same as [`Stage::new`] over a [`TcpStore`] that this process hosts.
    ///
    /// # Panics
    /// As [`Stage::new`], and if no store can be hosted.
    pub fn over_tcp(test: &'static str, world_size: usize) -> Self {
        let host = TcpStore::host("127.0.0.1:0").expect("a store");
        Self::at(Meeting::Tcp(host), test, world_size)
    }

    fn at(meeting: Meeting, test: &'static str, world_size: usize) -> Self {
        let node = Some(EmulatedNode::new("hgx-h100").unwrap_or_else(|error| panic!("{error}")));
        Self { node, meeting, test, world_size }
    }

    /// The command that starts a rank, for tests that change it or wrap it into another.
    ///
    /// # Panics
    /// If the system does not say which program this is.
    pub fn command(&self, rank: usize) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this program's own file"));
        command
            .args(["--exact", self.test, "--nocapture"])
            .envs(self.node.iter().flat_map(EmulatedNode::environment))
            .env(RANK, rank.to_string())
            .env(WORLD_SIZE, self.world_size.to_string())
            .env(STORE, self.place())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        command
    }

    /// The same, with `part` in its environment as [`Part::name`].
    ///
    /// # Panics
    /// As [`Stage::command`].
    pub fn command_as(&self, rank: usize, part: &str) -> Command {
        let mut command = self.command(rank);
        command.env(PART, part);
        command
    }

    /// Starts a rank, with `part` in its environment as [`Part::name`].
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(&self, rank: usize, part: &str) -> Child {
        self.command_as(rank, part).spawn().expect("the process starts")
    }

    fn place(&self) -> String {
        match &self.meeting {
            Meeting::Folder(folder) => format!("file:{}", folder.path().display()),
            Meeting::Tcp(host) => format!("tcp:{}", host.local_addr()),
        }
    }

    /// What is left in the store, but for a folder's own files.
    ///
    /// # Panics
    /// If the store is lost.
    pub fn keys(&self) -> Vec<String> {
        match &self.meeting {
            Meeting::Folder(folder) => {
                let entries = std::fs::read_dir(folder.path()).into_iter().flatten().flatten();
                let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
                names.filter(|name| !name.starts_with('.')).collect()
            }
            Meeting::Tcp(host) => host.list_keys().expect("the store"),
        }
    }

    /// Deletes what is left in the store, so that the next ranks on this stage meet nothing of it.
    ///
    /// # Panics
    /// If the store is lost.
    pub fn clear(&self) {
        let delete = |store: &dyn Store| {
            for key in store.list_keys().expect("the store's keys") {
                store.delete(&key).expect("the store");
            }
        };
        self.with_store(delete);
    }

    fn with_store<T>(&self, call: impl FnOnce(&dyn Store) -> T) -> T {
        match &self.meeting {
            Meeting::Folder(folder) => call(&FileStore::open(folder.path()).expect("the store")),
            Meeting::Tcp(host) => call(host),
        }
    }

    /// Puts an empty value into the store, for the ranks to find.
    ///
    /// # Panics
    /// If the store is lost.
    pub fn set_key(&self, key: &str) {
        self.with_store(|store| store.set(key, b"")).expect("the store");
    }

    /// Waits until a key with this text in its name is in the store.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_for_key(&self, text: &str) {
        let limit = Instant::now() + Duration::from_secs(60);
        while !self.keys().iter().any(|key| key.contains(text)) {
            assert!(Instant::now() < limit, "no key {text} in the store");
            std::thread::yield_now();
        }
    }
}

/// How long a process tries to reach the store.
const LONG: Duration = Duration::from_secs(60);

/// What a rank tells that begins.
const BEGINS: &str = "the rank begins";

const PART: &str = "MESHREDUCE_TEST_PART";

/// The part of this process.
pub struct Part {
    /// Its rank.
    pub rank: usize,
    /// All ranks.
    pub world_size: usize,
    /// Where they meet.
    pub store: Box<dyn Store>,
    /// What [`Stage::command_as`] or [`Stage::start`] was given.
    pub name: String,
}

impl Part {
    /// This process's, if a [`Stage`] has started it.
    ///
    /// # Panics
    /// If its environment makes no sense.
    pub fn of_this_process() -> Option<Self> {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
        let rank = number(RANK)?;
        let world_size = number(WORLD_SIZE).expect("a world size");
        let place = std::env::var(STORE).expect("a store");
        let store: Box<dyn Store> = match place.split_once(':').expect("its kind") {
            ("tcp", address) => Box::new(TcpStore::connect(address, LONG).expect("a store")),
            (_, folder) => Box::new(FileStore::open(folder).expect("a store")),
        };
        Some(Self { rank, world_size, store, name: std::env::var(PART).unwrap_or_default() })
    }

    /// Tells the test that it begins now: what came before was the start of a process.
    pub fn begin(&self) {
        println!("{BEGINS}");
    }

    /// Tells the test, on a line of its own.
    pub fn say(&self, text: &str) {
        println!("rank {} says: {text}", self.rank);
    }
}

/// Waits until a rank has told that it begins ([`Part::begin`]), or has ended.
///
/// # Panics
/// If it cannot be heard.
pub fn begun(child: &mut Child) {
    let output = child.stdout.as_mut().expect("a rank tells the test");
    let (mut line, mut byte) = (Vec::new(), [0]);
    // Byte by byte: what comes behind the line is still to be heard.
    while !line.ends_with(BEGINS.as_bytes()) && output.read(&mut byte).expect("its output") == 1 {
        line.push(byte[0]);
    }
}

/// What a rank has said, one text a line, once it has ended; and whether it ended well.
///
/// # Panics
/// If it cannot be waited for.
pub fn heard(child: Child) -> (Vec<String>, bool) {
    let output = child.wait_with_output().expect("its end");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = text.lines().filter_map(|line| line.split_once(" says: ")).map(|(_, said)| said.to_owned());
    (said.collect(), output.status.success())
}
