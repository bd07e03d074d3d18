//! One side of a connection: a device, opened, with a queue pair.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use meshreduce_verbs_loader::{
    Access, Address, Completion, CompletionQueue, Context, Gid, GidType, Init, Library, Mtu, Opcode,
    ProtectionDomain, QueuePair, QueuePairConfig, QueuePairState, ReadyToReceive, ReadyToSend, RemoteMemory,
};
use serde::{Deserialize, Serialize};

/// How long a completion may take that will come: this machine's processor is emulated, and others may want it too.
const PATIENCE: Duration = Duration::from_secs(120);
/// What there is of completions.
const ENTRIES: u32 = 64;

/// A device with a queue pair.
pub(crate) struct Endpoint {
    context: Context,
    domain: ProtectionDomain,
    queue: CompletionQueue,
    pair: QueuePair,
    gid: Gid,
    gid_index: u8,
    mtu: Mtu,
}

/// What the other side needs to know.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Card {
    pub(crate) pair: u32,
    gid: [u8; 16],
    mtu: u32,
}

/// Registered memory of the other side.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) address: u64,
    pub(crate) rkey: u32,
}

impl From<Place> for RemoteMemory {
    fn from(place: Place) -> Self {
        Self { address: place.address, rkey: place.rkey }
    }
}

impl Endpoint {
    /// Opens a device by its name. The queue pair is new.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let devices = Library::find()?.devices()?;
        let device = devices.named(name).next().with_context(|| format!("there is no device {name}"))?;
        let context = device.open()?;
        // By walking the table: which place an address is at differs between machines.
        let gids = context.gids(1, Path::new("/sys"))?;
        let chosen = gids.iter().find(|entry| entry.kind == GidType::RoceV2 && entry.gid.ipv4().is_some());
        let chosen = chosen.with_context(|| format!("{name} has no RoCE v2 address of IPv4"))?;
        let domain = context.protection_domain()?;
        let queue = context.completion_queue(ENTRIES)?;
        let pair = domain.queue_pair(&queue, &queue, &QueuePairConfig::default())?;
        let mtu = context.query_port(1)?.active_mtu;
        Ok(Self {
            gid: chosen.gid,
            gid_index: u8::try_from(chosen.index)?,
            context,
            domain,
            queue,
            pair,
            mtu,
        })
    }

    pub(crate) fn name(&self) -> &str {
        self.context.device().name()
    }

    pub(crate) fn domain(&self) -> &ProtectionDomain {
        &self.domain
    }

    pub(crate) fn pair(&self) -> &QueuePair {
        &self.pair
    }

    pub(crate) fn card(&self) -> Card {
        Card { pair: self.pair.number(), gid: self.gid.0, mtu: self.mtu.code() }
    }

    /// Takes the queue pair from *reset* to *ready to send*, and sees that each step was taken.
    pub(crate) fn connect(&self, peer: &Card, patience: &ReadyToSend) -> Result<()> {
        let at = |state| -> Result<()> {
            let found = self.pair.state()?;
            ensure!(found == state, "{}: the queue pair is in {found:?} and not in {state:?}", self.name());
            Ok(())
        };
        at(QueuePairState::Reset)?;
        self.pair.init(&Init::new(1, Access::REMOTE_WRITE)).context("to init")?;
        at(QueuePairState::Init)?;
        let address = Address::global(1, self.gid_index, Gid(peer.gid));
        let mtu = self.mtu.min(Mtu::from_code(peer.mtu));
        self.pair
            .ready_to_receive(&ReadyToReceive::new(address, peer.pair, mtu))
            .context("to ready to receive")?;
        at(QueuePairState::ReadyToReceive)?;
        self.pair.ready_to_send(patience).context("to ready to send")?;
        at(QueuePairState::ReadyToSend)
    }

    /// The next completion, well or badly.
    pub(crate) fn completion(&self) -> Result<Completion> {
        let until = Instant::now() + PATIENCE;
        let mut place = [Completion::default()];
        while self.queue.poll(&mut place)? == 0 {
            if Instant::now() > until {
                bail!("{}: no completion within {} s", self.name(), PATIENCE.as_secs());
            }
            // The other side, or the kernel for it, may need this processor.
            std::thread::yield_now();
        }
        Ok(place[0])
    }

    /// The next completion, which is that of request `wr_id` and has done `opcode`.
    pub(crate) fn done(&self, wr_id: u64, opcode: Opcode) -> Result<Completion> {
        let completion = self.completion()?;
        ensure!(
            completion.status.is_success()
                && completion.wr_id == wr_id
                && completion.opcode == Some(opcode)
                && completion.queue_pair == self.pair.number(),
            "{}: instead of {opcode:?} {wr_id} of queue pair {} came {completion:?}: {}",
            self.name(),
            self.pair.number(),
            completion.status
        );
        Ok(completion)
    }

    /// That there is no completion now.
    pub(crate) fn quiet(&self) -> Result<()> {
        let mut place = [Completion::default()];
        let count = self.queue.poll(&mut place)?;
        ensure!(count == 0, "{}: an unexpected completion: {place:?}", self.name());
        Ok(())
    }
}
