//! Element types and reductions in MPI's terms.

use std::ffi::{c_int, c_void};
use std::num::NonZero;

use ::mpi::ffi;

use super::error::{MpiError, check};
use super::runtime::enter;
use super::staging::Block;
use crate::types::{DType, ReduceOp};

/// MPI's name for the type; `None`: it has none.
pub(super) fn datatype(dtype: DType) -> Option<ffi::MPI_Datatype> {
    // SAFETY: constants of MPI's.
    unsafe {
        match dtype {
            DType::F32 => Some(ffi::RSMPI_FLOAT),
            DType::F64 => Some(ffi::RSMPI_DOUBLE),
            DType::I8 => Some(ffi::RSMPI_INT8_T),
            DType::I16 => Some(ffi::RSMPI_INT16_T),
            DType::I32 => Some(ffi::RSMPI_INT32_T),
            DType::I64 => Some(ffi::RSMPI_INT64_T),
            DType::U8 => Some(ffi::RSMPI_UINT8_T),
            DType::F16 | DType::Bf16 => None,
        }
    }
}

/// Reductions that MPI lacks: the least and the greatest float, where NaN propagates and -0 < +0.
#[derive(Debug)]
pub(super) struct Reductions {
    min_f32: ffi::MPI_Op,
    max_f32: ffi::MPI_Op,
    min_f64: ffi::MPI_Op,
    max_f64: ffi::MPI_Op,
}

// SAFETY: MPI's handles can be used by any thread, since MPI_THREAD_MULTIPLE was asked for.
unsafe impl Send for Reductions {}
// SAFETY: as above.
unsafe impl Sync for Reductions {}

impl Reductions {
    /// MPI is entered.
    pub(super) fn new() -> Result<Self, MpiError> {
        Ok(Self {
            min_f32: create(reduce::<MinF32>)?,
            max_f32: create(reduce::<MaxF32>)?,
            min_f64: create(reduce::<MinF64>)?,
            max_f64: create(reduce::<MaxF64>)?,
        })
    }

    /// MPI's handle of a reduction. Of an average: of the sum, which [`divide`] makes one.
    pub(super) fn handle(&self, op: ReduceOp, dtype: DType) -> ffi::MPI_Op {
        // SAFETY: constants of MPI's.
        unsafe {
            match (op, dtype) {
                (ReduceOp::Sum | ReduceOp::Avg, _) => ffi::RSMPI_SUM,
                (ReduceOp::Product, _) => ffi::RSMPI_PROD,
                (ReduceOp::Min, DType::F32) => self.min_f32,
                (ReduceOp::Max, DType::F32) => self.max_f32,
                (ReduceOp::Min, DType::F64) => self.min_f64,
                (ReduceOp::Max, DType::F64) => self.max_f64,
                (ReduceOp::Min, _) => ffi::RSMPI_MIN,
                (ReduceOp::Max, _) => ffi::RSMPI_MAX,
            }
        }
    }

    /// Gives them back to MPI. No call that uses them is going on.
    pub(super) fn free(&self) {
        let Ok(_entered) = enter() else { return };
        for mut op in [self.min_f32, self.max_f32, self.min_f64, self.max_f64] {
            // SAFETY: it was made by `create`, and is not used any more.
            unsafe { ffi::MPI_Op_free(&mut op) };
        }
    }
}

type Function = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_int, *mut ffi::MPI_Datatype);

fn create(function: Function) -> Result<ffi::MPI_Op, MpiError> {
    // SAFETY: a constant of MPI's; then MPI is initialised, and the function keeps to what MPI says of it. It commutes.
    unsafe {
        let mut op = ffi::RSMPI_SUM;
        check("MPI_Op_create", ffi::MPI_Op_create(Some(function), 1, &mut op))?;
        Ok(op)
    }
}

/// A reduction of two elements.
trait Reduction {
    type Element: Copy;
    fn of(one: Self::Element, other: Self::Element) -> Self::Element;
}

macro_rules! extremes {
    ($($name:ident: $type:ty, $order:ident;)*) => {$(
        struct $name;

        impl Reduction for $name {
            type Element = $type;

            fn of(one: $type, other: $type) -> $type {
                if one.is_nan() || other.is_nan() {
                    return <$type>::NAN;
                }
                // The total order has -0 before +0, and differs from the usual one in nothing else but NaN.
                if one.total_cmp(&other) == std::cmp::Ordering::$order { one } else { other }
            }
        }
    )*};
}

extremes! {
    MinF32: f32, Less;
    MaxF32: f32, Greater;
    MinF64: f64, Less;
    MaxF64: f64, Greater;
}

/// What MPI calls: `inout[i]` becomes the reduction of `input[i]` and `inout[i]`.
///
/// # Safety
///
/// As MPI calls it: two arrays of `*count` elements that do not overlap.
unsafe extern "C" fn reduce<R: Reduction>(
    input: *mut c_void,
    inout: *mut c_void,
    count: *mut c_int,
    _datatype: *mut ffi::MPI_Datatype,
) {
    let (input, inout) = (input.cast::<R::Element>(), inout.cast::<R::Element>());
    // SAFETY: see above.
    let count = usize::try_from(unsafe { *count }).unwrap_or(0);
    for at in 0..count {
        // SAFETY: both arrays have so many elements. MPI does not promise their alignment.
        unsafe {
            let reduced = R::of(input.add(at).read_unaligned(), inout.add(at).read_unaligned());
            inout.add(at).write_unaligned(reduced);
        }
    }
}

/// Makes an average of the sum of `ranks` ranks' elements in `block`.
///
/// # Safety
///
/// Nobody else uses the block, and it has elements of this type.
pub(super) unsafe fn divide(block: &Block, dtype: DType, ranks: NonZero<usize>) {
    let count = block.bytes() / dtype.size();
    let address = block.pointer();
    let ranks = ranks.get();
    // SAFETY, of all: the block is aligned to any element, has `count` of them, and is used by nobody else.
    macro_rules! each {
        ($type:ty, $divide:expr) => {{
            // SAFETY: see above.
            let elements = unsafe { std::slice::from_raw_parts_mut(address.cast::<$type>(), count) };
            elements.iter_mut().for_each(|element| *element = $divide(*element));
        }};
    }
    // The quotient of an integer is not longer than the integer, but the divisor may be.
    match dtype {
        DType::F32 => each!(f32, |sum: f32| sum / ranks as f32),
        DType::F64 => each!(f64, |sum: f64| sum / ranks as f64),
        DType::I8 => each!(i8, |sum: i8| (i64::from(sum) / ranks as i64) as i8),
        DType::I16 => each!(i16, |sum: i16| (i64::from(sum) / ranks as i64) as i16),
        DType::I32 => each!(i32, |sum: i32| (i64::from(sum) / ranks as i64) as i32),
        DType::I64 => each!(i64, |sum: i64| sum / ranks as i64),
        DType::U8 => each!(u8, |sum: u8| (u64::from(sum) / ranks as u64) as u8),
        // There are no calls of these.
        DType::F16 | DType::Bf16 => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Buffer, BufferMut};

    #[test]
    fn nan_propagates_and_minus_zero_is_less_than_zero() {
        assert!(MinF32::of(f32::NAN, 1.0).is_nan() && MaxF32::of(1.0, f32::NAN).is_nan());
        assert!(MinF64::of(0.0, -0.0).is_sign_negative() && MinF64::of(-0.0, 0.0).is_sign_negative());
        assert!(MaxF32::of(0.0, -0.0).is_sign_positive() && MaxF32::of(-0.0, 0.0).is_sign_positive());
        assert_eq!((MinF64::of(2.0, -3.0), MaxF64::of(2.0, -3.0)), (-3.0, 2.0));
        assert_eq!(MaxF64::of(f64::NEG_INFINITY, f64::INFINITY), f64::INFINITY);
    }

    #[test]
    fn averages_of_integers_are_rounded_towards_zero() {
        let mut values = [-7_i8, 7, -1, 127];
        // SAFETY: the array lives.
        unsafe {
            let block = Block::packed(&[values.tensor()]);
            divide(&block, DType::I8, NonZero::new(2).unwrap());
            block.unpack(&[values.tensor_mut()]);
        }
        assert_eq!(values, [-3, 3, 0, 63]);
    }
}
