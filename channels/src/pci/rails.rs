//! Which NIC here meets which NIC there.
//!
//! On a *rail-only* fabric the NICs of one number reach each other, from machine to machine, and no others: a queue pair between
//! `mlx5_0` here and `mlx5_1` there never connects. So queue pairs are made between paired NICs alone, never between all; and what is
//! paired are NICs of one rail, even where the two sides list theirs in different order because their GPUs are not the same.

/// Why NICs were paired as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alignment {
    /// They have the same rail.
    Rail,
    /// The two sides have no rail in common: the first here meets the first there, and so on. On a rail-only fabric this does
    /// not connect.
    Order,
}

/// Pairs NICs, given by their rails, of two sides: indices here and there. Both sides come to the same pairs.
///
/// ```
/// use meshreduce_channels::pci::{Alignment, align};
///
/// // A GPU with rails 0 and 1 sends to one that prefers rail 1: rails meet, not positions.
/// assert_eq!(align(&[0, 1], &[1, 0]), (vec![(0, 1), (1, 0)], Alignment::Rail));
/// assert_eq!(align(&[0, 1], &[1]), (vec![(1, 0)], Alignment::Rail));
/// assert_eq!(align(&[0], &[3]), (vec![(0, 0)], Alignment::Order));
/// ```
pub fn align(here: &[u32], there: &[u32]) -> (Vec<(usize, usize)>, Alignment) {
    let mut taken = vec![false; there.len()];
    let mut pairs = Vec::new();
    for (index, rail) in here.iter().enumerate() {
        if let Some(meets) = (0..there.len()).find(|other| !taken[*other] && there[*other] == *rail) {
            taken[meets] = true;
            pairs.push((index, meets));
        }
    }
    if !pairs.is_empty() {
        return (pairs, Alignment::Rail);
    }
    ((0..here.len().min(there.len())).map(|index| (index, index)).collect(), Alignment::Order)
}
