//! Ranks that are killed, or stopped, at any moment of their calls: the others get a result or an error that names the victim, in time,
//! one that was stopped gets one too when it goes on, and nothing stays.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cust::memory::{CopyDestination, DeviceBuffer};
use meshreduce_checks::groups::profile::Profile;
use meshreduce_process_group::store::Store;
use meshreduce_process_group::{Device, DeviceType, Error, ProcessGroup, ReduceOp};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

use crate::on_nccl::enter;
use crate::rank_process::{Part, Stage, begun, heard};

/// How many ranks there are, where it does not matter.
pub const RANKS: usize = 3;

/// What becomes of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is killed.
    Killed,
    /// It is stopped (SIGSTOP), and goes on when all others have ended.
    Stopped,
}

/// What a survivor's error may be. Any other says nothing of who died.
const KINDS: [&str; 6] = ["RankDied", "Timeout", "NotMade", "Aborted", "PeerShutDown", "Backend"];
/// How long a rank waits for the others in each step: longer than one that lives is ever late, on a machine that is busy with others
/// like it.
const TIMEOUT: Duration = Duration::from_secs(6);
/// When a rank must have ended: each of a few steps waits once at most.
const IN_TIME: Duration = Duration::from_secs(90);
/// One of so many is killed or stopped at any moment since it was started, and has not come yet as a rule: the others wait for it in
/// full. The others are at any moment since they began.
const EARLY: usize = 16;
/// How long the ranks go on calling.
const BUSY: Duration = Duration::from_millis(150);

/// What a rank does that nobody kills: says "ready", or what it failed with, its kind first.
///
/// # Panics
/// If a result is wrong, or it takes too long.
pub fn rank(profile: &Profile, part: Part) {
    part.begin();
    let start = Instant::now();
    let (number, world_size) = (part.rank, part.world_size);
    let say = |text: &str| println!("rank {number} says: {text}");
    let store: Arc<dyn Store> = Arc::from(part.store);
    let result = calls(profile, store, number, world_size);
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    match result {
        Ok(()) => say("ready"),
        Err(error) => {
            let debug = format!("{error:?}");
            let kind = debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            say(&format!("{kind}: {error}"));
        }
    }
}

fn calls(profile: &Profile, store: Arc<dyn Store>, rank: usize, world_size: usize) -> Result<(), Error> {
    let builder = ProcessGroup::builder(store, rank, world_size)
        .backend(profile.config().parse()?)
        .registry(profile.registry.clone())
        .timeout(TIMEOUT)
        .deadline(Some(TIMEOUT))
        .dump_to(None);
    let (group, result) = match profile.device {
        DeviceType::Cpu => {
            let group = builder.build()?;
            let result = rounds(&group);
            (group, result)
        }
        DeviceType::Cuda => {
            cust::init(cust::CudaFlags::empty()).expect("the driver");
            let _context = enter(rank);
            // What the backend itself does is looked at, not what one behind it does.
            let group = builder.cuda_device(rank as u32).forbid_fallback(true).build()?;
            let result = device_rounds(&group);
            (group, result)
        }
    };
    if let Err(error) = &result {
        group.abort(&error.to_string());
    }
    result?;
    group.shutdown()
}

fn rounds(group: &ProcessGroup) -> Result<(), Error> {
    let (rank, world_size) = (group.rank(), group.world_size());
    let all: f32 = (1..=world_size).map(|rank| rank as f32).sum();
    let start = Instant::now();
    for round in 0_u32.. {
        let mut goes_on = [u8::from(start.elapsed() < BUSY)];
        group.broadcast(&mut goes_on, 0)?;
        if goes_on == [0] {
            return Ok(());
        }
        for count in [3, 20_000] {
            let mut data = vec![rank as f32 + 1.0; count];
            group.all_reduce(&mut data, ReduceOp::Sum)?;
            assert!(data.iter().all(|value| *value == all), "round {round}");
        }
        let mut gathered = vec![0_i64; 100 * world_size];
        group.all_gather_single(&[rank as i64; 100], &mut gathered)?;
        assert!(gathered.iter().enumerate().all(|(at, value)| *value == (at / 100) as i64), "round {round}");
        let mut swapped = vec![0_i32; 7 * world_size];
        group.all_to_all_single(&vec![rank as i32; 7 * world_size], &mut swapped)?;
        assert!(swapped.iter().enumerate().all(|(at, value)| *value == (at / 7) as i32), "round {round}");
        group.barrier(Device::Cpu)?;
    }
    Ok(())
}

/// The same in device memory, of what both backends of CUDA devices have.
fn device_rounds(group: &ProcessGroup) -> Result<(), Error> {
    let (rank, world_size) = (group.rank(), group.world_size());
    let all: f32 = (1..=world_size).map(|rank| rank as f32).sum();
    let start = Instant::now();
    for round in 0_u32.. {
        // Rank 0 says whether it goes on.
        let goes_on = (rank == 0 && start.elapsed() < BUSY) as u8;
        if reduced(group, 1, f32::from(goes_on))? == [0.0] {
            return Ok(());
        }
        for count in [3, 5_000] {
            let sum = reduced(group, count, rank as f32 + 1.0)?;
            assert!(sum.iter().all(|value| *value == all), "round {round}");
        }
        let own = DeviceBuffer::from_slice(&[rank as f32; 100]).expect("device memory");
        let mut gathered = DeviceBuffer::from_slice(&vec![-1.0; 100 * world_size]).expect("device memory");
        group.all_gather_single(&own, &mut gathered)?;
        let mut numbers = vec![0.0_f32; 100 * world_size];
        gathered.copy_to(&mut numbers).expect("the copy");
        assert!(numbers.iter().enumerate().all(|(at, value)| *value == (at / 100) as f32), "round {round}");
        group.barrier(Device::Cuda(rank as u32))?;
    }
    Ok(())
}

/// The sum of all ranks' `value`s, `count` times.
fn reduced(group: &ProcessGroup, count: usize, value: f32) -> Result<Vec<f32>, Error> {
    let mut numbers = vec![value; count];
    let mut buffer = DeviceBuffer::from_slice(&numbers).expect("device memory");
    group.all_reduce(&mut buffer, ReduceOp::Sum)?;
    buffer.copy_to(&mut numbers).expect("the copy");
    Ok(numbers)
}

/// The numbers behind the words "rank" and "ranks" in a text.
fn ranks_named(text: &str) -> Vec<usize> {
    let behind = text.match_indices("rank").map(|(at, word)| &text[at + word.len()..]);
    let list = behind.map(|rest| {
        let list = rest.strip_prefix('s').unwrap_or(rest);
        let end = list.replace(" and ", " ,   ").find(|c: char| !c.is_ascii_digit() && !", ".contains(c));
        &list[..end.unwrap_or(list.len())]
    });
    let numbers = list.flat_map(|list| list.split(|c: char| !c.is_ascii_digit()));
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// Kills or stops one of `ranks` ranks after another, a few at a time; returns how often the survivors said what. A stage is for so many.
///
/// # Panics
/// At the end, with all that was wrong: a survivor that said nothing, or did not name the victim, or a key that stayed.
pub fn kill(
    profile: &Profile,
    (fate, kills): (Fate, usize),
    ranks: usize,
    stage: impl Fn() -> Stage + Sync,
) -> BTreeMap<String, usize> {
    let (next, said) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let stage = stage();
                // How long ranks take here, at the present load: a kill should come at any moment of it.
                let mut usual = Duration::from_millis(400);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= kills {
                        return;
                    }
                    let (moment, texts) = match one(profile, (&stage, ranks), (fate, number), usual) {
                        Ok(told) => told,
                        Err((moment, complaint)) => {
                            let mut wrong = wrong.lock().unwrap_or_else(PoisonError::into_inner);
                            wrong.push(format!("{fate:?} {number} after {moment:?}: {complaint}"));
                            continue;
                        }
                    };
                    let are_ready = texts.iter().filter(|text| *text == "ready").count();
                    for text in texts {
                        let kind = text.split(':').next().unwrap_or_default().to_owned();
                        *said.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
                    }
                    match are_ready {
                        0 if moment > usual.mul_f64(0.9) => usual = usual.mul_f64(1.3),
                        0 => {}
                        _ => usual = (usual * 3 + moment) / 4,
                    }
                }
            });
        }
    });
    let said = said.into_inner().unwrap_or_else(PoisonError::into_inner);
    let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    let name = profile.name;
    assert!(wrong.is_empty(), "{name}: {} of {kills}: {wrong:#?}; otherwise: {said:?}", wrong.len());
    said
}

/// One kill: when it was, and what the survivors said, or what is wrong with that.
fn one(
    profile: &Profile,
    (stage, world_size): (&Stage, usize),
    (fate, number): (Fate, usize),
    usual: Duration,
) -> Result<(Duration, Vec<String>), (Duration, String)> {
    let mut random = ChaCha8Rng::seed_from_u64(number as u64);
    let victim = random.next_u64() as usize % world_size;
    let mut ranks: Vec<_> = (0..world_size).map(|rank| Some(stage.start(rank, profile.name))).collect();
    let mut killed = ranks[victim].take().expect("the victim");
    if number % EARLY != 0 {
        begun(&mut killed);
    }
    let start = Instant::now();
    let send = |signal| kill_process(Pid::from_child(&killed), signal).expect("the victim is there");
    let moment = usual.mul_f64(1.2 * f64::from(random.next_u32()) / f64::from(u32::MAX));
    std::thread::sleep(moment.saturating_sub(start.elapsed()));
    send(if fate == Fate::Killed { Signal::KILL } else { Signal::STOP });
    let (mut all, mut wrong) = (Vec::new(), Vec::new());
    for (rank, child) in ranks.into_iter().enumerate().filter_map(|(rank, child)| Some((rank, child?))) {
        let (texts, well) = heard(child);
        match texts.as_slice() {
            [text] if well => {
                let names = text == "ready" || ranks_named(text).contains(&victim);
                if !names && profile.names_victims {
                    wrong.push(format!("rank {rank}, which survived rank {victim}, says {text:?}"));
                }
                let kind = text.split(':').next().unwrap_or_default();
                if profile.names_victims && text != "ready" && !KINDS.contains(&kind) {
                    wrong.push(format!(
                        "rank {rank}, which survived rank {victim}, has an error of another kind: {text:?}"
                    ));
                }
            }
            _ => wrong.push(format!("rank {rank}, which survived rank {victim}, failed: {texts:?}")),
        }
        all.extend(texts);
    }
    if fate == Fate::Stopped {
        send(Signal::CONT);
    }
    let (texts, well) = heard(killed);
    if fate == Fate::Stopped && (texts.len() != 1 || !well) {
        wrong.push(format!("rank {victim}, which was stopped, says {texts:?}"));
    }
    let left = stage.keys();
    if !left.is_empty() {
        wrong.push(format!("left by rank {victim}, and those that said {all:?}: {left:?}"));
        stage.clear();
    }
    if wrong.is_empty() { Ok((moment, all)) } else { Err((moment, wrong.join("; "))) }
}

#[cfg(test)]
mod tests {
    use super::ranks_named;

    #[test]
    fn ranks_are_read_from_errors_and_other_numbers_are_not() {
        assert_eq!(ranks_named("rank 2 of group world is gone: call 7"), [2]);
        assert_eq!(ranks_named("ranks 0, 11 and 2 did not come to call number 5"), [0, 11, 2]);
        assert_eq!(ranks_named("all_reduce number 3 did not end within 2 s: rank 1 did not come to it"), [1]);
        assert!(ranks_named("it took 3 s").is_empty());
    }
}
