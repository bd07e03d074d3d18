//! Which slots of a staging ring are free, and whose turn it is: shared by all channels that send from a device.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

/// The slots of a ring.
///
/// Three rules keep channels from holding each other up:
///
/// - A chunk is staged only when its receiver is ready to take it. So a slot is held for as long as two copies and two messages
///   take, unless the sender's stream is not yet ready: such a stream may wait for anything, another transfer over this ring
///   among them. Only half of the slots are given out for those; for more, a sender waits until its stream is ready.
/// - A channel that holds a slot leaves the last one to others, if there are others: a peer that takes nothing (it is stopped) does
///   not stop everybody else.
/// - Whoever finds no slot is served in turn.
#[derive(Debug)]
pub(super) struct Slots {
    free: Vec<u16>,
    /// How many there are.
    all: u16,
    /// How many are held for streams that were not ready.
    unready: u16,
    /// By channel, how many it holds.
    channels: HashMap<u64, u16>,
    /// Who has found none, in turn.
    queue: VecDeque<u64>,
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

    /// There is a channel with this number.
    pub(super) fn join(&mut self, channel: u64) {
        self.channels.entry(channel).or_default();
    }

    /// It has gone; what it held it has given back.
    pub(super) fn leave(&mut self, channel: u64) {
        self.channels.remove(&channel);
        self.queue.retain(|waiting| *waiting != channel);
    }

    fn may_take(&self, channel: u64) -> bool {
        let holds = self.channels.get(&channel).copied().unwrap_or(0);
        match self.free.len() {
            0 => false,
            1 => holds == 0 || self.channels.len() == 1,
            _ => true,
        }
    }

    /// A slot, for a stream that is ready or not. Who gets none is next in turn.
    pub(super) fn take(&mut self, channel: u64, is_ready: bool) -> Found {
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
        *self.channels.entry(channel).or_default() += 1;
        self.unready += u16::from(!is_ready);
        Found::Slot(slot)
    }

    /// A stream for which a slot was taken turned out to be ready.
    pub(super) fn became_ready(&mut self) {
        self.unready = self.unready.saturating_sub(1);
    }

    /// The channel gives a slot back. Whether somebody waits.
    pub(super) fn give(&mut self, channel: u64, slot: u16) -> bool {
        debug_assert!(slot < self.all && !self.free.contains(&slot), "slot {slot}");
        self.free.push(slot);
        if let Some(holds) = self.channels.get_mut(&channel) {
            *holds = holds.saturating_sub(1);
        }
        !self.queue.is_empty()
    }

    /// The channel has nothing to stage any more, whether or not it waits.
    pub(super) fn needs_none(&mut self, channel: u64) {
        self.queue.retain(|waiting| *waiting != channel);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(all: u16, channels: u64) -> Slots {
        let mut slots = Slots::new(all);
        (0..channels).for_each(|channel| slots.join(channel));
        slots
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
            slot(alone.take(0, true));
        }
        assert_eq!(alone.take(0, true), Found::Later);
        let mut two = with(4, 2);
        for _ in 0..3 {
            slot(two.take(0, true));
        }
        assert_eq!(two.take(0, true), Found::Later);
        slot(two.take(1, true));
    }

    #[test]
    fn two_channels_take_turns() {
        let mut slots = with(1, 2);
        let mut only = slot(slots.take(0, true));
        assert_eq!((slots.take(1, true), slots.take(0, true)), (Found::Later, Found::Later));
        for turn in [1, 0, 1, 0] {
            // Whoever has waited longest gets it, even if the other one asks first.
            assert!(slots.give(1 - turn, only));
            assert_eq!(slots.take(1 - turn, true), Found::Later);
            only = slot(slots.take(turn, true));
            assert_eq!(slots.take(turn, true), Found::Later);
        }
    }

    #[test]
    fn streams_that_are_not_ready_get_half() {
        let mut slots = with(4, 1);
        slot(slots.take(0, false));
        slot(slots.take(0, false));
        assert_eq!(slots.take(0, false), Found::OnlyReady);
        slot(slots.take(0, true));
        slots.became_ready();
        slot(slots.take(0, false));
        assert_eq!(with(1, 1).take(0, false), Found::OnlyReady);
    }

    #[test]
    fn who_has_gone_does_not_wait_any_more() {
        let mut slots = with(1, 2);
        let only = slot(slots.take(0, true));
        assert_eq!(slots.take(1, true), Found::Later);
        slots.leave(1);
        assert!(!slots.give(0, only));
        let only = slot(slots.take(0, true));
        assert_eq!(slots.take(1, true), Found::Later);
        slots.needs_none(1);
        assert!(!slots.give(0, only));
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
                    if let Found::Slot(slot) = slots.take(channel, true) {
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
                    if let Found::Slot(slot) = slots.take(channel, true) {
                        served[channel as usize] = true;
                        slots.give(channel, slot);
                    }
                }
            }
            prop_assert_eq!(served, [true; 4]);
        }
    }
}
