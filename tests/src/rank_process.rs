//! Ranks as processes of the calling test program: a test that does something only where it was started as a rank.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use meshreduce::store::FileStore;
use tempfile::TempDir;

use crate::emulated_node::EmulatedNode;

const RANK: &str = "MESHREDUCE_TEST_RANK";
const WORLD_SIZE: &str = "MESHREDUCE_TEST_WORLD_SIZE";
const STORE: &str = "MESHREDUCE_TEST_STORE";

/// An emulated HGX H100 and a store, on which processes meet.
#[derive(Debug)]
pub struct Stage {
    node: EmulatedNode,
    folder: TempDir,
    test: &'static str,
    world_size: usize,
}

impl Stage {
    /// For `world_size` ranks, each of which runs the test named `test` of the calling program.
    ///
    /// # Panics
    /// If the emulated node's libraries have not been built.
    pub fn new(test: &'static str, world_size: usize) -> Self {
        let node = EmulatedNode::new("hgx-h100").unwrap_or_else(|error| panic!("{error}"));
        Self { node, folder: tempfile::tempdir().expect("a temporary directory"), test, world_size }
    }

    /// The command that starts a rank, for tests that change it or wrap it into another.
    ///
    /// # Panics
    /// If the system does not say which program this is.
    pub fn command(&self, rank: usize) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this program's own file"));
        command
            .args(["--exact", self.test, "--nocapture"])
            .envs(self.node.environment())
            .env(RANK, rank.to_string())
            .env(WORLD_SIZE, self.world_size.to_string())
            .env(STORE, self.folder.path())
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

    /// What is left in the store, but for its lock.
    pub fn keys(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| !path.ends_with(".lock")).collect()
    }

    /// Waits until a key with this text in its name is in the store.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_for_key(&self, text: &str) {
        let limit = Instant::now() + Duration::from_secs(60);
        while !self.keys().iter().any(|key| key.to_string_lossy().contains(text)) {
            assert!(Instant::now() < limit, "no key {text} in the store");
            std::thread::yield_now();
        }
    }
}

const PART: &str = "MESHREDUCE_TEST_PART";

/// The part of this process.
#[derive(Debug)]
pub struct Part {
    /// Its rank.
    pub rank: usize,
    /// All ranks.
    pub world_size: usize,
    /// Where they meet.
    pub store: FileStore,
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
        let store = FileStore::open(std::env::var_os(STORE).expect("a store")).expect("a store");
        Some(Self { rank, world_size, store, name: std::env::var(PART).unwrap_or_default() })
    }

    /// Tells the test, on a line of its own.
    pub fn say(&self, text: &str) {
        println!("rank {} says: {text}", self.rank);
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
