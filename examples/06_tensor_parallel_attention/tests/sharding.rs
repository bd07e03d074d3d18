//! The sharding itself, with the sums over the ranks made on the host.

use std::ops::Range;

use tensor_parallel_attention::model::{HEADS, HIDDEN, Layer, add, normalised, tokens};
use tensor_parallel_attention::shard::{OWN_TOKENS, TOLERANCE, difference, share};

/// A layer as the ranks compute it, each its share as `share_of` has it, of all tokens.
fn sharded(
    layer: &Layer,
    tokens: &[f32],
    world_size: usize,
    share_of: impl Fn(usize, usize) -> Range<usize>,
) -> Vec<f32> {
    let mut tokens = tokens.to_vec();
    let all = normalised(&tokens);
    (0..world_size).for_each(|rank| add(&mut tokens, &layer.attention(&all, share_of(HEADS, rank))));
    let all = normalised(&tokens);
    (0..world_size).for_each(|rank| add(&mut tokens, &layer.feed_forward(&all, share_of(HIDDEN, rank))));
    tokens
}

#[test]
fn every_head_and_hidden_unit_belongs_to_exactly_one_rank() {
    for world_size in 1..=8 {
        for count in [HEADS, HIDDEN] {
            let shares: Vec<usize> =
                (0..world_size).flat_map(|rank| share(count, rank, world_size)).collect();
            assert_eq!(shares, (0..count).collect::<Vec<_>>(), "{world_size} ranks");
        }
    }
}

#[test]
fn every_world_size_gives_the_plain_layer_within_tolerance() {
    let layer = Layer::drawn(0);
    for world_size in 2..=8 {
        let tokens = tokens(OWN_TOKENS * world_size, 9);
        let sharded = sharded(&layer, &tokens, world_size, |count, rank| share(count, rank, world_size));
        let difference = difference(&sharded, &layer.whole(&tokens));
        assert!(difference > 0.0 && difference < TOLERANCE / 10.0, "{world_size} ranks: {difference}");
    }
}

#[test]
fn leaving_out_or_doubling_a_ranks_part_is_beyond_the_tolerance() {
    let layer = Layer::drawn(0);
    for world_size in 2..=8 {
        let tokens = tokens(OWN_TOKENS * world_size, 9);
        let plain = layer.whole(&tokens);
        for wrong in 0..world_size {
            for by in [None, Some((wrong + 1) % world_size)] {
                let share_of = |count: usize, rank: usize| match (rank == wrong, by) {
                    (false, _) => share(count, rank, world_size),
                    (true, Some(other)) => share(count, other, world_size),
                    (true, None) => 0..0,
                };
                let difference = difference(&sharded(&layer, &tokens, world_size, share_of), &plain);
                assert!(difference > 10.0 * TOLERANCE, "{world_size} ranks, rank {wrong}: {difference}");
            }
        }
    }
}

#[test]
fn a_nan_stands_out() {
    assert!(difference(&[1.0, f32::NAN], &[1.0, 2.0]).is_nan());
    assert!((difference(&[1.0, 4.0], &[1.5, 2.0]) - 2.0).abs() < f32::EPSILON);
}
