//! What the processor has beyond its baseline: wider vectors, and conversions of f16.

use std::mem::MaybeUninit;

use half::f16;

use super::lane::{Lane, fill};

/// Instructions that there are. It is only made of what was found, so that having it is leave to use them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Isa {
    /// AVX2 and F16C. Rust joins no multiplication with an addition by itself, so wider vectors change no bits.
    #[cfg(target_arch = "x86_64")]
    wide: bool,
}

impl Isa {
    /// Those of this processor.
    #[inline]
    pub(super) fn detect() -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            wide: std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("f16c"),
        }
    }

    /// Those that every processor of the target has.
    #[cfg(test)]
    pub(super) const BASELINE: Isa = Isa {
        #[cfg(target_arch = "x86_64")]
        wide: false,
    };

    /// Runs a loop, compiled for these instructions if it is inlined.
    #[inline(always)]
    pub(super) fn run<T>(self, task: impl FnOnce() -> T) -> T {
        #[cfg(target_arch = "x86_64")]
        if self.wide {
            // SAFETY: they were found.
            return unsafe { x86::with_wide(task) };
        }
        task()
    }

    /// Widens as many elements as `wide` is long.
    pub(super) fn widen<'a>(self, elements: &[f16], wide: &'a mut [MaybeUninit<f32>]) -> &'a mut [f32] {
        #[cfg(target_arch = "x86_64")]
        if self.wide {
            // SAFETY: F16C was found.
            return unsafe { x86::widen(elements, wide) };
        }
        fill(wide, elements.iter().map(|element| element.widen()))
    }

    /// Rounds as many values as `output` is long, to nearest even, and any NaN to the one NaN.
    pub(super) fn narrow(self, wide: &[f32], output: &mut [f16]) {
        #[cfg(target_arch = "x86_64")]
        if self.wide {
            // SAFETY: F16C was found.
            return unsafe { x86::narrow(wide, output) };
        }
        output.iter_mut().zip(wide).for_each(|(to, value)| *to = f16::narrow(*value));
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _CMP_UNORD_Q, _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm_storeu_si128, _mm256_blendv_ps,
        _mm256_cmp_ps, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps,
    };
    use std::mem::MaybeUninit;

    use half::f16;

    use super::super::lane::{Lane, fill};

    /// Values that one instruction converts.
    const LANES: usize = 8;

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn with_wide<T>(task: impl FnOnce() -> T) -> T {
        task()
    }

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn widen<'a>(elements: &[f16], wide: &'a mut [MaybeUninit<f32>]) -> &'a mut [f32] {
        assert!(elements.len() >= wide.len(), "an element for every slot");
        let (elements, element_rest) = elements[..wide.len()].as_chunks::<LANES>();
        let (chunks, rest) = wide.as_chunks_mut::<LANES>();
        for (to, from) in chunks.iter_mut().zip(elements) {
            // SAFETY: 8 of 2 bytes are read and 8 of 4 written, at any alignment.
            unsafe {
                _mm256_storeu_ps(
                    to.as_mut_ptr().cast(),
                    _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
                )
            };
        }
        fill(rest, element_rest.iter().map(|element| element.widen()));
        // SAFETY: the chunks and what is left of them were written.
        unsafe { wide.assume_init_mut() }
    }

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn narrow(wide: &[f32], output: &mut [f16]) {
        assert!(wide.len() >= output.len(), "a value for every element");
        let (values, value_rest) = wide[..output.len()].as_chunks::<LANES>();
        let (chunks, rest) = output.as_chunks_mut::<LANES>();
        let nan = _mm256_set1_ps(f32::narrow(f32::NAN));
        for (to, from) in chunks.iter_mut().zip(values) {
            // SAFETY: 8 of 4 bytes are read and 8 of 2 written, at any alignment.
            unsafe {
                let wide = _mm256_loadu_ps(from.as_ptr());
                let wide = _mm256_blendv_ps(wide, nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(wide, wide));
                let rounded = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(wide);
                _mm_storeu_si128(to.as_mut_ptr().cast(), rounded);
            }
        }
        rest.iter_mut().zip(value_rest).for_each(|(to, value)| *to = f16::narrow(*value));
    }
}
