//! The errors that a user must be able to tell apart, each reached from outside, one by one.

use meshreduce_tests::here;
use std::fs;
use std::time::{Duration, Instant};

use crate::support::{BRIEF_MS, Played, Scene, case, node, program};
use meshreduce::store::{FileStore, Store};
use meshreduce::{Config, DType, Error, Op, Outcome, rendezvous};
use meshreduce_checks::cluster::{Cluster, Placement};
use meshreduce_checks::in_process::{BRIEF, config, open_driver, ranks};
use meshreduce_checks::job::{Case, Event, Job};
use meshreduce_checks::latch::Latch;

const H100: &str = r#"
gpus = 2
[gpu]
name = "H100"
compute_capability = "9.0"
memory_mib = 1024
"#;

/// A scene on a node of two GPUs that the test describes.
fn described(head: &str, gpu: &str, tail: &str) -> Scene {
    let mut scene = Scene::new(2, vec![case(4096)]);
    let file = scene.directory.path().with_extension("toml");
    fs::write(&file, format!("name = \"test\"\n{head}{H100}{gpu}\n{tail}")).expect("writing the node");
    scene.environment = node(file.to_str().expect("UTF-8")).environment();
    scene
}

fn play_and_remove(scene: Scene) -> Played {
    let file = scene.directory.path().with_extension("toml");
    let played = scene.play();
    fs::remove_file(file).expect("removing the node");
    played
}

const LINKS: &str = "[nvlink]\nversion = 4\nswitch = [18, 18]\n[p2p]\naccess = \"all\"";
const ROOMY: &str = "multiprocessors = 132\nblocks_per_multiprocessor = 1";

/// Two ranks as two jobs in two processes, which may differ.
fn play_apart(
    scene: &Scene,
    change: impl Fn(&mut Job, &mut Vec<(&'static str, std::ffi::OsString)>),
) -> Vec<Event> {
    let clusters: Vec<Cluster> = (0..2)
        .map(|rank| {
            let mut job = Job { ranks: vec![rank], ..scene.job.clone() };
            let mut environment = scene.environment.clone();
            if rank == 1 {
                change(&mut job, &mut environment);
            }
            Cluster::start(&program(), &job, Placement::Processes, &environment).expect("workers start")
        })
        .collect();
    clusters.iter().flat_map(|cluster| cluster.events().collect::<Vec<_>>()).collect()
}

fn failures(events: &[Event]) -> Vec<(&str, &str)> {
    let mut failures = Vec::new();
    for event in events {
        if let Event::Failed { kind, message, .. } = event {
            failures.push((kind.as_str(), message.as_str()));
        }
    }
    failures
}

#[test]
fn a_driver_that_is_too_old_is_named_with_both_versions() {
    let played = play_and_remove(described("cuda_version = \"11.2\"\n", ROOMY, LINKS));
    for rank in 0..2 {
        let (kind, message) = played.failure(rank);
        assert_eq!(kind, "DriverTooOld", "{message}");
        assert!(message.contains("11.2") && message.contains("11.4"), "{message}");
    }
}

#[test]
fn devices_without_links_between_them_are_not_applicable() {
    let played = play_and_remove(described("", ROOMY, "[p2p]\naccess = \"all\""));
    for rank in 0..2 {
        assert!(played.not_applicable(rank).contains("NVLink"), "{}", played.story());
    }
}

#[test]
fn links_without_peer_access_are_not_applicable() {
    let links = "[nvlink]\nversion = 4\nswitch = [18, 18]\n[p2p]\naccess = \"none\"";
    let played = play_and_remove(described("", ROOMY, links));
    for rank in 0..2 {
        let reason = played.not_applicable(rank);
        assert!(reason.contains("access"), "{reason}");
    }
}

#[test]
fn ranks_that_are_configured_differently_learn_in_what() {
    let scene = Scene::new(2, vec![case(4096)]);
    let events = play_apart(&scene, |job, _| job.deadline_ms = 1234);
    let failures = failures(&events);
    assert_eq!(failures.len(), 2, "{events:?}");
    for (kind, message) in failures {
        assert_eq!(kind, "ConfiguredDifferently", "{message}");
        assert!(message.contains("deadline") && message.contains("1.234s"), "{message}");
    }
}

#[test]
fn memory_of_another_node_is_refused_with_both_ranks() {
    let scene = Scene::new(2, vec![case(4096)]);
    let elsewhere = node("hgx-h100").environment();
    let events = play_apart(&scene, |_, environment| *environment = elsewhere.clone());
    let failures = failures(&events);
    assert_eq!(failures.len(), 2, "{events:?}");
    assert!(failures.iter().any(|(kind, _)| *kind == "IpcRefused"), "{failures:?}");
    for (kind, message) in failures {
        assert!(matches!(kind, "IpcRefused" | "RankFailed"), "{kind}: {message}");
        assert!(message.contains("may not open the memory of rank"), "{message}");
        assert!(message.contains("their processes share the pid and IPC namespace"), "{message}");
    }
}

#[test]
fn a_rank_number_that_is_taken_is_refused() {
    let mut scene = Scene::new(2, vec![case(4096)]);
    scene.job.rendezvous_ms = BRIEF_MS;
    let events = play_apart(&scene, |job, _| job.ranks = vec![0]);
    let failures = failures(&events);
    assert!(failures.iter().any(|(kind, _)| *kind == "RankTaken"), "{failures:?}");
    assert!(
        failures.iter().all(|(kind, _)| matches!(*kind, "RankTaken" | "RanksMissing" | "RankDied")),
        "{failures:?}"
    );
}

#[test]
fn text_that_is_no_ptx_is_refused_with_the_drivers_log() {
    let mut scene = Scene::new(2, vec![case(4096)]);
    let file = scene.directory.path().with_extension("ptx");
    fs::write(&file, ".version 7.0\n.target sm_70\n.address_size 64\nnonsense;\n").expect("writing");
    scene.job.ptx = Some(file.clone());
    let played = scene.play();
    fs::remove_file(file).expect("removing");
    let refused = (0..2).filter(|rank| {
        let (kind, message) = played.failure(*rank);
        assert!(message.contains("line 4") && message.contains("nonsense"), "{message}");
        kind == "KernelsRefused"
    });
    assert!(refused.count() > 0, "{}", played.story());
}

#[test]
fn kernels_for_another_world_size_are_refused_by_name() {
    let mut scene = Scene::new(2, vec![case(4096)]);
    scene.job.ptx = Some("../host/ptx/one_shot_w3.ptx".into());
    let played = scene.play();
    assert!((0..2).any(|rank| played.failure(rank).0 == "KernelMissing"), "{}", played.story());
    for rank in 0..2 {
        assert!(played.failure(rank).1.contains("_w2"), "{}", played.story());
    }
}

#[test]
fn a_type_that_the_kernels_do_not_have_is_refused_by_name() {
    let text = fs::read_to_string("../host/ptx/one_shot_w2.ptx");
    let f16 = Case { dtype: DType::F16, ..case(4096) };
    let mut scene = Scene::new(2, vec![case(4096), f16]);
    let file = scene.directory.path().with_extension("ptx");
    fs::write(&file, text.expect("the shipped PTX").replace("one_shot_f16_", "one_shot_fp16_"))
        .expect("writing");
    scene.job.ptx = Some(file.clone());
    let played = scene.play();
    fs::remove_file(file).expect("removing");
    let refused = played.events.iter().filter(|event| match event {
        Event::Unsupported { case: 1, reason, .. } => reason.contains("does not support sum of f16"),
        _ => false,
    });
    assert_eq!(refused.count(), 2, "{}", played.story());
}

#[test]
fn a_kernel_that_writes_where_it_must_not_is_a_kernel_fault() {
    let text = fs::read_to_string("../host/ptx/one_shot_w2.ptx");
    let text = text.expect("the shipped PTX");
    let entry = text.find(".visible .entry one_shot_bf16_sum_w2").expect("the entry");
    let store = entry + text[entry..].find("\tst.global.cs.v4.u32 [").expect("the store");
    let address = text[store..].split(['[', ']']).nth(1).expect("an address");
    let wild = format!("\tadd.s64 {address}, {address}, 0x100000000;\n");
    let mut scene = Scene::new(2, vec![case(4096)]);
    let file = scene.directory.path().with_extension("ptx");
    fs::write(&file, format!("{}{wild}{}", &text[..store], &text[store..])).expect("writing");
    scene.job.ptx = Some(file.clone());
    let played = scene.play();
    fs::remove_file(file).expect("removing");
    for rank in 0..2 {
        let (kind, message) = played.failure(rank);
        assert_eq!(kind, "KernelFault", "{message}");
        assert!(message.contains("ILLEGAL_ADDRESS"), "{message}");
    }
    let report: String = played.exits.iter().map(|exit| exit.stderr.as_str()).collect();
    assert!(report.contains("one_shot_bf16_sum_w2") && report.contains("st.global.cs"), "{report}");
}

#[test]
fn lanes_that_do_not_fit_the_device_side_by_side_are_refused() {
    let tight = "multiprocessors = 1\nblocks_per_multiprocessor = 1";
    let mut scene = described("", tight, LINKS);
    scene.job.lanes = 64;
    let played = play_and_remove(scene);
    assert!((0..2).any(|rank| played.failure(rank).0 == "DeviceTooSmall"), "{}", played.story());
}

#[test]
fn a_rank_beyond_the_world_is_refused() {
    let store = FileStore::open(tempfile::tempdir().expect("a directory").path()).expect("a store");
    let answer = rendezvous(&store, 2, 2, 0, &Config::default());
    assert!(matches!(answer, Err(Error::InvalidRank { rank: 2, world_size: 2 })), "{answer:?}");
}

#[test]
fn a_configuration_that_cannot_be_is_refused() {
    let store = FileStore::open(tempfile::tempdir().expect("a directory").path()).expect("a store");
    for config in [Config::default().lanes(0), Config::default().lanes(65)] {
        let answer = rendezvous(&store, 0, 2, 0, &config);
        assert!(matches!(answer, Err(Error::Config(_))), "{answer:?}");
    }
}

#[test]
fn a_disabled_rank_is_not_applicable_for_all_and_nobody_waits() {
    open_driver();
    let directory = tempfile::tempdir().expect("a directory");
    std::thread::scope(|scope| {
        for rank in 0..3 {
            let directory = directory.path();
            scope.spawn(move || {
                let store = FileStore::open(directory).expect("a store");
                let config = config().enabled(rank != 1);
                match rendezvous(&store, rank, 3, rank as u32, &config) {
                    Ok(Outcome::NotApplicable(reason)) => {
                        assert!(reason.to_string() == "rank 1 is disabled by the program", "{reason}");
                    }
                    other => panic!("rank {rank}: {other:?}"),
                }
            });
        }
    });
}

#[test]
fn a_peer_that_has_closed_is_named_as_such() {
    let config = config().deadline(Some(Duration::from_millis(300)));
    ranks(2, &config, |communicator| {
        if communicator.rank() == 0 {
            // The other comes late, but it comes.
            communicator.close().expect("an orderly end");
            return;
        }
        let mut lane = communicator.lane(0).expect("a lane");
        let data = cust::memory::DeviceBuffer::from_slice(&[0_u16; 64]).expect("device memory");
        let stream = cust::stream::Stream::new(cust::stream::StreamFlags::DEFAULT, None).expect("a stream");
        let address = data.as_device_ptr().as_raw();
        // SAFETY: the buffer holds 64 elements and outlives the work, which is waited for.
        let work =
            unsafe { lane.all_reduce_raw(address, address, 64, DType::Bf16, Op::Sum, stream.as_inner()) };
        let mut answer = work.expect("a launch").synchronize();
        let start = Instant::now();
        // If this rank was the faster one, it has not heard yet why the other did not come.
        while matches!(answer, Err(Error::PeerTimeout { rank: 1, peer: 0, .. })) {
            assert!(start.elapsed() < Duration::from_secs(60), "the goodbye did not come");
            std::thread::sleep(Duration::from_millis(10));
            answer = lane.status();
        }
        assert!(matches!(answer, Err(Error::Closed { rank: 1, peer: 0 })), "{answer:?}");
        drop(lane);
        communicator.close().expect("both have closed");
    });
}

#[test]
fn closing_names_the_ranks_that_do_not_come() {
    let config = config().timeout(BRIEF);
    let other_is_done = Latch::new(1);
    ranks(2, &config, |communicator| {
        if communicator.rank() == 1 {
            return other_is_done.wait();
        }
        match communicator.close().map_err(Error::from) {
            Err(Error::CloseTimeout { ranks, .. }) => assert_eq!(ranks, [1]),
            other => panic!("{other:?}"),
        }
        other_is_done.come();
    });
}

#[test]
fn a_store_whose_directory_disappears_is_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = FileStore::open(directory.path()).expect("a store");
    directory.close().expect("removing the directory");
    assert!(store.set("key", b"value").is_err());
}

#[test]
fn a_driver_that_sees_no_device_is_not_applicable_where_the_program_takes_it_so() {
    let test = here!("a_driver_that_sees_no_device_is_not_applicable_where_the_program_takes_it_so");
    // A driver without a visible device is a matter of the process: this test runs again in one.
    const AGAIN: &str = "MESHREDUCE_TEST_WITHOUT_DEVICES";
    if std::env::var_os(AGAIN).is_none() {
        let program = std::env::current_exe().expect("this program's own file");
        let mut again = std::process::Command::new(program);
        again.args(["--exact", test, "--nocapture"]).env("CUDA_VISIBLE_DEVICES", "").env(AGAIN, "1");
        let output = again.output().expect("the test program starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    open_driver();
    for (tolerant, name) in [(true, "tolerant"), (false, "strict")] {
        let directory = tempfile::tempdir().expect("a directory");
        let answers: Vec<_> = std::thread::scope(|scope| {
            let meet = |rank: usize| {
                let store = FileStore::open(directory.path()).expect("a store");
                let config = config().missing_driver_is_not_applicable(tolerant);
                rendezvous(&store, rank, 2, rank as u32, &config)
            };
            let ranks: Vec<_> = (0..2).map(|rank| scope.spawn(move || meet(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
        });
        for answer in answers {
            match answer {
                Ok(Outcome::NotApplicable(reason)) if tolerant => {
                    assert!(reason.to_string().contains("CUDA_ERROR_NO_DEVICE"), "{name}: {reason}");
                }
                Err(error) if !tolerant => {
                    assert!(error.to_string().contains("CUDA_ERROR_NO_DEVICE"), "{name}: {error}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
