//! Binary relations over at most 128 events.

/// A relation; `rows[a]` has bit b set when a is related to b.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Relation {
    rows: Vec<u128>,
}

/// The most events that a relation can be over.
pub(super) const MAX_EVENTS: usize = 128;

impl Relation {
    /// The empty relation over `events` events.
    ///
    /// # Panics
    ///
    /// If there are more than [`MAX_EVENTS`]; the parser of tests keeps them below.
    pub(super) fn new(events: usize) -> Self {
        assert!(events <= MAX_EVENTS, "{events} events");
        Self { rows: vec![0; events] }
    }

    pub(super) fn add(&mut self, a: usize, b: usize) {
        self.rows[a] |= 1 << b;
    }

    pub(super) fn has(&self, a: usize, b: usize) -> bool {
        self.rows[a] >> b & 1 == 1
    }

    /// Makes it transitive (Warshall).
    pub(super) fn close(&mut self) {
        for middle in 0..self.rows.len() {
            let onwards = self.rows[middle];
            for row in &mut self.rows {
                if *row >> middle & 1 == 1 {
                    *row |= onwards;
                }
            }
        }
    }

    /// Whether following it never leads back to where one began.
    pub(super) fn acyclic(mut self) -> bool {
        self.close();
        (0..self.rows.len()).all(|event| !self.has(event, event))
    }
}

/// Calls `visit` with every order of `items`.
pub(super) fn permutations<T: Copy>(items: &[T], visit: &mut impl FnMut(&[T])) {
    fn place<T: Copy>(items: &mut [T], fixed: usize, visit: &mut impl FnMut(&[T])) {
        if fixed + 1 >= items.len() {
            return visit(items);
        }
        for other in fixed..items.len() {
            items.swap(fixed, other);
            place(items, fixed + 1, visit);
            items.swap(fixed, other);
        }
    }
    place(&mut items.to_vec(), 0, visit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closure_follows_chains_and_cycles_are_found() {
        let mut chain = Relation::new(4);
        chain.add(0, 1);
        chain.add(1, 2);
        chain.add(2, 3);
        let mut closed = chain.clone();
        closed.close();
        assert!(closed.has(0, 3) && !closed.has(3, 0));
        assert!(chain.clone().acyclic());
        chain.add(3, 1);
        assert!(!chain.acyclic());
    }

    #[test]
    fn permutations_are_all_and_distinct() {
        let mut seen = std::collections::BTreeSet::new();
        permutations(&[1, 2, 3, 4], &mut |order| assert!(seen.insert(order.to_vec())));
        assert_eq!(seen.len(), 24);
        let mut calls = 0;
        permutations::<u8>(&[], &mut |_| calls += 1);
        assert_eq!(calls, 1);
    }
}
