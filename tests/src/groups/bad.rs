//! Calls that make no sense, and the error that each must get, before any backend sees it.

use meshreduce_process_group::{
    Call, CallError, DType, Device, DeviceType, Error, GroupOptions, Parts, ProcessGroup, ReduceOp, Role,
    Tensor,
};

use meshreduce_checks::groups::arena::Memory;
use meshreduce_checks::groups::profile::Profile;
use meshreduce_checks::groups::runner::device;

/// How many ranks the calls are made for, and which of them makes them.
pub const RANKS: usize = 3;
/// See [`RANKS`].
pub const RANK: usize = 1;

/// A call, and what must come of it.
struct Bad {
    what: &'static str,
    call: Call<'static>,
    is_right: fn(&CallError) -> bool,
}

/// Makes every bad call on a group of [`RANKS`] ranks as [`RANK`], alone: none may reach the others, take a sequence number, or
/// touch memory.
///
/// # Errors
/// The first call that gets another error than it must, in words.
///
/// # Panics
/// If there is no memory.
pub fn calls(group: &ProcessGroup, profile: &Profile) -> Result<(), String> {
    assert_eq!((group.rank(), group.world_size()), (RANK, RANKS), "the group that this is written for");
    let device = device(profile, RANK);
    let bytes = vec![0x77; 4096];
    let mut memory = Memory::new(device, &bytes).expect("memory");
    let before = group.sequence_numbers();
    for Bad { what, call, is_right } in bad(memory.base(), device) {
        let operation = call.operation();
        // SAFETY: all of the call's tensors are in `memory`, on this device or, so they say, on another; and nothing goes on
        // behind an error.
        match unsafe { group.start(&call) } {
            Err(error @ Error::Call { .. }) => {
                let Error::Call { operation: named, group: name, source } = &error else {
                    unreachable!("as above")
                };
                let text = error.to_string();
                if *named != operation || **name != *group.name() || !is_right(source) {
                    return Err(format!("{what}: {error:?}"));
                }
                if !text.contains(operation.name()) || !text.contains(group.name()) {
                    return Err(format!("{what}: {text:?} names neither operation nor group"));
                }
            }
            other => return Err(format!("{what}: {other:?}")),
        }
    }
    if group.sequence_numbers() != before {
        return Err(format!("sequence numbers went from {before:?} to {:?}", group.sequence_numbers()));
    }
    match memory.read().map_err(|error| error.to_string())?.starts_with(&bytes) {
        true => Ok(()),
        false => Err("a bad call has touched memory".to_owned()),
    }
}

/// What lives as long as the program, for the few calls that there are.
fn keep<T: Clone>(values: &[T]) -> &'static [T] {
    Vec::leak(values.to_vec())
}

fn bad(base: u64, device: Device) -> Vec<Bad> {
    let tensor = |at: u64, count: usize| Tensor { address: base + at, count, dtype: DType::F32, device };
    let (a, b) = (tensor(0, 12), tensor(1024, 12));
    let (op, root) = (ReduceOp::Sum, RANK);
    let elsewhere = Tensor { device: Device::Cuda(17), ..b };
    let mut all = Vec::new();
    let mut add = |what, call, is_right| all.push(Bad { what, call, is_right });

    let no_root: fn(&CallError) -> bool =
        |error| *error == CallError::NoSuchRank { role: Role::Root, rank: RANKS, world_size: RANKS };
    let no_peer: fn(&CallError) -> bool =
        |error| *error == CallError::NoSuchRank { role: Role::Peer, rank: RANKS, world_size: RANKS };
    add("a broadcast from nobody", Call::Broadcast { tensor: a, root: RANKS }, no_root);
    add("a reduce to nobody", Call::Reduce { input: a, output: None, op, root: RANKS }, no_root);
    add("a gather to nobody", Call::Gather { input: a, outputs: None, root: RANKS }, no_root);
    add("a scatter from nobody", Call::Scatter { inputs: None, output: a, root: RANKS }, no_root);
    add("a send to nobody", Call::Send { input: a, peer: RANKS, tag: 0 }, no_peer);
    add("a receive from nobody", Call::Recv { output: a, peer: Some(RANKS), tag: 0 }, no_peer);

    let to_oneself: fn(&CallError) -> bool = |error| *error == CallError::ToOneself { rank: RANK };
    add("a send to oneself", Call::Send { input: a, peer: RANK, tag: 0 }, to_oneself);
    add("a receive from oneself", Call::Recv { output: a, peer: Some(RANK), tag: 0 }, to_oneself);

    let longer: fn(&CallError) -> bool = |error| *error == CallError::LengthsDiffer { input: 12, output: 13 };
    let longer_by_part: fn(&CallError) -> bool =
        |error| *error == CallError::LengthsDiffer { input: 12, output: 4 };
    let shorter: fn(&CallError) -> bool = |error| *error == CallError::LengthsDiffer { input: 4, output: 12 };
    add("an all-reduce into more", Call::AllReduce { input: a, output: tensor(1024, 13), op }, longer);
    add("a reduce into more", Call::Reduce { input: a, output: Some(tensor(1024, 13)), op, root }, longer);
    add("an all-gather into less", Call::AllGather { input: a, outputs: Parts::Whole(b) }, longer_by_part);
    add(
        "a gather into less",
        Call::Gather { input: a, outputs: Some(Parts::Whole(b)), root },
        longer_by_part,
    );
    add("a scatter into more", Call::Scatter { inputs: Some(Parts::Whole(a)), output: b, root }, shorter);
    add(
        "a reduce-scatter into more",
        Call::ReduceScatter { inputs: Parts::Whole(a), output: b, op },
        shorter,
    );

    let root_lacks: fn(&CallError) -> bool =
        |error| *error == CallError::RootsOnly { root: RANK, is_there: false };
    let others_have: fn(&CallError) -> bool =
        |error| *error == CallError::RootsOnly { root: 0, is_there: true };
    add("a root without an output", Call::Reduce { input: a, output: None, op, root }, root_lacks);
    add("a root without outputs", Call::Gather { input: a, outputs: None, root }, root_lacks);
    add("a root without inputs", Call::Scatter { inputs: None, output: a, root }, root_lacks);
    add(
        "an output that only the root has",
        Call::Reduce { input: a, output: Some(b), op, root: 0 },
        others_have,
    );
    add(
        "outputs that only the root has",
        Call::Gather { input: tensor(0, 4), outputs: Some(Parts::Whole(b)), root: 0 },
        others_have,
    );
    add(
        "inputs that only the root has",
        Call::Scatter { inputs: Some(Parts::Whole(b)), output: tensor(0, 4), root: 0 },
        others_have,
    );

    let ten = tensor(1024, 10);
    let no_equal: fn(&CallError) -> bool =
        |error| *error == CallError::NoEqualParts { count: 10, world_size: RANKS };
    add(
        "ten elements for three",
        Call::AllGather { input: tensor(0, 3), outputs: Parts::Whole(ten) },
        no_equal,
    );
    add(
        "ten of three",
        Call::ReduceScatter { inputs: Parts::Whole(ten), output: tensor(0, 3), op },
        no_equal,
    );
    add("ten to three", Call::AllToAll { inputs: Parts::Whole(a), outputs: Parts::Whole(ten) }, no_equal);

    let two: fn(&CallError) -> bool =
        |error| *error == CallError::PartsMissing { found: 2, world_size: RANKS };
    let list = keep(&[tensor(1024, 4), tensor(1280, 4)]);
    add("two tensors for three", Call::AllGather { input: tensor(0, 4), outputs: Parts::List(list) }, two);
    let counts = keep(&[6, 6]);
    add(
        "two counts for three",
        Call::ReduceScatter { inputs: Parts::Split { tensor: b, counts }, output: tensor(0, 6), op },
        two,
    );

    let sum: fn(&CallError) -> bool = |error| *error == CallError::PartsDoNotAddUp { parts: 11, count: 12 };
    let counts = keep(&[4, 4, 3]);
    add(
        "parts that are less than the tensor",
        Call::AllGather { input: tensor(0, 4), outputs: Parts::Split { tensor: b, counts } },
        sum,
    );

    add("tensors on two devices", Call::AllReduce { input: a, output: elsewhere, op }, |error| {
        matches!(error, CallError::DevicesDiffer { devices: (_, Device::Cuda(17)) })
    });
    let double = Tensor { dtype: DType::F64, ..b };
    add("tensors of two types", Call::AllReduce { input: a, output: double, op }, |error| {
        *error == CallError::TypesDiffer { dtypes: (DType::F32, DType::F64) }
    });
    add("an address between elements", Call::Broadcast { tensor: tensor(2, 4), root }, |error| {
        matches!(error, CallError::Misaligned { alignment: 4, .. })
    });

    let overlap: fn(&CallError) -> bool = |error| matches!(error, CallError::Overlap { .. });
    add(
        "an output that begins within the input",
        Call::AllReduce { input: a, output: tensor(4, 12), op },
        overlap,
    );
    let all_to_all = Call::AllToAll { inputs: Parts::Whole(a), outputs: Parts::Whole(a) };
    add("an all-to-all in place", all_to_all, overlap);
    let list = keep(&[tensor(1024, 4), tensor(1032, 4), tensor(1280, 4)]);
    add("outputs that overlap", Call::AllGather { input: tensor(0, 4), outputs: Parts::List(list) }, overlap);
    let last = Call::AllGather { input: tensor(1024 + 32, 4), outputs: Parts::Whole(b) };
    add("an input in the part of another rank", last, overlap);

    let (sum_of, broadcast) =
        (Call::AllReduce { input: a, output: a, op }, Call::Broadcast { tensor: b, root });
    let mixed: fn(&CallError) -> bool = |error| matches!(error, CallError::MixedBatch { .. });
    add("two kinds of collectives in a batch", Call::Batch(keep(&[sum_of, broadcast])), mixed);
    let send = Call::Send { input: b, peer: 0, tag: 0 };
    add("a collective and a send in a batch", Call::Batch(keep(&[sum_of, send])), mixed);
    let batch = Call::Batch(keep(&[sum_of]));
    add("a batch in a batch", Call::Batch(keep(&[batch, batch])), mixed);
    let wrong = Call::Send { input: b, peer: RANK, tag: 0 };
    add("a send to oneself in a batch", Call::Batch(keep(&[send, wrong])), to_oneself);
    all
}

/// Makes groups that cannot be, of a group of [`RANKS`] ranks.
///
/// # Errors
/// The first that gets another error than it must, in words.
pub fn parts(group: &ProcessGroup) -> Result<(), String> {
    for (asked, problem) in [(&[][..], "none"), (&[0, 1, 0], "rank 0 is there twice"), (&[0, 3], "rank 3")] {
        match group.new_group(asked, &GroupOptions::default()) {
            Err(Error::InvalidRanks { ranks, group: name, problem: said })
                if ranks == asked && *name == *group.name() && said.contains(problem) => {}
            other => return Err(format!("{asked:?}: {other:?}")),
        }
    }
    let others: Vec<usize> = (0..group.world_size()).filter(|rank| *rank != group.rank()).collect();
    let made = group.new_group(&others, &GroupOptions::default()).map_err(|error| error.to_string())?;
    match made.member() {
        Err(Error::NotAMember { rank, .. }) if rank == group.rank() => Ok(()),
        other => Err(format!("a group of others: {other:?}")),
    }
}

/// Calls with tensors of a device that the group has no backend for.
///
/// # Errors
/// An error that is another than it must be, in words.
pub fn devices(group: &ProcessGroup, profile: &Profile) -> Result<(), String> {
    let other = match profile.device {
        DeviceType::Cpu => Device::Cuda(0),
        DeviceType::Cuda => Device::Cpu,
    };
    match group.barrier(other) {
        Err(Error::NoBackend { device, group: name, config })
            if device == other.kind() && *name == *group.name() && config == profile.config() => {}
        other => return Err(format!("a device without a backend: {other:?}")),
    }
    if profile.device == DeviceType::Cuda {
        match group.barrier(Device::Cuda(17)) {
            Err(Error::WrongDevice { device: Device::Cuda(17), .. }) => {}
            other => return Err(format!("another device than the group's: {other:?}")),
        }
    }
    Ok(())
}

/// That ranks which call different things are all told which, if calls are checked. Every rank calls this on a group of its own.
///
/// # Errors
/// An error that is another than it must be, in words.
pub fn mismatch(group: &ProcessGroup) -> Result<(), String> {
    let mut data = vec![1.0_f32; 4 + usize::from(group.rank() == 2)];
    group.barrier(Device::Cpu).map_err(|error| error.to_string())?;
    let error = group.all_reduce(&mut data, ReduceOp::Sum).err();
    let sequence = group.sequence_numbers().0;
    match &error {
        Some(Error::Mismatch { ranks: (0, 2), calls, sequence: number, group: name })
            if calls.0.contains("all_reduce (sum) of 4 f32")
                && calls.1.contains("all_reduce (sum) of 5 f32")
                && *number == sequence
                && **name == *group.name() => {}
        other => return Err(format!("{other:?}")),
    }
    // The group is over, with this cause.
    match group.barrier(Device::Cpu) {
        Err(Error::Mismatch { .. }) => Ok(()),
        other => Err(format!("after it: {other:?}")),
    }
}
