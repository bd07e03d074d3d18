//! `channel-party`: one or both sides of a scenario of channels. Tests start it; see `meshreduce_checks::channels`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use meshreduce_channels::{Device, Links};
use meshreduce_checks::channels::left::Before;
use meshreduce_checks::channels::party::Setting;
use meshreduce_checks::channels::scenarios::{self, Scenario};
use meshreduce_checks::channels::{Party, Role};
use meshreduce_store::FileStore;

/// Plays one side of a scenario, or both.
#[derive(Parser)]
struct Arguments {
    /// Which scenario.
    #[arg(long)]
    scenario: String,
    /// The allow list of channels.
    #[arg(long)]
    channels: String,
    /// The device of A.
    #[arg(long)]
    a: Device,
    /// The device of B.
    #[arg(long)]
    b: Device,
    /// The folder in which the two meet.
    #[arg(long)]
    store: PathBuf,
    /// Which side; without: both, as two threads.
    #[arg(long)]
    role: Option<Role>,
    /// The links that may be used; without: all.
    #[arg(long, value_delimiter = ',')]
    links: Vec<String>,
    /// The limit of silence, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    silence_ms: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let name = &arguments.scenario;
    let scenario = scenarios::ALL.iter().find(|scenario| scenario.name == name);
    let Some(scenario) = scenario else { bail!("there is no scenario {name}") };
    let mut links = Links { memory: false, unix: false, tcp: false };
    for link in &arguments.links {
        match link.as_str() {
            "memory" => links.memory = true,
            "unix" => links.unix = true,
            "tcp" => links.tcp = true,
            other => bail!("{other:?} is not a link (memory, unix, tcp)"),
        }
    }
    let setting = Setting {
        channels: arguments.channels.clone(),
        devices: [arguments.a, arguments.b],
        links: if arguments.links.is_empty() { Links::default() } else { links },
        silence: Duration::from_millis(arguments.silence_ms),
    };
    let before = Before::look(&setting.devices)?;
    let play =
        |role: Role| play(scenario, role, &setting, arguments).with_context(|| format!("party {role}"));
    match arguments.role {
        Some(role) => play(role)?,
        None => std::thread::scope(|scope| {
            let a = scope.spawn(|| play(Role::A));
            let b = play(Role::B);
            let Ok(a) = a.join() else { bail!("party a has panicked") };
            a.and(b)
        })?,
    }
    // What two processes have lent each other whose link was cut is kept for as long as the other one lives.
    match (scenario.name, setting.channels.as_str()) {
        ("link_cut", "ipc") => before.no_more_threads_and_links(),
        // Memory that a lost context has locked is never unlocked, nor unmapped before that.
        ("a_kernel_faults" | "a_kernel_faults_before_a_receive", _) => before.no_more_threads_and_links(),
        _ => before.nothing_more(),
    }
}

fn play(scenario: &Scenario, role: Role, setting: &Setting, arguments: &Arguments) -> Result<()> {
    let store = Arc::new(FileStore::open(&arguments.store)?);
    let party = Party::meet(role, setting, store)?;
    (scenario.play)(&party)?;
    // Of one that is lost nothing is known.
    if scenario.name.ends_with("lost") {
        return Ok(());
    }
    party.sync().context("the other party has not come to the end")
}
