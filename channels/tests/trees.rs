//! Trees of well-known machines: read from a sysfs, measured against the published `nvidia-smi topo -m`, and paired.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use meshreduce_channels::pci::{Acs, Alignment, Map, NoNic, Paired, Pairing, Skip, Topology, align};

/// Where the trees are.
fn folder() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("tests/trees")
}

/// The tree, by way of a sysfs.
fn tree(name: &str) -> Topology {
    let file = folder().join(name).with_extension("toml");
    let captured: Topology = toml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let sysfs = tempfile::tempdir().unwrap();
    captured.write(sysfs.path()).unwrap();
    Topology::read(sysfs.path(), &[]).unwrap()
}

/// A GPU a line, a NIC a column, the NICs in the order of their names.
fn matrix(topology: &Topology) -> String {
    let mut nics: Vec<_> = topology.nics.iter().collect();
    nics.sort_by_key(|nic| {
        nic.name.trim_start_matches(|c: char| !c.is_ascii_digit())[2..].parse::<u32>().unwrap_or(0)
    });
    let line = |gpu: &meshreduce_channels::pci::Gpu| {
        nics.iter().map(|nic| gpu.distance(nic).to_string()).collect::<Vec<_>>().join(" ")
    };
    topology.gpus.iter().map(|gpu| line(gpu) + "\n").collect()
}

fn paired(topology: &Topology) -> Vec<Paired> {
    let pairing = Pairing::new(topology, &Map::default());
    topology.gpus.iter().map(|gpu| pairing.of_gpu(gpu.address()).unwrap()).collect()
}

/// The ports of every GPU, in the GPUs' order.
fn ports(topology: &Topology) -> Vec<String> {
    let names = |paired: Paired| paired.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    paired(topology).into_iter().map(names).collect()
}

#[test]
fn every_tree_reads_back_from_its_sysfs() {
    for file in std::fs::read_dir(folder()).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let captured: Topology = toml::from_str(&text).unwrap();
        let read = tree(file.file_stem().unwrap().to_str().unwrap());
        let sorted = |topology: &Topology| {
            let mut nics = topology.nics.clone();
            nics.sort_by(|a, b| a.name.cmp(&b.name));
            (nics, topology.gpus.clone(), topology.acs.clone(), topology.peermem.clone())
        };
        assert_eq!(sorted(&read), sorted(&captured), "{}", file.display());
        // And what was read can be written down again.
        assert_eq!(toml::from_str::<Topology>(&toml::to_string(&read).unwrap()).unwrap(), read);
        assert_eq!(read.gpus.len(), 8, "{}", file.display());
    }
}

#[test]
fn a_dgx_a100_gives_each_gpu_a_nic_of_its_switches_and_none_to_storage() {
    let topology = tree("dgx-a100");
    // The published matrix, columns mlx5_0 to mlx5_11.
    assert_eq!(
        matrix(&topology),
        "PXB PXB SYS SYS SYS SYS SYS SYS SYS SYS SYS SYS\n\
         PXB PXB SYS SYS SYS SYS SYS SYS SYS SYS SYS SYS\n\
         SYS SYS PXB PXB SYS SYS SYS SYS SYS SYS SYS SYS\n\
         SYS SYS PXB PXB SYS SYS SYS SYS SYS SYS SYS SYS\n\
         SYS SYS SYS SYS SYS SYS PXB PXB SYS SYS SYS SYS\n\
         SYS SYS SYS SYS SYS SYS PXB PXB SYS SYS SYS SYS\n\
         SYS SYS SYS SYS SYS SYS SYS SYS PXB PXB SYS SYS\n\
         SYS SYS SYS SYS SYS SYS SYS SYS PXB PXB SYS SYS\n"
    );
    // The second GPU of a pair shares the lower switch with a NIC; the first has the choice, and takes the one that is free.
    assert_eq!(
        ports(&topology),
        ["mlx5_1", "mlx5_0", "mlx5_3", "mlx5_2", "mlx5_7", "mlx5_6", "mlx5_9", "mlx5_8"]
    );
    assert_eq!(topology.gpus[0].bar1, Some(64 << 30));
    let first = &paired(&topology)[0];
    assert_eq!(first.others.iter().map(ToString::to_string).collect::<Vec<_>>(), ["mlx5_0"]);
}

#[test]
fn an_hgx_h100_gives_each_gpu_the_nic_of_its_switch_and_skips_ports_without_a_cable() {
    let topology = tree("hgx-h100");
    assert_eq!(
        matrix(&topology),
        "PXB NODE NODE NODE NODE NODE SYS SYS SYS SYS SYS SYS\n\
         NODE NODE NODE PXB NODE NODE SYS SYS SYS SYS SYS SYS\n\
         NODE NODE NODE NODE PXB NODE SYS SYS SYS SYS SYS SYS\n\
         NODE NODE NODE NODE NODE PXB SYS SYS SYS SYS SYS SYS\n\
         SYS SYS SYS SYS SYS SYS PXB NODE NODE NODE NODE NODE\n\
         SYS SYS SYS SYS SYS SYS NODE NODE NODE PXB NODE NODE\n\
         SYS SYS SYS SYS SYS SYS NODE NODE NODE NODE PXB NODE\n\
         SYS SYS SYS SYS SYS SYS NODE NODE NODE NODE NODE PXB\n"
    );
    // The user guide's table.
    let table = ["mlx5_0", "mlx5_3", "mlx5_4", "mlx5_5", "mlx5_6", "mlx5_9", "mlx5_10", "mlx5_11"];
    assert_eq!(ports(&topology), table);
    let pairing = Pairing::new(&topology, &Map::default());
    let skipped: Vec<String> = pairing.skipped().iter().map(|(port, why)| format!("{port}: {why}")).collect();
    assert_eq!(skipped, ["mlx5_2: port down", "mlx5_7: port down", "mlx5_8: port down"]);
    // Host memory goes by the GPUs' network, not by the storage's.
    let host =
        |numa| pairing.of_host(numa).unwrap().ports.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(host(Some(0)), table[..4]);
    assert_eq!(host(Some(1)), table[4..]);
    assert_eq!(host(None), table);
    assert_eq!(host(Some(7)), table, "a node without NICs of its own");
}

#[test]
fn with_a_gpus_own_nic_down_it_goes_by_the_least_loaded_of_its_node() {
    let mut topology = tree("hgx-h100");
    let own = topology.nics.iter_mut().find(|nic| nic.name == "mlx5_3").unwrap();
    own.ports[0].state = meshreduce_channels::pci::PortState::Down;
    // mlx5_1 is free, but belongs to a slower class of port; of the others each has one GPU already.
    assert_eq!(ports(&topology)[..4], ["mlx5_0", "mlx5_0", "mlx5_4", "mlx5_5"]);
    assert_eq!(paired(&topology)[1].distance.to_string(), "NODE");
}

#[test]
fn a_flat_virtual_machine_shares_its_nics_out_one_each() {
    let topology = tree("cloud-vm-flat");
    assert_eq!(matrix(&topology), "PHB PHB PHB PHB PHB PHB PHB PHB\n".repeat(8));
    assert_eq!(ports(&topology), (0..8).map(|index| format!("mlx5_{index}")).collect::<Vec<_>>());
    assert!(paired(&topology).iter().all(|one| one.others.len() == 7));
    assert!(
        topology.gpus.iter().all(|gpu| topology.detours(gpu, &topology.nics[0]) == (vec![], false)),
        "nothing is known"
    );
}

#[test]
fn devices_in_domains_of_their_own_are_paired_by_numa_node() {
    let topology = tree("cloud-vm-domains");
    assert_eq!(
        matrix(&topology),
        "NODE NODE NODE NODE SYS SYS SYS SYS\n".repeat(4)
            + &"SYS SYS SYS SYS NODE NODE NODE NODE\n".repeat(4)
    );
    // As the hypervisor's vendor pairs them in the topology file that it ships.
    assert_eq!(ports(&topology), (0..8).map(|index| format!("mlx5_ib{index}")).collect::<Vec<_>>());
}

#[test]
fn a_gpu_on_rails_stripes_over_both_and_rails_meet_their_like() {
    let topology = tree("rails");
    let pairs = paired(&topology);
    for (index, one) in pairs.iter().enumerate() {
        let names: Vec<String> = one.ports.iter().map(ToString::to_string).collect();
        assert_eq!(names, [format!("mlx5_{}", 2 * index), format!("mlx5_{}", 2 * index + 1)]);
        assert_eq!(one.distance.to_string(), "PXB");
    }
    let rails = |gpu: usize| pairs[gpu].ports.iter().map(|port| port.rail).collect::<Vec<_>>();
    assert_eq!(align(&rails(3), &rails(3)), (vec![(0, 0), (1, 1)], Alignment::Rail));
    // On a machine of the same build with one port less, numbers are the same: a port that is down keeps its own.
    let mut other = topology.clone();
    other.nics[6].ports[0].state = meshreduce_channels::pci::PortState::Down;
    let there: Vec<u32> = paired(&other)[3].ports.iter().map(|port| port.rail).collect();
    assert_eq!(there, [7]);
    assert_eq!(align(&rails(3), &there), (vec![(1, 0)], Alignment::Rail));
    // GPUs of different rails have none in common, and the caller is told.
    assert_eq!(align(&rails(0), &rails(1)).1, Alignment::Order);
}

#[test]
fn a_dgx_1_shares_each_nic_between_the_two_gpus_of_its_switch() {
    let topology = tree("dgx-1");
    assert_eq!(
        matrix(&topology),
        "PIX PHB SYS SYS\nPIX PHB SYS SYS\nPHB PIX SYS SYS\nPHB PIX SYS SYS\n\
         SYS SYS PIX PHB\nSYS SYS PIX PHB\nSYS SYS PHB PIX\nSYS SYS PHB PIX\n"
    );
    let expected = ["mlx5_0", "mlx5_0", "mlx5_1", "mlx5_1", "mlx5_2", "mlx5_2", "mlx5_3", "mlx5_3"];
    assert_eq!(ports(&topology), expected);
    // One GPU's bridge redirects; of the other socket's bridges nothing is known.
    let nic = |name: &str| topology.nics.iter().find(|nic| nic.name == name).unwrap();
    let (detours, known) = topology.detours(&topology.gpus[0], nic("mlx5_0"));
    assert_eq!(
        (detours.iter().map(ToString::to_string).collect::<Vec<_>>(), known),
        (vec!["00000000:04:0c.0".to_owned()], true)
    );
    assert_eq!(topology.detours(&topology.gpus[1], nic("mlx5_0")), (vec![], true));
    assert_eq!(topology.detours(&topology.gpus[4], nic("mlx5_2")), (vec![], false));
    assert_eq!(topology.acs("0000:03:00.0".parse().unwrap()), Acs::Absent);
}

#[test]
fn a_map_overrides_names_what_is_not_there_and_narrows_the_rest() {
    let topology = tree("hgx-h100");
    let pairing = |map: &str| Pairing::new(&topology, &map.parse().unwrap());
    let names = |paired: Result<Paired, NoNic>| {
        paired.unwrap().ports.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let address = topology.gpus[1].address();

    let one = pairing("cuda:1=mlx5_0,mlx5_1;cpu=mlx5_9");
    assert_eq!(names(one.of_cuda(1, address)), ["mlx5_0", "mlx5_1"]);
    assert_eq!(names(one.of_cuda(0, address)), ["mlx5_3"], "another ordinal");
    assert_eq!(names(one.of_host(Some(0))), ["mlx5_9"]);
    assert_eq!(one.of_cuda(1, address).unwrap().distance.to_string(), "NODE");

    let by_address = pairing("0000:43:00.0=mlx5_4");
    assert_eq!(names(by_address.of_cuda(5, address)), ["mlx5_4"]);
    assert_eq!(names(by_address.of_gpu(topology.gpus[2].address())), ["mlx5_4"]);

    let narrowed = pairing("*=mlx5_1,mlx5_9");
    assert_eq!(names(narrowed.of_gpu(address)), ["mlx5_1"]);
    assert_eq!(names(narrowed.of_gpu(topology.gpus[7].address())), ["mlx5_9"]);
    assert_eq!(names(narrowed.of_host(None)), ["mlx5_9"], "the faster one");
    assert!(narrowed.skipped().iter().any(|(port, why)| port.nic == "mlx5_0" && *why == Skip::NotInMap));

    let absent = pairing("cuda:1=mlx5_0,mlx6_0").of_cuda(1, address).unwrap_err().to_string();
    assert!(absent.contains("cuda:1=mlx6_0") && absent.contains("mlx5_11"), "{absent}");
    let second_port = pairing("cpu=mlx5_0:2").of_host(None).unwrap_err().to_string();
    assert!(second_port.contains("cpu=mlx5_0:2"), "{second_port}");
    let down = pairing("cpu=mlx5_7").of_host(None).unwrap_err().to_string();
    assert!(down.contains("cpu=mlx5_7") && down.contains("port down"), "{down}");
    // Who is not in the map is not disturbed by it.
    assert_eq!(names(pairing("cuda:1=mlx6_0").of_cuda(0, address)), ["mlx5_3"]);
}
