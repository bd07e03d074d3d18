//! The default group of a job, made and destroyed again and again, by processes of which the first hosts the store.
#![allow(clippy::unwrap_used, reason = "a test may end so")]

use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use meshreduce_process_group::{
    Device, Error, ReduceOp, default_group, destroy_default_group, init, init_with,
};

/// Says that this process is a rank.
const PART: &str = "MESHREDUCE_TEST_INIT_AGAIN";
const RANKS: usize = 3;
const TIMES: usize = 10;

/// Not a test of its own: what the test below runs as processes.
#[test]
fn rank() {
    if std::env::var_os(PART).is_none() {
        return;
    }
    let rank: usize = std::env::var("RANK").unwrap().parse().unwrap();
    for time in 0..TIMES {
        let group = init().unwrap();
        assert_eq!(group.backend_config().to_string(), "cpu:host", "as MESHREDUCE_BACKEND says");
        assert!(matches!(init(), Err(Error::Default(_))), "there is one");
        drop(group);
        let mut data = [(rank + time) as f32];
        default_group().unwrap().all_reduce(&mut data, ReduceOp::Sum).unwrap();
        assert_eq!(data, [(3 + RANKS * time) as f32]);
        destroy_default_group().unwrap();
        assert!(matches!(default_group(), Err(Error::Default(_))));
        assert!(matches!(destroy_default_group(), Err(Error::Default(_))));
    }
    // What a program says counts more than the environment.
    let group = init_with(|group| group.backend("cpu:host,cuda:mesh".parse().unwrap())).unwrap();
    assert_eq!(group.backend_config().to_string(), "cpu:host,cuda:mesh");
    group.barrier(Device::Cpu).unwrap();
    drop(group);
    destroy_default_group().unwrap();
}

#[test]
fn a_default_group_is_made_anew_by_all_ranks_at_once_when_it_was_destroyed() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ranks: Vec<_> = (0..RANKS)
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "rank", "--nocapture"])
                .env(PART, "1")
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", port.to_string())
                .envs(
                    [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", RANKS)]
                        .map(|(name, value)| (name, value.to_string())),
                )
                .env("MESHREDUCE_BACKEND", "CPU : host")
                .env_remove("TORCHELASTIC_USE_AGENT_STORE")
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut rank in ranks {
        let mut said = String::new();
        rank.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(rank.wait().unwrap().success(), "{said}");
    }
}
