//! What goes wrong is said, in time and by name: bad input, ranks that do not come, ranks that die.

#[path = "jobs/support.rs"]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use meshreduce::Algorithm;
use meshreduce::store::{FileStore, Store};
use meshreduce_checks::cluster::{Cluster, Placement};
use meshreduce_checks::job::{Action, Case, Event, Fault, Job};
use support::{BRIEF_MS, FAR_MS, LONG_BEFORE, Scene, case, program};

#[test]
fn without_a_driver_the_error_says_which_library_is_missing() {
    let mut scene = Scene::new(2, vec![case(4096)]);
    scene.environment = vec![("MESHREDUCE_DRIVER", "/nonexistent/libcuda.so.1".into())];
    let played = scene.play();
    for rank in 0..2 {
        let (kind, message) = played.failure(rank);
        assert_eq!(kind, "NoDriver", "{message}");
        assert!(message.contains("/nonexistent/libcuda.so.1"), "{message}");
    }
}

#[test]
fn an_unknown_node_is_refused_with_the_names_that_exist() {
    let output = Command::new(program()).args(["--node", "dgx-9000"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("dgx-9000") && stderr.contains("hgx-h100"), "{stderr}");
}

#[test]
fn worlds_of_one_and_nine_are_not_applicable() {
    for world_size in [1, 9] {
        let mut scene = Scene::new(world_size, vec![case(4096)]);
        scene.job.ranks = vec![0];
        let played = scene.play();
        assert!(played.not_applicable(0).contains(&world_size.to_string()), "{}", played.story());
    }
}

#[test]
fn two_ranks_on_one_device_are_told_how_to_allow_it() {
    let mut scene = Scene::new(2, vec![case(4096)]);
    scene.job.devices = vec![3, 3];
    let played = scene.play();
    for rank in 0..2 {
        let (kind, message) = played.failure(rank);
        assert_eq!(kind, "DeviceUsedTwice", "{message}");
        assert!(message.contains("allow_shared_devices"), "{message}");
    }
    assert!(played.left_in_store.is_empty(), "{:?}", played.left_in_store);
}

#[test]
fn a_device_that_does_not_exist_is_named() {
    let mut scene = Scene::new(2, vec![case(4096)]);
    scene.job.devices = vec![0, 42];
    scene.job.rendezvous_ms = BRIEF_MS;
    let played = scene.play();
    let (kind, message) = played.failure(1);
    assert_eq!(kind, "NoSuchDevice", "{message}");
    assert!(message.contains("42"), "{message}");
}

#[test]
fn a_rank_that_never_comes_is_named_within_the_timeout() {
    let mut scene = Scene::new(3, vec![case(4096)]);
    scene.job.ranks = vec![0, 2];
    scene.job.rendezvous_ms = BRIEF_MS;
    let start = Instant::now();
    let played = scene.play();
    assert!(start.elapsed() < LONG_BEFORE);
    for rank in [0, 2] {
        let (kind, message) = played.failure(rank);
        assert_eq!(kind, "RanksMissing", "{message}");
        assert!(message.contains("rank 1"), "{message}");
    }
}

#[test]
fn a_store_that_cannot_be_written_is_an_error_at_once() {
    let mut scene = Scene::new(2, vec![case(4096)]);
    // Not a directory: also the superuser, whom permissions do not stop, cannot write below a file.
    let file = scene.directory.path().join("file");
    fs::write(&file, "in the way").unwrap();
    scene.job.store = file.join("store");
    let played = scene.play();
    for rank in 0..2 {
        let (kind, message) = played.failure(rank);
        assert_eq!(kind, "Store", "{message}");
        assert!(message.contains("file/store"), "{message}");
    }
}

#[test]
fn an_algorithm_that_the_mesh_does_not_allow_is_refused_alike_on_all_ranks() {
    let cube = Case { algorithm: Algorithm::HybridCubeMesh, ..case(4096) };
    let played = Scene::new(8, vec![cube]).in_processes().play();
    let refused = played.events.iter().filter(|event| match event {
        Event::Unsupported { reason, .. } => reason.contains("hybrid-cube-mesh is not possible here"),
        _ => false,
    });
    assert_eq!(refused.count(), 8, "{}", played.story());
}

#[test]
fn a_rank_killed_during_rendezvous_is_named_by_the_others() {
    let mut scene = Scene::new(3, vec![case(4096)]).in_processes().with(Fault {
        rank: 1,
        launch: None,
        action: Action::Die,
    });
    scene.job.rendezvous_ms = BRIEF_MS;
    let start = Instant::now();
    let played = scene.play();
    assert!(start.elapsed() < LONG_BEFORE);
    for rank in [0, 2] {
        let (_, message) = played.failure(rank);
        assert!(message.contains("rank 1"), "{message}");
    }
}

#[test]
fn a_rank_killed_during_the_collective_is_named_by_the_others_within_the_deadline() {
    let mut scene = Scene::new(4, vec![case(4096), case(4096)]).in_processes().with(Fault {
        rank: 2,
        launch: Some(1),
        action: Action::Die,
    });
    scene.job.deadline_ms = BRIEF_MS;
    let shared_before = shared_memory();
    let start = Instant::now();
    let played = scene.play();
    assert!(start.elapsed() < LONG_BEFORE);
    for rank in [0, 1, 3] {
        let (kind, message) = played.failure(rank);
        assert!(matches!(kind, "PeerTimeout" | "PeerAborted"), "{kind}: {message}");
        assert!(message.contains("rank 2"), "{message}");
    }
    let new: Vec<_> = shared_memory().into_iter().filter(|name| !shared_before.contains(name)).collect();
    assert!(!new.iter().any(|name| name.contains("meshreduce")), "left in shared memory: {new:?}");
    assert!(played.left_in_store.is_empty(), "{:?}", played.left_in_store);
}

#[test]
fn ranks_that_disagree_on_length_get_a_launch_mismatch() {
    // The second in two launches, of which the first are alike.
    for (bytes, counts) in [(4096, ["2048", "2040"]), ((256 << 10) + 16, ["131080", "131072"])] {
        let played = Scene::new(3, vec![case(bytes)])
            .with(Fault { rank: 1, launch: Some(0), action: Action::FewerElements(8) })
            .play();
        let kinds: Vec<_> = (0..3).map(|rank| played.failure(rank)).collect();
        assert!(kinds.iter().any(|(kind, _)| *kind == "LaunchMismatch"), "{}", played.story());
        for (kind, message) in kinds {
            assert!(matches!(kind, "LaunchMismatch" | "PeerAborted"), "{kind}: {message}");
            if kind == "LaunchMismatch" {
                assert!(counts.iter().all(|count| message.contains(count)), "{message}");
            }
        }
    }
}

#[test]
fn ranks_with_fewer_blocks_do_not_leave_the_others_waiting() {
    let mut scene = Scene::new(2, vec![case(256 << 10)]).with(Fault {
        rank: 1,
        launch: Some(0),
        action: Action::FewerElements((128 << 10) - 8),
    });
    scene.job.deadline_ms = FAR_MS;
    let start = Instant::now();
    let played = scene.play();
    assert!(start.elapsed() < LONG_BEFORE, "the mismatch must end every block, not the deadline");
    for rank in 0..2 {
        assert!(matches!(played.failure(rank).0, "LaunchMismatch" | "PeerAborted"), "{}", played.story());
    }
}

#[test]
fn an_abort_from_the_host_reaches_every_rank_with_the_culprits_name() {
    let mut scene = Scene::new(3, vec![case(4096)])
        .with(Fault { rank: 0, launch: Some(0), action: Action::Skip })
        .with(Fault { rank: 1, launch: Some(0), action: Action::Abort });
    scene.job.deadline_ms = FAR_MS;
    let start = Instant::now();
    let played = scene.play();
    assert!(start.elapsed() < LONG_BEFORE, "the abort must end the kernels, not the deadline");
    let (kind, message) = played.failure(1);
    assert_eq!(kind, "Aborted", "{message}");
    let (kind, message) = played.failure(2);
    assert_eq!(kind, "PeerAborted", "{message}");
    assert!(message.contains("rank 1"), "{message}");
}

#[test]
fn a_peer_that_leaves_a_call_out_is_named_after_the_deadline() {
    let mut scene =
        Scene::new(3, vec![case(4096)]).with(Fault { rank: 2, launch: Some(0), action: Action::Skip });
    scene.job.deadline_ms = BRIEF_MS;
    let played = scene.play();
    for rank in 0..2 {
        let (kind, message) = played.failure(rank);
        assert!(matches!(kind, "PeerTimeout" | "PeerAborted"), "{kind}: {message}");
        assert!(message.contains("rank 2"), "{message}");
    }
}

#[test]
fn a_corrupt_payload_is_an_error_that_names_key_and_rank() {
    let scene = Scene::new(2, vec![case(4096)]);
    let start = |rank| {
        let job = Job { ranks: vec![rank], ..scene.job.clone() };
        Cluster::start(&program(), &job, Placement::Processes, &scene.environment).unwrap()
    };
    let first = start(0);
    // Rank 0 writes its payload before there is a rank 1: cut it short.
    let store = FileStore::open(scene.directory.path()).unwrap();
    let began = Instant::now();
    let mut spoilt = 0;
    while spoilt == 0 {
        assert!(began.elapsed() < LONG_BEFORE, "no payload was found to spoil");
        for file in support::files_below(scene.directory.path()) {
            let key = file.file_name().unwrap().to_string_lossy().replace('+', "/");
            if !key.ends_with("/0") {
                continue;
            }
            let Ok(value) = store.get(&key, Duration::ZERO) else { continue };
            if value.starts_with(b"MSHR") {
                store.set(&key, &value[..value.len() / 2]).unwrap();
                spoilt += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let events: Vec<_> = [start(1), first].iter().flat_map(|one| one.events().collect::<Vec<_>>()).collect();
    let told = events.iter().any(|event| match event {
        Event::Failed { rank: 1, kind, message, .. } => {
            kind == "CorruptPayload" && message.contains("rank 0")
        }
        _ => false,
    });
    assert!(told, "{events:?}");
}

#[test]
fn a_store_directory_without_permission_is_refused() {
    let scene = Scene::new(2, vec![case(4096)]);
    let closed = scene.directory.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(closed.join("probe"), "").is_ok() {
        eprintln!("skipping: this user may write everywhere, so a permission cannot be refused");
        return;
    }
    let mut scene = scene;
    scene.job.store = closed;
    let played = scene.play();
    assert_eq!(played.failure(0).0, "Store", "{}", played.story());
}

fn shared_memory() -> Vec<String> {
    let entries = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
