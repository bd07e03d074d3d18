//! The devices that a context serves.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use meshreduce_device::{Device, Event, PrimaryContext, Word, Words};

use crate::error::Error;

/// Devices, and of those of CUDA their contexts.
#[derive(Debug)]
pub(crate) struct Devices {
    all: Vec<Device>,
    cuda: BTreeMap<u32, Cuda>,
}

#[derive(Debug)]
struct Cuda {
    context: Arc<PrimaryContext>,
    words: OnceLock<Words>,
    /// Those that others hold are waited for; one that nobody else holds can be recorded again.
    events: Mutex<VecDeque<Arc<Event>>>,
}

impl Devices {
    /// Of these devices; [`Device::Cpu`] is always one of them.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`].
    pub(crate) fn new(devices: &[Device]) -> Result<Self, Error> {
        let mut all = devices.to_vec();
        all.push(Device::Cpu);
        all.sort_unstable();
        all.dedup();
        let mut cuda = BTreeMap::new();
        for device in &all {
            let Device::Cuda(ordinal) = *device else { continue };
            let retain = meshreduce_device::initialise().and_then(|()| PrimaryContext::retain(ordinal));
            let context = retain.map_err(|error| {
                let reason = error.to_string().into();
                Error::NoDevice { device: *device, reason }
            })?;
            cuda.insert(ordinal, Cuda { context, words: OnceLock::new(), events: Mutex::default() });
        }
        Ok(Self { all, cuda })
    }

    /// All, in order.
    pub(crate) fn all(&self) -> &[Device] {
        &self.all
    }

    /// The contexts of those of CUDA, in order.
    pub(crate) fn contexts(&self) -> impl Iterator<Item = &Arc<PrimaryContext>> {
        self.cuda.values().map(|cuda| &cuda.context)
    }

    /// A word for which streams of the CUDA device with this ordinal can wait.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if it is not one of these, or there are no words; [`Error::Driver`].
    pub(crate) fn word(&self, ordinal: u32) -> Result<Word, Error> {
        let device = Device::Cuda(ordinal);
        let cuda = self.cuda.get(&ordinal).ok_or_else(|| not_served(device))?;
        if let Some(words) = cuda.words.get() {
            return Ok(words.take()?);
        }
        let words = Words::new(&cuda.context)
            .map_err(|error| Error::NoDevice { device, reason: error.to_string().into() })?;
        Ok(cuda.words.get_or_init(|| words).take()?)
    }

    /// An event of the CUDA device with this ordinal that nobody waits for.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if it is not one of these; [`Error::Driver`].
    pub(crate) fn event(&self, ordinal: u32) -> Result<Arc<Event>, Error> {
        let cuda = self.cuda.get(&ordinal).ok_or_else(|| not_served(Device::Cuda(ordinal)))?;
        let Cuda { context, events, .. } = cuda;
        let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
        let event = match events.pop_front() {
            Some(free) if Arc::strong_count(&free) == 1 => free,
            other => {
                events.extend(other);
                Arc::new(Event::new(context)?)
            }
        };
        events.push_back(Arc::clone(&event));
        Ok(event)
    }
}

/// That a device is not one of a context's.
pub(crate) fn not_served(device: Device) -> Error {
    Error::NoDevice { device, reason: "it is not one of the context's".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_memory_is_always_served() {
        assert_eq!(Devices::new(&[]).unwrap().all(), [Device::Cpu]);
        assert_eq!(Devices::new(&[Device::Cpu, Device::Cpu]).unwrap().all(), [Device::Cpu]);
    }
}
