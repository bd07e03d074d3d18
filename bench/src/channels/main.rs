//! `meshreduce-bench-channels`: messages and writes over every kind of channel, beside plain copies. See `--help`.

mod copies;
mod count;
mod far;
mod measure;
mod near;
mod report;
mod row;
mod way;

use std::io::{BufRead, BufReader, IsTerminal};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use meshreduce_arguments::bench::BenchChannels;
use meshreduce_checks::emulated_node::EmulatedNode;
use meshreduce_emulator_node::node::{Node, sysfs};

use measure::Plan;
use report::Report;
use row::Line;

#[derive(Parser)]
#[command(name = "bench-channels", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    bench: BenchChannels,
}

#[derive(Subcommand)]
enum Role {
    /// Measures, in a process that sees the node.
    #[command(hide = true)]
    Measure {
        /// The plan, as JSON.
        plan: String,
    },
    /// The far end, which does what it is told on standard input.
    #[command(hide = true)]
    FarEnd,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.role {
        Some(Role::Measure { plan }) => {
            serde_json::from_str(plan).context("reading the plan").and_then(|plan| measure::run(&plan))
        }
        Some(Role::FarEnd) => far::serve(),
        None => run(&arguments.bench),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &BenchChannels) -> Result<()> {
    ensure!(arguments.rounds > 0 && arguments.slice > 0, "no rounds, or no time for them");
    let plan = Plan {
        sizes: arguments.sizes.0.clone(),
        rounds: arguments.rounds,
        slice_ms: arguments.slice,
        kinds: arguments.kinds.clone(),
        host_only: arguments.host_only,
    };
    let known: Vec<String> = way::Way::all().into_iter().map(|way| way.kind).collect();
    if let Some(unknown) = plan.kinds.iter().find(|kind| !known.contains(kind)) {
        bail!("there is no kind {unknown:?} (--kinds); there are xth, ipc, gdr and basic");
    }
    let root = tempfile::tempdir().context("making a folder for the node's sysfs")?;
    let mut command = Command::new(std::env::current_exe().context("finding this program's own file")?);
    command.args(["measure", &serde_json::to_string(&plan)?]).stdout(Stdio::piped());
    if arguments.node != "real" {
        let node = Node::load(&arguments.node)?;
        let libraries = EmulatedNode::new(&arguments.node)?;
        let environment = libraries.environment();
        let instance = environment.iter().find(|(name, _)| *name == "MESHREDUCE_NODE_ID");
        let instance = instance.map_or_else(String::new, |(_, id)| id.to_string_lossy().into_owned());
        sysfs::write(&node, &instance, root.path()).context("writing the node's sysfs")?;
        command.envs(environment);
        command.env("MESHREDUCE_SYSFS", root.path());
        command.env("MESHREDUCE_VERBS", libraries.library().with_file_name("verbs").join("libibverbs.so.1"));
    }
    let mut child = command.spawn().context("starting the process that measures")?;
    let output = child.stdout.take().context("the process that measures has an output")?;
    let report = read(BufReader::new(output), machine(&arguments.node))?;
    let status = child.wait().context("waiting for the process that measures")?;
    ensure!(status.success(), "the process that measures has ended with {status}");
    if let Some(file) = &arguments.csv {
        std::fs::write(file, report.csv()).with_context(|| format!("writing {}", file.display()))?;
    }
    if let Some(file) = &arguments.svg {
        let drawing = report.svg().context("there is nothing to draw")?;
        std::fs::write(file, drawing).with_context(|| format!("writing {}", file.display()))?;
    }
    match arguments.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{}", report.text()),
    }
    Ok(())
}

fn machine(node: &str) -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let gpus =
        if node == "real" { "this machine's GPUs".to_owned() } else { format!("emulated node {node}") };
    format!("Channels on {processors} processors, {gpus}")
}

fn read(lines: impl BufRead, machine: String) -> Result<Report> {
    let mut report = Report { machine, ..Report::default() };
    let bar = if std::io::stderr().is_terminal() {
        indicatif::ProgressBar::new_spinner()
    } else {
        indicatif::ProgressBar::hidden()
    };
    for line in lines.lines() {
        match serde_json::from_str(&line?).context("reading what was measured")? {
            Line::Row(row) => report.rows.push(row),
            Line::Extra(extra) => report.extras.push(extra),
            Line::Absent(absent) => report.absent.push(absent),
            Line::Progress { what } => bar.set_message(what),
        }
        bar.tick();
    }
    bar.finish_and_clear();
    Ok(report)
}
