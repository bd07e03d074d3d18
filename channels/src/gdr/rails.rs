//! Which ports of one side are paired with which of the other.
//!
//! One queue pair per paired ports, not one for every two: on a fabric in which the NICs of one number reach one another and no
//! others, most pairs would never connect. What is preferred are ports that are nearest to their devices and of one rail; when such
//! a pair does not connect after all, others are tried in turn.
#![forbid(unsafe_code)]

use crate::gdr::descriptor::Port;
use crate::gdr::gid::{self, Family};
use crate::pci::{Alignment, align};

/// A port here and one there, by their places in the descriptors.
pub(crate) type Pairing = (usize, usize);

/// What may be tried, the most promising first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidates {
    /// The pairs that a large transfer is striped over, no port in two of them; at least one if there is any pair at all.
    pub(crate) rails: Vec<Pairing>,
    /// All pairs between which packets may go, in the order in which they are tried.
    pub(crate) all: Vec<Pairing>,
}

impl Candidates {
    /// For the side that connects, which chooses for both.
    pub(crate) fn new(local: &[Port], remote: &[Port]) -> Self {
        let mut all: Vec<Pairing> = pairs(local.len(), remote.len())
            .filter(|(here, there)| local[*here].route_to(&remote[*there]).is_ok())
            .collect();
        all.sort_by_key(|pairing| rank(local, remote, *pairing));
        let near = |(here, there): &Pairing| local[*here].near && remote[*there].near;
        let nearest: Vec<Pairing> = all.iter().copied().filter(near).collect();
        let mut rails = by_rail(local, remote, &nearest);
        if rails.is_empty() {
            rails = disjoint(&nearest);
        }
        if rails.is_empty() {
            rails.extend(all.first());
        }
        Self { rails, all }
    }

    /// Whether a pair was not `tried` and has no port in common with those `in_use`.
    pub(crate) fn is_free(&self, pairing: Pairing, tried: &[Pairing], in_use: &[Pairing]) -> bool {
        let (here, there) = pairing;
        !tried.contains(&pairing) && in_use.iter().all(|(a, b)| *a != here && *b != there)
    }
}

fn pairs(here: usize, there: usize) -> impl Iterator<Item = Pairing> {
    (0..here).flat_map(move |a| (0..there).map(move |b| (a, b)))
}

/// Smaller is better: near ports first, of one rail, in one subnet, in the order of the descriptors.
fn rank(local: &[Port], remote: &[Port], (here, there): Pairing) -> impl Ord + use<> {
    let (a, b) = (&local[here], &remote[there]);
    let far = u8::from(!a.near) + u8::from(!b.near);
    let apart = gid::between(&a.addresses, &b.addresses)
        .map(|(x, y)| (Family::of(&x.gid), 128 - gid::shared_bits(&x.gid, &y.gid)));
    (far, a.rail != b.rail, apart, here, there)
}

/// The nearest ports by their rails, if they have any in common.
fn by_rail(local: &[Port], remote: &[Port], nearest: &[Pairing]) -> Vec<Pairing> {
    let near =
        |ports: &[Port]| -> Vec<usize> { (0..ports.len()).filter(|index| ports[*index].near).collect() };
    let (here, there) = (near(local), near(remote));
    let rail =
        |ports: &[Port], of: &[usize]| -> Vec<u32> { of.iter().map(|index| ports[*index].rail).collect() };
    let (pairs, how) = align(&rail(local, &here), &rail(remote, &there));
    let found = pairs.into_iter().map(|(a, b)| (here[a], there[b]));
    match how {
        Alignment::Rail => found.filter(|pair| nearest.contains(pair)).collect(),
        Alignment::Order => Vec::new(),
    }
}

/// The best of them, then the best that has no port in common with it, and so on.
fn disjoint(sorted: &[Pairing]) -> Vec<Pairing> {
    let mut chosen: Vec<Pairing> = Vec::new();
    for (here, there) in sorted {
        if chosen.iter().all(|(a, b)| a != here && b != there) {
            chosen.push((*here, *there));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gdr::descriptor::tests::{infiniband, roce};
    use proptest::prelude::*;

    fn instead(candidates: &Candidates, tried: &[Pairing], in_use: &[Pairing]) -> Option<Pairing> {
        candidates.all.iter().copied().find(|pairing| candidates.is_free(*pairing, tried, in_use))
    }

    #[test]
    fn near_ports_of_one_rail_meet_whatever_their_order() {
        let ip = |last| [10, 0, 0, last];
        let local = [roce("mlx5_0", 0, true, ip(1)), roce("mlx5_1", 1, true, ip(2))];
        let remote = [roce("mlx5_1", 1, true, ip(3)), roce("mlx5_0", 0, true, ip(4))];
        assert_eq!(Candidates::new(&local, &remote).rails, [(0, 1), (1, 0)]);
    }

    #[test]
    fn without_a_common_rail_ports_of_one_subnet_meet() {
        let local = [roce("a", 0, true, [10, 0, 1, 1]), roce("b", 1, true, [10, 0, 2, 1])];
        let remote = [roce("c", 7, true, [10, 0, 2, 9]), roce("d", 8, true, [10, 0, 1, 9])];
        assert_eq!(Candidates::new(&local, &remote).rails, [(0, 1), (1, 0)]);
    }

    #[test]
    fn what_does_not_connect_is_replaced_by_the_next_best() {
        // GPUs of different rails, on a fabric of rails: only far ports meet.
        let ports = |near: u32| -> Vec<Port> {
            (0..2)
                .map(|rail| roce(&format!("mlx5_{rail}"), rail, rail == near, [10, 0, rail as u8, 1]))
                .collect()
        };
        let candidates = Candidates::new(&ports(0), &ports(1));
        assert_eq!(candidates.rails, [(0, 1)]);
        let mut tried = vec![(0, 1)];
        tried.push(instead(&candidates, &tried, &[]).unwrap());
        assert_eq!(tried[1], (0, 0), "the near port here, with its like there");
        tried.push(instead(&candidates, &tried, &[]).unwrap());
        assert_eq!(tried[2], (1, 1));
        tried.push(instead(&candidates, &tried, &[]).unwrap());
        assert_eq!(instead(&candidates, &tried, &[]), None);
    }

    #[test]
    fn a_replacement_takes_no_port_of_another_rail() {
        let local: Vec<_> = (0..3).map(|n| roce("x", n, n < 2, [10, 0, 0, n as u8])).collect();
        let candidates = Candidates::new(&local, &local);
        assert_eq!(candidates.rails, [(0, 0), (1, 1)]);
        assert_eq!(instead(&candidates, &[(0, 0), (1, 1)], &[(0, 0)]), Some((1, 2)));
    }

    #[test]
    fn ports_that_speak_differently_are_no_pair() {
        let candidates = Candidates::new(&[roce("a", 0, true, [10, 0, 0, 1])], &[infiniband("b", 1, 1)]);
        assert_eq!(candidates, Candidates { rails: vec![], all: vec![] });
    }

    prop_compose! {
        fn some_ports()(ports in prop::collection::vec((0..4_u32, any::<bool>(), 0..3_u8, 0..9_u8), 1..6)) -> Vec<Port> {
            ports.into_iter().map(|(rail, near, net, host)| roce("n", rail, near, [10, 0, net, host])).collect()
        }
    }

    proptest! {
        #[test]
        fn no_port_is_in_two_rails_and_all_rails_are_near_if_any_are(local in some_ports(), remote in some_ports()) {
            let candidates = Candidates::new(&local, &remote);
            let mut here: Vec<_> = candidates.rails.iter().map(|pair| pair.0).collect();
            let mut there: Vec<_> = candidates.rails.iter().map(|pair| pair.1).collect();
            here.sort();
            here.dedup();
            there.sort();
            there.dedup();
            let count = candidates.rails.len();
            prop_assert!(count > 0 && here.len() == count && there.len() == count);
            let near = |(a, b): &Pairing| local[*a].near && remote[*b].near;
            prop_assert!(candidates.rails.iter().all(near) || !candidates.all.iter().any(near));
            prop_assert_eq!(candidates.all.len(), local.len() * remote.len());
        }

        #[test]
        fn every_pair_is_tried_once(local in some_ports(), remote in some_ports()) {
            let candidates = Candidates::new(&local, &remote);
            let mut tried = vec![candidates.rails[0]];
            while let Some(next) = instead(&candidates, &tried, &[]) {
                prop_assert!(!tried.contains(&next));
                tried.push(next);
            }
            prop_assert_eq!(tried.len(), local.len() * remote.len());
        }
    }
}
