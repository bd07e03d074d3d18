//! Deadline, abort, mismatch and death, in every algorithm and phase.

use std::fs;
use std::time::Instant;

use crate::support::{BRIEF_MS, FAR_MS, LONG_BEFORE, Played, Scene, case, node};
use meshreduce::{Algorithm, Isa};
use meshreduce_checks::job::{Action, Case, Fault};

/// What is launched.
#[derive(Clone, Copy, Debug)]
struct Kind {
    algorithm: Algorithm,
    /// The latest ISA whose texts may be used.
    isa: Isa,
}

/// Eight ranks on the node that the algorithm is for.
fn scene(Kind { algorithm, isa }: Kind, launches: usize) -> Scene {
    let mut scene = Scene::new(8, vec![Case { algorithm, ..case(20_000) }]);
    if algorithm.is_of_cube_mesh() {
        scene.environment = node("dgx-1v").environment();
    }
    scene.job.isa = isa;
    scene.job.launches = launches;
    scene
}

/// Every rank but `culprit` failed and named it.
fn assert_all_name(played: &Played, culprit: usize) {
    for rank in (0..8).filter(|rank| *rank != culprit) {
        let (kind, message) = played.failure(rank);
        assert!(matches!(kind, "PeerTimeout" | "PeerAborted"), "rank {rank}: {kind}: {message}");
        assert!(message.contains(&format!("rank {culprit}")), "rank {rank}: {message}\n{}", played.story());
    }
}

macro_rules! every_algorithm {
    ($($behaviour:ident)*) => {
        every_algorithm! { @ one_shot OneShot V70 [$($behaviour)*] }
        every_algorithm! { @ two_shot TwoShot V70 [$($behaviour)*] }
        every_algorithm! { @ hybrid_cube_mesh HybridCubeMesh V70 [$($behaviour)*] }
        every_algorithm! { @ one_shot_ll OneShotLl V70 [$($behaviour)*] }
        every_algorithm! { @ one_shot_ll_b128 OneShotLl V84 [$($behaviour)*] }
        every_algorithm! { @ two_shot_ll TwoShotLl V70 [$($behaviour)*] }
        every_algorithm! { @ two_shot_ll_b128 TwoShotLl V84 [$($behaviour)*] }
        every_algorithm! { @ hybrid_cube_mesh_ll HybridCubeMeshLl V70 [$($behaviour)*] }
    };
    (@ $module:ident $algorithm:ident $isa:ident [$($behaviour:ident)*]) => {
        mod $module {
            $(
                #[test]
                fn $behaviour() {
                    let (algorithm, isa) = (super::Algorithm::$algorithm, super::Isa::$isa);
                    super::$behaviour(super::Kind { algorithm, isa });
                }
            )*
        }
    };
}

every_algorithm! {
    a_rank_that_dies_between_two_calls_is_named_by_all_others
    a_rank_that_leaves_a_call_out_is_named_by_all_others
    a_rank_that_launches_something_else_ends_the_call_on_all_ranks
    an_abort_from_one_host_ends_every_rank_and_names_it
}

fn a_rank_that_dies_between_two_calls_is_named_by_all_others(kind: Kind) {
    let mut scene =
        scene(kind, 3).in_processes().with(Fault { rank: 5, launch: Some(1), action: Action::Die });
    scene.job.deadline_ms = BRIEF_MS;
    assert_all_name(&scene.play(), 5);
}

fn a_rank_that_leaves_a_call_out_is_named_by_all_others(kind: Kind) {
    let mut scene = scene(kind, 1).with(Fault { rank: 3, launch: Some(0), action: Action::Skip });
    scene.job.deadline_ms = BRIEF_MS;
    assert_all_name(&scene.play(), 3);
}

fn a_rank_that_launches_something_else_ends_the_call_on_all_ranks(kind: Kind) {
    let mut scene = scene(kind, 1).with(Fault { rank: 6, launch: Some(0), action: Action::FewerElements(2) });
    scene.job.deadline_ms = FAR_MS;
    let start = Instant::now();
    let played = scene.play();
    assert!(start.elapsed() < LONG_BEFORE, "the mismatch must end it, not the deadline");
    let mut mismatches = 0;
    for rank in 0..8 {
        let (kind, message) = played.failure(rank);
        match kind {
            "LaunchMismatch" => {
                mismatches += 1;
                assert!(message.contains("rank 6"), "{message}");
                assert!(message.contains("10000") && message.contains("9998"), "{message}");
            }
            "PeerAborted" => assert!(message.contains("different launch"), "{message}"),
            _ => panic!("rank {rank}: {kind}: {message}"),
        }
    }
    assert!(mismatches > 0, "{}", played.story());
}

#[test]
fn quads_that_launch_different_things_are_found_by_their_relays() {
    for algorithm in [Algorithm::HybridCubeMesh, Algorithm::HybridCubeMeshLl] {
        let mut scene = scene(Kind { algorithm, isa: Isa::V70 }, 1);
        for rank in 4..8 {
            scene = scene.with(Fault { rank, launch: Some(0), action: Action::FewerElements(2) });
        }
        scene.job.deadline_ms = FAR_MS;
        let played = scene.play();
        for rank in 0..8 {
            let (kind, message) = played.failure(rank);
            assert!(matches!(kind, "LaunchMismatch" | "PeerAborted"), "rank {rank}: {kind}: {message}");
        }
    }
}

fn an_abort_from_one_host_ends_every_rank_and_names_it(kind: Kind) {
    let mut scene = scene(kind, 1)
        .with(Fault { rank: 2, launch: Some(0), action: Action::Skip })
        .with(Fault { rank: 7, launch: Some(0), action: Action::Abort });
    scene.job.deadline_ms = FAR_MS;
    let start = Instant::now();
    let played = scene.play();
    assert!(start.elapsed() < LONG_BEFORE, "the abort must end it, not the deadline");
    assert_eq!(played.failure(7).0, "Aborted", "{}", played.story());
    for rank in [0, 1, 3, 4, 5, 6] {
        let (kind, message) = played.failure(rank);
        assert_eq!(kind, "PeerAborted", "rank {rank}: {message}");
        assert!(message.contains("rank 7"), "rank {rank}: {message}");
    }
}

/// In the shipped text without the signal of phase 1, every rank waits in that phase in vain, an eighth longer than in
/// phase 0.
#[test]
fn a_wait_of_the_second_phase_ends_with_its_number() {
    for algorithm in [Algorithm::TwoShot, Algorithm::HybridCubeMesh] {
        let name = algorithm.kernel_name();
        let text = fs::read_to_string(format!("../host/ptx/{name}_w8.ptx")).expect("the shipped PTX");
        let entry = text.find(&format!(".visible .entry {name}_bf16_sum_w8")).expect("the entry");
        let signal = "st.release.sys.global.u64";
        let signals: Vec<usize> =
            text[entry..].match_indices(signal).map(|(at, _)| entry + at).take(2).collect();
        let end = signals[1] + text[signals[1]..].find('\n').expect("the line's end");
        let mut scene = scene(Kind { algorithm, isa: Isa::V70 }, 1);
        let file = scene.directory.path().with_extension("ptx");
        fs::write(&file, format!("{}{}", &text[..signals[1]], &text[end..])).expect("writing the mutant");
        scene.job.ptx = Some(file.clone());
        scene.job.deadline_ms = BRIEF_MS;
        let played = scene.play();
        fs::remove_file(file).expect("removing the mutant");
        let waited = (0..8).filter_map(|rank| {
            let (kind, message) = played.failure(rank);
            assert!(matches!(kind, "PeerTimeout" | "PeerAborted"), "{kind}: {message}");
            (kind == "PeerTimeout" && message.contains("phase 1")).then(|| waited(message))
        });
        let waited: Vec<f64> = waited.collect();
        let shortest = waited.iter().copied().fold(f64::INFINITY, f64::min);
        let deadline = BRIEF_MS as f64 / 1e3;
        assert!(shortest >= deadline * 9.0 / 8.0, "{waited:?}\n{}", played.story());
        assert!(shortest < deadline * 2.0, "{waited:?}\n{}", played.story());
    }
}

/// The seconds for which a rank waited, by its message.
fn waited(message: &str) -> f64 {
    let (_, rest) = message.split_once(" after ").expect("how long it waited");
    let seconds = rest.split_once("s:").expect("seconds").0;
    seconds.parse().unwrap_or_else(|_| panic!("{message}"))
}
