//! One-shot by packets of several messages at once: every rank pushes all tensors of its list to all ranks and reduces what arrives.
//!
//! One kernel serves every world size up to eight: ranks that do not exist are pushed nothing, and bring to the tree what changes no
//! value there.
//! Which tensor a unit belongs to, a thread finds in the parameters by the tensors' first units. All inputs are loaded as those of
//! calls in place are, so tensors that are in place and others may stand in one list.
//!
//! The first units have the tensors' counts, and ranks compare them one by one. A warp has either these or data: a thread that finds
//! that a peer's tensor has another length tells it, and must not first meet one that waits for what is not there.

use core::{arch::asm, mem::offset_of};

use meshreduce_wire::{GroupParams, MAX_RANKS, RecordKind, launch::MAX_TENSORS};

use crate::{
    call::{Call, Failure},
    entries::entry_for_all,
    message::Message,
    packets::PacketShare,
    reduction::reduce_units,
    slot::{UNIT_WORDS, Unit},
    thread::{decide_here, exit, thread_idx_x},
};

/// The kernel.
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`GroupParams`] says.
#[inline(always)]
pub unsafe fn group(params: &GroupParams) {
    let mut share = PacketShare::of_thread(params.units);
    let mut next = share.next().map(|index| (index, load(params, index)));

    let call = Call::<MAX_RANKS, _>::enter(params);
    let thread = thread_idx_x();
    let peer = call.peer((thread < params.world_size).then_some(thread));
    let open = call.open();
    if open {
        call.announce(peer);
    }
    while let Some((index, unit)) = next {
        next = share.next().map(|index| (index, load(params, index)));
        if open {
            call.push_present(0, index, unit);
        }
    }
    // Now and then every slot of both phases is pushed and awaited: what the list leaves out as zeros.
    let end = if call.refreshes() { call.places() } else { params.units };
    for index in share.up_to(end) {
        if open {
            call.push_present(0, index, [0; UNIT_WORDS]);
        }
    }

    call.depart(open, peer);

    // Whose end is found anew each time: no register holds it while there are eight units.
    for index in PacketShare::of_thread(u32::MAX) {
        let end = if call.refreshes() { call.places() } else { decide_here(params.units) };
        if index >= end {
            break;
        }
        // From constant memory each time: no register holds it while there is nothing.
        let units = call.await_present(0, index, || [decide_here(params.neutral); UNIT_WORDS]);
        if index < units_of_counts(params) {
            call.compare_counts(index, units);
        } else if index < decide_here(params.units) {
            let result = reduce_units(&params.launch, units);
            // Behind the reduction: the units' registers are free again.
            let (tensor, unit) = find(params, decide_here(index));
            tensor.store(unit, result);
        }
    }
}

impl Call<'_, MAX_RANKS, GroupParams> {
    /// Compares what all ranks say of the length of a tensor. A thread that finds one which differs tells it and ends.
    ///
    /// # Safety
    /// Behind [`Call::depart`], by a warp that waits for no data in this step.
    #[inline(always)]
    unsafe fn compare_counts(&self, tensor: u32, said: [Unit; MAX_RANKS]) {
        let count = count(tensor);
        // The first that differs.
        let (mut differs, mut theirs) = (MAX_RANKS as u32, 0);
        let mut source = MAX_RANKS;
        while source > 0 {
            source -= 1;
            let [its, ..] = said[source];
            let is_there = (source as u32) < decide_here(self.launch.world_size);
            (differs, theirs) =
                if is_there && its != count { (source as u32, its) } else { (differs, theirs) };
        }
        if differs < MAX_RANKS as u32 {
            let peer = self.rank_at(differs);
            self.fail(Failure {
                abort: self.finding(RecordKind::TensorMismatch, peer),
                phase: decide_here(self.launch.place) + tensor,
                peer,
                launched: count as u64,
                epoch_wanted: 0,
                epoch_seen: 0,
                peer_launched: theirs as u64,
                begin: 0,
            });
            exit();
        }
    }
}

/// The unit at `index` of this rank's list.
///
/// # Safety
/// As for [`Message::load`].
#[inline(always)]
unsafe fn load(params: &GroupParams, index: u32) -> Unit {
    if index < units_of_counts(params) {
        let mut unit = [0; UNIT_WORDS];
        unit[0] = count(index);
        unit
    } else {
        let (tensor, unit) = find(params, index);
        tensor.load(unit)
    }
}

/// The units before those of the first tensor.
#[inline(always)]
fn units_of_counts(params: &GroupParams) -> u32 {
    GroupParams::units_of_counts(decide_here(params.launch.count as u32) as usize)
}

/// The elements of a tensor; 0 of one that does not exist.
///
/// # Safety
/// `tensor` is less than [`MAX_TENSORS`].
#[inline(always)]
unsafe fn count(tensor: u32) -> u32 {
    parameter_u32(offset_of!(GroupParams, counts), tensor)
}

/// The tensor that has the unit at `index`, and which of its units that is: the last one that begins there or before. (One of no
/// elements begins where the next one does.)
///
/// # Safety
/// `index` is less than [`GroupParams::units`] and not less than [`units_of_counts`].
#[inline(always)]
unsafe fn find(params: &GroupParams, index: u32) -> (Message<UNIT_WORDS>, u32) {
    let first = |tensor| parameter_u32(offset_of!(GroupParams, firsts), tensor);
    let mut tensor = 0;
    let mut step = MAX_TENSORS as u32 / 2;
    while step > 0 {
        let begins = first(tensor + step) <= index;
        tensor = if begins { tensor + step } else { tensor };
        step /= 2;
    }
    let input = parameter_u64(offset_of!(GroupParams, inputs), tensor);
    let output = parameter_u64(offset_of!(GroupParams, outputs), tensor);
    (Message::of_list(&params.launch, input, output, count(tensor)), index - first(tensor))
}

/// The name of the entry's parameter. An array in it that is indexed by a variable is read by address: the compiler, to which the
/// parameter is a value, would copy all of it to local memory.
#[cfg(not(feature = "b128"))]
macro_rules! parameter {
    () => {
        "group_ll_param_0"
    };
}
#[cfg(feature = "b128")]
macro_rules! parameter {
    () => {
        "group_ll_b128_param_0"
    };
}

/// The element at `index` of an array of the parameter. `ld.param.u32` (PTX ISA, "ld").
///
/// # Safety
/// Only in this module's entry; the array at `offset` has that element.
#[inline(always)]
unsafe fn parameter_u32(offset: usize, index: u32) -> u32 {
    let value;
    let at = offset as u64 + 4 * index as u64;
    asm!(
        concat!("{{ .reg .b64 a; mov.b64 a, ", parameter!(), "; add.u64 a, a, {1}; ld.param.u32 {0}, [a]; }}"),
        out(reg32) value, in(reg64) at, options(nostack, preserves_flags, nomem, pure)
    );
    value
}

/// The element at `index` of an array of the parameter. `ld.param.u64` (PTX ISA, "ld").
///
/// # Safety
/// As for [`parameter_u32`].
#[inline(always)]
unsafe fn parameter_u64(offset: usize, index: u32) -> u64 {
    let value;
    let at = offset as u64 + 8 * index as u64;
    asm!(
        concat!("{{ .reg .b64 a; mov.b64 a, ", parameter!(), "; add.u64 a, a, {1}; ld.param.u64 {0}, [a]; }}"),
        out(reg64) value, in(reg64) at, options(nostack, preserves_flags, nomem, pure)
    );
    value
}

entry_for_all!(group_ll: group, GroupParams);
