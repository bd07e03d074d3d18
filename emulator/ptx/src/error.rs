//! Why a PTX text is refused.

/// A PTX text that cannot be loaded, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}\n    {text}")]
pub struct PtxError {
    /// Line of the text, from 1.
    pub line: u32,
    /// The text of that line, trimmed.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// An error that knows its line but not yet the line's text.
#[derive(Debug)]
pub(crate) struct At {
    pub(crate) line: u32,
    pub(crate) reason: String,
}

impl At {
    pub(crate) fn new(line: u32, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into() }
    }

    /// Looks the line up in `source`.
    pub(crate) fn in_text(self, source: &str) -> PtxError {
        let text = source.lines().nth((self.line as usize).saturating_sub(1)).unwrap_or("").trim();
        PtxError { line: self.line, text: text.to_owned(), reason: self.reason }
    }
}
