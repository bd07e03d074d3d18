//! What a client asks.

use std::time::Duration;

use super::wire::Wire;
use super::{Client, Peer};
use crate::clock::{Deadline, Pause};
use crate::error::{check, check_key};
use crate::limits::MAX_VALUE;
use crate::table::sum;
use crate::tcp::protocol::{Opcode, Requests, SLASH, YES, batches};
use crate::{Store, StoreError};

/// Keys that are asked for one by one in one write. Their answers, a byte each, fit any socket's buffer.
const QUESTIONS: usize = 1000;

/// How long a server is waited for that does not always say when keys have come.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Client {
    /// Sends what the server does not answer, and sees to it that it has come: whoever asks then, on whatever connection, finds
    /// it done.
    fn tell(&self, requests: Requests) -> Result<(), StoreError> {
        self.exchange(requests.check_mark(), Wire::all_there).map(drop)
    }

    /// What is under `key` now.
    fn look(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let check = self.requests().keys(Opcode::Check, &[key]);
        if self.peer != Peer::Closing {
            // Two questions at once: what is not there is answered with an empty value, of which the first one tells.
            return self.exchange(check.key(Opcode::Get, key), |wire| {
                let is_there = wire.all_there()?;
                let value = wire.value()?;
                Ok(is_there.then_some(value))
            });
        }
        match self.exchange(check, Wire::all_there)? {
            true => self.exchange(self.requests().key(Opcode::Get, key), Wire::value).map(Some),
            false => Ok(None),
        }
    }

    /// Waits for `keys`, which fit one request; says whether they have come.
    fn come(&self, keys: &[&str], deadline: Deadline) -> Result<bool, StoreError> {
        loop {
            let until = match self.peer {
                Peer::Closing => deadline.sooner(Deadline::after(LOOK_AGAIN)),
                _ => deadline,
            };
            let is_over = deadline.has_passed();
            let requests = self.requests().keys(Opcode::Wait, keys);
            let has_come = self.exchange(requests, |wire| wire.has_come(until, self.numbering))?;
            let has_come = match (self.peer, has_come) {
                (Peer::Own, _) | (Peer::Closing, true) => return Ok(has_come),
                // It says so also when nothing has come.
                (Peer::Answering, true) => self.check(keys)?,
                (Peer::Answering, false) => return Ok(false),
                // It does not say so when something has.
                (Peer::Closing, false) => self.check(keys)?,
            };
            if has_come || is_over {
                return Ok(has_come);
            }
        }
    }

    /// Those of `keys` that are not there.
    fn missing<'a>(&self, keys: &[&'a str]) -> Result<Vec<&'a str>, StoreError> {
        let mut missing = Vec::new();
        for keys in keys.chunks(QUESTIONS) {
            let ask = |requests: Requests, key: &&str| requests.keys(Opcode::Check, &[key]);
            let requests = keys.iter().fold(self.requests(), ask);
            self.exchange(requests, |wire| {
                for key in keys {
                    if !wire.all_there()? {
                        missing.push(*key);
                    }
                }
                Ok(())
            })?;
        }
        Ok(missing)
    }

    fn need_queues(&self, operation: &'static str) -> Result<(), StoreError> {
        let ask = || self.requests().mark(Opcode::QueueLen);
        match self.has(&self.known.queues, ask, |wire| wire.count().map(drop))? {
            true => Ok(()),
            false => Err(StoreError::NotSupported { operation }),
        }
    }
}

fn missed(key: &str, waited: Duration) -> StoreError {
    StoreError::Timeout { keys: vec![key.to_owned()], waited }
}

impl Store for Client {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check(key, value)?;
        self.tell(self.requests().value(Opcode::Set, key, value))
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        check_key(key)?;
        let deadline = Deadline::after(timeout);
        if self.peer == Peer::Closing {
            return match self.come(&[key], deadline)? {
                true => self.exchange(self.requests().key(Opcode::Get, key), Wire::value),
                false => self.look(key)?.ok_or_else(|| missed(key, timeout)),
            };
        }
        loop {
            // Looked at before the key: only what was missing after the end is reported.
            let is_over = deadline.has_passed();
            match self.look(key)? {
                Some(value) => return Ok(value),
                None if is_over => return Err(missed(key, timeout)),
                None => {}
            }
            let requests = self.requests().keys(Opcode::Wait, &[key]);
            self.exchange(requests, |wire| wire.has_come(deadline, self.numbering))?;
        }
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        keys.iter().try_for_each(|key| check_key(key))?;
        for keys in batches(keys, |key| key.len()) {
            if !self.exchange(self.requests().keys(Opcode::Check, keys), Wire::all_there)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let deadline = Deadline::after(timeout);
        let mut left = keys;
        // Most waits fit one request. Where they do not, the parts are waited for one after another.
        for part in batches(keys, |key| key.len()) {
            if !self.come(part, deadline)? {
                let missing = self.missing(left)?;
                return match missing.is_empty() {
                    true => Ok(()),
                    false => {
                        let keys = missing.into_iter().map(str::to_owned).collect();
                        Err(StoreError::Timeout { keys, waited: timeout })
                    }
                };
            }
            left = &left[part.len()..];
        }
        Ok(())
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        check_key(key)?;
        let corrupt =
            |problem: &str| StoreError::Corrupt { key: key.to_owned(), problem: problem.to_owned() };
        match self.exchange(self.requests().number(Opcode::Add, key, delta), Wire::number) {
            // Torch's servers do not mind when a sum is beyond what they keep it in.
            Ok(sum) if sum.wrapping_sub(delta).checked_add(delta).is_none() => {
                Err(corrupt("the sum is beyond 64 bits"))
            }
            Err(refused @ StoreError::Refused { .. }) => match sum(self.look(key)?.as_deref(), delta) {
                Err(problem) => Err(corrupt(problem)),
                Ok(_) => Err(refused),
            },
            other => other,
        }
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
        check(key, desired)?;
        if expected.len() > MAX_VALUE {
            // No value is so long.
            return Ok(self.look(key)?.unwrap_or_else(|| expected.to_vec()));
        }
        self.exchange(self.requests().compare_set(key, expected, desired), Wire::value)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        check_key(key)?;
        self.exchange(self.requests().key(Opcode::Delete, key), Wire::number).map(|count| count > 0)
    }

    fn append(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check(key, value)?;
        match self.tell(self.requests().value(Opcode::Append, key, value)) {
            Err(refused @ StoreError::Refused { .. }) => {
                match self.look(key)?.map_or(0, |old| old.len()) + value.len() {
                    bytes if bytes > MAX_VALUE => {
                        Err(StoreError::ValueTooLong { key: key.to_owned(), bytes })
                    }
                    _ => Err(refused),
                }
            }
            other => other,
        }
    }

    fn multi_get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, StoreError> {
        self.wait(keys, timeout)?;
        let mut values = Vec::new();
        for keys in batches(keys, |key| key.len()) {
            self.exchange(self.requests().keys(Opcode::MultiGet, keys), |wire| {
                for _ in keys {
                    values.push(wire.value()?);
                }
                Ok(())
            })?;
        }
        Ok(values)
    }

    fn multi_set(&self, pairs: &[(&str, &[u8])]) -> Result<(), StoreError> {
        pairs.iter().try_for_each(|(key, value)| check(key, value))?;
        let parts = batches(pairs, |(key, value)| key.len() + value.len());
        parts.into_iter().try_for_each(|pairs| self.tell(self.requests().multi_set(pairs)))
    }

    fn list_keys(&self) -> Result<Vec<String>, StoreError> {
        let read = |wire: &mut Wire| {
            let mut keys = Vec::new();
            for _ in 0..wire.count()? {
                // Keys without a slash are nobody's: c10d's own.
                if let Some(key) = wire.value()?.strip_prefix(SLASH.as_bytes()) {
                    keys.push(String::from_utf8_lossy(key).into_owned());
                }
            }
            Ok(keys)
        };
        let ask = || self.requests().bare(Opcode::ListKeys);
        let mut keys = None;
        let note = |wire: &mut Wire| {
            keys = Some(read(wire)?);
            Ok(())
        };
        match self.has(&self.known.list_keys, ask, note)? {
            true => keys.map_or_else(|| self.exchange(ask(), read), Ok),
            false => Err(StoreError::NotSupported { operation: "list_keys" }),
        }
    }

    fn num_keys(&self) -> Result<u64, StoreError> {
        self.exchange(self.requests().bare(Opcode::NumKeys), Wire::count)
    }

    fn queue_push(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check(key, value)?;
        self.need_queues("queue_push")?;
        self.tell(self.requests().value(Opcode::QueuePush, key, value))
    }

    fn queue_pop(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        check_key(key)?;
        self.need_queues("queue_pop")?;
        let deadline = Deadline::after(timeout);
        let mut pause = Pause::new(timeout);
        loop {
            // As in `get`.
            let is_over = deadline.has_passed();
            let value =
                self.exchange(self.requests().key(Opcode::QueuePop, key), |wire| match wire.count()? {
                    0 => Ok(None),
                    _ => wire.value().map(Some),
                })?;
            match value {
                Some(value) => return Ok(value),
                None if is_over => return Err(missed(key, timeout)),
                None => {}
            }
            let requests = self.requests().keys(Opcode::Wait, &[key]);
            if self.exchange(requests, |wire| wire.has_come(deadline, self.numbering))? {
                // Others may be faster, again and again; or there is a value of this name, for which no wait is one.
                pause.again();
            }
        }
    }

    fn queue_len(&self, key: &str) -> Result<u64, StoreError> {
        check_key(key)?;
        self.need_queues("queue_len")?;
        self.exchange(self.requests().key(Opcode::QueueLen, key), Wire::count)
    }

    fn barrier(&self, key: &str, world_size: usize, timeout: Duration) -> Result<(), StoreError> {
        check_key(key)?;
        // A barrier of one leaves a key behind on torch's servers.
        let ask = || self.requests().mark_barrier().mark(Opcode::Delete);
        let read = |wire: &mut Wire| {
            wire.expect(YES)?;
            wire.number().map(drop)
        };
        if !self.has(&self.known.barrier, ask, read)? {
            return crate::barrier_of_keys(self, key, world_size, timeout);
        }
        let deadline = Deadline::after(timeout);
        let world_size = i64::try_from(world_size).unwrap_or(i64::MAX);
        let requests = self.requests().number(Opcode::Barrier, key, world_size);
        match self.exchange(requests, |wire| wire.has_come(deadline, self.numbering))? {
            true => Ok(()),
            false => Err(missed(key, timeout)),
        }
    }
}
