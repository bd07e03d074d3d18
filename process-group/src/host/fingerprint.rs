//! What ranks compare before they touch one another's data: which call this is.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::call::Call;
use crate::tensor::{Parts, Tensor};
use crate::types::{DType, Operation, ReduceOp};

/// A call in three words, equal on all ranks that call the same.
///
/// Of operations where ranks do not know one another's lengths (gather, scatter, all_to_all) the count is 0; there every
/// message's length is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// The call's sequence number.
    pub(super) sequence: u64,
    /// From the low end: operation (8 bits); element type and reduction (8 each), root (20), each with 1 added and 0 for none;
    /// place in its batch (20).
    pub(super) what: u64,
    /// Elements in all (44 bits), and if parts differ in length a digest of their lengths.
    pub(super) count: u64,
}

const COUNT_BITS: u32 = 44;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

// What a word is made of is its place among all of its kind.
const _: () = {
    let mut at = 0;
    while at < DType::ALL.len() {
        assert!(DType::ALL[at] as usize == at);
        at += 1;
    }
    at = 0;
    while at < ReduceOp::ALL.len() {
        assert!(ReduceOp::ALL[at] as usize == at);
        at += 1;
    }
    at = 0;
    while at < Operation::ALL.len() {
        assert!(Operation::ALL[at] as usize == at);
        at += 1;
    }
};

impl Fingerprint {
    /// That of `call`, the one at `index` of its batch, of `world_size` ranks.
    pub(super) fn of(call: &Call<'_>, sequence: u64, index: usize, world_size: usize) -> Self {
        let dtype = call.dtype().map_or(0, |dtype| dtype as u64 + 1);
        let op = call.op().map_or(0, |op| op as u64 + 1);
        let root = call.root().map_or(0, |root| root as u64 + 1) & 0xf_ffff;
        let what =
            call.operation() as u64 | dtype << 8 | op << 16 | root << 24 | (index as u64 & 0xf_ffff) << 44;
        Self { sequence, what, count: count(call, world_size) }
    }

    /// [`Fingerprint::of`] of a send or a receive by itself.
    #[inline]
    pub(super) fn of_message(operation: Operation, tensor: &Tensor, sequence: u64) -> Self {
        let what = operation as u64 | (tensor.dtype as u64 + 1) << 8;
        Self { sequence, what, count: tensor.count as u64 & COUNT_MASK }
    }

    /// Whether both are of elements of one type.
    #[inline]
    pub(super) fn is_typed_as(&self, other: &Fingerprint) -> bool {
        (self.what ^ other.what) >> 8 & 0xff == 0
    }

    /// Its place in the order of calls: its number, and which call of a batch it is.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.sequence, self.what >> 44)
    }

    /// Whether both are the same place in the order of calls.
    pub(super) fn is_at(&self, other: &Fingerprint) -> bool {
        self.place() == other.place()
    }

    fn operation(&self) -> Option<Operation> {
        Operation::ALL.get((self.what & 0xff) as usize).copied()
    }

    /// The operation, to be named in errors; of what no rank of ours writes, a batch.
    pub(super) fn named(&self) -> Operation {
        self.operation().unwrap_or(Operation::Batch)
    }

    /// The call with a length that only one message has.
    pub(super) fn with_elements(&self, count: usize) -> String {
        Self { count: count as u64, ..*self }.to_string()
    }
}

fn count(call: &Call<'_>, world_size: usize) -> u64 {
    match call {
        Call::AllReduce { input, .. } | Call::Reduce { input, .. } => input.count as u64 & COUNT_MASK,
        Call::Broadcast { tensor, .. } => tensor.count as u64 & COUNT_MASK,
        Call::Send { input, .. } => input.count as u64 & COUNT_MASK,
        Call::Recv { output, .. } => output.count as u64 & COUNT_MASK,
        Call::AllGather { outputs: parts, .. } | Call::ReduceScatter { inputs: parts, .. } => {
            of_parts(parts, world_size)
        }
        _ => 0,
    }
}

/// The sum of the parts' lengths, and their digest, not 0, if they differ: of lists that differ a millionth has the same.
fn of_parts(parts: &Parts<'_>, world_size: usize) -> u64 {
    let length = |rank: usize| match parts {
        Parts::Whole(tensor) => tensor.count / world_size,
        Parts::Split { counts, .. } => counts[rank],
        Parts::List(tensors) => tensors[rank].count,
    };
    let sum = (0..world_size).fold(0_u64, |sum, rank| sum.wrapping_add(length(rank) as u64)) & COUNT_MASK;
    if (1..world_size).all(|rank| length(rank) == length(0)) {
        return sum;
    }
    // The digest takes the top bits, which all bits of all lengths must reach.
    let digest = (0..world_size).fold(world_size as u64, |digest, rank| mix(digest ^ length(rank) as u64));
    sum | (digest >> COUNT_BITS).max(1) << COUNT_BITS
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), of the next state.
fn mix(state: u64) -> u64 {
    let mut word = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

impl fmt::Display for Fingerprint {
    /// As [`Call`] shows itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |at: u32, bits: u32| (self.what >> at & ((1 << bits) - 1)) as usize;
        match self.operation() {
            Some(operation) => write!(f, "{operation}")?,
            None => write!(f, "an unknown operation")?,
        }
        if let Some(op) = field(16, 8).checked_sub(1).and_then(|at| ReduceOp::ALL.get(at)) {
            write!(f, " ({op})")?;
        }
        if let Some(dtype) = field(8, 8).checked_sub(1).and_then(|at| DType::ALL.get(at)) {
            let unknown = [Operation::Gather, Operation::Scatter, Operation::AllToAll];
            match self.count & COUNT_MASK {
                0 if unknown.contains(&self.named()) => write!(f, " of {dtype}")?,
                count => write!(f, " of {count} {dtype}")?,
            }
        }
        let digest = self.count >> COUNT_BITS;
        if digest != 0 {
            write!(f, " in unequal parts (digest {digest:x})")?;
        }
        if let Some(root) = field(24, 20).checked_sub(1) {
            write!(f, " with root {root}")?;
        }
        match field(44, 20) {
            0 => Ok(()),
            index => write!(f, ", number {index} of a batch"),
        }
    }
}

/// The last calls of this rank, for those who ask later what it has called. One thread begins calls, others look.
#[derive(Debug)]
pub(super) struct History {
    fingerprints: [[AtomicU64; 3]; History::LENGTH],
    begun: AtomicU64,
}

impl History {
    const LENGTH: usize = 256;

    pub(super) fn new() -> Self {
        let fingerprints = std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0)));
        Self { fingerprints, begun: AtomicU64::new(0) }
    }

    fn place(&self, number: u64) -> &[AtomicU64; 3] {
        &self.fingerprints[number as usize % Self::LENGTH]
    }

    fn read(&self, number: u64) -> Fingerprint {
        let [sequence, what, count] = self.place(number).each_ref().map(|word| word.load(Ordering::Relaxed));
        Fingerprint { sequence, what, count }
    }

    /// Not to be called by two threads at once.
    pub(super) fn begin(&self, fingerprint: Fingerprint) {
        let begun = self.begun.load(Ordering::Relaxed);
        // Whoever sees a word of this call sees at least the count before it.
        fence(Ordering::Release);
        for (place, word) in
            self.place(begun).iter().zip([fingerprint.sequence, fingerprint.what, fingerprint.count])
        {
            place.store(word, Ordering::Relaxed);
        }
        self.begun.store(begun + 1, Ordering::Release);
    }

    /// The last one.
    pub(super) fn last(&self) -> Option<Fingerprint> {
        let begun = self.begun.load(Ordering::Acquire);
        (begun > 0).then(|| self.read(begun - 1))
    }

    /// The sequence number of the last one, plus 1; 0: there was none.
    pub(super) fn latest(&self) -> u64 {
        self.last().map_or(0, |last| last.sequence + 1)
    }

    /// What this rank has called at the place of `other`, if it has come there and remembers.
    pub(super) fn at(&self, other: &Fingerprint) -> Option<Fingerprint> {
        let begun = self.begun.load(Ordering::Acquire);
        // The oldest one may be being written over.
        let oldest = begun.saturating_sub(Self::LENGTH as u64 - 1);
        let latest_first = (oldest..begun).rev().map(|number| (number, self.read(number)));
        let (number, found) = latest_first
            .take_while(|(_, fingerprint)| fingerprint.sequence >= other.sequence)
            .find(|(_, fingerprint)| fingerprint.is_at(other))?;
        // So long as it was read no call has come to its place, or the count that is read now says so.
        fence(Ordering::Acquire);
        let begun = self.begun.load(Ordering::Relaxed);
        (number + Self::LENGTH as u64 > begun).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Buffer, BufferMut};

    #[test]
    fn a_fingerprint_reads_like_its_call() {
        let data = [0_f32; 6];
        let tensor = data.tensor();
        let call = Call::Reduce { input: tensor, output: None, op: ReduceOp::Max, root: 3 };
        assert_eq!(Fingerprint::of(&call, 7, 0, 4).to_string(), "reduce (max) of 6 f32 with root 3");
        let parts = Parts::Split { tensor, counts: &[4, 2] };
        let call = Call::AllGather { input: tensor.slice(0, 4), outputs: parts };
        let uneven = Fingerprint::of(&call, 7, 2, 2);
        assert!(uneven.to_string().starts_with("all_gather of 6 f32 in unequal parts"), "{uneven}");
        assert!(uneven.to_string().ends_with("number 2 of a batch"), "{uneven}");
        let whole = Call::AllGather { input: tensor.slice(0, 3), outputs: Parts::Whole(tensor) };
        let list = [tensor.slice(0, 3), tensor.slice(3, 3)];
        let list = Call::AllGather { input: tensor.slice(0, 3), outputs: Parts::List(&list) };
        assert_eq!(
            Fingerprint::of(&whole, 7, 0, 2),
            Fingerprint::of(&list, 7, 0, 2),
            "how parts are given is no matter"
        );
    }

    #[test]
    fn a_message_has_the_fingerprint_of_its_call() {
        let mut data = [0_f64; 6];
        let (sent, whole) = (data.tensor(), data.tensor_mut());
        let send = Call::Send { input: sent.slice(1, 4), peer: 1, tag: 9 };
        assert_eq!(
            Fingerprint::of_message(Operation::Send, &sent.slice(1, 4), 7),
            Fingerprint::of(&send, 7, 0, 2)
        );
        let receive = Call::Recv { output: whole, peer: Some(1), tag: 9 };
        let fingerprint = Fingerprint::of_message(Operation::Recv, &whole, 7);
        assert_eq!(fingerprint, Fingerprint::of(&receive, 7, 0, 2));
        assert!(fingerprint.is_typed_as(&Fingerprint::of(&send, 8, 0, 2)));
        assert!(!fingerprint.is_typed_as(&Fingerprint::of_message(Operation::Recv, &[0_f32; 6].tensor(), 7)));
    }

    #[test]
    fn lengths_that_differ_by_little_have_different_fingerprints() {
        let data = vec![0_u8; 6000];
        let mut same = 0;
        for (first, second) in (0..50).flat_map(|first| (1..50).map(move |second| (first * 37, second * 61)))
        {
            let of = |counts: [usize; 2]| {
                let parts =
                    Parts::Split { tensor: data.tensor().slice(0, counts.iter().sum()), counts: &counts };
                Fingerprint::of(
                    &Call::AllGather { input: data.tensor().slice(0, counts[0]), outputs: parts },
                    1,
                    0,
                    2,
                )
            };
            same += usize::from(of([first, second]) == of([first + 1, second - 1]));
        }
        assert_eq!(same, 0);
    }

    #[test]
    fn history_finds_what_was_called() {
        let history = History::new();
        let fingerprint = |sequence| Fingerprint { sequence, what: 0, count: sequence };
        (0..600).for_each(|sequence| history.begin(fingerprint(sequence)));
        let ask = |sequence| history.at(&Fingerprint { sequence, what: 0, count: 1 });
        assert_eq!(
            (ask(599), ask(400), ask(600), ask(1)),
            (Some(fingerprint(599)), Some(fingerprint(400)), None, None)
        );
    }
}
