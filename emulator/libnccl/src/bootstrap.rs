//! How the ranks of a communicator find each other.
//!
//! `ncclGetUniqueId` opens a listener and has a thread attend to it: the *root*, in the process of whoever made the id.
//! Every rank tells the root where it listens itself; when all have come, the root tells everybody all addresses; each
//! rank connects to the lower ranks and is called by the higher ones; the root hears from each that it is done, and
//! when all are, sends them off. If a rank leaves before, the root tells the others. The listener is closed then: an id can
//! be used once.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

use crate::failure::{Code, NcclError, Result};
use crate::listener::{self, GiveUp, Listener};

/// `ncclUniqueId`.
pub(crate) type IdBytes = [u8; 128];

/// What an id of this library starts with.
const TAG: &[u8; 16] = b"meshreduce nccl\0";
/// Far more than any communicator of an emulated node.
const MOST_RANKS: u32 = 4096;
const LONGEST_REPLY: usize = 1 << 20;

/// Where the root is, and by which number it knows the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id {
    pub(crate) magic: u64,
    pub(crate) root: SocketAddr,
}

impl Id {
    pub(crate) fn to_bytes(self) -> IdBytes {
        let mut bytes = [0; 128];
        bytes[..16].copy_from_slice(TAG);
        bytes[16..24].copy_from_slice(&self.magic.to_le_bytes());
        bytes[24..26].copy_from_slice(&self.root.port().to_le_bytes());
        match self.root.ip() {
            IpAddr::V4(address) => {
                bytes[26] = 4;
                bytes[27..31].copy_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                bytes[26] = 6;
                bytes[27..43].copy_from_slice(&address.octets());
            }
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &IdBytes) -> Result<Self> {
        let part = |from: usize| <[u8; 8]>::try_from(&bytes[from..from + 8]).unwrap_or_default();
        let port = u16::from_le_bytes([bytes[24], bytes[25]]);
        let address: IpAddr = match bytes[26] {
            4 => Ipv4Addr::from([bytes[27], bytes[28], bytes[29], bytes[30]]).into(),
            6 => Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[27..43]).unwrap_or_default()).into(),
            _ => return Err(NcclError::argument("the unique id is not one of this library")),
        };
        if &bytes[..16] != TAG {
            return Err(NcclError::argument("the unique id is not one of this library"));
        }
        Ok(Self { magic: u64::from_le_bytes(part(16)), root: SocketAddr::new(address, port) })
    }
}

/// A number that strangers do not guess.
fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    match got {
        Ok(8) => Ok(u64::from_le_bytes(bytes)),
        Ok(_) => Err(NcclError::internal("getrandom answered too little")),
        Err(error) => Err(NcclError::system("getrandom", &error)),
    }
}

/// `ncclGetUniqueId`.
pub(crate) fn unique_id() -> Result<Id> {
    let magic = random()?;
    let listener = Listener::open(magic)?;
    let id = Id { magic, root: listener.address()? };
    let root =
        std::thread::Builder::new().name("nccl bootstrap root".to_owned()).spawn(move || attend(listener));
    root.map_err(|error| NcclError::system("starting a thread", &error))?;
    Ok(id)
}

/// What a rank tells the root.
struct Arrival {
    ranks: u32,
    rank: u32,
    /// Which device it is on, in the world.
    device: u64,
    listens: String,
}

impl Arrival {
    fn to_bytes(&self) -> Vec<u8> {
        let numbers = [&self.ranks.to_le_bytes()[..], &self.rank.to_le_bytes(), &self.device.to_le_bytes()];
        [&numbers.concat(), self.listens.as_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (ranks, rest) = bytes.split_first_chunk::<4>()?;
        let (rank, rest) = rest.split_first_chunk::<4>()?;
        let (device, rest) = rest.split_first_chunk::<8>()?;
        Some(Self {
            ranks: u32::from_le_bytes(*ranks),
            rank: u32::from_le_bytes(*rank),
            device: u64::from_le_bytes(*device),
            listens: String::from_utf8(rest.to_vec()).ok()?,
        })
    }
}

/// The root's thread.
fn attend(mut listener: Listener) {
    let mut ranks: Vec<(TcpStream, Arrival)> = Vec::new();
    let outcome = gather(&mut listener, &mut ranks).and_then(|()| send_off(&mut ranks));
    if let Err(failure) = outcome {
        let reply = reply(failure.code as u8, failure.text.as_bytes());
        for (socket, _) in &mut ranks {
            // Whoever has left need not hear it.
            let _ = listener::write(socket, &reply, &|| None);
        }
    }
}

fn reply(code: u8, payload: &[u8]) -> Vec<u8> {
    [&[code][..], &(payload.len() as u32).to_le_bytes(), payload].concat()
}

/// Waits for all ranks.
fn gather(listener: &mut Listener, ranks: &mut Vec<(TcpStream, Arrival)>) -> Result<()> {
    loop {
        let anybody_left = || {
            let left = ranks.iter().find(|(socket, _)| listener::has_left(socket));
            left.map(|(_, arrival)| {
                NcclError::remote(format!("rank {} has left before all had come", arrival.rank))
            })
        };
        let (socket, greeting) = listener.next(&anybody_left)?;
        let Some(arrival) = Arrival::from_bytes(&greeting) else { continue };
        let problem = problem(ranks, &arrival);
        ranks.push((socket, arrival));
        if let Some(problem) = problem {
            return Err(problem);
        }
        if ranks.len() == ranks[0].1.ranks as usize {
            return Ok(());
        }
    }
}

/// Why a rank cannot be one of those that have come.
fn problem(ranks: &[(TcpStream, Arrival)], new: &Arrival) -> Option<NcclError> {
    let Arrival { rank, ranks: count, .. } = *new;
    if count > MOST_RANKS || rank >= count {
        return Some(NcclError::argument(format!(
            "rank {rank} of {count} ranks is no rank of a communicator"
        )));
    }
    ranks.iter().find_map(|(_, other)| {
        if other.ranks != count {
            let both = format!("rank {} has {} ranks, and rank {rank} has {count}", other.rank, other.ranks);
            Some(NcclError::internal(format!("Bootstrap Root : mismatch in rank count: {both}")))
        } else if other.rank == rank {
            Some(NcclError::internal(format!(
                "Bootstrap Root : rank {rank} of {count} ranks has already checked in"
            )))
        } else if other.device == new.device {
            let both = format!("rank {} and rank {rank}", other.rank);
            Some(NcclError::usage(format!("Duplicate GPU detected : {both} both are on one CUDA device")))
        } else {
            None
        }
    })
}

/// Tells all ranks of each other, and sends them off when each has met all others.
fn send_off(ranks: &mut [(TcpStream, Arrival)]) -> Result<()> {
    ranks.sort_by_key(|(_, arrival)| arrival.rank);
    let addresses: Vec<_> = ranks.iter().map(|(_, arrival)| arrival.listens.as_str()).collect();
    let table = [&random()?.to_le_bytes()[..], addresses.join("\n").as_bytes()].concat();
    let table = reply(0, &table);
    for (socket, _) in ranks.iter_mut() {
        listener::write(socket, &table, &|| None)?;
    }
    for index in 0..ranks.len() {
        let (before, rest) = ranks.split_at_mut(index);
        let Some(((socket, _), after)) = rest.split_first_mut() else { break };
        let others = || before.iter().chain(after.iter());
        let anybody_left = || {
            let left = others().find(|(socket, _)| listener::has_left(socket))?;
            Some(NcclError::remote(format!("rank {} has left before all had met", left.1.rank)))
        };
        listener::read(socket, &mut [0], &anybody_left)?;
    }
    for (socket, _) in ranks {
        listener::write(socket, &reply(0, &[]), &|| None)?;
    }
    Ok(())
}

fn read_reply(root: &mut TcpStream, give_up: GiveUp<'_>) -> Result<Vec<u8>> {
    let mut header = [0; 5];
    listener::read(root, &mut header, give_up)?;
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > LONGEST_REPLY {
        return Err(NcclError::internal("the bootstrap root's reply is too long"));
    }
    let mut payload = vec![0; length];
    listener::read(root, &mut payload, give_up)?;
    match Code::error(i32::from(header[0])) {
        None => Ok(payload),
        Some(code) => Err(NcclError { code, text: String::from_utf8_lossy(&payload).into_owned() }),
    }
}

/// A communicator's number, and the connections to its other ranks, by rank.
pub(crate) struct Met {
    pub(crate) magic: u64,
    pub(crate) sockets: Vec<Option<TcpStream>>,
}

/// Meets the other ranks. `device` says which device this rank is on.
pub(crate) fn meet(id: Id, ranks: usize, rank: usize, device: u64, give_up: GiveUp<'_>) -> Result<Met> {
    let mut listener = Listener::open(0)?;
    let listens = listener.address()?.to_string();
    let arrival = Arrival { ranks: ranks as u32, rank: rank as u32, device, listens };
    let mut root = listener::connect(id.root, id.magic, &arrival.to_bytes(), give_up)?;
    let table = read_reply(&mut root, give_up)?;
    let broken = || NcclError::internal("the bootstrap root's table is broken");
    let (magic, addresses) = table.split_first_chunk::<8>().ok_or_else(broken)?;
    let magic = u64::from_le_bytes(*magic);
    let addresses = std::str::from_utf8(addresses).ok();
    let addresses: Option<Vec<SocketAddr>> =
        addresses.and_then(|text| text.lines().map(|line| line.parse().ok()).collect());
    let addresses = addresses.filter(|all| all.len() == ranks).ok_or_else(broken)?;
    listener.set_magic(magic);
    let root_has_news = || {
        // Before this rank is done the root says nothing but that somebody has left.
        let said = root.peek(&mut [0]);
        let quiet = said.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        give_up().or_else(|| (!quiet).then(|| NcclError::remote("a rank has left before all had met")))
    };
    let sockets = join(listener, magic, rank, &addresses, &root_has_news)?;
    listener::write(&mut root, &[1], give_up)?;
    read_reply(&mut root, give_up)?;
    Ok(Met { magic, sockets })
}

/// Connects to the lower ranks of `addresses`, and lets the higher ones in.
pub(crate) fn join(
    mut listener: Listener,
    magic: u64,
    rank: usize,
    addresses: &[SocketAddr],
    give_up: GiveUp<'_>,
) -> Result<Vec<Option<TcpStream>>> {
    let mut sockets: Vec<Option<TcpStream>> = addresses.iter().map(|_| None).collect();
    for (socket, address) in sockets.iter_mut().zip(addresses).take(rank) {
        *socket = Some(listener::connect(*address, magic, &(rank as u32).to_le_bytes(), give_up)?);
    }
    while sockets.iter().skip(rank + 1).any(Option::is_none) {
        let (socket, greeting) = listener.next(give_up)?;
        let caller = greeting.try_into().map_or(usize::MAX, |bytes| u32::from_le_bytes(bytes) as usize);
        match sockets.get_mut(caller) {
            Some(place) if caller > rank && place.is_none() => *place = Some(socket),
            _ => return Err(NcclError::internal(format!("rank {caller} called, which was not expected"))),
        }
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written_and_others_are_refused() {
        for root in ["127.0.0.1:4711", "[fd00::7]:65535"] {
            let id = Id { magic: 0x0123_4567_89ab_cdef, root: root.parse().unwrap() };
            assert_eq!(Id::from_bytes(&id.to_bytes()), Ok(id));
        }
        let refused = Id::from_bytes(&[0; 128]).unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument);
    }

    fn ranks(count: usize, arrivals: &[(usize, usize, u64)]) -> Vec<Result<Met>> {
        let id = unique_id().unwrap();
        assert_eq!(count, arrivals.len());
        std::thread::scope(|scope| {
            let meet = |&(ranks, rank, device)| scope.spawn(move || meet(id, ranks, rank, device, &|| None));
            let threads: Vec<_> = arrivals.iter().map(meet).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn all_ranks_are_connected_to_all_others() {
        let met = ranks(4, &[(4, 0, 10), (4, 1, 11), (4, 2, 12), (4, 3, 13)]);
        for (rank, met) in met.iter().enumerate() {
            let met = met.as_ref().unwrap();
            let connected: Vec<_> = met.sockets.iter().map(Option::is_some).collect();
            assert_eq!(connected, (0..4).map(|other| other != rank).collect::<Vec<_>>());
        }
    }

    #[test]
    fn ranks_that_do_not_fit_each_other_all_learn_why() {
        for (arrivals, code) in [
            ([(2, 0, 1), (3, 1, 2)], Code::InternalError),
            ([(2, 0, 1), (2, 0, 2)], Code::InternalError),
            ([(2, 0, 1), (2, 1, 1)], Code::InvalidUsage),
        ] {
            for outcome in ranks(2, &arrivals) {
                assert_eq!(outcome.err().unwrap().code, code);
            }
        }
    }

    #[test]
    fn a_rank_that_leaves_is_told_to_the_others() {
        let id = unique_id().unwrap();
        std::thread::scope(|scope| {
            let stays = scope.spawn(move || meet(id, 3, 0, 1, &|| None));
            let leaves = scope.spawn(move || meet(id, 3, 1, 2, &|| Some(NcclError::usage("enough"))));
            assert!(leaves.join().unwrap().is_err());
            // It may have left before it had come; then it comes, and leaves, here.
            let arrival = Arrival { ranks: 3, rank: 1, device: 2, listens: String::new() };
            drop(listener::connect(id.root, id.magic, &arrival.to_bytes(), &|| None));
            assert_eq!(stays.join().unwrap().err().unwrap().code, Code::RemoteError);
        });
    }
}
