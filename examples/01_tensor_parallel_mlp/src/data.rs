//! The data: 1,797 handwritten digits of 8 x 8 pixels, written by 13 people.
//!
//! This is the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998; UCI Machine
//! Learning Repository), as the crate `smartcore` carries it.

use std::ops::Range;

/// Pixels of one image, which are the inputs of the network.
pub const PIXELS: usize = 64;
/// Digits, which are the outputs of the network.
pub const CLASSES: usize = 10;

/// The first 1,300 images train the network ...
const TRAINING: Range<usize> = 0..1300;
/// ... and the last 497, which it has never seen, test it. The images are in the order of their writers, so most of
/// these come from hands that the network has never seen either.
const HELD_OUT: Range<usize> = 1300..1797;

/// Images and their labels.
pub struct Digits {
    /// Row-major, [`PIXELS`] values an image. A pixel is one of 0, 1/16, ..., 16/16, so it is exact in bf16.
    pub pixels: Vec<f32>,
    /// The digit that each image shows, 0 to 9.
    pub labels: Vec<u8>,
}

impl Digits {
    /// The images that train the network.
    pub fn training() -> Self {
        Self::load(TRAINING)
    }

    /// The images that the network has never seen.
    pub fn held_out() -> Self {
        Self::load(HELD_OUT)
    }

    fn load(rows: Range<usize>) -> Self {
        let all = smartcore::dataset::digits::load_dataset();
        Self {
            pixels: all.data[rows.start * PIXELS..rows.end * PIXELS]
                .iter()
                .map(|level| level / 16.0)
                .collect(),
            labels: all.target[rows].iter().map(|&label| label as u8).collect(),
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The pixels of image `index`.
    pub fn image(&self, index: usize) -> &[f32] {
        &self.pixels[index * PIXELS..][..PIXELS]
    }

    /// Share of images that go right if every one is called by the label that is commonest among them.
    pub fn majority_share(&self) -> f64 {
        let mut counts = [0_usize; CLASSES];
        for &label in &self.labels {
            counts[usize::from(label)] += 1;
        }
        let commonest = counts.into_iter().max().unwrap_or(0);
        commonest as f64 / self.len() as f64
    }

    /// Share of images whose label `predicted` hits.
    pub fn accuracy(&self, predicted: &[u8]) -> f64 {
        let hits = predicted.iter().zip(&self.labels).filter(|(predicted, label)| predicted == label).count();
        hits as f64 / self.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pixel_is_a_sixteenth_and_every_digit_occurs() {
        for (digits, count) in [(Digits::training(), 1300), (Digits::held_out(), 497)] {
            assert_eq!((digits.len(), digits.pixels.len()), (count, count * PIXELS));
            assert!(
                digits
                    .pixels
                    .iter()
                    .all(|pixel| (0.0..=1.0).contains(pixel) && (pixel * 16.0).fract() == 0.0)
            );
            assert!((0..CLASSES as u8).all(|digit| digits.labels.contains(&digit)));
        }
    }
}
