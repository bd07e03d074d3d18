//! The table of a process's allocations.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    os::fd::AsFd,
    ptr::NonNull,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use super::allocation::{ALIGNMENT, Allocation, Backing, Kind, next_id};
use super::error::MemoryError;
use super::ipc::{self, Exported, IpcHandle};
use super::mapping::{Mapping, PAGE, memfd};

/// Addresses reserved for each device: far more than its memory, so that freed ones need not be used again soon.
const ARENA: u64 = 1 << 38;
/// Where reserving that much is not allowed (a limit on the address space).
const SMALL_ARENA: u64 = 1 << 32;
/// Unused addresses after every allocation, so that running past its end is found: at least a page, so that no page
/// has two.
const GUARD: u64 = PAGE;
/// Freed ranges that reports still know of.
const REMEMBERED: usize = 4096;

/// The device memory of a node as one process sees it, and its page-locked host memory.
pub struct Memory {
    instance: u64,
    capacity: Vec<u64>,
    reachable: Vec<Vec<bool>>,
    reservation: (u64, u64),
    pub(super) version: AtomicU64,
    table: RwLock<Table>,
    _reservation: Mapping,
}

pub(super) struct Table {
    pub(super) live: BTreeMap<u64, Arc<Allocation>>,
    pub(super) freed: VecDeque<Freed>,
    /// By device, the devices whose memory its kernels may touch.
    pub(super) peers: Vec<Vec<bool>>,
    arenas: Vec<Arena>,
    used: Vec<u64>,
    imports: HashMap<(IpcHandle, usize), (u64, usize)>,
}

pub(super) struct Freed {
    pub(super) base: u64,
    pub(super) len: u64,
    pub(super) how: &'static str,
}

struct Arena {
    start: u64,
    end: u64,
    next: u64,
}

impl Memory {
    /// Memory for devices with `capacity[i]` bytes each, of which `reachable[i][j]` says whether i may be given
    /// access to j. `instance` tells one emulated node from another; handles carry it.
    ///
    /// # Errors
    ///
    /// [`MemoryError::System`] if the addresses cannot be reserved.
    pub fn new(instance: u64, capacity: Vec<u64>, reachable: Vec<Vec<bool>>) -> Result<Self, MemoryError> {
        let devices = capacity.len() as u64;
        let (reservation, arena) = Mapping::reserved(ARENA * devices)
            .map(|mapping| (mapping, ARENA))
            .or_else(|_| Mapping::reserved(SMALL_ARENA * devices).map(|mapping| (mapping, SMALL_ARENA)))
            .map_err(|errno| MemoryError::System { what: "addresses for device memory", errno })?;
        let start = reservation.start().as_ptr() as u64;
        let arenas = (0..devices)
            .map(|device| {
                let start = start + device * arena;
                Arena { start, end: start + arena, next: start + ALIGNMENT }
            })
            .collect();
        let count = capacity.len();
        Ok(Self {
            instance,
            reachable,
            reservation: (start, start + arena * devices),
            version: AtomicU64::new(1),
            table: RwLock::new(Table {
                live: BTreeMap::new(),
                freed: VecDeque::new(),
                peers: vec![vec![false; count]; count],
                arenas,
                used: vec![0; count],
                imports: HashMap::new(),
            }),
            capacity,
            _reservation: reservation,
        })
    }

    /// What tells this emulated node from others.
    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// Allocates `len` bytes (at least one) of device `device`, for the driver's context `context`.
    ///
    /// # Errors
    ///
    /// [`MemoryError::OutOfMemory`] or [`MemoryError::System`].
    pub fn allocate(&self, device: usize, len: u64, context: u64) -> Result<Arc<Allocation>, MemoryError> {
        let mut table = self.write();
        let (total, used) = (self.capacity[device], table.used[device]);
        let free = total.saturating_sub(used);
        let charged = len.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
        if charged > free {
            return Err(MemoryError::OutOfMemory { device, wanted: len, free, total });
        }
        let base = table.address(device, len, None)?;
        let offset = base % PAGE;
        let file = memfd("meshreduce-device-memory", offset + len)?;
        let mapping = Mapping::shared(file.as_fd(), offset + len)
            .map_err(|errno| MemoryError::System { what: "a mapping of device memory", errno })?;
        let inode = ipc::inode(file.as_fd())
            .map_err(|errno| MemoryError::System { what: "the identity of device memory", errno })?;
        table.used[device] += charged;
        let host = mapping.at(offset);
        Ok(self.insert(
            &mut table,
            Allocation {
                base,
                len,
                host,
                kind: Kind::Device { device },
                context,
                id: next_id(),
                file: Some(Backing { file, inode, offset }),
                _mapping: Some(mapping),
            },
        ))
    }

    /// Allocates page-locked host memory; its address is the host's on all devices.
    ///
    /// # Errors
    ///
    /// [`MemoryError::System`].
    pub fn allocate_host(&self, len: u64, context: u64) -> Result<Arc<Allocation>, MemoryError> {
        let mapping = Mapping::anonymous(len)
            .map_err(|errno| MemoryError::System { what: "page-locked memory", errno })?;
        let host = mapping.start();
        let (base, kind) = (host.as_ptr() as u64, Kind::Host);
        let allocation =
            Allocation { base, len, host, kind, context, id: next_id(), file: None, _mapping: Some(mapping) };
        Ok(self.insert(&mut self.write(), allocation))
    }

    /// Makes the program's own memory accessible to the devices.
    ///
    /// # Errors
    ///
    /// [`MemoryError::AlreadyRegistered`] if part of it is.
    ///
    /// # Safety
    ///
    /// The range must be readable and writable until [`Memory::free`] has ended the registration.
    pub unsafe fn register_host(
        &self,
        start: NonNull<u8>,
        len: u64,
        context: u64,
    ) -> Result<Arc<Allocation>, MemoryError> {
        let base = start.as_ptr() as u64;
        let mut table = self.write();
        let before = table.live.range(..base.saturating_add(len)).next_back();
        if before.is_some_and(|(_, other)| other.base + other.len > base) {
            return Err(MemoryError::AlreadyRegistered(base));
        }
        let kind = Kind::Registered;
        let allocation =
            Allocation { base, len, host: start, kind, context, id: next_id(), file: None, _mapping: None };
        Ok(self.insert(&mut table, allocation))
    }

    /// Frees the allocation that starts at `base` if `which` agrees with its kind. `how` names the call, for reports
    /// on later use.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotAllocated`].
    pub fn free(
        &self,
        base: u64,
        how: &'static str,
        which: impl Fn(Kind) -> bool,
    ) -> Result<Arc<Allocation>, MemoryError> {
        let mut table = self.write();
        if !table.live.get(&base).is_some_and(|allocation| which(allocation.kind)) {
            return Err(MemoryError::NotAllocated(base));
        }
        self.remove(&mut table, base, how).ok_or(MemoryError::NotAllocated(base))
    }

    /// Frees everything that was made in `context`.
    pub fn free_context(&self, context: u64) {
        let mut table = self.write();
        let bases: Vec<u64> =
            table.live.values().filter(|allocation| allocation.context == context).map(|a| a.base).collect();
        for base in bases {
            self.remove(&mut table, base, "the end of its context");
        }
        let Table { live, imports, .. } = &mut *table;
        imports.retain(|_, (base, _)| live.contains_key(base));
    }

    /// The live allocation that contains all of `bytes` bytes from `address`.
    pub fn containing(&self, address: u64, bytes: u64) -> Option<Arc<Allocation>> {
        let table = self.read();
        let (_, allocation) = table.live.range(..=address).next_back()?;
        // A byte count of 0 must not reach the address just past the end.
        allocation.contains(address, bytes.max(1)).then(|| Arc::clone(allocation))
    }

    /// The live allocation whose pages contain all of `bytes` bytes from `address`, which may begin before it and end behind.
    pub fn with_pages(&self, address: u64, bytes: u64) -> Option<Arc<Allocation>> {
        let table = self.read();
        let (_, allocation) = table.live.range(..address.checked_add(PAGE)?).next_back()?;
        allocation.pages_contain(address, bytes).then(|| Arc::clone(allocation))
    }

    /// Whether any of the addresses is one that only devices can have.
    pub fn is_device_range(&self, address: u64, bytes: u64) -> bool {
        address < self.reservation.1 && address.saturating_add(bytes) > self.reservation.0
    }

    /// Bytes free and in all on a device.
    pub fn info(&self, device: usize) -> (u64, u64) {
        let total = self.capacity[device];
        (total.saturating_sub(self.read().used[device]), total)
    }

    /// Lets kernels of `device` touch memory of `peer`, or no longer. Answers whether that is a change.
    pub fn set_peer_access(&self, device: usize, peer: usize, allowed: bool) -> bool {
        let mut table = self.write();
        let changed = std::mem::replace(&mut table.peers[device][peer], allowed) != allowed;
        self.version.fetch_add(1, Ordering::Release);
        changed
    }

    /// Takes back what was permitted to kernels of `device`, and to others for its memory.
    pub fn forget_peer_access(&self, device: usize) {
        let mut table = self.write();
        table.peers[device].fill(false);
        table.peers.iter_mut().for_each(|peers| peers[device] = false);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// A handle by which other processes can open the device allocation that contains `address`.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotAllocated`] if no device allocation of this process does.
    pub fn export(&self, address: u64) -> Result<IpcHandle, MemoryError> {
        let allocation = self.containing(address, 1).ok_or(MemoryError::NotAllocated(address))?;
        match (&allocation.file, allocation.kind) {
            (Some(Backing { file, inode, offset }), Kind::Device { device }) => {
                let range = (*offset, allocation.len);
                IpcHandle::new(Exported::Memory, self.instance, file.as_fd(), *inode, range, device)
            }
            _ => Err(MemoryError::NotAllocated(address)),
        }
    }

    /// Opens another process's allocation for `device`, or counts one more user of an already open one.
    ///
    /// # Errors
    ///
    /// [`MemoryError::SameProcess`], [`MemoryError::BadHandle`], [`MemoryError::NoPeerAccess`] or
    /// [`MemoryError::System`].
    pub fn import(&self, handle: &IpcHandle, device: usize, context: u64) -> Result<u64, MemoryError> {
        let (owner, len) = handle.check(self.instance, self.capacity.len())?;
        if owner != device && !self.reachable[device][owner] {
            return Err(MemoryError::NoPeerAccess { device, owner });
        }
        let mut table = self.write();
        if let Some((base, users)) = table.imports.get_mut(&(*handle, device)) {
            *users += 1;
            return Ok(*base);
        }
        let (file, offset) = (handle.open()?, handle.offset());
        let mapping = Mapping::shared(file.as_fd(), offset + len)
            .map_err(|errno| MemoryError::System { what: "a mapping of another process's memory", errno })?;
        let inode = ipc::inode(file.as_fd()).map_err(|errno| MemoryError::System {
            what: "the identity of another process's memory",
            errno,
        })?;
        let base = table.address(device, len, Some(offset))?;
        let kind = Kind::Imported { device, owner, pid: handle.pid() };
        let host = mapping.at(offset);
        let file = Some(Backing { file, inode, offset });
        let allocation =
            Allocation { base, len, host, kind, context, id: next_id(), file, _mapping: Some(mapping) };
        self.insert(&mut table, allocation);
        table.imports.insert((*handle, device), (base, 1));
        Ok(base)
    }

    /// Ends one use of an opened allocation.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotAllocated`] if none starts at `base`.
    pub fn close_import(&self, base: u64) -> Result<(), MemoryError> {
        let mut table = self.write();
        let entry = table.imports.iter_mut().find(|(_, (open, _))| *open == base);
        let Some((key, (_, users))) = entry else { return Err(MemoryError::NotAllocated(base)) };
        let key = *key;
        *users -= 1;
        if *users == 0 {
            table.imports.remove(&key);
            self.remove(&mut table, base, "cuIpcCloseMemHandle");
        }
        Ok(())
    }

    fn insert(&self, table: &mut Table, allocation: Allocation) -> Arc<Allocation> {
        let allocation = Arc::new(allocation);
        table.live.insert(allocation.base, Arc::clone(&allocation));
        self.version.fetch_add(1, Ordering::Release);
        allocation
    }

    fn remove(&self, table: &mut Table, base: u64, how: &'static str) -> Option<Arc<Allocation>> {
        let allocation = table.live.remove(&base)?;
        if let Kind::Device { device } = allocation.kind {
            table.used[device] -= allocation.len.next_multiple_of(ALIGNMENT);
        }
        if table.freed.len() == REMEMBERED {
            table.freed.pop_front();
        }
        table.freed.push_back(Freed { base, len: allocation.len, how });
        self.version.fetch_add(1, Ordering::Release);
        Some(allocation)
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Table> {
        // The table is changed in steps that do not panic in between, so it is whole even after a panic.
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Addresses for `len` bytes on `device`, so many bytes into a page if that is given: fresh ones while there are
    /// any, then from the start of the arena. No other allocation has part of the same pages.
    fn address(&mut self, device: usize, len: u64, into_page: Option<u64>) -> Result<u64, MemoryError> {
        let span = (len + GUARD).next_multiple_of(ALIGNMENT);
        let place = |from: u64| match into_page {
            None => from.next_multiple_of(ALIGNMENT),
            Some(offset) => from.saturating_sub(offset).next_multiple_of(PAGE) + offset,
        };
        let Arena { start, end, next } = self.arenas[device];
        let mut wrapped = false;
        let mut candidate = place(next);
        loop {
            if candidate > end || span > end - candidate {
                if wrapped {
                    return Err(MemoryError::System {
                        what: "more addresses for device memory",
                        errno: rustix::io::Errno::NOMEM,
                    });
                }
                wrapped = true;
                candidate = place(start + ALIGNMENT);
                continue;
            }
            let before = self.live.range(..candidate + span).next_back();
            match before.map(|(_, other)| other.base + other.len) {
                Some(occupied) if occupied > candidate => candidate = place(occupied + GUARD),
                _ => break,
            }
        }
        self.arenas[device].next = candidate + span;
        Ok(candidate)
    }
}
