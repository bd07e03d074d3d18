//! Channels whose device stands still, or is taken from under them.

use std::time::Duration;

use meshreduce::store::MemoryStore;
use meshreduce_channels::{Basic, Context, Device, Endpoint, Error, Memory, Owned, POISON, Registry, Xth};
use meshreduce_checks::in_process::{fail_driver_calls, lose_context, open_driver, reset_context};
use meshreduce_tests::channel_peer::{Gate, Gpu, LONG, data, eventually};

fn registry(kind: &str) -> Registry {
    let mut registry = Registry::empty();
    match kind {
        "basic" => registry.register(Basic::default()).unwrap(),
        _ => registry.register(Xth).unwrap(),
    }
    registry
}

/// Endpoints of two contexts to each other.
fn meet(one: &Context, other: &Context) -> [Endpoint; 2] {
    let store = MemoryStore::default();
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| other.connect(&store, "sides", LONG).unwrap());
        [one.listen(&store, "sides", LONG).unwrap(), connecting.join().unwrap()]
    })
}

fn host_to_host([one, other]: &[Endpoint; 2], number: u64) {
    let sent = one.send(data(number, 10_000), Device::Cpu, None);
    let (memory, _) = other.recv(vec![0; 10_000], Device::Cpu, None).wait(LONG).unwrap();
    assert!(memory == data(number, 10_000));
    sent.wait(LONG).unwrap();
}

/// Giving up page-locked memory makes the driver wait for the streams of its device.
#[test]
fn an_endpoint_that_ends_while_a_stream_stands_still_holds_up_no_other() {
    open_driver();
    let gpus = [Gpu::new(0), Gpu::new(1)];
    let contexts = [0, 1].map(|ordinal| Context::new(&registry("basic"), &[Device::Cuda(ordinal)]).unwrap());
    let (ending, other) = (meet(&contexts[0], &contexts[1]), meet(&contexts[0], &contexts[1]));
    // Both have slots.
    let sent = ending[0].send(gpus[0].memory(&data(1, 5000)), gpus[1].device(), &gpus[0].stream);
    let received = ending[1].recv(gpus[1].empty(5000), gpus[0].device(), &gpus[1].stream).wait(LONG).unwrap();
    let sent = sent.wait(LONG).unwrap();
    host_to_host(&other, 2);
    let gates = [Gate::shut(&gpus[0]), Gate::shut(&gpus[1])];
    ending.iter().for_each(Endpoint::close);
    (3..20).for_each(|number| host_to_host(&other, number));
    drop(gates);
    for endpoint in ending.iter().chain(&other) {
        endpoint.close();
        endpoint.join(LONG).unwrap();
    }
    for context in &contexts {
        context.close();
        context.join(LONG).unwrap();
    }
    drop((sent, received));
}

fn names_the_cause(text: &str) -> bool {
    text.contains("CUDA_ERROR_CONTEXT_IS_DESTROYED")
}

/// Transfers are under way in both directions, and waited for by a stream, when the context of one of the two devices is reset: all
/// end with the cause, on both sides, and give their memory back; other pairs of the endpoint go on; and everything can be closed.
fn context_is_reset(kind: &str, [from, lost]: [u32; 2]) {
    open_driver();
    let gpus = [Gpu::new(from), Gpu::new(lost)];
    let contexts =
        [from, lost].map(|ordinal| Context::new(&registry(kind), &[Device::Cuda(ordinal)]).unwrap());
    let sides = meet(&contexts[0], &contexts[1]);
    let [near, far] = &sides;
    let sent = near.send(gpus[0].memory(&data(1, 5000)), gpus[1].device(), &gpus[0].stream);
    let received = far.recv(gpus[1].empty(5000), gpus[0].device(), &gpus[1].stream).wait(LONG).unwrap();
    let sent = sent.wait(LONG).unwrap();
    host_to_host(&sides, 2);
    // A receive that waits for its send, and a send whose receive comes.
    let waiting = far.recv(gpus[1].empty(100_000), gpus[0].device(), &gpus[1].stream);
    let under_way = far.send(gpus[1].memory(&data(3, 100_000)), gpus[0].device(), &gpus[1].stream);
    reset_context(lost);
    let sent_there = near.send(gpus[0].memory(&data(4, 100_000)), gpus[1].device(), &gpus[0].stream);
    let received_here = near.recv(gpus[0].empty(100_000), gpus[1].device(), &gpus[0].stream);
    for failed in [waiting.wait(LONG), under_way.wait(LONG)] {
        // What the stream had done by then may have been sent.
        let Err(failed) = failed else { continue };
        assert!(names_the_cause(&failed.error.to_string()), "{kind}: {}", failed.error);
        assert!(
            matches!(failed.error, Error::Driver(_) | Error::Remote { .. }),
            "{kind}: {:?}",
            failed.error
        );
        assert!(failed.into_memory().is_some(), "{kind}: the memory comes back");
    }
    let failed = sent_there.wait(LONG).unwrap_err();
    // Over xth this side may have met the other one's context itself.
    assert!(matches!(failed.error, Error::Driver(_) | Error::Remote { .. }), "{kind}: {:?}", failed.error);
    assert!(names_the_cause(&failed.error.to_string()), "{kind}: {}", failed.error);
    assert!(failed.into_memory().is_some());
    drop(received_here.wait(LONG));
    host_to_host(&sides, 5);
    for endpoint in &sides {
        endpoint.close();
        endpoint.join(LONG).unwrap();
    }
    for context in &contexts {
        context.close();
        context.join(Duration::from_secs(60)).unwrap();
    }
    drop((sent, received, sides, contexts, gpus));
    // The device is there for others.
    let gpu = Gpu::new(lost);
    let memory = gpu.memory(&data(6, 1000));
    gpu.assert_holds(memory.address(), 6, 1000);
}

#[test]
fn a_context_that_is_reset_under_basic_fails_its_transfers_with_the_cause() {
    context_is_reset("basic", [2, 3]);
}

#[test]
fn a_context_that_is_reset_under_xth_fails_its_transfers_with_the_cause() {
    context_is_reset("xth", [4, 5]);
}

/// A stream of another device than the memory's is waited for, and its context is lost by a kernel that faults: what waits for it fails
/// on both sides, alone, and gives its memory back; the same pair goes on.
fn other_context_is_lost(kind: &str, lost: u32) {
    open_driver();
    let (gpu, other) = (Gpu::new(0), Gpu::new(lost));
    let devices = [gpu.device(), other.device()];
    let contexts = [(); 2].map(|()| Context::new(&registry(kind), &devices).unwrap());
    let [near, far] = &meet(&contexts[0], &contexts[1]);
    let [a, b, c, d] = [(); 4].map(|()| gpu.empty(70_000));
    let gate = Gate::shut(&other);
    let module = lose_context(&other.stream);
    let behind = [
        near.send(a, gpu.device(), &other.stream),
        near.recv(b, gpu.device(), &other.stream),
        far.recv(c, gpu.device(), None),
        far.send(d, gpu.device(), None),
    ];
    let of_host = [
        near.send(vec![1; 70_000], Device::Cpu, &other.stream),
        near.recv(vec![1; 70_000], Device::Cpu, &other.stream),
        far.recv(vec![1; 70_000], Device::Cpu, None),
        far.send(vec![1; 70_000], Device::Cpu, None),
    ];
    drop(gate);
    fn failed<M: std::fmt::Debug + Memory>(kind: &str, transfers: [Owned<M>; 4]) {
        for (at, transfer) in transfers.into_iter().enumerate() {
            let failed = transfer.wait(LONG).unwrap_err();
            let is_it = matches!(failed.error, Error::Driver(_) | Error::Remote { .. });
            assert!(
                is_it && failed.error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"),
                "{kind}, {at}: {}",
                failed.error
            );
            assert!(failed.into_memory().is_some(), "{kind}, {at}: the memory comes back");
        }
    }
    failed(kind, behind);
    failed(kind, of_host);
    for (from, to) in [(near, far), (far, near)] {
        let (sent, received) = (gpu.memory(&data(7, 70_000)), gpu.empty(70_000));
        let sent = from.send(sent, gpu.device(), &gpu.stream);
        let (received, _) = to.recv(received, gpu.device(), &gpu.stream).wait(LONG).unwrap();
        sent.wait(LONG).unwrap();
        gpu.assert_holds(received.address(), 7, 70_000);
    }
    for endpoint in [near, far] {
        endpoint.close();
        endpoint.join(LONG).unwrap();
    }
    for context in &contexts {
        context.close();
        context.join(LONG).unwrap();
    }
    drop(module);
}

#[test]
fn a_stream_of_another_device_that_is_lost_fails_its_transfers_alone_over_basic() {
    other_context_is_lost("basic", 6);
}

#[test]
fn a_stream_of_another_device_that_is_lost_fails_its_transfers_alone_over_xth() {
    other_context_is_lost("xth", 7);
}

/// The value of a word in device memory.
fn word_at(gpu: &Gpu, address: u64) -> u64 {
    u64::from_le_bytes(gpu.read(address, 8).try_into().unwrap())
}

#[test]
fn a_counter_one_of_whose_words_cannot_be_written_fails_in_all_of_them() {
    /// `CUDA_ERROR_OUT_OF_MEMORY`.
    const OUT_OF_MEMORY: u32 = 2;
    open_driver();
    let gpus = [Gpu::new(0), Gpu::new(1)];
    let devices = [gpus[0].device(), gpus[1].device()];
    let contexts = [(); 2].map(|()| Context::new(&registry("xth"), &devices).unwrap());
    let [near, _far] = &meet(&contexts[0], &contexts[1]);
    for failing in 0..2 {
        let counter = near.counter();
        let words = devices.map(|device| counter.word(device).unwrap());
        assert_eq!([0, 1].map(|at| word_at(&gpus[at], words[at])), [0, 0]);
        // (This thread writes them.)
        fail_driver_calls("cuStreamWriteValue64_v2", OUT_OF_MEMORY, failing, 1);
        let failed = counter.reset();
        fail_driver_calls("cuStreamWriteValue64_v2", OUT_OF_MEMORY, 0, 0);
        assert!(matches!(failed, Err(Error::Driver(_))), "{failed:?}");
        for (gpu, word) in gpus.iter().zip(words) {
            eventually("the word tells of the failure", || word_at(gpu, word) == POISON);
        }
        assert!(matches!(counter.failure(), Some(Error::Driver(_))));
    }
}
