//! Looking: asks driver, sysfs and the kernel.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::Path;

use anyhow::{Context, Result};
use meshreduce_channels::Registry;
use meshreduce_channels::gdr::preferred_gid;
use meshreduce_channels::pci::{Map, NoNic, Paired, Pairing, PciPath, PortName, Source, Topology};
use meshreduce_device::identity::PciAddress;
use meshreduce_device::{Device, GpuDirect, VisibleDevice};
use meshreduce_verbs_loader::{DeviceList, Library};

use super::view::{Branch, ChannelRow, GpuRow, NicPaths, NicRow, View};

/// A device that the driver shows.
struct DriverDevice {
    ordinal: u32,
    name: String,
    address: PciAddress,
    memory: Option<u64>,
    direct: Option<GpuDirect>,
}

/// What the process sees: its driver's devices, and the PCI tree below a root of sysfs.
///
/// # Errors
/// There is no sysfs there, or a bad map in the environment.
pub(crate) fn at_this_process(title: &str, sysfs: &Path) -> Result<(View, Topology)> {
    let seen = devices();
    let addresses: Vec<PciAddress> = seen.iter().map(|device| device.address).collect();
    let topology = Topology::read(sysfs, &addresses)?;
    let map = Map::from_env().with_context(|| format!("reading {}", Map::VARIABLE))?;
    let library = Library::find();
    let mut view = View {
        channels: Some(channels(&seen)?),
        driver: meshreduce_device::initialise().err().map(|error| error.to_string()),
        verbs: library.as_ref().err().map(|error| error.to_string()),
        ..view(title, &topology, &map, &seen)
    };
    if let Ok(library) = library {
        addresses_of(&mut view.nics, &library, sysfs);
    }
    Ok((view, topology))
}

/// Which kinds of channels are viable for these devices.
fn channels(seen: &[DriverDevice]) -> Result<Vec<ChannelRow>> {
    let devices: Vec<Device> = seen.iter().map(|device| Device::Cuda(device.ordinal)).collect();
    let report = Registry::default().report(&devices).context("asking the registry")?;
    let row = |row: meshreduce_channels::Row| ChannelRow {
        name: row.name,
        priority: row.priority,
        reason: row.reason,
        devices: row.devices.iter().map(ToString::to_string).collect(),
        details: row.details,
    };
    Ok(report.rows.into_iter().map(row).collect())
}

/// Adds the address that each port has, as channels choose it, if its NIC can be opened.
fn addresses_of(nics: &mut [NicRow], library: &Library, sysfs: &Path) {
    let Ok(devices) = library.devices() else { return };
    for nic in nics {
        nic.gid = address_of(nic, &devices, sysfs);
    }
}

fn address_of(nic: &NicRow, devices: &DeviceList, sysfs: &Path) -> Option<String> {
    let (name, port) = nic.name.split_once(':').unwrap_or((&nic.name, "1"));
    let context = devices.named(name).next()?.open().ok()?;
    let table = context.gids(port.parse().ok()?, sysfs).ok()?;
    let (index, gid) = preferred_gid(&table, nic.layer == "Ethernet")?;
    Some(format!("#{index} {}", written(gid.0)))
}

/// A GID as people write addresses.
fn written(gid: [u8; 16]) -> String {
    let address = Ipv6Addr::from(gid);
    address.to_ipv4_mapped().map_or_else(|| address.to_string(), |address| address.to_string())
}

/// What a captured tree shows.
///
/// # Errors
/// A bad map in the environment.
pub(crate) fn at_tree(title: &str, topology: &Topology) -> Result<View> {
    let map = Map::from_env().with_context(|| format!("reading {}", Map::VARIABLE))?;
    Ok(view(title, topology, &map, &[]))
}

/// Devices of the driver; none if there is no driver.
fn devices() -> Vec<DriverDevice> {
    let count = meshreduce_device::initialise().map_or(0, |()| VisibleDevice::count().unwrap_or(0));
    let seen = |ordinal| {
        let device = VisibleDevice::get(ordinal).ok()?;
        let address = device.identity().ok()?.pci;
        let (memory, direct) = (device.memory().ok(), GpuDirect::of(&device).ok());
        Some(DriverDevice { ordinal, name: device.name().unwrap_or_default(), address, memory, direct })
    };
    (0..count).filter_map(seen).collect()
}

fn view(title: &str, topology: &Topology, map: &Map, seen: &[DriverDevice]) -> View {
    let pairing = Pairing::new(topology, map);
    let shown = seen.iter().map(|device| {
        let way = pairing.of_cuda(device.ordinal, device.address);
        let row = gpu(&pairing, device.address, way);
        GpuRow {
            ordinal: Some(device.ordinal),
            name: Some(device.name.clone()),
            memory: device.memory,
            dma_buf: device.direct.map(|direct| direct.dma_buf),
            direct: device.direct.map(|direct| direct.supported),
            ..row
        }
    });
    let hidden = topology.gpus.iter().map(|gpu| gpu.address());
    let hidden = hidden.filter(|address| seen.iter().all(|device| device.address != *address));
    let hidden = hidden.map(|address| gpu(&pairing, address, pairing.of_gpu(address)));
    View {
        title: title.to_owned(),
        channels: None,
        gpus: shown.chain(hidden).collect(),
        host: way(pairing.of_host(None)),
        nics: nics(&pairing),
        tree: branches(topology),
        peermem: topology.peermem.clone(),
        system: None,
        driver: None,
        verbs: None,
        findings: Vec::new(),
    }
}

fn gpu(pairing: &Pairing, address: PciAddress, paired: Result<Paired, NoNic>) -> GpuRow {
    let topology = pairing.topology();
    let known = topology.gpu(address);
    let nic = paired.as_ref().ok().and_then(|paired| topology.port(&paired.ports.first()?.name));
    let (detours, acs_known) = match (known, nic) {
        (Some(gpu), Some((nic, _))) => topology.detours(gpu, nic),
        _ => (Vec::new(), false),
    };
    GpuRow {
        ordinal: None,
        name: None,
        address: short(address),
        path: known.map(|gpu| gpu.path.to_string()),
        numa: known.and_then(|gpu| gpu.numa),
        memory: None,
        bar1: known.and_then(|gpu| gpu.bar1),
        way: way(paired),
        detours: detours.into_iter().map(short).collect(),
        acs_known,
        dma_buf: None,
        direct: None,
    }
}

/// As the kernel spells it.
fn short(address: PciAddress) -> String {
    let PciAddress { domain, bus, device, function } = address;
    format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
}

fn way(paired: Result<Paired, NoNic>) -> NicPaths {
    match paired {
        Ok(paired) => NicPaths {
            ports: paired.ports.iter().map(ToString::to_string).collect(),
            others: paired.others.iter().map(ToString::to_string).collect(),
            distance: Some(paired.distance),
            by_map: paired.source == Source::Map,
            why_none: None,
        },
        Err(why) => NicPaths { why_none: Some(why.to_string()), ..NicPaths::default() },
    }
}

fn nics(pairing: &Pairing) -> Vec<NicRow> {
    let nics = pairing.topology().nics.iter().enumerate();
    let rows = nics.flat_map(|(rail, nic)| {
        nic.ports.iter().map(move |port| {
            let name = PortName { nic: nic.name.clone(), port: port.number };
            let skip = pairing.skipped().iter().find(|(skipped, _)| *skipped == name);
            NicRow {
                rail: rail as u32,
                address: nic.path.as_ref().map(|path| short(path.address())),
                path: nic.path.as_ref().map(PciPath::to_string),
                numa: nic.numa,
                layer: port.layer.to_string(),
                megabits: port.megabits,
                netdev: port.netdev.clone(),
                skip: skip.map(|(_, why)| why.to_string()),
                gid: None,
                name: name.to_string(),
            }
        })
    });
    rows.collect()
}

/// Roots, and bridges that ways part below.
fn branches(topology: &Topology) -> Vec<Branch> {
    let gpus = topology.gpus.iter().map(|gpu| (&gpu.path, gpu.numa));
    let nics = topology.nics.iter().filter_map(|nic| Some((nic.path.as_ref()?, nic.numa)));
    // For every beginning of a way, what comes next on all of them, and their NUMA nodes.
    let mut below: BTreeMap<Vec<_>, (Vec<_>, Vec<Option<u32>>)> = BTreeMap::new();
    for (path, numa) in gpus.chain(nics) {
        let components = path.components();
        for depth in 1..components.len() {
            let (next, numas) = below.entry(components[..depth].to_vec()).or_default();
            if !next.contains(&components[depth]) {
                next.push(components[depth]);
            }
            numas.push(numa);
        }
    }
    let parts = below.into_iter().filter(|(path, (next, _))| path.len() == 1 || next.len() > 1);
    let branch =
        |(path, (_, numas)): (Vec<meshreduce_channels::pci::Component>, (Vec<_>, Vec<Option<u32>>))| Branch {
            path: path.iter().map(ToString::to_string).collect::<Vec<_>>().join("/"),
            numa: numas.iter().all(|numa| *numa == numas[0]).then(|| numas[0]).flatten(),
        };
    parts.map(branch).collect()
}
