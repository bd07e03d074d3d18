//! One-shot: every rank stages its input, then reads all ranks' staging and reduces everything itself.

use meshreduce_wire::LaunchParams;

use crate::{
    call::Call,
    element::{Bf16, Element, F16, F32},
    memory::store_vector,
    message::{Message, Share, vector_address},
    reduction::{Max, Min, Reduction, Sum, combine, round},
    thread::thread_idx_x,
};

/// The kernel, over `W` ranks.
///
/// A rank reads its own contribution from staging like the others': every thread then does the same work in the same
/// order, whatever its rank, and an input of any alignment was packed into vectors once.
///
/// A thread's first vector of input is on its way before the lane's state is asked for, and each later one before
/// the last is stored: a small message then waits for the slower of the two, not for one after the other.
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`LaunchParams`] says.
#[inline(always)]
pub unsafe fn one_shot<E: Element, R: Reduction, const W: usize>(params: &LaunchParams) {
    let message = Message::<4>::new::<E>(params);
    let mut share = Share::of_thread(message.pieces());
    let mut next = share.next().map(|index| (index, message.load::<E>(index)));

    let call = Call::<W>::enter(params);
    let thread = thread_idx_x();
    let peer = call.peer((thread < W as u32).then_some(thread));
    while let Some((index, vector)) = next {
        next = share.next().map(|index| (index, message.load::<E>(index)));
        if call.may_stage() {
            store_vector(vector_address(call.own_staging(), index), vector);
        }
    }

    if !call.meet(peer) {
        return;
    }

    let glance = call.glance(peer);
    for index in Share::of_thread(message.pieces()) {
        let vectors = call.load_all(0, index);
        message.store::<E>(index, round::<E, R>(combine::<E, R, W>(vectors), params.scale));
    }
    call.compare(peer, glance);
}

macro_rules! entries {
    ($($name:ident: $element:ty, $reduction:ty, $ranks:literal;)*) => {$(
        /// Kernel entry.
        ///
        /// # Safety
        /// The parameters are as [`LaunchParams`] says.
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name(params: LaunchParams) {
            one_shot::<$element, $reduction, $ranks>(&params);
        }
    )*};
}

entries! {
    one_shot_bf16_sum_w2: Bf16, Sum, 2;
    one_shot_bf16_min_w2: Bf16, Min, 2;
    one_shot_bf16_max_w2: Bf16, Max, 2;
    one_shot_f16_sum_w2: F16, Sum, 2;
    one_shot_f16_min_w2: F16, Min, 2;
    one_shot_f16_max_w2: F16, Max, 2;
    one_shot_f32_sum_w2: F32, Sum, 2;
    one_shot_f32_min_w2: F32, Min, 2;
    one_shot_f32_max_w2: F32, Max, 2;
    one_shot_bf16_sum_w3: Bf16, Sum, 3;
    one_shot_bf16_min_w3: Bf16, Min, 3;
    one_shot_bf16_max_w3: Bf16, Max, 3;
    one_shot_f16_sum_w3: F16, Sum, 3;
    one_shot_f16_min_w3: F16, Min, 3;
    one_shot_f16_max_w3: F16, Max, 3;
    one_shot_f32_sum_w3: F32, Sum, 3;
    one_shot_f32_min_w3: F32, Min, 3;
    one_shot_f32_max_w3: F32, Max, 3;
    one_shot_bf16_sum_w4: Bf16, Sum, 4;
    one_shot_bf16_min_w4: Bf16, Min, 4;
    one_shot_bf16_max_w4: Bf16, Max, 4;
    one_shot_f16_sum_w4: F16, Sum, 4;
    one_shot_f16_min_w4: F16, Min, 4;
    one_shot_f16_max_w4: F16, Max, 4;
    one_shot_f32_sum_w4: F32, Sum, 4;
    one_shot_f32_min_w4: F32, Min, 4;
    one_shot_f32_max_w4: F32, Max, 4;
    one_shot_bf16_sum_w5: Bf16, Sum, 5;
    one_shot_bf16_min_w5: Bf16, Min, 5;
    one_shot_bf16_max_w5: Bf16, Max, 5;
    one_shot_f16_sum_w5: F16, Sum, 5;
    one_shot_f16_min_w5: F16, Min, 5;
    one_shot_f16_max_w5: F16, Max, 5;
    one_shot_f32_sum_w5: F32, Sum, 5;
    one_shot_f32_min_w5: F32, Min, 5;
    one_shot_f32_max_w5: F32, Max, 5;
    one_shot_bf16_sum_w6: Bf16, Sum, 6;
    one_shot_bf16_min_w6: Bf16, Min, 6;
    one_shot_bf16_max_w6: Bf16, Max, 6;
    one_shot_f16_sum_w6: F16, Sum, 6;
    one_shot_f16_min_w6: F16, Min, 6;
    one_shot_f16_max_w6: F16, Max, 6;
    one_shot_f32_sum_w6: F32, Sum, 6;
    one_shot_f32_min_w6: F32, Min, 6;
    one_shot_f32_max_w6: F32, Max, 6;
    one_shot_bf16_sum_w7: Bf16, Sum, 7;
    one_shot_bf16_min_w7: Bf16, Min, 7;
    one_shot_bf16_max_w7: Bf16, Max, 7;
    one_shot_f16_sum_w7: F16, Sum, 7;
    one_shot_f16_min_w7: F16, Min, 7;
    one_shot_f16_max_w7: F16, Max, 7;
    one_shot_f32_sum_w7: F32, Sum, 7;
    one_shot_f32_min_w7: F32, Min, 7;
    one_shot_f32_max_w7: F32, Max, 7;
    one_shot_bf16_sum_w8: Bf16, Sum, 8;
    one_shot_bf16_min_w8: Bf16, Min, 8;
    one_shot_bf16_max_w8: Bf16, Max, 8;
    one_shot_f16_sum_w8: F16, Sum, 8;
    one_shot_f16_min_w8: F16, Min, 8;
    one_shot_f16_max_w8: F16, Max, 8;
    one_shot_f32_sum_w8: F32, Sum, 8;
    one_shot_f32_min_w8: F32, Min, 8;
    one_shot_f32_max_w8: F32, Max, 8;
}
