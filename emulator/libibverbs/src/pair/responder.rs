//! The receiving side of a queue pair.

use std::sync::Arc;

use super::requester::for_parts;
use super::{Incoming, Inner, Pair, Receive};
use crate::abi::*;
use crate::completion::Entry;
use crate::frame::{CHUNK, Frame, Kind};
use crate::memory::Region;
use crate::{count, fault};

/// Bytes that a peer reads: they are sent as there is room for them.
pub(crate) struct Reading {
    pub(crate) pair: Arc<Pair>,
    /// The request.
    pub(crate) frame: Frame,
    pub(crate) sent: u32,
}

/// What is to be done about a frame.
pub(crate) enum Response {
    /// Nothing.
    Nothing,
    /// Send this.
    Answer(Frame),
    /// Send the bytes that are to be read.
    Read(Reading),
}

impl Pair {
    /// A message of the peer, or more of one.
    pub(crate) fn heard(self: &Arc<Self>, frame: &Frame, payload: &[u8]) -> Response {
        let mut inner = self.lock();
        // Of an attempt that was answered already.
        if frame.attempt < inner.heard_from {
            return Response::Nothing;
        }
        if !self.hears(&inner, frame) {
            return Response::Answer(lost(&mut inner, frame));
        }
        let behind = frame.message.wrapping_sub(inner.expected) as i32;
        if frame.kind == Kind::Data && behind < 0 {
            // Of a message that has arrived in an earlier attempt.
            return Response::Nothing;
        }
        self.context().adapter.carry(payload.len());
        count::add(&count::bytes_received, payload.len() as u64);
        if frame.kind == Kind::Data {
            return self.more(&mut inner, frame, payload);
        }
        if behind > 0 {
            return Response::Answer(lost(&mut inner, frame));
        }
        if behind < 0 && u32::from(frame.opcode) != WR_RDMA_READ {
            return Response::Answer(frame.answer(Kind::Acknowledge, 0));
        }
        if inner.state == QPS_RTR && inner.expected == 0 && behind == 0 {
            self.tell(EVENT_COMM_EST);
        }
        match u32::from(frame.opcode) {
            WR_RDMA_READ => self.read_request(&mut inner, frame, behind == 0),
            _ => self.begin(&mut inner, frame, payload),
        }
    }

    /// Whether it hears a frame at all; hardware drops others without a word.
    fn hears(&self, inner: &Inner, frame: &Frame) -> bool {
        let adapter = &self.context().adapter;
        matches!(inner.state, QPS_RTR | QPS_RTS)
            && !inner.gone
            && frame.from == inner.destination()
            && frame.first_packet == inner.attributes.rq_psn
            && frame.fabric == adapter.fabric()
            && adapter.has(&frame.port)
            && adapter.is_active()
            && !fault::is_cut(&adapter.nic.name, &frame.source.text())
    }

    /// The beginning of a message that carries bytes.
    fn begin(self: &Arc<Self>, inner: &mut Inner, frame: &Frame, payload: &[u8]) -> Response {
        let opcode = u32::from(frame.opcode);
        let writes = matches!(opcode, WR_RDMA_WRITE | WR_RDMA_WRITE_WITH_IMM);
        let wants_receive = opcode != WR_RDMA_WRITE;
        // Packets that are larger than what this side was told are no packets.
        if u32::from(frame.mtu) > inner.attributes.path_mtu && frame.length > 128 << inner.attributes.path_mtu
        {
            return self.refuse(inner, frame, WC_REM_INV_REQ_ERR, Some(EVENT_QP_REQ_ERR));
        }
        let allowed = inner.attributes.qp_access_flags & ACCESS_REMOTE_WRITE != 0;
        if writes && !(allowed && self.may(frame, ACCESS_REMOTE_WRITE)) {
            return self.refuse(inner, frame, WC_REM_ACCESS_ERR, Some(EVENT_QP_ACCESS_ERR));
        }
        // A message that was begun in an earlier attempt gives its receive back.
        if let Some(receive) = inner.incoming.take().and_then(|incoming| incoming.receive) {
            inner.receives.push_front(receive);
        }
        let ready = wants_receive && !fault::take_rnr();
        let receive = if ready { inner.receives.pop_front() } else { None };
        if wants_receive && receive.is_none() {
            inner.heard_from = frame.attempt + 1;
            return Response::Answer(frame.answer(Kind::NotReady, inner.attributes.min_rnr_timer));
        }
        if let Some(receive) = receive.as_ref().filter(|_| !writes) {
            let room: u64 = receive.segments.iter().map(|segment| u64::from(segment.length)).sum();
            if u64::from(frame.length) > room {
                self.fail_receive(receive, WC_LOC_LEN_ERR);
                return self.refuse(inner, frame, WC_REM_INV_REQ_ERR, None);
            }
        }
        inner.incoming = Some(Incoming {
            message: frame.message,
            attempt: frame.attempt,
            opcode,
            receive,
            length: frame.length,
            received: 0,
            address: frame.address,
            rkey: frame.rkey,
        });
        self.more(inner, frame, payload)
    }

    /// Whether a request may do that with all its bytes. One without bytes is not looked at.
    fn may(&self, frame: &Frame, access: u32) -> bool {
        let length = u64::from(frame.length);
        length == 0 || Region::find(frame.rkey, &self.pd, frame.address, length, access).is_some()
    }

    /// Bytes of the message that is arriving.
    fn more(self: &Arc<Self>, inner: &mut Inner, frame: &Frame, payload: &[u8]) -> Response {
        let fits = |incoming: &&mut Incoming| {
            (incoming.message, incoming.attempt, incoming.received)
                == (frame.message, frame.attempt, frame.offset)
                && payload.len() <= (incoming.length - incoming.received) as usize
        };
        let Some(incoming) = inner.incoming.as_mut().filter(fits) else {
            return Response::Answer(lost(inner, frame));
        };
        let writes = matches!(incoming.opcode, WR_RDMA_WRITE | WR_RDMA_WRITE_WITH_IMM);
        let at = u64::from(incoming.received);
        let written = match &incoming.receive {
            _ if payload.is_empty() => true,
            Some(receive) if !writes => self.scatter(receive, at, payload),
            _ => {
                let address = incoming.address + at;
                let length = payload.len() as u64;
                Region::find(incoming.rkey, &self.pd, address, length, ACCESS_REMOTE_WRITE)
                    .is_some_and(|region| region.write(address, payload))
            }
        };
        incoming.received += payload.len() as u32;
        match (written, writes) {
            (true, _) if incoming.received < incoming.length => Response::Nothing,
            (true, _) => {
                self.arrived(inner, frame);
                Response::Answer(frame.answer(Kind::Acknowledge, 0))
            }
            (false, true) => self.refuse(inner, frame, WC_REM_ACCESS_ERR, Some(EVENT_QP_ACCESS_ERR)),
            (false, false) => {
                let receive = inner.incoming.take().and_then(|incoming| incoming.receive);
                if let Some(receive) = receive {
                    self.fail_receive(&receive, WC_LOC_PROT_ERR);
                }
                self.refuse(inner, frame, WC_REM_OP_ERR, None)
            }
        }
    }

    fn scatter(&self, receive: &Receive, offset: u64, payload: &[u8]) -> bool {
        for_parts(&receive.segments, offset, payload.len(), |segment, address, part| {
            Region::find(segment.lkey, &self.pd, address, part.len() as u64, ACCESS_LOCAL_WRITE)
                .is_some_and(|region| region.write(address, &payload[part]))
        })
    }

    /// A message is complete.
    fn arrived(&self, inner: &mut Inner, frame: &Frame) {
        inner.expected = inner.expected.wrapping_add(1);
        let Some(incoming) = inner.incoming.take() else { return };
        let Some(receive) = incoming.receive else { return };
        let (opcode, imm) = match incoming.opcode {
            WR_RDMA_WRITE_WITH_IMM => (WC_RECV_RDMA_WITH_IMM, true),
            WR_SEND_WITH_IMM => (WC_RECV, true),
            _ => (WC_RECV, false),
        };
        let mut wc = self.completion(receive.wr_id, WC_SUCCESS, opcode);
        wc.byte_len = incoming.length;
        wc.src_qp = frame.from;
        if imm {
            wc.wc_flags = WC_WITH_IMM;
            wc.imm_data = frame.imm;
        }
        let frees = Some((Arc::clone(&self.receives), 1));
        self.receive_cq.push(Entry { wc, frees, solicited: frame.solicited });
    }

    fn read_request(self: &Arc<Self>, inner: &mut Inner, frame: &Frame, is_new: bool) -> Response {
        if inner.attributes.max_dest_rd_atomic == 0 {
            return self.refuse(inner, frame, WC_REM_INV_REQ_ERR, Some(EVENT_QP_REQ_ERR));
        }
        let allowed = inner.attributes.qp_access_flags & ACCESS_REMOTE_READ != 0;
        if !(allowed && self.may(frame, ACCESS_REMOTE_READ)) {
            return self.refuse(inner, frame, WC_REM_ACCESS_ERR, Some(EVENT_QP_ACCESS_ERR));
        }
        if is_new {
            inner.expected = inner.expected.wrapping_add(1);
        }
        Response::Read(Reading { pair: Arc::clone(self), frame: *frame, sent: 0 })
    }

    /// The next bytes that a peer reads, in `payload`, and the frame to send them in.
    pub(crate) fn next_answer(self: &Arc<Self>, reading: &mut Reading, payload: &mut Vec<u8>) -> Frame {
        let frame = &reading.frame;
        let mut inner = self.lock();
        if !self.hears(&inner, frame) {
            reading.sent = frame.length;
            return frame.answer(Kind::Lost, 0);
        }
        let bytes = ((frame.length - reading.sent) as usize).min(CHUNK);
        let address = frame.address + u64::from(reading.sent);
        payload.resize(bytes, 0);
        let read = bytes == 0
            || Region::find(frame.rkey, &self.pd, address, bytes as u64, ACCESS_REMOTE_READ)
                .is_some_and(|region| region.read(address, payload));
        if !read {
            payload.clear();
            reading.sent = frame.length;
            if let Response::Answer(answer) =
                self.refuse(&mut inner, frame, WC_REM_ACCESS_ERR, Some(EVENT_QP_ACCESS_ERR))
            {
                return answer;
            }
        }
        self.context().adapter.carry(bytes);
        let answer =
            Frame { offset: reading.sent, bytes: payload.len() as u32, ..frame.answer(Kind::Answer, 0) };
        reading.sent += bytes as u32;
        answer
    }

    /// Refuses a message: the sender gets `status`, and this queue pair fails too.
    fn refuse(
        self: &Arc<Self>,
        inner: &mut Inner,
        frame: &Frame,
        status: u32,
        event: Option<u32>,
    ) -> Response {
        inner.heard_from = frame.attempt + 1;
        self.flush(inner);
        if let Some(event) = event {
            self.tell(event);
        }
        Response::Answer(frame.answer(Kind::Refuse, status as u8))
    }
}

/// Nobody hears this attempt any more.
fn lost(inner: &mut Inner, frame: &Frame) -> Frame {
    inner.heard_from = frame.attempt + 1;
    frame.answer(Kind::Lost, 0)
}
