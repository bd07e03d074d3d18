//! `topo`: how the devices of a node are linked, as the library sees it.
#![forbid(unsafe_code)]

mod drawing;
mod matrix;
mod view;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use meshreduce_arguments::Topo;
use meshreduce_emulator_node::node::Node;
use view::View;

use crate::cluster::this_program;
use crate::emulated_node::EmulatedNode;

/// Looks and shows.
///
/// # Errors
/// A bad node description, no driver, no such device, or a file that cannot be written.
pub fn run(arguments: &Topo) -> Result<bool> {
    let view = match &arguments.node {
        Some(node) => emulated(arguments, node)?,
        None => {
            let title = arguments.title.as_deref().unwrap_or("this machine");
            View::of_this_process(title, &arguments.devices)
                .context("looking at the devices (`--node NAME` shows an emulated node)")?
        }
    };
    if let Some(file) = &arguments.svg {
        let drawing = drawing::draw(&view).to_string();
        std::fs::write(file, drawing + "\n").with_context(|| format!("writing {}", file.display()))?;
    }
    match arguments.json {
        true => println!("{}", serde_json::to_string_pretty(&view)?),
        false => print!("{}", matrix::text(&view)),
    }
    Ok(true)
}

/// Asks a process of its own, because which driver a process sees is settled when it starts.
fn emulated(arguments: &Topo, name: &str) -> Result<View> {
    let node = Node::load(name)?;
    let mut command = Command::new(this_program()?);
    command.args(["topo", "--json", "--title", &format!("emulated node {}", node.name)]);
    if !arguments.devices.is_empty() {
        let list: Vec<String> = arguments.devices.iter().map(u32::to_string).collect();
        command.args(["--devices", &list.join(",")]);
    }
    // Without an instance of its own, so that UUIDs are the same every time and can be named in
    // CUDA_VISIBLE_DEVICES.
    let environment = EmulatedNode::new(name)?.environment();
    command.envs(environment.into_iter().filter(|(name, _)| *name != "MESHREDUCE_NODE_ID"));
    let output = command.output().context("starting the process that sees the node")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", said.trim().trim_start_matches("error: "));
    eprint!("{said}");
    serde_json::from_slice(&output.stdout).context("reading what the process saw")
}
