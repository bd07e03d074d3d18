use super::*;

fn two(rest: &str) -> String {
    format!(
        "name = \"two\"\ngpus = 2\n[gpu]\nname = \"A\"\ncompute_capability = \"8.6\"\nmultiprocessors = 4\n\
         blocks_per_multiprocessor = 1\nmemory_mib = 16\n{rest}"
    )
}

fn refusal(rest: &str) -> (String, String) {
    match Node::parse(&two(rest), "two.toml") {
        Err(NodeError::Invalid { file, key, reason }) => {
            assert_eq!(file, "two.toml");
            (key, reason)
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn every_shipped_node_loads_under_its_own_name() {
    for name in Node::shipped() {
        let node = Node::load(name).unwrap();
        assert_eq!(node.name, name);
    }
}

#[test]
fn dgx_1v_is_a_hybrid_cube_mesh_with_six_links_and_four_neighbours_each() {
    for name in ["dgx-1v", "dgx-1v-p2p"] {
        let node = Node::load(name).unwrap();
        for (index, gpu) in node.gpus.iter().enumerate() {
            assert_eq!(gpu.links.len(), 6);
            assert_eq!((0..8).filter(|&other| gpu.links_to(other) > 0).count(), 4);
            let reachable = gpu.p2p.iter().filter(|&&access| access).count();
            assert_eq!(reachable, if name == "dgx-1v" { 4 } else { 7 }, "GPU {index}");
        }
    }
}

#[test]
fn switched_nodes_have_all_links_on_switches() {
    for (name, links) in [("hgx-h100", 18), ("hgx-h200", 18), ("dgx-a100", 12)] {
        for gpu in Node::load(name).unwrap().gpus {
            assert_eq!((gpu.links_to_switches(), gpu.links.len()), (links, links));
            assert_eq!(gpu.p2p.iter().filter(|&&access| access).count(), 7);
        }
    }
}

#[test]
fn an_unknown_node_is_refused_with_what_is_shipped() {
    let message = Node::load("dgx-9000").unwrap_err().to_string();
    assert!(message.contains("dgx-9000") && message.contains("hgx-h100"), "{message}");
}

#[test]
fn a_missing_file_is_refused_by_its_path() {
    let error = Node::load("/nonexistent/node.toml").unwrap_err();
    assert!(matches!(error, NodeError::Read { ref file, .. } if file == "/nonexistent/node.toml"));
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let message =
        Node::parse(&two("[nvlink]\nversion = 3\ndirekt = []"), "two.toml").unwrap_err().to_string();
    assert!(message.contains("direkt") && message.contains("two.toml"), "{message}");
}

#[test]
fn an_asymmetric_matrix_is_refused() {
    let (key, reason) = refusal("[nvlink]\nversion = 3\ndirect = [[0, 4], [3, 0]]");
    assert_eq!(key, "nvlink.direct[1][0]");
    assert!(reason.contains('4') && reason.contains('3'), "{reason}");
}

#[test]
fn a_link_to_itself_is_refused() {
    assert_eq!(refusal("[nvlink]\nversion = 3\ndirect = [[1, 0], [0, 0]]").0, "nvlink.direct[0][0]");
}

#[test]
fn wrong_sizes_are_refused() {
    assert_eq!(refusal("[nvlink]\nversion = 3\ndirect = [[0, 4]]").0, "nvlink.direct");
    assert_eq!(refusal("[nvlink]\nversion = 3\ndirect = [[0, 4], [4]]").0, "nvlink.direct[1]");
    assert_eq!(refusal("[nvlink]\nversion = 3\nswitch = [4]").0, "nvlink.switch");
    assert_eq!(refusal("[p2p]\naccess = [[0, 1]]").0, "p2p.access");
    assert_eq!(refusal("[p2p]\naccess = \"all\"\npci_bus_ids = [\"0:1:0.0\"]").0, "pci_bus_ids");
}

#[test]
fn more_links_than_the_architecture_has_are_refused() {
    let (key, reason) = refusal("[nvlink]\nversion = 3\ndirect = [[0, 5], [5, 0]]");
    assert_eq!(key, "nvlink.direct[0]");
    assert!(reason.contains("8.6 has 4"), "{reason}");
    assert!(Node::parse(&two("[nvlink]\nversion = 3\ndirect = [[0, 4], [4, 0]]"), "two.toml").is_ok());
}

#[test]
fn p2p_is_a_word_or_a_symmetric_matrix() {
    assert_eq!(refusal("[p2p]\naccess = \"some\"").0, "p2p.access");
    assert_eq!(refusal("[p2p]\naccess = [[0, 1], [0, 0]]").0, "p2p.access[1][0]");
    assert_eq!(refusal("[p2p]\naccess = [[0, 2], [2, 0]]").0, "p2p.access[0][1]");
    let node = Node::parse(&two("[p2p]\naccess = [[0, 1], [1, 0]]"), "two.toml").unwrap();
    assert_eq!(node.gpus[0].p2p, [false, true]);
}

#[test]
fn nobody_has_two_pci_bus_ids_alike_in_either_spelling() {
    let (key, _) = refusal("[p2p]\naccess = \"all\"\npci_bus_ids = [\"00000000:0A:00.0\", \"0000:0a:00.0\"]");
    assert_eq!(key, "pci_bus_ids[1]");
    assert_eq!(
        refusal("[p2p]\naccess = \"all\"\npci_bus_ids = [\"x\", \"0000:0a:00.0\"]").0,
        "pci_bus_ids[0]"
    );
}

#[test]
fn an_inactive_link_is_down_at_both_ends() {
    let text = two(
        "[nvlink]\nversion = 3\ndirect = [[0, 4], [4, 0]]\ninactive = [[0, 1]]\n[p2p]\naccess = \"nvlink\"",
    );
    let node = Node::parse(&text, "two.toml").unwrap();
    assert_eq!((node.gpus[0].links_to(1), node.gpus[1].links_to(0)), (3, 3));
    assert!(!node.gpus[1].links[1].active);
    assert_eq!(
        refusal("[nvlink]\nversion = 3\ndirect = [[0, 4], [4, 0]]\ninactive = [[0, 4]]").0,
        "nvlink.inactive[0]"
    );
}

#[test]
fn an_exception_changes_one_gpu() {
    let node = Node::parse(&two("[[gpu_override]]\nindex = 1\nmemory_mib = 8"), "two.toml").unwrap();
    assert_eq!((node.gpus[0].memory_mib, node.gpus[1].memory_mib), (16, 8));
    assert_eq!(refusal("[[gpu_override]]\nindex = 2").0, "gpu_override.index");
}

#[test]
fn uuids_differ_between_nodes_instances_and_gpus() {
    let mut seen = std::collections::HashSet::new();
    for node in ["a", "b"] {
        for instance in ["", "1"] {
            for index in 0..8 {
                assert!(seen.insert(uuid(node, instance, index)));
                assert_eq!(uuid(node, instance, index), uuid(node, instance, index));
            }
        }
    }
}

#[test]
fn pci_bus_ids_are_the_same_in_both_spellings() {
    let id = PciBusId::new(1, 0xab, 2);
    assert_eq!("00000001:AB:02.0".parse(), Ok(id));
    assert_eq!("0001:ab:02.0".parse(), Ok(id));
    assert_eq!(id.short(), "0001:ab:02.0");
    assert_eq!(id.to_string(), "00000001:AB:02.0");
    assert!("00:zz:00.0".parse::<PciBusId>().is_err());
    assert!("+1:00:00.0".parse::<PciBusId>().is_err());
}

fn nic(rest: &str) -> (String, String) {
    refusal(&format!("[[nic]]\nname = \"mlx5_0\"\npci = \"0000:05:00.0\"\n{rest}"))
}

#[test]
fn an_adapter_needs_no_more_than_a_name_and_a_place() {
    let node = Node::parse(&two("[[nic]]\nname = \"a\"\npci = \"0000:05:00.1\""), "two.toml").unwrap();
    let [nic] = node.nics.as_slice() else { panic!("{:?}", node.nics) };
    assert_eq!((nic.pci.to_string(), nic.pci_path.len()), ("0000:05:00.1".to_owned(), 0));
    assert!(nic.active && nic.link_layer == LinkLayer::Ethernet && !nic.bond_slave);
    assert_eq!((nic.mtu, nic.max_message_bytes), (1024, 1 << 30));
    assert_eq!((node.peermem, node.dma_buf, node.memlock_kib), (Peermem::None, true, None));
}

#[test]
fn a_node_without_adapters_has_none() {
    assert!(Node::parse(&two(""), "two.toml").unwrap().nics.is_empty());
}

#[test]
fn what_no_adapter_can_be_is_refused_by_its_key() {
    for (rest, key, part) in [
        ("state = \"up\"", "nic[0].state", "not `active` or `down`"),
        ("link_layer = \"token-ring\"", "nic[0].link_layer", "not `ethernet`"),
        ("mtu = 1500", "nic[0].mtu", "1500"),
        ("max_message_bytes = 100", "nic[0].max_message_bytes", "between the MTU, 1024"),
        ("lid = 3", "nic[0].lid", "for `infiniband` only"),
        ("link_layer = \"infiniband\"\nlid = 49152", "nic[0].lid", "49152"),
        ("ipv4 = \"10.0.0\"", "nic[0].ipv4", "no address"),
        ("link_layer = \"infiniband\"\nipv4 = \"10.0.0.1\"", "nic[0].ipv4", "for `ethernet` only"),
        ("gids = []\nipv4 = \"10.0.0.1\"", "nic[0].ipv4", "beside `gids`"),
        ("gids = [{ gid = \"fe80\", type = \"roce_v2\" }]", "nic[0].gids[0].gid", "`fe80`"),
        ("gids = [{ gid = \"fe80::1\", type = \"ib\" }]", "nic[0].gids[0].type", "`ethernet` does not have"),
        ("gids = [{ gid = \"fe80::1\", type = \"v2\" }]", "nic[0].gids[0].type", "not `ib`"),
        ("speed_gbps = 0", "nic[0].speed_gbps", "between 1 and 1600"),
        ("netdev = \"a name\"", "nic[0].netdev", "`a name`"),
        ("bond_slave = true", "nic[0].bond_slave", "needs `netdev`"),
        ("pci_path = [\"0000:00:1\"]", "nic[0].pci_path[0]", "0000:00:1"),
        ("pci_path = [\"0000:10:00.0\"]", "nic[0].pci_path", "which is GPU 0"),
    ] {
        let (found, reason) = nic(rest);
        assert_eq!(found, key, "{rest}: {reason}");
        assert!(reason.contains(part), "{rest}: {reason}");
    }
}

#[test]
fn two_adapters_are_not_the_same() {
    let second = |rest: &str| nic(&format!("netdev = \"eth0\"\n[[nic]]\n{rest}"));
    let (key, reason) = second("name = \"mlx5_0\"\npci = \"0000:06:00.0\"");
    assert_eq!((key.as_str(), reason.as_str()), ("nic[1].name", "is `mlx5_0`, as another adapter's"));
    let (key, reason) = second("name = \"b\"\npci = \"0000:05:00.0\"");
    assert_eq!(
        (key.as_str(), reason.as_str()),
        ("nic[1].pci", "is that of the adapter mlx5_0 too: 0000:05:00.0")
    );
    assert_eq!(second("name = \"b\"\npci = \"0000:06:00.0\"\nnetdev = \"eth0\"").0, "nic[1].netdev");
    assert_eq!(second("name = \"b\"\npci = \"0000:10:00.0\"").0, "nic[1].pci");
}

#[test]
fn an_unknown_key_of_an_adapter_is_refused() {
    let text = two("[[nic]]\nname = \"a\"\npci = \"0000:05:00.0\"\nspeed = 100");
    let message = Node::parse(&text, "two.toml").unwrap_err().to_string();
    assert!(message.contains("unknown field `speed`"), "{message}");
}

/// The description of two GPUs with keys that stand above the sections.
fn refusal_above(keys: &str) -> (String, String) {
    match Node::parse(&format!("{keys}\n{}", two("")), "two.toml") {
        Err(NodeError::Invalid { key, reason, .. }) => (key, reason),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn paths_of_gpus_are_those_of_one_tree() {
    assert_eq!(refusal_above("pci_paths = [[]]").0, "pci_paths");
    assert_eq!(refusal_above("pci_paths = [[], [\"x\"]]").0, "pci_paths[1][0]");
    let (key, reason) =
        refusal_above("pci_paths = [[\"0000:00:01.0\", \"0000:01:00.0\"], [\"0000:01:00.0\"]]");
    assert_eq!(key, "pci_paths[1]");
    assert!(reason.contains("elsewhere it is below 0000:00:01.0"), "{reason}");
    assert_eq!(refusal_above("peermem = \"yes\"").0, "peermem");
    assert_eq!(refusal("[[gpu_override]]\nindex = 0\nbar1_mib = 3").0, "gpu_override.bar1_mib");
}

#[test]
fn each_gpu_of_a_shipped_node_with_adapters_has_one_below_a_bridge_of_its_own_switch() {
    for name in ["dgx-a100", "hgx-h100"] {
        let node = Node::load(name).unwrap();
        assert_eq!(node.nics.len(), 8, "{name}");
        for gpu in &node.gpus {
            // The root port is not a switch.
            let near = |nic: &&Nic| gpu.pci_path[1..].iter().any(|bridge| nic.pci_path.contains(bridge));
            assert!(node.nics.iter().any(|nic| near(&nic)), "{name}: {}", gpu.pci);
        }
    }
}
