//! Words that streams wait for and write: how the host and a stream tell each other how far they are, without an event and
//! without the host waiting in the driver.
//!
//! The driver compares cyclically: a wait for `at_least` lets the stream go on once `(int32_t)(word - at_least) >= 0`
//! (`CU_STREAM_WAIT_VALUE_GEQ`). So values may grow for ever, as long as nobody is 2^31 or more ahead of one who waits.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meshreduce_driver_loader::symbol;
use meshreduce_driver_loader::sys::{self, CUdeviceptr, CUresult};

use crate::error::{DriverError, Error, check, failure};
use crate::mapped::Pages;
use crate::{PrimaryContext, RawStream};

/// `CU_STREAM_WAIT_VALUE_GEQ`.
const AT_LEAST: u32 = 0;
/// `CU_STREAM_WRITE_VALUE_DEFAULT`: with a barrier, so that whoever sees the value sees what the stream did before.
const WITH_BARRIER: u32 = 0;
/// Bytes that are registered at a time.
const PAGE: usize = 4096;
/// Bytes from one word to the next: a cache line, so that whoever polls one is not disturbed by others.
const LINE: usize = 64;
/// How many words that were given back are looked at before another one is taken.
const LOOKS: usize = 8;

/// Enqueues a write of a 32-bit word of memory that the device sees: page-locked host memory or device memory. Whoever reads the
/// value there with acquire order sees what the stream did before. One call of the driver.
///
/// # Safety
///
/// `stream` is a stream; a default stream is that of `context`. The address is a multiple of 4 and stays valid until the stream has
/// done it, and until the last launch of a graph that it is captured in.
///
/// # Errors
///
/// The driver's; [`DriverError::is_unsupported`] where driver (before CUDA 11.7) or device cannot.
pub unsafe fn enqueue_write_value(
    context: &PrimaryContext,
    address: CUdeviceptr,
    value: u32,
    stream: RawStream,
) -> Result<(), DriverError> {
    context.on_stream(stream, || {
        // SAFETY: the caller vouches for the stream and the address.
        check("cuStreamWriteValue32", unsafe {
            sys::cuStreamWriteValue32_v2(stream.get(), address, value, WITH_BARRIER)
        })
    })
}

/// As [`enqueue_write_value`], of a 64-bit word: whoever reads it sees both halves of one value.
///
/// # Safety
///
/// As [`enqueue_write_value`]; the address is a multiple of 8.
///
/// # Errors
///
/// As [`enqueue_write_value`].
pub unsafe fn enqueue_write_value64(
    context: &PrimaryContext,
    address: CUdeviceptr,
    value: u64,
    stream: RawStream,
) -> Result<(), DriverError> {
    context.on_stream(stream, || {
        // SAFETY: the caller vouches for the stream and the address.
        check("cuStreamWriteValue64", unsafe {
            sys::cuStreamWriteValue64_v2(stream.get(), address, value, WITH_BARRIER)
        })
    })
}

/// Makes what is enqueued on `stream` from now on wait until the 32-bit word at `address` has reached `at_least`, cyclically:
/// `(int32_t)(word - at_least) >= 0`. It then sees what the writer of the value did before, if that wrote with release order and
/// to memory of the host or by the CPU. One call of the driver.
///
/// # Safety
///
/// As [`enqueue_write_value`]. (A wait that nothing ends holds up the stream for ever, and whatever waits for the stream or the
/// context.)
///
/// # Errors
///
/// As [`enqueue_write_value`].
pub unsafe fn enqueue_wait_value(
    context: &PrimaryContext,
    address: CUdeviceptr,
    at_least: u32,
    stream: RawStream,
) -> Result<(), DriverError> {
    context.on_stream(stream, || {
        // SAFETY: the caller vouches for the stream and the address.
        check("cuStreamWaitValue32", unsafe {
            sys::cuStreamWaitValue32_v2(stream.get(), address, at_least, AT_LEAST)
        })
    })
}

/// Whether a word with this value has reached `at_least`, as the driver compares.
///
/// ```
/// use meshreduce_device::has_reached;
///
/// assert!(has_reached(7, 7) && has_reached(8, 7) && !has_reached(6, 7));
/// assert!(has_reached(2, u32::MAX) && !has_reached(u32::MAX, 2));
/// ```
pub fn has_reached(value: u32, at_least: u32) -> bool {
    value.wrapping_sub(at_least) as i32 >= 0
}

/// A source of [`Word`]s in page-locked host memory, each on a cache line of its own.
///
/// A word that is given back goes to its next user only when the writes that streams were to make are seen to be made, and what
/// they wait for to be there; and the next user begins where the last one ended. So nobody sees a word go back, and a stream that
/// looks at it late goes on all the same.
///
/// When a stream has looked for the last time nobody can tell. So the memory is given back only with the driver's context: what
/// one source leaves behind, the next one of the same context uses again. (A driver before CUDA 12.0 does not tell contexts
/// apart: there every source leaves its own pages behind, one for 64 words that are in use at the same time.)
#[derive(Clone, Debug)]
pub struct Words {
    pool: Arc<Pool>,
    context: Arc<PrimaryContext>,
}

/// The words of a context of the driver's.
#[derive(Debug)]
struct Pool {
    /// The context's handle and number; `None`: the driver has no numbers, and the words are for one source alone.
    key: Option<(usize, u64)>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pages: Vec<Pages>,
    free: Vec<Place>,
    /// In the order in which they were given back, each with the value that it must have reached first.
    returned: VecDeque<(Place, u32)>,
}

/// All pools. One leaves when its context has gone, so that no stream looks at its memory.
static POOLS: Mutex<Vec<Arc<Pool>>> = Mutex::new(Vec::new());

/// Where a word is.
#[derive(Clone, Copy, Debug)]
struct Place {
    host: NonNull<u32>,
    device: CUdeviceptr,
}

// SAFETY: the memory is not tied to a thread, and all access of the host's is atomic.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    fn word(&self) -> &AtomicU32 {
        // SAFETY: the word is aligned, and its page, which holds zeros to begin with, is mapped for as long as the pool, which
        // whoever has a place holds. The host accesses it only here, and the device by words.
        unsafe { AtomicU32::from_ptr(self.host.as_ptr()) }
    }
}

impl Words {
    /// Words that the context's device sees.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the driver lacks the functions (before CUDA 11.7). Whether the device can, only the first use
    /// tells.
    pub fn new(context: &Arc<PrimaryContext>) -> Result<Self, Error> {
        for function in ["cuStreamWaitValue32_v2", "cuStreamWriteValue32_v2"] {
            if symbol(function).is_none() {
                return Err(Error::Unsupported { what: "streams wait for words in memory", function });
            }
        }
        context.usable()?;
        Ok(Self { pool: Pool::of(context), context: Arc::clone(context) })
    }

    /// A word with the value 0 that nobody else has.
    ///
    /// # Errors
    ///
    /// The driver's, when a further page is registered, and after a reset of the context.
    pub fn take(&self) -> Result<Word, DriverError> {
        self.context.usable()?;
        let place = self.pool.lock().take(&self.context)?;
        Ok(Word(Arc::new(Held {
            // Acquire: what the last user's streams did before their last write is done.
            base: place.word().load(Ordering::Acquire),
            place,
            furthest: AtomicU32::new(0),
            used: AtomicBool::new(false),
            by_streams: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            words: self.clone(),
        })))
    }

    /// The context whose device sees the words.
    pub fn context(&self) -> &Arc<PrimaryContext> {
        &self.context
    }
}

impl Pool {
    fn of(context: &PrimaryContext) -> Arc<Self> {
        let key = context.id().map(|id| (context.raw().addr(), id));
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.iter().find(|pool| key.is_some() && pool.key == key) {
            return Arc::clone(pool);
        }
        // A context's handle is given out again when it has gone, and then with another number.
        pools.retain(|pool| key.is_none() || pool.key.map(|(raw, _)| raw) != key.map(|(raw, _)| raw));
        let pool = Arc::new(Self { key, state: Mutex::default() });
        pools.push(Arc::clone(&pool));
        pool
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, context: &Arc<PrimaryContext>) -> Result<Place, DriverError> {
        for _ in 0..LOOKS.min(self.returned.len()) {
            let Some((place, furthest)) = self.returned.pop_front() else { break };
            if has_reached(place.word().load(Ordering::Acquire), furthest) {
                return Ok(place);
            }
            self.returned.push_back((place, furthest));
        }
        if self.free.is_empty() {
            let (pages, device) = Pages::registered(context, PAGE)?;
            let host = pages.start();
            self.free.extend((0..PAGE / LINE).rev().map(|line| Place {
                // SAFETY: the line lies in the page.
                host: unsafe { host.add(line * LINE) }.cast(),
                device: device + (line * LINE) as u64,
            }));
            self.pages.push(pages);
        }
        // There is one now.
        self.free.pop().ok_or_else(|| failure("cuMemHostRegister", CUresult::OUT_OF_MEMORY))
    }
}

/// A 32-bit word that the host and streams read, write and wait for. Given back to its pool when the last clone is dropped.
///
/// Its value begins at 0 and only grows, by whoever writes it, cyclically ([`has_reached`]). It is written either by the host
/// ([`Word::set`]) or, from the first [`Word::enqueue_write`] on, by streams alone.
#[derive(Clone, Debug)]
pub struct Word(Arc<Held>);

#[derive(Debug)]
struct Held {
    place: Place,
    /// What the memory held when the word was taken: the handle's 0.
    base: u32,
    /// The greatest value that was enqueued to be waited for or to be written, counted from `base`.
    furthest: AtomicU32,
    /// Whether anything was enqueued.
    used: AtomicBool,
    /// Whether a write was.
    by_streams: AtomicBool,
    /// Whether the host has written what streams were to write.
    given_up: AtomicBool,
    words: Words,
}

impl Word {
    /// Its value now. Who sees a stream's value sees what the stream did before (acquire).
    pub fn value(&self) -> u32 {
        self.0.place.word().load(Ordering::Acquire).wrapping_sub(self.0.base)
    }

    /// Whether [`Word::value`] has reached `at_least`.
    pub fn has_reached(&self, at_least: u32) -> bool {
        has_reached(self.value(), at_least)
    }

    /// Sets it, and so lets streams go on that wait for this value or an earlier one; they see what this thread did before
    /// (release).
    ///
    /// # Panics
    ///
    /// If a stream writes it.
    pub fn set(&self, value: u32) {
        // If both did, a value that is seen would not say that the streams' writes before it have been done.
        assert!(!self.0.by_streams.load(Ordering::Relaxed), "the word is written by a stream");
        self.0.place.word().store(self.0.base.wrapping_add(value), Ordering::Release);
    }

    /// Sets it to the greatest value that a stream was told to wait for, if it is not there yet: lets all streams go on when
    /// what they wait for has failed.
    ///
    /// # Panics
    ///
    /// If a stream writes it.
    pub fn release(&self) {
        let furthest = self.0.furthest.load(Ordering::Relaxed);
        if self.0.used.load(Ordering::Relaxed) && !self.has_reached(furthest) {
            self.set(furthest);
        }
    }

    /// The context of the words that it is of.
    pub fn context(&self) -> &Arc<PrimaryContext> {
        &self.0.words.context
    }

    /// Lets streams go on that wait for what the streams of a context were to write that is lost: as if they had written it. Nobody
    /// gets the word after this.
    ///
    /// # Safety
    ///
    /// The streams that were to write the word do nothing any more.
    pub unsafe fn give_up(&self) {
        let Held { place, base, furthest, given_up, .. } = &*self.0;
        given_up.store(true, Ordering::Relaxed);
        place.word().store(base.wrapping_add(furthest.load(Ordering::Relaxed)), Ordering::Release);
    }

    /// Enqueues a write of `value`, which whoever sees it sees what the stream did before (release). One call of the driver.
    ///
    /// # Safety
    ///
    /// `stream` is a stream, of any context, and not being captured; a default stream is that of the words' context. The value is
    /// greater than the word's value and those of all writes that were enqueued before, and streams make those writes before this
    /// one.
    ///
    /// # Errors
    ///
    /// The driver's; [`DriverError::is_unsupported`] if the device cannot.
    pub unsafe fn enqueue_write(&self, value: u32, stream: RawStream) -> Result<(), DriverError> {
        let Held { place, base, words, by_streams, .. } = &*self.0;
        by_streams.store(true, Ordering::Relaxed);
        // SAFETY: the caller vouches for the stream. The memory stays for as long as the driver's context. Nor does it get
        // another user before this write has been made: that has to wait until the memory has reached `furthest`, writes are
        // made one after the other with greater and greater values, and the host makes none any more (`set` panics).
        unsafe { enqueue_write_value(&words.context, place.device, base.wrapping_add(value), stream) }?;
        self.0.note(value);
        Ok(())
    }

    /// Makes what is enqueued on `stream` from now on wait until the value has reached `at_least`. One call of the driver.
    ///
    /// # Safety
    ///
    /// `stream` is a stream, of any context, and not being captured; a default stream is that of the words' context.
    ///
    /// # Errors
    ///
    /// The driver's; [`DriverError::is_unsupported`] if the device cannot.
    pub unsafe fn enqueue_wait(&self, at_least: u32, stream: RawStream) -> Result<(), DriverError> {
        let Held { place, base, words, .. } = &*self.0;
        // SAFETY: the caller vouches for the stream. The memory stays for as long as the driver's context. It gets no other user
        // before it has reached `at_least`, and a stream that looks later finds that or a greater value.
        unsafe { enqueue_wait_value(&words.context, place.device, base.wrapping_add(at_least), stream) }?;
        self.0.note(at_least);
        Ok(())
    }
}

impl Held {
    /// Notes what was enqueued. Relaxed: it is read by whoever drops the last clone, which orders it behind this.
    fn note(&self, value: u32) {
        self.used.store(true, Ordering::Relaxed);
        let _ = self.furthest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |furthest| {
            (!has_reached(furthest, value)).then_some(value)
        });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A word of a context that was reset or lost is of no use, and a child's are its parent's.
        if self.words.context.usable().is_err() || *self.given_up.get_mut() {
            return;
        }
        let mut state = self.words.pool.lock();
        if *self.used.get_mut() {
            state.returned.push_back((self.place, self.base.wrapping_add(*self.furthest.get_mut())));
        } else {
            state.free.push(self.place);
        }
    }
}
