//! What the library says to a program that asks for what cannot be done, and how it counts and selects.

use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use half::bf16;
use meshreduce::{Algorithm, Bf16, DType, Error, Limits, Op, RecordKind};
use meshreduce_checks::in_process::{config, driver_calls, ranks};
use meshreduce_checks::stream::{NonBlocking, RawStream};

fn stream() -> Stream {
    Stream::new(StreamFlags::DEFAULT, None).expect("a stream")
}

fn ones(count: usize) -> DeviceBuffer<Bf16> {
    let buffer = DeviceBuffer::from_slice(&vec![Bf16::from(bf16::ONE); count]).expect("device memory");
    cust::context::CurrentContext::synchronize().expect("the copy");
    buffer
}

#[test]
fn a_pointer_that_is_not_on_the_device_is_refused_with_what_it_is() {
    ranks(2, &config(), |communicator| {
        let lane = communicator.lane(0).unwrap();
        let mut host = [0_u16; 64];
        match lane.check_pointer(host.as_mut_ptr() as u64) {
            Err(Error::NotOnDevice { address, device, .. }) => {
                assert_eq!(address, host.as_ptr() as u64);
                assert_eq!(device, communicator.device());
            }
            other => panic!("{other:?}"),
        }
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn memory_of_another_device_is_refused_by_the_checked_calls() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let other = cust::device::Device::get_device(7).unwrap();
        let mut elsewhere = {
            let _context = cust::context::Context::new(other).unwrap();
            ones(64)
        };
        let own =
            cust::context::Context::new(cust::device::Device::get_device(communicator.device()).unwrap())
                .unwrap();
        match lane.all_reduce_in_place_and_wait(&mut elsewhere, Op::Sum, &stream()) {
            Err(Error::NotOnDevice { .. }) => {}
            other => panic!("{other:?}"),
        }
        drop((own, lane));
        communicator.close().unwrap();
    });
}

#[test]
fn a_stream_of_another_device_is_refused_as_such() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let mut data = ones(64);
        let context =
            |device| cust::context::Context::new(cust::device::Device::get_device(device).unwrap()).unwrap();
        let other = context(6);
        let elsewhere = stream();
        let own = context(communicator.device());
        match lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &elsewhere) {
            Err(Error::StreamNotOnDevice { device, .. }) => assert_eq!(device, communicator.device()),
            other => panic!("{other:?}"),
        }
        assert_eq!(communicator.launches(), 0);
        drop((elsewhere, other, own, lane));
        communicator.close().unwrap();
    });
}

#[test]
fn misaligned_and_partly_overlapping_addresses_are_refused_before_anything_is_launched() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let (stream, buffer) = (stream(), ones(64));
        let address = buffer.as_device_ptr().as_raw();
        let mut call = |input, output| {
            // SAFETY: refused calls touch nothing; the buffer outlives them in any case.
            unsafe { lane.all_reduce_raw(input, output, 16, DType::Bf16, Op::Sum, stream.as_inner()) }
        };
        assert!(matches!(call(address + 1, address + 1), Err(Error::Misaligned { alignment: 2, .. })));
        assert!(matches!(call(address, address + 2), Err(Error::PartialOverlap { bytes: 32, .. })));
        assert_eq!(communicator.launches(), 0);
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn lengths_that_differ_between_input_and_output_are_refused() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let (input, mut output, stream) = (ones(64), ones(63), stream());
        // SAFETY: refused calls touch nothing.
        let answer = unsafe { lane.all_reduce(&input, &mut output, Op::Sum, &stream) };
        assert!(matches!(answer, Err(Error::LengthsDiffer { input: 64, output: 63 })));
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn a_lane_is_given_out_once_at_a_time() {
    ranks(2, &config().lanes(2), |communicator| {
        let first = communicator.lane(0).unwrap();
        assert!(matches!(communicator.lane(0), Err(Error::LaneTaken(0))));
        assert_eq!(communicator.lane(1).unwrap().index(), 1);
        assert!(matches!(communicator.lane(2), Err(Error::NoSuchLane { lane: 2, lanes: 2 })));
        drop(first);
        assert!(communicator.lane(0).is_ok());
        communicator.close().unwrap();
    });
}

#[test]
fn works_have_the_first_label_of_their_lane() {
    ranks(2, &config(), |communicator| {
        let (stream, data) = (stream(), ones(64));
        let call = |lane: &mut meshreduce::Lane| {
            let address = data.as_device_ptr().as_raw();
            // SAFETY: the data outlive the work, for which this waits.
            let work =
                unsafe { lane.all_reduce_raw(address, address, 64, DType::Bf16, Op::Sum, stream.as_inner()) };
            let work = work.unwrap();
            work.synchronize().unwrap();
            work
        };
        let mut lane = communicator.lane(0).unwrap();
        let before = call(&mut lane);
        assert_eq!(before.label::<String>(), None);
        assert!(lane.set_label("first".to_owned()));
        drop(lane);
        let mut lane = communicator.lane(0).unwrap();
        assert!(!lane.set_label(2_u32));
        for work in [&before, &call(&mut lane)] {
            assert_eq!(
                (work.label::<String>().map(String::as_str), work.label::<u32>()),
                (Some("first"), None)
            );
        }
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn a_call_of_nothing_is_a_launch_in_which_all_ranks_take_part() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let stream = stream();
        // SAFETY: no element is touched.
        let work = unsafe { lane.all_reduce_raw(2, 2, 0, DType::Bf16, Op::Sum, stream.as_inner()) }.unwrap();
        work.synchronize().unwrap();
        assert_eq!((communicator.launches(), work.number()), (1, 1));
        let mut data = ones(4);
        // Rank 0 has nothing, and the other one something.
        let ended = match communicator.rank() {
            // SAFETY: as above.
            0 => unsafe { lane.all_reduce_raw(2, 2, 0, DType::Bf16, Op::Sum, stream.as_inner()) }
                .and_then(|work| work.synchronize()),
            _ => lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream),
        };
        match ended {
            Err(Error::LaunchMismatch { launched, peer_launched, .. }) => {
                let mut counts = [launched, peer_launched].map(|launch| launch.unwrap().count);
                counts.sort_unstable();
                assert_eq!(counts, [0, 4]);
            }
            Err(Error::PeerAborted { kind: RecordKind::LaunchMismatch, .. }) => {}
            other => panic!("{other:?}"),
        }
    });
}

/// The behaviour that the original's acceptance test asks for: used at 4 KiB, 512 KiB and 10 MiB, not beyond.
#[test]
fn messages_up_to_ten_mebibytes_are_taken_and_counted() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let stream = stream();
        for (calls, bytes) in [4 << 10, 512 << 10, 10 << 20].into_iter().enumerate() {
            let mut data = ones(bytes / 2);
            lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream).unwrap();
            assert_eq!(communicator.launches(), calls as u64 + 1);
            let result = data.as_host_vec().unwrap();
            assert!(result.iter().all(|value| bf16::from(*value) == bf16::from_f32(2.0)));
        }
        let mut too_long = ones((10 << 20) / 2 + 1);
        match lane.all_reduce_in_place_and_wait(&mut too_long, Op::Sum, &stream) {
            Err(Error::NoAlgorithm { bytes, .. }) => assert_eq!(bytes, (10 << 20) + 2),
            other => panic!("{other:?}"),
        }
        assert_eq!(communicator.launches(), 3);
        assert_eq!(communicator.select(1 << 20, DType::Bf16, Op::Sum), Some(Algorithm::OneShotLl));
        assert_eq!(communicator.select((1 << 20) + 2, DType::Bf16, Op::Sum), Some(Algorithm::TwoShot));
        assert_eq!(communicator.select((10 << 20) + 2, DType::Bf16, Op::Sum), None);
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn the_limits_table_is_the_users() {
    let limits = Limits { one_shot: 1024, two_shot: 4096, one_shot_ll: Some(256), ..Limits::default() };
    let limits = Limits { two_shot_ll: Some(0), ..limits };
    ranks(2, &config().limits(limits), |communicator| {
        let select = |bytes| communicator.select(bytes, DType::F32, Op::Max);
        assert_eq!(select(256), Some(Algorithm::OneShotLl));
        assert_eq!(select(260), Some(Algorithm::OneShot));
        assert_eq!(select(1024), Some(Algorithm::OneShot));
        assert_eq!(select(1028), Some(Algorithm::TwoShot));
        assert_eq!(select(4100), None);
        communicator.close().unwrap();
    });
}

#[test]
fn another_stream_can_wait_for_the_work_without_the_host() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let (first, second) = (stream(), stream());
        let mut data = ones(4096);
        let host = {
            // SAFETY: `data` lives, and is read only on the second stream, behind the work.
            let work = unsafe { lane.all_reduce_in_place(&mut data, Op::Sum, &first) }.unwrap();
            work.wait(&second).unwrap();
            second.synchronize().unwrap();
            assert!(work.is_finished().unwrap());
            data.as_host_vec().unwrap()
        };
        assert!(host.iter().all(|value| bf16::from(*value).to_f32() == 2.0));
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn closing_while_a_lane_is_in_use_is_refused() {
    ranks(2, &config(), |communicator| {
        let lane = communicator.lane(0).unwrap();
        let refused = communicator.close().expect_err("a lane is in use");
        assert!(matches!(refused.error(), Error::LaneTaken(0)), "{refused}");
        let communicator = refused.into_communicator().expect("nothing has happened to it");
        drop(lane);
        // It still works, and closes when nothing is in use.
        let mut lane = communicator.lane(0).unwrap();
        let mut data = ones(64);
        lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream()).unwrap();
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn an_all_reduce_is_four_driver_calls_the_last_two_a_launch_and_an_event() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let (data, stream) = (ones(4096), stream());
        let address = data.as_device_ptr().as_raw();
        for call in 0..20 {
            let before = driver_calls();
            // SAFETY: the buffer outlives the work, which is waited for, and nothing else uses it.
            let work = unsafe {
                lane.all_reduce_raw(address, address, 4096, DType::Bf16, Op::Max, stream.as_inner())
            };
            let made = driver_calls() - before - 1;
            work.unwrap().synchronize().unwrap();
            // The first calls create the events of the pool.
            assert!(made == 4 || call < 2, "call {call} made {made} driver calls");
        }
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn a_stream_that_waits_for_no_other_says_so_and_works() {
    ranks(2, &config(), |communicator| {
        let device = cust::device::Device::get_device(communicator.device()).unwrap();
        let context = cust::context::Context::new(device).unwrap();
        let stream = NonBlocking::new().unwrap();
        let mut flags = 0;
        // SAFETY: the stream is alive, and the place outlives the call.
        let answer = unsafe { cust_raw::cuStreamGetFlags(stream.raw(), &mut flags) };
        assert_eq!((answer, flags), (cust_raw::CUresult::CUDA_SUCCESS, 1));
        let data = ones(64);
        let address = data.as_device_ptr().as_raw();
        let mut lane = communicator.lane(0).unwrap();
        // SAFETY: the buffer outlives the wait for the stream, and nobody else uses it.
        unsafe { lane.all_reduce_raw(address, address, 64, DType::Bf16, Op::Sum, stream.raw()) }.unwrap();
        stream.synchronize().unwrap();
        assert!(data.as_host_vec().unwrap().iter().all(|&sum| f32::from(bf16::from(sum)) == 2.0));
        drop((stream, data, lane, context));
        communicator.close().unwrap();
    });
}
