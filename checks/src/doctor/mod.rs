//! `channels`: which kinds of channels are viable here and why not, and which GPU goes by which NIC.
#![forbid(unsafe_code)]

mod drawing;
mod findings;
mod json;
mod look;
mod system;
mod text;
mod view;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use meshreduce_arguments::Channels;
use meshreduce_channels::pci::Topology;
use meshreduce_emulator_node::node::{Node, sysfs};

use crate::cluster::this_program;
use crate::emulated_node::EmulatedNode;
use crate::tables;
use findings::Origin;
pub use view::{ChannelRow, Finding, GpuRow, Grade, NicPaths, NicRow, View};

/// Where sysfs is.
const SYSFS: &str = "MESHREDUCE_SYSFS";

/// What was seen.
#[derive(serde::Serialize, serde::Deserialize)]
struct Capture {
    view: View,
    topology: Topology,
}

/// Looks and shows; whether all required channels are viable.
///
/// # Errors
/// A bad node description, no such folder or file, a bad map in the environment, a channel required that is not known.
pub fn run(arguments: &Channels) -> Result<bool> {
    let sight = match (&arguments.tree, &arguments.node, &arguments.sysfs) {
        (Some(file), ..) => captured(file)?,
        (None, Some(node), _) => emulated(node)?,
        (None, None, Some(root)) => by_another_process(None, [(SYSFS, root.as_os_str())])?,
        (None, None, None) => here(arguments.emulated.as_deref())?,
    };
    if arguments.view {
        println!("{}", serde_json::to_string(&sight)?);
        return Ok(true);
    }
    let Capture { view, topology } = sight;
    if let Some(file) = &arguments.capture {
        std::fs::write(file, toml::to_string(&topology)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    if let Some(file) = &arguments.svg {
        let drawing = drawing::draw(&view).to_string();
        std::fs::write(file, drawing + "\n").with_context(|| format!("writing {}", file.display()))?;
    }
    let missing = missing(&view, &arguments.require)?;
    match arguments.json {
        true => print!("{}", json::records(&view)),
        false => print!("{}", text::text(&view, tables::width(), arguments.details)),
    }
    for (name, why) in &missing {
        eprintln!("required, but not viable: {name}: {why}");
    }
    Ok(missing.is_empty())
}

/// What this process sees: an emulated node, or its machine.
fn here(emulated: Option<&str>) -> Result<Capture> {
    let named = std::env::var_os(SYSFS).filter(|root| !root.is_empty());
    let root = named.map_or_else(|| PathBuf::from("/sys"), PathBuf::from);
    let title = emulated.map_or_else(|| "this machine".to_owned(), |name| format!("emulated node {name}"));
    let (mut view, topology) = look::at_this_process(&title, &root)?;
    view.system = Some(system::System::of_this_process());
    view.findings = findings::of(&view, if emulated.is_some() { Origin::Emulated } else { Origin::Here });
    Ok(Capture { view, topology })
}

fn captured(file: &Path) -> Result<Capture> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let topology: Topology = toml::from_str(&text).with_context(|| format!("reading {}", file.display()))?;
    let title = file.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let mut view = look::at_tree(&format!("captured tree {title}"), &topology)?;
    view.findings = findings::of(&view, Origin::Elsewhere);
    Ok(Capture { view, topology })
}

/// Asks a process that sees the node as its machine.
fn emulated(name: &str) -> Result<Capture> {
    let node = Node::load(name)?;
    let root = tempfile::tempdir().context("making a folder for the node's sysfs")?;
    // Without an instance of its own, so that addresses are the same every time.
    sysfs::write(&node, "", root.path()).context("writing the node's sysfs")?;
    let libraries = EmulatedNode::new(name)?;
    let verbs = libraries.library().with_file_name("verbs").join("libibverbs.so.1");
    let mut environment = libraries.environment();
    environment.retain(|(name, _)| *name != "MESHREDUCE_NODE_ID");
    environment.push((SYSFS, root.path().into()));
    environment.push(("MESHREDUCE_VERBS", verbs.into()));
    by_another_process(Some(&node.name), environment.iter().map(|(name, value)| (*name, value.as_os_str())))
}

/// Which driver, libraries and sysfs a process sees is settled when it starts.
fn by_another_process<'a>(
    emulated: Option<&str>,
    environment: impl IntoIterator<Item = (&'a str, &'a std::ffi::OsStr)>,
) -> Result<Capture> {
    let mut command = Command::new(this_program()?);
    command.arg("--view").envs(environment);
    if let Some(name) = emulated {
        command.args(["--emulated", name]);
    }
    let output = command.output().context("starting the process that looks")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", said.trim().trim_start_matches("error: "));
    eprint!("{said}");
    serde_json::from_slice(&output.stdout).context("reading what the process saw")
}

/// Channels that are required and not viable, and why not.
fn missing(view: &View, required: &[String]) -> Result<Vec<(String, String)>> {
    let mut missing = Vec::new();
    for name in required {
        let Some(channels) = &view.channels else {
            bail!("a captured tree says nothing of channels (--require {name})")
        };
        let Some(channel) = channels.iter().find(|channel| channel.name == *name) else {
            let known: Vec<&str> = channels.iter().map(|channel| channel.name.as_str()).collect();
            bail!("there is no channel {name:?} (--require); there are {}", known.join(", "));
        };
        missing.extend(channel.reason.clone().map(|why| (name.clone(), why)));
    }
    Ok(missing)
}
