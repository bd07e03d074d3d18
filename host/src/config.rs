//! What a user can choose.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use meshreduce_wire::{Algorithm, DType, Isa, MAX_RANKS, MIN_RANKS, packets, pad};

use crate::outcome::DisabledBy;
use crate::topology::{Mesh, Topology};

/// The longest message that each algorithm takes, in bytes, inclusive. Of those that take a message, the first of this order is
/// chosen: one-shot and two-shot by packets, one-shot, two-shot, hybrid cube mesh by packets, hybrid cube mesh.
///
/// The limits of packets are by world size where none is set: they were calculated for 8x H100 (hybrid cube mesh: 8x V100), and
/// not yet measured. 0 takes an algorithm out, and what it needs of packet memory ([`crate::Communicator`], "Memory").
///
/// | KiB for ranks | 2 | 3 | 4 | 5 | 6 | 7 | 8 |
/// |---|---|---|---|---|---|---|---|
/// | one-shot by packets | 1024 | 288 | 144 | 80 | 64 | 48 | 40 |
/// | two-shot by packets | 1024 | 1408 | 1280 | 1152 | 1120 | 1088 | 1024 |
/// | hybrid cube mesh by packets | | | | | | | 48 |
///
/// The limits of the other collectives are those of the longest *slice*, as one rank sends it to another. They were calculated for
/// 8x H100, too: to where what is staged (at 1.5 TB/s) and moved over the links (at 337 GB/s) takes as long as a ring that needs
/// 20 us and moves 370 GB/s. In a hybrid cube mesh the longest slice of an all-gather, broadcast, reduce-scatter or reduce is four
/// times hybrid cube mesh's limit by packets, in pieces of that.
///
/// ```
/// use meshreduce::{Algorithm, Limits};
/// let limits = Limits { one_shot_ll: Some(64 << 10), ..Limits::default() };
/// assert_eq!(limits.of(Algorithm::OneShotLl, 8), 64 << 10);
/// assert_eq!(limits.of(Algorithm::TwoShotLl, 4), 1280 << 10);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One-shot: 256 KiB.
    pub one_shot: u64,
    /// Two-shot: 10 MiB.
    pub two_shot: u64,
    /// Hybrid cube mesh: 256 KiB.
    pub hybrid_cube_mesh: u64,
    /// One-shot by packets; `None`: by world size.
    pub one_shot_ll: Option<u64>,
    /// Two-shot by packets; `None`: by world size.
    pub two_shot_ll: Option<u64>,
    /// Hybrid cube mesh by packets; `None`: 48 KiB.
    pub hybrid_cube_mesh_ll: Option<u64>,
    /// The longest slice of an all-gather, broadcast or all-to-all: 6 MiB. A slice is what one rank sends another; of a broadcast
    /// that is the message. Up to one-shot's limit by packets, slices go by packets.
    pub exchange: u64,
    /// The longest slice of a reduce-scatter or reduce: 2 MiB. Up to two-shot's limit by packets over the number of ranks, slices
    /// go by packets.
    pub reduce_scatter: u64,
}

/// KiB that one-shot and two-shot by packets take, for 2 to 8 ranks: to where two-shot by packets, and from there to where
/// two-shot by barriers, takes less time. Calculated for 8x H100: 1 us over a link one way, 0.25 us an access to the own
/// memory, 337 GB/s.
const ONE_SHOT_LL_KIB: [u64; 7] = [1024, 288, 144, 80, 64, 48, 40];
const TWO_SHOT_LL_KIB: [u64; 7] = [1024, 1408, 1280, 1152, 1120, 1088, 1024];

/// The same of a hybrid cube mesh, calculated for 8x V100: 25 GB/s over one of a pair's links.
const HYBRID_CUBE_MESH_LL_KIB: u64 = 48;

/// Pieces of a slice of other collectives there, each as long as that limit: a slice crosses a link twice, its packets twice that,
/// where a ring of all links needs 20 us and moves 130 GB/s.
const CUBE_MESH_PIECES: u64 = 4;

impl Default for Limits {
    fn default() -> Self {
        Self {
            one_shot: 256 << 10,
            two_shot: 10 << 20,
            hybrid_cube_mesh: 256 << 10,
            one_shot_ll: None,
            two_shot_ll: None,
            hybrid_cube_mesh_ll: None,
            exchange: 6 << 20,
            reduce_scatter: 2 << 20,
        }
    }
}

impl Limits {
    /// The longest message, or of collectives other than all-reduce the longest slice, that `algorithm` takes over `world_size`
    /// ranks, in bytes.
    pub fn of(&self, algorithm: Algorithm, world_size: usize) -> u64 {
        let by_ranks = |table: [u64; 7]| {
            let at = world_size.checked_sub(MIN_RANKS).filter(|at| *at < table.len());
            at.map_or(0, |at| table[at] << 10)
        };
        match algorithm {
            Algorithm::OneShot => self.one_shot,
            Algorithm::TwoShot => self.two_shot,
            Algorithm::HybridCubeMesh => self.hybrid_cube_mesh,
            Algorithm::OneShotLl => self.one_shot_ll.unwrap_or_else(|| by_ranks(ONE_SHOT_LL_KIB)),
            Algorithm::TwoShotLl => self.two_shot_ll.unwrap_or_else(|| by_ranks(TWO_SHOT_LL_KIB)),
            Algorithm::HybridCubeMeshLl => self.hybrid_cube_mesh_ll.unwrap_or(HYBRID_CUBE_MESH_LL_KIB << 10),
            Algorithm::Exchange => self.exchange,
            Algorithm::ReduceScatter => self.reduce_scatter,
            // A slice crosses the links and lies in packet memory as a message does there, or a message's slice.
            Algorithm::ExchangeLl => self.of(Algorithm::OneShotLl, world_size).min(self.exchange),
            Algorithm::ReduceScatterLl => (self.of(Algorithm::TwoShotLl, world_size)
                / world_size.max(1) as u64)
                .min(self.reduce_scatter),
            Algorithm::CubeMeshExchangeLl => self.slice_in_cube_mesh().min(self.exchange),
            Algorithm::CubeMeshReduceScatterLl => self.slice_in_cube_mesh().min(self.reduce_scatter),
            _ => 0,
        }
    }

    fn slice_in_cube_mesh(&self) -> u64 {
        CUBE_MESH_PIECES * self.of(Algorithm::HybridCubeMeshLl, MAX_RANKS)
    }

    /// Bytes of that which go in one launch: what packet memory has room for.
    pub(crate) fn piece(&self, algorithm: Algorithm, world_size: usize) -> u64 {
        let limit = self.of(algorithm, world_size);
        match algorithm {
            Algorithm::CubeMeshExchangeLl | Algorithm::CubeMeshReduceScatterLl => {
                limit.min(self.of(Algorithm::HybridCubeMeshLl, world_size))
            }
            _ => limit,
        }
    }

    /// These limits, none above `longest`: for memory that holds no more than is needed.
    pub fn at_most(&self, longest: u64, world_size: usize) -> Self {
        let by_packets = |algorithm| Some(self.of(algorithm, world_size).min(longest));
        Self {
            one_shot: self.one_shot.min(longest),
            two_shot: self.two_shot.min(longest),
            hybrid_cube_mesh: self.hybrid_cube_mesh.min(longest),
            one_shot_ll: by_packets(Algorithm::OneShotLl),
            two_shot_ll: by_packets(Algorithm::TwoShotLl),
            hybrid_cube_mesh_ll: by_packets(Algorithm::HybridCubeMeshLl),
            exchange: self.exchange.min(longest),
            reduce_scatter: self.reduce_scatter.min(longest),
        }
    }

    /// These limits without any by packets.
    pub fn without_packets(self) -> Self {
        Self { one_shot_ll: Some(0), two_shot_ll: Some(0), hybrid_cube_mesh_ll: Some(0), ..self }
    }
}

/// How a communicator is built. Everything that all ranks must agree on is compared at the rendezvous.
///
/// ```
/// use meshreduce::Config;
/// use std::time::Duration;
///
/// let config = Config::default().lanes(2).deadline(Some(Duration::from_secs(5)));
/// # let _ = config;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Config {
    /// Why this rank does not take part; `None`: it does.
    pub(crate) disabled: Option<DisabledBy>,
    pub(crate) needs_no_driver: bool,
    pub(crate) needs_no_room: bool,
    pub(crate) forced_topology: Option<Topology>,
    pub(crate) assumed_links: Option<Mesh>,
    pub(crate) forced_algorithm: Option<Algorithm>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) timeout: Duration,
    pub(crate) lanes: u32,
    pub(crate) limits: Limits,
    pub(crate) allow_shared_devices: bool,
    pub(crate) communicators_per_device: u32,
    pub(crate) ptx: Option<Arc<str>>,
    pub(crate) latest_isa: Isa,
    pub(crate) first_call_number: u64,
}

impl Default for Config {
    /// Enabled; deadline 30 s; rendezvous timeout 30 s; one lane; the limits of [`Limits::default`].
    fn default() -> Self {
        Self {
            disabled: None,
            needs_no_driver: false,
            needs_no_room: false,
            forced_topology: None,
            assumed_links: None,
            forced_algorithm: None,
            deadline: Some(Duration::from_secs(30)),
            timeout: Duration::from_secs(30),
            lanes: 1,
            limits: Limits::default(),
            allow_shared_devices: false,
            communicators_per_device: 1,
            ptx: None,
            latest_isa: Isa::V84,
            first_call_number: 0,
        }
    }
}

/// Whether the communicator is enabled.
const ENABLE: &str = "ENABLE_INTRA_NODE_COMM";
/// Whether the topology is taken for fully connected.
const FORCE: &str = "TEST_INTRA_NODE_COMM";

/// What no variable means for [`ENABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unset {
    Enabled,
    Disabled,
}

/// Most lanes of a communicator.
pub const MAX_LANES: u32 = 64;

impl Config {
    /// The default configuration as the environment changes it.
    ///
    /// - `ENABLE_INTRA_NODE_COMM`: the communicator is disabled unless this is 1, true, yes or y.
    /// - `TEST_INTRA_NODE_COMM`: 1, true, yes or y forces the topology to fully connected, for tests without NVLink.
    ///
    /// 0, false, no, n, an empty value and no variable mean no; case does not matter. [`crate::Config::launched`] reads
    /// the same variables for programs that a launcher starts; there no variable leaves the communicator enabled.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NotAYesOrNo`] for any other word.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_process(Unset::Disabled)
    }

    /// The default configuration as the environment changes it, for a program that was started to communicate
    /// ([`crate::store::Launcher`]): unlike [`Config::from_env`] it is enabled where `ENABLE_INTRA_NODE_COMM` is not set, and
    /// disabled where that says no (0, false, no, n, an empty value). `TEST_INTRA_NODE_COMM` is read as there.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NotAYesOrNo`] for a word that is neither.
    pub fn launched() -> Result<Self, ConfigError> {
        Self::from_process(Unset::Enabled)
    }

    fn from_process(unset: Unset) -> Result<Self, ConfigError> {
        let get = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self::from_variables(get, unset)
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>, unset: Unset) -> Result<Self, ConfigError> {
        let flag = |name: &'static str, value: &str| match value.trim().to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "y" => Ok(true),
            "" | "0" | "false" | "no" | "n" => Ok(false),
            _ => Err(ConfigError::NotAYesOrNo { variable: name, value: value.to_owned() }),
        };
        let value = get(ENABLE);
        let enabled = value.as_deref().map_or(Ok(unset == Unset::Enabled), |value| flag(ENABLE, value))?;
        let disabled = (!enabled).then(|| DisabledBy::Variable { name: ENABLE.to_owned(), value });
        let forced = flag(FORCE, &get(FORCE).unwrap_or_default())?.then_some(Topology::FullyConnected);
        Ok(Self { disabled, forced_topology: forced, ..Self::default() })
    }

    /// Whether to build a communicator at all. A disabled rank still comes to the rendezvous, so that the others need
    /// not wait for it, and stays up to two seconds until they know; the outcome is *not applicable* on all ranks, with
    /// [`crate::NotApplicableReason::Disabled`].
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.disabled = (!enabled).then_some(DisabledBy::Program);
        self
    }

    /// Whether a rank on which there is no CUDA driver, or whose driver sees no device at all, is *not applicable* on all
    /// ranks, with [`crate::NotApplicableReason::NoDriver`], rather than broken: for programs that use something else where there are
    /// no GPUs. The default is no: the rank gets [`crate::Error::NoDriver`] or the driver's error, the others
    /// [`crate::Error::RankFailed`].
    ///
    /// It is not compared between ranks. What counts is how the rank without a driver is configured: if one with yes and
    /// one with no both lack it, the latter still gets its own error, and all others what was said first.
    pub fn missing_driver_is_not_applicable(mut self, is: bool) -> Self {
        self.needs_no_driver = is;
        self
    }

    /// Whether a rank whose device is full, because its process has as many communicators on it as fit
    /// ([`Config::communicators_per_device`]), is *not applicable* on all ranks, with [`crate::NotApplicableReason::DeviceFull`], rather
    /// than broken: for programs that use something else then. The default is no: the rank gets
    /// [`crate::Error::NotResident`], the others [`crate::Error::RankFailed`].
    ///
    /// It is not compared between ranks. What counts is how the rank whose device is full is configured.
    pub fn full_device_is_not_applicable(mut self, is: bool) -> Self {
        self.needs_no_room = is;
        self
    }

    /// How long a kernel waits for a peer in the first phase of a call. In the second, which two-shot and the hybrid cube
    /// mesh have, it waits an eighth and 50 us longer: the peer that it waits for there may itself be waiting, in the first
    /// phase, for a rank that does not come, and is given the time to name that one. `None`: for ever. At least a
    /// microsecond.
    pub fn deadline(mut self, deadline: Option<Duration>) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long each step of the rendezvous, and of [`crate::Communicator::close`], waits for the other ranks.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Lanes, 1 to [`MAX_LANES`]. Two streams (or two graphs that are replayed at the same time) need two.
    pub fn lanes(mut self, lanes: u32) -> Self {
        self.lanes = lanes;
        self
    }

    /// The longest message of each algorithm. Staging memory grows with them: two halves per lane, each of the
    /// longest message of all algorithms that the topology allows; and so does packet memory with those by packets.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Allows several ranks on one device, for tests. Their kernels must fit the device side by side: the block cap
    /// is divided among them. Ranks that are threads of one process share the context too: their streams must not
    /// wait for the default stream (`CU_STREAM_NON_BLOCKING`, which `cust`'s streams cannot have: use the raw level), or a
    /// copy of one rank waits for the kernel of another that waits for it.
    pub fn allow_shared_devices(mut self, allow: bool) -> Self {
        self.allow_shared_devices = allow;
        self
    }

    /// How many communicators each device is for at the same time: this one's launches fill one of so many equal shares of
    /// what is resident at once. The default of 1 leaves others what this one does not need, which are at most
    /// [`meshreduce_wire::MAX_BLOCKS`] blocks a lane. Equal on all ranks.
    ///
    /// All kernels that may wait for one another must be resident at once: a communicator that would not fit beside the
    /// others of its process on its device is refused ([`crate::Error::NotResident`]). Those of other processes, and other
    /// kernels that wait for a peer, are not seen: the caller counts them here.
    pub fn communicators_per_device(mut self, communicators: u32) -> Self {
        self.communicators_per_device = communicators;
        self
    }

    /// Takes the topology as given, whatever NVML says of it: for tests, and where NVML does not tell it
    /// ([`crate::NotApplicableReason::LinksHidden`]). The devices must still be able to access each other's memory. `None`: as it is.
    pub fn force_topology(mut self, topology: Option<Topology>) -> Self {
        self.forced_topology = topology;
        self
    }

    /// Takes the links between the ranks' devices for these, whatever NVML says of them: tests of an algorithm on a
    /// machine whose links would not allow it, such as the hybrid cube mesh between ranks that share a device. The
    /// devices must still be able to access each other's memory. `None`: as they are.
    pub fn assume_links(mut self, links: Option<Mesh>) -> Self {
        self.assumed_links = links;
        self
    }

    /// Uses one algorithm for every message: what is longer than its limit goes in several launches, 256 at most, and what is longer than
    /// that no algorithm takes. `None`: by size. One of [`Algorithm::OF_SLICES`] is used for the collectives that it serves, one of [`Algorithm::ALL`] for
    /// all-reduces; the others go by size.
    pub fn force_algorithm(mut self, algorithm: Option<Algorithm>) -> Self {
        self.forced_algorithm = algorithm;
        self
    }

    /// The number of each lane's first call, so that tests reach numbers that real programs take years for; at most 2^43.
    #[doc(hidden)]
    pub fn first_call_number(mut self, number: u64) -> Self {
        self.first_call_number = number;
        self
    }

    pub(crate) fn check(&self, world_size: usize) -> Result<(), ConfigError> {
        if let Some(links) = self.assumed_links.as_ref().filter(|links| links.size() != world_size) {
            return Err(ConfigError::Links { ranks: links.size(), world_size });
        }
        if !(1..=MAX_LANES).contains(&self.lanes) {
            return Err(ConfigError::Lanes(self.lanes));
        }
        if self.deadline.is_some_and(|deadline| deadline < Duration::from_micros(1)) {
            return Err(ConfigError::Deadline);
        }
        if self.communicators_per_device == 0 {
            return Err(ConfigError::NoCommunicators);
        }
        let longest = Algorithm::ALL.map(|algorithm| self.limits.of(algorithm, world_size));
        let longest = longest.into_iter().max().unwrap_or(0);
        if longest == 0 || longest > MAX_LIMIT {
            return Err(ConfigError::Limit(longest));
        }
        for algorithm in Algorithm::ALL {
            let (limit, most) =
                (self.limits.of(algorithm, world_size), most_by_packets(algorithm, world_size));
            if limit > most {
                return Err(ConfigError::PacketLimit { algorithm, limit, world_size, most });
            }
        }
        if self.first_call_number > MAX_FIRST_CALL_NUMBER {
            return Err(ConfigError::FirstCallNumber(self.first_call_number));
        }
        Ok(())
    }
}

/// The highest limit that can be set: 1 GiB.
const MAX_LIMIT: u64 = 1 << 30;

/// The highest limit that an algorithm by packets can have over `world_size` ranks: for longer messages no packet memory is
/// large enough.
fn most_by_packets(algorithm: Algorithm, world_size: usize) -> u64 {
    // Of the type that needs most. An algorithm that needs none has no such limit.
    let ranks = world_size as u32;
    let bytes = |limit: u64| packets::phase_bytes(algorithm, limit / 2, DType::F16, ranks);
    let room = packets::MAX_BYTES / (2 * u64::from(pad::PHASES) * u64::from(ranks.max(1)));
    (10..=30).rev().map(|bits| 1 << bits).find(|limit| bytes(*limit) <= room).unwrap_or(0)
}

/// The highest number that a lane's first call can have. A call's epoch is one more than the calls before, and signals have
/// room for [`pad::EPOCH_BITS`] bits: as many calls again may follow, at 5 us each for 1.4 years.
const MAX_FIRST_CALL_NUMBER: u64 = 1 << (pad::EPOCH_BITS - 1);

/// A configuration that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// An environment variable that is neither a yes nor a no.
    #[error("{variable}={value} is neither a yes (1, true, yes, y) nor a no (0, false, no, n)")]
    NotAYesOrNo {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// No lanes, or too many.
    #[error("{0} lanes: there must be 1 to {MAX_LANES}")]
    Lanes(u32),
    /// A deadline under a microsecond.
    #[error("the deadline must be at least a microsecond; `None` is no deadline")]
    Deadline,
    /// No communicators a device.
    #[error("0 communicators per device: this one is one")]
    NoCommunicators,
    /// The links that are to be assumed are those of another number of ranks.
    #[error("the links to be assumed are those of {ranks} ranks, but there are {world_size}")]
    Links {
        /// Ranks that the links are of.
        ranks: usize,
        /// Ranks there are.
        world_size: usize,
    },
    /// All limits are 0, or one is beyond 1 GiB.
    #[error("the longest message would be {0} bytes: there must be 1 to {MAX_LIMIT}")]
    Limit(u64),
    /// A limit of an algorithm by packets for which no packet memory is large enough.
    #[error("{algorithm} cannot take {limit} bytes over {world_size} ranks: at most {most}")]
    PacketLimit {
        /// The algorithm.
        algorithm: Algorithm,
        /// Its limit, in bytes.
        limit: u64,
        /// Ranks.
        world_size: usize,
        /// The highest limit it can have, in bytes.
        most: u64,
    },
    /// The number of the first call leaves too few for those behind it.
    #[error("the first call's number is {0}: it must be at most {MAX_FIRST_CALL_NUMBER}")]
    FirstCallNumber(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)], unset: Unset) -> Result<Config, ConfigError> {
        let get =
            |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Config::from_variables(get, unset)
    }

    fn with(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        from(pairs, Unset::Disabled)
    }

    fn by(value: Option<&str>) -> Option<DisabledBy> {
        Some(DisabledBy::Variable { name: "ENABLE_INTRA_NODE_COMM".into(), value: value.map(str::to_owned) })
    }

    #[test]
    fn the_environment_must_enable_the_communicator() {
        assert_eq!(with(&[]).unwrap().disabled, by(None));
        for yes in ["1", "true", "YES", "y", "True"] {
            assert_eq!(with(&[("ENABLE_INTRA_NODE_COMM", yes)]).unwrap().disabled, None, "{yes}");
        }
        for no in ["", "0", "false", "no", "N"] {
            assert_eq!(with(&[("ENABLE_INTRA_NODE_COMM", no)]).unwrap().disabled, by(Some(no)));
        }
    }

    #[test]
    fn under_a_launcher_it_takes_a_variable_to_disable_the_communicator() {
        let with = |pairs: &[(&str, &str)]| from(pairs, Unset::Enabled);
        assert_eq!(with(&[]).unwrap().disabled, None);
        assert_eq!(with(&[("ENABLE_INTRA_NODE_COMM", "yes")]).unwrap().disabled, None);
        for no in ["", "0", "false", "no", "N"] {
            assert_eq!(with(&[("ENABLE_INTRA_NODE_COMM", no)]).unwrap().disabled, by(Some(no)));
        }
        assert!(with(&[("ENABLE_INTRA_NODE_COMM", "maybe")]).is_err());
        let forced = with(&[("TEST_INTRA_NODE_COMM", "1")]).unwrap();
        assert_eq!(forced.forced_topology, Some(Topology::FullyConnected));
    }

    #[test]
    fn the_program_has_the_last_word() {
        let disabled = Config::default().enabled(false);
        assert_eq!(disabled.disabled, Some(DisabledBy::Program));
        assert_eq!(disabled.enabled(true).disabled, None);
        assert_eq!(with(&[]).unwrap().enabled(true).disabled, None);
    }

    #[test]
    fn the_test_variable_forces_full_connection() {
        assert_eq!(with(&[]).unwrap().forced_topology, None);
        let forced = with(&[("TEST_INTRA_NODE_COMM", "1")]).unwrap();
        assert_eq!(forced.forced_topology, Some(Topology::FullyConnected));
    }

    #[test]
    fn an_unknown_word_is_an_error_that_names_it() {
        let error = with(&[("ENABLE_INTRA_NODE_COMM", "maybe")]).unwrap_err();
        assert_eq!(
            error,
            ConfigError::NotAYesOrNo { variable: "ENABLE_INTRA_NODE_COMM", value: "maybe".into() }
        );
    }

    #[test]
    fn impossible_settings_are_refused() {
        assert_eq!(Config::default().check(2), Ok(()));
        assert_eq!(Config::default().lanes(0).check(2), Err(ConfigError::Lanes(0)));
        assert_eq!(Config::default().lanes(65).check(2), Err(ConfigError::Lanes(65)));
        assert_eq!(Config::default().deadline(Some(Duration::ZERO)).check(2), Err(ConfigError::Deadline));
        assert_eq!(Config::default().deadline(None).check(2), Ok(()));
        let none_there = Config::default().communicators_per_device(0);
        assert_eq!(none_there.check(2), Err(ConfigError::NoCommunicators));
        let none =
            Limits { one_shot: 0, two_shot: 0, hybrid_cube_mesh: 0, ..Limits::default() }.without_packets();
        assert_eq!(Config::default().limits(none).check(2), Err(ConfigError::Limit(0)));
        let packets = Limits { one_shot_ll: Some(1 << 30), ..Limits::default() };
        let refused = ConfigError::PacketLimit {
            algorithm: Algorithm::OneShotLl,
            limit: 1 << 30,
            world_size: 8,
            most: 32 << 20,
        };
        assert_eq!(Config::default().limits(packets).check(8), Err(refused));
        let packets = Limits { one_shot_ll: Some(32 << 20), ..Limits::default() };
        assert_eq!(Config::default().limits(packets).check(8), Ok(()));
        let first = |number| Config::default().first_call_number(number).check(2);
        assert_eq!(first(1 << 43), Ok(()));
        assert_eq!(first((1 << 43) + 1), Err(ConfigError::FirstCallNumber((1 << 43) + 1)));
        let links = Mesh::from_links(2, vec![0, 1, 1, 0]);
        assert_eq!(Config::default().assume_links(links.clone()).check(2), Ok(()));
        let wrong = ConfigError::Links { ranks: 2, world_size: 3 };
        assert_eq!(Config::default().assume_links(links).check(3), Err(wrong));
    }
}
