//! A peer that is killed or stopped at any moment: what waits for it fails soon, with its name, and gives its memory back; in the end
//! nothing is left.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use meshreduce_channels::{Error, Failed};
use rustix::process::{Pid, Signal, kill_process};

use super::program::{Arguments, Side, Started, again};
use crate::channels::left::Before;
use crate::channels::party::{Role, SOON, pattern};

/// What a survivor may take to know of it. (A machine that does other things too is given its time.)
const KNOWN: Duration = Duration::from_secs(20);

/// Kills and stops as often as was asked for, by default; the one with `--rank 1` is the victim.
///
/// # Errors
///
/// A survivor that hangs, or says something else; what is left behind.
pub fn run(arguments: &Arguments) -> Result<()> {
    match arguments.rank {
        Some(1) => victim(arguments),
        _ => {
            let fates = [(Signal::KILL, arguments.kills), (Signal::STOP, arguments.stops)];
            for (signal, times) in fates {
                for time in 0..times {
                    survivor(arguments, signal, time).with_context(|| format!("{signal:?} {time}"))?;
                }
            }
            Before::default().nothing_more()
        }
    }
}

fn victim(arguments: &Arguments) -> Result<()> {
    let side = Side::meet(arguments, Role::B)?;
    println!("MET");
    for at in 0.. {
        transfer_both(&side, at)?;
    }
    Ok(())
}

fn survivor(arguments: &Arguments, signal: Signal, time: u32) -> Result<()> {
    let store = tempfile::tempdir()?;
    let own = Arguments { store: Some(store.path().to_owned()), ..arguments.clone() };
    let mut victim = Started(again(store.path())?.stdout(Stdio::piped()).spawn()?);
    let said = victim.0.stdout.take().context("its output")?;
    let side = Side::meet(&own, Role::A)?;
    BufReader::new(said).lines().next().context("the victim has ended")??;
    // Random enough: from the beginning of the first transfer to well into the later ones.
    let moment = Duration::from_micros(u64::from(time).wrapping_mul(2_654_435_761) % 60_000);
    let pid = Pid::from_child(&victim.0);
    let killer = std::thread::spawn(move || {
        std::thread::sleep(moment);
        kill_process(pid, signal).map(|()| Instant::now())
    });
    let mut lost = None;
    for at in 0.. {
        if let Err(error) = transfer_both(&side, at) {
            lost = Some(error);
            break;
        }
    }
    let seen = Instant::now();
    let killed = killer.join().map_err(|_| anyhow::anyhow!("the killer has panicked"))??;
    let took = seen.saturating_duration_since(killed);
    let silence = Duration::from_millis(if signal == Signal::STOP { arguments.silence_ms } else { 0 });
    ensure!(took < KNOWN + silence, "it took {took:?} to know of it");
    let lost = lost.context("it never failed")?;
    match lost.downcast_ref::<Error>() {
        Some(Error::PeerLost { peer, .. }) => ensure!(peer.contains("party b"), "{peer}"),
        _ => bail!("the victim got {signal:?}, and this is what is said: {lost:#}"),
    }
    side.party.endpoint.join(SOON)?;
    for nic in side.gdr.stats() {
        ensure!(nic.sends.0 == 0 && nic.receives.0 == 0, "{nic:?}");
    }
    Ok(())
}

fn transfer_both(side: &Side<'_>, at: u64) -> Result<()> {
    let party = &side.party;
    let length = match at % 4 {
        0 => side.arguments.bytes as usize,
        other => (at as usize * 7919) % (1000 * other as usize),
    };
    let send = party.send(party.buffer(&pattern(at, length))?);
    let receive = party.recv(party.buffer(&vec![0; length])?);
    let mut failed = None;
    for outcome in [send.wait(SOON), receive.wait(SOON)] {
        match outcome {
            Ok(_) => {}
            Err(Failed { error, remains }) => {
                ensure!(
                    matches!(remains, meshreduce_channels::Remains::Memory(_)),
                    "{error}: the memory is not back"
                );
                failed = Some(error);
            }
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}
