//! Both sides of a transfer that one of them gives up, or both do: no side says that it was sent unless the other one has it.

#![allow(clippy::unwrap_used)]

mod support;

use meshreduce_channels::{Device, Error};
use support::{SOON, bytes, every, pair_of, registry};

/// Transfers of a kind over a link.
const ROUNDS: u64 = 96;

#[test]
fn what_is_dropped_at_any_moment_was_sent_only_if_it_was_received() {
    for (kind, name, links) in every() {
        let (one, other) = pair_of(&registry(kind), links);
        for round in 0..ROUNDS {
            let length = [0, 1, 70_000, 2 << 20][round as usize % 4];
            let [is_send_dropped, is_receive_dropped] =
                [[true, false], [false, true], [true, true]][round as usize / 4 % 3];
            let received = other.endpoint.recv(vec![0_u8; length], Device::Cpu, None);
            let sent = one.endpoint.send(bytes(round, length), Device::Cpu, None);
            (0..round * 7919 % 60_000).for_each(|_| std::hint::spin_loop());
            if is_receive_dropped {
                received.abort();
            }
            if is_send_dropped {
                sent.abort();
            }
            let (received, sent) = (received.wait(SOON), sent.wait(SOON));
            let received = received.map_err(|failed| failed.error).map(|(memory, _)| memory);
            let sent = sent.map(|_| ()).map_err(|failed| failed.error);
            let what = || format!("{kind} {name}, round {round}: {sent:?}, {:?}", received.as_ref().err());
            assert!(received.is_ok() || sent.is_err(), "{}", what());
            if let Ok(memory) = &received {
                assert!(*memory == bytes(round, length), "{}", what());
            }
            for error in received.as_ref().err().into_iter().chain(sent.as_ref().err()) {
                assert!(matches!(error, Error::Dropped | Error::Remote { .. }), "{}", what());
            }
        }
    }
}
