//! Which algorithm takes a message.
#![forbid(unsafe_code)]

use meshreduce_wire::{Algorithm, DType, Op};

use crate::algorithms;
use crate::config::Limits;
use crate::error::Error;
use crate::topology::Topology;

/// The rule of one communicator: equal on all ranks, because all it knows was compared at the rendezvous.
#[derive(Clone, Debug)]
pub(crate) struct Selector {
    pub(crate) topology: Topology,
    pub(crate) limits: Limits,
    pub(crate) forced: Option<Algorithm>,
}

impl Selector {
    /// Checks that the forced algorithm can run.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Some(algorithm) = self.forced else { return Ok(()) };
        let why = if !algorithms::SHIPPED.iter().any(|shipped| shipped.algorithm == algorithm) {
            "this version does not contain it".to_owned()
        } else if !algorithms::on(self.topology).any(|shipped| shipped.algorithm == algorithm) {
            format!("the topology is {}", self.topology)
        } else {
            return Ok(());
        };
        Err(Error::AlgorithmNotPossible { algorithm, why })
    }

    /// The algorithm for a message of `bytes` bytes; `loaded` says whether there is a kernel.
    pub(crate) fn select(
        &self,
        bytes: u64,
        loaded: impl Fn(Algorithm) -> bool,
        dtype: DType,
        op: Op,
    ) -> Result<Algorithm, Error> {
        let Some(algorithm) = self.forced else {
            return algorithms::on(self.topology)
                .map(|description| description.algorithm)
                .find(|algorithm| bytes <= self.limits.of(*algorithm) && loaded(*algorithm))
                .ok_or(Error::NoAlgorithm { bytes, dtype, op });
        };
        let limit = self.limits.of(algorithm);
        if bytes > limit {
            Err(Error::MessageTooLong { algorithm, bytes, limit })
        } else if !loaded(algorithm) {
            Err(Error::Unsupported { algorithm, dtype, op })
        } else {
            Ok(algorithm)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(forced: Option<Algorithm>) -> Selector {
        Selector { topology: Topology::FullyConnected, limits: Limits::default(), forced }
    }

    fn select(selector: &Selector, bytes: u64) -> Result<Algorithm, Error> {
        selector.select(bytes, |_| true, DType::Bf16, Op::Sum)
    }

    #[test]
    fn limits_are_bytes_and_inclusive() {
        let selector = selector(None);
        for bytes in [0, 2, 262_144] {
            assert_eq!(select(&selector, bytes).unwrap(), Algorithm::OneShot);
        }
        match select(&selector, 262_146) {
            Err(Error::NoAlgorithm { bytes, .. }) => assert_eq!(bytes, 262_146),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_forced_algorithm_names_its_limit() {
        let selector = selector(Some(Algorithm::OneShot));
        selector.check().unwrap();
        assert_eq!(select(&selector, 262_144).unwrap(), Algorithm::OneShot);
        match select(&selector, 262_145) {
            Err(Error::MessageTooLong { algorithm, bytes, limit }) => {
                assert_eq!((algorithm, bytes, limit), (Algorithm::OneShot, 262_145, 262_144));
            }
            other => panic!("{other:?}"),
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
    fn an_algorithm_is_forced_only_where_it_can_run() {
        let cube = Selector { topology: Topology::HybridCubeMesh, ..selector(Some(Algorithm::OneShot)) };
        match cube.check() {
            Err(Error::AlgorithmNotPossible { why, .. }) => {
                assert!(why.contains("hybrid cube mesh"), "{why}")
            }
            other => panic!("{other:?}"),
        }
    }
}
