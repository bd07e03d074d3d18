//! Several groups at once on one device: what waits for what, and how they end together.

use std::sync::Arc;
use std::time::Duration;

use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use meshreduce_checks::latch::Latch;
use meshreduce_process_group::store::{PrefixStore, Store};
use meshreduce_process_group::{DeviceType, Error, ProcessGroup};
use meshreduce_tests::on_nccl::{FAR, Numbers, enter, on, start, with_stores};

const RANKS: usize = 2;

fn group(store: &Arc<dyn Store>, rank: usize, name: &str) -> ProcessGroup {
    let store = PrefixStore::new(name, Arc::clone(store)).unwrap();
    let group = ProcessGroup::builder(Arc::new(store), rank, RANKS)
        .backend("cuda:mesh".parse().unwrap())
        .cuda_device(rank as u32)
        .forbid_fallback(true)
        .timeout(FAR)
        .deadline(Some(FAR))
        .dump_to(None)
        .build()
        .unwrap();
    group.connect(DeviceType::Cuda).unwrap();
    group
}

fn stream() -> Stream {
    Stream::new(StreamFlags::NON_BLOCKING, None).unwrap()
}

#[test]
fn freeing_device_memory_waits_for_the_kernels_of_any_group_and_freeing_by_stream_does_not() {
    let (freed_by_stream, frees) = (Latch::new(1), Latch::new(1));
    with_stores(RANKS, |store, rank| {
        let group = group(&store, rank, "world");
        let (calls, other) = (stream(), stream());
        let numbers = Numbers::new(rank, 64, 1.0);
        let call = || start(&on(&group, calls.as_inner()), &numbers.all_reduce()).unwrap();
        if rank == 0 {
            // SAFETY: nothing uses the memory.
            let memory = unsafe { DeviceBuffer::<f32>::uninitialized_async(64, &other) }.unwrap();
            let pending = call();
            memory.drop_async(&other).unwrap();
            other.synchronize().unwrap();
            assert!(!pending.is_completed().unwrap(), "the other rank has not come");
            freed_by_stream.come();
            pending.wait(Some(FAR)).unwrap();

            // SAFETY: as above.
            let memory = unsafe { DeviceBuffer::<f32>::uninitialized(64) }.unwrap();
            let pending = call();
            frees.come();
            drop(memory);
            assert!(pending.is_completed().unwrap(), "the device is idle when memory has been freed");
        } else {
            for may_come in [&freed_by_stream, &frees] {
                may_come.wait();
                call().wait(Some(FAR)).unwrap();
            }
        }
        group.shutdown().unwrap();
    });
}

#[test]
fn any_number_of_groups_is_aborted_by_another_thread_in_any_order_and_all_that_is_pending_ends_with_the_cause()
 {
    let begun = Latch::new(RANKS);
    with_stores(RANKS, |store, rank| {
        let groups = ["one", "two", "three"].map(|name| group(&store, rank, name));
        let (numbers, streams) = ([(); 3].map(|()| Numbers::new(rank, 64, 1.0)), [(); 3].map(|()| stream()));
        // Rank 0 calls on all of them, rank 1 on none: nothing can end by itself.
        let pending: Vec<_> = (0..if rank == 0 { 3 } else { 0 })
            .map(|at| start(&on(&groups[at], streams[at].as_inner()), &numbers[at].all_reduce()).unwrap())
            .collect();
        begun.meet();
        let order = if rank == 0 { [0, 1, 2] } else { [2, 0, 1] };
        std::thread::scope(|scope| {
            for at in order {
                let groups = &groups;
                scope.spawn(move || groups[at].abort("enough"));
            }
        });
        for work in &pending {
            let error = work.wait(Some(FAR)).unwrap_err();
            assert!(matches!(&error, Error::Aborted { cause, .. } if cause.contains("enough")), "{error}");
        }
        for (group, numbers) in groups.iter().zip(&numbers) {
            let errors = [start(group, &numbers.all_reduce()).map(drop), group.shutdown()];
            for error in errors.map(Result::unwrap_err) {
                assert!(
                    matches!(&error, Error::Aborted { cause, .. } if cause.contains("enough")),
                    "{error}"
                );
            }
        }
        // Nothing runs any more.
        streams.iter().for_each(|stream| stream.synchronize().unwrap());
        numbers.iter().for_each(|numbers| drop(numbers.read()));
    });
}

#[test]
fn a_receive_by_channels_ends_with_the_abort_of_another_thread() {
    let begun = Latch::new(RANKS);
    with_stores(RANKS, |store, rank| {
        let group = group(&store, rank, "world");
        let numbers = Numbers::new(rank, 64, rank as f32);
        let (transfer, back) =
            if rank == 0 { (numbers.send(1), numbers.recv(1)) } else { (numbers.recv(0), numbers.send(0)) };
        start(&group, &transfer).unwrap().wait(Some(FAR)).unwrap();
        if rank == 0 {
            let pending = start(&group, &back).unwrap();
            begun.meet();
            std::thread::scope(|scope| scope.spawn(|| group.abort("enough")).join()).unwrap();
            let error = pending.wait(Some(FAR)).unwrap_err();
            assert!(matches!(&error, Error::Aborted { cause, .. } if cause.contains("enough")), "{error}");
        } else {
            // What would be received is never sent.
            begun.meet();
            assert!(group.shutdown().is_err());
        }
        numbers.read();
    });
}

#[test]
fn a_wait_that_ends_early_says_so_and_the_call_ends_well_when_the_other_rank_comes_also_for_another_stream() {
    let waited = Latch::new(RANKS);
    with_stores(RANKS, |store, rank| {
        let group = group(&store, rank, "world");
        let (numbers, [own, other]) = (Numbers::new(rank, 64, rank as f32 + 1.0), [(); 2].map(|()| stream()));
        let call = || start(&on(&group, own.as_inner()), &numbers.all_reduce()).unwrap();
        let work = if rank == 0 {
            let (work, early) = (call(), Duration::from_millis(20));
            let error = work.wait(Some(early)).unwrap_err();
            assert!(matches!(error, Error::StillRunning { waited, .. } if waited >= early), "{error}");
            assert!(group.error().is_none());
            waited.meet();
            work
        } else {
            waited.meet();
            call()
        };
        // SAFETY: it is a stream of the rank's primary context.
        unsafe { work.wait_on(other.as_inner()) }.unwrap();
        other.synchronize().unwrap();
        assert!(work.is_completed().unwrap(), "the other stream has waited for it");
        work.wait(Some(FAR)).unwrap();
        assert_eq!(numbers.read(), [3.0; 64]);
        group.shutdown().unwrap();
    });
}

#[test]
fn three_groups_on_three_threads_run_side_by_side_where_nothing_waits_for_the_device_and_end_in_any_order() {
    const ROUNDS: usize = 10;
    let allocated = Latch::new(RANKS);
    with_stores(RANKS, |store, rank| {
        let groups = ["one", "two", "three"].map(|name| group(&store, rank, name));
        let numbers = [(); 3].map(|()| Numbers::new(rank, 1000, 1.0));
        let streams = [(); 3].map(|()| stream());
        // What was allocated on the other rank waits for nothing of this one's.
        allocated.meet();
        std::thread::scope(|scope| {
            for ((group, numbers), stream) in groups.iter().zip(&numbers).zip(&streams) {
                let (group, call) = (on(group, stream.as_inner()), numbers.all_reduce());
                scope.spawn(move || {
                    let _context = enter(rank);
                    for _ in 0..ROUNDS {
                        start(&group, &call).unwrap().wait(Some(FAR)).unwrap();
                    }
                });
            }
        });
        for numbers in &numbers {
            assert_eq!(numbers.read(), [2.0_f32.powi(ROUNDS as i32); 1000]);
        }
        let [one, two, three] = &groups;
        let order = if rank == 0 { [one, two, three] } else { [three, one, two] };
        ProcessGroup::shutdown_all(&order).unwrap();
    });
}
