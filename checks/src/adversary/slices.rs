//! Sequences of collectives other than all-reduces on one lane, all-reduces among them, under weak memory: what a rooted
//! operation, or a rank without elements, leaves behind must not be overwritten before a slow peer has read it.

mod scenario;

use std::sync::Arc;

use anyhow::{Context, Result};
use meshreduce::shipped_kernels;
use meshreduce_emulator_ptx::Launch;
use meshreduce_emulator_ptx::Module;
use meshreduce_emulator_weak_memory::adversary::{Options, Session, Summary};
use meshreduce_wire::launch;
use meshreduce_wire::packets::{self, PacketLayout};
use meshreduce_wire::{
    Algorithm, Collective, Element, ElementSize, Isa, KernelName, LaunchDescriptor, LaunchParams, MAX_RANKS,
    SliceParams, Slices, TextName, VECTOR_BYTES, geometry,
};

use super::odd::PATIENCE_NS;
use super::ranks::{Expected, Ranks, Sequence};
use super::{DEADLINE_NS, Others, RunFailure};
use crate::{inputs, params, reference};
pub use scenario::{SliceCall, SliceScenario};

/// Bytes of the longest slice.
const MOST: u32 = 144;
/// Bytes behind every buffer that nobody may write.
const BEHIND: usize = 16;

/// The kernels of slices for some ranks.
#[derive(Clone)]
pub struct SliceKernels {
    /// With their algorithms: those for ranks that are all mapped, or those of a hybrid cube mesh.
    modules: Vec<(Algorithm, Arc<Module>)>,
    /// The all-reduces that are launched between.
    others: Others,
    /// Those that are looked at, if not all.
    focus: Option<Algorithm>,
    /// The only collective that is launched besides all-reduces, if not all are.
    collective: Option<Collective>,
    world_size: usize,
    isa: Isa,
}

/// Where a rank's buffers of a call are, and what is in them at the end.
struct Buffers {
    input: u64,
    output: u64,
    /// The buffer with the output, and its bytes at the end.
    result: (u64, Vec<u8>),
}

impl SliceKernels {
    /// The shipped ones.
    ///
    /// # Errors
    /// If there are none, or one is not understood.
    pub fn shipped(world_size: usize, isa: Isa) -> Result<Self> {
        Self::with(world_size, isa, |_, text| text.to_owned())
    }

    /// The shipped ones, each changed by `mutate`.
    ///
    /// # Errors
    /// As [`Self::shipped`].
    pub fn with(world_size: usize, isa: Isa, mutate: impl Fn(Algorithm, &str) -> String) -> Result<Self> {
        Self::of(false, world_size, isa, mutate)
    }

    /// Those of a hybrid cube mesh, each changed by `mutate`.
    ///
    /// # Errors
    /// As [`Self::shipped`].
    pub fn in_cube_mesh(mutate: impl Fn(Algorithm, &str) -> String) -> Result<Self> {
        Self::of(true, MAX_RANKS, Isa::V70, mutate)
    }

    /// The shipped ones that may be launched on one lane with those of `algorithm`.
    ///
    /// # Errors
    /// As [`Self::shipped`].
    pub fn with_those_of(algorithm: Algorithm, world_size: usize, isa: Isa) -> Result<Self> {
        Self::of(algorithm.is_of_cube_mesh(), world_size, isa, |_, text| text.to_owned())
    }

    fn of(
        cube_mesh: bool,
        world_size: usize,
        isa: Isa,
        mutate: impl Fn(Algorithm, &str) -> String,
    ) -> Result<Self> {
        let module = |algorithm: Algorithm| {
            let isa = if algorithm.is_by_packets() { isa } else { Isa::V70 };
            let text = shipped_kernels()
                .find(|text| (text.algorithm, text.world_size, text.isa) == (algorithm, world_size, isa))
                .with_context(|| format!("{algorithm} is not shipped for {world_size} ranks in {isa}"))?;
            anyhow::Ok((algorithm, Arc::new(Module::parse(&mutate(algorithm, text.ptx))?)))
        };
        let here = Algorithm::OF_SLICES.into_iter().filter(|one| one.is_of_cube_mesh() == cube_mesh);
        let modules: Vec<_> = here.map(module).collect::<Result<_>>()?;
        let (first, _) = modules.first().context("there are none")?;
        // All-reduces over ranks of which as many are mapped, by packets of the same width.
        let others = Others::shipped(*first, world_size, isa)?;
        Ok(Self { modules, others, focus: None, collective: None, world_size, isa })
    }

    /// The same kernels, of which those of `algorithm` are launched in half of the calls at least.
    #[must_use]
    pub fn with_focus(self, algorithm: Algorithm) -> Self {
        Self { focus: Some(algorithm), ..self }
    }

    /// The same kernels, with lists among the all-reduces between.
    ///
    /// # Errors
    /// If their text is not understood.
    pub fn with_lists(self) -> Result<Self> {
        let (first, _) = self.modules.first().context("there are none")?;
        let others = Others::with_lists(*first, self.world_size, self.isa)?;
        Ok(Self { others, ..self })
    }

    /// The same kernels, of which those that serve `collective` are launched for nothing else, and the others not at all.
    #[must_use]
    pub fn with_collective(self, collective: Collective) -> Self {
        Self { collective: Some(collective), ..self }
    }

    /// The same kernels, but those of `algorithm` from this text.
    ///
    /// # Errors
    /// If it is not understood.
    pub fn with_text(self, algorithm: Algorithm, text: &str) -> Result<Self> {
        self.with_module(algorithm, Arc::new(Module::parse(text)?))
    }

    /// The same kernels, but those of `algorithm` from this module.
    ///
    /// # Errors
    /// If there are none of the algorithm among them.
    pub fn with_module(mut self, algorithm: Algorithm, module: Arc<Module>) -> Result<Self> {
        let known = self.modules.iter_mut().find(|(known, _)| *known == algorithm);
        known.with_context(|| format!("{algorithm} is not among them"))?.1 = module;
        Ok(self)
    }

    /// Runs what `seed` stands for.
    ///
    /// # Errors
    /// The outer one if there is no kernel for it; the inner one if anything is found, a kernel gives up, or a result is wrong.
    pub fn play(&self, seed: u64, options: Options) -> Result<Result<Summary, RunFailure>> {
        self.play_scenario(&self.scenario(seed), seed, options)
    }

    /// Runs a scenario.
    ///
    /// # Errors
    /// As [`Self::play`].
    pub fn play_scenario(
        &self,
        scenario: &SliceScenario,
        seed: u64,
        options: Options,
    ) -> Result<Result<Summary, RunFailure>> {
        let (ranks, expected) = self.launch(scenario, seed, options)?;
        Ok(ranks.finish(&expected))
    }

    /// A session in which all calls of a scenario are queued and none has begun, and what must come of them.
    ///
    /// # Errors
    /// If there is no kernel for it.
    pub(crate) fn prepare(&self, scenario: &SliceScenario, seed: u64) -> Result<(Session, Vec<Expected>)> {
        let (ranks, expected) = self.launch(scenario, seed, Options { seed, ..Options::default() })?;
        Ok((ranks.session, expected))
    }

    fn launch(
        &self,
        scenario: &SliceScenario,
        seed: u64,
        options: Options,
    ) -> Result<(Ranks, Vec<Expected>)> {
        let world_size = self.world_size;
        let is_absent = scenario.odd.is_some_and(|odd| odd.is_absent);
        // Whoever waits for the deadline is not starved before it has passed.
        let patience = if is_absent { options.patience.max(PATIENCE_NS) } else { options.patience };
        let slices = scenario.calls.iter().flat_map(|call| call.bytes.iter().flatten().copied());
        let most = u64::from(slices.max().unwrap_or(0).max(MOST));
        // Of a hybrid cube mesh, a slice lies beside another, and partial sums are in fp32.
        let packets = most * if scenario.relays.is_some() { 4 } else { 2 };
        let lists = scenario.calls.iter().filter(|call| call.algorithm.is_of_lists());
        let units = lists.map(|call| call.cuts.units(scenario.count(call), scenario.dtype, self.isa));
        let packets = packets.max(units.max().unwrap_or(0) * packets::SLOT_BYTES);
        let packets = PacketLayout::new(packets, world_size as u32);
        let stride = most.next_multiple_of(VECTOR_BYTES as u64);
        let reduced = |call: &SliceCall| {
            let count = scenario.count(call) as u64;
            geometry::staging_bytes(call.algorithm, count, scenario.dtype, world_size as u32)
        };
        let staging = scenario.calls.iter().map(reduced).max().unwrap_or(0).max(stride * world_size as u64);
        let said = scenario.odd.map(|odd| {
            let of =
                |from| (0..world_size).map(move |to| scenario.said(odd.call, from, to).encode()).collect();
            (0..world_size).map(of).collect()
        });
        let sequence = Sequence {
            positions: scenario.positions.clone(),
            relays: scenario.relays.clone(),
            lane: scenario.lane,
            first: scenario.first,
            algorithms: scenario.calls.iter().map(|call| call.algorithm).collect(),
            isa: self.isa,
            abort: scenario.abort,
            odd: scenario.odd,
            said: said.unwrap_or_default(),
        };
        let mut ranks = Ranks::new(sequence, staging, packets, Options { seed, patience, ..options });
        let mut expected = Vec::new();
        for (number, call) in scenario.calls.iter().enumerate() {
            let messages: Vec<Vec<u8>> =
                (0..world_size).map(|rank| scenario.message(seed, number, rank)).collect();
            for rank in 0..world_size {
                let result = scenario.result(call, &messages, rank);
                let Buffers { input, output, result } =
                    buffers(&mut ranks, call, (rank, number), &messages[rank], result);
                let (address, bytes) = result;
                expected.push(Expected { rank, call: number, address, bytes });
                if let Some(late) = scenario.late.filter(|late| (late.rank, late.call) == (rank, number)) {
                    let device = ranks.device(rank);
                    late.launch(&mut ranks.session, device);
                }
                if scenario.odd.is_none_or(|odd| number < odd.calls_of(rank, scenario.calls.len())) {
                    let lane = ranks.params(rank);
                    let launch = LaunchParams {
                        lane,
                        input,
                        output,
                        count: 0,
                        descriptor: 0,
                        deadline_ns: scenario
                            .odd
                            .map_or(DEADLINE_NS, |odd| odd.deadline(number, DEADLINE_NS)),
                        tag: 0,
                        flags: call.flags(rank),
                        scale: scenario.op.scale(world_size as u32),
                        kind: if call.collective.reduces() {
                            launch::kind(scenario.dtype, scenario.op)
                        } else {
                            0
                        },
                    };
                    self.enqueue(&mut ranks, scenario, (rank, number), launch, stride)?;
                }
            }
        }
        ranks.launch_abort();
        Ok((ranks, expected))
    }

    fn enqueue(
        &self,
        ranks: &mut Ranks,
        scenario: &SliceScenario,
        (rank, number): (usize, usize),
        launch: LaunchParams,
        stride: u64,
    ) -> Result<()> {
        let call = &scenario.calls[number];
        let of_slices = self.modules.iter().find(|(known, _)| *known == call.algorithm);
        let (module, params) = match of_slices {
            Some((_, module)) => {
                let params = scenario.params((rank, number), launch, stride);
                (&**module, params::slice_bytes(&params))
            }
            None => {
                let said = scenario.said(number, rank, rank);
                let count = scenario.count(call);
                let params = LaunchParams {
                    count: count as u64,
                    descriptor: said.encode(),
                    tag: said.tag(),
                    ..launch
                };
                let params = match call.algorithm.is_of_lists() {
                    true => {
                        let (kind, of) = ((scenario.dtype, scenario.op), (self.world_size, self.isa));
                        params::list_bytes(&params::list(params, 0, &call.cuts.counts(count), kind, of))
                    }
                    false => params::bytes(&params),
                };
                let module = self.others.of(call.algorithm);
                let module = module.with_context(|| format!("there are no kernels of {}", call.algorithm))?;
                (module, params)
            }
        };
        let isa = self.isa_of(call.algorithm);
        let text = TextName { algorithm: call.algorithm, world_size: self.world_size, isa };
        let name = KernelName::new(text, scenario.dtype, scenario.op).to_string();
        let kernel = module.kernel(&name).with_context(|| format!("there is no kernel {name}"))?;
        let blocks = if call.ragged { 1 + (call.blocks + rank as u32) % 3 } else { call.blocks };
        let block = [call.threads + packets::counting_threads(call.algorithm), 1, 1];
        let device = ranks.device(rank);
        let launch = Launch { kernel, grid: [blocks, 1, 1], block, params, dynamic_shared: 0 };
        ranks.session.launch(device, launch);
        Ok(())
    }
}

/// A rank's buffers of a call, with its message written.
fn buffers(
    ranks: &mut Ranks,
    call: &SliceCall,
    (rank, number): (usize, usize),
    message: &[u8],
    result: Vec<u8>,
) -> Buffers {
    let shift = call.shift as usize;
    let mut buffer = |bytes: usize, what: &str| {
        ranks.buffer(rank, &format!("{what} of call {number}"), shift + bytes + BEHIND) + call.shift
    };
    let around = |bytes: &[u8]| [&vec![0; shift], bytes, &[0; BEHIND]].concat();
    if !call.in_place[rank] {
        let (input, output) = (buffer(message.len(), "input"), buffer(result.len(), "output"));
        ranks.session.write(input, message);
        return Buffers { input, output, result: (output - call.shift, around(&result)) };
    }
    // One is the other's slice of this rank, or they are the same.
    let before = |slices: &mut dyn Iterator<Item = u32>| slices.take(rank).sum::<u32>() as usize;
    let from = before(&mut call.bytes.iter().map(|row| row[rank]));
    let to = before(&mut call.bytes[rank].iter().copied());
    match call.collective {
        Collective::AllGather => {
            let output = buffer(result.len(), "buffer");
            let input = output + from as u64;
            ranks.session.write(input, message);
            Buffers { input, output, result: (output - call.shift, around(&result)) }
        }
        Collective::ReduceScatter => {
            let input = buffer(message.len(), "buffer");
            ranks.session.write(input, message);
            let mut end = message.to_vec();
            end[to..to + result.len()].copy_from_slice(&result);
            Buffers { input, output: input + to as u64, result: (input - call.shift, around(&end)) }
        }
        _ => {
            let address = buffer(message.len().max(result.len()), "buffer");
            ranks.session.write(address, message);
            let mut end = message.to_vec();
            end.resize(message.len().max(result.len()), 0);
            end[..result.len()].copy_from_slice(&result);
            Buffers { input: address, output: address, result: (address - call.shift, around(&end)) }
        }
    }
}

impl SliceScenario {
    /// The elements of an all-reduce.
    fn count(&self, call: &SliceCall) -> usize {
        call.bytes[0][0] as usize / self.dtype.size()
    }

    /// What a rank says to another that it launches.
    fn said(&self, number: usize, from: usize, to: usize) -> LaunchDescriptor {
        let call = &self.calls[number];
        let is_odd = self.odd.is_some_and(|odd| odd.says_otherwise(from, number));
        self.descriptor(call, call.bytes[from][to], is_odd)
    }

    /// What a rank must be told by another.
    fn expected(&self, number: usize, from: usize, to: usize) -> LaunchDescriptor {
        let call = &self.calls[number];
        let is_odd = self.odd.is_some_and(|odd| odd.says_otherwise(to, number));
        self.descriptor(call, call.bytes[from][to], is_odd)
    }

    fn descriptor(&self, call: &SliceCall, bytes: u32, is_odd: bool) -> LaunchDescriptor {
        let SliceCall { collective, algorithm, root, .. } = *call;
        let reduces = collective.reduces();
        let element = if reduces { Element::Typed(self.dtype) } else { Element::Sized(ElementSize::ONE) };
        let count = match algorithm.is_of_lists() {
            true => call.cuts.tensors as u64,
            false => u64::from(bytes) / element.bytes() as u64,
        };
        LaunchDescriptor {
            collective,
            algorithm,
            element,
            op: reduces.then_some(self.op),
            root: if collective.has_root() { root as u32 } else { 0 },
            count: count + u64::from(is_odd),
        }
    }

    fn params(&self, (rank, number): (usize, usize), launch: LaunchParams, stride: u64) -> SliceParams {
        let call = &self.calls[number];
        let (shares, reduces) = (call.shares(), call.collective.reduces());
        // By rank in memory, by position in the tables.
        let before = |slices: &mut dyn Iterator<Item = u32>, peer: usize| {
            slices.take(peer).map(u64::from).sum::<u64>()
        };
        let sent = |peer: usize| {
            let before = before(&mut call.bytes[rank].iter().copied(), peer);
            (launch.input + if shares { 0 } else { before }, call.bytes[rank][peer])
        };
        let received = |peer: usize| {
            let before = before(&mut call.bytes.iter().map(|row| row[rank]), peer);
            (launch.output + if reduces { 0 } else { before }, call.bytes[peer][rank])
        };
        let own = launch.lane.position as usize;
        let peers = (0..self.positions.len()).map(|place| match &self.relays {
            Some(relays) if call.algorithm.is_of_cube_mesh() && place / 4 != own / 4 => {
                self.positions[relays[place ^ 4]]
            }
            _ => self.positions[place],
        });
        let mut params = SliceParams {
            launch,
            sent: Slices::new(peers.clone().map(sent)),
            received: Slices::new(peers.map(received)),
            stride: if shares { 0 } else { stride },
            said: [0; MAX_RANKS],
            expected: [0; MAX_RANKS],
            tags_said: [0; MAX_RANKS],
            tags_expected: [0; MAX_RANKS],
        };
        for (position, &peer) in self.positions.iter().enumerate() {
            let (told, expected) = (self.said(number, rank, peer), self.expected(number, peer, rank));
            (params.said[position], params.expected[position]) = (told.encode(), expected.encode());
            (params.tags_said[position], params.tags_expected[position]) = (told.tag(), expected.tag());
        }
        params
    }

    fn message(&self, seed: u64, number: usize, rank: usize) -> Vec<u8> {
        let bytes = self.calls[number].input_bytes(rank);
        let count = bytes.div_ceil(self.dtype.size());
        let mut message = inputs::message(seed, 1, number, rank, count, self.dtype);
        message.truncate(bytes);
        message
    }

    /// What a rank must have in its output.
    fn result(&self, call: &SliceCall, messages: &[Vec<u8>], rank: usize) -> Vec<u8> {
        let slice = |from: usize| {
            let first = if call.shares() { 0 } else { call.bytes[from][..rank].iter().sum::<u32>() } as usize;
            messages[from][first..first + call.bytes[from][rank] as usize].to_vec()
        };
        if call.collective.reduces() {
            let in_tree: Vec<Vec<u8>> = self.positions.iter().map(|&from| slice(from)).collect();
            reference::all_reduce(&in_tree, self.dtype, self.op)
        } else {
            (0..messages.len()).map(slice).collect::<Vec<_>>().concat()
        }
    }
}
