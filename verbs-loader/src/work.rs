//! Work requests.

use std::ptr;

use crate::sys::*;

/// Registered memory of this side: [`MemoryRegion::segment`](crate::MemoryRegion::segment) makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Where it begins, as the region has it.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// The region's key for this side.
    pub lkey: u32,
}

// Lists of segments go to the library as they are.
const _: () = assert!(
    size_of::<Segment>() == size_of::<ibv_sge>()
        && std::mem::offset_of!(Segment, address) == std::mem::offset_of!(ibv_sge, addr)
        && std::mem::offset_of!(Segment, length) == std::mem::offset_of!(ibv_sge, length)
        && std::mem::offset_of!(Segment, lkey) == std::mem::offset_of!(ibv_sge, lkey)
);

/// A peer's registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteMemory {
    /// Where it begins, as the peer's region has it.
    pub address: u64,
    /// The region's key for peers.
    pub rkey: u32,
}

/// What a request of a send queue does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Sends to the peer's next receive.
    Send,
    /// The same, with a number that its completion has.
    SendWithImm(u32),
    /// Writes into the peer's memory, which the peer does not notice.
    Write(RemoteMemory),
    /// The same, and completes the peer's next receive, with a number.
    WriteWithImm(RemoteMemory, u32),
    /// Reads the peer's memory.
    Read(RemoteMemory),
}

/// A request of a send queue.
#[derive(Clone, Copy, Debug)]
pub struct SendRequest<'a> {
    /// Comes back with the completion.
    pub wr_id: u64,
    /// What it does.
    pub operation: Operation,
    /// What is sent, written, or read into, in this order. Empty is legal.
    pub segments: &'a [Segment],
    /// Whether it makes a completion when it succeeds. (It always does when it fails.) A queue in which nothing is
    /// signalled fills up: places are free again when a later signalled request's completion has been polled.
    pub signalled: bool,
    /// The bytes are copied while the request is posted, and keys are not looked at. For at most
    /// [`Capacity::max_inline`](crate::Capacity::max_inline) bytes; not for reads.
    pub inline: bool,
    /// Waits until all reads before it are done.
    pub fence: bool,
}

impl<'a> SendRequest<'a> {
    /// A request that is signalled, not inline, and without a fence.
    pub fn new(wr_id: u64, operation: Operation, segments: &'a [Segment]) -> Self {
        Self { wr_id, operation, segments, signalled: true, inline: false, fence: false }
    }

    pub(crate) fn raw(&self) -> ibv_send_wr {
        let mut raw = ibv_send_wr::zeroed();
        raw.wr_id = self.wr_id;
        (raw.sg_list, raw.num_sge) = list(self.segments);
        for (asked, flag) in [
            (self.signalled, IBV_SEND_SIGNALED),
            (self.inline, IBV_SEND_INLINE),
            (self.fence, IBV_SEND_FENCE),
        ] {
            raw.send_flags |= if asked { flag } else { 0 };
        }
        let (opcode, remote, imm) = match self.operation {
            Operation::Send => (IBV_WR_SEND, None, None),
            Operation::SendWithImm(imm) => (IBV_WR_SEND_WITH_IMM, None, Some(imm)),
            Operation::Write(remote) => (IBV_WR_RDMA_WRITE, Some(remote), None),
            Operation::WriteWithImm(remote, imm) => (IBV_WR_RDMA_WRITE_WITH_IMM, Some(remote), Some(imm)),
            Operation::Read(remote) => (IBV_WR_RDMA_READ, Some(remote), None),
        };
        raw.opcode = opcode;
        raw.imm_data = imm.unwrap_or(0).to_be();
        if let Some(RemoteMemory { address, rkey }) = remote {
            raw.wr = ibv_wr_operands { rdma: ibv_wr_rdma { remote_addr: address, rkey } };
        }
        raw
    }
}

/// A request of a receive queue.
#[derive(Clone, Copy, Debug)]
pub struct ReceiveRequest<'a> {
    /// Comes back with the completion.
    pub wr_id: u64,
    /// Where the bytes go, in this order. Empty is legal: for writes with immediate, whose bytes go elsewhere.
    pub segments: &'a [Segment],
}

impl ReceiveRequest<'_> {
    pub(crate) fn raw(&self) -> ibv_recv_wr {
        let (sg_list, num_sge) = list(self.segments);
        ibv_recv_wr { wr_id: self.wr_id, next: ptr::null_mut(), sg_list, num_sge }
    }
}

/// A list of segments as the library takes it; it does not write to it.
fn list(segments: &[Segment]) -> (*mut ibv_sge, i32) {
    let count = i32::try_from(segments.len()).unwrap_or(i32::MAX);
    (segments.as_ptr().cast_mut().cast(), count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_was_asked_for_and_nothing_else() {
        let segments = [Segment { address: 0x1000, length: 3, lkey: 9 }; 2];
        let remote = RemoteMemory { address: 0x2000, rkey: 8 };
        let mut request = SendRequest::new(5, Operation::WriteWithImm(remote, 0x0102_0304), &segments);
        let raw = request.raw();
        assert_eq!((raw.wr_id, raw.num_sge, raw.opcode), (5, 2, IBV_WR_RDMA_WRITE_WITH_IMM));
        assert_eq!(raw.send_flags, IBV_SEND_SIGNALED);
        assert_eq!(raw.imm_data.to_ne_bytes(), [1, 2, 3, 4], "on the wire in network order");
        // SAFETY: the field that was set.
        assert_eq!(unsafe { (raw.wr.rdma.remote_addr, raw.wr.rdma.rkey) }, (0x2000, 8));
        request.signalled = false;
        request.inline = true;
        request.fence = true;
        assert_eq!(request.raw().send_flags, IBV_SEND_INLINE | IBV_SEND_FENCE);
    }
}
