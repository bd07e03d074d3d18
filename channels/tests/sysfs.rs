//! Corners of sysfs that the trees of machines do not have.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use meshreduce_channels::pci::{LinkLayer, Map, Nic, NoNic, NodeType, Pairing, Port, PortState, Topology};

fn nic(name: &str, path: &str, netdev: &str, slave_of: Option<&str>) -> Nic {
    let port = Port {
        number: 1,
        state: PortState::Active,
        layer: LinkLayer::Ethernet,
        megabits: 100_000,
        netdev: Some(netdev.to_owned()),
        slave_of: slave_of.map(str::to_owned),
    };
    Nic {
        name: name.to_owned(),
        path: Some(path.parse().unwrap()),
        numa: None,
        node_type: NodeType::ChannelAdapter,
        ports: vec![port],
    }
}

/// A sysfs of these NICs, and of a GPU on the same root bus.
fn sysfs(nics: Vec<Nic>) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let gpu = meshreduce_channels::pci::Gpu {
        path: "pci0000:00/0000:00:01.0/0000:01:00.0".parse().unwrap(),
        numa: None,
        bar1: None,
    };
    Topology { gpus: vec![gpu], nics, ..Topology::default() }.write(root.path()).unwrap();
    root
}

fn write(root: &Path, file: &str, text: &str) {
    let file = root.join(file);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

fn first_port(root: &Path) -> Port {
    Topology::read(root, &[]).unwrap().nics[0].ports[0].clone()
}

const CARD: &str = "pci0000:00/0000:00:02.0/0000:02:00.0";

#[test]
fn a_bonds_slave_is_told_from_the_nic_that_carries_the_bond() {
    let slave = sysfs(vec![nic("mlx5_0", CARD, "eth0", Some("bond0"))]);
    assert_eq!(first_port(slave.path()).slave_of.as_deref(), Some("bond0"));
    // The same, but the port has the bond's own addresses, as where two functions form one NIC.
    write(slave.path(), "class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/1", "bond0\n");
    let port = first_port(slave.path());
    assert_eq!((port.slave_of, port.netdev.as_deref()), (None, Some("eth0")));
}

#[test]
fn an_interface_in_a_vrf_or_a_bridge_is_no_slave_of_a_bond() {
    let root = sysfs(vec![nic("mlx5_0", CARD, "fabric0", None)]);
    fs::create_dir_all(root.path().join("devices/virtual/net/vrf-fabric0")).unwrap();
    let interface = root.path().join("devices").join(CARD).join("net/fabric0");
    symlink(root.path().join("devices/virtual/net/vrf-fabric0"), interface.join("master")).unwrap();
    assert_eq!(first_port(root.path()).slave_of, None);
}

#[test]
fn interfaces_that_stand_for_virtual_functions_are_not_the_ports() {
    let root = sysfs(vec![nic("mlx5_0", CARD, "eth9", None)]);
    write(root.path(), &format!("devices/{CARD}/net/eth0/phys_port_name"), "pf0vf3\n");
    write(root.path(), &format!("devices/{CARD}/net/eth0/dev_port"), "0\n");
    write(root.path(), &format!("devices/{CARD}/net/eth9/phys_port_name"), "p0\n");
    assert_eq!(first_port(root.path()).netdev.as_deref(), Some("eth9"));
}

#[test]
fn soft_roce_needs_the_map_for_gpus_and_serves_host_memory_without() {
    let root = sysfs(Vec::new());
    write(root.path(), "devices/virtual/infiniband/rxe0/ports/1/state", "4: ACTIVE\n");
    write(root.path(), "devices/virtual/infiniband/rxe0/ports/1/link_layer", "Ethernet\n");
    write(root.path(), "devices/virtual/infiniband/rxe0/parent", "eth0\n");
    symlink("../../devices/virtual/infiniband/rxe0", root.path().join("class/infiniband/rxe0")).unwrap();
    let topology = Topology::read(root.path(), &[]).unwrap();
    let address = topology.gpus[0].address();
    let pairing = Pairing::new(&topology, &Map::default());
    assert_eq!(pairing.of_gpu(address), Err(NoNic::NotPci(vec!["rxe0".to_owned()])));
    assert!(pairing.of_gpu(address).unwrap_err().to_string().contains("MESHREDUCE_NICS=cuda:0=rxe0"));
    assert_eq!(pairing.of_host(None).unwrap().ports[0].to_string(), "rxe0");
    let mapped = Pairing::new(&topology, &"cuda:0=rxe0".parse().unwrap()).of_cuda(0, address).unwrap();
    assert_eq!(
        (mapped.ports[0].to_string(), mapped.distance.to_string()),
        ("rxe0".to_owned(), "?".to_owned())
    );
}

#[test]
fn a_gpu_that_a_driver_tells_of_is_found_without_its_class() {
    let root = sysfs(vec![nic("mlx5_0", CARD, "eth0", None)]);
    let told = "devices/pci0000:00/0000:00:03.0/0000:03:00.0";
    fs::create_dir_all(root.path().join(told)).unwrap();
    symlink(Path::new("../../..").join(told), root.path().join("bus/pci/devices/0000:03:00.0")).unwrap();
    let address = "00000000:03:00.0".parse().unwrap();
    assert_eq!(Topology::read(root.path(), &[]).unwrap().gpus.len(), 1);
    let topology = Topology::read(root.path(), &[address, "0000:01:00.0".parse().unwrap()]).unwrap();
    assert_eq!(topology.gpus.len(), 2, "the other one counts once");
    let pairing = Pairing::new(&topology, &Map::default());
    assert_eq!(pairing.of_gpu(address).unwrap().distance.to_string(), "PHB");
    let unknown = pairing.of_gpu("0000:77:00.0".parse().unwrap()).unwrap_err();
    assert_eq!(unknown.to_string(), "sysfs has no PCI device 0000:77:00.0");
}

#[test]
fn without_nics_or_with_none_that_works_there_is_a_reason() {
    let of = |nics: Vec<Nic>| {
        let topology = Topology::read(sysfs(nics).path(), &[]).unwrap();
        Pairing::new(&topology, &Map::default()).of_gpu(topology.gpus[0].address()).unwrap_err().to_string()
    };
    assert_eq!(of(Vec::new()), "there is no NIC with verbs");
    let mut down = nic("mlx5_0", CARD, "eth0", None);
    down.ports[0].state = PortState::Down;
    let mut iwarp = nic("cxgb4_0", "pci0000:00/0000:00:04.0/0000:04:00.0", "eth2", None);
    iwarp.node_type = NodeType::Rnic;
    let slave = nic("mlx5_1", "pci0000:00/0000:00:03.0/0000:03:00.0", "eth1", Some("bond0"));
    assert_eq!(
        of(vec![down, slave, iwarp]),
        "no NIC can be used: mlx5_0: port down, mlx5_1: slave of bond0, cxgb4_0: iWARP, not InfiniBand or RoCE"
    );
}

#[test]
fn a_root_may_be_mounted_anywhere_but_must_be_there() {
    let root = sysfs(vec![nic("mlx5_0", CARD, "eth0", None)]);
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(root.path(), elsewhere.path().join("host-sys")).unwrap();
    let read = |root: &Path| Topology::read(root, &[]);
    assert_eq!(read(&elsewhere.path().join("host-sys")).unwrap(), read(root.path()).unwrap());
    let missing = read(&root.path().join("nowhere")).unwrap_err().to_string();
    assert!(missing.contains("nowhere"), "{missing}");
    assert_eq!(read(elsewhere.path()).unwrap(), Topology::default(), "an empty one has nothing");
}
