//! One receive that has met its send, and how far it is.

use std::sync::Arc;
use std::time::Duration;

use crate::channel::{Io, Operation};
use crate::error::Error;
use crate::gdr::connect::Connections;
use crate::gdr::hub::Hub;
use crate::gdr::memory::{Registering, Use};
use crate::gdr::message::{Lane, Message};
use crate::gdr::mutant::Mutant;
use crate::gdr::target::{ReceiveLane, Target, has_plenty, most_receives};
use crate::watch::Wait;

/// How late a mutant posts.
const MUTANT_LATE: Duration = Duration::from_millis(100);

/// A receive that has met its send.
#[derive(Debug)]
pub(super) struct Receive {
    pub(super) operation: Operation,
    pub(super) wait: Result<Wait, Error>,
    pub(super) sender_ready: bool,
    pub(super) stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// For the caller's event, the sender, queue pairs, credits.
    Waiting,
    /// The NICs are told of the memory.
    Registering(Vec<(u8, Registering)>),
    /// The NICs know it; no receive is posted yet.
    Registered(Target),
    /// The sender may write, or does.
    Open(Target),
}

impl Stage {
    /// Where its pieces go, if that is known.
    pub(super) fn target(&self) -> Option<&Target> {
        match self {
            Self::Registered(target) | Self::Open(target) => Some(target),
            Self::Waiting | Self::Registering(_) => None,
        }
    }
}

/// What has come of a look at a receive.
pub(super) enum Step {
    /// The other side has to say something.
    Idle,
    /// The sender has to be ready, or there to be more credits.
    HeldBack,
    /// Pieces have to come, or the sender to say something.
    Awaiting,
    /// Something is to be looked for.
    Looking,
    /// Queue pairs have to have room.
    Starved,
    /// Something was done.
    Moved,
    /// Everything has come.
    Done,
    /// It cannot be received.
    Failed(Error),
    /// It was dropped, and the sender was told nothing.
    Dropped,
}

impl Receive {
    /// It is not wanted any more.
    pub(super) fn abort(&mut self, number: u64, io: &mut Io<'_>) -> Step {
        match &mut self.stage {
            Stage::Waiting | Stage::Registering(_) | Stage::Registered(_) => Step::Dropped,
            Stage::Open(target) if target.is_complete() => Step::Done,
            Stage::Open(target) => {
                if !target.revoked {
                    target.revoked = true;
                    io.send(Message::Revoke { number }.to_bytes());
                }
                Step::Awaiting
            }
        }
    }

    /// Goes on. The caller's event has passed.
    pub(super) fn advance(
        &mut self,
        hub: &Arc<Hub>,
        served: usize,
        number: u64,
        connections: &mut Connections,
        io: &mut Io<'_>,
    ) -> Result<Step, Error> {
        let span = self.operation.span;
        if span.bytes == 0 {
            if !self.sender_ready {
                return Ok(Step::Idle);
            }
            let message =
                Message::ReadyToReceive { number, address: span.address, piece: 1, lanes: Vec::new() };
            io.send(message.to_bytes());
            return Ok(Step::Done);
        }
        match &mut self.stage {
            Stage::Waiting => {
                let all = span.bytes >= hub.config.stripe;
                if !connections.need(all, io) {
                    return Ok(Step::Looking);
                }
                let lanes = connections.lanes();
                let lanes = match all {
                    true => lanes.to_vec(),
                    // Short ones take turns.
                    false => vec![lanes[(number % lanes.len() as u64) as usize]],
                };
                if !self.sender_ready && !has_plenty(hub, connections, &lanes) {
                    return Ok(Step::HeldBack);
                }
                let memory = match hub.locate(served, span) {
                    Ok(memory) => memory,
                    Err(error) => return Ok(Step::Failed(error)),
                };
                let registering = lanes.into_iter().filter_map(|index| {
                    let nic = connections.pair(index)?.nic;
                    // SAFETY: the memory of an operation is valid until its ticket has ended. That is ended only when the
                    // registration has been made and dropped: by `FailedTransfer` where it is still being made.
                    Some((index, unsafe { hub.register(nic, memory, Use::Receive) }))
                });
                self.stage = Stage::Registering(registering.collect());
                self.advance(hub, served, number, connections, io)
            }
            Stage::Registering(lanes) => {
                if !lanes.iter().all(|(_, registering)| registering.has_ended()) {
                    return Ok(Step::Looking);
                }
                let mut registered = Vec::new();
                for (pair, registering) in lanes {
                    match registering.outcome() {
                        Some(Ok(memory)) => {
                            registered.push(ReceiveLane { pair: *pair, memory, posted: 0, arrived: 0 })
                        }
                        Some(Err(error)) => return Ok(Step::Failed(error)),
                        // Each is asked once.
                        None => return Ok(Step::Looking),
                    }
                }
                let Some(target) = Target::new(hub, span.bytes, registered, connections) else {
                    return Ok(Step::Looking);
                };
                self.stage = Stage::Registered(target);
                self.advance(hub, served, number, connections, io)
            }
            Stage::Registered(target) => {
                let late = hub.config.makes(Mutant::AnswersBeforePosting);
                let most = most_receives(hub, self.sender_ready);
                if !late && !target.post(&mut hub.state(), most, connections).iter().any(|posted| *posted > 0)
                {
                    return Ok(Step::Starved);
                }
                target.opened = Some(io.now());
                let lanes = target.lanes.iter().enumerate().map(|(index, lane)| Lane {
                    pair: lane.pair,
                    rkey: lane.memory.rkey(),
                    receives: if late { target.plan.pieces_over(index) as u32 } else { lane.posted as u32 },
                });
                let (piece, lanes) = (target.plan.piece(), lanes.collect());
                io.send(Message::ReadyToReceive { number, address: span.address, piece, lanes }.to_bytes());
                self.stage = match std::mem::replace(&mut self.stage, Stage::Waiting) {
                    Stage::Registered(target) => Stage::Open(target),
                    other => other,
                };
                Ok(Step::Moved)
            }
            Stage::Open(target) if target.is_complete() => Ok(Step::Done),
            Stage::Open(target) => {
                if !self.sender_ready {
                    // Until the sender says so nothing comes.
                    return Ok(Step::Idle);
                }
                let late = hub.config.makes(Mutant::AnswersBeforePosting);
                let open_for = target.opened.map(|opened| io.now().saturating_duration_since(opened));
                if late && open_for < Some(MUTANT_LATE) {
                    return Ok(Step::Looking);
                }
                let posted = target.post(&mut hub.state(), u32::MAX, connections);
                for (lane, receives) in
                    posted.iter().enumerate().filter(|(_, receives)| **receives > 0 && !late)
                {
                    io.send(Message::Posted { number, lane: lane as u8, receives: *receives }.to_bytes());
                }
                Ok(match posted.iter().any(|receives| *receives > 0) {
                    true => Step::Moved,
                    false if target.is_posted() => Step::Awaiting,
                    false => Step::Starved,
                })
            }
        }
    }
}
