//! How communicators come to be: by a unique id, or from another one.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Communicator, Ready, hash};
use crate::bootstrap::{self, Id, Met};
use crate::cuda::{self, Device};
use crate::failure::{self, NcclError, Result};
use crate::listener::{GiveUp, Listener};
use crate::mesh::Mesh;

/// Tells devices of different nodes apart, also where two emulated nodes have the same description: by `NCCL_HOSTID`
/// and the network namespace.
fn place_in_the_world(device: &Device) -> u64 {
    let host = std::env::var("NCCL_HOSTID").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let text = host.bytes().chain(namespace.as_os_str().as_encoded_bytes().iter().copied());
    let bytes: Vec<_> = device.uuid.into_iter().chain(text).map(u64::from).collect();
    hash(&bytes)
}

/// How a new communicator comes to be: on this thread, or behind a call that has returned.
pub(crate) struct Start {
    pub(crate) communicator: Arc<Communicator>,
    /// A parent that is busy meanwhile.
    parent: Option<Arc<Communicator>>,
    how: How,
}

enum How {
    Meet { id: Id, ranks: usize, rank: usize },
    Split { tag: u64, color: i32, key: i32 },
    Shrink { tag: u64, members: Vec<usize> },
}

impl Start {
    /// `ncclCommInitRank`.
    pub(crate) fn meet(id: Id, ranks: usize, rank: usize, blocking: bool) -> Result<Self> {
        let communicator = Communicator::new(cuda::current()?, blocking);
        Ok(Self { communicator, parent: None, how: How::Meet { id, ranks, rank } })
    }

    /// `ncclCommSplit`; the communicator of a rank without a color is never ready.
    pub(crate) fn split(parent: &Arc<Communicator>, color: i32, key: i32, blocking: bool) -> Self {
        let tag = parent.next_child(0);
        let communicator = Communicator::new(parent.device, blocking);
        parent.set_busy(true);
        Self { communicator, parent: Some(Arc::clone(parent)), how: How::Split { tag, color, key } }
    }

    /// `ncclCommShrink` to `members`, which are ranks of the parent in ascending order.
    pub(crate) fn shrink(parent: &Arc<Communicator>, members: Vec<usize>, blocking: bool) -> Self {
        let numbers: Vec<_> = members.iter().map(|member| *member as u64).collect();
        let tag = parent.next_child(hash(&numbers) | 1);
        let communicator = Communicator::new(parent.device, blocking);
        parent.set_busy(true);
        Self { communicator, parent: Some(Arc::clone(parent)), how: How::Shrink { tag, members } }
    }

    /// Does it, and makes the outcome the communicator's.
    pub(crate) fn run(self) -> Result<()> {
        let communicator = &self.communicator;
        let outcome = self.ready().map(|ready| {
            // A rank without a color has none.
            if let Some(ready) = ready {
                communicator.begin(ready);
            }
        });
        let mut state = communicator.lock();
        state.busy -= 1;
        state.failure = outcome.as_ref().err().cloned();
        drop(state);
        communicator.changed.notify_all();
        if let Some(parent) = &self.parent {
            parent.set_busy(false);
        }
        outcome.inspect_err(failure::note)
    }

    /// Never does it.
    pub(crate) fn cancel(&self, failure: &NcclError) {
        let mut state = self.communicator.lock();
        state.busy -= 1;
        state.failure = Some(failure.clone());
        drop(state);
        if let Some(parent) = &self.parent {
            parent.set_busy(false);
        }
    }

    /// Runs behind the call, which returns.
    pub(crate) fn spawn(self) -> Result<()> {
        let this = Arc::new(Mutex::new(Some(self)));
        let start = Arc::clone(&this);
        let take = |place: &Mutex<Option<Self>>| place.lock().unwrap_or_else(PoisonError::into_inner).take();
        let run = move || {
            // The outcome is the communicator's.
            take(&start).map(Self::run)
        };
        let spawned = std::thread::Builder::new().name("nccl start".to_owned()).spawn(run);
        spawned.map(|_| ()).map_err(|error| {
            let failure = NcclError::system("starting a thread", &error);
            if let Some(this) = take(&this) {
                this.cancel(&failure);
            }
            failure
        })
    }

    fn ready(&self) -> Result<Option<Ready>> {
        let aborted = |who: &Communicator| {
            who.aborted.load(Ordering::SeqCst).then(|| NcclError::usage("the communicator was aborted"))
        };
        match (&self.how, &self.parent) {
            (How::Meet { id, ranks, rank }, _) => {
                let device = place_in_the_world(&self.communicator.device);
                let Met { magic, sockets } =
                    bootstrap::meet(*id, *ranks, *rank, device, &|| aborted(&self.communicator))?;
                let mesh = Mesh::start(*rank, sockets)?;
                Ok(Some(Ready { rank: *rank, size: *ranks, magic, mesh }))
            }
            (How::Split { tag, color, key }, Some(parent)) => {
                let family = parent.ready()?;
                let give_up = || aborted(&self.communicator).or_else(|| aborted(parent));
                split(family, *tag, *color, *key, &give_up)
            }
            (How::Shrink { tag, members }, Some(parent)) => {
                let family = parent.ready()?;
                let give_up = || aborted(&self.communicator).or_else(|| aborted(parent));
                shrink(family, *tag, members, &give_up).map(Some)
            }
            (_, None) => Err(NcclError::internal("a child without a parent")),
        }
    }
}

/// Tells the ranks in `to` something, and hears the same kind of thing from them.
fn tell(family: &Ready, tag: u64, to: &[usize], message: &[u8], give_up: GiveUp<'_>) -> Result<Vec<Vec<u8>>> {
    let others = || to.iter().copied().filter(|other| *other != family.rank);
    let tagged = [&tag.to_le_bytes()[..], message].concat();
    others().for_each(|other| family.mesh.send_control(other, &tagged));
    let answer = |&other: &usize| {
        if other == family.rank {
            return Ok(message.to_vec());
        }
        family.mesh.receive_control(other, tag, give_up)
    };
    to.iter().map(answer).collect()
}

fn split(family: &Ready, tag: u64, color: i32, key: i32, give_up: GiveUp<'_>) -> Result<Option<Ready>> {
    let magic = hash(&[family.magic, tag, color as u64]);
    let listener = Listener::open(magic)?;
    let listens = listener.address()?;
    let message = [&color.to_le_bytes()[..], &key.to_le_bytes(), listens.to_string().as_bytes()].concat();
    let all: Vec<_> = (0..family.size).collect();
    let answers = tell(family, tag, &all, &message, give_up)?;
    let mut members = Vec::new();
    for (rank, answer) in answers.iter().enumerate() {
        let broken = || NcclError::internal(format!("rank {rank} answered a split with something else"));
        let (their_color, rest) = answer.split_first_chunk::<4>().ok_or_else(broken)?;
        let (their_key, address) = rest.split_first_chunk::<4>().ok_or_else(broken)?;
        if i32::from_le_bytes(*their_color) == color {
            members.push((i32::from_le_bytes(*their_key), rank, parse(address).ok_or_else(broken)?));
        }
    }
    if color < 0 {
        return Ok(None);
    }
    members.sort_by_key(|(key, rank, _)| (*key, *rank));
    let members: Vec<_> = members.into_iter().map(|(_, rank, address)| (rank, address)).collect();
    found(family, listener, magic, &members, give_up).map(Some)
}

fn shrink(family: &Ready, tag: u64, members: &[usize], give_up: GiveUp<'_>) -> Result<Ready> {
    let magic = hash(&[family.magic, tag]);
    let listener = Listener::open(magic)?;
    let answers = tell(family, tag, members, listener.address()?.to_string().as_bytes(), give_up)?;
    let addresses: Option<Vec<_>> = answers.iter().map(|answer| parse(answer)).collect();
    let addresses = addresses.ok_or_else(|| NcclError::internal("a rank answered with something else"))?;
    let members: Vec<_> = members.iter().copied().zip(addresses).collect();
    found(family, listener, magic, &members, give_up)
}

fn parse(address: &[u8]) -> Option<SocketAddr> {
    std::str::from_utf8(address).ok()?.parse().ok()
}

/// Founds a communicator of some ranks of another, which are in the order of their new ranks.
fn found(
    family: &Ready,
    listener: Listener,
    magic: u64,
    members: &[(usize, SocketAddr)],
    give_up: GiveUp<'_>,
) -> Result<Ready> {
    let rank = members.iter().position(|(rank, _)| *rank == family.rank);
    let rank = rank.ok_or_else(|| NcclError::internal("a communicator without this rank"))?;
    let addresses: Vec<_> = members.iter().map(|(_, address)| *address).collect();
    let somebody_left = || {
        let left = members.iter().find(|(member, _)| family.mesh.has_left(*member));
        let left = left
            .map(|(member, _)| NcclError::remote(format!("rank {member} has left the parent communicator")));
        give_up().or(left)
    };
    let sockets = bootstrap::join(listener, magic, rank, &addresses, &somebody_left)?;
    Ok(Ready { rank, size: members.len(), magic, mesh: Mesh::start(rank, sockets)? })
}
