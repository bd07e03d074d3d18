//! The channels of a process.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use meshreduce_device::Device;
use meshreduce_store::clock::{Deadline, Pause};
use meshreduce_store::identity::Life;
use meshreduce_store::{Store, StoreError};

use crate::channel::{Environment, Reason, Side};
use crate::choice::Offers;
use crate::devices::Devices;
use crate::endpoint::{Endpoint, EndpointFacts, Shared};
use crate::error::{Error, cut};
use crate::link::Link;
use crate::meet::{
    Address, Hello, Links, Listeners, Place, greet, look, publish, random, reach, restore, withdraw,
};
use crate::progress::{Command, Connection, Site, Waker, start};
use crate::registry::{Kinds, Registry, Report};

/// How long a dropped context waits for what was said to be sent.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a process that has come may take to say who it is, if there is more time than that.
const GREETING: Duration = Duration::from_secs(30);

/// How often one who listens under a name looks whether its address is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes of a process's name that others are told.
const LONGEST_NAME: usize = 256;
/// An attempt that has less than this before the deadline ends it is too short to say why there is no connection.
const FAIR: Duration = Duration::from_millis(100);
/// The least limit of silence: a thread that has no core for as long is no dead peer.
const LEAST_SILENCE: Duration = Duration::from_millis(100);

/// Settings of a context.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the process calls itself in the errors of others, of which these show the first 256 bytes; otherwise they name process
    /// and host.
    pub name: Option<String>,
    /// How long nothing may be heard of a peer on a socket before it is taken for lost: a process that is stopped, a host that
    /// has gone without a word. (A process that ends is noticed at once.) The shorter one of both sides counts, and a tenth of a
    /// second is the least.
    pub silence: Duration,
    /// Which links may be used.
    pub links: Links,
}

impl Default for Options {
    /// No name, half a minute, all links.
    fn default() -> Self {
        Self { name: None, silence: Duration::from_secs(30), links: Links::default() }
    }
}

/// The channels of a process: the kinds that are viable, and one thread that makes them go on.
///
/// Dropped, it is closed; everything that is under way fails.
#[derive(Debug)]
pub struct Context {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    site: Arc<Site>,
    place: Place,
    options: Options,
    offers: Arc<Offers>,
    endpoints: AtomicU64,
}

impl Context {
    /// A context that serves these devices; [`Device::Cpu`] it always serves.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`], [`Error::Registry`], [`Error::System`].
    pub fn new(registry: &Registry, devices: &[Device]) -> Result<Self, Error> {
        Self::with_options(registry, devices, Options::default())
    }

    /// As [`Context::new`], with settings.
    ///
    /// # Errors
    ///
    /// As [`Context::new`].
    pub fn with_options(registry: &Registry, devices: &[Device], options: Options) -> Result<Self, Error> {
        let system =
            |what: &str, source: std::io::Error| Error::System { what: what.into(), source: source.into() };
        let place = Place::current()?;
        let devices = Arc::new(Devices::new(devices)?);
        let waker = Waker::new().map_err(|error| system("the progress thread cannot be woken", error))?;
        let environment = Environment {
            devices: devices.all().to_vec(),
            contexts: devices.contexts().cloned().collect(),
            secret: random().map_err(|error| system("there is nothing random", error))?,
            waker: waker.clone(),
        };
        let kinds = Kinds::new(registry, &environment)?;
        let offers = Arc::new(kinds.offers(devices.all()));
        let site = Site::new(kinds, devices, waker);
        start(Arc::clone(&site))?;
        let endpoints = AtomicU64::new(1);
        Ok(Self { inner: Arc::new(Inner { site, place, options, offers, endpoints }) })
    }

    pub(crate) fn site(&self) -> &Arc<Site> {
        &self.inner.site
    }

    /// Which kinds are viable, and which are not and why.
    pub fn report(&self) -> Report {
        self.inner.site.kinds.report()
    }

    /// The devices that it serves.
    pub fn devices(&self) -> &[Device] {
        self.inner.site.devices.all()
    }

    /// Listens for peers that are told the listener's address.
    ///
    /// # Errors
    ///
    /// [`Error::System`], [`Error::Forked`].
    pub fn listener(&self) -> Result<Listener, Error> {
        self.inner.site.check_process()?;
        let listeners = Listeners::open(&self.inner.place, self.inner.options.links)?;
        Ok(Listener { listeners, inner: Arc::clone(&self.inner) })
    }

    /// Meets the process that connects under `name`, in at most `timeout`. A name is good for one meeting at a time, and for
    /// another one, with whatever roles, when this has returned on either side; whoever listens last under a name is found.
    ///
    /// # Errors
    ///
    /// [`Error::NotConnected`]; [`Error::ChoicesDiffer`]; [`Error::Store`]; [`Error::Protocol`]; [`Error::System`];
    /// [`Error::Forked`].
    pub fn listen(&self, store: &dyn Store, name: &str, timeout: Duration) -> Result<Endpoint, Error> {
        let listener = self.listener()?;
        let failed = |source| Error::Store { name: name.into(), source: Arc::new(source) };
        let address = listener.listeners.address().encode();
        let with = format!("whoever connects to {name}");
        let (begun, deadline) = (Instant::now(), Deadline::after(timeout));
        match publish(store, name, &address, deadline) {
            Err(StoreError::Timeout { .. }) => {
                let last = "others meet under the name".into();
                return Err(Error::NotConnected { with: with.into(), waited: begun.elapsed(), last });
            }
            published => published.map_err(failed)?,
        }
        let endpoint = listener.accept_for(&with, timeout, deadline, LOOK, || {
            // A store that has failed need not keep one away who has read the address before.
            if let Err(error) = restore(store, name, &address) {
                tracing::debug!(name, %error, "the store does not say whether the address is still there");
            }
        });
        // The other side has read it, or comes too late. By now somebody else may listen under the name, the other side above all.
        if let Err(error) = withdraw(store, name, &address) {
            // Nobody is met there any more: who finds it looks again.
            tracing::warn!(name, %error, "the store keeps the address of a listener that has left");
        }
        endpoint
    }

    /// Meets the process that listens under `name`, in at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Context::listen`].
    pub fn connect(&self, store: &dyn Store, name: &str, timeout: Duration) -> Result<Endpoint, Error> {
        self.inner.site.check_process()?;
        let with: Arc<str> = format!("whoever listens under {name:?} in the store").into();
        let deadline = Deadline::after(timeout);
        let begun = Instant::now();
        let mut pause = Pause::new(timeout);
        let mut last = "nobody has listened".to_owned();
        loop {
            match look(store, name, deadline) {
                Ok(None) => last = "whoever has listened is leaving".to_owned(),
                Ok(Some(bytes)) => match Address::decode(&bytes) {
                    Ok(address) => match self.inner.reach(&address, deadline) {
                        Ok(endpoint) => return Ok(endpoint),
                        Err(Attempt::Failed(error)) => last = error,
                        Err(Attempt::Over(error)) => return Err(error),
                    },
                    Err(error) => {
                        last = format!("what is found there is not the address of a listener: {error}")
                    }
                },
                Err(StoreError::Timeout { .. }) => {}
                Err(source) => return Err(Error::Store { name: name.into(), source: Arc::new(source) }),
            }
            // What is found may be left over from a meeting that failed: it is read again.
            if !pause.again() {
                return Err(Error::NotConnected { with, waited: begun.elapsed(), last: last.into() });
            }
        }
    }

    /// Meets the listener with this address, in at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Context::listen`]; [`Error::PeerLost`] if its process is known to have ended.
    pub fn connect_to(&self, address: &Address, timeout: Duration) -> Result<Endpoint, Error> {
        let deadline = Deadline::after(timeout);
        let begun = Instant::now();
        let mut pause = Pause::new(timeout);
        let mut last = String::new();
        loop {
            let is_fair = deadline.left() >= FAIR;
            match self.inner.reach(address, deadline) {
                Ok(endpoint) => return Ok(endpoint),
                Err(Attempt::Over(error)) => return Err(error),
                Err(Attempt::Failed(why)) if is_fair || last.is_empty() => last = why,
                Err(Attempt::Failed(_)) => {}
            }
            let member = &address.place.member;
            let with: Arc<str> = member.to_string().into();
            if member.life(&self.inner.place.member.host) == Life::Ended {
                let how = "its process has ended".into();
                return Err(Error::PeerLost { peer: with, how, received: 0, bytes: 0 });
            }
            if !pause.again() {
                return Err(Error::NotConnected { with, waited: begun.elapsed(), last: last.into() });
            }
        }
    }

    /// Ends all endpoints; what is under way fails with [`Error::ContextClosed`].
    pub fn close(&self) {
        if self.inner.site.check_process().is_ok() {
            self.inner.site.post.send(Command::End);
        }
    }

    /// Waits, at most `timeout`, until a context that was closed is over: its thread has ended, and nothing uses the memory of
    /// transfers any more.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`]; [`Error::Forked`].
    pub fn join(&self, timeout: Duration) -> Result<(), Error> {
        self.inner.site.check_process()?;
        if self.inner.site.ended.wait(timeout) {
            return Ok(());
        }
        Err(Error::TimedOut { what: "the end of the channel context".into(), waited: timeout })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.close();
        // So that peers learn of it if the process ends now; not for ever, because what a device does may last. What the thread
        // drops, a memory or a waker that holds the context, would keep it from saying anything.
        if !self.inner.site.is_own_thread() {
            let _ = self.join(JOIN_TIMEOUT);
        }
    }
}

/// Why an attempt to connect has failed.
enum Attempt {
    /// It may be tried again.
    Failed(String),
    /// It would end in the same way.
    Over(Error),
}

impl Inner {
    fn reach(&self, address: &Address, deadline: Deadline) -> Result<Endpoint, Attempt> {
        self.site.check_process().map_err(Attempt::Over)?;
        let link = reach(address, &self.place, self.options.links, deadline).map_err(Attempt::Failed)?;
        match self.meet(link, Side::Connecting, deadline) {
            Ok(endpoint) => Ok(endpoint),
            // The listener may have been busy with another, or about to end.
            Err(error @ (Error::PeerLost { .. } | Error::NotConnected { .. })) => {
                Err(Attempt::Failed(error.to_string()))
            }
            Err(error) => Err(Attempt::Over(error)),
        }
    }

    /// What this process says of itself to one whom it meets.
    fn hello(&self) -> Result<Hello, Error> {
        let nonce = random().map_err(|error| Error::system("there is nothing random", error))?;
        Ok(Hello {
            library: env!("CARGO_PKG_VERSION").to_owned(),
            member: self.place.member.clone(),
            name: self.options.name.as_deref().map(|name| cut(name, LONGEST_NAME).to_owned()),
            silence: self.options.silence,
            nonce: u64::from_ne_bytes(nonce),
            offers: (*self.offers).clone(),
        })
    }

    /// Greets who is at the other end of a link, and hands both to the thread.
    fn meet(&self, link: Link, side: Side, deadline: Deadline) -> Result<Endpoint, Error> {
        let kinds = &self.site.kinds;
        let judge = |name: &str, local: &[u8], remote: &[u8]| match kinds.by_name(name) {
            Some(context) => context.can_communicate(local, remote),
            None => Err(Reason::from("it is not known")),
        };
        let own = self.hello()?;
        let nonce = own.nonce;
        let deadline = Deadline::after(deadline.left().min(GREETING));
        let met = greet(link, side, &own, &judge, deadline)?;
        let facts = EndpointFacts {
            id: self.endpoints.fetch_add(1, Ordering::Relaxed),
            side,
            peer: met.peer,
            nonce,
            silence: self.options.silence.min(met.hello.silence).max(LEAST_SILENCE),
            hello: met.hello,
            choices: met.choices,
            offers: Arc::clone(&self.offers),
            host: self.place.member.host.clone(),
        };
        let shared = Arc::new(Shared::new(facts));
        let connection = Connection::new(Arc::clone(&shared), met.link);
        self.site.post.send(Command::Add(Box::new(connection)));
        Ok(Endpoint::new(shared, Arc::clone(&self.site)))
    }
}

/// Where peers connect. Dropped, it listens no more; the endpoints that it has given stay.
#[derive(Debug)]
pub struct Listener {
    listeners: Listeners,
    inner: Arc<Inner>,
}

impl Listener {
    /// What a peer needs in order to connect. Whoever has it is trusted.
    pub fn address(&self) -> &Address {
        self.listeners.address()
    }

    /// Meets the next peer that connects, in at most `timeout`; zero looks whether one is there. One that has come in time is
    /// greeted to the end, for which it has up to two seconds more. Calls from several threads wait for one another.
    ///
    /// # Errors
    ///
    /// As [`Context::listen`].
    pub fn accept(&self, timeout: Duration) -> Result<Endpoint, Error> {
        self.accept_for("whoever connects", timeout, Deadline::after(timeout), Duration::MAX, || {})
    }

    /// Meets the next one that comes; while nobody does, `meanwhile` is called every so often.
    fn accept_for(
        &self,
        with: &str,
        timeout: Duration,
        deadline: Deadline,
        often: Duration,
        mut meanwhile: impl FnMut(),
    ) -> Result<Endpoint, Error> {
        // Of one who was met and was not the one, and of one who could not be let in.
        let (mut last, mut at_door) = (None, None);
        loop {
            self.inner.site.check_process()?;
            let link = match self.listeners.accept(Deadline::after(deadline.left().min(often))) {
                Ok(link) => link,
                Err(error) => {
                    at_door = error.or(at_door);
                    if !deadline.has_passed() {
                        meanwhile();
                        continue;
                    }
                    let last = last.or(at_door).unwrap_or_else(|| "nobody has come".to_owned()).into();
                    return Err(Error::NotConnected { with: with.into(), waited: timeout, last });
                }
            };
            match self.inner.meet(link, Side::Listening, deadline) {
                Err(error @ (Error::PeerLost { .. } | Error::NotConnected { .. })) => {
                    if deadline.has_passed() {
                        return Err(error);
                    }
                    last = Some(error.to_string());
                }
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests;
