//! A peer that is killed or stopped at any moment.

use std::time::Instant;

use super::left::{held, rings};
use super::*;

/// Transfers in both directions over two pairs of devices, until rank 1 is no more, or is stopped. Rank 0 is told so in time, by
/// name, gets all of its memory back, and frees what it has lent when rank 1 has gone.
pub(super) fn survive(part: Part, silence: Duration) {
    const IN_TIME: Duration = Duration::from_secs(20);
    let gpus = [Gpu::new(0), Gpu::new(1)];
    let before = held();
    let peer = Peer::meet_with(part, &channels(), &[Device::Cuda(0), Device::Cuda(1)], silence);
    let Peer { part, context, endpoint } = peer;
    let mut under_way = std::collections::VecDeque::new();
    let mut number = 0;
    let error = loop {
        // Lengths of less than a slot and of more than the ring, in the same order on both sides.
        let bytes = [100, SLOT, 7 * SLOT + 5, 33][number as usize % 4];
        for gpu in &gpus {
            under_way.push_back(endpoint.send(gpu.memory(&data(number, bytes)), gpu.device(), &gpu.stream));
            under_way.push_back(endpoint.recv(gpu.empty(bytes), gpu.device(), &gpu.stream));
        }
        number += 1;
        // The other one, which may be stopped at any moment from then on, does nothing with the store any more: it would have its lock.
        if number == 1 && part.rank == 0 {
            part.tell("met", b"");
        }
        if under_way.len() > 12 {
            let moved: Result<(), Error> = (0..4).try_for_each(|_| {
                let first = under_way.pop_front().unwrap();
                first.wait(LONG).map(|_| ()).map_err(|failed| {
                    let error = failed.error.clone();
                    assert!(failed.into_memory().is_some(), "the memory comes back: {error}");
                    error
                })
            });
            if let Err(error) = moved {
                break error;
            }
        }
    };
    let text = error.to_string();
    if part.rank == 1 {
        // It was stopped for so long that the other one has given up.
        assert!(matches!(error, Error::PeerLost { .. } | Error::ClosedByPeer { .. }), "{text}");
        return part.say("gave up");
    }
    assert!(matches!(error, Error::PeerLost { .. }) && text.contains("rank 1"), "{text}");
    let begun = Instant::now();
    for transfer in under_way {
        // What was done before the loss was done well.
        if let Err(failed) = transfer.wait(IN_TIME) {
            assert!(matches!(failed.error, Error::PeerLost { .. }), "{failed}");
            assert!(failed.into_memory().is_some());
        }
    }
    endpoint.join(IN_TIME).unwrap();
    assert!(begun.elapsed() < IN_TIME, "{:?}", begun.elapsed());
    part.say(&format!("lost with {} rings", rings()));
    // Only now is a stopped process told to go on.
    part.tell("lost", b"");
    eventually("rings are freed when the other process has ended", || rings() == 0);
    context.close();
    context.join(IN_TIME).unwrap();
    drop((endpoint, context));
    eventually(&format!("nothing is left of {before:?} and more"), || held() == before);
    part.say("survived");
}

/// Ends rank 1 by `end`, at some moment of transfers; what rank 0 said, and whether both are as they should be.
fn strike(number: u64, part: &str, end: impl Fn(&mut std::process::Child, &Stage)) -> Vec<String> {
    let stage = two_ranks();
    let [survivor, mut victim] = [0, 1].map(|rank| stage.start(rank, part));
    stage.wait_for_key("met");
    std::thread::sleep(Duration::from_micros(number * 7919 % 40_000));
    end(&mut victim, &stage);
    let (said, well) = heard(survivor);
    let _ = victim.kill();
    victim.wait().unwrap();
    assert!(well && said.last().is_some_and(|last| last == "survived"), "strike {number}: {said:?}");
    said
}

/// How often the tests below strike: at as many moments, and at so many if they are asked for (`-- --ignored`).
const STRIKES: u64 = 12;
const MANY_STRIKES: u64 = 200;

fn strikes(
    part: &'static str,
    count: u64,
    end: impl Fn(&mut std::process::Child, &Stage) + Sync,
) -> Vec<Vec<String>> {
    let (next, said) = (std::sync::atomic::AtomicU64::new(0), std::sync::Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    said.lock().unwrap().push(strike(number, part, &end));
                }
            });
        }
    });
    said.into_inner().unwrap()
}

fn kills(count: u64) {
    strikes("killed", count, |victim, _| victim.kill().unwrap());
}

#[test]
fn a_killed_peer_is_an_error_in_time_and_what_it_had_open_is_freed() {
    kills(STRIKES);
}

#[test]
#[ignore = "takes minutes"]
fn a_killed_peer_is_an_error_in_time_at_200_moments() {
    kills(MANY_STRIKES);
}

fn signal(victim: &std::process::Child, signal: rustix::process::Signal) {
    let id = rustix::process::Pid::from_raw(victim.id() as i32).unwrap();
    rustix::process::kill_process(id, signal).unwrap();
}

fn stops(count: u64) {
    let said = strikes("stopped", count, |victim, stage| {
        signal(victim, rustix::process::Signal::STOP);
        stage.wait_for_key("lost");
        signal(victim, rustix::process::Signal::CONT);
    });
    for said in said {
        // Two devices have sent, whose rings the stopped process may read from as soon as it goes on.
        assert_eq!(said[0], "lost with 2 rings");
    }
}

#[test]
fn a_stopped_peer_is_an_error_in_time_and_keeps_what_it_has_open_until_it_has_ended() {
    stops(STRIKES);
}

#[test]
#[ignore = "takes minutes"]
fn a_stopped_peer_is_an_error_in_time_at_200_moments() {
    stops(MANY_STRIKES);
}
