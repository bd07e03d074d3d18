//! Every collective on NCCL's communicators against the plain reference: all operations, types, reductions and layouts.

use std::sync::Arc;

use meshreduce_checks::groups::case::{Case, cases};
use meshreduce_checks::groups::profile::Profile;
use meshreduce_checks::groups::runner::{Meeting, rank, refused, threads};
use meshreduce_checks::in_process::alone;
use meshreduce_process_group::store::Store;
use meshreduce_tests::here;
use meshreduce_tests::on_nccl::open;
use meshreduce_tests::rank_process::{Part, Stage, heard};

fn run(meeting: Meeting, world_size: usize, cases: &[Case]) {
    let _alone = alone();
    open();
    let profile = Profile::nccl();
    let judged =
        threads(meeting, world_size, |store, number| rank(&profile, store, (number, world_size), cases, 1));
    let judged: Result<Vec<_>, String> = judged.into_iter().collect();
    let refused = judged.and_then(|judged| refused(cases, &judged)).unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{} of {} cases on {world_size} ranks, {refused} refused", cases.len() - refused, cases.len());
    assert!(refused < cases.len() / 2);
}

/// Every `step`th case.
fn some(world_size: usize, step: usize) -> Vec<Case> {
    cases(world_size).into_iter().step_by(step).collect()
}

#[test]
fn every_collective_of_3_ranks_gives_what_the_reference_gives() {
    run(Meeting::Memory, 3, &cases(3));
}

#[test]
fn one_two_and_four_ranks_do_as_three() {
    for (world_size, step) in [(1, 3), (2, 2), (4, 3)] {
        run(Meeting::Memory, world_size, &some(world_size, step));
    }
}

#[test]
fn ranks_meet_over_a_folder_or_a_server() {
    for meeting in [Meeting::File, Meeting::Tcp] {
        run(meeting, 2, &some(2, 29));
    }
}

/// Not a test of its own: what the test below runs as processes.
#[test]
fn collectives_rank() {
    let Some(part) = Part::of_this_process() else { return };
    open();
    let (number, world_size) = (part.rank, part.world_size);
    part.say("here");
    let store: Arc<dyn Store> = Arc::from(part.store);
    if let Err(error) = rank(&Profile::nccl(), store, (number, world_size), &some(world_size, 3), 2) {
        panic!("{error}");
    }
}

#[test]
fn ranks_may_be_processes() {
    let stage = Stage::new(here!("collectives_rank"), 3);
    let ranks: Vec<_> = (0..3).map(|rank| stage.start(rank, "")).collect();
    for rank in ranks {
        assert_eq!(heard(rank), (vec!["here".to_owned()], true));
    }
    assert_eq!(stage.keys(), [] as [String; 0]);
}
