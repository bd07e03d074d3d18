//! The calls whose cost on the host is measured: on a driver that does nothing, so that what is left is the library's
//! own, and beside an empty launch through the same driver.

use std::sync::{Arc, Barrier};

use anyhow::{Context, Result, bail};
use cust::memory::{DeviceBuffer, DeviceCopy};
use cust::stream::StreamFlags;
use cust_raw::{CUresult, CUstreamCaptureMode};
use half::bf16;
use meshreduce::{
    Bf16, Communicator, Config, DType, Lane, MemoryStore, Op, Outcome, StreamOrder, Topology, Work,
    rendezvous,
};

use meshreduce_process_group::{
    BackendConfig, Call, Device, DeviceType, Error, MeshFactory, ProcessGroup, ReduceOp, Registry, Tensor,
};

use crate::cuda::{Current, Event, Function, Module, Stream};
use crate::noop_driver;

/// Ranks of the communicator. What a call costs on the host does not depend on it.
pub const RANKS: usize = 8;
/// Elements of a message: 8 KiB of bf16.
pub const COUNT: usize = 4096;

/// Something whose cost is measured.
#[derive(Clone, Copy)]
pub struct Operation {
    /// What it is, in words.
    pub name: &'static str,
    /// Does it once.
    pub run: fn(&mut Subject) -> Result<()>,
}

/// All of them; the first is what the others are compared with.
pub const OPERATIONS: [Operation; 11] = [
    Operation { name: "empty launch", run: |subject| subject.empty_launch() },
    Operation {
        name: "empty launch + event record",
        run: |subject| {
            subject.empty_launch()?;
            subject.event.record(&subject.raw_stream)
        },
    },
    Operation { name: "all_reduce_raw", run: |subject| subject.all_reduce_raw().map(drop) },
    Operation {
        name: "all_reduce_in_place (typed, checked)",
        run: |subject| {
            // SAFETY: the no-op driver runs no kernels.
            unsafe { subject.lane.all_reduce_in_place(&mut subject.data, Op::Sum, &subject.stream) }?;
            Ok(())
        },
    },
    Operation {
        name: "all_reduce (typed, checked, out of place)",
        run: |subject| {
            // SAFETY: the no-op driver runs no kernels.
            unsafe { subject.lane.all_reduce(&subject.data, &mut subject.output, Op::Sum, &subject.stream) }?;
            Ok(())
        },
    },
    Operation {
        name: "group.start, backend mesh",
        run: |subject| {
            let address = subject.data.as_device_ptr().as_raw();
            let (dtype, device) = (meshreduce_process_group::DType::Bf16, Device::Cuda(0));
            let tensor = Tensor { address, count: COUNT, dtype, device };
            let call = Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum };
            // SAFETY: the no-op driver runs no kernels.
            std::hint::black_box(unsafe { subject.groups[0].start(&call) }?);
            Ok(())
        },
    },
    Operation {
        name: "all_reduce_raw + synchronize",
        run: |subject| Ok(subject.all_reduce_raw()?.synchronize()?),
    },
    Operation {
        name: "select",
        run: |subject| {
            let bytes = std::hint::black_box((COUNT * 2) as u64);
            std::hint::black_box(subject.communicators[0].select(bytes, DType::Bf16, Op::Sum));
            Ok(())
        },
    },
    Operation { name: "work.wait", run: |subject| Ok(subject.work.wait(&subject.stream)?) },
    Operation { name: "work.synchronize", run: |subject| Ok(subject.work.synchronize()?) },
    Operation {
        name: "work.is_finished",
        run: |subject| {
            std::hint::black_box(subject.work.is_finished()?);
            Ok(())
        },
    },
];

/// What the operations work on: rank 0 of a communicator whose other ranks launch nothing, since on a driver that runs no
/// kernels nobody waits for them.
pub struct Subject {
    // Dropped in this order.
    work: Work,
    lane: Lane,
    communicators: Vec<Communicator>,
    groups: Vec<ProcessGroup>,
    data: DeviceBuffer<Bf16>,
    output: DeviceBuffer<Bf16>,
    stream: cust::stream::Stream,
    event: Event,
    raw_stream: Stream,
    empty: Function,
    _module: Module,
    _context: Current,
}

/// As long as the parameter of the library's kernels.
type Parameter = [u64; 7];
const _: () = assert!(size_of::<Parameter>() == 56);

impl Subject {
    /// Opens the no-op driver and builds everything; the device's context is current on this thread from then on.
    ///
    /// # Errors
    /// If the no-op driver is nowhere, or another driver is in use.
    pub fn new() -> Result<Self> {
        noop_driver::open()?;
        let (communicators, mut groups) = (communicators()?, groups()?);
        let context = Current::new(0)?;
        let module = Module::load("")?;
        let empty = module.function("empty")?;
        let (data, output) = (ones(COUNT)?, ones(COUNT)?);
        let stream = cust::stream::Stream::new(StreamFlags::DEFAULT, None)?;
        let raw_stream = Stream::new()?;
        // SAFETY: the stream is of the device, and lives as long as the group.
        groups[0] = unsafe { groups[0].on_stream(raw_stream.raw()) };
        let mut lane = communicators[0].lane(0)?;
        // SAFETY: the no-op driver runs no kernels.
        let work = unsafe {
            lane.all_reduce_raw(
                data.as_device_ptr().as_raw(),
                data.as_device_ptr().as_raw(),
                COUNT,
                DType::Bf16,
                Op::Sum,
                raw_stream.raw(),
            )
        }?;
        Ok(Self {
            work,
            lane,
            communicators,
            groups,
            data,
            output,
            stream,
            event: Event::new()?,
            raw_stream,
            empty,
            _module: module,
            _context: context,
        })
    }

    /// Does something while the stream of the raw calls is being captured.
    ///
    /// # Errors
    /// Those of `act`, and what the driver says of the capture.
    pub fn captured(&mut self, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let done = |call, answer| match answer {
            CUresult::CUDA_SUCCESS => Ok(()),
            error => bail!("{call}: {error:?}"),
        };
        let stream = self.raw_stream.raw().cast();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive.
        done("cuStreamBeginCapture", unsafe { cust_raw::cuStreamBeginCapture_v2(stream, mode) })?;
        let acted = act(self);
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream is alive, and the place outlives the call.
        done("cuStreamEndCapture", unsafe { cust_raw::cuStreamEndCapture(stream, &mut graph) })?;
        acted
    }

    fn empty_launch(&self) -> Result<()> {
        let parameter: Parameter = [0; 7];
        // SAFETY: the no-op driver runs no kernels.
        unsafe { self.empty.launch(256, &self.raw_stream, &parameter) }
    }

    fn all_reduce_raw(&mut self) -> Result<Work> {
        let address = self.data.as_device_ptr().as_raw();
        // The typed operations are on another stream; behind a call on the same one there is nothing to wait for.
        let stream = StreamOrder::behind_last_call(self.raw_stream.raw());
        // SAFETY: the no-op driver runs no kernels.
        Ok(unsafe { self.lane.all_reduce_raw(address, address, COUNT, DType::Bf16, Op::Sum, stream) }?)
    }
}

fn ones(count: usize) -> Result<DeviceBuffer<Bf16>>
where
    Bf16: DeviceCopy,
{
    Ok(DeviceBuffer::from_slice(&vec![Bf16::from(bf16::ONE); count])?)
}

/// Two communicators share each device: the one that is called by itself, and the group's.
fn config() -> Config {
    Config::default().force_topology(Some(Topology::FullyConnected)).communicators_per_device(2)
}

/// A group of all ranks, of each rank, with its mesh.
fn groups() -> Result<Vec<ProcessGroup>> {
    let store = Arc::new(MemoryStore::new());
    let mut registry = Registry::default();
    registry.replace(MeshFactory::new().with_config(config()))?;
    let make = |rank: usize| {
        ProcessGroup::builder(Arc::clone(&store) as _, rank, RANKS)
            .registry(registry.clone())
            .backend(BackendConfig::One("mesh".to_owned()))
            .cuda_device(rank as u32)
            .forbid_fallback(true)
            .build()
    };
    let groups: Vec<_> = (0..RANKS).map(make).collect::<Result<_, _>>()?;
    on_all(&groups, |group| group.connect(DeviceType::Cuda))?;
    Ok(groups)
}

/// Has every rank do something, each on a thread.
fn on_all(groups: &[ProcessGroup], act: fn(&ProcessGroup) -> Result<(), Error>) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = groups.iter().map(|group| scope.spawn(move || act(group))).collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a rank panicked"))??;
        }
        Ok(())
    })
}

/// The communicators of all ranks, which are threads for as long as they meet.
fn communicators() -> Result<Vec<Communicator>> {
    let store = MemoryStore::new();
    let config = config();
    let (store, config) = (&store, &config);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..RANKS)
            .map(|rank| scope.spawn(move || rendezvous(store, rank, RANKS, rank as u32, config)))
            .collect();
        let mut communicators = Vec::new();
        for thread in threads {
            match thread.join() {
                Ok(Ok(Outcome::Ready(communicator))) => communicators.push(communicator),
                Ok(Ok(Outcome::NotApplicable(reason))) => bail!("not applicable: {reason}"),
                Ok(Err(error)) => return Err(error).context("meeting on the no-op driver"),
                Err(_) => bail!("a rank panicked"),
            }
        }
        Ok(communicators)
    })
}

impl Subject {
    /// Closes the communicators in order.
    ///
    /// # Errors
    /// What a rank says.
    pub fn close(self) -> Result<()> {
        let Self { work, lane, communicators, groups, .. } = self;
        drop((work, lane));
        on_all(&groups, ProcessGroup::shutdown)?;
        let start = Barrier::new(communicators.len());
        let start = &start;
        std::thread::scope(|scope| {
            let threads: Vec<_> = communicators
                .into_iter()
                .map(|communicator| {
                    scope.spawn(move || {
                        start.wait();
                        communicator.close()
                    })
                })
                .collect();
            for thread in threads {
                thread.join().map_err(|_| anyhow::anyhow!("a rank panicked"))??;
            }
            Ok(())
        })
    }
}
