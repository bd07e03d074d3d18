//! Events: queues behind a descriptor, and the acknowledgements that destroying an object waits for.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno as Os, read, write};

use crate::abi::{Answer, Errno, ibv_async_element, ibv_async_event};

/// Events that wait to be got. The descriptor is readable while there are some, and its `O_NONBLOCK`, which programs
/// set, tells whether getting one waits.
pub(crate) struct EventQueue<T> {
    fd: OwnedFd,
    events: Mutex<VecDeque<T>>,
}

impl<T> EventQueue<T> {
    pub(crate) fn new() -> Answer<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE)
            .map_err(|error| Errno(error.raw_os_error()))?;
        Ok(Self { fd, events: Mutex::default() })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(crate) fn push(&self, event: T) {
        self.lock().push_back(event);
        // The counter holds 2^64 - 2; nothing else can go wrong with a descriptor of this process's.
        let _ = write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// The next event; waits for it unless the descriptor does not block. `got` counts it before anybody else can look whether
    /// there are events of its object: whoever destroys that either takes the event back or waits for its acknowledgement.
    pub(crate) fn pop(&self, got: impl Fn(&T)) -> Answer<T> {
        loop {
            match read(&self.fd, &mut [0_u8; 8]) {
                // None: it was withdrawn, and left its count behind.
                Ok(_) => {
                    let mut events = self.lock();
                    if let Some(event) = events.pop_front() {
                        got(&event);
                        return Ok(event);
                    }
                }
                Err(Os::INTR) => return Err(Errno(libc::EINTR)),
                Err(error) => return Err(Errno(error.raw_os_error())),
            }
        }
    }

    /// Takes back the events of an object that is to be destroyed.
    pub(crate) fn withdraw(&self, concerns: impl Fn(&T) -> bool) {
        self.lock().retain(|event| !concerns(event));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that happened to a device, or to a queue pair or completion queue of it.
pub(crate) struct AsyncEvent {
    event: ibv_async_event,
    /// Of the object that it concerns; `None`: it is of the port.
    unacknowledged: Option<Arc<Unacknowledged>>,
}

// SAFETY: the pointer in it is a handle that programs get back; nobody here goes through it.
unsafe impl Send for AsyncEvent {}

impl AsyncEvent {
    pub(crate) fn of_port(event_type: u32) -> Self {
        Self {
            event: ibv_async_event { element: ibv_async_element { port_num: 1 }, event_type },
            unacknowledged: None,
        }
    }

    /// Of an object, which is destroyed only once those of its events that were got are acknowledged.
    pub(crate) fn of_object(
        element: ibv_async_element,
        event_type: u32,
        unacknowledged: &Arc<Unacknowledged>,
    ) -> Self {
        Self {
            event: ibv_async_event { element, event_type },
            unacknowledged: Some(Arc::clone(unacknowledged)),
        }
    }
}

impl EventQueue<AsyncEvent> {
    /// The next event, which is now to be acknowledged.
    pub(crate) fn next(&self) -> Answer<ibv_async_event> {
        let event = self.pop(|event| event.unacknowledged.iter().for_each(|object| object.add()))?;
        Ok(event.event)
    }

    /// Takes back the events of an object that is to be destroyed, and waits for the acknowledgements of those that were got.
    pub(crate) fn end(&self, object: &Arc<Unacknowledged>) {
        self.withdraw(|event| event.unacknowledged.as_ref().is_some_and(|other| Arc::ptr_eq(other, object)));
        object.wait();
    }
}

/// Events of an object that programs got and have not acknowledged.
#[derive(Default)]
pub(crate) struct Unacknowledged {
    count: Mutex<u32>,
    fewer: Condvar,
}

impl Unacknowledged {
    pub(crate) fn add(&self) {
        *self.lock() += 1;
    }

    pub(crate) fn acknowledge(&self, count: u32) {
        let mut left = self.lock();
        *left = left.saturating_sub(count);
        self.fewer.notify_all();
    }

    /// Waits until all are acknowledged, as destroying does.
    pub(crate) fn wait(&self) {
        let mut left = self.lock();
        while *left > 0 {
            left = self.fewer.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_counted_before_its_object_can_be_destroyed() {
        let queue = EventQueue::new().unwrap();
        queue.push(7);
        let unacknowledged = Unacknowledged::default();
        let got = queue.pop(|_| {
            assert!(queue.events.try_lock().is_err(), "somebody could look for events of the object");
            unacknowledged.add();
        });
        assert_eq!(got, Ok(7));
        queue.withdraw(|event| *event == 7);
        assert_eq!(*unacknowledged.lock(), 1, "whoever destroys it waits");
    }
}
