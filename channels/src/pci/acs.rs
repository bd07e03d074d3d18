//! Access control services of a PCI bridge.

use serde::{Deserialize, Serialize};

/// What a bridge does with data between two devices below it.
///
/// With access control on, a switch sends requests from one of its ports to another up to the root complex first, where an IOMMU
/// looks at them. Between GPU and NIC that costs half of the bandwidth or more, and on some machines the data never arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acs {
    /// The configuration space could not be read so far; only root may.
    NotReadable,
    /// The bridge has none.
    Absent,
    /// The control register of the bridge's capability.
    Control(u16),
}

/// Begin of the extended capabilities in the configuration space.
const EXTENDED: usize = 0x100;
/// The capability's number.
const ID: u16 = 0x000d;
/// Request redirect, completion redirect, upstream forwarding (PCI Express Base Specification 6.0, 7.7.11.3).
const REDIRECTS: u16 = 1 << 2 | 1 << 3 | 1 << 4;

impl Acs {
    /// Reads a configuration space, as much of it as there is.
    pub fn in_configuration(space: &[u8]) -> Self {
        let word = |at: usize| Some(u16::from_le_bytes(space.get(at..at + 2)?.try_into().ok()?));
        // A conventional device's space ends here, and so does what the kernel shows to others than root.
        if space.len() <= EXTENDED {
            return Self::NotReadable;
        }
        let mut at = EXTENDED;
        // The list has at most as many entries as fit; a broken one must not hold us for ever.
        for _ in 0..(4096 - EXTENDED) / 4 {
            let (Some(id), Some(next)) = (word(at), word(at + 2)) else { return Self::NotReadable };
            if id == ID {
                return word(at + 6).map_or(Self::NotReadable, Self::Control);
            }
            let next = usize::from(next >> 4);
            if next < EXTENDED {
                return Self::Absent;
            }
            at = next;
        }
        Self::Absent
    }

    /// Whether data between two devices below the bridge take the way over the root complex.
    pub fn redirects(self) -> bool {
        matches!(self, Self::Control(control) if control & REDIRECTS != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration space with these extended capabilities: where, number, next.
    fn space(capabilities: &[(usize, u16, u16)]) -> Vec<u8> {
        let mut space = vec![0; 4096];
        for &(at, id, next) in capabilities {
            space[at..at + 2].copy_from_slice(&id.to_le_bytes());
            space[at + 2..at + 4].copy_from_slice(&(next << 4 | 1).to_le_bytes());
        }
        space
    }

    #[test]
    fn the_capability_is_found_behind_others() {
        let mut space = space(&[(0x100, 0x0001, 0x148), (0x148, 0x0003, 0x200), (0x200, ID, 0)]);
        space[0x206..0x208].copy_from_slice(&0x1d_u16.to_le_bytes());
        assert_eq!(Acs::in_configuration(&space), Acs::Control(0x1d));
        assert!(Acs::Control(0x1d).redirects());
        assert!(!Acs::Control(0x01).redirects(), "looking at sources alone redirects nothing");
        assert!(!Acs::Control(0).redirects());
    }

    #[test]
    fn without_the_capability_there_is_none() {
        assert_eq!(Acs::in_configuration(&space(&[(0x100, 0x0001, 0x148), (0x148, 0x0003, 0)])), Acs::Absent);
        assert_eq!(Acs::in_configuration(&space(&[])), Acs::Absent);
    }

    #[test]
    fn what_the_kernel_shows_to_others_than_root_says_nothing() {
        let whole = space(&[(0x100, 0x0001, 0x148), (0x148, ID, 0)]);
        for shown in [0, 64, 256, 0x102, 0x14a, 0x14e] {
            assert_eq!(Acs::in_configuration(&whole[..shown]), Acs::NotReadable, "{shown} bytes");
        }
        assert_eq!(Acs::in_configuration(&whole[..0x150]), Acs::Control(0));
    }

    #[test]
    fn a_list_that_bites_its_tail_ends() {
        assert_eq!(Acs::in_configuration(&space(&[(0x100, 1, 0x148), (0x148, 3, 0x100)])), Acs::Absent);
    }
}
