//! One-shot all-reduce on the emulated node: the same bits as the reference, on every rank, whatever the shape.

use crate::support::{Scene, case, node};
use meshreduce::{Algorithm, Collective, DType, Op};
use meshreduce_checks::job::Case;

fn shapes(dtype: DType, op: Op) -> Vec<Case> {
    // One element; less than, exactly, and just over a vector; ragged sizes over several blocks; the limit.
    let counts = [1, 3, 8, 9, 1000, 4097];
    let shape = |count: usize, offset, in_place| Case {
        collective: Collective::AllReduce,
        algorithm: Algorithm::OneShot,
        dtype,
        op,
        bytes: count * dtype.size(),
        offset,
        in_place,
    };
    counts
        .into_iter()
        .flat_map(|count| {
            [shape(count, 0, true), shape(count, 1, true), shape(count, 0, false), shape(count, 3, false)]
        })
        .collect()
}

#[test]
fn every_world_size_gives_the_reference_bits() {
    for world_size in 2..=8 {
        let cases = shapes(DType::Bf16, Op::Sum);
        let count = cases.len();
        Scene::new(world_size, cases).play().assert_all_ok(world_size, count);
    }
}

#[test]
fn every_type_and_operation_gives_the_reference_bits() {
    let cases: Vec<_> =
        DType::ALL.into_iter().flat_map(|dtype| Op::ALL.map(|op| shapes(dtype, op))).flatten().collect();
    let count = cases.len();
    Scene::new(3, cases).play().assert_all_ok(3, count);
}

#[test]
fn ranks_in_processes_share_memory_through_ipc_handles() {
    let mut scene = Scene::new(8, vec![case(4096), case(100_002), case(256 << 10)]).in_processes();
    scene.job.launches = 3;
    scene.play().assert_all_ok(8, 3);
}

#[test]
fn another_node_gives_the_same_bits() {
    let digest = |name| {
        let mut scene = Scene::new(4, vec![case(60_000)]);
        scene.environment = node(name).environment();
        let played = scene.play();
        played.assert_all_ok(4, 1);
        format!(
            "{:?}",
            played.events.iter().find_map(|event| match event {
                meshreduce_checks::job::Event::Case { digest, .. } => Some(digest.clone()),
                _ => None,
            })
        )
    };
    assert_eq!(digest("hgx-h100"), digest("dgx-a100"));
}

#[test]
fn calls_of_changing_length_do_not_disturb_each_other() {
    let sizes = [2, 262_144, 16, 4096, 262_144, 2, 130_002, 16, 8192, 2, 65_536, 1026];
    let mut scene = Scene::new(4, sizes.map(case).to_vec());
    scene.job.launches = 5;
    scene.play().assert_all_ok(4, sizes.len());
}
