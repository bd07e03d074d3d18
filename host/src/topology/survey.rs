//! A look at the links of some devices before there are ranks: what a rendezvous would find.
#![forbid(unsafe_code)]

use meshreduce_device::identity::Device;
use meshreduce_device::{ComputeCapability, VisibleDevice};
use meshreduce_wire::{Algorithm, MAX_RANKS, MIN_RANKS};

use super::nvml::{Fabric, Links, mesh};
use super::{HybridCubeMesh, Mesh, Topology};
use crate::algorithms::Interconnect;
use crate::error::Error;
use crate::kernels::needed_for_shipped;
use crate::outcome::NotApplicableReason;
use crate::rendezvous::{judge_devices, judge_view};

/// How some devices are linked. The devices are numbered as ranks would be, in the order in which they were named.
///
/// ```no_run
/// use meshreduce::topology::Survey;
///
/// let survey = Survey::of_visible_devices()?;
/// match survey.verdict() {
///     Ok(topology) => println!("{topology}: {:?}", survey.algorithms()),
///     Err(reason) => println!("not applicable: {reason}"),
/// }
/// # Ok::<(), meshreduce::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    devices: Vec<Surveyed>,
    mesh: Mesh,
}

/// One device of a [`Survey`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Surveyed {
    /// Its CUDA ordinal in this process.
    pub ordinal: u32,
    /// The product's name.
    pub name: String,
    /// What it is.
    pub compute_capability: ComputeCapability,
    /// Where it sits, and its UUID.
    pub device: Device,
    /// What its links lead to.
    pub links: LinkCounts,
    /// By device of the survey: whether this one can access that one's memory. Not so for itself.
    pub accesses: Vec<bool>,
}

/// What the NVLinks of a device lead to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkCounts {
    /// Links to other GPUs, of the survey or not.
    pub direct: u32,
    /// Links to NVSwitches.
    pub switch: u32,
    /// Links that are there but down.
    pub inactive: u32,
    /// Links that are up, but lead to something else.
    pub other: u32,
    /// Links that are up, to a place that NVML does not tell, such as NVSwitches that a virtual machine does not show.
    pub hidden: u32,
}

impl From<&Links> for LinkCounts {
    fn from(links: &Links) -> Self {
        let &Links { ref direct, switch, inactive, other, hidden } = links;
        Self { direct: direct.len() as u32, switch, inactive, other, hidden }
    }
}

impl Survey {
    /// Surveys all devices that this process sees, in the order of their CUDA ordinals.
    ///
    /// # Errors
    ///
    /// As [`Survey::of`].
    pub fn of_visible_devices() -> Result<Self, Error> {
        meshreduce_device::initialise()?;
        let ordinals: Vec<u32> = (0..VisibleDevice::count()?).collect();
        Self::of(&ordinals)
    }

    /// Surveys the devices with these CUDA ordinals, in this order.
    ///
    /// # Errors
    ///
    /// No driver, no such device, or NVML cannot be opened or fails.
    pub fn of(ordinals: &[u32]) -> Result<Self, Error> {
        meshreduce_device::initialise()?;
        let visible: Vec<VisibleDevice> =
            ordinals.iter().map(|ordinal| VisibleDevice::get(*ordinal)).collect::<Result<_, _>>()?;
        let devices: Vec<Device> = visible.iter().map(VisibleDevice::identity).collect::<Result<_, _>>()?;
        let links = Fabric::open(&devices)?.links()?;
        let mesh = mesh(&devices, &links);
        let mut surveyed = Vec::with_capacity(devices.len());
        for (index, one) in visible.iter().enumerate() {
            // The driver is not asked about a device and itself, which is no question that it must answer.
            let can_access = |peer: &Device| match *peer == devices[index] {
                true => Ok(false),
                false => Ok(one.can_access(peer.pci)?.unwrap_or(false)),
            };
            surveyed.push(Surveyed {
                ordinal: one.ordinal(),
                name: one.name()?,
                compute_capability: one.compute_capability()?,
                device: devices[index],
                links: (&links[index]).into(),
                accesses: devices.iter().map(can_access).collect::<Result<_, Error>>()?,
            });
        }
        Ok(Self { devices: surveyed, mesh })
    }

    /// The devices.
    pub fn devices(&self) -> &[Surveyed] {
        &self.devices
    }

    /// The links between them.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The hybrid cube mesh that the devices form, if they do.
    pub fn hybrid_cube_mesh(&self) -> Option<HybridCubeMesh> {
        HybridCubeMesh::derive(&self.mesh)
    }

    /// What a rendezvous of one rank a device would come to: the topology it would use, or why it would not apply.
    /// It is judged by the rendezvous's own rule, for the shipped kernels.
    ///
    /// # Errors
    ///
    /// The reason why it would not apply.
    pub fn verdict(&self) -> Result<Topology, NotApplicableReason> {
        if !(MIN_RANKS..=MAX_RANKS).contains(&self.devices.len()) {
            return Err(NotApplicableReason::WorldSize(self.devices.len()));
        }
        let capabilities = self.devices.iter().map(|one| one.compute_capability);
        if let Some(reason) = judge_devices(capabilities, needed_for_shipped(self.devices.len())) {
            return Err(reason);
        }
        let topology = self.mesh.classify();
        let barred = |rank: usize| {
            let can = |peer: usize| Ok::<_, std::convert::Infallible>(self.devices[rank].accesses[peer]);
            self.mesh.barred_from(topology, rank, can).unwrap_or_else(|never| match never {})
        };
        let hidden: Vec<u32> = self.devices.iter().map(|one| one.links.hidden).collect();
        match judge_view(&self.mesh, topology, &hidden, (0..self.devices.len()).map(barred)) {
            Some(reason) => Err(reason),
            None => Ok(topology),
        }
    }

    /// The algorithms that a communicator over these devices could use, the one for the shortest messages first; none
    /// where [`Survey::verdict`] is a reason.
    pub fn algorithms(&self) -> Vec<Algorithm> {
        match self.verdict() {
            Ok(topology) => {
                Interconnect::new(topology, &self.mesh).algorithms().map(|one| one.algorithm).collect()
            }
            Err(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tests::DGX_1V;

    fn survey(
        size: usize,
        links: impl FnMut(usize, usize) -> u32,
        can: impl Fn(usize, usize) -> bool,
    ) -> Survey {
        let device = |rank: usize| Surveyed {
            ordinal: rank as u32,
            name: "GPU".to_owned(),
            compute_capability: ComputeCapability { major: 7, minor: 0 },
            device: Device { pci: "0:1:0.0".parse().unwrap(), uuid: [rank as u8; 16] },
            links: LinkCounts::default(),
            accesses: (0..size).map(|peer| peer != rank && can(rank, peer)).collect(),
        };
        Survey { devices: (0..size).map(device).collect(), mesh: Mesh::new(size, links) }
    }

    #[test]
    fn a_cube_mesh_needs_access_to_the_neighbours_alone() {
        let links = |a: usize, b: usize| DGX_1V[a][b];
        let neighbours = survey(8, links, |a, b| DGX_1V[a][b] > 0);
        assert_eq!(neighbours.verdict(), Ok(Topology::HybridCubeMesh));
        assert_eq!(neighbours.algorithms(), [Algorithm::HybridCubeMeshLl, Algorithm::HybridCubeMesh]);
        let without_one = survey(8, links, |a, b| DGX_1V[a][b] > 0 && (a, b) != (2, 6));
        assert_eq!(without_one.verdict(), Err(NotApplicableReason::NoPeerAccess { ranks: (2, 6) }));
        assert!(without_one.algorithms().is_empty());
    }

    #[test]
    fn a_full_mesh_needs_access_between_all() {
        let all = [Algorithm::OneShotLl, Algorithm::TwoShotLl, Algorithm::OneShot, Algorithm::TwoShot];
        assert_eq!(survey(4, |_, _| 4, |_, _| true).algorithms(), all);
        let barred = survey(4, |_, _| 4, |a, b| (a, b) != (3, 1));
        assert_eq!(barred.verdict(), Err(NotApplicableReason::NoPeerAccess { ranks: (3, 1) }));
    }

    #[test]
    fn one_device_that_is_too_old_is_named_whatever_the_links() {
        let mut mixed = survey(4, |_, _| 0, |_, _| true);
        mixed.devices[2].compute_capability = ComputeCapability { major: 6, minor: 0 };
        let (found, needed) = (mixed.devices[2].compute_capability, mixed.devices[0].compute_capability);
        assert_eq!(mixed.verdict(), Err(NotApplicableReason::DeviceTooOld { rank: 2, found, needed }));
        assert!(mixed.algorithms().is_empty());
    }

    #[test]
    fn links_that_lead_nowhere_known_are_the_reason_if_all_missing_links_may_be_among_them() {
        let mut machine = survey(4, |_, _| 0, |_, _| true);
        machine.devices.iter_mut().for_each(|one| one.links.hidden = 12);
        assert_eq!(
            machine.verdict(),
            Err(NotApplicableReason::LinksHidden { ranks: (0, 1), links: (12, 12) })
        );
        machine.devices[2].links.hidden = 0;
        assert_eq!(machine.verdict(), Err(NotApplicableReason::UnknownTopology { ranks: (0, 2) }));
    }

    #[test]
    fn one_device_or_nine_are_no_world() {
        assert_eq!(survey(1, |_, _| 0, |_, _| true).verdict(), Err(NotApplicableReason::WorldSize(1)));
        assert_eq!(survey(9, |_, _| 6, |_, _| true).verdict(), Err(NotApplicableReason::WorldSize(9)));
        assert_eq!(
            survey(8, |_, _| 0, |_, _| true).verdict(),
            Err(NotApplicableReason::UnknownTopology { ranks: (0, 1) })
        );
    }
}
