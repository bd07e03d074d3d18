//! A lock for what is held for some instructions and taken on the way of every call.
//!
//! It is given back by a plain store. A mutex that wakes those who wait must look for them in the same step, and that step costs as much
//! as taking the lock: as much as all the checks of a call. Here whoever waits looks again and again, and sleeps between looks when it
//! takes long, which is rare: the other one is the thread that watches, or makes a snapshot, ten times a second or less.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Looks without a pause, and looks after which others get the processor. Then it sleeps.
const LOOKS: (u32, u32) = (100, 200);
/// The longest sleep; the first is a sixteenth of it. Whatever the priorities of threads, the one that has the lock gets to run.
const LONGEST: Duration = Duration::from_micros(800);

/// Something that one thread at a time uses.
#[derive(Default)]
pub(crate) struct BriefLock<T> {
    is_held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is used by one thread at a time, each behind what the one before it did: taking the lock acquires what giving it back
// released. So a value that may go from thread to thread is all that it takes.
unsafe impl<T: Send> Sync for BriefLock<T> {}

impl<T> BriefLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { is_held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Waits until nobody else has it. Not to be asked by a thread that has it.
    #[inline]
    pub(crate) fn lock(&self) -> Brief<'_, T> {
        if self.is_held.swap(true, Ordering::Acquire) {
            self.wait();
        }
        Brief { lock: self, _as_one: PhantomData }
    }

    /// The same without a lock, where nobody else can have it.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    #[cold]
    fn wait(&self) {
        let (mut looks, mut pause) = (0_u32, LONGEST / 16);
        while self.is_held.load(Ordering::Relaxed) || self.is_held.swap(true, Ordering::Acquire) {
            looks = looks.saturating_add(1);
            if looks < LOOKS.0 {
                std::hint::spin_loop();
            } else if looks < LOOKS.1 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST);
            }
        }
    }
}

impl<T> fmt::Debug for BriefLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BriefLock").finish_non_exhaustive()
    }
}

/// The lock, held.
pub(crate) struct Brief<'a, T> {
    lock: &'a BriefLock<T>,
    /// It goes and is shared where an exclusive reference may.
    _as_one: PhantomData<&'a mut T>,
}

impl<T> Deref for Brief<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: as long as this is there nobody else has the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Brief<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as long as this is there nobody else has the lock, and this is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Brief<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.is_held.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_count_lose_nothing() {
        let lock = BriefLock::new((0_u64, 0_u64));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let mut both = lock.lock();
                        both.0 += 1;
                        assert_eq!(both.1 + 1, both.0);
                        both.1 += 1;
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), (40_000, 40_000));
    }

    #[test]
    fn whoever_waits_for_long_gets_it_and_a_panic_gives_it_back() {
        let lock = BriefLock::new(Vec::new());
        std::thread::scope(|scope| {
            let mut held = lock.lock();
            let (begins, has_begun) = std::sync::mpsc::channel();
            let waits = scope.spawn({
                let lock = &lock;
                move || {
                    begins.send(()).unwrap();
                    lock.lock().push(2);
                }
            });
            has_begun.recv().unwrap();
            // The other one looks, gives way and sleeps meanwhile, as far as it gets.
            (0..1000).for_each(|_| std::thread::yield_now());
            held.push(1);
            drop(held);
            waits.join().unwrap();
        });
        assert_eq!(*lock.lock(), [1, 2]);
        let panics = std::panic::AssertUnwindSafe(|| {
            let _held = lock.lock();
            panic!("on purpose");
        });
        std::panic::catch_unwind(panics).unwrap_err();
        assert_eq!(lock.lock().len(), 2);
    }
}
