//! Sizes of messages: bytes, or with the suffix KiB or MiB.

use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};

/// A size: bytes, or with the suffix KiB or MiB.
///
/// # Errors
/// If it is none.
pub fn bytes(text: &str) -> Result<usize> {
    let (digits, unit) = match text.strip_suffix("MiB") {
        Some(digits) => (digits, 1 << 20),
        None => text.strip_suffix("KiB").map_or((text, 1), |digits| (digits, 1 << 10)),
    };
    let number: usize =
        digits.parse().map_err(|_| anyhow::anyhow!("'{text}' is not a size such as 4096, 4KiB or 1MiB"))?;
    number.checked_mul(unit).ok_or_else(|| anyhow::anyhow!("'{text}' is too large"))
}

/// The longest message that a limit can be set to.
const LONGEST: usize = 1 << 30;

/// Message sizes in bytes, in the order in which they are measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes(pub Vec<usize>);

impl FromStr for Sizes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((min, max)) = text.split_once("..") {
            let (min, max) = (size(min)?, size(max)?);
            ensure!(min <= max, "'{text}': the first size is larger than the last");
            let mut sizes: Vec<usize> = std::iter::successors(Some(min), |size| size.checked_mul(2))
                .take_while(|size| *size < max)
                .collect();
            sizes.push(max);
            return Ok(Self(sizes));
        }
        text.split(',').map(size).collect::<Result<_>>().map(Self)
    }
}

/// A size of a message that can be launched.
fn size(text: &str) -> Result<usize> {
    let size = Some(bytes(text)?).filter(|bytes| *bytes <= LONGEST);
    let size = size.with_context(|| format!("'{text}' is more than {} MiB", LONGEST >> 20))?;
    ensure!(size > 0, "a message of no bytes is not launched");
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_size_is_refused() {
        assert_eq!(bytes("12").unwrap(), 12);
        assert_eq!(bytes("3KiB").unwrap(), 3072);
        for text in ["", "KiB", "-1", "1.5MiB", "4 KiB", "99999999999999999MiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_doubles_and_ends_with_its_end() {
        let sizes = |text: &str| text.parse::<Sizes>().unwrap().0;
        assert_eq!(sizes("1KiB..8KiB"), [1024, 2048, 4096, 8192]);
        assert_eq!(sizes("4MiB..10MiB"), [4 << 20, 8 << 20, 10 << 20]);
        assert_eq!(sizes("64..64"), [64]);
        assert_eq!(sizes("64,1KiB,16"), [64, 1024, 16]);
    }

    #[test]
    fn what_is_no_range_of_sizes_is_refused() {
        for text in
            ["", "8..4", "..4", "4..", "0..8", "0", "1.5MiB", "-4", "2000MiB", "4,,8", "99999999999999999999"]
        {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
    }
}
