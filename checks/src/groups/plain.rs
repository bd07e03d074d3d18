//! A backend over a store: slow and simple, in a crate outside of the library. It can be given faults, which the suite must see.
//!
//! In a collective every rank tells all others all that it reads, and takes what it needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_process_group::{
    Backend, BackendContext, BackendFactory, Call, Cause, DType, DeviceType, Error, GroupInfo, Outcome,
    Parts, Request, Tensor, Work,
};

use super::values::{chain, tree};

/// What the backend does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The lowest bit of an output's last element is flipped.
    Bit,
    /// Reductions go from rank to rank.
    Chain,
    /// An element behind an output is written.
    Beyond,
    /// The last element of an input is written.
    Input,
    /// The first output part is not written.
    Part,
    /// Ranks get the part of the rank after them.
    Neighbour,
    /// Only the first call of a batch is made.
    Batch,
    /// Rank 1 refuses what it must take.
    Refusal,
    /// A receive from any rank names the wrong one.
    Source,
}

impl Fault {
    /// All but none.
    pub const ALL: [Fault; 9] = [
        Fault::Bit,
        Fault::Chain,
        Fault::Beyond,
        Fault::Input,
        Fault::Part,
        Fault::Neighbour,
        Fault::Batch,
        Fault::Refusal,
        Fault::Source,
    ];
}

/// Makes [`PlainBackend`]s.
#[derive(Debug)]
pub struct Plain {
    fault: Fault,
}

impl Plain {
    /// Without a fault.
    #[allow(clippy::new_without_default, reason = "a backend is made on purpose")]
    pub fn new() -> Self {
        Self { fault: Fault::None }
    }

    /// With a fault.
    ///
    /// # Safety
    ///
    /// The backend only gets calls whose inputs may be written, and whose outputs have an element behind them that may be.
    pub unsafe fn with(fault: Fault) -> Self {
        Self { fault }
    }
}

impl BackendFactory for Plain {
    fn name(&self) -> &str {
        "plain"
    }

    fn devices(&self) -> &[DeviceType] {
        &[DeviceType::Cpu]
    }

    fn create(&self, context: BackendContext) -> Result<Arc<dyn Backend>, Error> {
        Ok(Arc::new(PlainBackend {
            name: "plain".into(),
            fault: self.fault,
            context,
            order: Mutex::new(()),
            letters: Mutex::default(),
            end: Mutex::new(None),
        }))
    }
}

/// What was sent and not yet received, by tag: who, and what.
#[derive(Debug, Default)]
struct Unreceived {
    waiting: HashMap<u32, Vec<(usize, Vec<u8>)>>,
    /// How many were taken out of the store, by tag.
    taken: HashMap<u32, i64>,
}

/// The backend.
#[derive(Debug)]
pub struct PlainBackend {
    name: Arc<str>,
    fault: Fault,
    context: BackendContext,
    /// Collectives go one after the other.
    order: Mutex<()>,
    letters: Mutex<Unreceived>,
    end: Mutex<Option<Error>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// # Safety
///
/// The tensor is valid for reads.
unsafe fn read(tensor: &Tensor) -> Vec<u8> {
    if tensor.count == 0 {
        return Vec::new();
    }
    let address = std::ptr::with_exposed_provenance::<u8>(tensor.address as usize);
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(address, tensor.bytes()) }.to_vec()
}

/// # Safety
///
/// The tensor is valid for writes.
unsafe fn write(tensor: &Tensor, bytes: &[u8]) {
    assert_eq!(tensor.bytes(), bytes.len(), "as long as what is written");
    let address = std::ptr::with_exposed_provenance_mut::<u8>(tensor.address as usize);
    if !bytes.is_empty() {
        // SAFETY: the caller's promise; the bytes are elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address, bytes.len()) };
    }
}

fn tensors(parts: &Parts<'_>, world_size: usize) -> Vec<Tensor> {
    (0..world_size).map(|rank| parts.part(rank, world_size)).collect()
}

/// Byte strings in one, each behind its length.
fn pack(parts: &[Vec<u8>]) -> Vec<u8> {
    parts
        .iter()
        .flat_map(|part| (part.len() as u64).to_le_bytes().into_iter().chain(part.iter().copied()))
        .collect()
}

fn unpack(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<8>() {
        let (part, rest) = rest.split_at(u64::from_le_bytes(*length) as usize);
        parts.push(part.to_vec());
        bytes = rest;
    }
    parts
}

impl PlainBackend {
    fn info(&self) -> (usize, usize) {
        (self.context.group.rank, self.context.group.world_size)
    }

    fn failed(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        let GroupInfo { name, .. } = &*self.context.group;
        Error::Backend { backend: Arc::clone(&self.name), group: Arc::clone(name), source: Cause::new(error) }
    }

    fn meet(&self, told: &[u8], end: Option<Instant>) -> Result<Vec<Vec<u8>>, Error> {
        let (rank, world_size) = self.info();
        let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
        meshreduce::rendezvous::meet(&*self.context.store, rank, world_size, told, left)
            .map_err(|error| self.failed(error))
    }

    /// # Safety
    ///
    /// As [`Backend::start`].
    unsafe fn make(&self, call: &Call<'_>, end: Option<Instant>) -> Result<Outcome, Error> {
        // SAFETY: the caller's promise, in all arms.
        unsafe {
            match call {
                Call::Batch(calls) => {
                    // Sends first, so that no receive waits for one behind it.
                    let (sends, others): (Vec<_>, Vec<_>) =
                        calls.iter().partition(|call| matches!(call, Call::Send { .. }));
                    let most = if self.fault == Fault::Batch { 1 } else { usize::MAX };
                    for call in sends.into_iter().chain(others).take(most) {
                        self.make(call, end)?;
                    }
                    Ok(Outcome::default())
                }
                Call::Send { input, peer, tag } => self.send(read(input), *peer, *tag),
                Call::Recv { output, peer, tag } => {
                    let (source, bytes) = self.receive(*peer, *tag, end)?;
                    self.put(std::slice::from_ref(output), vec![bytes]);
                    let shift = usize::from(self.fault == Fault::Source);
                    Ok(Outcome::from_rank((source + shift) % self.info().1))
                }
                call => self.collective(call, end).map(|()| Outcome::default()),
            }
        }
    }

    /// # Safety
    ///
    /// As [`Backend::start`].
    unsafe fn collective(&self, call: &Call<'_>, end: Option<Instant>) -> Result<(), Error> {
        let (rank, world_size) = self.info();
        let own = (rank + usize::from(self.fault == Fault::Neighbour)) % world_size;
        let inputs = match call {
            Call::Scatter { inputs: Some(parts), .. }
            | Call::ReduceScatter { inputs: parts, .. }
            | Call::AllToAll { inputs: parts, .. } => tensors(parts, world_size),
            call => call.inputs().to_vec(),
        };
        // SAFETY: the caller's promise.
        let told: Vec<_> = inputs.iter().map(|tensor| unsafe { read(tensor) }).collect();
        let order = lock(&self.order);
        let all = self.meet(&pack(&told), end);
        drop(order);
        let all = all?;
        let all: Vec<Vec<Vec<u8>>> = all.iter().map(|told| unpack(told)).collect();
        let joined = |part: usize| {
            let columns: Vec<&[u8]> = all.iter().map(|told| &*told[part]).collect();
            let (dtype, op) = (call.dtype().unwrap_or(DType::U8), call.op().expect("a reduction"));
            match self.fault {
                Fault::Chain => chain(&columns, dtype, op),
                _ => tree(&columns, dtype, op),
            }
        };
        let (outputs, results) = match call {
            Call::AllReduce { output, .. } => (vec![*output], vec![joined(0)]),
            Call::Reduce { output: Some(output), .. } => (vec![*output], vec![joined(0)]),
            Call::Broadcast { tensor, root } => (vec![*tensor], vec![all[*root][0].clone()]),
            Call::AllGather { outputs, .. } | Call::Gather { outputs: Some(outputs), .. } => {
                (tensors(outputs, world_size), all.iter().map(|told| told[0].clone()).collect())
            }
            Call::Scatter { output, root, .. } => (vec![*output], vec![all[*root][own].clone()]),
            Call::ReduceScatter { output, .. } => (vec![*output], vec![joined(own)]),
            Call::AllToAll { outputs, .. } => {
                (tensors(outputs, world_size), all.iter().map(|told| told[own].clone()).collect())
            }
            _ => (Vec::new(), Vec::new()),
        };
        // SAFETY: the caller's promise.
        unsafe { self.put(&outputs, results) };
        if self.fault == Fault::Input
            && let Some(input) = inputs.last().filter(|input| input.count > 0)
        {
            let last = input.slice(input.count - 1, 1);
            // SAFETY: it is memory of the test that makes the call.
            unsafe { write(&last, &read(&last).iter().map(|byte| !byte).collect::<Vec<_>>()) };
        }
        Ok(())
    }

    /// Writes results, with what is wrong with them.
    ///
    /// # Safety
    ///
    /// The outputs are valid for writes, and so is, for a fault, what lies behind them.
    unsafe fn put(&self, outputs: &[Tensor], results: Vec<Vec<u8>>) {
        for (part, (output, mut result)) in outputs.iter().zip(results).enumerate() {
            // A neighbour's part may be of another length.
            result.resize(output.bytes(), 0);
            if self.fault == Fault::Part && part == 0 {
                continue;
            }
            if self.fault == Fault::Bit
                && let Some(byte) = result.len().checked_sub(output.dtype.size())
                && output.count > 0
            {
                result[byte] ^= 1;
            }
            // SAFETY: the caller's promise.
            unsafe { write(output, &result) };
            if self.fault == Fault::Beyond {
                let behind = Tensor { address: output.address + output.bytes() as u64, count: 1, ..*output };
                // SAFETY: as above.
                unsafe { write(&behind, &vec![0x5a; behind.bytes()]) };
            }
        }
    }

    fn send(&self, bytes: Vec<u8>, peer: usize, tag: u32) -> Result<Outcome, Error> {
        let store = &self.context.store;
        let number = store.add(&format!("sent/{peer}/{tag}"), 1).map_err(|error| self.failed(error))?;
        let letter = pack(&[self.info().0.to_le_bytes().to_vec(), bytes]);
        store.set(&format!("letter/{peer}/{tag}/{number}"), &letter).map_err(|error| self.failed(error))?;
        Ok(Outcome::default())
    }

    fn receive(
        &self,
        peer: Option<usize>,
        tag: u32,
        end: Option<Instant>,
    ) -> Result<(usize, Vec<u8>), Error> {
        let (rank, store) = (self.info().0, &self.context.store);
        let mut letters = lock(&self.letters);
        loop {
            let waiting = letters.waiting.entry(tag).or_default();
            if let Some(at) = waiting.iter().position(|(from, _)| peer.is_none_or(|peer| peer == *from)) {
                return Ok(waiting.remove(at));
            }
            let number = letters.taken.entry(tag).or_default();
            *number += 1;
            let key = format!("letter/{rank}/{tag}/{number}");
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            let letter = store.get(&key, left).map_err(|error| self.failed(error))?;
            store.delete(&key).map_err(|error| self.failed(error))?;
            if let [from, bytes] = unpack(&letter).as_slice() {
                let from = usize::from_le_bytes(from.as_slice().try_into().expect("a rank"));
                letters.waiting.entry(tag).or_default().push((from, bytes.clone()));
            }
        }
    }
}

impl Backend for PlainBackend {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn supports(&self, _: &Call<'_>) -> Result<(), String> {
        match self.fault == Fault::Refusal && self.info().0 == 1 {
            true => Err("it does not feel like it".to_owned()),
            false => Ok(()),
        }
    }

    unsafe fn start(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        if let Some(error) = self.error() {
            return Err(error);
        }
        // SAFETY: the caller's promise.
        let outcome = unsafe { self.make(call, request.end()) }?;
        Ok(Work::done(&self.name, outcome))
    }

    fn abort(&self, cause: &Error) {
        lock(&self.end).get_or_insert_with(|| cause.clone());
    }

    fn error(&self) -> Option<Error> {
        lock(&self.end).clone()
    }

    fn shutdown(&self, timeout: Duration) -> Result<(), Error> {
        self.meet(b"the end", Instant::now().checked_add(timeout))?;
        for tag in lock(&self.letters).taken.keys() {
            let key = format!("sent/{}/{tag}", self.info().0);
            self.context.store.delete(&key).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }
}
