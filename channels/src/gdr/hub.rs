//! What the channels of a context share: the NICs, whose completions it hands out, their credits, and what is known of them.
//!
//! A NIC has one completion queue for all channels. Whichever channel is looked at empties the queues of all NICs in turn, a bounded
//! number of completions each so that a busy one does not keep the others waiting, and puts what is not its own where its owner finds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use meshreduce_device::Device;
use meshreduce_verbs_loader::{AsyncElement, AsyncEventType, Completion, Gid};

use crate::gdr::config::Config;
use crate::gdr::credits::Credits;
use crate::gdr::descriptor::Port;
use crate::gdr::job::Job;
use crate::gdr::nic::Nic;
use crate::gdr::region::Region;
use crate::gdr::served::Served;
use crate::gdr::work::{CHANNELS, WorkId};
use crate::progress::Waker;
use crate::watch::Watch;

/// Completions that are taken from a NIC before it is another one's turn.
const TURN: usize = 64;
/// How often events of NICs are looked for: they tell of links, not of data.
const EVENTS: Duration = Duration::from_millis(10);
/// For how long a pair of ports that did not connect is tried after all others.
const REMEMBERED: Duration = Duration::from_secs(300);

/// What the channels of a context share.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) config: Config,
    pub(crate) nics: Vec<Nic>,
    /// The devices of this process that are served.
    pub(crate) served: Vec<Served>,
    pub(crate) waker: Waker,
    pub(crate) watch: Arc<Watch>,
    /// Regions, as far as they are still there.
    pub(crate) regions: Mutex<Vec<Weak<Region>>>,
    /// Registrations that are being given up.
    pub(crate) releasing: Mutex<Vec<Job<()>>>,
    state: Mutex<State>,
}

/// What changes.
#[derive(Debug)]
pub(crate) struct State {
    /// By NIC.
    pub(crate) nics: Vec<NicState>,
    inboxes: HashMap<u32, Vec<Completion>>,
    next_channel: u32,
    /// When which ports did not connect.
    unreachable: HashMap<(usize, Remote), Instant>,
    polled: Option<Instant>,
    asked: Option<Instant>,
}

/// What changes of a NIC.
#[derive(Debug)]
pub(crate) struct NicState {
    /// Of its sends.
    pub(crate) sends: Credits,
    /// Of its receives.
    pub(crate) receives: Credits,
    /// Receives that are posted for batches that may come or not.
    pub(crate) standing: u32,
    /// What posting writes has taken.
    pub(crate) posting: Posting,
    /// Since when its port is down.
    down: Option<Instant>,
    /// It is of no use any more.
    broken: Option<String>,
}

/// What posting writes has taken of the progress thread's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Posting {
    /// Writes that were posted.
    pub writes: u64,
    /// What that took.
    pub time: Duration,
    /// What of it libibverbs took.
    pub in_libibverbs: Duration,
}

/// A port of another machine, or of this one, as it is known there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Remote {
    gid: Option<Gid>,
    lid: u16,
}

impl Remote {
    fn of(port: &Port) -> Self {
        Self { gid: port.addresses.first().map(|address| address.gid), lid: port.lid }
    }
}

impl Hub {
    pub(crate) fn new(config: Config, nics: Vec<Nic>, served: Vec<Served>, waker: Waker) -> Self {
        let fresh = |nic: &Nic| NicState {
            sends: Credits::new(nic.credits),
            receives: Credits::new(nic.credits),
            standing: 0,
            posting: Posting::default(),
            down: None,
            broken: None,
        };
        let state = State {
            nics: nics.iter().map(fresh).collect(),
            inboxes: HashMap::new(),
            next_channel: 0,
            unreachable: HashMap::new(),
            polled: None,
            asked: None,
        };
        let (watch, regions, releasing) = (Arc::default(), Mutex::default(), Mutex::default());
        Self { config, nics, served, waker, watch, regions, releasing, state: Mutex::new(state) }
    }

    /// What changes. Only the progress thread, and whoever asks for counts, locks it.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place of a device among those that are served.
    pub(crate) fn place_of(&self, device: Device) -> Option<usize> {
        self.served.iter().position(|served| served.device == device)
    }

    /// Empties the queues of all NICs, once for one time, and looks after their events. Whether anything had happened.
    pub(crate) fn poll(&self, now: Instant) -> bool {
        let mut state = self.state();
        if state.polled == Some(now) {
            return false;
        }
        state.polled = Some(now);
        let mut moved = false;
        for (index, nic) in self.nics.iter().enumerate() {
            let mut completions = [Completion::default(); TURN];
            match nic.queue.poll(&mut completions) {
                Ok(count) => {
                    moved |= count > 0;
                    completions[..count].iter().for_each(|completion| state.hand_out(completion));
                }
                Err(error) => {
                    let what = format!("the completion queue of {} is broken: {error}", nic.name);
                    state.nics[index].broken.get_or_insert(what);
                }
            }
        }
        if state.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= EVENTS) {
            state.asked = Some(now);
            moved |= self.take_events(&mut state, now);
        }
        moved
    }

    fn take_events(&self, state: &mut State, now: Instant) -> bool {
        let mut any = false;
        for (nic, state) in self.nics.iter().zip(&mut state.nics) {
            // An error of asking is none of the data's, which say of their own when something is wrong.
            while let Ok(Some(event)) = nic.context.next_event() {
                any = true;
                tracing::debug!(nic = nic.name, event = %event.kind, element = ?event.element, "event");
                match (event.kind, event.element) {
                    (AsyncEventType::PORT_DOWN, AsyncElement::Port(port)) if port == nic.port => {
                        state.down.get_or_insert(now);
                    }
                    (AsyncEventType::PORT_ACTIVE, AsyncElement::Port(port)) if port == nic.port => {
                        state.down = None;
                    }
                    (AsyncEventType::DEVICE_FATAL | AsyncEventType::QUEUE_ERROR, _) => {
                        state.broken.get_or_insert_with(|| format!("{} reports: {}", nic.name, event.kind));
                    }
                    _ => {}
                }
            }
        }
        any
    }

    /// Why what goes over a NIC fails now, if it does.
    pub(crate) fn trouble(&self, state: &State, nic: usize, now: Instant) -> Option<String> {
        let NicState { down, broken, .. } = &state.nics[nic];
        if let Some(what) = broken {
            return Some(what.clone());
        }
        let down = now.saturating_duration_since((*down)?);
        let Nic { name, port, .. } = &self.nics[nic];
        (down >= self.config.port_down_for).then(|| format!("port {port} of {name} is down"))
    }
}

impl State {
    fn hand_out(&mut self, completion: &Completion) {
        let owner = WorkId::from_u64(completion.wr_id).and_then(|id| self.inboxes.get_mut(&id.channel));
        match owner {
            Some(inbox) => inbox.push(*completion),
            // Flushed, and handed out after its queue pair was destroyed.
            None => tracing::debug!(?completion, "a completion of nobody's"),
        }
    }

    /// A number for a channel, which nothing that is under way has.
    pub(crate) fn enter(&mut self) -> u32 {
        while self.inboxes.contains_key(&self.next_channel) {
            self.next_channel = (self.next_channel + 1) % CHANNELS;
        }
        let number = self.next_channel;
        self.inboxes.insert(number, Vec::new());
        self.next_channel = (number + 1) % CHANNELS;
        number
    }

    /// Gives a number back.
    pub(crate) fn leave(&mut self, channel: u32) {
        self.inboxes.remove(&channel);
    }

    /// Swaps a channel's completions with `empty`.
    pub(crate) fn take(&mut self, channel: u32, empty: &mut Vec<Completion>) {
        if let Some(inbox) = self.inboxes.get_mut(&channel) {
            std::mem::swap(inbox, empty);
        }
    }

    /// Notes that two ports did not connect.
    pub(crate) fn did_not_connect(&mut self, nic: usize, remote: &Port, now: Instant) {
        self.unreachable.insert((nic, Remote::of(remote)), now);
    }

    /// Whether two ports did not connect, not long ago.
    pub(crate) fn has_failed(&mut self, nic: usize, remote: &Port, now: Instant) -> bool {
        self.unreachable.retain(|_, when| now.saturating_duration_since(*when) < REMEMBERED);
        self.unreachable.contains_key(&(nic, Remote::of(remote)))
    }
}
