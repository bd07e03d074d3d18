//! Element types that device slices can have.
#![forbid(unsafe_code)]

use meshreduce_wire::DType;

mod sealed {
    /// Kernels read and write as many bytes as [`super::Element::DTYPE`] says, so nobody else may say it.
    pub trait Sealed {}
}

/// A type that an all-reduce can be made of: `f32`, `half::bf16` and `half::f16`, and the wrappers of the two that `cust`'s
/// slices take. It is sealed: its size is what the kernels go by.
///
/// ```
/// use meshreduce::{DType, Element};
///
/// assert_eq!(half::bf16::DTYPE, DType::Bf16);
/// ```
///
/// ```compile_fail
/// #[derive(Clone, Copy)]
/// struct Tiny(u8);
/// impl meshreduce::Element for Tiny {
///     const DTYPE: meshreduce::DType = meshreduce::DType::F32;
/// }
/// ```
pub trait Element: Copy + sealed::Sealed {
    /// Its name in the library.
    const DTYPE: DType;
}

macro_rules! element {
    ($type:ty, $dtype:expr) => {
        impl sealed::Sealed for $type {}

        impl Element for $type {
            const DTYPE: DType = $dtype;
        }

        const _: () = assert!(size_of::<$type>() == $dtype.size() && align_of::<$type>() == $dtype.size());
    };
}

element!(f32, DType::F32);
element!(half::bf16, DType::Bf16);
element!(half::f16, DType::F16);

#[cfg(feature = "cust")]
pub use wrappers::{Bf16, F16};

#[cfg(feature = "cust")]
mod wrappers {
    use super::{DType, Element, sealed};
    use bytemuck::{Pod, Zeroable};

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

            element!($name, $dtype);

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
}
