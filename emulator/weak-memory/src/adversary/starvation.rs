//! Nothing happens any more: who waits for what, and why it does not come.

use super::machine::Machine;
use super::report::{Finding, ReportKind};
use super::thread::{State, Thread};

/// Waiting threads that a report names.
const NAMED: usize = 6;

impl Machine {
    /// The report of threads that wait for what does not happen.
    pub(super) fn starved(&mut self) -> Box<Finding> {
        let waiting: Vec<usize> = (0..self.threads.len())
            .filter(|&at| self.threads[at].state == State::Runnable && !self.threads[at].polls.is_empty())
            .collect();
        let mut kind = ReportKind::Starvation;
        let mut causes = Vec::new();
        for (at, device) in self.devices.iter().enumerate() {
            if let Some(running) = &device.running
                && let Some(limit) = self.resident
                && running.blocks > limit
            {
                kind = ReportKind::ResidencyDeadlock;
                causes.push(format!(
                    "device {at} holds {limit} blocks of {} at once; its grid has {}, and those that run wait for those that cannot begin",
                    running.launch.kernel.name, running.blocks
                ));
            }
        }
        let over: Vec<String> = self
            .devices
            .iter()
            .enumerate()
            .filter(|(_, device)| device.running.is_none() && device.ended > 0)
            .map(|(at, device)| format!("device {at} ({} launches)", device.ended))
            .collect();
        if kind == ReportKind::Starvation && !over.is_empty() {
            kind = ReportKind::BarrierCount;
            causes.push(format!("these have ended all they had to do: {}", over.join(", ")));
        }
        let mut story = String::new();
        let mut words = Vec::new();
        for &at in waiting.iter().take(NAMED) {
            let thread = &self.threads[at];
            let block = &self.blocks[thread.block as usize];
            let mut polls = thread.polls.clone();
            polls.sort_by_key(|poll| (poll.word, poll.who.pc));
            polls.dedup_by_key(|poll| poll.word);
            let who = thread.who(thread.pc);
            story += &format!(
                "  {} waits, {} barriers of its block passed\n",
                self.model.book.name(&who),
                block.passed
            );
            for poll in polls {
                words.push(poll.word);
                let name = self.model.memory.describe(poll.word, poll.mask);
                let settled = self.model.memory.settled(poll.word);
                let cell = self.model.memory.cell(poll.word);
                let value = cell.writes.last().map_or(settled, |last| last.value);
                let from = cell.writes.last().map(|last| last.access.who);
                // Written at least twice since the thread's kernel began, by one and the same thread.
                let start = self.model.book.start_of(poll.who.launch);
                let new: Vec<_> = cell
                    .writes
                    .iter()
                    .filter(|write| {
                        let event = write.access.who.event;
                        !start.has(event) && event.0 != poll.who.event.0
                    })
                    .collect();
                let overwritten = new.len() >= 2
                    && new.iter().all(|write| write.access.who.event.0 == new[0].access.who.event.0);
                let from = from.map_or(String::from("never written"), |from| {
                    let book = &self.model.book;
                    format!("last written by {}, {}", book.name(&from), book.place(&from))
                });
                story += &format!(
                    "    reads {name} = {value:#x} ({from})\n    {}\n",
                    self.model.book.place(&poll.who)
                );
                if overwritten && kind != ReportKind::ResidencyDeadlock {
                    kind = ReportKind::EpochOverwritten;
                    let text = format!(
                        "{name} has been written {} times during the wait, and the last value does not end it",
                        new.len()
                    );
                    if !causes.contains(&text) {
                        causes.push(text);
                    }
                }
            }
        }
        if waiting.len() > NAMED {
            story += &format!("  and {} more threads\n", waiting.len() - NAMED);
        }
        let at_barrier = |thread: &&Thread| matches!(thread.state, State::AtBarrier(_));
        let parked = self.threads.iter().filter(at_barrier).count();
        if parked > 0 {
            story += &format!("  {parked} threads wait at barriers of their blocks for these\n");
        }
        let causes =
            if causes.is_empty() { "no thread can make progress".to_owned() } else { causes.join("; ") };
        let threads = waiting.iter().take(2).map(|&at| self.threads[at].number).collect();
        Box::new(Finding { kind, story: format!("{causes}\n{story}"), threads, words, pair: None })
    }
}
