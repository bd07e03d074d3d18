//! A rank whose main thread has ended while its other threads go on, as under a C program's `pthread_exit`: it meets, calls
//! and closes like any other, and nobody takes it for dead.
//!
//! Not under the test harness, whose main thread waits for the tests.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use cust::context::{Context, CurrentContext};
use cust::device::Device;
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use meshreduce::{Config, Op, Outcome, rendezvous};
use meshreduce_tests::rank_process::{Part, Stage, heard};

const LONG: Duration = Duration::from_secs(100);

/// The system call that ends the calling thread alone.
const EXIT: i64 = if cfg!(target_arch = "x86_64") { 60 } else { 93 };

fn main() {
    if let Some(part) = Part::of_this_process() {
        return rank(part);
    }
    // What `cargo test` passes on: a filter that does not mean this test, or a wish for a list.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = "ranks_without_a_main_thread_meet_call_and_close";
    let listed = arguments.iter().any(|argument| argument == "--list");
    if listed
        || arguments.iter().any(|argument| !argument.starts_with('-') && !name.contains(argument.as_str()))
    {
        return;
    }
    for parts in [["ends", "stays"], ["stays", "ends"], ["ends", "ends"]] {
        let stage = Stage::new(name, 2);
        let ranks: Vec<_> = parts.iter().enumerate().map(|(rank, part)| stage.start(rank, part)).collect();
        for rank in ranks {
            let (said, well) = heard(rank);
            assert!(said == ["right", "closed: Ok(())"] && well, "{parts:?}: {said:?}");
        }
        assert!(stage.keys().is_empty(), "left in the store: {:?}", stage.keys());
    }
    println!("test {name} ... ok");
}

fn rank(part: Part) {
    if part.name != "ends" {
        return work(&part);
    }
    unsafe extern "C" {
        fn syscall(number: i64, ...) -> i64;
    }
    std::thread::spawn(move || {
        // The main thread has ended by then.
        std::thread::sleep(Duration::from_millis(100));
        // Without a main thread, nobody else gives the process its exit status.
        let worked = std::panic::catch_unwind(AssertUnwindSafe(|| work(&part)));
        std::process::exit(i32::from(worked.is_err()));
    });
    // SAFETY: the thread ends here and runs nothing more; nothing on its stack is used by the other one.
    unsafe { syscall(EXIT, 0) };
}

fn work(part: &Part) {
    let config = Config::default().deadline(Some(LONG)).timeout(LONG);
    let met = rendezvous(&*part.store, part.rank, part.world_size, part.rank as u32, &config).unwrap();
    let Outcome::Ready(communicator) = met else { panic!("{met:?}") };
    let _context = Context::new(Device::get_device(communicator.device()).unwrap()).unwrap();
    let stream = Stream::new(StreamFlags::DEFAULT, None).unwrap();
    let mut data = DeviceBuffer::from_slice(&[1.0_f32; 1000]).unwrap();
    CurrentContext::synchronize().unwrap();
    let mut lane = communicator.lane(0).unwrap();
    lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream).unwrap();
    drop(lane);
    part.say(if data.as_host_vec().unwrap() == [2.0; 1000] { "right" } else { "wrong" });
    part.say(&format!("closed: {:?}", communicator.close()));
}
