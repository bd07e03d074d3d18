//! Calls of every collective, in cases that are compared with plain copies and the reference, byte by byte.

use std::fmt;
use std::ops::Range;

use anyhow::{Context as _, Result};
use cust::stream::Stream;
use cust_raw::CUstream;
use meshreduce::{Collective, DType, ElementSize, Lane, Op, RawSlice, Work};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use crate::buffer::Guarded;
use crate::job::{self, Mismatch};
use crate::{inputs, reference};

/// Which messages a launch has.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// The run's seed.
    pub seed: u64,
    /// Tells the messages of this case from those of others.
    pub case: usize,
    /// Which launch of the case.
    pub launch: usize,
    /// The rank at each position.
    pub order: &'a [usize],
}

/// One call, as all ranks make it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Which.
    pub collective: Collective,
    /// The type of the elements. Where they only move, what counts is the size.
    pub dtype: DType,
    /// Bytes of an element that only moves.
    pub size: ElementSize,
    /// The reduction, where there is one.
    pub op: Op,
    /// The root, where there is one.
    pub root: usize,
    /// Elements from rank to rank: `counts[from][to]`.
    pub counts: Vec<Vec<usize>>,
    /// Whether counts are given as lists, also where they are equal.
    pub lists: bool,
    /// Elements by which messages are shifted from alignment.
    pub offset: usize,
    /// Whether what is received overwrites what is sent.
    pub in_place: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { collective, dtype, size, op, root, counts, lists, offset, in_place } = self;
        match collective.reduces() {
            true => write!(f, "{collective} {op} {dtype}")?,
            false => write!(f, "{collective} of {} B", size.bytes())?,
        }
        write!(f, " root {root} counts {:?}", counts.iter().map(|row| &row[..]).collect::<Vec<_>>())?;
        write!(f, " lists {lists} offset {offset} in place {in_place}")
    }
}

/// `each` cases of each of these collectives over `world_size` ranks, of slices of up to `most` elements.
pub fn drawn(
    collectives: &[Collective],
    world_size: usize,
    each: usize,
    most: usize,
    seed: u64,
) -> Vec<Case> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |end: usize| (random.next_u64() % end as u64) as usize;
    let mut once = |_| {
        let cases =
            collectives.iter().map(|&collective| Case::drawn(collective, world_size, most, &mut below));
        cases.collect::<Vec<_>>()
    };
    (0..each).flat_map(&mut once).collect()
}

impl Case {
    fn drawn(
        collective: Collective,
        world_size: usize,
        most: usize,
        below: &mut dyn FnMut(usize) -> usize,
    ) -> Self {
        let dtype = DType::ALL[below(3)];
        let size = ElementSize::ALL[below(5)];
        let op = Op::ALL[below(4)];
        let root = below(world_size);
        let lists = below(3) == 0
            && matches!(collective, Collective::AllGather | Collective::ReduceScatter | Collective::AllToAll);
        let usual = below(most + 1);
        let mut count = |even: bool| match (even, below(4)) {
            (true, _) | (false, 3) => usual,
            (false, 0) => 0,
            (false, _) => below(most + 1),
        };
        // By sender, by receiver, or by both.
        let list: Vec<usize> = (0..world_size).map(|_| count(!lists)).collect();
        let counts = (0..world_size)
            .map(|from| {
                (0..world_size)
                    .map(|to| match collective {
                        Collective::AllGather => list[from],
                        Collective::ReduceScatter => list[to],
                        Collective::Broadcast if from == root => usual,
                        Collective::Reduce if to == root => usual,
                        Collective::AllToAll if lists => count(false),
                        Collective::AllToAll => usual,
                        _ => 0,
                    })
                    .collect()
            })
            .collect();
        let in_place = below(2) == 0 && !(lists && collective == Collective::AllToAll);
        Self { collective, dtype, size, op, root, counts, lists, offset: below(9), in_place }
    }

    /// The call that a launch of a job's case stands for. Roots go round; of two launches one has lists, where there are any, of
    /// slices that get shorter from one rank on, one of which is empty.
    pub fn of_job(case: &job::Case, launch: usize, world_size: usize) -> Self {
        let job::Case { collective, dtype, op, offset, in_place, .. } = *case;
        let root = launch % world_size;
        let lists = launch % 2 == 1
            && matches!(collective, Collective::AllGather | Collective::ReduceScatter | Collective::AllToAll);
        let count = |rank: usize| match (rank + root) % world_size {
            _ if !lists => case.count(),
            1 => 0,
            others => case.count().saturating_sub(3 * others),
        };
        let between = |from: usize, to: usize| match collective {
            Collective::AllGather => count(from),
            Collective::ReduceScatter => count(to),
            Collective::AllToAll => count((from + to) % world_size),
            Collective::Broadcast if from != root => 0,
            Collective::Reduce if to != root => 0,
            Collective::Barrier => 0,
            _ => case.count(),
        };
        let counts =
            (0..world_size).map(|from| (0..world_size).map(|to| between(from, to)).collect()).collect();
        let in_place = in_place && !(lists && collective == Collective::AllToAll);
        Self { collective, dtype, size: dtype.into(), op, root, counts, lists, offset, in_place }
    }

    /// Bytes of an element.
    pub fn element(&self) -> usize {
        if self.collective.reduces() { self.dtype.size() } else { self.size.bytes() }
    }

    /// Elements that `rank` has as input: of what goes to all alike, once.
    fn inputs(&self, rank: usize) -> usize {
        let row = &self.counts[rank];
        match self.collective {
            Collective::AllReduce | Collective::AllGather | Collective::Broadcast => row[rank],
            _ => row.iter().sum(),
        }
    }

    /// Elements that `rank` has as output: of what is reduced, once.
    fn outputs(&self, rank: usize) -> usize {
        let column = self.counts.iter().map(|row| row[rank]);
        if self.collective.reduces() { self.counts[rank][rank] } else { column.sum() }
    }

    /// What `rank` sends.
    fn input(&self, Draw { seed, case, launch, .. }: Draw<'_>, rank: usize) -> Vec<u8> {
        let count = self.inputs(rank);
        if self.collective.reduces() {
            return inputs::message(seed, case, launch, rank, count, self.dtype);
        }
        let bytes = count * self.element();
        let mut message = inputs::message(seed, case, launch, rank, bytes.div_ceil(4), DType::F32);
        message.truncate(bytes);
        message
    }

    /// What `rank` must end up with.
    pub fn expected(&self, draw: Draw<'_>, rank: usize) -> Vec<u8> {
        let element = self.element();
        let slice = |from: usize| {
            let input = self.input(draw, from);
            let first = match self.collective {
                Collective::AllReduce | Collective::AllGather | Collective::Broadcast => 0,
                _ => self.counts[from][..rank].iter().sum::<usize>(),
            };
            input[first * element..][..self.counts[from][rank] * element].to_vec()
        };
        if self.collective.reduces() {
            let slices: Vec<Vec<u8>> = draw.order.iter().map(|&from| slice(from)).collect();
            reference::all_reduce(&slices, self.dtype, self.op)
        } else {
            (0..self.counts.len()).flat_map(slice).collect()
        }
    }

    /// Elements of the output before what this rank sends itself, or of the input before what it receives of itself.
    fn own(&self, rank: usize) -> usize {
        match self.collective {
            Collective::AllGather => self.counts[..rank].iter().map(|row| row[rank]).sum(),
            Collective::ReduceScatter => self.counts[rank][..rank].iter().sum(),
            _ => 0,
        }
    }

    /// What `rank` has in memory before the call.
    pub fn images(&self, draw: Draw<'_>, rank: usize) -> Images {
        let element = self.element();
        let message = self.input(draw, rank);
        let outputs = self.outputs(rank) * element;
        if !self.in_place || self.collective == Collective::Barrier {
            return Images { memory: vec![0x5a; outputs], sent: Some(message), input: 0, output: 0..outputs };
        }
        let own = self.own(rank) * element;
        let (from, to) = match self.collective {
            Collective::AllGather => (own, 0),
            Collective::ReduceScatter => (0, own),
            _ => (0, 0),
        };
        let mut memory = vec![0x5a; (from + message.len()).max(to + outputs)];
        memory[from..from + message.len()].copy_from_slice(&message);
        Images { memory, sent: None, input: from, output: to..to + outputs }
    }

    /// Buffers for the call, with what `rank` sends.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn buffers(&self, draw: Draw<'_>, rank: usize) -> Result<Buffers> {
        let shift = self.offset * self.element();
        let Images { memory, sent, input, output } = self.images(draw, rank);
        let memory = Guarded::new(&memory, shift)?;
        // Nothing lies behind the input, so that a read beyond it is found.
        let sent = sent.map(|message| Guarded::tight(&message, shift).map(|sent| (sent, message)));
        let sent = sent.transpose()?;
        let base = sent.as_ref().map_or(memory.address(), |(sent, _)| sent.address());
        Ok(Buffers { input: base + input as u64, memory, sent, output })
    }

    /// The first element of `rank`'s output that is not what it must be, with what it is and must be.
    pub fn difference(&self, found: &[u8], draw: Draw<'_>, rank: usize) -> Option<(usize, String, String)> {
        let (expected, size) = (self.expected(draw, rank), self.element());
        let digits = |bytes: &[u8], element: usize| {
            bytes[element * size..][..size].iter().rev().map(|byte| format!("{byte:02x}")).collect()
        };
        let differs = (0..expected.len() / size)
            .find(|element| found[element * size..][..size] != expected[element * size..][..size]);
        differs.map(|element| (element, digits(found, element), digits(&expected, element)))
    }

    /// The first thing that is wrong with what has become of the buffers; `found` is the output.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn mismatch(
        &self,
        buffers: &Buffers,
        found: &[u8],
        draw: Draw<'_>,
        rank: usize,
    ) -> Result<Option<Mismatch>> {
        let launch = draw.launch;
        if let Some((element, got, want)) = self.difference(found, draw, rank) {
            return Ok(Some(Mismatch::Element { launch, element, got, want }));
        }
        if let Some(offset) = buffers.memory.broken_guard()? {
            return Ok(Some(Mismatch::Guard { launch, offset }));
        }
        let Some((sent, message)) = &buffers.sent else { return Ok(None) };
        let after = sent.read()?;
        let changed = (0..message.len()).find(|&at| after[at] != message[at]);
        Ok(changed.map(|offset| Mismatch::Input { launch, offset }))
    }

    /// Makes the call on `lane` once for each of `launches`, and compares.
    ///
    /// # Errors
    ///
    /// The library's, and the driver's; what is wrong with the result.
    pub fn check(
        &self,
        lane: &mut Lane,
        rank: usize,
        seed: u64,
        launches: usize,
        stream: &Stream,
    ) -> Result<()> {
        let order: Vec<usize> = (0..self.counts.len()).collect();
        for launch in 0..launches {
            let draw = Draw { seed, case: 0, launch, order: &order };
            let buffers = self.buffers(draw, rank)?;
            // SAFETY: the buffers are those of the case, and live until the work has ended.
            let work = unsafe { self.call(lane, rank, buffers.addresses(), stream.as_inner()) }?;
            work.synchronize()?;
            if let Some(wrong) = self.mismatch(&buffers, &buffers.found()?, draw, rank)? {
                anyhow::bail!("{self}: rank {rank}: {wrong}");
            }
        }
        Ok(())
    }

    /// Enqueues the call, with input and output at these addresses.
    ///
    /// # Safety
    ///
    /// There lie [`Self::images`] of this rank, until the work has ended; the stream is one of this device.
    ///
    /// # Errors
    ///
    /// The library's.
    pub unsafe fn call(
        &self,
        lane: &mut Lane,
        rank: usize,
        (input, output): (u64, u64),
        stream: CUstream,
    ) -> Result<Work> {
        let Self { size, dtype, op, root, .. } = *self;
        let column: Vec<usize> = self.counts.iter().map(|row| row[rank]).collect();
        let row = &self.counts[rank];
        let one = |list: &[usize]| list.first().copied().unwrap_or(0);
        let element = self.element() as u64;
        let slices = |base: u64, counts: &[usize]| -> Vec<RawSlice> {
            let mut address = base;
            let slice = |count: &usize| {
                let slice = RawSlice { address, count: *count };
                address += *count as u64 * element;
                slice
            };
            counts.iter().map(slice).collect()
        };
        // Some ranks give the same slices by their addresses: nobody else can tell.
        let by_address = self.lists && (rank + self.offset).is_multiple_of(2);
        // SAFETY: the caller vouches for the memory and the stream.
        let work = unsafe {
            match (self.collective, self.lists) {
                (Collective::AllReduce, _) => {
                    lane.all_reduce_raw(input, output, row[rank], dtype, op, stream)
                }
                (Collective::AllGather, true) if by_address => {
                    lane.all_gather_list_raw(input, &slices(output, &column), size, stream)
                }
                (Collective::ReduceScatter, true) if by_address => {
                    lane.reduce_scatter_list_raw(&slices(input, row), output, dtype, op, stream)
                }
                (Collective::AllToAll, true) if by_address => {
                    let (sent, received) = (slices(input, row), slices(output, &column));
                    lane.all_to_all_list_raw(&sent, &received, size, stream)
                }
                (Collective::AllGather, true) => lane.all_gather_v_raw(input, output, &column, size, stream),
                (Collective::AllGather, false) => {
                    lane.all_gather_raw(input, output, one(&column), size, stream)
                }
                (Collective::ReduceScatter, true) => {
                    lane.reduce_scatter_v_raw(input, output, row, dtype, op, stream)
                }
                (Collective::ReduceScatter, false) => {
                    lane.reduce_scatter_raw(input, output, one(row), dtype, op, stream)
                }
                (Collective::Broadcast, _) => {
                    lane.broadcast_raw(input, output, self.counts[root][rank], size, root, stream)
                }
                (Collective::Reduce, _) => {
                    lane.reduce_raw(input, output, self.counts[rank][root], dtype, op, root, stream)
                }
                (Collective::AllToAll, true) => {
                    lane.all_to_all_v_raw(input, output, row, &column, size, stream)
                }
                (Collective::AllToAll, false) => lane.all_to_all_raw(input, output, one(row), size, stream),
                _ => lane.barrier_raw(stream),
            }
        };
        work.with_context(|| self.to_string())
    }
}

/// What one rank has in memory before a call.
#[derive(Clone, Debug)]
pub struct Images {
    /// Room for what is received; of a call in place, what is sent lies in it.
    pub memory: Vec<u8>,
    /// What is sent, where that lies elsewhere.
    pub sent: Option<Vec<u8>>,
    /// Where the input begins: in [`Self::sent`], or in [`Self::memory`].
    pub input: usize,
    /// Where in [`Self::memory`] the output lies.
    pub output: Range<usize>,
}

/// The memory of one rank in one call: what is received, and what is sent, in the same or elsewhere.
pub struct Buffers {
    memory: Guarded,
    /// Where what is sent lies elsewhere, and what it is.
    sent: Option<(Guarded, Vec<u8>)>,
    input: u64,
    /// Of the memory.
    output: Range<usize>,
}

impl Buffers {
    /// Where input and output begin.
    pub fn addresses(&self) -> (u64, u64) {
        (self.input, self.memory.address() + self.output.start as u64)
    }

    /// The output as it is now.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn found(&self) -> Result<Vec<u8>> {
        Ok(self.memory.read()?[self.output.clone()].to_vec())
    }
}
