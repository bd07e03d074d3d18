//! An open device.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::attributes::{DeviceAttributes, LinkLayer, PortAttributes};
use crate::completion::{CompletionChannel, CompletionQueue};
use crate::domain::ProtectionDomain;
use crate::event::AsyncEvent;
use crate::gid::{Gid, GidEntry, GidType, type_by_sysfs};
use crate::sys::ibv_context;
use crate::{Device, Error, Library, VerbsError, result};

/// An open device. Cheap to clone; closed with its last clone and the last thing made from it.
#[derive(Clone)]
pub struct Context(Arc<Opened>);

struct Opened {
    context: NonNull<ibv_context>,
    device: Device,
}

// SAFETY: libibverbs is thread-safe, and the context's fields do not change while it is open.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: everything that was made from the context is gone: it had a clone of this.
        if let Err(error) = unsafe { result::close_device(self.device.library(), self.context) } {
            tracing::warn!("{}: {error}", self.device.name());
        }
    }
}

impl Context {
    pub(crate) fn new(context: NonNull<ibv_context>, device: Device) -> Self {
        Self(Arc::new(Opened { context, device }))
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// The library.
    pub fn library(&self) -> &Library {
        self.0.device.library()
    }

    /// The raw context, alive as long as `self`.
    pub fn raw(&self) -> NonNull<ibv_context> {
        self.0.context
    }

    /// The device's identity and limits.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`].
    pub fn query_device(&self) -> Result<DeviceAttributes, Error> {
        // SAFETY: the context is open.
        let raw = unsafe { result::query_device(self.library(), self.raw()) }?;
        Ok(DeviceAttributes::from(&raw))
    }

    /// A port; the first is 1.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: EINVAL for a port that there is not.
    pub fn query_port(&self, port: u8) -> Result<PortAttributes, Error> {
        // SAFETY: the context is open.
        let raw = unsafe { result::query_port(self.library(), self.raw(), port) }?;
        Ok(PortAttributes::from(&raw))
    }

    /// The GID table of a port without its empty places. Where library or kernel are too old to tell the types, they
    /// come from `sysfs` (`/sys`), which has `class/infiniband/...`; an entry without a type there is the port's first
    /// type: InfiniBand or RoCE v1.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: EINVAL for a port that there is not.
    pub fn gids(&self, port: u8, sysfs: &Path) -> Result<Vec<GidEntry>, Error> {
        let attributes = self.query_port(port)?;
        let ethernet = attributes.link_layer == LinkLayer::Ethernet;
        let mut entries = Vec::new();
        for index in 0..attributes.gid_table_len {
            entries.extend(self.entry(port, index, ethernet, sysfs)?);
        }
        Ok(entries)
    }

    /// One place of a port's GID table; `None` if it is empty. As [`gids`](Self::gids) otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: EINVAL for a port or a place that there is not.
    pub fn gid(&self, port: u8, index: u32, sysfs: &Path) -> Result<Option<GidEntry>, Error> {
        let attributes = self.query_port(port)?;
        if index >= attributes.gid_table_len {
            return Err(VerbsError { call: "ibv_query_gid", errno: libc::EINVAL }.into());
        }
        self.entry(port, index, attributes.link_layer == LinkLayer::Ethernet, sysfs)
    }

    fn entry(&self, port: u8, index: u32, ethernet: bool, sysfs: &Path) -> Result<Option<GidEntry>, Error> {
        // SAFETY: the context is open.
        match unsafe { result::query_gid_ex(self.library(), self.raw(), port, index) } {
            Ok(raw) => {
                let gid = Gid::from(raw.gid);
                let netdev = Some(raw.ndev_ifindex).filter(|&index| index != 0);
                let kind = GidType::from_code(raw.gid_type);
                Ok((!gid.is_zero()).then_some(GidEntry { index, gid, kind, netdev }))
            }
            Err(Error::Verbs(VerbsError { errno: libc::ENODATA, .. })) => Ok(None),
            Err(
                Error::TooOld { .. }
                | Error::Verbs(VerbsError { errno: libc::EOPNOTSUPP | libc::ENOSYS, .. }),
            ) => {
                // SAFETY: the context is open.
                let gid = Gid::from(unsafe { result::query_gid(self.library(), self.raw(), port, index) }?);
                let first = if ethernet { GidType::RoceV1 } else { GidType::Ib };
                let kind = type_by_sysfs(sysfs, self.device().name(), port, index, ethernet).unwrap_or(first);
                Ok((!gid.is_zero()).then_some(GidEntry { index, gid, kind, netdev: None }))
            }
            Err(error) => Err(error),
        }
    }

    /// A new protection domain: what is registered in it can be used by its own queue pairs only.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`].
    pub fn protection_domain(&self) -> Result<ProtectionDomain, Error> {
        ProtectionDomain::new(self)
    }

    /// A completion queue for at least `entries` completions. It is polled.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: EINVAL for more than the device can.
    pub fn completion_queue(&self, entries: u32) -> Result<CompletionQueue, Error> {
        CompletionQueue::new(self, entries, None)
    }

    /// A completion queue for at least `entries` completions, which tells `channel` of them under the name `token`
    /// after [`CompletionQueue::request_notification`].
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: EINVAL for more than the device can, or a channel of another device.
    pub fn completion_queue_with_channel(
        &self,
        entries: u32,
        channel: &CompletionChannel,
        token: usize,
    ) -> Result<CompletionQueue, Error> {
        CompletionQueue::new(self, entries, Some((channel, token)))
    }

    /// A channel for events of completion queues.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]; [`Error::TooOld`].
    pub fn completion_channel(&self) -> Result<CompletionChannel, Error> {
        CompletionChannel::new(self)
    }

    /// The next event of the device: a port that went down, a queue pair that failed. `None` if there is none now:
    /// this never waits; the descriptor ([`AsFd`]) becomes readable when there is one.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`].
    pub fn next_event(&self) -> Result<Option<AsyncEvent>, Error> {
        set_nonblocking(self.as_fd())?;
        // SAFETY: the context is open.
        match unsafe { result::get_async_event(self.library(), self.raw()) } {
            Ok(mut raw) => {
                // SAFETY: the event was just got and is not acknowledged, so what it is about cannot be destroyed.
                let event = unsafe { AsyncEvent::new(&raw) };
                // SAFETY: it is acknowledged once.
                unsafe { result::ack_async_event(self.library(), &mut raw) };
                Ok(Some(event))
            }
            Err(VerbsError { errno: libc::EAGAIN | libc::EINTR, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The descriptor of the device's events.
impl AsFd for Context {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the context is open as long as `self` lives, and so is its descriptor.
        unsafe { BorrowedFd::borrow_raw((*self.raw().as_ptr()).async_fd) }
    }
}

pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Error> {
    let set = || {
        let flags = fcntl_getfl(fd)?;
        if flags.contains(OFlags::NONBLOCK) { Ok(()) } else { fcntl_setfl(fd, flags | OFlags::NONBLOCK) }
    };
    set().map_err(|error: rustix::io::Errno| {
        VerbsError { call: "fcntl of an event descriptor", errno: error.raw_os_error() }.into()
    })
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({})", self.device().name())
    }
}
