//! Every collective of every backend of CUDA devices against the plain reference, on the emulated node.

use std::sync::MutexGuard;

use meshreduce_checks::groups::case::{Case, cases};
use meshreduce_checks::groups::profile::Profile;
use meshreduce_checks::groups::runner::{Meeting, group, rank, refused, threads};
use meshreduce_checks::groups::values::Exactness;
use meshreduce_checks::in_process::alone;
use meshreduce_process_group::DeviceType;
use meshreduce_tests::groups::bad::{self, RANK, RANKS};
use meshreduce_tests::on_nccl::open;

/// Kernels on the emulated node take long, so that each is called on few elements, and not all are called.
fn some(world_size: usize) -> Vec<Case> {
    let is_small =
        |case: &Case| (0..world_size).all(|rank| case.input_counts(rank).iter().sum::<usize>() < 2000);
    cases(world_size).into_iter().filter(is_small).step_by(2).collect()
}

/// The emulated node's devices and its stand-in for NCCL, for this test alone.
fn devices() -> MutexGuard<'static, ()> {
    let alone = alone();
    open();
    alone
}

#[test]
fn every_collective_of_devices_gives_what_the_reference_gives() {
    let _alone = devices();
    for all in Profile::all(DeviceType::Cuda) {
        for world_size in [1, 2, 4, 8] {
            // A world of one computes nothing: what it has it keeps, whatever NaN that is.
            let exactness = if world_size == 1 { Exactness::AnyOrder } else { all.exactness };
            let profile = Profile { exactness, ..all.clone() };
            let few = if world_size > 4 { 10 } else { 1 };
            let some: Vec<Case> = some(world_size).into_iter().step_by(few).collect();
            let judged = threads(Meeting::Memory, world_size, |store, number| {
                rank(&profile, store, (number, world_size), &some, 1)
            });
            let judged: Result<Vec<_>, String> = judged.into_iter().collect();
            let judged = judged.unwrap_or_else(|error| panic!("{}: {error}", profile.name));
            let refused = refused(&some, &judged).unwrap_or_else(|error| panic!("{}: {error}", profile.name));
            eprintln!("{}: {refused} of {} cases on {world_size} ranks refused", profile.name, some.len());
            assert!(refused < some.len());
        }
    }
}

#[test]
fn a_call_with_device_memory_that_makes_no_sense_gets_its_error() {
    let _alone = devices();
    for profile in Profile::all(DeviceType::Cuda) {
        threads(Meeting::Memory, RANKS, |store, rank| {
            let group = group(&profile, store, rank, RANKS).unwrap();
            if rank == RANK {
                let device = cust::device::Device::get_device(rank as u32).unwrap();
                let _context = cust::context::Context::new(device).unwrap();
                bad::calls(&group, &profile).unwrap();
                bad::parts(&group).unwrap();
            }
            bad::devices(&group, &profile).unwrap();
            group.shutdown().unwrap();
        });
    }
}
