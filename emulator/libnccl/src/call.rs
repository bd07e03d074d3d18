//! What a call asks for, so far as all ranks must agree on it.
#![forbid(unsafe_code)]

use std::fmt;

use crate::element::Type;

/// A kind of call. `Exchange` is the sends and receives of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    AllReduce = 1,
    Reduce,
    Broadcast,
    AllGather,
    ReduceScatter,
    AlltoAll,
    Gather,
    Scatter,
    Exchange,
}

const NAMES: [&str; 9] = [
    "AllReduce",
    "Reduce",
    "Broadcast",
    "AllGather",
    "ReduceScatter",
    "AlltoAll",
    "Gather",
    "Scatter",
    "Send and Recv",
];
const REDUCTIONS: [&str; 6] = ["", " (sum)", " (prod)", " (max)", " (min)", " (avg)"];

impl Kind {
    /// As NCCL calls it in its messages.
    pub(crate) fn name(self) -> &'static str {
        NAMES[self as usize - 1]
    }
}

/// A call as frames name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    kind: u8,
    element: u8,
    /// 0 without a reduction, 1 more than `ncclRedOp_t` with one; 6 for every operation that a program has made.
    reduction: u8,
    /// `u32::MAX` without a root.
    root: u32,
    count: u64,
}

impl Call {
    pub(crate) const BYTES: usize = 15;
    /// Of frames that belong to no call.
    pub(crate) const NONE: Self = Self { kind: 0, element: 0, reduction: 0, root: u32::MAX, count: 0 };

    pub(crate) fn new(
        kind: Kind,
        element: Type,
        count: usize,
        reduction: Option<i32>,
        root: Option<usize>,
    ) -> Self {
        Self {
            kind: kind as u8,
            element: element.number(),
            reduction: reduction.map_or(0, |number| number.clamp(0, 5) as u8 + 1),
            root: root.map_or(u32::MAX, |root| root as u32),
            count: count as u64,
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..3].copy_from_slice(&[self.kind, self.element, self.reduction]);
        bytes[3..7].copy_from_slice(&self.root.to_le_bytes());
        bytes[7..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    /// # Panics
    ///
    /// Unless `bytes` are as many as [`Call::BYTES`].
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let mut count = [0; 8];
        count.copy_from_slice(&bytes[7..Self::BYTES]);
        Self {
            kind: bytes[0],
            element: bytes[1],
            reduction: bytes[2],
            root: u32::from_le_bytes([bytes[3], bytes[4], bytes[5], bytes[6]]),
            count: u64::from_le_bytes(count),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = usize::from(self.kind).checked_sub(1).and_then(|index| NAMES.get(index));
        let reduction = REDUCTIONS.get(usize::from(self.reduction)).unwrap_or(&" (pre-multiplied sum)");
        let name = name.unwrap_or(&"something unknown");
        write!(f, "{name} of {} {}{reduction}", self.count, Type::name_of(self.element))?;
        if self.root == u32::MAX { Ok(()) } else { write!(f, " with root {}", self.root) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_read_as_it_was_written() {
        let call = Call::new(Kind::Reduce, Type::Bf16, 1 << 40, Some(4), Some(3));
        assert_eq!(Call::from_bytes(&call.to_bytes()), call);
        assert_eq!(call.to_string(), "Reduce of 1099511627776 bfloat16 (avg) with root 3");
    }
}
