//! How two sides meet, and how they do not.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use meshreduce_channels::channel::Pair;
use meshreduce_channels::{Context, Device, Error, Links, Options, Registry};
use meshreduce_store::{MemoryStore, Store, StoreError};
use support::{LINKS, SOON, bytes, context, registry};

const CPU: Device = Device::Cpu;

#[test]
fn two_sides_meet_under_a_name_in_any_order_and_again_under_the_same_name() {
    let store = MemoryStore::new();
    let (one, other) =
        (context(&registry("basic"), LINKS[1].1, "one"), context(&registry("basic"), LINKS[1].1, "other"));
    for round in 0..3 {
        let (listening, connecting) = std::thread::scope(|scope| {
            let connecting = scope.spawn(|| other.connect(&store, "a name", SOON).unwrap());
            if round == 1 {
                // The one that connects is first for certain.
                std::thread::sleep(Duration::from_millis(50));
            }
            (one.listen(&store, "a name", SOON).unwrap(), connecting.join().unwrap())
        });
        assert!(listening.peer_name().starts_with("other (process "), "{}", listening.peer_name());
        assert_eq!(listening.peer(), connecting.peer(), "both are of this process");
        let sent = listening.send(bytes(round, 1000), CPU, None);
        assert_eq!(connecting.recv(vec![0_u8; 1000], CPU, None).wait(SOON).unwrap().0, bytes(round, 1000));
        sent.wait(SOON).unwrap();
        assert!(!store.check(&["channels/a name"]).unwrap(), "the address was left behind");
    }
}

#[test]
fn two_sides_meet_under_one_name_again_and_again_with_roles_swapped() {
    const ROUNDS: usize = 20;
    let store = MemoryStore::new();
    let run = |own: &str, first: usize| {
        let context = context(&registry("basic"), LINKS[1].1, own);
        for round in 0..ROUNDS {
            // Neither side waits for the other one between its meetings.
            let _met = match (round + first) % 2 {
                0 => context.listen(&store, "a name", SOON),
                _ => context.connect(&store, "a name", SOON),
            }
            .unwrap_or_else(|error| panic!("{own}, round {round}: {error}"));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| run("one", 0));
        scope.spawn(|| run("other", 1));
    });
    assert!(!store.check(&["channels/a name"]).unwrap(), "an address was left behind");
}

#[test]
fn a_listener_that_gives_up_leaves_another_one_under_its_name_alone() {
    let store = MemoryStore::new();
    let key = "channels/a name";
    let [early, late, connecting] =
        ["early", "late", "connecting"].map(|own| context(&registry("basic"), LINKS[1].1, own));
    std::thread::scope(|scope| {
        let giving_up = scope.spawn(|| early.listen(&store, "a name", Duration::from_millis(300)));
        store.wait(&[key], SOON).unwrap();
        let listening = scope.spawn(|| late.listen(&store, "a name", SOON).unwrap());
        assert!(matches!(giving_up.join().unwrap(), Err(Error::NotConnected { .. })));
        let met = connecting.connect(&store, "a name", SOON).unwrap();
        assert!(met.peer_name().starts_with("late "), "{}", met.peer_name());
        listening.join().unwrap();
    });
}

/// A store that is lost, for the one who listens, as soon as somebody has read the address.
struct LostBehindTheMeeting<'a>(&'a MemoryStore);

impl LostBehindTheMeeting<'_> {
    fn lost<T>(key: &str) -> Result<T, StoreError> {
        Err(StoreError::Timeout { keys: vec![key.to_owned()], waited: Duration::ZERO })
    }
}

impl Store for LostBehindTheMeeting<'_> {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.0.set(key, value)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.0.get(key, timeout)
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        self.0.check(keys)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.0.wait(keys, timeout)
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        self.0.add(key, delta)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
        // Where nothing is expected, an address is published; where one is, it is taken away.
        if expected.is_empty() { self.0.compare_set(key, expected, desired) } else { Self::lost(key) }
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        Self::lost(key)
    }
}

#[test]
fn an_endpoint_outlives_the_store_that_keeps_the_address() {
    let store = MemoryStore::new();
    let (one, other) =
        (context(&registry("basic"), LINKS[1].1, "one"), context(&registry("basic"), LINKS[1].1, "other"));
    let (listening, connecting) = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| other.connect(&store, "a name", SOON).unwrap());
        (one.listen(&LostBehindTheMeeting(&store), "a name", SOON).unwrap(), connecting.join().unwrap())
    });
    assert!(store.check(&["channels/a name"]).unwrap(), "the address could not be taken away");
    let sent = listening.send(bytes(1, 1000), CPU, None);
    assert_eq!(connecting.recv(vec![0_u8; 1000], CPU, None).wait(SOON).unwrap().0, bytes(1, 1000));
    sent.wait(SOON).unwrap();
    // What was left behind keeps nobody from the next meeting under the name.
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| one.connect(&store, "a name", SOON).unwrap());
        let met = other.listen(&store, "a name", SOON).unwrap();
        assert!(met.peer_name().starts_with("one "), "{}", met.peer_name());
        connecting.join().unwrap();
    });
}

#[test]
fn a_context_meets_itself() {
    let context = context(&registry("xth"), Links::default(), "itself");
    let listener = context.listener().unwrap();
    let (one, other) = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| context.connect_to(listener.address(), SOON).unwrap());
        (listener.accept(SOON).unwrap(), connecting.join().unwrap())
    });
    let sent = one.send(bytes(1, 3 << 20), CPU, None);
    assert!(other.recv(vec![0_u8; 3 << 20], CPU, None).wait(SOON).unwrap().0 == bytes(1, 3 << 20));
    sent.wait(SOON).unwrap();
}

#[test]
fn a_listener_takes_several_and_an_address_is_a_text() {
    for (_, links) in LINKS {
        let hub = context(&registry("basic"), links, "hub");
        let listener = hub.listener().unwrap();
        let text = listener.address().to_string();
        let spokes: Vec<_> = (0..4)
            .map(|at| {
                let spoke = context(&registry("basic"), links, &format!("spoke {at}"));
                let (at_hub, at_spoke) = std::thread::scope(|scope| {
                    let connecting = scope.spawn(|| spoke.connect_to(&text.parse().unwrap(), SOON).unwrap());
                    (listener.accept(SOON).unwrap(), connecting.join().unwrap())
                });
                (at_hub, at_spoke, spoke)
            })
            .collect();
        drop(listener);
        for (at, (at_hub, at_spoke, _)) in spokes.iter().enumerate() {
            let sent = at_hub.send(bytes(at as u64, 5000), CPU, None);
            assert_eq!(
                at_spoke.recv(vec![0_u8; 5000], CPU, None).wait(SOON).unwrap().0,
                bytes(at as u64, 5000)
            );
            sent.wait(SOON).unwrap();
        }
    }
}

#[test]
fn nobody_who_comes_is_an_error_in_time() {
    let store = MemoryStore::new();
    let context = context(&registry("basic"), Links::default(), "alone");
    let limit = Duration::from_millis(50);
    let begun = Instant::now();
    let error = context.listen(&store, "nobody", limit).unwrap_err();
    assert!(matches!(error, Error::NotConnected { .. }));
    assert_eq!(
        error.to_string(),
        "no connection with whoever connects to nobody within 0.05 s: nobody has come"
    );
    assert!(!store.check(&["channels/nobody"]).unwrap());
    let error = context.connect(&store, "nobody", limit).unwrap_err();
    assert!(matches!(error, Error::NotConnected { .. }), "{error}");
    assert!(begun.elapsed() < SOON);
}

#[test]
fn a_listener_that_has_gone_is_an_error_in_time() {
    for (name, links) in LINKS {
        let context = context(&registry("basic"), links, "alone");
        let address = context.listener().unwrap().address().clone();
        let error = context.connect_to(&address, Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, Error::NotConnected { .. }), "{name}: {error}");
    }
}

#[test]
fn choices_that_differ_are_an_error_on_both_sides() {
    let (one, other) = (
        context(&registry("xth,basic"), LINKS[0].1, "one"),
        context(&registry("basic,xth"), LINKS[0].1, "other"),
    );
    let listener = one.listener().unwrap();
    let (listening, connecting) = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| other.connect_to(listener.address(), SOON).unwrap_err());
        (listener.accept(SOON).unwrap_err(), connecting.join().unwrap())
    });
    let names = |error: &Error| match error {
        Error::ChoicesDiffer { here, there, .. } => (here.to_string(), there.to_string()),
        other => panic!("{other}"),
    };
    assert_eq!(names(&listening), ("xth".to_owned(), "basic".to_owned()));
    assert_eq!(names(&connecting), ("basic".to_owned(), "xth".to_owned()));
}

#[test]
fn a_pair_that_no_channel_serves_is_an_error_that_names_every_reason() {
    let (one, _other) = support::pair_with(&registry("xth"), &registry("basic"), LINKS[0].1);
    let pair = Pair { local: CPU, remote: CPU };
    let error = one.endpoint.channel(pair).unwrap_err();
    assert_eq!(
        error.to_string().replace(&**one.endpoint.peer_name(), "PEER"),
        "no channel between cpu here and cpu of PEER:\n  \
           xth: not viable there: the allow list does not have it\n  \
           ipc: not viable here: the allow list does not have it\n  \
           gdr: not viable here: the allow list does not have it\n  \
           basic: not viable here: the allow list does not have it"
    );
    let failed = one.endpoint.send(vec![1_u8], CPU, None).wait(SOON).unwrap_err();
    assert!(matches!(failed.error, Error::NoChannel { .. }));
    assert_eq!(failed.into_memory(), Some(vec![1]));
    // A device that the other side does not have, and one that this side does not have.
    let (_one, other) = support::pair(LINKS[0].1);
    let failed = other.endpoint.send(vec![1_u8], Device::Cuda(3), None).wait(SOON).unwrap_err();
    assert!(failed.error.to_string().contains("it does not serve cuda:3 there"), "{}", failed.error);
    let span = meshreduce_channels::Span { device: Device::Cuda(9), address: 4096, bytes: 1 };
    // SAFETY: nothing is read: there is no such device.
    let failed = unsafe { other.endpoint.send_raw(span, CPU, None) }.wait(SOON).unwrap_err();
    assert!(matches!(failed, Error::NoDevice { device: Device::Cuda(9), .. }), "{failed}");
}

#[test]
fn a_device_without_a_driver_cannot_be_served_and_says_why() {
    // Of a driver that is there nothing is asked here.
    if meshreduce_device::initialise().is_ok() {
        eprintln!("skipping: there is a driver");
        return;
    }
    let error = Context::new(&Registry::default(), &[Device::Cuda(0)]).unwrap_err();
    assert!(error.to_string().starts_with("cuda:0 cannot be used: no CUDA driver: "), "{error}");
}

#[test]
fn the_report_says_what_is_viable_and_comes_back_from_json() {
    let mut registry = Registry::default();
    registry.allow("basic").unwrap();
    let report = registry.report(&[]).unwrap();
    let basic = report.rows.iter().find(|row| row.name == "basic").unwrap();
    assert_eq!((basic.priority, &basic.reason, &basic.devices[..]), (100, &None, &[CPU][..]));
    let xth = report.rows.iter().find(|row| row.name == "xth").unwrap();
    assert_eq!((xth.priority, xth.reason.as_deref()), (400, Some("the allow list does not have it")));
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<meshreduce_channels::Report>(&text).unwrap(), report);
    assert!(report.to_string().contains("basic (100): viable for cpu\n"), "{report}");
}

#[test]
fn what_a_peer_is_called_is_its_own_name_or_its_process() {
    let options = Options { links: LINKS[1].1, ..Options::default() };
    let one = Context::with_options(&registry("basic"), &[], options).unwrap();
    let other = context(&registry("basic"), LINKS[1].1, "other");
    let listener = one.listener().unwrap();
    let (at_one, at_other) = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| other.connect_to(listener.address(), SOON).unwrap());
        (listener.accept(SOON).unwrap(), connecting.join().unwrap())
    });
    let own = format!("process {} on ", std::process::id());
    assert!(at_other.peer_name().starts_with(&own), "{}", at_other.peer_name());
    assert!(at_one.peer_name().starts_with(&format!("other ({own}")), "{}", at_one.peer_name());
}

#[test]
fn all_ranks_of_a_group_meet_each_other() {
    const RANKS: usize = 5;
    let store = MemoryStore::new();
    std::thread::scope(|scope| {
        for rank in 0..RANKS {
            let store = &store;
            scope.spawn(move || {
                let context = context(&registry("basic"), LINKS[1].1, &format!("rank {rank}"));
                let mesh = context.connect_all(store, "all", rank, RANKS, SOON).unwrap();
                assert_eq!((mesh.rank(), mesh.world_size()), (rank, RANKS));
                assert!(mesh.endpoint(rank).is_none() && mesh.endpoint(RANKS).is_none());
                assert_eq!(mesh.iter().count(), RANKS - 1);
                for (other, endpoint) in mesh.iter() {
                    let name = format!("rank {other} (");
                    assert!(endpoint.peer_name().starts_with(&name), "{}", endpoint.peer_name());
                }
                let sent: Vec<_> =
                    mesh.iter().map(|(to, peer)| peer.send(vec![rank as u8, to as u8], CPU, None)).collect();
                for (from, peer) in mesh.iter() {
                    let (there, _) = peer.recv(vec![0; 2], CPU, None).wait(SOON).unwrap();
                    assert_eq!(there, [from as u8, rank as u8]);
                }
                sent.into_iter().for_each(|sent| drop(sent.wait(SOON).unwrap()));
                // Whoever leaves takes along what others have still to receive.
                store.barrier("received", RANKS, SOON).unwrap();
            });
        }
    });
    for rank in 0..RANKS {
        assert!(
            !store.check(&[&format!("channels/all/{RANKS}/rank {rank}")]).unwrap(),
            "left behind: {rank}"
        );
    }
}

/// What the ranks of a group fail with of which not all come.
fn errors_of(store: &MemoryStore, ranks: &[(usize, usize)], limit: Duration) -> Vec<String> {
    std::thread::scope(|scope| {
        let all: Vec<_> = ranks
            .iter()
            .map(|(rank, world_size)| {
                scope.spawn(move || {
                    let context = context(&registry("basic"), LINKS[1].1, &format!("rank {rank}"));
                    let met = context.connect_all(store, "all", *rank, *world_size, limit);
                    let error = met.map(|_| ()).unwrap_err();
                    assert!(matches!(error, Error::NotConnected { .. }), "{error}");
                    error.to_string()
                })
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

#[test]
fn a_rank_that_does_not_come_is_named_by_all_and_nobody_else_is() {
    let store = MemoryStore::new();
    let limit = Duration::from_secs(3);
    for _again in 0..2 {
        for error in errors_of(&store, &[(0, 5), (1, 5), (2, 5), (4, 5)], limit) {
            assert!(error.contains("with rank 3 of 5 in all/5 within"), "{error}");
        }
    }
    // It comes later, and finds that the others have been there.
    let error = &errors_of(&store, &[(3, 5)], Duration::from_millis(50))[0];
    assert!(error.ends_with("given up before: ranks 0, 1, 2, 4"), "{error}");
}

#[test]
fn ranks_that_differ_on_the_world_size_do_not_meet() {
    let store = MemoryStore::new();
    let errors = errors_of(&store, &[(0, 3), (1, 2)], Duration::from_millis(500));
    assert!(errors[0].contains("with ranks 1, 2 of 3 in all/3 within"), "{}", errors[0]);
    assert!(errors[1].contains("with rank 0 of 2 in all/2 within"), "{}", errors[1]);
}
