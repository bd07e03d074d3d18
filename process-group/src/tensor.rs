//! Tensors as calls see them: a run of elements somewhere.

use half::{bf16, f16};

use crate::types::{DType, Device};

/// A run of elements in memory: where, how many, of what type, on which device. It owns nothing and promises nothing; who
/// makes a call with it vouches for it, or a [`Buffer`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Where it begins: a host address, or a device address of the device.
    pub address: u64,
    /// How many elements it has.
    pub count: usize,
    /// Their type.
    pub dtype: DType,
    /// Where it is.
    pub device: Device,
}

impl Tensor {
    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.count.saturating_mul(self.dtype.size())
    }

    /// `count` elements of it, from the element `first` on.
    ///
    /// # Panics
    ///
    /// If they do not lie in it.
    pub fn slice(&self, first: usize, count: usize) -> Tensor {
        let end = first.checked_add(count);
        assert!(
            end.is_some_and(|end| end <= self.count),
            "{count} elements from {first} on of {}",
            self.count
        );
        Tensor { address: self.address + (first * self.dtype.size()) as u64, count, ..*self }
    }

    /// Whether its address is a multiple of its elements' size, or there are none.
    pub(crate) fn is_aligned(&self) -> bool {
        // Sizes are powers of two.
        self.count == 0 || self.address & (self.dtype.size() as u64 - 1) == 0
    }

    /// Whether it shares memory with another one.
    pub fn overlaps(&self, other: &Tensor) -> bool {
        let is_apart = |a: &Tensor, b: &Tensor| a.address.saturating_add(a.bytes() as u64) <= b.address;
        self.device == other.device
            && self.count > 0
            && other.count > 0
            && !is_apart(self, other)
            && !is_apart(other, self)
    }
}

/// A tensor for each rank.
#[derive(Clone, Copy, Debug)]
pub enum Parts<'a> {
    /// Equal parts of one tensor, in the order of the ranks.
    Whole(Tensor),
    /// Parts of one tensor, in the order of the ranks, each with its count.
    Split {
        /// All of them.
        tensor: Tensor,
        /// How many elements each has, by rank.
        counts: &'a [usize],
    },
    /// A tensor for each rank, by rank.
    List(&'a [Tensor]),
}

impl Parts<'_> {
    /// The tensor for `rank` of `world_size` ranks.
    ///
    /// # Panics
    ///
    /// If there is none: the parts are not those of `world_size` ranks. A [`crate::Backend`] gets calls whose parts are.
    pub fn part(&self, rank: usize, world_size: usize) -> Tensor {
        match self {
            Parts::Whole(tensor) => {
                let count = tensor.count / world_size;
                tensor.slice(rank * count, count)
            }
            Parts::Split { tensor, counts } => tensor.slice(counts[..rank].iter().sum(), counts[rank]),
            Parts::List(tensors) => tensors[rank],
        }
    }

    /// Elements of the longest of the parts for `world_size` ranks.
    pub(crate) fn longest(&self, world_size: usize) -> usize {
        match self {
            Parts::Whole(tensor) => tensor.count / world_size,
            Parts::Split { counts, .. } => counts.iter().copied().max().unwrap_or(0),
            Parts::List(tensors) => tensors.iter().map(|tensor| tensor.count).max().unwrap_or(0),
        }
    }

    /// The one tensor of which these are equal parts in the order of the ranks, if they are.
    pub fn whole(&self, world_size: usize) -> Option<Tensor> {
        match self {
            Parts::Whole(tensor) => Some(*tensor),
            Parts::Split { tensor, counts } => {
                counts.iter().all(|count| *count * world_size == tensor.count).then_some(*tensor)
            }
            Parts::List(_) => None,
        }
    }

    /// All tensors of which they are made.
    pub(crate) fn tensors(&self) -> &[Tensor] {
        match self {
            Parts::Whole(tensor) | Parts::Split { tensor, .. } => std::slice::from_ref(tensor),
            Parts::List(tensors) => tensors,
        }
    }
}

mod sealed {
    /// Backends read and write as many bytes as [`super::Element::DTYPE`] says, so nobody else may say it.
    pub trait Sealed {}

    /// What a root has is borrowed for as long as the value lives, which nobody else may say.
    pub trait Root {}
}

/// A type that tensors can be of. It is sealed: its size is what backends go by.
pub trait Element: Copy + Send + Sync + 'static + sealed::Sealed {
    /// Its name in the library.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),* $(,)?) => {$(
        impl sealed::Sealed for $type {}

        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }

        const _: () = assert!(size_of::<$type>() == DType::$dtype.size());
    )*};
}

#[cfg(feature = "cust")]
elements! {
    meshreduce::Bf16 => Bf16,
    meshreduce::F16 => F16,
}

elements! {
    f32 => F32,
    f64 => F64,
    f16 => F16,
    bf16 => Bf16,
    i8 => I8,
    i16 => I16,
    i32 => I32,
    i64 => I64,
    u8 => U8,
}

/// Memory that a call may read for as long as it is borrowed.
///
/// Slices, vectors, boxed slices and arrays of elements are such, and with the feature `cust` its slices and buffers. A tensor type of
/// an engine's own becomes one so:
///
/// ```
/// use meshreduce_process_group::{Buffer, BufferMut, DType, Device, Tensor};
///
/// struct Activations {
///     address: u64, // of memory that this value owns, written from end to end, freed when it is dropped
///     count: usize,
///     ordinal: u32,
/// }
///
/// // SAFETY: the memory is the value's own, of that many numbers on that device.
/// unsafe impl Buffer for Activations {
///     fn tensor(&self) -> Tensor {
///         Tensor {
///             address: self.address,
///             count: self.count,
///             dtype: DType::Bf16,
///             device: Device::Cuda(self.ordinal),
///         }
///     }
/// }
///
/// // SAFETY: as above; what is borrowed exclusively nothing else uses, work on streams included.
/// unsafe impl BufferMut for Activations {
///     fn tensor_mut(&mut self) -> Tensor {
///         self.tensor()
///     }
/// }
/// ```
///
/// # Safety
///
/// While the value is borrowed, [`Buffer::tensor`] names memory that is valid for reads of so many initialised elements, on
/// the device that it says, and that nothing writes. It always names the same.
pub unsafe trait Buffer {
    /// The memory.
    fn tensor(&self) -> Tensor;
}

/// Memory that a call may write for as long as it is borrowed exclusively.
///
/// # Safety
///
/// While the value is borrowed exclusively, [`BufferMut::tensor_mut`] names the memory that [`Buffer::tensor`] names, valid for
/// reads and writes; any bit pattern is an element; nothing else uses it meanwhile.
pub unsafe trait BufferMut: Buffer {
    /// The memory.
    fn tensor_mut(&mut self) -> Tensor;
}

fn of_host<T: Element>(address: usize, count: usize) -> Tensor {
    Tensor { address: address as u64, count, dtype: T::DTYPE, device: Device::Cpu }
}

macro_rules! host_buffers {
    ($([$($generics:tt)*] $type:ty),* $(,)?) => {$(
        // SAFETY: the elements of a slice are initialised numbers in host memory, and borrowed with it.
        unsafe impl<$($generics)*> Buffer for $type {
            fn tensor(&self) -> Tensor {
                let slice: &[T] = self;
                of_host::<T>(slice.as_ptr().expose_provenance(), slice.len())
            }
        }

        // SAFETY: every bit pattern is a number; what is borrowed exclusively is used by nobody else, and its address comes
        // from that borrow.
        unsafe impl<$($generics)*> BufferMut for $type {
            fn tensor_mut(&mut self) -> Tensor {
                let slice: &mut [T] = self;
                of_host::<T>(slice.as_mut_ptr().expose_provenance(), slice.len())
            }
        }
    )*};
}

host_buffers! {
    [T: Element] [T],
    [T: Element] Vec<T>,
    [T: Element] Box<[T]>,
    [T: Element, const N: usize] [T; N],
}

pub(crate) fn tensors<B: Buffer>(buffers: &[B]) -> Vec<Tensor> {
    buffers.iter().map(Buffer::tensor).collect()
}

pub(crate) fn tensors_mut<B: BufferMut>(buffers: &mut [B]) -> Vec<Tensor> {
    buffers.iter_mut().map(BufferMut::tensor_mut).collect()
}

/// A buffer for every rank's part, by rank, on the root of a [gather](crate::ProcessGroup::gather): `&mut` a slice, a vector or an array
/// of buffers. `()` on the other ranks. It is sealed.
pub trait RootOutputs: sealed::Root {
    /// The memory.
    #[doc(hidden)]
    fn tensors_mut(&mut self) -> Vec<Tensor>;
}

/// A buffer with every rank's part, by rank, on the root of a [scatter](crate::ProcessGroup::scatter): `&` a slice, a vector or an array
/// of buffers. `()` on the other ranks. It is sealed.
pub trait RootInputs: sealed::Root {
    /// The memory.
    #[doc(hidden)]
    fn tensors(&self) -> Vec<Tensor>;
}

impl sealed::Root for () {}

impl RootOutputs for () {
    fn tensors_mut(&mut self) -> Vec<Tensor> {
        Vec::new()
    }
}

impl RootInputs for () {
    fn tensors(&self) -> Vec<Tensor> {
        Vec::new()
    }
}

macro_rules! root_buffers {
    ($([$($generics:tt)*] $type:ty),* $(,)?) => {$(
        impl<B: Buffer, $($generics)*> sealed::Root for &$type {}
        impl<B: BufferMut, $($generics)*> sealed::Root for &mut $type {}

        impl<B: Buffer, $($generics)*> RootInputs for &$type {
            fn tensors(&self) -> Vec<Tensor> {
                tensors(&self[..])
            }
        }

        impl<B: BufferMut, $($generics)*> RootOutputs for &mut $type {
            fn tensors_mut(&mut self) -> Vec<Tensor> {
                tensors_mut(&mut self[..])
            }
        }
    )*};
}

root_buffers! {
    [] [B],
    [] Vec<B>,
    [const N: usize] [B; N],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_by_rank() {
        let tensor = [0_i32; 6].tensor();
        let whole = Parts::Whole(tensor);
        assert_eq!(whole.part(2, 3), tensor.slice(4, 2));
        let split = Parts::Split { tensor, counts: &[1, 0, 5] };
        assert_eq!((split.part(1, 3).count, split.part(2, 3)), (0, tensor.slice(1, 5)));
        assert_eq!((whole.whole(3), split.whole(3)), (Some(tensor), None));
        assert_eq!((whole.longest(3), split.longest(3)), (2, 5));
        assert_eq!(Parts::Split { tensor, counts: &[2, 2, 2] }.whole(3), Some(tensor));
        let list = [tensor.slice(3, 1), tensor.slice(0, 2)];
        assert_eq!((Parts::List(&list).part(1, 2), Parts::List(&list).longest(2)), (list[1], 2));
    }

    #[test]
    fn overlaps_are_seen() {
        let tensor = [0_i64; 8].tensor();
        assert!(tensor.slice(0, 5).overlaps(&tensor.slice(4, 2)));
        assert!(!tensor.slice(0, 4).overlaps(&tensor.slice(4, 2)));
        assert!(!tensor.slice(0, 8).overlaps(&tensor.slice(4, 0)));
        let elsewhere = Tensor { device: Device::Cuda(0), ..tensor };
        assert!(!tensor.overlaps(&elsewhere));
    }
}
