//! The ways that messages can take between two ends, and one end of each.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use meshreduce_channels::Links;
use meshreduce_channels::channel::Pair;
use meshreduce_channels::{
    Address, Context, Counter, CounterDescriptor, Device, Endpoint, Listener, Memory, Options, Region,
    Registry, Span,
};
use meshreduce_device::{DeviceMemory, PrimaryContext, Stream};
use serde::{Deserialize, Serialize};

/// A deadline that nothing but a defect lets pass.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// A way between two ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Way {
    /// The kind of channel.
    pub(crate) kind: String,
    /// Between memory of two devices; else of the host.
    pub(crate) device: bool,
    /// Both ends are in one process.
    pub(crate) one_process: bool,
    /// Nothing but TCP, as between hosts.
    pub(crate) tcp: bool,
}

impl Way {
    /// All that are measured, those on host memory first.
    pub(crate) fn all() -> Vec<Self> {
        let way =
            |kind: &str, device, one_process, tcp| Self { kind: kind.to_owned(), device, one_process, tcp };
        vec![
            way("xth", false, true, false),
            way("basic", false, true, false),
            way("basic", false, false, false),
            way("basic", false, false, true),
            way("gdr", false, false, false),
            way("xth", true, true, false),
            way("ipc", true, false, false),
            way("gdr", true, false, false),
            way("basic", true, false, false),
        ]
    }

    /// What tables call it.
    pub(crate) fn name(&self) -> String {
        let memory = if self.device { "cuda" } else { "cpu" };
        let ends = match (self.one_process, self.tcp) {
            (true, _) => "one process",
            (false, false) => "two processes",
            (false, true) => "two processes, TCP",
        };
        format!("{} {memory}, {ends}", self.kind)
    }

    fn devices(&self, is_far: bool) -> (Device, Device) {
        match (self.device, is_far) {
            (false, _) => (Device::Cpu, Device::Cpu),
            (true, false) => (Device::Cuda(0), Device::Cuda(1)),
            (true, true) => (Device::Cuda(1), Device::Cuda(0)),
        }
    }
}

/// Memory of one end.
#[derive(Debug)]
pub(crate) enum Buffer {
    Host(Vec<u8>),
    Device(DeviceMemory),
}

// SAFETY: either keeps the promise, and which one it is never changes.
unsafe impl Memory for Buffer {
    fn span(&self) -> Span {
        match self {
            Self::Host(memory) => memory.span(),
            Self::Device(memory) => memory.span(),
        }
    }
}

/// One end of a way.
pub(crate) struct End {
    pub(crate) endpoint: Endpoint,
    pub(crate) context: Context,
    pub(crate) remote: Device,
    /// Of the local device, if it is one of CUDA.
    pub(crate) cuda: Option<(Arc<PrimaryContext>, Stream)>,
    pub(crate) region: Option<(Region<Buffer>, Counter)>,
}

/// A context of one end, before it has met the other.
pub(crate) struct Single {
    context: Context,
    local: Device,
    remote: Device,
    kind: String,
}

impl Single {
    /// The near end, which listens, or the far one.
    ///
    /// # Errors
    /// Why the kind is not viable here.
    pub(crate) fn new(way: &Way, is_far: bool) -> Result<Self> {
        let (local, remote) = way.devices(is_far);
        if way.device {
            meshreduce_device::initialise()?;
        }
        let mut registry = Registry::default();
        registry.allow(&way.kind)?;
        let links = match (way.one_process, way.tcp) {
            (_, true) => Links { memory: false, unix: false, tcp: true },
            (true, _) => Links { memory: true, unix: false, tcp: false },
            (false, _) => Links { memory: false, unix: true, tcp: false },
        };
        let context = Context::with_options(&registry, &[local], Options { links, ..Options::default() })?;
        let report = context.report();
        let row = report.rows.iter().find(|row| row.name == way.kind);
        let reason = row.map_or(Some("it is not registered"), |row| row.reason.as_deref());
        ensure!(reason.is_none(), "{}", reason.unwrap_or_default());
        Ok(Self { context, local, remote, kind: way.kind.clone() })
    }

    pub(crate) fn listener(&self) -> Result<Listener> {
        Ok(self.context.listener()?)
    }

    pub(crate) fn connect(self, address: &str) -> Result<End> {
        let endpoint = self.context.connect_to(&address.parse::<Address>()?, LONG)?;
        self.met(endpoint)
    }

    pub(crate) fn met(self, endpoint: Endpoint) -> Result<End> {
        let Self { context, local, remote, kind } = self;
        let chosen = endpoint.channel(Pair { local, remote })?;
        ensure!(chosen == kind, "{chosen} serves the pair");
        let cuda = match local {
            Device::Cpu => None,
            Device::Cuda(ordinal) => {
                let primary = PrimaryContext::retain(ordinal)?;
                let stream = Stream::new(&primary)?;
                Some((primary, stream))
            }
        };
        Ok(End { endpoint, context, remote, cuda, region: None })
    }
}

impl End {
    /// Memory of its device. All of it is there: no page is made when it is first written to.
    pub(crate) fn buffer(&self, bytes: usize) -> Result<Buffer> {
        Ok(match &self.cuda {
            None => Buffer::Host(vec![0xff; bytes]),
            Some((context, _)) => Buffer::Device(DeviceMemory::new(context, bytes as u64)?),
        })
    }

    /// Memory with a pattern in it.
    pub(crate) fn filled(&self, bytes: usize) -> Result<Buffer> {
        let buffer = self.buffer(bytes)?;
        match buffer {
            Buffer::Host(mut memory) => {
                memory.iter_mut().enumerate().for_each(|(index, byte)| *byte = pattern(index));
                Ok(Buffer::Host(memory))
            }
            Buffer::Device(memory) => {
                let bytes: Vec<u8> = (0..bytes).map(pattern).collect();
                let (_, stream) = self.cuda.as_ref().context("a device has a stream")?;
                memory.write(0, &bytes, stream)?;
                Ok(Buffer::Device(memory))
            }
        }
    }

    /// Bytes of the memory that are not the pattern's.
    pub(crate) fn wrong(&self, buffer: &Buffer) -> Result<usize> {
        let count =
            |bytes: &[u8]| bytes.iter().enumerate().filter(|(index, byte)| **byte != pattern(*index)).count();
        Ok(match buffer {
            Buffer::Host(memory) => count(memory),
            Buffer::Device(memory) => {
                let (_, stream) = self.cuda.as_ref().context("a device has a stream")?;
                let mut bytes = vec![0; memory.bytes() as usize];
                memory.read(0, &mut bytes, stream)?;
                count(&bytes)
            }
        })
    }

    /// The stream that transfers are to wait for, if one is wanted.
    pub(crate) fn after(&self, with_stream: bool) -> Option<&Stream> {
        self.cuda.as_ref().filter(|_| with_stream).map(|(_, stream)| stream)
    }

    /// Registers memory for the other side to write to, with a counter.
    pub(crate) fn offer(
        &mut self,
        bytes: usize,
    ) -> Result<(meshreduce_channels::RegionDescriptor, CounterDescriptor)> {
        let region = self.context.register(self.buffer(bytes)?).map_err(|failed| failed.error)?;
        let counter = self.endpoint.counter();
        let told = (region.descriptor(), counter.descriptor());
        self.region = Some((region, counter));
        Ok(told)
    }
}

fn pattern(index: usize) -> u8 {
    (index % 251) as u8 ^ (index / 251) as u8
}
