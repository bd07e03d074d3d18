//! How communicators between processes end: who is waited for, who is named, and what is left behind.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cust::context::Context;
use cust::device::Device;
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use half::bf16;
use meshreduce::{Bf16, Communicator, Config, Error, Op, Outcome, rendezvous};
use meshreduce_checks::in_process::{BRIEF, fail_driver_calls};
use meshreduce_tests::rank_process::{Part, Stage, heard};
use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything that a test waits for.
const LONG: Duration = Duration::from_secs(100);

/// How long a rank that others must wait for holds its communicator.
const HOLD: Duration = Duration::from_secs(2);

fn config(part: &Part) -> Config {
    let brief = part.name.contains("brief");
    Config::default().deadline(Some(LONG)).timeout(if brief { BRIEF } else { LONG })
}

fn all_reduce(communicator: &Communicator) -> Result<(), Error> {
    let _context = Context::new(Device::get_device(communicator.device()).unwrap()).unwrap();
    let stream = Stream::new(StreamFlags::DEFAULT, None).unwrap();
    let mut data = DeviceBuffer::from_slice(&[Bf16::from(bf16::ONE); 1000]).unwrap();
    cust::context::CurrentContext::synchronize().unwrap();
    let mut lane = communicator.lane(0)?;
    lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream)?;
    let sum = communicator.world_size() as f32;
    assert!(data.as_host_vec().unwrap().iter().all(|value| bf16::from(*value).to_f32() == sum));
    Ok(())
}

/// Not a test of its own: what the tests below run as processes.
#[test]
fn rank() {
    let Some(part) = Part::of_this_process() else { return };
    if part.name == "is refused" {
        const INVALID_VALUE: u32 = 1;
        fail_driver_calls("cuIpcOpenMemHandle_v2", INVALID_VALUE, 0, 1);
    }
    let met = rendezvous(&*part.store, part.rank, part.world_size, part.rank as u32, &config(&part));
    let communicator = match met {
        Ok(Outcome::Ready(communicator)) => communicator,
        Ok(Outcome::NotApplicable(reason)) => return part.say(&format!("not applicable: {reason}")),
        Err(error) => return part.say(&format!("{error:?}: {error}")),
    };
    part.say("ready");
    part.say(&format!("listens on {} sockets", listening()));
    all_reduce(&communicator).unwrap();
    match part.name.as_str() {
        "dies" => kill_process(rustix::process::getpid(), Signal::KILL).unwrap(),
        "drops" => return drop(communicator),
        "holds" => std::thread::sleep(HOLD),
        "forks and holds" => fork_and_hold(&part, &communicator),
        _ => {}
    }
    let closing = Instant::now();
    let closed = communicator.close();
    part.say(&format!("closed: {closed:?}"));
    if closing.elapsed() >= HOLD / 2 {
        part.say("waited for the others");
    }
}

/// Unix sockets of this process on which a stranger could connect.
fn listening() -> usize {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    // Num RefCount Protocol Flags Type St Inode Path; __SO_ACCEPTCON is 0x10000.
    let all: Vec<String> = sockets
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.len() > 6 && fields[3] == "00010000")
        .map(|fields| format!("socket:[{}]", fields[6]))
        .collect();
    let own = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    own.filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .filter(|link| all.iter().any(|socket| link.as_os_str() == socket.as_str()))
        .count()
}

/// A child that ends as Python's `multiprocessing` or a data loader does: by dropping all that it has inherited.
fn fork_and_hold(part: &Part, communicator: &Communicator) {
    unsafe extern "C" {
        fn fork() -> i32;
        fn _exit(code: i32) -> !;
        fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    }
    // SAFETY: the child uses nothing that another thread could have locked but the allocator, which glibc makes usable
    // after a fork, and leaves without running anything of the parent's.
    let child = unsafe { fork() };
    if child == 0 {
        // SAFETY: it is the child's copy of the value, which the parent still has, and the child does not use it again.
        let inherited = unsafe { std::ptr::read(communicator) };
        let calls = inherited.status().is_ok();
        inherited.abort();
        drop(inherited);
        // SAFETY: the process ends.
        unsafe { _exit(if calls { 0 } else { 1 }) };
    }
    let mut status = -1;
    // SAFETY: the place outlives the call, and the child is this process's.
    assert_eq!(unsafe { waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child came to its end");
    part.say("its child has ended");
    communicator.status().unwrap();
    std::thread::sleep(HOLD);
}

fn start(stage: &Stage, parts: &[&str]) -> Vec<Child> {
    parts.iter().enumerate().map(|(rank, part)| stage.start(rank, part)).collect()
}

fn play(parts: &[&str]) -> Vec<(Vec<String>, bool)> {
    let stage = Stage::new("rank", parts.len());
    let all = start(&stage, parts).into_iter().map(heard).collect();
    assert!(stage.keys().is_empty(), "left in the store: {:?}", stage.keys());
    all
}

#[track_caller]
fn assert_said(rank: &(Vec<String>, bool), text: &str) {
    assert!(rank.0.iter().any(|said| said.contains(text)), "{text:?} is not in {:?}", rank.0);
}

#[test]
fn a_rank_that_closes_late_is_waited_for() {
    let all = play(&["closes", "holds", "closes"]);
    for (rank, waits) in [(0, true), (1, false), (2, true)] {
        assert_said(&all[rank], "closed: Ok(())");
        assert_eq!(all[rank].0.iter().any(|said| said.contains("waited")), waits, "{:?}", all[rank]);
    }
}

#[test]
fn a_rank_that_died_before_it_closed_is_named_by_all_that_close() {
    let begin = Instant::now();
    let all = play(&["closes", "closes", "dies", "closes"]);
    for rank in [0, 1, 3] {
        assert_said(&all[rank], "closed: Err(RanksDied { ranks: [2] })");
    }
    assert!(begin.elapsed() < LONG / 2, "nobody waits for the dead");
}

#[test]
fn a_rank_that_dropped_its_communicator_is_named_by_all_that_close() {
    let all = play(&["closes", "drops"]);
    assert_said(&all[0], "closed: Err(RanksDropped { ranks: [1] })");
}

#[test]
fn a_forked_child_that_drops_its_copy_says_no_goodbye_in_its_parents_name() {
    let all = play(&["closes", "forks and holds"]);
    assert_said(&all[1], "its child has ended");
    assert_said(&all[0], "waited for the others");
    for rank in &all {
        assert_said(rank, "closed: Ok(())");
    }
}

#[test]
fn nothing_listens_once_the_ranks_have_met() {
    for rank in play(&["closes", "closes", "closes"]) {
        assert_said(&rank, "listens on 0 sockets");
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_rank_that_comes_after_the_others_gave_up_leaves_nothing_in_the_store() {
    let stage = Stage::new("rank", 2);
    let zero = stage.start(0, "brief");
    stage.wait_for_key("first+0");
    signal(&zero, Signal::STOP);
    let one = stage.start(1, "brief");
    stage.wait_for_key("second+1");
    signal(&one, Signal::STOP);
    signal(&zero, Signal::CONT);
    let zero = heard(zero);
    assert_said(&zero, "RanksMissing { ranks: [1]");
    // Now it goes on, with nobody there.
    signal(&one, Signal::CONT);
    let one = heard(one);
    assert!(!one.0.iter().any(|said| said == "ready"), "{one:?}");
    assert!(one.1, "it ends with an error of its own: {one:?}");
    assert!(stage.keys().is_empty(), "left in the store: {:?}", stage.keys());
}

#[test]
fn a_rank_that_dies_between_offering_its_memory_and_the_end_is_reported_as_dead() {
    for _ in 0..5 {
        let stage = Stage::new("rank", 2);
        let zero = stage.start(0, "");
        stage.wait_for_key("first+0");
        signal(&zero, Signal::STOP);
        let mut one = stage.start(1, "");
        stage.wait_for_key("second+1");
        // Rank 0 finds the offer of a process that is no more.
        one.kill().unwrap();
        signal(&zero, Signal::CONT);
        let zero = heard(zero);
        assert_said(&zero, "RankDied { rank: 1");
        one.wait().unwrap();
        assert!(stage.keys().is_empty(), "left in the store: {:?}", stage.keys());
    }
}

#[test]
fn ranks_that_die_together_leave_nothing_in_the_store_of_the_one_that_lives() {
    let stage = Stage::new("rank", 3);
    let zero = stage.start(0, "");
    stage.wait_for_key("first+0");
    signal(&zero, Signal::STOP);
    let mut others = [stage.start(1, ""), stage.start(2, "")];
    ["second+1", "second+2"].into_iter().for_each(|key| stage.wait_for_key(key));
    others.iter_mut().for_each(|other| other.kill().unwrap());
    signal(&zero, Signal::CONT);
    let zero = heard(zero);
    assert_said(&zero, "RankDied");
    for other in &mut others {
        other.wait().unwrap();
    }
    assert!(stage.keys().is_empty(), "left in the store: {:?}", stage.keys());
}

/// The command, in namespaces of its own that `unshare` makes.
fn unshared(namespaces: &[&str], command: &Command) -> Command {
    let mut inner = Command::new("unshare");
    inner.args(namespaces).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        inner.env(name, value.unwrap_or_default());
    }
    inner.stdout(Stdio::piped());
    inner
}

fn may_unshare(namespaces: &[&str]) -> bool {
    let output = Command::new("unshare").args(namespaces).arg("true").output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn memory_that_is_refused_between_containers_comes_with_the_cure() {
    const CONTAINED: &[&str] = &["--ipc", "--pid", "--fork", "--mount-proc"];
    if !may_unshare(CONTAINED) {
        return meshreduce_tests::skipped("this user may not make pid and IPC namespaces");
    }
    for (contained, facts, told) in [
        // The emulated driver opens memory across IPC namespaces, so it is told to refuse.
        (&CONTAINED[..1], "pid: Some(true), ipc: Some(false)", "different IPC namespaces"),
        (&CONTAINED[1..], "pid: Some(false), ipc: Some(true)", "different pid namespaces"),
        (CONTAINED, "pid: Some(false), ipc: Some(false)", "different pid and IPC namespaces"),
    ] {
        let stage = Stage::new("rank", 2);
        let ranks = [stage.command_as(0, "is refused"), stage.command(1)];
        let ranks = ranks.map(|command| unshared(contained, &command).spawn().unwrap()).map(heard);
        // One that looks late hears of the other's refusal.
        let facts = format!("namespaces: Some(SharedNamespaces {{ {facts}");
        assert!(ranks.iter().any(|rank| rank.0[0].contains(&facts)), "{facts} is in neither of {ranks:?}");
        for rank in &ranks {
            assert_said(rank, told);
            assert_said(rank, "docker run --pid=host --ipc=host");
        }
        assert!(stage.keys().is_empty(), "left in the store: {:?}", stage.keys());
    }
}

#[test]
fn ranks_in_network_namespaces_of_their_own_are_not_applicable_and_leave_nothing() {
    if !may_unshare(&["--net"]) {
        return meshreduce_tests::skipped("this user may not make network namespaces");
    }
    let stage = Stage::new("rank", 2);
    let ranks: Vec<_> =
        (0..2).map(|rank| unshared(&["--net"], &stage.command(rank)).spawn().unwrap()).collect();
    for rank in ranks {
        assert_said(&heard(rank), "not applicable: ranks 0 and 1 are in different network namespaces");
    }
    assert!(stage.keys().is_empty(), "left in the store: {:?}", stage.keys());
}
