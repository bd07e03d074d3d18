//! A device of this process that is served.
#![forbid(unsafe_code)]

use meshreduce_device::Device;

use crate::gdr::config::Registration;
use crate::gdr::descriptor::{self, Descriptor, Port};
use crate::gdr::nic::Nic;
use crate::gdr::visible::Gpu;

/// A device, and the NICs that it goes by.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) device: Device,
    /// The NICs, in the order of the descriptor: the nearest first.
    pub(crate) nics: Vec<Chosen>,
    /// What there is besides, of a GPU.
    pub(crate) gpu: Option<Gpu>,
    /// What the others are told.
    pub(crate) descriptor: Vec<u8>,
}

/// A NIC that a device goes by.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    /// Its place among the open ones.
    pub(crate) nic: usize,
    /// None is nearer.
    pub(crate) near: bool,
    /// How memory of the device is registered with it, what is tried first first. Empty for host memory.
    pub(crate) ways: Vec<Registration>,
}

impl Served {
    pub(crate) fn new(device: Device, nics: Vec<Chosen>, gpu: Option<Gpu>, open: &[Nic]) -> Self {
        let ports =
            nics.iter().map(|chosen| Port { near: chosen.near, ..open[chosen.nic].told.clone() }).collect();
        let served = descriptor::Served { gpu: gpu.is_some(), ports };
        let descriptor = Descriptor::Served(served).to_bytes();
        Self { device, nics, gpu, descriptor }
    }

    /// How its memory is registered with a NIC.
    pub(crate) fn ways(&self, nic: usize) -> &[Registration] {
        self.nics.iter().find(|chosen| chosen.nic == nic).map_or(&[], |chosen| &chosen.ways)
    }
}
