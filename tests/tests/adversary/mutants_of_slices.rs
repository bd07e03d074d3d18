//! Mutants of the shipped kernels of slices: the shipped texts survive, and who does not hear of a reader
//! without data overwrites what a slow one has yet to read. `cargo xtask mutants` runs them all.

use meshreduce_checks::adversary::{Cuts, Kernels, Late, Numbers, SliceCall, SliceKernels, SliceScenario};
use meshreduce_checks::mutants::{Set, judge_all};
use meshreduce_emulator_weak_memory::adversary::Options;
use meshreduce_wire::{Algorithm, Collective, DType, Isa, Op};

/// All that there are over these numbers of ranks.
pub(crate) fn sets(ranks: &[usize]) -> Vec<Set> {
    let mut all = Vec::new();
    for algorithm in Algorithm::OF_SLICES {
        for isa in Isa::ALL.into_iter().filter(|isa| Kernels::are_shipped(algorithm, *isa)) {
            for &ranks in ranks.iter().filter(|&&ranks| ranks == 8 || !algorithm.is_of_cube_mesh()) {
                all.extend(Set::all(algorithm, ranks, isa).unwrap());
            }
        }
    }
    all
}

#[test]
fn the_shipped_texts_survive() {
    for verdict in judge_all(&sets(&[2, 3]), "/unchanged", 15.into(), |_| ()).unwrap() {
        assert_eq!(verdict.killed_by, None, "{}, {} ranks: {}", verdict.name, verdict.ranks, verdict.story);
    }
}

/// Broadcasts in a row, of which one receiver begins the first late: the third uses the memory of the first again.
fn broadcasts(algorithm: Algorithm) -> SliceScenario {
    let call = SliceCall {
        collective: Collective::Broadcast,
        algorithm,
        root: 0,
        bytes: vec![vec![64; 3], vec![0; 3], vec![0; 3]],
        shift: 0,
        blocks: 1,
        ragged: false,
        threads: 8,
        in_place: vec![false; 3],
        cuts: Cuts::NONE,
    };
    SliceScenario {
        dtype: DType::F32,
        op: Op::Sum,
        positions: vec![0, 1, 2],
        relays: None,
        lane: 0,
        first: Numbers { barriers: 2, packets: 2 },
        calls: vec![call; 3],
        abort: None,
        late: Some(Late { rank: 2, call: 0 }),
        odd: None,
    }
}

/// The mutant dies of broadcasts in a row, on some of these seeds, and the shipped text on none.
fn assert_dies_of_broadcasts(algorithm: Algorithm, what: &str) {
    let scenario = broadcasts(algorithm);
    let sets = Set::all(algorithm, 3, Isa::V70).unwrap();
    let set = &sets[0];
    let name = format!("{}/{what}", algorithm.kernel_name());
    let mutant = set.mutants.iter().find(|mutant| mutant.name == name).unwrap();
    let shipped = SliceKernels::shipped(3, Isa::V70).unwrap();
    let mutated = shipped.clone().with_text(algorithm, &set.render(mutant)).unwrap();
    let is_clean = |kernels: &SliceKernels, seed| {
        kernels.play_scenario(&scenario, seed, Options::default()).unwrap().is_ok()
    };
    assert!((0..20).all(|seed| is_clean(&shipped, seed)), "{algorithm} is not clean");
    assert!((0..20).any(|seed| !is_clean(&mutated, seed)), "{name} survives");
}

#[test]
fn broadcasts_by_packets_need_the_headers_of_receivers() {
    for what in [
        "header-not-awaited",
        "headers-missing",
        "acknowledgement-not-awaited-without-data",
        "acknowledgement-by-data-alone",
    ] {
        assert_dies_of_broadcasts(Algorithm::ExchangeLl, what);
    }
}

#[test]
fn broadcasts_by_barriers_need_the_signals_of_receivers() {
    for what in ["wait-skipped", "reader-without-data-not-met"] {
        assert_dies_of_broadcasts(Algorithm::Exchange, what);
    }
}
