//! Memory that is registered: what its owner holds, and how it comes back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use meshreduce_device::Device;

use super::RegionDescriptor;
use super::withdrawn::Withdrawn;
use crate::channel::RegionPart;
use crate::error::{Error, THIS_SIDE};
use crate::owned::{Failed, Held, Remains};
use crate::progress::{Command, Latch, Site};
use crate::shared_copy;
use crate::span::{Memory, Span};

/// The shares of the kinds that have registered a region, by name.
type Parts = Vec<(String, Arc<dyn RegionPart>)>;

/// Registered memory: the source and the target of one-sided writes ([`Endpoint::write`](crate::Endpoint::write)).
///
/// Whoever is given its [`RegionDescriptor`] and has an endpoint to this context can write to all of it at any time, without a word
/// of this side's: see [`Counter`](crate::Counter) for how one learns of it. How concurrent writes to the same place come out is
/// not said.
///
/// Dropped, it is withdrawn: peers are told to finish and to let go, and the memory is dropped when the last of them has done so
/// or its process has ended. A peer that is stopped keeps it allocated for as long as it lives, because it may go on and write;
/// if the context is closed meanwhile, the memory is leaked, and that is logged. [`Region::close`] gives it back instead.
pub struct Region<M: Memory> {
    span: Span,
    /// By the name of the kind. Empty: it has been withdrawn.
    parts: Parts,
    memory: Arc<Held<M>>,
    site: Arc<Site>,
}

impl<M: Memory> Region<M> {
    /// Registers memory with all kinds of channels that can.
    pub(crate) fn new(site: &Arc<Site>, memory: M) -> Result<Self, Failed<M>> {
        // Where it stays, before anybody is told where that is.
        let memory = Held::new(memory);
        let span = memory.span();
        match Self::parts(site, span) {
            Ok(parts) => Ok(Self { span, parts, memory, site: Arc::clone(site) }),
            Err(error) => {
                let remains = memory.take().map_or(Remains::Nothing, Remains::Memory);
                Err(Failed { error, remains })
            }
        }
    }

    fn parts(site: &Site, span: Span) -> Result<Parts, Error> {
        site.check_process()?;
        if span.bytes == 0 {
            return Err(Error::BadMemory {
                what: format!("{span} cannot be registered: it is empty").into(),
            });
        }
        let (mut parts, mut reasons) = (Vec::new(), Vec::new());
        for kind in site.kinds.viable() {
            // SAFETY: the memory is valid for as long as `memory`, which is let go of only when no part is left: by `Withdrawn`, or
            // by `new`, which has just made them, if one of the calls panics.
            match unsafe { kind.register(span) } {
                Ok(Some(part)) => parts.push((kind.name().to_owned(), part)),
                Ok(None) => {
                    reasons.push(format!("{}: it does not register memory of {}", kind.name(), span.device))
                }
                Err(error) => {
                    tracing::debug!(channel = kind.name(), %span, %error, "memory is not registered");
                    reasons.push(format!("{}: {error}", kind.name()));
                }
            }
        }
        if parts.is_empty() {
            let report = site.kinds.report();
            let absent =
                report.rows.iter().filter_map(|row| Some(format!("{}: {}", row.name, row.reason.as_ref()?)));
            reasons.extend(absent);
            let reasons = match reasons.is_empty() {
                true => "no kind of channel can".to_owned(),
                false => reasons.join("; "),
            };
            return Err(Error::BadMemory { what: format!("{span} cannot be registered: {reasons}").into() });
        }
        Ok(parts)
    }

    /// What others need to write to it.
    pub fn descriptor(&self) -> RegionDescriptor {
        let parts = self.parts.iter().map(|(name, part)| (name.clone(), part.descriptor())).collect();
        RegionDescriptor::new(self.span.device, self.span.bytes, parts)
    }

    /// Where it is.
    pub fn span(&self) -> Span {
        self.span
    }

    /// The share of the kind named `name`.
    pub(crate) fn part(&self, name: &str) -> Option<&Arc<dyn RegionPart>> {
        self.parts.iter().find(|(known, _)| known == name).map(|(_, part)| part)
    }

    /// Reads bytes of host memory from `offset` on, also while peers write to them or batches read them: of each byte one gets what
    /// it was or what it becomes. Whatever a counter has told of before is there.
    ///
    /// ```
    /// use meshreduce_channels::{Context, HostMemory, Registry};
    ///
    /// let context = Context::new(&Registry::default(), &[])?;
    /// let region = context.register(HostMemory::new(4096)?)?;
    /// region.write(10, b"abc")?;
    /// let mut there = [0; 5];
    /// region.read(9, &mut there)?;
    /// assert_eq!(&there, b"\0abc\0");
    /// # Ok::<(), meshreduce_channels::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRegion`]; [`Error::BadMemory`] for memory of a device; [`Error::Forked`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let from = self.host(offset, into.len())?;
        // SAFETY: the bytes are the region's memory's, which it keeps. Whatever of this process touches host memory of a region while
        // it is registered does so by this function: this one and the next, and the copies of batches.
        unsafe { shared_copy::copy(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Writes to host memory from `offset` on, also while batches read it or peers write to it: of each byte they get what it was or
    /// what it becomes. A batch that is started when this has returned finds it written.
    ///
    /// # Errors
    ///
    /// As [`Region::read`].
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), Error> {
        let to = self.host(offset, from.len())?;
        // SAFETY: as above.
        unsafe { shared_copy::copy(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    /// Where the host sees bytes of the region.
    fn host(&self, offset: u64, length: usize) -> Result<*mut u8, Error> {
        self.site.check_process()?;
        let Span { device, address, bytes } = self.span;
        if device != Device::Cpu {
            let what = format!("{} is not read and written by the host", self.span).into();
            return Err(Error::BadMemory { what });
        }
        let length = length as u64;
        if offset.checked_add(length).is_none_or(|end| end > bytes) {
            return Err(Error::OutOfRegion { whose: THIS_SIDE.into(), offset, length, bytes });
        }
        Ok(std::ptr::with_exposed_provenance_mut((address + offset) as usize))
    }

    /// Whether it is of this context.
    pub(crate) fn is_of(&self, site: &Arc<Site>) -> bool {
        Arc::ptr_eq(&self.site, site)
    }

    /// Withdraws it, and gives the memory back when nobody writes to it, or reads from it, any more.
    pub fn close(mut self) -> Closing<M> {
        let memory = Arc::clone(&self.memory);
        Closing { memory, over: self.withdraw(), process: self.site.process }
    }

    fn withdraw(&mut self) -> Arc<Latch> {
        let over = Arc::new(Latch::default());
        let parts: Vec<_> = std::mem::take(&mut self.parts).into_iter().map(|(_, part)| part).collect();
        if self.site.check_process().is_err() {
            // A child that was forked: the registrations are the parent's, and so are the locks and what the memory is to its driver.
            std::mem::forget((parts, Arc::clone(&self.memory)));
        } else if !parts.is_empty() {
            let keep = Arc::clone(&self.memory);
            let withdrawn = Withdrawn::new(self.span, parts, keep, Arc::clone(&over));
            self.site.post.send(Command::Withdraw(withdrawn));
        }
        over
    }
}

impl<M: Memory> Drop for Region<M> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl<M: Memory> fmt::Debug for Region<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("span", &self.span).field("parts", &self.parts).finish_non_exhaustive()
    }
}

/// A region that is being given up ([`Region::close`]). Dropped, the memory is dropped when nobody uses it any more.
pub struct Closing<M: Memory> {
    memory: Arc<Held<M>>,
    over: Arc<Latch>,
    process: u32,
}

impl<M: Memory> Closing<M> {
    /// Waits, at most `timeout`, until nobody uses the memory any more: the memory, or what was waited for if somebody still does.
    ///
    /// # Errors
    ///
    /// Itself, to be waited for again. At once if the memory does not come back ([`Closing::is_lost`]).
    pub fn wait(self, timeout: Duration) -> Result<M, Self> {
        // A child takes no locks: another thread of the parent may have had them.
        if self.process != std::process::id() || !self.over.wait(timeout) {
            return Err(self);
        }
        // It is taken once, by the only value that can.
        self.memory.take().ok_or(self)
    }

    /// Whether the memory never comes back: the context was closed while somebody used it, or a kind of channel has panicked when it
    /// was to give it up, so that something may write to it for ever. Also in a forked child: the memory is the parent's.
    pub fn is_lost(&self) -> bool {
        self.process != std::process::id() || self.over.is_given_up()
    }
}

impl<M: Memory> fmt::Debug for Closing<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closing").field("over", &self.over).finish_non_exhaustive()
    }
}
