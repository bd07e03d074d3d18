//! The places of the protocol in an entry.

use anyhow::{Result, ensure};
use meshreduce_wire::{Algorithm, LaneContext};
use std::mem::offset_of;

use super::text::Entry;

/// Indices of lines, by role.
pub struct Roles {
    /// By phase.
    pub phases: Vec<Phase>,
    /// All block barriers, in order: of every phase the one before its signals and the one behind its waits.
    pub barriers: Vec<usize>,
    /// The read of the call number on entry.
    pub call_number: usize,
    /// The abort word's read on entry.
    pub entry_poll: usize,
    /// Copies of what it read, each before a decision whether to stage.
    pub stage_guards: Vec<usize>,
    /// The call number's parity, which chooses the half of staging.
    pub parity: usize,
    /// The distance of the staging halves, read from the context.
    pub half_distance: usize,
    /// The read of this rank's number.
    pub rank: usize,
    /// The read of the address of its own pad.
    pub own_pad: usize,
    /// The load of the address of a peer's pad, by the thread that stands for the peer.
    pub peer_pad: usize,
    /// Weak vector stores to staging, before the first barrier.
    pub staging_stores: Vec<usize>,
    /// Weak vector stores between the phases.
    pub result_stores: Vec<usize>,
    /// Weak vector loads of staging, behind the first wait.
    pub staging_loads: Vec<usize>,
    /// The count of exits.
    pub exits: usize,
    /// Its reset.
    pub exits_reset: usize,
    /// The store of the next call number.
    pub advance: usize,
}

/// The places of one phase.
pub struct Phase {
    /// What names of its mutants begin with.
    pub prefix: &'static str,
    /// The descriptor's store to the peer, where the phase has it.
    pub descriptor: Option<usize>,
    /// The signal.
    pub signal: usize,
    /// The two reads of the own slot: at first, and in the loop.
    pub looks: [usize; 2],
    /// The poll of the own abort word, in the loop.
    pub poll: usize,
    /// The poll of the host's.
    pub host_poll: usize,
    /// The read of the clock in the loop.
    pub clock: usize,
    /// The read of the peer's descriptor.
    pub descriptor_read: Option<usize>,
    /// The claim of the record.
    pub claim: usize,
    /// The load of the address of a pad that is to be told.
    pub told_pad: usize,
    /// The store of the abort word to it, or to the pad of another lane beside it.
    pub spread: usize,
    /// The record's first field, which is its abort word.
    pub record: usize,
    /// The record's last field, which is how long was waited.
    pub waited: usize,
    /// The record is marked valid.
    pub valid: usize,
}

impl Roles {
    /// Finds them all.
    ///
    /// # Errors
    /// If the text does not have the shape that is expected.
    pub fn of(entry: &Entry, algorithm: Algorithm) -> Result<Self> {
        let prefixes: &[&str] = match algorithm {
            Algorithm::OneShot => &[""],
            Algorithm::TwoShot => &["", "gather-"],
            _ => &["", "relay-"],
        };
        let count = prefixes.len();
        let signals = entry.some("st.release.sys.global.u64", count)?;
        let looks = entry.some("ld.acquire.sys.global.u64", 2 * count)?;
        let polls = entry.some("ld.relaxed.sys.global.u32", 1 + 2 * count)?;
        let clocks = entry.some("%globaltimer", 3 * count)?;
        let claims = entry.some("atom.acq_rel.sys.global.cas.b32", count)?;
        // Behind those that spread an abort comes the reset of the count of exits.
        let spreads = entry.some("st.relaxed.sys.global.u32", count + 1)?;
        let valids = entry.some("st.release.sys.global.u32", count)?;
        // Only in the first phase.
        let descriptor = entry.one("st.relaxed.sys.global.u64")?;
        let descriptor_read = entry.one("ld.relaxed.sys.global.u64")?;
        let mut phases = Vec::new();
        for (phase, prefix) in prefixes.iter().enumerate() {
            let (spread, valid) = (spreads[phase], valids[phase]);
            let (poll, host_poll) = (polls[1 + 2 * phase], polls[2 + 2 * phase]);
            entry.before(host_poll, &format!("+{}]", offset_of!(LaneContext, host_page)), 2)?;
            let end = signals.get(phase + 1).copied().unwrap_or(entry.lines.len());
            ensure!(
                [
                    looks[2 * phase],
                    clocks[3 * phase + 1],
                    claims[phase],
                    clocks[3 * phase + 2],
                    spread,
                    valid
                ]
                .is_sorted_by(|first, second| first < second)
                    && signals[phase] < looks[2 * phase]
                    && valid < end,
                "the order of phase {phase}"
            );
            phases.push(Phase {
                prefix,
                descriptor: (phase == 0).then_some(descriptor),
                signal: signals[phase],
                looks: [looks[2 * phase], looks[2 * phase + 1]],
                poll,
                host_poll,
                clock: clocks[3 * phase + 1],
                descriptor_read: (phase == 0).then_some(descriptor_read),
                claim: claims[phase],
                told_pad: entry.before(spread, "+0];", 6)?,
                spread,
                record: entry.next(spread, "st.global.u32", 20)?,
                waited: entry.before(valid, "st.global.u64", 4)?,
                valid,
            });
        }
        let barriers = entry.some("\tbar.", 2 * count)?;
        for (at, &barrier) in barriers.iter().enumerate() {
            // Only the barrier before a second phase's signals agrees on nothing.
            let shape = if at == 2 { "\tbar.sync " } else { "\tbar.red.or.pred " };
            ensure!(entry.lines[barrier].contains(shape), "barrier {at} is no {}", shape.trim());
        }
        let call_number = entry.all("ld.global.u64");
        ensure!(call_number.len() == 1, "the read of the call number");
        let exits = entry.one("atom.acq_rel.sys.global.add.u32")?;
        let rank = entry.all(&format!("+{}];", offset_of!(LaneContext, rank)));
        ensure!(rank.len() == 1, "the read of the rank");
        let own_pad = entry.one(&format!("+{}];", offset_of!(LaneContext, own_pad)))?;
        let half = entry.one(&format!("+{}];", offset_of!(LaneContext, staging_half_bytes)))?;
        let number = entry.operands(call_number[0])[0].to_owned();
        let stores = entry.all("st.global.v4.u32");
        let early = |at: &usize| *at < barriers[0];
        let peer_pads: Vec<usize> = entry
            .all("+0];")
            .into_iter()
            .filter(|at| early(at) && entry.lines[*at].contains("ld.global.nc.u64"))
            .collect();
        ensure!(peer_pads.len() == 1, "the address of the peer's pad");
        let abort = entry.operands(polls[0])[0].to_owned();
        let copied = |at: &usize| early(at) && entry.operands(*at)[1..] == [abort.as_str()];
        let stage_guards: Vec<usize> = entry.all("\tmov.b32").into_iter().filter(copied).collect();
        ensure!(!stage_guards.is_empty(), "the decision whether to stage");
        let (staging_stores, result_stores) = stores.into_iter().partition(early);
        Ok(Self {
            phases,
            call_number: call_number[0],
            entry_poll: polls[0],
            stage_guards,
            parity: entry
                .all("and.b64")
                .into_iter()
                .find(|&at| entry.operands(at)[1..] == [number.as_str(), "1"])
                .ok_or_else(|| anyhow::anyhow!("no parity of the call number"))?,
            half_distance: half,
            rank: rank[0],
            own_pad,
            peer_pad: peer_pads[0],
            staging_stores,
            result_stores,
            staging_loads: entry.all("ld.global.v4.u32").into_iter().filter(|at| !early(at)).collect(),
            exits,
            exits_reset: entry.next(exits, "st.relaxed.sys.global.u32", 10)?,
            advance: entry.next(exits, "st.global.u64", 10)?,
            barriers,
        })
    }
}
