//! Parties that are killed or stopped at random moments.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use meshreduce_checks::channels::{Cast, Role};

/// How soon the other party must know of it, beyond the limit of silence.
const IN_TIME: Duration = Duration::from_secs(20);
/// The limit of silence where a party is stopped.
const SILENCE: Duration = Duration::from_secs(2);

/// What happens to a party.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is killed (SIGKILL).
    Killed,
    /// It is stopped (SIGSTOP), and killed when the other party has given it up.
    Stopped,
}

/// Plays until one party meets its fate, `times` times: in turn A and B, each at another moment. The other party must say in time
/// that it has lost this one, and leave nothing behind.
///
/// # Panics
///
/// If it does not.
pub fn play(cast: &Cast, fate: Fate, times: u32) {
    let cast = match fate {
        Fate::Killed => cast.clone(),
        Fate::Stopped => cast.clone().with_silence(SILENCE),
    };
    for time in 0..times {
        let (victim, survivor) = if time % 2 == 0 { (Role::A, Role::B) } else { (Role::B, Role::A) };
        let mut stage = cast.stage("until_the_other_is_lost");
        stage.wait_for("begun", Role::A);
        stage.wait_for("begun", Role::B);
        // Spread evenly, in no order.
        let moment = u64::from(time).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        std::thread::sleep(Duration::from_micros(moment % 60_000));
        let players = stage.players();
        let id = players[victim as usize].id();
        let signal = if fate == Fate::Killed { Signal::KILL } else { Signal::STOP };
        let pid = Pid::from_raw(id as i32).expect("a process id");
        kill_process(pid, signal).expect("the party is there");
        let begun = Instant::now();
        let (is_well, said) = players[survivor as usize].end();
        assert!(is_well, "{fate:?} {time}: {said}");
        let lost = said.lines().find_map(|line| line.strip_prefix("LOST ")).unwrap_or_default();
        assert!(lost.starts_with(&format!("party {victim} (process {id} ")), "{fate:?} {time}: {said}");
        assert!(begun.elapsed() < SILENCE + IN_TIME, "{fate:?} {time}: only after {:?}", begun.elapsed());
        players[victim as usize].kill();
    }
}
