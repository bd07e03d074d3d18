//! The adversary on sequences of collectives other than all-reduces: clean as they are; a header that is not awaited lets a rank
//! overwrite what a slow one has yet to read.

use meshreduce_checks::adversary::SliceKernels;
use meshreduce_emulator_weak_memory::adversary::Options;
use meshreduce_wire::{Algorithm, Isa};

#[test]
fn sequences_of_collectives_are_clean() {
    for (ranks, seeds) in [(2, 120), (3, 100), (4, 50), (8, 10)] {
        for isa in Isa::ALL {
            let kernels = SliceKernels::shipped(ranks, isa).unwrap().with_lists().unwrap();
            for seed in 0..seeds {
                let played = kernels.play(seed, Options::default()).unwrap();
                if let Err(failure) = played {
                    panic!("{ranks} ranks in {isa}, seed {seed}: {failure}");
                }
            }
        }
    }
}

#[test]
fn sequences_of_collectives_in_a_hybrid_cube_mesh_are_clean() {
    let kernels = SliceKernels::in_cube_mesh(|_, text| text.to_owned()).unwrap();
    for seed in 0..20 {
        if let Err(failure) = kernels.play(seed, Options::default()).unwrap() {
            panic!("seed {seed}: {failure}");
        }
    }
}

/// How many of these seeds find something wrong with kernels of three ranks that were changed.
fn deaths(seeds: u64, mutate: impl Fn(Algorithm, &str) -> String) -> usize {
    let shipped = SliceKernels::shipped(3, Isa::V70).unwrap();
    let kernels = SliceKernels::with(3, Isa::V70, mutate).unwrap();
    let dies = |seed: &u64| {
        assert!(shipped.play(*seed, Options::default()).unwrap().is_ok());
        kernels.play(*seed, Options::default()).unwrap().is_err()
    };
    (0..seeds).filter(dies).count()
}

/// Replaces whole lines.
fn lines(text: &str, mut with: impl FnMut(&str) -> Option<String>) -> String {
    text.lines().map(|line| with(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn a_signal_that_does_not_release_and_a_wait_that_does_not_acquire_are_found() {
    let relaxed = |from: &'static str| {
        move |algorithm: Algorithm, text: &str| {
            let to = from.replace("release", "relaxed").replace("acquire", "relaxed");
            let mutant = text.replace(from, &to);
            assert_eq!(mutant == text, algorithm.is_by_packets(), "{algorithm}");
            mutant
        }
    };
    assert!(deaths(60, relaxed("st.release.sys.global.u64")) > 5);
    assert!(deaths(60, relaxed("ld.acquire.sys.global.u64")) > 5);
}

#[test]
fn who_does_not_hear_of_everybody_hands_packet_memory_back_too_early() {
    // No thread stands for a peer: no header is sent, and none awaited. A root's second call after overwrites then what a slow
    // receiver has yet to read.
    let mutate = |algorithm: Algorithm, text: &str| {
        if !algorithm.is_by_packets() {
            return text.to_owned();
        }
        let mut thread = String::new();
        let mutant = lines(text, |line| {
            if let Some(register) =
                line.strip_prefix("\tmov.u32 \t").and_then(|rest| rest.strip_suffix(", %tid.x;"))
            {
                thread = register.to_owned();
            }
            let stands = line.starts_with("\tsetp.lt.u32") && line.ends_with(&format!(", {thread}, 3;"));
            stands.then(|| line.replace(", 3;", ", 0;"))
        });
        assert!(mutant != text, "{algorithm}: nothing to change");
        mutant
    };
    assert!(deaths(300, mutate) > 5, "hardly anybody noticed");
}
