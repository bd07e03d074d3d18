//! What ranks tell each other in the two exchanges, and what follows from it.
#![forbid(unsafe_code)]

use meshreduce_device::identity::{Device, PciAddress};
use meshreduce_device::{ComputeCapability, IpcHandle};
use meshreduce_store::codec::{Malformed, Payload, Reader, Writer};
use meshreduce_store::identity::Member;
use meshreduce_wire::{Algorithm, Isa};

use super::verdict::{RendezvousFailure, Verdict, read_capability, read_topology, write_capability};
use crate::algorithms::Interconnect;
use crate::config::Config;
use crate::control::connect::Place;
use crate::error::SharedNamespaces;
use crate::outcome::NotApplicableReason;
use crate::topology::{Mesh, Topology};

/// A rank's host, process and device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) member: Member,
    /// Its network namespace, as an inode.
    pub(crate) network: u64,
    /// Its IPC namespace, as an inode; 0 where the system does not tell.
    pub(crate) ipc: u64,
    pub(crate) device: Device,
}

impl Identity {
    /// What this rank's process shares with another's.
    pub(crate) fn shares_with(&self, other: &Self) -> SharedNamespaces {
        let pid = (self.member.process.namespace, other.member.process.namespace);
        SharedNamespaces::of(pid, (self.ipc, other.ipc))
    }
}

/// The first exchange: who the rank is and how it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct First {
    pub(crate) identity: Identity,
    /// What its device is.
    pub(crate) capability: ComputeCapability,
    /// The latest ISA that it takes.
    pub(crate) isa: Isa,
    /// Name and value of everything that must be equal.
    pub(crate) settings: Vec<(String, String)>,
}

/// Everything in a configuration that ranks must agree on.
pub(crate) fn settings(config: &Config, world_size: usize, kernels: &str) -> Vec<(String, String)> {
    let optional = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    let limits = &config.limits;
    [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("world size", world_size.to_string()),
        ("lanes", config.lanes.to_string()),
        ("deadline", optional(config.deadline.map(|deadline| format!("{deadline:?}")))),
        ("one-shot limit", limits.one_shot.to_string()),
        ("two-shot limit", limits.two_shot.to_string()),
        ("hybrid cube mesh limit", limits.hybrid_cube_mesh.to_string()),
        ("one-shot-ll limit", limits.of(Algorithm::OneShotLl, world_size).to_string()),
        ("two-shot-ll limit", limits.of(Algorithm::TwoShotLl, world_size).to_string()),
        ("hybrid-cube-mesh-ll limit", limits.of(Algorithm::HybridCubeMeshLl, world_size).to_string()),
        ("exchange limit", limits.exchange.to_string()),
        ("reduce-scatter limit", limits.reduce_scatter.to_string()),
        ("shared devices allowed", config.allow_shared_devices.to_string()),
        ("communicators per device", config.communicators_per_device.to_string()),
        ("forced topology", optional(config.forced_topology.map(|topology| topology.to_string()))),
        (
            "assumed links",
            optional(config.assumed_links.as_ref().map(|links| format!("{:?}", links.as_slice()))),
        ),
        ("forced algorithm", optional(config.forced_algorithm.map(|algorithm| algorithm.to_string()))),
        ("first call number", config.first_call_number.to_string()),
        ("kernels", kernels.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// What the first exchange comes to, equal on all ranks: `None` is to go on. The kernels, which all ranks have alike when
/// it matters, need devices of the capability `needed`.
pub(crate) fn judge_first(
    all: &[First],
    shared_devices: bool,
    needed: Option<ComputeCapability>,
) -> Option<Verdict> {
    let first = &all[0];
    if let Some((rank, other)) =
        all.iter().enumerate().find(|(_, other)| !other.identity.member.host.is(&first.identity.member.host))
    {
        let hosts = (first.identity.member.host.to_string(), other.identity.member.host.to_string());
        return Some(Verdict::NotApplicable(NotApplicableReason::SeveralHosts { ranks: (0, rank), hosts }));
    }
    if let Some(rank) = all.iter().position(|other| other.identity.network != first.identity.network) {
        return Some(Verdict::NotApplicable(NotApplicableReason::NetworkNamespaces { ranks: (0, rank) }));
    }
    for (rank, other) in all.iter().enumerate() {
        if let Some((field, values)) = difference(&first.settings, &other.settings) {
            return Some(Verdict::Failed(RendezvousFailure::Different { field, ranks: (0, rank), values }));
        }
    }
    if !shared_devices {
        for (b, other) in all.iter().enumerate() {
            let same = |one: &First| one.identity.device.uuid == other.identity.device.uuid;
            if let Some(a) = all[..b].iter().position(same) {
                let device = other.identity.device.to_string();
                return Some(Verdict::Failed(RendezvousFailure::DeviceTwice { ranks: (a, b), device }));
            }
        }
    }
    judge_devices(all.iter().map(|one| one.capability), needed).map(Verdict::NotApplicable)
}

/// Why devices of these capabilities, by rank, cannot run kernels that need `needed`, if they cannot.
pub(crate) fn judge_devices(
    capabilities: impl Iterator<Item = ComputeCapability>,
    needed: Option<ComputeCapability>,
) -> Option<NotApplicableReason> {
    let needed = needed?;
    let (rank, found) = capabilities.enumerate().find(|(_, found)| *found < needed)?;
    Some(NotApplicableReason::DeviceTooOld { rank, found, needed })
}

/// The first setting in which two ranks differ.
fn difference(a: &[(String, String)], b: &[(String, String)]) -> Option<(String, (String, String))> {
    let value = |settings: &[(String, String)], name: &str| {
        settings
            .iter()
            .find(|(other, _)| other == name)
            .map_or_else(|| "not known".to_owned(), |(_, v)| v.clone())
    };
    let names = a.iter().chain(b).map(|(name, _)| name);
    names.map(|name| (name.clone(), (value(a, name), value(b, name)))).find(|(_, (one, other))| one != other)
}

/// The second exchange: what the rank sees and what it offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Second {
    pub(crate) mesh: Mesh,
    pub(crate) topology: Topology,
    /// Links of the rank's own device that are up and lead to a place that NVML does not tell.
    pub(crate) hidden: u32,
    /// A peer whose memory the rank's device cannot access, though the topology needs it.
    pub(crate) barred_from: Option<usize>,
    /// Blocks of a grid of this rank that fit its device beside everything else of the communicator.
    pub(crate) block_cap: u32,
    /// The rank's segment, if it has come to allocating one.
    pub(crate) segment: Option<Offer>,
}

/// Where a rank's segment is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// For other processes.
    pub(crate) ipc: IpcHandle,
    /// Where the rank listens for the others.
    pub(crate) place: Place,
}

/// What the second exchange comes to, equal on all ranks: `None` is to go on.
pub(crate) fn judge_second(all: &[Second]) -> Option<Verdict> {
    let not_applicable = |reason| Some(Verdict::NotApplicable(reason));
    let first = &all[0];
    for (rank, other) in all.iter().enumerate() {
        let difference = first.mesh.difference(0, &other.mesh, rank).or_else(|| {
            (first.topology != other.topology)
                .then(|| format!("{} on rank 0, {} on rank {rank}", first.topology, other.topology))
        });
        if let Some(difference) = difference {
            return not_applicable(NotApplicableReason::TopologiesDiffer { ranks: (0, rank), difference });
        }
    }
    let hidden: Vec<u32> = all.iter().map(|one| one.hidden).collect();
    judge_view(&first.mesh, first.topology, &hidden, all.iter().map(|one| one.barred_from))
        .and_then(not_applicable)
}

/// Why ranks that all see this mesh cannot use it, if they cannot; by rank, `hidden` counts links that lead to a place
/// that is not known, as far as they are known, and `barred` says whose memory it needs and cannot access.
pub(crate) fn judge_view(
    mesh: &Mesh,
    topology: Topology,
    hidden: &[u32],
    barred: impl Iterator<Item = Option<usize>>,
) -> Option<NotApplicableReason> {
    if topology == Topology::Unknown {
        let hidden = |rank: usize| hidden.get(rank).copied().unwrap_or(0);
        // Where no hidden link can be the missing one, nobody need look for hidden ones.
        let missing = mesh.all_unlinked().find(|&(a, b)| hidden(a) == 0 || hidden(b) == 0);
        return Some(match (missing, mesh.unlinked()) {
            (None, Some((a, b))) => {
                NotApplicableReason::LinksHidden { ranks: (a, b), links: (hidden(a), hidden(b)) }
            }
            (missing, _) => NotApplicableReason::UnknownTopology { ranks: missing.unwrap_or((0, 0)) },
        });
    }
    if Interconnect::new(topology, mesh).algorithms().next().is_none() {
        return Some(NotApplicableReason::NoAlgorithm { topology });
    }
    let mut barred = barred.enumerate();
    barred.find_map(|(rank, peer)| peer.map(|peer| NotApplicableReason::NoPeerAccess { ranks: (rank, peer) }))
}

impl Payload for First {
    const KIND: u8 = 2;

    fn write(&self, out: &mut Writer) {
        let Identity { member, network, ipc, device } = &self.identity;
        member.write(out);
        out.u64(*network);
        out.u64(*ipc);
        out.u32(device.pci.domain);
        out.raw(&[device.pci.bus, device.pci.device, device.pci.function]);
        out.raw(&device.uuid);
        write_capability(self.capability, out);
        out.u8(self.isa as u8);
        out.list(&self.settings, |out, (name, value)| {
            out.text(name);
            out.text(value);
        });
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let member = Member::read(from)?;
        let network = from.u64()?;
        let ipc = from.u64()?;
        let domain = from.u32()?;
        let [bus, device, function] = from.array()?;
        let device = Device { pci: PciAddress { domain, bus, device, function }, uuid: from.array()? };
        let capability = read_capability(from)?;
        let code = from.u8()?;
        let isa = Isa::from_repr(code).ok_or_else(|| Malformed::wrong(format!("{code} is no ISA")))?;
        let settings = from.list(|from| Ok((from.text()?, from.text()?)))?;
        Ok(Self { identity: Identity { member, network, ipc, device }, capability, isa, settings })
    }
}

impl Payload for Second {
    const KIND: u8 = 3;

    fn write(&self, out: &mut Writer) {
        out.u32(self.mesh.size() as u32);
        out.list(self.mesh.as_slice(), |out, links| out.u32(*links));
        out.u8(self.topology as u8);
        out.u32(self.hidden);
        out.u32(self.barred_from.map_or(u32::MAX, |peer| peer as u32));
        out.u32(self.block_cap);
        out.u8(u8::from(self.segment.is_some()));
        if let Some(offer) = &self.segment {
            out.raw(&offer.ipc.handle);
            out.u64(offer.ipc.offset);
            out.raw(&offer.place.name);
            out.raw(&offer.place.token);
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let size = from.u32()? as usize;
        let links = from.list(Reader::u32)?;
        let mesh = Mesh::from_links(size, links).ok_or_else(|| Malformed::wrong("its mesh is no square"))?;
        let topology = read_topology(from)?;
        let hidden = from.u32()?;
        let barred_from = Some(from.u32()?).filter(|peer| *peer != u32::MAX).map(|peer| peer as usize);
        let block_cap = from.u32()?;
        let segment = match from.flag()? {
            true => Some(Offer {
                ipc: IpcHandle { handle: from.array()?, offset: from.u64()? },
                place: Place { name: from.array()?, token: from.array()? },
            }),
            false => None,
        };
        Ok(Self { mesh, topology, hidden, barred_from, block_cap, segment })
    }
}

/// The last step: the rank has everything open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledgement;

impl Payload for Acknowledgement {
    const KIND: u8 = 4;

    fn write(&self, _: &mut Writer) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshreduce_store::identity::{Host, Process};

    const PASCAL: ComputeCapability = ComputeCapability { major: 6, minor: 0 };
    const VOLTA: ComputeCapability = ComputeCapability { major: 7, minor: 0 };

    fn judge(all: &[First], shared_devices: bool) -> Option<Verdict> {
        judge_first(all, shared_devices, Some(VOLTA))
    }

    fn first(bus: u8) -> First {
        First {
            identity: Identity {
                member: Member {
                    host: Host { name: "host".into(), id: "boot".into() },
                    process: Process { pid: u32::from(bus), namespace: 1, start_time: 2, clock: 3 },
                },
                network: 9,
                ipc: 8,
                device: Device {
                    pci: PciAddress { domain: 0, bus, device: 0, function: 0 },
                    uuid: [bus; 16],
                },
            },
            capability: VOLTA,
            isa: Isa::V84,
            settings: settings(&Config::default(), 2, "digest"),
        }
    }

    fn second(links: u32) -> Second {
        Second {
            mesh: Mesh::new(2, |_, _| links),
            topology: Topology::FullyConnected,
            hidden: 5,
            barred_from: None,
            block_cap: 64,
            segment: Some(Offer {
                ipc: IpcHandle { handle: [7; 64], offset: 512 },
                place: Place { name: [1; 16], token: [2; 16] },
            }),
        }
    }

    #[test]
    fn payloads_survive_the_round_trip() {
        assert_eq!(First::from_bytes(&first(1).to_bytes()), Ok(first(1)));
        assert_eq!(Second::from_bytes(&second(18).to_bytes()), Ok(second(18)));
        let bare = Second { barred_from: Some(1), segment: None, ..second(0) };
        assert_eq!(Second::from_bytes(&bare.to_bytes()), Ok(bare));
    }

    #[test]
    fn equal_ranks_on_different_devices_go_on() {
        assert_eq!(judge(&[first(1), first(2)], false), None);
        assert_eq!(judge_second(&[second(18), second(18)]), None);
    }

    #[test]
    fn a_different_setting_is_named_with_both_values() {
        let mut other = first(2);
        other.settings = settings(&Config::default().lanes(2), 2, "digest");
        let expected = RendezvousFailure::Different {
            field: "lanes".into(),
            ranks: (0, 1),
            values: ("1".into(), "2".into()),
        };
        assert_eq!(judge(&[first(1), other], false), Some(Verdict::Failed(expected)));
    }

    #[test]
    fn a_host_that_was_restarted_is_another_host() {
        let mut other = first(2);
        other.identity.member.host.id = "later".into();
        match judge(&[first(1), other], false) {
            Some(Verdict::NotApplicable(NotApplicableReason::SeveralHosts { ranks: (0, 1), hosts })) => {
                assert!(hosts.1.contains("later"));
            }
            verdict => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn a_host_may_have_a_name_for_every_container() {
        let mut other = first(2);
        other.identity.member.host.name = "container".into();
        assert_eq!(judge(&[first(1), other], false), None);
    }

    #[test]
    fn ranks_in_network_namespaces_of_their_own_do_not_apply() {
        let mut other = first(2);
        other.identity.network = 10;
        let reason = NotApplicableReason::NetworkNamespaces { ranks: (0, 1) };
        assert_eq!(judge(&[first(1), other], false), Some(Verdict::NotApplicable(reason)));
    }

    #[test]
    fn a_rank_knows_what_its_process_shares_with_a_peers() {
        let own = first(1).identity;
        assert_eq!(own.shares_with(&first(2).identity), SharedNamespaces::of((1, 1), (8, 8)));
        let other = first(2).identity.member;
        let member = Member { process: Process { namespace: 2, ..other.process }, ..other };
        let contained = Identity { member, ipc: 0, ..first(2).identity };
        assert_eq!(own.shares_with(&contained), SharedNamespaces::of((1, 2), (8, 0)));
    }

    #[test]
    fn one_device_for_two_ranks_must_be_allowed() {
        let all = [first(1), first(2), first(1)];
        match judge(&all, false) {
            Some(Verdict::Failed(RendezvousFailure::DeviceTwice { ranks, .. })) => assert_eq!(ranks, (0, 2)),
            verdict => panic!("{verdict:?}"),
        }
        assert_eq!(judge(&all, true), None);
    }

    #[test]
    fn the_first_device_that_is_too_old_is_named_with_what_is_needed() {
        let old = |bus| First { capability: PASCAL, ..first(bus) };
        let reason = NotApplicableReason::DeviceTooOld { rank: 1, found: PASCAL, needed: VOLTA };
        let all = [first(1), old(2), old(3)];
        assert_eq!(judge(&all, false), Some(Verdict::NotApplicable(reason)));
        assert_eq!(judge_first(&all, false, Some(PASCAL)), None, "other kernels may ask for less");
        assert_eq!(judge_first(&all, false, None), None, "what is not known is left to the driver");
        // What is broken is said first.
        assert!(matches!(judge(&[old(1), old(1)], false), Some(Verdict::Failed(_))));
    }

    #[test]
    fn ranks_that_see_different_links_do_not_apply() {
        match judge_second(&[second(18), second(17)]) {
            Some(Verdict::NotApplicable(NotApplicableReason::TopologiesDiffer {
                ranks: (0, 1),
                difference,
            })) => {
                assert!(difference.contains("18") && difference.contains("17"), "{difference}");
            }
            verdict => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn unknown_topologies_and_barred_peers_do_not_apply() {
        let unknown = Second { topology: Topology::Unknown, ..second(0) };
        let reason = NotApplicableReason::LinksHidden { ranks: (0, 1), links: (5, 5) };
        let verdict = judge_second(&[unknown.clone(), unknown.clone()]);
        assert_eq!(verdict, Some(Verdict::NotApplicable(reason)));
        assert!(judge_second(std::slice::from_ref(&unknown)).is_some(), "one rank's view is enough to stop");
        let bare = Second { hidden: 0, ..unknown.clone() };
        let verdict = judge_second(&[unknown, bare]);
        assert_eq!(
            verdict,
            Some(Verdict::NotApplicable(NotApplicableReason::UnknownTopology { ranks: (0, 1) }))
        );
        let barred = Second { barred_from: Some(0), ..second(4) };
        let verdict = judge_second(&[second(4), barred]);
        assert_eq!(
            verdict,
            Some(Verdict::NotApplicable(NotApplicableReason::NoPeerAccess { ranks: (1, 0) }))
        );
        let cube = Second { topology: Topology::HybridCubeMesh, ..second(4) };
        let topology = Topology::HybridCubeMesh;
        let verdict = judge_second(&[cube.clone(), cube]);
        assert_eq!(verdict, Some(Verdict::NotApplicable(NotApplicableReason::NoAlgorithm { topology })));
    }
}
