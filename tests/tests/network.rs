//! Hosts in network namespaces, and what stores and rendezvous do between them.
//!
//! What runs on the hosts are processes of this program: [`part_on_a_host`], which is no test of its own, does what
//! [`PART`] says. A test and a part talk in lines.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use meshreduce::store::identity::{HOST_ID, Host};
use meshreduce::{Config, Launcher, Outcome, Store, StoreError, TcpStore, rendezvous};
use meshreduce_checks::emulated_node::EmulatedNode;
use meshreduce_tests::network::Network;
use meshreduce_tests::network_or_skip;

const LONG: Duration = Duration::from_secs(60);
/// What has to come to nothing is waited for so long.
const SHORT: Duration = Duration::from_secs(1);
/// Of the store on host 0. Nothing else listens there.
const PORT: u16 = 29500;

/// What a process is to do.
const PART: &str = "MESHREDUCE_TEST_NETWORK_PART";
const NUMBER: &str = "MESHREDUCE_TEST_NETWORK_NUMBER";
const CLIENTS: &str = "MESHREDUCE_TEST_NETWORK_CLIENTS";
/// The address that it is about.
const ADDRESS: &str = "MESHREDUCE_TEST_NETWORK_ADDRESS";

/// A part that runs. It is killed with its host, if it has not ended before.
struct Part {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Part {
    fn start(command: &mut Command, part: &str) -> Self {
        command.args(["--exact", "part_on_a_host", "--nocapture"]).env(PART, part);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, lines }
    }

    /// Starts one on a host, about an address of the network.
    fn on(network: &Network, host: usize, part: &str, address: SocketAddr) -> Self {
        let mut command = network.command(host, this_program());
        Self::start(command.env(ADDRESS, address.to_string()).env(NUMBER, host.to_string()), part)
    }

    /// The next thing that it says; nothing if it has ended.
    fn hears(&mut self) -> Option<String> {
        (&mut self.lines).lines().find_map(|line| {
            let line = line.expect("a line");
            line.split_once("part says: ").map(|(_, said)| said.to_owned())
        })
    }

    fn is_told(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("its input");
        stdin.write_all(format!("{text}\n").as_bytes()).expect("it listens");
    }

    /// Its end, which is a good one.
    fn ends(mut self) {
        drop(self.child.stdin.take());
        assert_eq!(self.hears(), None, "it has said all");
        assert!(self.child.wait().expect("its end").success());
    }
}

fn this_program() -> std::path::PathBuf {
    std::env::current_exe().expect("this program's own file")
}

fn say(text: &str) {
    println!("part says: {text}");
}

/// The next line that the test says to this part; nothing if it has ended.
fn told() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line");
    line.trim().to_owned()
}

fn number(name: &str) -> usize {
    std::env::var(name).expect(name).parse().expect("a number")
}

/// Not a test of its own: what the tests below run as processes.
#[test]
fn part_on_a_host() {
    let Ok(part) = std::env::var(PART) else { return };
    let address =
        || -> SocketAddr { std::env::var(ADDRESS).expect("an address").parse().expect("an address") };
    match &*part {
        "who" => {
            let bound = TcpListener::bind((address().ip(), 0)).map_err(|error| error.kind());
            say(&format!("{}, {:?}", Host::current().expect("a host").id, bound.map(drop)));
        }
        "server" => serve(address()),
        "member" => be_member(address()),
        "asked" => do_as_told(address()),
        "rank" => be_rank(),
        "network" => make_network_and_wait(),
        other => panic!("no part {other}"),
    }
}

/// Hosts a store until the test says so, and tells then how many clients had to be cut off.
fn serve(address: SocketAddr) {
    let host = TcpStore::host(address).expect("a store");
    say("listening");
    let wait = if told() == "close, and wait for all" { LONG } else { SHORT };
    say(&format!("{} left behind", host.close(wait)));
}

/// One of several clients that do together all that stores are for.
fn be_member(address: SocketAddr) {
    let (number, clients) = (number(NUMBER), number(CLIENTS));
    let store = TcpStore::connect(address, LONG).expect("a store");
    store.set(&format!("from/{number}"), &[number as u8; 100]).expect("set");
    let keys: Vec<String> = (1..=clients).map(|other| format!("from/{other}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    store.wait(&keys, LONG).expect("wait");
    for (other, key) in (1..).zip(&keys) {
        assert_eq!(store.get(key, LONG).expect("get"), [other; 100]);
    }
    let next = number % clients + 1;
    store.queue_push(&format!("to/{next}"), &[number as u8]).expect("queue_push");
    let from = store.queue_pop(&format!("to/{number}"), LONG).expect("queue_pop");
    assert_eq!(from, [((number + clients - 2) % clients + 1) as u8], "from the one before");
    store.add("sum", number as i64).expect("add");
    store.barrier("all have added", clients, LONG).expect("barrier");
    say(&format!("the sum is {}", store.add("sum", 0).expect("add")));
}

/// A client that does what it is told, one thing a line, and says what came of it.
fn do_as_told(address: SocketAddr) {
    let connect = |timeout| TcpStore::connect(address, timeout);
    let store = connect(LONG).expect("a store");
    say("connected");
    loop {
        let result = match &*told() {
            "set" => store.set("set", b""),
            "give" => store.set("at last", b""),
            "set on a new connection" => connect(LONG).and_then(|store| store.set("set anew", b"")),
            "wait briefly" => store.wait(&["never"], SHORT),
            "wait long" => {
                say("waiting");
                store.get("at last", LONG).map(drop)
            }
            "connect briefly" => connect(SHORT).map(drop),
            _ => return,
        };
        say(match result {
            Ok(()) => "done",
            Err(StoreError::Lost { .. }) => "Lost",
            Err(StoreError::Timeout { .. }) => "Timeout",
            Err(StoreError::Unreachable { .. }) => "Unreachable",
            Err(other) => panic!("{other:?}"),
        });
    }
}

/// A rank as a launcher starts it, on a node of which it is not the only one.
fn be_rank() {
    let launcher = Launcher::from_env().expect("a launcher's environment");
    let store = launcher.store(LONG).expect("a store");
    let config = Config::launched().expect("words that mean something").deadline(Some(LONG)).timeout(LONG);
    match rendezvous(&store, launcher.rank, launcher.world_size, launcher.local_rank, &config) {
        Ok(Outcome::NotApplicable(reason)) => say(&format!("not applicable: {reason:?}")),
        Ok(Outcome::Ready(_)) => say("ready"),
        Err(error) => say(&format!("failed: {error}")),
    }
    // A rank whose process has ended is a dead one to those that have not heard yet.
    store.barrier("all know", launcher.world_size, LONG).expect("the others");
    assert_eq!(store.close(LONG), 0);
}

/// Says who holds a network and who runs in it.
fn make_network_and_wait() {
    let network = match Network::new(2) {
        Ok(network) => network,
        Err(skip) => return say(&format!("skipping: {skip}")),
    };
    let mut runs = network.command(1, "sleep").arg("60").spawn().expect("it starts");
    let pids = network.holders().into_iter().chain([runs.id()]);
    say(&pids.map(|pid| pid.to_string()).collect::<Vec<_>>().join(" "));
    match &*told() {
        "panic" => panic!("as it was told"),
        other => panic!("not killed, but told {other:?}; {:?}", runs.wait()),
    }
}

/// The store on host 0, and where it is.
fn server(network: &Network) -> (Part, SocketAddr) {
    let address = SocketAddr::new(network.address(0), PORT);
    let mut server = Part::on(network, 0, "server", address);
    assert_eq!(server.hears().as_deref(), Some("listening"));
    (server, address)
}

#[test]
fn each_host_has_its_own_id_and_address() {
    const HOSTS: usize = 3;
    let network = network_or_skip!(HOSTS);
    for (host, other) in (0..HOSTS).flat_map(|host| (0..HOSTS).map(move |other| (host, other))) {
        let mut part = Part::on(&network, host, "who", SocketAddr::new(network.address(other), 0));
        let bound = if host == other { "Ok(())" } else { "Err(AddrNotAvailable)" };
        assert_eq!(part.hears(), Some(format!("{}, {bound}", network.host_id(host))));
        part.ends();
    }
    let ids: std::collections::HashSet<_> = (0..HOSTS).map(|host| network.host_id(host)).collect();
    assert_eq!(ids.len(), HOSTS);
    // Nothing of it is seen from here, nor from another network.
    let here = TcpListener::bind((network.address(0), 0)).map(drop);
    assert_eq!(here.map_err(|error| error.kind()), Err(std::io::ErrorKind::AddrNotAvailable));
    let other = network_or_skip!(HOSTS);
    assert_eq!(other.address(0), network.address(0));
    assert_ne!(other.host_id(0), network.host_id(0));
}

/// Whether a process runs in a network namespace other than this one's.
fn holds_a_namespace(pid: u32) -> bool {
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    of(&pid.to_string()).is_some_and(|namespace| Some(namespace) != of("self"))
}

fn all_end(pids: &[u32]) {
    let limit = Instant::now() + LONG;
    while let Some(pid) = pids.iter().find(|pid| holds_a_namespace(**pid)) {
        assert!(Instant::now() < limit, "process {pid} of {pids:?} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_network_ends_with_all_that_runs_on_it() {
    let network = network_or_skip!(2);
    let mut runs = network.command(1, "sleep").arg("60").spawn().expect("it starts");
    // It stays when its shell has gone.
    let stays = network
        .command(0, "sh")
        .args(["-c", "sleep 60 >/dev/null 2>&1 & echo $!"])
        .output()
        .expect("it starts");
    let stays: u32 = String::from_utf8_lossy(&stays.stdout).trim().parse().expect("its id");
    let pids: Vec<u32> = network.holders().into_iter().chain([stays]).collect();
    assert!(pids.iter().all(|pid| holds_a_namespace(*pid)), "{pids:?}");
    drop(network);
    assert!(!runs.wait().expect("its end").success());
    all_end(&pids);
}

#[test]
fn what_starts_while_its_network_ends_ends_too() {
    for _ in 0..20 {
        let network = network_or_skip!(1);
        let mut starts =
            network.command(0, "sleep").arg("60").stderr(Stdio::null()).spawn().expect("it starts");
        drop(network);
        assert!(!starts.wait().expect("its end").success(), "it has slept to the end");
    }
}

/// A process that has made a network, ended by `end`, takes it along.
fn ends_with_its_maker(end: impl FnOnce(&mut Part)) {
    let mut maker = Part::start(Command::new(this_program()).stderr(Stdio::null()), "network");
    let said = maker.hears().expect("what it has made");
    if said.starts_with("skipping") {
        return eprintln!("{said}");
    }
    let pids: Vec<u32> = said.split(' ').map(|pid| pid.parse().expect("a process")).collect();
    assert_eq!(pids.len(), 4);
    end(&mut maker);
    assert!(!maker.child.wait().expect("its end").success());
    all_end(&pids);
}

#[test]
fn a_network_ends_with_a_test_that_panics() {
    ends_with_its_maker(|maker| maker.is_told("panic"));
}

#[test]
fn a_network_ends_with_a_test_that_is_killed() {
    ends_with_its_maker(|maker| maker.child.kill().expect("it is there"));
}

#[test]
fn clients_on_several_hosts_meet_over_a_tcp_store_on_another() {
    const HOSTS: usize = 4;
    let network = network_or_skip!(HOSTS + 1);
    let (mut server, address) = server(&network);
    let members: Vec<_> = (1..=HOSTS)
        .map(|host| {
            let mut command = network.command(host, this_program());
            command.env(ADDRESS, address.to_string()).env(NUMBER, host.to_string());
            Part::start(command.env(CLIENTS, HOSTS.to_string()), "member")
        })
        .collect();
    for mut member in members {
        assert_eq!(member.hears().as_deref(), Some("the sum is 10"));
        member.ends();
    }
    server.is_told("close, and wait for all");
    assert_eq!(server.hears().as_deref(), Some("0 left behind"));
    server.ends();
}

#[test]
fn a_client_that_is_cut_off_gets_an_error_of_its_own_and_the_others_go_on() {
    let network = network_or_skip!(4);
    let (mut server, address) = server(&network);
    let mut parts: Vec<_> = (1..4).map(|host| Part::on(&network, host, "asked", address)).collect();
    for part in &mut parts {
        assert_eq!(part.hears().as_deref(), Some("connected"));
        part.is_told("set");
        assert_eq!(part.hears().as_deref(), Some("done"));
    }
    let [one, other, there] = &mut parts[..] else { unreachable!("three") };
    network.cut_off(1);
    network.cut_off(2);
    one.is_told("connect briefly");
    assert_eq!(one.hears().as_deref(), Some("Unreachable"));
    // Both at once: a server that does not answer is given up after ten seconds, whatever it was asked.
    one.is_told("set");
    other.is_told("wait briefly");
    there.is_told("wait briefly");
    assert_eq!(there.hears().as_deref(), Some("Timeout"), "it is not cut off");
    assert_eq!(one.hears().as_deref(), Some("Lost"));
    assert_eq!(other.hears().as_deref(), Some("Lost"));
    network.bring_back(1);
    network.bring_back(2);
    // It stays lost to who has lost it; a new client finds it.
    for part in [one, other] {
        part.is_told("set");
        assert_eq!(part.hears().as_deref(), Some("Lost"));
        part.is_told("set on a new connection");
        assert_eq!(part.hears().as_deref(), Some("done"));
    }
    parts.into_iter().for_each(Part::ends);
    server.is_told("close, and wait for all");
    assert_eq!(server.hears().as_deref(), Some("0 left behind"));
    server.ends();
}

#[test]
fn a_client_that_is_cut_off_for_a_moment_loses_nothing() {
    let network = network_or_skip!(3);
    let (mut server, address) = server(&network);
    let mut parts: Vec<_> = (1..3).map(|host| Part::on(&network, host, "asked", address)).collect();
    let [waits, sets] = &mut parts[..] else { unreachable!("two") };
    for part in [&mut *waits, sets] {
        assert_eq!(part.hears().as_deref(), Some("connected"));
    }
    waits.is_told("wait long");
    assert_eq!(waits.hears().as_deref(), Some("waiting"));
    network.cut_off(1);
    sets.is_told("give");
    assert_eq!(sets.hears().as_deref(), Some("done"));
    network.bring_back(1);
    assert_eq!(waits.hears().as_deref(), Some("done"));
    parts.into_iter().for_each(Part::ends);
    server.is_told("close, and wait for all");
    assert_eq!(server.hears().as_deref(), Some("0 left behind"));
    server.ends();
}

#[test]
fn a_server_cuts_off_who_does_not_come_back_before_it_closes() {
    let network = network_or_skip!(2);
    let (mut server, address) = server(&network);
    let mut part = Part::on(&network, 1, "asked", address);
    assert_eq!(part.hears().as_deref(), Some("connected"));
    network.cut_off(1);
    server.is_told("close");
    let said = server.hears();
    let left: usize =
        said.as_deref().and_then(|said| said.split(' ').next()?.parse().ok()).expect("a number");
    assert!(left > 0, "{said:?}");
    server.ends();
    part.is_told("set");
    assert_eq!(part.hears().as_deref(), Some("Lost"));
    part.ends();
}

/// Two ranks on each of two hosts, as a launcher starts them, and what each has come to. The host id is the network's or,
/// where one is given, that.
fn launch(network: &Network, host_id: Option<&str>) -> Vec<String> {
    const RANKS: usize = 4;
    let node = EmulatedNode::new("hgx-h100").expect("an emulated node");
    let ranks: Vec<_> = (0..RANKS)
        .map(|rank| {
            let mut command = network.command(rank / 2, this_program());
            command
                .envs(node.environment())
                .env_remove("ENABLE_INTRA_NODE_COMM")
                .env_remove("TEST_INTRA_NODE_COMM")
                .env_remove("TORCHELASTIC_USE_AGENT_STORE")
                .env_remove("TORCHELASTIC_RUN_ID")
                .env_remove("TORCHELASTIC_RESTART_COUNT")
                .envs(host_id.map(|id| (HOST_ID, id)))
                .env("RANK", rank.to_string())
                .env("LOCAL_RANK", (rank % 2).to_string())
                .env("WORLD_SIZE", RANKS.to_string())
                .env("MASTER_ADDR", network.address(0).to_string())
                .env("MASTER_PORT", PORT.to_string());
            Part::start(&mut command, "rank")
        })
        .collect();
    let said = ranks.into_iter().map(|mut rank| {
        let said = rank.hears().expect("what it has come to");
        rank.ends();
        said
    });
    said.collect()
}

#[test]
fn ranks_on_two_hosts_hear_that_they_are() {
    let network = network_or_skip!(2);
    for said in launch(&network, None) {
        assert!(said.starts_with("not applicable: SeveralHosts { ranks: (0, 2)"), "{said}");
        assert!((0..2).all(|host| said.contains(&network.host_id(host))), "{said}");
    }
}

#[test]
fn ranks_in_two_network_namespaces_of_a_host_hear_that_they_are() {
    let network = network_or_skip!(2);
    for said in launch(&network, Some("one for both")) {
        assert_eq!(said, "not applicable: NetworkNamespaces { ranks: (0, 2) }");
    }
}
