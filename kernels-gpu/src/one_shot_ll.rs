//! One-shot by packets: every rank pushes its input to all ranks and reduces what arrives.

use meshreduce_wire::LaunchParams;

use crate::{
    call::Call,
    element::{Bf16, Element, F16, F32},
    message::Message,
    packets::{PacketShare, Sources},
    reduction::{Max, Min, Reduction, Sum, combine_units, round_unit},
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
pub unsafe fn one_shot_ll<E: Element, R: Reduction, const W: usize>(params: &LaunchParams) {
    let message = Message::<2>::new::<E>(params);
    let units = message.pieces();
    let mut share = PacketShare::of_thread(units);
    let mut next = share.next().map(|index| (index, message.load::<E>(index)));

    let call = Call::<W>::enter(params);
    let thread = thread_idx_x();
    let peer = call.peer((thread < W as u32).then_some(thread));
    let open = call.open();
    if open {
        call.announce(peer);
    }
    while let Some((index, unit)) = next {
        next = share.next().map(|index| (index, message.load::<E>(index)));
        if open {
            call.push_all(0, index, unit);
        }
    }
    // Now and then every slot of both phases is pushed and awaited: what the message leaves out as zeros.
    let end = if call.refreshes() { call.places() } else { units };
    for index in share.up_to(end) {
        if open {
            call.push_all(0, index, [0; 2]);
        }
    }

    call.depart(open, peer, None);

    for index in PacketShare::of_thread(end) {
        let inputs = call.await_units::<W, 1>(0, Sources::ALL, index);
        if index < units {
            let sums = combine_units::<E, R, W>(inputs.map(|[unit]| unit));
            message.store::<E>(index, round_unit::<E, R>(sums, params.scale));
        }
    }
}

macro_rules! entries {
    ($($name:ident: $element:ty, $reduction:ty, $ranks:literal;)*) => {$(
        /// Kernel entry.
        ///
        /// # Safety
        /// The parameters are as [`LaunchParams`] says.
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name(params: LaunchParams) {
            one_shot_ll::<$element, $reduction, $ranks>(&params);
        }
    )*};
}

entries! {
    one_shot_ll_bf16_sum_w2: Bf16, Sum, 2;
    one_shot_ll_bf16_min_w2: Bf16, Min, 2;
    one_shot_ll_bf16_max_w2: Bf16, Max, 2;
    one_shot_ll_f16_sum_w2: F16, Sum, 2;
    one_shot_ll_f16_min_w2: F16, Min, 2;
    one_shot_ll_f16_max_w2: F16, Max, 2;
    one_shot_ll_f32_sum_w2: F32, Sum, 2;
    one_shot_ll_f32_min_w2: F32, Min, 2;
    one_shot_ll_f32_max_w2: F32, Max, 2;
    one_shot_ll_bf16_sum_w3: Bf16, Sum, 3;
    one_shot_ll_bf16_min_w3: Bf16, Min, 3;
    one_shot_ll_bf16_max_w3: Bf16, Max, 3;
    one_shot_ll_f16_sum_w3: F16, Sum, 3;
    one_shot_ll_f16_min_w3: F16, Min, 3;
    one_shot_ll_f16_max_w3: F16, Max, 3;
    one_shot_ll_f32_sum_w3: F32, Sum, 3;
    one_shot_ll_f32_min_w3: F32, Min, 3;
    one_shot_ll_f32_max_w3: F32, Max, 3;
    one_shot_ll_bf16_sum_w4: Bf16, Sum, 4;
    one_shot_ll_bf16_min_w4: Bf16, Min, 4;
    one_shot_ll_bf16_max_w4: Bf16, Max, 4;
    one_shot_ll_f16_sum_w4: F16, Sum, 4;
    one_shot_ll_f16_min_w4: F16, Min, 4;
    one_shot_ll_f16_max_w4: F16, Max, 4;
    one_shot_ll_f32_sum_w4: F32, Sum, 4;
    one_shot_ll_f32_min_w4: F32, Min, 4;
    one_shot_ll_f32_max_w4: F32, Max, 4;
    one_shot_ll_bf16_sum_w5: Bf16, Sum, 5;
    one_shot_ll_bf16_min_w5: Bf16, Min, 5;
    one_shot_ll_bf16_max_w5: Bf16, Max, 5;
    one_shot_ll_f16_sum_w5: F16, Sum, 5;
    one_shot_ll_f16_min_w5: F16, Min, 5;
    one_shot_ll_f16_max_w5: F16, Max, 5;
    one_shot_ll_f32_sum_w5: F32, Sum, 5;
    one_shot_ll_f32_min_w5: F32, Min, 5;
    one_shot_ll_f32_max_w5: F32, Max, 5;
    one_shot_ll_bf16_sum_w6: Bf16, Sum, 6;
    one_shot_ll_bf16_min_w6: Bf16, Min, 6;
    one_shot_ll_bf16_max_w6: Bf16, Max, 6;
    one_shot_ll_f16_sum_w6: F16, Sum, 6;
    one_shot_ll_f16_min_w6: F16, Min, 6;
    one_shot_ll_f16_max_w6: F16, Max, 6;
    one_shot_ll_f32_sum_w6: F32, Sum, 6;
    one_shot_ll_f32_min_w6: F32, Min, 6;
    one_shot_ll_f32_max_w6: F32, Max, 6;
    one_shot_ll_bf16_sum_w7: Bf16, Sum, 7;
    one_shot_ll_bf16_min_w7: Bf16, Min, 7;
    one_shot_ll_bf16_max_w7: Bf16, Max, 7;
    one_shot_ll_f16_sum_w7: F16, Sum, 7;
    one_shot_ll_f16_min_w7: F16, Min, 7;
    one_shot_ll_f16_max_w7: F16, Max, 7;
    one_shot_ll_f32_sum_w7: F32, Sum, 7;
    one_shot_ll_f32_min_w7: F32, Min, 7;
    one_shot_ll_f32_max_w7: F32, Max, 7;
    one_shot_ll_bf16_sum_w8: Bf16, Sum, 8;
    one_shot_ll_bf16_min_w8: Bf16, Min, 8;
    one_shot_ll_bf16_max_w8: Bf16, Max, 8;
    one_shot_ll_f16_sum_w8: F16, Sum, 8;
    one_shot_ll_f16_min_w8: F16, Min, 8;
    one_shot_ll_f16_max_w8: F16, Max, 8;
    one_shot_ll_f32_sum_w8: F32, Sum, 8;
    one_shot_ll_f32_min_w8: F32, Min, 8;
    one_shot_ll_f32_max_w8: F32, Max, 8;
}
