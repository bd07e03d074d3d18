//! Ranks that are killed at any moment of a rendezvous: the others get an outcome in time, and no key stays.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use meshreduce::{Config, Outcome, rendezvous};
use meshreduce_tests::rank_process::{Part, Stage, begun, heard, kills};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const RANKS: usize = 3;
/// One of so many is killed as soon as it is started, before it comes: the others wait for it in full. The others are killed at any
/// moment since they began.
const EARLY: usize = 16;
/// How long a rank waits for the others in each step: longer than one that lives is ever late, on a machine that is busy with others
/// like it.
const TIMEOUT: Duration = Duration::from_secs(6);
/// When a rank must have ended: each of a few steps waits once at most.
const IN_TIME: Duration = Duration::from_secs(90);

/// Not a test of its own: what the tests below run as processes.
#[test]
fn rank() {
    let Some(part) = Part::of_this_process() else { return };
    let config = Config::default().timeout(TIMEOUT).deadline(Some(TIMEOUT));
    part.begin();
    let start = Instant::now();
    let met = rendezvous(&*part.store, part.rank, part.world_size, part.rank as u32, &config);
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    match met {
        Ok(Outcome::Ready(communicator)) => {
            part.say("ready");
            // With a rank that is dead it says so; with ranks that found it dead before, too.
            let _ = communicator.close();
        }
        Ok(Outcome::NotApplicable(reason)) => panic!("not applicable: {reason}"),
        Err(error) => {
            let text = format!("{error:?}");
            part.say(text.split(|c: char| !c.is_alphanumeric()).next().unwrap());
        }
    }
}

/// Kills one rank after another, [`kills`] in all, a few at a time; returns how often the survivors said what.
fn kill(stage: impl Fn() -> Stage + Sync) -> BTreeMap<String, usize> {
    let kills = kills();
    let (next, said) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let stage = stage();
                // How long a rendezvous takes here, at the present load: a kill should come at any moment of it.
                let mut usual = Duration::from_millis(200);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= kills {
                        return;
                    }
                    let mut random = ChaCha8Rng::seed_from_u64(number as u64);
                    let victim = random.next_u64() as usize % RANKS;
                    let mut ranks: Vec<_> = (0..RANKS).map(|rank| Some(stage.start(rank, ""))).collect();
                    let mut victim = ranks[victim].take().unwrap();
                    let is_early = number % EARLY == 0;
                    if !is_early {
                        begun(&mut victim);
                    }
                    let start = Instant::now();
                    let latest = if is_early { Duration::ZERO } else { usual.mul_f64(1.2) };
                    let moment = latest.mul_f64(f64::from(random.next_u32()) / f64::from(u32::MAX));
                    std::thread::sleep(moment.saturating_sub(start.elapsed()));
                    victim.kill().unwrap();
                    let mut are_ready = 0;
                    for rank in ranks.into_iter().flatten() {
                        let (texts, well) = heard(rank);
                        assert!(well && texts.len() == 1, "kill {number} after {moment:?}: {texts:?}");
                        *said.lock().unwrap().entry(texts[0].clone()).or_default() += 1;
                        are_ready += usize::from(texts[0] == "ready");
                    }
                    match are_ready {
                        0 if moment > usual.mul_f64(0.9) => usual = usual.mul_f64(1.3),
                        0 => {}
                        _ => usual = (usual * 3 + moment) / 4,
                    }
                    victim.wait().unwrap();
                    assert!(
                        stage.keys().is_empty(),
                        "kill {number} after {moment:?} left {:?}",
                        stage.keys()
                    );
                }
            });
        }
    });
    said.into_inner().unwrap()
}

fn judge(said: &BTreeMap<String, usize>) {
    eprintln!("what survivors of kills said: {said:?}");
    for kind in said.keys() {
        assert!(
            ["ready", "RankDied", "RanksMissing", "RankFailed", "Abandoned"].contains(&kind.as_str()),
            "{said:?}"
        );
    }
    assert!(
        said.contains_key("RankDied") && said.contains_key("RanksMissing"),
        "not every moment was hit: {said:?}"
    );
}

#[test]
fn killed_ranks_leave_survivors_with_an_outcome_and_no_key_in_a_folder() {
    judge(&kill(|| Stage::new("rank", RANKS)));
}

#[test]
fn killed_ranks_leave_survivors_with_an_outcome_and_no_key_in_a_tcp_store() {
    judge(&kill(|| Stage::over_tcp("rank", RANKS)));
}
