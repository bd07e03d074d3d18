//! The calls of a backend whose ends the watchdog looks for.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use super::watchdog::TICK;
use crate::call::Peers;
use crate::flight_recorder::EntryId;
use crate::types::Operation;
use crate::work::{Outcome, Progress, Work};

/// What is known of a call that goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noted {
    pub(crate) entry: EntryId,
    pub(crate) operation: Operation,
    pub(crate) sequence: u64,
    pub(crate) start: Instant,
    /// When it must have ended; `None`: never.
    pub(crate) end: Option<Instant>,
}

/// A call whose end the watchdog looks for.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) work: Work,
    pub(super) noted: Noted,
}

impl Deref for Watched {
    type Target = Noted;

    fn deref(&self) -> &Noted {
        &self.noted
    }
}

/// A send or receive, or a batch of them.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) call: Watched,
    /// The other ranks, as far as they are known.
    pub(super) peers: Peers,
    /// Of one that is no batch.
    pub(super) tag: Option<u32>,
}

impl Noted {
    fn is_late(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() > end)
    }
}

/// As many calls of a line are looked at one by one. Backends keep an event for each that is held: hundreds would not do.
const HELD: usize = 4;

/// Calls with consecutive numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// What they do; `None`: different things.
    pub(super) operation: Option<Operation>,
    pub(super) first: u64,
    pub(super) last: u64,
}

/// How to see the end of a call that is held. (One on the mesh by itself: calls that follow one another there are replaced here by one
/// another, and each is on the way of an engine.)
#[derive(Debug)]
enum EndSource {
    Mesh(meshreduce::Work),
    /// It is the call of this number on the mesh's lane, which is the lane's last: who looks at the line asks the lane first for its
    /// work object ([`Line::pin`]).
    LastOfLane(u64),
    Other(Work),
}

/// A call that is held, and what it stands for; `None`: for calls without an end alone.
#[derive(Debug)]
struct Held {
    sight: EndSource,
    noted: Noted,
    stands_for: Option<Ends>,
}

/// When the first of the calls must have ended that one stands for, and when one at the latest that may stand for them.
#[derive(Clone, Copy, Debug)]
struct Ends {
    first: Instant,
    latest: Instant,
}

impl Ends {
    #[inline]
    fn contains(&self, end: Option<Instant>) -> bool {
        end.is_some_and(|end| self.first <= end && end <= self.latest)
    }
}

impl Held {
    /// Whether `call`, which follows it, may stand for it: one that is late no later than those of which nothing else is held, by a
    /// tick. A failure of which nobody else may hear is kept.
    fn may_be_replaced_by(&self, call: &Noted) -> bool {
        let is_in_time = match (call.end, self.stands_for) {
            (None, stands_for) => stands_for.is_none(),
            (Some(_), None) => true,
            (Some(end), Some(Ends { latest, .. })) => end <= latest,
        };
        let has_failed_alone = || match &self.sight {
            // What fails on the mesh ends the mesh.
            EndSource::Mesh(_) | EndSource::LastOfLane(_) => false,
            EndSource::Other(work) => work.has_failed_alone(),
        };
        is_in_time && !has_failed_alone()
    }

    fn watched(&self) -> Watched {
        let work = match &self.sight {
            EndSource::Mesh(mesh) => Work::on_mesh(mesh.clone()),
            EndSource::LastOfLane(_) => unreachable!("whoever looks at a line has asked the lane before"),
            EndSource::Other(work) => work.clone(),
        };
        Watched { work, noted: self.noted }
    }
}

/// Collectives that end in the order in which they are made.
///
/// Since they end in order, one that has ended stands for all before it, and so a few are held, however many are made: the first
/// ones, and behind them the last one of each tick's worth of deadlines.
#[derive(Debug, Default)]
pub(crate) struct Line {
    held: VecDeque<Held>,
    /// All that are not known to have ended.
    runs: VecDeque<Run>,
    /// Who makes them, once there has been one.
    backend: Option<Arc<str>>,
    /// The time of one is up: the first that had not ended then, since when that is known, and the ranks that had not come to it.
    pub(super) late: Option<(u64, Instant, Vec<usize>)>,
}

impl Line {
    /// `names`: somebody wants to hear of each call what it was.
    pub(crate) fn follow(&mut self, work: &Work, call: &Noted, names: bool) {
        if self.backend.is_none() {
            self.backend = Some(Arc::clone(work.backend()));
        }
        self.count(call, names);
        match (&work.progress, self.steady_for(call.end)) {
            // On the way of each call of an engine, and so without anything that can be avoided.
            (Progress::Mesh(mesh), Some(Held { sight: EndSource::Mesh(its), noted, .. })) => {
                its.clone_from(mesh);
                *noted = *call;
            }
            _ => self.hold(work, call),
        }
    }

    /// Notes that a call is among those that are not known to have ended.
    #[inline]
    fn count(&mut self, call: &Noted, names: bool) {
        let operation = Some(call.operation);
        match self.runs.back_mut() {
            Some(run) if run.last + 1 == call.sequence && (run.operation == operation || !names) => {
                run.last = call.sequence;
                if run.operation != operation {
                    run.operation = None;
                }
            }
            _ => self.runs.push_back(Run { operation, first: call.sequence, last: call.sequence }),
        }
    }

    /// The last that is held, if a call on the mesh that must have ended then takes its place without more ado.
    #[inline]
    fn steady_for(&mut self, end: Option<Instant>) -> Option<&mut Held> {
        let is_steady = self.held.len() >= HELD;
        self.held.back_mut().filter(|last| {
            let is_on_mesh = matches!(last.sight, EndSource::Mesh(_) | EndSource::LastOfLane(_));
            is_steady && is_on_mesh && last.stands_for.is_some_and(|stands_for| stands_for.contains(end))
        })
    }

    /// Whether [`Line::follow_last`] may follow a call that must have ended then. Asked before it is made, when whoever does not use that
    /// can still ask the lane for the one before.
    #[inline]
    pub(crate) fn is_steady_for(&mut self, end: Option<Instant>) -> bool {
        self.steady_for(end).is_some()
    }

    /// [`Line::follow`] of a call that is the last one of its lane, with this number there, and as long as it is, without its work object:
    /// what is cloned and dropped for each costs a call as much as its checks do.
    #[inline]
    pub(crate) fn follow_last(&mut self, number: u64, call: &Noted, names: bool) {
        self.count(call, names);
        if let Some(last) = self.held.back_mut() {
            last.sight = EndSource::LastOfLane(number);
            last.noted = *call;
        }
    }

    /// Before the lane's last call is another one, and before anybody looks: holds that call by its work object, as `last` gives it.
    pub(crate) fn pin(&mut self, last: impl FnOnce() -> Option<meshreduce::Work>) {
        let Some(held) = self.held.back_mut() else { return };
        let EndSource::LastOfLane(number) = held.sight else { return };
        held.sight = match (last().filter(|work| work.number() == number), &self.backend) {
            (Some(work), _) => EndSource::Mesh(work),
            // A call was launched behind it and refused, because no event could be put behind that: whoever refused it has waited until
            // nothing ran any more. What of it failed the mesh says itself.
            (None, Some(backend)) => EndSource::Other(Work::done(backend, Outcome::default())),
            (None, None) => return,
        };
    }

    fn hold(&mut self, work: &Work, call: &Noted) {
        let mut first_end = call.end;
        while self.held.len() >= HELD
            && let Some(last) = self.held.back()
            && last.may_be_replaced_by(call)
        {
            if let Some(Ends { first, .. }) = last.stands_for {
                first_end = Some(first_end.map_or(first, |end| end.min(first)));
            }
            self.held.pop_back();
        }
        let sight = match &work.progress {
            Progress::Mesh(mesh) => EndSource::Mesh(mesh.clone()),
            _ => EndSource::Other(work.clone()),
        };
        let stands_for =
            first_end.map(|first| Ends { first, latest: first.checked_add(TICK).unwrap_or(first) });
        self.held.push_back(Held { sight, noted: *call, stands_for });
    }

    /// The first that is held.
    pub(super) fn first(&self) -> Option<Watched> {
        self.held.front().map(Held::watched)
    }

    /// Who makes them, once there has been one.
    pub(super) fn backend(&self) -> Option<&Arc<str>> {
        self.backend.as_ref()
    }

    /// The last that was made.
    pub(super) fn last(&self) -> Option<&Noted> {
        self.held.back().map(|held| &held.noted)
    }

    /// Whether the time of one is up.
    pub(super) fn is_late(&self) -> bool {
        self.held.iter().any(|held| held.noted.is_late())
    }

    /// Those that are held and whose time is up.
    pub(super) fn late_ones(&self) -> Vec<Watched> {
        let late = self.held.iter().filter(|held| held.noted.is_late());
        late.map(Held::watched).collect()
    }

    /// The number of the first one that is not known to have ended.
    pub(super) fn first_number(&self) -> Option<u64> {
        self.runs.front().map(|run| run.first)
    }

    /// All up to and with this one have ended; gives those of which that was not known.
    pub(super) fn take_through(&mut self, sequence: u64) -> Vec<Run> {
        let mut taken = Vec::new();
        self.move_through(sequence, &mut taken);
        taken
    }

    /// The same, to the end of `taken`.
    pub(super) fn move_through(&mut self, sequence: u64, taken: &mut Vec<Run>) {
        while self.held.front().is_some_and(|first| first.noted.sequence <= sequence) {
            self.held.pop_front();
        }
        while let Some(run) = self.runs.front_mut().filter(|run| run.first <= sequence) {
            let last = run.last.min(sequence);
            taken.push(Run { last, ..*run });
            if last < run.last {
                run.first = last + 1;
                break;
            }
            self.runs.pop_front();
        }
    }

    /// This one has not ended well, and says nothing of others.
    pub(super) fn forget(&mut self, sequence: u64) {
        self.held.retain(|held| held.noted.sequence != sequence);
        let Some(at) = self.runs.iter().position(|run| (run.first..=run.last).contains(&sequence)) else {
            return;
        };
        let run = self.runs[at];
        let parts = [Run { last: sequence - 1, ..run }, Run { first: sequence + 1, ..run }];
        self.runs.remove(at);
        for part in parts.into_iter().rev().filter(|part| part.first <= part.last) {
            self.runs.insert(at, part);
        }
    }
}

/// Calls that have ended, between being looked at and being recorded. The room stays: a steady call allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) runs: Vec<Run>,
    pub(super) messages: Vec<Message>,
}

/// What the watchdog follows of a backend.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Collectives: the backend's own, and those that it has left to one behind it. Calls of two backends on two streams are not
    /// ordered.
    pub(super) lines: [Line; 2],
    /// Sends and receives, which end in any order.
    pub(super) messages: Vec<Message>,
    /// A call was late, and everything pending was ended for that.
    pub(super) has_expired: bool,
    /// The backend was seen to be over.
    pub(super) has_failed: bool,
}

#[cfg(test)]
mod tests {
    use std::panic::Location;
    use std::time::Duration;

    use super::*;
    use crate::Call;
    use crate::error::Error;
    use crate::flight_recorder::{Begun, FlightRecorder};
    use crate::group::tests::Pending;
    use crate::types::Device;

    fn call(sequence: u64, operation: Operation, start: Instant, limit: Option<Duration>) -> Watched {
        let recorder = FlightRecorder::new(0, 0);
        let backend: Arc<str> = "host".into();
        let entry = recorder.begin(&Begun {
            group: recorder.add_group(&"0".into(), "", &Arc::from([0])),
            backend: &backend,
            call: &Call::Barrier { device: Device::Cpu },
            collective_sequence: sequence,
            p2p_sequence: 0,
            created: start,
            deadline: limit,
            location: Location::caller(),
        });
        let work = Work::done(&backend, Outcome::default());
        let end = limit.map(|limit| start + limit);
        Watched { work, noted: Noted { entry, operation, sequence, start, end } }
    }

    fn follow(line: &mut Line, call: &Watched, names: bool) {
        line.follow(&call.work, &call.noted, names);
    }

    fn numbers(line: &Line) -> Vec<u64> {
        line.held.iter().map(|held| held.noted.sequence).collect()
    }

    #[test]
    fn however_many_calls_are_made_at_once_the_first_ones_and_the_last_are_held() {
        let (mut line, now) = (Line::default(), Instant::now());
        let limit = Some(Duration::from_secs(60));
        (1..=1000).for_each(|sequence| {
            follow(&mut line, &call(sequence, Operation::Barrier, now, limit), true);
        });
        assert_eq!(numbers(&line), [1, 2, 3, 1000]);
        assert_eq!(line.runs.len(), 1);
    }

    #[test]
    fn no_deadline_is_lost_behind_calls_with_longer_ones() {
        let (mut line, now) = (Line::default(), Instant::now());
        let of = |seconds: u64| Some(Duration::from_secs(seconds));
        for (sequence, limit) in [(1, None), (2, None), (3, None), (4, of(1)), (5, of(60)), (6, None)] {
            follow(&mut line, &call(sequence, Operation::Barrier, now, limit), true);
        }
        assert_eq!(numbers(&line), [1, 2, 3, 4, 5, 6]);
        // What must end sooner stands for those before it.
        follow(&mut line, &call(7, Operation::Barrier, now, of(1)), true);
        assert_eq!(numbers(&line), [1, 2, 3, 7]);
        // Calls that are made one after the other for long: one for each tick.
        let mut line = Line::default();
        (1..=1000_u32).for_each(|sequence| {
            let start = now + TICK * sequence / 100;
            follow(&mut line, &call(sequence.into(), Operation::Barrier, start, of(60)), true);
        });
        assert!((10..20).contains(&line.held.len()), "{:?}", numbers(&line));
    }

    #[test]
    fn a_call_that_has_failed_is_held_until_somebody_has_heard_of_it() {
        let (mut line, now) = (Line::default(), Instant::now());
        let of = |sequence| call(sequence, Operation::Barrier, now, None);
        (1..=5).for_each(|sequence| follow(&mut line, &of(sequence), true));
        assert_eq!(numbers(&line), [1, 2, 3, 5]);
        let failed = Arc::new(Pending::default());
        failed.end(Err(Error::Default("on purpose")));
        line.follow(&Work::pending(&"host".into(), failed), &of(6).noted, true);
        (7..=9).for_each(|sequence| follow(&mut line, &of(sequence), true));
        assert_eq!(numbers(&line), [1, 2, 3, 6, 9]);
    }

    #[test]
    fn what_has_ended_is_told_by_operation_and_number_and_what_failed_is_not() {
        let (mut line, now) = (Line::default(), Instant::now());
        let operations = [Operation::Barrier, Operation::Barrier, Operation::AllReduce, Operation::Barrier];
        for (sequence, operation) in (1..).zip(operations) {
            follow(&mut line, &call(sequence, operation, now, None), true);
        }
        line.forget(2);
        assert_eq!((line.first_number(), numbers(&line)), (Some(1), vec![1, 3, 4]));
        let run = |operation, number| Run { operation: Some(operation), first: number, last: number };
        assert_eq!(line.take_through(3), [run(Operation::Barrier, 1), run(Operation::AllReduce, 3)]);
        assert_eq!((line.first_number(), numbers(&line)), (Some(4), vec![4]));
        // Where nobody asks for operations, calls of all kinds are one run.
        let mut line = Line::default();
        for (sequence, operation) in (1..).zip(operations) {
            follow(&mut line, &call(sequence, operation, now, None), false);
        }
        assert_eq!(line.take_through(4), [Run { operation: None, first: 1, last: 4 }]);
    }
}
