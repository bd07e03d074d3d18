//! Which device goes by which NICs.

use meshreduce_device::identity::PciAddress;

use super::distance::{Distance, Nearness};
use super::map::{Map, Target};
use super::nic::{Nic, NicPort, Port, PortName, Skip};
use super::path::{PciPath, spelled};
use super::share::share;
use super::topology::{Gpu, Topology};

/// For every GPU of a machine, and for host memory, the ports of NICs that it goes by.
///
/// A GPU's ports are, of those that can be used, the nearest: those with the lowest common ancestor in the PCI tree, or else of the
/// same NUMA node, or else all. Of these, the fastest. All that are equally near and equally fast are a *stripe set* for large transfers;
/// where several GPUs would have the same set, it is shared out evenly. All GPUs of the machine take part, whichever of them
/// a process sees, so that processes that know nothing of each other agree.
#[derive(Clone, Debug)]
pub struct Pairing {
    topology: Topology,
    map: Map,
    gpus: Vec<(PciAddress, Result<Paired, NoNic>)>,
    skipped: Vec<(PortName, Skip)>,
}

/// What a device goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paired {
    /// The ports, at least one; the first is for whatever goes by one port alone.
    pub ports: Vec<NicPort>,
    /// Other ports, just as near and as fast, that are other GPUs' share.
    pub others: Vec<NicPort>,
    /// How far it is to the first. For host memory, [`Distance::HostBridge`], or [`Distance::System`] to another NUMA node.
    pub distance: Distance,
    /// Who has said so.
    pub source: Source,
}

/// Who has said what a device goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The PCI tree.
    Tree,
    /// The user's [`Map`].
    Map,
}

/// Why a device goes by no NIC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoNic {
    /// There are none.
    #[error("there is no NIC with verbs")]
    None,
    /// There are some, and none can be used.
    #[error("no NIC can be used: {}", list(.0))]
    Skipped(Vec<(PortName, Skip)>),
    /// None of those that can be used is a PCI device.
    #[error("{} no PCI device: a map has to say which GPU goes by it ({}=cuda:0={})", is(.0), Map::VARIABLE, .0.first().map_or("", |nic| nic.as_str()))]
    NotPci(Vec<String>),
    /// sysfs does not know the GPU.
    #[error("sysfs has no PCI device {}", spelled(*.0))]
    NotInTree(PciAddress),
    /// The map names a NIC that is not there.
    #[error("the map has {target}={nic}, but there is no such port; there are: {}", .there.join(" "))]
    MapNamesNone {
        /// Whose entry it is.
        target: Target,
        /// The name.
        nic: PortName,
        /// The names there are.
        there: Vec<String>,
    },
    /// The map names a NIC that cannot be used.
    #[error("the map has {target}={nic}, which cannot be used: {why}")]
    MapNamesUnusable {
        /// Whose entry it is.
        target: Target,
        /// The name.
        nic: PortName,
        /// Why not.
        why: Skip,
    },
}

fn list(skipped: &[(PortName, Skip)]) -> String {
    skipped.iter().map(|(port, skip)| format!("{port}: {skip}")).collect::<Vec<_>>().join(", ")
}

fn is(names: &[String]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

/// A port that can be used, and all that decides.
#[derive(Clone, Copy, Debug)]
struct Candidate<'a> {
    rail: usize,
    nic: &'a Nic,
    port: &'a Port,
}

impl Candidate<'_> {
    fn name(&self) -> PortName {
        PortName { nic: self.nic.name.clone(), port: self.port.number }
    }

    fn chosen(&self) -> NicPort {
        NicPort {
            name: self.name(),
            rail: u32::try_from(self.rail).unwrap_or(u32::MAX),
            layer: self.port.layer,
        }
    }
}

impl Pairing {
    /// Pairs all GPUs of a machine.
    pub fn new(topology: &Topology, map: &Map) -> Self {
        let topology = topology.clone().in_order();
        let mut skipped = Vec::new();
        let mut candidates = Vec::new();
        for one in all(&topology) {
            match reason(&one, map) {
                Some(why) => skipped.push((one.name(), why)),
                None => candidates.push(one),
            }
        }
        let nearest: Vec<Vec<usize>> = topology.gpus.iter().map(|gpu| nearest(gpu, &candidates)).collect();
        let shares = share(&nearest, candidates.len());
        let gpus = topology.gpus.iter().zip(nearest.iter().zip(shares)).map(|(gpu, (near, share))| {
            let Some(first) = share.first() else {
                return (gpu.address(), Err(none(&topology, &candidates, &skipped)));
            };
            let paired = Paired {
                distance: gpu.distance(candidates[*first].nic),
                ports: share.iter().map(|index| candidates[*index].chosen()).collect(),
                others: near
                    .iter()
                    .filter(|index| !share.contains(index))
                    .map(|index| candidates[*index].chosen())
                    .collect(),
                source: Source::Tree,
            };
            (gpu.address(), Ok(paired))
        });
        let gpus = gpus.collect();
        Self { topology, map: map.clone(), gpus, skipped }
    }

    /// What the GPU at an address goes by, if the map has no entry for its ordinal.
    ///
    /// # Errors
    /// Why it goes by none.
    pub fn of_gpu(&self, address: PciAddress) -> Result<Paired, NoNic> {
        if let Some(named) = self.map.ports(Target::Pci(address)) {
            return self.mapped(Target::Pci(address), named, self.topology.gpu(address));
        }
        let found = self.gpus.iter().find(|(at, _)| *at == address);
        found.map_or(Err(NoNic::NotInTree(address)), |(_, paired)| paired.clone())
    }

    /// What the device with this ordinal, at this address, goes by.
    ///
    /// # Errors
    /// Why it goes by none.
    pub fn of_cuda(&self, ordinal: u32, address: PciAddress) -> Result<Paired, NoNic> {
        match self.map.ports(Target::Cuda(ordinal)) {
            Some(named) => self.mapped(Target::Cuda(ordinal), named, self.topology.gpu(address)),
            None => self.of_gpu(address),
        }
    }

    /// What host memory goes by: the NICs that GPUs go by, if there are any, because others may belong to another network; of
    /// them those of the memory's NUMA node, if that is known and has any; of them the fastest. Not shared out, as nobody knows which
    /// processes will ask.
    ///
    /// # Errors
    /// Why it goes by none.
    pub fn of_host(&self, numa: Option<u32>) -> Result<Paired, NoNic> {
        if let Some(named) = self.map.ports(Target::Host) {
            return self.mapped(Target::Host, named, None);
        }
        let usable: Vec<Candidate<'_>> =
            all(&self.topology).filter(|one| reason(one, &self.map).is_none()).collect();
        let paired = self.gpus.iter().filter_map(|(_, paired)| paired.as_ref().ok());
        let of_gpus: Vec<&PortName> =
            paired.flat_map(|one| one.ports.iter().chain(&one.others)).map(|port| &port.name).collect();
        let narrowed = prefer(usable.clone(), |one| of_gpus.contains(&&one.name()));
        let narrowed = prefer(narrowed, |one| numa.is_some() && one.nic.numa == numa);
        let fastest = narrowed.iter().map(|one| one.port.megabits).max();
        let narrowed = prefer(narrowed, |one| Some(one.port.megabits) == fastest);
        let Some(first) = narrowed.first() else { return Err(none(&self.topology, &usable, &self.skipped)) };
        let elsewhere = numa.is_some() && first.nic.numa.is_some() && first.nic.numa != numa;
        Ok(Paired {
            distance: if elsewhere { Distance::System } else { Distance::HostBridge },
            ports: narrowed.iter().map(Candidate::chosen).collect(),
            others: Vec::new(),
            source: Source::Tree,
        })
    }

    /// The ports that are left out of the pairing, each with its reason.
    pub fn skipped(&self) -> &[(PortName, Skip)] {
        &self.skipped
    }

    /// What was paired.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    fn mapped(&self, target: Target, named: &[PortName], gpu: Option<&Gpu>) -> Result<Paired, NoNic> {
        let chosen = named.iter().map(|name| {
            let Some(one) = all(&self.topology).find(|one| one.name() == *name) else {
                let there = all(&self.topology).map(|one| one.name().to_string()).collect();
                return Err(NoNic::MapNamesNone { target, nic: name.clone(), there });
            };
            match one.nic.skip(one.port) {
                // Who names a slave means it.
                None | Some(Skip::SlaveOf(_)) => Ok(one),
                Some(why) => Err(NoNic::MapNamesUnusable { target, nic: name.clone(), why }),
            }
        });
        let chosen = chosen.collect::<Result<Vec<_>, _>>()?;
        let distance = match (target, gpu, chosen.first()) {
            (Target::Host, ..) => Distance::HostBridge,
            (_, Some(gpu), Some(first)) => gpu.distance(first.nic),
            _ => Distance::Unknown,
        };
        let ports = chosen.iter().map(Candidate::chosen).collect();
        Ok(Paired { ports, others: Vec::new(), distance, source: Source::Map })
    }
}

fn all(topology: &Topology) -> impl Iterator<Item = Candidate<'_>> {
    let nics = topology.nics.iter().enumerate();
    nics.flat_map(|(rail, nic)| nic.ports.iter().map(move |port| Candidate { rail, nic, port }))
}

fn reason(one: &Candidate<'_>, map: &Map) -> Option<Skip> {
    let left_out = map.ports(Target::Others).is_some_and(|named| !named.contains(&one.name()));
    one.nic.skip(one.port).or(left_out.then_some(Skip::NotInMap))
}

/// Those that fit, or all if none does.
fn prefer<'a>(all: Vec<Candidate<'a>>, fits: impl Fn(&Candidate<'a>) -> bool) -> Vec<Candidate<'a>> {
    let fitting: Vec<_> = all.iter().copied().filter(&fits).collect();
    if fitting.is_empty() { all } else { fitting }
}

/// The candidates that are nearest to a GPU, and of these the fastest, as indices.
fn nearest(gpu: &Gpu, candidates: &[Candidate<'_>]) -> Vec<usize> {
    let nearness = |one: &Candidate<'_>| {
        let path: &PciPath = one.nic.path.as_ref()?;
        Some(Nearness::new(gpu.distance(one.nic), gpu.path.common(path)))
    };
    let Some(least) = candidates.iter().filter_map(nearness).min() else { return Vec::new() };
    let mut near: Vec<usize> =
        (0..candidates.len()).filter(|index| nearness(&candidates[*index]) == Some(least)).collect();
    let fastest = near.iter().map(|index| candidates[*index].port.megabits).max();
    near.retain(|index| Some(candidates[*index].port.megabits) == fastest);
    near
}

fn none(topology: &Topology, usable: &[Candidate<'_>], skipped: &[(PortName, Skip)]) -> NoNic {
    match usable {
        [] if topology.nics.iter().all(|nic| nic.ports.is_empty()) => NoNic::None,
        [] => NoNic::Skipped(skipped.to_vec()),
        some => NoNic::NotPci(some.iter().map(|one| one.name().to_string()).collect()),
    }
}
