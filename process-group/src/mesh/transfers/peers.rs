//! The endpoints of a rank to the other ranks.
//!
//! A rank that sends or receives for the first time listens, and tells where in the group's store. Of two ranks the one that first
//! needs the other connects: it waits until the other listens, says who it is, and is answered. Where both do so at once, the
//! connection of the lower rank is kept: the lower rank refuses, and the higher one takes what comes. So ranks need not meet in any
//! order, and whoever waits for one rank is reached by all others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshreduce_channels::{Address, After, Context, Device, Endpoint, Error, Listener, Options, Registry};
use meshreduce_store::{Store, StoreError};

use crate::backend::BackendContext;

/// How long a rank that has connected may take to say who it is, and the other one to answer.
const GREETING: Duration = Duration::from_secs(10);
/// How long the thread that accepts waits at a time.
const TURN: Duration = Duration::from_secs(3600);
/// How long it may take at the end to tell that thread.
const WAKE: Duration = Duration::from_secs(2);

/// How long a rank that was refused waits for the other one's connection before it connects again itself.
const REFUSED_FOR: Duration = Duration::from_secs(2);

/// Who connects, or what the other side answers: a rank or a verdict, and the sender's device (u32 each, little-endian).
const WORDS: usize = 8;
const TAKEN: u32 = 1;
const REFUSED: u32 = 0;

/// The endpoint to another rank.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) endpoint: Endpoint,
    /// The rank's device, as its process counts them.
    pub(super) ordinal: u32,
}

#[derive(Debug, Default)]
struct Slot {
    peer: Option<Arc<Peer>>,
    /// This rank is about to connect.
    connecting: bool,
    /// When the other rank has refused that, since its own connection was on its way.
    refused: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Shared {
    context: Context,
    rank: usize,
    ordinal: u32,
    store: GroupStore,
    /// What stands before addresses of this group: those of one that was killed stay, and are none of this one's.
    generation: String,
    slots: Mutex<Vec<Slot>>,
    changed: Condvar,
    closed: AtomicBool,
}

/// The group's store.
struct GroupStore(Arc<dyn Store>);

impl std::fmt::Debug for GroupStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a store")
    }
}

/// All of them, and the thread that accepts.
#[derive(Debug)]
pub(super) struct Peers {
    shared: Arc<Shared>,
    address: Address,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

/// Where a rank tells a generation and an address. (Of one that was killed it is written over by the next group's.)
fn key(rank: usize) -> String {
    format!("transfers/{rank}")
}

impl Peers {
    pub(super) fn new(
        context: &BackendContext,
        ordinal: u32,
        registry: &Registry,
        generation: &str,
    ) -> Result<Self, Error> {
        let group = &context.group;
        let name = Some(format!("rank {} of group {}", group.rank, group.name));
        let options = Options { name, ..Options::default() };
        let channels = Context::with_options(registry, &[Device::Cuda(ordinal)], options)?;
        let listener = channels.listener()?;
        let address = listener.address().clone();
        let shared = Arc::new(Shared {
            context: channels,
            rank: group.rank,
            ordinal,
            store: GroupStore(Arc::clone(&context.store)),
            generation: generation.to_owned(),
            slots: Mutex::new((0..group.world_size).map(|_| Slot::default()).collect()),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("transfers".to_owned())
            .spawn(move || accepting.accept(&listener))
            .map_err(|source| Error::System { what: "no thread".into(), source: Arc::new(source) })?;
        let peers = Self { shared, address, accepting: Mutex::new(Some(thread)) };
        let text = format!("{generation} {}", peers.address);
        let store = &peers.shared.store.0;
        let key = key(group.rank);
        store.set(&key, text.as_bytes()).map_err(|error| of_store(&key, error))?;
        Ok(peers)
    }

    /// The endpoint to `rank`, connected now if need be.
    pub(super) fn connected(&self, rank: usize, until: Option<Instant>) -> Result<Arc<Peer>, Error> {
        let shared = &*self.shared;
        let mut slots = shared.lock();
        loop {
            if shared.closed.load(Ordering::Acquire) {
                return Err(Error::ContextClosed);
            }
            if let Some(peer) = &slots[rank].peer {
                return Ok(Arc::clone(peer));
            }
            let left = left(until);
            if left.is_zero() {
                let what = format!("the connection with rank {rank}").into();
                return Err(Error::TimedOut { what, waited: Duration::ZERO });
            }
            if slots[rank].connecting {
                // Another thread does, or the other rank's connection is on its way: which may fail there, and then this rank's turn
                // comes again.
                let patience = slots[rank].refused.map_or(left, |since| {
                    (since + REFUSED_FOR).saturating_duration_since(Instant::now()).min(left)
                });
                if patience.is_zero() {
                    slots[rank] = Slot::default();
                    continue;
                }
                slots =
                    shared.changed.wait_timeout(slots, patience).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            slots[rank].connecting = true;
            drop(slots);
            let connected = shared.connect(rank, until);
            slots = shared.lock();
            match connected {
                Ok(Some(peer)) => {
                    slots[rank].connecting = false;
                    slots[rank].peer.get_or_insert_with(|| Arc::new(peer));
                }
                // It is about to come from there: `connecting` stays, so that it is taken.
                Ok(None) => slots[rank].refused = Some(Instant::now()),
                Err(error) => {
                    slots[rank].connecting = false;
                    shared.changed.notify_all();
                    // It may have come from there meanwhile.
                    if slots[rank].peer.is_none() {
                        return Err(error);
                    }
                }
            }
            shared.changed.notify_all();
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Ends all endpoints. What waits for a connection ends too.
    pub(super) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        drop(self.shared.lock());
        self.shared.changed.notify_all();
        self.shared.context.close();
    }

    /// Waits until nothing uses the memory of transfers any more, and ends the thread that accepts.
    pub(super) fn join(&self, timeout: Duration) {
        let _ = self.shared.context.join(timeout);
        let thread = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        // Ranks that have died cannot take back where they were.
        let dead = self.shared.lost().map(|(rank, _)| rank);
        for rank in dead.into_iter().chain([self.shared.rank]) {
            self.shared.take_back(rank);
        }
        self.shared.wake(&self.address);
        if thread.join().is_err() {
            tracing::error!("the thread that accepts connections of transfers has panicked");
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.close();
        self.join(WAKE);
    }
}

impl Shared {
    /// A rank that is gone, and how that was seen.
    pub(super) fn lost(&self) -> Option<(usize, Error)> {
        let slots = self.lock();
        let mut causes = slots
            .iter()
            .enumerate()
            .filter_map(|(rank, slot)| slot.peer.as_ref()?.endpoint.cause().map(|cause| (rank, cause)));
        causes.find(|(_, cause)| matches!(cause, Error::PeerLost { .. }))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects with `rank`; `None` if the rank's own connection is on its way.
    fn connect(&self, rank: usize, until: Option<Instant>) -> Result<Option<Peer>, Error> {
        let left = || left(until);
        let found = self.find(rank, until)?;
        let Some(address) = found else { return Err(Error::ContextClosed) };
        let endpoint = self.context.connect_to(&address, left())?;
        let own = words(self.rank as u32, self.ordinal);
        endpoint
            .send(own, Device::Cpu, After::NOTHING)
            .wait(GREETING.min(left()))
            .map_err(|failed| failed.error)?;
        let answer = endpoint.recv(vec![0; WORDS], Device::Cpu, After::NOTHING).wait(GREETING.min(left()));
        let (verdict, ordinal) = read(&answer.map_err(|failed| failed.error)?.0);
        Ok((verdict == TAKEN).then_some(Peer { endpoint, ordinal }))
    }

    /// The address in what a rank of this group has told.
    fn of_this_generation<'a>(&self, text: &'a str) -> Option<&'a str> {
        let (generation, address) = text.split_once(' ')?;
        (generation == self.generation).then_some(address)
    }

    /// Deletes where a rank of this group was; not what one of the next group has told since.
    fn take_back(&self, rank: usize) {
        const NOTHING: &[u8] = b"?";
        let store = &self.store.0;
        let told = store.compare_set(&key(rank), NOTHING, NOTHING).unwrap_or_default();
        if self.of_this_generation(&String::from_utf8_lossy(&told)).is_some() {
            let _ = store.delete(&key(rank));
        }
    }

    /// Where `rank` listens, when it does; `None`: this side has been closed.
    fn find(&self, rank: usize, until: Option<Instant>) -> Result<Option<Address>, Error> {
        const LOOK: Duration = Duration::from_millis(200);
        const AGAIN: Duration = Duration::from_millis(20);
        let absent = || {
            let what = format!("rank {rank}, which has not sent or received anything yet").into();
            Error::TimedOut { what, waited: Duration::ZERO }
        };
        loop {
            let left = left(until);
            if self.closed.load(Ordering::Acquire) {
                return Ok(None);
            }
            // Its connection may come from there while this rank waits, which is as good.
            if self.lock()[rank].peer.is_some() {
                return Err(Error::TimedOut {
                    what: "the other rank was faster".into(),
                    waited: Duration::ZERO,
                });
            }
            match self.store.0.get(&key(rank), LOOK.min(left)) {
                Ok(text) => {
                    let text = String::from_utf8_lossy(&text).into_owned();
                    let Some(address) = self.of_this_generation(&text) else {
                        // Another group's, whose rank was killed: the own one's is still to come.
                        std::thread::sleep(AGAIN.min(left));
                        if left > AGAIN {
                            continue;
                        }
                        return Err(absent());
                    };
                    return address.parse().map(Some).map_err(|error: meshreduce_channels::NotAnAddress| {
                        Error::Protocol {
                            peer: format!("rank {rank}").into(),
                            what: error.to_string().into(),
                        }
                    });
                }
                Err(StoreError::Timeout { .. }) if left > LOOK => {}
                Err(StoreError::Timeout { .. }) => return Err(absent()),
                Err(error) => return Err(of_store(&key(rank), error)),
            }
        }
    }

    /// Takes the ranks that connect, until the end.
    fn accept(&self, listener: &Listener) {
        while !self.closed.load(Ordering::Acquire) {
            match listener.accept(TURN) {
                Ok(endpoint) => {
                    if let Err(error) = self.take(endpoint) {
                        tracing::debug!(%error, rank = self.rank, "whoever connected has not become a peer");
                    }
                }
                Err(Error::NotConnected { .. }) => {}
                Err(error) => {
                    if self.closed.load(Ordering::Acquire) {
                        return;
                    }
                    tracing::warn!(%error, rank = self.rank, "a connection could not be accepted");
                    // What the system refuses now (descriptors, memory) it may give later.
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn take(&self, endpoint: Endpoint) -> Result<(), Error> {
        let greeting = endpoint.recv(vec![0; WORDS], Device::Cpu, After::NOTHING).wait(GREETING);
        let (rank, ordinal) = read(&greeting.map_err(|failed| failed.error)?.0);
        let rank = rank as usize;
        let peer = Arc::clone(endpoint.peer_name());
        let answer = |endpoint: &Endpoint, verdict| {
            let sent =
                endpoint.send(words(verdict, self.ordinal), Device::Cpu, After::NOTHING).wait(GREETING);
            sent.map(|_| ()).map_err(|failed| failed.error)
        };
        let is_welcome = {
            let slots = self.lock();
            let Some(slot) = slots.get(rank).filter(|_| rank != self.rank) else {
                return Err(Error::Protocol { peer, what: format!("it says that it is rank {rank}").into() });
            };
            slot.peer.is_none() && !(slot.connecting && self.rank < rank)
        };
        if !is_welcome {
            return answer(&endpoint, REFUSED);
        }
        answer(&endpoint, TAKEN)?;
        let mut slots = self.lock();
        slots[rank].connecting = false;
        slots[rank].peer.get_or_insert_with(|| Arc::new(Peer { endpoint, ordinal }));
        self.changed.notify_all();
        Ok(())
    }

    /// Makes the thread that accepts look whether it is over.
    fn wake(&self, address: &Address) {
        let waking = Context::new(&Registry::empty(), &[]).and_then(|context| {
            let connected = context.connect_to(address, WAKE)?;
            drop(connected);
            Ok(())
        });
        if let Err(error) = waking {
            tracing::debug!(%error, "the thread that accepts was not woken by a connection");
        }
    }
}

fn words(first: u32, second: u32) -> Vec<u8> {
    [first.to_le_bytes(), second.to_le_bytes()].concat()
}

fn read(words: &[u8]) -> (u32, u32) {
    let at = |place: usize| {
        let bytes = words.get(place..place + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    (at(0), at(4))
}

/// How long there is still; an hour, to begin with, where there is no end.
fn left(until: Option<Instant>) -> Duration {
    until.map_or(TURN, |until| until.saturating_duration_since(Instant::now()))
}

fn of_store(key: &str, error: StoreError) -> Error {
    Error::Store { name: key.into(), source: Arc::new(error) }
}
