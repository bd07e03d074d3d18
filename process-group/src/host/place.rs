//! Where ranks are: which of them share memory, and by which addresses the others are reached.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use meshreduce_store::codec::{Malformed, Reader, Writer};
use meshreduce_store::identity::{Host, Member, namespace};
use meshreduce_store::sockets::random;
use rustix::thread::{CpuSet, sched_getaffinity};

/// Where a rank is, as it tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its host and process. The host's id may have been given.
    pub(super) member: Member,
    /// The inode of its network namespace: abstract socket names do not reach further.
    pub(super) network: u64,
    /// The kernel's boot id, whatever host is played: whose cores it shares.
    pub(super) machine: String,
    /// The processors that it may run on, a bit each, and how many of them at a time.
    pub(super) processors: Vec<u64>,
    pub(super) at_a_time: u64,
    /// Its socket's name, what shows that one was told, and what shows that one is the one who was told of.
    pub(super) name: [u8; 16],
    pub(super) cookie: [u8; 16],
    pub(super) answer: [u8; 16],
    /// Where it listens, the best address first.
    pub(super) addresses: Vec<SocketAddr>,
}

/// The processors that this thread may run on, a bit each; as many as it may use at a time if that is not told.
fn processors(at_a_time: u64) -> Vec<u64> {
    let set = sched_getaffinity(None).ok();
    let is_in = |place: usize| set.as_ref().map_or((place as u64) < at_a_time, |set| set.is_set(place));
    let word = |at: usize| (0..64).fold(0, |word, bit| word | u64::from(is_in(at * 64 + bit)) << bit);
    let mut words: Vec<u64> = (0..CpuSet::MAX_CPU / 64).map(word).collect();
    words.truncate(words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1));
    words
}

/// Whether all ranks of the machine of `rank` can run at the same time.
pub(super) fn fits(places: &[Place], rank: usize) -> bool {
    let own = &places[rank];
    let here = || places.iter().filter(|place| place.machine == own.machine);
    let count = |words: &[u64]| words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
    // Ranks may have processors of their own, or share them.
    let mut all = Vec::new();
    for place in here() {
        all.resize(all.len().max(place.processors.len()), 0);
        all.iter_mut().zip(&place.processors).for_each(|(all, word)| *all |= word);
    }
    // A process may use fewer at a time than it may run on.
    let lacks = count(&own.processors).saturating_sub(own.at_a_time);
    here().count() as u64 + lacks <= count(&all)
}

impl Place {
    /// This process's; it listens nowhere yet.
    pub(super) fn current(host_id: Option<&str>) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut member = Member::current()?;
        if let Some(id) = host_id {
            member.host = Host { id: id.to_owned(), ..member.host };
        }
        let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let machine = machine.map_or_else(|_| member.host.id.clone(), |id| id.trim().to_owned());
        let (name, cookie, answer) = (random()?, random()?, random()?);
        let network = namespace("net")?;
        let at_a_time = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let processors = processors(at_a_time);
        let addresses = Vec::new();
        Ok(Self { member, network, machine, processors, at_a_time, name, cookie, answer, addresses })
    }

    /// Whether both can map the same memory.
    pub(super) fn shares_memory_with(&self, other: &Place) -> bool {
        self.member.host.is(&other.member.host) && self.network == other.network
    }

    /// Whether both are one process.
    pub(super) fn is_process_of(&self, other: &Place) -> bool {
        self.machine == other.machine && self.member.process == other.member.process
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        self.member.write(&mut out);
        out.u64(self.network);
        out.text(&self.machine);
        out.list(&self.processors, |out, word| out.u64(*word));
        out.u64(self.at_a_time);
        [self.name, self.cookie, self.answer].iter().for_each(|bytes| out.raw(bytes));
        out.list(&self.addresses, |out, address| out.text(&address.to_string()));
        out.into_bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let from = &mut from;
        let member = Member::read(from)?;
        let (network, machine) = (from.u64()?, from.text()?);
        let (processors, at_a_time) = (from.list(Reader::u64)?, from.u64()?);
        let (name, cookie, answer) = (from.array()?, from.array()?, from.array()?);
        let address = |from: &mut Reader<'_>| {
            let text = from.text()?;
            text.parse().map_err(|_| Malformed::wrong(format!("{text:?} is no address")))
        };
        let addresses = from.list(address)?;
        from.end()?;
        Ok(Self { member, network, machine, processors, at_a_time, name, cookie, answer, addresses })
    }

    /// How a connection to it may be tried from `from`, in order: its own loopback leads elsewhere on another machine or in
    /// another network namespace.
    pub(super) fn addresses_from(&self, from: &Place) -> Vec<SocketAddr> {
        let is_near = self.machine == from.machine && self.network == from.network;
        let leads_there = |address: &&SocketAddr| is_near || !address.ip().is_loopback();
        self.addresses.iter().filter(leads_there).copied().collect()
    }
}

/// Ranks that share memory, and how many there are on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Islands {
    /// The ranks of each, ascending; islands by their first rank.
    pub(super) all: Vec<Vec<usize>>,
    /// By rank: its island, and its place there.
    pub(super) of: Vec<(usize, usize)>,
    /// All ranks.
    pub(super) everybody: Vec<usize>,
    /// By place: the rank that has it in each island, by island, as far as all islands have it.
    pub(super) columns: Vec<Vec<usize>>,
}

impl Islands {
    pub(super) fn of(places: &[Place]) -> Self {
        let mut all: Vec<Vec<usize>> = Vec::new();
        let mut of = Vec::new();
        for (rank, place) in places.iter().enumerate() {
            let same = |island: &Vec<usize>| places[island[0]].shares_memory_with(place);
            let at = all.iter().position(same).unwrap_or_else(|| {
                all.push(Vec::new());
                all.len() - 1
            });
            of.push((at, all[at].len()));
            all[at].push(rank);
        }
        let shortest = all.iter().map(Vec::len).min().unwrap_or(0);
        let column = |place: usize| all.iter().map(|island| island[place]).collect();
        let columns = (0..shortest).map(column).collect();
        Self { all, of, everybody: (0..places.len()).collect(), columns }
    }

    /// Whether all islands have equally many ranks.
    pub(super) fn are_equal(&self) -> bool {
        self.all.iter().all(|island| island.len() == self.all[0].len())
    }

    /// Whether islands are blocks of the reduction tree: runs of ranks, equally many, a power of two.
    pub(super) fn are_blocks(&self) -> bool {
        let size = self.all[0].len();
        let is_block = |(at, island): (usize, &Vec<usize>)| {
            island.len() == size && island.iter().enumerate().all(|(place, rank)| *rank == at * size + place)
        };
        size.is_power_of_two() && self.all.iter().enumerate().all(is_block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(host: &str) -> Place {
        Place::current(Some(host)).unwrap()
    }

    #[test]
    fn places_come_back() {
        let mut place = on("a");
        place.addresses = vec!["10.0.0.1:5".parse().unwrap(), "[::1]:5".parse().unwrap()];
        assert_eq!(Place::decode(&place.encode()), Ok(place.clone()));
        assert!(Place::decode(&place.encode()[1..]).is_err());
    }

    #[test]
    fn islands_are_hosts_and_blocks_are_runs_of_equal_powers_of_two() {
        let islands = |hosts: &str| {
            let places: Vec<_> = hosts.chars().map(|host| on(&host.to_string())).collect();
            Islands::of(&places)
        };
        let two = islands("abab");
        assert_eq!((&two.all, two.of[3]), (&vec![vec![0, 2], vec![1, 3]], (1, 1)));
        assert!(!two.are_blocks() && two.are_equal());
        assert_eq!((&two.columns, &two.everybody), (&vec![vec![0, 1], vec![2, 3]], &vec![0, 1, 2, 3]));
        assert_eq!(islands("aab").columns, [[0, 2]]);
        assert!(islands("aabb").are_blocks() && islands("abc").are_blocks() && islands("aaa").all.len() == 1);
        assert!(!islands("aaabbb").are_blocks() && !islands("aab").are_blocks());
        assert!(islands("aaabbb").are_equal() && !islands("aab").are_equal());
    }

    #[test]
    fn ranks_fit_where_each_can_have_a_processor() {
        let fits = |ranks: &[(u64, u64)]| {
            let of = |(processors, at_a_time): &(u64, u64)| Place {
                processors: vec![*processors],
                at_a_time: *at_a_time,
                ..on("a")
            };
            super::fits(&ranks.iter().map(of).collect::<Vec<_>>(), 0)
        };
        assert!(fits(&[(0b11, 2); 2]) && !fits(&[(0b11, 2); 3]));
        assert!(fits(&[(0b01, 1), (0b10, 1)]), "bound to a processor each");
        assert!(!fits(&[(0b10, 1); 2]), "to the same one");
        assert!(!fits(&[(0b1111, 1); 2]), "of four it may use one at a time");
        assert!(fits(&[(processors(1)[0], 1)]));
    }

    #[test]
    fn loopback_is_for_those_who_share_it() {
        let mut place = on("a");
        place.addresses = vec!["10.0.0.1:5".parse().unwrap(), "127.0.0.1:5".parse().unwrap()];
        let near = on("b");
        let far = Place { network: near.network + 1, ..on("c") };
        assert_eq!(place.addresses_from(&near).len(), 2);
        assert_eq!(place.addresses_from(&far), [place.addresses[0]]);
    }
}
