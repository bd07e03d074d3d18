//! Rendezvous and all-reduce over every store, and as a launcher starts the ranks.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use meshreduce::store::identity::HOST_ID;
use meshreduce::{
    Config, FileStore, Launcher, MemoryStore, Outcome, PrefixStore, Store, TcpStore, rendezvous,
};
use meshreduce_checks::emulated_node::EmulatedNode;
use meshreduce_checks::in_process::{alone, config, open_driver};
use meshreduce_checks::launched::all_reduce_once;

const RANKS: usize = 4;
const LONG: Duration = Duration::from_secs(60);

/// What one rank does.
fn rank(store: &dyn Store, rank: usize, device: u32, config: &Config) {
    all_reduce_once(store, rank, RANKS, device, config)
        .unwrap_or_else(|error| panic!("rank {rank}: {error:#}"));
}

/// Runs the ranks as threads, each with the store that `of` gives it.
fn threads<S: Store>(of: impl Fn(usize) -> S + Sync) {
    let _alone = alone();
    open_driver();
    std::thread::scope(|scope| {
        for number in 0..RANKS {
            let of = &of;
            scope.spawn(move || rank(&of(number), number, number as u32, &config()));
        }
    });
}

#[test]
fn ranks_meet_over_a_memory_store() {
    let store = MemoryStore::new();
    threads(|_| store.clone());
    // A second time over the same store: the first has left nothing in the way.
    threads(|_| store.clone());
    assert_eq!(store.num_keys().unwrap(), 0);
}

#[test]
fn ranks_meet_over_a_tcp_store() {
    let host = TcpStore::host("127.0.0.1:0").unwrap();
    threads(|_| TcpStore::connect(host.local_addr(), LONG).unwrap());
    assert!(!host.check(&["roster"]).unwrap());
    assert_eq!(host.close(LONG), 0);
}

#[test]
fn ranks_meet_over_a_file_store() {
    let folder = tempfile::tempdir().unwrap();
    threads(|_| FileStore::open(folder.path()).unwrap());
}

#[test]
fn ranks_meet_over_a_part_of_a_store_that_others_use_too() {
    let host = TcpStore::host("127.0.0.1:0").unwrap();
    host.set("roster", b"not theirs").unwrap();
    threads(|_| {
        PrefixStore::new("all", Box::new(TcpStore::connect(host.local_addr(), LONG).unwrap())).unwrap()
    });
    assert_eq!(host.get("roster", LONG).unwrap(), b"not theirs");
    assert_eq!(host.close(LONG), 0);
}

/// Set for ranks that a test starts as processes: to the reason for which they are not to communicate, or to nothing.
const LAUNCHED: &str = "MESHREDUCE_TEST_LAUNCHED";

/// Not a test of its own: what the tests below run as processes.
#[test]
fn rank_of_a_launcher() {
    let Ok(reason) = std::env::var(LAUNCHED) else { return };
    let launcher = Launcher::from_env().expect("a launcher's environment");
    let store = launcher.store(LONG).expect("a store");
    let config = Config::launched().expect("words that mean something").deadline(Some(LONG)).timeout(LONG);
    if reason.is_empty() {
        rank(&store, launcher.rank, launcher.local_rank, &config);
    } else {
        match rendezvous(&store, launcher.rank, launcher.world_size, launcher.local_rank, &config) {
            Ok(Outcome::NotApplicable(said)) => assert!(said.to_string().contains(&reason), "{said}"),
            other => panic!("{other:?}"),
        }
        // A rank whose process has ended is a dead one to those that have not come yet, and on a busy machine that may
        // be long.
        store.set(&format!("done/{}", launcher.rank), b"").expect("a store");
        let all: Vec<String> = (0..launcher.world_size).map(|rank| format!("done/{rank}")).collect();
        store.wait(&all.iter().map(String::as_str).collect::<Vec<_>>(), LONG).expect("all ranks");
    }
    assert_eq!(store.close(LONG), 0);
}

#[test]
fn ranks_that_a_launcher_starts_meet_over_its_variables() {
    launch("127.71.5.1", "", |_| None);
}

#[test]
fn a_launched_rank_that_a_variable_disables_is_named_with_it_on_all_ranks() {
    let reason = "rank 2 is disabled by ENABLE_INTRA_NODE_COMM=no";
    launch("127.71.5.2", reason, |rank| (rank == 2).then_some(("ENABLE_INTRA_NODE_COMM", "no")));
}

#[test]
fn a_variable_says_which_host_a_rank_is_on() {
    let reason = "(host id another)";
    launch("127.71.5.3", reason, |rank| (rank == 2).then_some((HOST_ID, "another")));
}

/// Starts the ranks as a launcher does, at an address of the loopback network that nothing else uses, each with the
/// variable that `of` gives it.
fn launch(address: &str, reason: &str, of: impl Fn(usize) -> Option<(&'static str, &'static str)>) {
    let node = EmulatedNode::new("hgx-h100").expect("an emulated node");
    // A port that was free a moment ago.
    let port =
        TcpListener::bind((address, 0)).and_then(|listener| listener.local_addr()).expect("a port").port();
    let ranks: Vec<_> = (0..RANKS)
        .map(|rank| {
            Command::new(std::env::current_exe().expect("this program's own file"))
                .args(["--exact", "rank_of_a_launcher"])
                .envs(node.environment())
                .env_remove("ENABLE_INTRA_NODE_COMM")
                .env_remove("TEST_INTRA_NODE_COMM")
                .env_remove("TORCHELASTIC_USE_AGENT_STORE")
                .env_remove("TORCHELASTIC_RUN_ID")
                .env_remove("TORCHELASTIC_RESTART_COUNT")
                .envs(of(rank))
                .env(LAUNCHED, reason)
                .env("RANK", rank.to_string())
                .env("LOCAL_RANK", rank.to_string())
                .env("WORLD_SIZE", RANKS.to_string())
                .env("MASTER_ADDR", address)
                .env("MASTER_PORT", port.to_string())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the process starts")
        })
        .collect();
    for rank in ranks {
        let output = rank.wait_with_output().expect("its end");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}\n{}", said(&output.stdout), said(&output.stderr));
        assert!(said(&output.stdout).contains("1 passed"), "{}", said(&output.stdout));
    }
}
