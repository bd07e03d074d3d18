//! What a seed stands for.

use meshreduce_wire::launch::IN_PLACE;
use meshreduce_wire::{Algorithm, Collective, DType, Isa, Op};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

use super::super::scenario::{Draw, Numbers};
use super::super::{Abort, Cuts, Late, Odd};
use super::{MOST, SliceKernels};

/// What one seed launches.
#[derive(Clone, Debug)]
pub struct SliceScenario {
    /// The element type of those calls that compute.
    pub dtype: DType,
    /// Their operation.
    pub op: Op,
    /// By position in the tree: the rank.
    pub positions: Vec<usize>,
    /// In a hybrid cube mesh, by position: the relay's position. Elsewhere all ranks are mapped.
    pub relays: Option<Vec<usize>>,
    /// The lane that is played.
    pub lane: u32,
    /// Its calls before.
    pub first: Numbers,
    /// The calls in order.
    pub calls: Vec<SliceCall>,
    /// Who is told to give up, if anyone is.
    pub abort: Option<Abort>,
    /// Who begins a call late, if anyone does.
    pub late: Option<Late>,
    /// Who does not make a call as the others do, if anyone does not.
    pub odd: Option<Odd>,
}

/// One call: what each rank sends each, in bytes.
#[derive(Clone, Debug)]
pub struct SliceCall {
    /// Which.
    pub collective: Collective,
    /// How.
    pub algorithm: Algorithm,
    /// The root, where there is one.
    pub root: usize,
    /// By sender and receiver. Of an all-reduce all are the same.
    pub bytes: Vec<Vec<u32>>,
    /// Bytes by which messages are shifted from alignment.
    pub shift: u64,
    /// Blocks of the grid.
    pub blocks: u32,
    /// By rank there are more or fewer blocks, as calls by packets may have.
    pub ragged: bool,
    /// Threads of a block that have a part of the message.
    pub threads: u32,
    /// By rank: whether what is received overwrites what is sent.
    pub in_place: Vec<bool>,
    /// Of an algorithm of lists: the tensors that the message is cut into.
    pub cuts: Cuts,
}

impl SliceCall {
    /// Whether all ranks get the same slice of a rank.
    pub(super) fn shares(&self) -> bool {
        matches!(self.collective, Collective::AllGather | Collective::Broadcast | Collective::AllReduce)
    }

    /// The flag of a rank's launch.
    pub(super) fn flags(&self, rank: usize) -> u32 {
        if self.in_place[rank] { IN_PLACE } else { 0 }
    }

    /// Bytes of what a rank brings.
    pub(super) fn input_bytes(&self, rank: usize) -> usize {
        let row = &self.bytes[rank];
        (if self.shares() { row[rank] } else { row.iter().sum() }) as usize
    }

    /// Whether a rank may have its output where its input is, or a part of the other.
    fn may_be_in_place(&self, rank: usize) -> bool {
        match self.collective {
            Collective::Broadcast | Collective::Reduce => rank == self.root,
            Collective::AllToAll => self.bytes.iter().flatten().all(|&bytes| bytes == self.bytes[0][0]),
            Collective::Barrier => false,
            _ => true,
        }
    }
}

impl SliceKernels {
    /// What `seed` launches.
    pub fn scenario(&self, seed: u64) -> SliceScenario {
        let mut draw = Draw::new(ChaCha8Rng::seed_from_u64(seed ^ (self.world_size as u64) << 32));
        let (dtype, op) = (draw.of(&DType::ALL), draw.of(&Op::ALL));
        let ranks = self.world_size;
        let positions = draw.permutation(ranks);
        let refreshes = draw.below(6) == 0;
        let (first, lane) = (Numbers::draw(&mut draw, refreshes), draw.below(2) as u32);
        let mut calls: Vec<SliceCall> = Vec::new();
        // All the same: the third uses the memory of the first again.
        let is_one = draw.below(4) == 0;
        for _ in 0..2 + usize::from(is_one) + draw.below(3) {
            // The same once more: its signals and packets differ from the last ones in nothing but the number.
            let again = calls.last().cloned().filter(|_| is_one || draw.below(3) == 0);
            let mut call = again.unwrap_or_else(|| self.draw_call(&mut draw, dtype));
            call.ragged = call.algorithm.is_by_packets() && draw.below(3) == 0;
            calls.push(call);
        }
        let troubled = draw.below(8);
        let abort = (troubled < 2).then(|| Abort::draw(&mut draw, ranks));
        let odd = (troubled == 2).then(|| Odd::draw(&mut draw, ranks, calls.len()));
        let mut late =
            (draw.below(5) == 0 && odd.is_none()).then(|| Late::draw(&mut draw, ranks, calls.len()));
        if let Some(late) = late.as_mut().filter(|_| is_one) {
            late.call = 0;
        }
        let in_cube_mesh = self.modules.iter().any(|(algorithm, _)| algorithm.is_of_cube_mesh());
        let relays = in_cube_mesh.then(|| draw.relays());
        SliceScenario { dtype, op, positions, relays, lane, first, calls, abort, late, odd }
    }

    fn draw_call(&self, draw: &mut Draw, dtype: DType) -> SliceCall {
        let ranks = self.world_size;
        let others: Vec<Algorithm> = self.others.algorithms().collect();
        let (collective, algorithm) = match self.focus {
            // In half of the calls those that are looked at, so that they follow one another.
            Some(focus) if !self.served(focus).is_empty() && draw.below(2) == 0 => {
                (draw.of(&self.served(focus)), focus)
            }
            _ if draw.below(6) == 0 && !others.is_empty() => (Collective::AllReduce, draw.of(&others)),
            _ => {
                let serving = |algorithm: &Algorithm| !self.served(*algorithm).is_empty();
                let all = self.modules.iter().map(|(algorithm, _)| *algorithm);
                let serving: Vec<Algorithm> = all.filter(serving).collect();
                let algorithm = draw.of(&serving);
                (draw.of(&self.served(algorithm)), algorithm)
            }
        };
        let computes = collective.reduces();
        let size = if computes { dtype.size() as u32 } else { draw.of(&[1, 4, 4, 8]) };
        let most = MOST / size;
        // Often all slices are whole.
        let step = draw.of(&[1, 16 / size, 48 / size]);
        let mut length = |least: u32| match draw.below(4) {
            0 => least * size,
            1 => MOST,
            _ => (step * draw.below((most / step) as usize + 1) as u32).max(least) * size,
        };
        let usual = length(u32::from(collective == Collective::AllReduce));
        let is_list = usual % 3 != 0;
        let list: Vec<u32> = (0..ranks).map(|_| if is_list { length(0) } else { usual }).collect();
        let root = draw.below(ranks);
        let bytes = (0..ranks)
            .map(|from| {
                let to = |to: usize| match collective {
                    Collective::AllReduce => usual,
                    Collective::AllGather => list[from],
                    Collective::ReduceScatter => list[to],
                    Collective::Broadcast if from == root => usual,
                    Collective::Reduce if to == root => usual,
                    Collective::AllToAll => list[(from + to) % ranks],
                    _ => 0,
                };
                (0..ranks).map(to).collect()
            })
            .collect();
        let shift = draw.of(&[0, 0, 0, 1, 3]) * u64::from(size) % 16;
        let mut call = SliceCall {
            collective,
            algorithm,
            root,
            bytes,
            shift,
            // Some calls have many blocks, which take long to play.
            blocks: if draw.below(256) == 0 { draw.of(&[24, 64]) } else { draw.of(&[1, 1, 2, 3]) },
            ragged: false,
            // As many as there are peers at least; few, so that several blocks have a part.
            threads: draw.of(if ranks > 4 { &[8, 8, 16] } else { &[4, 8, 16] }),
            in_place: vec![false; ranks],
            cuts: if algorithm.is_of_lists() { Cuts::draw(draw) } else { Cuts::NONE },
        };
        // All ranks, none, or each as it comes.
        let in_place = draw.below(4);
        for rank in 0..ranks {
            let wants = in_place == 0 || in_place == 1 && draw.below(2) == 0;
            call.in_place[rank] = wants && call.may_be_in_place(rank);
        }
        call
    }

    /// The ISA of an algorithm's text.
    pub(super) fn isa_of(&self, algorithm: Algorithm) -> Isa {
        if algorithm.is_by_packets() { self.isa } else { Isa::V70 }
    }

    /// What an algorithm of slices is launched for.
    fn served(&self, algorithm: Algorithm) -> Vec<Collective> {
        let is_wanted = |collective: &Collective| {
            algorithm.serves(*collective) && self.collective.is_none_or(|only| only == *collective)
        };
        Collective::ALL.into_iter().filter(is_wanted).collect()
    }
}
