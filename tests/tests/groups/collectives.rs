//! Every collective of every backend of host memory against the plain reference, whatever the ranks and wherever they meet.

use std::sync::Arc;

use meshreduce_checks::groups::case::{Case, cases};
use meshreduce_checks::groups::plain::{Fault, Plain};
use meshreduce_checks::groups::profile::Profile;
use meshreduce_checks::groups::runner::{Meeting, rank, refused, threads};
use meshreduce_process_group::DeviceType;
use meshreduce_process_group::store::{MemoryStore, Store};
use meshreduce_tests::here;
use meshreduce_tests::rank_process::{Part, Stage, heard};

/// Every third case: threads of other tests wait for the processor meanwhile.
fn some(world_size: usize) -> Vec<Case> {
    cases(world_size).into_iter().step_by(3).collect()
}

fn run(profile: &Profile, meeting: Meeting, world_size: usize, cases: &[Case]) {
    let judged =
        threads(meeting, world_size, |store, number| rank(profile, store, (number, world_size), cases, 1));
    let judged: Result<Vec<_>, String> = judged.into_iter().collect();
    let judged = judged.unwrap_or_else(|error| panic!("{}: {error}", profile.name));
    let refused = refused(cases, &judged).unwrap_or_else(|error| panic!("{}: {error}", profile.name));
    eprintln!(
        "{}: {} of {} cases on {world_size} ranks, {refused} refused",
        profile.name,
        cases.len() - refused,
        cases.len()
    );
    assert!(refused < cases.len());
}

#[test]
fn every_collective_of_4_ranks_gives_what_the_reference_gives() {
    for profile in Profile::all(DeviceType::Cpu) {
        run(&profile, Meeting::Memory, 4, &cases(4));
    }
}

#[test]
fn a_world_of_one_is_a_world() {
    for profile in Profile::all(DeviceType::Cpu) {
        run(&profile, Meeting::Memory, 1, &cases(1));
    }
}

#[test]
fn two_three_and_five_ranks_do_as_four() {
    for profile in Profile::all(DeviceType::Cpu) {
        for world_size in [2, 3, 5] {
            run(&profile, Meeting::Memory, world_size, &some(world_size));
        }
    }
}

#[test]
fn ranks_meet_over_a_folder_or_a_server() {
    for profile in Profile::all(DeviceType::Cpu) {
        for meeting in [Meeting::File, Meeting::Tcp] {
            run(&profile, meeting, 3, &cases(3).into_iter().step_by(11).collect::<Vec<_>>());
        }
    }
}

/// Not a test of its own: what the test below runs as processes.
#[test]
fn group_rank() {
    let Some(part) = Part::of_this_process() else { return };
    let profiles = Profile::all(DeviceType::Cpu);
    let profile = profiles.iter().find(|profile| profile.name == part.name).expect("a backend");
    let (number, world_size) = (part.rank, part.world_size);
    part.say("here");
    let store: Arc<dyn Store> = Arc::from(part.store);
    if let Err(error) = rank(profile, store, (number, world_size), &some(world_size), 2) {
        panic!("{error}");
    }
}

#[test]
fn ranks_may_be_processes() {
    for profile in Profile::all(DeviceType::Cpu) {
        for stage in [
            Stage::without_a_node(here!("group_rank"), 3),
            Stage::without_a_node_over_tcp(here!("group_rank"), 3),
        ] {
            let ranks: Vec<_> = (0..3).map(|rank| stage.start(rank, profile.name)).collect();
            for rank in ranks {
                let (said, well) = heard(rank);
                assert!(well && said == ["here"], "{}: {said:?}", profile.name);
            }
            assert!(stage.keys().is_empty(), "{}: {:?}", profile.name, stage.keys());
        }
    }
}

#[test]
fn a_backend_that_does_wrong_is_found_out() {
    // At once: where one rank sees it before the others do, these wait for it in vain.
    std::thread::scope(|scope| {
        for fault in Fault::ALL {
            scope.spawn(move || {
                // SAFETY: the suite's tensors have guards behind them, and its inputs are its own.
                let profile = Profile::plain(unsafe { Plain::with(fault) });
                let found = found_in(&profile);
                let is_seen = |error: &String| {
                    ["element ", "byte ", "refuses", "received from"].iter().any(|text| error.contains(text))
                };
                assert!(found.iter().any(is_seen), "nobody minds {fault:?}: {found:?}");
            });
        }
    });
}

/// What the ranks say is wrong with the backend. The store is not looked at: what was aborted may leave keys there.
fn found_in(profile: &Profile) -> Vec<String> {
    let (store, cases) = (MemoryStore::new(), cases(4));
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..4)
            .map(|number| {
                let (store, cases) = (store.clone(), &cases);
                scope.spawn(move || rank(profile, Arc::new(store), (number, 4), cases, 3))
            })
            .collect();
        ranks.into_iter().filter_map(|rank| rank.join().unwrap().err()).collect()
    })
}
