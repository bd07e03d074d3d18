//! Making a queue pair, and taking it from state to state until it carries packets.

use meshreduce_verbs_loader as verbs;
use meshreduce_verbs_loader::{
    Access, Address, Capacity, Init, QueuePair, QueuePairConfig, ReadyToReceive, ReadyToSend, RemoteMemory,
};

use crate::error::Error;
use crate::gdr::descriptor::Route;
use crate::gdr::hub::Hub;
use crate::gdr::queue_pair::{Owner, Pair, Write};
use crate::gdr::work::Immediate;

/// The other end of a queue pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// Its number.
    pub(crate) queue_pair: u32,
    /// The number of its first packet.
    pub(crate) sequence: u32,
}

/// A queue pair that takes receives and knows no other yet.
pub(crate) fn make_queue_pair(hub: &Hub, nic: usize) -> Result<QueuePair, String> {
    let nic = &hub.nics[nic];
    let failed = |error: verbs::Error| nic.explained(&error);
    if !nic.is_active().map_err(failed)? {
        return Err(format!("port {} of {} is down", nic.port, nic.name));
    }
    let mut config = QueuePairConfig::default();
    config.capacity = Capacity {
        max_sends: nic.depth,
        max_receives: nic.depth,
        max_send_segments: 1,
        max_receive_segments: 1,
        max_inline: 0,
    };
    let queue_pair = nic.domain.queue_pair(&nic.queue, &nic.queue, &config).map_err(failed)?;
    queue_pair.init(&Init::new(nic.port, Access::REMOTE_WRITE)).map_err(failed)?;
    Ok(queue_pair)
}

pub(crate) fn connect_queue_pair(
    hub: &Hub,
    nic: usize,
    queue_pair: &QueuePair,
    route: Route,
    sequence: u32,
    end: End,
) -> Result<(), String> {
    let (nic, config) = (&hub.nics[nic], &hub.config);
    let failed = |error: verbs::Error| nic.explained(&error);
    let mut address = match route.global {
        Some((index, gid)) => Address::global(nic.port, nic.current_index(index, &config.root())?, gid),
        None => Address::local(nic.port, route.lid),
    };
    address.lid = route.lid;
    address.traffic_class = config.traffic_class;
    address.service_level = config.service_level;
    let mut receive = ReadyToReceive::new(address, end.queue_pair, route.mtu);
    receive.packet_sequence = end.sequence;
    queue_pair.ready_to_receive(&receive).map_err(failed)?;
    let mut send = ReadyToSend::default();
    (send.timeout, send.retries, send.rnr_retries) = (config.timeout, config.retries, config.rnr_retries);
    send.packet_sequence = sequence;
    queue_pair.ready_to_send(&send).map_err(failed)
}

/// Writes nothing, so that its acknowledgement tells that packets go both ways. `false`: the NIC has no credit left.
pub(crate) fn greet(hub: &Hub, pair: &mut Pair) -> Result<bool, String> {
    write_nothing(hub, pair, 1).map(|posted| posted == 1)
}

/// Writes nothing, at most so many times, each of which uses up a receive of the other side's. How many times.
pub(crate) fn write_nothing(hub: &Hub, pair: &mut Pair, most: u32) -> Result<u32, String> {
    let to = RemoteMemory { address: 0, rkey: 0 };
    let write = Write { from: 0, bytes: 0, lkey: 0, to, immediate: Some(Immediate::Hello) };
    let writes = std::iter::repeat_n(write, most as usize);
    // SAFETY: no memory is read or written.
    let posted = unsafe { pair.post(&mut hub.state(), Owner::Hello, most, writes) };
    posted.map_err(|failure| failure.what)
}

/// The number of a queue pair's first packet: random, so that packets of another connection are not taken for its own.
pub(crate) fn random_sequence() -> Result<u32, Error> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::system("a random number", error))?;
    Ok(u32::from_le_bytes(bytes) & 0xff_ffff)
}
