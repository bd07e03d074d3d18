//! Bad input of process groups: every mistake gets its own error, and the group goes on where it can.

use std::sync::Arc;

use meshreduce_checks::groups::case::{Case, CollectiveCall};
use meshreduce_checks::groups::profile::Profile;
use meshreduce_checks::groups::runner::{FAR, Judged, Meeting, group, judge, threads};
use meshreduce_process_group::store::MemoryStore;
use meshreduce_process_group::{
    BackendConfig, ConfigError, DType, DeviceType, Error, ProcessGroup, ReduceOp,
};
use meshreduce_tests::groups::bad::{self, RANK, RANKS};

#[test]
fn a_call_that_makes_no_sense_gets_its_error_and_the_group_goes_on() {
    for profile in Profile::all(DeviceType::Cpu) {
        threads(Meeting::Memory, RANKS, |store, rank| {
            let group = group(&profile, store, rank, RANKS).unwrap();
            if rank == RANK {
                bad::calls(&group, &profile).unwrap();
                bad::parts(&group).unwrap();
            }
            bad::devices(&group, &profile).unwrap();
            let case = Case::new(CollectiveCall::AllReduce { count: 9, op: ReduceOp::Sum }, DType::F32);
            assert_eq!(judge(&group, &profile, &case, 1), Ok(Judged::Right));
            if rank == RANK {
                // Once the backend is there, too.
                bad::calls(&group, &profile).unwrap();
            }
            assert_eq!(judge(&group, &profile, &case, 2), Ok(Judged::Right));
            group.shutdown().unwrap();
        });
    }
}

#[test]
fn ranks_that_call_different_things_are_told_which_if_calls_are_checked() {
    for profile in Profile::all(DeviceType::Cpu) {
        threads(Meeting::Memory, RANKS, |store, rank| {
            let group = ProcessGroup::builder(store, rank, RANKS)
                .name("checked")
                .backend(profile.config().parse().unwrap())
                .registry(profile.registry.clone())
                .timeout(FAR)
                .deadline(Some(FAR))
                .check_calls(true)
                .build()
                .unwrap();
            let result = bad::mismatch(&group);
            let _ = group.shutdown();
            result.unwrap_or_else(|error| panic!("{}, rank {rank}: {error}", profile.name));
        });
    }
}

#[test]
fn a_configuration_that_makes_no_sense_is_shown() {
    for profile in Profile::all(DeviceType::Cpu) {
        let build = |text: &str| -> Result<ProcessGroup, Error> {
            let config: BackendConfig = text.parse()?;
            let builder = ProcessGroup::builder(Arc::new(MemoryStore::new()), 0, 1);
            builder.backend(config).registry(profile.registry.clone()).build()
        };
        let name = profile.name;
        let known: Vec<String> = profile.registry.names().map(ToString::to_string).collect();
        let cases: Vec<(String, ConfigError)> = vec![
            (
                "cpu:nonsense".to_owned(),
                ConfigError::UnknownBackend { name: "nonsense".to_owned(), known: known.clone() },
            ),
            ("gloo".to_owned(), ConfigError::UnknownBackend { name: "gloo".to_owned(), known }),
            (
                format!("cuda:{name}"),
                ConfigError::CannotServe {
                    name: name.to_owned(),
                    device: DeviceType::Cuda,
                    serves: vec![DeviceType::Cpu],
                },
            ),
            (
                format!("cpu:{name},cpu:{name}"),
                ConfigError::DeviceTwice { device: DeviceType::Cpu, text: format!("cpu:{name},cpu:{name}") },
            ),
            (
                format!("cpu:{name},"),
                ConfigError::BadPair { part: String::new(), text: format!("cpu:{name},") },
            ),
            (
                format!("tpu:{name}"),
                ConfigError::UnknownDevice { device: "tpu".to_owned(), text: format!("tpu:{name}") },
            ),
        ];
        for (text, expected) in cases {
            match build(&text) {
                Err(Error::Config(error)) => assert_eq!(error, expected, "{text}"),
                other => panic!("{text}: {:?}", other.map(|_| "a group")),
            }
        }
        build(&format!(" CPU : {} ", name.to_uppercase())).expect("spaces and case do not matter");
    }
}

#[test]
fn a_rank_that_is_none_makes_no_group() {
    for (rank, world_size) in [(3, 3), (0, 0), (usize::MAX, 1)] {
        let made = ProcessGroup::builder(Arc::new(MemoryStore::new()), rank, world_size).build();
        match made.map(|_| "a group") {
            Err(Error::InvalidRank { rank: named, world_size: of }) => {
                assert_eq!((named, of), (rank, world_size))
            }
            other => panic!("{other:?}"),
        }
    }
}
