//! What all handles of a group share.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use meshreduce::RawStream;
use meshreduce_store::{PrefixStore, Store, StoreError};

use super::aborted::AbortedMember;
use super::end::Hooks;
use super::family::Family;
use super::parents::dead_member;
use super::peers::Peers;
use super::progress::{Published, is_gone};
use super::slot::Slot;
use super::splits::Splits;
use super::watch::Ended;
use crate::backend::{AbsentRanks, Backend, BackendContext, DeadMember, GroupInfo};
use crate::call::Call;
use crate::config::BackendConfig;
use crate::error::{Elsewhere, Error};
use crate::types::{Device, DeviceType, Operation};

/// What a group was made with and hands on to the groups that are made from it.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) cuda_device: Option<u32>,
    pub(super) timeout: Duration,
    pub(super) deadline: Option<Duration>,
    pub(super) check_calls: bool,
    pub(super) forbid_fallback: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cuda_device: None,
            timeout: Duration::from_secs(60),
            deadline: Some(Duration::from_secs(60)),
            check_calls: false,
            forbid_fallback: false,
        }
    }
}

/// A group on this rank.
pub(crate) struct Shared {
    pub(crate) info: Arc<GroupInfo>,
    /// Its index in the flight recorder.
    pub(super) record: u32,
    pub(super) store: Arc<dyn Store>,
    pub(super) config: BackendConfig,
    pub(super) settings: Settings,
    slots: [Slot; DeviceType::ALL.len()],
    pub(super) collectives: AtomicU64,
    pub(super) sends_and_receives: AtomicU64,
    /// Groups made of the same ranks, by those.
    pub(super) parts: Mutex<BTreeMap<String, u64>>,
    pub(super) splits: Splits,
    pub(super) monitored_barriers: AtomicU64,
    /// Keys with what ranks have been told that did not come to a monitored barrier.
    pub(super) unheard: Mutex<Vec<String>>,
    /// Monitored barriers that have not gone well, or go on.
    pub(super) failed_barriers: Mutex<BTreeSet<u64>>,
    /// Who the ranks of this group are, and not of one before it.
    pub(super) peers: Peers,
    /// Why it takes no calls any more.
    pub(super) end: Arc<OnceLock<Error>>,
    pub(super) hooks: Hooks,
    /// Held by whoever takes calls that have ended from those that are looked at.
    pub(super) noting: Mutex<Ended>,
    /// Whether another rank has told that it was aborted.
    aborted: AbortedMember,
    /// The last collective that the store was told of.
    pub(super) published: Mutex<Published>,
    /// What the first timeout has said of where ranks wait, and its call.
    pub(super) elsewhere: OnceLock<((Operation, u64), Vec<Elsewhere>)>,
    pub(super) family: Arc<Family>,
    /// The group that this is a part of; of the group of all ranks: nothing.
    pub(super) parent: Weak<Shared>,
}

impl Shared {
    pub(super) fn new(
        (family, parent): (&Arc<Family>, Weak<Shared>),
        info: Arc<GroupInfo>,
        description: &str,
        store: Arc<dyn Store>,
        backends: Vec<(DeviceType, String)>,
        settings: Settings,
    ) -> Arc<Self> {
        let name = |device: DeviceType| {
            backends.iter().find(|(one, _)| *one == device).map(|(_, name)| name.as_str().into())
        };
        let slots = DeviceType::ALL.map(|device| Slot::new(name(device)));
        let record = family.recorder.add_group(&info.name, description, &info.ranks);
        let aborted = AbortedMember::new(&info, &store);
        let shared = Arc::new(Self {
            info,
            record,
            store,
            config: BackendConfig::Pairs(backends),
            settings,
            slots,
            collectives: AtomicU64::new(0),
            sends_and_receives: AtomicU64::new(0),
            parts: Mutex::default(),
            splits: Splits::default(),
            monitored_barriers: AtomicU64::new(0),
            unheard: Mutex::default(),
            failed_barriers: Mutex::default(),
            peers: Peers::new(),
            end: Arc::default(),
            hooks: Hooks::default(),
            noting: Mutex::default(),
            aborted,
            published: Mutex::default(),
            elsewhere: OnceLock::new(),
            family: Arc::clone(family),
            parent,
        });
        family.add(&shared);
        shared
    }

    /// What is left of it when this rank has left it: what is to be known to delete what stays of it in the store.
    pub(super) fn remains(&self) -> Self {
        let end = OnceLock::new();
        let dropped =
            || Error::Aborted { group: Arc::clone(&self.info.name), cause: "it was left".to_owned() };
        // (One of its own: that all handles are gone is to be said to this group's backends yet.)
        let _ = end.set(self.end.get().cloned().unwrap_or_else(dropped));
        let copy = |counter: &AtomicU64| AtomicU64::new(counter.load(Ordering::Relaxed));
        let failed = self.failed_barriers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self {
            info: Arc::clone(&self.info),
            // The recorder has no such group.
            record: u32::MAX,
            store: Arc::clone(&self.store),
            config: self.config.clone(),
            settings: self.settings.clone(),
            slots: DeviceType::ALL.map(|device| Slot::new(self.slot(device).name().cloned())),
            collectives: copy(&self.collectives),
            sends_and_receives: copy(&self.sends_and_receives),
            parts: Mutex::default(),
            splits: self.splits.copied(),
            monitored_barriers: copy(&self.monitored_barriers),
            unheard: Mutex::default(),
            failed_barriers: Mutex::new(failed),
            peers: self.peers.copied(),
            end: Arc::new(end),
            hooks: Hooks::default(),
            noting: Mutex::default(),
            aborted: AbortedMember::new(&self.info, &self.store),
            published: Mutex::default(),
            elsewhere: OnceLock::new(),
            family: Arc::clone(&self.family),
            parent: Weak::clone(&self.parent),
        }
    }

    pub(super) fn slot(&self, device: DeviceType) -> &Slot {
        &self.slots[device as usize]
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The mesh is over, as `error` of one of its calls says: ends its backend, and gives what that says of this and all later calls.
    /// Whoever has ended it before knows why: a deadline that has passed on this rank, for instance.
    pub(crate) fn end_mesh(&self, error: Error) -> Error {
        let Some(backend) = self.slot(DeviceType::Cuda).made() else { return error };
        backend.abort(&error);
        match backend.error() {
            None | Some(Error::ShutDown { .. }) => error,
            Some(cause) => cause,
        }
    }

    /// Counts one more call of its kind; gives both numbers. It is the turn of whoever counts ([`FlightRecorder::in_turn`]): on the way
    /// of each call one lock is enough.
    #[inline]
    pub(super) fn count(&self, is_point_to_point: bool) -> (u64, u64) {
        let counter = if is_point_to_point { &self.sends_and_receives } else { &self.collectives };
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.sequence_numbers()
    }

    pub(super) fn sequence_numbers(&self) -> (u64, u64) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (of(&self.collectives), of(&self.sends_and_receives))
    }

    /// Whether it takes calls.
    #[inline]
    pub(super) fn alive(&self) -> Result<(), Error> {
        self.own_process()?;
        match self.end.get() {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    /// Why nothing can come of a meeting of all ranks any more: it has ended, one of its backends has seen why, or another rank has told
    /// that it was aborted before it made one. It may ask the store.
    pub(super) fn is_hopeless(&self) -> Option<Error> {
        let of_backends = || self.slots().iter().find_map(|slot| slot.made()?.error());
        self.end.get().cloned().or_else(of_backends).or_else(|| self.aborted.look())
    }

    /// Whether this is the process that has made it, and not a forked child.
    #[inline]
    pub(crate) fn own_process(&self) -> Result<(), Error> {
        match self.family.process.is_past() {
            false => Ok(()),
            true => Err(Error::Forked { group: Arc::clone(&self.info.name) }),
        }
    }

    /// In a forked child: keeps everything that shares something with the parent, or waits for a thread that is not there, from being
    /// dropped.
    pub(super) fn leave_to_parent(&mut self) {
        std::mem::forget((Arc::clone(&self.family), Arc::clone(&self.store)));
        for slot in &mut self.slots {
            slot.leave_to_parent();
        }
    }

    pub(super) fn of_store(&self, error: StoreError) -> Error {
        Error::Store { group: Arc::clone(&self.info.name), source: Arc::new(error) }
    }

    /// The part of the group's store below `prefix`.
    pub(super) fn store_below(&self, prefix: &str) -> Result<Arc<dyn Store>, Error> {
        let store =
            PrefixStore::new(prefix, Arc::clone(&self.store)).map_err(|error| self.of_store(error))?;
        Ok(Arc::new(store))
    }

    /// The device of a kind that the group was made for.
    pub(super) fn device(&self, kind: DeviceType) -> Option<Device> {
        match kind {
            DeviceType::Cpu => Some(Device::Cpu),
            DeviceType::Cuda => self.settings.cuda_device.map(Device::Cuda),
        }
    }

    /// Refuses a call with tensors on a device that is not the group's. Of tensors without elements only the kind counts: nobody can
    /// tell where they are.
    pub(super) fn check_device(&self, call: &Call<'_>, device: Device) -> Result<(), Error> {
        let expected = self.device(device.kind());
        match expected == Some(device) || (expected.is_some() && call.is_empty()) {
            true => Ok(()),
            false => Err(Error::WrongDevice { device, expected, group: Arc::clone(&self.info.name) }),
        }
    }

    /// What a backend of this group is made of.
    pub(super) fn context(&self, kind: DeviceType) -> Result<BackendContext, Error> {
        let group = Arc::clone(&self.info.name);
        let missing =
            || Error::NoBackend { device: kind, group: Arc::clone(&group), config: self.config.to_string() };
        let name = self.slot(kind).name().ok_or_else(missing)?;
        let Some(device) = self.device(kind) else {
            let device = Device::Cuda(0);
            return Err(Error::WrongDevice { device, expected: None, group });
        };
        Ok(BackendContext {
            group: Arc::clone(&self.info),
            device,
            store: self.store_below(&format!("backend/{kind}/{name}"))?,
            timeout: self.settings.timeout,
            group_timeout: self.settings.timeout,
            deadline: self.settings.deadline,
            forbid_fallback: self.settings.forbid_fallback,
            registry: self.family.registry.clone(),
            end: Arc::clone(&self.end),
            dead_member: self.dead_member(),
            absent: self.absent_ranks(),
            lane: Arc::clone(self.slot(kind).lane()),
        })
    }

    /// What looks for a member that has died, as the groups know that this one was made from, or was aborted, as it has told.
    fn dead_member(&self) -> DeadMember {
        let (info, parent) = (Arc::clone(&self.info), Weak::clone(&self.parent));
        let aborted = AbortedMember::new(&self.info, &self.store);
        DeadMember::new(move || dead_member(&info, &parent).or_else(|| aborted.look()))
    }

    /// What looks which other ranks have told nothing, as all do before they make a backend, or are gone.
    fn absent_ranks(&self) -> AbsentRanks {
        let (info, store) = (Arc::clone(&self.info), Arc::clone(&self.store));
        AbsentRanks::new(move || {
            (0..info.world_size).filter(|rank| *rank != info.rank && is_gone(&*store, *rank)).collect()
        })
    }

    /// The backend for a kind of device, made if need be: for a call on this stream and with this deadline, if there is one. It is not
    /// made while the stream is being captured, and no step of it takes longer than the call may.
    pub(super) fn make(
        &self,
        kind: DeviceType,
        call: Option<(RawStream, Option<Duration>)>,
    ) -> Result<&Arc<dyn Backend>, Error> {
        let slot = self.slot(kind);
        if let Some(backend) = slot.made() {
            return Ok(backend);
        }
        let mut context = self.context(kind)?;
        if let Some((_, Some(deadline))) = call {
            context.timeout = context.timeout.min(deadline);
        }
        let name = Arc::clone(slot.name().unwrap_or(&self.info.name));
        if let (Device::Cuda(ordinal), Some((stream, _))) = (context.device, call)
            && super::dispatch::is_captured(ordinal, stream)
        {
            return Err(Error::MadeInCapture { group: Arc::clone(&self.info.name), backend: name });
        }
        let waits = context.timeout;
        let until = Instant::now().checked_add(waits);
        let late = || context.not_made(&name, format!("after {waits:?} another thread is still at it"));
        let made = slot.get_or_make(until, || self.alive(), late, || {
            // It may have ended while another thread was at it.
            self.alive()?;
            tracing::info!(group = &*self.info.name, backend = &*name, device = %context.device, "making a backend");
            self.publish_first_progress();
            if let Some(why) = context.dead_member.look() {
                return Err(why);
            }
            let made = self.family.registry.factory(&name)?.create(context.clone());
            // Where the end has ended that too, it says more than what came of it.
            made.map_err(|error| self.end.get().cloned().or_else(|| context.dead_member.look()).unwrap_or(error))
        })?;
        // An end that came meanwhile has not seen it.
        if let Some(cause) = self.end.get() {
            made.abort(cause);
        }
        self.family.watchdog.start();
        Ok(made)
    }
}
