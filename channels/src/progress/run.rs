//! The thread itself.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::io::Errno;

use super::connection::Look;
use super::slot::unharmed;
use super::{Command, Connection, Site};
use crate::channel::Activity;
use crate::error::Error;
use crate::region::Withdrawn;

/// How long it spins behind the last movement: what an answer within a host takes.
const SPIN: Duration = Duration::from_micros(20);
/// How long it gives its core to others behind the last movement before it sleeps.
const YIELD: Duration = Duration::from_micros(100);
/// The first and the longest sleep while only looking tells.
const NAPS: (Duration, Duration) = (Duration::from_micros(10), Duration::from_micros(100));
/// How often it is looked whether a region that was given up is still in use.
const WITHDRAWN: Duration = Duration::from_millis(5);
/// How often kinds of channels look after what no channel does.
const TEND: Duration = Duration::from_millis(500);
/// The key of the waker among those of the endpoints.
const BELL: u64 = 0;

/// Starts the thread of a context.
pub(crate) fn start(site: Arc<Site>) -> Result<(), Error> {
    let begin = || {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, site.post.waker(), epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        let thread = Thread {
            site: Arc::clone(&site),
            epoll,
            endpoints: BTreeMap::new(),
            commands: Vec::new(),
            ready: Vec::new(),
            withdrawn: Vec::new(),
            tended: Instant::now(),
            is_to_tend: false,
            is_ending: false,
        };
        let builder = std::thread::Builder::new().name("meshreduce channels".to_owned());
        builder.spawn(move || {
            let last = Last(Arc::clone(&thread.site));
            let _ = thread.site.thread.set(std::thread::current().id());
            thread.run();
            drop(last);
        })
    };
    match begin() {
        Ok(_) => Ok(()),
        Err(source) => {
            let what = "the progress thread cannot be started".into();
            Err(Error::System { what, source: source.into() })
        }
    }
}

/// What is done at the end, also if the thread panics.
struct Last(Arc<Site>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.post.close(&Error::ContextClosed);
        for context in self.0.kinds.viable() {
            unharmed("closing a kind of channel", || context.close());
        }
        self.0.ended.set();
    }
}

struct Thread {
    site: Arc<Site>,
    epoll: OwnedFd,
    /// By the numbers of their endpoints.
    endpoints: BTreeMap<u64, Watched>,
    commands: Vec<Command>,
    /// Endpoints of which epoll has told something.
    ready: Vec<u64>,
    /// Regions that are being given up.
    withdrawn: Vec<Withdrawn>,
    /// When kinds of channels have last looked after what is theirs, and whether they have to do so again.
    tended: Instant,
    is_to_tend: bool,
    is_ending: bool,
}

struct Watched {
    connection: Connection,
    /// What epoll is asked for.
    writes: bool,
}

impl Thread {
    fn run(mut self) {
        let mut last = Instant::now();
        let mut nap = NAPS.0;
        loop {
            let (mut activity, now) = (Activity::Idle, Instant::now());
            let has_rung = self.site.post.waker().take();
            if has_rung && self.obey(now) {
                activity = Activity::Moved;
            }
            self.listen();
            activity = activity.max(self.look(now, has_rung));
            self.withdrawn.retain_mut(|withdrawn| !withdrawn.let_go(now));
            if self.is_ending && self.endpoints.is_empty() {
                return;
            }
            self.is_to_tend |= activity == Activity::Moved;
            if self.is_to_tend && now.saturating_duration_since(self.tended) >= TEND {
                self.tend(now);
            }
            if activity == Activity::Moved {
                (last, nap) = (now, NAPS.0);
                continue;
            }
            let quiet = last.elapsed();
            if quiet < SPIN {
                std::hint::spin_loop();
            } else if quiet < YIELD {
                std::thread::yield_now();
            } else {
                self.sleep((activity == Activity::Waiting).then_some(nap));
                nap = (nap * 2).min(NAPS.1);
            }
        }
    }

    fn tend(&mut self, now: Instant) {
        (self.tended, self.is_to_tend) = (now, false);
        for context in self.site.kinds.viable() {
            unharmed("looking after a kind of channel", || self.is_to_tend |= context.tend());
        }
    }

    /// Does what users have asked for; whether there was anything.
    fn obey(&mut self, now: Instant) -> bool {
        self.site.post.take(&mut self.commands);
        let commands = std::mem::take(&mut self.commands);
        let has_any = !commands.is_empty();
        for command in commands {
            match command {
                Command::Add(connection) => self.add(*connection),
                Command::Start { endpoint, pair, operation } => {
                    match self.endpoints.get_mut(&endpoint.id()) {
                        Some(watched) => watched.connection.start(pair, operation, &self.site.kinds, now),
                        None => operation.ticket.fail(endpoint.over()),
                    }
                }
                Command::Write { endpoint, pair, batch } => match self.endpoints.get_mut(&endpoint.id()) {
                    Some(watched) => watched.connection.write(pair, batch, &self.site.kinds, now),
                    None => batch.ticket.fail(endpoint.over()),
                },
                Command::Missed { endpoint, pair, counter, why } => {
                    if let Some(watched) = self.endpoints.get_mut(&endpoint.id()) {
                        watched.connection.refused(pair, counter, &why);
                    }
                }
                Command::Withdraw(withdrawn) => {
                    for watched in self.endpoints.values_mut() {
                        watched.connection.withdraw(withdrawn.parts(), now);
                    }
                    self.withdrawn.push(withdrawn);
                }
                Command::Close { endpoint } => {
                    if let Some(watched) = self.endpoints.get_mut(&endpoint.id()) {
                        let peer = Arc::clone(endpoint.peer());
                        watched.connection.end(&Error::Closed { peer }, Some(""));
                    }
                }
                Command::End => {
                    self.is_ending = true;
                    self.site.post.close(&Error::ContextClosed);
                    for watched in self.endpoints.values_mut() {
                        watched.connection.end(&Error::ContextClosed, Some(""));
                    }
                }
            }
        }
        has_any
    }

    fn add(&mut self, mut connection: Connection) {
        connection.wakes(self.site.post.waker());
        let id = connection.shared().id();
        if let Some(descriptor) = connection.link().and_then(|link| link.descriptor()) {
            let watched = epoll::add(&self.epoll, descriptor, epoll::EventData::new_u64(id), interest(false));
            if let Err(error) = watched {
                let what = "the connection cannot be watched".into();
                let source = Arc::new(std::io::Error::from(error));
                // Dropped, which ends it.
                return connection.end(&Error::System { what, source }, Some(""));
            }
        }
        if self.is_ending {
            // Whoever has met was slower than whoever closed the context.
            connection.end(&Error::ContextClosed, Some(""));
        }
        self.endpoints.insert(id, Watched { connection, writes: false });
    }

    /// Asks epoll, without waiting.
    fn listen(&mut self) {
        self.ready.clear();
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); 64];
        // Interrupted: asked again soon.
        if let Ok((events, _)) = epoll::wait(&self.epoll, &mut space, Some(&Timespec::default())) {
            self.ready.extend(events.iter().map(|event| event.data.u64()).filter(|id| *id != BELL));
        }
    }

    fn look(&mut self, now: Instant, at_all: bool) -> Activity {
        let mut activity = Activity::Idle;
        for (id, Watched { connection, writes }) in &mut self.endpoints {
            let is_ready = self.ready.contains(id);
            let look = Look { kinds: &self.site.kinds, now, is_ready, at_all };
            activity = activity.max(connection.look(look));
            let wants = connection.wants_to_write();
            if let Some(link) = connection.take_unlinked() {
                if let Some(descriptor) = link.descriptor() {
                    // It is gone already if there was nothing more to hear.
                    let _ = epoll::delete(&self.epoll, descriptor);
                }
            } else if connection.is_read_closed() {
                // The end of what there was to hear is told again and again. It is gone already the second time.
                if let Some(descriptor) = connection.link().and_then(|link| link.descriptor()) {
                    let _ = epoll::delete(&self.epoll, descriptor);
                }
            } else if wants != *writes
                && let Some(descriptor) = connection.link().and_then(|link| link.descriptor())
            {
                *writes = wants;
                let data = epoll::EventData::new_u64(*id);
                if let Err(error) = epoll::modify(&self.epoll, descriptor, data, interest(wants)) {
                    tracing::error!(%error, "a connection cannot be watched any more");
                }
            }
        }
        let is_ending = self.is_ending;
        self.endpoints.retain(|_, Watched { connection, .. }| {
            !(connection.is_over() || is_ending && connection.is_stuck())
        });
        activity
    }

    /// Sleeps until something happens, or `most`.
    fn sleep(&self, most: Option<Duration>) {
        let waker = self.site.post.waker();
        if !waker.doze() {
            return;
        }
        let due = self.endpoints.values().filter_map(|watched| watched.connection.due()).min();
        let due = due.map(|due| due.saturating_duration_since(Instant::now()));
        // Whoever lets go of a region need not be this thread, and rings no bell.
        let withdrawn = (!self.withdrawn.is_empty()).then_some(WITHDRAWN);
        let tend = self.is_to_tend.then(|| TEND.saturating_sub(self.tended.elapsed()));
        let most = most.into_iter().chain(due).chain(withdrawn).chain(tend).min();
        // By poll and not by epoll, whose waits are of whole milliseconds on older systems.
        let time = most
            .map(|most| Timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) });
        let mut watched = [PollFd::from_borrowed_fd(self.epoll.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut watched, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "the progress thread cannot sleep");
                std::thread::yield_now();
            }
        }
        waker.rise();
    }
}

fn interest(writes: bool) -> epoll::EventFlags {
    if writes { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::devices::Devices;
    use crate::link::{Half, Link};
    use crate::progress::Waker;
    use crate::progress::testing::{Meek, connection, kinds};
    use crate::registry::Registry;

    /// A context without a thread, which has one kind of channel; an endpoint of it, and its other end.
    fn site(meek: &Meek) -> (Arc<Site>, Connection, Half) {
        let mut registry = Registry::empty();
        registry.register(meek.clone()).unwrap();
        registry.allow("meek").unwrap();
        let waker = Waker::new().unwrap();
        let kinds = kinds(&registry, &waker);
        let (one, other) = Half::pair();
        let connection = connection(&kinds, "meek", Link::Memory(one));
        let devices = Devices::new(&[]).unwrap().into();
        (Site::new(kinds, devices, waker), connection, other)
    }

    #[test]
    fn an_endpoint_that_comes_behind_the_end_of_its_context_ends_too() {
        let (site, connection, other) = site(&Meek::default());
        let shared = Arc::clone(connection.shared());
        // One thread closes the context while another one meets somebody, before the progress thread looks.
        site.post.send(Command::End);
        site.post.send(Command::Add(Box::new(connection)));
        start(Arc::clone(&site)).unwrap();
        drop(other);
        assert!(site.ended.wait(Duration::from_secs(20)));
        assert!(matches!(shared.cause(), Some(Error::ContextClosed)));
    }

    #[test]
    fn a_kind_looks_after_its_own_as_long_as_there_is_more_though_nothing_happens() {
        let meek = Meek::default();
        let (site, connection, other) = site(&meek);
        site.post.send(Command::Add(Box::new(connection)));
        start(Arc::clone(&site)).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while meek.tended.load(Ordering::Relaxed) < 3 {
            assert!(Instant::now() < until, "it has looked {:?} times", meek.tended);
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(other);
        site.post.send(Command::End);
        assert!(site.ended.wait(Duration::from_secs(20)));
    }
}
