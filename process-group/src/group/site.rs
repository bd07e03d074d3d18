//! Where a call was made, for those who wait for it.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::shared::Shared;
use crate::types::Operation;

/// The group and the call.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) group: Arc<Shared>,
    pub(crate) operation: Operation,
}
