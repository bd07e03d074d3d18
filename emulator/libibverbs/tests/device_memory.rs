//! Device memory of the emulated driver behind adapters: by its address, as a dma-buf, and when it is seen.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::ffi::c_void;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use meshreduce_driver_loader::sys::{self as cuda, CUcontext, CUresult};
use meshreduce_verbs_loader::*;
use support::*;

fn ok(code: CUresult) {
    assert_eq!(code, CUresult::SUCCESS);
}

/// A device with its context current in this thread.
struct Device(CUcontext);

impl Device {
    fn new(ordinal: i32) -> Self {
        static OPENED: OnceLock<()> = OnceLock::new();
        library();
        OPENED.get_or_init(|| {
            // SAFETY: this is the emulated driver, which this repository builds.
            unsafe { meshreduce_driver_loader::use_library(folder().join("libmeshreduce_libcuda.so")) }
                .unwrap();
            // SAFETY: it takes no pointers.
            ok(unsafe { cuda::cuInit(0) });
        });
        let mut context = std::ptr::null_mut();
        // SAFETY: the out-parameter is valid.
        ok(unsafe { cuda::cuDevicePrimaryCtxRetain(&mut context, ordinal) });
        Self(context)
    }

    fn make_current(&self) {
        // SAFETY: the context is alive.
        ok(unsafe { cuda::cuCtxPushCurrent_v2(self.0) });
    }

    /// Memory full of zeros.
    fn memory(&self, bytes: usize) -> u64 {
        self.make_current();
        let mut address = 0;
        // SAFETY: the out-parameter is valid.
        ok(unsafe { cuda::cuMemAlloc_v2(&mut address, bytes) });
        self.write(address, &vec![0; bytes]);
        address
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.make_current();
        // SAFETY: the memory is there; the bytes are pageable, and so read before the call returns.
        ok(unsafe {
            cuda::cuMemcpyHtoDAsync_v2(address, bytes.as_ptr().cast(), bytes.len(), std::ptr::null_mut())
        });
        self.synchronize();
    }

    fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        self.make_current();
        let mut found = vec![1; bytes];
        let to = found.as_mut_ptr().cast::<c_void>();
        // SAFETY: there is room, and it is waited for.
        ok(unsafe { cuda::cuMemcpyDtoHAsync_v2(to, address, bytes, std::ptr::null_mut()) });
        self.synchronize();
        found
    }

    fn synchronize(&self) {
        // SAFETY: it takes nothing.
        ok(unsafe { cuda::cuCtxSynchronize() });
    }

    /// `cuFlushGPUDirectRDMAWrites` of this device, for itself (100) or for all (200).
    fn flush(&self, scope: i32) {
        self.make_current();
        // SAFETY: it takes numbers.
        ok(unsafe { cuda::cuFlushGPUDirectRDMAWrites(0, scope) });
    }
}

/// Device memory in a region of `end`.
fn register(end: &End, address: u64, bytes: usize) -> Result<MemoryRegion, Error> {
    // SAFETY: the memory is not freed while these tests run.
    unsafe { end.domain.register(address as *mut u8, bytes, all_access()) }
}

#[test]
fn device_memory_is_written_read_sent_from_and_received_into() {
    let _alone = alone();
    let (near, far) = connected();
    let device = Device::new(1);
    let address = device.memory(300_000);
    let region = register(&far, address, 300_000).unwrap();
    assert_eq!(region.address(), address, "peers name it by its address");
    let (mut from, mut back) = (near.buffer(200_000), near.buffer(200_000));
    from.fill(4);

    near.send(&SendRequest::new(1, Operation::Write(region.remote(1000)), &[from.all()]));
    assert_eq!(near.sent().status, Status::SUCCESS);
    let seen = device.read(address, 300_000);
    assert_eq!(seen[1000..201_000], from.bytes()[..]);
    assert!(seen[..1000].iter().chain(&seen[201_000..]).all(|&byte| byte == 0));

    near.send(&SendRequest::new(2, Operation::Read(region.remote(1000)), &[back.all()]));
    assert_eq!(near.sent().status, Status::SUCCESS);
    assert_eq!(back.bytes(), from.bytes());

    device.write(address, &patterned(300_000, 9));
    near.receive(3, &[back.all()]);
    far.send(&SendRequest::new(4, Operation::Send, &[region.segment(50..150_050)]));
    assert_eq!(near.received().byte_len, 150_000);
    assert_eq!(back.bytes()[..150_000], patterned(300_000, 9)[50..150_050]);

    far.receive(5, &[region.segment(7..100_007)]);
    near.send(&SendRequest::new(6, Operation::Send, &[from.region.segment(0..100_000)]));
    assert_eq!(far.received().status, Status::SUCCESS);
    assert_eq!(device.read(address + 7, 100_000), from.bytes()[..100_000]);
}

#[test]
fn any_part_of_an_allocation_can_be_registered_but_nothing_beyond_it() {
    let _alone = alone();
    let (near, far) = connected();
    let device = Device::new(0);
    let address = device.memory(10_000);
    let region = register(&far, address + 123, 5000).unwrap();
    let mut from = near.buffer(5000);
    from.fill(2);
    near.send(&SendRequest::new(1, Operation::Write(region.remote(0)), &[from.all()]));
    assert_eq!(near.sent().status, Status::SUCCESS);
    assert_eq!(device.read(address + 123, 5000), from.bytes());
    assert_eq!(register(&far, address, 10_001).unwrap_err().errno(), Some(libc::EFAULT));
    assert_eq!(register(&far, address + 9999, 2).unwrap_err().errno(), Some(libc::EFAULT));
    // SAFETY: nothing is copied there.
    ok(unsafe { cuda::cuMemFree_v2(address) });
    assert_eq!(register(&far, address, 10_000).unwrap_err().errno(), Some(libc::EFAULT), "it was freed");
}

#[test]
fn device_memory_goes_to_an_adapter_as_a_dma_buf() {
    let _alone = alone();
    let (near, far) = connected();
    let device = Device::new(0);
    // Dma-bufs are whole pages.
    let address = device.memory(9 << 12).next_multiple_of(4096);
    let mut fd = -1_i32;
    // SAFETY: the out-parameter is valid for a descriptor.
    ok(unsafe { cuda::cuMemGetHandleForAddressRange((&raw mut fd).cast(), address + 4096, 4 << 12, 1, 0) });
    // SAFETY: the driver gave it to us.
    let buffer = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the memory is not freed while the region lives.
    let region =
        unsafe { far.domain.register_dma_buf(buffer.as_fd(), 8192, 8192, address + 3 * 4096, all_access()) }
            .unwrap();
    drop(buffer);
    let mut from = near.buffer(8192);
    from.fill(3);
    near.send(&SendRequest::new(1, Operation::Write(region.remote(0)), &[from.all()]));
    assert_eq!(near.sent().status, Status::SUCCESS);
    let expected = [vec![0; 3 * 4096], from.bytes().to_vec(), vec![0; 3 * 4096]].concat();
    assert_eq!(device.read(address, 8 << 12), expected);
}

#[test]
fn what_arrives_late_is_seen_after_the_flush_of_its_device_and_not_before() {
    let _alone = alone();
    let (near, far) = connected();
    let (device, other) = (Device::new(0), Device::new(1));
    let address = device.memory(200_000);
    let region = register(&far, address, 200_000).unwrap();
    let mut from = near.buffer(200_000);
    from.fill(6);
    for (scope, other_flushes) in [(100, true), (200, false)] {
        device.write(address, &vec![0; 200_000]);
        fault("late_visibility", "on");
        far.receive(1, &[]);
        near.send(&SendRequest::new(1, Operation::WriteWithImm(region.remote(0), 1), &[from.all()]));
        assert_eq!((near.sent().status, far.received().byte_len), (Status::SUCCESS, 200_000));
        assert_eq!(count("unseen_bytes"), 200_000);
        assert_eq!(device.read(address, 200_000), vec![0; 200_000], "completed, and not seen");
        if other_flushes {
            other.flush(scope);
            assert_eq!(
                device.read(address, 200_000),
                vec![0; 200_000],
                "the other device's flush is not its"
            );
            device.flush(scope);
        } else {
            other.flush(scope);
        }
        assert_eq!(device.read(address, 200_000), from.bytes(), "scope {scope}");
        assert_eq!(count("unseen_bytes"), 0);
        fault("late_visibility", "off");
    }
}

#[test]
fn what_nobody_flushes_is_seen_in_the_end() {
    let _alone = alone();
    let (near, far) = connected();
    let device = Device::new(0);
    let address = device.memory(4096);
    let region = register(&far, address, 4096).unwrap();
    let mut from = near.buffer(4096);
    from.fill(7);
    fault("late_visibility", "50");
    let begun = Instant::now();
    near.send(&SendRequest::new(1, Operation::Write(region.remote(0)), &[from.all()]));
    assert_eq!(near.sent().status, Status::SUCCESS);
    wait_until("seeing it", || device.read(address, 4096) == from.bytes());
    assert!(begun.elapsed() >= Duration::from_millis(50));
    fault("late_visibility", "off");
}

#[test]
fn what_waits_is_seen_when_the_adapter_reads_it_or_its_region_goes_or_the_fault_ends() {
    let _alone = alone();
    let (near, far) = connected();
    let device = Device::new(0);
    let mut from = near.buffer(4096);
    from.fill(8);
    let ends: [&dyn Fn(&MemoryRegion); 3] = [
        &|region| {
            let to = near.buffer(8);
            near.send(&SendRequest::new(2, Operation::Read(region.remote(0)), &[to.all()]));
            assert_eq!(near.sent().status, Status::SUCCESS);
        },
        &|_| fault("late_visibility", "off"),
        &|_| flush(),
    ];
    for end in ends {
        let address = device.memory(4096);
        let region = register(&far, address, 4096).unwrap();
        fault("late_visibility", "on");
        near.send(&SendRequest::new(1, Operation::Write(region.remote(0)), &[from.all()]));
        assert_eq!(near.sent().status, Status::SUCCESS);
        assert_eq!(device.read(address, 4096), vec![0; 4096]);
        end(&region);
        wait_until("seeing it", || device.read(address, 4096) == from.bytes());
        fault("late_visibility", "off");
    }
    let address = device.memory(4096);
    let region = register(&far, address, 4096).unwrap();
    fault("late_visibility", "on");
    near.send(&SendRequest::new(1, Operation::Write(region.remote(0)), &[from.all()]));
    assert_eq!(near.sent().status, Status::SUCCESS);
    region.deregister().unwrap();
    assert_eq!(device.read(address, 4096), from.bytes());
    fault("late_visibility", "off");
}

#[test]
fn host_memory_is_seen_at_once_whatever_devices_do() {
    let _alone = alone();
    let (near, far) = connected();
    let (mut from, mut to) = (near.buffer(4096), far.buffer(4096));
    from.fill(5);
    fault("late_visibility", "on");
    near.send(&SendRequest::new(1, Operation::Write(to.region.remote(0)), &[from.all()]));
    assert_eq!(near.sent().status, Status::SUCCESS);
    fault("late_visibility", "off");
    assert_eq!(to.bytes(), from.bytes());
}
