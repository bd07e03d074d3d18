//! `topo`: how the devices of a node are linked, as the library sees it.
#![forbid(unsafe_code)]

mod drawing;
mod matrix;
mod view;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use meshreduce_emulator_node::node::Node;
use view::View;

use crate::cluster::this_program;
use crate::emulated_node::EmulatedNode;

/// Show how devices are linked: the link matrix, what it was found to be, and why
///
/// Asks the driver and NVML of this machine, or of an emulated node, in the way a rendezvous does. Devices are
/// numbered by CUDA ordinal, so CUDA_VISIBLE_DEVICES has its say.
#[derive(Args, Debug)]
pub struct Topo {
    /// Emulated node: a shipped name or the file of a description [default: this machine]
    #[arg(long, value_name = "NAME|FILE")]
    node: Option<String>,
    /// Draw it into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON in place of text
    #[arg(long)]
    json: bool,
    /// CUDA ordinals with commas, in rank order [default: all that are visible]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    devices: Vec<u32>,
    /// What the node is called; given to the process that sees it
    #[arg(long, hide = true, conflicts_with = "node")]
    title: Option<String>,
}

impl Topo {
    /// Looks and shows.
    ///
    /// # Errors
    /// A bad node description, no driver, no such device, or a file that cannot be written.
    pub fn run(&self) -> Result<bool> {
        let view = match &self.node {
            Some(node) => self.emulated(node)?,
            None => {
                let title = self.title.as_deref().unwrap_or("this machine");
                View::of_this_process(title, &self.devices)
                    .context("looking at the devices (`--node NAME` shows an emulated node)")?
            }
        };
        if let Some(file) = &self.svg {
            let drawing = drawing::draw(&view).to_string();
            std::fs::write(file, drawing + "\n").with_context(|| format!("writing {}", file.display()))?;
        }
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&view)?),
            false => print!("{}", matrix::text(&view)),
        }
        Ok(true)
    }

    /// Asks a process of its own, because which driver a process sees is settled when it starts.
    fn emulated(&self, name: &str) -> Result<View> {
        let node = Node::load(name)?;
        let mut command = Command::new(this_program()?);
        command.args(["topo", "--json", "--title", &format!("emulated node {}", node.name)]);
        if !self.devices.is_empty() {
            let list: Vec<String> = self.devices.iter().map(u32::to_string).collect();
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
}
