//! How a collective other than an all-reduce is launched.
#![forbid(unsafe_code)]

use meshreduce_wire::launch::{self, IN_PLACE, SliceParams};
use meshreduce_wire::{
    Algorithm, Collective, DType, Geometry, LaunchDescriptor, LaunchParams, MAX_RANKS, Op, Slices,
};

use super::slices::{Run, SliceCall, is_alike_to_all};
use crate::error::Error;
use crate::kernels::Kernel;
use crate::shared::Shared;

/// The launches of a collective: in one piece of every slice, or in several.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlicePlan {
    pub(crate) kernel: Kernel,
    algorithm: Algorithm,
    /// Of the first piece; what differs in the others follows.
    params: SliceParams,
    block_cap: u32,
    /// Most bytes of a slice in one piece.
    piece: u64,
    /// Bytes of the longest slice of any rank; of a list that this rank does not know, as many as a piece can have.
    longest: u64,
}

impl SlicePlan {
    /// The plan of a call.
    ///
    /// # Errors
    ///
    /// As the raw calls of [`super::Lane`] say.
    pub(crate) fn new(call: &SliceCall, lane: LaunchParams, shared: &Shared) -> Result<Self, Error> {
        let world_size = shared.world_size();
        let in_place = call.is_in_place(shared.rank)?;
        let known = call.longest_known();
        // What is not known to all decides nothing.
        let decided = match call.longest {
            Some(_) => known,
            None => shared.longest_for(call.collective).unwrap_or(0),
        };
        let of_call = match call.collective {
            // Of an all-reduce only nothing comes here, and all ranks say the same of it.
            Collective::AllReduce => Algorithm::OneShotLl,
            _ => shared.select_for(call.collective, decided)?,
        };
        // What moves nothing is launched as a barrier is, whatever it says.
        let algorithm = match call.moves_nothing() {
            true => shared.select_for(Collective::Barrier, 0)?,
            false => of_call,
        };
        let (dtype, op) = (call.element.dtype().unwrap_or(DType::F32), call.op.unwrap_or(Op::Sum));
        let kernel = shared
            .kernels
            .kernel(algorithm, dtype, op)
            .ok_or(Error::NoAlgorithmFor { collective: call.collective, bytes: known })?;
        let is_alike = is_alike_to_all(call.collective);
        let stride = if is_alike { 0 } else { shared.piece_of_slices(Algorithm::Exchange, None, false) };
        let piece = shared.piece_of_slices(algorithm, call.longest.map(|_| known), is_alike);
        if call.longest.is_none() && known > piece.min(decided) {
            return Err(Error::NoAlgorithmFor { collective: call.collective, bytes: known });
        }
        let said = |count| LaunchDescriptor {
            collective: call.collective,
            algorithm: of_call,
            element: call.element,
            op: call.op,
            root: call.root as u32,
            count,
        };
        let mut params = SliceParams {
            launch: LaunchParams {
                flags: if in_place { IN_PLACE } else { 0 },
                scale: op.scale(world_size as u32),
                kind: if call.op.is_some() { launch::kind(dtype, op) } else { 0 },
                ..lane
            },
            sent: Slices::default(),
            received: Slices::default(),
            stride,
            said: [0; MAX_RANKS],
            expected: [0; MAX_RANKS],
            tags_said: [0; MAX_RANKS],
            tags_expected: [0; MAX_RANKS],
        };
        for position in 0..world_size {
            let rank = rank_at(&params.launch, position);
            // With a root there is one length, which all pairs compare, whatever moves between them.
            let count = |run: Run| if call.collective.has_root() { call.longest } else { Some(run.count) };
            let [sent, expected] =
                [call.sent[rank], call.received[rank]].map(|run| said(count(run).unwrap_or(0)));
            params.said[position] = sent.encode();
            params.expected[position] = expected.encode();
            params.tags_said[position] = sent.tag();
            params.tags_expected[position] = expected.tag();
        }
        let longest = if call.longest.is_some() { known } else { piece.min(decided) };
        Ok(Self { kernel, algorithm, params, block_cap: shared.block_cap, piece, longest })
    }

    /// The position whose slices lie at a place: in a hybrid cube mesh that of the relay neighbour opposite each of the own quad.
    fn position(&self, place: usize) -> usize {
        let lane = &self.params.launch.lane;
        let opposite = MAX_RANKS / 2;
        if self.algorithm.is_of_cube_mesh() && (place ^ lane.position as usize) & opposite != 0 {
            (lane.relays >> (4 * (place ^ opposite))) as usize & (2 * MAX_RANKS - 1)
        } else {
            place
        }
    }

    /// How many launches there are: one, also of a call in which nothing moves.
    pub(crate) fn pieces(&self) -> u64 {
        self.longest.div_ceil(self.piece.max(1)).max(1)
    }

    /// The launch of a piece.
    pub(crate) fn launch(&self, call: &SliceCall, piece: u64, world_size: usize) -> (Geometry, SliceParams) {
        let begin = piece * self.piece.min(self.longest);
        let cut = |runs: &[Run; MAX_RANKS]| {
            Slices::new((0..world_size).map(|place| {
                let run = runs[rank_at(&self.params.launch, self.position(place))];
                let bytes = run.bytes(call.size()).saturating_sub(begin).min(self.piece);
                // Of what this rank does not use, the address may be any.
                (run.address.wrapping_add(begin), bytes as u32)
            }))
        };
        let params = SliceParams { sent: cut(&call.sent), received: cut(&call.received), ..self.params };
        let longest = (self.longest - begin).min(self.piece);
        (Geometry::of_slices(self.algorithm, longest, self.block_cap, self.kernel.isa), params)
    }
}

/// The rank at a position.
fn rank_at(launch: &LaunchParams, position: usize) -> usize {
    (launch.lane.ranks >> (4 * position)) as usize & (2 * MAX_RANKS - 1)
}
