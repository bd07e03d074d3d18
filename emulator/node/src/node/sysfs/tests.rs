use std::collections::HashSet;

use super::*;

fn tree(text: &str) -> (Node, tempfile::TempDir) {
    let node = Node::parse(text, "test.toml").unwrap();
    let root = tempfile::tempdir().unwrap();
    write(&node, "", root.path()).unwrap();
    (node, root)
}

const TEXT: &str = "name = \"test\"\ngpus = 1\npci_bus_ids = [\"0000:04:00.0\"]\n\
    pci_paths = [[\"0000:00:01.1\", \"0000:01:00.0\", \"0000:02:00.0\"]]\npeermem = \"nv_peer_mem\"\n\
    [gpu]\nname = \"A\"\ncompute_capability = \"8.0\"\nmultiprocessors = 1\nblocks_per_multiprocessor = 1\n\
    memory_mib = 1024\nbar1_mib = 256\n\
    [[nic]]\nname = \"mlx5_0\"\npci = \"0000:05:00.0\"\n\
    pci_path = [\"0000:00:01.1\", \"0000:01:00.0\", \"0000:02:01.0\"]\nnetdev = \"eth0\"\nbond_slave = true\n\
    gids = [{ gid = \"fe80::1\", type = \"roce_v1\" }, { gid = \"::\", type = \"roce_v2\" }, \
    { gid = \"::ffff:10.0.0.1\", type = \"roce_v2\" }]\n\
    [[nic]]\nname = \"mlx5_1\"\npci = \"0000:81:00.0\"\nstate = \"down\"\nlink_layer = \"infiniband\"\nlid = 5\n";

#[test]
fn devices_are_found_by_their_address_below_their_bridges() {
    let (_, root) = tree(TEXT);
    let real = |path: &str| fs::canonicalize(root.path().join(path)).unwrap();
    let devices = fs::canonicalize(root.path().join("devices")).unwrap();
    let switch = devices.join("pci0000:00/0000:00:01.1/0000:01:00.0");
    assert_eq!(real("bus/pci/devices/0000:04:00.0"), switch.join("0000:02:00.0/0000:04:00.0"));
    assert_eq!(real("class/infiniband/mlx5_0/device"), switch.join("0000:02:01.0/0000:05:00.0"));
    assert_eq!(real("bus/pci/devices/0000:01:00.0"), switch);
    assert_eq!(real("class/infiniband/mlx5_1/device"), devices.join("pci0000:81/0000:81:00.0"));
    assert_eq!(real("class/net/eth0/device"), real("class/infiniband/mlx5_0/device"));
}

#[test]
fn an_adapter_says_of_itself_what_the_description_says() {
    let (_, root) = tree(TEXT);
    let read = |path: &str| fs::read_to_string(root.path().join("class/infiniband").join(path)).unwrap();
    assert_eq!(read("mlx5_0/ports/1/state"), "4: ACTIVE\n");
    assert_eq!(read("mlx5_1/ports/1/state"), "1: DOWN\n");
    assert_eq!(read("mlx5_0/ports/1/link_layer"), "Ethernet\n");
    assert_eq!(read("mlx5_1/ports/1/link_layer"), "InfiniBand\n");
    assert_eq!((read("mlx5_0/ports/1/lid"), read("mlx5_1/ports/1/lid")), ("0x0\n".into(), "0x5\n".into()));
    assert_eq!(read("mlx5_0/device/class"), "0x020000\n");
    assert_eq!(read("mlx5_1/device/class"), "0x020700\n");
    assert_eq!(read("mlx5_0/device/vendor"), "0x15b3\n");
}

#[test]
fn an_empty_place_of_the_gid_table_has_no_type() {
    let (_, root) = tree(TEXT);
    let port = root.path().join("class/infiniband/mlx5_0/ports/1");
    let read = |path: &str| fs::read_to_string(port.join(path)).ok();
    assert_eq!(read("gids/0").unwrap(), "fe80:0000:0000:0000:0000:0000:0000:0001\n");
    assert_eq!(read("gids/1").unwrap(), "0000:0000:0000:0000:0000:0000:0000:0000\n");
    assert_eq!(read("gids/2").unwrap(), "0000:0000:0000:0000:0000:ffff:0a00:0001\n");
    assert_eq!(read("gid_attrs/types/0").unwrap(), "IB/RoCE v1\n");
    assert_eq!(read("gid_attrs/types/2").unwrap(), "RoCE v2\n");
    assert_eq!(read("gid_attrs/ndevs/2").unwrap(), "eth0\n");
    assert_eq!((read("gid_attrs/types/1"), read("gid_attrs/types/3")), (None, None));
    assert_eq!(fs::read_dir(port.join("gids")).unwrap().count(), 16);
}

#[test]
fn the_window_to_device_memory_is_the_second_resource() {
    let (_, root) = tree(TEXT);
    let text = fs::read_to_string(root.path().join("bus/pci/devices/0000:04:00.0/resource")).unwrap();
    let line = text.lines().nth(1).unwrap();
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap();
    let fields: Vec<_> = line.split(' ').map(number).collect();
    assert_eq!(fields[1] - fields[0] + 1, 256 << 20);
    assert_eq!(text.lines().count(), 13);
}

#[test]
fn peermem_is_where_its_spelling_has_it() {
    let (_, root) = tree(TEXT);
    assert!(root.path().join("kernel/mm/memory_peers/nv_mem/version").is_file());
    assert!(!root.path().join("module/nvidia_peermem").exists());
    let (_, root) = tree(&TEXT.replace("nv_peer_mem", "nvidia_peermem"));
    assert!(root.path().join("module/nvidia_peermem/version").is_file());
    assert!(!root.path().join("kernel/mm/memory_peers").exists());
    let (_, root) = tree(&TEXT.replace("nv_peer_mem", "none"));
    assert_eq!(fs::read_dir(root.path().join("module")).unwrap().count(), 0);
}

#[test]
fn a_slave_of_a_bond_has_a_master() {
    let (_, root) = tree(TEXT);
    let master = fs::canonicalize(root.path().join("class/net/eth0/master")).unwrap();
    assert_eq!(master, fs::canonicalize(root.path().join("class/net/bond0")).unwrap());
    assert_eq!(fs::read_to_string(master.join("bonding/slaves")).unwrap(), "eth0\n");
    let (_, root) = tree(&TEXT.replace("bond_slave = true\n", ""));
    assert!(!root.path().join("class/net/bond0").exists());
}

#[test]
fn all_shipped_nodes_can_be_written_and_no_link_leads_nowhere() {
    for name in Node::shipped() {
        let node = Node::load(name).unwrap();
        let root = tempfile::tempdir().unwrap();
        write(&node, "", root.path()).unwrap();
        let mut seen = HashSet::new();
        for folder in ["bus/pci/devices", "class/infiniband", "class/net"] {
            for entry in fs::read_dir(root.path().join(folder)).unwrap() {
                let target = fs::canonicalize(entry.unwrap().path()).unwrap();
                assert!(seen.insert(target), "{name}");
            }
        }
        assert_eq!(fs::read_dir(root.path().join("class/infiniband")).unwrap().count(), node.nics.len());
    }
}
