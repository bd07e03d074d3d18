//! How receives end, and in what order their chunks go on.

use meshreduce_device::Device;

use super::*;
use crate::channel::{Direction, Ready};
use crate::span::Span;
use crate::transfer::Transfer;
use crate::transfer::testing::started;

fn chunk(turn: u32, state: State) -> Chunk {
    Chunk { number: u64::from(turn) % 2, bytes: 10, slot: turn as u16, filled: 1, state, turn }
}

/// Receive 0 of 20 bytes, both chunks of which are under way.
fn under_way(fate: Option<Error>) -> (Receives, Transfer) {
    let (ticket, transfer) = started(Direction::Receive, 0, 20);
    let span = Span { device: Device::Cpu, address: 0, bytes: 20 };
    let operation = Operation { direction: Direction::Receive, span, ready: Ready::Now, ticket };
    let receiving = Receiving { operation, is_wanted: true, enqueued: 20, passed: 0, fate };
    (Receives { waiting: BTreeMap::from([(0, receiving)]), next: 1, ..Receives::default() }, transfer)
}

#[test]
fn a_receive_is_done_when_all_of_its_chunks_have_come() {
    let (mut receives, transfer) = under_way(None);
    receives.count(&chunk(0, State::Filled));
    assert_eq!((transfer.poll().unwrap(), transfer.moved()), (false, 10));
    receives.count(&chunk(2, State::Filled));
    assert_eq!((transfer.poll().unwrap(), transfer.moved()), (true, 20));
}

#[test]
fn a_receive_with_a_fate_is_never_done_whatever_its_chunks_brought() {
    use State::{Filled, Unfilled};
    for states in [[Filled, Filled], [Filled, Unfilled], [Unfilled, Filled], [Unfilled, Unfilled]] {
        let (mut receives, transfer) = under_way(Some(Error::Dropped));
        receives.count(&chunk(0, states[0]));
        assert!(!transfer.poll().unwrap(), "the second copy is under way");
        receives.count(&chunk(2, states[1]));
        assert!(matches!(transfer.poll(), Err(Error::Dropped)), "{states:?}");
        assert_eq!(transfer.moved(), 0);
    }
}

#[test]
fn a_fate_between_two_chunks_is_final_and_what_came_before_it_is_counted() {
    let (mut receives, transfer) = under_way(None);
    receives.count(&chunk(0, State::Filled));
    receives.waiting.get_mut(&0).unwrap().fate = Some(Error::Dropped);
    receives.settle(0);
    assert!(!transfer.poll().unwrap(), "the second copy is under way");
    receives.count(&chunk(2, State::Unfilled));
    assert!(matches!(transfer.poll(), Err(Error::Dropped)));
    assert_eq!(transfer.moved(), 10);
}

#[test]
fn chunks_go_on_in_order_and_say_whether_they_were_filled() {
    // Of 1 nobody wants the bytes; 0 comes late.
    let mut chunks: VecDeque<_> = (0..6).map(|turn| chunk(turn, State::Awaited)).collect();
    let see = |filled: &[u32]| {
        let filled = filled.to_vec();
        move |chunk: &Chunk| match filled.contains(&chunk.turn) {
            true => State::Filled,
            false if chunk.number == 1 => State::Unfilled,
            false => State::Awaited,
        }
    };
    let states = |chunks: &VecDeque<Chunk>| chunks.iter().map(|chunk| chunk.state).collect::<Vec<_>>();
    assert_eq!(pass(&mut chunks, see(&[2])), None, "behind one that is awaited nothing goes on");
    assert_eq!(states(&chunks), [State::Awaited; 6]);
    assert_eq!(pass(&mut chunks, see(&[0, 2, 3])), Some(3));
    assert_eq!(pass(&mut chunks, see(&[0, 1, 2, 3])), None, "what went on unfilled stays so");
    use State::{Awaited, Filled, Unfilled};
    assert_eq!(states(&chunks), [Filled, Unfilled, Filled, Filled, Awaited, Awaited]);
}
