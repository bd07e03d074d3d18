//! What one rank builds between joining and the verdict, and how it takes it down again.

use std::sync::Arc;
use std::time::Duration;

use meshreduce_device::identity::Device;
use meshreduce_device::{self as device, ComputeCapability, PrimaryContext, Stream};
use meshreduce_store::clock::Pause;
use meshreduce_store::identity::{Member, Process, namespace};
use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{Isa, MAX_BLOCKS};

use super::exchange::{Acknowledgement, First, Identity, Offer, Second, judge_first, judge_second, settings};
use super::session::{Session, StepError};
use super::verdict::{RendezvousFailure, Step, Verdict};
use crate::algorithms::Interconnect;
use crate::config::Config;
use crate::control::Control;
use crate::control::connect::Listener;
use crate::error::Error;
use crate::kernels::{KernelText, Kernels};
use crate::loaded::Loaded;
use crate::residency::Residency;
use crate::segment::{Mapping, Registration, Segment};
use crate::select::Selector;
use crate::shared::{Parts, Shared};
use crate::topology::nvml::{Fabric, mesh};
use crate::topology::{Mesh, Topology};

/// What a rank needs whatever the others do: the kernels' texts, a driver and its device.
pub(super) fn check_here(
    world_size: usize,
    ordinal: u32,
    config: &Config,
) -> Result<(Vec<KernelText>, Arc<PrimaryContext>), Error> {
    let texts = KernelText::choose(config, world_size)?;
    device::initialise()?;
    Ok((texts, PrimaryContext::retain(ordinal)?))
}

/// What must outlive a failed attempt until the peers have closed it.
#[derive(Default)]
pub(super) struct Assembly {
    segment: Option<Arc<Segment>>,
    registration: Option<Registration>,
    /// Whether other processes may have the segment open.
    exported: bool,
}

impl Assembly {
    /// Goes through the exchanges and builds everything but the verdict.
    pub(super) fn build(
        &mut self,
        session: &mut Session<'_>,
        rank: usize,
        world_size: usize,
        device: u32,
        config: &Config,
    ) -> Result<Shared, StepError> {
        let (texts, context) = check_here(world_size, device, config)?;
        let own = first(&context, &texts, world_size, config)?;
        let ranks = Ranks::meet(session, rank, &own, &texts, config)?;
        let mut setup = Setup::new(&context, texts, &ranks, config)?;
        // Alone, this rank's view already says whether it applies: allocate nothing that will not be used.
        let made = match judge_second(std::slice::from_ref(&setup.own)) {
            None => Some(self.make(session, &context, &ranks, &mut setup, config)?),
            Some(_) => None,
        };
        let second = session.exchange(Step::Second, &setup.own)?;
        if let Some(verdict) = judge_second(&second) {
            return Err(session.decide(verdict));
        }
        let offers: Option<Vec<&Offer>> = second.iter().map(|second| second.segment.as_ref()).collect();
        let (Some(mut made), Some(offers)) = (made, offers) else {
            let rank = second.iter().position(|second| second.segment.is_none()).unwrap_or(rank);
            let message = "it offers no segment".to_owned();
            return Err(StepError::Local(Error::RankFailed { rank, message }));
        };
        let mappings = ranks.map(session, &context, &setup.own, &made, &offers)?;
        let control = ranks.connect(session, made.listener, &offers)?;
        let block_cap = second.iter().map(|second| second.block_cap).min().unwrap_or(1);
        made.residency.shrink(block_cap * config.lanes);
        let parts = Parts {
            context,
            stream: made.stream,
            loaded: made.loaded,
            isa: setup.isa,
            mappings,
            control,
            selector: setup.selector,
            processes: ranks.processes,
            mesh: setup.own.mesh,
            residency: made.residency,
        };
        let shared = Shared::new(parts, made.layout, rank, block_cap, config)?;
        acknowledge(session, rank, shared)
    }

    /// Loads the kernels, takes this rank's share of its device, allocates its segment, and offers that to the others.
    fn make(
        &mut self,
        session: &Session<'_>,
        context: &Arc<PrimaryContext>,
        ranks: &Ranks,
        setup: &mut Setup,
        config: &Config,
    ) -> Result<Made, Error> {
        let (world_size, interconnect) = (setup.selector.world_size, setup.selector.interconnect);
        setup.selector.check()?;
        let loaded = Loaded::get(context, &setup.texts, interconnect, setup.isa, world_size)?;
        let share = Share::of(&loaded.kernels, context, ranks.sharers(), config)?;
        let residency = share.take(ranks.devices[ranks.rank].uuid, config)?;
        let half = interconnect.staging_half_bytes(&config.limits, world_size);
        let packets = interconnect.packet_layout(&config.limits, world_size);
        let layout = SegmentLayout::new(config.lanes, half, packets);
        let stream = Stream::new(context)?;
        let segment = Segment::new(context, layout, config.lanes, config.first_call_number, &stream)?;
        let segment = Arc::new(segment);
        let listener = Listener::open()?;
        setup.own.block_cap = share.block_cap;
        setup.own.segment = Some(Offer { ipc: segment.export()?, place: listener.place() });
        self.registration = Some(Registration::new(session.generation(), ranks.rank, &segment));
        self.exported = (0..world_size).any(|peer| !ranks.are_one_process(peer));
        self.segment = Some(Arc::clone(&segment));
        Ok(Made { loaded, residency, layout, stream, segment, listener })
    }

    /// The communicator is ready and owns everything.
    pub(super) fn keep(self) {}

    /// Acknowledges a verdict that is not *ready*, waits until the peers have done so, and frees the segment. What is
    /// open of the peers' memory has been closed before.
    ///
    /// A rank that has allocated nothing waits a moment for those of whom `lingers` speaks: they should learn what happened
    /// to it, and not find an attempt of dead processes.
    pub(super) fn take_down(self, session: &Session<'_>, verdict: &Verdict, lingers: Lingers) {
        let acknowledged = session.acknowledge(verdict).and_then(|()| match (self.exported, lingers) {
            (true, _) => session.all_acknowledged(verdict, super::TAKE_DOWN_LIMIT),
            (false, Lingers::ForAll) => session.all_acknowledged(verdict, super::LINGER_LIMIT),
            (false, Lingers::ForMembers) => session.members_acknowledged(verdict, super::LINGER_LIMIT),
            // Those that have joined do it now. If the last of them is killed in the middle of it, somebody must be there.
            (false, Lingers::No) => session.all_acknowledged(verdict, Duration::ZERO),
        });
        match acknowledged {
            Ok(true) => {}
            _ if !self.exported => {}
            Ok(false) => self.leak("the other ranks did not say that they have closed it"),
            Err(error) => self.leak(&error.to_string()),
        }
    }

    fn leak(self, why: &str) {
        tracing::warn!(why, "a segment is leaked, because a peer may have it open");
        std::mem::forget(self.segment);
    }
}

/// For whom a rank waits a moment at the end of a rendezvous that has come to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lingers {
    No,
    /// Those who have joined it.
    ForMembers,
    /// Those who have not come yet, too.
    ForAll,
}

/// What this rank says in the first exchange.
fn first(
    context: &PrimaryContext,
    texts: &[KernelText],
    world_size: usize,
    config: &Config,
) -> Result<First, Error> {
    let identity = Identity {
        member: Member::current()?,
        network: namespace("net")?,
        // Only messages tell of it.
        ipc: namespace("ipc").unwrap_or(0),
        device: context.identity()?,
    };
    let capability = context.compute_capability()?;
    let settings = settings(config, world_size, &KernelText::digest(texts));
    let ComputeCapability { major, minor } = capability;
    let isa = Isa::best((major, minor), device::driver_version()?.0).min(config.latest_isa);
    Ok(First { identity, capability, isa, settings })
}

/// This rank acknowledges, and waits until all have. From then on the others may take it for ready.
fn acknowledge(session: &mut Session<'_>, rank: usize, shared: Shared) -> Result<Shared, StepError> {
    match session.exchange(Step::Acknowledgement, &Acknowledgement) {
        Ok(_) => Ok(shared),
        Err(StepError::Local(error)) => {
            // This rank has acknowledged, and the others may take it for ready by now.
            match session.propose(&Verdict::Failed(RendezvousFailure::of(rank, &error))) {
                Ok(Verdict::Ready) => Ok(shared),
                Ok(_) => {
                    shared.dismantle();
                    Err(StepError::Local(error))
                }
                Err(_) => {
                    drop(shared);
                    Err(StepError::Local(error))
                }
            }
        }
        Err(stop) => {
            shared.dismantle();
            Err(stop)
        }
    }
}

/// What all ranks have said in the first exchange.
struct Ranks {
    /// This rank.
    rank: usize,
    first: Vec<First>,
    devices: Vec<Device>,
    processes: Vec<Process>,
}

impl Ranks {
    /// The first exchange.
    fn meet(
        session: &mut Session<'_>,
        rank: usize,
        own: &First,
        texts: &[KernelText],
        config: &Config,
    ) -> Result<Self, StepError> {
        let first = session.exchange(Step::First, own)?;
        // A later ISA is agreed on only where all devices are newer than that.
        let needed = KernelText::needed(&KernelText::agreed(texts.to_vec(), Isa::V70));
        if let Some(verdict) = judge_first(&first, config.allow_shared_devices, needed) {
            return Err(session.decide(verdict));
        }
        let devices = first.iter().map(|first| first.identity.device).collect();
        let processes = first.iter().map(|first| first.identity.member.process).collect();
        Ok(Self { rank, first, devices, processes })
    }

    /// The latest ISA that all take.
    fn isa(&self) -> Isa {
        self.first.iter().map(|first| first.isa).min().unwrap_or(Isa::V70)
    }

    /// How many ranks have this rank's device.
    fn sharers(&self) -> u32 {
        let own = &self.devices[self.rank];
        self.devices.iter().filter(|device| device.uuid == own.uuid).count() as u32
    }

    /// Whether a rank is in the process of this one.
    fn are_one_process(&self, peer: usize) -> bool {
        self.processes[peer] == self.processes[self.rank]
    }

    /// Opens the segments of this rank's neighbours, as they offer them. By rank; `None` where there is no link.
    fn map(
        &self,
        session: &Session<'_>,
        context: &Arc<PrimaryContext>,
        own: &Second,
        made: &Made,
        offers: &[&Offer],
    ) -> Result<Vec<Option<Mapping>>, StepError> {
        let (rank, bytes) = (self.rank, made.layout.bytes());
        let neighbours = own.mesh.neighbours(own.topology, rank);
        let mut mappings = Vec::with_capacity(offers.len());
        for (peer, offer) in offers.iter().enumerate() {
            let mapping = if peer == rank {
                Some(Mapping::Own(Arc::clone(&made.segment)))
            } else if !neighbours.contains(&peer) {
                None
            } else if self.are_one_process(peer) {
                Some(Mapping::local(context, session.generation(), rank, peer, bytes)?)
            } else {
                let namespaces = self.first[rank].identity.shares_with(&self.first[peer].identity);
                match Mapping::remote(context, rank, peer, &offer.ipc, bytes, namespaces) {
                    Ok(mapping) => Some(mapping),
                    // The memory of a process that died is gone: that is the failure, not the refusal.
                    Err(Error::IpcRefused { .. }) if dies_soon(&self.processes[peer]) => {
                        let pid = self.processes[peer].pid;
                        let died = RendezvousFailure::Died { rank: peer, pid, step: Step::Acknowledgement };
                        return Err(session.decide(Verdict::Failed(died)));
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            mappings.push(mapping);
        }
        Ok(mappings)
    }

    /// Connects this rank with all others.
    fn connect(
        &self,
        session: &mut Session<'_>,
        listener: Listener,
        offers: &[&Offer],
    ) -> Result<Control, StepError> {
        let places = offers.iter().map(|offer| offer.place).collect();
        let mut connecting = listener.connect(self.rank, places, self.processes.clone());
        session.until(Step::Connecting, |_| Ok(connecting.advance()?))?;
        Ok(connecting.finish())
    }
}

/// What follows from the first exchange and the links that this rank sees.
struct Setup {
    /// What this rank says in the second exchange.
    own: Second,
    isa: Isa,
    texts: Vec<KernelText>,
    selector: Selector,
}

impl Setup {
    fn new(
        context: &PrimaryContext,
        texts: Vec<KernelText>,
        ranks: &Ranks,
        config: &Config,
    ) -> Result<Self, Error> {
        let LocalTopology { mesh, topology, hidden, barred_from } =
            LocalTopology::detect(context, ranks.rank, &ranks.devices, config)?;
        let own = Second { mesh, topology, hidden, barred_from, block_cap: 0, segment: None };
        let interconnect = Interconnect::new(own.topology, &own.mesh);
        let isa = ranks.isa().min(interconnect.latest_isa());
        let selector = Selector {
            interconnect,
            limits: config.limits,
            world_size: ranks.first.len(),
            forced: config.forced_algorithm,
        };
        Ok(Self { own, isa, texts: KernelText::agreed(texts, isa), selector })
    }
}

/// The topology as one rank detects it.
struct LocalTopology {
    mesh: Mesh,
    topology: Topology,
    /// Links of the rank's own device that lead to a place that NVML does not tell.
    hidden: u32,
    barred_from: Option<usize>,
}

impl LocalTopology {
    fn detect(
        context: &PrimaryContext,
        rank: usize,
        devices: &[Device],
        config: &Config,
    ) -> Result<Self, Error> {
        let fabric = Fabric::open(devices).and_then(|fabric| Ok((fabric.links()?, fabric)));
        let given = config.assumed_links.is_some() || config.forced_topology.is_some();
        let (mesh, hidden, fabric) = match fabric {
            Ok((links, fabric)) => (mesh(devices, &links), links[rank].hidden, Some(fabric)),
            // Who says what the links are needs no NVML.
            Err(error) if given => {
                tracing::info!(%error, "the topology is given, and NVML does not tell the links");
                (Mesh::new(devices.len(), |_, _| 0), 0, None)
            }
            Err(error) => return Err(error),
        };
        // Links that are given are all there are.
        let (mesh, hidden) = config.assumed_links.clone().map_or((mesh, hidden), |given| (given, 0));
        let topology = config.forced_topology.unwrap_or_else(|| mesh.classify());
        let barred_from = mesh.barred_from(topology, rank, |peer| -> Result<bool, Error> {
            if devices[peer].uuid == devices[rank].uuid {
                return Ok(true);
            }
            match (context.can_access(devices[peer].pci)?, &fabric) {
                (Some(can), _) => Ok(can),
                // A device that is hidden from this process: NVML sees it all the same.
                (None, Some(fabric)) => fabric.peer_access(rank, peer),
                (None, None) => Ok(false),
            }
        })?;
        Ok(Self { mesh, topology, hidden, barred_from })
    }
}

/// How long a process that dies may take from losing its memory to having ended.
const DYING: Duration = Duration::from_secs(1);

/// Whether a process has ended, or ends in the next moment.
fn dies_soon(process: &Process) -> bool {
    let mut pause = Pause::new(DYING);
    loop {
        if process.has_ended() {
            return true;
        }
        if !pause.again() {
            return false;
        }
    }
}

/// What a rank makes of its own before it knows the others'.
struct Made {
    loaded: Loaded,
    residency: Residency,
    layout: SegmentLayout,
    stream: Stream,
    segment: Arc<Segment>,
    listener: Listener,
}

/// A communicator's share of its device: blocks wait for blocks of other ranks, so all that may wait for one another must
/// be resident at once. It follows from the device and from what all ranks were configured with, from nothing else.
struct Share {
    ordinal: u32,
    /// Blocks that fit the device at once.
    resident: u32,
    /// Blocks of one grid that fit while every other lane and communicator, and every other rank on it, runs one too.
    block_cap: u32,
}

impl Share {
    fn of(kernels: &Kernels, context: &PrimaryContext, sharers: u32, config: &Config) -> Result<Self, Error> {
        let resident = kernels.occupancy().saturating_mul(context.multiprocessors()?);
        let (lanes, communicators) = (config.lanes, config.communicators_per_device);
        let ordinal = context.ordinal();
        match resident / sharers.saturating_mul(lanes).saturating_mul(communicators) {
            0 => Err(Error::DeviceTooSmall { device: ordinal, resident, sharers, lanes, communicators }),
            blocks => Ok(Self { ordinal, resident, block_cap: blocks.min(MAX_BLOCKS) }),
        }
    }

    /// Takes it from what this process has of the device.
    fn take(&self, device: [u8; 16], config: &Config) -> Result<Residency, Error> {
        let needed = self.block_cap * config.lanes;
        Residency::take(device, needed, self.resident).map_err(|taken| Error::NotResident {
            device: self.ordinal,
            resident: self.resident,
            taken,
            needed,
        })
    }
}
