//! Calls that take `cust`'s slices and streams, and the loading of modules through `cust`.
//!
//! A slice is checked before anything is launched. Calls that are enqueued on different streams are ordered by the library:
//! the later stream waits for the earlier call.

mod collectives;
mod group;

use std::sync::Arc;

use cust::error::CudaError;
use cust::memory::{DeviceCopy, DeviceSlice};
use cust::module::Module;
use cust::stream::Stream;
use meshreduce_device::{ContextState, DriverError, Function, PrimaryContext};
use meshreduce_wire::Op;

use crate::element::{Bf16, Element, F16};
use crate::error::Error;
use crate::lane::{Lane, Message, StreamOrder};
use crate::work::Work;

// SAFETY: two bytes without any pointer.
unsafe impl DeviceCopy for Bf16 {}
// SAFETY: as above.
unsafe impl DeviceCopy for F16 {}

/// An all-reduce between slices, once both are known to be on this device.
fn message<T: Element + DeviceCopy>(
    lane: &Lane,
    input: &DeviceSlice<T>,
    output: &DeviceSlice<T>,
    op: Op,
) -> Result<Message, Error> {
    if input.len() != output.len() {
        return Err(Error::LengthsDiffer { input: input.len(), output: output.len() });
    }
    let (from, to) = (input.as_device_ptr().as_raw(), output.as_device_ptr().as_raw());
    if !input.is_empty() {
        lane.check_pointer(from)?;
        if to != from {
            lane.check_pointer(to)?;
        }
    }
    Ok(Message { input: from, output: to, count: input.len(), dtype: T::DTYPE, op })
}

fn behind_last(stream: &Stream) -> StreamOrder {
    StreamOrder::behind_last_call(stream.as_inner())
}

impl Lane {
    /// [`Lane::all_reduce_raw`] of a slice in place, its pointer checked, behind the lane's last call.
    ///
    /// # Safety
    ///
    /// The data is not freed, and not used by anything that is not ordered behind the work, before the work has ended;
    /// `stream` belongs to the device's primary context. If it is being captured, the same holds for every replay.
    ///
    /// # Errors
    ///
    /// [`Error::NotOnDevice`], and those of [`Lane::all_reduce_raw`]; [`Error::StreamsNotOrdered`] only if the last call
    /// was one without an event, on another stream.
    pub unsafe fn all_reduce_in_place<T: Element + DeviceCopy>(
        &mut self,
        data: &mut DeviceSlice<T>,
        op: Op,
        stream: &Stream,
    ) -> Result<Work, Error> {
        let message = message(self, data, data, op)?;
        // SAFETY: the slice is device memory of this device, checked above; the caller vouches for its life.
        unsafe { self.enqueue_work(message, behind_last(stream)) }
    }

    /// [`Lane::all_reduce_raw`] from one slice into another, pointers and lengths checked, behind the lane's last call.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_in_place`], for both slices.
    ///
    /// # Errors
    ///
    /// [`Error::LengthsDiffer`], and those of [`Lane::all_reduce_in_place`].
    pub unsafe fn all_reduce<T: Element + DeviceCopy>(
        &mut self,
        input: &DeviceSlice<T>,
        output: &mut DeviceSlice<T>,
        op: Op,
        stream: &Stream,
    ) -> Result<Work, Error> {
        let message = message(self, input, output, op)?;
        // SAFETY: both slices are device memory of this device and equally long, checked above; the caller vouches
        // for their life.
        unsafe { self.enqueue_work(message, behind_last(stream)) }
    }

    /// Reduces a slice in place and waits for it: the safe form, since nothing can touch the data meanwhile. It returns
    /// only when no kernel of the call runs any more, whatever other threads capture and the driver refuses meanwhile.
    ///
    /// # Errors
    ///
    /// Those of [`Lane::all_reduce_in_place`] and of [`Work::synchronize`]; [`Error::Capturing`] if `stream` is being
    /// captured.
    pub fn all_reduce_in_place_and_wait<T: Element + DeviceCopy>(
        &mut self,
        data: &mut DeviceSlice<T>,
        op: Op,
        stream: &Stream,
    ) -> Result<(), Error> {
        let message = message(self, data, data, op)?;
        // SAFETY: the data is borrowed until the kernels have ended, and was checked; the stream is alive while it is
        // borrowed, and one of another context is refused by the driver.
        unsafe { self.enqueue_and_wait(message, behind_last(stream)) }
    }
}

impl Work {
    /// Makes what is enqueued on `stream` from now on wait for the all-reduce. The host does not block. If the
    /// all-reduce was captured, the stream joins the capture, as it would with any event.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver refuses.
    pub fn wait(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: the stream is alive while it is borrowed.
        unsafe { self.wait_raw(stream.as_inner()) }
    }
}

/// A module that `cust` has loaded.
#[derive(Debug)]
pub(crate) struct CustModule {
    /// `None` only while it is dropped.
    module: Option<Module>,
    context: Arc<PrimaryContext>,
}

impl CustModule {
    /// Compiles and loads PTX; `None` if the driver refuses it. (`cust` does not tell its compiler's log.)
    pub(crate) fn load(context: &Arc<PrimaryContext>, ptx: &str) -> Result<Option<Self>, DriverError> {
        // `cust` panics at a NUL in a text.
        if ptx.contains('\0') {
            return Ok(None);
        }
        let _entered = context.enter()?;
        let loaded = Module::from_ptx(ptx, &[]).ok();
        Ok(loaded.map(|module| Self { module: Some(module), context: Arc::clone(context) }))
    }

    /// The function `name`; `None` if the module has none.
    pub(crate) fn function(&self, name: &str) -> Result<Option<Function>, DriverError> {
        let _entered = self.context.enter()?;
        let Some(module) = &self.module else { return Ok(None) };
        match module.get_function(name) {
            // SAFETY: the function is the module's, which is loaded for as long as `self`, to which whoever launches it
            // sees.
            Ok(function) => Ok(Some(unsafe { Function::from_raw(function.to_raw()) })),
            Err(CudaError::NotFound) => Ok(None),
            Err(error) => Err(DriverError::of_code("cuModuleGetFunction", error as i32)),
        }
    }
}

impl Drop for CustModule {
    fn drop(&mut self) {
        let Some(module) = self.module.take() else { return };
        // As with modules that the library loads itself: the driver is asked whether the context is still what it was.
        if self.context.state() != ContextState::Alive {
            return std::mem::forget(module);
        }
        match self.context.enter() {
            Ok(_entered) => {
                if let Err((error, module)) = Module::drop(module) {
                    tracing::warn!(%error, "a module could not be unloaded");
                    std::mem::forget(module);
                }
            }
            // It went with its context, or is the parent process's.
            Err(_) => std::mem::forget(module),
        }
    }
}
