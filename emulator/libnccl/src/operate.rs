//! The C functions that move and reduce data.

use std::sync::Arc;

use crate::abi::{Out, ScalarPointer, exports};
use crate::call::{Call, Kind};
use crate::collective::{Collective, Reduction};
use crate::comm::{self, Communicator, Handle, Made, Scalar};
use crate::element::{Combine, Scale, Type};
use crate::failure::{Code, NcclError, Result};
use crate::job::{Buffer, Task, TaskKind};
use crate::{cuda, group};

/// A call as the program makes it, of an operation on all ranks.
struct Request {
    kind: Kind,
    send: u64,
    receive: u64,
    count: usize,
    element: i32,
    reduction: Option<i32>,
    root: Option<i32>,
    comm: Handle,
    stream: usize,
}

/// How many times `count` elements an operation has as input and output: for each rank, or once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    Once,
    PerRank,
    Nothing,
}

impl Request {
    /// Checks it as NCCL does, and issues it or keeps it for the end of the group.
    fn submit(self) -> Result<Code> {
        let name = self.kind.name();
        let communicator = comm::find(self.comm, name)?;
        let ready = communicator.ensure_ready()?;
        let element = Type::from_number(self.element, name)?;
        let root = self.root.map(|root| rank_in(root, ready.size, "root", name)).transpose()?;
        let reduction = self.reduction.map(|op| reduction(op, element, &communicator, name)).transpose()?;
        let size = |share: Share| match share {
            Share::Nothing => Ok(0),
            Share::Once => bytes(self.count, element, 1, name),
            Share::PerRank => bytes(self.count, element, ready.size, name),
        };
        // Refused by every rank alike, also by those that have a part only.
        bytes(self.count, element, ready.size, name)?;
        let is_root = root.is_none_or(|root| root == ready.rank);
        let (input, output) = shares(self.kind, is_root);
        let (input, output) = (size(input)?, size(output)?);
        if self.count == 0 {
            return Ok(Code::Success);
        }
        let _current = cuda::Current::push(communicator.device.context)?;
        let task = Task {
            what: TaskKind::Collective(Collective {
                kind: self.kind,
                call: Call::new(self.kind, element, self.count, self.reduction, root),
                element,
                reduction: reduction.as_ref().map(|(reduction, _)| *reduction),
                root: root.unwrap_or(0),
            }),
            input: buffer(self.send, input, "sendbuff", name)?,
            output: buffer(self.receive, output, "recvbuff", name)?,
            scalar: reduction.and_then(|(_, scalar)| scalar),
            stream: self.stream,
            communicator: Arc::clone(&communicator),
        };
        group::submit(task)?;
        Ok(Code::Success)
    }
}

fn shares(kind: Kind, is_root: bool) -> (Share, Share) {
    let at_root = |share| if is_root { share } else { Share::Nothing };
    match kind {
        Kind::AllReduce => (Share::Once, Share::Once),
        Kind::Reduce => (Share::Once, at_root(Share::Once)),
        Kind::Broadcast => (at_root(Share::Once), Share::Once),
        Kind::AllGather => (Share::Once, Share::PerRank),
        Kind::ReduceScatter => (Share::PerRank, Share::Once),
        Kind::AlltoAll => (Share::PerRank, Share::PerRank),
        Kind::Gather => (Share::Once, at_root(Share::PerRank)),
        Kind::Scatter => (at_root(Share::PerRank), Share::Once),
        Kind::Exchange => (Share::Nothing, Share::Nothing),
    }
}

fn rank_in(rank: i32, size: usize, what: &str, call: &str) -> Result<usize> {
    usize::try_from(rank).ok().filter(|rank| *rank < size).ok_or_else(|| {
        let range = format!("{what} should be in the 0..{} range", size - 1);
        NcclError::argument(format!("{call} : invalid {what} {rank} ({range})"))
    })
}

fn bytes(count: usize, element: Type, times: usize, call: &str) -> Result<usize> {
    let bytes = count.checked_mul(element.bytes()).and_then(|bytes| bytes.checked_mul(times));
    bytes.filter(|bytes| *bytes <= isize::MAX as usize).ok_or_else(|| {
        NcclError::argument(format!("{call} : count {count} of {} is too large", element.name()))
    })
}

/// Device memory that the driver knows to be there; none for 0 bytes.
fn buffer(address: u64, bytes: usize, what: &str, call: &str) -> Result<Option<Buffer>> {
    if bytes == 0 {
        return Ok(None);
    }
    if address == 0 || !cuda::is_allocated(address, bytes)? {
        return Err(NcclError::argument(format!(
            "{call} : {what} {address:#x} is not a valid pointer to {bytes} bytes"
        )));
    }
    Ok(Some(Buffer { address, bytes }))
}

/// What an operation's number means, and where its factor is if it is on the device.
fn reduction(
    number: i32,
    element: Type,
    communicator: &Communicator,
    call: &str,
) -> Result<(Reduction, Option<Buffer>)> {
    let plain = |combine| Ok((Reduction { combine, scale: Scale::None }, None));
    match number {
        0 => plain(Combine::Sum),
        1 => plain(Combine::Product),
        2 => plain(Combine::Max),
        3 => plain(Combine::Min),
        4 => {
            let scale = Scale::average(element, communicator.ready()?.size);
            Ok((Reduction { combine: Combine::Sum, scale }, None))
        }
        _ => {
            let made = communicator.reduction(number);
            let made = made.ok_or_else(|| {
                NcclError::argument(format!("{call} : invalid reduction operation {number}"))
            })?;
            if made.element != element {
                let both = format!("{} and {}", made.element.name(), element.name());
                return Err(NcclError::argument(format!(
                    "{call} : reduction operation {number} and the call are of different types: {both}"
                )));
            }
            Ok(match made.scalar {
                Scalar::Value(scale) => (Reduction { combine: Combine::Sum, scale }, None),
                Scalar::Device(address) => (
                    Reduction { combine: Combine::Sum, scale: Scale::None },
                    Some(Buffer { address, bytes: element.bytes() }),
                ),
            })
        }
    }
}

/// One side of a message.
fn message(
    call: &str,
    memory: u64,
    count: usize,
    element: i32,
    peer: i32,
    comm: Handle,
    stream: usize,
) -> Result<Code> {
    let communicator = comm::find(comm, call)?;
    let ready = communicator.ensure_ready()?;
    let peer = rank_in(peer, ready.size, "peer", call)?;
    let bytes = bytes(count, Type::from_number(element, call)?, 1, call)?;
    let _current = cuda::Current::push(communicator.device.context)?;
    let Some(buffer) = buffer(memory, bytes, "buff", call)? else { return Ok(Code::Success) };
    // Only the bytes must agree: NCCL does not ask after the type.
    let name = Call::new(Kind::Exchange, Type::U8, bytes, None, None);
    let is_send = call == "Send";
    let what =
        if is_send { TaskKind::Send { peer, call: name } } else { TaskKind::Receive { peer, call: name } };
    group::submit(Task {
        what,
        input: is_send.then_some(buffer),
        output: (!is_send).then_some(buffer),
        scalar: None,
        stream,
        communicator: Arc::clone(&communicator),
    })?;
    Ok(Code::Success)
}

exports! {
    fn ncclAllReduce(send: u64, receive: u64, count: usize, element: i32, op: i32, comm: Handle, stream: usize) {
        let (kind, reduction, root) = (Kind::AllReduce, Some(op), None);
        Request { kind, send, receive, count, element, reduction, root, comm, stream }.submit()
    }

    fn ncclReduce(send: u64, receive: u64, count: usize, element: i32, op: i32, root: i32, comm: Handle, stream: usize) {
        let (kind, reduction, root) = (Kind::Reduce, Some(op), Some(root));
        Request { kind, send, receive, count, element, reduction, root, comm, stream }.submit()
    }

    fn ncclBcast(buffer: u64, count: usize, element: i32, root: i32, comm: Handle, stream: usize) {
        let (kind, reduction, root) = (Kind::Broadcast, None, Some(root));
        let (send, receive) = (buffer, buffer);
        Request { kind, send, receive, count, element, reduction, root, comm, stream }.submit()
    }

    fn ncclBroadcast(send: u64, receive: u64, count: usize, element: i32, root: i32, comm: Handle, stream: usize) {
        let (kind, reduction, root) = (Kind::Broadcast, None, Some(root));
        Request { kind, send, receive, count, element, reduction, root, comm, stream }.submit()
    }

    fn ncclAllGather(send: u64, receive: u64, count: usize, element: i32, comm: Handle, stream: usize) {
        let (kind, reduction, root) = (Kind::AllGather, None, None);
        Request { kind, send, receive, count, element, reduction, root, comm, stream }.submit()
    }

    fn ncclReduceScatter(send: u64, receive: u64, count: usize, element: i32, op: i32, comm: Handle, stream: usize) {
        let (kind, reduction, root) = (Kind::ReduceScatter, Some(op), None);
        Request { kind, send, receive, count, element, reduction, root, comm, stream }.submit()
    }

    fn ncclAlltoAll(send: u64, receive: u64, count: usize, element: i32, comm: Handle, stream: usize) {
        let (kind, reduction, root) = (Kind::AlltoAll, None, None);
        Request { kind, send, receive, count, element, reduction, root, comm, stream }.submit()
    }

    fn ncclGather(send: u64, receive: u64, count: usize, element: i32, root: i32, comm: Handle, stream: usize) {
        let (kind, reduction, root) = (Kind::Gather, None, Some(root));
        Request { kind, send, receive, count, element, reduction, root, comm, stream }.submit()
    }

    fn ncclScatter(send: u64, receive: u64, count: usize, element: i32, root: i32, comm: Handle, stream: usize) {
        let (kind, reduction, root) = (Kind::Scatter, None, Some(root));
        Request { kind, send, receive, count, element, reduction, root, comm, stream }.submit()
    }

    fn ncclSend(send: u64, count: usize, element: i32, peer: i32, comm: Handle, stream: usize) {
        message("Send", send, count, element, peer, comm, stream)
    }

    fn ncclRecv(receive: u64, count: usize, element: i32, peer: i32, comm: Handle, stream: usize) {
        message("Recv", receive, count, element, peer, comm, stream)
    }

    fn ncclRedOpCreatePreMulSum(op: Out<i32>, scalar: ScalarPointer, element: i32, residence: i32, comm: Handle) {
        let call = "ncclRedOpCreatePreMulSum";
        let communicator = comm::find(comm, call)?;
        let op = op.require(call, "op")?;
        communicator.ensure_ready()?;
        let element = Type::from_number(element, call)?;
        let missing = || NcclError::argument(format!("{call} : scalar argument is not valid"));
        let scalar = match residence {
            0 => {
                let _current = cuda::Current::push(communicator.device.context)?;
                buffer(scalar.address(), element.bytes(), "scalar", call)?;
                Scalar::Device(scalar.address())
            }
            1 => Scalar::Value(Scale::Before(scalar.read(element.bytes()).ok_or_else(missing)?)),
            _ => return Err(NcclError::argument(format!("{call} : invalid residence {residence}"))),
        };
        op.set(communicator.make_reduction(Made { element, scalar }));
        Ok(Code::Success)
    }

    fn ncclRedOpDestroy(op: i32, comm: Handle) {
        comm::find(comm, "ncclRedOpDestroy")?.destroy_reduction(op)?;
        Ok(Code::Success)
    }
}
