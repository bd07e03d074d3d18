//! The algorithms, from a rank's input to its output.
//!
//! Reductions go around a ring as NCCL's do: the elements are cut into as many chunks as there are ranks, each chunk
//! starts at another rank, and every rank on its way adds its own to what it gets and rounds that to the type. So
//! results can differ in bits from any other order's. (A `Reduce` starts behind the root and ends with it.) What only
//! moves is sent directly.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::call::{Call, Kind};
use crate::element::{self, Combine, Scale, Type};
use crate::failure::Result;
use crate::mesh::Mesh;

/// A rank among its ranks, and its way to them.
#[derive(Clone, Copy)]
pub(crate) struct Ranks<'a> {
    pub(crate) mesh: &'a Mesh,
    pub(crate) rank: usize,
    pub(crate) size: usize,
}

/// How inputs become one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reduction {
    pub(crate) combine: Combine,
    pub(crate) scale: Scale,
}

/// A collective operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Collective {
    pub(crate) kind: Kind,
    pub(crate) call: Call,
    pub(crate) element: Type,
    /// Of the operations that reduce.
    pub(crate) reduction: Option<Reduction>,
    /// 0 for operations without one.
    pub(crate) root: usize,
}

impl Ranks<'_> {
    fn others(self) -> impl Iterator<Item = usize> {
        (1..self.size).map(move |offset| (self.rank + offset) % self.size)
    }

    fn next(self) -> usize {
        (self.rank + 1) % self.size
    }

    fn previous(self) -> usize {
        (self.rank + self.size - 1) % self.size
    }

    /// The rank, or chunk, that is `steps` before this one in the ring.
    fn back(self, steps: usize) -> usize {
        (self.rank + 2 * self.size - steps) % self.size
    }

    fn flush_all(self) -> Result<()> {
        self.others().try_for_each(|other| self.mesh.flush(other))
    }
}

impl Collective {
    /// Runs it. An input or output that this rank does not have is empty.
    pub(crate) fn run(&self, ranks: Ranks<'_>, input: &[u8], output: &mut [u8]) -> Result<()> {
        match self.kind {
            Kind::AllReduce => self.all_reduce(ranks, input, output),
            Kind::Reduce => self.reduce(ranks, input, output),
            Kind::ReduceScatter => self.reduce_scatter(ranks, input, output),
            Kind::Broadcast => self.broadcast(ranks, input, output),
            Kind::AllGather => self.all_gather(ranks, input, output),
            Kind::AlltoAll => self.all_to_all(ranks, input, output),
            Kind::Gather => self.gather(ranks, input, output),
            Kind::Scatter => self.scatter(ranks, input, output),
            // Sends and receives are no collective: job.rs has them.
            Kind::Exchange => Ok(()),
        }
    }

    fn scaled(&self, input: &[u8]) -> Vec<u8> {
        let mut own = input.to_vec();
        if let Some(reduction) = &self.reduction {
            reduction.scale.before(self.element, &mut own);
        }
        own
    }

    fn combine(&self, own: &mut [u8], other: &[u8]) {
        if let Some(reduction) = &self.reduction {
            element::combine(self.element, own, other, reduction.combine);
        }
    }

    fn finish(&self, result: &mut [u8]) {
        if let Some(reduction) = &self.reduction {
            reduction.scale.after(self.element, result);
        }
    }

    /// `size` - 1 steps around the ring: in step `s` this rank passes chunk `first` + `s` back on, and adds its own to
    /// the one behind it.
    fn reduce_ring(
        &self,
        ranks: Ranks<'_>,
        data: &mut [u8],
        chunk: impl Fn(usize) -> Range<usize>,
        first: usize,
    ) -> Result<()> {
        for step in 0..ranks.size - 1 {
            let number = step as u32;
            ranks.mesh.send(ranks.next(), &self.call, number, &data[chunk(ranks.back(first + step))]);
            let own = &mut data[chunk(ranks.back(first + step + 1))];
            let mut other = vec![0; own.len()];
            ranks.mesh.receive(ranks.previous(), &self.call, number, &mut other)?;
            self.combine(own, &other);
        }
        Ok(())
    }

    fn all_reduce(&self, ranks: Ranks<'_>, input: &[u8], output: &mut [u8]) -> Result<()> {
        let (size, width) = (ranks.size, self.element.bytes());
        let count = input.len() / width;
        // Wide, because a count times a number of ranks may not fit.
        let border = |index: usize| (count as u128 * index as u128 / size as u128) as usize * width;
        let chunk = |index: usize| border(index)..border(index + 1);
        output.copy_from_slice(&self.scaled(input));
        self.reduce_ring(ranks, output, chunk, 0)?;
        // Now the chunk behind this rank's is complete.
        self.finish(&mut output[chunk(ranks.next())]);
        for step in 0..size - 1 {
            let number = (size + step) as u32;
            ranks.mesh.send(ranks.next(), &self.call, number, &output[chunk(ranks.back(size - 1 + step))]);
            let place = &mut output[chunk(ranks.back(step))];
            ranks.mesh.receive(ranks.previous(), &self.call, number, place)?;
        }
        ranks.flush_all()
    }

    fn reduce_scatter(&self, ranks: Ranks<'_>, input: &[u8], output: &mut [u8]) -> Result<()> {
        let bytes = output.len();
        let chunk = |index: usize| index * bytes..(index + 1) * bytes;
        let mut data = self.scaled(input);
        self.reduce_ring(ranks, &mut data, chunk, 1)?;
        output.copy_from_slice(&data[chunk(ranks.rank)]);
        self.finish(output);
        ranks.flush_all()
    }

    fn reduce(&self, ranks: Ranks<'_>, input: &[u8], output: &mut [u8]) -> Result<()> {
        let mut data = self.scaled(input);
        let is_first = ranks.previous() == self.root;
        if !is_first {
            let mut other = vec![0; data.len()];
            ranks.mesh.receive(ranks.previous(), &self.call, 0, &mut other)?;
            self.combine(&mut data, &other);
        }
        if ranks.rank == self.root {
            self.finish(&mut data);
            output.copy_from_slice(&data);
            return Ok(());
        }
        ranks.mesh.send(ranks.next(), &self.call, 0, &data);
        ranks.mesh.flush(ranks.next())
    }

    fn broadcast(&self, ranks: Ranks<'_>, input: &[u8], output: &mut [u8]) -> Result<()> {
        if ranks.rank != self.root {
            return ranks.mesh.receive(self.root, &self.call, 0, output);
        }
        output.copy_from_slice(input);
        ranks.others().for_each(|other| ranks.mesh.send(other, &self.call, 0, input));
        ranks.flush_all()
    }

    fn all_gather(&self, ranks: Ranks<'_>, input: &[u8], output: &mut [u8]) -> Result<()> {
        ranks.others().for_each(|other| ranks.mesh.send(other, &self.call, 0, input));
        for (rank, place) in output.chunks_exact_mut(input.len()).enumerate() {
            self.take(ranks, rank, input, place)?;
        }
        ranks.flush_all()
    }

    fn all_to_all(&self, ranks: Ranks<'_>, input: &[u8], output: &mut [u8]) -> Result<()> {
        let bytes = input.len() / ranks.size;
        let part = |rank: usize| &input[rank * bytes..(rank + 1) * bytes];
        ranks.others().for_each(|other| ranks.mesh.send(other, &self.call, 0, part(other)));
        for (rank, place) in output.chunks_exact_mut(bytes).enumerate() {
            self.take(ranks, rank, part(rank), place)?;
        }
        ranks.flush_all()
    }

    fn gather(&self, ranks: Ranks<'_>, input: &[u8], output: &mut [u8]) -> Result<()> {
        if ranks.rank != self.root {
            ranks.mesh.send(self.root, &self.call, 0, input);
            return ranks.mesh.flush(self.root);
        }
        for (rank, place) in output.chunks_exact_mut(input.len()).enumerate() {
            self.take(ranks, rank, input, place)?;
        }
        Ok(())
    }

    fn scatter(&self, ranks: Ranks<'_>, input: &[u8], output: &mut [u8]) -> Result<()> {
        if ranks.rank != self.root {
            return ranks.mesh.receive(self.root, &self.call, 0, output);
        }
        let bytes = output.len();
        let part = |rank: usize| &input[rank * bytes..(rank + 1) * bytes];
        ranks.others().for_each(|other| ranks.mesh.send(other, &self.call, 0, part(other)));
        output.copy_from_slice(part(ranks.rank));
        ranks.flush_all()
    }

    /// What `rank` has for this one, which is `own` if it is this rank itself.
    fn take(&self, ranks: Ranks<'_>, rank: usize, own: &[u8], place: &mut [u8]) -> Result<()> {
        if rank == ranks.rank {
            place.copy_from_slice(own);
            return Ok(());
        }
        ranks.mesh.receive(rank, &self.call, 0, place)
    }
}
