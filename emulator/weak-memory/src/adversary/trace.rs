//! The interleaving of a run, for a reader.

use super::book::Book;
use super::history::{Access, Who};
use super::memory::{Memory, WordId};

/// Accesses that are kept, the last ones.
const KEPT: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Trace {
    on: bool,
    steps: Vec<Step>,
    next: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccessKind {
    Load,
    Store,
    Atomic,
    /// The value is the barrier's number.
    Barrier,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    now: u64,
    what: AccessKind,
    who: Who,
    word: WordId,
    mask: u16,
    strong: bool,
    value: u128,
    from: Option<Who>,
}

impl Trace {
    pub(super) fn new(on: bool) -> Self {
        Self { on, ..Self::default() }
    }

    #[inline]
    pub(super) fn add(
        &mut self,
        now: u64,
        what: AccessKind,
        access: &Access,
        word: WordId,
        value: u128,
        from: impl FnOnce() -> Option<Who>,
    ) {
        if self.on {
            let step = Step {
                now,
                what,
                who: access.who,
                word,
                mask: access.mask,
                strong: access.strong,
                value,
                from: from(),
            };
            self.push(step);
        }
    }

    /// A thread passes a barrier of its block.
    pub(super) fn pass(&mut self, now: u64, who: Who, barrier: u64) {
        if self.on {
            let (what, word) = (AccessKind::Barrier, WordId { allocation: u32::MAX, index: 0 });
            self.push(Step {
                now,
                what,
                who,
                word,
                mask: 0,
                strong: true,
                value: barrier.into(),
                from: None,
            });
        }
    }

    fn push(&mut self, step: Step) {
        match self.steps.len() < KEPT {
            true => self.steps.push(step),
            false => self.steps[self.next % KEPT] = step,
        }
        self.next += 1;
    }

    /// The accesses to `words`, and the strong ones and barriers of `threads`, one a line (everything if both are
    /// empty); repetitions are counted, and of more than `most` lines the last are shown.
    pub(super) fn tell(
        &self,
        book: &Book,
        memory: &Memory,
        threads: &[u32],
        words: &[WordId],
        most: usize,
    ) -> Vec<String> {
        let at = if self.steps.len() < KEPT { 0 } else { self.next % KEPT };
        let all = self.steps[at..].iter().chain(&self.steps[..at]);
        let mut lines: Vec<(Step, u32)> = Vec::new();
        for step in all {
            let concerned = words.is_empty() && threads.is_empty()
                || words.contains(&step.word)
                || step.strong && threads.contains(&step.who.event.0);
            if !concerned {
                continue;
            }
            // A wait reads a few words in turn.
            let recent = lines.len().saturating_sub(4 * threads.len().max(1));
            let same = |(known, _): &&mut (Step, u32)| {
                known.who.event.0 == step.who.event.0
                    && (known.who.pc, known.word, known.value) == (step.who.pc, step.word, step.value)
                    && known.who.launch == step.who.launch
                    && step.what == AccessKind::Load
            };
            match lines[recent..].iter_mut().rev().find(same) {
                Some((_, count)) => *count += 1,
                None => lines.push((*step, 1)),
            }
        }
        let mut out = Vec::new();
        if lines.len() > most {
            out.push(format!("... {} steps before", lines.len() - most));
        }
        for (step, count) in &lines[lines.len().saturating_sub(most)..] {
            let (now, name, place) = (step.now, book.name(&step.who), book.place(&step.who));
            let verb = match step.what {
                AccessKind::Load => "reads",
                AccessKind::Store => "writes",
                AccessKind::Atomic => "updates",
                AccessKind::Barrier => {
                    out.push(format!(
                        "{now:>9}  {name}: passes barrier {}\n             {place}",
                        step.value
                    ));
                    continue;
                }
            };
            let from = step.from.map_or(String::new(), |from| {
                format!(", written by {} at line {}", book.name(&from), book.line(&from).0)
            });
            let times = if *count > 1 { format!(" (x{count})") } else { String::new() };
            out.push(format!(
                "{now:>9}  {name}: {verb} {:#x} in {}{from}{times}\n             {place}",
                step.value,
                memory.describe(step.word, step.mask),
            ));
        }
        out
    }
}
