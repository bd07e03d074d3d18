//! The hybrid cube mesh of the eight-V100 machines, found in any numbering of the devices.
//!
//! Each device has exactly four neighbours: the three others of its *quad*, and one *relay* in the other quad, whose
//! other neighbours are exactly the three devices that the first one cannot reach.
#![forbid(unsafe_code)]

use super::Mesh;

/// Ranks of a hybrid cube mesh.
const RANKS: usize = 8;

/// A hybrid cube mesh, every property of it checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HybridCubeMesh {
    /// By rank: three quad peers, then the relay; entry k is symmetric: `n[x][k] == y` exactly if `n[y][k] == x`.
    neighbours: [[usize; 4]; RANKS],
    positions: [usize; RANKS],
}

impl HybridCubeMesh {
    /// The structure of `mesh`, if it is a hybrid cube mesh.
    pub fn derive(mesh: &Mesh) -> Option<Self> {
        if mesh.size() != RANKS {
            return None;
        }
        // Bit y of reach[x]: there is a link between x and y. One way only is no link.
        let reach: [u8; RANKS] = std::array::from_fn(|x| {
            let linked = |y: &usize| x != *y && mesh.links(x, *y) > 0 && mesh.links(*y, x) > 0;
            (0..RANKS).filter(linked).fold(0, |bits, y| bits | 1 << y)
        });
        let one_way = |x: usize| (0..RANKS).any(|y| mesh.links(x, y) > 0 && reach[x] & 1 << y == 0);
        if (0..RANKS).any(|x| reach[x].count_ones() != 4 || one_way(x)) {
            return None;
        }
        let mut relays = [0; RANKS];
        for (x, relay) in relays.iter_mut().enumerate() {
            let unreached = !(reach[x] | 1 << x);
            let mut found =
                (0..RANKS).filter(|y| reach[x] & 1 << y != 0 && reach[*y] & !(1 << x) == unreached);
            *relay = found.next()?;
            if found.next().is_some() {
                return None;
            }
        }
        let quad = |x: usize| (reach[x] | 1 << x) & !(1 << relays[x]);
        let consistent = |x: usize| {
            let members = (0..RANKS).filter(|y| quad(x) & 1 << y != 0);
            relays[relays[x]] == x
                && quad(relays[x]) == !quad(x)
                && members.into_iter().all(|y| quad(y) == quad(x))
        };
        if !(0..RANKS).all(consistent) {
            return None;
        }

        let mut positions = [0; RANKS];
        let (first, second): (Vec<usize>, Vec<usize>) = (0..RANKS).partition(|x| quad(0) & 1 << x != 0);
        positions[..4].copy_from_slice(&first);
        positions[4..].copy_from_slice(&second);
        let mut neighbours = [[0; 4]; RANKS];
        for four in positions.chunks_exact(4) {
            for (index, &x) in four.iter().enumerate() {
                // Members i and i ^ (k + 1) of a quad: for k = 0, 1, 2 three disjoint perfect matchings.
                neighbours[x] = [four[index ^ 1], four[index ^ 2], four[index ^ 3], relays[x]];
            }
        }
        Some(Self { neighbours, positions })
    }

    /// The rank at each position: rank 0's quad in ascending order, then the other quad.
    pub fn positions(&self) -> &[usize; RANKS] {
        &self.positions
    }

    /// The two quads, that of rank 0 first, each in ascending order.
    pub fn quads(&self) -> [[usize; 4]; 2] {
        let [a, b, c, d, e, f, g, h] = self.positions;
        [[a, b, c, d], [e, f, g, h]]
    }

    /// The three quad peers of `rank`, then its relay.
    ///
    /// Entry k is symmetric: if it is `y` for `x`, it is `x` for `y`.
    ///
    /// # Panics
    ///
    /// If the rank is not below 8; so below.
    pub fn neighbours(&self, rank: usize) -> &[usize; 4] {
        &self.neighbours[rank]
    }

    /// The relay neighbour of `rank`.
    pub fn relay(&self, rank: usize) -> usize {
        self.neighbours[rank][3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;
    use crate::topology::tests::DGX_1V;
    use proptest::prelude::*;

    fn permuted(order: &[usize]) -> Mesh {
        Mesh::new(RANKS, |a, b| DGX_1V[order[a]][order[b]])
    }

    #[test]
    fn the_published_numbering_is_found() {
        let cube = HybridCubeMesh::derive(&permuted(&[0, 1, 2, 3, 4, 5, 6, 7])).unwrap();
        assert_eq!(cube.positions(), &[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!((0..8).map(|rank| cube.relay(rank)).collect::<Vec<_>>(), [4, 5, 6, 7, 0, 1, 2, 3]);
    }

    /// Calls `visit` with every order of `items` (Heap's algorithm).
    fn every_order(items: &mut [usize], size: usize, visit: &mut impl FnMut(&[usize])) {
        if size <= 1 {
            return visit(items);
        }
        for index in 0..size {
            every_order(items, size - 1, visit);
            items.swap(if size.is_multiple_of(2) { index } else { 0 }, size - 1);
        }
    }

    #[test]
    fn every_numbering_of_the_devices_gives_a_valid_mesh() {
        let mut orders = std::collections::HashSet::new();
        every_order(&mut std::array::from_fn::<_, RANKS, _>(|rank| rank), RANKS, &mut |order| {
            let fresh = orders.insert(order.iter().fold(0_u32, |code, device| code << 3 | *device as u32));
            assert!(fresh, "{order:?} comes twice");
            let mesh = permuted(order);
            assert_eq!(mesh.classify(), Topology::HybridCubeMesh, "{order:?}");
            check(&mesh, &HybridCubeMesh::derive(&mesh).unwrap(), order);
        });
        assert_eq!(orders.len(), 40_320);
    }

    fn check(mesh: &Mesh, cube: &HybridCubeMesh, order: &[usize]) {
        // In the published numbering devices 0 to 3 are a quad, and d and d ^ 4 each other's relays.
        let quad = |rank: usize| order[rank] / 4;
        for rank in 0..RANKS {
            assert_eq!(order[cube.relay(rank)], order[rank] ^ 4, "the relay of rank {rank}, {order:?}");
            let mut seen = 1_u8 << rank;
            for (k, &peer) in cube.neighbours(rank).iter().enumerate() {
                assert!(mesh.links(rank, peer) > 0, "{rank} and {peer}, {order:?}");
                assert_eq!(cube.neighbours(peer)[k], rank, "entry {k} of {rank} and {peer}, {order:?}");
                assert_eq!(quad(peer) == quad(rank), k < 3, "{rank} and {peer}, {order:?}");
                // Entry k pairs the ranks off; that no peer comes twice makes the four pairings disjoint.
                assert_eq!(seen & 1 << peer, 0, "{rank} meets {peer} twice, {order:?}");
                seen |= 1 << peer;
            }
        }
        let (first, second) = cube.positions().split_at(4);
        assert_eq!(first[0], 0, "rank 0 leads its quad");
        assert!(first.is_sorted() && second.is_sorted(), "{order:?}");
        assert!(first.iter().all(|rank| quad(*rank) == quad(0)), "{order:?}");
        assert!(second.iter().all(|rank| quad(*rank) != quad(0)), "{order:?}");
        assert_eq!(mesh.positions(), cube.positions(), "what every rank reduces by, {order:?}");
        assert_eq!(cube.quads().as_flattened(), cube.positions());
    }

    proptest! {
        #[test]
        fn a_mesh_with_one_link_more_or_less_is_none(a in 0..RANKS, b in 0..RANKS, one_way: bool) {
            prop_assume!(a != b);
            let mesh = Mesh::new(RANKS, |x, y| {
                let flip = (x, y) == (a, b) || (!one_way && (x, y) == (b, a));
                if flip { u32::from(DGX_1V[x][y] == 0) } else { DGX_1V[x][y] }
            });
            prop_assert_eq!(HybridCubeMesh::derive(&mesh), None);
        }
    }

    #[test]
    fn four_neighbours_each_are_not_enough() {
        let ring = Mesh::new(RANKS, |a, b| u32::from(matches!((a + 8 - b) % 8, 1 | 2 | 6 | 7)));
        assert_eq!(HybridCubeMesh::derive(&ring), None);
        let bipartite = Mesh::new(RANKS, |a, b| u32::from((a + b) % 2 == 1));
        assert_eq!(HybridCubeMesh::derive(&bipartite), None);
    }
}
