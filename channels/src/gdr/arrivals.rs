//! Batches of one-sided writes, on the side that is written to.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::channel::Io;
use crate::error::Error;
use crate::gdr::connect::Connections;
use crate::gdr::hub::Hub;
use crate::gdr::message::Message;

/// More receives are not asked for by anybody who means well.
const MOST_WANTED: u32 = 1024;

/// Batches that are coming in, and the receives that they use up.
#[derive(Debug)]
pub(crate) struct Arrivals {
    hub: Arc<Hub>,
    peer: Arc<str>,
    /// In the order of their announcements, in which they are counted.
    announced: VecDeque<Announced>,
    /// By batch, the queue pairs that have delivered.
    arrived: HashMap<u32, u8>,
    /// Receives that the other side wants, by queue pair.
    wanted: BTreeMap<u8, u32>,
}

#[derive(Clone, Copy, Debug)]
struct Announced {
    batch: u32,
    counter: u32,
    bytes: u64,
    parts: u8,
}

impl Arrivals {
    pub(crate) fn new(hub: &Arc<Hub>, peer: &Arc<str>) -> Self {
        Self {
            hub: Arc::clone(hub),
            peer: Arc::clone(peer),
            announced: VecDeque::new(),
            arrived: HashMap::new(),
            wanted: BTreeMap::new(),
        }
    }

    /// The other side wants receives to be posted.
    pub(crate) fn wanted(
        &mut self,
        pair: u8,
        receives: u32,
        connections: &mut Connections,
    ) -> Result<(), Error> {
        let wanted = self.wanted.entry(pair).or_default();
        *wanted = wanted.saturating_add(receives);
        if *wanted > MOST_WANTED || connections.pair(pair).is_none() {
            return Err(Error::protocol(
                &self.peer,
                format!("it wants {receives} receives of queue pair {pair}"),
            ));
        }
        Ok(())
    }

    /// The other side is writing a batch.
    pub(crate) fn announced(&mut self, batch: u32, counter: u32, bytes: u64, parts: u8) {
        self.announced.push_back(Announced { batch, counter, bytes, parts });
    }

    /// A queue pair has delivered the last of its writes of a batch.
    pub(crate) fn arrived(
        &mut self,
        pair: u8,
        batch: u32,
        connections: &mut Connections,
    ) -> Result<(), Error> {
        let Some(pair) = connections.pair(pair).filter(|pair| pair.standing > 0) else {
            return Err(Error::protocol(&self.peer, "a batch uses a receive that was not granted"));
        };
        pair.standing -= 1;
        let standing = &mut self.hub.state().nics[pair.nic].standing;
        *standing = standing.saturating_sub(1);
        let arrived = self.arrived.entry(batch).or_default();
        *arrived = arrived.saturating_add(1);
        Ok(())
    }

    /// The next batch that has come in whole, with its counter and bytes; to be counted once it is visible.
    pub(crate) fn take_complete(&mut self) -> Option<(u32, u64)> {
        let first = self.announced.front()?;
        if self.arrived.get(&first.batch).copied().unwrap_or(0) < first.parts {
            return None;
        }
        let Announced { batch, counter, bytes, .. } = self.announced.pop_front()?;
        self.arrived.remove(&batch);
        Some((counter, bytes))
    }

    /// Whether something is to be looked for.
    pub(crate) fn is_looking(&self) -> bool {
        !self.announced.is_empty() || self.wanted.values().any(|wanted| *wanted > 0)
    }

    /// Posts receives that the other side wants, and says so. What may not be used for long is at most half of a NIC's; a single
    /// one is wanted for a batch that is there, and comes back.
    pub(crate) fn grant(&mut self, connections: &mut Connections, io: &mut Io<'_>) -> bool {
        let mut moved = false;
        for (index, wanted) in self.wanted.iter_mut().filter(|(_, wanted)| **wanted > 0) {
            let Some(pair) = connections.pair(*index) else { continue };
            let mut state = self.hub.state();
            let nic = &state.nics[pair.nic];
            let room = (nic.receives.limit() / 2).saturating_sub(nic.standing);
            let some = if pair.standing == 0 { room.max(1) } else { room };
            // A queue pair that has failed says so itself.
            let receives = pair.post_receives(&mut state, (*wanted).min(some)).unwrap_or(0);
            if receives > 0 {
                *wanted -= receives;
                pair.standing += receives;
                state.nics[pair.nic].standing += receives;
                moved = true;
                io.send(Message::Granted { pair: *index, receives }.to_bytes());
            }
        }
        moved
    }
}
