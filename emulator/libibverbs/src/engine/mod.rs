//! What moves messages: one thread, which sends for all queue pairs of the process in turn, receives for them, and wakes
//! those that wait.

mod link;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::read;

use crate::abi::{Answer, Errno};
use crate::command::{self, Command};
use crate::frame::{Frame, Kind};
use crate::memory::staged;
use crate::pair::responder::{Reading, Response};
use crate::pair::{self, Pair, slot_of};
use crate::{count, fault};
use link::Link;

/// Starts the thread if it does not run, and answers the slot of this process. What the system has refused is asked for again by the
/// next call.
pub(crate) fn start() -> Answer<u32> {
    static SLOT: Mutex<Option<u32>> = Mutex::new(None);
    let number = |error: io::Error| Errno(error.raw_os_error().unwrap_or(libc::EIO));
    let mut started = SLOT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(slot) = *started {
        return Ok(slot);
    }
    let begin = || -> io::Result<(u32, OwnedFd)> {
        let (slot, listener) = link::listen()?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let thread = Thread::new(slot, listener, wake.try_clone()?)?;
        std::thread::Builder::new().name("verbs".to_owned()).spawn(move || thread.run())?;
        Ok((slot, wake))
    };
    let (slot, wake) = begin().map_err(number)?;
    command::open(wake);
    *started = Some(slot);
    Ok(slot)
}

/// Where an answer goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Route {
    /// To this process.
    Own,
    /// To a process that this one has connected to.
    To(u32),
    /// To a process that has connected to this one.
    From(u64),
}

/// What a descriptor that is ready is, as epoll gives it back.
const WAKE: u64 = 0;
const LISTENER: u64 = 1;
const FIRST_FROM: u64 = 1 << 32;

/// How long until unseen data is looked at again, at most, and pairs that are held up.
const PATIENCE: Duration = Duration::from_secs(3600);

struct Thread {
    slot: u32,
    epoll: OwnedFd,
    wake: OwnedFd,
    listener: UnixListener,
    next_from: u64,
    links: HashMap<Route, Link>,
    /// Queue pairs that may have something to send, in turn.
    ready: VecDeque<u32>,
    is_ready: HashSet<u32>,
    /// Queue pairs that wait, by when they go on.
    waiting: BTreeSet<(Instant, u32)>,
    /// What peers read.
    readings: VecDeque<(Route, Reading)>,
    /// Frames of this process for itself.
    own: VecDeque<(Frame, Vec<u8>)>,
}

impl Thread {
    fn new(slot: u32, listener: UnixListener, wake: OwnedFd) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        Ok(Self {
            slot,
            epoll,
            wake,
            listener,
            next_from: FIRST_FROM,
            links: HashMap::new(),
            ready: VecDeque::new(),
            is_ready: HashSet::new(),
            waiting: BTreeSet::new(),
            readings: VecDeque::new(),
            own: VecDeque::new(),
        })
    }

    fn run(mut self) {
        let mut commands = VecDeque::new();
        let mut busy = false;
        loop {
            self.wait(if busy { Some(Instant::now()) } else { self.next_time() });
            command::take(&mut commands);
            for command in commands.drain(..) {
                match command {
                    Command::Work(number) => self.make_ready(number),
                    Command::FaultsChanged => self.faults_changed(),
                }
            }
            self.resume(Instant::now());
            staged::release_due(Instant::now(), fault::late_visibility().is_none());
            busy = self.send();
        }
    }

    /// When something is to be done though nothing happens.
    fn next_time(&self) -> Option<Instant> {
        let waiting = self.waiting.first().map(|&(at, _)| at);
        waiting.into_iter().chain(staged::next_due()).min()
    }

    /// Waits for descriptors, and does what they are ready for.
    fn wait(&mut self, until: Option<Instant>) {
        let wait = until.map_or(PATIENCE, |at| at.saturating_duration_since(Instant::now()));
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
        let count = epoll::wait(&self.epoll, &mut events, Some(&timeout)).unwrap_or(0);
        for event in &events[..count] {
            match event.data.u64() {
                WAKE => {
                    let _ = read(&self.wake, &mut [0_u8; 8]);
                }
                LISTENER => self.accept(),
                number if number >= FIRST_FROM => self.serve(Route::From(number)),
                number => self.serve(Route::To((number - 2) as u32)),
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let route = Route::From(self.next_from);
            self.next_from += 1;
            if let Ok(link) = Link::new(stream) {
                self.add(route, link);
            }
        }
    }

    fn add(&mut self, route: Route, link: Link) {
        let data = epoll::EventData::new_u64(data_of(route));
        if epoll::add(&self.epoll, link.as_fd(), data, epoll::EventFlags::IN).is_ok() {
            self.links.insert(route, link);
            count::add(&count::connections, 1);
        }
    }

    /// Reads and writes a connection; one that has ended is forgotten.
    fn serve(&mut self, route: Route) {
        let Some(mut link) = self.links.remove(&route) else { return };
        // The link is out of the table meanwhile, so its own answers are collected here.
        let mut answers = Vec::new();
        let received = link.receive(|frame, payload| {
            if let Some(answer) = self.deliver(route, &frame, payload) {
                answers.push(answer);
            }
        });
        for answer in &answers {
            link.queue(answer, &[]);
        }
        self.links.insert(route, link);
        match received {
            Ok(()) => self.flush(route),
            Err(_) => self.forget(route),
        }
    }

    /// Sends what a connection can take, and asks to be told when it can take the rest.
    fn flush(&mut self, route: Route) {
        let Some(link) = self.links.get_mut(&route) else { return };
        if link.flush().is_err() {
            return self.forget(route);
        }
        let flags = match link.has_unsent() {
            true => epoll::EventFlags::IN | epoll::EventFlags::OUT,
            false => epoll::EventFlags::IN,
        };
        let data = epoll::EventData::new_u64(data_of(route));
        let _ = epoll::modify(&self.epoll, link.as_fd(), data, flags);
    }

    /// The other process is gone: nobody hears what was on the way to it.
    fn forget(&mut self, route: Route) {
        if self.links.remove(&route).is_some() {
            count::sub(&count::connections, 1);
        }
        self.readings.retain(|(other, _)| *other != route);
        let Route::To(slot) = route else { return };
        for pair in pair::all() {
            let mut inner = pair.lock();
            if slot_of(inner.destination()) == slot && inner.has_sent() {
                pair.lose(&mut inner);
                drop(inner);
                self.settle(&pair);
            }
        }
    }

    /// Gives a frame to the queue pair that it is for, and answers what is to be sent back.
    fn deliver(&mut self, route: Route, frame: &Frame, payload: &[u8]) -> Option<Frame> {
        let pair = pair::find(frame.to);
        match (frame.kind, pair) {
            (Kind::Request | Kind::Data, None) => Some(frame.answer(Kind::Lost, 0)),
            (Kind::Request | Kind::Data, Some(pair)) => match pair.heard(frame, payload) {
                Response::Nothing => None,
                Response::Answer(answer) => Some(answer),
                Response::Read(reading) => {
                    self.readings.push_back((route, reading));
                    None
                }
            },
            (_, None) => None,
            (_, Some(pair)) => {
                pair.answered(frame, payload);
                self.settle(&pair);
                None
            }
        }
    }

    /// Puts a queue pair where it belongs: among those that send, or those that wait.
    fn settle(&mut self, pair: &Arc<Pair>) {
        let inner = pair.lock();
        if let Some(at) = inner.resumes() {
            self.waiting.insert((at, pair.number));
        } else if inner.can_send() {
            drop(inner);
            self.make_ready(pair.number);
        }
    }

    fn make_ready(&mut self, number: u32) {
        if self.is_ready.insert(number) {
            self.ready.push_back(number);
        }
    }

    /// Wakes the queue pairs whose wait is over.
    fn resume(&mut self, now: Instant) {
        while let Some(&(at, number)) = self.waiting.first().filter(|(at, _)| *at <= now) {
            self.waiting.remove(&(at, number));
            let Some(pair) = pair::find(number) else { continue };
            {
                let mut inner = pair.lock();
                pair.resume(&mut inner, now);
            }
            self.settle(&pair);
        }
    }

    fn faults_changed(&mut self) {
        for pair in pair::all() {
            let mut inner = pair.lock();
            if inner.has_sent() && !pair.is_reachable(&inner) {
                pair.lose(&mut inner);
            }
            drop(inner);
            self.settle(&pair);
        }
    }

    /// Sends for every queue pair in turn, a frame each, as long as there is room and nothing else to do. Whether there
    /// is more to send at once.
    fn send(&mut self) -> bool {
        let mut progress = false;
        for _ in 0..self.ready.len() {
            let Some(number) = self.ready.pop_front() else { break };
            self.is_ready.remove(&number);
            progress |= self.send_one(number);
        }
        progress |= self.send_readings();
        while let Some((frame, payload)) = self.own.pop_front() {
            if let Some(answer) = self.deliver(Route::Own, &frame, &payload) {
                self.own.push_back((answer, Vec::new()));
            }
            progress = true;
        }
        let routes: Vec<_> =
            self.links.iter().filter(|(_, link)| link.has_unsent()).map(|(route, _)| *route).collect();
        for route in routes {
            let was_full = self.links.get(&route).is_some_and(|link| !link.has_room());
            self.flush(route);
            // What found no room before finds it now, and nobody else will say so.
            progress |= was_full && self.links.get(&route).is_none_or(Link::has_room);
        }
        progress && !(self.ready.is_empty() && self.readings.is_empty())
    }

    /// A frame of a queue pair; false if it has none, or no room.
    fn send_one(&mut self, number: u32) -> bool {
        let Some(pair) = pair::find(number) else { return false };
        let mut inner = pair.lock();
        if !inner.can_send() {
            drop(inner);
            // It may have begun to wait.
            self.settle(&pair);
            return false;
        }
        let slot = slot_of(inner.destination());
        let route = if slot == self.slot { Route::Own } else { Route::To(slot) };
        if !pair.is_reachable(&inner) || !self.connect(route) {
            pair.lose(&mut inner);
            drop(inner);
            self.settle(&pair);
            return true;
        }
        if self.links.get(&route).is_some_and(|link| !link.has_room()) {
            drop(inner);
            self.make_ready(number);
            return false;
        }
        let mut payload = Vec::new();
        let frame = pair.next_frame(&mut inner, &mut payload);
        drop(inner);
        // Without one the pair has failed, or goes on when an answer to an earlier message comes.
        let Some(frame) = frame else { return false };
        self.give(route, &frame, payload);
        self.settle(&pair);
        true
    }

    /// The next bytes that peers read.
    fn send_readings(&mut self) -> bool {
        let mut progress = false;
        for _ in 0..self.readings.len() {
            let Some((route, mut reading)) = self.readings.pop_front() else { break };
            let there = route == Route::Own || self.links.contains_key(&route);
            let room = self.links.get(&route).is_none_or(Link::has_room);
            if !there {
                continue;
            }
            if !room || fault::hold() {
                self.readings.push_back((route, reading));
                continue;
            }
            let mut payload = Vec::new();
            let pair = Arc::clone(&reading.pair);
            let frame = pair.next_answer(&mut reading, &mut payload);
            let ended = frame.kind != Kind::Answer || reading.sent == frame.length;
            self.give(route, &frame, payload);
            if !ended {
                self.readings.push_back((route, reading));
            }
            progress = true;
        }
        progress
    }

    fn give(&mut self, route: Route, frame: &Frame, payload: Vec<u8>) {
        match self.links.get_mut(&route) {
            Some(link) => link.queue(frame, &payload),
            None if route == Route::Own => self.own.push_back((*frame, payload)),
            // The other process is gone: `forget` has told whom it concerns.
            None => {}
        }
    }

    /// Whether there is a way to a process; connects to it if need be.
    fn connect(&mut self, route: Route) -> bool {
        let Route::To(slot) = route else { return true };
        if !self.links.contains_key(&route) {
            let Ok(link) = Link::connect(slot) else { return false };
            self.add(route, link);
        }
        self.links.contains_key(&route)
    }
}

fn data_of(route: Route) -> u64 {
    match route {
        Route::Own => WAKE,
        Route::To(slot) => u64::from(slot) + 2,
        Route::From(number) => number,
    }
}
