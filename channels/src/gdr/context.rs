//! GPUDirect RDMA in this process, or why there is none.

use std::fmt;
use std::sync::Arc;

use meshreduce_device::identity::PciAddress;
use meshreduce_device::{Device, GpuDirect, PrimaryContext, VisibleDevice};
use meshreduce_verbs_loader::{ForkStatus, Library};

use crate::channel::{Channel, ChannelContext, Descriptor as Bytes, Environment, Offer, Reason, RegionPart};
use crate::error::{Error, shortage};
use crate::gdr::NAME;
use crate::gdr::channel::GdrChannel;
use crate::gdr::config::{Config, Registration};
use crate::gdr::descriptor::{self, Descriptor};
use crate::gdr::hub::Hub;
use crate::gdr::nic::Nic;
use crate::gdr::region::Region;
use crate::gdr::served::{Chosen, Served};
use crate::gdr::visible::Gpu;
use crate::pci::{NicPort, Paired, Pairing, PortName, Source, Topology};
use crate::span::Span;

/// GPUDirect RDMA in this process.
pub(crate) struct GdrContext {
    hub: Arc<Hub>,
    /// Devices that are not served, and why.
    not_served: Vec<(Device, String)>,
    /// What a person is told.
    rows: Vec<(String, String)>,
}

/// Ports that could be opened, and why others could not.
struct Opened {
    nics: Vec<(PortName, Nic)>,
    refused: Vec<String>,
}

impl GdrContext {
    /// # Errors
    ///
    /// Why no device can be served at all.
    pub(crate) fn new(config: &Config, environment: &Environment) -> Result<(Self, Arc<Hub>), Reason> {
        let library = config
            .library
            .clone()
            .map_or_else(Library::find, Ok)
            .map_err(|error| Reason(error.to_string()))?;
        // Before anything is registered.
        let fork = fork_safe(library.fork_status(), || library.fork_init());
        let map = config.map().map_err(|error| Reason(error.to_string()))?;
        let sysfs = config.root();
        let gpus: Vec<KnownGpu> = environment.contexts.iter().map(known_gpu).collect();
        let addresses: Vec<_> =
            gpus.iter().filter_map(|gpu| gpu.facts.as_ref().ok()).map(|facts| facts.address).collect();
        let topology = Topology::read(&sysfs, &addresses).map_err(|error| Reason(error.to_string()))?;
        let pairing = Pairing::new(&topology, &map);
        let paired: Vec<(Device, Result<Paired, String>)> =
            environment.devices.iter().map(|device| (*device, paired(*device, &pairing, &gpus))).collect();
        let opened = Opened::all(config, &library, &pairing, &paired)?;
        let mut rows = opened.rows(&library, &topology);
        rows.extend(fork.err().map(|why| ("fork".to_owned(), why)));
        let (names, nics): (Vec<PortName>, Vec<Nic>) = opened.nics.into_iter().unzip();
        let (mut served, mut not_served) = (Vec::new(), Vec::new());
        for (device, paired) in paired {
            let gpu = gpus.iter().find(|gpu| device == Device::Cuda(gpu.context.ordinal()));
            let outcome = paired
                .and_then(|paired| serve(config, &topology, device, &choose(&paired, &names), gpu, &nics));
            match outcome {
                Ok(one) => {
                    rows.push((device.to_string(), told(&one, &nics)));
                    served.push(one);
                }
                Err(why) => {
                    rows.push((device.to_string(), format!("not served: {why}")));
                    not_served.push((device, why));
                }
            }
            rows.extend(
                gpu.and_then(|gpu| bar_warning(gpu, &topology)).map(|warning| (device.to_string(), warning)),
            );
        }
        if served.is_empty() {
            let why: Vec<String> =
                not_served.iter().map(|(device, why)| format!("{device}: {why}")).collect();
            return Err(Reason(why.join("; ")));
        }
        let hub = Arc::new(Hub::new(config.clone(), nics, served, environment.waker.clone()));
        Ok((Self { hub: Arc::clone(&hub), not_served, rows }, hub))
    }
}

impl Opened {
    /// Opens every port that can be used.
    fn all(
        config: &Config,
        library: &Library,
        pairing: &Pairing,
        paired: &[(Device, Result<Paired, String>)],
    ) -> Result<Self, Reason> {
        let devices = library.devices().map_err(|error| Reason(crate::gdr::nic::explained(&error)))?;
        if devices.is_empty() {
            // It also says so where it could not look.
            return Err(Reason(match shortage() {
                Some(_) => "libibverbs could not look for NICs: this process has as many open files as it may have (ulimit -n)",
                None => "libibverbs knows no NIC",
            }.to_owned()));
        }
        let mut refused: Vec<String> =
            pairing.skipped().iter().map(|(name, why)| format!("{name}: {why}")).collect();
        let mut nics = Vec::new();
        for port in wanted(pairing, paired) {
            let mut named = devices.named(&port.name.nic);
            let Some(device) = named.next() else {
                refused.push(format!("{}: sysfs shows it, libibverbs does not", port.name));
                continue;
            };
            if named.next().is_some() {
                tracing::warn!(
                    nic = port.name.nic,
                    "libibverbs knows several NICs of this name; the first is used"
                );
            }
            match Nic::open(config, device, &port, &config.root()) {
                Ok(nic) => nics.push((port.name.clone(), nic)),
                Err(why) => refused.push(why),
            }
        }
        for device in devices
            .iter()
            .filter(|device| pairing.topology().nics.iter().all(|nic| nic.name != device.name()))
        {
            refused.push(format!("{}: libibverbs shows it, sysfs does not", device.name()));
        }
        if nics.is_empty() {
            let devices = paired
                .iter()
                .filter_map(|(device, paired)| Some(format!("{device}: {}", paired.as_ref().err()?)));
            let why: Vec<String> = refused.into_iter().chain(devices).collect();
            return Err(Reason(format!("no NIC can be used: {}", why.join("; "))));
        }
        Ok(Self { nics, refused })
    }

    fn rows(&self, library: &Library, topology: &Topology) -> Vec<(String, String)> {
        let mut rows = vec![
            ("libibverbs".to_owned(), library.path().display().to_string()),
            ("peermem".to_owned(), topology.peermem.to_string()),
        ];
        for (_, nic) in &self.nics {
            let addresses =
                nic.told.addresses.first().map(|address| format!("GID {} {}", address.index, address.gid));
            let by = match &nic.dma_buf {
                Ok(()) => "takes dma-bufs".to_owned(),
                Err(why) => why.clone(),
            };
            let what = format!(
                "{}, {}, MTU {}, messages of {} bytes, {by}",
                nic.told.layer,
                addresses.unwrap_or_default(),
                nic.told.mtu.bytes(),
                nic.told.longest
            );
            rows.push((nic.name.clone(), what));
        }
        rows.extend(self.refused.iter().map(|why| ("not used".to_owned(), why.clone())));
        rows
    }
}

/// Sees to it that what is registered stays so when the process forks. On a kernel that does not copy pinned pages for the child
/// (before Linux 5.12), the parent gets the copy when it writes next, and the NIC goes on with the old page.
///
/// # Errors
///
/// What a person is told when that cannot be had.
fn fork_safe(
    status: Result<ForkStatus, meshreduce_verbs_loader::Error>,
    init: impl FnOnce() -> Result<(), meshreduce_verbs_loader::Error>,
) -> Result<(), String> {
    match status {
        Ok(ForkStatus::Unneeded | ForkStatus::Enabled) => Ok(()),
        // Or the library is too old to say.
        Ok(_) | Err(_) => init().map_err(|error| {
            format!(
                "warning: once this process forks, transfers of host memory may go by its old pages: {error} (RDMAV_FORK_SAFE=1, set \
                 before the process starts, helps)"
            )
        }),
    }
}

/// A GPU of this process.
struct KnownGpu {
    context: Arc<PrimaryContext>,
    facts: Result<GpuFacts, String>,
}

#[derive(Clone, Copy)]
struct GpuFacts {
    direct: GpuDirect,
    address: PciAddress,
    memory: u64,
}

/// What the driver says of a GPU.
fn known_gpu(context: &Arc<PrimaryContext>) -> KnownGpu {
    let ask = || -> Result<GpuFacts, meshreduce_device::Error> {
        let device = VisibleDevice::get(context.ordinal())?;
        let (direct, address) = (GpuDirect::of(&device)?, device.identity()?.pci);
        Ok(GpuFacts { direct, address, memory: device.memory()? })
    };
    KnownGpu { context: Arc::clone(context), facts: ask().map_err(|error| error.to_string()) }
}

/// The ports that a device goes by.
fn paired(device: Device, pairing: &Pairing, gpus: &[KnownGpu]) -> Result<Paired, String> {
    match device {
        Device::Cpu => pairing.of_host(None).map_err(|error| error.to_string()),
        Device::Cuda(ordinal) => {
            let gpu = gpus.iter().find(|gpu| gpu.context.ordinal() == ordinal).ok_or("it is not there")?;
            let GpuFacts { address, .. } = gpu.facts.clone()?;
            pairing.of_cuda(ordinal, address).map_err(|error| error.to_string())
        }
    }
}

/// The ports that are to be opened: those that devices go by, and, unless the user has named all, what could replace them.
fn wanted(pairing: &Pairing, paired: &[(Device, Result<Paired, String>)]) -> Vec<NicPort> {
    let paired = || paired.iter().filter_map(|(_, paired)| paired.as_ref().ok());
    let mut ports: Vec<NicPort> = Vec::new();
    let mut want = |port: NicPort| {
        if !ports.contains(&port) {
            ports.push(port);
        }
    };
    paired().flat_map(|one| one.ports.iter().chain(&one.others)).cloned().for_each(&mut want);
    if paired().any(|one| one.source == Source::Tree) {
        for (rail, nic) in pairing.topology().nics.iter().enumerate() {
            for port in &nic.ports {
                let name = PortName { nic: nic.name.clone(), port: port.number };
                if pairing.skipped().iter().all(|(skipped, _)| *skipped != name) {
                    want(NicPort { name, rail: rail as u32, layer: port.layer });
                }
            }
        }
    }
    ports
}

/// The open NICs of a device, the nearest first, each with whether none is nearer.
fn choose(paired: &Paired, names: &[PortName]) -> Vec<(usize, bool)> {
    let place = |port: &NicPort| names.iter().position(|name| *name == port.name);
    let mut all: Vec<(usize, bool)> = paired.ports.iter().filter_map(place).map(|nic| (nic, true)).collect();
    // Who names NICs means those alone.
    let others = paired.others.iter().filter_map(place).chain(0..names.len());
    for nic in others.filter(|_| paired.source == Source::Tree) {
        if all.iter().all(|(known, _)| *known != nic) {
            // Where those that are nearest cannot be opened, the next one is.
            all.push((nic, all.is_empty()));
        }
    }
    all
}

/// A device, if it can be served.
fn serve(
    config: &Config,
    topology: &Topology,
    device: Device,
    chosen: &[(usize, bool)],
    gpu: Option<&KnownGpu>,
    nics: &[Nic],
) -> Result<Served, String> {
    if chosen.is_empty() {
        return Err("none of its NICs can be opened".to_owned());
    }
    let (chosen, gpu) = match gpu {
        None => {
            let chosen = chosen.iter().map(|(nic, near)| Chosen { nic: *nic, near: *near, ways: Vec::new() });
            (chosen.collect(), None)
        }
        Some(known) => {
            let gpu = Gpu { direct: known.facts.clone()?.direct, context: Arc::clone(&known.context) };
            (with_ways(config, topology, &gpu, nics, chosen)?, Some(gpu))
        }
    };
    Ok(Served::new(device, chosen, gpu, nics))
}

/// How memory of a GPU is registered with each of some NICs.
fn with_ways(
    config: &Config,
    topology: &Topology,
    gpu: &Gpu,
    nics: &[Nic],
    chosen: &[(usize, bool)],
) -> Result<Vec<Chosen>, String> {
    if !gpu.direct.supported {
        return Err("the device does not let NICs reach its memory (GPUDirect RDMA)".to_owned());
    }
    if let Some(why) = gpu.cannot_flush() {
        return Err(why);
    }
    let peermem = topology.peermem.module.is_some();
    let mut without = Vec::new();
    let mut found = Vec::new();
    for &(nic, near) in chosen {
        let mut ways = Vec::new();
        match (&nics[nic].dma_buf, gpu.direct.dma_buf) {
            (Ok(()), true) => ways.push(Registration::DmaBuf),
            (Err(why), true) => without.push(why.clone()),
            (_, false) => without.push("the device exports no dma-bufs".to_owned()),
        }
        if peermem {
            ways.push(Registration::Peermem);
        }
        ways.sort_by_key(|way| *way != config.first);
        if !ways.is_empty() {
            found.push(Chosen { nic, near, ways });
        }
    }
    without.sort();
    without.dedup();
    if found.is_empty() {
        return Err(format!(
            "neither the module nvidia-peermem (or nv_peer_mem) is loaded nor dma-bufs work: {}",
            without.join("; ")
        ));
    }
    if found.iter().all(|chosen: &Chosen| !chosen.near) {
        found[0].near = true;
    }
    Ok(found)
}

fn told(served: &Served, nics: &[Nic]) -> String {
    let name = |chosen: &Chosen| {
        let ways: Vec<&str> = chosen
            .ways
            .iter()
            .map(|way| match way {
                Registration::DmaBuf => "dma-buf",
                Registration::Peermem => "peermem",
            })
            .collect();
        let by = if ways.is_empty() { String::new() } else { format!(" by {}", ways.join(", else ")) };
        format!("{}{by}", nics[chosen.nic].name)
    };
    let near: Vec<String> = served.nics.iter().filter(|one| one.near).map(name).collect();
    let visible = match &served.gpu {
        Some(gpu) if gpu.needs_flush() => "; what has come is flushed",
        Some(_) => "; what has come is visible without a flush",
        None => "",
    };
    format!("goes by {}{visible}", near.join(" and "))
}

/// A word of warning where not all of a GPU's memory can be reached at a time.
fn bar_warning(gpu: &KnownGpu, topology: &Topology) -> Option<String> {
    let GpuFacts { address, memory, .. } = gpu.facts.clone().ok()?;
    let bar = topology.gpu(address)?.bar1?;
    (bar < memory).then(|| {
        format!(
            "warning: BAR1 has {} MiB, the memory {} MiB: no more than that can be registered at a time",
            bar >> 20,
            memory >> 20
        )
    })
}

impl ChannelContext for GdrContext {
    fn name(&self) -> &str {
        NAME
    }

    fn descriptors(&self) -> Vec<(Device, Bytes)> {
        let served = self.hub.served.iter().map(|served| (served.device, served.descriptor.clone()));
        // The other side is to know why not.
        let not =
            self.not_served.iter().map(|(device, why)| (*device, Descriptor::Not(why.clone()).to_bytes()));
        served.chain(not).collect()
    }

    fn can_communicate(&self, local: &[u8], remote: &[u8]) -> Result<(), Reason> {
        descriptor::can_communicate(local, remote).map_err(Reason)
    }

    fn connect(&self, offer: Offer<'_>) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(GdrChannel::new(&self.hub, &offer)?))
    }

    unsafe fn register(&self, span: Span) -> Result<Option<Arc<dyn RegionPart>>, Error> {
        // SAFETY: the caller's.
        let region = unsafe { Region::register(&self.hub, span) }?;
        Ok(region.map(|region| region as Arc<dyn RegionPart>))
    }

    fn report(&self) -> Vec<(String, String)> {
        self.rows.clone()
    }

    fn tend(&self) -> bool {
        self.hub.tend()
    }

    fn close(&self) {
        self.hub.close();
    }
}

impl fmt::Debug for GdrContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GdrContext").field("nics", &self.hub.nics).field("served", &self.hub.served).finish()
    }
}

#[cfg(test)]
mod tests {
    use meshreduce_verbs_loader::{Error as Verbs, VerbsError};

    use super::*;

    #[test]
    fn the_library_is_made_to_cope_with_forks_where_the_kernel_does_not() {
        let too_old = || {
            let (library, function) = ("libibverbs.so.1".into(), "ibv_is_fork_initialized");
            Err(Verbs::TooOld { library, function, version: "IBVERBS_1.13" })
        };
        let asked = |status| {
            let mut asked = false;
            let outcome = fork_safe(status, || {
                asked = true;
                Ok(())
            });
            outcome.unwrap();
            asked
        };
        assert!(asked(Ok(ForkStatus::Disabled)) && asked(too_old()));
        assert!(!asked(Ok(ForkStatus::Enabled)) && !asked(Ok(ForkStatus::Unneeded)));
        let late = || Err(VerbsError { call: "ibv_fork_init", errno: 22 }.into());
        let told = fork_safe(Ok(ForkStatus::Disabled), late).unwrap_err();
        assert!(told.contains("ibv_fork_init") && told.contains("RDMAV_FORK_SAFE"), "{told}");
    }
}
