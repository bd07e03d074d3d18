//! Collectives other than all-reduces: what each rank sends each other.
#![forbid(unsafe_code)]

use meshreduce_wire::{Collective, DType, Element, ElementSize, MAX_RANKS, Op};

use super::ExchangeKind;
use crate::error::Error;

/// A rank's slice of a list: elements in device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawSlice {
    /// Where it begins. Of one without elements, anything.
    pub address: u64,
    /// How many elements it has.
    pub count: usize,
}

/// A run of elements in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) address: u64,
    pub(super) count: u64,
}

impl Run {
    pub(super) fn bytes(self, size: u64) -> u64 {
        self.count.saturating_mul(size)
    }

    fn end(self, size: u64) -> u64 {
        self.address.saturating_add(self.bytes(size))
    }

    fn overlaps(self, other: Self, size: u64) -> bool {
        self.count > 0 && other.count > 0 && self.address < other.end(size) && other.address < self.end(size)
    }
}

/// A collective as one rank calls it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SliceCall {
    pub(super) collective: Collective,
    pub(super) element: Element,
    pub(super) op: Option<Op>,
    /// Of an exchange its kind.
    pub(super) root: usize,
    /// By rank.
    pub(super) sent: [Run; MAX_RANKS],
    pub(super) received: [Run; MAX_RANKS],
    /// Elements of the longest slice of any rank; `None`: this rank does not know it.
    pub(super) longest: Option<u64>,
}

/// Whether what a rank sends is the same for all.
pub(crate) fn is_alike_to_all(collective: Collective) -> bool {
    matches!(collective, Collective::AllGather | Collective::Broadcast)
}

/// One behind the other from `address` on.
fn runs(address: u64, counts: &[usize], size: ElementSize) -> [Run; MAX_RANKS] {
    let mut runs = [Run::default(); MAX_RANKS];
    let mut next = address;
    for (run, &count) in runs.iter_mut().zip(counts) {
        *run = Run { address: next, count: count as u64 };
        next = run.end(size.bytes() as u64);
    }
    runs
}

/// Where they are.
fn listed(list: &[RawSlice]) -> [Run; MAX_RANKS] {
    let mut runs = [Run::default(); MAX_RANKS];
    for (run, slice) in runs.iter_mut().zip(list) {
        *run = Run { address: slice.address, count: slice.count as u64 };
    }
    runs
}

fn same(run: Run, ranks: usize) -> [Run; MAX_RANKS] {
    let mut runs = [Run::default(); MAX_RANKS];
    runs[..ranks].fill(run);
    runs
}

fn longest(runs: &[Run; MAX_RANKS]) -> u64 {
    runs.iter().map(|run| run.count).max().unwrap_or(0)
}

/// `count` for each rank, without an allocation.
pub(crate) fn each(count: usize, ranks: usize) -> ([usize; MAX_RANKS], usize) {
    ([count; MAX_RANKS], ranks)
}

fn one_for_each(found: usize, world_size: usize) -> Result<(), Error> {
    if found == world_size { Ok(()) } else { Err(Error::WrongCounts { found, world_size }) }
}

fn a_rank(root: usize, world_size: usize) -> Result<(), Error> {
    if root < world_size { Ok(()) } else { Err(Error::NoSuchRoot { root, world_size }) }
}

impl SliceCall {
    fn new(collective: Collective, element: Element) -> Self {
        let none = [Run::default(); MAX_RANKS];
        Self { collective, element, op: None, root: 0, sent: none, received: none, longest: Some(0) }
    }

    /// `counts` by rank.
    pub(crate) fn all_gather(
        (input, output): (u64, u64),
        counts: &[usize],
        size: ElementSize,
        place: (usize, usize),
    ) -> Result<Self, Error> {
        one_for_each(counts.len(), place.1)?;
        Ok(Self::gathered(input, runs(output, counts, size), size, place))
    }

    /// The same into a slice for each rank.
    pub(crate) fn all_gather_list(
        input: u64,
        outputs: &[RawSlice],
        size: ElementSize,
        place: (usize, usize),
    ) -> Result<Self, Error> {
        one_for_each(outputs.len(), place.1)?;
        Ok(Self::gathered(input, listed(outputs), size, place))
    }

    fn gathered(
        input: u64,
        received: [Run; MAX_RANKS],
        size: ElementSize,
        (rank, world_size): (usize, usize),
    ) -> Self {
        let sent = same(Run { address: input, count: received[rank].count }, world_size);
        let call = Self::new(Collective::AllGather, Element::Sized(size));
        Self { sent, received, longest: Some(longest(&received)), ..call }
    }

    /// `counts` by rank.
    pub(crate) fn reduce_scatter(
        (input, output): (u64, u64),
        counts: &[usize],
        kind: (DType, Op),
        place: (usize, usize),
    ) -> Result<Self, Error> {
        one_for_each(counts.len(), place.1)?;
        Ok(Self::scattered(runs(input, counts, kind.0.into()), output, kind, place))
    }

    /// The same from a slice for each rank.
    pub(crate) fn reduce_scatter_list(
        inputs: &[RawSlice],
        output: u64,
        kind: (DType, Op),
        place: (usize, usize),
    ) -> Result<Self, Error> {
        one_for_each(inputs.len(), place.1)?;
        Ok(Self::scattered(listed(inputs), output, kind, place))
    }

    fn scattered(
        sent: [Run; MAX_RANKS],
        output: u64,
        (dtype, op): (DType, Op),
        (rank, world_size): (usize, usize),
    ) -> Self {
        let received = same(Run { address: output, count: sent[rank].count }, world_size);
        let call = Self::new(Collective::ReduceScatter, dtype.into());
        Self { op: Some(op), sent, received, longest: Some(longest(&sent)), ..call }
    }

    pub(crate) fn broadcast(
        (input, output): (u64, u64),
        count: usize,
        size: ElementSize,
        root: usize,
        (rank, world_size): (usize, usize),
    ) -> Result<Self, Error> {
        a_rank(root, world_size)?;
        let count = count as u64;
        let mut call = Self::new(Collective::Broadcast, Element::Sized(size));
        if rank == root {
            call.sent = same(Run { address: input, count }, world_size);
        }
        call.received[root] = Run { address: output, count };
        Ok(Self { root, longest: Some(count), ..call })
    }

    pub(crate) fn reduce(
        (input, output): (u64, u64),
        count: usize,
        (dtype, op): (DType, Op),
        root: usize,
        (rank, world_size): (usize, usize),
    ) -> Result<Self, Error> {
        a_rank(root, world_size)?;
        let count = count as u64;
        let mut call = Self::new(Collective::Reduce, dtype.into());
        call.sent[root] = Run { address: input, count };
        if rank == root {
            call.received = same(Run { address: output, count }, world_size);
        }
        Ok(Self { op: Some(op), root, longest: Some(count), ..call })
    }

    /// `count` elements from each rank to each.
    pub(crate) fn all_to_all(
        (input, output): (u64, u64),
        count: usize,
        size: ElementSize,
        world_size: usize,
    ) -> Self {
        let (counts, ranks) = each(count, world_size);
        let [sent, received] = [input, output].map(|address| runs(address, &counts[..ranks], size));
        let call = Self::new(Collective::AllToAll, Element::Sized(size));
        Self { sent, received, longest: Some(count as u64), ..call }
    }

    /// Counts by rank. What others send one another this rank does not know.
    pub(crate) fn all_to_all_v(
        (input, output): (u64, u64),
        (sent, received): (&[usize], &[usize]),
        size: ElementSize,
        place: (usize, usize),
    ) -> Result<Self, Error> {
        one_for_each(sent.len(), place.1)?;
        one_for_each(received.len(), place.1)?;
        let lists = (runs(input, sent, size), runs(output, received, size));
        Self::exchanged(ExchangeKind::AllToAll, lists, size, place.0)
    }

    /// The same between slices.
    pub(crate) fn all_to_all_list(
        (sent, received): (&[RawSlice], &[RawSlice]),
        size: ElementSize,
        place: (usize, usize),
    ) -> Result<Self, Error> {
        one_for_each(sent.len(), place.1)?;
        one_for_each(received.len(), place.1)?;
        Self::exchanged(ExchangeKind::AllToAll, (listed(sent), listed(received)), size, place.0)
    }

    /// `outputs` by rank, at the root; elsewhere there are none.
    pub(crate) fn gather(
        input: RawSlice,
        outputs: &[RawSlice],
        size: ElementSize,
        root: usize,
        place: (usize, usize),
    ) -> Result<Self, Error> {
        a_rank(root, place.1)?;
        let outputs = Self::of_root(outputs, root, place)?;
        Self::exchanged(ExchangeKind::Gather, (Self::at_root(input, root), outputs), size, place.0)
    }

    /// `inputs` by rank, at the root; elsewhere there are none.
    pub(crate) fn scatter(
        inputs: &[RawSlice],
        output: RawSlice,
        size: ElementSize,
        root: usize,
        place: (usize, usize),
    ) -> Result<Self, Error> {
        a_rank(root, place.1)?;
        let inputs = Self::of_root(inputs, root, place)?;
        Self::exchanged(ExchangeKind::Scatter, (inputs, Self::at_root(output, root)), size, place.0)
    }

    /// Only what the root has, or gives.
    fn at_root(slice: RawSlice, root: usize) -> [Run; MAX_RANKS] {
        let mut runs = [Run::default(); MAX_RANKS];
        runs[root] = Run { address: slice.address, count: slice.count as u64 };
        runs
    }

    /// A slice for each rank, if this is the root.
    fn of_root(
        list: &[RawSlice],
        root: usize,
        (rank, world_size): (usize, usize),
    ) -> Result<[Run; MAX_RANKS], Error> {
        if rank != root {
            return Ok([Run::default(); MAX_RANKS]);
        }
        one_for_each(list.len(), world_size)?;
        Ok(listed(list))
    }

    fn exchanged(
        kind: ExchangeKind,
        (sent, received): ([Run; MAX_RANKS], [Run; MAX_RANKS]),
        size: ElementSize,
        rank: usize,
    ) -> Result<Self, Error> {
        let (own, back) = (sent[rank].count, received[rank].count);
        if own != back {
            return Err(Error::OwnSlicesDiffer { sent: own as usize, received: back as usize });
        }
        let call = Self::new(Collective::AllToAll, Element::Sized(size));
        Ok(Self { root: kind as usize, sent, received, longest: None, ..call })
    }

    /// No kernel of an all-reduce takes nothing.
    pub(crate) fn all_reduce_of_nothing(dtype: DType, op: Op) -> Self {
        Self { op: Some(op), ..Self::new(Collective::AllReduce, dtype.into()) }
    }

    pub(crate) fn barrier() -> Self {
        Self::new(Collective::Barrier, Element::Sized(ElementSize::ONE))
    }

    pub(super) fn size(&self) -> u64 {
        self.element.bytes() as u64
    }

    /// Bytes of the longest slice of which this rank knows.
    pub(super) fn longest_known(&self) -> u64 {
        let own = || longest(&self.sent).max(longest(&self.received));
        self.longest.unwrap_or_else(own).saturating_mul(self.size())
    }

    /// Whether nothing moves, between any ranks: of a call of which all know that, and of barriers.
    pub(super) fn moves_nothing(&self) -> bool {
        self.longest == Some(0)
    }

    /// Where what is sent, or received, begins and ends, of whatever lies between.
    fn hull(&self, runs: &[Run; MAX_RANKS]) -> (u64, u64) {
        let used = || runs.iter().filter(|run| run.count > 0);
        let begin = used().map(|run| run.address).min().unwrap_or(0);
        (begin, used().map(|run| run.end(self.size())).max().unwrap_or(0))
    }

    /// Whether the rank's slices here may lie in the same place: where the thread that stores an element is the one that has loaded
    /// it. (With different slices what one thread stores may be what another has yet to load.)
    fn may_meet(&self, to: usize, from: usize, rank: usize) -> bool {
        match self.collective {
            // Slices of an all-gather are sent from one place, and those of a reduction received in one.
            Collective::AllGather => from == rank,
            Collective::ReduceScatter => to == rank,
            Collective::AllToAll => to == from,
            _ => true,
        }
    }

    /// Whether what is received overwrites what is sent, each element where it was.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::PartialOverlap`].
    pub(super) fn is_in_place(&self, rank: usize) -> Result<bool, Error> {
        let size = self.size();
        for run in self.sent.iter().chain(&self.received) {
            if run.count > 0 && !run.address.is_multiple_of(size) {
                return Err(Error::Misaligned { address: run.address, alignment: size as usize });
            }
        }
        let (sent, received) = (self.hull(&self.sent), self.hull(&self.received));
        if sent.1 <= received.0 || received.1 <= sent.0 {
            return Ok(false);
        }
        let mut in_place = false;
        for (to, input) in self.sent.iter().enumerate() {
            for (from, output) in self.received.iter().enumerate() {
                if !input.overlaps(*output, size) {
                    continue;
                }
                if input != output || !self.may_meet(to, from, rank) {
                    let bytes = input.bytes(size).max(output.bytes(size));
                    return Err(Error::PartialOverlap {
                        input: input.address,
                        output: output.address,
                        bytes,
                    });
                }
                in_place = true;
            }
        }
        Ok(in_place)
    }
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
        let run = |address, count| Run { address, count };
        assert_eq!(call.received[..3], [run(0x2000, 3), run(0x2006, 0), run(0x2006, 5)]);
        assert_eq!(call.sent[..3], [run(0x1000, 5); 3]);
        assert_eq!(call.hull(&call.received), (0x2000, 0x2010));
        assert_eq!(call.longest_known(), 10);
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
    fn slices_of_a_list_lie_anywhere() {
        let slice = |address, count| RawSlice { address, count };
        let outputs = [slice(0x2000, 4), slice(0x1001, 0), slice(0x1000, 4)];
        let gather = |input, rank| SliceCall::all_gather_list(input, &outputs, TWO, (rank, 3)).unwrap();
        assert!(gather(0x2000, 0).is_in_place(0).unwrap());
        assert!(!gather(0x1800, 0).is_in_place(0).unwrap(), "between two of them");
        assert!(matches!(gather(0x1000, 0).is_in_place(0), Err(Error::PartialOverlap { .. })));
        assert!(matches!(gather(0x1fff, 0).is_in_place(0), Err(Error::Misaligned { address: 0x1fff, .. })));
        // What is only read may be the same for several ranks.
        let inputs = [slice(0x1000, 4); 3];
        let scatter =
            |output| SliceCall::reduce_scatter_list(&inputs, output, (DType::F32, Op::Sum), (1, 3)).unwrap();
        assert!(!scatter(0x1010).is_in_place(1).unwrap());
        assert!(matches!(scatter(0x1000).is_in_place(1), Err(Error::PartialOverlap { .. })));
        // A gather: what the root has of its own lies where it is gathered to.
        let sent = [slice(0, 0), slice(0x1008, 2), slice(0, 0)];
        let received = [slice(0x1000, 4), slice(0x1008, 2), slice(0x100c, 1)];
        let call = SliceCall::all_to_all_list((&sent, &received), TWO, (1, 3)).unwrap();
        assert!(call.is_in_place(1).unwrap());
        assert_eq!(call.longest_known(), 8);
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
        let long = SliceCall::all_to_all_list((&[RawSlice::default(); 2], &[]), TWO, (0, 2));
        assert!(matches!(long, Err(Error::WrongCounts { found: 0, world_size: 2 })));
        let none = RawSlice::default();
        for beyond in [
            SliceCall::broadcast((0, 0), 1, TWO, 2, (0, 2)),
            SliceCall::gather(none, &[none; 2], TWO, 2, (0, 2)),
            SliceCall::scatter(&[none; 2], none, TWO, 2, (0, 2)),
        ] {
            assert!(matches!(beyond, Err(Error::NoSuchRoot { root: 2, world_size: 2 })));
        }
        let root = |rank| SliceCall::gather(none, &[none], TWO, 0, (rank, 2));
        assert!(matches!(root(0), Err(Error::WrongCounts { found: 1, world_size: 2 })));
        assert!(root(1).is_ok(), "where it is not the root there is no list");
    }
}
