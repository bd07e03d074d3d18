//! Which devices the ranks run on.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use meshreduce::topology::Survey;
use meshreduce::{Config, Mesh, Topology};
use meshreduce_emulator_node::node::Node;
use meshreduce_wire::{Algorithm, MAX_RANKS};

use crate::forced::forced;
use crate::probe;

/// How the name of an emulated device begins.
pub const EMULATED: &str = "emulated ";

/// Devices that all access each other's memory, and how ranks are spread over them.
#[derive(Clone, Debug)]
pub struct Place {
    /// CUDA ordinals, at least one.
    devices: Vec<u32>,
    name: String,
    /// The links say by themselves that every algorithm but the hybrid cube mesh can run.
    linked: bool,
    /// The devices of this machine that form a hybrid cube mesh.
    cube: Option<Vec<u32>>,
}

impl Place {
    /// The first devices that access each other's memory; only the first one if it is to be `shared` by all ranks.
    ///
    /// # Errors
    /// If there is no driver or no device.
    pub fn choose(shared: bool) -> Result<Self> {
        let found = probe::devices();
        ensure!(
            !found.names.is_empty(),
            "no device: {}",
            found.reason.unwrap_or_else(|| "none is there".into())
        );
        let emulated = meshreduce_driver_loader::symbol("meshreduceEmulatorInstructions").is_some();
        let name = format!("{}{}", if emulated { EMULATED } else { "" }, found.names[0]);
        let count = if shared { 1 } else { found.names.len().min(MAX_RANKS) };
        let devices: Vec<u32> = (0..count as u32).collect();
        let linked = match Survey::of(&devices) {
            Ok(survey) => count == 1 || survey.verdict() == Ok(Topology::FullyConnected),
            // NVML is not there, or does not know the devices.
            Err(_) => false,
        };
        let whole = Survey::of_visible_devices().ok();
        let is_cube = whole.is_some_and(|survey| survey.verdict() == Ok(Topology::HybridCubeMesh));
        let cube = (is_cube && !shared).then(|| (0..MAX_RANKS as u32).collect());
        Ok(Self { devices, name, linked, cube })
    }

    /// In words, for a report.
    pub fn describe(&self) -> String {
        let links = if self.linked { "" } else { ", topology forced to fully connected" };
        match self.devices.len() {
            1 => format!("one shared {}{links}", self.name),
            count => format!("{count} x {}{links}", self.name),
        }
    }

    /// Options that make `meshreduce-bench` run here.
    pub fn bench_options(&self) -> String {
        match (self.devices.len(), self.linked) {
            (1, _) => "--shared-device".to_owned(),
            (count, true) => format!("--ranks {count}"),
            (count, false) => format!("--ranks {count} --force-topology fully-connected"),
        }
    }

    /// The device of each rank: one of its own while there are as many, else shared in turns.
    pub fn devices(&self, world_size: usize) -> Vec<u32> {
        self.devices.iter().copied().cycle().take(world_size).collect()
    }

    /// The number of devices.
    pub fn count(&self) -> usize {
        self.devices.len()
    }

    /// Whether two of so many ranks share a device.
    pub fn shares(&self, world_size: usize) -> bool {
        world_size > self.devices.len()
    }

    /// Whether the topology must be forced.
    pub fn forced(&self) -> Option<Topology> {
        (!self.linked).then_some(Topology::FullyConnected)
    }

    /// A configuration for so many ranks here.
    pub fn config(&self, world_size: usize) -> Config {
        base().allow_shared_devices(self.shares(world_size)).force_topology(self.forced())
    }

    /// Devices and configuration for one algorithm. The hybrid cube mesh runs on one where there is one; elsewhere
    /// the links of a DGX-1V are assumed, because it needs access to memory and no more.
    ///
    /// # Errors
    /// If the shipped description of the DGX-1V cannot be read.
    pub fn for_algorithm(&self, algorithm: Algorithm, world_size: usize) -> Result<(Vec<u32>, Config)> {
        let (devices, config) = match (algorithm.is_of_cube_mesh(), &self.cube) {
            (true, Some(cube)) => (cube.clone(), base()),
            (true, None) => {
                let config = self.config(world_size).force_topology(None).assume_links(Some(cube_links()?));
                (self.devices(world_size), config)
            }
            _ => (self.devices(world_size), self.config(world_size)),
        };
        Ok((devices, forced(config, algorithm)))
    }
}

/// Ranks of one process may have to compile the kernels one after the other, which takes a driver seconds each.
fn base() -> Config {
    Config::default().timeout(Duration::from_secs(180))
}

/// The links of a DGX-1V.
fn cube_links() -> Result<Mesh> {
    let node = Node::load("dgx-1v")?;
    let count = node.gpus.len();
    let links = node.gpus.iter().flat_map(|gpu| (0..count).map(|other| gpu.links_to(other) as u32)).collect();
    Mesh::from_links(count, links).context("the links of a DGX-1V")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(devices: usize, linked: bool) -> Place {
        Place { devices: (0..devices as u32).collect(), name: "GPU".into(), linked, cube: None }
    }

    #[test]
    fn ranks_take_a_device_each_and_then_turns() {
        assert_eq!(place(8, true).devices(3), [0, 1, 2]);
        assert!(!place(3, true).shares(3));
        assert_eq!(place(3, true).devices(8), [0, 1, 2, 0, 1, 2, 0, 1]);
        assert_eq!(place(1, true).devices(2), [0, 0]);
        assert!(place(3, true).shares(4));
    }

    #[test]
    fn what_is_not_linked_is_said_and_forced() {
        assert_eq!(place(1, true).describe(), "one shared GPU");
        assert!(place(2, false).describe().contains("forced"));
        assert_eq!(place(2, false).forced(), Some(Topology::FullyConnected));
        assert_eq!(place(4, true).bench_options(), "--ranks 4");
        assert_eq!(place(4, false).bench_options(), "--ranks 4 --force-topology fully-connected");
        assert_eq!(place(1, false).bench_options(), "--shared-device");
    }

    #[test]
    fn the_links_of_a_dgx_1v_are_a_cube_mesh() {
        assert_eq!(cube_links().unwrap().classify(), Topology::HybridCubeMesh);
    }
}
