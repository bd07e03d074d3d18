//! Mutants of the shipped kernels against the adversary: every mutation applies, and some of each sort do what the list
//! says. `cargo xtask mutants` runs them all.

use std::collections::BTreeSet;

use meshreduce_checks::adversary::Kernels;
use meshreduce_checks::mutants::known::KNOWN;
use meshreduce_checks::mutants::stage::{Stage, Trouble};
use meshreduce_checks::mutants::{MutantResult, Set, judge_all};
use meshreduce_emulator_ptx::Module;
use meshreduce_emulator_weak_memory::adversary::Options;
use meshreduce_wire::{Algorithm, Isa};

use crate::mutants_of_slices;

/// All but the hybrid cube mesh by packets, of which a seed takes ten times as long as of the others.
fn sets() -> Vec<Set> {
    let all = [
        (Algorithm::OneShot, 2),
        (Algorithm::OneShot, 3),
        (Algorithm::TwoShot, 2),
        (Algorithm::TwoShot, 3),
        (Algorithm::HybridCubeMesh, 8),
        (Algorithm::OneShotLl, 2),
        (Algorithm::OneShotLl, 3),
        (Algorithm::TwoShotLl, 2),
        (Algorithm::TwoShotLl, 3),
        (Algorithm::GroupLl, 2),
        (Algorithm::GroupLl, 3),
    ];
    let isas = |algorithm| Isa::ALL.into_iter().filter(move |isa| Kernels::are_shipped(algorithm, *isa));
    let sets = all.into_iter().flat_map(|(algorithm, ranks)| {
        isas(algorithm).flat_map(move |isa| Set::all(algorithm, ranks, isa).unwrap())
    });
    sets.collect()
}

fn all_sets() -> Vec<Set> {
    let cube_mesh_ll = Set::all(Algorithm::HybridCubeMeshLl, 8, Isa::V70).unwrap();
    let of_slices = mutants_of_slices::sets(&[2, 3, 4, 8]);
    sets().into_iter().chain(cube_mesh_ll).chain(of_slices).collect()
}

fn judge(filter: &str, seeds: u64) -> Vec<MutantResult> {
    let verdicts = judge_all(&sets(), filter, seeds.into(), |_| ()).unwrap();
    assert!(!verdicts.is_empty(), "no mutant is called {filter}");
    verdicts
}

fn assert_killed(filter: &str, seeds: u64, by: &[&str]) {
    for MutantResult { name, ranks, killed_by, story, .. } in judge(filter, seeds) {
        let killed_by = killed_by.unwrap_or_else(|| panic!("{name}, {ranks} ranks: survived"));
        assert!(by.contains(&killed_by.as_str()), "{name}, {ranks} ranks: {killed_by}\n{story}");
    }
}

#[test]
fn every_mutation_applies_and_has_a_name_of_its_own() {
    for set in all_sets() {
        let mut names = BTreeSet::new();
        for mutant in &set.mutants {
            assert!(names.insert(&mutant.name), "{} twice", mutant.name);
            let text = set.render(mutant);
            Module::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", mutant.name));
            let unchanged = mutant.edits.is_empty();
            assert_eq!(unchanged, mutant.name.contains("/unchanged"), "{}", mutant.name);
            assert!(unchanged || text != set.render(&set.mutants[0]), "{} changes nothing", mutant.name);
        }
    }
}

#[test]
fn every_survivor_of_the_list_is_a_mutant() {
    let names: Vec<String> =
        all_sets().iter().flat_map(|set| &set.mutants).map(|mutant| mutant.name.clone()).collect();
    for known in KNOWN {
        assert!(names.iter().any(|name| name.ends_with(known.name)), "no mutant is called {}", known.name);
    }
}

#[test]
fn the_shipped_text_survives() {
    for verdict in judge("/unchanged", 8) {
        assert_eq!(verdict.killed_by, None, "{}, {} ranks: {}", verdict.name, verdict.ranks, verdict.story);
    }
}

#[test]
fn a_signal_without_release_is_a_race() {
    // A stale descriptor beside it may be noticed first, and ends a call that ought to end well.
    assert_killed(
        "signal-store-relaxed",
        30,
        &["data race", "kernel gave up", "buffer handed back too early", "wrong result"],
    );
}

#[test]
fn one_half_of_staging_is_handed_back_too_early() {
    assert_killed("known-2-", 30, &["buffer handed back too early", "data race"]);
}

#[test]
fn flags_of_two_widths_are_found() {
    assert_killed("flag-part-of-a-word", 30, &["mixed-size flag"]);
}

#[test]
fn a_record_that_is_not_released_races_with_the_host() {
    assert_killed("valid-relaxed", 30, &["data race", "buffer handed back too early"]);
    // Launches are counted by device, so the host's reading may look like one of an earlier launch.
    assert_killed("record-after-valid", 30, &["data race", "buffer handed back too early"]);
}

#[test]
fn without_a_deadline_a_dead_peer_is_waited_for_for_ever() {
    let by =
        ["starvation", "different barrier counts", "epoch overwritten before it was seen", "wrong result"];
    assert_killed("deadline-dropped", 30, &by);
}

#[test]
fn a_deadline_twice_as_long_is_noticed_in_either_phase() {
    // Or the session has lost patience by then.
    let by =
        ["wrong result", "different barrier counts", "epoch overwritten before it was seen", "starvation"];
    assert_killed("deadline-doubled", 30, &by);
    assert_killed("deadline-of-phase-0", 30, &["wrong result"]);
}

#[test]
fn a_lane_that_is_not_told_of_another_lanes_failure_is_noticed() {
    let by = [
        "starvation",
        "different barrier counts",
        "epoch overwritten before it was seen",
        "wrong result",
        "buffer handed back too early",
    ];
    assert_killed("/spread-not-to-lanes", 30, &by);
    assert_killed("/spread-not-to-own-lanes", 30, &by);
}

#[test]
fn lengths_that_differ_are_told_exactly() {
    // Whoever does not find it waits for units that nobody pushes.
    let by =
        ["epoch overwritten before it was seen", "different barrier counts", "wrong result", "starvation"];
    assert_killed("counts-not-compared", 30, &by);
    assert_killed("counts-record-", 30, &["wrong result", "data race"]);
}

#[test]
fn relays_that_do_not_meet_in_the_first_phase_are_noticed() {
    let by = ["wrong result", "data race", "starvation", "different barrier counts"];
    assert_killed("relay-not-met-in-phase-0", 30, &by);
}

#[test]
fn an_equivalent_mutant_survives() {
    for verdict in judge("claim-relaxed", 8) {
        assert!(verdict.equivalent && verdict.is_expected(), "{}: {}", verdict.name, verdict.story);
    }
}

/// In two of three seeds ranks wait in the lane that does not fail, and with a dead peer or without one they wait for ever
/// unless they are told.
#[test]
fn a_failure_in_one_lane_ends_the_other() {
    for (algorithm, ranks) in
        [(Algorithm::OneShot, 4), (Algorithm::TwoShot, 3), (Algorithm::HybridCubeMesh, 8)]
    {
        let text = Kernels::shipped_text(algorithm, ranks, Isa::V70).unwrap();
        let name = format!("{}_bf16_sum_w{ranks}", algorithm.kernel_name());
        let kernel = Module::parse(&text).unwrap().kernel(&name).unwrap();
        for seed in 1..=30 {
            let stage = Stage { kernel: &kernel, algorithm, ranks, halfway: None, queued: seed / 2 % 2 == 1 };
            for trouble in Trouble::of(algorithm) {
                if let Err(failure) = stage.play(trouble, seed, Options::default()) {
                    panic!("{name}, seed {seed}, {}: {failure}", trouble.name());
                }
            }
        }
    }
}

/// A rank that gives up may have told its peers before that its data is there. A call that is queued behind must not stage
/// over it, for a slow peer may still be reading: its call would end well, with a wrong result.
#[test]
fn a_call_behind_a_failed_one_leaves_staging_alone() {
    for (algorithm, ranks) in [(Algorithm::OneShot, 2), (Algorithm::TwoShot, 2), (Algorithm::OneShot, 3)] {
        let text = Kernels::shipped_text(algorithm, ranks, Isa::V70).unwrap();
        let name = format!("{}_bf16_sum_w{ranks}", algorithm.kernel_name());
        let kernel = Module::parse(&text).unwrap().kernel(&name).unwrap();
        let stage = Stage { kernel: &kernel, algorithm, ranks, halfway: None, queued: true };
        for seed in 1..=300 {
            for trouble in Trouble::of(algorithm) {
                if let Err(failure) = stage.play(trouble, seed, Options::default()) {
                    panic!("{name}, seed {seed}, {}: {failure}", trouble.name());
                }
            }
        }
    }
}
