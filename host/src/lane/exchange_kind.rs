//! What an exchange between lists is to those who call it.
#![forbid(unsafe_code)]

use std::fmt;

use meshreduce_wire::{Collective, LaunchDescriptor};

/// What an exchange between lists is to those who call it. All three are launched as an all-to-all of which each rank knows its own
/// slices alone; ranks tell one another which it is to them where other collectives tell their root, so that one's gather never ends
/// well with another's scatter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum ExchangeKind {
    /// Every rank has slices for all, also where all are equally long.
    AllToAll = 0,
    /// Every rank has one slice, for the root.
    Gather = 1,
    /// The root has a slice for each.
    Scatter = 2,
}

/// Where a descriptor's word tells it.
const SHIFT: u32 = 60;

impl ExchangeKind {
    const ALL: [Self; 3] = [Self::AllToAll, Self::Gather, Self::Scatter];

    /// What a launch is, if it is an exchange.
    pub fn of(launch: &LaunchDescriptor) -> Option<Self> {
        let is_exchange = launch.collective == Collective::AllToAll;
        Self::ALL.into_iter().find(|kind| is_exchange && *kind as u32 == launch.root)
    }

    /// The name that people read.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllToAll => "all-to-all",
            Self::Gather => "gather",
            Self::Scatter => "scatter",
        }
    }
}

impl fmt::Display for ExchangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads a word of a launch back, that of a gather or a scatter too; `None` if no launch encodes to it.
pub(crate) fn decode(word: u64) -> Option<LaunchDescriptor> {
    let of_exchange = || {
        let launch = LaunchDescriptor::decode(word & !(u64::MAX << SHIFT))?;
        let launch = LaunchDescriptor { root: (word >> SHIFT) as u32, ..launch };
        ExchangeKind::of(&launch).map(|_| launch)
    };
    LaunchDescriptor::decode(word).or_else(of_exchange)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshreduce_wire::{Algorithm, Element, ElementSize};

    #[test]
    fn kinds_of_exchanges_have_words_and_tags_of_their_own_that_can_be_read_back() {
        let launch = |root| LaunchDescriptor {
            collective: Collective::AllToAll,
            algorithm: Algorithm::Exchange,
            element: Element::Sized(ElementSize::ONE),
            op: None,
            root,
            count: 4,
        };
        let mut tags = std::collections::BTreeSet::new();
        for kind in ExchangeKind::ALL {
            let launch = launch(kind as u32);
            assert!(tags.insert(launch.tag()), "{kind}");
            assert_eq!(decode(launch.encode()), Some(launch));
            assert_eq!(ExchangeKind::of(&launch), Some(kind));
        }
        assert_eq!(decode(launch(3).encode()), None, "there is no fourth");
        let gather = LaunchDescriptor { collective: Collective::AllGather, ..launch(1) };
        assert_eq!((decode(gather.encode()), ExchangeKind::of(&gather)), (None, None), "it has no kind");
    }
}
