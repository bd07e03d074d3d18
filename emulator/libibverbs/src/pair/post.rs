//! Posting work requests.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::{Inner, Pair, Receive, Segments, Send, Source};
use crate::abi::*;
use crate::command::{self, Command};
use crate::count;

/// Takes a place of a queue of `capacity`; ENOMEM if there is none.
fn take_place(taken: &AtomicU32, capacity: u32) -> Answer<()> {
    let next = |taken: u32| (taken < capacity).then_some(taken + 1);
    taken.fetch_update(SeqCst, SeqCst, next).map(|_| ()).map_err(|_| Errno(libc::ENOMEM))
}

/// The segments of a work request.
///
/// # Safety
///
/// `list` is valid for `count` segments.
unsafe fn segments(list: *const ibv_sge, count: i32, most: u32) -> Answer<Segments> {
    let count = usize::try_from(count).ok().filter(|&count| count <= most as usize);
    let count = count.ok_or(Errno(libc::EINVAL))?;
    if count == 0 {
        return Ok(Segments::Many(Vec::new()));
    }
    if list.is_null() {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: the caller's.
    let segment = |index| unsafe { list.add(index).read_unaligned() };
    Ok(if count == 1 { Segments::One(segment(0)) } else { Segments::Many((0..count).map(segment).collect()) })
}

/// Posts a request of the send queue of a pair whose lock is held: a list is posted under one, so that whoever posts waits once for
/// the thread that sends, which holds it while it reads what it sends.
///
/// # Safety
///
/// The request, its segments, and the memory of those if they are inline, are readable.
pub(crate) unsafe fn send(pair: &Pair, inner: &mut Inner, request: &ibv_send_wr) -> Answer<()> {
    let inline = request.send_flags & SEND_INLINE != 0;
    // SAFETY: the caller's.
    let segments = unsafe { segments(request.sg_list, request.num_sge, pair.capacity.max_send_sge) }?;
    let length: u64 = segments.iter().map(|segment| u64::from(segment.length)).sum();
    let known = matches!(
        request.opcode,
        WR_SEND | WR_SEND_WITH_IMM | WR_RDMA_WRITE | WR_RDMA_WRITE_WITH_IMM | WR_RDMA_READ
    );
    let flags = SEND_FENCE | SEND_SIGNALED | SEND_SOLICITED | SEND_INLINE;
    if !known
        || request.send_flags & !flags != 0
        || inline && (length > pair.capacity.max_inline_data.into() || request.opcode == WR_RDMA_READ)
    {
        return Err(Errno(libc::EINVAL));
    }
    let source = match inline {
        false => Source::Segments(segments),
        true => {
            let mut bytes = Vec::with_capacity(length as usize);
            // Empty segments have no memory.
            for segment in segments.iter().filter(|segment| segment.length > 0) {
                let (start, length) = (segment.addr as *const u8, segment.length as usize);
                // SAFETY: the caller's.
                bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(start, length) });
            }
            Source::Inline(bytes)
        }
    };
    if !matches!(inner.state, QPS_RTS | QPS_ERR) || inner.gone {
        return Err(Errno(libc::EINVAL));
    }
    take_place(&pair.sends, pair.capacity.max_send_wr)?;
    count::add(&count::post_send, 1);
    inner.sends.push_back(Send {
        wr_id: request.wr_id,
        opcode: request.opcode,
        flags: request.send_flags,
        imm: request.imm_data,
        address: request.remote_addr,
        rkey: request.rkey,
        length,
        source,
        received: 0,
        outcome: None,
    });
    finish(pair, inner);
    Ok(())
}

/// Posts a request of the receive queue.
///
/// # Safety
///
/// The request and its segments are readable.
pub(crate) unsafe fn receive(pair: &Pair, request: &ibv_recv_wr) -> Answer<()> {
    // SAFETY: the caller's.
    let segments = unsafe { segments(request.sg_list, request.num_sge, pair.capacity.max_recv_sge) }?;
    let mut inner = pair.lock();
    if inner.state == QPS_RESET || inner.gone {
        return Err(Errno(libc::EINVAL));
    }
    take_place(&pair.receives, pair.capacity.max_recv_wr)?;
    count::add(&count::post_recv, 1);
    inner.receives.push_back(Receive { wr_id: request.wr_id, segments });
    finish(pair, &mut inner);
    Ok(())
}

/// What is posted to a pair that has failed comes back at once.
fn finish(pair: &Pair, inner: &mut Inner) {
    if inner.state == QPS_ERR {
        pair.flush(inner);
    }
}

/// Has what was posted sent.
pub(crate) fn ring(pair: &Pair) {
    command::tell(Command::Work(pair.number));
}
