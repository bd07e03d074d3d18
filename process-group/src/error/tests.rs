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

#[test]
fn a_timeout_says_who_did_not_come_and_who_is_stopped() {
    let late = |missing: &[usize], stopped: &[usize]| {
        let error = Error::Timeout {
            operation: Operation::AllReduce,
            sequence: 7,
            group: "world".into(),
            waited: Duration::from_secs(3),
            missing: missing.to_vec(),
            stopped: stopped.to_vec(),
            elsewhere: Vec::new(),
            tag: None,
        };
        error
            .to_string()
            .strip_prefix("all_reduce number 7 on group world did not end within 3s")
            .unwrap()
            .to_owned()
    };
    assert_eq!(late(&[], &[]), "");
    assert_eq!(late(&[1], &[]), ": rank 1 did not come to it");
    assert_eq!(late(&[], &[2]), "; the process of rank 2 is stopped");
    assert_eq!(
        late(&[0, 1], &[1, 3]),
        ": ranks 0 and 1 did not come to it; the processes of ranks 1 and 3 are stopped"
    );
}

#[test]
fn times_have_three_digits_behind_the_point_at_most() {
    let said = |nanos: u64| Rounded(Duration::from_nanos(nanos)).to_string();
    assert_eq!([said(4_000_672_991), said(3_000_000_000), said(1_999_999_999)], ["4.001s", "3s", "2s"]);
    assert_eq!([said(20_000_000), said(20_123_456), said(999_999_999)], ["20ms", "20.123ms", "1s"]);
    assert_eq!([said(0), said(7), said(1_234)], ["0ns", "7ns", "1.234µs"]);
    assert_eq!(Rounded(Duration::MAX).to_string(), format!("{:?}", Duration::MAX));
    let late = Error::Timeout {
        operation: Operation::Barrier,
        sequence: 1,
        group: "world".into(),
        waited: Duration::from_nanos(4_000_672_991),
        missing: Vec::new(),
        stopped: Vec::new(),
        elsewhere: Vec::new(),
        tag: None,
    };
    assert_eq!(late.to_string(), "barrier number 1 on group world did not end within 4.001s");
}
