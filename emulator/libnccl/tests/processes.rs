//! Ranks that are processes, on one emulated node and on two, and what the others see when one dies.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use meshreduce_nccl_loader::result;
use meshreduce_nccl_loader::sys::{ncclResult_t, ncclUniqueId};

use support::{Rank, again};

const WORKER: &str = "MESHREDUCE_TEST_WORKER";
/// Longer than anything here takes, on any machine.
const FAR: std::time::Duration = std::time::Duration::from_secs(120);

fn to_hex(id: &ncclUniqueId) -> String {
    id.internal.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> ncclUniqueId {
    let byte = |index: usize| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).unwrap();
    ncclUniqueId { internal: std::array::from_fn(byte) }
}

/// Not a test of its own: a rank of the tests below. It says what it comes to, line by line.
#[test]
fn worker() {
    let Ok(task) = std::env::var(WORKER) else { return };
    // Whatever goes wrong, no worker stays.
    std::thread::spawn(|| {
        std::thread::sleep(FAR);
        std::process::exit(99);
    });
    let words: Vec<_> = task.split(' ').collect();
    let (rank, size): (usize, usize) = (words[1].parse().unwrap(), words[2].parse().unwrap());
    support::open();
    let id = match words[0] {
        "host" => {
            let id = result::unique_id().unwrap();
            say(&format!("ID {}", to_hex(&id)));
            id
        }
        _ => from_hex(&hear()),
    };
    let rank = Rank::new(id, size, rank);
    for turn in 0..5 {
        say(&format!("SUM {}", rank.sum((rank.rank * 10 + turn) as i64).unwrap()));
    }
    match hear().as_str() {
        "leave" => rank.destroy(),
        "wait" => {
            // Another rank does not come: it is killed.
            let _ = rank.sum(1);
            say(&format!("ERROR {}", rank.wait_for_error().0));
            // SAFETY: the communicator is alive, and not used again.
            let _ = unsafe { result::comm_abort(rank.comm) }.unwrap();
        }
        "run" => {
            // Until another rank is killed.
            for turn in 0.. {
                if rank.sum(1).is_err() {
                    break;
                }
                say(&format!("TURN {turn}"));
            }
            say(&format!("ERROR {}", rank.wait_for_error().0));
            // SAFETY: as above.
            let _ = unsafe { result::comm_abort(rank.comm) }.unwrap();
        }
        other => panic!("{other}"),
    }
    say("DONE");
}

fn say(line: &str) {
    // Past what the test harness may have written without an end of line.
    println!("\n@{line}");
    std::io::stdout().flush().unwrap();
}

fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

struct Worker {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Worker {
    fn start(mut command: Command, task: &str) -> Self {
        command.env(WORKER, task).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next thing that it says.
    fn says(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the worker has ended");
            if let Some(words) = line.trim().strip_prefix('@') {
                return words.to_owned();
            }
        }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn end(mut self) {
        assert_eq!(self.says(), "DONE");
        // The test harness still has something to say.
        for line in self.lines.by_ref().lines() {
            line.unwrap();
        }
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has ended already, unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts ranks, the first of which makes the id, and lets them add.
fn start(size: usize, command: impl Fn(usize) -> Command) -> Vec<Worker> {
    let mut first = Worker::start(command(0), &format!("host 0 {size}"));
    let id = first.says().strip_prefix("ID ").unwrap().to_owned();
    let mut workers = vec![first];
    for rank in 1..size {
        let mut worker = Worker::start(command(rank), &format!("guest {rank} {size}"));
        worker.tell(&id);
        workers.push(worker);
    }
    for turn in 0..5 {
        let sum: usize = (0..size).map(|rank| rank * 10 + turn).sum();
        workers.iter_mut().for_each(|worker| assert_eq!(worker.says(), format!("SUM {sum}")));
    }
    workers
}

#[test]
fn ranks_may_be_processes() {
    for size in [2, 3, 4] {
        let mut workers = start(size, |_| again("worker"));
        workers.iter_mut().for_each(|worker| worker.tell("leave"));
        workers.into_iter().for_each(Worker::end);
    }
}

#[test]
fn a_rank_that_is_killed_is_an_error_of_all_others() {
    let mut workers = start(3, |_| again("worker"));
    let mut killed = workers.remove(1);
    for worker in &mut workers {
        worker.tell("wait");
    }
    killed.child.kill().unwrap();
    for mut worker in workers {
        assert_eq!(worker.says(), format!("ERROR {}", ncclResult_t::REMOTE_ERROR.0));
        worker.end();
    }
}

#[test]
fn a_rank_may_be_killed_at_any_moment_of_an_operation() {
    for moment in 0..10u32 {
        let mut workers = start(3, |_| again("worker"));
        workers.iter_mut().for_each(|worker| worker.tell("run"));
        let mut killed = workers.remove(moment as usize % 3);
        while killed.says() != format!("TURN {moment}") {}
        // Somewhere in what follows.
        (0..moment * 20_000).for_each(|_| std::hint::spin_loop());
        killed.child.kill().unwrap();
        for mut worker in workers {
            let error = loop {
                let words = worker.says();
                if !words.starts_with("TURN") {
                    break words;
                }
            };
            assert_eq!(error, format!("ERROR {}", ncclResult_t::REMOTE_ERROR.0));
            worker.end();
        }
    }
}

/// Makes two network namespaces that see each other, and says their names when they are there. All of it is gone when
/// the process that runs this ends.
const TWO_HOSTS: &str = "
    set -e
    mount -t tmpfs none /run
    for host in a b; do ip netns add $host; ip -n $host link set lo up; done
    ip link add va netns a type veth peer name vb netns b
    ip -n a addr add 10.9.0.1/24 dev va
    ip -n b addr add 10.9.0.2/24 dev vb
    ip -n a link set va up
    ip -n b link set vb up
    \"$@\"
";

/// Not a test of its own: runs inside the namespaces that hold both hosts.
#[test]
fn on_two_hosts() {
    if std::env::var_os("MESHREDUCE_TEST_HOSTS").is_none() {
        return;
    }
    let program = std::env::current_exe().unwrap();
    let mut workers = start(4, |rank| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", ["a", "b"][rank / 2]]).arg(&program);
        command.args(["--exact", "worker", "--nocapture"]);
        // The same description and instance on both hosts: what tells them apart is the network.
        command.env("NCCL_SOCKET_IFNAME", "v").env("MESHREDUCE_NODE_ID", "two hosts");
        // Rank 2 is on the device that rank 0 has, on the other host.
        command.env("MESHREDUCE_TEST_DEVICE", (rank % 2).to_string());
        command
    });
    workers.iter_mut().for_each(|worker| worker.tell("leave"));
    workers.into_iter().for_each(Worker::end);
    say("BOTH HOSTS");
}

#[test]
fn ranks_may_be_on_two_nodes() {
    support::open();
    let may = Command::new("unshare").args(["-Urnm", "sh", "-c", TWO_HOSTS, "sh", "true"]).output();
    if !may.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipping: this machine lets nobody make network namespaces: {may:?}");
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["-Urnm", "sh", "-c", TWO_HOSTS, "sh"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "on_two_hosts", "--nocapture"]).env("MESHREDUCE_TEST_HOSTS", "1");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("@BOTH HOSTS"), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}
