//! Two processes that write to each other.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use meshreduce_verbs_loader::{Opcode, Operation, ReadyToSend, ReceiveRequest, SendRequest};
use serde::{Deserialize, Serialize};

use crate::RAILS;
use crate::endpoint::{Card, Endpoint, Place};
use crate::memory::{Kind, Memory, PAGE};
use crate::pattern::{GUARD, compare, pattern};
use crate::peer::{Link, Peer};

/// Where a transfer begins in its memory: in no way aligned. As much stays free behind it.
const SKIP: usize = 4099;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Transfer {
    /// Whose memory
    #[arg(long, value_enum, default_value = "host")]
    memory: Kind,
    /// Bytes of a transfer
    #[arg(long, default_value_t = 1 << 20)]
    bytes: usize,
    /// Transfers in each direction on each rail
    #[arg(long, default_value_t = 10)]
    count: u64,
    /// Only this rail
    #[arg(long)]
    rail: Option<usize>,
}

/// Which side this is: the index of its device in a rail, and of its GPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    First = 0,
    Second = 1,
}

/// What a side tells the other one at the beginning.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    card: Card,
    place: Place,
}

/// The receiver has looked at everything.
#[derive(Debug, Serialize, Deserialize)]
struct Compared(u64);

impl Transfer {
    pub(crate) fn check(&self) -> Result<()> {
        let kind = self.memory.to_possible_value().context("a kind has a name")?;
        let mut arguments = ["transfer", "--memory", kind.get_name()].map(str::to_owned).to_vec();
        arguments.extend([
            "--bytes".to_owned(),
            self.bytes.to_string(),
            "--count".to_owned(),
            self.count.to_string(),
        ]);
        arguments.extend(self.rail.iter().flat_map(|rail| ["--rail".to_owned(), rail.to_string()]));
        let mut peer = Peer::start(&arguments)?;
        self.side(Side::First, &mut peer.link)?;
        peer.end()
    }

    pub(crate) fn peer(&self) -> Result<()> {
        self.side(Side::Second, &mut Link::inherited()?)
    }

    fn side(&self, side: Side, link: &mut Link) -> Result<()> {
        ensure!(self.bytes > 0 && self.bytes < 1 << 31, "{} bytes are no message", self.bytes);
        for (_, rail) in
            RAILS.iter().enumerate().filter(|(rail, _)| self.rail.is_none_or(|only| only == *rail))
        {
            let name = rail[side as usize];
            self.on_rail(side, name, link).with_context(|| format!("{name}, {:?} memory", self.memory))?;
        }
        Ok(())
    }

    fn on_rail(&self, side: Side, device: &str, link: &mut Link) -> Result<()> {
        let end = Endpoint::open(device)?;
        let whole = (self.bytes + 2 * SKIP).next_multiple_of(PAGE);
        let began = Instant::now();
        let mut memory = Memory::new(self.memory, whole, side as u32, end.domain())?;
        let registered = began.elapsed();
        let region = memory.region();
        let place = Place { address: region.address() + SKIP as u64, rkey: region.rkey() };
        let other: Hello = link.exchange(&Hello { card: end.card(), place })?;
        end.connect(&other.card, &ReadyToSend::default())?;
        // Both are connected from here on.
        let _: Compared = link.exchange(&Compared(0))?;
        let mut times = Vec::new();
        for round in 0..2 * self.count {
            let sends = (round % 2 == 0) == (side == Side::First);
            match sends {
                true => times.push(self.send(round, &end, &mut memory, other.place, link)?),
                false => self.receive(round, &end, &mut memory, link)?,
            }
            end.quiet()?;
        }
        times.sort_unstable();
        println!(
            "{device}: {} x {} bytes written and received, every byte compared; a write {:.1} to {:.1} ms, registered in {:.1} ms",
            self.count,
            self.bytes,
            times.first().copied().unwrap_or_default() as f64 / 1e3,
            times.last().copied().unwrap_or_default() as f64 / 1e3,
            registered.as_secs_f64() * 1e3
        );
        Ok(())
    }

    /// Writes once; gives the microseconds from posting to completion.
    fn send(
        &self,
        round: u64,
        end: &Endpoint,
        memory: &mut Memory,
        to: Place,
        link: &mut Link,
    ) -> Result<u128> {
        let mut content = vec![GUARD; memory.region().len()];
        content[SKIP..SKIP + self.bytes].copy_from_slice(&pattern(round, self.bytes));
        memory.fill(&content)?;
        let ready: Compared = link.receive()?;
        ensure!(ready.0 == round, "the receiver is at round {} and not at {round}", ready.0);
        let segments = [memory.region().segment(SKIP..SKIP + self.bytes)];
        let operation = Operation::WriteWithImm(to.into(), round as u32);
        let began = Instant::now();
        // SAFETY: `memory` is neither written nor freed before the completion, which is waited for; an error ends the
        // process with the queue pair.
        unsafe { end.pair().post_send(&SendRequest::new(round, operation, &segments)) }?;
        end.done(round, Opcode::Write)?;
        let took = began.elapsed().as_micros();
        let compared: Compared = link.receive()?;
        ensure!(compared.0 == round, "the receiver compared round {} and not {round}", compared.0);
        Ok(took)
    }

    fn receive(&self, round: u64, end: &Endpoint, memory: &mut Memory, link: &mut Link) -> Result<()> {
        memory.fill(&vec![GUARD; memory.region().len()])?;
        // SAFETY: a receive without segments, for the immediate; the bytes come by the peer's write, which is not under way
        // when the memory is filled, above, or read, below.
        unsafe { end.pair().post_receive(&ReceiveRequest { wr_id: round, segments: &[] }) }?;
        link.send(&Compared(round))?;
        let completion = end.done(round, Opcode::ReceiveWriteWithImm)?;
        ensure!(
            completion.imm == Some(round as u32),
            "the immediate is {:?} and not {round}",
            completion.imm
        );
        ensure!(completion.byte_len as usize == self.bytes, "{} bytes came", completion.byte_len);
        compare(&memory.read()?, SKIP, &pattern(round, self.bytes))
            .with_context(|| format!("round {round}"))?;
        link.send(&Compared(round))
    }
}
