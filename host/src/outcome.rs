//! How a rendezvous ends when nothing is broken.
#![forbid(unsafe_code)]

use std::fmt;

use meshreduce_device::ComputeCapability;

use crate::communicator::Communicator;
use crate::topology::Topology;

/// What a rendezvous comes to: the same on all ranks.
#[derive(Debug)]
pub enum Outcome {
    /// The communicator is built.
    Ready(Communicator),
    /// Nothing is broken, but this library does not apply: use something else, NCCL for instance.
    NotApplicable(NotApplicableReason),
}

/// Who or what keeps a rank from taking part.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DisabledBy {
    /// The program: [`crate::Config::enabled`].
    Program,
    /// An environment variable, read by [`crate::Config::from_env`] or [`crate::Config::launched`].
    Variable {
        /// Its name.
        name: String,
        /// Its value, if it is set.
        value: Option<String>,
    },
}

impl fmt::Display for DisabledBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DisabledBy::Program => write!(f, "by the program"),
            DisabledBy::Variable { name, value: Some(value) } => write!(f, "by {name}={value}"),
            DisabledBy::Variable { name, value: None } => write!(f, "because {name} is not set"),
        }
    }
}

/// Why the library does not apply.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotApplicableReason {
    /// A rank is configured not to take part.
    Disabled {
        /// That rank.
        rank: usize,
        /// Who or what says so.
        by: DisabledBy,
    },
    /// A rank has no CUDA driver, or a driver without a device, and is configured to take that so:
    /// [`crate::Config::missing_driver_is_not_applicable`].
    NoDriver {
        /// That rank.
        rank: usize,
        /// What is missing there.
        message: String,
    },
    /// There are fewer than 2 ranks or more than 8.
    WorldSize(usize),
    /// The ranks are spread over hosts.
    SeveralHosts {
        /// Two ranks on different hosts.
        ranks: (usize, usize),
        /// Their hosts.
        hosts: (String, String),
    },
    /// Ranks are in different network namespaces, where they cannot tell each other when they leave.
    NetworkNamespaces {
        /// Two ranks in different ones.
        ranks: (usize, usize),
    },
    /// A rank's device is older than the kernels can run on.
    DeviceTooOld {
        /// The first rank with such a device.
        rank: usize,
        /// What its device is.
        found: ComputeCapability,
        /// The oldest that will do: what the kernels were compiled for.
        needed: ComputeCapability,
    },
    /// Some pair of devices has no NVLink between them, and the mesh is no other that is known.
    UnknownTopology {
        /// Two ranks without a link.
        ranks: (usize, usize),
    },
    /// The topology is unknown, and the devices of all ranks that lack a link between them have links that are up, of which
    /// NVML does not tell where they lead: a virtual machine does not show its NVSwitches. Who knows what the links are can
    /// say it: [`crate::Config::force_topology`], [`crate::Config::assume_links`].
    LinksHidden {
        /// The first two such ranks.
        ranks: (usize, usize),
        /// How many such links their devices have.
        links: (u32, u32),
    },
    /// Two ranks saw different links.
    TopologiesDiffer {
        /// The two ranks.
        ranks: (usize, usize),
        /// What they saw differently.
        difference: String,
    },
    /// A rank's device cannot access a peer's memory.
    NoPeerAccess {
        /// The rank and the peer.
        ranks: (usize, usize),
    },
    /// A rank's process has so many communicators on its device that the kernels of one more would not be resident beside theirs,
    /// and it is configured to take that so: [`crate::Config::full_device_is_not_applicable`].
    DeviceFull {
        /// That rank.
        rank: usize,
        /// What it would have got else: [`crate::Error::NotResident`].
        message: String,
    },
    /// The topology is known, but this version has no algorithm for it.
    NoAlgorithm {
        /// The topology.
        topology: Topology,
    },
}

impl fmt::Display for NotApplicableReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotApplicableReason::Disabled { rank, by } => write!(f, "rank {rank} is disabled {by}"),
            NotApplicableReason::NoDriver { rank, message } => {
                write!(f, "rank {rank} has no device: {message}")
            }
            NotApplicableReason::WorldSize(size) => {
                write!(f, "a world of {size}: there must be 2 to 8 ranks")
            }
            NotApplicableReason::SeveralHosts { ranks, hosts } => {
                write!(f, "rank {} is on {}, rank {} on {}", ranks.0, hosts.0, ranks.1, hosts.1)
            }
            NotApplicableReason::NetworkNamespaces { ranks: (a, b) } => write!(
                f,
                "ranks {a} and {b} are in different network namespaces: run them in one (containers: share the host's or \
                 one container's network)"
            ),
            NotApplicableReason::DeviceTooOld { rank, found, needed } => {
                write!(
                    f,
                    "the device of rank {rank} has compute capability {found}: the kernels need {needed} or later"
                )
            }
            NotApplicableReason::UnknownTopology { ranks: (a, b) } => {
                write!(f, "the topology is unknown: no NVLink between the devices of ranks {a} and {b}")
            }
            NotApplicableReason::LinksHidden { ranks: (a, b), links } => write!(
                f,
                "the topology is unknown: the devices of ranks {a} and {b} have {} and {} NVLinks that are up, but NVML does \
                 not tell where they lead, as in a virtual machine that does not show its NVSwitches. Pass these through to \
                 it; or, if they link all devices, say so with Config::force_topology (fully connected) or \
                 Config::assume_links. Peer access, which the host's fabric manager must allow, is checked then too",
                links.0, links.1
            ),
            NotApplicableReason::TopologiesDiffer { ranks: (a, b), difference } => {
                write!(f, "ranks {a} and {b} see different topologies: {difference}")
            }
            NotApplicableReason::NoPeerAccess { ranks: (a, b) } => {
                write!(
                    f,
                    "the device of rank {a} cannot access the memory of rank {b}'s: `nvidia-smi topo -p2p r` shows what the \
                     driver allows, and on machines with NVSwitches the fabric manager must be running"
                )
            }
            NotApplicableReason::DeviceFull { rank, message } => {
                write!(f, "the device of rank {rank} is full: {message}")
            }
            NotApplicableReason::NoAlgorithm { topology } => {
                write!(f, "no algorithm for a topology that is {topology}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_the_ranks() {
        let several = NotApplicableReason::SeveralHosts { ranks: (0, 4), hosts: ("a".into(), "b".into()) };
        assert_eq!(several.to_string(), "rank 0 is on a, rank 4 on b");
        assert_eq!(NotApplicableReason::WorldSize(9).to_string(), "a world of 9: there must be 2 to 8 ranks");
        let disabled = |by| NotApplicableReason::Disabled { rank: 3, by }.to_string();
        let variable = |value: Option<&str>| DisabledBy::Variable {
            name: "ENABLE_INTRA_NODE_COMM".into(),
            value: value.map(str::to_owned),
        };
        assert_eq!(disabled(DisabledBy::Program), "rank 3 is disabled by the program");
        assert_eq!(disabled(variable(Some("0"))), "rank 3 is disabled by ENABLE_INTRA_NODE_COMM=0");
        assert_eq!(disabled(variable(None)), "rank 3 is disabled because ENABLE_INTRA_NODE_COMM is not set");
        let none = NotApplicableReason::NoDriver { rank: 2, message: "no CUDA driver: why".into() };
        assert_eq!(none.to_string(), "rank 2 has no device: no CUDA driver: why");
        let (found, needed) =
            (ComputeCapability { major: 6, minor: 1 }, ComputeCapability { major: 7, minor: 0 });
        assert_eq!(
            NotApplicableReason::DeviceTooOld { rank: 3, found, needed }.to_string(),
            "the device of rank 3 has compute capability 6.1: the kernels need 7.0 or later"
        );
        let hidden = NotApplicableReason::LinksHidden { ranks: (0, 5), links: (18, 12) }.to_string();
        for part in
            ["ranks 0 and 5 have 18 and 12", "NVSwitches", "Config::force_topology", "Config::assume_links"]
        {
            assert!(hidden.contains(part), "{hidden}");
        }
        assert!(NotApplicableReason::NoPeerAccess { ranks: (0, 5) }.to_string().contains("rank 5"));
        assert!(NotApplicableReason::UnknownTopology { ranks: (0, 5) }.to_string().contains("ranks 0 and 5"));
        assert!(
            NotApplicableReason::NetworkNamespaces { ranks: (0, 5) }.to_string().contains("ranks 0 and 5")
        );
        let differ = NotApplicableReason::TopologiesDiffer { ranks: (1, 2), difference: "x".into() };
        assert!(differ.to_string().contains("ranks 1 and 2"));
    }
}
