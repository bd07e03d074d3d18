//! The layer, and a rank's part of each of its halves. Tokens are rows of [`WIDTH`] numbers.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// Numbers of a token.
pub const WIDTH: usize = 64;
/// Heads of the attention.
pub const HEADS: usize = 8;
/// Numbers of a token in one head.
const OF_HEAD: usize = WIDTH / HEADS;
/// Hidden units of the feed-forward network.
pub const HIDDEN: usize = 160;

/// A matrix of so many columns, row by row.
#[derive(Debug)]
struct Matrix {
    columns: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn drawn(rows: usize, columns: usize, random: &mut ChaCha8Rng) -> Self {
        // So that products are about as great as what they are products of.
        let scale = (3.0 / rows as f32).sqrt();
        let values = (0..rows * columns).map(|_| scale * number(random)).collect();
        Self { columns, values }
    }

    /// Some columns of the product of a row with the matrix.
    fn product(&self, row: &[f32], columns: Range<usize>) -> Vec<f32> {
        let column =
            |at: usize| row.iter().enumerate().map(|(k, x)| x * self.values[k * self.columns + at]).sum();
        columns.map(column).collect()
    }

    /// Adds the product of some of a row's numbers, those from `first` on, with their rows of the matrix.
    fn add_product(&self, numbers: &[f32], first: usize, to: &mut [f32]) {
        for (k, x) in numbers.iter().enumerate() {
            let row = &self.values[(first + k) * self.columns..][..self.columns];
            to.iter_mut().zip(row).for_each(|(sum, weight)| *sum += x * weight);
        }
    }
}

/// A number between -1 and 1.
fn number(random: &mut ChaCha8Rng) -> f32 {
    (random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// So many tokens, the same for a seed.
pub fn tokens(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count * WIDTH).map(|_| number(&mut random)).collect()
}

/// Every token at length 1 on average: what attention and feed-forward network read.
pub fn normalised(tokens: &[f32]) -> Vec<f32> {
    let normalise = |token: &[f32]| {
        let square = token.iter().map(|x| x * x).sum::<f32>() / WIDTH as f32;
        let scale = 1.0 / (square + 1e-6).sqrt();
        token.iter().map(|x| x * scale).collect::<Vec<_>>()
    };
    tokens.chunks_exact(WIDTH).flat_map(normalise).collect()
}

/// The weights of a layer.
#[derive(Debug)]
pub struct Layer {
    queries: Matrix,
    keys: Matrix,
    values: Matrix,
    output: Matrix,
    up: Matrix,
    down: Matrix,
}

impl Layer {
    /// The one of this seed, equal wherever it is drawn.
    pub fn drawn(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut square = || Matrix::drawn(WIDTH, WIDTH, &mut random);
        let (queries, keys, values, output) = (square(), square(), square(), square());
        let (up, down) =
            (Matrix::drawn(WIDTH, HIDDEN, &mut random), Matrix::drawn(HIDDEN, WIDTH, &mut random));
        Self { queries, keys, values, output, up, down }
    }

    /// What some heads add to every token: a partial sum, of which that of all heads is the attention. Tokens attend to themselves
    /// and to those before them.
    pub fn attention(&self, normalised: &[f32], heads: Range<usize>) -> Vec<f32> {
        let mut sums = vec![0.0; normalised.len()];
        for head in heads {
            let columns = head * OF_HEAD..(head + 1) * OF_HEAD;
            let of = |matrix: &Matrix| -> Vec<Vec<f32>> {
                normalised.chunks_exact(WIDTH).map(|token| matrix.product(token, columns.clone())).collect()
            };
            let (queries, keys, values) = (of(&self.queries), of(&self.keys), of(&self.values));
            for (at, (query, sum)) in queries.iter().zip(sums.chunks_exact_mut(WIDTH)).enumerate() {
                let mixed = mix(query, &keys[..=at], &values[..=at]);
                self.output.add_product(&mixed, columns.start, sum);
            }
        }
        sums
    }

    /// What some hidden units add to every token, likewise.
    pub fn feed_forward(&self, normalised: &[f32], units: Range<usize>) -> Vec<f32> {
        let mut sums = vec![0.0; normalised.len()];
        for (token, sum) in normalised.chunks_exact(WIDTH).zip(sums.chunks_exact_mut(WIDTH)) {
            let hidden: Vec<f32> =
                self.up.product(token, units.clone()).into_iter().map(|x| x.max(0.0)).collect();
            self.down.add_product(&hidden, units.start, sum);
        }
        sums
    }

    /// The whole layer, by one.
    pub fn whole(&self, tokens: &[f32]) -> Vec<f32> {
        let mut tokens = tokens.to_vec();
        let sums = self.attention(&normalised(&tokens), 0..HEADS);
        add(&mut tokens, &sums);
        let sums = self.feed_forward(&normalised(&tokens), 0..HIDDEN);
        add(&mut tokens, &sums);
        tokens
    }
}

/// The values of those tokens that a query is about.
fn mix(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
    let dot =
        |key: &Vec<f32>| query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() / (OF_HEAD as f32).sqrt();
    let scores: Vec<f32> = keys.iter().map(dot).collect();
    let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - greatest).exp()).collect();
    let all: f32 = weights.iter().sum();
    let mut mixed = vec![0.0; OF_HEAD];
    for (weight, value) in weights.iter().zip(values) {
        mixed.iter_mut().zip(value).for_each(|(sum, x)| *sum += weight / all * x);
    }
    mixed
}

/// The residual: what a half of the layer adds to its tokens.
pub fn add(tokens: &mut [f32], sums: &[f32]) {
    tokens.iter_mut().zip(sums).for_each(|(token, sum)| *token += sum);
}
