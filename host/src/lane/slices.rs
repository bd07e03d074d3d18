//! Collectives other than all-reduces: what each rank sends each other, and how that is launched.
#![forbid(unsafe_code)]

use meshreduce_wire::launch::{self, IN_PLACE, SliceParams};
use meshreduce_wire::{
    Algorithm, Collective, DType, Element, ElementSize, Geometry, LaunchDescriptor, LaunchParams, MAX_RANKS,
    Op, Slices,
};

use crate::error::Error;
use crate::kernels::Kernel;
use crate::shared::Shared;

/// A run of elements of the input or the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    /// Elements before it.
    first: u64,
    count: u64,
}

/// A collective as one rank calls it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SliceCall {
    collective: Collective,
    element: Element,
    op: Option<Op>,
    root: usize,
    input: u64,
    output: u64,
    /// By rank.
    sent: [Run; MAX_RANKS],
    received: [Run; MAX_RANKS],
    /// Elements of the longest slice of any rank; `None`: this rank does not know it.
    longest: Option<u64>,
    /// What all ranks are sent is the same.
    shared: bool,
}

/// Counts one behind the other.
fn runs(counts: &[usize]) -> [Run; MAX_RANKS] {
    let mut runs = [Run::default(); MAX_RANKS];
    let mut first = 0u64;
    for (run, &count) in runs.iter_mut().zip(counts) {
        *run = Run { first, count: count as u64 };
        first = first.saturating_add(count as u64);
    }
    runs
}

fn same(run: Run, ranks: usize) -> [Run; MAX_RANKS] {
    let mut runs = [Run::default(); MAX_RANKS];
    runs[..ranks].fill(run);
    runs
}

fn longest(counts: &[usize]) -> Option<u64> {
    Some(counts.iter().copied().max().unwrap_or(0) as u64)
}

/// `count` for each rank, without an allocation.
pub(crate) fn each(count: usize, ranks: usize) -> ([usize; MAX_RANKS], usize) {
    ([count; MAX_RANKS], ranks)
}

fn one_for_each(counts: &[usize], world_size: usize) -> Result<(), Error> {
    if counts.len() == world_size {
        Ok(())
    } else {
        Err(Error::WrongCounts { found: counts.len(), world_size })
    }
}

fn a_rank(root: usize, world_size: usize) -> Result<(), Error> {
    if root < world_size { Ok(()) } else { Err(Error::NoSuchRoot { root, world_size }) }
}

impl SliceCall {
    fn new(collective: Collective, element: Element, (input, output): (u64, u64)) -> Self {
        let none = [Run::default(); MAX_RANKS];
        Self {
            collective,
            element,
            op: None,
            root: 0,
            input,
            output,
            sent: none,
            received: none,
            longest: Some(0),
            shared: false,
        }
    }

    /// `counts` by rank.
    pub(crate) fn all_gather(
        memory: (u64, u64),
        counts: &[usize],
        size: ElementSize,
        (rank, world_size): (usize, usize),
    ) -> Result<Self, Error> {
        one_for_each(counts, world_size)?;
        let sent = same(Run { first: 0, count: counts[rank] as u64 }, world_size);
        let call = Self::new(Collective::AllGather, Element::Sized(size), memory);
        Ok(Self { sent, received: runs(counts), longest: longest(counts), shared: true, ..call })
    }

    /// `counts` by rank.
    pub(crate) fn reduce_scatter(
        memory: (u64, u64),
        counts: &[usize],
        (dtype, op): (DType, Op),
        (rank, world_size): (usize, usize),
    ) -> Result<Self, Error> {
        one_for_each(counts, world_size)?;
        let received = same(Run { first: 0, count: counts[rank] as u64 }, world_size);
        let call = Self::new(Collective::ReduceScatter, dtype.into(), memory);
        Ok(Self { op: Some(op), sent: runs(counts), received, longest: longest(counts), ..call })
    }

    pub(crate) fn broadcast(
        memory: (u64, u64),
        count: usize,
        size: ElementSize,
        root: usize,
        (rank, world_size): (usize, usize),
    ) -> Result<Self, Error> {
        a_rank(root, world_size)?;
        let message = Run { first: 0, count: count as u64 };
        let mut call = Self::new(Collective::Broadcast, Element::Sized(size), memory);
        if rank == root {
            call.sent = same(message, world_size);
        }
        call.received[root] = message;
        Ok(Self { root, longest: Some(count as u64), shared: true, ..call })
    }

    pub(crate) fn reduce(
        memory: (u64, u64),
        count: usize,
        (dtype, op): (DType, Op),
        root: usize,
        (rank, world_size): (usize, usize),
    ) -> Result<Self, Error> {
        a_rank(root, world_size)?;
        let message = Run { first: 0, count: count as u64 };
        let mut call = Self::new(Collective::Reduce, dtype.into(), memory);
        call.sent[root] = message;
        if rank == root {
            call.received = same(message, world_size);
        }
        Ok(Self { op: Some(op), root, longest: Some(count as u64), ..call })
    }

    /// `count` elements from each rank to each.
    pub(crate) fn all_to_all(memory: (u64, u64), count: usize, size: ElementSize, world_size: usize) -> Self {
        let (counts, ranks) = each(count, world_size);
        let runs = runs(&counts[..ranks]);
        let call = Self::new(Collective::AllToAll, Element::Sized(size), memory);
        Self { sent: runs, received: runs, longest: Some(count as u64), ..call }
    }

    /// Counts by rank. What others send one another this rank does not know.
    pub(crate) fn all_to_all_v(
        memory: (u64, u64),
        (sent, received): (&[usize], &[usize]),
        size: ElementSize,
        (rank, world_size): (usize, usize),
    ) -> Result<Self, Error> {
        one_for_each(sent, world_size)?;
        one_for_each(received, world_size)?;
        if sent[rank] != received[rank] {
            return Err(Error::OwnSlicesDiffer { sent: sent[rank], received: received[rank] });
        }
        let call = Self::new(Collective::AllToAll, Element::Sized(size), memory);
        Ok(Self { sent: runs(sent), received: runs(received), longest: None, ..call })
    }

    pub(crate) fn barrier() -> Self {
        Self::new(Collective::Barrier, Element::Sized(ElementSize::ONE), (0, 0))
    }

    fn size(&self) -> u64 {
        self.element.bytes() as u64
    }

    /// Bytes of the longest slice of which this rank knows.
    fn longest_known(&self) -> u64 {
        let own = || self.sent.iter().chain(&self.received).map(|run| run.count).max().unwrap_or(0);
        self.longest.unwrap_or_else(own).saturating_mul(self.size())
    }

    /// Whether there is nothing to do, on any rank.
    pub(crate) fn is_for_nothing(&self) -> bool {
        self.collective != Collective::Barrier && self.longest == Some(0)
    }

    /// Bytes of the input and of the output that are used.
    fn used(&self) -> [u64; 2] {
        [&self.sent, &self.received].map(|runs| {
            let end =
                runs.iter().filter(|run| run.count > 0).map(|run| run.first.saturating_add(run.count)).max();
            end.unwrap_or(0).saturating_mul(self.size())
        })
    }

    /// Whether what is received overwrites what is sent, each element where it was.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::PartialOverlap`].
    fn is_in_place(&self, rank: usize) -> Result<bool, Error> {
        let (input, output) = (self.input, self.output);
        let [sent, received] = self.used();
        for (address, bytes) in [(input, sent), (output, received)] {
            if bytes > 0 && !address.is_multiple_of(self.size()) {
                return Err(Error::Misaligned { address, alignment: self.size() as usize });
            }
        }
        let overlap = input < output.saturating_add(received)
            && output < input.saturating_add(sent)
            && sent > 0
            && received > 0;
        if !overlap {
            return Ok(false);
        }
        // Where the thread that stores an element is the one that has loaded it.
        let (from, to) = match self.collective {
            Collective::AllGather => {
                (input, output.wrapping_add(self.received[rank].first.wrapping_mul(self.size())))
            }
            Collective::ReduceScatter => {
                (input.wrapping_add(self.sent[rank].first.wrapping_mul(self.size())), output)
            }
            // With different slices what one thread stores may be what another has yet to load.
            Collective::AllToAll if self.sent != self.received => (0, 1),
            _ => (input, output),
        };
        if from == to {
            Ok(true)
        } else {
            Err(Error::PartialOverlap { input, output, bytes: sent.max(received) })
        }
    }
}

/// How a collective is launched: in one piece of every slice, or in several.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlicePlan {
    pub(crate) kernel: Kernel,
    algorithm: Algorithm,
    /// Of the first piece; what differs in the others follows.
    params: SliceParams,
    block_cap: u32,
    /// Most bytes of a slice in one piece.
    piece: u64,
    /// Bytes of the longest slice of any rank; of a list that this rank does not know, as many as a piece can have.
    longest: u64,
}

impl SlicePlan {
    /// The plan of a call.
    ///
    /// # Errors
    ///
    /// As the raw calls of [`super::Lane`] say.
    pub(crate) fn new(call: &SliceCall, lane: LaunchParams, shared: &Shared) -> Result<Self, Error> {
        let world_size = shared.world_size();
        let in_place = call.is_in_place(shared.rank)?;
        let known = call.longest_known();
        // What is not known to all decides nothing.
        let decided = if call.longest.is_some() { known } else { shared.longest_slice(call.collective) };
        let algorithm = shared.select_for(call.collective, decided)?;
        let (dtype, op) = (call.element.dtype().unwrap_or(DType::F32), call.op.unwrap_or(Op::Sum));
        let kernel = shared
            .kernels
            .kernel(algorithm, dtype, op)
            .ok_or(Error::NoAlgorithmFor { collective: call.collective, bytes: known })?;
        let stride = if call.shared { 0 } else { shared.piece_of_slices(Algorithm::Exchange, None, false) };
        let piece = shared.piece_of_slices(algorithm, call.longest.map(|_| known), call.shared);
        if call.longest.is_none() && known > piece.min(decided) {
            return Err(Error::NoAlgorithmFor { collective: call.collective, bytes: known });
        }
        let said = |count| LaunchDescriptor {
            collective: call.collective,
            algorithm,
            element: call.element,
            op: call.op,
            root: call.root as u32,
            count,
        };
        let mut params = SliceParams {
            launch: LaunchParams {
                input: call.input,
                output: call.output,
                flags: if in_place { IN_PLACE } else { 0 },
                scale: op.scale(world_size as u32),
                kind: if call.op.is_some() { launch::kind(dtype, op) } else { 0 },
                ..lane
            },
            sent: Slices::default(),
            received: Slices::default(),
            stride,
            said: [0; MAX_RANKS],
            expected: [0; MAX_RANKS],
            tags_said: [0; MAX_RANKS],
            tags_expected: [0; MAX_RANKS],
        };
        for position in 0..world_size {
            let rank = rank_at(&params.launch, position);
            let (sent, expected) = (said(call.sent[rank].count), said(call.received[rank].count));
            params.said[position] = sent.encode();
            params.expected[position] = expected.encode();
            params.tags_said[position] = sent.tag();
            params.tags_expected[position] = expected.tag();
        }
        let longest = if call.longest.is_some() { known } else { piece.min(decided) };
        Ok(Self { kernel, algorithm, params, block_cap: shared.block_cap, piece, longest })
    }

    /// How many launches there are: one, also of a call in which nothing moves.
    pub(crate) fn pieces(&self) -> u64 {
        self.longest.div_ceil(self.piece.max(1)).max(1)
    }

    /// The launch of a piece.
    pub(crate) fn launch(&self, call: &SliceCall, piece: u64, world_size: usize) -> (Geometry, SliceParams) {
        let begin = piece * self.piece.min(self.longest);
        let cut = |base: u64, runs: &[Run; MAX_RANKS]| {
            Slices::new((0..world_size).map(|position| {
                let Run { first, count } = runs[rank_at(&self.params.launch, position)];
                let bytes = (count * call.size()).saturating_sub(begin).min(self.piece);
                // Of what this rank does not use, the address may be any.
                (base.wrapping_add(first * call.size() + begin), bytes as u32)
            }))
        };
        let params = SliceParams {
            sent: cut(call.input, &call.sent),
            received: cut(call.output, &call.received),
            ..self.params
        };
        let longest = (self.longest - begin).min(self.piece);
        (Geometry::of_slices(self.algorithm, longest, self.block_cap, self.kernel.isa), params)
    }
}

/// The rank at a position.
fn rank_at(launch: &LaunchParams, position: usize) -> usize {
    (launch.lane.ranks >> (4 * position)) as usize & (2 * MAX_RANKS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: ElementSize = ElementSize::ALL[1];

    fn gather(input: u64, output: u64) -> SliceCall {
        SliceCall::all_gather((input, output), &[3, 0, 5], TWO, (2, 3)).unwrap()
    }

    #[test]
    fn slices_lie_one_behind_the_other() {
        let call = gather(0x1000, 0x2000);
        let run = |first, count| Run { first, count };
        assert_eq!(call.received[..3], [run(0, 3), run(3, 0), run(3, 5)]);
        assert_eq!(call.sent[..3], [run(0, 5); 3]);
        assert_eq!((call.used(), call.longest_known()), ([10, 16], 10));
    }

    #[test]
    fn an_all_gather_is_in_place_where_its_input_is_its_slice_of_the_output() {
        assert!(gather(0x2006, 0x2000).is_in_place(2).unwrap());
        assert!(!gather(0x1000, 0x2000).is_in_place(2).unwrap());
        assert!(!gather(0x2010, 0x2000).is_in_place(2).unwrap(), "right behind it");
        for input in [0x2000, 0x2004, 0x200e, 0x1ff8] {
            let found = gather(input, 0x2000).is_in_place(2);
            assert!(matches!(found, Err(Error::PartialOverlap { .. })), "{input:#x}: {found:?}");
        }
        assert!(matches!(
            gather(0x1001, 0x2000).is_in_place(2),
            Err(Error::Misaligned { address: 0x1001, .. })
        ));
    }

    #[test]
    fn lists_beyond_all_memory_are_no_trouble() {
        let most = [usize::MAX; 3];
        let call = SliceCall::all_gather((0x1000, 0x2000), &most, TWO, (2, 3)).unwrap();
        assert!(call.is_in_place(2).is_err());
        assert_eq!(call.longest_known(), u64::MAX);
    }

    #[test]
    fn a_reduce_scatter_is_in_place_where_its_output_is_its_slice_of_the_input() {
        let call = |output| {
            SliceCall::reduce_scatter((0x1000, output), &[4, 4], (DType::F32, Op::Sum), (1, 2)).unwrap()
        };
        assert!(call(0x1010).is_in_place(1).unwrap());
        assert!(matches!(call(0x1000).is_in_place(1), Err(Error::PartialOverlap { .. })));
    }

    #[test]
    fn what_is_not_used_need_not_be_apart() {
        let broadcast = |rank| SliceCall::broadcast((0x1001, 0x1002), 8, TWO, 0, (rank, 2)).unwrap();
        assert!(!broadcast(1).is_in_place(1).unwrap(), "only the root has an input");
        assert!(matches!(broadcast(0).is_in_place(0), Err(Error::Misaligned { .. })));
        let reduce =
            |rank| SliceCall::reduce((0x1000, 0x1003), 8, (DType::F32, Op::Sum), 0, (rank, 2)).unwrap();
        assert!(!reduce(1).is_in_place(1).unwrap(), "only the root has an output");
    }

    #[test]
    fn an_all_to_all_is_in_place_with_equal_slices_alone() {
        assert!(SliceCall::all_to_all((0x1000, 0x1000), 4, TWO, 3).is_in_place(0).unwrap());
        let lists = |sent: &[usize], received: &[usize]| {
            SliceCall::all_to_all_v((0x1000, 0x1000), (sent, received), TWO, (0, 2))
        };
        assert!(lists(&[1, 2], &[1, 2]).unwrap().is_in_place(0).unwrap());
        assert!(matches!(lists(&[1, 2], &[1, 3]).unwrap().is_in_place(0), Err(Error::PartialOverlap { .. })));
        assert!(matches!(lists(&[1, 2], &[2, 2]), Err(Error::OwnSlicesDiffer { sent: 1, received: 2 })));
    }

    #[test]
    fn lists_and_roots_must_be_of_the_ranks() {
        let short = SliceCall::all_gather((0, 0), &[1], TWO, (0, 2));
        assert!(matches!(short, Err(Error::WrongCounts { found: 1, world_size: 2 })));
        let beyond = SliceCall::broadcast((0, 0), 1, TWO, 2, (0, 2));
        assert!(matches!(beyond, Err(Error::NoSuchRoot { root: 2, world_size: 2 })));
    }
}
