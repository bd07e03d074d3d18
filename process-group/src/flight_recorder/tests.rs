use proptest::prelude::*;

use super::Sizes;

proptest! {
    #[test]
    fn sizes_keep_the_first_and_count_all(counts in proptest::collection::vec(any::<usize>(), 0..24)) {
        let sizes = Sizes::new(counts.iter().copied());
        prop_assert_eq!(sizes.tensors(), counts.len());
        let kept: Vec<u64> = counts.iter().take(Sizes::MOST).map(|count| *count as u64).collect();
        prop_assert_eq!(sizes.counts(), kept);
        let total: u128 = counts.iter().map(|count| *count as u128).sum();
        prop_assert_eq!(u128::from(sizes.total()), total.min(u64::MAX.into()));
    }
}
