//! The training run that made the weights: mini-batch gradient descent with momentum on the cross-entropy loss.
//!
//! The same seed gives the same bits on every machine: each sum has a fixed order, no two operations are fused
//! (`mul_add` is not used, and Rust never contracts), the one transcendental function comes from `libm`, and the
//! random numbers from a generator whose stream is specified (ChaCha8).

use half::bf16;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::data::{CLASSES, Digits, PIXELS};
use crate::model::{HIDDEN, Mlp};

/// The seed of the weights that the repository carries.
pub const SEED: u64 = 1;

/// Passes over the training images.
pub const EPOCHS: usize = 20;
/// Images whose gradients are added before the weights move.
const BATCH: usize = 20;
const LEARNING_RATE: f32 = 0.05;
const MOMENTUM: f32 = 0.9;

/// Trains a network on `digits` and rounds its weights to bf16. `report` is called after every epoch with its number,
/// from 0, and the share of training images that went right in it.
pub fn train(digits: &Digits, seed: u64, mut report: impl FnMut(usize, f64)) -> Mlp {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut weights = Parameters::random(&mut rng);
    let mut velocity = Parameters::zero();
    let mut order: Vec<usize> = (0..digits.len()).collect();
    for epoch in 0..EPOCHS {
        shuffle(&mut order, &mut rng);
        let mut hits = 0;
        for batch in order.chunks(BATCH) {
            let mut gradient = Parameters::zero();
            for &index in batch {
                hits += usize::from(weights.backward(
                    digits.image(index),
                    digits.labels[index].into(),
                    &mut gradient,
                ));
            }
            let step = LEARNING_RATE / batch.len() as f32;
            for ((weights, velocity), gradient) in
                weights.tensors().into_iter().zip(velocity.tensors()).zip(gradient.tensors())
            {
                for ((weight, velocity), gradient) in weights.iter_mut().zip(velocity).zip(gradient) {
                    *velocity = MOMENTUM * *velocity - step * *gradient;
                    *weight += *velocity;
                }
            }
        }
        report(epoch, hits as f64 / digits.len() as f64);
    }
    weights.round()
}

/// The parameters of the network, or anything that there is one of for each of them. Layout as in [`Mlp`].
struct Parameters {
    first: Vec<f32>,
    first_bias: Vec<f32>,
    second: Vec<f32>,
    second_bias: Vec<f32>,
}

impl Parameters {
    fn zero() -> Self {
        Self {
            first: vec![0.0; PIXELS * HIDDEN],
            first_bias: vec![0.0; HIDDEN],
            second: vec![0.0; HIDDEN * CLASSES],
            second_bias: vec![0.0; CLASSES],
        }
    }

    /// Weights uniform within sqrt(6 / inputs) of zero, which keeps the variance through a ReLU (He et al., 2015); no bias.
    fn random(rng: &mut ChaCha8Rng) -> Self {
        let mut parameters = Self::zero();
        for (weights, inputs) in [(&mut parameters.first, PIXELS), (&mut parameters.second, HIDDEN)] {
            let bound = (6.0 / inputs as f32).sqrt();
            weights.fill_with(|| (2.0 * uniform(rng) - 1.0) * bound);
        }
        parameters
    }

    fn tensors(&mut self) -> [&mut [f32]; 4] {
        [&mut self.first, &mut self.first_bias, &mut self.second, &mut self.second_bias]
    }

    /// Adds the gradient of one image's loss to `gradient`; says whether the image went right.
    fn backward(&self, image: &[f32], label: usize, gradient: &mut Parameters) -> bool {
        // Forward. Every inner loop runs along a row of a weight matrix and adds to independent sums, so it is
        // vectorised without any sum changing its order.
        let mut hidden = self.first_bias.clone();
        for (&level, row) in image.iter().zip(self.first.chunks_exact(HIDDEN)) {
            add_scaled(&mut hidden, level, row);
        }
        hidden.iter_mut().for_each(|unit| *unit = unit.max(0.0));
        let mut logits = self.second_bias.clone();
        for (&unit, row) in hidden.iter().zip(self.second.chunks_exact(CLASSES)) {
            add_scaled(&mut logits, unit, row);
        }
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let hit = logits[label] == greatest;

        // The gradient of cross-entropy by the logits is softmax(logits) - one_hot(label).
        let exponentials: Vec<f32> = logits.iter().map(|logit| libm::expf(logit - greatest)).collect();
        let total = exponentials.iter().fold(0.0, |sum, value| sum + value);
        let mut by_logit: Vec<f32> = exponentials.iter().map(|value| value / total).collect();
        by_logit[label] -= 1.0;

        // Backward.
        add_scaled(&mut gradient.second_bias, 1.0, &by_logit);
        let mut by_unit = vec![0.0; HIDDEN];
        for (unit, &activation) in hidden.iter().enumerate() {
            if activation > 0.0 {
                let row = unit * CLASSES..(unit + 1) * CLASSES;
                by_unit[unit] = self.second[row.clone()]
                    .iter()
                    .zip(&by_logit)
                    .fold(0.0, |sum, (weight, slope)| sum + weight * slope);
                add_scaled(&mut gradient.second[row], activation, &by_logit);
            }
        }
        add_scaled(&mut gradient.first_bias, 1.0, &by_unit);
        for (&level, row) in image.iter().zip(gradient.first.chunks_exact_mut(HIDDEN)) {
            add_scaled(row, level, &by_unit);
        }
        hit
    }

    fn round(&self) -> Mlp {
        let round = |values: &[f32]| values.iter().map(|&value| bf16::from_f32(value)).collect();
        Mlp {
            first: round(&self.first),
            first_bias: round(&self.first_bias),
            second: round(&self.second),
            second_bias: round(&self.second_bias),
        }
    }
}

/// `sums += factor * values`, element by element.
fn add_scaled(sums: &mut [f32], factor: f32, values: &[f32]) {
    // Half of all pixels are blank.
    if factor != 0.0 {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += factor * value;
        }
    }
}

/// A number in 0..1, a multiple of 2^-24.
fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1 << 24) as f32
}

/// Fisher and Yates' shuffle. The slight bias of the multiplication does not matter here.
fn shuffle(order: &mut [usize], rng: &mut ChaCha8Rng) {
    for last in (1..order.len()).rev() {
        let chosen = (u64::from(rng.next_u32()) * (last as u64 + 1)) >> 32;
        order.swap(last, chosen as usize);
    }
}
