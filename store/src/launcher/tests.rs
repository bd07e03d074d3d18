use std::net::TcpListener;
use std::process::{Child, Command};
use std::time::Instant;

use super::*;
use crate::codec::Payload;
use crate::identity::{Member, Process};
use crate::{Store, StoreError, TcpStore};

const GOOD: [(&str, &str); 5] = [
    ("RANK", "3"),
    ("WORLD_SIZE", "8"),
    ("LOCAL_RANK", "1"),
    ("MASTER_ADDR", "localhost"),
    ("MASTER_PORT", "29500"),
];

/// The good environment, with `variable` as `value`.
fn with(variable: &str, value: Option<&str>) -> Result<Launcher, LauncherError> {
    Launcher::from_variables(|name| {
        let good = GOOD.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        if name == variable { value } else { good }.map(str::to_owned)
    })
}

#[test]
fn every_variable_has_its_field() {
    let launcher = with("", None).unwrap();
    let expected = Launcher {
        rank: 3,
        world_size: 8,
        local_rank: 1,
        address: "localhost".into(),
        port: 29500,
        agent_store: false,
        run_id: None,
        restart_count: 0,
    };
    assert_eq!(launcher, expected);
    assert!(with("TORCHELASTIC_USE_AGENT_STORE", Some("True")).unwrap().agent_store);
    assert!(!with("TORCHELASTIC_USE_AGENT_STORE", Some("False")).unwrap().agent_store);
    assert_eq!(with("TORCHELASTIC_RESTART_COUNT", Some("2")).unwrap().restart_count, 2);
    assert_eq!(with("TORCHELASTIC_RUN_ID", Some("my job")).unwrap().run_id.as_deref(), Some("my job"));
    assert_eq!(
        with("TORCHELASTIC_RUN_ID", Some("none")).unwrap().run_id,
        None,
        "that is what nobody has said"
    );
    assert_eq!(with("TORCHELASTIC_RUN_ID", Some("my job")).unwrap().job_name().as_deref(), Some("my job/0"));
    assert_eq!(with("MASTER_ADDR", Some("[::1]")).unwrap().address, "::1");
}

#[test]
fn numbers_are_read_as_a_launcher_of_python_has_them_read() {
    // `int()`, by which the other ranks of the job read the same variables, takes blanks and a sign.
    for three in ["3", "+3", " 3", "3\n", "03"] {
        assert_eq!(with("RANK", Some(three)).unwrap().rank, 3, "{three:?}");
    }
    for other in ["++3", "+ 3", "+", "3.0", "0x3", "3 3"] {
        assert!(matches!(with("RANK", Some(other)), Err(LauncherError::NotANumber { .. })), "{other:?}");
    }
}

#[test]
fn a_missing_variable_is_named() {
    for (variable, _) in GOOD {
        assert_eq!(with(variable, None).unwrap_err(), LauncherError::Missing { variable });
    }
}

#[test]
fn what_is_no_number_is_shown() {
    for (variable, bad) in [
        ("RANK", "-1"),
        ("RANK", ""),
        ("WORLD_SIZE", "eight"),
        ("LOCAL_RANK", "4294967296"),
        ("MASTER_PORT", "0"),
        ("MASTER_PORT", "65536"),
        ("MASTER_PORT", "29500x"),
        ("TORCHELASTIC_RESTART_COUNT", "twice"),
    ] {
        match with(variable, Some(bad)).unwrap_err() {
            LauncherError::NotANumber { variable: named, value, .. } => {
                assert_eq!((named, value.as_str()), (variable, bad));
            }
            other => panic!("{variable}={bad}: {other:?}"),
        }
    }
}

#[test]
fn ranks_are_below_the_world_size() {
    let error =
        |variable, value, world_size| LauncherError::NotBelowWorldSize { variable, value, world_size };
    assert_eq!(with("RANK", Some("8")).unwrap_err(), error("RANK", 8, 8));
    assert_eq!(with("WORLD_SIZE", Some("0")).unwrap_err(), error("RANK", 3, 0));
    assert_eq!(with("LOCAL_RANK", Some("9")).unwrap_err(), error("LOCAL_RANK", 9, 8));
}

#[test]
fn an_address_that_names_nothing_is_refused() {
    for bad in ["", "  ", "[]", "\u{fffd}"] {
        let error = with("MASTER_ADDR", Some(bad)).unwrap_err();
        assert_eq!(error, LauncherError::NotAName { variable: "MASTER_ADDR", value: bad.into() });
    }
}

#[test]
fn what_is_neither_yes_nor_no_is_shown() {
    let variable = "TORCHELASTIC_USE_AGENT_STORE";
    let error = with(variable, Some("perhaps")).unwrap_err();
    assert_eq!(error, LauncherError::NotAYesOrNo { variable, value: "perhaps".into() });
}

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(100);

/// A job at a port that was free a moment ago, on an address that nothing else uses.
fn job(world_size: usize, address: &str) -> impl Fn(usize) -> Launcher {
    let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
    let address = address.to_owned();
    move |rank| Launcher {
        rank,
        world_size,
        local_rank: rank as u32,
        address: address.clone(),
        port,
        agent_store: false,
        run_id: None,
        restart_count: 0,
    }
}

#[test]
fn a_name_that_is_not_found_is_looked_up_again_until_the_time_is_up_by_rank_0_too() {
    for rank in [0, 1] {
        let launcher = Launcher { address: "no-such-host.invalid".into(), ..job(2, "127.71.3.20")(rank) };
        let begun = Instant::now();
        let error = launcher.store(SHORT).unwrap_err();
        assert!(begun.elapsed() >= SHORT, "{error}");
        assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
    }
}

#[test]
fn rank_0_hosts_and_the_others_connect_whoever_comes_first() {
    let launcher = job(3, "127.71.3.1");
    std::thread::scope(|scope| {
        for rank in [2, 1, 0] {
            let launcher = launcher(rank);
            scope.spawn(move || {
                let store = launcher.store(LONG).unwrap();
                store.add("sum", rank as i64 + 1).unwrap();
                store.set(&rank.to_string(), b"").unwrap();
                store.wait(&["0", "1", "2"], LONG).unwrap();
                assert_eq!(store.add("sum", 0).unwrap(), 6);
                assert_eq!(store.close(LONG), 0);
            });
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn rank_0_does_not_wait_for_the_others() {
    let launcher = job(3, "127.71.3.2");
    let start = Instant::now();
    let store = launcher(0).store(LONG).unwrap();
    assert!(start.elapsed() < LONG / 2);
    assert_eq!(store.close(LONG), 0);
}

#[test]
fn a_rank_without_rank_0_says_where_it_looked() {
    let launcher = job(2, "127.71.3.3")(1);
    let start = Instant::now();
    match launcher.store(SHORT).map(|_| ()) {
        Err(JobError::Store(StoreError::Unreachable { place, .. })) => assert_eq!(place, launcher.place()),
        other => panic!("{other:?}"),
    }
    assert!(start.elapsed() >= SHORT);
}

/// An agent's store, with the job's launcher.
fn agent(world_size: usize, run_id: Option<&str>) -> (TcpStore, impl Fn(usize) -> Launcher) {
    let agent = TcpStore::host("127.0.0.1:0").unwrap();
    agent.set("none/torchelastic/role/num_members", b"its own").unwrap();
    let (port, run_id) = (agent.local_addr().port(), run_id.map(str::to_owned));
    let launcher = move |rank| Launcher {
        rank,
        world_size,
        local_rank: rank as u32,
        address: "127.0.0.1".into(),
        port,
        agent_store: true,
        run_id: run_id.clone(),
        restart_count: 0,
    };
    (agent, launcher)
}

#[test]
fn every_rank_is_a_client_of_an_agents_store_and_keeps_to_its_own_keys() {
    for run_id in [None, Some("my job")] {
        let (agent, launcher) = agent(2, run_id);
        let (a, b) = (launcher(0).store(LONG).unwrap(), launcher(1).store(LONG).unwrap());
        a.set("k", b"value").unwrap();
        assert_eq!(b.get("k", LONG).unwrap(), b"value");
        assert_eq!(a.job(), b.job());
        for key in agent.list_keys().unwrap() {
            assert!(key.starts_with("meshreduce/") || key.starts_with("none/torchelastic/"), "{key}");
        }
        // With another world size, as after a change of the nodes, it is another start too.
        let grown = Launcher { world_size: 3, ..launcher(0) }.store(LONG).unwrap();
        assert!(!grown.check(&["k"]).unwrap());
        assert_eq!(grown.close(LONG), 0);
        // After a restart nothing of the first start is met.
        let again = Launcher { restart_count: 1, ..launcher(0) }.store(LONG).unwrap();
        assert!(!again.check(&["k"]).unwrap());
        for store in [a, b, again] {
            assert_eq!(store.close(LONG), 0);
        }
        assert_eq!(agent.close(LONG), 0);
    }
}

#[test]
fn ids_that_look_like_keys_are_of_different_jobs() {
    let (agent, launcher) = agent(2, Some("x"));
    let other = Launcher { run_id: Some("x/0/2/rank".into()), ..launcher(1) };
    let (a, b) = (launcher(0).store(LONG).unwrap(), other.store(LONG).unwrap());
    a.set("rank/0/2/k", b"a's own").unwrap();
    assert!(!b.check(&["k"]).unwrap());
    for store in [a, b] {
        store.close(LONG);
    }
    agent.close(LONG);
}

#[test]
fn ranks_of_another_job_are_turned_away() {
    let launcher = job(2, "127.71.3.4");
    let host = Launcher { run_id: Some("a".into()), ..launcher(0) }.store(LONG).unwrap();
    for stranger in [
        Launcher { run_id: Some("b".into()), ..launcher(1) },
        launcher(1),
        Launcher { run_id: Some("a".into()), restart_count: 1, ..launcher(1) },
        Launcher { run_id: Some("a".into()), world_size: 4, ..launcher(1) },
    ] {
        match stranger.store(20 * SHORT) {
            Err(error @ JobError::AnotherJob { .. }) => {
                let text = error.to_string();
                assert!(text.contains("job a, restart 0, of 2 ranks"), "{text}");
                assert!(text.contains(&stranger.place()), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
    let own = Launcher { run_id: Some("a".into()), ..launcher(1) }.store(LONG).unwrap();
    own.close(LONG);
    assert_eq!(host.close(LONG), 0);
}

#[test]
fn a_rank_waits_for_its_own_job_while_an_earlier_start_of_it_ends() {
    let launcher = job(2, "127.71.3.5");
    let old = launcher(0).store(LONG).unwrap();
    std::thread::scope(|scope| {
        let rank = scope.spawn(|| Launcher { restart_count: 1, ..launcher(1) }.store(LONG).unwrap());
        std::thread::sleep(SHORT);
        old.close(LONG);
        let host = Launcher { restart_count: 1, ..launcher(0) }.store(LONG).unwrap();
        rank.join().unwrap().close(LONG);
        assert_eq!(host.close(LONG), 0);
    });
}

#[test]
fn a_store_that_its_host_has_begun_to_close_is_nobodys_any_more_and_those_who_use_it_hear_of_that() {
    let launcher = job(3, "127.71.3.90");
    let host = launcher(0).store(LONG).unwrap();
    let stays = launcher(1).store(LONG).unwrap();
    // Nobody has closed it yet.
    let begun = Instant::now();
    stays.wait_for_the_host_to_close(SHORT);
    assert!(begun.elapsed() >= SHORT);
    let closing = std::thread::spawn(move || host.close(LONG));
    let begun = Instant::now();
    stays.wait_for_the_host_to_close(LONG);
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    match launcher(2).store(20 * SHORT) {
        Err(error @ JobError::Ends { .. }) => {
            assert!(
                error.to_string().contains("127.71.3.90") && error.to_string().contains("about to end"),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
    // Who uses it goes on until it leaves.
    stays.set("key", b"value").unwrap();
    stays.close(LONG);
    assert_eq!(closing.join().unwrap(), 0);
}

#[test]
fn a_second_process_for_a_rank_is_refused_and_both_are_named() {
    let launcher = job(2, "127.71.3.6");
    let host = launcher(0).store(LONG).unwrap();
    let other: Child = Command::new("sleep").arg("600").spawn().unwrap();
    let holder = Member { process: Process::of(other.id()).unwrap(), ..Member::current().unwrap() };
    let claim = job::Holder { member: holder, nonce: 1 }.to_bytes();
    host.set("rank/1", &claim).unwrap();
    match launcher(1).store(LONG) {
        Err(error @ JobError::RankTaken { rank: 1, .. }) => {
            let text = error.to_string();
            for pid in [other.id(), std::process::id()] {
                assert!(text.contains(&format!("process {pid} ")), "{text}");
            }
        }
        other => panic!("{other:?}"),
    }
    // Once it has ended the rank is free.
    std::thread::scope(|scope| {
        let mut other = other;
        let rank = scope.spawn(|| launcher(1).store(LONG).unwrap());
        std::thread::sleep(SHORT);
        other.kill().unwrap();
        other.wait().unwrap();
        rank.join().unwrap().close(LONG);
    });
    assert!(!host.check(&["rank/1"]).unwrap(), "it is given back");
    assert_eq!(host.close(LONG), 0);
}

#[test]
fn a_process_does_not_come_for_one_rank_twice() {
    let launcher = job(2, "127.71.3.7");
    let host = launcher(0).store(LONG).unwrap();
    let rank = launcher(1).store(LONG).unwrap();
    let start = Instant::now();
    assert!(matches!(launcher(1).store(LONG), Err(JobError::RankTaken { rank: 1, .. })));
    assert!(start.elapsed() < LONG / 2);
    rank.close(LONG);
    launcher(1).store(LONG).unwrap().close(LONG);
    assert_eq!(host.close(LONG), 0);
}
