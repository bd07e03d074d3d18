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
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use meshreduce_bench::plan::Sizes;
use meshreduce_checks::emulated_node::EmulatedNode;
use meshreduce_emulator_node::node::{Node, sysfs};

use measure::Plan;
use report::Report;
use row::Line;

/// Measures channels: latency and bandwidth over message size for every kind, on host memory and between two GPUs, beside plain
/// copies; what a page of a batch costs, what registering costs, and how many driver calls a message needs.
///
/// All take turns in one run. On an emulated node GPUs, NICs and their libraries are stand-ins, and every figure of theirs says so.
#[derive(Parser)]
#[command(name = "bench-channels", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Emulated node: a shipped name or the file of a description; `real` for this machine's GPUs [default: hgx-h100]
    #[arg(long, value_name = "NAME|FILE", default_value = "hgx-h100")]
    node: String,
    /// Message sizes: MIN..MAX (by doubling) or a list with commas; bytes, or with the suffix KiB or MiB
    #[arg(long, default_value = "1,64,1KiB,16KiB,256KiB,1MiB,8MiB,64MiB")]
    sizes: Sizes,
    /// Kinds of channels [default: all]
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<String>,
    /// Host memory alone
    #[arg(long)]
    host_only: bool,
    /// Rounds for every size
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds for a way in a round, there and back and one behind another each; at least one message goes
    #[arg(long, default_value_t = 20)]
    slice: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also write the rows as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Also draw the medians over the sizes
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
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
        None => run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
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
