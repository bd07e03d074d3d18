//! From TOML to a [`Node`], refusing what is not one.

mod nic;
mod wrong;

use serde::Deserialize;

use super::described::{CUDA_VERSION, Gpu, Link, Node, Remote};
use super::error::NodeError;
use super::identity::PciBusId;
use super::pci::PciTree;
use nic::NicDescription;
use wrong::{Wrong, wrong};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    name: String,
    cuda_version: Option<String>,
    gpus: usize,
    gpu: GpuDescription,
    #[serde(default)]
    gpu_override: Vec<GpuOverride>,
    nvlink: Option<NvLinkDescription>,
    #[serde(default)]
    p2p: P2pDescription,
    pci_bus_ids: Option<Vec<String>>,
    pci_paths: Option<Vec<Vec<String>>>,
    #[serde(default)]
    nic: Vec<NicDescription>,
    peermem: Option<String>,
    dma_buf: Option<bool>,
    memlock_kib: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuDescription {
    name: String,
    compute_capability: String,
    multiprocessors: u32,
    blocks_per_multiprocessor: u32,
    memory_mib: u64,
    bar1_mib: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuOverride {
    index: usize,
    name: Option<String>,
    compute_capability: Option<String>,
    multiprocessors: Option<u32>,
    blocks_per_multiprocessor: Option<u32>,
    memory_mib: Option<u64>,
    bar1_mib: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NvLinkDescription {
    version: u32,
    direct: Option<Vec<Vec<u32>>>,
    switch: Option<Vec<u32>>,
    #[serde(default)]
    inactive: Vec<[usize; 2]>,
    #[serde(default)]
    hidden_switches: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct P2pDescription {
    access: Access,
    /// Accepted here too, where it lands when it is written below the `[p2p]` header.
    pci_bus_ids: Option<Vec<String>>,
}

impl Default for P2pDescription {
    fn default() -> Self {
        Self { access: Access::Word("none".to_owned()), pci_bus_ids: None }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Access {
    Word(String),
    Matrix(Vec<Vec<u8>>),
}

/// Most GPUs of a node; NVML numbers as many on the largest boards.
const MAX_GPUS: usize = 16;

pub(super) fn parse(text: &str, file: &str) -> Result<Node, NodeError> {
    let description: Description = toml::from_str(text)
        .map_err(|source| NodeError::Syntax { file: file.to_owned(), source: Box::new(source) })?;
    node(description).map_err(|Wrong { key, reason }| NodeError::Invalid {
        file: file.to_owned(),
        key,
        reason,
    })
}

fn node(description: Description) -> Result<Node, Wrong> {
    let count = description.gpus;
    if description.name.trim().is_empty() {
        return wrong("name", "is empty");
    }
    if count == 0 || count > MAX_GPUS {
        return wrong("gpus", format!("is {count}; a node has 1 to {MAX_GPUS}"));
    }
    let pci = pci_bus_ids(description.pci_bus_ids.or(description.p2p.pci_bus_ids), count)?;
    let mut gpus = Vec::with_capacity(count);
    for pci in pci {
        gpus.push(gpu(&description.gpu, pci)?);
    }
    for exception in description.gpu_override {
        apply(exception, &mut gpus)?;
    }
    let mut tree = PciTree::default();
    pci_paths(description.pci_paths.unwrap_or_default(), &mut gpus, &mut tree)?;
    let nics = nic::nics(description.nic, &mut tree)?;
    let hidden_switches = description.nvlink.as_ref().is_some_and(|nvlink| nvlink.hidden_switches);
    if let Some(nvlink) = description.nvlink {
        connect(nvlink, &mut gpus)?;
    }
    for (index, access) in p2p(&description.p2p.access, &gpus)?.into_iter().enumerate() {
        gpus[index].p2p = access;
    }
    let cuda_version = description.cuda_version.as_deref().map_or(Ok(CUDA_VERSION), cuda_version)?;
    Ok(Node {
        name: description.name,
        cuda_version,
        hidden_switches,
        gpus,
        nics,
        peermem: nic::peermem(description.peermem.as_deref())?,
        dma_buf: description.dma_buf.unwrap_or(true),
        memlock_kib: description.memlock_kib,
    })
}

/// Puts the GPUs behind their bridges; without paths, at roots of their own.
fn pci_paths(given: Vec<Vec<String>>, gpus: &mut [Gpu], tree: &mut PciTree) -> Result<(), Wrong> {
    if !given.is_empty() && given.len() != gpus.len() {
        return wrong("pci_paths", format!("has {} entries for {} GPUs", given.len(), gpus.len()));
    }
    for (index, gpu) in gpus.iter_mut().enumerate() {
        let key = format!("pci_paths[{index}]");
        gpu.pci_path = given.get(index).map_or(Ok(Vec::new()), |path| nic::path(&key, path))?;
        tree.insert(&format!("GPU {index}"), &gpu.pci_path, gpu.pci.into())
            .or_else(|reason| wrong(key, reason))?;
    }
    Ok(())
}

fn gpu(description: &GpuDescription, pci: PciBusId) -> Result<Gpu, Wrong> {
    Ok(Gpu {
        name: description.name.clone(),
        compute_capability: compute_capability("gpu.compute_capability", &description.compute_capability)?,
        multiprocessors: at_least_one("gpu.multiprocessors", description.multiprocessors)?,
        blocks_per_multiprocessor: at_least_one(
            "gpu.blocks_per_multiprocessor",
            description.blocks_per_multiprocessor,
        )?,
        memory_mib: memory_mib("gpu.memory_mib", description.memory_mib)?,
        bar1_mib: description.bar1_mib.map(|value| bar1_mib("gpu.bar1_mib", value)).transpose()?,
        pci,
        pci_path: Vec::new(),
        nvlink_version: 0,
        links: Vec::new(),
        p2p: Vec::new(),
    })
}

fn apply(exception: GpuOverride, gpus: &mut [Gpu]) -> Result<(), Wrong> {
    let count = gpus.len();
    let Some(gpu) = gpus.get_mut(exception.index) else {
        return wrong("gpu_override.index", format!("is {}, but the node has {count} GPUs", exception.index));
    };
    if let Some(name) = exception.name {
        gpu.name = name;
    }
    if let Some(text) = exception.compute_capability {
        gpu.compute_capability = compute_capability("gpu_override.compute_capability", &text)?;
    }
    if let Some(value) = exception.multiprocessors {
        gpu.multiprocessors = at_least_one("gpu_override.multiprocessors", value)?;
    }
    if let Some(value) = exception.blocks_per_multiprocessor {
        gpu.blocks_per_multiprocessor = at_least_one("gpu_override.blocks_per_multiprocessor", value)?;
    }
    if let Some(value) = exception.memory_mib {
        gpu.memory_mib = memory_mib("gpu_override.memory_mib", value)?;
    }
    if let Some(value) = exception.bar1_mib {
        gpu.bar1_mib = Some(bar1_mib("gpu_override.bar1_mib", value)?);
    }
    Ok(())
}

fn cuda_version(text: &str) -> Result<i32, Wrong> {
    match two_numbers(text) {
        Some((major @ 1..=99, minor @ 0..=9)) => Ok((major * 1000 + minor * 10) as i32),
        _ => wrong("cuda_version", format!("is `{text}`, not a version such as `12.4`")),
    }
}

fn two_numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn compute_capability(key: &str, text: &str) -> Result<(u32, u32), Wrong> {
    match two_numbers(text) {
        Some((major, minor)) if major >= 5 && minor <= 9 => Ok((major, minor)),
        _ => wrong(key, format!("is `{text}`, not a compute capability from 5.0 up, such as `9.0`")),
    }
}

fn at_least_one(key: &str, value: u32) -> Result<u32, Wrong> {
    match value {
        1..=1024 => Ok(value),
        _ => wrong(key, format!("is {value}; it lies between 1 and 1024")),
    }
}

fn memory_mib(key: &str, value: u64) -> Result<u64, Wrong> {
    match value {
        1..=0x10_0000 => Ok(value),
        _ => wrong(key, format!("is {value}; it lies between 1 and 1048576 (1 TiB)")),
    }
}

fn bar1_mib(key: &str, value: u64) -> Result<u64, Wrong> {
    match value {
        1..=0x10_0000 if value.is_power_of_two() => Ok(value),
        _ => wrong(key, format!("is {value}, not a power of two up to 1048576 (1 TiB)")),
    }
}

fn pci_bus_ids(given: Option<Vec<String>>, count: usize) -> Result<Vec<PciBusId>, Wrong> {
    let Some(given) = given else {
        return Ok((0..count as u32).map(|index| PciBusId::new(0, 0x10 + 8 * index, 0)).collect());
    };
    if given.len() != count {
        return wrong("pci_bus_ids", format!("has {} entries for {count} GPUs", given.len()));
    }
    let mut ids = Vec::with_capacity(count);
    for (index, text) in given.iter().enumerate() {
        let id: PciBusId = match text.parse() {
            Ok(id) => id,
            Err(error) => return wrong(format!("pci_bus_ids[{index}]"), format!("is wrong: {error}")),
        };
        if let Some(other) = ids.iter().position(|seen| *seen == id) {
            return wrong(format!("pci_bus_ids[{index}]"), format!("is that of GPU {other} too: {id}"));
        }
        ids.push(id);
    }
    Ok(ids)
}

/// NVLinks of a GPU of this compute capability; `None` where it is not known.
fn links_of_the_architecture(compute_capability: (u32, u32)) -> Option<u32> {
    match compute_capability {
        (6, 0) => Some(4),
        (7, 0) => Some(6),
        (7, 5) => Some(2),
        (8, 0) => Some(12),
        (8, 6) => Some(4),
        (8, 9) => Some(0),
        (9, 0) | (10, 0) | (10, 3) => Some(18),
        _ => None,
    }
}

fn connect(nvlink: NvLinkDescription, gpus: &mut [Gpu]) -> Result<(), Wrong> {
    let count = gpus.len();
    let direct = nvlink.direct.unwrap_or_else(|| vec![vec![0; count]; count]);
    let switch = nvlink.switch.unwrap_or_else(|| vec![0; count]);
    check_square("nvlink.direct", &direct, count)?;
    if switch.len() != count {
        return wrong("nvlink.switch", format!("has {} entries for {count} GPUs", switch.len()));
    }
    if let Some(i) = (0..count).find(|&i| direct[i][i] != 0) {
        return wrong(format!("nvlink.direct[{i}][{i}]"), "is not 0: a GPU has no link to itself");
    }
    if let Some((i, j)) = asymmetry(&direct) {
        return wrong(
            format!("nvlink.direct[{i}][{j}]"),
            format!("is {}, but [{j}][{i}] is {}: links have two ends", direct[i][j], direct[j][i]),
        );
    }
    for (i, gpu) in gpus.iter_mut().enumerate() {
        let total = direct[i].iter().map(|&n| u64::from(n)).sum::<u64>() + u64::from(switch[i]);
        let (major, minor) = gpu.compute_capability;
        match links_of_the_architecture(gpu.compute_capability) {
            Some(most) if total <= u64::from(most) => {}
            Some(most) => {
                return wrong(
                    format!("nvlink.direct[{i}]"),
                    format!(
                        "and nvlink.switch give GPU {i} {total} links; compute capability {major}.{minor} has {most}"
                    ),
                );
            }
            None if total == 0 => {}
            None => {
                return wrong(
                    format!("nvlink.direct[{i}]"),
                    format!(
                        "and nvlink.switch give GPU {i} links, but compute capability {major}.{minor} is not known to have any"
                    ),
                );
            }
        }
        gpu.nvlink_version = if total == 0 { 0 } else { nvlink.version };
        for (j, &links) in direct[i].iter().enumerate() {
            gpu.links.extend((0..links).map(|_| Link { remote: Remote::Gpu(j), active: true }));
        }
        gpu.links.extend((0..switch[i]).map(|_| Link { remote: Remote::Switch, active: true }));
    }
    for (entry, [gpu, link]) in nvlink.inactive.into_iter().enumerate() {
        take_down(gpus, gpu, link, &format!("nvlink.inactive[{entry}]"))?;
    }
    Ok(())
}

/// Takes a link down at both ends: the n-th link from a to b is the n-th from b to a.
fn take_down(gpus: &mut [Gpu], gpu: usize, link: usize, key: &str) -> Result<(), Wrong> {
    let count = gpus.len();
    let Some(links) = gpus.get_mut(gpu).map(|gpu| &mut gpu.links) else {
        return wrong(key, format!("names GPU {gpu}, but the node has {count}"));
    };
    let present = links.len();
    let Some(end) = links.get_mut(link) else {
        return wrong(key, format!("names link {link} of GPU {gpu}, which has {present}"));
    };
    end.active = false;
    let remote = end.remote;
    if let Remote::Gpu(other) = remote {
        let nth = links[..link].iter().filter(|before| before.remote == remote).count();
        let far_end = gpus[other].links.iter_mut().filter(|link| link.remote == Remote::Gpu(gpu)).nth(nth);
        if let Some(far_end) = far_end {
            far_end.active = false;
        }
    }
    Ok(())
}

fn check_square<T>(key: &str, matrix: &[Vec<T>], count: usize) -> Result<(), Wrong> {
    if matrix.len() != count {
        return wrong(key, format!("has {} rows for {count} GPUs", matrix.len()));
    }
    match matrix.iter().position(|row| row.len() != count) {
        Some(row) => {
            wrong(format!("{key}[{row}]"), format!("has {} entries for {count} GPUs", matrix[row].len()))
        }
        None => Ok(()),
    }
}

/// The first entry below the diagonal of a square matrix that differs from its mirror image.
fn asymmetry<T: PartialEq>(matrix: &[Vec<T>]) -> Option<(usize, usize)> {
    let below_diagonal = (0..matrix.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
    below_diagonal.into_iter().find(|&(i, j)| matrix[i][j] != matrix[j][i])
}

fn p2p(access: &Access, gpus: &[Gpu]) -> Result<Vec<Vec<bool>>, Wrong> {
    let count = gpus.len();
    let pairs = |allowed: &dyn Fn(usize, usize) -> bool| {
        (0..count).map(|i| (0..count).map(|j| i != j && allowed(i, j)).collect()).collect()
    };
    match access {
        Access::Word(word) => match word.as_str() {
            "all" => Ok(pairs(&|_, _| true)),
            "none" => Ok(pairs(&|_, _| false)),
            "nvlink" => Ok(pairs(&|i, j| {
                gpus[i].links_to(j) > 0
                    || (gpus[i].links_to_switches() > 0 && gpus[j].links_to_switches() > 0)
            })),
            _ => wrong("p2p.access", format!("is `{word}`, not `all`, `nvlink`, `none` or a matrix")),
        },
        Access::Matrix(matrix) => {
            check_square("p2p.access", matrix, count)?;
            let pairs_of_gpus = (0..count).flat_map(|i| (0..count).map(move |j| (i, j)));
            for (i, j) in pairs_of_gpus {
                if matrix[i][j] > 1 {
                    return wrong(
                        format!("p2p.access[{i}][{j}]"),
                        format!("is {}, not 0 or 1", matrix[i][j]),
                    );
                }
            }
            if let Some((i, j)) = asymmetry(matrix) {
                return wrong(
                    format!("p2p.access[{i}][{j}]"),
                    format!("is {}, but [{j}][{i}] is {}", matrix[i][j], matrix[j][i]),
                );
            }
            Ok(pairs(&|i, j| matrix[i][j] == 1))
        }
    }
}
