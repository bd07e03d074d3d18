//! One-shot by packets: every rank pushes its input to all ranks and reduces what arrives.

use meshreduce_wire::LaunchParams;

use crate::{
    call::Call,
    entries::entries,
    message::Message,
    packets::{PacketShare, Sources},
    reduction::reduce_units,
    slot::UNIT_WORDS,
    thread::thread_idx_x,
};

/// The kernel, over `W` ranks.
///
/// A rank takes its own contribution from its packet memory like the others'. Input is on its way before the lane's state is
/// asked for, as in [`crate::one_shot::one_shot`].
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`LaunchParams`] says.
#[inline(always)]
pub unsafe fn one_shot_ll<const W: usize>(params: &LaunchParams) {
    let message = Message::<UNIT_WORDS>::of_kind(params);
    let units = message.pieces();
    let mut share = PacketShare::of_thread(units);
    let mut next = share.next().map(|index| (index, message.load(index)));

    let call = Call::<W>::enter(params);
    let thread = thread_idx_x();
    let peer = call.peer((thread < W as u32).then_some(thread));
    let open = call.open();
    if open {
        call.announce(peer);
    }
    while let Some((index, unit)) = next {
        next = share.next().map(|index| (index, message.load(index)));
        if open {
            call.push_all(0, index, unit);
        }
    }
    // Now and then every slot of both phases is pushed and awaited: what the message leaves out as zeros.
    let end = if call.refreshes() { call.places() } else { units };
    for index in share.up_to(end) {
        if open {
            call.push_all(0, index, [0; UNIT_WORDS]);
        }
    }

    call.depart(open, peer);

    for index in PacketShare::of_thread(end) {
        let inputs = call.await_units::<W, 1>(0, Sources::ALL, index);
        if index < units {
            message.store(index, reduce_units(params, inputs.map(|[unit]| unit)));
        }
    }
}

entries!(one_shot_ll: one_shot_ll, LaunchParams, 2 3 4 5 6 7 8);
