//! What a store in memory holds: values, queues, and who waits for which key.
//!
//! Keys are bytes here, because clients of c10d may send any. Whoever waits is indexed by the keys that are missing, so that a
//! change costs what those cost who wait for its key, and nothing for the others.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::task::Waker;

/// The number of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WaitId(u64);

#[derive(Debug)]
struct Wait {
    /// What has not been there since the wait began.
    missing: BTreeSet<Box<[u8]>>,
    waker: Waker,
    /// Whether more keys may still come.
    is_open: bool,
}

/// About what an entry costs beside its key and its value, so that many small ones are counted for what they take.
const ENTRY: usize = 64;

/// About what a key costs that is waited for, beside itself, which is kept twice.
const AWAITED: usize = 256;

#[derive(Debug)]
pub(crate) struct Table {
    values: BTreeMap<Box<[u8]>, Vec<u8>>,
    /// None is empty.
    queues: HashMap<Box<[u8]>, VecDeque<Vec<u8>>>,
    /// None is empty.
    waiting: HashMap<Box<[u8]>, BTreeSet<WaitId>>,
    waits: HashMap<WaitId, Wait>,
    /// Who has come to a barrier. None is empty.
    barriers: HashMap<Box<[u8]>, BTreeMap<WaitId, Waker>>,
    /// Waits that are over and still in `waiting`.
    leaving: Vec<(WaitId, BTreeSet<Box<[u8]>>)>,
    next: u64,
    bytes: usize,
    entries: usize,
    /// What the keys in `waiting` take.
    awaited: usize,
    /// The most that entries may take.
    most: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self::with_room(usize::MAX)
    }
}

impl Table {
    /// An empty one for so many bytes of keys and values, and [`ENTRY`] more for each.
    pub(crate) fn with_room(most: usize) -> Self {
        Self {
            values: BTreeMap::new(),
            queues: HashMap::new(),
            waiting: HashMap::new(),
            waits: HashMap::new(),
            barriers: HashMap::new(),
            leaving: Vec::new(),
            next: 0,
            bytes: 0,
            entries: 0,
            awaited: 0,
            most,
        }
    }

    /// Bytes of all keys and values.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that are left for keys and values.
    pub(crate) fn room(&self) -> usize {
        self.most.saturating_sub(self.bytes + ENTRY * self.entries)
    }

    /// Whether there is room for a value of so many bytes in the place of what is under `key`.
    pub(crate) fn has_room(&self, key: &[u8], bytes: usize) -> bool {
        let room = self.room();
        key.len() + bytes + ENTRY <= room
            || self.values.get(key).is_some_and(|old| bytes <= old.len().saturating_add(room))
    }

    /// Whether there is room for one more value in a queue.
    pub(crate) fn has_queue_room(&self, key: &[u8], bytes: usize) -> bool {
        key.len() + bytes + ENTRY <= self.room()
    }

    /// About how many bytes the keys take that are waited for.
    pub(crate) fn awaited(&self) -> usize {
        self.awaited
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice)
    }

    /// Whether there is a value, or something in a queue, under each of `keys`.
    pub(crate) fn check<'a>(&self, keys: impl IntoIterator<Item = &'a [u8]>) -> bool {
        keys.into_iter().all(|key| self.has(key))
    }

    fn has(&self, key: &[u8]) -> bool {
        self.values.contains_key(key) || self.queues.contains_key(key)
    }

    pub(crate) fn set(&mut self, key: &[u8], value: &[u8]) {
        self.bytes += value.len();
        match self.values.get_mut(key) {
            Some(old) => self.bytes -= std::mem::replace(old, value.to_vec()).len(),
            None => {
                self.bytes += key.len();
                self.entries += 1;
                self.values.insert(key.into(), value.to_vec());
                self.has_come(key);
            }
        }
    }

    /// As c10d's: the value that is there now, and `expected` if nothing is.
    pub(crate) fn compare_set(&mut self, key: &[u8], expected: &[u8], desired: &[u8]) -> Vec<u8> {
        match self.values.get(key) {
            None if !expected.is_empty() => return expected.to_vec(),
            Some(found) if found != expected => return found.clone(),
            _ => self.set(key, desired),
        }
        desired.to_vec()
    }

    /// What [`sum`] makes of the value.
    pub(crate) fn add(&mut self, key: &[u8], delta: i64) -> Result<i64, &'static str> {
        let sum = sum(self.get(key), delta)?;
        self.set(key, sum.to_string().as_bytes());
        Ok(sum)
    }

    pub(crate) fn append(&mut self, key: &[u8], value: &[u8]) {
        match self.values.get_mut(key) {
            Some(old) => {
                old.extend_from_slice(value);
                self.bytes += value.len();
            }
            None => self.set(key, value),
        }
    }

    pub(crate) fn delete(&mut self, key: &[u8]) -> bool {
        let old = self.values.remove(key);
        self.bytes -= old.as_ref().map_or(0, |value| key.len() + value.len());
        self.entries -= usize::from(old.is_some());
        old.is_some()
    }

    pub(crate) fn keys(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.values.keys().map(|key| &key[..])
    }

    pub(crate) fn queue_push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes += key.len() + value.len();
        self.entries += 1;
        self.queues.entry(key.into()).or_default().push_back(value.to_vec());
        // One value is for one of those who wait for it; the others would find nothing.
        let mut waits = self.waiting.get(key).into_iter().flatten();
        let first = waits.find(|id| self.waits.contains_key(id)).copied();
        if let Some(id) = first {
            self.has_come_for(key, id);
        }
    }

    pub(crate) fn queue_pop(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        let queue = self.queues.get_mut(key)?;
        let value = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(key);
        }
        self.bytes -= key.len() + value.len();
        self.entries -= 1;
        Some(value)
    }

    pub(crate) fn queue_len(&self, key: &[u8]) -> usize {
        self.queues.get(key).map_or(0, VecDeque::len)
    }

    fn id(&mut self) -> WaitId {
        self.next += 1;
        WaitId(self.next)
    }

    /// Wakes `waker` once each of `keys` has been there; `None` if each is.
    pub(crate) fn wait<'a>(
        &mut self,
        keys: impl IntoIterator<Item = &'a [u8]>,
        waker: Waker,
    ) -> Option<WaitId> {
        let id = self.open_wait(waker);
        keys.into_iter().for_each(|key| self.wait_for(id, key));
        self.close_wait(id).then_some(id)
    }

    /// Begins a wait whose keys come by [`Table::wait_for`], up to [`Table::close_wait`]: so that a wait for very many need
    /// not be one step.
    pub(crate) fn open_wait(&mut self, waker: Waker) -> WaitId {
        let id = self.id();
        self.waits.insert(id, Wait { missing: BTreeSet::new(), waker, is_open: true });
        id
    }

    /// One more key, unless it is there.
    pub(crate) fn wait_for(&mut self, id: WaitId, key: &[u8]) {
        if !self.has(key)
            && let Some(wait) = self.waits.get_mut(&id)
            && wait.missing.insert(key.into())
        {
            self.awaited += awaited(key);
            self.waiting.entry(key.into()).or_default().insert(id);
        }
    }

    /// No more keys; whether there is something to wait for.
    pub(crate) fn close_wait(&mut self, id: WaitId) -> bool {
        match self.waits.get_mut(&id) {
            Some(wait) if !wait.missing.is_empty() => wait.is_open = false,
            _ => drop(self.waits.remove(&id)),
        }
        self.is_waiting(id)
    }

    /// Whether somebody still waits under this number.
    pub(crate) fn is_waiting(&self, id: WaitId) -> bool {
        self.waits.contains_key(&id)
    }

    /// Ends a wait; returns the keys that have not been there.
    pub(crate) fn cancel(&mut self, id: WaitId) -> BTreeSet<Box<[u8]>> {
        let Some(wait) = self.waits.remove(&id) else { return BTreeSet::new() };
        for key in &wait.missing {
            self.forget(key, id);
        }
        wait.missing
    }

    /// Ends a wait that nobody asks about any more. What it leaves behind goes with [`Table::tidy`].
    pub(crate) fn abandon(&mut self, id: WaitId) {
        if let Some(wait) = self.waits.remove(&id) {
            self.leaving.push((id, wait.missing));
        }
    }

    /// Takes away as many keys of waits that were abandoned; says whether there are more.
    pub(crate) fn tidy(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some((id, keys)) = self.leaving.last_mut() else { return false };
            let id = *id;
            match keys.pop_first() {
                Some(key) => self.forget(&key, id),
                None => drop(self.leaving.pop()),
            }
        }
        !self.leaving.is_empty()
    }

    fn forget(&mut self, key: &[u8], id: WaitId) {
        if let Some(waits) = self.waiting.get_mut(key) {
            if waits.remove(&id) {
                self.awaited -= awaited(key);
            }
            if waits.is_empty() {
                self.waiting.remove(key);
            }
        }
    }

    fn has_come(&mut self, key: &[u8]) {
        let waits = self.waiting.remove(key).unwrap_or_default();
        self.awaited -= waits.len() * awaited(key);
        for id in waits {
            self.has_come_for(key, id);
        }
    }

    fn has_come_for(&mut self, key: &[u8], id: WaitId) {
        self.forget(key, id);
        if let Some(wait) = self.waits.get_mut(&id) {
            wait.missing.remove(key);
            if wait.missing.is_empty()
                && !wait.is_open
                && let Some(wait) = self.waits.remove(&id)
            {
                wait.waker.wake();
            }
        }
    }

    /// Comes to a barrier: `None` for the last one, which wakes all others and opens a new round.
    pub(crate) fn barrier(&mut self, key: &[u8], world_size: usize, waker: Waker) -> Option<WaitId> {
        let arrived = self.barriers.entry(key.into()).or_default();
        if arrived.len() + 1 >= world_size {
            let arrived = self.barriers.remove(key);
            arrived.into_iter().flatten().for_each(|(_, waker)| waker.wake());
            return None;
        }
        self.next += 1;
        let id = WaitId(self.next);
        arrived.insert(id, waker);
        Some(id)
    }

    /// Whether the others have not come yet.
    pub(crate) fn is_at_barrier(&self, key: &[u8], id: WaitId) -> bool {
        self.barriers.get(key).is_some_and(|arrived| arrived.contains_key(&id))
    }

    /// Goes away from a barrier.
    pub(crate) fn leave_barrier(&mut self, key: &[u8], id: WaitId) {
        if let Some(arrived) = self.barriers.get_mut(key) {
            arrived.remove(&id);
            if arrived.is_empty() {
                self.barriers.remove(key);
            }
        }
    }
}

/// About what a key takes that somebody waits for.
pub(crate) fn awaited(key: &[u8]) -> usize {
    2 * key.len() + AWAITED
}

/// What `add` makes of the value under a key.
pub(crate) fn sum(value: Option<&[u8]>, delta: i64) -> Result<i64, &'static str> {
    let old = match value {
        Some(value) => std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse::<i64>().ok())
            .ok_or("it is no number")?,
        None => 0,
    };
    old.checked_add(delta).ok_or("the sum is beyond 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waker() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (Arc::clone(&count), count.into())
    }

    fn woken(count: &Count) -> usize {
        count.0.load(Ordering::Relaxed)
    }

    #[test]
    fn a_wait_ends_with_its_last_key_and_once() {
        let mut table = Table::default();
        let (count, waker) = waker();
        table.set(b"a", b"");
        let id = table.wait([&b"a"[..], b"b", b"c", b"c"], waker).unwrap();
        table.set(b"c", b"");
        table.delete(b"c");
        assert!(table.is_waiting(id));
        table.set(b"b", b"");
        assert_eq!(woken(&count), 1, "c has been there");
        assert!(!table.is_waiting(id));
        table.set(b"b", b"again");
        assert_eq!(woken(&count), 1);
        assert!(table.waiting.is_empty() && table.waits.is_empty());
    }

    #[test]
    fn a_wait_that_is_cancelled_leaves_nothing_and_names_what_is_missing() {
        let mut table = Table::default();
        let (_, waker) = waker();
        assert_eq!(table.wait([], waker.clone()), None);
        let id = table.wait([&b"a"[..], b"b"], waker).unwrap();
        table.set(b"a", b"1");
        assert_eq!(table.cancel(id).into_iter().collect::<Vec<_>>(), [b"b"[..].into()]);
        assert!(table.waiting.is_empty() && table.waits.is_empty());
        assert!(table.cancel(id).is_empty());
    }

    #[test]
    fn one_value_of_a_queue_wakes_one() {
        let mut table = Table::default();
        let ((first, one), (second, two)) = (waker(), waker());
        table.wait([&b"q"[..]], one);
        table.wait([&b"q"[..]], two);
        table.queue_push(b"q", b"x");
        assert_eq!((woken(&first), woken(&second)), (1, 0));
        assert!(table.check([&b"q"[..]]));
        assert_eq!(table.queue_pop(b"q"), Some(b"x".to_vec()));
        assert!(!table.check([&b"q"[..]]));
        table.queue_push(b"q", b"y");
        assert_eq!(woken(&second), 1);
        assert_eq!((table.queue_len(b"q"), table.get(b"q")), (1, None), "queues are not values");
    }

    #[test]
    fn the_last_one_opens_a_barrier_for_the_next_round() {
        let mut table = Table::default();
        for _ in 0..2 {
            let (count, waker) = waker();
            let first = table.barrier(b"b", 3, waker.clone()).unwrap();
            let second = table.barrier(b"b", 3, waker.clone()).unwrap();
            table.leave_barrier(b"b", second);
            table.barrier(b"b", 3, waker.clone()).unwrap();
            assert!(table.is_at_barrier(b"b", first));
            assert_eq!(table.barrier(b"b", 3, waker), None);
            assert!(!table.is_at_barrier(b"b", first));
            assert_eq!(woken(&count), 2);
        }
        assert!(table.barriers.is_empty());
    }

    #[test]
    fn bytes_are_counted() {
        let mut table = Table::default();
        table.set(b"key", b"value");
        table.set(b"key", b"v");
        table.append(b"key", b"alue!");
        table.append(b"other", b"1");
        table.queue_push(b"q", b"xyz");
        assert_eq!(table.bytes(), 3 + 6 + 5 + 1 + 1 + 3);
        assert_eq!(table.add(b"other", 99), Ok(100));
        table.delete(b"key");
        assert_eq!(table.bytes(), 5 + 3 + 1 + 3);
        table.queue_pop(b"q");
        table.delete(b"other");
        assert_eq!((table.bytes(), table.keys().len()), (0, 0));
    }

    #[test]
    fn a_wait_may_come_in_parts_and_be_abandoned_in_parts() {
        let mut table = Table::default();
        let (count, waker) = waker();
        let id = table.open_wait(waker.clone());
        table.wait_for(id, b"a");
        table.set(b"a", b"");
        assert_eq!(woken(&count), 0, "more keys may come");
        table.wait_for(id, b"b");
        table.wait_for(id, b"c");
        assert!(table.close_wait(id));
        assert_eq!(table.awaited(), 2 * awaited(b"x"));
        table.abandon(id);
        let other = table.wait([&b"b"[..]], waker).unwrap();
        table.queue_push(b"b", b"");
        assert_eq!(woken(&count), 1, "the value is for the one who still waits");
        assert!(!table.is_waiting(other));
        assert!(table.tidy(1));
        assert!(!table.tidy(2));
        assert!(table.waiting.is_empty() && table.waits.is_empty());
        assert_eq!(table.awaited(), 0);
    }

    #[test]
    fn room_is_for_what_is_there_and_what_it_costs() {
        let mut table = Table::with_room(3 * ENTRY);
        assert!(table.has_room(b"k", 2 * ENTRY - 1));
        assert!(!table.has_room(b"k", 2 * ENTRY));
        table.set(b"k", &[0; ENTRY]);
        assert_eq!(table.room(), ENTRY - 1);
        assert!(!table.has_room(b"l", 0) && !table.has_queue_room(b"k", 0));
        assert!(table.has_room(b"k", 2 * ENTRY - 1), "in the place of what is there");
        assert!(!table.has_room(b"k", 2 * ENTRY));
        table.delete(b"k");
        table.queue_push(b"k", b"");
        table.queue_pop(b"k");
        assert_eq!(table.room(), 3 * ENTRY);
    }
}
