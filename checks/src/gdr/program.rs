//! What `channel-check` does.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Parser;
use meshreduce_channels::gdr::{Config, Gdr, Mutant, Registration};
use meshreduce_channels::pci::Map;
use meshreduce_channels::{Basic, Device, Links, Registry};
use meshreduce_store::FileStore;

use super::{kills, scenarios};
use crate::channels::party::{Party, Role, Setting};
use crate::channels::scenarios as general;

/// Plays one side of a scenario of channels, over RDMA between two processes on whatever NICs there are.
///
/// Both sides are started with the same scenario, devices and store, one with `--rank 0` and the other with `--rank 1`; without
/// `--rank` this process plays both. Two emulated nodes, a virtual machine with soft RoCE and real machines differ only in the
/// environment (MESHREDUCE_VERBS, MESHREDUCE_SYSFS, MESHREDUCE_DRIVER) and in the map.
#[derive(Clone, Debug, Parser)]
#[command(name = "channel-check")]
pub struct Arguments {
    /// Which scenario; `list` shows all
    #[arg(long)]
    pub scenario: String,
    /// Which side this is
    #[arg(long)]
    pub rank: Option<u32>,
    /// Without --rank: start another process for rank 1
    #[arg(long, conflicts_with = "rank")]
    pub processes: bool,
    /// The folder in which the two meet; without --rank, one that is made for it
    #[arg(long)]
    pub store: Option<PathBuf>,
    /// The device of rank 0
    #[arg(long, default_value = "cpu")]
    pub a: Device,
    /// The device of rank 1
    #[arg(long, default_value = "cpu")]
    pub b: Device,
    /// Which device goes by which NICs: `cuda:0=mlx5_0;cpu=mlx5_1`
    #[arg(long)]
    pub nics: Option<String>,
    /// The kinds of channels that are allowed, the favourite first
    #[arg(long, default_value = "gdr")]
    pub channels: String,
    /// The two sides talk over TCP, also within a host
    #[arg(long)]
    pub tcp: bool,
    /// How many times the scenario `kills` kills its peer
    #[arg(long, default_value_t = 10)]
    pub kills: u32,
    /// How many times the scenario `kills` stops its peer, when it has killed it often enough
    #[arg(long, default_value_t = 0)]
    pub stops: u32,
    /// Options::silence
    #[arg(long, default_value_t = 30_000)]
    pub silence_ms: u64,
    /// What a scenario takes as its measure: transfers, pages
    #[arg(long, default_value_t = 200)]
    pub count: u64,
    /// Bytes of a scenario's transfers
    #[arg(long, default_value_t = 1 << 20)]
    pub bytes: u64,
    /// Config::credits
    #[arg(long)]
    pub credits: Option<u32>,
    /// Config::depth
    #[arg(long)]
    pub depth: Option<u32>,
    /// Config::chunk
    #[arg(long)]
    pub chunk: Option<u32>,
    /// Config::stripe_from
    #[arg(long)]
    pub stripe: Option<u64>,
    /// Config::cache, in bytes
    #[arg(long)]
    pub cache_bytes: Option<u64>,
    /// Config::cache, in allocations
    #[arg(long)]
    pub cache_entries: Option<usize>,
    /// Config::retries: the timeout's code
    #[arg(long, default_value_t = 20)]
    pub timeout: u8,
    /// Config::retries
    #[arg(long, default_value_t = 6)]
    pub retries: u8,
    /// Config::rnr_retries
    #[arg(long, default_value_t = 7)]
    pub rnr_retries: u8,
    /// Config::connect_within
    #[arg(long, default_value_t = 10_000)]
    pub connect_ms: u64,
    /// Config::port_down_for
    #[arg(long, default_value_t = 5_000)]
    pub port_down_ms: u64,
    /// Config::register_first_by peermem
    #[arg(long)]
    pub peermem_first: bool,
    /// Config::regions_on_all_nics
    #[arg(long)]
    pub regions_on_all_nics: bool,
    /// Faults of the emulated adapters that the scenario brings about in its midst: `port_down mlx5_0`
    #[arg(long)]
    pub fault: Vec<String>,
    /// The scenario `ends_with_an_error` has a transfer in the other direction too
    #[arg(long)]
    pub both_ways: bool,
    /// The scenario `goes_by` fails unless this kind of channel serves the pair
    #[arg(long)]
    pub served_by: Option<String>,
    /// A mistake that is made on purpose
    #[arg(long)]
    pub mutant: Option<String>,
}

impl Arguments {
    /// The settings.
    ///
    /// # Errors
    ///
    /// The map is none, or there is no such mutant.
    pub fn config(&self) -> Result<Config> {
        let mut config = Config::default()
            .retries(self.timeout, self.retries)
            .rnr_retries(self.rnr_retries)
            .connect_within(Duration::from_millis(self.connect_ms))
            .port_down_for(Duration::from_millis(self.port_down_ms))
            .regions_on_all_nics(self.regions_on_all_nics);
        if let Some(map) = &self.nics {
            config = config.nics(map.parse::<Map>()?);
        }
        if self.peermem_first {
            config = config.register_first_by(Registration::Peermem);
        }
        config = match self.credits {
            Some(credits) => config.credits(credits),
            None => config,
        };
        config = match self.depth {
            Some(depth) => config.depth(depth),
            None => config,
        };
        config = match self.chunk {
            Some(chunk) => config.chunk(chunk),
            None => config,
        };
        config = match self.stripe {
            Some(bytes) => config.stripe_from(bytes),
            None => config,
        };
        if self.cache_bytes.is_some() || self.cache_entries.is_some() {
            config =
                config.cache(self.cache_bytes.unwrap_or(u64::MAX), self.cache_entries.unwrap_or(usize::MAX));
        }
        let mutant = match self.mutant.as_deref() {
            None => return Ok(config),
            Some("no-flush") => Mutant::NoFlush,
            Some("credits-kept") => Mutant::CreditsKept,
            Some("flush-is-the-cause") => Mutant::FlushIsTheCause,
            Some("own-longest-message") => Mutant::OwnLongestMessage,
            Some("answers-before-posting") => Mutant::AnswersBeforePosting,
            Some(other) => bail!("there is no mutant {other}"),
        };
        Ok(config.mutant(mutant))
    }

    fn setting(&self) -> Setting {
        Setting {
            channels: self.channels.clone(),
            devices: [self.a, self.b],
            links: match self.tcp {
                true => Links { memory: false, unix: false, tcp: true },
                false => Links::default(),
            },
            silence: Duration::from_millis(self.silence_ms),
        }
    }
}

/// One side over RDMA.
pub struct Side<'a> {
    /// The endpoint.
    pub party: Party,
    /// What its channels are made by.
    pub gdr: Gdr,
    /// What was asked for.
    pub arguments: &'a Arguments,
}

impl Side<'_> {
    /// Meets the other side.
    ///
    /// # Errors
    ///
    /// What the channels say.
    pub fn meet(arguments: &Arguments, role: Role) -> Result<Side<'_>> {
        let store = arguments.store.as_ref().context("--store says where the two meet")?;
        let store = Arc::new(FileStore::open(store)?);
        let gdr = Gdr::new(arguments.config()?);
        let mut registry = Registry::empty();
        registry.register(gdr.clone())?;
        registry.register(Basic::default())?;
        let party = Party::meet_with(registry, role, &arguments.setting(), store)?;
        Ok(Side { party, gdr, arguments })
    }
}

/// Plays.
///
/// # Errors
///
/// What has gone wrong.
pub fn run(arguments: &Arguments) -> Result<()> {
    let name = arguments.scenario.as_str();
    match name {
        "list" => {
            let general = general::ALL.iter().map(|scenario| scenario.name);
            let all = general.chain(scenarios::ALL.iter().map(|(name, _)| *name)).chain(["kills", "report"]);
            all.for_each(|name| println!("{name}"));
            return Ok(());
        }
        "report" => return scenarios::report(arguments),
        "kills" => return kills::run(arguments),
        _ => {}
    }
    let play = |role: Role| -> Result<()> {
        let side = Side::meet(arguments, role)?;
        if let Some(scenario) = general::ALL.iter().find(|scenario| scenario.name == name) {
            (scenario.play)(&side.party)?;
        } else {
            let own = scenarios::ALL.iter().find(|(known, _)| *known == name);
            let (_, scenario) = own.with_context(|| format!("there is no scenario {name}"))?;
            scenario(&side)?;
        }
        side.party.sync().context("the other side has not come to the end")
    };
    if arguments.processes {
        return in_two_processes(arguments, run);
    }
    match arguments.rank {
        Some(0) => play(Role::A),
        Some(1) => play(Role::B),
        Some(other) => bail!("there is no rank {other}"),
        None => std::thread::scope(|scope| {
            let a = scope.spawn(|| play(Role::A));
            let b = play(Role::B);
            a.join().map_err(|_| anyhow!("rank 0 has panicked"))?.and(b)
        }),
    }
}

/// Plays rank 0 by `play`, and starts this program once more for rank 1.
fn in_two_processes(arguments: &Arguments, play: impl Fn(&Arguments) -> Result<()>) -> Result<()> {
    let store = tempfile::tempdir()?;
    let mut other = Started(again(store.path())?.spawn()?);
    let own = Arguments {
        rank: Some(0),
        processes: false,
        store: Some(store.path().to_owned()),
        ..arguments.clone()
    };
    play(&own)?;
    let status = other.0.wait()?;
    ensure!(status.success(), "rank 1: {status}");
    Ok(())
}

/// This program with the same arguments, as rank 1, with this store.
pub(super) fn again(store: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut given = std::env::args_os().skip(1);
    while let Some(argument) = given.next() {
        match argument.to_str() {
            Some("--rank" | "--store") => drop(given.next()),
            Some("--processes") => {}
            _ => drop(command.arg(argument)),
        }
    }
    command.args(["--rank", "1"]).arg("--store").arg(store).stdin(Stdio::null());
    Ok(command)
}

/// A process that is killed when it is dropped.
pub(super) struct Started(pub(super) Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
