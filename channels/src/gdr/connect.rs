//! How the queue pairs of a channel come about.
//!
//! None is made before it is needed: the first for the first transfer, those of further NICs for the first transfer that is striped.
//! The side that has connected chooses the ports, and tries others where two do not reach each other:
//!
//! 1. it makes a queue pair and says so ([`Message::Open`]);
//! 2. the other makes its own, to the point where it can send and receive, and answers ([`Message::Opened`]);
//! 3. the first side connects its own and writes nothing, with a number. When that is acknowledged, packets go both ways, which all
//!    the calls before do not prove: where two ports do not reach each other, they mostly succeed.
//!
//! When what is needed is there, or as much of it as came up in time ([`Choice::close_late`]), both sides know which queue pairs that
//! is ([`Message::Settled`]). A pair of ports that does not come up in time is remembered for all channels, and is the last to be tried
//! for a while.

mod begin;
mod choose;

use std::sync::Arc;
use std::time::Instant;

use meshreduce_verbs_loader::QueuePair;

use choose::By;

use crate::channel::{Io, Pair as Devices, Side};
use crate::error::Error;
use crate::gdr::choice::Choice;
use crate::gdr::descriptor::Served;
use crate::gdr::hub::Hub;
use crate::gdr::job::Job;
use crate::gdr::making::{End, greet, random_sequence, write_nothing};
use crate::gdr::message::{Message, Open};
use crate::gdr::queue_pair::Pair;
use crate::gdr::rails::{Candidates, Pairing};

/// Receives that the other side has to spare are used up so many at a time.
const TURN: u32 = 64;
/// No queue pair has more of them.
const MOST_SPARE: u32 = 1 << 16;

/// The queue pairs of a channel.
#[derive(Debug)]
pub(crate) struct Connections {
    hub: Arc<Hub>,
    /// The local device's place among the served ones.
    served: usize,
    channel: u32,
    devices: Devices,
    peer: Arc<str>,
    local: Served,
    remote: Served,
    /// By their numbers.
    attempts: Vec<Attempt>,
    /// On the connecting side.
    choice: Option<Choice>,
    /// What was needed so far: one queue pair, or all; and since when.
    needed: Option<(bool, Instant)>,
    settled: Option<Settled>,
}

#[derive(Debug)]
struct Settled {
    all: bool,
    pairs: Vec<u8>,
}

#[derive(Debug)]
struct Attempt {
    pairing: Pairing,
    begun: Instant,
    sequence: u32,
    stage: Stage,
}

type Making = Job<Result<Arc<QueuePair>, String>>;

#[derive(Debug)]
enum Stage {
    /// The queue pair is being made; on the side that was asked, connected as well.
    Making(Making),
    /// On the side that was asked: the receive for the greeting is not posted yet.
    Made(Pair),
    /// The other side is to make its own.
    Offered(Arc<QueuePair>),
    /// It has, and this one is being connected.
    Connecting(Making),
    /// It is connected; the greeting is not posted yet.
    Connected(Pair),
    /// The greeting is under way.
    Greeting(Pair),
    /// It carries transfers.
    Up(Pair),
    /// It came to nothing. What is still being made is nobody's.
    Over(Option<Making>),
    /// On the side that was asked: it was not heard of yet, but of one behind it. (They are offered as they are made.)
    Unknown,
}

impl Connections {
    pub(crate) fn new(
        hub: &Arc<Hub>,
        (served, channel): (usize, u32),
        (devices, side, peer): (Devices, Side, &Arc<str>),
        (local, remote): (Served, Served),
    ) -> Self {
        let choice =
            (side == Side::Connecting).then(|| Choice::new(Candidates::new(&local.ports, &remote.ports)));
        Self {
            hub: Arc::clone(hub),
            served,
            channel,
            devices,
            peer: Arc::clone(peer),
            local,
            remote,
            attempts: Vec::new(),
            choice,
            needed: None,
            settled: None,
        }
    }

    /// Says what is needed: one queue pair, or all. Whether it is there.
    pub(crate) fn need(&mut self, all: bool, io: &mut Io<'_>) -> bool {
        if self.settled.as_ref().is_some_and(|settled| settled.all || !all) {
            return true;
        }
        if self.note(all, io.now()) && self.choice.is_none() {
            io.send(Message::Need { all }.to_bytes());
        }
        false
    }

    /// Notes what is needed; whether it was not before.
    fn note(&mut self, all: bool, now: Instant) -> bool {
        let more = self.needed.is_none_or(|(needed, _)| all && !needed);
        if more {
            self.needed = Some((all, now));
        }
        more
    }

    /// The queue pairs that carry transfers, in the order of lanes. As many as were needed last; so far as they are there.
    pub(crate) fn lanes(&self) -> &[u8] {
        self.settled.as_ref().map_or(&[], |settled| &settled.pairs)
    }

    /// A queue pair that is up.
    pub(crate) fn pair(&mut self, index: u8) -> Option<&mut Pair> {
        match &mut self.attempts.get_mut(usize::from(index))?.stage {
            Stage::Made(pair) | Stage::Connected(pair) | Stage::Greeting(pair) | Stage::Up(pair) => {
                Some(pair)
            }
            _ => None,
        }
    }

    /// All queue pairs that something may be under way on.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.attempts.iter().filter_map(|attempt| match &attempt.stage {
            Stage::Made(pair) | Stage::Connected(pair) | Stage::Greeting(pair) | Stage::Up(pair) => {
                Some(pair)
            }
            _ => None,
        })
    }

    /// Those that carry transfers.
    pub(crate) fn settled(&self) -> impl Iterator<Item = &Pair> {
        self.lanes().iter().filter_map(|index| match &self.attempts.get(usize::from(*index))?.stage {
            Stage::Up(pair) => Some(pair),
            _ => None,
        })
    }

    /// The ports of a queue pair, by their places in the descriptors.
    pub(crate) fn pairing(&self, index: u8) -> Option<Pairing> {
        self.attempts.get(usize::from(index)).map(|attempt| attempt.pairing)
    }

    /// The longest message that both ends of a queue pair take.
    pub(crate) fn longest(&self, index: u8) -> Option<u32> {
        let (here, there) = self.attempts.get(usize::from(index))?.pairing;
        Some(self.local.ports[here].longest.min(self.remote.ports[there].longest))
    }

    /// The longest message that this end takes.
    pub(crate) fn own_longest(&self, index: u8) -> Option<u32> {
        let (here, _) = self.attempts.get(usize::from(index))?.pairing;
        Some(self.local.ports[here].longest)
    }

    /// Whether something is being made or tried.
    pub(crate) fn is_busy(&self) -> bool {
        let trying =
            |attempt: &Attempt| !matches!(attempt.stage, Stage::Up(_) | Stage::Over(_) | Stage::Unknown);
        self.lacks_something() || self.attempts.iter().any(trying)
    }

    /// Whether something is needed that is not there.
    fn lacks_something(&self) -> bool {
        self.needed.is_some_and(|(all, _)| self.settled.as_ref().is_none_or(|settled| all && !settled.all))
    }

    /// The other side needs queue pairs.
    pub(crate) fn heard_need(&mut self, all: bool, now: Instant) -> Result<(), Error> {
        if self.choice.is_none() {
            return Err(self.nonsense("it asks for queue pairs that it is to make itself".into()));
        }
        self.note(all, now);
        Ok(())
    }

    /// The other side wants a queue pair.
    pub(crate) fn heard_open(&mut self, open: Open, now: Instant) -> Result<(), Error> {
        let Open { pair, here, there, queue_pair, sequence } = open;
        // What is here for the one is there for the other.
        let pairing = (usize::from(there), usize::from(here));
        let known = pairing.0 < self.local.ports.len() && pairing.1 < self.remote.ports.len();
        if self.choice.is_some() || !known || !matches!(self.at(pair, now).stage, Stage::Unknown) {
            return Err(self.nonsense(format!("{open:?}")));
        }
        let own = random_sequence()?;
        let end = End { queue_pair, sequence };
        let stage = Stage::Making(self.make(pairing, own, Some(end))?);
        *self.at(pair, now) = Attempt { pairing, begun: now, sequence: own, stage };
        Ok(())
    }

    /// The attempt of this number, of which nothing may have been heard yet.
    fn at(&mut self, pair: u8, now: Instant) -> &mut Attempt {
        let pair = usize::from(pair);
        let fresh = || Attempt { pairing: (0, 0), begun: now, sequence: 0, stage: Stage::Unknown };
        self.attempts.resize_with(self.attempts.len().max(pair + 1), fresh);
        &mut self.attempts[pair]
    }

    /// The other side has made its queue pair.
    pub(crate) fn heard_opened(&mut self, pair: u8, queue_pair: u32, sequence: u32) -> Result<(), Error> {
        let Some(attempt) = self.attempts.get_mut(usize::from(pair)) else {
            return Err(self.nonsense(format!("queue pair {pair} is opened, which was not offered")));
        };
        let made = match std::mem::replace(&mut attempt.stage, Stage::Over(None)) {
            Stage::Offered(made) => made,
            // It was given up meanwhile.
            over @ Stage::Over(_) => {
                attempt.stage = over;
                return Ok(());
            }
            other => {
                attempt.stage = other;
                return Err(self.nonsense(format!("queue pair {pair} is opened a second time")));
            }
        };
        let (pairing, own) = (attempt.pairing, attempt.sequence);
        let connect = self.connecting(pairing, own, End { queue_pair, sequence })?;
        let job = self.job(move || connect(&made).map(|()| made))?;
        self.attempts[usize::from(pair)].stage = Stage::Connecting(job);
        Ok(())
    }

    /// The other side cannot make, or does not want any more, a queue pair.
    pub(crate) fn heard_over(&mut self, pair: u8, what: &str, io: &mut Io<'_>) -> Result<(), Error> {
        if usize::from(pair) >= self.attempts.len() && self.choice.is_some() {
            return Err(self.nonsense(format!("queue pair {pair} is refused, which was not offered")));
        }
        let up = matches!(self.at(pair, io.now()).stage, Stage::Up(_));
        // Whoever has connected knows it to be up, and then the other one has made it; that one is told when both may use it.
        if self.lanes().contains(&pair) || (up && self.choice.is_some()) {
            return Err(self.nonsense(format!("queue pair {pair} is given up, which is up")));
        }
        if matches!(self.at(pair, io.now()).stage, Stage::Unknown) {
            self.at(pair, io.now()).stage = Stage::Over(None);
            return Ok(());
        }
        let why = format!("{} says: {what}", self.peer);
        self.give_up(pair, why, By::Peer, io);
        Ok(())
    }

    /// The other side has chosen.
    pub(crate) fn heard_settled(&mut self, all: bool, pairs: Vec<u8>) -> Result<(), Error> {
        let up = |index: &u8| {
            let attempt = self.attempts.get(usize::from(*index));
            attempt.is_some_and(|attempt| matches!(attempt.stage, Stage::Up(_)))
        };
        if self.choice.is_some() || pairs.is_empty() || !pairs.iter().all(up) {
            return Err(self.nonsense(format!("queue pairs {pairs:?} are settled, which are not up")));
        }
        self.settled = Some(Settled { all, pairs });
        Ok(())
    }

    /// The greeting was acknowledged.
    pub(crate) fn greeted(&mut self, index: u8) {
        let Some(attempt) = self.attempts.get_mut(usize::from(index)) else { return };
        attempt.stage = match std::mem::replace(&mut attempt.stage, Stage::Over(None)) {
            Stage::Greeting(pair) => Stage::Up(pair),
            other => other,
        };
    }

    /// Goes on with what is being made. Whether anything has moved.
    ///
    /// # Errors
    ///
    /// No two ports reach each other.
    pub(crate) fn poll(&mut self, io: &mut Io<'_>) -> Result<bool, Error> {
        let mut moved = false;
        for index in 0..self.attempts.len() {
            moved |= self.advance(index, io)?;
        }
        if self.choice.is_some() && self.lacks_something() {
            moved |= self.choose(io)?;
        }
        Ok(moved)
    }

    /// The other side has receives to spare.
    pub(crate) fn heard_spare(&mut self, index: u8, receives: u32) -> Result<(), Error> {
        let known = self.pair(index).filter(|pair| pair.to_use_up.saturating_add(receives) <= MOST_SPARE);
        let Some(pair) = known else {
            return Err(self.nonsense(format!("{receives} receives of queue pair {index} are to spare")));
        };
        pair.to_use_up += receives;
        Ok(())
    }

    /// Lets go of receives that nothing needs any more, so that other channels have their credits: a receive that is posted
    /// can only be used up. Whether anything has moved, and whether there is more to do.
    pub(crate) fn use_up(&mut self, io: &mut Io<'_>) -> (bool, bool) {
        let (mut moved, mut more) = (false, false);
        let hub = &self.hub;
        for attempt in &mut self.attempts {
            let Stage::Up(pair) = &mut attempt.stage else { continue };
            let spare = std::mem::take(&mut pair.spare);
            if spare > 0 {
                io.send(Message::Spare { pair: pair.index(), receives: spare }.to_bytes());
            }
            let written = match pair.to_use_up {
                0 => 0,
                // A queue pair that has failed says so itself.
                left => write_nothing(hub, pair, left.min(TURN)).unwrap_or(0),
            };
            pair.to_use_up -= written;
            moved |= spare + written > 0;
            more |= pair.to_use_up > 0;
        }
        (moved, more)
    }

    /// Whether nothing is being made any more, for the end.
    pub(crate) fn is_quiet(&self) -> bool {
        self.attempts.iter().all(|attempt| match &attempt.stage {
            Stage::Making(job) | Stage::Connecting(job) | Stage::Over(Some(job)) => job.has_ended(),
            _ => true,
        })
    }

    /// Destroys all queue pairs.
    pub(crate) fn clear(&mut self) {
        self.attempts.clear();
    }

    fn advance(&mut self, index: usize, io: &mut Io<'_>) -> Result<bool, Error> {
        let number = index as u8;
        let Attempt { pairing, begun, sequence, .. } = self.attempts[index];
        let stage = &mut self.attempts[index].stage;
        let active = self.choice.is_some();
        let next = match stage {
            Stage::Making(job) => match job.outcome() {
                None => None,
                Some(Ok(made)) if active => {
                    let (here, there) = (pairing.0 as u8, pairing.1 as u8);
                    let queue_pair = made.number();
                    io.send(
                        Message::Open(Open { pair: number, here, there, queue_pair, sequence }).to_bytes(),
                    );
                    Some(Ok(Stage::Offered(made)))
                }
                Some(Ok(made)) => Some(Ok(Stage::Made(self.pair_of(number, made)))),
                Some(Err(why)) => Some(Err(why)),
            },
            Stage::Made(pair) => {
                let mut state = self.hub.state();
                match pair.post_receives(&mut state, 1) {
                    Ok(0) => None,
                    Ok(_) => {
                        let queue_pair = pair.number();
                        io.send(Message::Opened { pair: number, queue_pair, sequence }.to_bytes());
                        match std::mem::replace(stage, Stage::Over(None)) {
                            Stage::Made(pair) => Some(Ok(Stage::Up(pair))),
                            other => Some(Ok(other)),
                        }
                    }
                    Err(failure) => Some(Err(failure.what)),
                }
            }
            Stage::Connecting(job) => match job.outcome() {
                None => None,
                Some(Ok(made)) => Some(Ok(Stage::Connected(self.pair_of(number, made)))),
                Some(Err(why)) => Some(Err(why)),
            },
            Stage::Connected(pair) => match greet(&self.hub, pair) {
                Ok(false) => None,
                Ok(true) => match std::mem::replace(stage, Stage::Over(None)) {
                    Stage::Connected(pair) => Some(Ok(Stage::Greeting(pair))),
                    other => Some(Ok(other)),
                },
                Err(why) => Some(Err(why)),
            },
            Stage::Greeting(pair) => pair.failure().map(|failure| Err(failure.what.clone())),
            // What was still being made when it was given up goes when it is there.
            Stage::Over(job) => {
                drop(job.as_mut().and_then(Making::outcome));
                None
            }
            Stage::Offered(_) | Stage::Up(_) | Stage::Unknown => None,
        };
        match next {
            Some(Ok(stage)) => {
                self.attempts[index].stage = stage;
                Ok(true)
            }
            Some(Err(why)) => {
                self.give_up(number, why, By::QueuePairError, io);
                Ok(true)
            }
            None => {
                let pending = !matches!(self.attempts[index].stage, Stage::Up(_) | Stage::Over(_));
                let limit = self.hub.config.connect_within;
                let late = active && pending && io.now().saturating_duration_since(begun) > limit;
                if late {
                    self.give_up(number, format!("not connected within {limit:?}"), By::QueuePairError, io);
                }
                Ok(late)
            }
        }
    }

    fn pair_of(&self, number: u8, made: Arc<QueuePair>) -> Pair {
        let (here, there) = self.attempts[usize::from(number)].pairing;
        let (nic, remote) = (self.nic(here), &self.remote.ports[there].name);
        Pair::new(&self.hub, nic, remote, (self.channel, number), made)
    }

    fn nic(&self, port: usize) -> usize {
        self.hub.served[self.served].nics[port].nic
    }

    fn nonsense(&self, what: String) -> Error {
        Error::Protocol { peer: Arc::clone(&self.peer), what: what.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gdr::testing::{SentMessages, connections, hub};

    #[test]
    fn a_queue_pair_that_carries_transfers_cannot_be_given_up() {
        let (mut said, mut connections) = (SentMessages::default(), connections(&hub(), Side::Listening));
        connections.settled = Some(Settled { all: false, pairs: vec![1] });
        let error = connections.heard_over(1, "no more", &mut said.io()).unwrap_err();
        assert!(error.to_string().contains("queue pair 1 is given up, which is up"), "{error}");
        connections.heard_over(0, "not in time", &mut said.io()).unwrap();
        assert_eq!(connections.lanes(), [1]);
    }
}
