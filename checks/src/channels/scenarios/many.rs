//! Many endpoints between two parties at the same time.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use meshreduce_channels::{Address, Endpoint, Error};

use crate::channels::party::{Party, SOON, compare, pattern};

/// Endpoints besides the party's own.
const MANY: u64 = 40;

/// Transfers go both ways over many endpoints at the same time. Of these A closes some, with transfers under way, which end and give their
/// memory back; the others go on.
pub(super) fn many_endpoints(party: &Party) -> Result<()> {
    let mut all: Vec<Option<Endpoint>> = meet(party)?.into_iter().map(Some).collect();
    go_well(party, &all, 0)?;
    let mut under_way = Vec::new();
    for endpoint in all.iter().step_by(3).flatten() {
        for bytes in [0, 7, 300_000, 9 << 20] {
            under_way.push(endpoint.send(party.buffer(&vec![1; bytes])?, party.remote, None));
            under_way.push(endpoint.recv(party.buffer(&vec![0; bytes])?, party.remote, None));
        }
    }
    if party.is_a() {
        all.iter_mut().step_by(3).for_each(|endpoint| drop(endpoint.take()));
    }
    go_well(party, &all, 1)?;
    for transfer in under_way {
        if let Err(failed) = transfer.wait(SOON) {
            let text = failed.to_string();
            let is_known = matches!(failed.error, Error::Closed { .. } | Error::ClosedByPeer { .. });
            ensure!(is_known && failed.into_memory().is_some(), "{text}, or the memory is lost");
        }
    }
    for endpoint in all.iter().step_by(3).flatten() {
        endpoint.join(SOON)?;
    }
    go_well(party, &all, 2)
}

/// One transfer each way over each of those that were not closed.
fn go_well(party: &Party, all: &[Option<Endpoint>], round: u64) -> Result<()> {
    let mut under_way = Vec::new();
    for (number, endpoint) in all.iter().enumerate().filter(|(number, _)| round == 0 || number % 3 != 0) {
        let endpoint = endpoint.as_ref().context("it was not closed")?;
        let bytes = [1, 5000, 100_001, 0][number / 3 % 4];
        let seed = |is_a: bool| (round * MANY + number as u64) * 2 + u64::from(is_a);
        let sent = endpoint.send(party.buffer(&pattern(seed(party.is_a()), bytes))?, party.remote, None);
        let received = endpoint.recv(party.buffer(&vec![0; bytes])?, party.remote, None);
        under_way.push((sent, received, seed(!party.is_a()), bytes));
    }
    for (sent, received, seed, bytes) in under_way {
        compare(&format!("round {round}"), &received.wait(SOON)?.0.read()?, seed, bytes)?;
        sent.wait(SOON)?;
    }
    Ok(())
}

/// The same number of an endpoint is the same on both sides.
fn meet(party: &Party) -> Result<Vec<Endpoint>> {
    const KEY: &str = "the address of many";
    if party.is_a() {
        let listener = party.context.listener()?;
        party.store().set(KEY, listener.address().to_string().as_bytes())?;
        return (0..MANY).map(|_| Ok(listener.accept(SOON)?)).collect();
    }
    let address = String::from_utf8(party.store().get(KEY, SOON)?)?;
    let address: Address = address.parse()?;
    (0..MANY).map(|_| Ok(party.context.connect_to(&address, SOON)?)).collect()
}
