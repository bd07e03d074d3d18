//! Mistakes that are made on purpose, so that tests can show that they would find them.
//!
//! Only the feature `mutants`, which no release has, gives a way to ask for one
//! ([`Config::mutant`](crate::gdr::Config::mutant)).
#![forbid(unsafe_code)]

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "mutants"), allow(unreachable_pub))] // what is public with the feature
pub enum Mutant {
    /// What a NIC has written is not made visible to the GPU.
    NoFlush,
    /// Credits of sends are not given back.
    CreditsKept,
    /// The first failed completion is taken for the cause, also one that was flushed.
    FlushIsTheCause,
    /// Messages are as long as this side takes them, whatever the other one takes.
    OwnLongestMessage,
    /// The sender is told that receives are posted before they are.
    AnswersBeforePosting,
}

#[cfg(feature = "mutants")]
impl crate::gdr::Config {
    /// Makes a mistake on purpose.
    #[must_use]
    pub fn mutant(mut self, mutant: Mutant) -> Self {
        self.mutant = Some(mutant);
        self
    }
}
