//! The adversary on the shipped kernels: clean as they are, and every known way to get them wrong is found, by the
//! detector that ought to find it, within a few seeds.

use std::collections::BTreeMap;
use std::mem::offset_of;

use meshreduce_checks::adversary::{Kernels, RunFailure, Scenario};
use meshreduce_emulator_weak_memory::adversary::{Options, ReportKind};
use meshreduce_wire::{Algorithm, Isa, LaneParams, LaunchParams};

/// Seeds of a clean run here; `test-multigpu --adversary --seeds N` runs any number.
const CLEAN: u64 = 20;
/// Seeds within which a mutant must die.
const WITHIN: u64 = 100;

#[test]
fn shipped_kernels_are_clean() {
    let (cubes, others): (Vec<_>, Vec<_>) =
        Algorithm::ALL.into_iter().partition(|algorithm| algorithm.is_of_cube_mesh());
    let cases = (2..=4).flat_map(|ranks| others.iter().map(move |&algorithm| (algorithm, ranks, CLEAN)));
    let lists = (2..=4).map(|ranks| (Algorithm::GroupLl, ranks, CLEAN));
    let cubes = cubes.iter().map(|&algorithm| (algorithm, 8, CLEAN / 2));
    for (algorithm, ranks, seeds) in cases.chain(lists).chain(cubes) {
        for isa in Isa::ALL.into_iter().filter(|isa| Kernels::are_shipped(algorithm, *isa)) {
            let kernels = Kernels::shipped(algorithm, ranks, isa).unwrap();
            for seed in 0..seeds {
                if let Err(failure) = kernels.play(seed, Options::default()).unwrap() {
                    let scenario = kernels.scenario(seed);
                    panic!("{algorithm} in {isa}, {ranks} ranks, seed {seed}: {failure}\n{scenario:?}");
                }
            }
        }
    }
}

#[test]
fn a_seed_replays_the_same_run() {
    let kernels = Kernels::shipped(Algorithm::TwoShot, 3, Isa::V70).unwrap();
    for seed in 0..5 {
        let play = || kernels.play(seed, Options::default()).unwrap().map_err(|failure| failure.to_string());
        let (first, second) = (play().unwrap(), play().unwrap());
        assert_eq!(first, second, "instructions and turns");
    }
    let text = Kernels::shipped_text(Algorithm::TwoShot, 3, Isa::V70).unwrap();
    let text = text.replace("st.release.sys.global.u64", "st.relaxed.sys.global.u64");
    let kernels = Kernels::parse(&text, Algorithm::TwoShot, 3).unwrap();
    let play = |seed| {
        let options = Options { trace: true, ..Options::default() };
        kernels.play(seed, options).unwrap().map_err(|failure| failure.to_string()).err()
    };
    let seed = (0..WITHIN).find(|&seed| play(seed).is_some()).unwrap();
    assert_eq!(play(seed), play(seed), "the story, and the interleaving that led to it");
}

/// Runs a mutant of every kernel of the text until it has died `DEATHS` times; by name of the detector, how often.
fn killed(
    name: &str,
    algorithm: Algorithm,
    ranks: usize,
    mutate: impl Fn(&str) -> String,
) -> BTreeMap<&'static str, u32> {
    let text = Kernels::shipped_text(algorithm, ranks, Isa::V70).unwrap();
    let mutant = mutate(&text);
    assert!(mutant != text, "{name}: nothing to change");
    let kernels = Kernels::parse(&mutant, algorithm, ranks).unwrap();
    let mut kinds = BTreeMap::new();
    let mut first = None;
    for seed in 0..WITHIN {
        if let Err(failure) = kernels.play(seed, Options::default()).unwrap() {
            first.get_or_insert((seed, failure.to_string()));
            *kinds.entry(failure.name()).or_default() += 1;
        }
    }
    println!(
        "{name}: {} of {WITHIN} seeds, {kinds:?}; first {}",
        kinds.values().sum::<u32>(),
        first.map_or(String::new(), |(seed, text)| format!("{seed}:\n{text}"))
    );
    kinds
}

fn assert_killed_by(
    name: &str,
    kind: ReportKind,
    algorithm: Algorithm,
    ranks: usize,
    mutate: impl Fn(&str) -> String,
) {
    let kinds = killed(name, algorithm, ranks, mutate);
    let expected = kinds.get(kind.name()).copied().unwrap_or(0);
    assert!(expected > 0, "{name}: no {kind} in {WITHIN} seeds, but {kinds:?}");
}

/// Leaves out the barrier at index `nth` of every kernel. Where its threads agree on something, each takes what it came
/// with for the answer.
fn without_barrier(text: &str, nth: usize) -> String {
    let mut seen = 0;
    let kept = text.lines().map(|line| {
        if line.starts_with(".visible .entry") {
            seen = 0;
        }
        if !line.starts_with("\tbar.") {
            return line.to_owned();
        }
        seen += 1;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            _ if seen != nth + 1 => line.to_owned(),
            ["bar.red.or.pred", told, "0,", asked] => format!("\tmov.pred {told} {asked}"),
            _ => String::new(),
        }
    });
    kept.map(|line| line + "\n").collect()
}

/// Replaces whole lines.
fn lines(text: &str, with: impl Fn(&str) -> Option<String>) -> String {
    text.lines().map(|line| with(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

const BOTH: [(Algorithm, usize); 2] = [(Algorithm::OneShot, 2), (Algorithm::TwoShot, 3)];

#[test]
fn a_signal_that_does_not_release_is_a_race() {
    for (algorithm, ranks) in BOTH {
        let mutate = |text: &str| text.replace("st.release.sys.global.u64", "st.relaxed.sys.global.u64");
        assert_killed_by("release -> relaxed", ReportKind::DataRace, algorithm, ranks, mutate);
    }
}

#[test]
fn a_wait_that_does_not_acquire_is_a_race() {
    for (algorithm, ranks) in BOTH {
        let mutate = |text: &str| text.replace("ld.acquire.sys.global.u64", "ld.relaxed.sys.global.u64");
        assert_killed_by("acquire -> relaxed", ReportKind::DataRace, algorithm, ranks, mutate);
        let mutate = |text: &str| text.replace("ld.acquire.sys.global.u64", "ld.global.u64");
        assert_killed_by("acquire -> weak", ReportKind::DataRace, algorithm, ranks, mutate);
        let mutate = |text: &str| text.replace("ld.acquire.sys.global.u64", "ld.volatile.global.u64");
        assert_killed_by("acquire -> volatile", ReportKind::DataRace, algorithm, ranks, mutate);
    }
}

#[test]
fn a_scope_that_leaves_the_peer_out_is_a_race() {
    for (algorithm, ranks) in BOTH {
        let mutate = |text: &str| text.replace("st.release.sys.global.u64", "st.release.gpu.global.u64");
        assert_killed_by("release.sys -> .gpu", ReportKind::DataRace, algorithm, ranks, mutate);
        let mutate = |text: &str| text.replace("ld.acquire.sys.global.u64", "ld.acquire.gpu.global.u64");
        assert_killed_by("acquire.sys -> .gpu", ReportKind::DataRace, algorithm, ranks, mutate);
    }
}

#[test]
fn a_block_barrier_that_is_missing_is_a_race() {
    for (algorithm, ranks) in BOTH {
        let barriers = if algorithm == Algorithm::OneShot { 2 } else { 4 };
        for at in 0..barriers {
            let mutate = |text: &str| without_barrier(text, at);
            let name = format!("{algorithm}: without barrier {at}");
            let kinds = killed(&name, algorithm, ranks, mutate);
            let races = [ReportKind::DataRace, ReportKind::HandedBackEarly];
            assert!(races.iter().any(|kind| kinds.contains_key(kind.name())), "{name}: {kinds:?}");
        }
    }
}

#[test]
fn staging_without_a_second_half_is_handed_back_too_early() {
    for (algorithm, ranks) in BOTH {
        // Both halves at one address: their distance, a parameter, is read as zero.
        let distance = offset_of!(LaunchParams, lane) + offset_of!(LaneParams, half_bytes);
        let mutate = |text: &str| {
            lines(text, |line| {
                let load = line.trim().strip_prefix("ld.param.b64")?.trim();
                let register = load.strip_suffix(&format!("+{distance}];"))?.split_once(',')?.0;
                Some(format!("\tmov.b64 {register}, 0;"))
            })
        };
        let kinds = killed("one half", algorithm, ranks, mutate);
        assert!(kinds.contains_key(ReportKind::HandedBackEarly.name()), "{kinds:?}");
    }
}

#[test]
fn peers_data_through_the_noncoherent_cache_is_found() {
    for (algorithm, ranks) in BOTH {
        let mutate = |text: &str| text.replace("ld.global.v4.u32", "ld.global.nc.v4.u32");
        assert_killed_by("ld -> ld.nc", ReportKind::NoncoherentRead, algorithm, ranks, mutate);
    }
}

#[test]
fn a_wait_that_is_left_out_is_a_race() {
    for (algorithm, ranks) in BOTH {
        let mutate = |text: &str| {
            lines(text, |line| {
                let (_, rest) = line.split_once("ld.acquire.sys.global.u64 ")?;
                let register = rest.split_once(',')?.0;
                Some(format!("\tmov.b64 {register}, -1;"))
            })
        };
        assert_killed_by("no wait", ReportKind::DataRace, algorithm, ranks, mutate);
    }
}

#[test]
fn a_flag_of_two_widths_is_found() {
    let mutate = |text: &str| text.replace("ld.acquire.sys.global.u64", "ld.acquire.sys.global.u32");
    assert_killed_by("u64 flag read as u32", ReportKind::MixedSize, Algorithm::OneShot, 2, mutate);
}

#[test]
fn a_signal_that_is_never_given_starves_the_waiter() {
    let mutate = |text: &str| {
        lines(text, |line| line.contains("st.release.sys.global.u64").then(|| "\t// no signal".to_owned()))
    };
    assert_killed_by("no signal", ReportKind::Starvation, Algorithm::OneShot, 2, mutate);
}

#[test]
fn counting_blocks_out_without_ordering_is_a_race_on_the_number_of_calls() {
    let mutate = |text: &str| text.replace("atom.acq_rel.gpu.global.inc", "atom.relaxed.gpu.global.inc");
    assert_killed_by("exits relaxed", ReportKind::DataRace, Algorithm::OneShot, 2, mutate);
}

#[test]
fn ranks_with_different_numbers_of_calls_are_found() {
    let kernels = Kernels::shipped(Algorithm::OneShot, 2, Isa::V70).unwrap();
    // An abort would end what else waits for ever.
    let mut scenario = Scenario { abort: None, late: None, ..kernels.scenario(0) };
    scenario.calls.iter_mut().for_each(|call| call.algorithm = Algorithm::OneShot);
    let grids = {
        let mut scenario = scenario.clone();
        scenario.calls.truncate(1);
        scenario
    };
    // The same calls on all ranks are fine.
    kernels.play_scenario(&grids, 0, Options::default()).unwrap().unwrap();
    let found = kernels.play_uneven(&scenario, 0, Options::default()).unwrap().unwrap_err();
    let RunFailure::Found(report) = &found else { panic!("{found}") };
    assert_eq!(report.kind, ReportKind::BarrierCount, "{found}");
    assert!(report.story.contains("signal (phase 0"), "{found}");
}
