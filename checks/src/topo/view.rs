//! What there is to show: a survey as plain data.

use anyhow::Result;
use meshreduce::Topology;
use meshreduce::topology::{Survey, Surveyed};
use serde::{Deserialize, Serialize};

/// Devices, links and verdict. Devices are in rank order; all other numbers are indices into them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) title: String,
    pub(crate) devices: Vec<Device>,
    /// NVLinks that each pair can use.
    pub(crate) links: Vec<Vec<u32>>,
    pub(crate) topology: String,
    pub(crate) why: String,
    /// What a rendezvous of these devices would come to.
    pub(crate) rendezvous: String,
    pub(crate) algorithms: Vec<String>,
    pub(crate) cube: Option<Cube>,
    /// The first pair without a link.
    pub(crate) unlinked: Option<(usize, usize)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) ordinal: u32,
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) pci_bus_id: String,
    pub(crate) compute_capability: String,
    pub(crate) direct: u32,
    pub(crate) switch: u32,
    pub(crate) inactive: u32,
    pub(crate) other: u32,
    pub(crate) hidden: u32,
    /// The devices whose memory this one can access.
    pub(crate) p2p: Vec<usize>,
}

/// A hybrid cube mesh.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cube {
    pub(crate) quads: [[usize; 4]; 2],
    /// The pairs that join the quads, by the first quad.
    pub(crate) relays: [(usize, usize); 4],
    /// The device at each position of the reduction tree.
    pub(crate) positions: Vec<usize>,
}

impl View {
    /// Surveys the devices with these ordinals, or all, in the driver of this process.
    pub(crate) fn of_this_process(title: &str, ordinals: &[u32]) -> Result<Self> {
        let survey = match ordinals {
            [] => Survey::of_visible_devices()?,
            some => Survey::of(some)?,
        };
        Ok(Self::new(title, &survey))
    }

    fn new(title: &str, survey: &Survey) -> Self {
        let mesh = survey.mesh();
        let all = 0..mesh.size();
        let row = |a: usize| all.clone().map(|b| mesh.links(a, b)).collect();
        let topology = mesh.classify();
        let cube = survey.hybrid_cube_mesh().map(|cube| Cube {
            quads: cube.quads(),
            relays: cube.quads()[0].map(|rank| (rank, cube.relay(rank))),
            positions: cube.positions().to_vec(),
        });
        Self {
            title: title.to_owned(),
            devices: survey.devices().iter().map(Device::new).collect(),
            links: all.clone().map(row).collect(),
            topology: topology.to_string(),
            why: why(survey, topology),
            rendezvous: match survey.verdict() {
                Ok(topology) => format!("ready, {topology}"),
                Err(reason) => format!("not applicable: {reason}"),
            },
            algorithms: survey.algorithms().iter().map(|algorithm| algorithm.name().to_owned()).collect(),
            cube,
            unlinked: mesh.unlinked(),
        }
    }

    /// What the device at an index is called.
    pub(crate) fn name(&self, index: usize) -> String {
        format!("GPU{}", self.devices[index].ordinal)
    }

    /// Names of several, with blanks between.
    pub(crate) fn names(&self, indices: &[usize]) -> String {
        indices.iter().map(|index| self.name(*index)).collect::<Vec<_>>().join(" ")
    }

    /// `8 x NVIDIA H100`, or each kind with its number.
    pub(crate) fn products(&self) -> String {
        let mut kinds: Vec<(&str, usize)> = Vec::new();
        for device in &self.devices {
            match kinds.iter_mut().find(|(name, _)| *name == device.name) {
                Some((_, count)) => *count += 1,
                None => kinds.push((&device.name, 1)),
            }
        }
        kinds.iter().map(|(name, count)| format!("{count} x {name}")).collect::<Vec<_>>().join(", ")
    }
}

impl Device {
    fn new(one: &Surveyed) -> Self {
        Self {
            ordinal: one.ordinal,
            name: one.name.clone(),
            uuid: one.device.uuid_text(),
            pci_bus_id: one.device.pci.to_string(),
            compute_capability: one.compute_capability.to_string(),
            direct: one.links.direct,
            switch: one.links.switch,
            inactive: one.links.inactive,
            other: one.links.other,
            hidden: one.links.hidden,
            p2p: (0..one.accesses.len()).filter(|peer| one.accesses[*peer]).collect(),
        }
    }
}

fn why(survey: &Survey, topology: Topology) -> String {
    let name = |index: usize| format!("GPU{}", survey.devices()[index].ordinal);
    let Some((a, b)) = survey.mesh().unlinked() else {
        let switched = survey.devices().iter().all(|one| one.links.switch > 0);
        return match survey.devices().len() {
            0 | 1 => "there is no pair that could lack a link".to_owned(),
            _ if switched => "every pair has a link, through NVSwitches".to_owned(),
            _ => "every pair has a link".to_owned(),
        };
    };
    let gap = format!("{} and {} have no link", name(a), name(b));
    if topology == Topology::HybridCubeMesh {
        return format!(
            "{gap}, but there are two complete quads, and each device has one relay in the other quad"
        );
    }
    let bare = survey.devices().iter().filter(|one| one.links.direct + one.links.switch == 0);
    let bare: Vec<String> = bare.map(|one| format!("GPU{}", one.ordinal)).collect();
    let hidden = survey.devices().iter().any(|one| one.links.hidden > 0);
    let cause = match bare.len() {
        _ if hidden => "there are links that are up, but NVML does not tell where they lead".to_owned(),
        0 => "they are no hybrid cube mesh".to_owned(),
        all if all == survey.devices().len() => "no device has an active NVLink".to_owned(),
        _ => format!("without any active NVLink: {}", bare.join(" ")),
    };
    format!("{gap}; {cause}")
}
