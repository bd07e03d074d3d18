//! Which algorithm takes a message.
#![forbid(unsafe_code)]

use meshreduce_wire::{Algorithm, Collective, DType, Op, VECTOR_BYTES};

use crate::algorithms::{self, Interconnect};
use crate::config::Limits;
use crate::error::Error;

/// Bytes to which pieces of a longer message are rounded: what lies so far behind an address is aligned as it is.
const WHOLE: u64 = 256;

/// Most launches of a call. Whoever makes it can do nothing else meanwhile, nor can those who wait for the lane; and a stream that has
/// about a thousand takes no more before some have run, which may be for ever where a peer does not come.
pub(crate) const MOST_LAUNCHES: u64 = 256;

/// The rule of one communicator: equal on all ranks, because all it knows was compared at the rendezvous.
#[derive(Clone, Debug)]
pub(crate) struct Selector {
    pub(crate) interconnect: Interconnect,
    pub(crate) limits: Limits,
    pub(crate) world_size: usize,
    pub(crate) forced: Option<Algorithm>,
}

impl Selector {
    /// Checks that the forced algorithm can run.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Some(algorithm) = self.forced else { return Ok(()) };
        let why = if !algorithms::SHIPPED.iter().any(|shipped| shipped.algorithm == algorithm) {
            "this version does not contain it".to_owned()
        } else if algorithm.is_of_lists() {
            "it is what lists of all-reduces are launched as, and is not chosen".to_owned()
        } else if !self.interconnect.every().any(|shipped| shipped.algorithm == algorithm) {
            format!("the topology is {}", self.interconnect.topology)
        } else if self.piece(algorithm) == 0 {
            "its limit leaves no room for anything".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::AlgorithmNotPossible { algorithm, why })
    }

    /// Most bytes of a message, or of a slice, that go in one launch of an algorithm by its limit: whole elements, and enough of
    /// them that all pieces are aligned as the first one.
    pub(crate) fn piece(&self, algorithm: Algorithm) -> u64 {
        let limit = self.limits.piece(algorithm, self.world_size);
        // 0 of a limit shorter than a vector.
        let vectors = limit / VECTOR_BYTES as u64 * VECTOR_BYTES as u64;
        if limit < WHOLE { vectors } else { limit / WHOLE * WHOLE }
    }

    /// The forced algorithm, if it is one of `collective`.
    fn forced_for(&self, collective: Collective) -> Option<Algorithm> {
        self.forced.filter(|algorithm| algorithm.serves(collective))
    }

    /// Bytes of the longest message that is taken, as are all shorter ones; `None`: there is no kernel.
    pub(crate) fn longest(&self, loaded: impl Fn(Algorithm) -> bool) -> Option<u64> {
        if let Some(forced) = self.forced_for(Collective::AllReduce) {
            return loaded(forced).then(|| self.longest_forced(forced));
        }
        let able = self.interconnect.algorithms().map(|description| description.algorithm);
        able.filter(|algorithm| loaded(*algorithm))
            .map(|algorithm| self.limits.of(algorithm, self.world_size))
            .max()
    }

    /// Bytes of the longest message that a forced algorithm of all-reduces takes.
    fn longest_forced(&self, algorithm: Algorithm) -> u64 {
        self.piece(algorithm).saturating_mul(MOST_LAUNCHES)
    }

    /// The algorithms for a collective other than an all-reduce, with the bytes of the longest slice that each takes: its limit, unless it
    /// is forced, and what goes in [`MOST_LAUNCHES`] launches. `piece` gives the bytes of a slice in one of them; `None`: there is no
    /// kernel.
    fn takes(
        &self,
        collective: Collective,
        piece: impl Fn(Algorithm) -> Option<u64>,
    ) -> impl Iterator<Item = (Algorithm, u64)> {
        let forced = self.forced_for(collective);
        let able = self.interconnect.of_slices().map(|description| description.algorithm);
        let able = able.filter(move |algorithm| {
            algorithm.serves(collective) && forced.is_none_or(|forced| *algorithm == forced)
        });
        able.filter_map(move |algorithm| {
            let most = piece(algorithm)?.saturating_mul(MOST_LAUNCHES);
            let limit = self.limits.of(algorithm, self.world_size);
            Some((
                algorithm,
                match forced {
                    Some(_) => most,
                    // What is within its limit goes in one.
                    None if algorithm.is_by_packets() => limit,
                    None => limit.min(most),
                },
            ))
        })
    }

    /// The algorithm for a collective other than an all-reduce whose longest slice has `bytes` bytes; `piece` gives the bytes of a slice
    /// that go in one launch; `None`: there is no kernel.
    pub(crate) fn select_for(
        &self,
        collective: Collective,
        bytes: u64,
        piece: impl Fn(Algorithm) -> Option<u64>,
    ) -> Result<Algorithm, Error> {
        let mut able = self.takes(collective, piece);
        let found = able.find(|(_, most)| bytes <= *most).map(|(algorithm, _)| algorithm);
        found.ok_or(Error::NoAlgorithmFor { collective, bytes })
    }

    /// Bytes of the longest slice for which [`Selector::select_for`] gives an algorithm, as it does for all shorter ones.
    pub(crate) fn longest_for(
        &self,
        collective: Collective,
        piece: impl Fn(Algorithm) -> Option<u64>,
    ) -> Option<u64> {
        self.takes(collective, piece).map(|(_, most)| most).max()
    }

    /// The algorithm for a message of `bytes` bytes; `loaded` says whether there is a kernel. One that is forced takes messages beyond its
    /// limit, up to what goes in [`MOST_LAUNCHES`] launches.
    pub(crate) fn select(
        &self,
        bytes: u64,
        loaded: impl Fn(Algorithm) -> bool,
        dtype: DType,
        op: Op,
    ) -> Result<Algorithm, Error> {
        let Some(algorithm) = self.forced_for(Collective::AllReduce) else {
            return self
                .interconnect
                .algorithms()
                .map(|description| description.algorithm)
                .find(|algorithm| bytes <= self.limits.of(*algorithm, self.world_size) && loaded(*algorithm))
                .ok_or(Error::NoAlgorithm { bytes, dtype, op });
        };
        match loaded(algorithm) {
            false => Err(Error::Unsupported { algorithm, dtype, op }),
            true if bytes > self.longest_forced(algorithm) => Err(Error::NoAlgorithm { bytes, dtype, op }),
            true => Ok(algorithm),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    fn selector(forced: Option<Algorithm>) -> Selector {
        let interconnect = Interconnect { topology: Topology::FullyConnected, cube: false };
        Selector { interconnect, limits: Limits::default(), world_size: 8, forced }
    }

    /// Staging holds any slice.
    const WHOLE_SLICE: fn(Algorithm) -> Option<u64> = |_| Some(u64::MAX);

    fn select(selector: &Selector, bytes: u64) -> Result<Algorithm, Error> {
        selector.select(bytes, |_| true, DType::Bf16, Op::Sum)
    }

    #[test]
    fn limits_are_bytes_and_inclusive() {
        let selector = selector(None);
        let expect = |selector: &Selector, bytes: &[u64], expected| {
            bytes.iter().for_each(|bytes| assert_eq!(select(selector, *bytes).unwrap(), expected, "{bytes}"));
        };
        expect(&selector, &[0, 2, 40_960], Algorithm::OneShotLl);
        expect(&selector, &[40_962, 1 << 20], Algorithm::TwoShotLl);
        expect(&selector, &[(1 << 20) + 2, 10 << 20], Algorithm::TwoShot);
        let limits = Limits { one_shot_ll: Some(16), two_shot_ll: Some(0), ..Limits::default() };
        let set = Selector { limits, ..selector.clone() };
        expect(&set, &[16], Algorithm::OneShotLl);
        expect(&set, &[18, 262_144], Algorithm::OneShot);
        expect(&set, &[262_146], Algorithm::TwoShot);
        match select(&selector, (10 << 20) + 2) {
            Err(Error::NoAlgorithm { bytes, .. }) => assert_eq!(bytes, (10 << 20) + 2),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn other_collectives_go_by_their_longest_slice() {
        let select =
            |selector: &Selector, collective, bytes| selector.select_for(collective, bytes, WHOLE_SLICE);
        let free = selector(None);
        for (collective, bytes, expected) in [
            (Collective::Barrier, 0, Algorithm::ExchangeLl),
            (Collective::AllGather, 40 << 10, Algorithm::ExchangeLl),
            (Collective::Broadcast, (40 << 10) + 1, Algorithm::Exchange),
            (Collective::AllToAll, 6 << 20, Algorithm::Exchange),
            (Collective::ReduceScatter, 128 << 10, Algorithm::ReduceScatterLl),
            (Collective::Reduce, (128 << 10) + 2, Algorithm::ReduceScatter),
        ] {
            assert_eq!(select(&free, collective, bytes).unwrap(), expected, "{collective} {bytes}");
        }
        match select(&free, Collective::AllGather, (6 << 20) + 1) {
            Err(Error::NoAlgorithmFor { collective: Collective::AllGather, bytes }) => {
                assert_eq!(bytes, (6 << 20) + 1);
            }
            other => panic!("{other:?}"),
        }
        let forced = selector(Some(Algorithm::OneShot));
        assert_eq!(select(&forced, Collective::AllGather, 8).unwrap(), Algorithm::ExchangeLl);
        let limits = Limits::default().without_packets();
        let none = Selector { limits, ..selector(None) };
        assert_eq!(select(&none, Collective::AllGather, 8).unwrap(), Algorithm::Exchange);
        assert_eq!(
            select(&none, Collective::Barrier, 0).unwrap(),
            Algorithm::ExchangeLl,
            "headers need no memory"
        );
        let interconnect = Interconnect { topology: Topology::HybridCubeMesh, cube: true };
        let cube = Selector { interconnect, ..selector(None) };
        for (collective, longest, expected) in [
            (Collective::Barrier, 0, Algorithm::CubeMeshExchangeLl),
            (Collective::AllGather, 192 << 10, Algorithm::CubeMeshExchangeLl),
            (Collective::Broadcast, 192 << 10, Algorithm::CubeMeshExchangeLl),
            (Collective::ReduceScatter, 192 << 10, Algorithm::CubeMeshReduceScatterLl),
            (Collective::Reduce, 192 << 10, Algorithm::CubeMeshReduceScatterLl),
        ] {
            assert_eq!(select(&cube, collective, longest).unwrap(), expected, "{collective}");
            assert!(select(&cube, collective, (192 << 10) + 1).is_err(), "{collective}");
        }
        assert_eq!(cube.piece(Algorithm::CubeMeshExchangeLl), 48 << 10);
        assert!(select(&cube, Collective::AllToAll, 0).is_err(), "it is not built there");
        for collective in Collective::ALL.into_iter().filter(|one| *one != Collective::AllReduce) {
            for selector in [&free, &none] {
                let longest = selector.longest_for(collective, WHOLE_SLICE).unwrap();
                assert!(select(selector, collective, longest).is_ok());
                assert!(select(selector, collective, longest + 1).is_err());
            }
            let there = (collective != Collective::AllToAll).then_some(192 << 10);
            assert_eq!(cube.longest_for(collective, WHOLE_SLICE), there);
        }
    }

    #[test]
    fn a_forced_algorithm_goes_beyond_its_limit_in_pieces_of_it_but_not_in_any_number() {
        let one_shot = selector(Some(Algorithm::OneShot));
        one_shot.check().unwrap();
        let most = 262_144 * MOST_LAUNCHES;
        for bytes in [0, 262_144, 262_145, most] {
            assert_eq!(select(&one_shot, bytes).unwrap(), Algorithm::OneShot);
        }
        for bytes in [most + 1, u64::MAX] {
            assert!(matches!(select(&one_shot, bytes), Err(Error::NoAlgorithm { .. })), "{bytes}");
        }
        for (limit, piece) in [(262_144, 262_144), (1000, 768), (256, 256), (255, 240), (16, 16), (15, 0)] {
            let limits = Limits { one_shot: limit, ..Limits::default() };
            assert_eq!(Selector { limits, ..one_shot.clone() }.piece(Algorithm::OneShot), piece, "{limit}");
        }
        let exchange = selector(Some(Algorithm::Exchange));
        exchange.check().unwrap();
        let of = |collective| exchange.select_for(collective, 1 << 40, WHOLE_SLICE);
        assert_eq!(of(Collective::AllGather).unwrap(), Algorithm::Exchange);
        assert!(of(Collective::Reduce).is_err(), "it is none of its algorithms");
        assert_eq!(select(&exchange, 8).unwrap(), Algorithm::OneShotLl, "nor is it one of all-reduces");
    }

    #[test]
    fn slices_go_in_no_more_launches_than_a_call_has_at_most() {
        // Staging that holds 1 KiB of a slice; packet memory holds all that goes by packets.
        let piece = |algorithm: Algorithm| Some(if algorithm.is_by_packets() { u64::MAX } else { 1 << 10 });
        let most = MOST_LAUNCHES << 10;
        for forced in [None, Some(Algorithm::Exchange)] {
            let selector = selector(forced);
            assert_eq!(selector.longest_for(Collective::AllGather, piece), Some(most));
            let of = |bytes| selector.select_for(Collective::AllGather, bytes, piece);
            assert_eq!(of(most).unwrap(), Algorithm::Exchange);
            assert!(matches!(of(most + 1), Err(Error::NoAlgorithmFor { bytes, .. }) if bytes == most + 1));
        }
    }

    #[test]
    fn an_algorithm_without_room_cannot_be_forced() {
        let limits = Limits::default().without_packets();
        for algorithm in [Algorithm::OneShotLl, Algorithm::ExchangeLl] {
            match (Selector { limits, ..selector(Some(algorithm)) }).check() {
                Err(Error::AlgorithmNotPossible { why, .. }) => assert!(why.contains("limit"), "{why}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_algorithm_without_a_kernel_is_not_selected() {
        let nothing = |_| false;
        let free = selector(None).select(2, nothing, DType::F16, Op::Max);
        assert!(matches!(free, Err(Error::NoAlgorithm { .. })));
        let forced = selector(Some(Algorithm::OneShot)).select(2, nothing, DType::F16, Op::Max);
        assert!(matches!(forced, Err(Error::Unsupported { .. })));
    }

    #[test]
    fn the_longest_message_is_the_last_for_which_an_algorithm_is_selected() {
        for forced in [None, Some(Algorithm::OneShot), Some(Algorithm::TwoShot)] {
            let selector = selector(forced);
            for loaded in
                [&[Algorithm::OneShot][..], &[Algorithm::TwoShot], &[Algorithm::OneShot, Algorithm::TwoShot]]
            {
                let loaded = |algorithm| loaded.contains(&algorithm);
                let takes = |bytes| selector.select(bytes, loaded, DType::F32, Op::Sum).is_ok();
                match selector.longest(loaded) {
                    Some(bytes) => assert!(takes(0) && takes(bytes) && !takes(bytes + 1)),
                    None => assert!(!takes(0)),
                }
            }
            assert_eq!(selector.longest(|_| false), None);
        }
    }

    #[test]
    fn an_algorithm_is_forced_only_where_it_can_run() {
        let interconnect = Interconnect { topology: Topology::HybridCubeMesh, cube: true };
        let cube = Selector { interconnect, ..selector(Some(Algorithm::OneShot)) };
        match cube.check() {
            Err(Error::AlgorithmNotPossible { why, .. }) => {
                assert!(why.contains("hybrid cube mesh"), "{why}")
            }
            other => panic!("{other:?}"),
        }
    }
}
