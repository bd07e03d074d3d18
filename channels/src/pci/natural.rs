//! Names in the order in which people count: `mlx5_2` before `mlx5_10`.

use std::cmp::Ordering;

/// Compares two names; runs of digits as numbers.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (digits_a, digits_b) = (digits(a), digits(b));
        if digits_a > 0 && digits_b > 0 {
            let (one, other) = (a[..digits_a].trim_start_matches('0'), b[..digits_b].trim_start_matches('0'));
            let order =
                one.len().cmp(&other.len()).then_with(|| one.cmp(other)).then(digits_a.cmp(&digits_b));
            if order.is_ne() {
                return order;
            }
            (a, b) = (&a[digits_a..], &b[digits_b..]);
            continue;
        }
        let (mut left, mut right) = (a.chars(), b.chars());
        match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (one, other) if one != other => return one.cmp(&other),
            _ => (a, b) = (left.as_str(), right.as_str()),
        }
    }
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_within_names_count_as_numbers() {
        let mut names =
            ["mlx5_10", "mlx5_2", "mlx5_bond_0", "mlx4_0", "mlx5_02", "rocep8s0f1", "rocep8s0f0", "é1", ""];
        names.sort_by(|a, b| compare(a, b));
        assert_eq!(
            names,
            ["", "mlx4_0", "mlx5_2", "mlx5_02", "mlx5_10", "mlx5_bond_0", "rocep8s0f0", "rocep8s0f1", "é1"]
        );
    }
}
