//! What holds of every pairing, on trees that nobody has built.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use meshreduce_channels::pci::{
    Acs, Alignment, Distance, LinkLayer, Map, Nic, NodeType, Paired, Pairing, PciPath, Port, PortName,
    PortState, Topology, align,
};
use proptest::prelude::*;

/// Where a device hangs: a root bus, then ports of switches. Buses are numbered so that names of one are beginnings of others'.
fn path() -> impl Strategy<Value = (u32, Vec<u8>)> {
    (prop::sample::select(vec![0_u32, 0x1, 0x10, 0x100, 0x1000]), prop::collection::vec(0_u8..3, 0..4))
}

/// The path of a device that is the `index`-th of its tree, so that no two have one address.
fn placed((domain, ports): &(u32, Vec<u8>), index: u8) -> PciPath {
    let mut text = format!("pci{domain:04x}:00");
    let mut bus = 0_u32;
    for port in ports {
        text += &format!("/{domain:04x}:{bus:02x}:{port:02x}.0");
        // One number for each way down.
        bus = bus * 3 + u32::from(*port) + 1;
    }
    text += &format!("/{domain:04x}:{bus:02x}:1{:x}.{}", index / 8, index % 8);
    text.parse().unwrap()
}

fn port() -> impl Strategy<Value = (PortState, u64, bool)> {
    let state =
        prop_oneof![8 => Just(PortState::Active), 1 => Just(PortState::Down), 1 => Just(PortState::Init)];
    (state, prop::sample::select(vec![100_000_u64, 100_000, 400_000]), prop::bool::weighted(0.1))
}

type Place = ((u32, Vec<u8>), Option<u32>);

fn topology() -> impl Strategy<Value = Topology> {
    let place = || (path(), prop::option::of(0_u32..2));
    let nics = prop::collection::vec(
        (place(), prop::collection::vec(port(), 0..3), prop::bool::weighted(0.1)),
        0..10,
    );
    (prop::collection::vec(place(), 0..9), nics).prop_map(|(gpus, nics)| {
        let gpus: Vec<Place> = gpus;
        let gpu = |(index, (place, numa)): (usize, &Place)| meshreduce_channels::pci::Gpu {
            path: placed(place, index as u8),
            numa: *numa,
            bar1: Some(1 << (28 + index)),
        };
        let gpus: Vec<_> = gpus.iter().enumerate().map(gpu).collect();
        let nics = nics.into_iter().enumerate().map(|(index, ((place, numa), ports, elsewhere))| {
            let port = |(number, (state, megabits, slave)): (usize, &(PortState, u64, bool))| Port {
                number: number as u8 + 1,
                state: *state,
                layer: LinkLayer::Ethernet,
                megabits: *megabits,
                netdev: Some(format!("eth{index}_{number}")),
                slave_of: (*slave && !elsewhere).then(|| "bond0".to_owned()),
            };
            Nic {
                name: format!("mlx5_{index}"),
                path: (!elsewhere).then(|| placed(&place, index as u8 + 16)),
                numa: numa.filter(|_| !elsewhere),
                node_type: if index == 9 { NodeType::Rnic } else { NodeType::ChannelAdapter },
                ports: ports.iter().enumerate().map(port).collect(),
            }
        });
        let mut topology = Topology { gpus, nics: nics.collect(), ..Topology::default() };
        let bridges: Vec<String> = topology
            .gpus
            .iter()
            .flat_map(|gpu| gpu.path.components().to_vec())
            .map(|one| one.to_string())
            .collect();
        for (index, bridge) in bridges.iter().enumerate().filter(|(_, bridge)| bridge.ends_with(".0")) {
            topology
                .acs
                .insert(bridge.clone(), if index % 2 == 0 { Acs::Control(0x1c) } else { Acs::Absent });
        }
        for gpu in &topology.gpus {
            topology.acs.remove(&gpu.path.components().last().unwrap().to_string());
        }
        topology
    })
}

fn of(topology: &Topology) -> Vec<(PciPath, Option<Paired>)> {
    let pairing = Pairing::new(topology, &Map::default());
    topology.gpus.iter().map(|gpu| (gpu.path.clone(), pairing.of_gpu(gpu.address()).ok())).collect()
}

/// The ports of a pairing by where they are, which no name changes.
fn places(topology: &Topology, paired: &Paired) -> Vec<(PciPath, u8)> {
    let place = |name: &PortName| (topology.port(name).unwrap().0.path.clone().unwrap(), name.port);
    paired.ports.iter().map(|port| place(&port.name)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn distances_are_symmetric_and_nobody_is_nearer_than_itself(a in path(), b in path(), numa in prop::option::of(0_u32..2)) {
        let (a, b) = (placed(&a, 0), placed(&b, 1));
        prop_assert_eq!(Distance::between(&a, numa, &b, Some(0)), Distance::between(&b, Some(0), &a, numa));
        prop_assert_eq!(a.common(&b), b.common(&a));
        prop_assert!(a.common(&b) < a.components().len());
        let sorted = |path: &PciPath, other: &PciPath| path.bridges_to(other).into_iter().collect::<BTreeSet<_>>();
        prop_assert_eq!(sorted(&a, &b), sorted(&b, &a));
    }

    #[test]
    fn names_and_the_order_of_discovery_do_not_matter(topology in topology(), seed in any::<u64>()) {
        let mut other = topology.clone();
        // Names in the opposite order, of another kind, and everything found in another order.
        for nic in &mut other.nics {
            let number: u32 = nic.name[5..].parse().unwrap();
            nic.name = format!("rocep{}s0", 99 - number);
        }
        let by = seed as usize % other.nics.len().max(1);
        other.nics.rotate_left(by);
        other.gpus.reverse();
        let mut renamed = of(&other);
        renamed.reverse();
        for ((path, one), (same_path, another)) in of(&topology).iter().zip(&renamed) {
            prop_assert_eq!(path, same_path);
            let one = one.as_ref().map(|one| places(&topology, one));
            let another = another.as_ref().map(|another| places(&other, another));
            prop_assert_eq!(one, another);
        }
    }

    #[test]
    fn a_gpu_goes_by_ports_that_can_be_used_and_no_other_is_nearer(topology in topology()) {
        let pairing = Pairing::new(&topology, &Map::default());
        let usable = |nic: &Nic, port: &Port| {
            port.state == PortState::Active && port.slave_of.is_none() && nic.node_type == NodeType::ChannelAdapter
        };
        for gpu in &topology.gpus {
            let all = topology.nics.iter().flat_map(|nic| nic.ports.iter().map(move |port| (nic, port)));
            let near: Vec<_> = all.filter(|(nic, port)| usable(nic, port) && nic.path.is_some()).collect();
            let Ok(paired) = pairing.of_gpu(gpu.address()) else {
                prop_assert!(near.is_empty());
                continue;
            };
            let common = |nic: &Nic| gpu.path.common(nic.path.as_ref().unwrap());
            for port in paired.ports.iter().chain(&paired.others) {
                let (nic, port) = topology.port(&port.name).unwrap();
                prop_assert!(usable(nic, port));
                for (other, other_port) in &near {
                    prop_assert!(common(other) <= common(nic), "{} is nearer than {}", other.name, nic.name);
                    prop_assert!(common(other) > 0 || gpu.distance(other) >= gpu.distance(nic));
                    let alike = common(other) == common(nic) && gpu.distance(other) == gpu.distance(nic);
                    prop_assert!(!alike || other_port.megabits <= port.megabits, "{} is faster", other.name);
                }
            }
        }
    }

    #[test]
    fn those_with_the_same_choice_share_it_evenly(topology in topology()) {
        let pairs: Vec<Paired> = of(&topology).into_iter().filter_map(|(_, paired)| paired).collect();
        let choice = |one: &Paired| one.ports.iter().chain(&one.others).map(|port| port.name.clone()).collect::<BTreeSet<_>>();
        for set in pairs.iter().map(choice).collect::<BTreeSet<_>>() {
            // Sets that overlap with another's are shared with it, and need not come out even among themselves.
            if pairs.iter().map(choice).any(|other| other != set && !other.is_disjoint(&set)) {
                continue;
            }
            let group: Vec<&Paired> = pairs.iter().filter(|one| choice(one) == set).collect();
            let spread = |counts: Vec<usize>| counts.iter().max().unwrap() - counts.iter().min().unwrap();
            prop_assert!(spread(group.iter().map(|one| one.ports.len()).collect()) <= 1);
            let load = |name: &PortName| group.iter().filter(|one| one.ports.iter().any(|port| port.name == *name)).count();
            prop_assert!(spread(set.iter().map(load).collect()) <= 1);
        }
    }

    #[test]
    fn both_sides_align_their_nics_alike(here in rails(), there in rails()) {
        let ((pairs, why), (mirrored, mirrored_why)) = (align(&here, &there), align(&there, &here));
        prop_assert_eq!(why, mirrored_why);
        let sorted: BTreeSet<_> = pairs.iter().map(|(here, there)| (*there, *here)).collect();
        prop_assert_eq!(sorted, mirrored.into_iter().collect::<BTreeSet<_>>());
        prop_assert!(why == Alignment::Order || pairs.iter().all(|(one, other)| here[*one] == there[*other]));
        prop_assert!(!pairs.is_empty() || here.is_empty() || there.is_empty());
    }

    #[test]
    fn any_text_is_a_map_or_an_error_that_shows_it(text in "[a-z0-9:;,= *+._-]{0,40}") {
        match text.parse::<Map>() {
            Ok(map) => prop_assert_eq!(map.to_string().parse::<Map>().unwrap(), map),
            Err(error) => {
                let shown = text.split(';').any(|entry| error.to_string().contains(&format!("{:?}", entry.trim())));
                prop_assert!(shown, "{}", error);
            }
        }
    }
}

proptest! {
    // Hundreds of files each.
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_as_a_sysfs_is_read_again(topology in topology()) {
        let folder = tempfile::tempdir().unwrap();
        topology.write(folder.path()).unwrap();
        let read = Topology::read(folder.path(), &[]).unwrap();
        let mut expected = topology.clone();
        expected.gpus.sort_by_key(|gpu| gpu.address());
        let key = |nic: &Nic| (nic.path.is_none(), nic.path.as_ref().map(PciPath::address), nic.name.clone());
        expected.nics.sort_by_key(key);
        prop_assert_eq!(read, expected);
    }
}

fn rails() -> impl Strategy<Value = Vec<u32>> {
    prop::sample::subsequence((0_u32..6).collect::<Vec<_>>(), 0..6).prop_shuffle()
}
