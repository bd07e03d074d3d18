//! What is wrong with a description.

/// A key of a description, and what is wrong with its value.
pub(in crate::node) struct Wrong {
    pub(in crate::node) key: String,
    pub(in crate::node) reason: String,
}

pub(in crate::node) fn wrong<T>(key: impl Into<String>, reason: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { key: key.into(), reason: reason.into() })
}
