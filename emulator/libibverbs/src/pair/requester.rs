//! The sending side of a queue pair.
//!
//! Messages go out in order, one after the other without waiting; each is acknowledged. One that finds no receive, or
//! that nobody hears, is sent again with all after it. Requests complete in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Inner, Pair, Pause, Send, Source, rnr_delay, timeout};
use crate::abi::*;
use crate::frame::{CHUNK, Frame, Kind};
use crate::memory::Region;
use crate::{count, fault};

/// How soon a pair that waits for ever for an acknowledgement tries again.
const FOR_EVER: Duration = Duration::from_millis(50);

impl Inner {
    /// Whether there is something to send now.
    pub(crate) fn can_send(&self) -> bool {
        let Some(send) = self.sends.get(self.cursor) else { return false };
        let too_many_reads = send.opcode == WR_RDMA_READ
            && self.attributes.max_rd_atomic > 0
            && self.reads >= self.attributes.max_rd_atomic.into();
        let fenced = send.flags & SEND_FENCE != 0 && self.reads > 0 && self.offset == 0;
        self.state == QPS_RTS && self.pause.is_none() && !too_many_reads && !fenced && !fault::hold()
    }

    /// Whether something is on the way.
    pub(crate) fn has_sent(&self) -> bool {
        self.cursor > 0 || self.offset > 0
    }

    /// Begins anew with the request at `index`.
    fn rewind(&mut self, index: usize) {
        self.cursor = index;
        self.offset = 0;
        self.attempt += 1;
        let is_open_read = |send: &&Send| send.opcode == WR_RDMA_READ && send.outcome.is_none();
        self.reads = self.sends.iter().take(index).filter(is_open_read).count() as u32;
        for send in self.sends.iter_mut().skip(index) {
            send.received = 0;
            send.outcome = None;
        }
        count::add(&count::retries, 1);
    }

    /// The index of a message of the peer's answer, if it is on the way.
    fn index_of(&self, message: u32) -> Option<usize> {
        let index = message.wrapping_sub(self.first) as usize;
        let on_the_way = self.cursor + usize::from(self.offset > 0);
        (index < on_the_way.min(self.sends.len())).then_some(index)
    }
}

impl Pair {
    /// Whether its port works and its link is not cut.
    pub(crate) fn is_reachable(&self, inner: &Inner) -> bool {
        let adapter = &self.context().adapter;
        adapter.is_active() && !fault::is_cut(&adapter.nic.name, &inner.peer.text())
    }

    /// The next frame of the request at the cursor, with its bytes in `payload`. `None` if that request failed, or has to
    /// wait for those before it to fail in its order.
    pub(crate) fn next_frame(&self, inner: &mut Inner, payload: &mut Vec<u8>) -> Option<Frame> {
        payload.clear();
        let adapter = &self.context().adapter;
        let index = inner.cursor;
        let offset = inner.offset;
        let send = inner.sends.get(index)?;
        let is_read = send.opcode == WR_RDMA_READ;
        let failure = if send.length > adapter.nic.max_message_bytes.into() {
            Some(WC_LOC_LEN_ERR)
        } else if is_read && inner.attributes.max_rd_atomic == 0 {
            Some(WC_LOC_QP_OP_ERR)
        } else if is_read {
            None
        } else {
            let bytes = (send.length - offset).min(CHUNK as u64) as usize;
            payload.resize(bytes, 0);
            (!self.gather(send, offset, payload)).then_some(WC_LOC_PROT_ERR)
        };
        if let Some(status) = failure {
            if index == 0 {
                self.fail(inner, status);
            }
            return None;
        }
        adapter.carry(payload.len());
        let frame = Frame {
            kind: if offset == 0 { Kind::Request } else { Kind::Data },
            opcode: send.opcode as u8,
            code: 0,
            solicited: send.flags & SEND_SOLICITED != 0,
            mtu: inner.attributes.path_mtu as u8,
            to: inner.destination(),
            from: self.number,
            message: inner.first.wrapping_add(index as u32),
            attempt: inner.attempt,
            first_packet: inner.attributes.sq_psn,
            length: send.length as u32,
            offset: offset as u32,
            bytes: payload.len() as u32,
            imm: send.imm,
            rkey: send.rkey,
            address: send.address,
            fabric: adapter.fabric(),
            port: inner.peer,
            source: inner.source,
        };
        inner.offset += payload.len() as u64;
        if is_read || inner.offset == u64::from(frame.length) {
            inner.reads += u32::from(is_read);
            inner.cursor += 1;
            inner.offset = 0;
        }
        Some(frame)
    }

    /// Reads a part of what a request sends.
    fn gather(&self, send: &Send, offset: u64, bytes: &mut [u8]) -> bool {
        match &send.source {
            Source::Inline(data) => {
                let from = offset as usize;
                bytes.copy_from_slice(&data[from..from + bytes.len()]);
                true
            }
            Source::Segments(segments) => {
                for_parts(segments, offset, bytes.len(), |segment, address, part| {
                    Region::find(segment.lkey, &self.pd, address, part.len() as u64, 0)
                        .is_some_and(|region| region.read(address, &mut bytes[part]))
                })
            }
        }
    }

    /// Nobody hears what is on the way, or could hear it: waits as long as hardware waits for an acknowledgement.
    pub(crate) fn lose(&self, inner: &mut Inner) {
        if inner.state != QPS_RTS || inner.sends.is_empty() || inner.pause.is_some() {
            return;
        }
        inner.rewind(0);
        let delay = match inner.attributes.timeout {
            0 => FOR_EVER,
            code => timeout(code),
        };
        inner.pause = Some((Instant::now() + delay, Pause::Lost));
    }

    /// The wait is over: tries again, if it may.
    pub(crate) fn resume(&self, inner: &mut Inner, now: Instant) {
        let Some((_, pause)) = inner.pause.take_if(|(at, _)| *at <= now) else { return };
        if pause == Pause::Lost && inner.attributes.timeout > 0 {
            match inner.retries_left.checked_sub(1) {
                Some(left) => inner.retries_left = left,
                None => self.fail(inner, WC_RETRY_EXC_ERR),
            }
        }
    }

    /// An answer of the peer.
    pub(crate) fn answered(self: &Arc<Self>, frame: &Frame, payload: &[u8]) {
        let mut inner = self.lock();
        if inner.state != QPS_RTS || frame.from != inner.destination() {
            return;
        }
        // An acknowledgement of an earlier attempt is as good as a later one; all else is about this attempt.
        if frame.kind != Kind::Acknowledge && frame.attempt != inner.attempt {
            return;
        }
        if frame.kind == Kind::Lost {
            self.lose(&mut inner);
            return;
        }
        let Some(index) = inner.index_of(frame.message) else { return };
        match frame.kind {
            Kind::Acknowledge => {
                (inner.retries_left, inner.rnr_left) =
                    (inner.attributes.retry_cnt, inner.attributes.rnr_retry);
                // Of a read it says only that the answer will come.
                if let Some(send) = inner.sends.get_mut(index).filter(|send| send.opcode != WR_RDMA_READ) {
                    send.outcome = Some(WC_SUCCESS);
                }
            }
            Kind::Refuse => {
                if let Some(send) = inner.sends.get_mut(index) {
                    send.outcome = Some(frame.code.into());
                }
            }
            Kind::NotReady => self.not_ready(&mut inner, index, frame.code),
            Kind::Answer => self.read(&mut inner, index, frame, payload),
            Kind::Request | Kind::Data | Kind::Lost => {}
        }
        self.retire(&mut inner);
    }

    fn not_ready(&self, inner: &mut Inner, index: usize, delay: u8) {
        // 7 is for ever.
        if inner.attributes.rnr_retry < 7 {
            match inner.rnr_left.checked_sub(1) {
                Some(left) => inner.rnr_left = left,
                None => {
                    if let Some(send) = inner.sends.get_mut(index) {
                        send.outcome = Some(WC_RNR_RETRY_EXC_ERR);
                    }
                    return;
                }
            }
        }
        inner.rewind(index);
        inner.pause = Some((Instant::now() + rnr_delay(delay), Pause::NotReady));
    }

    /// Bytes that were to be read.
    fn read(&self, inner: &mut Inner, index: usize, frame: &Frame, payload: &[u8]) {
        let Some(send) = inner.sends.get_mut(index) else { return };
        if send.opcode != WR_RDMA_READ || send.outcome.is_some() || u64::from(frame.offset) != send.received {
            return;
        }
        let Source::Segments(segments) = &send.source else { return };
        let written = for_parts(segments, send.received, payload.len(), |segment, address, part| {
            Region::find(segment.lkey, &self.pd, address, part.len() as u64, ACCESS_LOCAL_WRITE)
                .is_some_and(|region| region.write(address, &payload[part]))
        });
        send.received += payload.len() as u64;
        inner.retries_left = inner.attributes.retry_cnt;
        if !written {
            send.outcome = Some(WC_LOC_PROT_ERR);
        } else if send.received == send.length {
            send.outcome = Some(WC_SUCCESS);
            inner.reads = inner.reads.saturating_sub(1);
        }
        count::add(&count::bytes_received, payload.len() as u64);
    }

    /// Completes the requests that have ended, in their order.
    fn retire(&self, inner: &mut Inner) {
        while let Some(status) = inner.sends.front().and_then(|send| send.outcome) {
            if status != WC_SUCCESS {
                self.fail(inner, status);
                return;
            }
            let Some(send) = inner.sends.pop_front() else { return };
            inner.first = inner.first.wrapping_add(1);
            inner.cursor = inner.cursor.saturating_sub(1);
            self.complete_send(inner, &send, WC_SUCCESS);
        }
    }
}

/// Calls `each` for the parts of segments that `length` bytes from `offset` of them lie in, with the segment, the part's
/// address and its range in the bytes; stops when that answers false, and answers it. False too if the segments are
/// shorter.
pub(super) fn for_parts(
    segments: &[ibv_sge],
    offset: u64,
    length: usize,
    mut each: impl FnMut(&ibv_sge, u64, std::ops::Range<usize>) -> bool,
) -> bool {
    let mut skip = offset;
    let mut done = 0;
    for segment in segments {
        if done == length {
            break;
        }
        let size = u64::from(segment.length);
        if skip >= size {
            skip -= size;
            continue;
        }
        let part = (size - skip).min((length - done) as u64) as usize;
        let Some(address) = segment.addr.checked_add(skip) else { return false };
        if !each(segment, address, done..done + part) {
            return false;
        }
        skip = 0;
        done += part;
    }
    done == length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_the_segments_and_skip_empty_ones() {
        let segment = |addr, length| ibv_sge { addr, length, lkey: 0 };
        let segments = [segment(100, 3), segment(200, 0), segment(300, 4)];
        let parts = |offset, length| {
            let mut parts = Vec::new();
            let all = for_parts(&segments, offset, length, |_, address, part| {
                parts.push((address, part));
                true
            });
            (all, parts)
        };
        assert_eq!(parts(0, 7), (true, vec![(100, 0..3), (300, 3..7)]));
        assert_eq!(parts(2, 2), (true, vec![(102, 0..1), (300, 1..2)]));
        assert_eq!(parts(3, 4), (true, vec![(300, 0..4)]));
        assert_eq!(parts(7, 0), (true, vec![]));
        assert!(!parts(0, 8).0);
    }
}
