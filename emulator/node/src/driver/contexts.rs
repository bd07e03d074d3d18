//! Contexts: primary ones and others, and the stack of them that every thread has.

use std::{
    cell::RefCell,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use super::context::{Context, DefaultStream, Primary, PrimaryState};
use super::{Driver, Error, Handle, Result, handles::new_handle};
use crate::engine::{Engine, Health, StreamKind};

thread_local! {
    /// The context stack of the thread; the last is current. The driver's id keeps two drivers apart.
    static STACK: RefCell<Vec<(u64, Option<Arc<Context>>)>> = const { RefCell::new(Vec::new()) };
}

/// All flags that `cuCtxCreate` and `cuDevicePrimaryCtxSetFlags` know: scheduling, map-host, local memory, dumps,
/// synchronous memory operations.
const KNOWN_FLAGS: u32 = 0xff;

impl Driver {
    fn new_context(&self, device: usize, flags: u32, is_primary: bool) -> Result<Arc<Context>> {
        let engine = self.engine(device)?;
        let handle = new_handle();
        let health = Arc::new(Health::default());
        let context = Arc::new(Context {
            handle,
            device,
            flags: AtomicU32::new(flags),
            default_stream: DefaultStream::new(engine, handle, &health, StreamKind::Legacy),
            health,
            is_primary,
            destroyed: AtomicBool::new(false),
            stopping: Mutex::default(),
            limits: Mutex::new([1 << 10, 1 << 20, 8 << 20]),
            thread_streams: Mutex::default(),
        });
        self.contexts.insert(handle, Arc::clone(&context));
        Ok(context)
    }

    /// Waits for the context's work, then ends everything in it.
    fn end_context(&self, context: &Context) {
        self.forget_captures(context);
        if let Ok(engine) = self.engine(context.device) {
            engine.wait_context(context.handle);
            context.destroyed.store(true, Ordering::Release);
            let streams =
                self.streams.all().into_iter().filter(|stream| stream.context.handle == context.handle);
            streams.for_each(|stream| engine.remove_stream(stream.id));
            engine.remove_stream(context.default_stream.id);
            let threads = context.thread_streams.lock().unwrap_or_else(PoisonError::into_inner);
            threads.values().for_each(|stream| engine.remove_stream(stream.id));
        }
        self.streams.retain(|stream| stream.context.handle != context.handle);
        self.events.retain(|event| event.context.handle != context.handle);
        self.functions.retain(|function| function.context.handle != context.handle);
        self.modules.retain(|module| module.context.handle != context.handle);
        self.memory.free_context(context.handle);
        let _ = self.contexts.remove(context.handle);
        if !self.contexts.all().iter().any(|other| other.device == context.device) {
            self.memory.forget_peer_access(context.device);
        }
    }

    pub(super) fn engine_of(&self, context: &Context) -> Result<&Engine> {
        self.engine(context.device)
    }

    /// The thread's current context, whatever its state.
    pub(super) fn current(&self) -> Result<Arc<Context>> {
        let current = STACK.with_borrow(|stack| {
            let mine = stack.iter().rev().find(|(key, _)| *key == self.id);
            mine.and_then(|(_, context)| context.clone())
        });
        current.ok_or(Error::InvalidContext)
    }

    /// The thread's current context, if it can still work.
    pub(super) fn working(&self) -> Result<Arc<Context>> {
        let context = self.current()?;
        context.check()?;
        Ok(context)
    }

    fn context(&self, handle: Handle) -> Result<Arc<Context>> {
        self.contexts.find(handle).map_err(|_| Error::InvalidContext)
    }

    /// `cuCtxCreate_v2`: a new context on `ordinal`, made current.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`], [`Error::InvalidValue`] for unknown flags.
    pub fn ctx_create(&self, flags: u32, ordinal: i32) -> Result<Handle> {
        if flags & !KNOWN_FLAGS != 0 {
            return Err(Error::InvalidValue);
        }
        let context = self.new_context(self.device(ordinal)?, flags, false)?;
        let handle = context.handle;
        STACK.with_borrow_mut(|stack| stack.push((self.id, Some(context))));
        Ok(handle)
    }

    /// `cuCtxDestroy_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`] if there is none such, or it is a primary context.
    pub fn ctx_destroy(&self, handle: Handle) -> Result<()> {
        let context = self.context(handle)?;
        if context.is_primary {
            return Err(Error::InvalidContext);
        }
        let is_current = self.current().is_ok_and(|current| current.handle == handle);
        if is_current {
            let _ = self.ctx_pop();
        }
        self.end_context(&context);
        Ok(())
    }

    /// `cuCtxPushCurrent_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`].
    pub fn ctx_push(&self, handle: Handle) -> Result<()> {
        let context = self.context(handle)?;
        STACK.with_borrow_mut(|stack| stack.push((self.id, Some(context))));
        Ok(())
    }

    /// `cuCtxPopCurrent_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`] if the stack is empty.
    pub fn ctx_pop(&self) -> Result<Handle> {
        STACK.with_borrow_mut(|stack| {
            let at = stack.iter().rposition(|(key, _)| *key == self.id).ok_or(Error::InvalidContext)?;
            let (_, context) = stack.remove(at);
            context.map(|context| context.handle).ok_or(Error::InvalidContext)
        })
    }

    /// `cuCtxSetCurrent`: replaces the top of the stack; with 0, removes it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`].
    pub fn ctx_set_current(&self, handle: Handle) -> Result<()> {
        let context = if handle == 0 { None } else { Some(self.context(handle)?) };
        STACK.with_borrow_mut(|stack| {
            if let Some(at) = stack.iter().rposition(|(key, _)| *key == self.id) {
                stack.remove(at);
            }
            if context.is_some() {
                stack.push((self.id, context));
            }
        });
        Ok(())
    }

    /// `cuCtxGetCurrent`; 0 if there is none.
    pub fn ctx_current(&self) -> Handle {
        self.current().map_or(0, |context| context.handle)
    }

    /// `cuCtxGetDevice`: the ordinal.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`].
    pub fn ctx_device(&self) -> Result<i32> {
        self.ordinal(self.current()?.device)
    }

    /// `cuCtxGetFlags`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`].
    pub fn ctx_flags(&self) -> Result<u32> {
        Ok(self.current()?.flags.load(Ordering::Relaxed))
    }

    /// `cuCtxGetApiVersion`, of the given context or (0) the current one.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`].
    pub fn ctx_api_version(&self, handle: Handle) -> Result<u32> {
        if handle == 0 {
            self.current()?
        } else {
            self.context(handle)?
        };
        Ok(3020)
    }

    /// `cuCtxGetId`, of the given context or (0) the current one.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`].
    pub fn ctx_id(&self, handle: Handle) -> Result<u64> {
        Ok(if handle == 0 { self.current()? } else { self.context(handle)? }.handle)
    }

    /// `cuCtxSynchronize`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`], the failure of one of the context's kernels, or
    /// [`Error::StreamCaptureUnsupported`] while one of its streams is being captured or a capture forbids the call.
    pub fn ctx_synchronize(&self) -> Result<()> {
        let context = self.working()?;
        self.permit_context_wait(&context)?;
        self.engine_of(&context)?.wait_context(context.handle);
        context.check()
    }

    /// `cuCtxGetLimit`: stack size (0), printf buffer (1) or heap (2), in bytes. They are kept and answered; kernels of
    /// the emulated device have none of the three.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedLimit`], [`Error::InvalidContext`] or its failure.
    pub fn ctx_limit(&self, limit: u32) -> Result<u64> {
        let context = self.working()?;
        let limits = context.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.get(limit as usize).copied().ok_or(Error::UnsupportedLimit)
    }

    /// `cuCtxSetLimit`.
    ///
    /// # Errors
    ///
    /// As [`Driver::ctx_limit`].
    pub fn set_ctx_limit(&self, limit: u32, value: u64) -> Result<()> {
        let context = self.working()?;
        let mut limits = context.limits.lock().unwrap_or_else(PoisonError::into_inner);
        *limits.get_mut(limit as usize).ok_or(Error::UnsupportedLimit)? = value;
        Ok(())
    }

    /// Checks that a context is current and working, for functions that then have nothing to do here, such as
    /// `cuCtxSetCacheConfig`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`], or the context's failure.
    pub fn ctx_check(&self) -> Result<()> {
        self.working().map(|_| ())
    }

    /// `cuDevicePrimaryCtxRetain`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`].
    pub fn primary_retain(&self, ordinal: i32) -> Result<Handle> {
        let device = self.device(ordinal)?;
        let mut primary = self.primary(device);
        let context = match &primary.context {
            Some(context) => Arc::clone(context),
            None => {
                let context = self.new_context(device, primary.flags, true)?;
                primary.context = Some(Arc::clone(&context));
                context
            }
        };
        primary.users += 1;
        Ok(context.handle)
    }

    /// `cuDevicePrimaryCtxRelease_v2`: the last release ends the context.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`], [`Error::InvalidContext`] if it is not active.
    pub fn primary_release(&self, ordinal: i32) -> Result<()> {
        let mut primary = self.primary(self.device(ordinal)?);
        if primary.users == 0 {
            return Err(Error::InvalidContext);
        }
        primary.users -= 1;
        let over = if primary.users == 0 { primary.context.take() } else { None };
        drop(primary);
        if let Some(context) = over {
            self.end_context(&context);
        }
        Ok(())
    }

    /// `cuDevicePrimaryCtxReset_v2`: ends the context whoever holds it, and first the kernels and copies that run or
    /// wait in it. Also the way out of a failure, and of a kernel that does not end.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`].
    pub fn primary_reset(&self, ordinal: i32) -> Result<()> {
        let mut primary = self.primary(self.device(ordinal)?);
        primary.users = 0;
        let Some(context) = primary.context.take() else { return Ok(()) };
        let engine = self.engine_of(&context)?;
        {
            let _stopping = context.stopping.lock();
            // First, so that nothing more is put into its streams.
            context.destroyed.store(true, Ordering::Release);
            engine.stop_context(context.handle, &context.health);
        }
        // Nobody is told before that it is not there any more.
        drop(primary);
        self.end_context(&context);
        Ok(())
    }

    /// `cuDevicePrimaryCtxSetFlags_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`], [`Error::InvalidValue`] for unknown flags.
    pub fn primary_set_flags(&self, ordinal: i32, flags: u32) -> Result<()> {
        let mut primary = self.primary(self.device(ordinal)?);
        if flags & !KNOWN_FLAGS != 0 {
            return Err(Error::InvalidValue);
        }
        primary.flags = flags;
        if let Some(context) = &primary.context {
            context.flags.store(flags, Ordering::Relaxed);
        }
        Ok(())
    }

    /// `cuDevicePrimaryCtxGetState`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`].
    pub fn primary_state(&self, ordinal: i32) -> Result<PrimaryState> {
        let primary = self.primary(self.device(ordinal)?);
        Ok(PrimaryState { flags: primary.flags, active: primary.context.is_some() })
    }

    fn primary(&self, device: usize) -> std::sync::MutexGuard<'_, Primary> {
        self.primaries[device].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `cuDeviceCanAccessPeer`. A device and itself: no.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`].
    pub fn can_access_peer(&self, ordinal: i32, peer: i32) -> Result<bool> {
        Ok(self.node.gpus[self.device(ordinal)?].p2p[self.device(peer)?])
    }

    /// `cuCtxEnablePeerAccess`: kernels of the current context may touch memory of the peer context's device.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`], [`Error::PeerAccessUnsupported`], [`Error::PeerAccessAlreadyEnabled`],
    /// [`Error::InvalidValue`] for flags other than 0.
    pub fn ctx_enable_peer_access(&self, peer: Handle, flags: u32) -> Result<()> {
        let context = self.working()?;
        let peer = self.context(peer)?;
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        if context.device == peer.device {
            return Err(Error::InvalidContext);
        }
        if !self.node.gpus[context.device].p2p[peer.device] {
            return Err(Error::PeerAccessUnsupported);
        }
        match self.memory.set_peer_access(context.device, peer.device, true) {
            true => Ok(()),
            false => Err(Error::PeerAccessAlreadyEnabled),
        }
    }

    /// `cuCtxDisablePeerAccess`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`], [`Error::PeerAccessNotEnabled`].
    pub fn ctx_disable_peer_access(&self, peer: Handle) -> Result<()> {
        let context = self.working()?;
        let peer = self.context(peer)?;
        match self.memory.set_peer_access(context.device, peer.device, false) {
            true => Ok(()),
            false => Err(Error::PeerAccessNotEnabled),
        }
    }
}
