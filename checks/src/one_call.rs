//! One call of shipped kernels, queued on all ranks of a session that has not run: what [`crate::path`] counts and
//! [`crate::simulate`] times.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use meshreduce::shipped_kernels;
use meshreduce_emulator_weak_memory::adversary::Session;
use meshreduce_wire::packets;
use meshreduce_wire::{Algorithm, Collective, DType, Geometry, Isa, MAX_BLOCKS, Op};

use crate::adversary::{
    Call, Cuts, Expected, Kernels, Numbers, Scenario, SliceCall, SliceKernels, SliceScenario,
};

/// The lane's call number: neither the first, of which a protocol may ask more, nor odd.
const CALL_NUMBER: u64 = 6;

/// A message by an algorithm of lists is cut into so many tensors.
const TENSORS: usize = 4;

/// What is called.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Ranks.
    pub ranks: usize,
    /// The ISA of its text.
    pub isa: Isa,
    /// The element type.
    pub dtype: DType,
    /// The operation.
    pub op: Op,
    /// Bytes of the message, or of each slice, whole elements.
    pub bytes: usize,
}

/// A session with a call, and what must come of it.
pub(crate) type Prepared = (Session, Vec<Expected>);

/// All shipped algorithms with their world sizes and ISAs.
pub fn shipped() -> Vec<(Algorithm, usize, Isa)> {
    let mut all: Vec<_> = shipped_kernels().map(|text| (text.algorithm, text.world_size, text.isa)).collect();
    all.sort_unstable_by_key(|&(algorithm, ranks, isa)| (algorithm, isa, ranks));
    all
}

/// Queues a call of a shipped kernel that serves `collective`.
///
/// # Errors
/// If there is no such kernel.
pub(crate) fn prepare(subject: Subject, collective: Collective) -> Result<Prepared> {
    let Subject { algorithm, ranks, isa, .. } = subject;
    let serves = algorithm.serves(collective)
        // As a list of all-reduces.
        || algorithm.is_of_lists() && collective == Collective::AllReduce;
    ensure!(serves, "{algorithm} does not serve {collective}");
    if algorithm.is_of_slices() {
        return slices(subject, collective);
    }
    prepare_text(&Kernels::shipped_text(algorithm, ranks, isa)?, subject)
}

/// Queues an all-reduce of a kernel of a text with the shipped names.
///
/// # Errors
/// If there is no such kernel in it.
pub(crate) fn prepare_text(text: &str, subject: Subject) -> Result<Prepared> {
    let Subject { algorithm, ranks, isa, dtype, op, bytes } = subject;
    ensure!(
        bytes.is_multiple_of(dtype.size()) && bytes > 0,
        "{bytes} bytes are not a whole number of {dtype} elements"
    );
    let kernels = Kernels::parse(text, algorithm, ranks)?;
    let count = bytes / dtype.size();
    let cuts = if algorithm.is_of_lists() { Cuts { tensors: TENSORS, seed: 0 } } else { Cuts::NONE };
    let Geometry { blocks, threads } = match algorithm.is_of_lists() {
        true => Geometry::of_list(cuts.units(count, dtype, isa) as u32, MAX_BLOCKS),
        false => Geometry::new(algorithm, count as u64, dtype, ranks as u32, MAX_BLOCKS, isa),
    };
    let threads = threads - packets::counting_threads(algorithm);
    let call = Call { algorithm, count, offset: 0, blocks, ragged: false, threads, in_place: false, cuts };
    let relays = match algorithm.is_of_cube_mesh() {
        true => opposite(ranks),
        false => (0..ranks).collect(),
    };
    let scenario = Scenario {
        dtype,
        op,
        positions: (0..ranks).collect(),
        relays,
        lane: 0,
        first: Numbers { barriers: CALL_NUMBER, packets: CALL_NUMBER },
        calls: vec![call],
        abort: None,
        late: None,
    };
    kernels.prepare(&scenario, 0)
}

/// Who relays for whom: quads are the first four ranks and the others, as in the described hybrid cube mesh.
fn opposite(ranks: usize) -> Vec<usize> {
    (0..ranks).map(|at| (at + ranks / 2) % ranks).collect()
}

/// Queues one call of an algorithm of slices. The bytes are those of each slice.
fn slices(subject: Subject, collective: Collective) -> Result<Prepared> {
    let Subject { algorithm, ranks, isa, dtype, op, bytes } = subject;
    let longest = if collective == Collective::Barrier { 0 } else { bytes };
    let Geometry { blocks, threads } = Geometry::of_slices(algorithm, longest as u64, MAX_BLOCKS, isa);
    // The root is rank 0.
    let sends = |from: usize, to: usize| match collective {
        Collective::Broadcast => from == 0,
        Collective::Reduce => to == 0,
        _ => true,
    };
    let of = |from| (0..ranks).map(move |to| if sends(from, to) { longest as u32 } else { 0 }).collect();
    let call = SliceCall {
        collective,
        algorithm,
        root: 0,
        bytes: (0..ranks).map(of).collect(),
        shift: 0,
        blocks,
        ragged: false,
        threads: threads - packets::counting_threads(algorithm),
        in_place: vec![false; ranks],
        cuts: Cuts::NONE,
    };
    let scenario = SliceScenario {
        dtype,
        op,
        positions: (0..ranks).collect(),
        relays: algorithm.is_of_cube_mesh().then(|| opposite(ranks)),
        lane: 0,
        first: Numbers { barriers: CALL_NUMBER, packets: CALL_NUMBER },
        calls: vec![call],
        abort: None,
        late: None,
        odd: None,
    };
    SliceKernels::with_those_of(algorithm, ranks, isa)?.prepare(&scenario, 0)
}
