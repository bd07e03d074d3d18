//! Work: a call that was made.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce::RawStream;
use meshreduce_store::clock::Pause;

use crate::error::Error;
use crate::group::{Site, WorkFuture};

/// What came of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Of a receive: the rank that sent.
    pub source: Option<usize>,
}

impl Outcome {
    /// Of a receive from `rank`.
    pub fn from_rank(rank: usize) -> Self {
        Self { source: Some(rank) }
    }
}

/// A backend's side of a call that goes on: how to see its end.
///
/// What it answers is final: once a call has ended, well or not, it stays so.
pub trait Completion: Send + Sync + fmt::Debug {
    /// Whether the call has ended, without waiting; `None`: it goes on.
    ///
    /// # Errors
    ///
    /// How it failed.
    fn poll(&self) -> Result<Option<Outcome>, Error>;

    /// Waits at most until `end` (for ever if there is none) for the end of the call; `None`: it goes on.
    ///
    /// # Errors
    ///
    /// How it failed.
    fn wait(&self, end: Option<Instant>) -> Result<Option<Outcome>, Error>;

    /// Makes what is enqueued on `stream` from now on wait for the call. A backend of host memory waits itself.
    ///
    /// # Safety
    ///
    /// `stream` is a stream of the device's primary context.
    ///
    /// # Errors
    ///
    /// How it failed, or what the driver refuses.
    unsafe fn wait_on(&self, stream: RawStream) -> Result<(), Error>;

    /// Whoever made the call has heard how it failed, by waiting or by asking. A backend whose shutdown tells of calls that failed while
    /// nobody looked need not tell of this one.
    fn heard(&self) {}

    /// Whether the call was captured into a graph: nobody looks for its end then.
    fn is_captured(&self) -> bool {
        false
    }
}

/// How a call is going on, and the name of the backend that makes it.
#[derive(Clone)]
pub(crate) enum Progress {
    /// It has ended.
    Done(Outcome, Arc<str>),
    /// The mesh's kernels see to it. Its label is [`Names`]: what is cloned and dropped for each costs a call as much as its checks do.
    Mesh(meshreduce::Work),
    /// Something else does.
    Other(Arc<dyn Completion>, Arc<str>),
}

/// What a call on the mesh is told by: the label of the lane that it was made on.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) backend: Arc<str>,
    pub(crate) group: Arc<str>,
}

/// A call that was made on a [`crate::ProcessGroup`].
///
/// It may be dropped without being waited for; the call goes on. A call on device memory is ordered as what else is enqueued on
/// its stream. It is a future too (`work.await`), woken by a thread of the group's.
#[derive(Clone)]
pub struct Work {
    pub(crate) progress: Progress,
    /// The number that its group has given it. A backend that has noted the call for the group's watchdog has set it.
    pub(crate) sequence: Option<u64>,
    /// Where it was made, of a call that goes on.
    pub(crate) site: Option<Site>,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.progress {
            Progress::Done(outcome, _) => format!("{outcome:?}"),
            Progress::Mesh(..) => "on the mesh".to_owned(),
            Progress::Other(completion, _) => format!("{completion:?}"),
        };
        f.debug_struct("Work").field("backend", self.backend()).field("state", &state).finish_non_exhaustive()
    }
}

impl Work {
    /// Of a call that has ended, made by `backend`.
    #[inline]
    pub fn done(backend: &Arc<str>, outcome: Outcome) -> Self {
        Self { progress: Progress::Done(outcome, Arc::clone(backend)), sequence: None, site: None }
    }

    /// Of a call that goes on.
    pub fn pending(backend: &Arc<str>, completion: Arc<dyn Completion>) -> Self {
        Self { progress: Progress::Other(completion, Arc::clone(backend)), sequence: None, site: None }
    }

    /// Of a call on a lane whose label is [`Names`].
    #[inline]
    pub(crate) fn on_mesh(work: meshreduce::Work) -> Self {
        Self { progress: Progress::Mesh(work), sequence: None, site: None }
    }

    /// The backend that makes the call: where the group's has another one behind it, that one if it took the call.
    #[inline]
    pub fn backend(&self) -> &Arc<str> {
        match &self.progress {
            Progress::Done(_, backend) | Progress::Other(_, backend) => backend,
            Progress::Mesh(work) => &names(work).backend,
        }
    }

    /// The call's sequence number on its group: among collectives, or among sends and receives.
    pub fn sequence(&self) -> Option<u64> {
        match &self.progress {
            // What its backend has noted is told when the group has it.
            Progress::Mesh(_) if self.site.is_none() => None,
            _ => self.sequence,
        }
    }

    /// Whether the call has ended, without waiting.
    ///
    /// # Errors
    ///
    /// How it failed; why the group is over, if it is.
    pub fn is_completed(&self) -> Result<bool, Error> {
        self.result().map(|outcome| outcome.is_some())
    }

    /// What came of the call, if it has ended; does not wait.
    ///
    /// # Errors
    ///
    /// How it failed; why the group is over, if it is.
    pub fn result(&self) -> Result<Option<Outcome>, Error> {
        let looked = self.look();
        match &looked {
            Ok(Some(_)) => self.note_end(),
            Ok(None) => {}
            Err(_) => self.heard(),
        }
        looked
    }

    /// Whoever made the call knows that it has ended well: so does the group's flight recorder, and so do its completion hooks, before the
    /// program goes on.
    fn note_end(&self) {
        if let Some(site) = &self.site {
            site.group.note_ends();
        }
    }

    /// [`Work::note_end`], if it has ended well.
    pub(crate) fn note(&self, ended: &Result<Outcome, Error>) {
        if ended.is_ok() {
            self.note_end();
        }
    }

    /// What has come of the call so far, for the group's own threads: whoever made it has not heard of it.
    pub(crate) fn look(&self) -> Result<Option<Outcome>, Error> {
        if let Progress::Done(outcome, _) = &self.progress {
            return Ok(Some(*outcome));
        }
        self.own_process()?;
        let ended = match &self.progress {
            Progress::Done(outcome, _) => return Ok(Some(*outcome)),
            Progress::Mesh(work) => work
                .is_finished()
                .map(|is| is.then(Outcome::default))
                .map_err(|error| self.of_mesh(error, names(work))),
            Progress::Other(completion, _) => completion.poll(),
        };
        self.judge(ended)
    }

    /// Whether it has ended, and well, for those who may hold a lock: nobody is told of a failure. `None`: it goes on.
    pub(crate) fn peek(&self) -> Option<bool> {
        let ended = match &self.progress {
            Progress::Done(..) => Ok(true),
            _ if self.own_process().is_err() => Err(()),
            Progress::Mesh(work) => work.is_finished().map_err(|_| ()),
            Progress::Other(completion, _) => {
                completion.poll().map(|outcome| outcome.is_some()).map_err(|_| ())
            }
        };
        match ended {
            Ok(false) => None,
            Ok(true) => Some(true),
            Err(()) => Some(false),
        }
    }

    /// Whether it was captured into a graph, and has no end that could be seen.
    pub(crate) fn is_captured(&self) -> bool {
        match &self.progress {
            Progress::Done(..) => false,
            Progress::Mesh(work) => work.is_captured(),
            Progress::Other(completion, _) => completion.is_captured(),
        }
    }

    fn heard(&self) {
        if let Progress::Other(completion, _) = &self.progress {
            completion.heard();
        }
    }

    /// Whether it has failed, and its backend may not say so.
    pub(crate) fn has_failed_alone(&self) -> bool {
        match &self.progress {
            // What fails on the mesh ends the mesh.
            Progress::Done(..) | Progress::Mesh(..) => false,
            Progress::Other(completion, _) => completion.poll().is_err(),
        }
    }

    /// Waits at most `timeout` for the end of the call; without one as long as it takes, which is bounded by the call's deadline.
    /// A wait that ends early changes nothing: the call goes on.
    ///
    /// # Errors
    ///
    /// [`Error::StillRunning`]; how the call failed; why the group is over, if it is.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Outcome, Error> {
        let ended = self.wait_for(timeout);
        self.note(&ended);
        ended
    }

    fn wait_for(&self, timeout: Option<Duration>) -> Result<Outcome, Error> {
        let Some(timeout) = timeout else { return self.finish() };
        if let Progress::Done(outcome, _) = &self.progress {
            return Ok(*outcome);
        }
        self.own_process()?;
        let _span = self.span().entered();
        let end = Instant::now().checked_add(timeout);
        let ended = match &self.progress {
            Progress::Done(outcome, _) => return Ok(*outcome),
            Progress::Other(completion, _) => completion.wait(end),
            Progress::Mesh(..) => {
                let mut pause = Pause::new(timeout);
                loop {
                    match self.look() {
                        Ok(None) if pause.again() => {}
                        ended => break ended,
                    }
                }
            }
        };
        let ended = self.judge(ended).inspect_err(|_| self.heard());
        ended?.ok_or_else(|| self.still_running(timeout))
    }

    /// Waits for the end of the call.
    pub(crate) fn finish(&self) -> Result<Outcome, Error> {
        if let Progress::Done(outcome, _) = &self.progress {
            return Ok(*outcome);
        }
        self.own_process()?;
        let _span = self.span().entered();
        let ended = match &self.progress {
            Progress::Done(outcome, _) => return Ok(*outcome),
            Progress::Mesh(work) => work
                .synchronize()
                .map(|()| Some(Outcome::default()))
                .map_err(|error| self.of_mesh(error, names(work))),
            Progress::Other(completion, _) => loop {
                match completion.wait(None) {
                    Ok(None) => {}
                    ended => break ended,
                }
            },
        };
        self.judge(ended).inspect_err(|_| self.heard()).map(Option::unwrap_or_default)
    }

    /// Makes what is enqueued on `stream` from now on wait for the call. The host does not wait, unless the call is on host memory.
    ///
    /// # Safety
    ///
    /// `stream` is a stream of the primary context of the group's CUDA device.
    ///
    /// # Errors
    ///
    /// How the call failed, or what the driver refuses.
    pub unsafe fn wait_on(&self, stream: impl Into<RawStream>) -> Result<(), Error> {
        let stream = stream.into();
        self.own_process()?;
        match &self.progress {
            Progress::Done(..) => Ok(()),
            Progress::Mesh(work) => {
                // SAFETY: the caller vouches for the stream.
                unsafe { work.wait_raw(stream) }.map_err(|error| self.of_mesh(error, names(work)))
            }
            // SAFETY: the caller vouches for the stream.
            Progress::Other(completion, _) => unsafe { completion.wait_on(stream) },
        }
    }

    /// In a forked child there is no call.
    fn own_process(&self) -> Result<(), Error> {
        self.site.as_ref().map_or(Ok(()), |site| site.group.own_process())
    }

    /// The wait for a call, for who traces.
    fn span(&self) -> tracing::Span {
        let Some(Site { group, operation }) = &self.site else { return tracing::Span::none() };
        tracing::debug_span!(
            "wait",
            group = &*group.info.name,
            rank = group.info.rank,
            operation = operation.name(),
            sequence = self.sequence
        )
    }

    /// Where the group or its backend is over, the cause says more than what the end has made of one call.
    fn judge(&self, ended: Result<Option<Outcome>, Error>) -> Result<Option<Outcome>, Error> {
        ended.map_err(|error| {
            let Some(site) = &self.site else { return error };
            // What the mesh says otherwise of a call does not end it: that the call was captured, for instance.
            let is_over =
                matches!(self.progress, Progress::Mesh(..)) && !matches!(error, Error::Backend { .. });
            match is_over || crate::mesh::failure::was_ended_here(&error) {
                true => site.group.failed(site.group.end_mesh(error)),
                false => site.group.failed(error),
            }
        })
    }

    fn of_mesh(&self, error: meshreduce::Error, Names { backend, group }: &Names) -> Error {
        let call = self.site.as_ref().map(|site| site.operation).zip(self.sequence);
        crate::mesh::failure::convert(error, backend, group, &[], call)
    }

    fn still_running(&self, waited: Duration) -> Error {
        let call = match (&self.site, self.sequence) {
            (Some(Site { group, operation }), Some(sequence)) => {
                format!("{operation} number {sequence} on group {}", group.info.name)
            }
            _ => format!("a call on backend {}", self.backend()),
        };
        Error::StillRunning { call, waited }
    }
}

/// What a call on the mesh is told by.
fn names(work: &meshreduce::Work) -> &Names {
    work.label().expect("a backend labels the lane of its mesh before any call")
}

impl IntoFuture for Work {
    type Output = Result<Outcome, Error>;
    type IntoFuture = WorkFuture;

    fn into_future(self) -> WorkFuture {
        WorkFuture::new(self)
    }
}
