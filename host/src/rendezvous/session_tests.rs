//! The agreement without a device: ranks as threads over a file store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::payload::{Malformed, Payload, Reader, Writer};
use super::roster::{Member, Roster};
use super::session::{Joined, Session, Stop};
use super::verdict::{Failure, Step, Verdict};
use crate::error::Error;
use crate::identity::{Host, Process};
use crate::outcome::{DisabledBy, Reason};
use crate::store::{FileStore, Store, StoreError};

#[derive(Debug, PartialEq)]
struct Number(u64);

impl Payload for Number {
    const KIND: u8 = 99;

    fn write(&self, out: &mut Writer) {
        out.u64(self.0);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        from.u64().map(Number)
    }
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);

struct Meeting {
    _folder: tempfile::TempDir,
    store: FileStore,
}

impl Meeting {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::open(folder.path()).unwrap();
        Self { _folder: folder, store }
    }

    /// The keys in the store.
    fn keys(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.store.folder()).unwrap();
        names
            .map(|name| name.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with('.'))
            .collect()
    }

    fn join(&self, rank: usize, world_size: usize, timeout: Duration) -> Result<Session<'_>, Error> {
        match Session::join(&self.store, rank, world_size, timeout)? {
            Joined::Member(session) => Ok(session),
            Joined::Late(_, verdict) => panic!("late: {verdict:?}"),
        }
    }

    /// Runs `rank` as each of `ranks` and returns what they return.
    fn ranks<T: Send>(&self, ranks: &[usize], rank: impl Fn(usize) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let rank = &rank;
            let threads: Vec<_> = ranks.iter().map(|&index| scope.spawn(move || rank(index))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}

fn verdict(stop: Stop) -> Verdict {
    match stop {
        Stop::Verdict(verdict) => verdict,
        other => panic!("{other:?}"),
    }
}

/// A member whose process has ended.
fn dead_member() -> Member {
    let own = Process::current().unwrap();
    Member::new(&Host::current().unwrap(), Process { start_time: own.start_time + 1, ..own })
}

fn live_member() -> Member {
    Member::new(&Host::current().unwrap(), Process::current().unwrap())
}

#[test]
fn everyone_reads_everyone_and_the_last_one_clears_up() {
    let meeting = Meeting::new();
    for _ in 0..3 {
        meeting.ranks(&[0, 1, 2, 3], |rank| {
            let mut session = meeting.join(rank, 4, LONG).unwrap();
            let all = session.exchange(Step::First, &Number(rank as u64 * 10)).unwrap();
            assert_eq!(all, [0, 10, 20, 30].map(Number));
            assert_eq!(session.propose(&Verdict::Ready).unwrap(), Verdict::Ready);
            session.acknowledge(&Verdict::Ready).unwrap();
        });
    }
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn a_rank_that_never_comes_is_named_by_all() {
    let meeting = Meeting::new();
    let start = Instant::now();
    let verdicts = meeting.ranks(&[0, 2, 3], |rank| {
        // Only rank 0 is impatient, and only once the others have come.
        let mut session = meeting.join(rank, 4, if rank == 0 { SHORT } else { 2 * LONG }).unwrap();
        let come = || meeting.keys().iter().filter(|key| key.contains("first")).count();
        while rank == 0 && come() < 2 {
            assert!(start.elapsed() < LONG);
            std::thread::sleep(SHORT / 20);
        }
        let verdict = verdict(session.exchange(Step::First, &Number(0)).unwrap_err());
        session.acknowledge(&verdict).unwrap();
        assert!(session.all_acknowledged(&verdict, LONG).unwrap());
        verdict
    });
    for verdict in &verdicts {
        match verdict {
            Verdict::Failed(Failure::Missing { ranks, step: Step::First, .. }) => assert_eq!(ranks, &[1]),
            other => panic!("{other:?}"),
        }
    }
    assert!(start.elapsed() < 2 * LONG);
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn a_rank_that_died_is_named_long_before_the_timeout() {
    let meeting = Meeting::new();
    let start = Instant::now();
    let verdicts = meeting.ranks(&[0, 1], |rank| {
        let mut session = match Session::join(&meeting.store, rank, 3, LONG).unwrap() {
            Joined::Member(session) => session,
            Joined::Late(_, verdict) => return verdict,
        };
        if rank == 0 {
            // Rank 2 joins and is killed at once.
            let key = "roster";
            loop {
                let found = meeting.store.try_get(key).unwrap().unwrap();
                let with = Roster::from_bytes(&found).unwrap().with(2, dead_member());
                let old = meeting.store.compare_set(key, Some(&found), Some(&with.to_bytes())).unwrap();
                if old.as_deref() == Some(&found) {
                    break;
                }
            }
        }
        match session.exchange(Step::First, &Number(0)) {
            Err(stop) => verdict(stop),
            Ok(_) => panic!("rank 2 was never there"),
        }
    });
    for verdict in verdicts {
        match verdict {
            Verdict::Failed(Failure::Died { rank: 2, pid, step: Step::First }) => {
                assert_eq!(pid, std::process::id());
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(start.elapsed() < LONG / 2);
}

#[test]
fn what_dead_processes_left_behind_is_history() {
    let meeting = Meeting::new();
    let stale = Roster::new(2).with(0, dead_member()).with(1, dead_member());
    let old = format!("{:016x}/first/0", stale.generation);
    meeting.store.set("roster", &stale.to_bytes()).unwrap();
    meeting.store.set(&old, &Number(666).to_bytes()).unwrap();
    meeting.ranks(&[0, 1], |rank| {
        let mut session = meeting.join(rank, 2, LONG).unwrap();
        assert_eq!(session.exchange(Step::First, &Number(7)).unwrap(), [Number(7), Number(7)]);
        session.propose(&Verdict::Ready).unwrap();
        session.acknowledge(&Verdict::Ready).unwrap();
    });
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn a_rank_number_cannot_be_taken_twice() {
    let meeting = Meeting::new();
    meeting.store.set("roster", &Roster::new(2).with(1, live_member()).to_bytes()).unwrap();
    match meeting.join(1, 2, LONG).map(|_| ()) {
        Err(Error::RankTaken { rank: 1, pid }) => assert_eq!(pid, std::process::id()),
        other => panic!("{other:?}"),
    }
    assert!(meeting.join(0, 2, LONG).is_ok());
}

#[test]
fn another_world_size_is_a_different_configuration_for_all() {
    let meeting = Meeting::new();
    let mut first = meeting.join(0, 2, LONG).unwrap();
    let expected =
        Failure::Different { field: "world size".into(), ranks: (0, 3), values: ("2".into(), "4".into()) };
    match meeting.join(3, 4, LONG).map(|_| ()) {
        Err(Error::ConfiguredDifferently { field, ranks: (0, 3), .. }) => assert_eq!(field, "world size"),
        other => panic!("{other:?}"),
    }
    let stop = first.exchange(Step::First, &Number(0)).unwrap_err();
    assert_eq!(verdict(stop), Verdict::Failed(expected));
}

#[test]
fn a_late_rank_learns_why_the_attempt_is_over() {
    let meeting = Meeting::new();
    let disabled = Verdict::NotApplicable(Reason::Disabled { rank: 0, by: DisabledBy::Program });
    let first = meeting.join(0, 2, LONG).unwrap();
    first.propose(&disabled).unwrap();
    first.acknowledge(&disabled).unwrap();
    match Session::join(&meeting.store, 1, 2, LONG).unwrap() {
        Joined::Late(session, verdict) => {
            assert_eq!(verdict, disabled);
            session.acknowledge(&verdict).unwrap();
        }
        Joined::Member(_) => panic!("the attempt was over"),
    }
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn a_disabled_rank_whose_process_has_ended_is_still_heard() {
    let meeting = Meeting::new();
    let roster = Roster::new(2).with(0, dead_member());
    let disabled = Verdict::NotApplicable(Reason::Disabled { rank: 0, by: DisabledBy::Program });
    let key = |name: &str| format!("{:016x}/{name}", roster.generation);
    meeting.store.set("roster", &roster.to_bytes()).unwrap();
    meeting.store.set(&key("verdict"), &disabled.to_bytes()).unwrap();
    meeting.store.set(&key("known/0"), b"known").unwrap();
    match Session::join(&meeting.store, 1, 2, LONG).unwrap() {
        Joined::Late(session, verdict) => {
            assert_eq!(verdict, disabled);
            session.acknowledge(&verdict).unwrap();
        }
        Joined::Member(_) => panic!("the attempt was over"),
    }
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

/// The verdict of rank 0 that rank 1 did not come.
fn without_rank_1(step: Step) -> Verdict {
    Verdict::Failed(Failure::Missing { ranks: vec![1], step, waited: LONG })
}

#[test]
fn a_rank_that_comes_after_the_clearing_up_leaves_nothing_behind() {
    for step in [Step::Second, Step::Acknowledgement] {
        let meeting = Meeting::new();
        let (first, mut late) = (meeting.join(0, 2, LONG).unwrap(), meeting.join(1, 2, LONG).unwrap());
        let missing = without_rank_1(step);
        first.propose(&missing).unwrap();
        first.acknowledge(&missing).unwrap();
        assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
        match late.exchange(step, &Number(1)) {
            Err(Stop::Abandoned(found)) => assert_eq!(found, step),
            other => panic!("{other:?}"),
        }
        assert!(!meeting.keys().is_empty(), "it has set its payload");
        late.forget().unwrap();
        assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
        // Likewise one that fails of itself and tells it.
        late.propose(&Verdict::Failed(Failure::Rank { rank: 1, message: "broken".into() })).unwrap();
        late.acknowledge(&missing).unwrap();
        assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
    }
}

#[test]
fn a_rank_that_was_given_up_does_not_clear_up_before_the_others_have_let_go() {
    let meeting = Meeting::new();
    let (first, late) = (meeting.join(0, 2, LONG).unwrap(), meeting.join(1, 2, LONG).unwrap());
    let missing = without_rank_1(Step::Acknowledgement);
    first.propose(&missing).unwrap();
    late.acknowledge(&missing).unwrap();
    assert!(!late.all_acknowledged(&missing, Duration::ZERO).unwrap(), "rank 0 may have its memory mapped");
    first.acknowledge(&missing).unwrap();
    assert!(late.all_acknowledged(&missing, Duration::ZERO).unwrap());
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn the_first_proposal_stands() {
    let meeting = Meeting::new();
    let (a, b) = (meeting.join(0, 2, LONG).unwrap(), meeting.join(1, 2, LONG).unwrap());
    let failed = Verdict::Failed(Failure::Rank { rank: 1, message: "no driver".into() });
    assert_eq!(b.propose(&failed).unwrap(), failed);
    assert_eq!(a.propose(&Verdict::Ready).unwrap(), failed);
}

#[test]
fn a_rank_whose_attempt_was_replaced_joins_the_new_one() {
    let meeting = Meeting::new();
    let mut session = meeting.join(0, 2, LONG).unwrap();
    meeting.store.set("roster", &Roster::new(2).with(1, live_member()).to_bytes()).unwrap();
    assert!(matches!(session.exchange(Step::First, &Number(0)), Err(Stop::Superseded)));
    session.withdraw().unwrap();
    assert_eq!(meeting.keys(), ["roster"]);
    let mut session = meeting.join(0, 2, SHORT).unwrap();
    assert!(matches!(session.exchange(Step::Second, &Number(0)), Err(Stop::Verdict(_))));
}

/// Spoils what is set under keys that end in `ending`.
struct Spoiler {
    store: Arc<FileStore>,
    ending: &'static str,
}

impl Store for Spoiler {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let cut = if key.ends_with(self.ending) { value.len() / 2 } else { value.len() };
        self.store.set(key, &value[..cut])
    }

    fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.try_get(key)
    }

    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        desired: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.compare_set(key, expected, desired)
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        self.store.add(key, delta)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.store.delete(key)
    }
}

#[test]
fn a_corrupt_payload_names_key_and_rank_on_all_ranks() {
    let meeting = Meeting::new();
    let store = Arc::new(FileStore::open(meeting.store.folder()).unwrap());
    let spoiler = Spoiler { store, ending: "first/1" };
    let verdicts = meeting.ranks(&[0, 1, 2], |rank| {
        let (session, verdict) = match Session::join(&spoiler, rank, 3, LONG).unwrap() {
            Joined::Member(mut session) => {
                let stop = session.exchange(Step::First, &Number(1)).unwrap_err();
                (session, verdict(stop))
            }
            Joined::Late(session, verdict) => (session, verdict),
        };
        session.acknowledge(&verdict).unwrap();
        verdict
    });
    for verdict in verdicts {
        match verdict {
            Verdict::Failed(Failure::Corrupt { key, rank: 1, .. }) => {
                assert!(key.ends_with("first/1"), "{key}")
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}
