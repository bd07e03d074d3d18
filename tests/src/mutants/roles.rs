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
    /// The load of the address of a peer's pad, by the thread that stands for the peer.
    pub peer_pads: Vec<usize>,
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
    /// The store of the abort word to the own pad.
    pub own_abort: usize,
    /// ... to those of the others.
    pub peer_abort: usize,
    /// The record's first field, which is its abort word.
    pub record: usize,
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
        let clocks = entry.some("%globaltimer", 2 * count)?;
        let claims = entry.some("atom.acq_rel.sys.global.cas.b32", count)?;
        let aborts = entry.some("st.release.sys.global.u32", 3 * count)?;
        let descriptors = entry.all("st.relaxed.sys.global.u64");
        let descriptor_reads = entry.all("ld.relaxed.sys.global.u64");
        ensure!(descriptors.len() == descriptor_reads.len(), "descriptors written and read");
        ensure!(
            descriptors.len() == if algorithm == Algorithm::HybridCubeMesh { 2 } else { 1 },
            "descriptors"
        );
        let mut phases = Vec::new();
        for (phase, prefix) in prefixes.iter().enumerate() {
            let [own_abort, peer_abort, valid] = [0, 1, 2].map(|at| aborts[3 * phase + at]);
            let (poll, host_poll) = (polls[1 + 2 * phase], polls[2 + 2 * phase]);
            entry.before(host_poll, &format!("+{}]", offset_of!(LaneContext, host_page)), 2)?;
            let end = signals.get(phase + 1).copied().unwrap_or(entry.lines.len());
            ensure!(
                [looks[2 * phase], poll, claims[phase], own_abort, valid]
                    .is_sorted_by(|first, second| first < second)
                    && signals[phase] < looks[2 * phase]
                    && valid < end,
                "the order of phase {phase}"
            );
            phases.push(Phase {
                prefix,
                descriptor: descriptors.get(phase).copied(),
                signal: signals[phase],
                looks: [looks[2 * phase], looks[2 * phase + 1]],
                poll,
                host_poll,
                clock: clocks[2 * phase + 1],
                descriptor_read: descriptor_reads.get(phase).copied(),
                claim: claims[phase],
                own_abort,
                peer_abort,
                record: entry.next(peer_abort, "st.global.u32", 12)?,
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
        let half = entry.one(&format!("+{}];", offset_of!(LaneContext, staging_half_bytes)))?;
        let number = entry.operands(call_number[0])[0].to_owned();
        let stores = entry.all("st.global.v4.u32");
        let early = |at: &usize| *at < barriers[0];
        let peer_pads: Vec<usize> = entry
            .all("+0];")
            .into_iter()
            .filter(|at| early(at) && entry.lines[*at].contains("ld.global.nc.u64"))
            .collect();
        ensure!(!peer_pads.is_empty(), "the address of the peer's pad");
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
            peer_pads,
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
