//! Process groups over several hosts, which are network namespaces with host ids of their own: `host` by TCP between them, `mesh`
//! and NCCL over two emulated nodes.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cust::memory::{CopyDestination as _, DeviceBuffer};
use meshreduce::{FileStore, Store};
use meshreduce_checks::emulated_node::EmulatedNode;
use meshreduce_process_group::{
    Call, DType, Device, DeviceType, Error, GroupOptions, ProcessGroup, ReduceOp, Tensor,
};
use meshreduce_tests::network::Network;
use meshreduce_tests::network_or_skip;
use meshreduce_tests::rank_process::heard;

const LONG: Duration = Duration::from_secs(120);

const PART: &str = "MESHREDUCE_TEST_GROUP_PART";
const RANK: &str = "MESHREDUCE_TEST_GROUP_RANK";
const WORLD_SIZE: &str = "MESHREDUCE_TEST_GROUP_WORLD_SIZE";
const STORE: &str = "MESHREDUCE_TEST_GROUP_STORE";
const DEVICE: &str = "MESHREDUCE_TEST_GROUP_DEVICE";

fn number(name: &str) -> usize {
    std::env::var(name).expect(name).parse().expect("a number")
}

fn say(text: &str) {
    println!("rank says: {text}");
}

/// Not a test of its own: what the tests below run as processes.
#[test]
fn rank_on_a_host() {
    let Ok(part) = std::env::var(PART) else { return };
    let (rank, world_size) = (number(RANK), number(WORLD_SIZE));
    let store: Arc<dyn Store> = Arc::new(FileStore::open(std::env::var(STORE).unwrap()).unwrap());
    let group = |config: &str, ordinal: Option<u32>| {
        let builder = ProcessGroup::builder(Arc::clone(&store), rank, world_size)
            .backend(config.parse().unwrap())
            .timeout(LONG)
            .deadline(Some(LONG))
            .dump_to(None);
        let builder = match ordinal {
            Some(ordinal) => builder.cuda_device(ordinal),
            None => builder,
        };
        builder.build().unwrap()
    };
    match &*part {
        "host" => over_tcp(&group("host", None)),
        "victim" => until_killed(&group("host", None)),
        "nodes" | "unlike nodes" => {
            let group = group("mesh", Some(number(DEVICE) as u32));
            cust::init(cust::CudaFlags::empty()).unwrap();
            let device = cust::device::Device::get_device(number(DEVICE) as u32).unwrap();
            let _context = cust::context::Context::new(device).unwrap();
            reduce_over_two_nodes(&group, part == "nodes");
            everything_else_over_two_nodes(&group);
            if part == "nodes" {
                reduce_within_a_node(&group);
            }
            group.shutdown().unwrap();
        }
        other => panic!("no part {other}"),
    }
}

/// The ranks of all hosts, so many on each.
fn start(
    network: &Network,
    per_host: &[usize],
    part: &str,
    store: &std::path::Path,
    node: Option<&EmulatedNode>,
) -> Vec<Child> {
    let program = std::env::current_exe().unwrap();
    let all: usize = per_host.iter().sum();
    let places =
        per_host.iter().enumerate().flat_map(|(host, ranks)| (0..*ranks).map(move |place| (host, place)));
    places
        .enumerate()
        .map(|(rank, (host, place))| {
            let mut command = network.command(host, &program);
            command
                .args(["--exact", "rank_on_a_host", "--nocapture"])
                .env(PART, part)
                .env(RANK, rank.to_string())
                .env(WORLD_SIZE, all.to_string())
                .env(STORE, store)
                .env(DEVICE, place.to_string())
                .stdout(Stdio::piped());
            if let Some(node) = node {
                // Each host is a node of its own.
                command
                    .envs(node.environment())
                    .env("MESHREDUCE_NODE_ID", network.host_id(host))
                    .env("NCCL_SOCKET_IFNAME", "eth0");
            }
            command.spawn().unwrap()
        })
        .collect()
}

fn over_tcp(group: &ProcessGroup) {
    let (rank, ranks) = (group.rank(), group.world_size());
    for count in [1, 1000, 100_003] {
        let mut data: Vec<f32> = (0..count).map(|at| (at % 100 + rank) as f32).collect();
        group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
        let expected = |at: usize| ((at % 100) * ranks + ranks * (ranks - 1) / 2) as f32;
        assert!(data.iter().enumerate().all(|(at, sum)| *sum == expected(at)), "{count}");
    }
    let mut all = vec![0_i64; ranks];
    group.all_gather_single(&[rank as i64 * 10], &mut all).unwrap();
    assert!(all.iter().enumerate().all(|(at, value)| *value == at as i64 * 10));
    // To the next rank, from the one before, which may be on another host; long enough to need more than one piece.
    let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
    let sending = group.send_owned(vec![rank as i32; 300_000], next, 5).unwrap();
    let mut got = vec![0_i32; 300_000];
    group.recv(&mut got, before, 5).unwrap();
    assert!(got.iter().all(|value| *value == before as i32));
    sending.wait().1.unwrap();
    group.barrier(Device::Cpu).unwrap();
    group.shutdown().unwrap();
}

#[test]
fn ranks_of_three_hosts_reduce_gather_and_send_over_tcp() {
    let network = network_or_skip!(3);
    let folder = tempfile::tempdir().unwrap();
    let ranks = start(&network, &[2, 2, 2], "host", folder.path(), None);
    let ended: Vec<_> = ranks.into_iter().map(heard).collect();
    assert!(ended.iter().all(|(_, well)| *well), "{ended:?}");
    assert_eq!(FileStore::open(folder.path()).unwrap().list_keys().unwrap(), Vec::<String>::new());
}

/// All-reduces until a rank is gone, and says how that was told.
fn until_killed(group: &ProcessGroup) {
    let mut told = false;
    loop {
        match group.all_reduce(&mut [1.0_f64; 64], ReduceOp::Max) {
            Ok(()) if !told => {
                say("goes on");
                told = true;
            }
            Ok(()) => {}
            Err(Error::RankDied { rank, .. }) => break say(&format!("rank {rank} died")),
            Err(error) => break say(&error.to_string()),
        }
    }
    assert!(group.shutdown().is_err());
}

#[test]
fn a_rank_that_is_killed_on_another_host_is_named_by_all() {
    let network = network_or_skip!(2);
    let folder = tempfile::tempdir().unwrap();
    let mut ranks = start(&network, &[2, 2], "victim", folder.path(), None);
    let mut victim = ranks.pop().unwrap();
    // Until it has come through once.
    let mut line = String::new();
    let mut lines = std::io::BufReader::new(victim.stdout.take().unwrap());
    while !line.contains("goes on") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut lines, &mut line).unwrap() > 0, "it has ended");
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    for rank in ranks {
        let (said, well) = heard(rank);
        assert!(well && said.last().is_some_and(|said| said == "rank 3 died"), "{said:?}");
    }
}

fn tensor(buffer: &DeviceBuffer<f32>, group: &ProcessGroup) -> Tensor {
    Tensor {
        address: buffer.as_device_ptr().as_raw(),
        count: buffer.len(),
        dtype: DType::F32,
        device: group.cuda_device().unwrap(),
    }
}

fn read(buffer: &DeviceBuffer<f32>) -> Vec<f32> {
    let mut values = vec![0.0; buffer.len()];
    buffer.copy_to(&mut values).unwrap();
    values
}

/// All-reduces of device memory: over both levels where the nodes are alike, else by NCCL alone, on all ranks alike.
fn reduce_over_two_nodes(group: &ProcessGroup, are_alike: bool) {
    let (rank, ranks) = (group.rank(), group.world_size());
    for count in [1, 37, 5000] {
        let own: Vec<f32> = (0..count).map(|at| (at % 16 + rank) as f32).collect();
        let buffer = DeviceBuffer::from_slice(&own).unwrap();
        let tensor = tensor(&buffer, group);
        let call = Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum };
        // SAFETY: the buffer lives until the work has ended, which is waited for.
        let work = unsafe { group.start(&call) }.unwrap();
        work.wait(Some(LONG)).unwrap();
        assert_eq!(&**work.backend(), if are_alike { "mesh" } else { "nccl" });
        let expected = |at: usize| ((at % 16) * ranks + ranks * (ranks - 1) / 2) as f32;
        let sum = read(&buffer);
        assert!(sum.iter().enumerate().all(|(at, sum)| *sum == expected(at)), "{count}: {sum:?}");
    }
    let mut buffer = DeviceBuffer::from_slice(&[rank as f64; 10]).unwrap();
    group.all_reduce(&mut buffer, ReduceOp::Max).unwrap();
    let usage = group.usage(DeviceType::Cuda).unwrap();
    assert_eq!((usage.own, usage.fallback), if are_alike { (3, 1) } else { (0, 4) });
}

/// What else a group does with device memory, over nodes of any kind.
fn everything_else_over_two_nodes(group: &ProcessGroup) {
    const COUNT: usize = 100;
    let (rank, ranks) = (group.rank(), group.world_size());
    let numbers = |value: usize, count: usize| DeviceBuffer::from_slice(&vec![value as f32; count]).unwrap();
    // From a rank of the last node.
    let mut buffer = numbers(rank, COUNT);
    group.broadcast(&mut buffer, ranks - 1).unwrap();
    assert_eq!(read(&buffer), [(ranks - 1) as f32; COUNT]);
    let mut gathered = numbers(0, COUNT * ranks);
    group.all_gather_single(&numbers(rank, COUNT), &mut gathered).unwrap();
    assert!(read(&gathered).iter().enumerate().all(|(at, value)| *value == (at / COUNT) as f32));
    let mut slice = numbers(0, COUNT);
    group.reduce_scatter_single(&gathered, &mut slice, ReduceOp::Sum).unwrap();
    assert_eq!(read(&slice), [(rank * ranks) as f32; COUNT]);
    group.barrier(group.cuda_device().unwrap()).unwrap();
    // A ring, which crosses between the nodes twice.
    let (from, to) = (numbers(rank, COUNT), numbers(0, COUNT));
    let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
    let calls = [
        Call::Send { input: tensor(&from, group), peer: next, tag: 0 },
        Call::Recv { output: tensor(&to, group), peer: Some(before), tag: 0 },
    ];
    // SAFETY: the buffers live until the work has ended, which is waited for.
    let work = unsafe { group.start(&Call::Batch(&calls)) }.unwrap();
    work.wait(Some(LONG)).unwrap();
    assert_eq!(read(&to), [before as f32; COUNT]);
}

fn reduce_within_a_node(group: &ProcessGroup) {
    let node = group.split(Some((group.rank() / 2) as u32), 0, &GroupOptions::default());
    let node = node.unwrap().member().unwrap();
    node.barrier(group.cuda_device().unwrap()).unwrap();
    assert_eq!(node.usage(DeviceType::Cuda).unwrap().own, 1);
    node.shutdown().unwrap();
}

fn play_on_two_nodes(per_host: &[usize], part: &str, network: &Network) {
    let folder = tempfile::tempdir().unwrap();
    let node = EmulatedNode::new("hgx-h100").unwrap_or_else(|error| panic!("{error}"));
    let ranks = start(network, per_host, part, folder.path(), Some(&node));
    let ended: Vec<_> = ranks.into_iter().map(heard).collect();
    assert!(ended.iter().all(|(_, well)| *well), "{ended:?}");
    assert_eq!(FileStore::open(folder.path()).unwrap().list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn a_group_over_two_emulated_nodes_reduces_over_both_levels_and_does_everything_else_too() {
    play_on_two_nodes(&[2, 2], "nodes", &network_or_skip!(2));
}

#[test]
fn a_group_over_nodes_with_different_numbers_of_gpus_leaves_collectives_to_nccl_on_all_ranks_alike() {
    play_on_two_nodes(&[2, 1], "unlike nodes", &network_or_skip!(2));
}
