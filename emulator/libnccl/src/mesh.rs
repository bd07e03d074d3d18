//! The connections of a communicator's rank to all others, and the thread that reads and writes them.
//!
//! Whoever sends puts frames into a queue and whoever receives takes them out of one, so that everything moves at the
//! same time and nobody waits in a ring. A queue of what has come is bounded: beyond that its socket is not read, and
//! the sender, who waits until its frames are with the operating system, waits for the receiver.
//!
//! A frame says what call it belongs to. It is taken only by the same call with a place for exactly its bytes.
//!
//! A rank that ends its part says goodbye. A connection that ends without that is a rank that died or aborted: from
//! then on every operation fails with `ncclRemoteError`.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::call::Call;
use crate::failure::{NcclError, Result};
use crate::listener::GiveUp;

const DATA: u8 = 1;
const CONTROL: u8 = 2;
const GOODBYE: u8 = 3;
/// Kind, call, step, length.
const HEADER: usize = 1 + Call::BYTES + 4 + 4;
/// The most bytes of data in a frame.
const LARGEST: usize = 1 << 20;
/// A socket is not read while so many bytes of its rank's are waiting to be taken.
const FULL: usize = 4 << 20;

/// A rank's connections.
pub(crate) struct Mesh {
    rank: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// Makes the thread look at the state.
    wake: OwnedFd,
}

struct State {
    links: Vec<Link>,
    /// Why operations fail, from the first failure on.
    failure: Option<NcclError>,
    /// Operations fail at once. Otherwise what has come already still counts.
    stopped: bool,
    /// Goodbye has been said.
    closing: bool,
    /// The thread is to end at once.
    aborted: bool,
}

/// The connection to one other rank.
struct Link {
    inbox: VecDeque<Frame>,
    waiting: usize,
    control: Vec<Vec<u8>>,
    outbox: VecDeque<Vec<u8>>,
    /// Bytes of the first of them that are written.
    written: usize,
    status: Status,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Open,
    /// The other rank has said goodbye.
    Left,
    /// The connection has ended.
    Gone,
}

struct Frame {
    call: Call,
    step: u32,
    bytes: Vec<u8>,
}

impl Mesh {
    /// Takes over the sockets, by rank, none for the rank itself.
    pub(crate) fn start(rank: usize, sockets: Vec<Option<TcpStream>>) -> Result<Arc<Self>> {
        let links = sockets.iter().map(|socket| Link {
            inbox: VecDeque::new(),
            waiting: 0,
            control: Vec::new(),
            outbox: VecDeque::new(),
            written: 0,
            status: if socket.is_some() { Status::Open } else { Status::Gone },
        });
        let state =
            State { links: links.collect(), failure: None, stopped: false, closing: false, aborted: false };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = wake.map_err(|error| NcclError::system("eventfd", &error))?;
        let mesh = Arc::new(Self { rank, state: Mutex::new(state), changed: Condvar::new(), wake });
        let shared = Arc::clone(&mesh);
        std::thread::Builder::new()
            .name(format!("nccl rank {rank}"))
            .spawn(move || serve(&shared, sockets))
            .map_err(|error| NcclError::system("starting a thread", &error))?;
        Ok(mesh)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // A full counter wakes as well as a greater one.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Why operations fail, if they do.
    pub(crate) fn failure(&self) -> Option<NcclError> {
        self.lock().failure.clone()
    }

    /// Makes pending and later operations fail; the first failure stays.
    pub(crate) fn fail(&self, failure: NcclError) {
        let mut state = self.lock();
        state.failure.get_or_insert(failure);
        state.stopped = true;
        drop(state);
        self.changed.notify_all();
    }

    /// Ends pending operations and all connections, without a goodbye.
    pub(crate) fn abort(&self) {
        let mut state = self.lock();
        state.failure = Some(NcclError::usage("the communicator was aborted"));
        state.stopped = true;
        state.aborted = true;
        drop(state);
        self.changed.notify_all();
        self.wake();
    }

    /// Says goodbye, and waits until it is with the operating system, because the process may end then. The thread
    /// ends when all others have said it too, or are gone.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        if !state.closing {
            state.closing = true;
            let goodbye = frame(GOODBYE, &Call::NONE, 0, &[]);
            let reachable = state.links.iter_mut().filter(|link| link.status != Status::Gone);
            reachable.for_each(|link| link.outbox.push_back(goodbye.clone()));
        }
        self.wake();
        // After a failure nobody is to be waited for any more.
        while state.failure.is_none() && state.links.iter().any(|link| !link.outbox.is_empty()) {
            state = self.wait(state);
        }
    }

    /// Puts data for another rank into its queue.
    pub(crate) fn send(&self, to: usize, call: &Call, step: u32, bytes: &[u8]) {
        let frames = bytes.chunks(LARGEST).map(|part| frame(DATA, call, step, part));
        self.push(to, frames);
    }

    fn push(&self, to: usize, frames: impl Iterator<Item = Vec<u8>>) {
        let mut state = self.lock();
        if state.links[to].status == Status::Open && !state.closing {
            state.links[to].outbox.extend(frames);
        }
        drop(state);
        self.wake();
    }

    /// Waits until everything for a rank is with the operating system.
    pub(crate) fn flush(&self, to: usize) -> Result<()> {
        let mut state = self.lock();
        loop {
            match &state.failure {
                Some(failure) if state.stopped => return Err(failure.clone()),
                // One that is gone without a goodbye is a failure; one with it had all that it needed.
                None | Some(_) if state.links[to].outbox.is_empty() => return Ok(()),
                Some(failure) => return Err(failure.clone()),
                None => state = self.wait(state),
            }
        }
    }

    /// Waits for data of another rank's and puts it into `into`.
    pub(crate) fn receive(&self, from: usize, call: &Call, step: u32, into: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < into.len() {
            let frame = self.next(from)?;
            let end = filled + frame.bytes.len();
            if frame.call != *call || frame.step != step || end > into.len() {
                let failure = NcclError::usage(format!(
                    "rank {from} calls {}, and rank {} calls {call}",
                    frame.call, self.rank
                ));
                self.fail(failure.clone());
                return Err(failure);
            }
            into[filled..end].copy_from_slice(&frame.bytes);
            filled = end;
        }
        Ok(())
    }

    fn next(&self, from: usize) -> Result<Frame> {
        let mut state = self.lock();
        loop {
            if let Some(failure) = state.failure.as_ref().filter(|_| state.stopped) {
                return Err(failure.clone());
            }
            if state.closing {
                // A graph may be launched when its communicator has ended.
                return Err(NcclError::usage("the communicator has been finalized"));
            }
            let link = &mut state.links[from];
            if let Some(frame) = link.inbox.pop_front() {
                let was_full = link.waiting >= FULL;
                link.waiting -= frame.bytes.len();
                if was_full && link.waiting < FULL {
                    drop(state);
                    self.wake();
                }
                return Ok(frame);
            }
            let is_open = link.status == Status::Open;
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if !is_open {
                return Err(left(from));
            }
            state = self.wait(state);
        }
    }

    /// Sends a message that is no data of an operation.
    pub(crate) fn send_control(&self, to: usize, message: &[u8]) {
        self.push(to, std::iter::once(frame(CONTROL, &Call::NONE, 0, message)));
    }

    /// Waits for the message of another rank that starts with `tag`, and answers the rest of it. Failed operations are
    /// no hindrance, unless it is this rank that is gone.
    pub(crate) fn receive_control(&self, from: usize, tag: u64, give_up: GiveUp<'_>) -> Result<Vec<u8>> {
        let mut state = self.lock();
        loop {
            if let Some(failure) = give_up() {
                return Err(failure);
            }
            let link = &mut state.links[from];
            let found = link.control.iter().position(|message| message.starts_with(&tag.to_le_bytes()));
            if let Some(index) = found {
                return Ok(link.control.remove(index).split_off(8));
            }
            if link.status != Status::Open {
                return Err(left(from));
            }
            let waited = self.changed.wait_timeout(state, std::time::Duration::from_millis(10));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether a rank can be reached no more.
    pub(crate) fn has_left(&self, rank: usize) -> bool {
        rank != self.rank && self.lock().links[rank].status != Status::Open
    }
}

fn left(rank: usize) -> NcclError {
    NcclError::remote(format!("rank {rank} has left the communicator"))
}

fn frame(kind: u8, call: &Call, step: u32, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + bytes.len());
    frame.push(kind);
    frame.extend(call.to_bytes());
    frame.extend(step.to_le_bytes());
    frame.extend((bytes.len() as u32).to_le_bytes());
    frame.extend(bytes);
    frame
}

/// What a socket has brought so far.
#[derive(Default)]
struct Parser(Vec<u8>);

enum Incoming {
    Data(Frame),
    Control(Vec<u8>),
    Goodbye,
}

impl Parser {
    /// The next frame, if all of it is there.
    fn next(&mut self) -> Result<Option<Incoming>, String> {
        let Some(header) = self.0.get(..HEADER) else { return Ok(None) };
        let (kind, rest) = (header[0], &header[1..]);
        let (call, rest) = rest.split_at(Call::BYTES);
        let number = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let (step, length) = (number(0), number(4) as usize);
        if length > LARGEST {
            return Err(format!("a frame of {length} bytes"));
        }
        let call = Call::from_bytes(call);
        if self.0.len() < HEADER + length {
            return Ok(None);
        }
        let bytes = self.0[HEADER..HEADER + length].to_vec();
        self.0.drain(..HEADER + length);
        match kind {
            DATA => Ok(Some(Incoming::Data(Frame { call, step, bytes }))),
            CONTROL => Ok(Some(Incoming::Control(bytes))),
            GOODBYE => Ok(Some(Incoming::Goodbye)),
            kind => Err(format!("a frame of kind {kind}")),
        }
    }
}

/// The thread's function.
fn serve(mesh: &Mesh, mut sockets: Vec<Option<TcpStream>>) {
    let mut parsers: Vec<_> = sockets.iter().map(|_| Parser::default()).collect();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let Some(wanted) = wanted(mesh, &sockets) else { return };
        let mut fds = vec![PollFd::new(&mesh.wake, PollFlags::IN)];
        let of_sockets = sockets.iter().zip(&wanted).filter_map(|(socket, flags)| {
            socket.as_ref().map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), *flags))
        });
        fds.extend(of_sockets);
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                mesh.fail(NcclError::system("poll", &error));
                return (0..sockets.len()).for_each(|rank| gone(mesh, rank, "nothing is read any more"));
            }
        }
        let mut happened: VecDeque<_> = fds.iter().skip(1).map(PollFd::revents).collect();
        drop(fds);
        // What was counted is of no interest; that it is read makes the next poll wait again.
        let _ = rustix::io::read(&mesh.wake, &mut [0; 8]);
        for (rank, place) in sockets.iter_mut().enumerate() {
            let Some(socket) = place else { continue };
            let events = happened.pop_front().unwrap_or(PollFlags::empty());
            if events.contains(PollFlags::OUT) {
                write(mesh, rank, socket);
            }
            if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP)
                && let Err(reason) = read(mesh, rank, socket, &mut parsers[rank], &mut buffer)
            {
                *place = None;
                gone(mesh, rank, &reason);
            }
        }
    }
}

/// What each socket is to be asked for; `None` when the thread is to end.
fn wanted(mesh: &Mesh, sockets: &[Option<TcpStream>]) -> Option<Vec<PollFlags>> {
    let state = mesh.lock();
    let is_over =
        |link: &Link| link.status == Status::Gone || (link.status == Status::Left && link.outbox.is_empty());
    if state.aborted || (state.closing && state.links.iter().all(is_over)) {
        return None;
    }
    let flags = state.links.iter().zip(sockets).map(|(link, _)| {
        let mut flags = PollFlags::RDHUP;
        if link.waiting < FULL || state.closing {
            flags |= PollFlags::IN;
        }
        if !link.outbox.is_empty() {
            flags |= PollFlags::OUT;
        }
        flags
    });
    Some(flags.collect())
}

/// Writes what the socket takes. That the other end takes no more is no end yet: what it has said before is still to be
/// read, its goodbye perhaps, and then reading tells that it is gone.
fn write(mesh: &Mesh, rank: usize, socket: &mut TcpStream) {
    let mut state = mesh.lock();
    let link = &mut state.links[rank];
    while let Some(frame) = link.outbox.front() {
        match socket.write(&frame[link.written..]) {
            Ok(done) => link.written += done,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                link.outbox.clear();
                link.written = 0;
            }
        }
        if link.outbox.front().is_some_and(|frame| frame.len() == link.written) {
            link.outbox.pop_front();
            link.written = 0;
        }
    }
    if link.outbox.is_empty() {
        mesh.changed.notify_all();
    }
}

fn read(
    mesh: &Mesh,
    rank: usize,
    socket: &mut TcpStream,
    parser: &mut Parser,
    buffer: &mut [u8],
) -> Result<(), String> {
    match socket.read(buffer) {
        Ok(0) => return Err("it has hung up".to_owned()),
        Ok(length) => parser.0.extend(&buffer[..length]),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
        Err(error) => return Err(error.to_string()),
    }
    let mut state = mesh.lock();
    let closing = state.closing;
    let link = &mut state.links[rank];
    while let Some(incoming) = parser.next()? {
        match incoming {
            // After its goodbye this rank takes nothing more.
            Incoming::Data(_) if closing => {}
            Incoming::Data(frame) => {
                link.waiting += frame.bytes.len();
                link.inbox.push_back(frame);
            }
            Incoming::Control(message) => link.control.push(message),
            Incoming::Goodbye => link.status = Status::Left,
        }
    }
    drop(state);
    mesh.changed.notify_all();
    Ok(())
}

/// A connection has ended.
fn gone(mesh: &Mesh, rank: usize, reason: &str) {
    let mut state = mesh.lock();
    let closing = state.closing;
    let link = &mut state.links[rank];
    let said_goodbye = link.status == Status::Left;
    link.status = Status::Gone;
    link.outbox.clear();
    if !said_goodbye && !closing {
        let text = format!("rank {rank} has died or aborted: {reason}");
        state.failure.get_or_insert(NcclError::remote(text));
    }
    drop(state);
    mesh.changed.notify_all();
}
