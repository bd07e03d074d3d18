//! Trying pairs of ports, on the side that chooses, and giving them up, on either.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::{Attempt, Connections, Settled, Stage};
use crate::channel::{Io, Pair as Devices};
use crate::error::Error;
use crate::gdr::choice::{Choice, Slot};
use crate::gdr::making::random_sequence;
use crate::gdr::message::Message;
use crate::gdr::rails::Pairing;

/// Why an attempt is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// It has failed here.
    QueuePairError,
    /// The other side says so.
    Peer,
    /// There is no time left for it.
    Haste,
}

impl Connections {
    /// Fills what is free, and says so when what is needed is there, or what there is will have to do.
    pub(super) fn choose(&mut self, io: &mut Io<'_>) -> Result<bool, Error> {
        let Some((all, since)) = self.needed else { return Ok(false) };
        let Some(mut choice) = self.choice.take() else { return Ok(false) };
        let mut moved = self.look(&mut choice, all);
        let waited = io.now().saturating_duration_since(since);
        let late = choice.close_late(all, waited, self.hub.config.connect_within);
        let filled = self.fill(&mut choice, all, io.now());
        let chosen = choice.chosen(all);
        self.choice = Some(choice);
        moved |= filled? | !late.is_empty();
        for attempt in late {
            self.give_up(attempt, format!("not connected within {waited:?} in all"), By::Haste, io);
        }
        let Some(pairs) = chosen else { return Ok(moved) };
        if pairs.is_empty() {
            return Err(self.unreachable());
        }
        if self.settled.as_ref().is_none_or(|settled| all && !settled.all) {
            io.send(Message::Settled { all, pairs: pairs.clone() }.to_bytes());
            self.settled = Some(Settled { all, pairs });
            return Ok(true);
        }
        Ok(moved)
    }

    /// Notes what has come of what is being tried. Whether anything has.
    fn look(&self, choice: &mut Choice, all: bool) -> bool {
        let mut moved = false;
        for slot in choice.open_slots(all) {
            let Slot::Trying(attempt) = choice.slot(slot) else { continue };
            match self.attempts[usize::from(attempt)].stage {
                Stage::Up(_) => choice.set(slot, Slot::Up(attempt)),
                Stage::Over(_) => choice.set(slot, Slot::Free),
                _ => continue,
            }
            moved = true;
        }
        moved
    }

    /// Begins what is to be tried next. Whether anything has moved.
    fn fill(&mut self, choice: &mut Choice, all: bool, now: Instant) -> Result<bool, Error> {
        let mut moved = false;
        for slot in choice.open_slots(all) {
            if choice.slot(slot) != Slot::Free {
                continue;
            }
            moved = true;
            let attempts = &self.attempts;
            let pairing_of = |attempt: u8| attempts[usize::from(attempt)].pairing;
            let failed_before = |(here, there): Pairing| {
                self.hub.state().has_failed(self.nic(here), &self.remote.ports[there], now)
            };
            let room = self.attempts.len() < usize::from(u8::MAX);
            let next = if room { choice.next(slot, pairing_of, failed_before) } else { None };
            let Some(pairing) = next else {
                choice.set(slot, Slot::Given);
                continue;
            };
            choice.set(slot, Slot::Trying(self.attempts.len() as u8));
            let sequence = random_sequence()?;
            let stage = Stage::Making(self.make(pairing, sequence, None)?);
            self.attempts.push(Attempt { pairing, begun: now, sequence, stage });
        }
        Ok(moved)
    }

    pub(super) fn give_up(&mut self, number: u8, why: String, by: By, io: &mut Io<'_>) {
        let attempt = &mut self.attempts[usize::from(number)];
        let pairing = attempt.pairing;
        let tried_for = io.now().saturating_duration_since(attempt.begun);
        // What the other side has never answered says nothing about the way there, nor does what had hardly begun.
        let says_something = match by {
            By::Peer => true,
            By::QueuePairError => !matches!(attempt.stage, Stage::Offered(_)),
            By::Haste => {
                !matches!(attempt.stage, Stage::Offered(_)) && tried_for > self.hub.config.connect_within / 2
            }
        };
        attempt.stage = match std::mem::replace(&mut attempt.stage, Stage::Over(None)) {
            over @ Stage::Over(_) => {
                attempt.stage = over;
                return;
            }
            Stage::Making(job) | Stage::Connecting(job) => Stage::Over(Some(job)),
            _ => Stage::Over(None),
        };
        let nic = self.nic(pairing.0);
        let remote = &self.remote.ports[pairing.1];
        let names = format!("{} to {}", self.hub.nics[nic].name, remote.name);
        tracing::warn!(peer = %self.peer, "{names}: {why}");
        if by != By::Peer {
            let what = why.clone();
            let message = match self.choice {
                Some(_) => Message::GivenUp { pair: number, what },
                None => Message::Refused { pair: number, what },
            };
            io.send(message.to_bytes());
        }
        if let Some(choice) = &mut self.choice {
            if says_something {
                self.hub.state().did_not_connect(nic, remote, io.now());
            }
            choice.failed(if why.starts_with(&names) { why } else { format!("{names}: {why}") });
        }
    }

    fn unreachable(&self) -> Error {
        let Devices { local, remote } = self.devices;
        let failures = self.choice.as_ref().map_or(String::new(), Choice::failures);
        let what = format!("no NICs connect {local} here with {remote} of {}: {failures}", self.peer);
        Error::Verbs { what: what.into() }
    }
}
