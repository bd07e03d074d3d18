//! Transfers of `cust`'s buffers, between two contexts of one process on an emulated node.
#![forbid(unsafe_code)]

use cust::context::Context as CustContext;
use cust::device::Device as CustDevice;
use cust::memory::{CopyDestination, DeviceBox, DeviceBuffer, LockedBox, LockedBuffer};
use meshreduce::store::MemoryStore;
use meshreduce_channels::{Context, Device, Endpoint, Memory, Pages, Registry, Slice, Span};
use meshreduce_checks::in_process::open_driver;
use meshreduce_device::ordinal_of;
use meshreduce_tests::channel_peer::{LONG, eventually};

/// Its context no other test of this program resets or loses.
const ORDINAL: u32 = 4;
const GPU: Device = Device::Cuda(ORDINAL);

/// One side of an endpoint. (The endpoint goes first.)
struct Side {
    endpoint: Endpoint,
    context: Context,
}

/// The context of the device, current on this thread, and two sides that serve it by this kind of channel.
fn sides(kind: &str) -> (CustContext, [Side; 2]) {
    open_driver();
    cust::init(cust::CudaFlags::empty()).unwrap();
    let current = CustContext::new(CustDevice::get_device(ORDINAL).unwrap()).unwrap();
    let mut registry = Registry::default();
    registry.allow(kind).unwrap();
    let store = MemoryStore::default();
    let [a, b] = [(), ()].map(|()| Context::new(&registry, &[GPU]).unwrap());
    let [one, other] = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| b.connect(&store, "sides", LONG).unwrap());
        [a.listen(&store, "sides", LONG).unwrap(), connecting.join().unwrap()]
    });
    let sides = [Side { endpoint: one, context: a }, Side { endpoint: other, context: b }];
    (current, sides)
}

fn numbers(count: usize) -> Vec<u32> {
    (0..count as u32).map(|at| at.wrapping_mul(0x9e37_79b9)).collect()
}

#[test]
fn device_buffers_and_parts_of_them_are_sent_and_received() {
    for kind in ["xth", "basic"] {
        let (_current, [a, b]) = sides(kind);
        let (from, to) = (
            DeviceBuffer::from_slice(&numbers(1000)).unwrap(),
            DeviceBuffer::from_slice(&[7_u32; 2000]).unwrap(),
        );
        let sent = a.endpoint.send(from, GPU, None);
        let part = Slice::new(to, 400..4400).unwrap();
        let (part, bytes) = b.endpoint.recv(part, GPU, None).wait(LONG).unwrap();
        let (mut found, mut back) = (vec![0; 2000], vec![0; 1000]);
        part.into_inner().copy_to(&mut found).unwrap();
        assert_eq!((bytes, &found[..100], &found[1100..]), (4000, &[7; 100][..], &[7; 900][..]), "{kind}");
        assert_eq!(found[100..1100], numbers(1000), "{kind}");
        sent.wait(LONG).unwrap().0.copy_to(&mut back).unwrap();
        assert_eq!(back, numbers(1000));
        let sent = a.endpoint.send(DeviceBox::new(&numbers(3)[2]).unwrap(), GPU, None);
        let received = b.endpoint.recv(DeviceBox::new(&0_u32).unwrap(), GPU, None);
        let mut one = 0;
        received.wait(LONG).unwrap().0.copy_to(&mut one).unwrap();
        assert_eq!(one, numbers(3)[2]);
        sent.wait(LONG).unwrap();
    }
}

#[test]
fn page_locked_buffers_are_host_memory() {
    for kind in ["xth", "basic"] {
        let (_current, [a, b]) = sides(kind);
        let sent = a.endpoint.send(LockedBuffer::from_slice(&numbers(100_000)).unwrap(), Device::Cpu, None);
        let received = b.endpoint.recv(LockedBuffer::new(&0_u32, 100_000).unwrap(), Device::Cpu, None);
        assert_eq!(received.wait(LONG).unwrap().0[..], numbers(100_000), "{kind}");
        sent.wait(LONG).unwrap();
        let sent = a.endpoint.send(LockedBox::new(&5_u64).unwrap(), Device::Cpu, None);
        let received = b.endpoint.recv(LockedBox::new(&0_u64).unwrap(), Device::Cpu, None);
        assert_eq!(*received.wait(LONG).unwrap().0, 5);
        sent.wait(LONG).unwrap();
    }
    // From one to the other, which only basic does.
    let (_current, [a, b]) = sides("basic");
    let sent = a.endpoint.send(LockedBuffer::from_slice(&numbers(5000)).unwrap(), GPU, None);
    let received = b.endpoint.recv(DeviceBuffer::from_slice(&[0_u32; 5000]).unwrap(), Device::Cpu, None);
    let mut found = vec![0; 5000];
    received.wait(LONG).unwrap().0.copy_to(&mut found).unwrap();
    assert_eq!(found, numbers(5000));
    sent.wait(LONG).unwrap();
}

#[test]
fn buffers_are_regions_and_come_back() {
    let (_current, [a, b]) = sides("xth,basic");
    let region = b.context.register(DeviceBuffer::from_slice(&[0_u32; 500]).unwrap()).unwrap();
    let own = a.context.register(DeviceBuffer::from_slice(&numbers(500)).unwrap()).unwrap();
    let counter = b.endpoint.counter();
    let (to, of) = (region.descriptor(), counter.descriptor());
    a.endpoint.write(&own, &to, Pages::range(0, 0, 2000), &of, None).wait(LONG).unwrap();
    assert_eq!(counter.wait(1, LONG).unwrap(), 1);
    let mut found = vec![0; 500];
    let Ok(buffer) = region.close().wait(LONG) else { panic!("nobody lets go of it") };
    buffer.copy_to(&mut found).unwrap();
    assert_eq!(found, numbers(500));
}

#[test]
fn a_buffer_whose_transfer_is_dropped_is_freed() {
    let (_current, [_a, b]) = sides("xth");
    let buffer = DeviceBuffer::from_slice(&numbers(5000)).unwrap();
    let address = buffer.as_device_ptr().as_raw();
    let locked = LockedBuffer::new(&0_u32, 5000).unwrap();
    let place = locked.as_ptr() as u64;
    assert_eq!((ordinal_of(address), meshreduce_device::allocated_on(place)), (Some(ORDINAL), Some(ORDINAL)));
    drop(b.endpoint.recv(buffer, GPU, None));
    drop(b.endpoint.recv(locked, Device::Cpu, None));
    eventually("the memory is freed", || {
        ordinal_of(address).is_none() && meshreduce_device::allocated_on(place).is_none()
    });
}

#[test]
fn spans_say_where_buffers_are() {
    let (_current, _sides) = sides("xth");
    let buffer = DeviceBuffer::from_slice(&numbers(10)).unwrap();
    let address = buffer.as_device_ptr().as_raw();
    assert_eq!(buffer.span(), Span { device: GPU, address, bytes: 40 });
    assert_eq!(Span::from(&buffer.index(2..5)), Span { device: GPU, address: address + 8, bytes: 12 });
    let locked = LockedBuffer::new(&0_u64, 3).unwrap();
    assert_eq!(locked.span(), Span { device: Device::Cpu, address: locked.as_ptr() as u64, bytes: 24 });
}
