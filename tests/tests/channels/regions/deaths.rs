//! What becomes of regions and counters when one of the two processes dies or is stopped.

use super::*;

pub(super) fn processes_with(
    part: &str,
    strike: impl FnOnce(&Stage, &mut [std::process::Child; 2]),
    well: [bool; 2],
) {
    let stage = two_ranks();
    let mut ranks = [0, 1].map(|rank| stage.start(rank, part));
    strike(&stage, &mut ranks);
    for (rank, child) in ranks.into_iter().enumerate() {
        let (said, is_well) = heard(child);
        assert_eq!(is_well, well[rank], "rank {rank} of {part}: {said:?}");
    }
}

pub(super) fn processes_one_of_which_dies(name: &str) {
    the_writer_dies(&format!("processes {name}"));
}

pub(super) fn basic_one_of_which_dies(name: &str) {
    the_writer_dies(&format!("basic {name}"));
    the_writer_dies(&format!("basic-over-tcp {name}"));
}

pub(super) fn the_writer_dies(part: &str) {
    let kill = |stage: &Stage, ranks: &mut [std::process::Child; 2]| {
        stage.wait_for_key("begun");
        ranks[1].kill().unwrap();
    };
    processes_with(part, kill, [true, false]);
}

pub(super) fn processes_the_first_of_which_dies(name: &str) {
    the_owner_dies(&format!("processes {name}"));
}

pub(super) fn basic_the_first_of_which_dies(name: &str) {
    the_owner_dies(&format!("basic {name}"));
    the_owner_dies(&format!("basic-over-tcp {name}"));
}

pub(super) fn the_owner_dies(part: &str) {
    let kill = |stage: &Stage, ranks: &mut [std::process::Child; 2]| {
        stage.wait_for_key("begun");
        ranks[0].kill().unwrap();
    };
    processes_with(part, kill, [false, true]);
}

pub(super) fn processes_one_of_which_stops(name: &str) {
    the_writer_stops(&format!("processes {name}"));
}

pub(super) fn basic_one_of_which_stops(name: &str) {
    the_writer_stops(&format!("basic {name}"));
    the_writer_stops(&format!("basic-over-tcp {name}"));
}

pub(super) fn the_writer_stops(part: &str) {
    let stop = |stage: &Stage, ranks: &mut [std::process::Child; 2]| {
        let id = rustix::process::Pid::from_raw(ranks[1].id() as i32).unwrap();
        stage.wait_for_key("begun");
        // Behind this the writer, who has said that, has the store's lock no more.
        stage.set_key("heard");
        rustix::process::kill_process(id, rustix::process::Signal::STOP).unwrap();
        let options = rustix::process::WaitOptions::UNTRACED;
        let (_, status) = rustix::process::waitpid(Some(id), options).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
        stage.set_key("stopped of 1");
        stage.wait_for_key("resume");
        rustix::process::kill_process(id, rustix::process::Signal::CONT).unwrap();
    };
    processes_with(part, stop, [true, true]);
}

/// Writes the same again and again, and says when some of it has been done.
pub(super) fn write_for_ever(peer: &Peer, gpu: &Gpu, bytes: u64) -> Error {
    let (to, counter) = shown(peer);
    let region = peer.context.register(gpu.memory(&data(1, bytes))).unwrap();
    let mut under_way = std::collections::VecDeque::new();
    for round in 0_u64.. {
        under_way.push_back(peer.endpoint.write(&region, &to, Pages::range(0, 0, bytes), &counter, None));
        if under_way.len() > 4
            && let Err(error) = under_way.pop_front().unwrap().wait(LONG)
        {
            // Nothing keeps the source.
            drop(under_way);
            close(region);
            return error;
        }
        if round == 10 {
            peer.part.tell("begun", b"");
        }
    }
    unreachable!("it goes on until it fails")
}

pub(super) fn writer_dies(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 1 {
        let error = write_for_ever(&peer, &gpu, BYTES);
        panic!("{error}");
    }
    let region = peer.context.register(gpu.empty(BYTES)).unwrap();
    let address = region.span().address;
    let counter = peer.endpoint.counter();
    let word = counter.word(gpu.device()).unwrap();
    show(&peer, &region.descriptor(), &counter);
    let waiting = Waiting::new(&gpu, word, u64::MAX - 1, address);
    match counter.wait(u64::MAX - 1, LONG) {
        Err(Error::CountUnreachable { peer, batches, bytes, why, .. }) => {
            assert!(
                peer.contains("rank 1") && batches >= 1 && bytes == batches * BYTES,
                "{batches} and {bytes}"
            );
            assert!(matches!(*why, Error::PeerLost { .. }), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(waiting.end(&gpu).0, POISON);
    gpu.assert_holds(address, 1, BYTES);
    drop(close(region));
    assert!(ordinal_of(address).is_none());
    peer.end();
}

pub(super) fn owner_dies(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 1 {
        let error = write_for_ever(&peer, &gpu, BYTES);
        assert!(matches!(&error, Error::PeerLost { peer, .. } if peer.contains("rank 0")), "{error}");
        return peer.end();
    }
    let region = peer.context.register(gpu.empty(BYTES)).unwrap();
    let counter = peer.endpoint.counter();
    show(&peer, &region.descriptor(), &counter);
    // Until it is killed.
    drop(counter.wait(u64::MAX, LONG));
    panic!("nobody has killed this process");
}

pub(super) fn writer_stops(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 1 {
        let error = write_for_ever(&peer, &gpu, BYTES);
        assert!(matches!(error, Error::RegionGone { .. }), "{error}");
        peer.part.tell("let go", b"");
        peer.meet_at("the end");
        return peer.end();
    }
    let region = peer.context.register(gpu.empty(BYTES)).unwrap();
    let address = region.span().address;
    let counter = peer.endpoint.counter();
    show(&peer, &region.descriptor(), &counter);
    peer.part.hear("stopped");
    // What it had begun comes yet: then the count stands still.
    let mut last = counter.value();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        match counter.value() {
            now if now == last => break,
            now => last = now,
        }
    }
    if is_basic() {
        drop(close(region));
        peer.part.tell("resume", b"");
    } else {
        let closing = region.close().wait(Duration::from_millis(500)).unwrap_err();
        assert!(ordinal_of(address).is_some(), "what a stopped process may write to is not freed");
        peer.part.tell("resume", b"");
        drop(closing.wait(LONG).unwrap());
    }
    assert!(ordinal_of(address).is_none());
    peer.part.hear("let go");
    peer.meet_at("the end");
    peer.end();
}

/// The owner's context is reset while batches come: whatever the other side can still write to, the owner gets its region back.
pub(super) fn owner_resets(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 1 {
        let error = write_for_ever(&peer, &gpu, BYTES);
        // Over basic the owner copies to its memory, and may find it gone first.
        let is_gone = is_basic() && error.to_string().contains("CUDA_ERROR_CONTEXT_IS_DESTROYED");
        assert!(is_gone || matches!(error, Error::RegionGone { .. }), "{error}");
        peer.meet_at("the end");
        return peer.end();
    }
    let region = peer.context.register(gpu.empty(BYTES)).unwrap();
    let counter = peer.endpoint.counter();
    show(&peer, &region.descriptor(), &counter);
    peer.part.hear("begun");
    reset_context(gpu.context.ordinal());
    drop(close(region));
    assert!(matches!(counter.wait(u64::MAX - 1, LONG), Err(Error::CountUnreachable { .. })));
    peer.meet_at("the end");
    peer.end();
}
