//! What a block sees as memory: device memory through a cache of regions, and its own shared and local memory.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use portable_atomic::AtomicU128;

use crate::exec::interface::{AddressSpace, Region};
use meshreduce_emulator_ptx::types::{Order, Space};
use meshreduce_emulator_ptx::{FaultKind, Launch, window};

/// Regions that a block remembers.
const REGIONS: usize = 32;

pub(super) struct Memory {
    shared: Box<[u8]>,
    local: Box<[u8]>,
    local_bytes: usize,
    regions: Vec<Region>,
    /// Which region to forget next.
    next: usize,
    version: u64,
    /// By memory instruction: where in `regions` its last access was. Most instructions stay in one allocation.
    hints: Box<[u8]>,
}

/// A checked address.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// In device memory, as mapped on the host; aligned, and valid for the bytes that were checked.
    Host(*mut u8),
    Shared(usize),
    /// Index into the local memory of all threads.
    Local(usize),
    Const(usize),
    Param(usize),
}

/// What an access wants.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) space: Space,
    pub(super) address: u64,
    /// Bytes of the whole access, also the alignment that it needs.
    pub(super) bytes: u32,
    pub(super) site: u16,
    pub(super) thread: u32,
    /// `load`, `store` or `atomic`.
    pub(super) access: &'static str,
}

impl Memory {
    pub(super) fn new(launch: &Launch, threads: usize) -> Self {
        let kernel = &launch.kernel;
        // Else other processes could see one half of what a thread stores.
        assert!(
            !kernel.accesses_b128 || AtomicU128::is_lock_free(),
            "this machine has no access of sixteen bytes at once, which {} needs",
            kernel.name
        );
        Self {
            shared: vec![0; launch.shared_bytes() as usize].into(),
            local: vec![0; kernel.local_bytes as usize * threads].into(),
            local_bytes: kernel.local_bytes as usize,
            regions: Vec::new(),
            next: 0,
            version: 0,
            hints: vec![0; usize::from(kernel.sites)].into(),
        }
    }

    /// Checks an access and finds its place.
    #[inline]
    pub(super) fn resolve(
        &mut self,
        device: &dyn AddressSpace,
        launch: &Launch,
        request: Request,
    ) -> Result<Place, FaultKind> {
        let Request { space, address, bytes, access, .. } = request;
        if address & u64::from(bytes - 1) != 0 {
            return Err(FaultKind::Misaligned { access, address, bytes });
        }
        let (space, address) = window::resolve(space, address);
        let size = match space {
            Space::Generic | Space::Global => return self.device(device, request),
            Space::Shared => self.shared.len(),
            Space::Local => self.local_bytes,
            Space::Const => launch.kernel.constant_memory.len(),
            Space::Param => launch.params.len(),
        };
        let fault =
            |nearest: String| FaultKind::OutOfBounds { access, address: request.address, bytes, nearest };
        if address.checked_add(u64::from(bytes)).is_none_or(|end| end > size as u64) {
            let name = format!("{space:?}").to_lowercase();
            return Err(fault(format!("offset {address} of {size} bytes of {name} memory")));
        }
        let offset = address as usize;
        match space {
            Space::Shared => Ok(Place::Shared(offset)),
            Space::Local => Ok(Place::Local(self.local_bytes * request.thread as usize + offset)),
            _ if access != "load" => Err(fault("this state space is read only".to_owned())),
            Space::Const => Ok(Place::Const(offset)),
            _ => Ok(Place::Param(offset)),
        }
    }

    #[inline]
    fn device(&mut self, device: &dyn AddressSpace, request: Request) -> Result<Place, FaultKind> {
        let version = device.version();
        if version != self.version {
            self.regions.clear();
            self.next = 0;
            self.version = version;
        }
        let hint = self.hints[usize::from(request.site)];
        if let Some(place) = self.regions.get(usize::from(hint)).and_then(|region| inside(region, request)) {
            return Ok(place);
        }
        self.search(device, request)
    }

    #[cold]
    fn search(&mut self, device: &dyn AddressSpace, request: Request) -> Result<Place, FaultKind> {
        for (index, region) in self.regions.iter().enumerate() {
            if let Some(place) = inside(region, request) {
                self.hints[usize::from(request.site)] = index as u8;
                return Ok(place);
            }
        }
        let Request { address, bytes, access, .. } = request;
        let fault = |nearest: String| FaultKind::OutOfBounds { access, address, bytes, nearest };
        let region = device.find(address).map_err(fault)?;
        // Alignment is checked on device addresses, so the mapping has to keep it.
        assert!(
            (region.host.as_ptr() as u64 ^ region.base).is_multiple_of(16),
            "a region's host address must be congruent to its device address modulo 16"
        );
        let Some(place) = inside(&region, request) else {
            let Region { base, len, .. } = region;
            return Err(fault(format!(
                "the access runs past the end of the {len}-byte allocation at {base:#x}"
            )));
        };
        let index = if self.regions.len() < REGIONS {
            self.regions.push(region);
            self.regions.len() - 1
        } else {
            self.next = (self.next + 1) % REGIONS;
            self.regions[self.next] = region;
            self.next
        };
        self.hints[usize::from(request.site)] = index as u8;
        Ok(place)
    }

    /// Reads `bytes` (1, 2, 4 or 8) at `place` plus `offset`, which lies within what was checked.
    #[inline(always)]
    pub(super) fn load(&self, launch: &Launch, place: Place, offset: usize, bytes: u32, order: Order) -> u64 {
        let own = |memory: &[u8], at: usize| {
            let mut word = [0; 8];
            word[..bytes as usize].copy_from_slice(&memory[at..][..bytes as usize]);
            u64::from_le_bytes(word)
        };
        match place {
            Place::Host(host) => {
                let order = if order == Order::Acquire { Ordering::Acquire } else { Ordering::Relaxed };
                // SAFETY: `resolve` found these bytes in a region whose backing `self.regions` still holds or held
                // at the beginning of this very instruction, and checked the alignment. All access to device memory,
                // here and in other processes, is by atomics.
                unsafe {
                    let host = host.add(offset);
                    match bytes {
                        1 => u64::from(AtomicU8::from_ptr(host).load(order)),
                        2 => u64::from(AtomicU16::from_ptr(host.cast()).load(order)),
                        4 => u64::from(AtomicU32::from_ptr(host.cast()).load(order)),
                        _ => AtomicU64::from_ptr(host.cast()).load(order),
                    }
                }
            }
            Place::Shared(at) => own(&self.shared, at + offset),
            Place::Local(at) => own(&self.local, at + offset),
            Place::Const(at) => own(&launch.kernel.constant_memory, at + offset),
            Place::Param(at) => own(&launch.params, at + offset),
        }
    }

    /// Writes the low `bytes` bytes of `value`; the rest as in [`Memory::load`].
    #[inline]
    pub(super) fn store(&mut self, place: Place, offset: usize, bytes: u32, value: u64, order: Order) {
        let (memory, at) = match place {
            Place::Host(host) => {
                let order = if order == Order::Release { Ordering::Release } else { Ordering::Relaxed };
                // SAFETY: as in `load`.
                unsafe {
                    let host = host.add(offset);
                    match bytes {
                        1 => AtomicU8::from_ptr(host).store(value as u8, order),
                        2 => AtomicU16::from_ptr(host.cast()).store(value as u16, order),
                        4 => AtomicU32::from_ptr(host.cast()).store(value as u32, order),
                        _ => AtomicU64::from_ptr(host.cast()).store(value, order),
                    }
                }
                return;
            }
            Place::Shared(at) => (&mut self.shared, at),
            Place::Local(at) => (&mut self.local, at),
            // `resolve` gives these places to loads only.
            Place::Const(_) | Place::Param(_) => return,
        };
        memory[at + offset..][..bytes as usize].copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
    }

    /// Reads sixteen bytes at once at `place`, for which they were checked.
    pub(super) fn load_b128(&self, launch: &Launch, place: Place, order: Order) -> u128 {
        match place {
            Place::Host(host) => {
                let order = if order == Order::Acquire { Ordering::Acquire } else { Ordering::Relaxed };
                // SAFETY: as in `load`.
                unsafe { AtomicU128::from_ptr(host.cast()).load(order) }
            }
            place => {
                let half = |offset| u128::from(self.load(launch, place, offset, 8, Order::Weak));
                half(0) | half(8) << 64
            }
        }
    }

    /// Writes sixteen bytes at once; the rest as in [`Memory::load_b128`].
    pub(super) fn store_b128(&mut self, place: Place, value: u128, order: Order) {
        match place {
            Place::Host(host) => {
                let order = if order == Order::Release { Ordering::Release } else { Ordering::Relaxed };
                // SAFETY: as in `load`.
                unsafe { AtomicU128::from_ptr(host.cast()).store(value, order) }
            }
            place => {
                self.store(place, 0, 8, value as u64, Order::Weak);
                self.store(place, 8, 8, (value >> 64) as u64, Order::Weak);
            }
        }
    }

    /// Replaces the value by `update` of it, atomically, and returns the old one.
    pub(super) fn update(
        &mut self,
        place: Place,
        bytes: u32,
        order: Order,
        launch: &Launch,
        update: impl Fn(u64) -> u64,
    ) -> u64 {
        let Place::Host(host) = place else {
            let old = self.load(launch, place, 0, bytes, Order::Weak);
            self.store(place, 0, bytes, update(old), Order::Weak);
            return old;
        };
        let (success, failure) = match order {
            Order::Acquire => (Ordering::Acquire, Ordering::Acquire),
            Order::Release => (Ordering::Release, Ordering::Relaxed),
            Order::AcqRel => (Ordering::AcqRel, Ordering::Acquire),
            _ => (Ordering::Relaxed, Ordering::Relaxed),
        };
        macro_rules! exchange {
            ($atomic:ty, $word:ty) => {{
                // SAFETY: as in `load`.
                let cell = unsafe { <$atomic>::from_ptr(host.cast()) };
                let mut old = cell.load(failure);
                loop {
                    let new = update(u64::from(old)) as $word;
                    match cell.compare_exchange_weak(old, new, success, failure) {
                        Ok(_) => return u64::from(old),
                        Err(now) => old = now,
                    }
                }
            }};
        }
        match bytes {
            2 => exchange!(AtomicU16, u16),
            4 => exchange!(AtomicU32, u32),
            _ => exchange!(AtomicU64, u64),
        }
    }
}

#[inline]
fn inside(region: &Region, request: Request) -> Option<Place> {
    let offset = request.address.wrapping_sub(region.base);
    let fits = offset < region.len && region.len - offset >= u64::from(request.bytes);
    // SAFETY: the offset lies within the region, which is one mapping.
    fits.then(|| Place::Host(unsafe { region.host.as_ptr().add(offset as usize) }))
}
