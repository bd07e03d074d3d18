//! The backend `mesh` of process groups on the emulated node: what it takes itself and what goes to NCCL behind it, on all ranks
//! alike.

use std::sync::Arc;
use std::time::Duration;

use cust::context::Context;
use cust::device::Device;
use cust::memory::{CopyDestination, DeviceBuffer, DeviceCopy};
use half::bf16;
use meshreduce::{Bf16, Config};
use meshreduce_checks::in_process::BRIEF;
use meshreduce_process_group::{
    Backend, BackendContext, BackendFactory, Call, DType, DeviceType, Element, Error, MeshFactory,
    ProcessGroup, ReduceOp, Registry, Request, Usage, Work, WorkFuture,
};
use meshreduce_tests::here;
use meshreduce_tests::rank_process::{Part, Stage, heard};

const LONG: Duration = Duration::from_secs(120);

/// Runs all ranks of a stage, which must end well; returns what each has said.
fn run(stage: &Stage, ranks: usize, part: &str, environment: &[(&str, &str)]) -> Vec<Vec<String>> {
    let children: Vec<_> = (0..ranks)
        .map(|rank| {
            let mut command = stage.command_as(rank, part);
            command.env("NCCL_SOCKET_IFNAME", "lo").envs(environment.iter().copied());
            command.spawn().unwrap()
        })
        .collect();
    let heard: Vec<_> = children.into_iter().map(heard).collect();
    assert!(heard.iter().all(|(_, well)| *well), "{heard:?}");
    heard.into_iter().map(|(said, _)| said).collect()
}

fn builder(part: &Part, registry: Registry) -> ProcessGroup {
    builder_with(part, registry, LONG)
}

fn builder_with(part: &Part, registry: Registry, deadline: Duration) -> ProcessGroup {
    let store: Arc<dyn meshreduce::Store> = Arc::from(Part::of_this_process().unwrap().store);
    ProcessGroup::builder(store, part.rank, part.world_size)
        .registry(registry)
        .backend("mesh".parse().unwrap())
        .cuda_device(part.rank as u32)
        .timeout(LONG)
        .deadline(Some(deadline))
        .build()
        .unwrap()
}

/// All-reduces `count` elements, every one this rank's number as `value` has it; whether all have become `expected`.
fn all_reduce<T: Element + DeviceCopy + PartialEq>(
    group: &ProcessGroup,
    count: usize,
    value: T,
    op: ReduceOp,
    expected: T,
) -> bool {
    let mut buffer = DeviceBuffer::from_slice(&vec![value; count]).unwrap();
    group.all_reduce(&mut buffer, op).unwrap();
    let mut result = vec![value; count];
    buffer.copy_to(&mut result).unwrap();
    result.iter().all(|element| *element == expected)
}

fn own(group: &ProcessGroup) -> u64 {
    group.usage(DeviceType::Cuda).map_or(0, |usage| usage.own)
}

/// PyTorch's acceptance test of its intra-node path (test_c10d_nccl.py, `test_intra_node_comm_all_reduce`), through the group: its
/// limits (bf16, sum, 10 MiB), both of its variables, its usage counter.
#[test]
fn rank_of_the_acceptance_test() {
    let Some(part) = Part::of_this_process().filter(|part| part.name == "acceptance") else { return };
    let mut registry = Registry::default();
    registry.replace(MeshFactory::new().only(&[DType::Bf16], &[ReduceOp::Sum])).unwrap();
    cust::init(cust::CudaFlags::empty()).unwrap();
    let _context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    let group = builder(&part, registry);
    let (rank, ranks) = (part.rank, part.world_size);
    let sum = ranks * (ranks - 1) / 2;
    let half = |number: usize| Bf16::from(bf16::from_f32(number as f32));
    let mut counter = Vec::new();

    assert!(all_reduce(&group, 4 * 1024 / 2, rank as i64, ReduceOp::Sum, sum as i64));
    counter.push(own(&group));
    let mean = Bf16::from(bf16::from_f32(sum as f32 / ranks as f32));
    assert!(all_reduce(&group, 4 * 1024 / 2, half(rank), ReduceOp::Avg, mean));
    counter.push(own(&group));
    for count in [4 * 1024 / 2, 512 * 1024 / 2, 10 * 1024 * 1024 / 2, 10 * 1024 * 1024 / 2 + 1] {
        assert!(all_reduce(&group, count, half(rank), ReduceOp::Sum, half(sum)), "{count}");
        counter.push(own(&group));
    }
    part.say(&format!("{counter:?}, {:?}", group.usage(DeviceType::Cuda).unwrap()));
    group.shutdown().unwrap();
}

#[test]
fn pytorchs_acceptance_test_of_the_intra_node_path_passes_through_a_group() {
    let stage = Stage::new(here!("rank_of_the_acceptance_test"), 2);
    let variables = [("ENABLE_INTRA_NODE_COMM", "1"), ("TEST_INTRA_NODE_COMM", "1")];
    let said = run(&stage, 2, "acceptance", &variables);
    let expected = "[0, 0, 1, 2, 3, 3], Usage { own: 3, fallback: 3 }";
    assert_eq!(said, [[expected], [expected]]);
    assert_eq!(stage.keys(), Vec::<String>::new());
}

#[test]
fn a_variable_turns_the_mesh_off_and_all_calls_go_to_nccl() {
    let stage = Stage::new(here!("rank_of_the_acceptance_test"), 2);
    let said = run(&stage, 2, "acceptance", &[("ENABLE_INTRA_NODE_COMM", "0")]);
    let expected = "[0, 0, 0, 0, 0, 0], Usage { own: 0, fallback: 6 }";
    assert_eq!(said, [[expected], [expected]]);
}

/// Coalesced all-reduces: with what the mesh takes, with a tensor that is too long for it, and with lengths that differ.
#[test]
fn rank_with_coalesced_calls() {
    let Some(part) = Part::of_this_process().filter(|part| part.name == "coalesced") else { return };
    cust::init(cust::CudaFlags::empty()).unwrap();
    let _context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    let group = builder(&part, Registry::default());
    let (rank, sum) = (part.rank as f32, (0..part.world_size).sum::<usize>() as f32);
    for last in [70, 3 << 20] {
        let lengths = [5, 1, 300, last];
        let filled = |count: &usize| DeviceBuffer::from_slice(&vec![rank; *count]).unwrap();
        let mut buffers: Vec<_> = lengths.iter().map(filled).collect();
        group.all_reduce_coalesced(&mut buffers, ReduceOp::Sum).unwrap();
        for (buffer, count) in buffers.iter().zip(lengths) {
            assert_eq!(buffer.as_host_vec().unwrap(), vec![sum; count]);
        }
    }
    part.say(&format!("{:?}", group.usage(DeviceType::Cuda).unwrap()));
    let mut buffers = [4, 8 + part.rank].map(|count| DeviceBuffer::from_slice(&vec![rank; count]).unwrap());
    let error = group.all_reduce_coalesced(&mut buffers, ReduceOp::Sum).unwrap_err();
    assert!(matches!(error, Error::Mismatch { sequence: 3, .. }), "{error}");
    part.say(&error.to_string());
}

#[test]
fn coalesced_all_reduces_are_one_launch_of_the_mesh() {
    let stage = Stage::new(here!("rank_with_coalesced_calls"), 2);
    let said = run(&stage, 2, "coalesced", &[]);
    let lengths = "all_reduce_coalesced whose tensor 1 has";
    for (rank, said) in said.iter().enumerate() {
        let [usage, error] = &said[..] else { panic!("{said:?}") };
        assert_eq!(usage, "Usage { own: 1, fallback: 1 }");
        // One finds out, and tells the other, which may have found out itself.
        let (own, peers) = (8 + rank, 9 - rank);
        let finds = error.contains(&format!(
            "rank {rank} calls {lengths} {own} elements, rank {} calls {lengths} {peers}",
            1 - rank
        ));
        assert!(finds || error.contains("says which"), "{error}");
    }
    assert!(said.iter().any(|said| said[1].contains(lengths)), "{said:?}");
}

/// What a group says where only the mesh may serve it.
#[test]
fn rank_without_a_fallback() {
    let Some(part) = Part::of_this_process().filter(|part| part.name == "forbid") else { return };
    cust::init(cust::CudaFlags::empty()).unwrap();
    let _context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    let store: Arc<dyn meshreduce::Store> = Arc::from(Part::of_this_process().unwrap().store);
    let group = ProcessGroup::builder(store, part.rank, part.world_size)
        .backend("mesh".parse().unwrap())
        .cuda_device(part.rank as u32)
        .timeout(LONG)
        .forbid_fallback(true)
        .build()
        .unwrap();
    let mut buffer = DeviceBuffer::from_slice(&[part.rank as f64; 4]).unwrap();
    match group.all_reduce(&mut buffer, ReduceOp::Sum) {
        Err(error @ Error::Unsupported { .. }) => part.say(&error.to_string()),
        other => panic!("{other:?}"),
    }
    let mut buffer = DeviceBuffer::from_slice(&[part.rank as f32; 4]).unwrap();
    group.all_reduce(&mut buffer, ReduceOp::Max).unwrap();
    group.barrier(meshreduce_process_group::Device::Cuda(part.rank as u32)).unwrap();
    assert_eq!(group.usage(DeviceType::Cuda), Some(Usage { own: 2, fallback: 0 }));
    group.shutdown().unwrap();
}

#[test]
fn a_group_that_forbids_the_fallback_refuses_what_the_mesh_does_not_take() {
    let stage = Stage::new(here!("rank_without_a_fallback"), 2);
    // Without NCCL, too: nothing looks for it.
    let said = run(&stage, 2, "forbid", &[("MESHREDUCE_NCCL", "/nonexistent/libnccl.so.2")]);
    for (rank, said) in said.iter().enumerate() {
        let expected = format!(
            "backend mesh does not support all_reduce (sum) of f64 (group world, device cuda:{rank}): the mesh has no kernel for sum \
             of f64, and the group forbids what is behind it"
        );
        assert_eq!(*said, [expected]);
    }
}

/// A rank whose calls NCCL is needed for, where there is none.
#[test]
fn rank_without_nccl() {
    let Some(part) = Part::of_this_process().filter(|part| part.name == "no nccl") else { return };
    cust::init(cust::CudaFlags::empty()).unwrap();
    let _context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    let group = builder(&part, Registry::default());
    let mut buffer = DeviceBuffer::from_slice(&[part.rank as f32; 4]).unwrap();
    group.all_reduce(&mut buffer, ReduceOp::Max).unwrap();
    group.broadcast(&mut buffer, 0).unwrap();
    let error = group.all_reduce(&mut buffer, ReduceOp::Product).unwrap_err();
    assert!(matches!(error, Error::NotMade { .. }), "{error:?}");
    part.say(&error.to_string());
    // The mesh goes on.
    group.all_reduce(&mut buffer, ReduceOp::Max).unwrap();
    group.shutdown().unwrap();
}

#[test]
fn without_nccl_what_needs_it_says_what_was_tried_and_the_mesh_goes_on() {
    let stage = Stage::new(here!("rank_without_nccl"), 2);
    let said = run(&stage, 2, "no nccl", &[("MESHREDUCE_NCCL", "/nonexistent/libnccl.so.2")]);
    for said in said {
        assert!(
            said[0].contains("backend nccl") && said[0].contains("/nonexistent/libnccl.so.2"),
            "{said:?}"
        );
    }
}

/// Calls on device memory that go on, waited for in all ways that there are.
#[test]
fn rank_that_does_not_wait() {
    let Some(part) = Part::of_this_process().filter(|part| part.name == "async") else { return };
    cust::init(cust::CudaFlags::empty()).unwrap();
    let _context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    let mut registry = Registry::default();
    registry.replace(MeshFactory::new().with_config(Config::default())).unwrap();
    let group = builder(&part, registry);
    let stream = cust::stream::Stream::new(cust::stream::StreamFlags::NON_BLOCKING, None).unwrap();
    // SAFETY: the stream is one of the group's device and outlives the handle.
    let group = unsafe { group.on_stream(&stream) };
    let buffer = DeviceBuffer::from_slice(&[part.rank as f32 + 1.0; 100]).unwrap();
    let tensor = meshreduce_process_group::Buffer::tensor(&buffer);
    let call = meshreduce_process_group::Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum };
    // SAFETY: the buffer lives until the stream has done all of it, which is waited for below.
    let works: Vec<_> = (0..4).map(|_| unsafe { group.start(&call) }.unwrap()).collect();
    let ended: WorkFuture = works[3].clone().into_future();
    while ended.work().result().unwrap().is_none() {
        std::thread::yield_now();
    }
    assert!(works.iter().all(|work| work.is_completed().unwrap() && &**work.backend() == "mesh"));
    works[0].wait(Some(LONG)).unwrap();
    stream.synchronize().unwrap();
    let mut result = [0.0; 100];
    buffer.copy_to(&mut result).unwrap();
    // 3, then doubled three times.
    assert_eq!(result, [24.0; 100]);
    group.shutdown().unwrap();
}

#[test]
fn calls_on_device_memory_go_on_in_their_streams_order() {
    run(&Stage::new(here!("rank_that_does_not_wait"), 2), 2, "async", &[]);
}

/// Two ranks that wait for a third one, which does not come to its call in time, but is there.
#[test]
fn rank_that_is_late_or_waits() {
    let Some(part) = Part::of_this_process().filter(|part| part.name == "late") else { return };
    cust::init(cust::CudaFlags::empty()).unwrap();
    let _context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    let group = builder(&part, Registry::default());
    let store = Part::of_this_process().unwrap().store;
    let mut buffer = DeviceBuffer::from_slice(&[1.0_f32; 4]).unwrap();
    group.all_reduce(&mut buffer, ReduceOp::Max).unwrap();
    if part.rank == 2 {
        store.wait(&["told/0", "told/1"], LONG).unwrap();
        return;
    }
    let brief = group.with_deadline(Some(Duration::from_secs(1)));
    let texts: Vec<String> = (0..2)
        .map(|_| match brief.all_reduce(&mut buffer, ReduceOp::Max).unwrap_err() {
            error @ Error::Timeout { sequence: 2, .. } => {
                part.say(&error.to_string());
                error.to_string()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(texts[0], texts[1], "later calls fail with the cause");
    assert_eq!(group.error().map(|error| error.to_string()), Some(texts[0].clone()));
    store.set(&format!("told/{}", part.rank), b"").unwrap();
}

#[test]
fn a_handles_deadline_that_passes_on_the_mesh_is_a_timeout_on_all_ranks_and_stays_so() {
    let stage = Stage::new(here!("rank_that_is_late_or_waits"), 3);
    let said = run(&stage, 3, "late", &[("TORCH_FR_DUMP_ON_TIMEOUT", "false")]);
    let timeouts: Vec<_> = said.iter().flatten().collect();
    assert_eq!(timeouts.len(), 4, "{said:?}");
    assert!(timeouts.iter().all(|text| text.contains("rank 2 did not come to it")), "{timeouts:?}");
}

/// A rank that comes later than the group's deadline, and earlier than that of the others' handles.
#[test]
fn rank_with_a_longer_deadline() {
    let Some(part) = Part::of_this_process().filter(|part| part.name == "longer") else { return };
    cust::init(cust::CudaFlags::empty()).unwrap();
    let _context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    let brief = Duration::from_millis(300);
    let group = builder_with(&part, Registry::default(), brief);
    let patient = group.with_deadline(Some(LONG));
    assert!(all_reduce(&patient, 4, 1.0_f32, ReduceOp::Sum, 2.0));
    if part.rank == 1 {
        std::thread::sleep(3 * brief);
    }
    assert!(all_reduce(&patient, 4, 2.0_f32, ReduceOp::Sum, 4.0));
    patient.shutdown().unwrap();
}

#[test]
fn a_handles_deadline_may_be_longer_than_the_groups() {
    run(&Stage::new(here!("rank_with_a_longer_deadline"), 2), 2, "longer", &[]);
}

/// More groups than fit the device beside one another.
#[test]
fn rank_with_many_groups() {
    let Some(part) = Part::of_this_process().filter(|part| part.name == "many") else { return };
    cust::init(cust::CudaFlags::empty()).unwrap();
    let _context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    let world = builder(&part, Registry::default());
    let options = meshreduce_process_group::GroupOptions::default();
    let mut groups: Vec<_> =
        (0..6).map(|_| world.new_group(&[0, 1], &options).unwrap().member().unwrap()).collect();
    for group in &groups {
        assert!(all_reduce(group, 4, 1.0_f32, ReduceOp::Sum, 2.0));
    }
    let usage: Vec<Usage> = groups.iter().map(|group| group.usage(DeviceType::Cuda).unwrap()).collect();
    part.say(&format!("{usage:?}"));
    let strict = options.forbid_fallback(true);
    let group = world.new_group(&[0, 1], &strict).unwrap().member().unwrap();
    let error = group.connect(DeviceType::Cuda).unwrap_err();
    assert!(error.to_string().contains("communicators_per_device"), "{error}");
    // Who closes one makes room.
    groups.remove(0).shutdown().unwrap();
    let group = world.new_group(&[0, 1], &strict).unwrap().member().unwrap();
    assert!(all_reduce(&group, 4, 1.0_f32, ReduceOp::Sum, 2.0));
    groups.push(group);
    groups.iter().for_each(|group| group.shutdown().unwrap());
}

#[test]
fn a_group_for_which_the_device_has_no_room_has_no_mesh_on_any_rank_and_its_calls_go_to_nccl() {
    let said = run(&Stage::new(here!("rank_with_many_groups"), 2), 2, "many", &[]);
    let (own, fallback) = (Usage { own: 1, fallback: 0 }, Usage { own: 0, fallback: 1 });
    let expected = format!("{:?}", [own, own, own, own, fallback, fallback]);
    assert_eq!(said, [[expected.clone()], [expected]]);
}

/// Ranks of which one makes an all-reduce where the others are at a barrier.
#[test]
fn rank_that_calls_something_else() {
    let Some(part) = Part::of_this_process().filter(|part| part.name == "differ") else { return };
    cust::init(cust::CudaFlags::empty()).unwrap();
    let _context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    let group = builder(&part, Registry::default());
    assert!(all_reduce(&group, 4, 1.0_f32, ReduceOp::Sum, 3.0));
    let error = if part.rank == 0 {
        let mut buffer = DeviceBuffer::from_slice(&[1.0_f32; 100]).unwrap();
        group.all_reduce(&mut buffer, ReduceOp::Sum).unwrap_err()
    } else {
        group.barrier(meshreduce_process_group::Device::Cuda(part.rank as u32)).unwrap_err()
    };
    let Error::Mismatch { sequence: 2, ref calls, .. } = error else { panic!("{error:?}") };
    assert!(!calls.0.contains("max") && !calls.1.ends_with("elements"), "{error}");
    part.say(&error.to_string());
}

#[test]
fn ranks_that_call_different_things_on_the_mesh_are_told_which_by_the_groups_names() {
    let said = run(&Stage::new(here!("rank_that_calls_something_else"), 3), 3, "differ", &[]);
    let which = said.iter().flatten().filter(|text| text.contains("all_reduce (sum) of 100 f32")).count();
    assert!(which > 0 && said.iter().all(|said| said.len() == 1), "{said:?}");
}

/// A rank that shuts down with a call that the other one, which shuts down too, never comes to.
#[test]
fn rank_that_shuts_down_with_a_call() {
    let Some(part) = Part::of_this_process().filter(|part| part.name == "pending") else { return };
    cust::init(cust::CudaFlags::empty()).unwrap();
    let _context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    let group = builder_with(&part, Registry::default(), Duration::from_secs(5));
    // What is made by a call waits at its end as long as the group does, not only as long as that call might.
    assert!(all_reduce(&group, 4, 1.0_f32, ReduceOp::Sum, 2.0));
    if part.rank == 1 {
        // Nothing of this rank's has failed.
        group.shutdown().unwrap();
        return;
    }
    let buffer = DeviceBuffer::from_slice(&[1.0_f32; 4]).unwrap();
    let tensor = meshreduce_process_group::Buffer::tensor(&buffer);
    let call = meshreduce_process_group::Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum };
    // SAFETY: the buffer lives until the call has ended, which the shutdown waits for.
    let work = unsafe { group.start(&call) }.unwrap();
    for error in [group.shutdown().unwrap_err(), work.wait(Some(LONG)).unwrap_err()] {
        let is_late = matches!(&error, Error::Timeout { sequence: 2, missing, .. } if *missing == [1]);
        assert!(is_late, "{error:?}");
    }
}

#[test]
fn a_shutdown_that_waits_for_a_call_in_vain_names_who_has_not_come_to_it() {
    run(
        &Stage::new(here!("rank_that_shuts_down_with_a_call"), 2),
        2,
        "pending",
        &[("TORCH_FR_DUMP_ON_TIMEOUT", "false")],
    );
}

/// A rank that makes one more call, when the other one has shut down.
#[test]
fn rank_that_calls_once_more() {
    let Some(part) = Part::of_this_process().filter(|part| part.name == "once more") else { return };
    cust::init(cust::CudaFlags::empty()).unwrap();
    let _context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    let group = builder(&part, Registry::default());
    assert!(all_reduce(&group, 4, 1.0_f32, ReduceOp::Sum, 2.0));
    if part.rank == 1 {
        let error = group.shutdown().unwrap_err();
        part.say(&error.to_string());
        return;
    }
    let brief = group.with_deadline(Some(BRIEF));
    let mut buffer = DeviceBuffer::from_slice(&[1.0_f32; 4]).unwrap();
    let error = brief.all_reduce(&mut buffer, ReduceOp::Sum).unwrap_err();
    assert!(matches!(error, Error::PeerShutDown { rank: 1, .. }), "{error:?}");
    part.say(&error.to_string());
}

#[test]
fn a_rank_that_calls_once_more_is_told_that_the_others_have_shut_down_and_not_died() {
    let stage = Stage::new(here!("rank_that_calls_once_more"), 2);
    let said = run(&stage, 2, "once more", &[("TORCH_FR_DUMP_ON_TIMEOUT", "false")]);
    let expected = "rank 1 has shut group world down in order, and this rank has called it once more";
    assert_eq!(said[0], [expected]);
    assert_eq!(said[1].len(), 1, "{said:?}");
}

/// A backend of a program's own around the mesh's.
#[derive(Debug)]
struct Around(Arc<str>, Arc<dyn Backend>);

struct AroundFactory;

impl BackendFactory for AroundFactory {
    fn name(&self) -> &str {
        "around"
    }

    fn devices(&self) -> &[DeviceType] {
        &[DeviceType::Cuda]
    }

    fn create(&self, context: BackendContext) -> Result<Arc<dyn Backend>, Error> {
        let mesh = context.registry.factory("mesh")?.create(context.clone())?;
        Ok(Arc::new(Around(self.name().into(), mesh)))
    }
}

impl Backend for Around {
    fn name(&self) -> &Arc<str> {
        &self.0
    }

    fn supports(&self, call: &Call<'_>) -> Result<(), String> {
        self.1.supports(call)
    }

    unsafe fn start(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        // SAFETY: the caller's promise.
        let work = unsafe { self.1.start(call, request) }?;
        assert_eq!((&**work.backend(), work.sequence()), ("mesh", None), "{work:?}");
        work.wait(Some(LONG))?;
        Ok(work)
    }

    fn abort(&self, cause: &Error) {
        self.1.abort(cause);
    }

    fn error(&self) -> Option<Error> {
        self.1.error()
    }

    fn shutdown(&self, timeout: Duration) -> Result<(), Error> {
        self.1.shutdown(timeout)
    }
}

#[test]
fn rank_with_a_backend_around_the_mesh() {
    let Some(part) = Part::of_this_process().filter(|part| part.name == "around") else { return };
    cust::init(cust::CudaFlags::empty()).unwrap();
    let _context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    let mut registry = Registry::default();
    registry.register(AroundFactory).unwrap();
    let store: Arc<dyn meshreduce::Store> = Arc::from(Part::of_this_process().unwrap().store);
    let group = ProcessGroup::builder(store, part.rank, part.world_size)
        .registry(registry)
        .backend("around".parse().unwrap())
        .cuda_device(part.rank as u32)
        .timeout(LONG)
        .build()
        .unwrap();
    for _ in 0..3 {
        assert!(all_reduce(&group, 4, 1.0_f32, ReduceOp::Sum, 2.0));
    }
    let entries = group.flight_recorder().snapshot().entries;
    assert_eq!(entries.iter().filter(|entry| &*entry.backend == "mesh").count(), 3, "{entries:?}");
    group.shutdown().unwrap();
}

#[test]
fn a_backend_around_the_mesh_sees_who_makes_its_calls() {
    run(&Stage::new(here!("rank_with_a_backend_around_the_mesh"), 2), 2, "around", &[]);
}
