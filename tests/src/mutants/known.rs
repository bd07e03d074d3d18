//! Mutants that cannot or do not die, by name, with the reason.

/// Why a mutant survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is as right as the original.
    Equivalent,
    /// It is wrong, and the executor cannot tell.
    Beyond,
}

/// A mutant that is expected to survive.
pub struct Known {
    /// The name behind the algorithm, or the whole of it.
    pub name: &'static str,
    /// The only number of ranks for which it is meant, if there is one.
    pub ranks: Option<usize>,
    /// Why.
    pub why: Why,
    /// The reason.
    pub reason: &'static str,
}

impl Known {
    /// The entry for a mutant, if it is listed.
    pub fn of(name: &str, ranks: usize) -> Option<&'static Self> {
        let short = name.split_once('/').map_or(name, |(_, short)| short);
        KNOWN.iter().find(|known| {
            [name, short].contains(&known.name) && known.ranks.is_none_or(|only| only == ranks)
        })
    }
}

const fn equivalent(name: &'static str, reason: &'static str) -> Known {
    Known { name, ranks: None, why: Why::Equivalent, reason }
}

static KNOWN: &[Known] = &[
    equivalent("unchanged", "the shipped text"),
];
