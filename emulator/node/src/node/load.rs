//! The shipped nodes, and nodes from files.

use std::path::Path;

use super::describe;
use super::described::Node;
use super::error::NodeError;

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        const SHIPPED: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../nodes/", $name, ".toml")))),*];
    };
}

shipped!(
    "hgx-h100",
    "hgx-h200",
    "h100x4",
    "dgx-a100",
    "a100x4",
    "dgx-1v",
    "dgx-1v-p2p",
    "rtx3090x2",
    "pcie-x8",
);

impl Node {
    /// The names that [`Node::load`] knows without a file.
    pub fn shipped() -> Vec<&'static str> {
        SHIPPED.iter().map(|(name, _)| *name).collect()
    }

    /// Loads a shipped node by its name, or any node from a file.
    ///
    /// # Errors
    ///
    /// [`NodeError`], naming the file, the key and the reason.
    pub fn load(name_or_path: &str) -> Result<Self, NodeError> {
        if let Some((name, text)) = SHIPPED.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(text, name);
        }
        let looks_like_a_path = name_or_path.contains('/') || name_or_path.ends_with(".toml");
        if !looks_like_a_path && !Path::new(name_or_path).is_file() {
            return Err(NodeError::Unknown { name: name_or_path.to_owned(), shipped: Self::shipped() });
        }
        let text = std::fs::read_to_string(name_or_path)
            .map_err(|source| NodeError::Read { file: name_or_path.to_owned(), source })?;
        Self::parse(&text, name_or_path)
    }

    /// Reads a description. `file` is what errors call it.
    ///
    /// # Errors
    ///
    /// [`NodeError::Syntax`] or [`NodeError::Invalid`].
    pub fn parse(text: &str, file: &str) -> Result<Self, NodeError> {
        describe::parse(text, file)
    }
}
