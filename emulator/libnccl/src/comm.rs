//! Communicators: from their beginning to their end.
#![forbid(unsafe_code)]

pub(crate) mod start;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::cuda::{self, Device, Event};
use crate::element::{Scale, Type};
use crate::failure::{self, Code, NcclError, Result};
use crate::mesh::Mesh;

/// `ncclComm_t`: a number that is used once, and never an address.
pub(crate) type Handle = usize;

static COMMUNICATORS: Mutex<Option<HashMap<Handle, Arc<Communicator>>>> = Mutex::new(None);

fn communicators<T>(body: impl FnOnce(&mut HashMap<Handle, Arc<Communicator>>) -> T) -> T {
    body(COMMUNICATORS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// The communicator with a handle.
///
/// # Errors
///
/// As NCCL refuses null and what is none.
pub(crate) fn find(handle: Handle, call: &str) -> Result<Arc<Communicator>> {
    if handle == 0 {
        return Err(NcclError::argument(format!("{call} : comm argument is NULL")));
    }
    let found = communicators(|all| all.get(&handle).cloned());
    found.ok_or_else(|| NcclError::argument("Error: corrupted comm object detected"))
}

/// A communicator.
pub(crate) struct Communicator {
    pub(crate) handle: Handle,
    pub(crate) device: Device,
    pub(crate) blocking: bool,
    state: Mutex<State>,
    changed: Condvar,
    /// Once it is ready.
    ready: OnceLock<Ready>,
    aborted: AtomicBool,
    /// Held while an operation exchanges data.
    pub(crate) running: Mutex<()>,
    /// The order of its operations on the device.
    pub(crate) order: Mutex<Order>,
    /// Operations that the program made; `None` where it destroyed them again.
    reductions: Mutex<Vec<Option<Made>>>,
    /// Handles of registered memory.
    registered: Mutex<HashSet<usize>>,
    /// How often each kind of child was made.
    children: Mutex<HashMap<u64, u64>>,
    /// Milliseconds that an abort waits first, for tests.
    pub(crate) abort_delay: AtomicU64,
}

/// What is known of a communicator when its ranks have met.
pub(crate) struct Ready {
    pub(crate) rank: usize,
    pub(crate) size: usize,
    magic: u64,
    pub(crate) mesh: Arc<Mesh>,
}

#[derive(Default)]
struct State {
    /// Things that go on behind calls that have returned.
    busy: usize,
    failure: Option<NcclError>,
    finalized: bool,
}

/// Where the latest operation is.
#[derive(Default)]
pub(crate) struct Order {
    /// Of operations that are done as they are issued, and of captured ones.
    pub(crate) eager: Option<Latest>,
    pub(crate) captured: Option<Latest>,
}

pub(crate) struct Latest {
    pub(crate) event: Event,
    pub(crate) stream: usize,
    pub(crate) capture: Option<u64>,
}

/// An operation of `ncclRedOpCreatePreMulSum`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    pub(crate) element: Type,
    pub(crate) scalar: Scalar,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Scalar {
    Value(Scale),
    /// Where it is in device memory.
    Device(u64),
}

/// The first number of an operation that the program made.
pub(crate) const FIRST_MADE: i32 = 5;

fn hash(parts: &[u64]) -> u64 {
    // FNV-1a: it tells things apart that are counted, and nobody attacks it.
    let bytes = parts.iter().flat_map(|part| part.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Communicator {
    /// A communicator that has not begun.
    fn new(device: Device, blocking: bool) -> Arc<Self> {
        // Odd, so that no allocation has the same address.
        static NEXT: AtomicU64 = AtomicU64::new(0x6d72_0001);
        let handle = NEXT.fetch_add(2, Ordering::Relaxed) as Handle;
        let communicator = Arc::new(Self {
            handle,
            device,
            blocking,
            state: Mutex::new(State { busy: 1, ..State::default() }),
            changed: Condvar::new(),
            ready: OnceLock::new(),
            aborted: AtomicBool::new(false),
            running: Mutex::new(()),
            order: Mutex::default(),
            reductions: Mutex::default(),
            registered: Mutex::default(),
            children: Mutex::default(),
            abort_delay: AtomicU64::new(0),
        });
        communicators(|all| all.insert(handle, Arc::clone(&communicator)));
        communicator
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, ready: Ready) {
        let mesh = Arc::clone(&ready.mesh);
        let _ = self.ready.set(ready);
        // An abort that came before the line above saw no connections to end.
        if self.is_aborted() {
            mesh.abort();
        }
    }

    fn set_busy(&self, busy: bool) {
        let mut state = self.lock();
        state.busy = if busy { state.busy + 1 } else { state.busy.saturating_sub(1) };
        drop(state);
        self.changed.notify_all();
    }

    /// The number of the next child of a kind, which all ranks that make it give it.
    fn next_child(&self, kind: u64) -> u64 {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let number = children.entry(kind).or_default();
        *number += 1;
        hash(&[kind, *number])
    }

    /// What is known once the ranks have met.
    pub(crate) fn ready(&self) -> Result<&Ready> {
        self.ready.get().ok_or_else(|| NcclError::argument("the communicator has not begun"))
    }

    /// What goes on, or why nothing does any more.
    pub(crate) fn async_error(&self) -> Code {
        self.failure().map_or_else(
            || if self.lock().busy > 0 { Code::InProgress } else { Code::Success },
            |failure| failure.code,
        )
    }

    pub(crate) fn failure(&self) -> Option<NcclError> {
        let own = self.lock().failure.clone();
        own.or_else(|| self.ready.get().and_then(|ready| ready.mesh.failure()))
    }

    /// Whether operations may be issued.
    pub(crate) fn ensure_ready(&self) -> Result<&Ready> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let state = self.lock();
        if state.busy > 0 {
            let text = "Attempt to use communicator before the previous operation returned ncclSuccess";
            return Err(NcclError::argument(text));
        }
        if state.finalized {
            return Err(NcclError::argument("the communicator has been finalized"));
        }
        drop(state);
        self.ready()
    }

    /// Makes what is pending, and everything later, fail.
    pub(crate) fn fail(&self, failure: NcclError) {
        failure::note(&failure);
        match self.ready.get() {
            Some(ready) => ready.mesh.fail(failure),
            None => {
                self.lock().failure.get_or_insert(failure);
            }
        }
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// `ncclCommFinalize`: waits for what was issued, and says goodbye.
    pub(crate) fn finalize(&self) -> Result<()> {
        let mut state = self.lock();
        while state.busy > 0 && !self.is_aborted() {
            let waited = self.changed.wait_timeout(state, Duration::from_millis(10));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if std::mem::replace(&mut state.finalized, true) {
            return Ok(());
        }
        drop(state);
        self.end()
    }

    fn end(&self) -> Result<()> {
        let outcome = self.drain();
        if let Some(ready) = self.ready.get() {
            ready.mesh.close();
        }
        outcome
    }

    fn drain(&self) -> Result<()> {
        // The event stays, also while others look at the order: nothing is issued to a communicator that is finalized.
        let latest = self.order.lock().unwrap_or_else(PoisonError::into_inner).eager.take();
        let Some(latest) = latest else { return Ok(()) };
        let _current = cuda::Current::push(self.device.context)?;
        latest.event.synchronize()
    }

    /// `ncclCommFinalize` of a communicator that does not block, and is ready.
    pub(crate) fn finalize_behind(self: &Arc<Self>) -> Result<()> {
        {
            let mut state = self.lock();
            if std::mem::replace(&mut state.finalized, true) {
                return Ok(());
            }
            state.busy += 1;
        }
        let this = Arc::clone(self);
        let end = move || {
            if let Err(failure) = this.end() {
                this.fail(failure);
            }
            this.set_busy(false);
        };
        let spawned = std::thread::Builder::new().name("nccl finalize".to_owned()).spawn(end);
        spawned.map(|_| ()).map_err(|error| {
            self.set_busy(false);
            NcclError::system("starting a thread", &error)
        })
    }

    /// `ncclCommDestroy`. The handle is good until this returns, so that another thread may abort what it waits for.
    pub(crate) fn destroy(&self) -> Result<()> {
        let outcome = self.finalize();
        communicators(|all| all.remove(&self.handle));
        outcome
    }

    /// Forgets a communicator that never was.
    pub(crate) fn forget(&self) {
        communicators(|all| all.remove(&self.handle));
    }

    /// `ncclCommAbort`: when it returns no operation exchanges data any more.
    pub(crate) fn abort(&self) {
        std::thread::sleep(Duration::from_millis(self.abort_delay.load(Ordering::SeqCst)));
        self.aborted.store(true, Ordering::SeqCst);
        if let Some(ready) = self.ready.get() {
            ready.mesh.abort();
        }
        self.changed.notify_all();
        communicators(|all| all.remove(&self.handle));
        drop(self.running.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends what is pending, for a communicator of some of the ranks that goes on; this one can only end.
    pub(crate) fn stop(&self) {
        if let Some(ready) = self.ready.get() {
            ready.mesh.fail(NcclError::usage("the communicator was shrunk, and what it did was ended"));
        }
        drop(self.running.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// `ncclCommRegister`: a handle.
    pub(crate) fn register(&self) -> usize {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let handle = NEXT.fetch_add(1, Ordering::Relaxed) as usize;
        self.registered.lock().unwrap_or_else(PoisonError::into_inner).insert(handle);
        handle
    }

    /// `ncclCommDeregister`: whether there was such a handle.
    pub(crate) fn deregister(&self, handle: usize) -> bool {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle)
    }

    /// `ncclRedOpCreatePreMulSum`.
    pub(crate) fn make_reduction(&self, made: Made) -> i32 {
        let mut all = self.reductions.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Some(made));
        FIRST_MADE + all.len() as i32 - 1
    }

    /// `ncclRedOpDestroy`.
    pub(crate) fn destroy_reduction(&self, number: i32) -> Result<()> {
        let mut all = self.reductions.lock().unwrap_or_else(PoisonError::into_inner);
        let place = usize::try_from(number - FIRST_MADE).ok().and_then(|index| all.get_mut(index));
        let made = place.and_then(Option::take);
        made.map(|_| ()).ok_or_else(|| {
            NcclError::argument(format!(
                "ncclRedOpDestroy : operator unknown to this communicator ({number})"
            ))
        })
    }

    /// The operation that a program made under this number.
    pub(crate) fn reduction(&self, number: i32) -> Option<Made> {
        let all = self.reductions.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(usize::try_from(number.checked_sub(FIRST_MADE)?).ok()?).copied().flatten()
    }
}
