//! What a seed stands for.

use meshreduce_wire::launch::MAX_TENSORS;
use meshreduce_wire::packets;
use meshreduce_wire::pad::TAG_BITS;
use meshreduce_wire::{Algorithm, DType, GroupParams, Isa, Op, VECTOR_BYTES};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{Abort, Kernels, LANES, Late};

/// What one seed launches.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The element type of all calls.
    pub dtype: DType,
    /// The operation of all calls.
    pub op: Op,
    /// By position in the tree: the rank.
    pub positions: Vec<usize>,
    /// By position: the relay's position; its own where there is no relay.
    pub relays: Vec<usize>,
    /// The lane that is played.
    pub lane: u32,
    /// Its calls before.
    pub first: Numbers,
    /// The calls in order.
    pub calls: Vec<Call>,
    /// Who is told to give up, if anyone is.
    pub abort: Option<Abort>,
    /// Who begins a call late, if anyone does.
    pub late: Option<Late>,
}

/// Calls of a lane, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// b, by barriers.
    pub barriers: u64,
    /// p, by packets.
    pub packets: u64,
}

impl Numbers {
    pub(super) fn draw(draw: &mut Draw, refreshes: bool) -> Self {
        let (few, less) = (draw.below(3) as u64, 1 + draw.below(4) as u64);
        // A signal has the number behind its tag: its own sign bits, in 32 and in 64 bits, are near too.
        let signs = [31 - TAG_BITS, 32 - TAG_BITS, 31, 32, 63 - TAG_BITS].map(|bit| (1 << bit) - less);
        let barriers = if draw.below(2) == 0 { few } else { draw.of(&signs) };
        let packets = match refreshes {
            true => draw.of(&[1, 2, 3, 4, 1 << 13]) * u64::from(packets::REFRESH) - less,
            false => draw.of(&[few, few, 5000 + few, (1 << 31) + few, (1 << 32) + few, (1 << 43) + few]),
        };
        Self { barriers, packets }
    }

    /// Those of an algorithm's kind.
    pub(super) fn of(self, algorithm: Algorithm) -> u64 {
        if algorithm.is_by_packets() { self.packets } else { self.barriers }
    }

    /// Behind one more call.
    pub(super) fn and(self, algorithm: Algorithm) -> Self {
        match algorithm.is_by_packets() {
            true => Self { packets: self.packets + 1, ..self },
            false => Self { barriers: self.barriers + 1, ..self },
        }
    }
}

/// One all-reduce.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Elements.
    pub count: usize,
    /// Elements by which the buffers are shifted from alignment.
    pub offset: usize,
    /// Blocks of the grid.
    pub blocks: u32,
    /// By rank there are more or fewer blocks, as calls by packets may have.
    pub ragged: bool,
    /// Threads of a block that have a part of the message.
    pub threads: u32,
    /// The result of the call before is this call's input, and is overwritten; else each call has its own buffers.
    pub in_place: bool,
    /// Of an algorithm of lists: the tensors that the message is cut into.
    pub cuts: Cuts,
}

/// How a message is cut into the tensors of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cuts {
    /// The tensors.
    pub tensors: usize,
    /// Of where they are cut; 0: into equal parts, as far as that goes.
    pub seed: u32,
}

impl Cuts {
    /// The message whole.
    pub const NONE: Self = Self { tensors: 1, seed: 0 };

    pub(super) fn draw(draw: &mut Draw) -> Self {
        let tensors = match draw.below(4) {
            0 => 1 + draw.below(MAX_TENSORS),
            1 => draw.of(&[1, 31, 32, 33, MAX_TENSORS]),
            _ => 1 + draw.below(5),
        };
        Self { tensors, seed: 1 + draw.below(1 << 16) as u32 }
    }

    /// The elements of each tensor, of a message of so many. Some may have none.
    pub fn counts(self, elements: usize) -> Vec<u32> {
        let at = |cut: usize| match self.seed {
            0 => elements * cut / self.tensors,
            seed => {
                // Any function that is spread over the message does (the finaliser of MurmurHash3).
                let mut mixed = seed.wrapping_mul(0x9e37_79b9).wrapping_add(cut as u32);
                mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x85eb_ca6b);
                mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
                ((u64::from(mixed ^ (mixed >> 16)) * (elements as u64 + 1)) >> 32) as usize
            }
        };
        let mut cuts: Vec<usize> = (1..self.tensors).map(at).chain([0, elements]).collect();
        cuts.sort_unstable();
        cuts.windows(2).map(|two| (two[1] - two[0]) as u32).collect()
    }

    /// The units of a phase that the list has.
    pub fn units(self, elements: usize, dtype: DType, isa: Isa) -> u64 {
        let counts = self.counts(elements).into_iter();
        let units: u64 = counts.map(|count| packets::units(u64::from(count), dtype, isa)).sum();
        u64::from(GroupParams::units_of_counts(self.tensors)) + units
    }
}

impl Kernels {
    /// What `seed` launches.
    pub fn scenario(&self, seed: u64) -> Scenario {
        let mut key = [0; 32];
        let parts = [seed, self.algorithm as u64, self.world_size as u64, 1];
        key.chunks_exact_mut(8)
            .zip(parts)
            .for_each(|(part, value)| part.copy_from_slice(&value.to_le_bytes()));
        let mut draw = Draw(ChaCha8Rng::from_seed(key));
        let kinds: Vec<(DType, Op)> = DType::ALL
            .into_iter()
            .flat_map(|dtype| Op::ALL.map(|op| (dtype, op)))
            .filter(|&(dtype, op)| self.has(dtype, op))
            .collect();
        let (dtype, op) = draw.of(&kinds);
        let ranks = self.world_size;
        let positions = draw.permutation(ranks);
        let relays = match self.algorithm {
            algorithm if algorithm.is_of_cube_mesh() => draw.relays(),
            _ => (0..ranks).collect(),
        };
        let abort = (draw.below(2) == 0).then(|| Abort::draw(&mut draw, ranks));
        // What a failed call leaves in a buffer is not known, so no call may go on from there.
        let in_place = draw.below(2) == 0 && abort.is_none();
        let most = if ranks > 4 { 3 } else { 4 };
        // Some calls have many blocks, which take long to play.
        let many = if ranks > 4 { 2048 } else { 256 };
        let others: Vec<Algorithm> = self.others.0.iter().map(|(algorithm, ..)| *algorithm).collect();
        let is_mixed = !others.is_empty() && draw.below(2) == 0;
        let mut calls: Vec<Call> = Vec::new();
        for _ in 0..2 + draw.below(most) {
            // The same once more: its signals differ from the last ones in nothing but the epoch.
            let again = calls.last().copied().filter(|_| draw.below(3) == 0);
            let algorithm = if is_mixed && draw.below(2) == 0 { draw.of(&others) } else { self.algorithm };
            let call = again.unwrap_or_else(|| {
                let threads = draw.of(&[8, 8, 16, 32]);
                let blocks = if draw.below(many) == 0 { draw.of(&[24, 64]) } else { draw.of(&[1, 1, 2, 3]) };
                let per_vector = VECTOR_BYTES / dtype.size();
                let vectors = 1 + draw.below(blocks as usize * threads as usize * 5 / 4);
                let count = match draw.below(3) {
                    0 => 1 + draw.below(2 * per_vector * ranks),
                    1 => vectors * per_vector,
                    _ => (vectors * per_vector).saturating_sub(draw.below(per_vector)).max(1),
                };
                let offset = if draw.below(4) == 0 { 1 + draw.below(per_vector - 1) } else { 0 };
                let cuts = if algorithm.is_of_lists() { Cuts::draw(&mut draw) } else { Cuts::NONE };
                Call { algorithm, count, offset, blocks, ragged: false, threads, in_place, cuts }
            });
            let ragged = algorithm.is_by_packets() && draw.below(3) == 0;
            calls.push(Call { algorithm, ragged, ..call });
        }
        let refreshes = draw.below(if ranks > 4 { 8 } else { 4 }) == 0;
        let (first, lane) = (Numbers::draw(&mut draw, refreshes), draw.below(LANES as usize) as u32);
        let late = (draw.below(4) == 0).then(|| Late::draw(&mut draw, ranks, calls.len()));
        Scenario { dtype, op, positions, relays, lane, first, calls, abort, late }
    }
}

pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    pub(super) fn new(random: ChaCha8Rng) -> Self {
        Self(random)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        ((u64::from(self.0.next_u32()) * end as u64) >> 32) as usize
    }

    pub(super) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// By position: the relay's position, in a hybrid cube mesh.
    pub(super) fn relays(&mut self) -> Vec<usize> {
        let across = self.permutation(4);
        let relay = |at| match at {
            0..4 => across[at] + 4,
            _ => across.iter().position(|&to| to + 4 == at).unwrap_or(at),
        };
        (0..8).map(relay).collect()
    }

    pub(super) fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..count).collect();
        for at in (1..count).rev() {
            let other = self.below(at + 1);
            all.swap(at, other);
        }
        all
    }
}
