//! The lane of a mesh that a group's calls take, with what the group's watchdog follows of them: under one lock, so that a call which is
//! launched is noted in the same turn, and the last one is known without its work object.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};

use meshreduce::{Lane, StreamOrder};

use super::call::{Launched, MeshCall};
use crate::backend::Request;
use crate::brief_lock::{Brief, BriefLock};
use crate::group::{Line, Noted};
use crate::types::Operation;
use crate::work::Work;

/// The lane, until the end, and its calls that are not known to have ended.
#[derive(Debug)]
pub(crate) struct MeshLane {
    both: BriefLock<Both>,
    /// Calls that were launched.
    made: AtomicU64,
}

#[derive(Debug)]
struct Both {
    lane: Option<Lane>,
    line: Line,
}

impl Both {
    /// Before another call is launched, or somebody looks: the last call is held by its work object.
    #[inline]
    fn pin(&mut self) {
        let Self { lane, line } = self;
        line.pin(|| lane.as_ref()?.last_work());
    }

    /// `None`: there are no more calls.
    ///
    /// # Safety
    ///
    /// As for [`crate::Backend::start`].
    #[inline]
    unsafe fn launch(&mut self, call: &MeshCall<'_>, request: &Request) -> Option<Launched> {
        let lane = self.lane.as_mut()?;
        lane.set_deadline(request.deadline);
        let order = StreamOrder::behind_last_call(request.stream);
        // SAFETY: the caller vouches for the tensors and the stream; calls of the lane on different streams are ordered by the event
        // of the last one, and every call has one.
        Some(unsafe { call.launch(lane, order) })
    }
}

/// The calls, for who looks at them.
pub(crate) struct Followed<'a>(Brief<'a, Both>);

impl Deref for Followed<'_> {
    type Target = Line;

    fn deref(&self) -> &Line {
        &self.0.line
    }
}

impl DerefMut for Followed<'_> {
    fn deref_mut(&mut self) -> &mut Line {
        &mut self.0.line
    }
}

impl MeshLane {
    pub(super) fn new(lane: Lane) -> Self {
        let both = BriefLock::new(Both { lane: Some(lane), line: Line::default() });
        Self { both, made: AtomicU64::new(0) }
    }

    /// The calls that were followed here.
    pub(crate) fn line(&self) -> Followed<'_> {
        let mut both = self.both.lock();
        both.pin();
        Followed(both)
    }

    /// How many calls were launched.
    pub(super) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// There are no more calls.
    pub(super) fn close(&self) {
        let lane = {
            let mut both = self.both.lock();
            both.pin();
            both.lane.take()
        };
        drop(lane);
    }

    /// Launches a step of one of the group's calls. `None`: there are no more calls.
    ///
    /// # Safety
    ///
    /// As for [`crate::Backend::start`].
    pub(super) unsafe fn step(&self, call: &MeshCall<'_>, request: &Request) -> Option<Launched> {
        let mut both = self.both.lock();
        both.pin();
        // SAFETY: the caller's promise.
        let launched = unsafe { both.launch(call, request) };
        if let Some(Ok(_)) = launched {
            self.count();
        }
        launched
    }

    /// Launches one of the group's calls, and follows it if it is to. `None`: there are no more calls.
    ///
    /// # Safety
    ///
    /// As for [`crate::Backend::start`].
    #[inline]
    pub(super) unsafe fn make(
        &self,
        call: &MeshCall<'_>,
        operation: Operation,
        request: &Request,
        is_to_follow: bool,
    ) -> Option<Result<Work, meshreduce::Error>> {
        let mut both = self.both.lock();
        let both = &mut *both;
        let entry = request.entry.filter(|_| is_to_follow);
        let end = request.end();
        let is_steady = entry.is_some() && both.line.is_steady_for(end);
        if !is_steady {
            both.pin();
        }
        // SAFETY: the caller's promise.
        let launched = match unsafe { both.launch(call, request) }? {
            Ok(launched) => launched,
            Err(error) => return Some(Err(error)),
        };
        self.count();
        let number = launched.number();
        let mut work = Work::on_mesh(launched);
        if let Some(entry) = entry
            && !work.is_captured()
        {
            work.sequence = Some(request.sequence);
            let noted = Noted { entry, operation, sequence: request.sequence, start: request.start, end };
            match is_steady {
                true => both.line.follow_last(number, &noted, request.names),
                false => {
                    both.pin();
                    both.line.follow(&work, &noted, request.names);
                }
            }
        }
        Some(Ok(work))
    }

    /// One more was launched, by whoever has the lock.
    #[inline]
    fn count(&self) {
        self.made.store(self.made.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}
