//! Lists of all-reduces of `cust`'s slices ([`Lane::all_reduce_group_raw`]).

use cust::memory::{DeviceCopy, DeviceSlice};
use cust::stream::Stream;
use meshreduce_wire::Op;

use super::{behind_last, message};
use crate::element::Element;
use crate::error::Error;
use crate::lane::{Lane, RawTensor};
use crate::work::Work;

impl Lane {
    /// [`Lane::all_reduce_group_raw`] of slices in place, their pointers checked, behind the lane's last call.
    ///
    /// ```no_run
    /// # use cust::memory::DeviceBuffer;
    /// # fn step(lane: &mut meshreduce::Lane, stream: &cust::stream::Stream) -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut queries, mut keys) = (DeviceBuffer::from_slice(&[1.0_f32; 64])?, DeviceBuffer::from_slice(&[1.0_f32; 8])?);
    /// // SAFETY: both buffers outlive the work, which is waited for here.
    /// let work = unsafe { lane.all_reduce_group_in_place(&mut [&mut queries, &mut keys], meshreduce::Op::Sum, stream) }?;
    /// work.synchronize()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_in_place`], of every slice.
    ///
    /// # Errors
    ///
    /// [`Error::NotOnDevice`], and those of [`Lane::all_reduce_group_raw`].
    pub unsafe fn all_reduce_group_in_place<T: Element + DeviceCopy>(
        &mut self,
        tensors: &mut [&mut DeviceSlice<T>],
        op: Op,
        stream: &Stream,
    ) -> Result<Work, Error> {
        let tensors = self.in_place(tensors, op)?;
        // SAFETY: the slices are device memory of this device, checked above; the caller vouches for their life.
        unsafe { self.all_reduce_group_raw(&tensors, behind_last(stream)) }
    }

    /// [`Lane::all_reduce_group_raw`] from slices into others, each pair (input, output); pointers and lengths are checked.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_in_place`], of all slices.
    ///
    /// # Errors
    ///
    /// [`Error::LengthsDiffer`], and those of [`Lane::all_reduce_group_in_place`].
    pub unsafe fn all_reduce_group<T: Element + DeviceCopy>(
        &mut self,
        tensors: &mut [(&DeviceSlice<T>, &mut DeviceSlice<T>)],
        op: Op,
        stream: &Stream,
    ) -> Result<Work, Error> {
        let tensor = |(input, output): &(&DeviceSlice<T>, &mut DeviceSlice<T>)| {
            message(self, input, output, op).map(RawTensor::from)
        };
        let tensors = tensors.iter().map(tensor).collect::<Result<Vec<_>, _>>()?;
        // SAFETY: as above, of both slices of each pair, which are equally long.
        unsafe { self.all_reduce_group_raw(&tensors, behind_last(stream)) }
    }

    /// Reduces slices in place and waits for it, as [`Lane::all_reduce_in_place_and_wait`] does: the safe form.
    ///
    /// # Errors
    ///
    /// Those of [`Lane::all_reduce_group_in_place`] and of [`Work::synchronize`]; [`Error::Capturing`] if `stream` is being captured.
    pub fn all_reduce_group_in_place_and_wait<T: Element + DeviceCopy>(
        &mut self,
        tensors: &mut [&mut DeviceSlice<T>],
        op: Op,
        stream: &Stream,
    ) -> Result<(), Error> {
        let tensors = self.in_place(tensors, op)?;
        // SAFETY: the data is borrowed until the kernels have ended, and was checked; the stream is alive while it is borrowed,
        // and one of another context is refused by the driver.
        unsafe { self.enqueue_group_and_wait(&tensors, behind_last(stream)) }
    }

    fn in_place<T: Element + DeviceCopy>(
        &self,
        tensors: &[&mut DeviceSlice<T>],
        op: Op,
    ) -> Result<Vec<RawTensor>, Error> {
        tensors.iter().map(|tensor| message(self, tensor, tensor, op).map(RawTensor::from)).collect()
    }
}
