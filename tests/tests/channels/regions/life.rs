//! How a region comes back: while it is in use, given up, and when its memory is freed and allocated again.

use super::*;

/// The owner registers memory, and shows it with a counter.
fn offered(peer: &Peer, memory: DeviceMemory) -> (Region<DeviceMemory>, u64, Counter) {
    let address = memory.address();
    let region = peer.context.register(memory).unwrap();
    let counter = peer.endpoint.counter();
    show(peer, &region.descriptor(), &counter);
    (region, address, counter)
}

pub(super) fn in_use(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 0 {
        let (region, address, counter) = offered(&peer, gpu.memory(&vec![0; BYTES as usize]));
        counter.wait(1, LONG).unwrap();
        peer.meet_at("opened");
        peer.meet_at("under way");
        let closing = region.close().wait(BRIEF).unwrap_err();
        assert!(ordinal_of(address).is_some());
        peer.meet_at("given up");
        let memory = closing.wait(LONG).unwrap();
        // The batch that had begun is there.
        gpu.assert_holds(memory.address(), 1, BYTES);
        // The other one was missed, and from then on nothing counts.
        assert!(matches!(counter.wait(3, LONG), Err(Error::CountUnreachable { batches: 1..=2, .. })));
        drop(memory);
        assert!(ordinal_of(address).is_none());
        // Dropped without a word, it is freed too.
        let memory = gpu.empty(BYTES);
        let address = memory.address();
        drop(peer.context.register(memory).unwrap());
        eventually("a dropped region is freed", || ordinal_of(address).is_none());
    } else {
        let (to, counter) = shown(&peer);
        let held_up = Gpu::new(gpu.context.ordinal());
        let gate = Gate::shut(&held_up);
        let memory = gpu.memory(&data(1, BYTES));
        let address = memory.address();
        let region = peer.context.register(memory).unwrap();
        let all = Pages::range(0, 0, BYTES);
        // The first one opens the region.
        let first = peer.endpoint.write(&region, &to, Pages::range(0, 0, 1), &counter, &gpu.stream);
        first.wait(LONG).unwrap();
        // Nor does the other side, which may be of this process, call the driver any more for what is made once.
        peer.meet_at("opened");
        let (before, own) = (all_driver_calls(), driver_calls());
        let begun = peer.endpoint.write(&region, &to, all.clone(), &counter, &held_up.stream);
        // The record of an event, which is made if the first one's has not come back yet. (Asking is a call of its own.)
        let recorded = driver_calls() - own - 1;
        // The wait for it, the copy and the word.
        eventually("the batch is enqueued", || all_driver_calls() - before >= recorded + 3);
        assert!(!begun.poll().unwrap());
        peer.meet_at("under way");
        peer.meet_at("given up");
        // Its own region goes too: the batch keeps it.
        let late = peer.endpoint.write(&region, &to, all, &counter, &gpu.stream);
        drop(region);
        std::thread::sleep(BRIEF);
        assert!(ordinal_of(address).is_some());
        drop(gate);
        begun.wait(LONG).unwrap();
        let error = late.wait(LONG).unwrap_err();
        assert!(matches!(error, Error::RegionGone { .. }), "{error}");
        eventually("the source is freed", || ordinal_of(address).is_none());
    }
    peer.end();
}

/// Over `basic` the owner alone reaches into its memory.
pub(super) fn given_up(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 0 {
        let (region, address, counter) = offered(&peer, gpu.memory(&vec![7; BYTES as usize]));
        peer.meet_at("under way");
        let memory = close(region);
        peer.meet_at("given up");
        assert!(matches!(counter.wait(1, LONG), Err(Error::CountUnreachable { batches: 0, .. })));
        assert_eq!(gpu.read(address, BYTES), vec![7; BYTES as usize]);
        drop(memory);
        assert!(ordinal_of(address).is_none());
        peer.meet_at("the end");
    } else {
        let (to, counter) = shown(&peer);
        let held_up = Gpu::new(gpu.context.ordinal());
        let gate = Gate::shut(&held_up);
        let memory = gpu.memory(&data(1, BYTES));
        let address = memory.address();
        let region = peer.context.register(memory).unwrap();
        let write =
            || peer.endpoint.write(&region, &to, Pages::range(0, 0, BYTES), &counter, &held_up.stream);
        let (under_way, dropped) = (write(), write());
        assert!(!under_way.poll().unwrap());
        drop(dropped);
        peer.meet_at("under way");
        peer.meet_at("given up");
        // Its own region goes too: the batch keeps it.
        drop(region);
        std::thread::sleep(BRIEF);
        assert!(ordinal_of(address).is_some());
        drop(gate);
        let error = under_way.wait(LONG).unwrap_err();
        assert!(matches!(&error, Error::RegionGone { peer, .. } if peer.contains("rank 0")), "{error}");
        eventually("the source is freed", || ordinal_of(address).is_none());
        peer.meet_at("the end");
    }
    peer.end();
}

/// Memory where `address` was, if the driver gives that out again at once. (The emulated one goes round first.)
pub(super) fn perhaps_at_the_same_address(gpu: &Gpu, address: u64, bytes: u64) -> DeviceMemory {
    let memory = gpu.empty(bytes);
    if memory.address() != address {
        println!("skipping: the address was not given out again");
    }
    memory
}

pub(super) fn freed(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 0 {
        let (region, address, counter) = offered(&peer, gpu.memory(&vec![0; BYTES as usize]));
        counter.wait(1, LONG).unwrap();
        drop(close(region));
        let memory = perhaps_at_the_same_address(&gpu, address, BYTES);
        let address = memory.address();
        memory.write(0, &vec![9; BYTES as usize], &gpu.stream).unwrap();
        let region = peer.context.register(memory).unwrap();
        peer.part.tell("second", &region.descriptor().to_bytes());
        // What was the first region's does not write to the second.
        peer.meet_at("refused");
        assert!(gpu.read(address, BYTES) == vec![9; BYTES as usize]);
        let counter = peer.endpoint.counter();
        peer.part.tell("second counter", &counter.descriptor().to_bytes());
        counter.wait(1, LONG).unwrap();
        gpu.assert_holds(address, 2, BYTES);
        close(region);
        peer.meet_at("the end");
    } else {
        let (first, counter) = shown(&peer);
        let region = peer.context.register(gpu.memory(&data(2, BYTES))).unwrap();
        let write = |to: &RegionDescriptor, counter: &CounterDescriptor| {
            peer.endpoint.write(&region, to, Pages::range(0, 0, BYTES), counter, None).wait(LONG)
        };
        write(&first, &counter).unwrap();
        let second = RegionDescriptor::from_bytes(&peer.part.hear("second")).unwrap();
        assert_ne!(first, second);
        assert!(matches!(write(&first, &counter), Err(Error::RegionGone { .. })));
        peer.meet_at("refused");
        let counter = CounterDescriptor::from_bytes(&peer.part.hear("second counter")).unwrap();
        write(&second, &counter).unwrap();
        peer.meet_at("the end");
    }
    peer.end();
}
