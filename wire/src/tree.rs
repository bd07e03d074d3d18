//! The one reduction tree.
//!
//! `((p0+p1)+(p2+p3)) + ((p4+p5)+(p6+p7))` over *positions*. A position that does not exist is skipped, never
//! added as zero, so the shape depends on the world size alone: 3 ranks give `(p0+p1)+p2`, 6 ranks
//! `((p0+p1)+(p2+p3)) + (p4+p5)`. The left half of the tree for 8 is the tree for 4, which is what lets a relay
//! exchange half-trees and still arrive at the same bits.

/// Combines `values` in tree order. Position `i` of the tree is `values[i]`.
///
/// The addition is the caller's: the device passes `add.rn.f32`, so that no contraction can change bits.
///
/// ```
/// use meshreduce_wire::tree::reduce;
/// let text = reduce(["a", "b", "c"].map(String::from), |x, y| format!("({x}+{y})"));
/// assert_eq!(text, "((a+b)+c)");
/// ```
#[inline(always)]
pub fn reduce<T, const W: usize>(values: [T; W], combine: impl Fn(T, T) -> T) -> T {
    const { assert!(W >= 1 && W <= crate::MAX_RANKS) };
    let mut level = values.into_iter();
    let pair = |a: Option<T>, b: Option<T>| match (a, b) {
        (Some(a), Some(b)) => Some(combine(a, b)),
        (a, b) => a.or(b),
    };
    let p01 = pair(level.next(), level.next());
    let p23 = pair(level.next(), level.next());
    let p45 = pair(level.next(), level.next());
    let p67 = pair(level.next(), level.next());
    let low = pair(p01, p23);
    let high = pair(p45, p67);
    match pair(low, high) {
        Some(value) => value,
        None => unreachable!(),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::reduce;
    use std::{format, string::String};

    fn shape<const W: usize>() -> String {
        let leaves = core::array::from_fn::<_, W, _>(|position| format!("{position}"));
        reduce(leaves, |a, b| format!("({a}{b})"))
    }

    #[test]
    fn missing_positions_are_skipped() {
        assert_eq!(shape::<2>(), "(01)");
        assert_eq!(shape::<3>(), "((01)2)");
        assert_eq!(shape::<4>(), "((01)(23))");
        assert_eq!(shape::<5>(), "(((01)(23))4)");
        assert_eq!(shape::<6>(), "(((01)(23))(45))");
        assert_eq!(shape::<7>(), "(((01)(23))((45)6))");
        assert_eq!(shape::<8>(), "(((01)(23))((45)(67)))");
    }
}
