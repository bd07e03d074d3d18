//! The backend as a group uses it: ranks as threads, hosts played by ids of their own.

mod collectives;
mod failures;
mod messages;
mod processes;
mod resources;
mod ways;

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_store::{MemoryStore, Store};

use super::HostFactory;
use super::backend::HostBackend;
use crate::backend::{Backend, BackendContext, GroupInfo, Registry, Request};
use crate::call::Call;
use crate::error::Error;
use crate::tensor::Tensor;
use crate::types::{DType, Device};
use crate::work::{Outcome, Progress, Work};

/// Longer than any of these tests may take.
const FAR: Duration = Duration::from_secs(60);

/// One rank of a test.
struct Rank {
    backend: Arc<HostBackend>,
    rank: usize,
    world: usize,
    collectives: Cell<u64>,
    messages: Cell<u64>,
    deadline: Cell<Option<Duration>>,
}

fn context(store: Arc<dyn Store>, rank: usize, world_size: usize) -> BackendContext {
    let ranks = (0..world_size).collect();
    let group = Arc::new(GroupInfo { name: "test".into(), rank, world_size, ranks });
    let (device, registry) = (Device::Cpu, Registry::empty());
    let deadline = Some(FAR);
    let end = Arc::default();
    BackendContext {
        group,
        device,
        store,
        timeout: FAR,
        group_timeout: FAR,
        deadline,
        forbid_fallback: false,
        registry,
        end,
        dead_member: Default::default(),
        absent: Default::default(),
        lane: Arc::default(),
    }
}

/// The end of a call.
fn ended(work: Work) -> Result<Outcome, Error> {
    match work.progress {
        Progress::Done(outcome, _) => Ok(outcome),
        Progress::Other(completion, _) => {
            Ok(completion.wait(Some(Instant::now() + FAR))?.expect("a call does not end"))
        }
        Progress::Mesh(..) => unreachable!("host memory is not on the mesh"),
    }
}

impl Rank {
    fn new(store: Arc<dyn Store>, rank: usize, world: usize, factory: &HostFactory) -> Self {
        Self::within(FAR, store, rank, world, factory)
    }

    fn within(
        timeout: Duration,
        store: Arc<dyn Store>,
        rank: usize,
        world: usize,
        factory: &HostFactory,
    ) -> Self {
        let context = BackendContext { timeout, ..context(store, rank, world) };
        let backend = Arc::new(factory.begin(context).unwrap());
        let (collectives, messages) = (Cell::new(0), Cell::new(0));
        Self { backend, rank, world, collectives, messages, deadline: Cell::new(Some(FAR)) }
    }

    fn start(&self, call: &Call<'_>, blocking: bool) -> Result<Work, Error> {
        call.check(self.rank, self.world).expect("the test calls nonsense");
        let counter = if call.is_point_to_point() { &self.messages } else { &self.collectives };
        let sequence = counter.replace(counter.get() + 1);
        let (start, deadline) = (Instant::now(), self.deadline.get());
        let stream = std::ptr::null_mut::<u8>().into();
        let request = Request { sequence, start, deadline, stream, blocking, ..Request::new() };
        // SAFETY: tests wait for their calls, or keep the memory until the backend is dropped.
        unsafe { self.backend.start(call, &request) }
    }

    /// In the caller's thread.
    fn call(&self, call: &Call<'_>) -> Result<Outcome, Error> {
        self.start(call, true).and_then(ended)
    }

    /// By the progress thread.
    fn begin(&self, call: &Call<'_>) -> Result<Work, Error> {
        self.start(call, false)
    }

    fn barrier(&self) -> Result<Outcome, Error> {
        self.call(&Call::Barrier { device: Device::Cpu })
    }
}

/// Runs `body` on as many ranks as `hosts` has letters, each letter a host.
fn on_hosts<R: Send>(hosts: &str, body: impl Fn(&Rank) -> R + Sync) -> Vec<R> {
    on_hosts_with(&HostFactory::new(), hosts, body)
}

/// The same, with other options.
fn on_hosts_with<R: Send>(factory: &HostFactory, hosts: &str, body: impl Fn(&Rank) -> R + Sync) -> Vec<R> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let world = hosts.len();
    std::thread::scope(|scope| {
        let threads: Vec<_> = hosts
            .chars()
            .enumerate()
            .map(|(rank, host)| {
                let (store, body) = (Arc::clone(&store), &body);
                scope.spawn(move || {
                    let factory = factory.clone().host_id(host);
                    let own = Rank::new(store, rank, world, &factory);
                    let result = body(&own);
                    // Those who fail leave without the others.
                    let _ = own.backend.shutdown(FAR);
                    result
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank has failed")).collect()
    })
}

/// Elements of a type as bytes, aligned.
#[derive(Clone, PartialEq, Eq)]
struct Data {
    words: Vec<u64>,
    count: usize,
    dtype: DType,
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {:x?}", self.count, self.dtype, &self.words[..self.words.len().min(8)])
    }
}

impl Data {
    fn zeros(dtype: DType, count: usize) -> Self {
        Self { words: vec![0; (count * dtype.size()).div_ceil(8).max(1)], count, dtype }
    }

    /// Any bits, by seed: infinities, NaNs and all.
    fn any(dtype: DType, count: usize, seed: u64) -> Self {
        let mut data = Self::zeros(dtype, count);
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for word in &mut data.words {
            // xorshift64* (S. Vigna, 2016).
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            *word = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        }
        data.trim();
        data
    }

    /// Floats as they are, but within a factor of 16 from one another, so that it shows in which order they are added and whether what
    /// is between was rounded.
    fn tamed(mut self) -> Self {
        let (signs, exponents) = match self.dtype {
            DType::F32 => (0x81ff_ffff_81ff_ffff, 0x3e00_0000_3e00_0000),
            DType::F64 => (0x803f_ffff_ffff_ffff, 0x3fc0_0000_0000_0000),
            DType::F16 => (0x8fff_8fff_8fff_8fff, 0x3000_3000_3000_3000),
            DType::Bf16 => (0x81ff_81ff_81ff_81ff, 0x3e00_3e00_3e00_3e00),
            _ => return self,
        };
        self.words.iter_mut().for_each(|word| *word = *word & signs | exponents);
        self.trim();
        self
    }

    /// Nothing behind the last element.
    fn trim(&mut self) {
        let bytes = self.count * self.dtype.size();
        let last = bytes / 8;
        if let Some(word) = self.words.get_mut(last) {
            *word &= (1_u64 << (bytes % 8 * 8)) - 1;
        }
    }

    fn tensor(&mut self) -> Tensor {
        let address = self.words.as_mut_ptr().expose_provenance() as u64;
        Tensor { address, count: self.count, dtype: self.dtype, device: Device::Cpu }
    }

    fn elements(&self, first: usize, count: usize) -> Vec<u8> {
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes[first * self.dtype.size()..(first + count) * self.dtype.size()].to_vec()
    }
}
