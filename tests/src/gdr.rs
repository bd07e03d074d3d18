//! Two processes that play a scenario over RDMA.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshreduce_checks::gdr::node::{Node, TWO};
use meshreduce_checks::programs::program;

/// When a scenario has ended for certain.
const LIMIT: Duration = Duration::from_secs(240);

/// How a scenario is to be played.
#[derive(Debug)]
pub struct Stage {
    scenario: String,
    devices: [String; 2],
    nodes: Vec<Node>,
    one_process: bool,
    arguments: Vec<String>,
    side_arguments: [Vec<String>; 2],
    environment: [Vec<(String, OsString)>; 2],
}

/// What a process has said, and whether it has ended well.
#[derive(Clone, Debug)]
pub struct Told {
    /// Whether it has ended well.
    pub well: bool,
    /// Its outputs, one behind the other.
    pub said: String,
}

impl Stage {
    /// A scenario between two processes on one node of two GPUs and two adapters, between the first GPU and the second.
    pub fn new(scenario: &str) -> Self {
        Self {
            scenario: scenario.to_owned(),
            devices: ["cuda:0".to_owned(), "cuda:1".to_owned()],
            nodes: Vec::new(),
            one_process: false,
            arguments: Vec::new(),
            side_arguments: [Vec::new(), Vec::new()],
            environment: [Vec::new(), Vec::new()],
        }
    }

    /// On these devices.
    #[must_use]
    pub fn between(mut self, a: &str, b: &str) -> Self {
        self.devices = [a.to_owned(), b.to_owned()];
        self
    }

    /// On one node of this description.
    #[must_use]
    pub fn on(mut self, description: &str) -> Self {
        self.nodes = vec![Node::new(description)];
        self
    }

    /// Each on a node of its own.
    #[must_use]
    pub fn on_two(mut self, a: &str, b: &str) -> Self {
        self.nodes = vec![Node::new(a), Node::new(b)];
        self
    }

    /// Both sides in one process.
    #[must_use]
    pub fn in_one_process(mut self) -> Self {
        self.one_process = true;
        self
    }

    /// With arguments of the program, for both: `--chunk 1000`.
    #[must_use]
    pub fn with(mut self, arguments: &str) -> Self {
        self.arguments.extend(arguments.split_whitespace().map(str::to_owned));
        self
    }

    /// With arguments of the program, for one side.
    #[must_use]
    pub fn side(mut self, side: usize, arguments: &str) -> Self {
        self.side_arguments[side].extend(arguments.split_whitespace().map(str::to_owned));
        self
    }

    /// With a fault that one side brings about in the midst of the scenario.
    #[must_use]
    pub fn fault(mut self, side: usize, fault: &str) -> Self {
        self.side_arguments[side].extend(["--fault".to_owned(), fault.to_owned()]);
        self
    }

    /// With a variable in the environment of one side.
    #[must_use]
    pub fn variable(mut self, side: usize, name: &str, value: impl Into<OsString>) -> Self {
        self.environment[side].push((name.to_owned(), value.into()));
        self
    }

    /// With faults of one side's adapters from the beginning: `garbage_opcode=on;fail=ibv_reg_mr ENOMEM`.
    #[must_use]
    pub fn faults(self, side: usize, faults: &str) -> Self {
        self.variable(side, "MESHREDUCE_VERBS_FAULTS", faults)
    }

    /// Plays it; what both have said.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn play(mut self) -> [Told; 2] {
        if self.nodes.is_empty() {
            self = self.on(TWO);
        }
        let store = tempfile::tempdir().expect("a temporary folder");
        let start = |side: Option<usize>| {
            let mut command = Command::new(program("channel-check"));
            let of = side.unwrap_or(0);
            command.args(["--scenario", &self.scenario, "--a", &self.devices[0], "--b", &self.devices[1]]);
            command.arg("--store").arg(store.path()).args(&self.arguments).args(&self.side_arguments[of]);
            if let Some(side) = side {
                command.args(["--rank", &side.to_string()]);
            }
            command.env_remove("MESHREDUCE_NICS").env_remove("MESHREDUCE_CHANNELS");
            command.envs(self.nodes[of.min(self.nodes.len() - 1)].environment());
            command.envs(self.environment[of].iter().map(|(name, value)| (name, value)));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            Running::new(command.spawn().expect("the program starts"))
        };
        if self.one_process {
            let told = start(None).end();
            return [told.clone(), told];
        }
        let both = [start(Some(0)), start(Some(1))];
        both.map(Running::end)
    }

    /// Plays it; both are to end well.
    ///
    /// # Panics
    ///
    /// If they do not.
    pub fn goes_well(self) -> [Told; 2] {
        let scenario = self.scenario.clone();
        let told = self.play();
        assert!(told.iter().all(|one| one.well), "{scenario}:\n{}\n{}", told[0].said, told[1].said);
        told
    }
}

struct Running {
    child: Child,
    pipes: Vec<JoinHandle<String>>,
}

impl Running {
    fn new(mut child: Child) -> Self {
        fn text(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = pipe.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        }
        let (out, err) = (child.stdout.take().map(text), child.stderr.take().map(text));
        Self { child, pipes: out.into_iter().chain(err).collect() }
    }

    fn end(mut self) -> Told {
        let limit = Instant::now() + LIMIT;
        let status = loop {
            match self.child.try_wait().expect("its end") {
                Some(status) => break Some(status),
                None if Instant::now() > limit => break None,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        if status.is_none() {
            // It may have ended just now.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let said: String = self.pipes.drain(..).filter_map(|pipe| pipe.join().ok()).collect();
        assert!(status.is_some(), "it has not ended within {LIMIT:?}:\n{said}");
        Told { well: status.is_some_and(|status| status.success()), said }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
