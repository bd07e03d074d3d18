//! The channels of an endpoint: how they are made, called, and end.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use super::{Connection, Look};
use crate::channel::{Activity, Batch, Channel, Io, Offer, Operation, Pair, RegionPart};
use crate::counter::written::Written;
use crate::error::Error;
use crate::link::{Kind, Outbox, Outgoing};
use crate::progress::missed::Missed;
use crate::progress::slot::{Slot, guarded};
use crate::registry::Kinds;

impl Connection {
    /// Begins a transfer.
    pub(in crate::progress) fn start(
        &mut self,
        pair: Pair,
        operation: Operation,
        kinds: &Kinds,
        now: Instant,
    ) {
        match self.channel(pair, kinds) {
            Err(error) => operation.ticket.fail(error),
            Ok(id) => self.call(id, now, |channel, io| channel.start(operation, io)),
        }
    }

    /// Begins a batch of writes.
    pub(in crate::progress) fn write(&mut self, pair: Pair, batch: Batch, kinds: &Kinds, now: Instant) {
        match self.channel(pair, kinds) {
            Err(error) => {
                // The other side may never have heard of the channel, or have made the counter when it was over.
                self.refused(pair, batch.counter, &error);
                batch.ticket.fail(error);
            }
            Ok(id) => {
                if let Some(Slot::Open { written, .. }) = self.channels.get_mut(&id) {
                    written.add(batch.counter);
                }
                self.call(id, now, |channel, io| channel.write(batch, io));
            }
        }
    }

    /// A batch for one of the other side's counters was refused before it had begun.
    pub(in crate::progress) fn refused(&mut self, pair: Pair, counter: u32, why: &Error) {
        self.tell_missed(self.shared.channel_of(pair).unwrap_or_default(), vec![counter], why);
    }

    /// Regions of this side are being given up.
    pub(in crate::progress) fn withdraw(&mut self, parts: &[Arc<dyn RegionPart>], now: Instant) {
        let open: Vec<u32> = self.channels.keys().copied().collect();
        for part in parts {
            for id in &open {
                self.call(*id, now, |channel, io| channel.withdraw(part, io));
            }
        }
    }

    /// The number of the channel for a pair, which is open.
    pub(super) fn channel(&mut self, pair: Pair, kinds: &Kinds) -> Result<u32, Error> {
        if let Some(cause) = self.shared.cause() {
            return Err(cause.clone());
        }
        let id = self.shared.channel_of(pair).ok_or_else(|| self.shared.no_channel(pair, kinds))?;
        match self.channels.get(&id) {
            Some(Slot::Open { .. }) => Ok(id),
            Some(Slot::Over(error)) => Err(error.clone()),
            None => match self.connect(pair, kinds) {
                Ok(channel) => {
                    let written = Written::default();
                    self.channels.insert(id, Slot::Open { channel, is_active: true, written });
                    Ok(id)
                }
                Err(error) => {
                    self.tell_failed(id, &error);
                    // There is nothing that could use what is the other side's.
                    self.queue.push(Outgoing::control(Kind::Quiet, id, Vec::new()));
                    self.channels.insert(id, Slot::Over(error.clone()));
                    self.shared.counters().fail_of(id, &error);
                    Err(error)
                }
            },
        }
    }

    pub(super) fn connect(&self, pair: Pair, kinds: &Kinds) -> Result<Box<dyn Channel>, Error> {
        let shared = &self.shared;
        let (Some(name), Some((local, remote))) = (shared.kind_of(pair), shared.descriptors(pair)) else {
            return Err(shared.no_channel(pair, kinds));
        };
        let Some(context) = kinds.by_name(name) else { return Err(shared.no_channel(pair, kinds)) };
        let peer = Arc::clone(shared.peer());
        let offer = Offer { pair, side: shared.side(), local, remote, peer };
        tracing::debug!(%pair, channel = name, peer = %shared.peer(), "a channel is made");
        guarded(name, || context.connect(offer)).map_err(|failure| failure.error)
    }

    /// Calls an open channel, and ends it if it says so.
    pub(super) fn call(
        &mut self,
        id: u32,
        now: Instant,
        call: impl FnOnce(&mut dyn Channel, &mut Io<'_>) -> Result<(), Error>,
    ) {
        let Some(Slot::Open { channel, is_active, .. }) = self.channels.get_mut(&id) else { return };
        *is_active = true;
        let outbox = Outbox::new(&mut self.queue, id);
        let mut io = Io { outbox, counters: self.shared.counters(), now };
        let name = self.shared.name_of(id);
        if let Err(failure) = guarded(name, || call(&mut **channel, &mut io).and_then(|()| io.check(name))) {
            self.tell_failed(id, &failure.error);
            self.end_channel(id, &failure.error, failure.has_panicked);
        }
    }

    pub(super) fn tell_failed(&mut self, id: u32, error: &Error) {
        let text = error.told().into_bytes();
        self.queue.push(Outgoing::control(Kind::Failed, id, text));
    }

    /// Tells the other side for which of its counters nothing more comes over a channel. One that counts batches of another channel
    /// too, or of none yet, does not learn it from the end of this one. The end of the whole endpoint it learns in any case.
    pub(super) fn tell_missed(&mut self, id: u32, counters: Vec<u32>, why: &Error) {
        if self.shared.cause().is_none() {
            let missed = Missed { counters, why: why.told() };
            missed.encode().for_each(|body| self.queue.push(Outgoing::control(Kind::Missed, id, body)));
        }
    }

    /// Ends a channel. What is left of one that has panicked cannot be relied on: it is dropped, and with it its tickets.
    pub(super) fn end_channel(&mut self, id: u32, cause: &Error, has_panicked: bool) {
        if matches!(self.channels.get(&id), Some(Slot::Over(_))) {
            // Both halves have failed at the same time. Whether and when this one is quiet is said when it is known, and once.
            return;
        }
        self.shared.counters().fail_of(id, cause);
        let before = self.channels.insert(id, Slot::Over(cause.clone()));
        let Some(Slot::Open { mut channel, written, .. }) = before else {
            // There never was anything of it here.
            return self.queue.push(Outgoing::control(Kind::Quiet, id, Vec::new()));
        };
        self.tell_missed(id, written.into_counters(), cause);
        let name = self.shared.name_of(id);
        let is_whole = !has_panicked
            && guarded(name, || {
                channel.end(cause);
                Ok(())
            })
            .is_ok();
        if !is_whole {
            self.leaving.spoil();
            let _ = guarded(name, || {
                drop(channel);
                Ok(())
            });
        } else if self.leaving.push(id, channel) {
            self.queue.push(Outgoing::control(Kind::Quiet, id, Vec::new()));
        }
    }

    pub(super) fn poll_channels(&mut self, look: Look<'_>) -> Activity {
        let mut activity = Activity::Idle;
        let mut failed = Vec::new();
        for (id, slot) in &mut self.channels {
            let Slot::Open { channel, is_active, .. } = slot else { continue };
            if !*is_active && !look.at_all {
                continue;
            }
            let outbox = Outbox::new(&mut self.queue, *id);
            let mut io = Io { outbox, counters: self.shared.counters(), now: look.now };
            let name = self.shared.name_of(*id);
            match guarded(name, || channel.poll(&mut io).and_then(|one| io.check(name).map(|()| one))) {
                Ok(one) => {
                    *is_active = one != Activity::Idle;
                    activity = activity.max(one);
                }
                Err(failure) => failed.push((*id, failure)),
            }
        }
        for (id, failure) in failed {
            self.tell_failed(id, &failure.error);
            self.end_channel(id, &failure.error, failure.has_panicked);
            activity = Activity::Moved;
        }
        activity
    }
}
