//! What the sides of a process show each other: memory, and how far the other side is with it.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::channel::Ready;
use crate::span::Span;

/// Memory that is to be read by the other side, as long as it is not taken back.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) span: Span,
    pub(super) ready: Ready,
    phase: AtomicU8,
}

/// How far the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has not begun.
    Shown,
    /// It reads.
    Taken,
    /// It has read everything, or reads no more.
    Done,
    /// It must not begin any more, or has given up.
    Withdrawn,
    /// It has gone, and whether something still reads is not known.
    Lost,
}

impl Phase {
    const ALL: [Phase; 5] = [Phase::Shown, Phase::Taken, Phase::Done, Phase::Withdrawn, Phase::Lost];
}

impl Shown {
    pub(super) fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    fn change(&self, from: Phase, to: Phase) -> bool {
        self.phase.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// For whoever shows it: takes it back; whether that was in time.
    pub(super) fn withdraw(&self) -> bool {
        self.change(Phase::Shown, Phase::Withdrawn)
    }

    /// For the reader: begins to read; `None`: it was taken back.
    pub(super) fn take(self: Arc<Self>) -> Option<Taken> {
        self.change(Phase::Shown, Phase::Taken).then_some(Taken(self))
    }
}

/// Memory that is being read. Dropped without [`Taken::done`], it is lost for whoever has shown it.
#[derive(Debug)]
pub(super) struct Taken(Arc<Shown>);

impl Taken {
    pub(super) fn span(&self) -> Span {
        self.0.span
    }

    pub(super) fn ready(&self) -> &Ready {
        &self.0.ready
    }

    /// Nothing reads it any more.
    pub(super) fn done(self) {
        self.0.change(Phase::Taken, Phase::Done);
    }

    /// Nothing has read all of it, or will.
    pub(super) fn give_up(self) {
        self.0.change(Phase::Taken, Phase::Withdrawn);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.change(Phase::Taken, Phase::Lost);
    }
}

static SHOWN: LazyLock<Mutex<HashMap<u64, Arc<Shown>>>> = LazyLock::new(Mutex::default);

fn all() -> MutexGuard<'static, HashMap<u64, Arc<Shown>>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What nobody can guess: who knows the token of a send was told it. (A process that only says that it is this one gets as far as a
/// channel, and must not be able to name what is shown to others.)
fn token() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEY.hash_one(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Something that is shown, until dropped.
#[derive(Debug)]
pub(super) struct Shower {
    token: u64,
    shown: Arc<Shown>,
}

impl Shower {
    pub(super) fn new(span: Span, ready: Ready) -> Self {
        let shown = Arc::new(Shown { span, ready, phase: AtomicU8::new(Phase::Shown as u8) });
        let mut all = all();
        loop {
            let token = token();
            if let Entry::Vacant(free) = all.entry(token) {
                free.insert(Arc::clone(&shown));
                return Self { token, shown };
            }
        }
    }

    /// What the other side finds it by.
    pub(super) fn token(&self) -> u64 {
        self.token
    }

    pub(super) fn shown(&self) -> &Shown {
        &self.shown
    }
}

impl Drop for Shower {
    fn drop(&mut self) {
        all().remove(&self.token);
    }
}

/// What is shown under a token.
pub(super) fn find(token: u64) -> Option<Arc<Shown>> {
    all().get(&token).cloned()
}

#[cfg(test)]
mod tests {
    use meshreduce_device::Device;

    use super::*;

    fn show() -> Shower {
        Shower::new(Span { device: Device::Cpu, address: 1, bytes: 2 }, Ready::Now)
    }

    #[test]
    fn what_is_taken_cannot_be_withdrawn_and_the_other_way_round() {
        let shower = show();
        let taken = find(shower.token()).unwrap().take().unwrap();
        assert!(!shower.shown().withdraw());
        assert_eq!(shower.shown().phase(), Phase::Taken);
        taken.done();
        assert_eq!(shower.shown().phase(), Phase::Done);
        let shower = show();
        find(shower.token()).unwrap().take().unwrap().give_up();
        assert_eq!(shower.shown().phase(), Phase::Withdrawn);
        let shower = show();
        let found = find(shower.token()).unwrap();
        assert!(shower.shown().withdraw());
        assert!(found.take().is_none());
    }

    #[test]
    fn a_reader_that_goes_without_a_word_loses_it() {
        let shower = show();
        drop(find(shower.token()).unwrap().take());
        assert_eq!(shower.shown().phase(), Phase::Lost);
    }

    #[test]
    fn tokens_do_not_tell_those_of_others() {
        let showers: Vec<_> = (0..100).map(|_| show()).collect();
        let near = |one: &Shower, other: &Shower| one.token().abs_diff(other.token()) < 1 << 20;
        assert!(showers.windows(2).all(|pair| !near(&pair[0], &pair[1])));
    }

    #[test]
    fn what_is_shown_no_more_is_not_found() {
        let shower = show();
        let token = shower.token();
        drop(shower);
        assert!(find(token).is_none());
    }
}
