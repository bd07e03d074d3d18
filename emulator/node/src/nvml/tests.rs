use super::*;

fn nvml(name: &str) -> Nvml {
    Nvml::new(Node::load(name).unwrap(), "test")
}

/// Links as a program finds them: by probing until an index is refused.
fn probe(nvml: &Nvml, device: Handle) -> u32 {
    (0..NVML_MAX_LINKS).take_while(|&link| nvml.link_is_active(device, link).is_ok()).count() as u32
}

#[test]
fn a_device_is_found_by_index_uuid_and_either_spelling_of_its_bus_id() {
    let nvml = nvml("hgx-h100");
    for index in 0..nvml.device_count() {
        let device = nvml.by_index(index).unwrap();
        assert_eq!(nvml.index(device), Ok(index));
        assert_eq!(nvml.by_uuid(&nvml.uuid(device).unwrap()), Ok(device));
        let pci = nvml.pci(device).unwrap();
        assert_eq!(nvml.by_pci_bus_id(&pci.short()), Ok(device));
        assert_eq!(nvml.by_pci_bus_id(&pci.to_string()), Ok(device));
    }
    assert_eq!(nvml.by_index(8), Err(Error::InvalidArgument));
    assert_eq!(nvml.by_uuid("GPU-0"), Err(Error::NotFound));
    assert_eq!(nvml.by_pci_bus_id("0000:ff:00.0"), Err(Error::NotFound));
    assert_eq!(nvml.by_pci_bus_id("somewhere"), Err(Error::InvalidArgument));
}

#[test]
fn wrong_handles_are_refused() {
    let nvml = nvml("rtx3090x2");
    let device = nvml.by_index(1).unwrap();
    for wrong in [0, 1, device + 1, device + 16, u64::MAX] {
        assert_eq!(nvml.name(wrong), Err(Error::InvalidArgument));
    }
}

#[test]
fn links_past_the_last_are_refused_as_the_board_does() {
    for (name, links, refusal) in [
        ("dgx-1v", 6, Error::InvalidArgument),
        ("dgx-a100", 12, Error::InvalidArgument),
        ("hgx-h100", 18, Error::NotSupported),
        ("pcie-x8", 0, Error::NotSupported),
    ] {
        let nvml = nvml(name);
        let device = nvml.by_index(0).unwrap();
        assert_eq!(probe(&nvml, device), links, "{name}");
        assert_eq!(nvml.link_is_active(device, links), Err(refusal), "{name}");
        assert_eq!(nvml.link_is_active(device, NVML_MAX_LINKS), Err(Error::InvalidArgument), "{name}");
    }
}

#[test]
fn direct_links_name_the_other_gpu() {
    let nvml = nvml("dgx-1v");
    let device = nvml.by_index(0).unwrap();
    let mut count = [0; 8];
    for link in 0..6 {
        assert_eq!(nvml.link_remote_type(device, link), Ok(RemoteDeviceType::Gpu));
        let pci = nvml.link_remote_pci(device, link).unwrap().unwrap();
        count[nvml.index(nvml.by_pci_bus_id(&pci.to_string()).unwrap()).unwrap() as usize] += 1;
    }
    assert_eq!(count, [0, 1, 1, 2, 2, 0, 0, 0]);
}

#[test]
fn links_to_switches_have_no_bus_id() {
    let nvml = nvml("hgx-h100");
    let device = nvml.by_index(3).unwrap();
    for link in 0..18 {
        assert_eq!(nvml.link_remote_type(device, link), Ok(RemoteDeviceType::Switch));
        assert_eq!(nvml.link_remote_pci(device, link), Ok(None));
        assert_eq!(nvml.link_has_capability(device, link, 0), Ok(true));
    }
}

#[test]
fn links_to_hidden_switches_are_up_and_lead_nowhere_that_is_known() {
    let text =
        include_str!("../../nodes/hgx-h100.toml").replace("[nvlink]", "[nvlink]\nhidden_switches = true");
    let nvml = Nvml::new(Node::parse(&text, "n").unwrap(), "");
    let device = |index| nvml.by_index(index).unwrap();
    for link in 0..18 {
        assert_eq!(nvml.link_is_active(device(0), link), Ok(true));
        assert_eq!(nvml.link_remote_type(device(0), link), Ok(RemoteDeviceType::Unknown));
        assert_eq!(nvml.link_remote_pci(device(0), link), Ok(None));
    }
    assert_eq!(nvml.p2p_status(device(0), device(1), 2), Ok(0), "they are there all the same");
}

#[test]
fn an_inactive_link_says_so() {
    let text = "name = \"n\"\ngpus = 2\n[gpu]\nname = \"A\"\ncompute_capability = \"8.6\"\nmultiprocessors = 4\n\
                blocks_per_multiprocessor = 1\nmemory_mib = 16\n[nvlink]\nversion = 3\ndirect = [[0, 2], [2, 0]]\n\
                inactive = [[1, 0]]";
    let nvml = Nvml::new(Node::parse(text, "n").unwrap(), "");
    let device = nvml.by_index(0).unwrap();
    assert_eq!(nvml.link_is_active(device, 0), Ok(false));
    assert_eq!(nvml.link_remote_type(device, 0), Ok(RemoteDeviceType::Unknown));
    assert_eq!(nvml.link_remote_pci(device, 0), Err(Error::NotSupported));
    assert_eq!(nvml.link_is_active(device, 1), Ok(true));
}

#[test]
fn p2p_status_follows_the_node() {
    let nvml = nvml("dgx-1v");
    let device = |index| nvml.by_index(index).unwrap();
    assert_eq!(nvml.p2p_status(device(0), device(4), 0), Ok(0));
    assert_eq!(nvml.p2p_status(device(0), device(4), 2), Ok(0));
    assert_eq!(nvml.p2p_status(device(0), device(5), 1), Ok(5));
    assert_eq!(nvml.p2p_status(device(0), device(0), 0), Err(Error::InvalidArgument));
    assert_eq!(nvml.p2p_status(device(0), device(1), 9), Err(Error::InvalidArgument));
}

#[test]
fn instances_have_their_own_uuids() {
    let node = Node::load("a100x4").unwrap();
    let (a, b) = (Nvml::new(node.clone(), "a"), Nvml::new(node, "b"));
    let device = a.by_index(0).unwrap();
    assert_ne!(a.uuid(device), b.uuid(device));
}
