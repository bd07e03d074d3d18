//! Who reaches whom.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use meshreduce_verbs_loader::{Error, Opcode, Operation, ReadyToSend, ReceiveRequest, SendRequest, Status};

use crate::RAILS;
use crate::endpoint::{Endpoint, Place};
use crate::memory::{Kind, Memory};

/// Half a second until an unanswered packet is an error: 7 times 67 ms.
const IMPATIENT: (u8, u8) = (14, 6);
/// When it must have come at the latest; with the default patience it would be half a minute, on an idle machine.
const DEADLINE: Duration = Duration::from_secs(45);
const BYTES: usize = 4096;

pub(crate) fn check() -> Result<()> {
    for [first, second] in RAILS {
        for (from, to) in [(first, second), (second, first)] {
            let ends = Ends::open(from, to)?;
            // Whoever answers in the end is reached, however busy the machine.
            ends.connect(&ReadyToSend::default()).with_context(|| format!("{from} to {to}"))?;
            ends.write()?;
            println!("{from} reaches {to}");
        }
    }
    for (from, to) in [(RAILS[0][0], RAILS[1][0]), (RAILS[0][0], RAILS[1][1]), (RAILS[1][1], RAILS[0][0])] {
        across(from, to).with_context(|| format!("{from} to {to}, which are on two rails"))?;
    }
    Ok(())
}

/// Both ends of a connection, in this process.
struct Ends {
    from: (Endpoint, Memory),
    to: (Endpoint, Memory),
}

impl Ends {
    fn open(from: &str, to: &str) -> Result<Self> {
        let open = |name| -> Result<_> {
            let end = Endpoint::open(name)?;
            let memory = Memory::new(Kind::Host, BYTES, 0, end.domain())?;
            Ok((end, memory))
        };
        Ok(Self { from: open(from)?, to: open(to)? })
    }

    fn connect(&self, patience: &ReadyToSend) -> Result<()> {
        self.to.0.connect(&self.from.0.card(), patience)?;
        self.from.0.connect(&self.to.0.card(), patience)
    }

    /// Posts a write, and the receive for it.
    fn post(&self) -> Result<()> {
        let region = self.to.1.region();
        let place = Place { address: region.address(), rkey: region.rkey() };
        let segments = [self.from.1.region().segment(0..BYTES)];
        let request = SendRequest::new(1, Operation::WriteWithImm(place.into(), 7), &segments);
        // SAFETY: nobody touches the memory of both ends while `self` lives.
        unsafe {
            self.to.0.pair().post_receive(&ReceiveRequest { wr_id: 2, segments: &[] })?;
            self.from.0.pair().post_send(&request)?;
        }
        Ok(())
    }

    fn write(&self) -> Result<()> {
        self.post()?;
        self.from.0.done(1, Opcode::Write)?;
        self.to.0.done(2, Opcode::ReceiveWriteWithImm)?;
        Ok(())
    }
}

/// Either the way is refused when the queue pair gets its peer, or the write fails in time.
fn across(from: &str, to: &str) -> Result<()> {
    let ends = Ends::open(from, to)?;
    let mut patience = ReadyToSend::default();
    (patience.timeout, patience.retries) = IMPATIENT;
    let began = Instant::now();
    if let Err(error) = ends.connect(&patience) {
        let Some(Error::Verbs(refused)) = error.downcast_ref::<Error>() else { return Err(error) };
        println!("{from} does not reach {to}: {refused}");
        return Ok(());
    }
    ends.post()?;
    let completion = ends.from.0.completion()?;
    let took = began.elapsed();
    if completion.status.is_success() {
        bail!("the write arrived");
    }
    ensure!(completion.status == Status::RETRIES_EXCEEDED, "it failed otherwise: {completion:?}");
    ensure!(took < DEADLINE, "it failed after {took:?}");
    println!("{from} does not reach {to}: {} after {:.1} s", completion.status, took.as_secs_f64());
    Ok(())
}
