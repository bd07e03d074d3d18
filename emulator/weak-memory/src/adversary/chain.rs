//! Writes that are observed together, through atomics: whoever reads what an atomic wrote observes what the atomic read, too.
//!
//! Chains share what they have in common, so that one more atomic costs the same whether it is the second or the
//! thousandth, and who has observed one chain looks only at what another has before it.

use std::rc::Rc;

use super::view::Event;

/// The writes that are observed with one, the latest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain(Option<Rc<Link>>);

#[derive(Debug)]
struct Link {
    event: Event,
    before: Chain,
}

impl Chain {
    /// A write, and what is observed with it.
    pub(super) fn of(event: Event, before: &Chain) -> Self {
        Self(Some(Rc::new(Link { event, before: before.clone() })))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// All of them, as far as they are not `known`, which is a chain that was observed before.
    pub(super) fn beyond<'a>(&'a self, known: &'a Chain) -> impl Iterator<Item = Event> + 'a {
        let is_known = |link: &&Rc<Link>| known.0.as_ref().is_some_and(|known| Rc::ptr_eq(known, link));
        let links = std::iter::successors(self.0.as_ref(), |link| link.before.0.as_ref());
        links.take_while(move |link| !is_known(link)).map(|link| link.event)
    }

    pub(super) fn contains(&self, event: Event) -> bool {
        self.beyond(&Chain::default()).any(|other| other == event)
    }
}

impl Drop for Link {
    /// One link after the other: a chain may be longer than the stack is deep.
    fn drop(&mut self) {
        let mut next = self.before.0.take();
        while let Some(mut link) = next.and_then(Rc::into_inner) {
            next = link.before.0.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_observed_before_is_not_looked_at_again() {
        let first = Chain::of((1, 1), &Chain::default());
        let known = Chain::of((2, 4), &first);
        let chain = Chain::of((3, 2), &Chain::of((1, 5), &known));
        assert_eq!(chain.beyond(&known).collect::<Vec<_>>(), [(3, 2), (1, 5)]);
        assert_eq!(chain.beyond(&chain).count(), 0);
        assert_eq!(chain.beyond(&Chain::default()).collect::<Vec<_>>(), [(3, 2), (1, 5), (2, 4), (1, 1)]);
        // Equal, but of others.
        assert_eq!(chain.beyond(&Chain::of((2, 4), &first)).count(), 4);
        assert!(chain.contains((1, 1)) && !chain.contains((1, 2)));
    }

    #[test]
    fn a_long_chain_ends_without_a_deep_stack() {
        let long = (0..200_000).fold(Chain::default(), |chain, at| Chain::of((0, at), &chain));
        assert!(long.contains((0, 0)));
    }
}
