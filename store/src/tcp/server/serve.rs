//! What is done for a request.

use std::task::Waker;

use super::Limits;
use super::buffers::Buffer;
use crate::codec::{Malformed, Reader};
use crate::limits::MAX_VALUE;
use crate::table::{Table, WaitId, awaited};
use crate::tcp::protocol::{CANCELED, LONGEST_KEY, MAGIC, MARK, MOST_MEMBERS, NO, Numbering, Opcode, YES};

/// Members of a list that are served in one go, before others have their turn.
pub(super) const SLICE: usize = 512;

/// Replies that may lie there before a client that does not take them is left alone.
pub(super) const HIGH_WATER: usize = 1 << 20;

/// What a client waits for.
#[derive(Debug)]
pub(super) enum Held {
    Wait(WaitId),
    Barrier(Box<[u8]>, WaitId),
}

impl Held {
    pub(super) fn is_over(&self, table: &Table) -> bool {
        match self {
            Self::Wait(id) => !table.is_waiting(*id),
            Self::Barrier(key, id) => !table.is_at_barrier(key, *id),
        }
    }

    pub(super) fn cancel(self, table: &mut Table) {
        match self {
            Self::Wait(id) => table.abandon(id),
            Self::Barrier(key, id) => table.leave_barrier(&key, id),
        }
    }
}

/// A request about a list that has been served in part.
#[derive(Debug)]
pub(super) struct Task {
    opcode: Opcode,
    /// Where the next member begins, from the beginning of the request.
    at: usize,
    members: u64,
    /// A wait whose keys are being noted.
    wait: Option<WaitId>,
}

impl Task {
    pub(super) fn cancel(self, table: &mut Table) {
        if let Some(id) = self.wait {
            table.abandon(id);
        }
    }
}

/// What a request is served with.
pub(super) struct Service<'a> {
    pub(super) table: &'a mut Table,
    pub(super) limits: &'a Limits,
    pub(super) output: &'a mut Buffer,
    pub(super) held: &'a mut Option<Held>,
    pub(super) waker: &'a Waker,
}

fn full() -> Malformed {
    Malformed::wrong("there is no room for more")
}

impl Service<'_> {
    fn byte(&mut self, value: u8) {
        self.output.end().push(value);
    }

    fn number(&mut self, value: i64) {
        self.output.end().extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as i64);
        self.output.end().extend_from_slice(bytes);
    }

    /// An absent value is an empty one, as torch's server (with libuv) says.
    fn value_of(&mut self, key: &[u8]) {
        let out = self.output.end();
        let value = self.table.get(key).unwrap_or_default();
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        out.extend_from_slice(value);
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        if !self.table.has_room(key, value.len()) {
            return Err(full());
        }
        self.table.set(key, value);
        Ok(())
    }

    /// Serves a whole request, or the first part of it.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for what is not served: the client has to go.
    pub(super) fn serve(&mut self, request: &[u8], numbering: Numbering) -> Result<Option<Task>, Malformed> {
        let mut from = Reader::new(request);
        let opcode = Opcode::from_byte(from.u8()?, numbering)?;
        match opcode {
            // The connection has seen to it that this is the first request and the only one of its kind.
            Opcode::Validate => match from.u32()? {
                MAGIC => {}
                other => {
                    return Err(Malformed::wrong(format!("{other:#x} is not what a client begins with")));
                }
            },
            Opcode::Ping => {
                let nonce = from.array::<4>()?;
                self.output.end().extend_from_slice(&nonce);
            }
            Opcode::Set => {
                let (key, value) = pair(&mut from)?;
                self.set(key, value)?;
            }
            Opcode::CompareSet => {
                let (key, expected) = pair(&mut from)?;
                let desired = from.bytes(MAX_VALUE)?;
                if !self.table.has_room(key, desired.len()) {
                    return Err(full());
                }
                let found = self.table.compare_set(key, expected, desired);
                self.bytes(&found);
            }
            Opcode::Get => self.value_of(from.bytes(LONGEST_KEY)?),
            Opcode::Add => {
                /// Of the longest number.
                const DIGITS: usize = 20;
                let (key, delta) = (from.bytes(LONGEST_KEY)?, from.i64()?);
                if !self.table.has_room(key, DIGITS) {
                    return Err(full());
                }
                let sum = self.table.add(key, delta).map_err(Malformed::wrong)?;
                self.number(sum);
            }
            Opcode::Check => {
                let keys = from.list(|from| from.bytes(LONGEST_KEY))?;
                let all = self.table.check(keys.into_iter().filter(|key| *key != MARK));
                self.byte(if all { YES } else { NO });
            }
            Opcode::Wait | Opcode::MultiGet | Opcode::MultiSet => {
                let members = from.u64()?;
                debug_assert!(members <= MOST_MEMBERS as u64, "the scanner refuses more");
                let wait = (opcode == Opcode::Wait).then(|| self.open_wait()).transpose()?;
                return self.go_on(Task { opcode, at: from.position(), members, wait }, request);
            }
            Opcode::NumKeys => {
                let keys = self.table.keys().len();
                self.number(keys as i64);
            }
            Opcode::Delete => {
                let was_there = self.table.delete(from.bytes(LONGEST_KEY)?);
                self.number(i64::from(was_there));
            }
            Opcode::Append => {
                let (key, value) = pair(&mut from)?;
                let bytes = self.table.get(key).map_or(0, <[u8]>::len) + value.len();
                if bytes > MAX_VALUE || !self.table.has_room(key, bytes) {
                    return Err(full());
                }
                self.table.append(key, value);
            }
            Opcode::CancelWait => {
                if let Some(held) = self.held.take() {
                    held.cancel(self.table);
                }
                self.byte(CANCELED);
            }
            Opcode::QueuePush => {
                let (key, value) = pair(&mut from)?;
                if !self.table.has_queue_room(key, value.len()) {
                    return Err(full());
                }
                self.table.queue_push(key, value);
            }
            Opcode::QueuePop => {
                let key = from.bytes(LONGEST_KEY)?;
                self.number(self.table.queue_len(key) as i64);
                let value = self.table.queue_pop(key);
                value.iter().for_each(|value| self.bytes(value));
            }
            Opcode::QueueLen => self.number(self.table.queue_len(from.bytes(LONGEST_KEY)?) as i64),
            Opcode::ListKeys => self.list_keys()?,
            Opcode::Barrier => {
                let (key, world_size) = (from.bytes(LONGEST_KEY)?, from.i64()?);
                self.holds_nothing()?;
                // As torch's: nobody waits for a world of none.
                let world_size = usize::try_from(world_size).unwrap_or(0);
                match self.table.barrier(key, world_size, self.waker.clone()) {
                    Some(id) => *self.held = Some(Held::Barrier(key.into(), id)),
                    None => self.byte(YES),
                }
            }
        }
        from.end()?;
        Ok(None)
    }

    /// No client waits twice at once: it could not tell the answers apart.
    fn holds_nothing(&self) -> Result<(), Malformed> {
        match self.held {
            Some(_) => Err(Malformed::wrong("a second wait before the first one was over")),
            None => Ok(()),
        }
    }

    fn open_wait(&mut self) -> Result<WaitId, Malformed> {
        self.holds_nothing()?;
        Ok(self.table.open_wait(self.waker.clone()))
    }

    /// Serves the next part of a request.
    pub(super) fn go_on(&mut self, mut task: Task, request: &[u8]) -> Result<Option<Task>, Malformed> {
        match self.part(&mut task, request) {
            Ok(true) => Ok(None),
            Ok(false) => Ok(Some(task)),
            Err(error) => {
                task.cancel(self.table);
                Err(error)
            }
        }
    }

    /// Whether that was the last part.
    fn part(&mut self, task: &mut Task, request: &[u8]) -> Result<bool, Malformed> {
        let mut from = Reader::new(request);
        from.raw(task.at)?;
        for _ in 0..SLICE {
            if task.members == 0 {
                break;
            }
            let key = from.bytes(LONGEST_KEY)?;
            match task.wait {
                Some(_) if self.table.awaited() + awaited(key) > self.limits.awaited => return Err(full()),
                Some(id) => self.table.wait_for(id, key),
                None if task.opcode == Opcode::MultiGet => {
                    self.value_of(key);
                }
                None => {
                    let value = from.bytes(MAX_VALUE)?;
                    self.set(key, value)?;
                }
            }
            task.members -= 1;
            if self.output.len() >= HIGH_WATER {
                break;
            }
        }
        task.at = from.position();
        if task.members > 0 {
            return Ok(false);
        }
        from.end()?;
        match task.wait.take() {
            Some(id) if self.table.close_wait(id) => *self.held = Some(Held::Wait(id)),
            Some(_) => self.byte(YES),
            None => {}
        }
        Ok(true)
    }

    fn list_keys(&mut self) -> Result<(), Malformed> {
        let bytes: usize = self.table.keys().map(|key| 8 + key.len()).sum();
        if bytes > self.limits.list {
            return Err(Malformed::wrong(format!("a list of all keys would have {bytes} bytes")));
        }
        let out = self.output.end();
        let keys = self.table.keys();
        out.extend_from_slice(&(keys.len() as u64).to_le_bytes());
        for key in keys {
            out.extend_from_slice(&(key.len() as u64).to_le_bytes());
            out.extend_from_slice(key);
        }
        Ok(())
    }
}

fn pair<'a>(from: &mut Reader<'a>) -> Result<(&'a [u8], &'a [u8]), Malformed> {
    Ok((from.bytes(LONGEST_KEY)?, from.bytes(MAX_VALUE)?))
}
