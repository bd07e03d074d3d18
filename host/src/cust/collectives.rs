//! Collectives other than all-reduce between `cust`'s slices. Elements that only move are [`Pod`]: what comes is what another
//! rank has, of whatever type it was there.

use bytemuck::Pod;
use cust::memory::{DeviceCopy, DeviceSlice};
use cust::stream::Stream;
use meshreduce_wire::{ElementSize, MAX_RANKS, Op};

use super::behind_last;
use crate::element::Element;
use crate::error::Error;
use crate::lane::{Lane, SliceCall};
use crate::work::Work;

/// The size of elements that only move: 1, 2, 4, 8 or 16 bytes. Another does not compile.
const fn size_of_element<T>() -> ElementSize {
    const {
        match ElementSize::new(size_of::<T>()) {
            Some(size) => size,
            None => panic!("elements have 1, 2, 4, 8 or 16 bytes"),
        }
    }
}

impl Lane {
    /// The address of a slice that is known to be on this device; of an empty one, any.
    fn checked<T: DeviceCopy>(&self, slice: &DeviceSlice<T>) -> Result<u64, Error> {
        let address = slice.as_device_ptr().as_raw();
        if !slice.is_empty() {
            self.check_pointer(address)?;
        }
        Ok(address)
    }

    /// `part` elements for each rank are `all`.
    fn one_for_each(&self, part: usize, all: usize) -> Result<(), Error> {
        match part.checked_mul(self.place().1) {
            Some(expected) if expected == all => Ok(()),
            expected => Err(Error::LengthsDiffer { input: expected.unwrap_or(usize::MAX), output: all }),
        }
    }

    fn gather<T: DeviceCopy + Pod>(
        &self,
        input: &DeviceSlice<T>,
        output: &DeviceSlice<T>,
    ) -> Result<SliceCall, Error> {
        self.one_for_each(input.len(), output.len())?;
        let memory = (self.checked(input)?, self.checked(output)?);
        let (rank, world_size) = self.place();
        let counts = [input.len(); MAX_RANKS];
        SliceCall::all_gather(memory, &counts[..world_size], size_of_element::<T>(), (rank, world_size))
    }

    fn scatter<T: Element + DeviceCopy>(
        &self,
        input: &DeviceSlice<T>,
        output: &DeviceSlice<T>,
        op: Op,
    ) -> Result<SliceCall, Error> {
        self.one_for_each(output.len(), input.len())?;
        let memory = (self.checked(input)?, self.checked(output)?);
        let (rank, world_size) = self.place();
        let counts = [output.len(); MAX_RANKS];
        SliceCall::reduce_scatter(memory, &counts[..world_size], (T::DTYPE, op), (rank, world_size))
    }

    fn exchange<T: DeviceCopy + Pod>(
        &self,
        input: &DeviceSlice<T>,
        output: &DeviceSlice<T>,
    ) -> Result<SliceCall, Error> {
        let world_size = self.place().1;
        self.one_for_each(input.len() / world_size, input.len())?;
        if input.len() != output.len() {
            return Err(Error::LengthsDiffer { input: input.len(), output: output.len() });
        }
        let memory = (self.checked(input)?, self.checked(output)?);
        Ok(SliceCall::all_to_all(memory, input.len() / world_size, size_of_element::<T>(), world_size))
    }

    fn spread<T: DeviceCopy + Pod>(&self, data: &DeviceSlice<T>, root: usize) -> Result<SliceCall, Error> {
        let address = self.checked(data)?;
        SliceCall::broadcast((address, address), data.len(), size_of_element::<T>(), root, self.place())
    }

    fn join<T: Element + DeviceCopy>(
        &self,
        data: &DeviceSlice<T>,
        op: Op,
        root: usize,
    ) -> Result<SliceCall, Error> {
        let address = self.checked(data)?;
        SliceCall::reduce((address, address), data.len(), (T::DTYPE, op), root, self.place())
    }

    /// [`Lane::all_gather_raw`] from one slice into another, which has room for one of each rank; behind the lane's last call.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_in_place`], for both slices.
    ///
    /// # Errors
    ///
    /// [`Error::LengthsDiffer`], [`Error::NotOnDevice`], and those of [`Lane::all_gather_raw`].
    pub unsafe fn all_gather<T: DeviceCopy + Pod>(
        &mut self,
        input: &DeviceSlice<T>,
        output: &mut DeviceSlice<T>,
        stream: &Stream,
    ) -> Result<Work, Error> {
        let call = self.gather(input, output)?;
        // SAFETY: the slices are device memory of this device and as long as the call says, checked above; the caller vouches for
        // their life.
        unsafe { self.enqueue_slices_work(&call, behind_last(stream)) }
    }

    /// The same, and waits for it: the safe form, since nothing can touch the data meanwhile.
    ///
    /// # Errors
    ///
    /// Those of [`Lane::all_gather`] and of [`Work::synchronize`]; [`Error::Capturing`] if `stream` is being captured.
    pub fn all_gather_and_wait<T: DeviceCopy + Pod>(
        &mut self,
        input: &DeviceSlice<T>,
        output: &mut DeviceSlice<T>,
        stream: &Stream,
    ) -> Result<(), Error> {
        let call = self.gather(input, output)?;
        // SAFETY: both are borrowed until the kernels have ended, and were checked; the stream is alive while it is borrowed, and
        // one of another context is refused by the driver.
        unsafe { self.enqueue_slices_and_wait(&call, behind_last(stream)) }
    }

    /// [`Lane::reduce_scatter_raw`] from a slice with a part for each rank into this rank's; behind the lane's last call.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_gather`].
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather`].
    pub unsafe fn reduce_scatter<T: Element + DeviceCopy>(
        &mut self,
        input: &DeviceSlice<T>,
        output: &mut DeviceSlice<T>,
        op: Op,
        stream: &Stream,
    ) -> Result<Work, Error> {
        let call = self.scatter(input, output, op)?;
        // SAFETY: as in `all_gather`.
        unsafe { self.enqueue_slices_work(&call, behind_last(stream)) }
    }

    /// The same, and waits for it, as [`Lane::all_gather_and_wait`].
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather_and_wait`].
    pub fn reduce_scatter_and_wait<T: Element + DeviceCopy>(
        &mut self,
        input: &DeviceSlice<T>,
        output: &mut DeviceSlice<T>,
        op: Op,
        stream: &Stream,
    ) -> Result<(), Error> {
        let call = self.scatter(input, output, op)?;
        // SAFETY: as in `all_gather_and_wait`.
        unsafe { self.enqueue_slices_and_wait(&call, behind_last(stream)) }
    }

    /// [`Lane::all_to_all_raw`] from a slice with a part for each rank into one with a part of each; behind the lane's last call.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_gather`].
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather`].
    pub unsafe fn all_to_all<T: DeviceCopy + Pod>(
        &mut self,
        input: &DeviceSlice<T>,
        output: &mut DeviceSlice<T>,
        stream: &Stream,
    ) -> Result<Work, Error> {
        let call = self.exchange(input, output)?;
        // SAFETY: as in `all_gather`.
        unsafe { self.enqueue_slices_work(&call, behind_last(stream)) }
    }

    /// The same, and waits for it, as [`Lane::all_gather_and_wait`].
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather_and_wait`].
    pub fn all_to_all_and_wait<T: DeviceCopy + Pod>(
        &mut self,
        input: &DeviceSlice<T>,
        output: &mut DeviceSlice<T>,
        stream: &Stream,
    ) -> Result<(), Error> {
        let call = self.exchange(input, output)?;
        // SAFETY: as in `all_gather_and_wait`.
        unsafe { self.enqueue_slices_and_wait(&call, behind_last(stream)) }
    }

    /// [`Lane::broadcast_raw`] of a slice in place: read on the root, written elsewhere; behind the lane's last call.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_in_place`].
    ///
    /// # Errors
    ///
    /// [`Error::NotOnDevice`], and those of [`Lane::broadcast_raw`].
    pub unsafe fn broadcast<T: DeviceCopy + Pod>(
        &mut self,
        data: &mut DeviceSlice<T>,
        root: usize,
        stream: &Stream,
    ) -> Result<Work, Error> {
        let call = self.spread(data, root)?;
        // SAFETY: as in `all_gather`.
        unsafe { self.enqueue_slices_work(&call, behind_last(stream)) }
    }

    /// The same, and waits for it, as [`Lane::all_gather_and_wait`].
    ///
    /// # Errors
    ///
    /// Those of [`Lane::broadcast`] and of [`Work::synchronize`]; [`Error::Capturing`] if `stream` is being captured.
    pub fn broadcast_and_wait<T: DeviceCopy + Pod>(
        &mut self,
        data: &mut DeviceSlice<T>,
        root: usize,
        stream: &Stream,
    ) -> Result<(), Error> {
        let call = self.spread(data, root)?;
        // SAFETY: as in `all_gather_and_wait`.
        unsafe { self.enqueue_slices_and_wait(&call, behind_last(stream)) }
    }

    /// [`Lane::reduce_raw`] of a slice, in place on the root; elsewhere it stays as it is. Behind the lane's last call.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_in_place`].
    ///
    /// # Errors
    ///
    /// [`Error::NotOnDevice`], and those of [`Lane::reduce_raw`].
    pub unsafe fn reduce_in_place<T: Element + DeviceCopy>(
        &mut self,
        data: &mut DeviceSlice<T>,
        op: Op,
        root: usize,
        stream: &Stream,
    ) -> Result<Work, Error> {
        let call = self.join(data, op, root)?;
        // SAFETY: as in `all_gather`.
        unsafe { self.enqueue_slices_work(&call, behind_last(stream)) }
    }

    /// The same, and waits for it, as [`Lane::all_gather_and_wait`].
    ///
    /// # Errors
    ///
    /// Those of [`Lane::reduce_in_place`] and of [`Work::synchronize`]; [`Error::Capturing`] if `stream` is being captured.
    pub fn reduce_in_place_and_wait<T: Element + DeviceCopy>(
        &mut self,
        data: &mut DeviceSlice<T>,
        op: Op,
        root: usize,
        stream: &Stream,
    ) -> Result<(), Error> {
        let call = self.join(data, op, root)?;
        // SAFETY: as in `all_gather_and_wait`.
        unsafe { self.enqueue_slices_and_wait(&call, behind_last(stream)) }
    }

    /// [`Lane::barrier_raw`] behind the lane's last call, and waits for it.
    ///
    /// # Errors
    ///
    /// Those of [`Lane::barrier_raw`] and of [`Work::synchronize`]; [`Error::Capturing`] if `stream` is being captured.
    pub fn barrier_and_wait(&mut self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: there is no memory; the stream is alive while it is borrowed.
        unsafe { self.enqueue_slices_and_wait(&SliceCall::barrier(), behind_last(stream)) }
    }
}
