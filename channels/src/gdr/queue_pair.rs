//! A queue pair of a channel, and what is posted on it.
//!
//! Everything goes by RDMA WRITE into memory that the other side has named, and what is to be noticed there comes with a number
//! (WRITE WITH IMMEDIATE). So a receive has no buffer of its own: one is like another, none has to be matched to a message, and a NIC
//! never leaves a short message in a completion for a processor to copy to where only the GPU can write. Receives are posted before
//! the other side is told that it may write.
//!
//! Writes are posted in chains, one doorbell each, of which the last alone is signalled: when it completes, the whole chain has. A
//! failed write completes anyway. Credits ([`Credits`](crate::gdr::credits::Credits)) are taken for every request that is posted, and
//! given back when its chain, or the receive, has completed: until then the completion queue may have to hold a completion of it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_verbs_loader::{
    Completion, Operation, QueuePair, ReceiveRequest, RemoteMemory, Segment, SendRequest, Status,
};

use crate::gdr::hub::{Hub, State};
use crate::gdr::mutant::Mutant;
use crate::gdr::work::{CHAINS, Immediate, Kind, WorkId};

/// Writes of a chain: what the library hands over at once.
const CHAIN: usize = 32;

/// A queue pair and what is under way on it.
pub(crate) struct Pair {
    hub: Arc<Hub>,
    /// The NIC's place among the open ones.
    pub(crate) nic: usize,
    /// The other side's port, by its name.
    pub(crate) remote: String,
    channel: u32,
    index: u8,
    queue_pair: Arc<QueuePair>,
    chains: VecDeque<Chain>,
    next_chain: u32,
    /// Writes that have not completed.
    writes: u32,
    /// Receives that have not completed.
    receives: u32,
    /// Of these, those that what they were for did not need, and that the other side has not been asked to use up.
    pub(crate) spare: u32,
    /// Receives of the other side's that are to be used up.
    pub(crate) to_use_up: u32,
    /// Of these, those that the other side may use for batches.
    pub(crate) standing: u32,
    depth: u32,
    failure: Option<QueuePairError>,
}

/// What a chain of writes is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The greeting.
    Hello,
    /// The send of this number.
    Send(u64),
    /// The batch of this number.
    Batch(u64),
}

#[derive(Debug)]
struct Chain {
    number: u32,
    owner: Owner,
    writes: u32,
    bytes: u64,
}

/// A write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    /// From where, by the address of this side.
    pub(crate) from: u64,
    /// How much.
    pub(crate) bytes: u32,
    /// The key of this side.
    pub(crate) lkey: u32,
    /// To where.
    pub(crate) to: RemoteMemory,
    /// What the other side is told; `None`: it does not notice.
    pub(crate) immediate: Option<Immediate>,
}

/// What has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completed {
    /// A chain of writes.
    Writes {
        /// Whose.
        owner: Owner,
        /// Their bytes.
        bytes: u64,
    },
    /// A receive: what the other side says.
    Received(u32),
    /// Nothing that is of interest.
    Nothing,
}

/// Why a queue pair has failed.
#[derive(Clone, Debug)]
pub(crate) struct QueuePairError {
    /// The first status that was not a consequence of another; that of a flush while there is none.
    status: Status,
    /// In words.
    pub(crate) what: String,
}

impl QueuePairError {
    /// Whether it says no more than that another failure has come before.
    pub(crate) fn is_flush(&self) -> bool {
        self.status == Status::FLUSHED
    }

    /// Whether it is what a peer that has gone looks like.
    pub(crate) fn may_be_the_peers_end(&self) -> bool {
        !matches!(
            self.status,
            Status::LOCAL_LENGTH
                | Status::LOCAL_QP_OPERATION
                | Status::LOCAL_PROTECTION
                | Status::LOCAL_ACCESS
                | Status::FATAL
        )
    }
}

impl Pair {
    pub(crate) fn new(
        hub: &Arc<Hub>,
        nic: usize,
        remote: &str,
        (channel, index): (u32, u8),
        queue_pair: Arc<QueuePair>,
    ) -> Self {
        let capacity = queue_pair.capacity();
        let depth = hub.nics[nic].depth.min(capacity.max_sends).min(capacity.max_receives);
        Self {
            hub: Arc::clone(hub),
            nic,
            remote: remote.to_owned(),
            channel,
            index,
            queue_pair,
            chains: VecDeque::new(),
            next_chain: 0,
            writes: 0,
            receives: 0,
            spare: 0,
            to_use_up: 0,
            standing: 0,
            depth,
            failure: None,
        }
    }

    /// The NIC here and the one there.
    pub(crate) fn names(&self) -> String {
        format!("{} to {}", self.hub.nics[self.nic].name, self.remote)
    }

    /// Its number on its NIC, by which the other side names it.
    pub(crate) fn number(&self) -> u32 {
        self.queue_pair.number()
    }

    /// Its number in the channel.
    pub(crate) fn index(&self) -> u8 {
        self.index
    }

    /// How many writes there is room for, and credits.
    pub(crate) fn room_for_writes(&self, state: &State) -> u32 {
        self.depth.saturating_sub(self.writes).min(state.nics[self.nic].sends.free())
    }

    /// How many receives there is room for, and credits; spare ones are there.
    pub(crate) fn room_for_receives(&self, state: &State) -> u32 {
        let room = self.depth.saturating_sub(self.receives).min(state.nics[self.nic].receives.free());
        room.saturating_add(self.spare)
    }

    /// How many writes can be posted now, at most `wanted`; the credits of these are taken, and [`Pair::post`] gives back what it
    /// does not need.
    fn reserve(&self, state: &mut State, wanted: u32) -> u32 {
        let room = self.depth.saturating_sub(self.writes);
        state.nics[self.nic].sends.take(wanted.min(room))
    }

    /// Posts writes from `writes` while there are any, while there is room, and at most `most`. How many were posted.
    ///
    /// # Safety
    ///
    /// Until the chain has completed or the queue pair is gone, the memory that is read stays registered and valid, and nobody
    /// writes it. What is written is what the other side has offered.
    ///
    /// # Errors
    ///
    /// The queue pair has failed; what was posted before stays under way.
    pub(crate) unsafe fn post(
        &mut self,
        state: &mut State,
        owner: Owner,
        most: u32,
        mut writes: impl Iterator<Item = Write>,
    ) -> Result<u32, QueuePairError> {
        let reserved = self.reserve(state, most);
        if reserved == 0 {
            return Ok(0);
        }
        let begun = Instant::now();
        let mut in_libibverbs = Duration::ZERO;
        let mut posted = 0;
        let mut outcome = Ok(());
        while posted < reserved && outcome.is_ok() {
            let mut segments = [Segment { address: 0, length: 0, lkey: 0 }; CHAIN];
            let mut operations = [Operation::Send; CHAIN];
            let (mut count, mut bytes) = (0, 0);
            for write in writes.by_ref().take(CHAIN.min((reserved - posted) as usize)) {
                segments[count] = Segment { address: write.from, length: write.bytes, lkey: write.lkey };
                operations[count] = match write.immediate {
                    Some(immediate) => Operation::WriteWithImm(write.to, immediate.to_u32()),
                    None => Operation::Write(write.to),
                };
                bytes += u64::from(write.bytes);
                count += 1;
            }
            if count == 0 {
                break;
            }
            let number = self.next_chain;
            self.next_chain = (number + 1) % CHAINS;
            let mut requests = [SendRequest::new(0, Operation::Send, &[]); CHAIN];
            for (index, request) in requests[..count].iter_mut().enumerate() {
                let last = index + 1 == count;
                request.wr_id = self.id(if last { Kind::Last } else { Kind::Chained }, number);
                request.operation = operations[index];
                request.segments = if segments[index].length == 0 { &[] } else { &segments[index..=index] };
                request.signalled = last;
            }
            let called = Instant::now();
            // SAFETY: the caller's. Segments and requests live through the call.
            let answer = unsafe { self.queue_pair.post_sends(&requests[..count]) };
            in_libibverbs += called.elapsed();
            let done = match answer {
                Ok(()) => count as u32,
                Err(error) => {
                    // Those before the refused one are under way, and nothing says when they are done but the queue pair's end.
                    let what = format!("{}: a write was refused: {}", self.names(), error.source);
                    outcome = Err(QueuePairError { status: Status::LOCAL_QP_OPERATION, what });
                    error.posted as u32
                }
            };
            if outcome.is_ok() {
                self.chains.push_back(Chain { number, owner, writes: done, bytes });
            }
            self.writes += done;
            posted += done;
        }
        let nic = &mut state.nics[self.nic];
        nic.sends.give(reserved - posted);
        nic.posting.writes += u64::from(posted);
        nic.posting.time += begun.elapsed();
        nic.posting.in_libibverbs += in_libibverbs;
        if let Err(failure) = outcome {
            self.fail(failure.clone());
            return Err(failure);
        }
        Ok(posted)
    }

    /// Posts as many receives as there is room for, at most `wanted`, after using up spare ones; how many.
    ///
    /// # Errors
    ///
    /// The queue pair has failed.
    pub(crate) fn post_receives(&mut self, state: &mut State, wanted: u32) -> Result<u32, QueuePairError> {
        let spare = self.spare.min(wanted);
        self.spare -= spare;
        let wanted = wanted - spare;
        let room = self.depth.saturating_sub(self.receives);
        let reserved = state.nics[self.nic].receives.take(wanted.min(room));
        let mut posted = 0;
        while posted < reserved {
            let request = ReceiveRequest { wr_id: self.id(Kind::Receive, 0), segments: &[] };
            let requests = [request; CHAIN];
            let count = CHAIN.min((reserved - posted) as usize);
            // SAFETY: they have no memory.
            match unsafe { self.queue_pair.post_receives(&requests[..count]) } {
                Ok(()) => posted += count as u32,
                Err(error) => {
                    posted += error.posted as u32;
                    let what = format!("{}: a receive was refused: {}", self.names(), error.source);
                    self.receives += posted;
                    state.nics[self.nic].receives.give(reserved - posted);
                    let failure = QueuePairError { status: Status::LOCAL_QP_OPERATION, what };
                    self.fail(failure.clone());
                    return Err(failure);
                }
            }
        }
        self.receives += posted;
        Ok(spare + posted)
    }

    fn id(&self, kind: Kind, chain: u32) -> u64 {
        WorkId { channel: self.channel, pair: self.index, kind, chain }.to_u64()
    }

    /// Takes note of a completion.
    pub(crate) fn complete(&mut self, state: &mut State, id: WorkId, completion: &Completion) -> Completed {
        let done = completion.status.is_success();
        match id.kind {
            Kind::Chained => {
                if !done {
                    self.fail_by(completion, self.owner_of(id.chain));
                }
                Completed::Nothing
            }
            Kind::Last => {
                // Completions of a queue come in the order of its requests.
                let Some(chain) = self.chains.pop_front_if(|chain| chain.number == id.chain) else {
                    tracing::warn!(?completion, pair = %self.names(), "a completion of nothing that is under way");
                    return Completed::Nothing;
                };
                self.writes -= chain.writes;
                if !self.hub.config.makes(Mutant::CreditsKept) {
                    state.nics[self.nic].sends.give(chain.writes);
                }
                if !done {
                    self.fail_by(completion, Some(chain.owner));
                    return Completed::Nothing;
                }
                Completed::Writes { owner: chain.owner, bytes: chain.bytes }
            }
            Kind::Receive => {
                let Some(left) = self.receives.checked_sub(1) else {
                    tracing::warn!(?completion, pair = %self.names(), "a completion of a receive that was not posted");
                    return Completed::Nothing;
                };
                self.receives = left;
                state.nics[self.nic].receives.give(1);
                match completion.imm {
                    Some(immediate) if done => Completed::Received(immediate),
                    _ if done => {
                        let what = format!("{}: the other side sends what is no write", self.names());
                        self.fail(QueuePairError { status: Status::GENERAL, what });
                        Completed::Nothing
                    }
                    _ => {
                        self.fail_by(completion, None);
                        Completed::Nothing
                    }
                }
            }
        }
    }

    fn owner_of(&self, chain: u32) -> Option<Owner> {
        self.chains.iter().find(|one| one.number == chain).map(|one| one.owner)
    }

    fn fail_by(&mut self, completion: &Completion, owner: Option<Owner>) {
        let Completion { status, vendor_error, .. } = completion;
        let what = match owner {
            Some(owner) => format!("RDMA write of {owner}"),
            None => "receive".to_owned(),
        };
        let name = status.name().unwrap_or("unknown");
        let vendor =
            if *vendor_error == 0 { String::new() } else { format!(", vendor error {vendor_error:#x}") };
        let what = format!("{}: {what}: {status} ({name}{vendor})", self.names());
        self.fail(QueuePairError { status: *status, what });
    }

    /// Notes why it has failed, and lets everything that is under way come back. What was flushed is a consequence, and gives way to
    /// the cause when that comes.
    fn fail(&mut self, failure: QueuePairError) {
        let first = match &self.failure {
            None => true,
            Some(known) => {
                known.is_flush() && !failure.is_flush() && !self.hub.config.makes(Mutant::FlushIsTheCause)
            }
        };
        if self.failure.is_none() {
            self.flush();
        }
        if first {
            tracing::debug!(what = failure.what, "a queue pair has failed");
            self.failure = Some(failure);
        }
    }

    /// Why it has failed, if it has.
    pub(crate) fn failure(&self) -> Option<&QueuePairError> {
        self.failure.as_ref()
    }

    /// Lets everything that is under way come back, and takes nothing more from the other side.
    pub(crate) fn flush(&self) {
        if let Err(error) = self.queue_pair.to_error() {
            tracing::warn!(%error, pair = %self.names(), "a queue pair cannot be stopped");
        }
    }

    /// Whether nothing of it is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.chains.is_empty() && self.receives == 0
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // The queue pair goes with its last holder, which is this one unless it is still being connected; after that nothing of it
        // completes.
        let mut state = self.hub.state();
        let nic = &mut state.nics[self.nic];
        if !self.hub.config.makes(Mutant::CreditsKept) {
            nic.sends.give(self.writes);
        }
        nic.receives.give(self.receives);
        nic.standing = nic.standing.saturating_sub(self.standing);
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("nics", &self.names())
            .field("writes", &self.writes)
            .field("receives", &self.receives)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello => f.write_str("the greeting"),
            Self::Send(number) => write!(f, "send {number}"),
            Self::Batch(number) => write!(f, "batch {number}"),
        }
    }
}
