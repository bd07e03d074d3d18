//! The tables, findings and verdict, for a screen.

use std::fmt::Write as _;

use comfy_table::{ColumnConstraint, Table};
use meshreduce_channels::pci::Distance;

use super::findings::size;
use super::view::{GpuRow, Grade, NicRow, View};
use crate::tables::table;

/// All of it, no wider than `width`; what kinds of channels say of themselves if wanted.
pub(super) fn text(view: &View, width: u16, with_details: bool) -> String {
    let wide = usize::from(width);
    let mut text = wrapped(&format!("{}: {}", view.title, view.products()), wide, "");
    if let Some(table) = channels(view, width) {
        let _ = write!(text, "\n{table}\n");
        if with_details {
            text += &details(view, wide);
        }
    }
    if !view.gpus.is_empty() || !view.nics.is_empty() {
        let _ = write!(text, "\n{}\n", gpus(view, width));
        text += &legend(view);
    }
    if !view.nics.is_empty() {
        let _ = write!(text, "\n{}\n", nics(view, width));
    }
    text += "\n";
    for (name, value) in system(view) {
        text += &wrapped(&format!("{name:<13} {value}"), wide, &" ".repeat(14));
    }
    if !view.findings.is_empty() {
        text += "\n";
    }
    for finding in &view.findings {
        text += &wrapped(&format!("{:<8} {}", label(finding.grade), finding.text), wide, "         ");
    }
    let _ = write!(text, "\n{}", wrapped(&verdict(view), wide, "  "));
    text
}

fn label(grade: Grade) -> &'static str {
    match grade {
        Grade::Fault => "FAULT",
        Grade::Warning => "warning",
        Grade::Note => "note",
    }
}

/// The line that sums it up.
pub(super) fn verdict(view: &View) -> String {
    let mut parts = Vec::new();
    if let Some(channels) = &view.channels {
        let names = |viable: bool| -> Vec<&str> {
            channels
                .iter()
                .filter(|one| one.reason.is_none() == viable)
                .map(|one| one.name.as_str())
                .collect()
        };
        let list = |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(" ") };
        parts.push(format!("viable: {}", list(names(true))));
        if !names(false).is_empty() {
            parts.push(format!("not: {}", list(names(false))));
        }
    }
    let with = view.gpus.iter().filter(|gpu| gpu.way.why_none.is_none()).count();
    parts.push(format!("NICs for {with}/{} GPUs", view.gpus.len()));
    let counted = |grade, one: &str| match view.count(grade) {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {one}s")),
    };
    let found: Vec<String> =
        [counted(Grade::Fault, "fault"), counted(Grade::Warning, "warning")].into_iter().flatten().collect();
    parts.push(if found.is_empty() { "no faults".to_owned() } else { found.join(", ") });
    format!("VERDICT  {}", parts.join("; "))
}

fn channels(view: &View, width: u16) -> Option<Table> {
    let channels = view.channels.as_ref()?;
    let mut table = table(width, ["channel", "priority", "viable", "for, or why not"], &[1]);
    for one in channels {
        let (viable, rest) = match &one.reason {
            None => ("yes", ranges(&one.devices)),
            Some(reason) => ("no", reason.clone()),
        };
        table.add_row([one.name.clone(), one.priority.to_string(), viable.to_owned(), rest]);
    }
    Some(table)
}

/// What the kinds say of themselves.
fn details(view: &View, width: usize) -> String {
    let mut text = String::new();
    for one in view.channels.iter().flatten() {
        for (name, value) in &one.details {
            text += &wrapped(&format!("  {}: {name}: {value}", one.name), width, "      ");
        }
    }
    text
}

/// `cpu, cuda:0 to cuda:7`.
fn ranges(devices: &[String]) -> String {
    let ordinal = |device: &String| device.strip_prefix("cuda:")?.parse::<u32>().ok();
    let mut parts: Vec<String> = devices.iter().filter(|device| ordinal(device).is_none()).cloned().collect();
    let mut ordinals: Vec<u32> = devices.iter().filter_map(ordinal).collect();
    ordinals.sort_unstable();
    for run in ordinals.chunk_by(|a, b| a + 1 == *b) {
        match run {
            [first, .., last] if run.len() > 2 => parts.push(format!("cuda:{first} to cuda:{last}")),
            few => parts.extend(few.iter().map(|ordinal| format!("cuda:{ordinal}"))),
        }
    }
    parts.join(", ")
}

fn gpus(view: &View, width: u16) -> Table {
    let places = Places::of(view);
    let mut columns = vec![
        Column::new("device", |gpu: &GpuRow| gpu.ordinal.map_or_else(|| "-".to_owned(), |_| gpu.title())),
        Column::new("PCI", |gpu: &GpuRow| places.short(&gpu.address)),
        Column::new("NUMA", |gpu: &GpuRow| number(gpu.numa)),
        Column::new("goes by", |gpu: &GpuRow| goes_by(&gpu.way)),
        Column::new("path", |gpu: &GpuRow| {
            gpu.way.distance.map_or_else(String::new, |distance| distance.to_string())
        }),
        Column::new("BAR1", |gpu: &GpuRow| gpu.bar1.map_or_else(|| "?".to_owned(), size)),
        Column::new("ACS", |gpu: &GpuRow| acs(gpu).to_owned()),
        Column::new("memory by", |gpu: &GpuRow| reached_by(view, gpu).to_owned()),
    ];
    columns.retain(|column| column.name != "NUMA" || places.numa);
    laid_out(&columns, &view.gpus, width)
}

/// How places are written.
struct Places {
    /// All are in domain 0, which then need not be said.
    one_domain: bool,
    /// NUMA nodes are known.
    numa: bool,
}

impl Places {
    fn of(view: &View) -> Self {
        let addresses = view.gpus.iter().map(|gpu| Some(&gpu.address));
        let mut addresses = addresses.chain(view.nics.iter().map(|nic| nic.address.as_ref())).flatten();
        let numa = view.gpus.iter().map(|gpu| gpu.numa).chain(view.nics.iter().map(|nic| nic.numa));
        Self {
            one_domain: addresses.all(|address| address.starts_with("0000:")),
            numa: numa.flatten().next().is_some(),
        }
    }

    /// As `lspci` writes it.
    fn short(&self, address: &str) -> String {
        let short = address.strip_prefix("0000:").filter(|_| self.one_domain);
        short.unwrap_or(address).to_owned()
    }
}

fn number(number: Option<u32>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}

/// A column of a table: its title, and what it shows of a row.
struct Column<'a, R> {
    name: &'static str,
    shows: Box<dyn Fn(&R) -> String + 'a>,
}

impl<'a, R> Column<'a, R> {
    fn new(name: &'static str, shows: impl Fn(&R) -> String + 'a) -> Self {
        Self { name, shows: Box::new(shows) }
    }
}

fn laid_out<R>(columns: &[Column<'_, R>], rows: &[R], width: u16) -> Table {
    let place = |name: &str| columns.iter().position(|column| column.name == name);
    let numbers: Vec<usize> = ["NUMA", "BAR1"].into_iter().filter_map(place).collect();
    let mut table = table(width, columns.iter().map(|column| column.name), &numbers);
    if let Some(pci) = place("PCI") {
        table = unbroken(table, pci);
    }
    for row in rows {
        table.add_row(columns.iter().map(|column| (column.shows)(row)));
    }
    table
}

/// A column whose texts are never broken.
fn unbroken(mut table: Table, column: usize) -> Table {
    if let Some(column) = table.column_mut(column) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    table
}

fn goes_by(way: &super::view::NicPaths) -> String {
    match &way.why_none {
        Some(_) => "none".to_owned(),
        None => format!("{}{}", way.ports.join(" "), if way.by_map { " (map)" } else { "" }),
    }
}

/// Whether the bridges between a GPU and its NIC redirect.
fn acs(gpu: &GpuRow) -> &'static str {
    match gpu.way.distance {
        Some(_) if !gpu.detours.is_empty() => "on",
        Some(Distance::Switch | Distance::Switches) if gpu.acs_known => "off",
        Some(Distance::Switch | Distance::Switches) => "?",
        // Data pass the processor anyway.
        _ => "",
    }
}

/// How its memory is registered with NICs.
fn reached_by(view: &View, gpu: &GpuRow) -> &'static str {
    let peermem = view.peermem.module.is_some() && gpu.direct != Some(false);
    match (gpu.dma_buf, peermem) {
        (Some(true), true) => "both",
        (Some(true), false) => "dma-buf",
        (_, true) => "peermem",
        (Some(false), false) => "none",
        (None, false) => "?",
    }
}

/// The short names that occur, in words.
fn legend(view: &View) -> String {
    let distances: std::collections::BTreeSet<Distance> =
        view.gpus.iter().filter_map(|gpu| gpu.way.distance).collect();
    distances.into_iter().map(|distance| format!("  {distance:<4}  {}\n", distance.meaning())).collect()
}

fn nics(view: &View, width: u16) -> Table {
    let places = Places::of(view);
    let told = view.nics.iter().any(|nic| nic.gid.is_some());
    let mut columns = vec![
        Column::new("NIC", |nic: &NicRow| nic.name.clone()),
        Column::new("PCI", |nic: &NicRow| places.short(nic.address.as_deref().unwrap_or_default())),
        Column::new("NUMA", |nic: &NicRow| number(nic.numa)),
        Column::new("link", link),
        Column::new("interface", |nic: &NicRow| nic.netdev.clone().unwrap_or_default()),
        Column::new("GID", |nic: &NicRow| nic.gid.clone().unwrap_or_default()),
        Column::new("used by", |nic: &NicRow| used_by(view, nic)),
    ];
    columns.retain(|column| (column.name != "NUMA" || places.numa) && (column.name != "GID" || told));
    laid_out(&columns, &view.nics, width)
}

/// `IB 400G`, `Eth 2.5G`.
pub(crate) fn link(nic: &NicRow) -> String {
    let layer = match nic.layer.as_str() {
        "InfiniBand" => "IB",
        "Ethernet" => "Eth",
        other => other,
    };
    match (nic.megabits / 1000, nic.megabits % 1000 / 100) {
        (0, 0) => layer.to_owned(),
        (whole, 0) => format!("{layer} {whole}G"),
        (whole, tenths) => format!("{layer} {whole}.{tenths}G"),
    }
}

fn used_by(view: &View, nic: &NicRow) -> String {
    if let Some(why) = &nic.skip {
        return format!("({why})");
    }
    let by = |ports: &[String]| ports.contains(&nic.name);
    let users: Vec<String> = view.gpus.iter().filter(|gpu| by(&gpu.way.ports)).map(GpuRow::title).collect();
    users.join(" ")
}

fn system(view: &View) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    lines.extend(view.driver.iter().map(|why| ("driver", why.clone())));
    lines.extend(view.verbs.iter().map(|why| ("libibverbs", why.clone())));
    if !view.nics.is_empty() {
        lines.push(("host memory", format!("goes by {}", goes_by(&view.host))));
        lines.push(("peermem", view.peermem.to_string()));
    }
    let Some(system) = &view.system else { return lines };
    let limit = system.memlock.map_or_else(|| "no limit".to_owned(), size);
    let beyond = if system.ipc_lock && system.memlock.is_some() { ", and more by CAP_IPC_LOCK" } else { "" };
    lines.push(("locked memory", limit + beyond));
    let of = |initial: Option<bool>| -> Vec<&str> {
        let kinds = system.namespaces.iter().filter(|one| one.initial == initial);
        kinds.map(|one| one.kind.as_str()).collect()
    };
    let mut namespaces: Vec<String> = [("the machine's: ", Some(true)), ("its own: ", Some(false))]
        .into_iter()
        .filter(|(_, initial)| !of(*initial).is_empty())
        .map(|(whose, initial)| whose.to_owned() + &of(initial).join(" "))
        .collect();
    let unknown = system.namespaces.iter().filter(|one| one.initial.is_none());
    namespaces.extend(unknown.map(|one| format!("{} {}", one.kind, one.number)));
    lines.push(("namespaces", namespaces.join("; ")));
    lines
}

/// Text in lines of at most `width` characters; `indent` stands before all but the first. Ends in a newline.
pub(crate) fn wrapped(text: &str, width: usize, indent: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let lead = text.len() - text.trim_start().len();
    let mut line = text[..lead].to_owned();
    let mut blank = true;
    // Blanks within are kept, but for those at which a line ends.
    for word in text[lead..].split_inclusive(' ') {
        let fits = line.chars().count() + word.trim_end().chars().count() <= width;
        if !fits && !blank {
            lines.push(line.trim_end().to_owned());
            line = indent.to_owned();
        }
        line += word;
        blank = false;
    }
    lines.push(line.trim_end().to_owned());
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_wrapped_between_words_and_indented() {
        assert_eq!(wrapped("one two three", 8, "  "), "one two\n  three\n");
        assert_eq!(wrapped("name     value value", 14, "   "), "name     value\n   value\n");
        assert_eq!(wrapped("unbreakable", 4, "  "), "unbreakable\n");
        assert_eq!(wrapped("  lead", 80, "  "), "  lead\n");
        assert_eq!(wrapped("", 80, "  "), "\n");
    }

    #[test]
    fn runs_of_devices_are_shortened() {
        let of = |names: &[&str]| ranges(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["cpu", "cuda:0", "cuda:1", "cuda:2", "cuda:5"]), "cpu, cuda:0 to cuda:2, cuda:5");
        assert_eq!(of(&["cuda:1", "cuda:0"]), "cuda:0, cuda:1");
        assert_eq!(of(&[]), "");
    }
}
