//! Ranks of a process group that are killed, or stopped, at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use meshreduce_checks::groups::profile::Profile;
use meshreduce_process_group::DeviceType;
use meshreduce_tests::groups::kills::{Fate, RANKS, kill, rank};
use meshreduce_tests::rank_process::{Part, Stage, kills};

/// How often a rank of the backend of this package is killed, whose waits are long; of the library's, [`kills`], on each store.
const FEW: usize = 12;

/// Not a test of its own: what the tests below run as processes.
#[test]
fn group_rank() {
    let Some(part) = Part::of_this_process() else { return };
    let profiles: Vec<_> = DeviceType::ALL.into_iter().flat_map(Profile::all).collect();
    let profile = profiles.iter().find(|profile| profile.name == part.name).expect("a backend");
    rank(profile, part);
}

/// The shared memory and the temporary files that the library's name is in.
fn shared_memory_and_files() -> BTreeSet<String> {
    let folders = [PathBuf::from("/dev/shm"), std::env::temp_dir()];
    let entries = folders.into_iter().flat_map(std::fs::read_dir).flatten().flatten();
    let paths = entries.map(|entry| entry.path().to_string_lossy().into_owned());
    paths.filter(|path| path.contains("meshreduce")).collect()
}

/// Does something, and sees that nothing stays of it.
fn leaving_nothing(act: impl FnOnce()) {
    let before = shared_memory_and_files();
    act();
    // Other programs on this machine may have theirs.
    let left: Vec<_> = shared_memory_and_files().difference(&before).cloned().collect();
    assert!(left.iter().all(|name| is_in_use(name)), "{left:?}");
}

/// A rank of MPI that dies ends the whole job, as MPI does: there are no survivors to ask.
fn backends() -> impl Iterator<Item = Profile> {
    Profile::all(DeviceType::Cpu).into_iter().filter(|profile| profile.name != "mpi")
}

fn all(stage: impl Fn() -> Stage + Sync) {
    leaving_nothing(|| {
        for profile in backends() {
            let kills = if profile.names_victims { kills() } else { FEW };
            let said: BTreeMap<_, _> = kill(&profile, (Fate::Killed, kills), RANKS, &stage);
            eprintln!(
                "{}: the survivors of {kills} kills of one of {RANKS} ranks said: {said:?}",
                profile.name
            );
            let failed = said.keys().filter(|kind| *kind != "ready").count();
            assert!(failed > 0, "{}: no kill was felt", profile.name);
        }
    });
}

/// Whether a process has the file mapped.
fn is_in_use(name: &str) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| std::fs::read_to_string(process.path().join("maps")).ok())
        .any(|maps| maps.contains(name))
}

/// Kills ranks of each backend of CUDA devices on the emulated node.
fn on_devices(kills: usize) {
    leaving_nothing(|| {
        for profile in Profile::all(DeviceType::Cuda) {
            let said = kill(&profile, (Fate::Killed, kills), RANKS, || Stage::new("group_rank", RANKS));
            eprintln!(
                "{}: the survivors of {kills} kills of one of {RANKS} ranks said: {said:?}",
                profile.name
            );
        }
    });
}

#[test]
fn survivors_with_devices_get_a_result_or_an_error_that_names_the_victim() {
    on_devices(FEW);
}

/// The same at 200 moments, which takes minutes: `cargo xtask test --package meshreduce-tests --test group_kills -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn survivors_of_200_kills_with_devices_get_a_result_or_an_error_that_names_the_victim() {
    on_devices(200);
}

#[test]
fn survivors_of_a_kill_get_a_result_or_an_error_that_names_the_victim_over_a_folder() {
    all(|| Stage::without_a_node("group_rank", RANKS));
}

#[test]
fn survivors_of_a_kill_get_a_result_or_an_error_that_names_the_victim_over_a_tcp_store() {
    all(|| Stage::without_a_node_over_tcp("group_rank", RANKS));
}

/// Stops ranks of each backend, or kills them in a larger group. (A stopped rank may hold a folder's lock, which is an error of its own.)
fn of_many(fate: Fate, times: usize) {
    let ranks = 5;
    for profile in backends().chain(Profile::all(DeviceType::Cuda)).filter(|profile| profile.names_victims) {
        let stage = || match profile.device {
            DeviceType::Cpu => Stage::without_a_node_over_tcp("group_rank", ranks),
            DeviceType::Cuda => Stage::over_tcp("group_rank", ranks),
        };
        let said = kill(&profile, (fate, times), ranks, stage);
        eprintln!("{}: {fate:?} {times} times, the others of {ranks} ranks said: {said:?}", profile.name);
    }
}

#[test]
fn ranks_of_which_one_is_stopped_get_a_result_or_an_error_that_names_it_and_so_does_that_one() {
    of_many(Fate::Stopped, 4);
}

/// The same at 50 moments, and as many kills, which takes minutes.
#[test]
#[ignore = "takes minutes"]
fn of_five_ranks_50_are_stopped_and_50_killed() {
    of_many(Fate::Stopped, 50);
    of_many(Fate::Killed, 50);
}
