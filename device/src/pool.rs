//! Values that are used again and again, so that a call creates and allocates none: events, above all.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

/// How many values are looked at before a new one is made. Those at the front have been out the longest: unless the user
/// keeps them, the first is free.
const LOOKS: usize = 8;

/// Shared values of one owner, which are not in use as far as it knows. One is free when nobody else holds it.
#[derive(Debug)]
pub struct Reused<T> {
    /// In the order in which they were given back.
    values: VecDeque<Arc<T>>,
}

impl<T> Default for Reused<T> {
    fn default() -> Self {
        Self { values: VecDeque::new() }
    }
}

impl<T> Reused<T> {
    /// A value that nobody else holds: one that was given back, or a new one of `make`. Nobody makes weak references to it.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use meshreduce_device::Reused;
    ///
    /// let mut values = Reused::default();
    /// let first = values.take(|| Ok::<_, ()>([1]))?;
    /// let (address, kept) = (first.as_ptr(), Arc::clone(&first));
    /// values.give_back(first);
    /// assert_eq!(*values.take(|| Ok([2]))?, [2]);
    /// drop(kept);
    /// assert_eq!(values.take(|| Ok([3]))?.as_ptr(), address);
    /// # Ok::<(), ()>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `make`.
    #[inline]
    pub fn take<E>(&mut self, make: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        // The last one first: of users that keep none it is free, and near, whatever others hold that have been out for long.
        if let Some(value) = self.values.pop_back_if(|value| is_free(value)) {
            return Ok(value);
        }
        for _ in 0..LOOKS.min(self.values.len()) {
            let Some(value) = self.values.pop_front() else { break };
            if is_free(&value) {
                return Ok(value);
            }
            self.values.push_back(value);
        }
        make().map(Arc::new)
    }

    /// Gives one back, whoever else still holds it.
    pub fn give_back(&mut self, value: Arc<T>) {
        self.values.push_back(value);
    }
}

/// Whether nobody else holds it. Nobody can become a holder after this: only a holder makes another one.
#[inline]
fn is_free<T>(value: &Arc<T>) -> bool {
    let is = Arc::strong_count(value) == 1;
    if is {
        // What the last holder did is before what the next one does (as `Arc` itself has it when it frees a value).
        fence(Ordering::Acquire);
    }
    is
}

/// Shared values of several owners. One is free when nobody but the pool holds it.
#[derive(Debug)]
pub struct Pool<T> {
    values: Mutex<Reused<T>>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { values: Mutex::default() }
    }
}

impl<T> Pool<T> {
    /// A value that nobody else holds, a free one or a new one of `make`, after `renew` has seen it.
    ///
    /// ```
    /// use meshreduce_device::Pool;
    ///
    /// let pool = Pool::default();
    /// let take = |number: u32| pool.take(|| Ok::<_, ()>(vec![0]), |values| values[0] = number);
    /// let first = take(1)?;
    /// let (address, second) = (first.as_ptr(), take(2)?);
    /// assert_eq!((&*first, &*second), (&vec![1], &vec![2]));
    /// drop(first);
    /// assert_eq!(take(3)?.as_ptr(), address);
    /// # Ok::<(), ()>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `make`.
    pub fn take<E>(&self, make: impl FnOnce() -> Result<T, E>, renew: impl Fn(&mut T)) -> Result<Arc<T>, E> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let mut value = values.take(make)?;
        // Nobody else holds it.
        if let Some(value) = Arc::get_mut(&mut value) {
            renew(value);
        }
        values.give_back(Arc::clone(&value));
        Ok(value)
    }
}
