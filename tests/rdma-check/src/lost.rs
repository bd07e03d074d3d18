//! A peer that is killed.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use meshreduce_verbs_loader::{Operation, QueuePairState, ReadyToSend, SendRequest, Status};
use serde::{Deserialize, Serialize};

use crate::RAILS;
use crate::endpoint::{Card, Endpoint, Place};
use crate::memory::{Kind, Memory};
use crate::peer::{Link, Peer};

/// Writes that are under way when the first of them fails.
const WRITES: u64 = 8;
const BYTES: usize = 1 << 16;
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    card: Card,
    place: Place,
}

pub(crate) fn check() -> Result<()> {
    let mut peer = Peer::start(&["lost-peer".to_owned()])?;
    let end = Endpoint::open(RAILS[0][0])?;
    let memory = Memory::new(Kind::Host, BYTES, 0, end.domain())?;
    let place = Place { address: memory.region().address(), rkey: memory.region().rkey() };
    let other: Hello = peer.link.exchange(&Hello { card: end.card(), place })?;
    let mut patience = ReadyToSend::default();
    (patience.timeout, patience.retries) = (14, 6);
    end.connect(&other.card, &patience)?;
    let _: String = peer.link.receive()?;
    peer.kill()?;
    let began = Instant::now();
    let segments = [memory.region().segment(0..BYTES)];
    for wr_id in 0..WRITES {
        let request = SendRequest::new(wr_id, Operation::Write(other.place.into()), &segments);
        // SAFETY: nobody touches the memory while the queue pair lives.
        unsafe { end.pair().post_send(&request) }?;
    }
    for wr_id in 0..WRITES {
        let completion = end.completion()?;
        // The first says why, the others that they never began; each comes back, in order.
        let expected = if wr_id == 0 { Status::RETRIES_EXCEEDED } else { Status::FLUSHED };
        ensure!(
            completion.wr_id == wr_id && completion.status == expected,
            "write {wr_id}: not {expected} but {completion:?}"
        );
        if wr_id == 0 {
            println!("the first write to a dead peer fails after {:.2} s", began.elapsed().as_secs_f64());
        }
    }
    ensure!(began.elapsed() < DEADLINE, "that took {:?}", began.elapsed());
    let state = end.pair().state()?;
    ensure!(state == QueuePairState::Error, "the queue pair is in {state:?}");
    Ok(())
}

pub(crate) fn peer() -> Result<()> {
    let mut link = Link::inherited()?;
    let end = Endpoint::open(RAILS[0][1])?;
    let memory = Memory::new(Kind::Host, BYTES, 1, end.domain())?;
    let place = Place { address: memory.region().address(), rkey: memory.region().rkey() };
    let other: Hello = link.exchange(&Hello { card: end.card(), place })?;
    end.connect(&other.card, &ReadyToSend::default())?;
    link.send(&"connected")?;
    let _: String = link.receive()?;
    bail!("this process should have been killed")
}
