//! Every algorithm, type, operation, length, alignment and world size gives the bits of the reference.

use crate::support::{Scene, case, node};
use meshreduce::{Algorithm, Collective, DType, Isa, Op};
use meshreduce_checks::adversary::Kernels;
use meshreduce_checks::job::Case;
use proptest::prelude::*;
use proptest::sample::select;

/// Lengths around everything that has an edge: vectors, slices, blocks, several steps of a thread.
fn count() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 1..=65_usize,
        4 => (1..=64_usize, 0..=2_usize).prop_map(|(vectors, more)| vectors * 8 + more),
        2 => (0..=2_usize, select(vec![1023, 4096, 8192, 16_384])).prop_map(|(more, base)| base + more),
        1 => 1..=40_000_usize,
    ]
}

fn shapes(algorithm: Algorithm) -> impl Strategy<Value = Vec<Case>> {
    let shape = (select(DType::ALL.to_vec()), select(Op::ALL.to_vec()), count(), 0..9_usize, any::<bool>());
    let shape = shape.prop_map(move |(dtype, op, count, offset, in_place)| Case {
        collective: Collective::AllReduce,
        algorithm,
        dtype,
        op,
        bytes: count * dtype.size(),
        offset,
        in_place,
    });
    prop::collection::vec(shape, 1..25)
}

fn run(node_name: &str, world_size: usize, cases: Vec<Case>, seed: u64) {
    run_in(Isa::V84, node_name, world_size, cases, seed);
}

/// With texts in no later ISA than this.
fn run_in(isa: Isa, node_name: &str, world_size: usize, cases: Vec<Case>, seed: u64) {
    let count = cases.len();
    let mut scene = Scene::new(world_size, cases);
    scene.environment = node(node_name).environment();
    scene.job.isa = isa;
    scene.job.launches = 2;
    scene.job.seed = seed;
    scene.play().assert_all_ok(world_size, count);
}

/// Seeded by proptest's own deterministic generator, so that a run can be repeated; failures shrink.
fn settings(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_algorithm: prop::test_runner::RngAlgorithm::ChaCha,
        rng_seed: prop::test_runner::RngSeed::Fixed(0x6d65_7368),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(settings(16))]

    #[test]
    fn one_shot_gives_the_reference_bits(
        world_size in 2..=8_usize,
        node in select(vec!["hgx-h100", "dgx-a100", "hgx-h200"]),
        cases in shapes(Algorithm::OneShot),
        seed: u64,
    ) {
        run(node, world_size, cases, seed);
    }

    #[test]
    fn two_shot_gives_the_reference_bits(
        world_size in 2..=8_usize,
        node in select(vec!["hgx-h100", "dgx-a100", "hgx-h200"]),
        cases in shapes(Algorithm::TwoShot),
        seed: u64,
    ) {
        run(node, world_size, cases, seed);
    }

    #[test]
    fn by_packets_the_bits_are_those_of_the_reference(
        world_size in 2..=8_usize,
        node in select(vec!["hgx-h100", "dgx-a100", "hgx-h200"]),
        isa in select(Isa::ALL.to_vec()),
        cases in select(vec![Algorithm::OneShotLl, Algorithm::TwoShotLl]).prop_flat_map(shapes),
        seed: u64,
    ) {
        run_in(isa, node, world_size, cases, seed);
    }

    #[test]
    fn hybrid_cube_mesh_by_packets_gives_the_reference_bits(
        node in select(vec!["dgx-1v", "dgx-1v-p2p"]),
        cases in shapes(Algorithm::HybridCubeMeshLl),
        seed: u64,
    ) {
        run(node, 8, cases, seed);
    }

    #[test]
    fn hybrid_cube_mesh_gives_the_reference_bits(
        node in select(vec!["dgx-1v", "dgx-1v-p2p"]),
        cases in shapes(Algorithm::HybridCubeMesh),
        seed: u64,
    ) {
        run(node, 8, cases, seed);
    }
}

/// Every entry of every text: the inputs hold NaNs of all payloads, infinities, signed zeros and subnormals.
#[test]
fn every_shipped_kernel_gives_the_reference_bits() {
    let cases = |algorithm| {
        let kinds = DType::ALL.into_iter().flat_map(|dtype| Op::ALL.map(|op| (dtype, op)));
        let shape = |(dtype, op): (DType, Op)| {
            let bytes = 4099 * dtype.size();
            Case { collective: Collective::AllReduce, algorithm, dtype, op, bytes, offset: 0, in_place: true }
        };
        kinds.map(shape).collect::<Vec<_>>()
    };
    for world_size in 2..=8 {
        for algorithm in Algorithm::ALL.into_iter().filter(|algorithm| !algorithm.is_of_cube_mesh()) {
            for isa in Isa::ALL.into_iter().filter(|isa| Kernels::shipped_in(*isa).contains(&algorithm)) {
                run_in(isa, "hgx-h100", world_size, cases(algorithm), world_size as u64);
            }
        }
    }
    for algorithm in Algorithm::ALL.into_iter().filter(|algorithm| algorithm.is_of_cube_mesh()) {
        run("dgx-1v", 8, cases(algorithm), 1);
    }
}

/// In two launches, of which the second is short: one result, and in it not a byte that is another's.
#[test]
fn a_forced_algorithm_takes_messages_beyond_its_limit() {
    let longer = |algorithm, in_place| {
        let bytes = (256 << 10) + 36;
        Case { algorithm, dtype: DType::F32, bytes, offset: 1, in_place, ..case(0) }
    };
    for algorithm in [Algorithm::OneShot, Algorithm::OneShotLl] {
        run("hgx-h100", 2, vec![longer(algorithm, true), longer(algorithm, false)], 7);
    }
    for algorithm in [Algorithm::HybridCubeMesh, Algorithm::HybridCubeMeshLl] {
        run("dgx-1v", 8, vec![longer(algorithm, true)], 8);
    }
}

#[test]
fn two_shot_takes_ten_mebibytes_on_eight_ranks() {
    let large = Case { algorithm: Algorithm::TwoShot, ..case(10 << 20) };
    Scene::new(8, vec![large]).in_processes().play().assert_all_ok(8, 1);
}

#[test]
fn ten_thousand_calls_of_changing_length_pass_the_32_bit_boundary() {
    let sizes = [2, 4096, 34, 1000, 16, 2048, 8, 640];
    let mut scene = Scene::new(3, sizes.map(case).to_vec());
    scene.job.launches = 10_000 / sizes.len();
    scene.job.first_call_number = (1 << 32) - 5_000;
    scene.play().assert_all_ok(3, sizes.len());
}

fn calls_from(algorithm: Algorithm, world_size: usize, calls: usize, first: u64) {
    let sizes = [2, 4096, 34, 1000, 16, 2048, 8, 640];
    let mut scene = Scene::new(world_size, sizes.map(|bytes| Case { algorithm, ..case(bytes) }).to_vec());
    if algorithm.is_of_cube_mesh() {
        scene.environment = node("dgx-1v").environment();
    }
    scene.job.launches = calls / sizes.len();
    scene.job.first_call_number = first;
    scene.play().assert_all_ok(world_size, sizes.len());
}

#[test]
fn ten_thousand_two_shot_calls_pass_the_32_bit_boundary() {
    calls_from(Algorithm::TwoShot, 2, 10_000, (1 << 32) - 5_000);
}

/// Where flags begin again, and every slot has been refreshed just before.
#[test]
fn calls_by_packets_pass_the_32_bit_boundary_and_what_comes_every_two_to_the_30() {
    for first in [(1 << 30) - 24, (1 << 31) - 24, (1 << 32) - 24] {
        calls_from(Algorithm::OneShotLl, 3, 48, first);
        calls_from(Algorithm::TwoShotLl, 4, 48, first);
        calls_from(Algorithm::HybridCubeMeshLl, 8, 48, first);
    }
}
