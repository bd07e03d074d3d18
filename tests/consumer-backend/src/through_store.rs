//! The backend.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use meshreduce_process_group::store::{Store, StoreError};
use meshreduce_process_group::{
    Backend, BackendContext, BackendFactory, Call, Cause, DType, DeviceType, Error, Outcome, ReduceOp, Request, Tensor,
    Work,
};

pub struct Factory;

impl BackendFactory for Factory {
    fn name(&self) -> &str {
        "through-store"
    }

    fn devices(&self) -> &[DeviceType] {
        &[DeviceType::Cpu]
    }

    fn create(&self, context: BackendContext) -> Result<Arc<dyn Backend>, Error> {
        let name: Arc<str> = self.name().into();
        // All ranks meet; what they say of themselves could be an address.
        let all = context.meet(&name, format!("rank {}", context.group.rank).as_bytes())?;
        assert_eq!(all.len(), context.group.world_size);
        Ok(Arc::new(ThroughStore { name, context, end: OnceLock::new() }))
    }
}

#[derive(Debug)]
struct ThroughStore {
    name: Arc<str>,
    context: BackendContext,
    end: OnceLock<Error>,
}

impl ThroughStore {
    fn store(&self) -> &dyn Store {
        &*self.context.store
    }

    fn failed(&self, error: StoreError) -> Error {
        let (backend, group) = (Arc::clone(&self.name), Arc::clone(&self.context.group.name));
        Error::Backend { backend, group, source: Cause::new(error) }
    }

    fn key(&self, sequence: u64, rank: usize) -> String {
        format!("{sequence}/{rank}")
    }

    /// Every rank's bytes of one call, by rank.
    fn exchange(&self, own: &[u8], call: &Call<'_>, request: &Request) -> Result<Vec<Vec<u8>>, Error> {
        let sequence = request.sequence;
        let ranks = 0..self.context.group.world_size;
        self.store().set(&self.key(sequence, self.context.group.rank), own).map_err(|error| self.failed(error))?;
        let keys: Vec<String> = ranks.clone().map(|rank| self.key(sequence, rank)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let wait = || request.end().map(|end| end.saturating_duration_since(Instant::now())).unwrap_or(Duration::MAX);
        let all = loop {
            if let Some(cause) = self.end.get() {
                return Err(cause.clone());
            }
            // In short pieces, so that an abort is heard.
            match self.store().multi_get(&keys, wait().min(Duration::from_millis(50))) {
                Ok(all) => break all,
                Err(StoreError::Timeout { .. }) if !wait().is_zero() => {}
                Err(StoreError::Timeout { keys: absent, .. }) => {
                    let missing = ranks.filter(|rank| absent.contains(&self.key(sequence, *rank))).collect();
                    return Err(request.timed_out(call.operation(), &self.context.group.name, missing));
                }
                Err(error) => return Err(self.failed(error)),
            }
        };
        // All have come to this call, so all are done with the one before.
        if sequence > 1 {
            let before = self.key(sequence - 1, self.context.group.rank);
            self.store().delete(&before).map_err(|error| self.failed(error))?;
        }
        Ok(all)
    }
}

/// # Safety
///
/// The tensor is valid for reads.
unsafe fn bytes(tensor: Tensor) -> Vec<u8> {
    let address = std::ptr::with_exposed_provenance::<u8>(tensor.address as usize);
    // SAFETY: the caller vouches for the memory, whose elements have no padding.
    unsafe { std::slice::from_raw_parts(address, tensor.bytes()) }.to_vec()
}

/// # Safety
///
/// The tensor is valid for writes.
unsafe fn write(tensor: Tensor, bytes: &[u8]) {
    assert_eq!(bytes.len(), tensor.bytes(), "ranks differ in length");
    let address = std::ptr::with_exposed_provenance_mut::<u8>(tensor.address as usize);
    // SAFETY: the caller vouches for the memory, which is as long as the bytes; they are this process's own.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address, bytes.len()) };
}

fn reduce(all: &[Vec<u8>], op: ReduceOp) -> Vec<u8> {
    let values = |bytes: &Vec<u8>| -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()
    };
    let mut ranks = all.iter().map(values);
    let mut sum = ranks.next().unwrap_or_default();
    for rank in ranks {
        for (sum, value) in sum.iter_mut().zip(rank) {
            *sum = if op == ReduceOp::Sum { *sum + value } else { sum.max(value) };
        }
    }
    sum.iter().flat_map(|value| value.to_le_bytes()).collect()
}

impl Backend for ThroughStore {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn supports(&self, call: &Call<'_>) -> Result<(), String> {
        if call.dtype().is_some_and(|dtype| dtype != DType::F32) {
            return Err("it is for f32".to_owned());
        }
        match call {
            Call::AllReduce { op: ReduceOp::Sum | ReduceOp::Max, .. } => Ok(()),
            Call::Broadcast { .. } | Call::Barrier { .. } => Ok(()),
            _ => Err(String::new()),
        }
    }

    unsafe fn start(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        match call {
            Call::AllReduce { input, output, op } => {
                // SAFETY: the caller vouches for both tensors.
                let all = self.exchange(&unsafe { bytes(*input) }, call, request)?;
                // SAFETY: as above.
                unsafe { write(*output, &reduce(&all, *op)) };
            }
            Call::Broadcast { tensor, root } => {
                // SAFETY: the caller vouches for the tensor.
                let all = self.exchange(&unsafe { bytes(*tensor) }, call, request)?;
                // SAFETY: as above.
                unsafe { write(*tensor, &all[*root]) };
            }
            _ => {
                self.exchange(b"here", call, request)?;
            }
        }
        Ok(Work::done(&self.name, Outcome::default()))
    }

    fn abort(&self, cause: &Error) {
        let _ = self.end.set(cause.clone());
    }

    fn error(&self) -> Option<Error> {
        self.end.get().cloned()
    }

    fn shutdown(&self, timeout: Duration) -> Result<(), Error> {
        let world_size = self.context.group.world_size;
        self.store().barrier("end", world_size, timeout).map_err(|error| self.failed(error))?;
        // Nobody reads any more. Who came last deletes for all: what is deleted twice is deleted.
        for key in self.store().list_keys().map_err(|error| self.failed(error))? {
            self.store().delete(&key).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }
}
