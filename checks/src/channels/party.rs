//! One side of a scenario.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use meshreduce_channels::channel::Pair;
use meshreduce_channels::{Context, Device, Endpoint, Links, Options, Owned, Registry};
use meshreduce_device::PrimaryContext;
use meshreduce_store::Store;

use super::memory::Buffer;

/// Nothing here takes as long.
pub const SOON: Duration = Duration::from_secs(120);

/// Which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one that listens.
    A,
    /// The one that connects.
    B,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::A => "a",
            Role::B => "b",
        })
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "a" => Ok(Role::A),
            "b" => Ok(Role::B),
            _ => Err(format!("{text:?} is neither a nor b")),
        }
    }
}

/// How parties are made.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The allow list.
    pub channels: String,
    /// Of A and of B.
    pub devices: [Device; 2],
    /// Which links may be used.
    pub links: Links,
    /// See [`Options::silence`].
    pub silence: Duration,
}

/// One side, with an endpoint to the other one.
pub struct Party {
    /// Which one.
    pub role: Role,
    /// The connection. (Before the context, so that it is dropped first.)
    pub endpoint: Endpoint,
    /// The channels of this side.
    pub context: Arc<Context>,
    /// This side's device, and the other's.
    pub device: Device,
    /// The other side's.
    pub remote: Device,
    /// The allow list.
    pub channels: String,
    store: Arc<dyn Store>,
    syncs: Cell<u64>,
}

impl Party {
    /// Meets the other side in `store`.
    ///
    /// # Errors
    ///
    /// What the channels say.
    pub fn meet(role: Role, setting: &Setting, store: Arc<dyn Store>) -> Result<Self> {
        Self::meet_with(Registry::default(), role, setting, store)
    }

    /// As [`Party::meet`], with these kinds of channels.
    ///
    /// # Errors
    ///
    /// What the channels say.
    pub fn meet_with(
        mut registry: Registry,
        role: Role,
        setting: &Setting,
        store: Arc<dyn Store>,
    ) -> Result<Self> {
        registry.allow(&setting.channels)?;
        let [a, b] = setting.devices;
        let (device, remote) = match role {
            Role::A => (a, b),
            Role::B => (b, a),
        };
        let options =
            Options { name: Some(format!("party {role}")), links: setting.links, silence: setting.silence };
        let context = Context::with_options(&registry, &[device], options)?;
        let endpoint = match role {
            Role::A => context.listen(&*store, "scenario", SOON),
            Role::B => context.connect(&*store, "scenario", SOON),
        };
        let endpoint = endpoint.context("the other party was not met")?;
        let (context, channels, syncs) = (Arc::new(context), setting.channels.clone(), Cell::new(0));
        Ok(Self { role, endpoint, context, device, remote, channels, store, syncs })
    }

    /// The pair of devices that the scenario is about.
    pub fn pair(&self) -> Pair {
        Pair { local: self.device, remote: self.remote }
    }

    /// Whether this is A.
    pub fn is_a(&self) -> bool {
        self.role == Role::A
    }

    /// The context of the own device, if it is of CUDA.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn cuda(&self) -> Result<Option<Arc<PrimaryContext>>> {
        match self.device {
            Device::Cpu => Ok(None),
            Device::Cuda(ordinal) => Ok(Some(PrimaryContext::retain(ordinal)?)),
        }
    }

    /// Memory on the own device that holds `bytes`.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn buffer(&self, bytes: &[u8]) -> Result<Buffer> {
        Buffer::new(self.device, bytes)
    }

    /// Starts to send memory of the own device.
    pub fn send(&self, memory: Buffer) -> Owned<Buffer> {
        self.endpoint.send(memory, self.remote, None)
    }

    /// Starts to receive into memory of the own device.
    pub fn recv(&self, memory: Buffer) -> Owned<Buffer> {
        self.endpoint.recv(memory, self.remote, None)
    }

    /// Sends `bytes` from the own device, and waits.
    ///
    /// # Errors
    ///
    /// The transfer's.
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        self.send(self.buffer(bytes)?).wait(SOON)?;
        Ok(())
    }

    /// Receives as many bytes on the own device, and waits.
    ///
    /// # Errors
    ///
    /// The transfer's.
    pub fn recv_bytes(&self, count: usize) -> Result<Vec<u8>> {
        // What was there before differs from what comes.
        let (buffer, _) = self.recv(self.buffer(&vec![0xa5; count])?).wait(SOON)?;
        buffer.read()
    }

    /// Where the two have met.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Tells whoever plays the scenario that this side has come somewhere ([`super::cast::Stage::wait_for`]).
    ///
    /// # Errors
    ///
    /// The store's.
    pub fn tell(&self, place: &str) -> Result<()> {
        self.store.set(&format!("{place} {}", self.role), b"")?;
        Ok(())
    }

    /// Waits for the other side to come here too.
    ///
    /// # Errors
    ///
    /// The store's.
    pub fn sync(&self) -> Result<()> {
        let at = self.syncs.get();
        self.syncs.set(at + 1);
        self.store.barrier(&format!("sync {at}"), 2, SOON)?;
        Ok(())
    }
}

/// Bytes that differ from message to message and from place to place.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut all = Vec::with_capacity(length + 8);
    while all.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend_from_slice(&state.to_le_bytes());
    }
    all.truncate(length);
    all
}

/// Compares what has come with what was sent.
///
/// # Errors
///
/// Where they differ first.
pub fn compare(what: &str, found: &[u8], seed: u64, length: usize) -> Result<()> {
    let expected = pattern(seed, length);
    anyhow::ensure!(found.len() == expected.len(), "{what}: {} bytes instead of {length}", found.len());
    match found.iter().zip(&expected).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(at) => {
            anyhow::bail!("{what}: byte {at} of {length} is {} instead of {}", found[at], expected[at])
        }
    }
}
