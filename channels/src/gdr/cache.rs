//! Registrations that are kept for the next transfer of the same allocation.
//!
//! Registering costs as much as a transfer, so what was registered once stays so. The key is the driver's number of the
//! allocation, which no other allocation has or had: memory that was freed and allocated again at the same address is another
//! allocation, and never goes out under the old registration, which would let the NIC write to whoever owns those pages now. An
//! old registration is found when a new one overlaps it, and goes then.
//!
//! A registration may keep freed memory pinned, and the driver tells nobody what is freed. So it is asked ([`Cache::due`]), a few
//! allocations at a time, the longest unasked first: whenever another one is registered, and by the progress thread now and then.
//! Whoever cannot wait for that says what is about to be freed ([`Gdr::forget`](crate::gdr::Gdr::forget)). And there is a bound, in bytes and
//! in entries, on those that nobody uses, beyond which the least recently used go. What is in use does not count: regions may hold all
//! of a GPU's memory for as long as a program runs, and transfers of other memory are to find theirs registered all the same.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

/// Which allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The driver's number of it.
    pub(crate) buffer_id: u64,
    /// Where it begins.
    pub(crate) base: u64,
    /// How long it is.
    pub(crate) bytes: u64,
}

impl Key {
    fn overlaps(&self, other: &Self) -> bool {
        self.base < other.base.saturating_add(other.bytes)
            && other.base < self.base.saturating_add(self.bytes)
    }
}

/// Beyond what registrations that nobody uses are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// Bytes, of these together.
    pub(crate) bytes: u64,
    /// How many.
    pub(crate) entries: usize,
}

/// What a cache has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Transfers that found their allocation registered.
    pub hits: u64,
    /// Transfers that had to register it.
    pub misses: u64,
    /// Registrations that were given up to keep within the bound.
    pub evicted: u64,
    /// Registrations of memory that was freed: told so, or found out, because the driver does not know it any more or other memory is at
    /// the same place.
    pub forgotten: u64,
    /// Registrations that are kept.
    pub entries: usize,
    /// Bytes that they keep pinned.
    pub bytes: u64,
}

/// Registrations of one NIC.
#[derive(Debug)]
pub(crate) struct Cache<V> {
    entries: HashMap<Key, Entry<V>>,
    bound: Bound,
    clock: u64,
    stats: CacheStats,
    /// Nothing is kept any more.
    is_closed: bool,
}

#[derive(Debug)]
struct Entry<V> {
    value: Arc<V>,
    used: u64,
    /// When it was last asked of it whether its memory is still there.
    asked: u64,
}

/// What is in a cache no more, to be dropped where dropping may take its time.
#[must_use = "dropping it is what ends the registrations"]
#[derive(Debug)]
pub(crate) struct Removed<V> {
    #[expect(dead_code, reason = "held to be dropped")]
    values: Vec<Arc<V>>,
    /// Bytes that they keep pinned.
    pub(crate) bytes: u64,
}

impl<V> Cache<V> {
    /// An empty one.
    pub(crate) fn new(bound: Bound) -> Self {
        Self { entries: HashMap::new(), bound, clock: 0, stats: CacheStats::default(), is_closed: false }
    }

    /// The registration of an allocation, if it is there. Whoever holds it keeps it from being given up.
    pub(crate) fn find(&mut self, key: &Key) -> Option<Arc<V>> {
        self.clock += 1;
        match self.entries.get_mut(key) {
            Some(entry) => {
                entry.used = self.clock;
                self.stats.hits += 1;
                Some(Arc::clone(&entry.value))
            }
            None => {
                self.stats.misses += 1;
                None
            }
        }
    }

    /// Keeps a new registration, and gives up others: those of memory that was there before, and the least recently used ones
    /// that nobody holds until these, with the new one, keep within the bound.
    pub(crate) fn insert(&mut self, key: Key, value: Arc<V>) -> Removed<V> {
        if self.is_closed {
            return Removed { values: Vec::new(), bytes: 0 };
        }
        let before = self.stats.bytes;
        let mut values = self.remove(|other| other.overlaps(&key));
        self.stats.forgotten += values.len() as u64;
        self.stats.bytes = self.stats.bytes.saturating_add(key.bytes);
        self.clock += 1;
        self.entries.insert(key, Entry { value, used: self.clock, asked: self.clock });
        values.extend(self.shrink(key));
        let bytes = before.saturating_add(key.bytes).saturating_sub(self.stats.bytes);
        Removed { values, bytes }
    }

    /// Gives up what lies in `bytes` bytes at `base`, also if it is held: it ends with its last holder.
    pub(crate) fn forget(&mut self, base: u64, bytes: u64) -> Removed<V> {
        let range = Key { buffer_id: 0, base, bytes };
        self.forget_those(|other| other.overlaps(&range))
    }

    /// The allocations, at most so many, of which it was not asked for the longest time whether they are still there.
    pub(crate) fn due(&mut self, most: usize) -> Vec<Key> {
        let mut all: Vec<(u64, Key)> = self.entries.iter().map(|(key, entry)| (entry.asked, *key)).collect();
        all.sort_unstable_by_key(|(asked, _)| *asked);
        all.truncate(most);
        self.clock += 1;
        for (_, key) in &all {
            self.entries.entry(*key).and_modify(|entry| entry.asked = self.clock);
        }
        all.into_iter().map(|(_, key)| key).collect()
    }

    /// Gives up what is of allocations that are there no more, also if it is held.
    pub(crate) fn freed(&mut self, gone: &[Key]) -> Removed<V> {
        self.forget_those(|key| gone.contains(key))
    }

    /// Gives up all that nobody holds.
    pub(crate) fn clear(&mut self) -> Removed<V> {
        let held: Vec<_> =
            self.entries.iter().filter(|(_, entry)| is_held(entry)).map(|(key, _)| *key).collect();
        let before = self.stats.bytes;
        let values = self.remove(|key| !held.contains(key));
        self.stats.evicted += values.len() as u64;
        Removed { values, bytes: before.saturating_sub(self.stats.bytes) }
    }

    /// Gives up all, also what is held, which ends with its last holder, and keeps nothing from now on.
    pub(crate) fn close(&mut self) -> Removed<V> {
        self.is_closed = true;
        self.forget_those(|_| true)
    }

    fn forget_those(&mut self, which: impl Fn(&Key) -> bool) -> Removed<V> {
        let before = self.stats.bytes;
        let values = self.remove(which);
        self.stats.forgotten += values.len() as u64;
        Removed { values, bytes: before.saturating_sub(self.stats.bytes) }
    }

    /// What it has come to.
    pub(crate) fn stats(&self) -> CacheStats {
        CacheStats { entries: self.entries.len(), ..self.stats }
    }

    fn remove(&mut self, which: impl Fn(&Key) -> bool) -> Vec<Arc<V>> {
        let keys: Vec<_> = self.entries.keys().filter(|key| which(key)).copied().collect();
        keys.into_iter().filter_map(|key| self.take(&key)).collect()
    }

    fn take(&mut self, key: &Key) -> Option<Arc<V>> {
        let entry = self.entries.remove(key)?;
        self.stats.bytes = self.stats.bytes.saturating_sub(key.bytes);
        Some(entry.value)
    }

    /// `new` is held, and will not be for long.
    fn shrink(&mut self, new: Key) -> Vec<Arc<V>> {
        let free = self.entries.iter().filter(|(_, entry)| !is_held(entry));
        let mut free: Vec<(u64, Key)> = free.map(|(key, entry)| (entry.used, *key)).collect();
        free.sort_unstable_by_key(|(used, _)| *used);
        let mut counted: Vec<Key> = free.iter().map(|(_, key)| *key).filter(|key| *key != new).collect();
        counted.push(new);
        let (mut bytes, mut entries) =
            (counted.iter().map(|key| u128::from(key.bytes)).sum::<u128>(), counted.len());
        let mut removed = Vec::new();
        for (_, key) in free {
            if bytes <= u128::from(self.bound.bytes) && entries <= self.bound.entries {
                break;
            }
            bytes -= u128::from(key.bytes);
            entries -= 1;
            removed.extend(self.take(&key));
            self.stats.evicted += 1;
        }
        removed
    }
}

/// Whether a transfer uses it. Only the cache, which is locked, gives out further references, so what nobody holds stays so.
fn is_held<V>(entry: &Entry<V>) -> bool {
    Arc::strong_count(&entry.value) > 1
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    fn key(buffer_id: u64, base: u64, bytes: u64) -> Key {
        Key { buffer_id, base, bytes }
    }

    fn cache(bytes: u64, entries: usize) -> Cache<u64> {
        Cache::new(Bound { bytes, entries })
    }

    /// Registers an allocation as a transfer does.
    fn register(cache: &mut Cache<u64>, key: Key) -> Arc<u64> {
        cache.find(&key).unwrap_or_else(|| {
            let value = Arc::new(key.buffer_id);
            drop(cache.insert(key, Arc::clone(&value)));
            value
        })
    }

    #[test]
    fn an_allocation_is_registered_once() {
        let mut cache = cache(100, 10);
        for _ in 0..3 {
            register(&mut cache, key(1, 0, 10));
        }
        let CacheStats { hits, misses, entries, bytes, .. } = cache.stats();
        assert_eq!((hits, misses, entries, bytes), (2, 1, 1, 10));
    }

    #[test]
    fn memory_that_was_freed_and_allocated_again_is_registered_again() {
        let mut cache = cache(100, 10);
        let old = register(&mut cache, key(1, 64, 10));
        let new = register(&mut cache, key(2, 64, 10));
        assert_eq!((*old, *new), (1, 2));
        let CacheStats { entries, bytes, forgotten, .. } = cache.stats();
        assert_eq!((entries, bytes, forgotten), (1, 10, 1), "the old registration is gone");
        // The old one is held by a transfer, which ends it.
        assert_eq!(Arc::strong_count(&old), 1);
    }

    #[test]
    fn the_least_recently_used_goes_and_what_is_held_stays() {
        let mut cache = cache(20, 10);
        let held = register(&mut cache, key(1, 0, 10));
        for id in 2..=3 {
            register(&mut cache, key(id, id * 10, 10));
        }
        register(&mut cache, key(2, 20, 10));
        register(&mut cache, key(4, 40, 10));
        let there = |cache: &mut Cache<u64>, id: u64| {
            cache.find(&key(id, if id == 1 { 0 } else { id * 10 }, 10)).is_some()
        };
        assert_eq!([1, 2, 3, 4].map(|id| there(&mut cache, id)), [true, true, false, true]);
        drop(held);
    }

    #[test]
    fn what_is_held_takes_no_room_from_what_is_not() {
        let mut cache = cache(30, 3);
        let regions: Vec<_> = (1..=5).map(|id| register(&mut cache, key(id, id * 1000, 1000))).collect();
        for _ in 0..3 {
            for id in 11..=13 {
                register(&mut cache, key(id, id * 1000, 10));
            }
        }
        let CacheStats { hits, misses, evicted, .. } = cache.stats();
        assert_eq!((hits, misses, evicted), (6, 8, 0), "each was registered once");
        drop(regions);
        register(&mut cache, key(14, 14_000, 10));
        assert_eq!((cache.stats().entries, cache.stats().bytes), (3, 30), "held by nobody, they count");
    }

    #[test]
    fn what_is_freed_can_be_said_so() {
        let mut cache = cache(100, 10);
        let value = register(&mut cache, key(1, 0, 10));
        let weak = Arc::downgrade(&value);
        drop(value);
        drop(cache.forget(10, 5));
        assert!(weak.upgrade().is_some(), "it lies elsewhere");
        drop(cache.forget(9, 1));
        assert!(weak.upgrade().is_none());
        assert_eq!(cache.stats().bytes, 0);
    }

    #[test]
    fn what_was_freed_is_found_by_asking_for_all_in_turn() {
        let mut cache = cache(1000, 100);
        let weak: Vec<_> =
            (1..=10).map(|id| Arc::downgrade(&register(&mut cache, key(id, id * 10, 10)))).collect();
        let mut asked = Vec::new();
        for _ in 0..4 {
            let due = cache.due(3);
            let gone: Vec<Key> = due.iter().filter(|key| key.buffer_id % 2 == 0).copied().collect();
            let removed = cache.freed(&gone);
            assert_eq!(removed.bytes, 10 * gone.len() as u64);
            asked.extend(due.into_iter().map(|key| key.buffer_id));
        }
        asked.sort_unstable();
        asked.dedup();
        assert_eq!(asked.len(), 10, "each in its turn: {asked:?}");
        for (id, weak) in (1..=10).zip(weak) {
            assert_eq!(weak.upgrade().is_some(), id % 2 == 1, "{id}");
        }
        let CacheStats { entries, bytes, forgotten, .. } = cache.stats();
        assert_eq!((entries, bytes, forgotten), (5, 50, 5));
    }

    #[test]
    fn one_that_is_closed_keeps_nothing() {
        let mut cache = cache(100, 10);
        let held = register(&mut cache, key(1, 0, 10));
        let late = Arc::new(2);
        drop(cache.close());
        drop(cache.insert(key(2, 10, 10), Arc::clone(&late)));
        assert_eq!((Arc::strong_count(&held), Arc::strong_count(&late)), (1, 1));
        assert_eq!((cache.stats().entries, cache.stats().bytes), (0, 0));
    }

    #[test]
    fn what_is_larger_than_the_bound_serves_its_transfer_and_goes_with_the_next() {
        let mut cache = cache(5, 10);
        let value = register(&mut cache, key(1, 0, 10));
        assert_eq!(cache.stats().entries, 1);
        drop(value);
        register(&mut cache, key(2, 100, 1));
        assert_eq!((cache.stats().bytes, cache.stats().entries), (1, 1));
        drop(cache.clear());
        assert_eq!((cache.stats().bytes, cache.stats().entries), (0, 0));
    }

    /// What happens to memory.
    #[derive(Clone, Debug)]
    enum Step {
        /// A place is freed, if it is allocated, and allocated again.
        Allocate(u64),
        /// A transfer begins.
        Use(u64),
        /// The oldest transfer ends.
        End,
        /// The cache is told that a place is free.
        Forget(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = 0..8_u64;
        prop_oneof![
            place.clone().prop_map(Step::Allocate),
            place.clone().prop_map(Step::Use),
            Just(Step::End),
            place.prop_map(Step::Forget),
        ]
    }

    proptest! {
        #[test]
        fn no_transfer_ever_gets_the_registration_of_other_memory(
            steps in prop::collection::vec(step(), 0..200), bytes in 0..60_u64, entries in 0..6_usize,
        ) {
            let mut cache = cache(bytes, entries);
            let (mut next, mut places, mut running) = (1, BTreeMap::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Allocate(place) => {
                        places.insert(place, next);
                        next += 1;
                    }
                    Step::Use(place) => {
                        let Some(id) = places.get(&place) else { continue };
                        let value = register(&mut cache, key(*id, place * 10, 10));
                        prop_assert_eq!(*value, *id);
                        running.push(value);
                    }
                    Step::End => {
                        running.pop();
                    }
                    Step::Forget(place) => drop(cache.forget(place * 10, 10)),
                }
                let stats = cache.stats();
                prop_assert_eq!(stats.bytes, cache.entries.keys().map(|key| key.bytes).sum::<u64>());
                let all: Vec<_> = cache.entries.keys().copied().collect();
                for (n, one) in all.iter().enumerate() {
                    prop_assert!(all[..n].iter().all(|other| !one.overlaps(other)), "{:?}", all);
                }
            }
            drop(running);
            drop(cache.insert(key(u64::MAX, 1 << 40, 0), Arc::new(0)));
            prop_assert!(cache.stats().bytes <= bytes, "{:?}", cache.stats());
            prop_assert!(cache.stats().entries <= entries.max(1));
        }
    }
}
