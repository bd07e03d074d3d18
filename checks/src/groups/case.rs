//! A call that all ranks make, without memory: who reads how much, who gets what of whom.
#![forbid(unsafe_code)]

use std::fmt;

use meshreduce_process_group::{DType, Operation, ReduceOp};

/// What is called. Counts are elements, by rank.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are called as in the library's calls")]
pub enum CollectiveCall {
    /// All-reduce of so many.
    AllReduce { count: usize, op: ReduceOp },
    /// Reduce.
    Reduce { count: usize, op: ReduceOp, root: usize },
    /// Broadcast.
    Broadcast { count: usize, root: usize },
    /// All-gather.
    AllGather { counts: Vec<usize> },
    /// Gather.
    Gather { counts: Vec<usize>, root: usize },
    /// Scatter.
    Scatter { counts: Vec<usize>, root: usize },
    /// Reduce-scatter.
    ReduceScatter { counts: Vec<usize>, op: ReduceOp },
    /// All-to-all: by the rank that sends, by the rank that receives.
    AllToAll { counts: Vec<Vec<usize>> },
    /// Every rank sends to the next one and receives from the one before, in one batch.
    Ring { count: usize },
    /// One rank sends to another, which receives from it, or from any.
    Message { count: usize, from: usize, to: usize, any: bool, tag: u32 },
    /// A barrier.
    Barrier,
}

/// How parts lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Equal parts of one tensor.
    Whole,
    /// Parts of one tensor with their counts.
    Split,
    /// A tensor each.
    List,
}

/// A call of all ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What is called.
    pub what: CollectiveCall,
    /// The element type.
    pub dtype: DType,
    /// How parts that are read lie.
    pub inputs: Layout,
    /// How parts that are written lie.
    pub outputs: Layout,
    /// Whether the rank's own part is read and written in the same place.
    pub in_place: bool,
    /// How many of it are made at once; more than one are a batch.
    pub copies: usize,
}

/// Where an output comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The inputs: rank, and which of its parts.
    pub inputs: Vec<(usize, usize)>,
    /// How they are joined; `None`: there is one.
    pub op: Option<ReduceOp>,
}

impl Case {
    /// One call, out of place, its parts equal ones of a tensor.
    pub fn new(what: CollectiveCall, dtype: DType) -> Self {
        Self { what, dtype, inputs: Layout::Whole, outputs: Layout::Whole, in_place: false, copies: 1 }
    }

    /// The same with parts that lie so.
    pub fn lying(mut self, layout: Layout) -> Self {
        (self.inputs, self.outputs) = (layout, layout);
        self
    }

    /// The same in place.
    pub fn in_place(mut self) -> Self {
        self.in_place = true;
        self
    }

    /// The same, so many at once.
    pub fn times(mut self, copies: usize) -> Self {
        self.copies = copies;
        self
    }

    /// What a rank reads, by part.
    pub fn input_counts(&self, rank: usize) -> Vec<usize> {
        match &self.what {
            CollectiveCall::AllReduce { count, .. }
            | CollectiveCall::Reduce { count, .. }
            | CollectiveCall::Broadcast { count, .. }
            | CollectiveCall::Ring { count } => vec![*count],
            CollectiveCall::AllGather { counts } | CollectiveCall::Gather { counts, .. } => {
                vec![counts[rank]]
            }
            CollectiveCall::Scatter { counts, root } if *root == rank => counts.clone(),
            CollectiveCall::ReduceScatter { counts, .. } => counts.clone(),
            CollectiveCall::AllToAll { counts } => counts[rank].clone(),
            CollectiveCall::Message { count, from, .. } if *from == rank => vec![*count],
            CollectiveCall::Scatter { .. } | CollectiveCall::Message { .. } | CollectiveCall::Barrier => {
                Vec::new()
            }
        }
    }

    /// What a rank writes, by part.
    pub fn output_counts(&self, rank: usize) -> Vec<usize> {
        match &self.what {
            CollectiveCall::AllReduce { count, .. }
            | CollectiveCall::Broadcast { count, .. }
            | CollectiveCall::Ring { count } => {
                vec![*count]
            }
            CollectiveCall::Reduce { count, root, .. } if *root == rank => vec![*count],
            CollectiveCall::AllGather { counts } => counts.clone(),
            CollectiveCall::Gather { counts, root } if *root == rank => counts.clone(),
            CollectiveCall::Scatter { counts, .. } | CollectiveCall::ReduceScatter { counts, .. } => {
                vec![counts[rank]]
            }
            CollectiveCall::AllToAll { counts } => counts.iter().map(|to| to[rank]).collect(),
            CollectiveCall::Message { count, to, .. } if *to == rank => vec![*count],
            CollectiveCall::Reduce { .. }
            | CollectiveCall::Gather { .. }
            | CollectiveCall::Message { .. }
            | CollectiveCall::Barrier => Vec::new(),
        }
    }

    /// What a rank's output `part` is made of.
    pub fn origin(&self, rank: usize, part: usize, world_size: usize) -> Origin {
        let moved = |rank: usize, part: usize| Origin { inputs: vec![(rank, part)], op: None };
        let all = |part: usize, op: ReduceOp| Origin {
            inputs: (0..world_size).map(|rank| (rank, part)).collect(),
            op: Some(op),
        };
        match &self.what {
            CollectiveCall::AllReduce { op, .. } | CollectiveCall::Reduce { op, .. } => all(0, *op),
            CollectiveCall::ReduceScatter { op, .. } => all(rank, *op),
            CollectiveCall::Broadcast { root, .. } => moved(*root, 0),
            CollectiveCall::AllGather { .. } | CollectiveCall::Gather { .. } => moved(part, 0),
            CollectiveCall::Scatter { root, .. } => moved(*root, rank),
            CollectiveCall::AllToAll { .. } => moved(part, rank),
            CollectiveCall::Ring { .. } => moved((rank + world_size - 1) % world_size, 0),
            CollectiveCall::Message { from, .. } => moved(*from, 0),
            CollectiveCall::Barrier => unreachable!("a barrier writes nothing"),
        }
    }

    /// What the library calls it.
    pub fn operation(&self, rank: usize) -> Operation {
        match &self.what {
            _ if self.copies > 1 => Operation::Batch,
            CollectiveCall::AllReduce { .. } => Operation::AllReduce,
            CollectiveCall::Reduce { .. } => Operation::Reduce,
            CollectiveCall::Broadcast { .. } => Operation::Broadcast,
            CollectiveCall::AllGather { .. } => Operation::AllGather,
            CollectiveCall::Gather { .. } => Operation::Gather,
            CollectiveCall::Scatter { .. } => Operation::Scatter,
            CollectiveCall::ReduceScatter { .. } => Operation::ReduceScatter,
            CollectiveCall::AllToAll { .. } => Operation::AllToAll,
            CollectiveCall::Ring { .. } => Operation::Batch,
            CollectiveCall::Message { from, .. } if *from == rank => Operation::Send,
            CollectiveCall::Message { .. } => Operation::Recv,
            CollectiveCall::Barrier => Operation::Barrier,
        }
    }

    /// Its reduction.
    pub fn op(&self) -> Option<ReduceOp> {
        match &self.what {
            CollectiveCall::AllReduce { op, .. }
            | CollectiveCall::Reduce { op, .. }
            | CollectiveCall::ReduceScatter { op, .. } => Some(*op),
            _ => None,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, dtype, inputs, outputs, in_place, copies } = self;
        let place = if *in_place { "in place" } else { "out of place" };
        write!(f, "{copies} x {what:?} of {dtype}, {inputs:?} to {outputs:?}, {place}")
    }
}

/// So many parts of different lengths, one of them empty.
fn uneven(world_size: usize, salt: usize) -> Vec<usize> {
    (0..world_size).map(|rank| ((rank + salt) % world_size) * (3 + salt % 5)).collect()
}

/// Lengths about those at which a backend may change its way.
const COUNTS: [usize; 9] = [0, 1, 2, 3, 63, 1025, 8_191, 40_000, 300_001];

/// Every collective with every type and reduction, layout, root, uneven and empty parts, in place where that is allowed, batches.
pub fn cases(world_size: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (salt, dtype) in DType::ALL.into_iter().enumerate() {
        for (more, op) in ReduceOp::ALL.into_iter().enumerate() {
            let (count, root) = (5 + 7 * salt + more, (salt + more) % world_size);
            let even = vec![count; world_size];
            cases.extend([
                Case::new(CollectiveCall::AllReduce { count, op }, dtype),
                Case::new(CollectiveCall::AllReduce { count: count + 1, op }, dtype).in_place(),
                Case::new(CollectiveCall::Reduce { count, op, root }, dtype),
                Case::new(CollectiveCall::ReduceScatter { counts: even, op }, dtype),
                Case::new(
                    CollectiveCall::ReduceScatter { counts: uneven(world_size, salt + more), op },
                    dtype,
                )
                .lying(if more % 2 == 0 { Layout::Split } else { Layout::List }),
            ]);
        }
        moves(&mut cases, dtype, salt, world_size);
    }
    for count in COUNTS {
        for (dtype, op) in
            [(DType::F32, ReduceOp::Sum), (DType::Bf16, ReduceOp::Avg), (DType::I8, ReduceOp::Max)]
        {
            cases.push(Case::new(CollectiveCall::AllReduce { count, op }, dtype));
            cases.push(Case::new(CollectiveCall::AllReduce { count, op }, dtype).in_place());
        }
        cases.push(Case::new(CollectiveCall::Broadcast { count, root: world_size - 1 }, DType::F32));
        cases.push(Case::new(CollectiveCall::AllGather { counts: vec![count; world_size] }, DType::U8));
        cases.push(Case::new(CollectiveCall::Ring { count }, DType::I16));
        let all_to_all =
            CollectiveCall::AllToAll { counts: vec![vec![count / world_size; world_size]; world_size] };
        cases.push(Case::new(all_to_all, DType::F64));
        let reduce_scatter =
            CollectiveCall::ReduceScatter { counts: vec![count / world_size; world_size], op: ReduceOp::Sum };
        cases.push(Case::new(reduce_scatter, DType::F32));
    }
    // A send to oneself is an error, so alone there are none.
    cases.retain(|case| {
        world_size > 1 || !matches!(case.what, CollectiveCall::Ring { .. } | CollectiveCall::Message { .. })
    });
    cases
}

fn moves(cases: &mut Vec<Case>, dtype: DType, salt: usize, world_size: usize) {
    let (count, even) = (4 + salt, vec![4 + salt; world_size]);
    let parts = uneven(world_size, salt);
    for root in 0..world_size {
        cases.push(Case::new(CollectiveCall::Broadcast { count, root }, dtype));
        cases.push(Case::new(CollectiveCall::Reduce { count, op: ReduceOp::Sum, root }, dtype).in_place());
        cases.push(Case::new(CollectiveCall::Gather { counts: even.clone(), root }, dtype));
        cases.push(
            Case::new(CollectiveCall::Gather { counts: parts.clone(), root }, dtype).lying(Layout::List),
        );
        cases.push(
            Case::new(CollectiveCall::Gather { counts: parts.clone(), root }, dtype)
                .lying(Layout::Split)
                .in_place(),
        );
        cases.push(Case::new(CollectiveCall::Scatter { counts: even.clone(), root }, dtype).in_place());
        cases.push(
            Case::new(CollectiveCall::Scatter { counts: parts.clone(), root }, dtype).lying(Layout::List),
        );
        cases.push(
            Case::new(CollectiveCall::Scatter { counts: parts.clone(), root }, dtype).lying(Layout::Split),
        );
    }
    let square = vec![even.clone(); world_size];
    let ragged: Vec<_> = (0..world_size).map(|rank| uneven(world_size, salt + rank)).collect();
    let mixed = Case {
        outputs: Layout::List,
        ..Case::new(CollectiveCall::AllToAll { counts: square.clone() }, dtype)
    };
    cases.extend([
        Case::new(CollectiveCall::AllGather { counts: even.clone() }, dtype),
        Case::new(CollectiveCall::AllGather { counts: even.clone() }, dtype).in_place(),
        Case::new(CollectiveCall::AllGather { counts: even.clone() }, dtype).lying(Layout::List),
        Case::new(CollectiveCall::AllGather { counts: parts.clone() }, dtype).lying(Layout::List).in_place(),
        Case::new(CollectiveCall::AllGather { counts: parts.clone() }, dtype).lying(Layout::Split),
        Case::new(CollectiveCall::ReduceScatter { counts: even.clone(), op: ReduceOp::Sum }, dtype)
            .in_place(),
        Case::new(CollectiveCall::AllToAll { counts: square }, dtype),
        mixed,
        Case::new(CollectiveCall::AllToAll { counts: ragged.clone() }, dtype).lying(Layout::List),
        Case::new(CollectiveCall::AllToAll { counts: ragged }, dtype).lying(Layout::Split),
        Case::new(CollectiveCall::Ring { count }, dtype),
        Case::new(CollectiveCall::Ring { count }, dtype).times(3),
        Case::new(CollectiveCall::Broadcast { count, root: salt % world_size }, dtype).times(3),
        Case::new(CollectiveCall::AllReduce { count, op: ReduceOp::Sum }, dtype).times(4),
        Case::new(CollectiveCall::AllGather { counts: even }, dtype).times(2),
        Case::new(CollectiveCall::Barrier, dtype),
    ]);
    let (from, to) = (salt % world_size, (salt + 1) % world_size);
    for any in [false, true] {
        let tag = if any { 7 } else { 0 };
        cases.push(Case::new(CollectiveCall::Message { count, from, to, any, tag }, dtype));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_as_long_as_what_it_is_made_of() {
        for world_size in 1..=5 {
            for case in cases(world_size) {
                for rank in 0..world_size {
                    for (part, count) in case.output_counts(rank).into_iter().enumerate() {
                        for (from, of) in case.origin(rank, part, world_size).inputs {
                            assert_eq!(case.input_counts(from)[of], count, "{case}, rank {rank}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn there_is_a_case_of_every_operation_type_and_reduction() {
        let cases = cases(3);
        for operation in Operation::ALL {
            assert!(
                (0..3).any(|rank| cases.iter().any(|case| case.operation(rank) == operation)),
                "{operation}"
            );
        }
        for dtype in DType::ALL {
            for op in ReduceOp::ALL {
                assert!(
                    cases.iter().any(|case| case.dtype == dtype && case.op() == Some(op)),
                    "{dtype} {op}"
                );
            }
        }
    }
}
