//! Steps and what each had to wait for.
use super::length::{Length, StepKind};

/// A moment: the end of a step, or [`ENTRY`].
pub(super) type Moment = u32;

/// The kernels' begin, on all devices at once.
pub(super) const ENTRY: Moment = 0;

/// Who did a step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Who {
    pub(super) device: u16,
    pub(super) thread: u16,
    pub(super) block: u32,
    pub(super) pc: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    /// Of the longest path to the end of the step.
    pub(super) length: Length,
    /// What the step waited for longest.
    pub(super) from: Moment,
    pub(super) kind: StepKind,
    pub(super) who: Who,
    /// Of the access; 0 for a fence.
    pub(super) address: u64,
}

#[derive(Debug)]
pub(super) struct Graph {
    nodes: Vec<Node>,
}

impl Graph {
    pub(super) fn new() -> Self {
        let kind = StepKind::Load;
        let entry = Node { length: Length::default(), from: ENTRY, kind, who: Who::default(), address: 0 };
        Self { nodes: vec![entry] }
    }

    /// The later of two moments; the first of two that are as late.
    #[inline]
    pub(super) fn later(&self, a: Moment, b: Moment) -> Moment {
        if a != b && self.nodes[b as usize].length > self.nodes[a as usize].length { b } else { a }
    }

    /// The end of a step that begins at `from`.
    ///
    /// # Panics
    /// Beyond 2^32 steps.
    pub(super) fn step(&mut self, from: Moment, kind: StepKind, who: Who, address: u64) -> Moment {
        let moment = Moment::try_from(self.nodes.len()).expect("at most 2^32 steps");
        let length = self.nodes[from as usize].length.plus(kind);
        self.nodes.push(Node { length, from, kind, who, address });
        moment
    }

    /// The latest of all moments that are the end of a step which `counts`.
    pub(super) fn latest(&self, counts: impl Fn(StepKind) -> bool) -> Moment {
        let all = (ENTRY + 1..).zip(&self.nodes[1..]);
        all.filter(|(_, node)| counts(node.kind))
            .fold(ENTRY, |latest, (moment, _)| self.later(latest, moment))
    }

    pub(super) fn length(&self, moment: Moment) -> Length {
        self.nodes[moment as usize].length
    }

    /// The steps of the longest path to a moment, in order.
    pub(super) fn path(&self, moment: Moment) -> Vec<Node> {
        let mut steps = Vec::new();
        let mut at = moment;
        while at != ENTRY {
            let node = self.nodes[at as usize];
            steps.push(node);
            at = node.from;
        }
        steps.reverse();
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_way_outweighs_any_number_of_local_accesses_and_a_path_is_told_in_order() {
        let mut graph = Graph::new();
        let mut near = ENTRY;
        for _ in 0..20 {
            near = graph.step(near, StepKind::Load, Who::default(), 8);
        }
        let sent = graph.step(ENTRY, StepKind::Way, Who::default(), 16);
        let both = graph.later(near, sent);
        assert_eq!(both, sent);
        let end = graph.step(both, StepKind::Store, Who::default(), 24);
        let kinds: Vec<_> = graph.path(end).iter().map(|node| node.kind).collect();
        assert_eq!(kinds, [StepKind::Way, StepKind::Store]);
        assert_eq!((graph.length(end).trips(), graph.length(end).local), (0.5, 1));
        assert_eq!(graph.latest(|kind| kind == StepKind::Load), near);
    }
}
