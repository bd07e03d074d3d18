//! How a rendezvous ended, as it stands in the store for all ranks.
#![forbid(unsafe_code)]

use std::time::Duration;

use meshreduce_device::ComputeCapability;
use meshreduce_store::codec::{Malformed, Payload, Reader, Writer};
use meshreduce_store::identity::Member;
use meshreduce_wire::Algorithm;

use crate::error::Error;
use crate::outcome::{DisabledBy, NotApplicableReason};
use crate::topology::Topology;

/// The steps in which ranks wait for one another, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Step {
    First = 1,
    Second = 2,
    /// Nothing is put into the store in it.
    Connecting = 3,
    Acknowledgement = 4,
}

impl Step {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Step::First => "first exchange",
            Step::Second => "second exchange",
            Step::Acknowledgement => "acknowledgement",
            Step::Connecting => "connecting of the ranks",
        }
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let code = from.u8()?;
        [Step::First, Step::Second, Step::Connecting, Step::Acknowledgement]
            .into_iter()
            .find(|step| *step as u8 == code)
            .ok_or_else(|| Malformed::wrong(format!("{code} is no step")))
    }
}

/// The end of a rendezvous, equal for all ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ready,
    NotApplicable(NotApplicableReason),
    Failed(RendezvousFailure),
}

/// What is broken, as far as other ranks need to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RendezvousFailure {
    Missing {
        ranks: Vec<usize>,
        step: Step,
        waited: Duration,
    },
    Died {
        rank: usize,
        pid: u32,
        step: Step,
    },
    /// Two processes came for one rank, and whether the first one still lives cannot be told.
    Taken {
        rank: usize,
        holder: Box<Member>,
        newcomer: Box<Member>,
    },
    Rank {
        rank: usize,
        message: String,
    },
    Corrupt {
        key: String,
        rank: usize,
        problem: String,
    },
    Different {
        field: String,
        ranks: (usize, usize),
        values: (String, String),
    },
    DeviceTwice {
        ranks: (usize, usize),
        device: String,
    },
    /// All ranks see the same topology, so what is not possible on one is not possible on any.
    NotPossible {
        algorithm: Algorithm,
        why: String,
    },
}

impl RendezvousFailure {
    /// What `rank` tells the others of its own error.
    pub(crate) fn of(rank: usize, error: &Error) -> Self {
        match error {
            Error::AlgorithmNotPossible { algorithm, why } => {
                RendezvousFailure::NotPossible { algorithm: *algorithm, why: why.clone() }
            }
            error => RendezvousFailure::Rank { rank, message: error.to_string() },
        }
    }

    /// Whether `rank` will not acknowledge.
    fn has_lost(&self, rank: usize) -> bool {
        match self {
            RendezvousFailure::Missing { ranks, .. } => ranks.contains(&rank),
            RendezvousFailure::Died { rank: lost, .. } | RendezvousFailure::Taken { rank: lost, .. } => {
                *lost == rank
            }
            _ => false,
        }
    }
}

impl Verdict {
    /// Whether `rank` will acknowledge the verdict.
    pub(crate) fn awaits(&self, rank: usize) -> bool {
        !matches!(self, Verdict::Failed(failure) if failure.has_lost(rank))
    }
}

impl From<RendezvousFailure> for Error {
    fn from(failure: RendezvousFailure) -> Self {
        match failure {
            RendezvousFailure::Missing { ranks, step, waited } => {
                Error::RanksMissing { ranks, step: step.name(), waited }
            }
            RendezvousFailure::Died { rank, pid, step } => Error::RankDied { rank, pid, step: step.name() },
            RendezvousFailure::Taken { rank, holder, newcomer } => {
                Error::RankTaken { rank, holder, newcomer }
            }
            RendezvousFailure::Rank { rank, message } => Error::RankFailed { rank, message },
            RendezvousFailure::Corrupt { key, rank, problem } => Error::CorruptPayload { key, rank, problem },
            RendezvousFailure::Different { field, ranks, values } => {
                Error::ConfiguredDifferently { field, ranks, values }
            }
            RendezvousFailure::DeviceTwice { ranks, device } => Error::DeviceUsedTwice { ranks, device },
            RendezvousFailure::NotPossible { algorithm, why } => {
                Error::AlgorithmNotPossible { algorithm, why }
            }
        }
    }
}

fn write_pair(out: &mut Writer, ranks: (usize, usize)) {
    out.rank(ranks.0);
    out.rank(ranks.1);
}

fn read_pair(from: &mut Reader<'_>) -> Result<(usize, usize), Malformed> {
    Ok((from.rank()?, from.rank()?))
}

impl Payload for Verdict {
    const KIND: u8 = 5;

    fn write(&self, out: &mut Writer) {
        match self {
            Verdict::Ready => out.u8(0),
            Verdict::NotApplicable(reason) => write_reason(reason, out),
            Verdict::Failed(failure) => write_failure(failure, out),
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        match from.u8()? {
            0 => Ok(Verdict::Ready),
            code @ 1..32 => read_reason(code, from).map(Verdict::NotApplicable),
            code => read_failure(code, from).map(Verdict::Failed),
        }
    }
}

fn write_reason(reason: &NotApplicableReason, out: &mut Writer) {
    match reason {
        NotApplicableReason::Disabled { rank, by } => {
            out.u8(1);
            out.rank(*rank);
            write_disabled_by(by, out);
        }
        NotApplicableReason::WorldSize(size) => {
            out.u8(2);
            out.rank(*size);
        }
        NotApplicableReason::SeveralHosts { ranks, hosts } => {
            out.u8(3);
            write_pair(out, *ranks);
            out.text(&hosts.0);
            out.text(&hosts.1);
        }
        NotApplicableReason::UnknownTopology { ranks } => {
            out.u8(4);
            write_pair(out, *ranks);
        }
        NotApplicableReason::TopologiesDiffer { ranks, difference } => {
            out.u8(5);
            write_pair(out, *ranks);
            out.text(difference);
        }
        NotApplicableReason::NoPeerAccess { ranks } => {
            out.u8(6);
            write_pair(out, *ranks);
        }
        NotApplicableReason::NoAlgorithm { topology } => {
            out.u8(7);
            out.u8(*topology as u8);
        }
        NotApplicableReason::NoDriver { rank, message } => {
            out.u8(8);
            out.rank(*rank);
            out.text(message);
        }
        NotApplicableReason::NetworkNamespaces { ranks } => {
            out.u8(9);
            write_pair(out, *ranks);
        }
        NotApplicableReason::DeviceTooOld { rank, found, needed } => {
            out.u8(10);
            out.rank(*rank);
            write_capability(*found, out);
            write_capability(*needed, out);
        }
        NotApplicableReason::LinksHidden { ranks, links } => {
            out.u8(11);
            write_pair(out, *ranks);
            out.u32(links.0);
            out.u32(links.1);
        }
        NotApplicableReason::DeviceFull { rank, message } => {
            out.u8(12);
            out.rank(*rank);
            out.text(message);
        }
    }
}

fn read_reason(code: u8, from: &mut Reader<'_>) -> Result<NotApplicableReason, Malformed> {
    Ok(match code {
        1 => NotApplicableReason::Disabled { rank: from.rank()?, by: read_disabled_by(from)? },
        2 => NotApplicableReason::WorldSize(from.rank()?),
        3 => {
            NotApplicableReason::SeveralHosts { ranks: read_pair(from)?, hosts: (from.text()?, from.text()?) }
        }
        4 => NotApplicableReason::UnknownTopology { ranks: read_pair(from)? },
        5 => NotApplicableReason::TopologiesDiffer { ranks: read_pair(from)?, difference: from.text()? },
        6 => NotApplicableReason::NoPeerAccess { ranks: read_pair(from)? },
        7 => NotApplicableReason::NoAlgorithm { topology: read_topology(from)? },
        8 => NotApplicableReason::NoDriver { rank: from.rank()?, message: from.text()? },
        9 => NotApplicableReason::NetworkNamespaces { ranks: read_pair(from)? },
        10 => NotApplicableReason::DeviceTooOld {
            rank: from.rank()?,
            found: read_capability(from)?,
            needed: read_capability(from)?,
        },
        11 => NotApplicableReason::LinksHidden { ranks: read_pair(from)?, links: (from.u32()?, from.u32()?) },
        12 => NotApplicableReason::DeviceFull { rank: from.rank()?, message: from.text()? },
        _ => return Err(Malformed::wrong(format!("{code} is no reason"))),
    })
}

fn write_disabled_by(by: &DisabledBy, out: &mut Writer) {
    match by {
        DisabledBy::Program => out.u8(0),
        DisabledBy::Variable { name, value } => {
            out.u8(if value.is_some() { 2 } else { 1 });
            out.text(name);
            value.iter().for_each(|value| out.text(value));
        }
    }
}

fn read_disabled_by(from: &mut Reader<'_>) -> Result<DisabledBy, Malformed> {
    Ok(match from.u8()? {
        0 => DisabledBy::Program,
        1 => DisabledBy::Variable { name: from.text()?, value: None },
        2 => DisabledBy::Variable { name: from.text()?, value: Some(from.text()?) },
        code => return Err(Malformed::wrong(format!("{code} is nothing that disables a rank"))),
    })
}

pub(super) fn read_topology(from: &mut Reader<'_>) -> Result<Topology, Malformed> {
    let code = from.u8()?;
    Topology::from_repr(code).ok_or_else(|| Malformed::wrong(format!("{code} is no topology")))
}

pub(super) fn write_capability(capability: ComputeCapability, out: &mut Writer) {
    out.u32(capability.major);
    out.u32(capability.minor);
}

pub(super) fn read_capability(from: &mut Reader<'_>) -> Result<ComputeCapability, Malformed> {
    Ok(ComputeCapability { major: from.u32()?, minor: from.u32()? })
}

fn write_failure(failure: &RendezvousFailure, out: &mut Writer) {
    match failure {
        RendezvousFailure::Missing { ranks, step, waited } => {
            out.u8(32);
            out.list(ranks, |out, rank| out.rank(*rank));
            out.u8(*step as u8);
            out.u64(waited.as_millis() as u64);
        }
        RendezvousFailure::Died { rank, pid, step } => {
            out.u8(33);
            out.rank(*rank);
            out.u32(*pid);
            out.u8(*step as u8);
        }
        RendezvousFailure::Rank { rank, message } => {
            out.u8(34);
            out.rank(*rank);
            out.text(message);
        }
        RendezvousFailure::Taken { rank, holder, newcomer } => {
            out.u8(39);
            out.rank(*rank);
            holder.write(out);
            newcomer.write(out);
        }
        RendezvousFailure::Corrupt { key, rank, problem } => {
            out.u8(35);
            out.text(key);
            out.rank(*rank);
            out.text(problem);
        }
        RendezvousFailure::Different { field, ranks, values } => {
            out.u8(36);
            out.text(field);
            write_pair(out, *ranks);
            out.text(&values.0);
            out.text(&values.1);
        }
        RendezvousFailure::DeviceTwice { ranks, device } => {
            out.u8(37);
            write_pair(out, *ranks);
            out.text(device);
        }
        RendezvousFailure::NotPossible { algorithm, why } => {
            out.u8(38);
            out.u8(*algorithm as u8);
            out.text(why);
        }
    }
}

fn read_failure(code: u8, from: &mut Reader<'_>) -> Result<RendezvousFailure, Malformed> {
    Ok(match code {
        32 => RendezvousFailure::Missing {
            ranks: from.list(Reader::rank)?,
            step: Step::read(from)?,
            waited: Duration::from_millis(from.u64()?),
        },
        33 => RendezvousFailure::Died { rank: from.rank()?, pid: from.u32()?, step: Step::read(from)? },
        34 => RendezvousFailure::Rank { rank: from.rank()?, message: from.text()? },
        35 => RendezvousFailure::Corrupt { key: from.text()?, rank: from.rank()?, problem: from.text()? },
        36 => RendezvousFailure::Different {
            field: from.text()?,
            ranks: read_pair(from)?,
            values: (from.text()?, from.text()?),
        },
        37 => RendezvousFailure::DeviceTwice { ranks: read_pair(from)?, device: from.text()? },
        38 => {
            let code = from.u8()?;
            let algorithm = Algorithm::from_repr(code)
                .ok_or_else(|| Malformed::wrong(format!("{code} is no algorithm")))?;
            RendezvousFailure::NotPossible { algorithm, why: from.text()? }
        }
        39 => RendezvousFailure::Taken {
            rank: from.rank()?,
            holder: Member::read(from)?.into(),
            newcomer: Member::read(from)?.into(),
        },
        _ => return Err(Malformed::wrong(format!("{code} is no verdict"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshreduce_store::identity::Process;

    fn member(pid: u32) -> Member {
        let own = Member::current().unwrap();
        Member { process: Process { pid, ..own.process }, ..own }
    }

    #[test]
    fn verdicts_survive_the_round_trip() {
        let text = || "text".to_owned();
        let reasons = [
            NotApplicableReason::Disabled { rank: 3, by: DisabledBy::Program },
            NotApplicableReason::Disabled { rank: 0, by: DisabledBy::Variable { name: text(), value: None } },
            NotApplicableReason::Disabled {
                rank: 7,
                by: DisabledBy::Variable { name: text(), value: Some(String::new()) },
            },
            NotApplicableReason::WorldSize(9),
            NotApplicableReason::SeveralHosts { ranks: (0, 1), hosts: (text(), text()) },
            NotApplicableReason::UnknownTopology { ranks: (2, 5) },
            NotApplicableReason::TopologiesDiffer { ranks: (0, 7), difference: text() },
            NotApplicableReason::NoPeerAccess { ranks: (0, 5) },
            NotApplicableReason::NoAlgorithm { topology: Topology::HybridCubeMesh },
            NotApplicableReason::NoDriver { rank: 1, message: text() },
            NotApplicableReason::NetworkNamespaces { ranks: (1, 2) },
            NotApplicableReason::DeviceTooOld {
                rank: 6,
                found: ComputeCapability { major: 6, minor: 1 },
                needed: ComputeCapability { major: 7, minor: 0 },
            },
            NotApplicableReason::LinksHidden { ranks: (0, 1), links: (18, 12) },
            NotApplicableReason::DeviceFull { rank: 2, message: text() },
        ];
        let failures = [
            RendezvousFailure::Missing {
                ranks: vec![1, 2],
                step: Step::Second,
                waited: Duration::from_millis(1500),
            },
            RendezvousFailure::Died { rank: 4, pid: 77, step: Step::First },
            RendezvousFailure::Rank { rank: 0, message: text() },
            RendezvousFailure::Taken { rank: 2, holder: member(1).into(), newcomer: member(2).into() },
            RendezvousFailure::Corrupt { key: text(), rank: 1, problem: text() },
            RendezvousFailure::Different { field: text(), ranks: (0, 4), values: (text(), text()) },
            RendezvousFailure::DeviceTwice { ranks: (0, 1), device: text() },
            RendezvousFailure::NotPossible { algorithm: Algorithm::HybridCubeMesh, why: text() },
        ];
        let verdicts = reasons.map(Verdict::NotApplicable).into_iter();
        for verdict in verdicts.chain(failures.map(Verdict::Failed)).chain([Verdict::Ready]) {
            assert_eq!(Verdict::from_bytes(&verdict.to_bytes()), Ok(verdict));
        }
    }

    #[test]
    fn ranks_that_are_lost_need_not_acknowledge() {
        let missing =
            RendezvousFailure::Missing { ranks: vec![1, 2], step: Step::First, waited: Duration::ZERO };
        let missing = Verdict::Failed(missing);
        let awaited: Vec<_> = (0..8).filter(|rank| missing.awaits(*rank)).collect();
        assert_eq!(awaited, [0, 3, 4, 5, 6, 7]);
        assert!((0..8).all(|rank| Verdict::Ready.awaits(rank)));
    }
}
