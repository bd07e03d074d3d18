use std::ptr::NonNull;
use std::sync::Arc;

use super::*;
use crate::exec::AddressSpace;

fn memory() -> Arc<Memory> {
    let reachable = vec![vec![false, true, false], vec![true, false, false], vec![false; 3]];
    Arc::new(Memory::new(7, vec![1 << 20; 3], reachable).unwrap())
}

fn device(kind: Kind) -> bool {
    matches!(kind, Kind::Device { .. })
}

#[test]
fn allocations_are_aligned_apart_and_zero() {
    let memory = memory();
    let allocations: Vec<_> = (1..50).map(|len| memory.allocate(0, len * 100, 1).unwrap()).collect();
    for pair in allocations.windows(2) {
        assert!(pair[0].base().is_multiple_of(ALIGNMENT));
        assert!(pair[1].base() > pair[0].base() + pair[0].len());
        assert_ne!(pair[1].base() / PAGE, (pair[0].base() + pair[0].len() - 1) / PAGE, "no page has two");
    }
}

#[test]
fn memory_runs_out_and_comes_back() {
    let memory = memory();
    let most = memory.allocate(0, (1 << 20) - 512, 1).unwrap();
    let refused = memory.allocate(0, 513, 1).unwrap_err();
    assert_eq!(refused, MemoryError::OutOfMemory { device: 0, wanted: 513, free: 512, total: 1 << 20 });
    assert!(memory.allocate(1, 513, 1).is_ok(), "the other device has its own memory");
    memory.free(most.base(), "cuMemFree", device).unwrap();
    assert_eq!(memory.info(0), (1 << 20, 1 << 20));
    assert!(memory.allocate(0, 1 << 20, 1).is_ok());
    assert!(matches!(memory.allocate(0, u64::MAX, 1), Err(MemoryError::OutOfMemory { .. })));
}

#[test]
fn a_region_leads_to_the_bytes() {
    let memory = memory();
    let allocation = memory.allocate(0, 64, 1).unwrap();
    let region = memory.view(0).find(allocation.base() + 63).unwrap();
    assert_eq!((region.base, region.len), (allocation.base(), 64));
    // SAFETY: the region is 64 bytes long and nobody else uses it.
    unsafe {
        region.host.add(63).write(9);
        assert_eq!(allocation.host(allocation.base() + 63).read(), 9);
    }
}

#[test]
fn an_address_outside_is_described_by_its_neighbour() {
    let memory = memory();
    let view = memory.view(0);
    assert_eq!(view.find(64).unwrap_err(), "nothing is allocated");
    let allocation = memory.allocate(0, 100, 1).unwrap();
    let past = view.find(allocation.base() + 148).unwrap_err();
    assert!(past.starts_with("48 bytes past the end of a 100-byte allocation"), "{past}");
    let before = view.find(allocation.base() - 8).unwrap_err();
    assert!(before.starts_with("8 bytes before a 100-byte allocation"), "{before}");
}

#[test]
fn freed_memory_is_remembered_and_not_used_again_at_once() {
    let memory = memory();
    let view = memory.view(0);
    let base = memory.allocate(0, 100, 1).unwrap().base();
    let version = view.version();
    memory.free(base, "cuMemFree", device).unwrap();
    assert_ne!(view.version(), version);
    let report = view.find(base + 4).unwrap_err();
    assert!(report.contains("freed by cuMemFree"), "{report}");
    assert_ne!(memory.allocate(0, 100, 1).unwrap().base(), base);
    assert_eq!(memory.free(base, "cuMemFree", device).unwrap_err(), MemoryError::NotAllocated(base));
}

#[test]
fn a_region_survives_the_end_of_its_allocation() {
    let memory = memory();
    let allocation = memory.allocate(0, 8, 1).unwrap();
    let region = memory.view(0).find(allocation.base()).unwrap();
    memory.free(allocation.base(), "cuMemFree", device).unwrap();
    drop(allocation);
    // SAFETY: the region's backing keeps the mapping alive.
    unsafe { region.host.write(1) };
}

#[test]
fn a_peers_memory_needs_access() {
    let memory = memory();
    let allocation = memory.allocate(1, 8, 1).unwrap();
    let view = memory.view(0);
    let refusal = view.find(allocation.base()).unwrap_err();
    assert!(refusal.contains("not given peer access"), "{refusal}");
    assert!(memory.set_peer_access(0, 1, true));
    assert!(!memory.set_peer_access(0, 1, true));
    assert!(view.find(allocation.base()).is_ok());
    memory.set_peer_access(0, 1, false);
    assert!(view.find(allocation.base()).is_err());
}

#[test]
fn host_memory_has_one_address_everywhere() {
    let memory = memory();
    let allocation = memory.allocate_host(10, 1).unwrap();
    for device in 0..3 {
        let region = memory.view(device).find(allocation.base() + 9).unwrap();
        assert_eq!(region.host.as_ptr() as u64, region.base);
    }
    assert!(!memory.is_device_range(allocation.base(), 10));
    assert!(memory.is_device_range(memory.allocate(0, 1, 1).unwrap().base(), 1));
}

#[test]
fn host_memory_is_registered_once() {
    let memory = memory();
    let mut bytes = vec![0u8; 100];
    let start = NonNull::new(bytes.as_mut_ptr()).unwrap();
    // SAFETY: the vector outlives the registration.
    unsafe {
        let allocation = memory.register_host(start, 100, 1).unwrap();
        let overlapping = memory.register_host(start.add(50), 100, 1);
        assert!(matches!(overlapping, Err(MemoryError::AlreadyRegistered(_))));
        memory.free(allocation.base(), "cuMemHostUnregister", |kind| kind == Kind::Registered).unwrap();
        assert!(memory.register_host(start.add(50), 50, 1).is_ok());
    }
}

#[test]
fn the_end_of_a_context_frees_its_memory_alone() {
    let memory = memory();
    let gone = memory.allocate(0, 8, 1).unwrap().base();
    let kept = memory.allocate(0, 8, 2).unwrap().base();
    memory.free_context(1);
    assert!(memory.containing(gone, 8).is_none());
    assert!(memory.containing(kept, 8).is_some());
}

#[test]
fn handles_survive_the_round_trip_and_are_refused_at_home() {
    let memory = memory();
    let allocation = memory.allocate(0, 4096, 1).unwrap();
    let handle = memory.export(allocation.base() + 5).unwrap();
    let read = IpcHandle::from_bytes(&handle.to_bytes(), Exported::Memory).unwrap();
    assert_eq!(read, handle);
    assert_eq!(memory.import(&read, 1, 1), Err(MemoryError::SameProcess));
}

#[test]
fn wrong_handles_are_refused() {
    assert!(IpcHandle::from_bytes(&[0; 64], Exported::Memory).is_err());
    assert!(IpcHandle::from_bytes(&[0xff; 64], Exported::Memory).is_err());
    let memory = memory();
    let allocation = memory.allocate(0, 4096, 1).unwrap();
    let bytes = memory.export(allocation.base()).unwrap().to_bytes();
    let changed = |at: usize| {
        let mut bytes = bytes;
        bytes[at] ^= 0x40;
        IpcHandle::from_bytes(&bytes, Exported::Memory).and_then(|handle| memory.import(&handle, 0, 1))
    };
    assert!(
        matches!(changed(8), Err(MemoryError::BadHandle(reason)) if reason.contains("another emulated node"))
    );
    // Another start time under the same process id: a process that is no longer there.
    assert!(matches!(changed(24), Err(MemoryError::BadHandle(reason)) if reason.contains("ended")));
    assert!(matches!(changed(48), Err(MemoryError::BadHandle(_))));
    assert!(memory.export(4).is_err());
    assert!(memory.export(memory.allocate_host(8, 1).unwrap().base()).is_err());
}

#[test]
fn addresses_come_round_again_only_when_the_arena_is_used_up() {
    let memory = memory();
    let kept = memory.allocate(0, 1000, 1).unwrap();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..2000 {
        let allocation = memory.allocate(0, 1000, 1).unwrap();
        assert!(seen.insert(allocation.base()));
        assert_ne!(allocation.base(), kept.base());
        memory.free(allocation.base(), "cuMemFree", device).unwrap();
    }
}
