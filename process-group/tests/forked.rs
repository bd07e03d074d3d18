//! A child that was forked from a process with groups. The only test of its program: children of programs with other tests have those
//! threads' locks.
#![allow(clippy::unwrap_used, reason = "a test may end so")]

use std::sync::Arc;
use std::time::Duration;

use meshreduce_process_group::store::{MemoryStore, Store};
use meshreduce_process_group::{DeviceType, Error, GroupOptions, ProcessGroup, ReduceOp};

/// How long the child may take, in seconds.
const SOON: u32 = 30;

#[test]
fn a_forked_child_is_told_and_the_parent_goes_on() {
    let store = Arc::new(MemoryStore::new());
    let made: Vec<ProcessGroup> = (0..2)
        .map(|rank| ProcessGroup::builder(Arc::clone(&store) as _, rank, 2).dump_to(None).build().unwrap())
        .collect();
    let sum = |groups: &[ProcessGroup]| {
        std::thread::scope(|scope| {
            for group in groups {
                scope.spawn(move || {
                    let mut data = [1.0_f32; 100];
                    group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
                    assert_eq!(data, [2.0; 100]);
                });
            }
        });
    };
    sum(&made);
    let pending = made[0].recv_owned(vec![0.0_f32; 4], Some(1), 0).unwrap();
    // SAFETY: the child allocates, which glibc allows it, and ends without running anything at exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: ends the child if it waits for what never comes.
        unsafe { libc::alarm(SOON) };
        let is_forked = |error: Error| matches!(&error, Error::Forked { group } if &**group == "world");
        let (data, received) = pending.wait();
        let group = &made[0];
        let good = received.is_err_and(is_forked)
            && data.len() == 4
            && group.all_reduce(&mut [1.0_f32], ReduceOp::Sum).is_err_and(is_forked)
            && group.send_owned(vec![1.0_f32], 1, 0).is_err_and(is_forked)
            && group.connect(DeviceType::Cpu).is_err_and(is_forked)
            && group.new_group(&[0, 1], &GroupOptions::default()).is_err_and(is_forked)
            && group.monitored_barrier(Duration::from_secs(1)).is_err_and(is_forked)
            && group.error().is_some_and(is_forked)
            && group.shutdown().is_err_and(is_forked);
        group.abort("the parent is not to hear of it");
        drop(made);
        // SAFETY: the process ends here.
        unsafe { libc::_exit(if good { 0 } else { 1 }) };
    }
    let mut status = -1;
    // SAFETY: the place outlives the call, and the child is this process's.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    sum(&made);
    made[1].send(&[5.0_f32; 4], 0, 0).unwrap();
    let (data, received) = pending.wait();
    received.unwrap();
    assert_eq!(data, [5.0; 4]);
    std::thread::scope(|scope| {
        for group in &made {
            scope.spawn(move || group.shutdown().unwrap());
        }
    });
    drop(made);
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}
