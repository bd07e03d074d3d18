//! The sharding itself, with the sum over the ranks made on the host in the library's order.

use half::bf16;
use meshreduce_wire::tree;
use tensor_parallel_mlp::{
    data::{CLASSES, Digits},
    model::{HIDDEN, Mlp},
    shard::{Difference, is_decided, partial, tolerance, units_of},
};

/// The all-reduce as the library defines it: widened to fp32, added over the tree, rounded once.
fn all_reduced(partials: &[Vec<bf16>]) -> Vec<bf16> {
    fn reduce<const W: usize>(partials: &[Vec<bf16>], index: usize) -> bf16 {
        let values: [f32; W] = std::array::from_fn(|rank| partials[rank][index].to_f32());
        bf16::from_f32(tree::reduce(values, |a, b| a + b))
    }
    let reduce = [reduce::<2>, reduce::<3>, reduce::<4>, reduce::<5>, reduce::<6>, reduce::<7>, reduce::<8>]
        [partials.len() - 2];
    (0..partials[0].len()).map(|index| reduce(partials, index)).collect()
}

fn partials(mlp: &Mlp, digits: &Digits, world_size: usize) -> Vec<Vec<bf16>> {
    (0..world_size).map(|rank| partial(mlp, &digits.pixels, rank, world_size)).collect()
}

#[test]
fn every_world_size_gives_the_unsharded_result_within_tolerance() {
    let (mlp, digits) = (Mlp::trained().unwrap(), Digits::held_out());
    let unsharded = mlp.unsharded(&digits.pixels);
    for world_size in 2..=8 {
        let partials = partials(&mlp, &digits, world_size);
        let sharded = all_reduced(&partials);
        let tolerance = tolerance(&mlp, &digits.pixels, &partials, &sharded, &unsharded);
        let difference = Difference::between(&sharded, &unsharded, &tolerance);
        assert!(difference.is_within_tolerance(), "{world_size} ranks: {difference:?}");
        assert!(
            difference.greatest > 0.0,
            "{world_size} ranks: the partials are rounded, so some value moves"
        );
    }
}

#[test]
fn every_world_size_reads_the_digits_as_the_unsharded_network_does() {
    let (mlp, digits) = (Mlp::trained().unwrap(), Digits::held_out());
    let unsharded = mlp.unsharded(&digits.pixels);
    let expected = mlp.classify(&unsharded);
    for world_size in 2..=8 {
        let partials = partials(&mlp, &digits, world_size);
        let sharded = all_reduced(&partials);
        let predicted = mlp.classify(&sharded);
        let tolerance = tolerance(&mlp, &digits.pixels, &partials, &sharded, &unsharded);
        let decided = is_decided(&mlp, &unsharded, &tolerance);
        for image in 0..digits.len() {
            assert!(
                !decided[image] || predicted[image] == expected[image],
                "{world_size} ranks, image {image}"
            );
        }
        let undecided = decided.iter().filter(|&&decided| !decided).count();
        assert!(
            undecided * 50 < digits.len(),
            "{world_size} ranks: {undecided} images are too close to call"
        );
    }
}

#[test]
fn leaving_out_or_doubling_a_rank_is_beyond_the_tolerance() {
    let (mlp, digits) = (Mlp::trained().unwrap(), Digits::held_out());
    let unsharded = mlp.unsharded(&digits.pixels);
    for world_size in 2..=8 {
        let right = partials(&mlp, &digits, world_size);
        for rank in 0..world_size {
            let mut missing = right.clone();
            missing[rank].fill(bf16::ZERO);
            let mut doubled = right.clone();
            doubled[rank] = right[(rank + 1) % world_size].clone();
            for wrong in [missing, doubled] {
                let sharded = all_reduced(&wrong);
                let tolerance = tolerance(&mlp, &digits.pixels, &right, &sharded, &unsharded);
                let difference = Difference::between(&sharded, &unsharded, &tolerance);
                assert!(!difference.is_within_tolerance(), "{world_size} ranks, rank {rank}: {difference:?}");
            }
        }
    }
}

#[test]
fn a_shard_of_the_first_layer_has_the_bits_of_the_whole() {
    let (mlp, digits) = (Mlp::trained().unwrap(), Digits::held_out());
    let whole = mlp.hidden(&digits.pixels, 0..HIDDEN);
    for (rank, world_size) in [(0, 2), (1, 3), (6, 7), (7, 8)] {
        let units = units_of(rank, world_size);
        let shard = mlp.hidden(&digits.pixels, units.clone());
        for (whole, shard) in whole.chunks_exact(HIDDEN).zip(shard.chunks_exact(units.len())) {
            assert_eq!(whole[units.clone()], *shard);
        }
    }
    assert_eq!(mlp.unsharded(&digits.pixels).len(), digits.len() * CLASSES);
}
