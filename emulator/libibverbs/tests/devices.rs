//! What there is, and what it says of itself.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::path::Path;

use meshreduce_verbs_loader::*;
use support::*;

#[test]
fn adapters_are_listed_in_the_order_of_the_description() {
    let _alone = alone();
    let devices = library().devices().unwrap();
    let names: Vec<_> = devices.iter().map(Device::name).collect();
    assert_eq!(names, ["near", "far", "elsewhere", "band", "unplugged", "short"]);
    let guids: std::collections::HashSet<_> = devices.iter().map(Device::guid).collect();
    assert_eq!(guids.len(), 6);
    assert!(!guids.contains(&0));
}

#[test]
fn every_function_of_the_loaders_table_is_there() {
    let _alone = alone();
    let missing: Vec<_> = functions().iter().filter(|function| !library().has(function.name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_device_outlives_its_list_and_things_go_in_any_order() {
    let _alone = alone();
    let context = { library().devices().unwrap()[0].open().unwrap() };
    let domain = context.protection_domain().unwrap();
    let queue = context.completion_queue(4).unwrap();
    let pair = domain.queue_pair(&queue, &queue, &QueuePairConfig::default()).unwrap();
    drop((context, domain, queue));
    assert_eq!(pair.state().unwrap(), QueuePairState::Reset);
}

#[test]
fn limits_and_ports_are_those_of_the_description() {
    let _alone = alone();
    let device = open("near").query_device().unwrap();
    assert_eq!((device.ports, device.node_guid), (1, open("near").device().guid()));
    assert!(device.max_queue_pairs > 1000 && device.max_segments >= 16);

    let port = |name| open(name).query_port(1).unwrap();
    let near = port("near");
    assert_eq!((near.state, near.link_layer, near.lid), (PortState::Active, LinkLayer::Ethernet, 0));
    assert_eq!((near.active_mtu, near.max_mtu), (Mtu::Bytes1024, Mtu::Bytes4096));
    assert_eq!((near.gid_table_len, near.max_message_bytes), (16, 1 << 30));
    assert_eq!(port("far").active_mtu, Mtu::Bytes4096);
    assert_eq!(port("short").max_message_bytes, 4096);
    assert_eq!(port("unplugged").state, PortState::Down);
    let band = port("band");
    assert_eq!((band.link_layer, band.active_mtu), (LinkLayer::InfiniBand, Mtu::Bytes4096));
    assert_ne!(band.lid, 0);
    assert_eq!(open("near").query_port(2).unwrap_err().errno(), Some(libc::EINVAL));
}

#[test]
fn the_gid_table_has_its_types_and_no_empty_places() {
    let _alone = alone();
    let gids = open("near").gids(1, Path::new("/nonexistent")).unwrap();
    let kinds: Vec<_> = gids.iter().map(|entry| (entry.index, entry.kind)).collect();
    use GidType::{RoceV1, RoceV2};
    assert_eq!(kinds, [(0, RoceV1), (1, RoceV2), (2, RoceV1), (3, RoceV2)]);
    assert!(gids[0].gid.is_link_local() && gids[0].gid == gids[1].gid);
    assert!(gids[3].gid.ipv4().is_some() && gids[3].netdev.is_some());
    let band = open("band").gids(1, Path::new("/nonexistent")).unwrap();
    assert_eq!(band.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [GidType::Ib]);
    assert_eq!(open("near").gids(3, Path::new("/sys")).unwrap_err().errno(), Some(libc::EINVAL));
}

#[test]
fn a_library_that_does_not_tell_types_leaves_it_to_sysfs() {
    let _alone = alone();
    let context = open("near");
    let expected = context.gids(1, Path::new("/nonexistent")).unwrap();
    let node =
        meshreduce_emulator_node::node::Node::load(&std::env::var("MESHREDUCE_NODE").unwrap()).unwrap();
    let root = tempfile::tempdir().unwrap();
    let instance = std::env::var("MESHREDUCE_NODE_ID").unwrap();
    meshreduce_emulator_node::node::sysfs::write(&node, &instance, root.path()).unwrap();
    fault("fail", "_ibv_query_gid_ex EOPNOTSUPP");
    let found = context.gids(1, root.path()).unwrap();
    fault("fail", "_ibv_query_gid_ex off");
    let plain = |entries: &[GidEntry]| -> Vec<_> {
        entries.iter().map(|entry| (entry.index, entry.gid, entry.kind)).collect()
    };
    assert_eq!(plain(&found), plain(&expected));
    assert!(found.iter().all(|entry| entry.netdev.is_none()));
}

#[test]
fn two_devices_can_have_one_name() {
    let _alone = alone();
    fault("duplicate_names", "on");
    let devices = library().devices().unwrap();
    fault("duplicate_names", "off");
    assert_eq!(devices.named("near").count(), 6);
    let guids: std::collections::HashSet<_> = devices.iter().map(Device::guid).collect();
    assert_eq!(guids.len(), 6, "they are still different devices");
    assert_eq!(devices[3].open().unwrap().query_port(1).unwrap().link_layer, LinkLayer::InfiniBand);
}

#[test]
fn every_step_of_the_beginning_can_fail_with_its_reason() {
    let _alone = alone();
    let context = open("near");
    let domain = context.protection_domain().unwrap();
    let queue = context.completion_queue(4).unwrap();
    let try_all: [(&str, &dyn Fn() -> Option<Error>); 7] = [
        ("ibv_get_device_list", &|| library().devices().err()),
        ("ibv_open_device", &|| context.device().open().err()),
        ("ibv_query_device", &|| context.query_device().err()),
        ("ibv_query_port", &|| context.query_port(1).err()),
        ("ibv_alloc_pd", &|| context.protection_domain().err()),
        ("ibv_create_cq", &|| context.completion_queue(4).err()),
        ("ibv_create_qp", &|| domain.queue_pair(&queue, &queue, &QueuePairConfig::default()).err()),
    ];
    for (function, call) in try_all {
        fault("fail", &format!("{function} ENOSYS 1 1"));
        assert_eq!(call(), None, "{function}: the first call is let through");
        let error = call().unwrap_or_else(|| panic!("{function} did not fail"));
        assert_eq!(error, Error::Verbs(VerbsError { call: function, errno: libc::ENOSYS }));
        assert_eq!(call(), None, "{function}: only one was to fail");
    }
}

#[test]
fn what_is_no_fault_is_refused() {
    let _alone = alone();
    for (name, argument) in [
        ("nonsense", "on"),
        ("garbage_opcode", "perhaps"),
        ("errno", "imaginary"),
        ("rnr", "-1"),
        ("fail", "ibv_reg_mr"),
        ("fail", "ibv_reg_mr ENONSENSE"),
        ("port_down", "no-such-adapter"),
        ("cut", "near not-a-gid"),
        ("", ""),
    ] {
        assert!(!try_fault(name, argument), "{name} {argument}");
    }
    assert_eq!(count("nonsense"), u64::MAX);
}
