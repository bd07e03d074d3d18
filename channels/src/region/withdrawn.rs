//! Regions that were given up, until their memory can be.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::channel::RegionPart;
use crate::progress::{Latch, unharmed};
use crate::span::Span;
use crate::transfer::Keep;

/// When it is logged that a peer does not let go.
const LATE: Duration = Duration::from_secs(5);

/// A region that was given up.
pub(crate) struct Withdrawn {
    span: Span,
    /// Whoever else holds one of them uses the memory.
    parts: Vec<Arc<dyn RegionPart>>,
    /// All parts are closed. Of one that has panicked instead, others may get hold at any time: the memory is never freed.
    is_closed: bool,
    memory: Option<Arc<dyn Keep>>,
    over: Arc<Latch>,
    since: Instant,
    is_late: bool,
}

impl Withdrawn {
    /// Closes the parts.
    pub(crate) fn new(
        span: Span,
        parts: Vec<Arc<dyn RegionPart>>,
        memory: Arc<dyn Keep>,
        over: Arc<Latch>,
    ) -> Self {
        let mut closed = 0;
        for part in &parts {
            unharmed("closing a kind's share of a region", || {
                part.close();
                closed += 1;
            });
        }
        let is_closed = closed == parts.len();
        Self { span, parts, is_closed, memory: Some(memory), over, since: Instant::now(), is_late: false }
    }

    /// Those who have the memory in their hands are to be told.
    pub(crate) fn parts(&self) -> &[Arc<dyn RegionPart>] {
        &self.parts
    }

    /// Lets go of the memory if nobody uses it any more; whether that is so.
    pub(crate) fn let_go(&mut self, now: Instant) -> bool {
        if !self.is_closed {
            self.leak("a kind of channel has panicked when it was to give it up");
            return true;
        }
        // Nobody gets hold of a part that is closed, so none that is this value's alone becomes another's again.
        if self.parts.iter().any(|part| Arc::strong_count(part) > 1) {
            if !self.is_late && now.duration_since(self.since) >= LATE {
                self.is_late = true;
                tracing::warn!(span = %self.span, "peers have not let go of a region that was given up: it stays allocated");
            }
            return false;
        }
        for part in std::mem::take(&mut self.parts) {
            let mut is_dropped = false;
            unharmed("dropping a kind's share of a region", || {
                drop(part);
                is_dropped = true;
            });
            self.is_closed &= is_dropped;
        }
        if !self.is_closed {
            // Whether the registration is over is not known.
            self.leak("a kind of channel has panicked while it let go");
            return true;
        }
        self.over.set();
        if let Some(memory) = self.memory.take() {
            memory.let_go();
        }
        true
    }

    /// Nobody looks at it any more, or can know when nothing uses the memory: it is never freed, and nobody waits for it.
    fn leak(&mut self, why: &str) {
        tracing::error!(span = %self.span, "a region is never freed: {why}");
        std::mem::forget(self.memory.take());
        std::mem::take(&mut self.parts).into_iter().for_each(std::mem::forget);
        self.over.give_up();
    }
}

impl Drop for Withdrawn {
    fn drop(&mut self) {
        if self.memory.is_none() || self.let_go(Instant::now()) {
            return;
        }
        self.leak("a peer did not let go of it before the context was closed");
    }
}

impl fmt::Debug for Withdrawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Withdrawn")
            .field("span", &self.span)
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::any::Any;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use meshreduce_device::Device;

    use super::*;
    use crate::channel::Descriptor;

    /// Panics when it is closed, or when it is dropped.
    #[derive(Debug)]
    struct Mad {
        when_closed: bool,
    }

    impl RegionPart for Mad {
        fn descriptor(&self) -> Descriptor {
            Vec::new()
        }

        fn close(&self) {
            assert!(!self.when_closed, "mad");
        }

        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    impl Drop for Mad {
        fn drop(&mut self) {
            assert!(self.when_closed, "mad");
        }
    }

    #[derive(Debug, Default)]
    struct Part(AtomicBool);

    impl RegionPart for Part {
        fn descriptor(&self) -> Descriptor {
            Vec::new()
        }

        fn close(&self) {
            self.0.store(true, Ordering::SeqCst);
        }

        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    #[derive(Default)]
    struct Freed(AtomicU32);

    impl Keep for Freed {
        fn let_go(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn withdrawn() -> (Arc<Part>, Arc<Freed>, Arc<Latch>, Withdrawn) {
        let (part, freed, over) = (Arc::<Part>::default(), Arc::<Freed>::default(), Arc::<Latch>::default());
        let span = Span { device: Device::Cpu, address: 0, bytes: 9 };
        let parts: Vec<Arc<dyn RegionPart>> = vec![part.clone()];
        (part, freed.clone(), over.clone(), Withdrawn::new(span, parts, freed, over))
    }

    #[test]
    fn memory_is_let_go_when_the_last_user_of_a_part_has_gone() {
        let (part, freed, over, mut withdrawn) = withdrawn();
        assert!(part.0.load(Ordering::SeqCst), "closed");
        assert!(!withdrawn.let_go(Instant::now()) && !over.wait(Duration::ZERO));
        drop(part);
        assert!(withdrawn.let_go(Instant::now()) && over.wait(Duration::ZERO));
        drop(withdrawn);
        assert_eq!(freed.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn memory_of_a_part_that_panics_is_leaked_and_its_caller_goes_on() {
        for when_closed in [true, false] {
            let (freed, over) = (Arc::<Freed>::default(), Arc::<Latch>::default());
            let span = Span { device: Device::Cpu, address: 0, bytes: 9 };
            let part = Arc::<Part>::default();
            let parts: Vec<Arc<dyn RegionPart>> = vec![Arc::new(Mad { when_closed }), part.clone()];
            let keep: Arc<dyn Keep> = freed.clone();
            let mut withdrawn = Withdrawn::new(span, parts, keep, over.clone());
            assert!(part.0.load(Ordering::SeqCst), "the others are closed all the same");
            drop(part);
            assert!(withdrawn.let_go(Instant::now()), "nothing is left to be looked at");
            drop(withdrawn);
            // Whoever waits for the memory waits no longer, however long he would.
            assert!(!over.wait(Duration::MAX) && over.is_given_up());
            assert_eq!(freed.0.load(Ordering::SeqCst), 0, "it may still be registered");
        }
    }

    #[test]
    fn memory_that_is_still_in_use_at_the_end_is_leaked() {
        let (part, freed, over, withdrawn) = withdrawn();
        drop(withdrawn);
        assert!(!over.wait(Duration::MAX) && over.is_given_up());
        assert_eq!((freed.0.load(Ordering::SeqCst), Arc::strong_count(&part)), (0, 2));
    }
}
