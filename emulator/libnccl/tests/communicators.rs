//! How communicators begin, are split, fail and end.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::ptr;
use std::sync::Barrier;

use meshreduce_driver_loader::sys as cuda;
use meshreduce_nccl_loader::sys::{
    self, NCCL_SHRINK_ABORT, NCCL_SPLIT_NOCOLOR, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t,
    ncclResult_t,
};
use meshreduce_nccl_loader::{Error, Progress, Version, check_version, functions, result, version};

use support::{Device, Rank, cuda_ok, not_blocking, ranks, wait};

/// The code of a call that NCCL refused, and what it says of it.
fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>) -> (ncclResult_t, String) {
    match outcome {
        Err(Error::Nccl(error)) => (error.code, error.last.unwrap_or_default()),
        other => panic!("{other:?}"),
    }
}

fn hook(name: &str, comm: ncclComm_t, argument: i32) {
    let address = meshreduce_nccl_loader::symbol(name).unwrap();
    // SAFETY: the stand-in's hooks have this signature.
    let code = unsafe {
        let function: unsafe extern "C" fn(ncclComm_t, i32) -> i32 = std::mem::transmute(address);
        function(comm, argument)
    };
    assert_eq!(code, 0);
}

fn all_reduce(rank: &Rank, bytes: usize) -> Result<Progress, Error> {
    let memory = rank.device.buffer(&vec![1; bytes]);
    let (data, op) = (ncclDataType_t::UINT8, ncclRedOp_t::SUM);
    // SAFETY: the buffer is large enough and never freed; communicator and stream are alive.
    unsafe { result::all_reduce(memory, memory, bytes, data, op, rank.comm, rank.device.stream) }
}

#[test]
fn it_has_every_function_and_a_version() {
    support::open();
    let absent: Vec<_> = functions().iter().filter(|function| !function.is_present()).collect();
    assert!(absent.is_empty(), "{absent:?}");
    let found = version().unwrap();
    assert!(
        functions().iter().all(|function| function.since <= found),
        "{found} has functions of later versions"
    );
    assert_eq!(check_version(found), Ok(()));
    let needed = Version::new(3, 0, 0);
    assert!(
        matches!(check_version(needed), Err(Error::TooOld(error)) if (error.needed, error.found) == (needed, found))
    );
}

#[test]
fn a_communicator_knows_its_size_rank_and_device() {
    ranks(3, |rank| {
        // SAFETY: the communicator is alive.
        unsafe {
            assert_eq!(result::comm_count(rank.comm), Ok(3));
            assert_eq!(result::comm_user_rank(rank.comm), Ok(rank.rank as i32));
            assert_eq!(result::comm_cu_device(rank.comm), Ok(rank.rank as i32));
            assert_eq!(result::comm_finalize(rank.comm), Ok(Progress::Done));
        }
        assert!(all_reduce(&rank, 1).is_err(), "it is finalized");
        rank.destroy();
    });
}

#[test]
fn what_nccl_refuses_is_refused() {
    ranks(2, |rank| {
        let (comm, stream) = (rank.comm, rank.device.stream);
        let memory = rank.device.buffer(&[0; 64]);
        let (byte, sum) = (ncclDataType_t::UINT8, ncclRedOp_t::SUM);
        let call = |memory, count, data, op, comm| {
            // SAFETY: what is wrong is found before anything is done.
            refused(unsafe { result::all_reduce(memory, memory, count, data, op, comm, stream) })
        };
        let invalid = ncclResult_t::INVALID_ARGUMENT;
        for (what, (code, _)) in [
            ("null", call(memory, 8, byte, sum, ptr::null_mut())),
            ("no communicator", call(memory, 8, byte, sum, 0x1234_5678 as ncclComm_t)),
            ("type", call(memory, 8, ncclDataType_t(10), sum, comm)),
            ("operation", call(memory, 8, byte, ncclRedOp_t(7), comm)),
            ("more than is allocated", call(memory, 1 << 30, byte, sum, comm)),
            ("no memory", call(0, 8, byte, sum, comm)),
            ("count", call(memory, usize::MAX / 2, byte, sum, comm)),
        ] {
            assert_eq!(code, invalid, "{what}");
        }
        for root in [-1, 2] {
            // SAFETY: as above.
            let code = refused(unsafe { result::broadcast(memory, memory, 8, byte, root, comm, stream) }).0;
            assert_eq!(code, invalid);
        }
        assert_eq!(rank.sum(3), Ok(6), "nothing of it was done");
        rank.destroy();
    });
}

#[test]
fn a_call_of_no_elements_does_nothing() {
    ranks(2, |rank| {
        let (data, op) = (ncclDataType_t::UINT8, ncclRedOp_t::SUM);
        // One rank alone: the other one is not waited for.
        if rank.rank == 0 {
            // SAFETY: no memory is needed for no elements.
            let outcome = unsafe { result::all_reduce(0, 0, 0, data, op, rank.comm, rank.device.stream) };
            assert_eq!(outcome, Ok(Progress::Done));
        }
        rank.device.synchronize();
        rank.destroy();
    });
}

#[test]
fn ranks_on_one_device_are_refused() {
    support::open();
    let id = result::unique_id().unwrap();
    std::thread::scope(|scope| {
        for rank in 0..2 {
            scope.spawn(move || {
                let _device = Device::new(0);
                // SAFETY: the device's context is current.
                let outcome = refused(unsafe { result::comm_init_rank(2, id, rank) });
                assert_eq!(outcome.0, ncclResult_t::INVALID_USAGE);
            });
        }
    });
}

#[test]
fn an_id_is_used_once() {
    support::open();
    let id = result::unique_id().unwrap();
    let init = || {
        let device = Device::new(0);
        // SAFETY: the device's context is current.
        (unsafe { result::comm_init_rank(1, id, 0) }, device)
    };
    let (comm, _device) = init();
    // SAFETY: the communicator is alive.
    let _ = unsafe { result::comm_destroy(comm.unwrap()) }.unwrap();
    let (code, _) = refused(init().0);
    assert_eq!(code, ncclResult_t::REMOTE_ERROR);
}

#[test]
fn communicators_of_one_thread_begin_in_a_group() {
    support::open();
    let id = result::unique_id().unwrap();
    let devices: Vec<_> = (0..3).map(Device::new).collect();
    result::group_start().unwrap();
    let comms: Vec<_> = (0..3)
        .map(|rank| {
            // SAFETY: the contexts are alive.
            unsafe {
                cuda_ok(cuda::cuCtxPushCurrent_v2(devices[rank as usize].context));
                let comm = result::comm_init_rank(3, id, rank).unwrap();
                cuda_ok(cuda::cuCtxPopCurrent_v2(&mut ptr::null_mut()));
                comm
            }
        })
        .collect();
    // SAFETY: what was collected needs no memory.
    assert_eq!(unsafe { result::group_end() }, Ok(Progress::Done));
    for (rank, comm) in comms.iter().enumerate() {
        // SAFETY: the communicator is alive.
        unsafe {
            assert_eq!(result::comm_user_rank(*comm), Ok(rank as i32));
            let _ = result::comm_destroy(*comm).unwrap();
        }
    }
}

/// Splits, and waits for the outcome if need be.
fn split(rank: &Rank, color: i32, key: i32, config: Option<&mut ncclConfig_t>) -> ncclComm_t {
    let mut new = ptr::null_mut();
    // SAFETY: `new` lives until the split is done.
    let progress = unsafe { result::comm_split(rank.comm, color, key, &mut new, config) }.unwrap();
    if progress == Progress::InProgress {
        assert_eq!(wait(rank.comm), ncclResult_t::SUCCESS);
    }
    new
}

fn place(comm: ncclComm_t) -> (i32, i32) {
    // SAFETY: the communicator is alive.
    unsafe { (result::comm_user_rank(comm).unwrap(), result::comm_count(comm).unwrap()) }
}

#[test]
fn a_split_has_the_ranks_of_a_color_in_the_order_of_their_keys() {
    ranks(4, |rank| {
        for behind in [false, true] {
            let mut config = not_blocking();
            let config = behind.then_some(&mut config);
            let color = if rank.rank == 3 { NCCL_SPLIT_NOCOLOR } else { rank.rank as i32 % 2 };
            let child = split(&rank, color, -(rank.rank as i32), config);
            match rank.rank {
                3 => assert!(child.is_null()),
                number => {
                    assert_eq!(wait(child), ncclResult_t::SUCCESS);
                    assert_eq!(place(child), [(1, 2), (0, 1), (0, 2)][number]);
                    let child = Rank { device: Device::new(number), comm: child, rank: number, size: 0 };
                    let sum = if number == 1 { 10 } else { 20 };
                    assert_eq!(child.sum(10), Ok(sum));
                    child.destroy();
                }
            }
        }
        assert_eq!(rank.sum(1), Ok(4), "the parent goes on");
        rank.destroy();
    });
}

#[test]
fn a_shrunk_communicator_goes_on_without_a_rank_that_aborted() {
    ranks(3, |rank| {
        if rank.rank == 1 {
            // SAFETY: the communicator is alive, and not used again.
            let _ = unsafe { result::comm_abort(rank.comm) }.unwrap();
            return;
        }
        let _ = all_reduce(&rank, 8);
        assert_eq!(rank.wait_for_error(), ncclResult_t::REMOTE_ERROR);
        let mut new = ptr::null_mut();
        // SAFETY: `new` lives until the call returns.
        let _ =
            unsafe { result::comm_shrink(rank.comm, &mut [1], &mut new, None, NCCL_SHRINK_ABORT) }.unwrap();
        assert_eq!(place(new), (rank.rank as i32 / 2, 2));
        let shrunk = Rank { device: Device::new(rank.rank), comm: new, rank: rank.rank, size: 2 };
        assert_eq!(shrunk.sum(4), Ok(8));
        shrunk.destroy();
        // SAFETY: as above.
        let _ = unsafe { result::comm_abort(rank.comm) }.unwrap();
    });
}

#[test]
fn an_abort_from_another_thread_ends_a_call_that_waits_for_a_rank() {
    let begun = Barrier::new(2);
    ranks(2, |rank| {
        if rank.rank == 1 {
            // Issues nothing, and sees the other one go.
            begun.wait();
            assert_eq!(rank.wait_for_error(), ncclResult_t::REMOTE_ERROR);
            assert!(all_reduce(&rank, 8).is_err());
            // SAFETY: the communicator is alive, and not used again.
            let _ = unsafe { result::comm_abort(rank.comm) }.unwrap();
            return;
        }
        let _ = all_reduce(&rank, 8).unwrap();
        let comm = rank.comm as usize;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begun.wait();
                // SAFETY: the communicator is alive, and not used again.
                let _ = unsafe { result::comm_abort(comm as ncclComm_t) }.unwrap();
            });
            rank.device.synchronize();
        });
        // SAFETY: a handle that is none is refused.
        assert_eq!(refused(unsafe { result::comm_count(rank.comm) }).0, ncclResult_t::INVALID_ARGUMENT);
    });
}

#[test]
fn a_beginning_that_waits_for_a_rank_can_be_aborted() {
    support::open();
    let id = result::unique_id().unwrap();
    let _device = Device::new(0);
    // SAFETY: the device's context is current.
    let (comm, progress) = unsafe { result::comm_init_rank_config(2, id, 0, &mut not_blocking()) }.unwrap();
    assert_eq!(progress, Progress::InProgress);
    // SAFETY: the communicator is alive.
    unsafe {
        assert_eq!(result::comm_get_async_error(comm), Ok(ncclResult_t::IN_PROGRESS));
        assert_eq!(refused(result::comm_count(comm)).0, ncclResult_t::INVALID_ARGUMENT);
        assert_eq!(result::comm_abort(comm), Ok(Progress::Done));
        assert_eq!(refused(result::comm_count(comm)).0, ncclResult_t::INVALID_ARGUMENT);
    }
}

#[test]
fn communicators_that_do_not_block_are_asked_until_they_are_ready() {
    support::open();
    let id = result::unique_id().unwrap();
    std::thread::scope(|scope| {
        for number in 0..2 {
            scope.spawn(move || {
                let device = Device::new(number);
                // SAFETY: the device's context is current.
                let made =
                    unsafe { result::comm_init_rank_config(2, id, number as i32, &mut not_blocking()) };
                let (comm, progress) = made.unwrap();
                assert_eq!(progress, Progress::InProgress);
                assert_eq!(wait(comm), ncclResult_t::SUCCESS);
                let rank = Rank { device, comm, rank: number, size: 2 };
                assert_eq!(rank.sum(7), Ok(14));
                // SAFETY: the communicator is alive.
                assert_eq!(unsafe { result::comm_finalize(comm) }, Ok(Progress::InProgress));
                assert_eq!(wait(comm), ncclResult_t::SUCCESS);
                rank.destroy();
            });
        }
    });
}

#[test]
fn ranks_that_call_different_things_are_told() {
    ranks(2, |rank| {
        let data = ncclDataType_t::INT32;
        let memory = rank.device.buffer(&[0; 64]);
        let (comm, stream) = (rank.comm, rank.device.stream);
        let count = if rank.rank == 0 { 16 } else { 12 };
        // SAFETY: the buffer is large enough and never freed; communicator and stream are alive.
        let _ = unsafe { result::all_reduce(memory, memory, count, data, ncclRedOp_t::SUM, comm, stream) }
            .unwrap();
        let error = rank.wait_for_error();
        assert!([ncclResult_t::INVALID_USAGE, ncclResult_t::REMOTE_ERROR].contains(&error), "{error:?}");
        rank.device.synchronize();
        // SAFETY: the communicator is alive, and not used again.
        let _ = unsafe { result::comm_abort(comm) }.unwrap();
    });
}

#[test]
fn a_rank_may_leave_as_soon_as_its_own_part_is_done() {
    for _ in 0..20 {
        ranks(3, |rank| {
            assert_eq!(rank.sum(rank.rank as i64), Ok(3));
            rank.destroy();
        });
    }
}

#[test]
fn an_error_that_a_test_asks_for_ends_what_is_pending() {
    let seen = Barrier::new(2);
    ranks(2, |rank| {
        if rank.rank == 0 {
            let _ = all_reduce(&rank, 8).unwrap();
            hook("meshreduceNcclFail", rank.comm, ncclResult_t::SYSTEM_ERROR.0);
            rank.device.synchronize();
            assert_eq!(rank.async_error(), ncclResult_t::SYSTEM_ERROR);
            assert_eq!(refused(all_reduce(&rank, 8)).0, ncclResult_t::SYSTEM_ERROR);
        }
        // Else the other rank's end would be the error.
        seen.wait();
        // SAFETY: the communicator is alive, and not used again.
        let _ = unsafe { result::comm_abort(rank.comm) }.unwrap();
    });
}

#[test]
fn an_abort_can_be_made_to_take_its_time() {
    ranks(1, |rank| {
        hook("meshreduceNcclDelayAbort", rank.comm, 300);
        let began = std::time::Instant::now();
        // SAFETY: the communicator is alive, and not used again.
        let _ = unsafe { result::comm_abort(rank.comm) }.unwrap();
        assert!(began.elapsed() >= std::time::Duration::from_millis(300));
    });
}

#[test]
fn registered_memory_has_a_handle_until_it_is_given_back() {
    ranks(1, |rank| {
        let memory = result::mem_alloc(4096).unwrap();
        // SAFETY: the memory is alive, and communicator and handle are.
        unsafe {
            let handle = result::comm_register(rank.comm, memory, 4096).unwrap();
            assert_eq!(result::comm_deregister(rank.comm, handle), Ok(()));
            assert!(result::comm_deregister(rank.comm, handle).is_err(), "it is gone");
            assert!(result::comm_register(rank.comm, memory, 8192).is_err(), "there is not so much memory");
            result::mem_free(memory).unwrap();
        }
        rank.destroy();
    });
}

#[test]
fn a_configuration_that_is_none_is_refused_and_an_early_one_is_taken() {
    support::open();
    let id = result::unique_id().unwrap();
    let _device = Device::new(0);
    let mut config = ncclConfig_t { magic: 1, ..ncclConfig_t::default() };
    // SAFETY: the device's context is current.
    let outcome = unsafe { result::comm_init_rank_config(1, id, 0, &mut config) };
    assert_eq!(refused(outcome).0, ncclResult_t::INVALID_ARGUMENT);
    // A structure of before 2.14 has no field `blocking`; what lies behind it is none of it.
    let mut config = ncclConfig_t { size: 16, version: 2000, blocking: 77, ..ncclConfig_t::default() };
    // SAFETY: as above.
    let (comm, progress) = unsafe { result::comm_init_rank_config(1, id, 0, &mut config) }.unwrap();
    assert_eq!(progress, Progress::Done);
    // SAFETY: the communicator is alive.
    let _ = unsafe { sys::ncclCommDestroy(comm) }.unwrap();
}
