//! What a rendezvous makes of the links, and of the order in which processes see their devices.

use std::ffi::OsString;

use crate::support::{Played, Scene, case, node, program};
use meshreduce::identity::{Device, PciAddress};
use meshreduce::{Algorithm, DType, Op};
use meshreduce_checks::cluster::{Cluster, Placement};
use meshreduce_checks::job::{Case, Event, ForcedTopology, Job};
use meshreduce_emulator_node::node::{Node, uuid};

fn cube_cases() -> Vec<Case> {
    [2, 4096, 30_002].map(|bytes| Case { algorithm: Algorithm::HybridCubeMesh, ..case(bytes) }).to_vec()
}

fn on(name: &str, ranks: usize, cases: Vec<Case>) -> Scene {
    Scene { environment: node(name).environment(), ..Scene::new(ranks, cases) }
}

/// UUID of a device of the instance that an environment names, as CUDA_VISIBLE_DEVICES takes it.
fn uuid_of(environment: &[(&str, OsString)], index: usize) -> String {
    let value = |wanted| {
        environment
            .iter()
            .find(|(name, _)| *name == wanted)
            .and_then(|(_, value)| value.to_str())
            .expect("it is set")
    };
    let name = Node::load(value("MESHREDUCE_NODE")).expect("a node").name;
    let pci = PciAddress { domain: 0, bus: 0, device: 0, function: 0 };
    Device { pci, uuid: uuid(&name, value("MESHREDUCE_NODE_ID"), index) }.uuid_text()
}

/// Runs every rank in a process that sees the devices `visible` says, on the one at its ordinal in `scene.job.devices`.
fn play_each(scene: &Scene, visible: impl Fn(usize) -> String) -> Played {
    let start = |rank: usize| {
        let job = Job { ranks: vec![rank], ..scene.job.clone() };
        let environment: Vec<_> = scene
            .environment
            .iter()
            .cloned()
            .chain([("CUDA_VISIBLE_DEVICES", visible(rank).into())])
            .collect();
        Cluster::start(&program(), &job, Placement::Processes, &environment).expect("workers start")
    };
    let clusters: Vec<Cluster> = (0..scene.job.world_size).map(start).collect();
    let events = clusters.iter().flat_map(|cluster| cluster.events().collect::<Vec<_>>()).collect();
    let exits =
        clusters.into_iter().flat_map(|cluster| cluster.wait().expect("workers can be waited for")).collect();
    Played { events, exits, left_in_store: crate::support::files_below(scene.directory.path()) }
}

/// Devices in an order that mixes the quads of the published numbering.
const MIXED: [usize; 8] = [6, 1, 4, 3, 0, 7, 2, 5];

#[test]
fn a_cube_mesh_is_found_in_any_order_of_visible_devices() {
    let scene = on("dgx-1v", 8, cube_cases());
    let by_index = MIXED.map(|device| device.to_string()).join(",");
    let by_uuid = MIXED.map(|device| uuid_of(&scene.environment, device)).join(",");
    // Enough of a UUID is as good as all of it, and both may stand beside indices.
    let mixed = MIXED.map(|device| match device % 3 {
        0 => device.to_string(),
        1 => uuid_of(&scene.environment, device).to_uppercase().replacen("GPU-", "gpu-", 1),
        _ => uuid_of(&scene.environment, device)[.."GPU-12345678".len()].to_owned(),
    });
    for visible in [by_index, by_uuid, mixed.join(",")] {
        let scene = Scene { environment: scene.environment.clone(), ..on("dgx-1v", 8, cube_cases()) };
        play_each(&scene, |_| visible.clone()).assert_all_ok(8, 3);
    }
}

#[test]
fn ranks_that_see_one_device_each_know_their_peers_by_uuid() {
    let mut scene = on("dgx-1v", 8, cube_cases());
    scene.job.devices = vec![0; 8];
    let environment = scene.environment.clone();
    play_each(&scene, |rank| uuid_of(&environment, MIXED[rank])).assert_all_ok(8, 3);
}

#[test]
fn ranks_that_number_the_devices_differently_agree_all_the_same() {
    let mut scene = on("dgx-1v", 8, cube_cases());
    // Rank r sees the devices from the r-th on, and takes the one with ordinal 3.
    scene.job.devices = vec![3; 8];
    let rotated = |rank: usize| MIXED.iter().cycle().skip(rank).take(8).map(usize::to_string);
    play_each(&scene, |rank| rotated(rank).collect::<Vec<_>>().join(",")).assert_all_ok(8, 3);
}

#[test]
fn one_device_under_two_ordinals_is_one_device() {
    let mut scene = on("h100x4", 2, vec![case(4096)]);
    scene.job.devices = vec![0, 1];
    let played = play_each(&scene, |rank| if rank == 0 { "2,0" } else { "1,2" }.to_owned());
    for rank in 0..2 {
        let (kind, message) = played.failure(rank);
        assert_eq!(kind, "DeviceUsedTwice", "{message}");
        assert!(message.contains(&uuid_of(&scene.environment, 2)), "{message}");
    }
}

/// A scene on a node described here.
fn described(text: &str, ranks: usize, cases: Vec<Case>) -> (Scene, tempfile::NamedTempFile) {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    std::fs::write(file.path(), text).expect("it can be written");
    let environment = node(file.path().to_str().expect("a path in UTF-8")).environment();
    (Scene { environment, ..Scene::new(ranks, cases) }, file)
}

fn switched(nvlink: &str) -> String {
    format!(
        "name = \"degraded\"\ngpus = 8\n[gpu]\nname = \"H\"\ncompute_capability = \"9.0\"\nmultiprocessors = 132\n\
         blocks_per_multiprocessor = 1\nmemory_mib = 256\n[nvlink]\nversion = 4\n{nvlink}\n[p2p]\naccess = \"all\"\n"
    )
}

#[test]
fn one_device_without_links_is_not_applicable_on_all_ranks_and_named() {
    let (scene, _file) =
        described(&switched("switch = [18, 18, 18, 18, 18, 0, 18, 18]"), 8, vec![case(4096)]);
    let played = scene.play();
    for rank in 0..8 {
        let reason = played.not_applicable(rank);
        assert!(reason.contains("no NVLink between the devices of ranks 0 and 5"), "{reason}");
    }
}

#[test]
fn switches_that_a_virtual_machine_hides_are_told_and_may_be_vouched_for() {
    let text = switched("switch = [18, 18, 18, 18, 18, 18, 18, 18]\nhidden_switches = true");
    let (scene, _file) = described(&text, 4, vec![case(4096)]);
    let played = scene.in_processes().play();
    for rank in 0..4 {
        let reason = played.not_applicable(rank);
        assert!(reason.contains("ranks 0 and 1 have 18 and 18 NVLinks that are up"), "{reason}");
        assert!(reason.contains("NVSwitches") && reason.contains("Config::force_topology"), "{reason}");
    }
    let (mut scene, _file) = described(&text, 4, vec![case(4096)]);
    scene.job.force_topology = Some(ForcedTopology::FullyConnected);
    scene.in_processes().play().assert_all_ok(4, 1);
    // As where the fabric manager has not connected them.
    let text = text.replace("access = \"all\"", "access = \"none\"");
    let (mut scene, _file) = described(&text, 4, vec![case(4096)]);
    scene.job.force_topology = Some(ForcedTopology::FullyConnected);
    assert!(scene.play().not_applicable(3).contains("cannot access the memory"));
}

#[test]
fn the_other_devices_of_a_degraded_node_still_work() {
    let (mut scene, _file) =
        described(&switched("switch = [18, 18, 18, 18, 18, 0, 18, 18]"), 7, vec![case(4096)]);
    scene.job.devices = vec![0, 1, 2, 3, 4, 6, 7];
    scene.play().assert_all_ok(7, 1);
}

#[test]
fn a_device_with_a_few_links_down_works_and_one_with_all_down_does_not() {
    let down = |links: usize| (0..links).map(|link| format!("[2, {link}]")).collect::<Vec<_>>().join(", ");
    let nvlink = |links| switched(&format!("switch = {:?}\ninactive = [{}]", [18; 8], down(links)));
    let (scene, _file) = described(&nvlink(17), 4, vec![case(4096)]);
    scene.play().assert_all_ok(4, 1);
    let (scene, _file) = described(&nvlink(18), 4, vec![case(4096)]);
    let played = scene.play();
    assert!(played.not_applicable(3).contains("ranks 0 and 2"), "{}", played.story());
}

#[test]
fn a_cube_mesh_survives_the_loss_of_one_of_two_links_but_not_of_an_only_one() {
    let text = |link: usize| {
        let shipped = include_str!("../../../emulator/node/nodes/dgx-1v.toml");
        shipped.replace("[p2p]", &format!("inactive = [[0, {link}]]\n[p2p]"))
    };
    // GPU 0: links 0 and 1 are the only ones to GPUs 1 and 2, 2 and 3 go to GPU 3.
    let (scene, _file) = described(&text(2), 8, cube_cases());
    scene.play().assert_all_ok(8, 3);
    let (scene, _file) = described(&text(0), 8, cube_cases());
    let played = scene.play();
    assert!(played.not_applicable(7).contains("ranks 0 and 1"), "{}", played.story());
}

#[test]
fn all_algorithms_give_the_same_bits_on_a_cube_mesh_that_is_forced_to_be_fully_connected() {
    let mut digests = Vec::new();
    for algorithm in Algorithm::ALL {
        // The same place in the list of cases means the same input for all algorithms.
        let cases: Vec<Case> = DType::ALL
            .into_iter()
            .flat_map(|dtype| Op::ALL.map(|op| Case { algorithm, dtype, op, ..case(20_012) }))
            .collect();
        let count = cases.len();
        let mut scene = on("dgx-1v-p2p", 8, cases);
        // An order in which the quads are not the first and the last four ranks.
        scene.job.devices = MIXED.map(|device| device as u32).to_vec();
        scene.job.force_topology = Some(ForcedTopology::FullyConnected);
        let played = scene.play();
        played.assert_all_ok(8, count);
        let of_rank_0 = |event: &Event| match event {
            Event::Case { rank: 0, digest, .. } => Some(digest.clone()),
            _ => None,
        };
        digests.push(played.events.iter().filter_map(of_rank_0).collect::<Vec<_>>());
        assert_eq!(digests[0].len(), count);
    }
    for (algorithm, of_it) in Algorithm::ALL.into_iter().zip(&digests) {
        assert_eq!(&digests[0], of_it, "one-shot and {algorithm}");
    }
}

#[test]
fn without_peer_access_between_all_forcing_full_connection_is_not_applicable() {
    let mut scene = on("dgx-1v", 8, vec![case(4096)]);
    scene.job.force_topology = Some(ForcedTopology::FullyConnected);
    let played = scene.play();
    for rank in 0..8 {
        assert!(
            played.not_applicable(rank).contains("rank 0 cannot access the memory of rank 5"),
            "{}",
            played.story()
        );
    }
}

/// P100s, which have NVLink and peer access, linked as in a DGX-1 of their time. There is no room for a segment on them.
fn pascal(gpus: usize) -> String {
    let links = |a: usize, b: usize| u8::from(a != b && (a / 4 == b / 4 || a % 4 == b % 4));
    let direct: Vec<Vec<u8>> = (0..gpus).map(|a| (0..gpus).map(|b| links(a, b)).collect()).collect();
    format!(
        "name = \"p100\"\ngpus = {gpus}\n[gpu]\nname = \"Tesla P100\"\ncompute_capability = \"6.0\"\nmultiprocessors = 56\n\
         blocks_per_multiprocessor = 2\nmemory_mib = 1\n[nvlink]\nversion = 1\ndirect = {direct:?}\n[p2p]\naccess = \"nvlink\"\n"
    )
}

#[test]
fn devices_that_are_too_old_for_the_kernels_are_not_applicable_before_anything_is_allocated() {
    for (gpus, ranks) in [(4, 4), (8, 8), (8, 3)] {
        let (scene, _file) = described(&pascal(gpus), ranks, vec![case(4096)]);
        let played = scene.in_processes().play();
        for rank in 0..ranks {
            let reason = played.not_applicable(rank);
            assert_eq!(
                reason,
                "the device of rank 0 has compute capability 6.0: the kernels need 7.0 or later"
            );
        }
        assert!(played.exits.iter().all(|exit| exit.status.success()), "{}", played.story());
        assert!(played.left_in_store.is_empty(), "left in the store: {:?}", played.left_in_store);
    }
}

#[test]
fn one_device_that_is_too_old_is_named_on_all_ranks_and_may_be_left_out() {
    let old = "[[gpu_override]]\nindex = 2\ncompute_capability = \"6.0\"\n[nvlink]";
    let text = switched("switch = [18, 18, 4, 18, 18, 18, 18, 18]").replace("[nvlink]", old);
    let (scene, _file) = described(&text, 4, vec![case(4096)]);
    let played = scene.in_processes().play();
    for rank in 0..4 {
        let reason = played.not_applicable(rank);
        assert_eq!(reason, "the device of rank 2 has compute capability 6.0: the kernels need 7.0 or later");
    }
    let (mut scene, _file) = described(&text, 4, vec![case(4096)]);
    scene.job.devices = vec![0, 1, 3, 4];
    scene.play().assert_all_ok(4, 1);
}

#[test]
fn what_devices_must_be_follows_from_the_target_of_a_text_that_is_given() {
    let shipped = std::fs::read_to_string("../host/ptx/one_shot_w2.ptx").expect("the shipped text");
    let play = |text: &str, ptx_target: &str| {
        let (mut scene, _node) = described(text, 2, vec![case(4096)]);
        let file = tempfile::NamedTempFile::new().expect("a file");
        let given = shipped.replacen(".target sm_70", &format!(".target {ptx_target}"), 1);
        std::fs::write(file.path(), given).expect("it can be written");
        scene.job.ptx = Some(file.path().to_owned());
        scene.play()
    };
    let hopper = switched("switch = [18, 18, 18, 18, 18, 18, 18, 18]");
    play(&hopper, "sm_90").assert_all_ok(2, 1);
    let ampere = switched("switch = [12, 12, 12, 12, 12, 12, 12, 12]").replace("9.0", "8.0");
    let played = play(&ampere, "sm_90");
    for rank in 0..2 {
        let reason = played.not_applicable(rank);
        assert_eq!(reason, "the device of rank 0 has compute capability 8.0: the kernels need 9.0 or later");
    }
    // Text for an older device is compiled for it, and the driver has the last word.
    let played = play(&pascal(4).replace("memory_mib = 1\n", "memory_mib = 64\n"), "sm_60");
    assert!(
        played.events.iter().all(|event| !matches!(event, Event::NotApplicable { .. })),
        "{}",
        played.story()
    );
}
