//! The stores do the same, whatever is done with them in whatever order.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Act {
    Set(usize, Vec<u8>),
    Get(usize),
    Check(Vec<usize>),
    Wait(Vec<usize>),
    Add(usize, i64),
    CompareSet(usize, Vec<u8>, Vec<u8>),
    Delete(usize),
    Append(usize, Vec<u8>),
    Push(usize, Vec<u8>),
    Pop(usize),
    Len(usize),
    List,
    Barrier(usize, usize),
}

const KEYS: [&str; 4] = ["a", "a/b", "a~queue", "п"];

fn act() -> impl Strategy<Value = Act> {
    let key = || 0..KEYS.len();
    let keys = || prop::collection::vec(key(), 0..3);
    // Few values, so that comparisons come out either way; among them are numbers and the greatest.
    let value = || {
        let numbers = ["", "0", "1", "-1", "x", "9223372036854775807"];
        prop::sample::select(numbers.to_vec()).prop_map(|text| text.as_bytes().to_vec())
    };
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Act::Set(key, value)),
        key().prop_map(Act::Get),
        keys().prop_map(Act::Check),
        keys().prop_map(Act::Wait),
        (key(), -2..3_i64).prop_map(|(key, delta)| Act::Add(key, delta)),
        (key(), value(), value()).prop_map(|(key, old, new)| Act::CompareSet(key, old, new)),
        key().prop_map(Act::Delete),
        (key(), value()).prop_map(|(key, value)| Act::Append(key, value)),
        (key(), value()).prop_map(|(key, value)| Act::Push(key, value)),
        key().prop_map(Act::Pop),
        key().prop_map(Act::Len),
        Just(Act::List),
        // Barriers of two at which nobody else comes, so that no round is over.
        (key(), Just(2)).prop_map(|(key, world_size)| Act::Barrier(key, world_size)),
    ]
}

/// What comes of it, in words.
fn outcome(store: &dyn Store, act: &Act) -> String {
    let now = Duration::ZERO;
    let all = |keys: &[usize]| keys.iter().map(|key| KEYS[*key]).collect::<Vec<_>>();
    match act {
        Act::Set(key, value) => format!("{:?}", store.set(KEYS[*key], value)),
        Act::Get(key) => format!("{:?}", store.get(KEYS[*key], now)),
        Act::Check(keys) => format!("{:?}", store.check(&all(keys))),
        Act::Wait(keys) => format!("{:?}", store.wait(&all(keys), now)),
        Act::Add(key, delta) => format!("{:?}", store.add(KEYS[*key], *delta)),
        Act::CompareSet(key, old, new) => format!("{:?}", store.compare_set(KEYS[*key], old, new)),
        Act::Delete(key) => format!("{:?}", store.delete(KEYS[*key])),
        Act::Append(key, value) => format!("{:?}", store.append(KEYS[*key], value)),
        Act::Push(key, value) => format!("{:?}", store.queue_push(KEYS[*key], value)),
        Act::Pop(key) => format!("{:?}", store.queue_pop(KEYS[*key], now)),
        Act::Len(key) => format!("{:?}", store.queue_len(KEYS[*key])),
        Act::List => {
            let mut keys = store.list_keys().unwrap();
            keys.sort_unstable();
            format!("{keys:?} {}", store.num_keys().unwrap())
        }
        Act::Barrier(key, world_size) => format!("{:?}", store.barrier(KEYS[*key], *world_size, now)),
    }
}

proptest! {
    #[test]
    fn a_file_store_does_what_a_memory_store_does(acts in prop::collection::vec(act(), 1..60)) {
        let (file, memory) = (File::new(), Memory::new());
        let (one, other, memory) = (file.rank(), file.rank(), memory.rank());
        for (number, act) in acts.iter().enumerate() {
            let rank = if number % 2 == 0 { &one } else { &other };
            prop_assert_eq!(outcome(&**rank, act), outcome(&*memory, act), "{:?} of {:?}", act, acts);
        }
    }
}

/// What a TCP store makes of what the others report as an error: its protocol does not tell values and queues of one name apart.
/// A queue that is asked for its value has an empty one, and a value that is waited for as a queue is waited for in vain.
fn over_tcp(outcome: String, act: &Act) -> String {
    match act {
        Act::Pop(key) if outcome.contains("it is a value and no queue") => {
            let keys = vec![KEYS[*key].to_owned()];
            format!("{:?}", Err::<(), _>(StoreError::Timeout { keys, waited: Duration::ZERO }))
        }
        Act::Get(_) if outcome.contains("it is a queue") => {
            format!("{:?}", Ok::<_, StoreError>(Vec::<u8>::new()))
        }
        _ => outcome,
    }
}

#[test]
fn a_part_of_a_part_of_a_part_over_tcp_does_what_a_memory_store_does() {
    let (host, cases) = (TcpNested::new(), AtomicUsize::new(0));
    // What fails does so by its acts alone: nothing is kept of it.
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(acts in prop::collection::vec(act(), 1..60))| {
        let part = format!("case/{}", cases.fetch_add(1, Ordering::Relaxed));
        let rank = || TcpNested::below(&part, TcpStore::connect(host.0.local_addr(), LONG).unwrap());
        let (one, other, memory) = (rank(), rank(), Memory::new().rank());
        for (number, act) in acts.iter().enumerate() {
            let rank = if number % 2 == 0 { &one } else { &other };
            let expected = over_tcp(outcome(&*memory, act), act);
            prop_assert_eq!(outcome(&**rank, act), expected, "{:?} of {:?}", act, acts);
        }
    });
}
