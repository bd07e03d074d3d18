//! Where a transfer goes: its plan, and how far each queue pair is with it.
#![forbid(unsafe_code)]

use std::time::Instant;

use crate::gdr::connect::Connections;
use crate::gdr::hub::{Hub, State};
use crate::gdr::memory::Registered;
use crate::gdr::mutant::Mutant;
use crate::gdr::plan::Plan;

/// Where a transfer goes.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) plan: Plan,
    pub(crate) lanes: Vec<ReceiveLane>,
    /// The sender was asked to cancel.
    pub(crate) revoked: bool,
    /// When it was told.
    pub(crate) opened: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct ReceiveLane {
    pub(crate) pair: u8,
    pub(crate) memory: Registered,
    /// Receives that were posted, and that the sender knows of.
    pub(crate) posted: u64,
    /// Pieces that have come.
    pub(crate) arrived: u64,
}

impl Target {
    /// For `bytes` bytes, over queue pairs with whom the memory is registered.
    pub(crate) fn new(
        hub: &Hub,
        bytes: u64,
        mut lanes: Vec<ReceiveLane>,
        connections: &mut Connections,
    ) -> Option<Self> {
        let longest = longest(hub, connections, &lanes);
        let plan = Plan::new(bytes, longest, lanes.len());
        // Pieces begin at pages, and so there may be fewer of them than queue pairs.
        lanes.truncate(usize::try_from(plan.pieces()).unwrap_or(usize::MAX));
        let plan = Plan::told(bytes, plan.piece(), lanes.len())?;
        Some(Self { plan, lanes, revoked: false, opened: None })
    }

    pub(crate) fn is_complete(&self) -> bool {
        let mut lanes = self.lanes.iter().enumerate();
        lanes.all(|(index, lane)| lane.arrived == self.plan.pieces_over(index))
    }

    /// Whether there is a receive for each piece.
    pub(crate) fn is_posted(&self) -> bool {
        self.unposted().next().is_none()
    }

    /// The queue pairs over which pieces come that have no receive.
    pub(crate) fn unposted(&self) -> impl Iterator<Item = u8> {
        let lanes = self.lanes.iter().enumerate();
        lanes.filter(|(index, lane)| lane.posted < self.plan.pieces_over(*index)).map(|(_, lane)| lane.pair)
    }

    /// Posts receives for pieces that have none, as many as there are credits for, and at most so many on each lane; how many, by
    /// lane. A queue pair that has failed says so itself.
    pub(crate) fn post(&mut self, state: &mut State, most: u32, connections: &mut Connections) -> Vec<u32> {
        let mut all = Vec::with_capacity(self.lanes.len());
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let wanted = self.plan.pieces_over(index) - lane.posted;
            let wanted = u32::try_from(wanted).unwrap_or(u32::MAX).min(most);
            let posted = match connections.pair(lane.pair) {
                Some(pair) if wanted > 0 => pair.post_receives(state, wanted).unwrap_or(0),
                _ => 0,
            };
            lane.posted += u64::from(posted);
            all.push(posted);
        }
        all
    }
}

/// How long a piece may be: no longer than the longest message of either end of any of the queue pairs, nor than this side wants.
fn longest(hub: &Hub, connections: &mut Connections, lanes: &[ReceiveLane]) -> u64 {
    let of = |lane: &ReceiveLane| match hub.config.makes(Mutant::OwnLongestMessage) {
        true => connections.own_longest(lane.pair),
        false => connections.longest(lane.pair),
    };
    let ports = lanes.iter().filter_map(of).min();
    u64::from(ports.map_or(hub.config.chunk, |longest| longest.min(hub.config.chunk)))
}

/// How many receives are posted at first: of a sender who may not come for long, no more than others can do without.
pub(crate) fn most_receives(hub: &Hub, sender_ready: bool) -> u32 {
    if sender_ready { u32::MAX } else { (hub.config.credits / 8).max(1) }
}

/// Whether the NICs of all lanes have more than half of their receives to give.
pub(crate) fn has_plenty(hub: &Hub, connections: &mut Connections, lanes: &[u8]) -> bool {
    let state = hub.state();
    lanes.iter().all(|index| {
        connections.pair(*index).is_some_and(|pair| {
            let receives = &state.nics[pair.nic].receives;
            receives.free() > receives.limit() / 2
        })
    })
}
