//! The drawing: the PCI tree from left to right, a line for every device, and on the right who goes by whom.

use std::collections::BTreeMap;

use meshreduce_channels::pci::{Component, Distance};
use svg::Document;
use svg::node::element::{Group, Path, Title, path::Data};

use super::findings::size;
use super::text::{link, verdict};
use super::view::{GpuRow, NicRow, View};
use crate::shapes::{DIRECT, FAINT, INK, MISSING, Point, RELAY, SWITCH, centred, circle, n, rectangle, text};

const ROW: f64 = 34.0;
const TOP: f64 = 124.0;
const LEFT: f64 = 40.0;
/// From one level of the tree to the next.
const LEVEL: f64 = 118.0;
/// Size of a device's box.
const DEVICE: Point = (344.0, 27.0);
/// Size of a bridge's box.
const BRIDGE: Point = (92.0, 22.0);
/// Room for the arcs.
const ARCS: f64 = 200.0;

/// A line of the drawing.
enum Leaf<'a> {
    Gpu(&'a GpuRow),
    Nic(&'a NicRow),
}

/// A device, or a place where ways part.
struct Node<'a> {
    way: Vec<Component>,
    leaf: Option<Leaf<'a>>,
    /// Of the NUMA node, if all below have the same.
    numa: Option<u32>,
    parent: Option<usize>,
    level: usize,
    y: f64,
}

/// Draws a view.
pub(crate) fn draw(view: &View) -> Document {
    let nodes = nodes(view);
    let levels = nodes.iter().map(|node| node.level).max().unwrap_or(0);
    let devices = LEFT + 84.0 + LEVEL * levels.max(1) as f64;
    let width = devices + DEVICE.0 + ARCS;
    let rows = nodes.iter().filter(|node| node.leaf.is_some()).count();
    let bottom = TOP + ROW * rows as f64;
    let (legend, height) = legend(view, bottom + 40.0);
    let heading = format!("{}: {}", view.title, view.products());
    let summary = verdict(view).replace("VERDICT  ", "");
    Document::new()
        .set("viewBox", (0, 0, width.ceil() as u32, height.ceil() as u32))
        .set("width", width.ceil())
        .set("height", height.ceil())
        .set("role", "img")
        .set("font-family", "'DejaVu Sans', Verdana, 'Helvetica Neue', Arial, sans-serif")
        .add(Title::new(heading.clone()))
        .add(rectangle((0.0, 0.0), (width.ceil(), height.ceil()), 0).set("fill", "#ffffff"))
        .add(text(heading, (LEFT, 46.0), 20, INK).set("font-weight", "bold"))
        .add(text(summary, (LEFT, 72.0), 13, FAINT))
        .add(numa_bands(&nodes, width))
        .add(tree(&nodes, devices))
        .add(boxes(&nodes, devices))
        .add(arcs(view, &nodes, devices + DEVICE.0))
        .add(legend)
}

/// Everything that is drawn, parents before children, leaves from top to bottom.
fn nodes(view: &View) -> Vec<Node<'_>> {
    let way = |path: &Option<String>| -> Vec<Component> {
        let parts = path.iter().flat_map(|path| path.split('/'));
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    let node = |way, leaf, numa| Node { way, leaf, numa, parent: None, level: 0, y: 0.0 };
    let branches = view.tree.iter().map(|branch| node(way(&Some(branch.path.clone())), None, branch.numa));
    let gpus = view.gpus.iter().map(|gpu| node(way(&gpu.path), Some(Leaf::Gpu(gpu)), gpu.numa));
    let nics = view.nics.iter().map(|nic| node(way(&nic.path), Some(Leaf::Nic(nic)), nic.numa));
    let mut nodes: Vec<Node<'_>> = branches.chain(gpus).chain(nics).collect();
    // Roots of one NUMA node together; what has no way at all last. A way sorts before those that it is the beginning of.
    let numa: BTreeMap<Component, Option<u32>> =
        nodes.iter().filter(|node| node.way.len() == 1).map(|node| (node.way[0], node.numa)).collect();
    nodes.sort_by_key(|node| {
        let root = node.way.first().copied();
        (root.is_none(), root.and_then(|root| numa.get(&root).copied().flatten()), node.way.clone())
    });
    let mut y = TOP + ROW / 2.0;
    for index in 0..nodes.len() {
        let parent = (0..index).rev().find(|other| {
            let (one, way) = (&nodes[*other], &nodes[index].way);
            one.leaf.is_none() && way.len() > one.way.len() && way.starts_with(&one.way)
        });
        nodes[index].parent = parent;
        nodes[index].level = parent.map_or(0, |parent| nodes[parent].level + 1);
        if nodes[index].leaf.is_some() {
            nodes[index].y = y;
            y += ROW;
        }
    }
    // Bridges in the middle of what hangs from them.
    for index in (0..nodes.len()).rev().filter(|index| nodes[*index].leaf.is_none()).collect::<Vec<_>>() {
        let below: Vec<f64> =
            nodes.iter().filter(|node| node.parent == Some(index)).map(|node| node.y).collect();
        if let (Some(first), Some(last)) = (below.first(), below.last()) {
            nodes[index].y = (first + last) / 2.0;
        }
    }
    nodes
}

/// Where a bridge's box begins.
fn bridge_x(level: usize) -> f64 {
    LEFT + 66.0 + LEVEL * level as f64
}

/// Stripes behind all that is of one NUMA node.
fn numa_bands(nodes: &[Node<'_>], width: f64) -> Group {
    let mut group = Group::new();
    let leaves: Vec<&Node<'_>> = nodes.iter().filter(|node| node.leaf.is_some()).collect();
    for (index, run) in leaves.chunk_by(|a, b| a.numa == b.numa).enumerate() {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let (top, height) = (first.y - ROW / 2.0 + 1.0, last.y - first.y + ROW - 2.0);
        let fill = if index % 2 == 0 { "#f3f6f9" } else { "#f8f6fb" };
        group = group
            .add(rectangle((LEFT - 16.0, top), (width - 2.0 * LEFT + 32.0, height), 10).set("fill", fill));
        let label = match (first.numa, first.way.is_empty()) {
            (Some(numa), _) => format!("NUMA {numa}"),
            (None, true) => "not PCI".to_owned(),
            (None, false) => continue,
        };
        group = group
            .add(text(label, (LEFT - 6.0, top + height / 2.0 + 4.0), 12, FAINT).set("font-weight", "bold"));
    }
    group
}

/// The lines of the tree.
fn tree(nodes: &[Node<'_>], devices: f64) -> Group {
    let mut group = Group::new().set("fill", "none").set("stroke", "#9fb0c0").set("stroke-width", 1.6);
    for node in nodes {
        let Some(parent) = node.parent.map(|parent| &nodes[parent]) else { continue };
        let from = bridge_x(parent.level) + BRIDGE.0;
        let to = if node.leaf.is_some() { devices } else { bridge_x(node.level) };
        let turn = from + 12.0;
        let data = Data::new()
            .move_to((n(from), n(parent.y)))
            .horizontal_line_to(n(turn))
            .vertical_line_to(n(node.y))
            .horizontal_line_to(n(to));
        group = group.add(Path::new().set("d", data));
    }
    group
}

fn boxes(nodes: &[Node<'_>], devices: f64) -> Group {
    let mut group = Group::new();
    for node in nodes {
        group = match &node.leaf {
            None => group.add(bridge(node)),
            Some(Leaf::Gpu(gpu)) => group.add(gpu_box(gpu, (devices, node.y))),
            Some(Leaf::Nic(nic)) => group.add(nic_box(nic, (devices, node.y))),
        };
    }
    group
}

fn bridge(node: &Node<'_>) -> Group {
    let x = bridge_x(node.level);
    let (label, fill) = match node.way.last() {
        Some(root @ Component::Root { .. }) => (root.to_string(), "#e3e9ef"),
        Some(bridge) => (bridge.to_string(), "#ffffff"),
        None => (String::new(), "#ffffff"),
    };
    let frame = rectangle((x, node.y - BRIDGE.1 / 2.0), BRIDGE, 5).set("fill", fill).set("stroke", "#9fb0c0");
    Group::new().add(frame).add(centred(label, (x + BRIDGE.0 / 2.0, node.y + 4.0), 11, INK))
}

fn device(at: Point, fill: &str, stroke: &str) -> svg::node::element::Rectangle {
    rectangle((at.0, at.1 - DEVICE.1 / 2.0), DEVICE, 7)
        .set("fill", fill)
        .set("stroke", stroke)
        .set("stroke-width", 1.4)
}

fn gpu_box(gpu: &GpuRow, (x, y): Point) -> Group {
    let lost = gpu.way.why_none.is_some();
    let frame = if lost { device((x, y), "#fdf0f0", MISSING) } else { device((x, y), "#e9f5ef", SWITCH) };
    let place = if gpu.ordinal.is_some() { gpu.address.clone() } else { String::new() };
    let bar1 = gpu.bar1.map_or_else(String::new, |bytes| format!("BAR1 {}", size(bytes)));
    let bar1_colour = if gpu.bar1 < gpu.memory && gpu.bar1.is_some() { RELAY } else { FAINT };
    let mut group = Group::new()
        .add(frame)
        .add(text(gpu.title(), (x + 10.0, y + 5.0), 14, INK).set("font-weight", "bold"))
        .add(text(place, (x + 112.0, y + 4.0), 11, FAINT))
        .add(text(bar1, (x + 206.0, y + 4.0), 11, bar1_colour));
    if lost {
        group = group.add(text("no NIC", (x + 284.0, y + 4.0), 11, MISSING).set("font-weight", "bold"));
    } else if !gpu.detours.is_empty() {
        group = group.add(text("ACS on", (x + 284.0, y + 4.0), 11, MISSING).set("font-weight", "bold"));
    }
    group
}

fn nic_box(nic: &NicRow, (x, y): Point) -> Group {
    let frame = match nic.skip {
        Some(_) => device((x, y), "#ffffff", "#b6c2cd").set("stroke-dasharray", "5 4"),
        None => device((x, y), "#eaf1fa", DIRECT),
    };
    let ink = if nic.skip.is_some() { FAINT } else { INK };
    let last = nic.skip.clone().or_else(|| nic.netdev.clone()).unwrap_or_default();
    Group::new()
        .add(frame)
        .add(text(nic.name.clone(), (x + 10.0, y + 5.0), 14, ink).set("font-weight", "bold"))
        .add(text(link(nic), (x + 112.0, y + 4.0), 11, FAINT))
        .add(text(last, (x + 206.0, y + 4.0), 11, if nic.skip.is_some() { MISSING } else { FAINT }))
}

/// How a pairing looks.
fn colour(distance: Option<Distance>) -> &'static str {
    match distance {
        Some(Distance::Switch | Distance::Switches) => SWITCH,
        Some(Distance::HostBridge | Distance::Node) => RELAY,
        _ => MISSING,
    }
}

fn arcs(view: &View, nodes: &[Node<'_>], x: f64) -> Group {
    let mut group = Group::new();
    let y_of = |name: &str| {
        nodes
            .iter()
            .find(|node| matches!(&node.leaf, Some(Leaf::Nic(nic)) if nic.name == name))
            .map(|node| node.y)
    };
    let all: Vec<(f64, f64, &GpuRow)> = nodes
        .iter()
        .filter_map(|node| match &node.leaf {
            Some(Leaf::Gpu(gpu)) => Some((node.y, *gpu)),
            _ => None,
        })
        .flat_map(|(y, gpu)| {
            gpu.way.ports.iter().filter_map(move |port| Some((y, y_of(port)?, gpu))).collect::<Vec<_>>()
        })
        .collect();
    let longest = all.iter().map(|(from, to, _)| (from - to).abs()).fold(ROW, f64::max);
    let mut alike: BTreeMap<u64, f64> = BTreeMap::new();
    for (from, to, gpu) in all {
        // The longer the way, the further out, so that arcs within arcs do not touch; and of one length each a little
        // further than the one before.
        let before = alike.entry((from - to).abs().to_bits()).or_default();
        let out = *before + 34.0 + (ARCS - 110.0) * 4.0 / 3.0 * ((from - to).abs() - ROW) / longest;
        *before += if (from - to).abs() > 4.0 * ROW { 8.0 } else { 0.0 };
        let data = Data::new().move_to((n(x), n(from))).cubic_curve_to((
            n(x + out),
            n(from),
            n(x + out),
            n(to),
            n(x + 5.0),
            n(to),
        ));
        let stroke = colour(gpu.way.distance);
        let mut arc =
            Path::new().set("d", data).set("fill", "none").set("stroke", stroke).set("stroke-width", 2.4);
        if gpu.way.by_map {
            arc = arc.set("stroke-dasharray", "6 4");
        }
        group = group.add(arc).add(circle((x + 5.0, to), 4.0).set("fill", stroke));
    }
    if view.gpus.is_empty() || view.nics.is_empty() {
        return group;
    }
    group.add(text("goes by", (x + 8.0, TOP - 10.0), 12, FAINT))
}

/// The key, and where the drawing ends.
fn legend(view: &View, top: f64) -> (Group, f64) {
    let mut group = Group::new();
    let mut y = top;
    let mut line = |group: Group, stroke: &str, dashed: bool, what: String| {
        let data = Data::new().move_to((LEFT, n(y - 4.0))).horizontal_line_to(LEFT + 34.0);
        let mut sample = Path::new().set("d", data).set("stroke", stroke).set("stroke-width", 2.4);
        if dashed {
            sample = sample.set("stroke-dasharray", "6 4");
        }
        let group = group.add(sample).add(text(what, (LEFT + 46.0, y), 12, INK));
        y += 22.0;
        group
    };
    let distances: std::collections::BTreeSet<Distance> =
        view.gpus.iter().filter_map(|gpu| gpu.way.distance).collect();
    for distance in distances {
        group = line(group, colour(Some(distance)), false, format!("{distance}: {}", distance.meaning()));
    }
    if view.gpus.iter().any(|gpu| gpu.way.by_map) {
        group = line(group, INK, true, "as the user's map says".to_owned());
    }
    (group, y + 8.0)
}
