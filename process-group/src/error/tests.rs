//! What errors say.

use super::*;

/// What a report prints: the error, and all that it says comes from.
fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}

#[test]
fn nothing_is_said_twice_in_a_chain_of_sources() {
    let (backend, group): (Arc<str>, Arc<str>) = ("host".into(), "world".into());
    let cause = || Cause::new(std::io::Error::other("a reason that is told once"));
    let store = StoreError::Timeout { keys: vec!["k".to_owned()], waited: Duration::from_secs(1) };
    let config = ConfigError::UnknownBackend { name: "x".to_owned(), known: Vec::new() };
    let errors = [
        Error::Config(config),
        Error::Call {
            operation: Operation::Send,
            group: Arc::clone(&group),
            source: CallError::ToOneself { rank: 1 },
        },
        Error::NotMade { backend: Arc::clone(&backend), group: Arc::clone(&group), source: cause() },
        Error::Store { group: Arc::clone(&group), source: Arc::new(store) },
        Error::Launch(cause()),
        Error::Backend { backend, group, source: cause() },
    ];
    for error in errors {
        let chain = chain(&error);
        for (at, text) in chain.iter().enumerate() {
            assert!(chain[..at].iter().all(|above| !above.contains(text)), "{chain:?}");
        }
    }
}
