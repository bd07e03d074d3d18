//! What one rank builds between joining and the verdict, and how it takes it down again.

use std::sync::Arc;

use meshreduce_wire::MAX_BLOCKS;
use meshreduce_wire::segment::SegmentLayout;

use super::exchange::{Acknowledgement, First, Offer, Second, judge_first, judge_second, settings};
use super::session::{Session, Stop};
use super::verdict::{Step, Verdict};
use crate::algorithms::Ground;
use crate::communicator::{Parts, Shared};
use crate::config::Config;
use crate::driver::{self, PrimaryContext, Stream};
use crate::error::Error;
use crate::farewell::Farewell;
use crate::identity::{Device, Host, Identity, Process};
use crate::kernels::{KernelText, Kernels};
use crate::segment::{Listed, Reach, Segment};
use crate::select::Selector;
use crate::topology::{Mesh, Topology, nvml::Fabric};

/// What a rank needs whatever the others do: the kernels' texts, a driver and its device.
pub(super) fn check_here(
    world_size: usize,
    device: u32,
    config: &Config,
) -> Result<(Vec<KernelText>, Arc<PrimaryContext>), Error> {
    let texts = KernelText::choose(config, world_size)?;
    driver::initialise()?;
    Ok((texts, PrimaryContext::retain(device)?))
}

/// What must outlive a failed attempt until the peers have closed it.
#[derive(Default)]
pub(super) struct Assembly {
    segment: Option<Arc<Segment>>,
    listed: Option<Listed>,
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
    ) -> Result<Shared, Stop> {
        let (texts, context) = check_here(world_size, device, config)?;
        let process = Process::current()?;
        let identity = Identity { host: Host::current()?, process, device: context.identity()? };
        let settings = settings(config, world_size, &KernelText::digest(&texts));

        let first = session.exchange(Step::First, &First { identity, settings })?;
        if let Some(verdict) = judge_first(&first, config.allow_shared_devices) {
            return Err(session.decide(verdict));
        }
        let devices: Vec<Device> = first.iter().map(|first| first.identity.device).collect();
        let processes: Vec<Process> = first.iter().map(|first| first.identity.process).collect();

        let seen = Seen::look(&context, rank, &devices, config)?;
        let mut own = Second {
            mesh: seen.mesh,
            topology: seen.topology,
            barred_from: seen.barred_from,
            block_cap: 0,
            segment: None,
        };
        let ground = Ground::new(own.topology, &own.mesh);
        let selector = Selector { ground, limits: config.limits, forced: config.forced_algorithm };
        let mut loaded = None;
        // Alone, this rank's view already says whether it applies: allocate nothing that will not be used.
        if judge_second(std::slice::from_ref(&own)).is_none() {
            selector.check()?;
            let kernels = Kernels::load(&context, &texts, ground, world_size)?;
            let sharers = devices.iter().filter(|device| device.uuid == devices[rank].uuid).count() as u32;
            own.block_cap = block_cap(&kernels, &context, sharers, config.lanes)?;
            let half = ground.staging_half_bytes(&config.limits, world_size);
            let layout = SegmentLayout::new(config.lanes, half);
            let stream = Stream::new(&context)?;
            let segment =
                Arc::new(Segment::new(&context, layout, config.lanes, config.first_call_number, &stream)?);
            own.segment = Some(Offer { ipc: segment.export()? });
            self.listed = Some(Listed::new(session.generation(), rank, &segment));
            self.exported = processes.iter().any(|other| *other != process);
            self.segment = Some(Arc::clone(&segment));
            loaded = Some((kernels, layout, stream, segment));
        }

        let second = session.exchange(Step::Second, &own)?;
        if let Some(verdict) = judge_second(&second) {
            return Err(session.decide(verdict));
        }
        let Some((kernels, layout, stream, segment)) = loaded else {
            return Err(Stop::Local(Error::RankFailed { rank, message: "it has no segment".into() }));
        };
        let neighbours = own.mesh.neighbours(own.topology, rank);
        let mut reaches = Vec::with_capacity(world_size);
        for (peer, offer) in second.iter().enumerate() {
            reaches.push(if peer == rank {
                Some(Reach::Own(Arc::clone(&segment)))
            } else if !neighbours.contains(&peer) {
                None
            } else if processes[peer] == process {
                Some(Reach::local(&context, session.generation(), rank, peer)?)
            } else {
                let offer = offer.segment.as_ref().ok_or_else(|| Error::RankFailed {
                    rank: peer,
                    message: "it offers no segment".into(),
                })?;
                Some(Reach::remote(&context, rank, peer, &offer.ipc)?)
            });
        }
        let farewell = Farewell::open(session.generation(), rank, world_size)?;
        let block_cap = second.iter().map(|second| second.block_cap).min().unwrap_or(1);
        let shared = Shared::new(
            Parts { context, stream, kernels, reaches, farewell, selector, processes, mesh: own.mesh },
            layout,
            rank,
            block_cap,
            config,
        )?;
        match session.exchange(Step::Acknowledgement, &Acknowledgement) {
            Ok(_) => {
                shared.complete();
                Ok(shared)
            }
            Err(stop) => {
                shared.dismantle();
                Err(stop)
            }
        }
    }

    /// The communicator is ready and owns everything.
    pub(super) fn keep(self) {}

    /// Acknowledges a verdict that is not *ready*, waits until the peers have done so, and frees the segment. What is
    /// open of the peers' memory has been closed before.
    ///
    /// A rank that `lingers` waits a moment for the others also if it has allocated nothing: they should learn what
    /// happened to it, and not find an attempt of dead processes.
    pub(super) fn take_down(self, session: &Session<'_>, verdict: &Verdict, lingers: bool) {
        let acknowledged = session.acknowledge(verdict).and_then(|()| match (self.exported, lingers) {
            (true, _) => session.all_acknowledged(verdict, super::TAKE_DOWN_LIMIT),
            (false, true) => session.all_acknowledged(verdict, super::LINGER_LIMIT),
            (false, false) => Ok(true),
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

/// What a rank sees of the fabric.
struct Seen {
    mesh: Mesh,
    topology: Topology,
    barred_from: Option<usize>,
}

impl Seen {
    fn look(
        context: &PrimaryContext,
        rank: usize,
        devices: &[Device],
        config: &Config,
    ) -> Result<Self, Error> {
        let fabric = Fabric::open(devices).and_then(|fabric| Ok((fabric.mesh()?, fabric)));
        let given = config.assumed_links.is_some() || config.forced_topology.is_some();
        let (mesh, fabric) = match fabric {
            Ok((mesh, fabric)) => (mesh, Some(fabric)),
            // Who says what the links are needs no NVML.
            Err(error) if given => {
                tracing::info!(%error, "the topology is given, and NVML does not tell the links");
                (Mesh::new(devices.len(), |_, _| 0), None)
            }
            Err(error) => return Err(error),
        };
        let mesh = config.assumed_links.clone().unwrap_or(mesh);
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
        Ok(Self { mesh, topology, barred_from })
    }
}

/// Blocks of one grid that fit the device while every other lane and every other rank on it runs one too: blocks
/// wait for blocks of other ranks, so all of them must be resident at once.
fn block_cap(kernels: &Kernels, context: &PrimaryContext, sharers: u32, lanes: u32) -> Result<u32, Error> {
    let resident = kernels.occupancy().saturating_mul(context.multiprocessors()?);
    match resident / (sharers * lanes) {
        0 => Err(Error::DeviceTooSmall { device: context.ordinal(), resident, sharers, lanes }),
        blocks => Ok(blocks.min(MAX_BLOCKS)),
    }
}
