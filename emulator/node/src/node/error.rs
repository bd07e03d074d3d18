//! Why there is no node.

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Neither a shipped node nor a file.
    #[error("there is no node `{name}`, and no such file; shipped are {}", shipped.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names that would have worked.
        shipped: Vec<&'static str>,
    },
    /// The file cannot be read.
    #[error("{file}: cannot read the node description: {source}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML, has an unknown key, lacks one, or has one of the wrong type. The message names it.
    #[error("{file}: {source}")]
    Syntax {
        /// The file, or the name of a shipped node.
        file: String,
        /// Line, key and reason.
        source: Box<toml::de::Error>,
    },
    /// The description reads well but is not a node.
    #[error("{file}: `{key}` {reason}")]
    Invalid {
        /// The file, or the name of a shipped node.
        file: String,
        /// The key in the description.
        key: String,
        /// What is wrong with its value.
        reason: String,
    },
}
