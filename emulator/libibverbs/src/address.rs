//! Addresses of ports.

use std::net::Ipv6Addr;

/// How a frame names a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortAddress {
    /// The GID; or the LID in its last two bytes.
    pub(crate) gid: [u8; 16],
    /// A GID's type, or [`PortAddress::LID`].
    pub(crate) kind: u8,
}

impl PortAddress {
    pub(crate) const LID: u8 = 255;

    pub(crate) fn of_lid(lid: u16) -> Self {
        Self { gid: u128::from(lid).to_be_bytes(), kind: Self::LID }
    }

    /// As users write it.
    pub(crate) fn text(&self) -> String {
        Ipv6Addr::from(self.gid).to_string()
    }
}
