//! The kernels that this process has loaded, shared by its communicators: a text is compiled once for a device, for as long as a
//! communicator has it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use meshreduce_device::PrimaryContext;
use meshreduce_wire::Isa;

use crate::algorithms::Interconnect;
use crate::error::Error;
use crate::kernels::{KernelText, Kernels};

/// What was loaded: by the driver's number of the context, which is never given out again, the texts' digest, what of them can be
/// launched, the latest ISA, and the ranks.
type Key = (u32, u64, String, String, Isa, usize);

/// Locked while it is being loaded: who wants the same waits for it, and others do not.
type Place = Arc<Mutex<Weak<Kernels>>>;

static LOADED: Mutex<BTreeMap<Key, Place>> = Mutex::new(BTreeMap::new());

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in there is whole whatever panicked elsewhere.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kernels, and how long the driver took to compile them.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) kernels: Arc<Kernels>,
    /// `None`: another communicator had them already.
    pub(crate) took: Option<Duration>,
}

impl Loaded {
    /// The kernels of these texts that `world_size` ranks can launch on `interconnect` which take no later ISA than `isa`.
    ///
    /// # Errors
    ///
    /// As [`Kernels::load`].
    pub(crate) fn get(
        context: &Arc<PrimaryContext>,
        texts: &[KernelText],
        interconnect: Interconnect,
        isa: Isa,
        world_size: usize,
    ) -> Result<Self, Error> {
        let load = || {
            let begun = Instant::now();
            let kernels = Arc::new(Kernels::load(context, texts, interconnect, isa, world_size)?);
            let took = begun.elapsed();
            tracing::debug!(device = context.ordinal(), ?took, "the kernels are loaded");
            Ok(Self { kernels, took: Some(took) })
        };
        // Without a number (before CUDA 12.0) a context that was reset cannot be told from the one before.
        let Some(id) = context.id() else { return load() };
        let key =
            (context.ordinal(), id, KernelText::digest(texts), format!("{interconnect:?}"), isa, world_size);
        let place = {
            let mut all = locked(&LOADED);
            all.retain(|_, place| Arc::strong_count(place) > 1 || locked(place).strong_count() > 0);
            Arc::clone(all.entry(key).or_default())
        };
        let mut known = locked(&place);
        if let Some(kernels) = known.upgrade() {
            return Ok(Self { kernels, took: None });
        }
        let loaded = load()?;
        *known = Arc::downgrade(&loaded.kernels);
        Ok(loaded)
    }
}
