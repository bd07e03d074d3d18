//! Several communicators on one device: together they fit it, or one is refused with the reason.

use cust::context::{Context, CurrentContext};
use cust::device::Device;
use cust::memory::DeviceBuffer;
use meshreduce::store::MemoryStore;
use meshreduce::{Communicator, Config, DType, Error, Op, Outcome, PrefixStore, rendezvous};
use meshreduce_checks::in_process::{again_on, config, is_again_on, open_driver};
use meshreduce_checks::latch::Latch;
use meshreduce_checks::stream::{NonBlocking, RawStream};
use meshreduce_tests::here;

const NODE: &str = "rtx3090x2";
const COMMUNICATORS: usize = 6;
/// Large enough for as many blocks as a launch may have.
const COUNT: usize = 1 << 20;

/// Meets two ranks, each on a device, in as many communicators as fit; tells on which the last one failed.
fn meet(store: &MemoryStore, rank: usize, config: &Config) -> (Vec<Communicator>, Option<Error>) {
    let mut met = Vec::new();
    for index in 0..COMMUNICATORS {
        let store = PrefixStore::new(&format!("c{index}"), store).unwrap();
        match rendezvous(&store, rank, 2, rank as u32, config) {
            Ok(Outcome::Ready(communicator)) => met.push(communicator),
            Ok(other) => panic!("{other:?}"),
            Err(error) => return (met, Some(error)),
        }
    }
    (met, None)
}

fn both_ranks(program: impl Fn(&MemoryStore, usize) + Sync) {
    open_driver();
    cust::init(cust::CudaFlags::empty()).unwrap();
    let store = MemoryStore::new();
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let (store, program) = (store.clone(), &program);
            scope.spawn(move || {
                let _context = Context::new(Device::get_device(rank as u32).unwrap()).unwrap();
                program(&store, rank);
            });
        }
    });
}

/// Not a test of its own: what the next test runs in a process that sees another node.
#[test]
fn six_communicators_are_launched_in_opposite_orders() {
    if !is_again_on(NODE) {
        return;
    }
    let all_have_launched = Latch::new(2);
    both_ranks(|store, rank| {
        let config = config().communicators_per_device(COMMUNICATORS as u32);
        let (communicators, failed) = meet(store, rank, &config);
        assert!(failed.is_none(), "{failed:?}");
        let mut lanes: Vec<_> = communicators.iter().map(|one| one.lane(0).unwrap()).collect();
        let streams: Vec<_> = (0..COMMUNICATORS).map(|_| NonBlocking::new().unwrap()).collect();
        let buffers: Vec<_> =
            (0..COMMUNICATORS).map(|_| DeviceBuffer::from_slice(&vec![1.0_f32; COUNT]).unwrap()).collect();
        CurrentContext::synchronize().unwrap();
        let order: Vec<usize> = match rank {
            0 => (0..COMMUNICATORS).collect(),
            _ => (0..COMMUNICATORS).rev().collect(),
        };
        for index in order {
            let address = buffers[index].as_device_ptr().as_raw();
            // SAFETY: the buffer outlives the work, which is waited for below.
            let work = unsafe {
                lanes[index].all_reduce_raw(
                    address,
                    address,
                    COUNT,
                    DType::F32,
                    Op::Sum,
                    streams[index].raw(),
                )
            };
            work.unwrap();
        }
        streams.iter().for_each(|stream| stream.synchronize().unwrap());
        for (buffer, communicator) in buffers.iter().zip(&communicators) {
            communicator.status().unwrap();
            assert!(buffer.as_host_vec().unwrap().iter().all(|sum| *sum == 2.0));
        }
        all_have_launched.meet();
        drop(lanes);
        communicators.into_iter().for_each(|communicator| communicator.close().unwrap());
    });
}

/// Not a test of its own, likewise.
#[test]
fn communicators_that_nobody_counted_are_refused_by_name_of_what_is_full() {
    if !is_again_on(NODE) {
        return;
    }
    let all_were_refused = Latch::new(2);
    both_ranks(|store, rank| {
        let (communicators, failed) = meet(store, rank, &config());
        let refused = failed.expect("six whole shares do not fit");
        assert!(!communicators.is_empty() && communicators.len() < COMMUNICATORS);
        match &refused {
            Error::NotResident { device, resident, taken, needed } => {
                assert_eq!(*device, rank as u32);
                assert!(taken + needed > *resident && taken <= resident);
            }
            // The other rank found it first.
            Error::RankFailed { .. } => {}
            other => panic!("{other:?}"),
        }
        let message = refused.to_string();
        assert!(message.contains("residency") && message.contains("communicators_per_device"), "{message}");
        all_were_refused.meet();
        // When one is closed there is room for another.
        let mut communicators = communicators;
        communicators.pop().unwrap().close().unwrap();
        let store = PrefixStore::new("again", store).unwrap();
        let Outcome::Ready(again) = rendezvous(&store, rank, 2, rank as u32, &config()).unwrap() else {
            panic!("not applicable")
        };
        communicators.push(again);
        communicators.into_iter().for_each(|communicator| communicator.close().unwrap());
    });
}

#[test]
fn communicators_that_were_counted_run_in_any_order_and_others_are_refused() {
    again_on(NODE, here!("six_communicators_are_launched_in_opposite_orders"));
    again_on(NODE, here!("communicators_that_nobody_counted_are_refused_by_name_of_what_is_full"));
}
