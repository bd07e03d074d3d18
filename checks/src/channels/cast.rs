//! Who plays a scenario, and where.

use std::ffi::OsString;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_store::{FileStore, Store};
use tempfile::TempDir;

use super::Role;
use crate::emulated_node::EmulatedNode;
use crate::gdr::Node;
use crate::programs::program;

/// When a scenario has ended for certain.
const LIMIT: Duration = Duration::from_secs(300);

/// Who plays, and where.
#[derive(Clone, Debug)]
pub struct Cast {
    channels: String,
    devices: [String; 2],
    node: Option<String>,
    /// With network adapters: of A, and of B if it is on another.
    adapters: Vec<Arc<Node>>,
    is_one_process: bool,
    links: Option<String>,
    silence: Option<Duration>,
    environment: Vec<(OsString, OsString)>,
}

impl Cast {
    /// Two parties with this allow list of channels, on these devices, in one process, without a node.
    pub fn new(channels: &str, a: &str, b: &str) -> Self {
        Self {
            channels: channels.to_owned(),
            devices: [a.to_owned(), b.to_owned()],
            node: None,
            adapters: Vec::new(),
            is_one_process: true,
            links: None,
            silence: None,
            environment: Vec::new(),
        }
    }

    /// On a fresh instance of this emulated node.
    #[must_use]
    pub fn on_node(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// On a fresh instance of a node with network adapters: a shipped one's name, or a description.
    ///
    /// # Panics
    ///
    /// If it is none.
    #[must_use]
    pub fn on_adapters_of(mut self, node: &str) -> Self {
        self.adapters = vec![Arc::new(Node::new(node))];
        self
    }

    /// On a fresh instance of an hgx-h100 whose devices have 2.5 GiB.
    ///
    /// # Panics
    ///
    /// As [`Cast::on_adapters_of`].
    #[must_use]
    pub fn on_large_devices(self) -> Self {
        const NODE: &str = include_str!("../../../emulator/node/nodes/hgx-h100.toml");
        let large = NODE.replace("memory_mib = 1024", "memory_mib = 2560");
        assert_ne!(large, NODE);
        self.on_adapters_of(&large)
    }

    /// Each party, a process of its own, on a fresh instance of a node with network adapters.
    ///
    /// # Panics
    ///
    /// If these are none.
    #[must_use]
    pub fn on_two_nodes(mut self, a: &str, b: &str) -> Self {
        self.adapters = vec![Arc::new(Node::new(a)), Arc::new(Node::new(b))];
        self.is_one_process = false;
        self
    }

    /// Each party in a process of its own.
    #[must_use]
    pub fn in_processes(mut self) -> Self {
        self.is_one_process = false;
        self
    }

    /// Over these links alone: `memory`, `unix`, `tcp`.
    #[must_use]
    pub fn over(mut self, links: &str) -> Self {
        self.links = Some(links.to_owned());
        self
    }

    /// With this limit of silence.
    #[must_use]
    pub fn with_silence(mut self, silence: Duration) -> Self {
        self.silence = Some(silence);
        self
    }

    /// With a variable in the environment of the parties.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Plays a scenario to its end.
    ///
    /// # Panics
    ///
    /// If it fails, or does not end.
    pub fn play(&self, scenario: &str) {
        self.stage(scenario).finish();
    }

    /// Starts a scenario.
    ///
    /// # Panics
    ///
    /// If the parties cannot be started.
    pub fn stage(&self, scenario: &str) -> Stage {
        let store = tempfile::tempdir().expect("a temporary directory");
        let node =
            self.node.as_ref().map(|node| EmulatedNode::new(node).unwrap_or_else(|error| panic!("{error}")));
        let roles: Vec<_> = if self.is_one_process { vec![None] } else { vec![Some(Role::A), Some(Role::B)] };
        let start = |role: Option<Role>| {
            let mut command = Command::new(program("channel-party"));
            command.args(["--scenario", scenario, "--channels", &self.channels]);
            command.args(["--a", &self.devices[0], "--b", &self.devices[1]]);
            command.arg("--store").arg(store.path());
            if let Some(role) = role {
                command.args(["--role", &role.to_string()]);
            }
            if let Some(links) = &self.links {
                command.args(["--links", links]);
            }
            if let Some(silence) = self.silence {
                command.args(["--silence-ms", &silence.as_millis().to_string()]);
            }
            command.env_remove("MESHREDUCE_NICS").env_remove("MESHREDUCE_CHANNELS");
            command.envs(node.iter().flat_map(EmulatedNode::environment));
            let of = role.map_or(0, |role| role as usize).min(self.adapters.len().saturating_sub(1));
            command.envs(self.adapters.get(of).into_iter().flat_map(|node| node.environment()));
            command.envs(self.environment.iter().cloned());
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            Player::new(command.spawn().expect("the party starts"))
        };
        let players = roles.into_iter().map(start).collect();
        Stage { scenario: scenario.to_owned(), players, store }
    }
}

/// A scenario that is being played.
#[derive(Debug)]
pub struct Stage {
    scenario: String,
    players: Vec<Player>,
    store: TempDir,
}

/// A process that plays one or both parties. It is killed when it is dropped.
#[derive(Debug)]
pub struct Player {
    child: Child,
    out: Option<std::thread::JoinHandle<String>>,
    err: Option<std::thread::JoinHandle<String>>,
}

impl Player {
    fn new(mut child: Child) -> Self {
        fn text(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = pipe.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        }
        let (out, err) = (child.stdout.take().map(text), child.stderr.take().map(text));
        Self { child, out, err }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, if it still runs.
    pub fn kill(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
    }

    /// Waits for its end: whether it ended well, and what it has said.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn end(&mut self) -> (bool, String) {
        let limit = Instant::now() + LIMIT;
        let status = loop {
            match self.child.try_wait().expect("its end") {
                Some(status) => break Some(status),
                None if Instant::now() > limit => break None,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        if status.is_none() {
            self.kill();
        }
        let mut said = String::new();
        for pipe in [self.out.take(), self.err.take()].into_iter().flatten() {
            said += &pipe.join().unwrap_or_default();
        }
        assert!(status.is_some(), "it has not ended within {LIMIT:?}:\n{said}");
        (status.is_some_and(|status| status.success()), said)
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

impl Stage {
    /// Where the parties meet.
    pub fn store(&self) -> &std::path::Path {
        self.store.path()
    }

    /// Who plays: A, and B if it is another process.
    pub fn players(&mut self) -> &mut [Player] {
        &mut self.players
    }

    /// Waits until a party has come to a place that it tells of ([`super::Party::tell`]).
    ///
    /// # Panics
    ///
    /// If it does not come there.
    pub fn wait_for(&self, place: &str, role: Role) {
        let store = FileStore::open(self.store.path()).expect("the store");
        store.wait(&[&format!("{place} {role}")], LIMIT).expect("the party comes there");
    }

    /// Waits for the end.
    ///
    /// # Panics
    ///
    /// If it fails, or does not end.
    pub fn finish(self) {
        if let Err(said) = self.outcome() {
            panic!("{said}");
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    ///
    /// What the parties have said, if the scenario failed.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn outcome(mut self) -> Result<(), String> {
        let ends: Vec<_> = self.players.iter_mut().map(Player::end).collect();
        let all_well = ends.iter().all(|(is_well, _)| *is_well);
        let said: String = ends.into_iter().map(|(_, said)| said).collect();
        if all_well { Ok(()) } else { Err(format!("{}:\n{said}", self.scenario)) }
    }
}
