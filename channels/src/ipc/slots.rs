//! Which slots of a staging ring are free, and whose turn it is: shared by all channels that send from a device.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

use meshreduce_store::identity::Process;

/// The slots of a ring.
///
/// Three rules keep channels from holding each other up:
///
/// - A chunk is staged only when its receiver is ready to take it. So a slot is held for as long as two copies and two messages
///   take, unless the sender's stream is not yet ready: such a stream may wait for anything, another transfer over this ring
///   among them. Only half of the slots are given out for those; for more, a sender waits until its stream is ready.
/// - The channels to one peer leave, if they hold a slot, the last one to others, if there are others: a peer that takes nothing
///   (it is stopped) does not stop everybody else.
/// - Whoever finds no slot is served in turn.
#[derive(Debug)]
pub(super) struct Slots {
    free: Vec<u16>,
    /// How many there are.
    all: u16,
    /// How many are held for streams that were not ready.
    unready: u16,
    channels: HashMap<u64, Member>,
    /// Who has found none, in turn.
    queue: VecDeque<u64>,
}

/// A channel that sends over the ring.
#[derive(Clone, Copy, Debug)]
struct Member {
    peer: Process,
    /// How many slots it holds.
    holds: u16,
}

/// What a channel finds that wants a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is this channel's.
    Slot(u16),
    /// There will be one.
    Later,
    /// There is none for a stream that is not ready.
    OnlyReady,
}

impl Slots {
    pub(super) fn new(all: u16) -> Self {
        let (channels, queue) = (HashMap::new(), VecDeque::new());
        Self { free: (0..all).rev().collect(), all, unready: 0, channels, queue }
    }

    /// There is a channel with this number, to this peer.
    pub(super) fn join(&mut self, channel: u64, peer: Process) {
        self.channels.entry(channel).or_insert(Member { peer, holds: 0 });
    }

    /// It has gone; what it held it has given back. Whether somebody waits whose turn it is now.
    pub(super) fn leave(&mut self, channel: u64) -> bool {
        self.channels.remove(&channel);
        self.queue.retain(|waiting| *waiting != channel);
        // Who is alone may have the last slot, too.
        self.is_somebodys_turn()
    }

    fn may_take(&self, channel: u64) -> bool {
        let peer = self.channels.get(&channel).map(|member| member.peer);
        let of_peer = |member: &&Member| Some(member.peer) == peer;
        match self.free.len() {
            0 => false,
            1 => {
                let holds: u16 = self.channels.values().filter(of_peer).map(|member| member.holds).sum();
                holds == 0 || self.channels.values().all(|member| of_peer(&member))
            }
            _ => true,
        }
    }

    fn is_somebodys_turn(&self) -> bool {
        self.queue.iter().any(|waiting| self.may_take(*waiting))
    }

    /// A slot, for a stream that is ready or not; who gets none is next in turn. And whether somebody waits whose turn it is all the
    /// same: it may have looked before and has found others before it, and looks again only when it is told.
    pub(super) fn take(&mut self, channel: u64, is_ready: bool) -> (Found, bool) {
        let found = self.find(channel, is_ready);
        (found, found != Found::Later && self.is_somebodys_turn())
    }

    fn find(&mut self, channel: u64, is_ready: bool) -> Found {
        if !is_ready && self.unready >= self.all / 2 {
            self.queue.retain(|waiting| *waiting != channel);
            return Found::OnlyReady;
        }
        let before = self.queue.iter().position(|waiting| *waiting == channel);
        let mut earlier = self.queue.iter().take(before.unwrap_or(self.queue.len()));
        if !self.may_take(channel) || earlier.any(|waiting| self.may_take(*waiting)) {
            if before.is_none() {
                self.queue.push_back(channel);
            }
            return Found::Later;
        }
        if let Some(at) = before {
            self.queue.remove(at);
        }
        let Some(slot) = self.free.pop() else { return Found::Later };
        if let Some(member) = self.channels.get_mut(&channel) {
            member.holds += 1;
        }
        self.unready += u16::from(!is_ready);
        Found::Slot(slot)
    }

    /// A stream for which a slot was taken turned out to be ready.
    pub(super) fn became_ready(&mut self) {
        self.unready = self.unready.saturating_sub(1);
    }

    /// The channel gives a slot back. Whether somebody waits whose turn it is now.
    pub(super) fn give(&mut self, channel: u64, slot: u16) -> bool {
        debug_assert!(slot < self.all && !self.free.contains(&slot), "slot {slot}");
        self.free.push(slot);
        if let Some(member) = self.channels.get_mut(&channel) {
            member.holds = member.holds.saturating_sub(1);
        }
        self.is_somebodys_turn()
    }

    /// The channel has nothing to stage any more, whether or not it waits. Whether it did, and it is another's turn now.
    pub(super) fn needs_none(&mut self, channel: u64) -> bool {
        let before = self.queue.len();
        self.queue.retain(|waiting| *waiting != channel);
        self.queue.len() < before && self.is_somebodys_turn()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Channels to as many peers.
    fn with(all: u16, channels: u64) -> Slots {
        let mut slots = Slots::new(all);
        (0..channels).for_each(|channel| slots.join(channel, peer(channel as u32)));
        slots
    }

    fn peer(pid: u32) -> Process {
        Process { pid, namespace: 1, start_time: 2, clock: 3 }
    }

    fn take(slots: &mut Slots, channel: u64, is_ready: bool) -> Found {
        slots.take(channel, is_ready).0
    }

    fn slot(found: Found) -> u16 {
        match found {
            Found::Slot(slot) => slot,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_channel_alone_has_all_slots_and_beside_others_leaves_one() {
        let mut alone = with(4, 1);
        for _ in 0..4 {
            slot(take(&mut alone, 0, true));
        }
        assert_eq!(take(&mut alone, 0, true), Found::Later);
        let mut two = with(4, 2);
        for _ in 0..3 {
            slot(take(&mut two, 0, true));
        }
        assert_eq!(take(&mut two, 0, true), Found::Later);
        slot(take(&mut two, 1, true));
    }

    #[test]
    fn two_channels_take_turns() {
        let mut slots = with(1, 2);
        let mut only = slot(take(&mut slots, 0, true));
        assert_eq!((take(&mut slots, 1, true), take(&mut slots, 0, true)), (Found::Later, Found::Later));
        for turn in [1, 0, 1, 0] {
            // Whoever has waited longest gets it, even if the other one asks first.
            assert!(slots.give(1 - turn, only));
            assert_eq!(take(&mut slots, 1 - turn, true), Found::Later);
            only = slot(take(&mut slots, turn, true));
            assert_eq!(take(&mut slots, turn, true), Found::Later);
        }
    }

    #[test]
    fn streams_that_are_not_ready_get_half() {
        let mut slots = with(4, 1);
        slot(take(&mut slots, 0, false));
        slot(take(&mut slots, 0, false));
        assert_eq!(take(&mut slots, 0, false), Found::OnlyReady);
        slot(take(&mut slots, 0, true));
        slots.became_ready();
        slot(take(&mut slots, 0, false));
        assert_eq!(take(&mut with(1, 1), 0, false), Found::OnlyReady);
    }

    #[test]
    fn who_has_gone_does_not_wait_any_more() {
        let mut slots = with(1, 2);
        let only = slot(take(&mut slots, 0, true));
        assert_eq!(take(&mut slots, 1, true), Found::Later);
        slots.leave(1);
        assert!(!slots.give(0, only));
        let only = slot(take(&mut slots, 0, true));
        assert_eq!(take(&mut slots, 1, true), Found::Later);
        slots.needs_none(1);
        assert!(!slots.give(0, only));
    }

    #[test]
    fn channels_to_one_peer_leave_the_last_slot_to_others_together() {
        let mut slots = Slots::new(4);
        for (channel, pid) in [(0, 1), (1, 1), (2, 2)] {
            slots.join(channel, peer(pid));
        }
        for _ in 0..3 {
            slot(take(&mut slots, 0, true));
        }
        assert_eq!(take(&mut slots, 1, true), Found::Later, "the peer holds three");
        slot(take(&mut slots, 2, true));
        slots.leave(2);
        // Without others it may have all.
        let mut slots = Slots::new(2);
        (0..2).for_each(|channel| slots.join(channel, peer(1)));
        slot(take(&mut slots, 0, true));
        slot(take(&mut slots, 1, true));
    }

    #[test]
    fn whose_turn_it_becomes_is_told_whatever_it_becomes_by() {
        // Three wait; when there is a slot, the last one looks first, and goes to sleep behind the others.
        let waiting = || {
            let mut slots = with(3, 4);
            let held: Vec<_> = (0..3).map(|_| slots.free.pop().unwrap()).collect();
            (1..4).for_each(|channel| assert_eq!(take(&mut slots, channel, true), Found::Later));
            (slots, held)
        };
        let (mut slots, held) = waiting();
        assert!(slots.give(0, held[0]));
        assert_eq!(slots.take(3, true), (Found::Later, false));
        assert!(slots.needs_none(1), "the next one's turn");
        assert!(slots.leave(2), "the last one's");
        assert!(!slots.needs_none(1), "it did not wait");
        assert!(matches!(slots.take(3, true), (Found::Slot(_), false)));
        let (mut slots, held) = waiting();
        assert!(slots.give(0, held[0]) && slots.give(0, held[1]));
        assert!(
            matches!(slots.take(1, true), (Found::Slot(_), true)),
            "there is another slot, for the next one"
        );
    }

    proptest! {
        #[test]
        fn no_slot_is_given_twice_and_whoever_waits_is_served(
            all in 1_u16..6, steps in proptest::collection::vec((0_u64..4, any::<bool>()), 1..200)
        ) {
            let mut slots = with(all, 4);
            let mut held: Vec<Vec<u16>> = vec![Vec::new(); 4];
            for (channel, takes) in steps {
                if takes {
                    if let Found::Slot(slot) = take(&mut slots, channel, true) {
                        prop_assert!(held.iter().all(|held| !held.contains(&slot)));
                        held[channel as usize].push(slot);
                    }
                } else if let Some(slot) = held[channel as usize].pop() {
                    slots.give(channel, slot);
                }
            }
            // All give back what they have; then everyone who asks again and again gets one.
            for (channel, held) in held.iter().enumerate() {
                for slot in held {
                    slots.give(channel as u64, *slot);
                }
            }
            let mut served = [false; 4];
            for _ in 0..4 {
                for channel in 0..4 {
                    if let Found::Slot(slot) = take(&mut slots, channel, true) {
                        served[channel as usize] = true;
                        slots.give(channel, slot);
                    }
                }
            }
            prop_assert_eq!(served, [true; 4]);
        }
    }
}
