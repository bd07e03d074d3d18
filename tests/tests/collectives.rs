//! All-gather, reduce-scatter, broadcast, reduce, all-to-all and barrier give, byte for byte, what plain copies and the reference of
//! the reduction give.

use meshreduce::{Algorithm, Collective, Config, Isa, Limits};
use meshreduce_tests::calls::new_stream;
use meshreduce_tests::collectives::{self, Case};
use meshreduce_tests::in_process::{config, ranks};

const OTHERS: [Collective; 6] = [
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::Broadcast,
    Collective::Reduce,
    Collective::AllToAll,
    Collective::Barrier,
];

fn drawn(world_size: usize, each: usize, most: usize, seed: u64) -> Vec<Case> {
    collectives::drawn(&OTHERS, world_size, each, most, seed)
}

/// Plays the cases one behind the other on one lane: what one leaves in packet memory and staging is what the next finds there.
fn play(world_size: usize, config: &Config, cases: &[Case]) {
    ranks(world_size, config, |communicator| {
        let stream = new_stream();
        let rank = communicator.rank();
        let mut lane = communicator.lane(0).unwrap();
        for (seed, case) in cases.iter().enumerate() {
            case.check(&mut lane, rank, seed as u64, 2, &stream).unwrap();
        }
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn by_packets_every_collective_gives_what_it_must() {
    for world_size in 2..=8 {
        for isa in Isa::ALL {
            play(world_size, &config().latest_isa(isa), &drawn(world_size, 4, 700, world_size as u64));
        }
    }
}

#[test]
fn by_barriers_every_collective_gives_what_it_must() {
    let limits = Limits::default().without_packets();
    for world_size in 2..=8 {
        play(world_size, &config().limits(limits), &drawn(world_size, 6, 700, 100 + world_size as u64));
    }
}

#[test]
fn packets_and_barriers_may_follow_one_another() {
    // About half of the slices are longer than what goes by packets.
    let limits = Limits { one_shot_ll: Some(2048), two_shot_ll: Some(4096), ..Limits::default() };
    for world_size in [2, 3, 5, 8] {
        play(world_size, &config().limits(limits), &drawn(world_size, 12, 900, 200 + world_size as u64));
    }
}

#[test]
fn slices_that_staging_does_not_hold_go_in_pieces() {
    let limits = Limits { one_shot: 4096, two_shot: 4096, ..Limits::default().without_packets() };
    for world_size in [2, 5, 8] {
        let mut cases = drawn(world_size, 6, 6000, 300 + world_size as u64);
        // Of these no rank knows how long all slices are.
        cases.retain(|case| !(case.lists && case.collective == Collective::AllToAll));
        play(world_size, &config().limits(limits), &cases);
    }
}

#[test]
fn calls_go_on_where_the_count_of_packets_wraps() {
    for first in [(1 << 30) - 5, (1 << 31) - 5, (1 << 32) - 5] {
        let cases = drawn(3, 3, 300, first);
        play(3, &config().first_call_number(first), &cases);
    }
}

#[test]
fn the_selector_says_what_takes_a_slice() {
    ranks(4, &config(), |communicator| {
        let select = |collective, bytes| communicator.select_for(collective, bytes);
        assert_eq!(select(Collective::AllGather, 8 << 10), Some(Algorithm::ExchangeLl));
        assert_eq!(select(Collective::Broadcast, 1 << 20), Some(Algorithm::Exchange));
        assert_eq!(select(Collective::ReduceScatter, 8 << 10), Some(Algorithm::ReduceScatterLl));
        assert_eq!(select(Collective::AllToAll, 7 << 20), None);
        assert_eq!(select(Collective::AllReduce, 8 << 10), Some(Algorithm::OneShotLl));
        communicator.close().unwrap();
    });
}
