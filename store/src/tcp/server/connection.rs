//! A connection: what it sends is served in parts, so that all have their turn.

use std::fmt;
use std::io;
use std::task::Waker;
use std::time::Instant;

use mio::net::TcpStream;

use super::Shared;
use super::buffers::{Buffer, Pace};
use super::serve::{HIGH_WATER, Held, SLICE, Service, Task};
use crate::codec::Malformed;
use crate::tcp::protocol::{Numbering, Opcode, Scanner};

/// How much longer than otherwise a client may take to begin. (Of those that have not, there are never more than a few.)
const SILENCE: u32 = 6;

/// Why a connection has to go.
#[derive(Debug)]
pub(super) enum End {
    Left,
    Broken(io::Error),
    Refused(Malformed),
    TooSlow,
    /// Another one needed its place.
    Displaced,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left => f.write_str("it has left"),
            Self::Broken(error) => write!(f, "its connection broke: {error}"),
            Self::Refused(problem) => write!(f, "refused: {problem}"),
            Self::TooSlow => f.write_str("it kept the server waiting for too long"),
            Self::Displaced => f.write_str("its place was needed"),
        }
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<Malformed> for End {
    fn from(problem: Malformed) -> Self {
        Self::Refused(problem)
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    waker: Waker,
    /// What the system has said since the last time that nothing came or went.
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The system has said that the client says no more. It says so once, maybe together with what it said last.
    pub(super) is_ending: bool,
    /// Whether it stands in the row of those that have a turn.
    pub(super) is_queued: bool,
    validated: bool,
    /// Known from what it begins with.
    numbering: Option<Numbering>,
    opened: Instant,
    input: Buffer,
    scanner: Scanner,
    /// The length of the request in the input's front, once it is whole.
    whole: Option<usize>,
    task: Option<Task>,
    held: Option<Held>,
    output: Buffer,
    reading: Option<Pace>,
    writing: Option<Pace>,
    has_ended: bool,
}

/// Where the turn of a connection has left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It waits for its client.
    Over,
    /// It could go on.
    More,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, waker: Waker, now: Instant) -> Self {
        Self {
            stream,
            waker,
            // What a client begins with is often there already.
            readable: true,
            writable: true,
            is_ending: false,
            is_queued: false,
            validated: false,
            numbering: None,
            opened: now,
            input: Buffer::default(),
            scanner: Scanner::default(),
            whole: None,
            task: None,
            held: None,
            output: Buffer::default(),
            reading: None,
            writing: None,
            has_ended: false,
        }
    }

    /// Whether it has begun as c10d's clients do.
    pub(super) fn is_validated(&self) -> bool {
        self.validated
    }

    /// Memory that its buffers hold.
    pub(super) fn buffered(&self) -> usize {
        self.input.held() + self.output.held()
    }

    /// Whether there is something that its client must not take for ever for.
    pub(super) fn is_timed(&self) -> bool {
        !self.validated || self.reading.is_some() || self.writing.is_some()
    }

    pub(super) fn is_too_slow(&self, shared: &Shared, now: Instant) -> bool {
        let limits = &shared.limits;
        let is_over = |pace: &Option<Pace>| pace.is_some_and(|pace| pace.is_over(limits, now));
        // Clients of torch before 2.5 say nothing at all before their first request.
        let first = if self.input.is_empty() { SILENCE * limits.patience } else { limits.patience };
        (!self.validated && now.duration_since(self.opened) >= first)
            || is_over(&self.reading)
            || is_over(&self.writing)
    }

    /// Reads once, serves a part, and writes what is taken.
    pub(super) fn turn(&mut self, shared: &Shared, scratch: &mut [u8]) -> Result<Turn, End> {
        let may_read = self.whole.is_none() && self.output.len() < HIGH_WATER;
        if self.readable && may_read && !self.has_ended {
            let count = self.input.read_from(&mut self.stream, scratch)?;
            self.has_ended = count == Some(0);
            // Less than there is room for is all that there is: the system will say so when more comes.
            self.is_ending &= count.is_some();
            self.readable = count == Some(scratch.len()) || (self.is_ending && !self.has_ended);
            if let (Some(pace), Some(count)) = (&mut self.reading, count) {
                pace.add(count);
            }
        }
        let goes_on = self.serve(shared)?;
        self.write()?;
        if self.output.len() >= HIGH_WATER {
            // Nothing more is asked of the client before it takes its replies.
            self.reading = None;
            return Ok(Turn::Over);
        }
        let goes_on = goes_on || self.readable;
        if self.has_ended && !goes_on && self.output.is_empty() {
            return Err(End::Left);
        }
        let is_half = !self.input.is_empty() && self.whole.is_none();
        match is_half {
            true => _ = self.reading.get_or_insert_with(|| Pace::new(Instant::now())),
            false => self.reading = None,
        }
        Ok(if goes_on { Turn::More } else { Turn::Over })
    }

    /// Serves requests that are whole; says whether there may be more of them, or of one.
    fn serve(&mut self, shared: &Shared) -> Result<bool, End> {
        let mut table = shared.store.table();
        for _ in 0..SLICE {
            if self.task.is_none()
                && let Some(held) = self.held.take_if(|held| held.is_over(&table))
            {
                drop(held);
                self.output.end().push(crate::tcp::protocol::YES);
            }
            if self.output.len() >= HIGH_WATER {
                break;
            }
            let Some(length) = self.next()? else { return Ok(false) };
            let request = &self.input.bytes()[..length];
            let mut service = Service {
                table: &mut table,
                limits: &shared.limits,
                output: &mut self.output,
                held: &mut self.held,
                waker: &self.waker,
            };
            self.task = match self.task.take() {
                Some(task) => service.go_on(task, request)?,
                None => service.serve(request, self.numbering.unwrap_or_default())?,
            };
            if self.task.is_some() {
                return Ok(true);
            }
            if !self.validated {
                self.validated = true;
                // Before it is answered: a host that its client knows must wait for that client.
                *shared.clients() += 1;
            }
            self.whole = None;
            self.input.consume(length);
            self.reading = None;
        }
        Ok(true)
    }

    /// The length of the request in front, if it is all there.
    fn next(&mut self) -> Result<Option<usize>, End> {
        if self.whole.is_none() {
            let input = self.input.bytes();
            let Some(first) = input.first() else { return Ok(None) };
            let numbering = match self.numbering {
                Some(numbering) => numbering,
                None => {
                    let Some(numbering) = Numbering::of_client(input) else { return Ok(None) };
                    self.scanner = Scanner::new(numbering);
                    *self.numbering.insert(numbering)
                }
            };
            if numbering == Numbering::Validated && (*first == Opcode::Validate as u8) == self.validated {
                return Err(Malformed::wrong("a client says its greeting once").into());
            }
            self.whole = self.scanner.scan(input)?;
        }
        Ok(self.whole)
    }

    fn write(&mut self) -> Result<(), End> {
        if self.output.is_empty() {
            return Ok(());
        }
        if self.writable {
            let (written, all) = self.output.write_to(&mut self.stream)?;
            self.writable = all;
            if let Some(pace) = &mut self.writing {
                pace.add(written);
            }
        }
        match self.output.is_empty() {
            true => self.writing = None,
            false => _ = self.writing.get_or_insert_with(|| Pace::new(Instant::now())),
        }
        Ok(())
    }

    /// Takes away what it waits for.
    pub(super) fn leave(self, shared: &Shared) {
        if self.held.is_none() && self.task.is_none() {
            return;
        }
        let mut table = shared.store.table();
        self.held.into_iter().for_each(|held| held.cancel(&mut table));
        self.task.into_iter().for_each(|task| task.cancel(&mut table));
    }
}
