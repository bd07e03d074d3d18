//! Two processes: of one instance of the node, and of two, which are two nodes. The other process is this test program
//! again, which runs the test [`the_other_process`].

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use meshreduce_verbs_loader::*;
use support::*;

/// Tells the other process that it is one.
const ROLE: &str = "MESHREDUCE_TEST_ROLE";
/// What its lines begin with, among those of the test harness.
const MARK: &str = "PEER";
/// Bytes of its buffer.
const BUFFER: usize = 2 << 20;

/// Where a queue pair is, and its buffer, as a line.
fn describe(end: &End, buffer: &MemoryRegion) -> String {
    let gid = end.address.gid.map_or(Gid([0; 16]), |(gid, _)| gid);
    let remote = buffer.remote(0);
    format!("{MARK} {gid} {} {} {} {}", end.address.lid, end.pair.number(), remote.address, remote.rkey)
}

/// The other's queue pair and buffer.
struct Peer {
    address: Address,
    number: u32,
    memory: RemoteMemory,
}

impl Peer {
    fn parse(line: &str) -> Self {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, gid, lid, number, address, rkey] = fields.as_slice() else { panic!("{line}") };
        let gid: Gid = gid.parse().unwrap();
        let way =
            if gid.is_zero() { Address::local(1, lid.parse().unwrap()) } else { Address::global(1, 0, gid) };
        let memory = RemoteMemory { address: address.parse().unwrap(), rkey: rkey.parse().unwrap() };
        Self { address: way, number: number.parse().unwrap(), memory }
    }

    fn at(&self, offset: usize) -> RemoteMemory {
        RemoteMemory { address: self.memory.address + offset as u64, ..self.memory }
    }
}

/// What the other process does: connects, and sends back every message that it receives, until one of no bytes.
#[test]
fn the_other_process() {
    let Ok(nic) = std::env::var(ROLE) else { return };
    let wish = Wish::default();
    let end = End::new(&nic, &wish);
    let mut buffer = end.buffer(BUFFER);
    buffer.fill(77);
    println!("{}", describe(&end, &buffer.region));
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    let peer = Peer::parse(&line);
    end.receive_from(peer.address, peer.number, &wish);
    end.pair.ready_to_send(&wish.send).unwrap();
    end.receive(1, &[buffer.all()]);
    println!("{MARK} ready");
    loop {
        let received = end.received();
        if received.byte_len == 0 {
            break;
        }
        let segments = [buffer.region.segment(0..received.byte_len as usize)];
        end.receive(1, &[buffer.all()]);
        end.send(&SendRequest::new(2, Operation::Send, &segments));
        assert_eq!(end.sent().status, Status::SUCCESS);
    }
}

/// The other process, connected.
struct Other {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    peer: Peer,
}

impl Other {
    /// Starts it on that adapter of an instance of the node, and connects `end` to it.
    fn connect(end: &End, buffer: &MemoryRegion, nic: &str, instance: &str) -> Self {
        library();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "the_other_process", "--nocapture"]);
        command.env(ROLE, nic).env("MESHREDUCE_NODE_ID", instance).env(LIBRARIES, folder());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let peer = Peer::parse(&line(&mut output));
        let mut other = Self { input: process.stdin.take().unwrap(), process, output, peer };
        let wish = Wish::default();
        writeln!(other.input, "{}", describe(end, buffer)).unwrap();
        assert_eq!(line(&mut other.output), format!("{MARK} ready"));
        end.receive_from(other.peer.address, other.peer.number, &wish);
        end.pair.ready_to_send(&wish.send).unwrap();
        other
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Stops it, and waits until it stands still.
    fn stop(&self) {
        use rustix::process::{Pid, Signal, WaitOptions, waitpid};
        self.signal(Signal::STOP);
        let pid = Pid::from_child(&self.process);
        let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped());
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn ends_well(mut self) {
        drop(self.input);
        assert!(self.process.wait().unwrap().success());
    }
}

/// The next of its lines.
fn line(output: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the other process ended");
        // What the harness prints before a test has no line end.
        if let Some(at) = line.find(MARK) {
            return line[at..].trim().to_owned();
        }
    }
}

fn instance() -> String {
    library();
    std::env::var("MESHREDUCE_NODE_ID").unwrap()
}

/// All operations, all bytes, between `end` and the other process.
fn exercise(end: &End, other: &Other) {
    let (mut out, mut back) = (end.buffer(BUFFER), end.buffer(BUFFER));
    for (seed, size) in [1, 1000, 65_537, BUFFER].into_iter().enumerate() {
        // It sends back what it receives.
        pattern(&mut out.bytes()[..size], seed as u8);
        back.bytes().fill(0);
        end.receive(1, &[back.all()]);
        end.send(&SendRequest::new(2, Operation::Send, &[out.region.segment(0..size)]));
        assert_eq!(end.sent().status, Status::SUCCESS);
        assert_eq!(end.received().byte_len as usize, size);
        assert_eq!(back.bytes()[..size], patterned(size, seed as u8));
        assert!(back.bytes()[size..].iter().all(|&byte| byte == 0));
        // What it received last lies in its buffer.
        back.bytes().fill(0);
        end.send(&SendRequest::new(3, Operation::Read(other.peer.at(0)), &[back.region.segment(0..size)]));
        assert_eq!((end.sent().status, size), (Status::SUCCESS, size));
        assert_eq!(back.bytes()[..size], patterned(size, seed as u8));
        // Written there, and read back.
        pattern(&mut out.bytes()[..size], 50 + seed as u8);
        end.send(&SendRequest::new(4, Operation::Write(other.peer.at(0)), &[out.region.segment(0..size)]));
        end.send(&SendRequest::new(5, Operation::Read(other.peer.at(0)), &[back.region.segment(0..size)]));
        assert_eq!((end.sent().wr_id, end.sent().wr_id), (4, 5));
        assert_eq!(back.bytes()[..size], patterned(size, 50 + seed as u8));
        // A write with immediate is a message to it: it sends back that many bytes of its buffer.
        let segments = [out.region.segment(0..size)];
        end.receive(1, &[back.all()]);
        end.send(&SendRequest::new(6, Operation::WriteWithImm(other.peer.at(0), 9), &segments));
        assert_eq!((end.sent().status, end.received().byte_len as usize), (Status::SUCCESS, size));
    }
    end.send(&SendRequest::new(9, Operation::Send, &[]));
    assert_eq!(end.sent().status, Status::SUCCESS);
}

#[test]
fn processes_of_one_instance_and_of_two_exchange_all_bytes() {
    let _alone = alone();
    for (near, far, other_instance) in [
        ("near", "far", instance()),
        ("near", "near", instance()),
        ("near", "near", format!("{} too", instance())),
        ("band", "band", format!("{} too", instance())),
    ] {
        let end = End::new(near, &Wish::default());
        let buffer = end.buffer(64);
        let other = Other::connect(&end, &buffer.region, far, &other_instance);
        let same = other.peer.address.gid.map(|(gid, _)| gid) == end.address.gid.map(|(gid, _)| gid)
            && other.peer.address.lid == end.address.lid;
        assert_eq!(
            same,
            near == far && other_instance == instance(),
            "instances have addresses of their own"
        );
        exercise(&end, &other);
        other.ends_well();
    }
}

#[test]
fn a_peer_that_is_killed_fails_what_is_on_the_way_and_leaves_nothing_behind() {
    let _alone = alone();
    let warm = connected();
    drop(warm);
    let before = descriptors();
    for round in 0..20 {
        let end = End::new("near", &Wish::default());
        let buffer = end.buffer(BUFFER);
        let other = Other::connect(&end, &buffer.region, "far", &instance());
        let memory = other.peer.at(0);
        let segments = [buffer.all()];
        let mut posted = 0;
        for wr_id in 0..8 {
            let operation = if round % 2 == 0 { Operation::Write(memory) } else { Operation::Read(memory) };
            end.send(&SendRequest::new(wr_id, operation, &segments));
            posted += 1;
        }
        // At different moments of the transfer.
        for _ in 0..round % 4 {
            assert_eq!(end.sent().status, Status::SUCCESS);
            posted -= 1;
        }
        other.kill();
        let rest: Vec<_> = (0..posted).map(|_| end.sent().status).collect();
        let failed = rest.iter().skip_while(|status| status.is_success());
        let failed: Vec<_> = failed.copied().collect();
        if let Some((first, flushed)) = failed.split_first() {
            assert_eq!(*first, Status::RETRIES_EXCEEDED, "{rest:?}");
            assert!(flushed.iter().all(|&status| status == Status::FLUSHED), "{rest:?}");
        }
        // Whatever it had got done, it does no more.
        end.send(&SendRequest::new(99, Operation::Write(memory), &segments));
        assert!(!end.sent().status.is_success());
    }
    wait_until("the end of all connections", || count("connections") == 0);
    // The thread that moves messages may hold what it looked at last for a moment longer.
    wait_until("the end of all descriptors", || descriptors() <= before);
    assert_eq!((count("live_qp"), count("live_mr"), count("live_cq")), (0, 0, 0));
}

#[test]
fn a_peer_that_stands_still_is_waited_for() {
    let _alone = alone();
    let end = End::new("near", &Wish::default());
    let mut buffer = end.buffer(BUFFER);
    let other = Other::connect(&end, &buffer.region, "far", &instance());
    other.stop();
    buffer.fill(3);
    end.send(&SendRequest::new(1, Operation::Write(other.peer.at(0)), &[buffer.all()]));
    // Longer than all retries of the connection together.
    let all = std::time::Instant::now() + std::time::Duration::from_millis(100);
    while std::time::Instant::now() < all {
        assert_empty(&end.sends);
        std::thread::yield_now();
    }
    other.signal(rustix::process::Signal::CONT);
    assert_eq!(end.sent().status, Status::SUCCESS);
    exercise(&end, &other);
    other.ends_well();
}

#[test]
fn keys_of_one_process_mean_nothing_in_another() {
    let _alone = alone();
    let end = End::new("near", &Wish::default());
    let buffer = end.buffer(64);
    let other = Other::connect(&end, &buffer.region, "far", &instance());
    let mut memory = other.peer.at(0);
    memory.rkey = memory.rkey.wrapping_add(1 << 8);
    end.send(&SendRequest::new(1, Operation::Write(memory), &[buffer.all()]));
    assert_eq!(end.sent().status, Status::REMOTE_ACCESS);
    other.kill();
}

#[test]
fn a_child_of_fork_is_told_that_it_has_no_adapters() {
    let _alone = alone();
    let end = End::new("near", &Wish::default());
    // SAFETY: the child calls nothing that could wait for a lock that another thread holds: the verbs refuse before they
    // do anything.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let refused = end.context.protection_domain().is_err_and(|error| error.errno() == Some(libc::EINVAL));
        // SAFETY: it ends this process, without what the parent has registered to be done at its end.
        unsafe { libc::_exit(if refused { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: the place for the status is valid.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert_eq!(status, 0);
    assert_eq!(library().fork_status().unwrap(), ForkStatus::Unneeded);
    library().fork_init().unwrap();
}
