//! Words of the format.

use super::error::LitmusErrorKind as Kind;

/// A number: decimal, or hexadecimal with `0x`.
pub(super) fn number(text: &str) -> Result<u64, Kind> {
    let value = match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
        None if !text.starts_with('+') => text.parse().ok(),
        _ => None,
    };
    value.ok_or_else(|| Kind::Number(text.to_owned()))
}

/// Whether `text` is a name as PTX and this format have them.
pub(super) fn is_name(text: &str) -> bool {
    text.chars().next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// What follows `word` in `line`, if the line begins with it.
pub(super) fn keyword<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    let rest = line.strip_prefix(word)?;
    rest.starts_with([' ', '\t']).then(|| rest.trim())
}
