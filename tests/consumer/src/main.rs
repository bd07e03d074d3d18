//! Starts without a driver, and says what is missing instead of dying in the dynamic loader.

use std::time::Duration;

use meshreduce::store::FileStore;
use meshreduce::{Config, Error, Outcome, rendezvous};

fn main() {
    let directory = std::env::temp_dir().join(format!("meshreduce-consumer-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    let store = FileStore::open(&directory).expect("a store in it");
    let config = Config::default().timeout(Duration::from_secs(5));

    match rendezvous(&store, 0, 1, 0, &config) {
        Ok(Outcome::NotApplicable(reason)) => println!("world size 1: {reason}"),
        other => panic!("a world of one rank is not applicable, not {other:?}"),
    }
    match rendezvous(&store, 0, 2, 0, &config) {
        Err(error @ Error::NoDriver(_)) => println!("world size 2: {error}"),
        other => panic!("without a driver that is an error, not {other:?}"),
    }
    std::fs::remove_dir_all(&directory).expect("removing the temporary directory");
}
