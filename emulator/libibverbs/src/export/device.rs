//! Devices: listing, opening, and what they say of themselves.

use std::collections::HashMap;
use std::ffi::{c_char, c_int};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use meshreduce_emulator_node::node::LinkLayer;

use super::completion::{ibv_poll_cq, ibv_req_notify_cq};
use super::pair::{ibv_post_recv, ibv_post_send};
use crate::abi::*;
use crate::adapter::Adapter;
use crate::completion::MAX_ENTRIES;
use crate::context::{CONTEXTS, Context};
use crate::fault;
use crate::object::CObject;
use crate::pair::{MAX_PAIRS, MAX_READS, MAX_REQUESTS, MAX_SEGMENTS};
use crate::process::Process;

/// A device as programs see it; they live as long as the process, so that open ones may outlive their list.
struct Device {
    raw: CObject<ibv_device>,
    adapter: Arc<Adapter>,
}

/// By the index of the adapter and the name that it goes by.
type Devices = HashMap<(usize, String), Arc<Device>>;

static DEVICES: Mutex<Option<Devices>> = Mutex::new(None);

fn device(adapter: &Arc<Adapter>, name: &str) -> Arc<Device> {
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    let device = devices.get_or_insert_default().entry((adapter.index, name.to_owned()));
    let make = || {
        let raw = CObject::new(ibv_device {
            _ops: [ptr::null(); 2],
            node_type: 1,
            transport_type: 0,
            name: field(name),
            dev_name: field(&format!("uverbs{}", adapter.index)),
            dev_path: field(&format!("/sys/class/infiniband_verbs/uverbs{}", adapter.index)),
            ibdev_path: field(&format!("/sys/class/infiniband/{name}")),
        });
        Arc::new(Device { raw, adapter: Arc::clone(adapter) })
    };
    Arc::clone(device.or_insert_with(make))
}

/// The device behind a pointer of a list.
fn find(pointer: *mut ibv_device) -> Answer<Arc<Device>> {
    let devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut devices = devices.iter().flat_map(HashMap::values);
    devices.find(|device| device.raw.pointer() == pointer).cloned().ok_or(Errno(libc::EINVAL))
}

/// A text in a field of C, which ends with a zero.
fn field<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (place, byte) in field[..N - 1].iter_mut().zip(text.bytes()) {
        *place = byte as c_char;
    }
    field
}

pub(super) unsafe extern "C" fn ibv_get_device_list(count: *mut c_int) -> *mut *mut ibv_device {
    pointer("ibv_get_device_list", || {
        let process = Process::get()?;
        let name = |adapter: &Arc<Adapter>| match process.nics.first() {
            Some(first) if fault::duplicate_names() => first.nic.name.clone(),
            _ => adapter.nic.name.clone(),
        };
        let mut list: Vec<_> =
            process.nics.iter().map(|adapter| device(adapter, &name(adapter)).raw.pointer()).collect();
        if !count.is_null() {
            // SAFETY: not null, and so valid for a write by the C API's contract.
            unsafe { count.write(list.len() as c_int) };
        }
        // Its length is found again by the null at its end.
        list.push(ptr::null_mut());
        Ok(Box::into_raw(list.into_boxed_slice()).cast())
    })
}

pub(super) unsafe extern "C" fn ibv_free_device_list(list: *mut *mut ibv_device) {
    if list.is_null() {
        return;
    }
    // SAFETY: by the C API's contract it is a list that was given and is not freed yet: a boxed slice that ends with
    // the first null.
    unsafe {
        let count = (0..).take_while(|&index| !(*list.add(index)).is_null()).count();
        drop(Box::from_raw(ptr::slice_from_raw_parts_mut(list, count + 1)));
    }
}

pub(super) extern "C" fn ibv_get_device_name(device: *mut ibv_device) -> *const c_char {
    find(device).map_or(ptr::null(), |device| {
        // SAFETY: the structure is alive; only its address is taken.
        unsafe { (&raw const (*device.raw.pointer()).name).cast() }
    })
}

pub(super) extern "C" fn ibv_get_device_guid(device: *mut ibv_device) -> u64 {
    find(device).map_or(0, |device| device.adapter.identity.guid.to_be())
}

pub(super) extern "C" fn ibv_get_device_index(device: *mut ibv_device) -> c_int {
    find(device).map_or(-1, |device| device.adapter.index as c_int)
}

pub(super) extern "C" fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context {
    pointer("ibv_open_device", || {
        Process::get()?;
        let found = find(device)?;
        let ops = ibv_context_ops {
            before_poll: [ptr::null(); 11],
            poll_cq: ibv_poll_cq,
            req_notify_cq: ibv_req_notify_cq,
            before_post: [ptr::null(); 12],
            post_send: ibv_post_send,
            post_recv: ibv_post_recv,
            after_post: [ptr::null(); 5],
        };
        Ok(Context::open(device, Arc::clone(&found.adapter), ops)?.raw.pointer())
    })
}

pub(super) extern "C" fn ibv_close_device(context: *mut ibv_context) -> c_int {
    number("ibv_close_device", || {
        // What was made from it keeps it; the kernel would end that too, and programs do not rely on either.
        CONTEXTS.remove(context)?;
        Ok(0)
    })
}

pub(super) unsafe extern "C" fn ibv_query_device(
    context: *mut ibv_context,
    attributes: *mut ibv_device_attr,
) -> c_int {
    number("ibv_query_device", || {
        let context = CONTEXTS.get(context)?;
        if attributes.is_null() {
            return Err(Errno(libc::EINVAL));
        }
        let guid = context.adapter.identity.guid.to_be();
        let answer = ibv_device_attr {
            fw_ver: field("20.43.1014"),
            node_guid: guid,
            sys_image_guid: guid,
            max_mr_size: u64::MAX,
            page_size_cap: 0xffff_ffff_ffff_f000,
            vendor_id: 0x15b3,
            vendor_part_id: 0x101b,
            hw_ver: 0,
            max_qp: MAX_PAIRS as c_int - 1,
            max_qp_wr: MAX_REQUESTS as c_int,
            device_cap_flags: 0,
            max_sge: MAX_SEGMENTS as c_int,
            max_sge_rd: MAX_SEGMENTS as c_int,
            max_cq: 1 << 24,
            max_cqe: MAX_ENTRIES,
            max_mr: (1 << 24) - 1,
            max_pd: 1 << 23,
            max_qp_rd_atom: MAX_READS.into(),
            max_ee_rd_atom: 0,
            max_res_rd_atom: MAX_READS as c_int * (MAX_PAIRS as c_int - 1),
            max_qp_init_rd_atom: MAX_READS.into(),
            max_ee_init_rd_atom: 0,
            atomic_cap: 0,
            of_what_is_not_there: [0; 11],
            max_srq: 0,
            max_srq_wr: 0,
            max_srq_sge: 0,
            max_pkeys: 1,
            local_ca_ack_delay: 16,
            phys_port_cnt: 1,
        };
        // SAFETY: not null, and so valid for a write by the C API's contract.
        unsafe { attributes.write(answer) };
        Ok(0)
    })
}

/// The codes of width and speed of a lane that make a link of that many gigabits a second.
fn width_and_speed(gbps: u32) -> (u8, u8) {
    // Four lanes; the codes of SDR, QDR, EDR, HDR, NDR and XDR.
    let speed = match gbps {
        0..=10 => 1,
        11..=40 => 4,
        41..=100 => 32,
        101..=200 => 64,
        201..=400 => 128,
        _ => 0,
    };
    (2, speed)
}

pub(super) unsafe extern "C" fn ibv_query_port(
    context: *mut ibv_context,
    port: u8,
    attributes: *mut ibv_port_attr,
) -> c_int {
    number("ibv_query_port", || {
        let context = CONTEXTS.get(context)?;
        if port != 1 || attributes.is_null() {
            return Err(Errno(libc::EINVAL));
        }
        let adapter = &context.adapter;
        let active = adapter.is_active();
        let (active_width, active_speed) = width_and_speed(adapter.nic.speed_gbps);
        let answer = ibv_port_attr {
            state: if active { PORT_ACTIVE } else { PORT_DOWN },
            max_mtu: 5,
            active_mtu: adapter.mtu_code(),
            gid_tbl_len: adapter.identity.gid_table_len() as c_int,
            port_cap_flags: 0,
            max_msg_sz: adapter.nic.max_message_bytes,
            bad_pkey_cntr: 0,
            qkey_viol_cntr: 0,
            pkey_tbl_len: 1,
            lid: adapter.identity.lid,
            sm_lid: u16::from(!adapter.is_ethernet()),
            lmc: 0,
            max_vl_num: 1,
            sm_sl: 0,
            subnet_timeout: 18,
            init_type_reply: 0,
            active_width,
            active_speed,
            phys_state: if active { 5 } else { 3 },
            link_layer: match adapter.nic.link_layer {
                LinkLayer::Ethernet => LINK_LAYER_ETHERNET,
                LinkLayer::InfiniBand => LINK_LAYER_INFINIBAND,
            } as u8,
            flags: 0,
        };
        // SAFETY: not null, and so valid for a write by the C API's contract: this is the structure of the function's
        // version, of which later ones are longer.
        unsafe { attributes.write(answer) };
        Ok(0)
    })
}

/// A GID as the header's union has it.
fn halves(gid: [u8; 16]) -> [u64; 2] {
    let number = u128::from_ne_bytes(gid).to_le();
    [number as u64, (number >> 64) as u64]
}

pub(super) unsafe extern "C" fn ibv_query_gid(
    context: *mut ibv_context,
    port: u8,
    index: c_int,
    gid: *mut [u64; 2],
) -> c_int {
    number("ibv_query_gid", || {
        let context = CONTEXTS.get(context)?;
        let length = context.adapter.identity.gid_table_len();
        let index = usize::try_from(index).ok().filter(|&index| index < length && port == 1);
        let Some(index) = index.filter(|_| !gid.is_null()) else { return Err(Errno(libc::EINVAL)) };
        let answer = context.adapter.gid(index).map_or([0; 16], |address| address.gid);
        // SAFETY: not null, and so valid for a write by the C API's contract.
        unsafe { gid.write(halves(answer)) };
        Ok(0)
    })
}

/// An entry of the table; ENODATA where it is empty.
fn entry(adapter: &Adapter, port: u32, index: usize) -> Answer<ibv_gid_entry> {
    if port != 1 || index >= adapter.identity.gid_table_len() {
        return Err(Errno(libc::EINVAL));
    }
    let address = adapter.gid(index).ok_or(Errno(libc::ENODATA))?;
    let netdev = adapter.nic.netdev.as_ref().map_or(0, |_| adapter.index as u32 + 2);
    Ok(ibv_gid_entry {
        gid: halves(address.gid),
        gid_index: index as u32,
        port_num: port,
        gid_type: address.kind.into(),
        ndev_ifindex: netdev,
    })
}

pub(super) unsafe extern "C" fn _ibv_query_gid_ex(
    context: *mut ibv_context,
    port: u32,
    index: u32,
    place: *mut ibv_gid_entry,
    flags: u32,
    size: usize,
) -> c_int {
    number("_ibv_query_gid_ex", || {
        let context = CONTEXTS.get(context)?;
        if flags != 0 || place.is_null() || size < size_of::<ibv_gid_entry>() {
            return Err(Errno(libc::EINVAL));
        }
        let answer = entry(&context.adapter, port, index as usize)?;
        // SAFETY: not null and large enough, and so valid for a write by the C API's contract.
        unsafe { place.write(answer) };
        Ok(0)
    })
}

pub(super) unsafe extern "C" fn _ibv_query_gid_table(
    context: *mut ibv_context,
    places: *mut ibv_gid_entry,
    most: usize,
    flags: u32,
    size: usize,
) -> isize {
    let answer = guard("_ibv_query_gid_table", || {
        let context = CONTEXTS.get(context)?;
        if flags != 0 || places.is_null() || size != size_of::<ibv_gid_entry>() {
            return Err(Errno(libc::EINVAL));
        }
        let table = 0..context.adapter.identity.gid_table_len();
        let entries: Vec<_> = table.filter_map(|index| entry(&context.adapter, 1, index).ok()).collect();
        if entries.len() > most {
            return Err(Errno(libc::EINVAL));
        }
        for (index, entry) in entries.iter().enumerate() {
            // SAFETY: there is room for `most`, by the C API's contract.
            unsafe { places.add(index).write(*entry) };
        }
        Ok(entries.len() as isize)
    });
    // This one answers a count, or the error's negative.
    answer.unwrap_or_else(|Errno(errno)| -(errno as isize))
}

pub(super) unsafe extern "C" fn ibv_query_pkey(
    context: *mut ibv_context,
    port: u8,
    index: c_int,
    key: *mut u16,
) -> c_int {
    number("ibv_query_pkey", || {
        CONTEXTS.get(context)?;
        if port != 1 || index != 0 || key.is_null() {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: not null, and so valid for a write by the C API's contract.
        unsafe { key.write(0xffff) };
        Ok(0)
    })
}

pub(super) extern "C" fn ibv_fork_init() -> c_int {
    number("ibv_fork_init", || Ok(0))
}

/// `IBV_FORK_UNNEEDED`: what is registered is reached by its address, whoever has forked.
pub(super) extern "C" fn ibv_is_fork_initialized() -> c_int {
    2
}
