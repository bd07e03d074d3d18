//! What is noteworthy about a machine, and what can be done.

use std::collections::BTreeMap;

use meshreduce_channels::pci::Distance;

use super::view::{Finding, GpuRow, Grade, View};

/// Where a view comes from, which decides what of the process it is shown in concerns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This machine.
    Here,
    /// An emulated node, by a process of this machine.
    Emulated,
    /// A tree that was captured elsewhere.
    Elsewhere,
}

/// All of them, most serious first.
pub(crate) fn of(view: &View, seen: Origin) -> Vec<Finding> {
    let mut found = Findings::default();
    if view.nics.is_empty() {
        found.note("there is no NIC with verbs, so nothing goes beyond this machine but by basic".to_owned());
    } else {
        gpus_without(view, &mut found);
        ways(view, &mut found);
        bridges(view, &mut found);
        memory(view, &mut found);
        ports(view, &mut found);
    }
    match (&view.system, seen) {
        (Some(_), Origin::Here) if !view.nics.is_empty() => {
            limits(view, &mut found);
            namespaces(view, &mut found);
        }
        (Some(_), Origin::Here) => namespaces(view, &mut found),
        _ => {}
    }
    found.0.sort_by_key(|finding| finding.grade);
    found.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn fault(&mut self, text: String) {
        self.0.push(Finding { grade: Grade::Fault, text });
    }

    fn warning(&mut self, text: String) {
        self.0.push(Finding { grade: Grade::Warning, text });
    }

    fn note(&mut self, text: String) {
        self.0.push(Finding { grade: Grade::Note, text });
    }
}

/// Names of GPUs, sorted by what is said of them.
fn grouped<K: Ord>(view: &View, key: impl Fn(&GpuRow) -> Option<K>) -> BTreeMap<K, Vec<String>> {
    let mut groups: BTreeMap<K, Vec<String>> = BTreeMap::new();
    for gpu in &view.gpus {
        if let Some(key) = key(gpu) {
            groups.entry(key).or_default().push(gpu.title());
        }
    }
    groups
}

fn gpus_without(view: &View, found: &mut Findings) {
    for (why, gpus) in grouped(view, |gpu| gpu.way.why_none.clone()) {
        found.warning(format!("{}: {why}", some(&gpus)));
    }
    if let Some(why) = &view.host.why_none {
        found.warning(format!("cpu: {why}"));
    }
}

fn ways(view: &View, found: &mut Findings) {
    let far = |gpu: &GpuRow| {
        gpu.way.distance.filter(|distance| *distance >= Distance::HostBridge && !gpu.way.by_map)
    };
    for (distance, gpus) in grouped(view, far) {
        let what = match distance {
            Distance::HostBridge => {
                "no NIC below a PCIe switch of its own, or none that is shown: data pass the host bridge"
            }
            Distance::Node => "no NIC below the same host bridge: data pass the processor",
            _ => "no NIC of its NUMA node: data pass from one node to another",
        };
        found.warning(format!("{} ({distance}): {what}", some(&gpus)));
    }
    let mut users: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for gpu in &view.gpus {
        for port in &gpu.way.ports {
            users.entry(port).or_default().push(gpu.title());
        }
    }
    let shared = view.nics.iter().filter_map(|nic| {
        let gpus = users.get(nic.name.as_str()).filter(|gpus| gpus.len() > 1)?;
        Some(format!("{} ({})", nic.name, gpus.join(" ")))
    });
    let shared: Vec<String> = shared.collect();
    if !shared.is_empty() {
        found.note(format!("GPUs share {}", shared.join(", ")));
    }
}

fn bridges(view: &View, found: &mut Findings) {
    for gpu in view.gpus.iter().filter(|gpu| !gpu.detours.is_empty()) {
        let nic = gpu.way.ports.first().map_or("its NIC", String::as_str);
        let off: Vec<String> =
            gpu.detours.iter().map(|bridge| format!("setpci -s {bridge} ECAP_ACS+6.w=0")).collect();
        found.warning(format!(
            "ACS on {} sends data between {} and {nic} by way of the processor; switch it off in the firmware, or until the next \
             boot by `{}`",
            gpu.detours.join(" "),
            gpu.title(),
            off.join("; ")
        ));
    }
    let unknown = |gpu: &GpuRow| {
        let bridged = gpu.way.distance.is_some_and(|distance| distance <= Distance::Switches);
        (bridged && !gpu.acs_known).then_some(())
    };
    if let Some(gpus) = grouped(view, unknown).get(&()) {
        found.note(format!(
            "whether ACS is on between {} and their NICs is not known: root alone can read it",
            some(gpus)
        ));
    }
}

/// The first few of many.
fn some(names: &[String]) -> String {
    match names {
        [first, .., last] if names.len() > 3 => format!("{first} ... {last}"),
        all => all.join(" "),
    }
}

fn memory(view: &View, found: &mut Findings) {
    let small = |gpu: &GpuRow| Some((gpu.bar1?, gpu.memory?)).filter(|(bar1, memory)| bar1 < memory);
    for ((bar1, memory), gpus) in grouped(view, small) {
        found.warning(format!(
            "{}: BAR1 has {} of {} of memory, and no more can be registered with NICs at a time; set \"resizable BAR\" in the \
             firmware, or compute mode on the card",
            some(&gpus),
            size(bar1),
            size(memory)
        ));
    }
    let unreachable = |gpu: &GpuRow| (gpu.direct == Some(false)).then_some(());
    if let Some(gpus) = grouped(view, unreachable).get(&()) {
        found.fault(format!("{}: the device has no GPUDirect RDMA", some(gpus)));
    }
    let neither = |gpu: &GpuRow| {
        (gpu.direct != Some(false) && view.peermem.module.is_none() && gpu.dma_buf == Some(false))
            .then_some(())
    };
    if let Some(gpus) = grouped(view, neither).get(&()) {
        found.fault(format!(
            "{}: NICs cannot reach their memory: no peermem module is loaded (`modprobe nvidia_peermem`), and the driver exports no \
             dma-bufs (the open kernel modules do)",
            some(gpus)
        ));
    }
}

fn ports(view: &View, found: &mut Findings) {
    let mut skipped: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for nic in &view.nics {
        if let Some(why) = &nic.skip {
            skipped.entry(why).or_default().push(&nic.name);
        }
    }
    for (why, nics) in skipped {
        found.note(format!("nothing goes by {}: {why}", nics.join(" ")));
    }
    let layers: std::collections::BTreeSet<&str> =
        view.nics.iter().filter(|nic| nic.skip.is_none()).map(|nic| nic.layer.as_str()).collect();
    if layers.len() > 1 {
        let layers: Vec<&str> = layers.into_iter().collect();
        found.note(format!("NICs of {} do not reach each other", layers.join(" and ")));
    }
}

/// Less than this cannot be meant: a layer's keys and values are more.
const LITTLE: u64 = 1 << 30;

fn limits(view: &View, found: &mut Findings) {
    let Some(system) = &view.system else { return };
    if let Some(limit) = system.memlock.filter(|limit| *limit < LITTLE && !system.ipc_lock) {
        found.warning(format!(
            "the process may lock {} of memory, and no more host memory can be registered with NICs: `ulimit -l unlimited`, \
             `LimitMEMLOCK=infinity` for a service, `--ulimit memlock=-1` for a container",
            size(limit)
        ));
    }
    match &system.uverbs {
        Some(files) if files.iter().any(|file| !file.usable) => {
            let names: Vec<&str> = files.iter().filter(|file| !file.usable).map(|file| file.name.as_str()).collect();
            found.fault(format!("the process may not open /dev/infiniband/{}", names.join(" ")));
        }
        Some(files) if !files.is_empty() => {}
        _ => found.fault(
            "sysfs shows NICs, but /dev/infiniband has none of their files: a container needs `--device /dev/infiniband`, a machine \
             the module ib_uverbs"
                .to_owned(),
        ),
    }
}

fn namespaces(view: &View, found: &mut Findings) {
    let Some(system) = &view.system else { return };
    let own = |kind| system.namespace(kind).is_some_and(|namespace| namespace.initial == Some(false));
    if own("pid") {
        found.note(
            "this process has a pid namespace of its own (a container), and the driver opens memory of processes of the same one \
             alone: to others ipc does not go (`docker run --pid=host`, `shareProcessNamespace: true` in a pod)"
                .to_owned(),
        );
    }
    if own("user") {
        found.note(
            "this process has a user namespace of its own: ipc goes to processes of the same one alone, and rights on the machine \
             (locking memory, reading ACS) are not those of its root"
                .to_owned(),
        );
    }
}

/// Bytes in the unit that makes a short number.
pub(crate) fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024 || value % 1024 != 0 && value < 10240 {
            break;
        }
        (value, unit) = (value / 1024, next);
    }
    format!("{value} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (8 << 20, "8 MiB"),
            (8_388_608_000, "8000 MiB"),
            (128 << 30, "128 GiB"),
            (85_899_345_920 + 4096, "80 GiB"),
            (1536, "1536 B"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
