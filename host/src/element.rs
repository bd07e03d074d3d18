//! Element types that device slices can have.

use bytemuck::{Pod, Zeroable};
use cust::memory::DeviceCopy;
use meshreduce_wire::DType;

/// A type that an all-reduce can be made of.
pub trait Element: Copy {
    /// Its name in the library.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

macro_rules! half_type {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $dtype:expr) => {
        $(#[$doc])*
        ///
        /// `cust`'s slices take types that are known to it; this wrapper is. `bytemuck::cast_slice` turns slices of
        /// the one into slices of the other.
        #[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Pod, Zeroable)]
        #[repr(transparent)]
        pub struct $name(
            /// The value.
            pub $inner,
        );

        // SAFETY: two bytes without any pointer.
        unsafe impl DeviceCopy for $name {}

        impl Element for $name {
            const DTYPE: DType = $dtype;
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }

        impl From<$name> for $inner {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

half_type!(
    /// A [`half::bf16`] in device memory.
    Bf16,
    half::bf16,
    DType::Bf16
);
half_type!(
    /// A [`half::f16`] in device memory.
    F16,
    half::f16,
    DType::F16
);
