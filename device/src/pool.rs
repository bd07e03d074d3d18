//! Values that are used again and again, so that a call creates and allocates none: events, above all.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// How many values are looked at before a new one is made. Those at the front have been out the longest: unless the user
/// keeps them, the first is free.
const LOOKS: usize = 8;

/// Shared values. One is free when nobody but the pool holds it.
#[derive(Debug)]
pub struct Pool<T> {
    /// In the order in which they were given out.
    values: Mutex<VecDeque<Arc<T>>>,
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
        for _ in 0..LOOKS.min(values.len()) {
            let Some(mut value) = values.pop_front() else { break };
            let taken = Arc::get_mut(&mut value).map(&renew).map(|()| Arc::clone(&value));
            values.push_back(value);
            if let Some(value) = taken {
                return Ok(value);
            }
        }
        let mut value = make()?;
        renew(&mut value);
        let value = Arc::new(value);
        values.push_back(Arc::clone(&value));
        Ok(value)
    }
}
