//! How a rendezvous ended, as it stands in the store for all ranks.
#![forbid(unsafe_code)]

use std::time::Duration;

use meshreduce_device::ComputeCapability;
use meshreduce_store::codec::{Malformed, Payload, Reader, Writer};
use meshreduce_store::identity::Member;
use meshreduce_wire::Algorithm;

use crate::error::Error;
use crate::outcome::{DisabledBy, Reason};
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
    NotApplicable(Reason),
    Failed(Failure),
}

/// What is broken, as far as other ranks need to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
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

impl Failure {
    /// What `rank` tells the others of its own error.
    pub(crate) fn of(rank: usize, error: &Error) -> Self {
        match error {
            Error::AlgorithmNotPossible { algorithm, why } => {
                Failure::NotPossible { algorithm: *algorithm, why: why.clone() }
            }
            error => Failure::Rank { rank, message: error.to_string() },
        }
    }

    /// Whether `rank` will not acknowledge.
    fn has_lost(&self, rank: usize) -> bool {
        match self {
            Failure::Missing { ranks, .. } => ranks.contains(&rank),
            Failure::Died { rank: lost, .. } | Failure::Taken { rank: lost, .. } => *lost == rank,
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

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Missing { ranks, step, waited } => {
                Error::RanksMissing { ranks, step: step.name(), waited }
            }
            Failure::Died { rank, pid, step } => Error::RankDied { rank, pid, step: step.name() },
            Failure::Taken { rank, holder, newcomer } => Error::RankTaken { rank, holder, newcomer },
            Failure::Rank { rank, message } => Error::RankFailed { rank, message },
            Failure::Corrupt { key, rank, problem } => Error::CorruptPayload { key, rank, problem },
            Failure::Different { field, ranks, values } => {
                Error::ConfiguredDifferently { field, ranks, values }
            }
            Failure::DeviceTwice { ranks, device } => Error::DeviceUsedTwice { ranks, device },
            Failure::NotPossible { algorithm, why } => Error::AlgorithmNotPossible { algorithm, why },
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

fn write_reason(reason: &Reason, out: &mut Writer) {
    match reason {
        Reason::Disabled { rank, by } => {
            out.u8(1);
            out.rank(*rank);
            write_disabled_by(by, out);
        }
        Reason::WorldSize(size) => {
            out.u8(2);
            out.rank(*size);
        }
        Reason::SeveralHosts { ranks, hosts } => {
            out.u8(3);
            write_pair(out, *ranks);
            out.text(&hosts.0);
            out.text(&hosts.1);
        }
        Reason::UnknownTopology { ranks } => {
            out.u8(4);
            write_pair(out, *ranks);
        }
        Reason::TopologiesDiffer { ranks, difference } => {
            out.u8(5);
            write_pair(out, *ranks);
            out.text(difference);
        }
        Reason::NoPeerAccess { ranks } => {
            out.u8(6);
            write_pair(out, *ranks);
        }
        Reason::NoAlgorithm { topology } => {
            out.u8(7);
            out.u8(*topology as u8);
        }
        Reason::NoDriver { rank, message } => {
            out.u8(8);
            out.rank(*rank);
            out.text(message);
        }
        Reason::NetworkNamespaces { ranks } => {
            out.u8(9);
            write_pair(out, *ranks);
        }
        Reason::DeviceTooOld { rank, found, needed } => {
            out.u8(10);
            out.rank(*rank);
            write_capability(*found, out);
            write_capability(*needed, out);
        }
        Reason::LinksHidden { ranks, links } => {
            out.u8(11);
            write_pair(out, *ranks);
            out.u32(links.0);
            out.u32(links.1);
        }
        Reason::DeviceFull { rank, message } => {
            out.u8(12);
            out.rank(*rank);
            out.text(message);
        }
    }
}

fn read_reason(code: u8, from: &mut Reader<'_>) -> Result<Reason, Malformed> {
    Ok(match code {
        1 => Reason::Disabled { rank: from.rank()?, by: read_disabled_by(from)? },
        2 => Reason::WorldSize(from.rank()?),
        3 => Reason::SeveralHosts { ranks: read_pair(from)?, hosts: (from.text()?, from.text()?) },
        4 => Reason::UnknownTopology { ranks: read_pair(from)? },
        5 => Reason::TopologiesDiffer { ranks: read_pair(from)?, difference: from.text()? },
        6 => Reason::NoPeerAccess { ranks: read_pair(from)? },
        7 => Reason::NoAlgorithm { topology: read_topology(from)? },
        8 => Reason::NoDriver { rank: from.rank()?, message: from.text()? },
        9 => Reason::NetworkNamespaces { ranks: read_pair(from)? },
        10 => Reason::DeviceTooOld {
            rank: from.rank()?,
            found: read_capability(from)?,
            needed: read_capability(from)?,
        },
        11 => Reason::LinksHidden { ranks: read_pair(from)?, links: (from.u32()?, from.u32()?) },
        12 => Reason::DeviceFull { rank: from.rank()?, message: from.text()? },
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

fn write_failure(failure: &Failure, out: &mut Writer) {
    match failure {
        Failure::Missing { ranks, step, waited } => {
            out.u8(32);
            out.list(ranks, |out, rank| out.rank(*rank));
            out.u8(*step as u8);
            out.u64(waited.as_millis() as u64);
        }
        Failure::Died { rank, pid, step } => {
            out.u8(33);
            out.rank(*rank);
            out.u32(*pid);
            out.u8(*step as u8);
        }
        Failure::Rank { rank, message } => {
            out.u8(34);
            out.rank(*rank);
            out.text(message);
        }
        Failure::Taken { rank, holder, newcomer } => {
            out.u8(39);
            out.rank(*rank);
            holder.write(out);
            newcomer.write(out);
        }
        Failure::Corrupt { key, rank, problem } => {
            out.u8(35);
            out.text(key);
            out.rank(*rank);
            out.text(problem);
        }
        Failure::Different { field, ranks, values } => {
            out.u8(36);
            out.text(field);
            write_pair(out, *ranks);
            out.text(&values.0);
            out.text(&values.1);
        }
        Failure::DeviceTwice { ranks, device } => {
            out.u8(37);
            write_pair(out, *ranks);
            out.text(device);
        }
        Failure::NotPossible { algorithm, why } => {
            out.u8(38);
            out.u8(*algorithm as u8);
            out.text(why);
        }
    }
}

fn read_failure(code: u8, from: &mut Reader<'_>) -> Result<Failure, Malformed> {
    Ok(match code {
        32 => Failure::Missing {
            ranks: from.list(Reader::rank)?,
            step: Step::read(from)?,
            waited: Duration::from_millis(from.u64()?),
        },
        33 => Failure::Died { rank: from.rank()?, pid: from.u32()?, step: Step::read(from)? },
        34 => Failure::Rank { rank: from.rank()?, message: from.text()? },
        35 => Failure::Corrupt { key: from.text()?, rank: from.rank()?, problem: from.text()? },
        36 => Failure::Different {
            field: from.text()?,
            ranks: read_pair(from)?,
            values: (from.text()?, from.text()?),
        },
        37 => Failure::DeviceTwice { ranks: read_pair(from)?, device: from.text()? },
        38 => {
            let code = from.u8()?;
            let algorithm = Algorithm::from_repr(code)
                .ok_or_else(|| Malformed::wrong(format!("{code} is no algorithm")))?;
            Failure::NotPossible { algorithm, why: from.text()? }
        }
        39 => Failure::Taken {
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
            Reason::Disabled { rank: 3, by: DisabledBy::Program },
            Reason::Disabled { rank: 0, by: DisabledBy::Variable { name: text(), value: None } },
            Reason::Disabled {
                rank: 7,
                by: DisabledBy::Variable { name: text(), value: Some(String::new()) },
            },
            Reason::WorldSize(9),
            Reason::SeveralHosts { ranks: (0, 1), hosts: (text(), text()) },
            Reason::UnknownTopology { ranks: (2, 5) },
            Reason::TopologiesDiffer { ranks: (0, 7), difference: text() },
            Reason::NoPeerAccess { ranks: (0, 5) },
            Reason::NoAlgorithm { topology: Topology::HybridCubeMesh },
            Reason::NoDriver { rank: 1, message: text() },
            Reason::NetworkNamespaces { ranks: (1, 2) },
            Reason::DeviceTooOld {
                rank: 6,
                found: ComputeCapability { major: 6, minor: 1 },
                needed: ComputeCapability { major: 7, minor: 0 },
            },
            Reason::LinksHidden { ranks: (0, 1), links: (18, 12) },
            Reason::DeviceFull { rank: 2, message: text() },
        ];
        let failures = [
            Failure::Missing { ranks: vec![1, 2], step: Step::Second, waited: Duration::from_millis(1500) },
            Failure::Died { rank: 4, pid: 77, step: Step::First },
            Failure::Rank { rank: 0, message: text() },
            Failure::Taken { rank: 2, holder: member(1).into(), newcomer: member(2).into() },
            Failure::Corrupt { key: text(), rank: 1, problem: text() },
            Failure::Different { field: text(), ranks: (0, 4), values: (text(), text()) },
            Failure::DeviceTwice { ranks: (0, 1), device: text() },
            Failure::NotPossible { algorithm: Algorithm::HybridCubeMesh, why: text() },
        ];
        let verdicts = reasons.map(Verdict::NotApplicable).into_iter();
        for verdict in verdicts.chain(failures.map(Verdict::Failed)).chain([Verdict::Ready]) {
            assert_eq!(Verdict::from_bytes(&verdict.to_bytes()), Ok(verdict));
        }
    }

    #[test]
    fn ranks_that_are_lost_need_not_acknowledge() {
        let missing = Failure::Missing { ranks: vec![1, 2], step: Step::First, waited: Duration::ZERO };
        let missing = Verdict::Failed(missing);
        let awaited: Vec<_> = (0..8).filter(|rank| missing.awaits(*rank)).collect();
        assert_eq!(awaited, [0, 3, 4, 5, 6, 7]);
        assert!((0..8).all(|rank| Verdict::Ready.awaits(rank)));
    }
}
