//! What must be there when calls that cannot end well have ended.

use std::mem::offset_of;

use meshreduce_wire::{AbortWord, ErrorRecord, LaunchDescriptor, RecordKind, counters, pad};

use super::memory::{LANES, Memory};
use super::parts::Parts;
use super::{COPY, GOOD, Stage, Trouble, Untouched, counts, lists, wrong};
use crate::adversary::RunFailure;

impl Stage<'_> {
    /// Checks what every rank tells its host, its peers and the other lane.
    ///
    /// # Errors
    /// What was found.
    pub(super) fn check(
        &self,
        memory: &Memory,
        parts: &Parts,
        copies: u64,
        outputs: &[Untouched],
    ) -> Result<(), RunFailure> {
        let trouble = parts.trouble.name();
        for lane in 0..LANES {
            let failing = lane == parts.failing;
            for rank in 0..self.ranks {
                let who = format!("rank {rank} in lane {lane} when {trouble}");
                let own = memory.pad(lane, rank);
                // Those that wait in the other lane forward the abort, also to ranks that no live one maps.
                let told = parts.absent.is_some()
                    || (0..self.ranks).any(|from| parts.live(from) && self.maps(from, rank));
                let abort = AbortWord::decode(memory.word(own + pad::ABORT) as u32);
                if told && abort.is_none_or(|abort| !self.is_told_by_its_origin(memory, parts, abort)) {
                    return Err(wrong(format!("{who}: the abort word is {abort:?}")));
                }
                // A call that fails behind its first barrier is counted, but none behind it.
                let kind = if self.algorithm.is_by_packets() {
                    counters::PACKET_CALLS
                } else {
                    counters::BARRIER_CALLS
                };
                let number = memory.word(memory.counters(lane, rank) + kind);
                let least = if failing && !self.queued { GOOD as u64 } else { 0 };
                // Launches of one tag are found late: elsewhere the call ends well, and the one behind it fails.
                let late = u64::from(self.is_found_late(parts.trouble));
                let most = if failing { GOOD as u64 + 1 + late } else { 1 };
                if !(least..=most).contains(&number) {
                    return Err(wrong(format!("{who}: {number} calls are counted")));
                }
                if if failing { parts.live(rank) } else { parts.waits(rank) } {
                    let row = copies + COPY * (u64::from(lane) * self.ranks as u64 + rank as u64);
                    let copy = (memory.word(row) as u32, LaunchDescriptor::decode(memory.word(row + 8)));
                    self.check_record(memory, parts, (lane, rank), copy, &who)?;
                    // Whoever has a record has told all lanes of its rank.
                    for lane in 0..LANES {
                        if memory.word(memory.counters(lane, rank) + counters::ABORT) as u32 == 0 {
                            return Err(wrong(format!("{who}: its own abort word of lane {lane} is 0")));
                        }
                    }
                } else if !failing && parts.absent.is_some() && !self.queued {
                    let waited = memory.field(lane, rank, offset_of!(ErrorRecord, waited_ns));
                    let valid = memory.field(lane, rank, offset_of!(ErrorRecord, valid)) as u32;
                    // It comes when its pad has the word, and finds that at its first look.
                    if valid != 1 || waited >= self.deadline() {
                        return Err(wrong(format!(
                            "{who}: there was nothing to wait for, but it was waited {waited} (valid {valid})"
                        )));
                    }
                }
            }
        }
        // Who launches another kind of call asks what the others do. Of a rank that has been told by its other lane this is
        // not certain.
        if parts.trouble == Trouble::OtherKind && parts.absent.is_none() {
            for rank in (0..self.ranks).filter(|&rank| parts.live(rank)) {
                let number = GOOD as u64;
                let expected = self.declared(parts, rank, counts(self.ranks, parts.seed)[GOOD]).encode();
                for reader in 0..self.ranks as u32 {
                    let place = memory.pad(parts.failing, rank) + pad::descriptor(number, reader);
                    let words = [memory.word(place), memory.word(place + 8)];
                    if pad::descriptor_of(words, number) != Some(expected) {
                        let text =
                            format!("rank {rank} does not tell {reader} what it launches when {trouble}");
                        return Err(wrong(text));
                    }
                }
            }
        }
        for &Untouched { lane, rank, call, address, bytes } in outputs {
            if memory.session.read(address, bytes as usize).iter().any(|&byte| byte != 0) {
                let text =
                    format!("rank {rank}, lane {lane}, call {call}: a result is written when {trouble}");
                return Err(wrong(text));
            }
        }
        Ok(())
    }

    /// A record that there must be; `copy` is what the host read of it: its abort word, and what was launched.
    fn check_record(
        &self,
        memory: &Memory,
        parts: &Parts,
        (lane, rank): (u32, usize),
        copy: (u32, Option<LaunchDescriptor>),
        who: &str,
    ) -> Result<(), RunFailure> {
        if memory.field(lane, rank, offset_of!(ErrorRecord, valid)) as u32 != 1 {
            return Err(wrong(format!("{who}: there is no record")));
        }
        let word = AbortWord::decode(copy.0);
        let Some(word) = word.filter(|&word| self.is_told_by_its_origin(memory, parts, word)) else {
            return Err(wrong(format!("{who}: the host reads {word:?}, {:?}", copy.1)));
        };
        if copy.1.is_none() && word.kind != RecordKind::TensorMismatch {
            return Err(wrong(format!("{who}: the host reads no launch")));
        }
        // Nobody has all data of the call that cannot end well, or has not been told that it is of launches that differ.
        let epoch = memory.field(lane, rank, offset_of!(ErrorRecord, epoch_wanted));
        if self.algorithm.is_by_packets() && lane == parts.failing && epoch > GOOD as u64 + 1 {
            return Err(wrong(format!("{who}: the call of epoch {epoch} failed")));
        }
        let found = word.origin as usize == rank && word.lane == lane;
        // In a call by barriers it is known how far the one was that is blamed.
        let compares = matches!(word.kind, RecordKind::LaunchMismatch | RecordKind::PeerTimeout);
        if found && compares && !self.algorithm.is_by_packets() {
            let field = |at: usize| memory.field(lane, rank, at);
            let peer = field(offset_of!(ErrorRecord, peer)) as u32;
            let wanted = GOOD as u64 + 1 + u64::from(self.is_found_late(parts.trouble));
            let seen = field(offset_of!(ErrorRecord, epoch_seen));
            let launched = LaunchDescriptor::decode(field(offset_of!(ErrorRecord, launched)));
            // Who has died behind the first phase has given its signals; other blocks than the first had no call before.
            let block = field(offset_of!(ErrorRecord, block)) as u32;
            let is_behind = word.kind == RecordKind::PeerTimeout && block == 0 && seen != GOOD as u64;
            if peer != word.culprit || !(GOOD as u64 + 1..=wanted).contains(&epoch) || is_behind {
                return Err(wrong(format!(
                    "{who}: it waited for rank {peer} with epoch {epoch} and saw {seen}, where rank {} is blamed ({launched:?})",
                    word.culprit
                )));
            }
        }
        if found && word.kind == RecordKind::TensorMismatch {
            self.check_lengths(memory, parts, (lane, rank), word.culprit, who)?;
        }
        if found && word.kind == RecordKind::LaunchMismatch {
            // What is told of a mismatch is exact.
            let launched = memory.field(lane, rank, offset_of!(ErrorRecord, peer_launched));
            let usual = counts(self.ranks, parts.seed)[GOOD];
            let expected = self.declared(parts, word.culprit as usize, usual).encode();
            if launched != expected {
                return Err(wrong(format!(
                    "{who}: the peer's launch is told as {launched:#x}, which is {expected:#x}"
                )));
            }
        }
        if found && word.kind == RecordKind::PeerTimeout {
            let phase = memory.field(lane, rank, offset_of!(ErrorRecord, phase)) as u32;
            let block = memory.field(lane, rank, offset_of!(ErrorRecord, block)) as u32;
            let margins = match (self.algorithm.is_by_packets(), phase) {
                // Block 0 waits for headers, all others for data.
                (true, phase) => 2 * u64::from(phase) + u64::from(block != 0),
                (false, 1) => 2,
                (false, _) => u64::from(block != 0),
            };
            let patience = self.patience(margins);
            let waited = memory.field(lane, rank, offset_of!(ErrorRecord, waited_ns));
            // Where threads take turns, none comes much too late to see that the time is over.
            let slack = if self.algorithm.is_by_packets() { patience } else { patience / 4 };
            if waited < patience || parts.prompt && waited >= patience + slack {
                return Err(wrong(format!(
                    "{who}: it was waited {waited} in phase {phase}, where the deadline is {patience}"
                )));
            }
        }
        Ok(())
    }

    /// What a rank has recorded of a tensor whose length differs is exact.
    fn check_lengths(
        &self,
        memory: &Memory,
        parts: &Parts,
        (lane, rank): (u32, usize),
        culprit: u32,
        who: &str,
    ) -> Result<(), RunFailure> {
        let field = |at: usize| memory.field(lane, rank, at);
        let tensor = field(offset_of!(ErrorRecord, phase)) as u32;
        let usual = counts(self.ranks, parts.seed)[GOOD];
        let of = |rank: usize| {
            let list = lists::declared(parts, rank, usual);
            let at = tensor.checked_sub(lists::place(parts.seed)).map(|at| at as usize);
            at.map(|at| list.get(at).copied().unwrap_or(0))
        };
        let (own, theirs) = (of(rank), of(culprit as usize));
        let told = (
            field(offset_of!(ErrorRecord, peer)) as u32,
            Some(field(offset_of!(ErrorRecord, launched)) as u32),
            Some(field(offset_of!(ErrorRecord, peer_launched)) as u32),
        );
        if told != (culprit, own, theirs) || own == theirs {
            return Err(wrong(format!(
                "{who}: of tensor {tensor} it tells {told:?}, where rank {culprit} is blamed for {theirs:?} in place of {own:?}"
            )));
        }
        Ok(())
    }

    /// Whether a word names the failing lane, blames whom it may, and is what its origin has recorded there.
    fn is_told_by_its_origin(&self, memory: &Memory, parts: &Parts, word: AbortWord) -> bool {
        let told = parts.trouble == Trouble::Relayed || {
            let abort = memory.field(word.lane, word.origin as usize, offset_of!(ErrorRecord, abort));
            abort as u32 == word.encode()
        };
        // Of lists of other numbers of tensors, who looks at these lengths first finds that one has none.
        let kind = match word.kind {
            RecordKind::TensorMismatch if self.algorithm.is_of_lists() => {
                matches!(parts.trouble, Trouble::Mismatch | Trouble::Collision | Trouble::Lengths)
            }
            kind => kind == parts.trouble.kind(),
        };
        word.lane == parts.failing && kind && parts.deserves(word) && told
    }
}
