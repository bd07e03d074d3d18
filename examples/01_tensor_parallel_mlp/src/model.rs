//! The network: 64 pixels, 256 hidden units with ReLU, 10 outputs; weights in bf16, sums in fp32.

use std::ops::Range;

use anyhow::{Context as _, ensure};
use half::bf16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::data::{CLASSES, PIXELS};

/// Hidden units.
pub const HIDDEN: usize = 256;

/// The weights that the repository carries; `src/bin/train.rs` wrote them.
pub const TRAINED: &[u8] = include_bytes!("../weights/mlp.safetensors");

/// The weights of the network, row-major, in the notation of Megatron-LM: `Y = relu(X A + a)`, `Z = Y B + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mlp {
    /// A: [`PIXELS`] rows, [`HIDDEN`] columns.
    pub first: Vec<bf16>,
    /// a: [`HIDDEN`] values.
    pub first_bias: Vec<bf16>,
    /// B: [`HIDDEN`] rows, [`CLASSES`] columns.
    pub second: Vec<bf16>,
    /// b: [`CLASSES`] values.
    pub second_bias: Vec<bf16>,
}

/// Names and shapes of the tensors in the weights file.
const TENSORS: [(&str, &[usize]); 4] = [
    ("first.weight", &[PIXELS, HIDDEN]),
    ("first.bias", &[HIDDEN]),
    ("second.weight", &[HIDDEN, CLASSES]),
    ("second.bias", &[CLASSES]),
];

impl Mlp {
    /// The trained network.
    ///
    /// # Errors
    /// The file that was compiled in is not a weights file of this network.
    pub fn trained() -> anyhow::Result<Self> {
        Self::from_safetensors(TRAINED)
    }

    /// Reads a weights file.
    ///
    /// # Errors
    /// `bytes` is not a safetensors file, or a tensor is missing or has another shape or type.
    pub fn from_safetensors(bytes: &[u8]) -> anyhow::Result<Self> {
        let file = SafeTensors::deserialize(bytes).context("weights file")?;
        let read = |(name, shape): (&str, &[usize])| -> anyhow::Result<Vec<bf16>> {
            let tensor = file.tensor(name).with_context(|| format!("tensor {name} of the weights file"))?;
            ensure!(
                tensor.dtype() == Dtype::BF16 && tensor.shape() == shape,
                "tensor {name} is {:?} of shape {:?}, not BF16 of shape {shape:?}",
                tensor.dtype(),
                tensor.shape()
            );
            Ok(tensor.data().chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]])).collect())
        };
        let [first, first_bias, second, second_bias] = TENSORS.map(read);
        Ok(Self { first: first?, first_bias: first_bias?, second: second?, second_bias: second_bias? })
    }

    /// The network as a weights file; the same network gives the same bytes.
    ///
    /// # Errors
    /// A tensor has not the length of its shape.
    pub fn to_safetensors(&self) -> anyhow::Result<Vec<u8>> {
        let values = [&self.first, &self.first_bias, &self.second, &self.second_bias];
        let bytes =
            values.map(|values| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        let views = TENSORS
            .iter()
            .zip(&bytes)
            .map(|(&(name, shape), bytes)| Ok((name, TensorView::new(Dtype::BF16, shape.to_vec(), bytes)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(safetensors::serialize(views, None)?)
    }

    /// The hidden units `units` of every image in `images` (row-major, [`PIXELS`] values each), rounded to bf16.
    ///
    /// Every unit is a sum of its own, so splitting the columns of A changes no bit of it.
    pub fn hidden(&self, images: &[f32], units: Range<usize>) -> Vec<bf16> {
        let mut hidden = Vec::with_capacity(images.len() / PIXELS * units.len());
        for image in images.chunks_exact(PIXELS) {
            for unit in units.clone() {
                let mut sum = self.first_bias[unit].to_f32();
                for (pixel, &level) in image.iter().enumerate() {
                    sum += level * self.first[pixel * HIDDEN + unit].to_f32();
                }
                hidden.push(bf16::from_f32(sum.max(0.0)));
            }
        }
        hidden
    }

    /// The part of `Y B` that the rows `units` of B contribute: one value per image and class, in fp32.
    ///
    /// `hidden` is what [`Mlp::hidden`] gave for the same units.
    pub fn product(&self, hidden: &[bf16], units: Range<usize>) -> Vec<f32> {
        self.products(hidden, units, |sum, product| sum + product)
    }

    /// As [`Mlp::product`], but the sum of the products' magnitudes: what rounding errors are measured by.
    pub fn product_magnitudes(&self, hidden: &[bf16], units: Range<usize>) -> Vec<f32> {
        self.products(hidden, units, |sum, product| sum + product.abs())
    }

    fn products(&self, hidden: &[bf16], units: Range<usize>, add: impl Fn(f32, f32) -> f32) -> Vec<f32> {
        let mut outputs = Vec::with_capacity(hidden.len() / units.len() * CLASSES);
        for row in hidden.chunks_exact(units.len()) {
            for class in 0..CLASSES {
                let weights = units.clone().map(|unit| self.second[unit * CLASSES + class].to_f32());
                // A product of two bf16 has 16 significant bits, so it is exact in fp32; only the additions round.
                let products = row.iter().zip(weights).map(|(value, weight)| value.to_f32() * weight);
                outputs.push(products.fold(0.0, &add));
            }
        }
        outputs
    }

    /// `Y B` of the whole network for every image, rounded once to bf16: what the sharded result is compared with.
    pub fn unsharded(&self, images: &[f32]) -> Vec<bf16> {
        let hidden = self.hidden(images, 0..HIDDEN);
        self.product(&hidden, 0..HIDDEN).into_iter().map(bf16::from_f32).collect()
    }

    /// The outputs for one image, given its row of `Y B`: that plus the bias b.
    pub fn logits(&self, row: &[bf16]) -> impl Iterator<Item = f32> {
        row.iter().zip(&self.second_bias).map(|(value, bias)| value.to_f32() + bias.to_f32())
    }

    /// The digit that each image shows, given `Y B`: the class of its greatest output.
    pub fn classify(&self, product: &[bf16]) -> Vec<u8> {
        let classify = |row: &[bf16]| {
            let greatest =
                self.logits(row).enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
            greatest.map_or(0, |(class, _)| class as u8)
        };
        product.chunks_exact(CLASSES).map(classify).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Digits;

    #[test]
    fn the_trained_network_reads_unseen_digits() {
        let (mlp, digits) = (Mlp::trained().unwrap(), Digits::held_out());
        let accuracy = digits.accuracy(&mlp.classify(&mlp.unsharded(&digits.pixels)));
        assert!(digits.majority_share() < 0.11, "the classes are balanced: {}", digits.majority_share());
        assert!(accuracy > 0.9, "accuracy {accuracy}");
    }

    #[test]
    fn a_weights_file_survives_the_round_trip() {
        let mlp = Mlp::trained().unwrap();
        assert_eq!(mlp.to_safetensors().unwrap(), TRAINED);
    }

    #[test]
    fn a_weights_file_of_another_network_is_refused() {
        assert!(Mlp::from_safetensors(&TRAINED[..100]).is_err(), "cut short");
        let bytes = [0_u8; 4];
        let view = TensorView::new(Dtype::F32, vec![1], &bytes).unwrap();
        let other = safetensors::serialize([("first.weight", view)], None).unwrap();
        let error = Mlp::from_safetensors(&other).unwrap_err().to_string();
        assert!(error.contains("first.weight is F32 of shape [1]"), "{error}");
    }
}
