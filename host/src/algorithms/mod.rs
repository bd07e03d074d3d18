//! The algorithms that are shipped: one file each, stating what it needs.
#![forbid(unsafe_code)]

/// The texts of an algorithm, for 2 to 8 ranks, by the names of their files.
macro_rules! texts {
    ($name:literal, $suffix:literal) => {
        super::texts!(@of $name, $suffix, "_w2", "_w3", "_w4", "_w5", "_w6", "_w7", "_w8")
    };
    (@of $name:literal, $suffix:literal, $($ranks:literal),+) => {
        [$(Some(include_str!(concat!("../../ptx/", $name, $ranks, $suffix, ".ptx")))),+]
    };
}
use texts;

/// The text of an algorithm for hybrid cube meshes, which have 8 ranks.
macro_rules! cube_texts {
    ($name:literal) => {
        [None, None, None, None, None, None, Some(include_str!(concat!("../../ptx/", $name, "_w8.ptx")))]
    };
}
use cube_texts;

/// The text of an algorithm that serves every world size.
macro_rules! text_for_all {
    ($name:literal, $suffix:literal) => {
        [Some(include_str!(concat!("../../ptx/", $name, $suffix, ".ptx"))); 7]
    };
}
use text_for_all;

/// No text, for 2 to 8 ranks.
const NONE: [Option<&str>; 7] = [None; 7];

mod cube_mesh_exchange_ll;
mod cube_mesh_reduce_scatter_ll;
mod exchange;
mod exchange_ll;
mod group_ll;
mod hybrid_cube_mesh;
mod hybrid_cube_mesh_ll;
mod one_shot;
mod one_shot_ll;
mod reduce_scatter;
mod reduce_scatter_ll;
mod two_shot;
mod two_shot_ll;

use meshreduce_wire::packets::{self, PacketLayout};
use meshreduce_wire::{Algorithm, Collective, DType, Isa, geometry};

use crate::config::Limits;
use crate::topology::{Mesh, Topology};

/// What the host knows of an algorithm. (The device side has a module of the same name.)
#[derive(Debug)]
pub(crate) struct Description {
    pub(crate) algorithm: Algorithm,
    /// The topology it runs on.
    pub(crate) topology: Topology,
    /// The PTX texts for 2 to 8 ranks, where the algorithm takes that many.
    pub(crate) texts: [Option<&'static str>; 7],
    /// Those for [`Isa::V84`].
    pub(crate) later_texts: [Option<&'static str>; 7],
}

impl Description {
    /// The PTX text for `world_size` ranks in this ISA, if there is one.
    pub(crate) fn text(&self, world_size: usize, isa: Isa) -> Option<&'static str> {
        let texts = match isa {
            Isa::V84 => &self.later_texts,
            _ => &self.texts,
        };
        texts.get(world_size.checked_sub(meshreduce_wire::MIN_RANKS)?).copied().flatten()
    }
}

/// The shipped algorithms: those of all-reduces and then those of slices, of either the one for the shortest messages first, and that
/// of lists. (No
/// constant: every use of that would bring the texts along once more.)
pub(crate) static SHIPPED: &[Description] = &[
    one_shot_ll::DESCRIPTION,
    two_shot_ll::DESCRIPTION,
    one_shot::DESCRIPTION,
    two_shot::DESCRIPTION,
    hybrid_cube_mesh_ll::DESCRIPTION,
    hybrid_cube_mesh::DESCRIPTION,
    exchange_ll::DESCRIPTION,
    exchange::DESCRIPTION,
    reduce_scatter_ll::DESCRIPTION,
    reduce_scatter::DESCRIPTION,
    cube_mesh_exchange_ll::DESCRIPTION,
    cube_mesh_reduce_scatter_ll::DESCRIPTION,
    group_ll::DESCRIPTION,
];

/// The topology that algorithms are chosen for, and what the links beneath it are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interconnect {
    pub(crate) topology: Topology,
    /// Whether the links form a hybrid cube mesh, also where another topology is forced.
    pub(crate) cube: bool,
}

impl Interconnect {
    pub(crate) fn new(topology: Topology, mesh: &Mesh) -> Self {
        Self { topology, cube: mesh.is_cube() }
    }

    /// The shipped algorithms of all-reduces that run here. Where full connection is forced on a hybrid cube mesh that is all of
    /// them, the mesh's own last.
    pub(crate) fn algorithms(self) -> impl Iterator<Item = &'static Description> {
        self.every().filter(|description| description.algorithm.serves(Collective::AllReduce))
    }

    /// Those of the other collectives.
    pub(crate) fn of_slices(self) -> impl Iterator<Item = &'static Description> {
        self.every().filter(|description| description.algorithm.is_of_slices())
    }

    /// Both, and that of lists.
    pub(crate) fn every(self) -> impl Iterator<Item = &'static Description> {
        SHIPPED.iter().filter(move |description| match description.topology {
            Topology::HybridCubeMesh => self.cube && self.topology != Topology::Unknown,
            topology => topology == self.topology,
        })
    }

    /// The latest ISA whose texts may be used here. Packets of all calls of a lane have one width: a slot whose data were part of
    /// a wider packet could hold what looks like the flag of a narrower one. And those of the hybrid cube mesh have 64 bits.
    pub(crate) fn latest_isa(self) -> Isa {
        if self.algorithms().any(|description| description.algorithm == Algorithm::HybridCubeMeshLl) {
            Isa::V70
        } else {
            Isa::V84
        }
    }

    /// Bytes that one staging half needs, so that every message within the limits fits.
    pub(crate) fn staging_half_bytes(self, limits: &Limits, world_size: usize) -> u64 {
        self.most(limits, world_size, geometry::staging_bytes)
    }

    /// The packet memory in which every message within the limits fits.
    pub(crate) fn packet_layout(self, limits: &Limits, world_size: usize) -> PacketLayout {
        PacketLayout::new(self.most(limits, world_size, packets::phase_bytes), world_size as u32)
    }

    /// The most that `bytes` says of the longest messages of all that runs here.
    fn most(
        self,
        limits: &Limits,
        world_size: usize,
        bytes: impl Fn(Algorithm, u64, DType, u32) -> u64,
    ) -> u64 {
        let each = self.algorithms().flat_map(|&Description { algorithm, .. }| {
            let limit = limits.of(algorithm, world_size);
            let bytes = &bytes;
            // Rounded up: elements that only move may be shorter than these.
            let count = |dtype: DType| limit.div_ceil(dtype.size() as u64);
            DType::ALL.map(|dtype| bytes(algorithm, count(dtype), dtype, world_size as u32))
        });
        each.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Interconnect = Interconnect { topology: Topology::FullyConnected, cube: false };

    fn names(interconnect: Interconnect) -> Vec<&'static str> {
        interconnect.algorithms().map(|description| description.algorithm.name()).collect()
    }

    #[test]
    fn packet_memory_holds_the_longest_slice_of_any_element() {
        for limit in [1, 3, 5, 4097] {
            let limits = Limits { one_shot_ll: Some(limit), two_shot_ll: Some(0), ..Limits::default() };
            let units = FULL.packet_layout(&limits, 3).phase_units();
            assert!(u64::from(units) * 8 >= limits.of(Algorithm::ExchangeLl, 3), "{limit}: {units} units");
            assert_eq!(limits.of(Algorithm::ExchangeLl, 3), limit);
        }
    }

    #[test]
    fn staging_holds_the_longest_message() {
        let limits = Limits { one_shot: 1000, two_shot: 0, hybrid_cube_mesh: 0, ..Limits::default() };
        assert_eq!(FULL.staging_half_bytes(&limits, 8), 1008);
        let unknown = Interconnect { topology: Topology::Unknown, cube: false };
        assert_eq!(unknown.staging_half_bytes(&limits, 8), 0);
    }

    #[test]
    fn packet_memory_holds_the_longest_message_of_packets() {
        let limits = Limits { one_shot_ll: Some(1000), two_shot_ll: Some(0), ..Limits::default() };
        assert_eq!(FULL.packet_layout(&limits, 8).phase_bytes, 2048);
        let limits = Limits { one_shot_ll: Some(1000), two_shot_ll: Some(80_000), ..Limits::default() };
        assert_eq!(FULL.packet_layout(&limits, 8).phase_bytes, 20_480);
        let none = Limits { one_shot_ll: Some(0), two_shot_ll: Some(0), ..Limits::default() };
        assert_eq!(FULL.packet_layout(&none, 8).phase_bytes, 0);
        let cube = Interconnect { topology: Topology::HybridCubeMesh, cube: true };
        let limits = Limits { hybrid_cube_mesh_ll: Some(1000), ..Limits::default() };
        assert_eq!(cube.packet_layout(&limits, 8).phase_bytes, 4096, "partial sums are in fp32");
        for algorithm in [Algorithm::CubeMeshExchangeLl, Algorithm::CubeMeshReduceScatterLl] {
            let piece = limits.piece(algorithm, 8);
            assert!(packets::phase_bytes(algorithm, piece.div_ceil(4), DType::F32, 8) <= 4096);
        }
    }

    #[test]
    fn a_cube_mesh_runs_its_own_algorithm_and_all_of_them_if_full_connection_is_forced() {
        assert_eq!(names(FULL), ["one-shot-ll", "two-shot-ll", "one-shot", "two-shot"]);
        let cube = Interconnect { topology: Topology::HybridCubeMesh, cube: true };
        assert_eq!(names(cube), ["hybrid-cube-mesh-ll", "hybrid-cube-mesh"]);
        let forced = Interconnect { topology: Topology::FullyConnected, cube: true };
        let own = ["hybrid-cube-mesh-ll", "hybrid-cube-mesh"];
        assert_eq!(names(forced), [&names(FULL)[..], &own].concat());
        assert_eq!([FULL, cube, forced].map(Interconnect::latest_isa), [Isa::V84, Isa::V70, Isa::V70]);
    }

    #[test]
    fn where_packets_may_be_wide_all_of_them_are() {
        for description in SHIPPED.iter().filter(|description| description.algorithm.is_by_packets()) {
            let has_later = description.later_texts.iter().any(Option::is_some);
            assert_eq!(has_later, !description.algorithm.is_of_cube_mesh());
            let both = || description.texts.iter().zip(&description.later_texts);
            assert!(!has_later || both().all(|(text, later)| text.is_some() == later.is_some()));
        }
    }
}
