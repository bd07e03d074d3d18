//! The drawing: devices on a circle, in rows around the NVSwitches, or as two quads side by side.

use std::collections::BTreeSet;
use std::f64::consts::TAU;

use svg::Document;
use svg::node::element::{Description, Group, Title};

use super::view::{Cube, View};
use crate::shapes::{
    DIRECT, FAINT, INK, LineStyle, MISSING, Point, RELAY, SWITCH, between, centred, circle, rectangle, text,
};

const WIDTH: f64 = 960.0;
/// Size of a device's box.
const DEVICE: Point = (124.0, 54.0);
/// Where the picture begins, below the heading.
const TOP: f64 = 118.0;

/// Draws a view.
pub(crate) fn draw(view: &View) -> Document {
    let mut picture = Picture { view, lines: Group::new(), labels: Group::new(), places: Vec::new() };
    let switched = view.devices.iter().any(|device| device.switch > 0);
    let bottom = match &view.cube {
        Some(cube) => picture.quads(cube),
        None if switched => picture.rows(),
        None => picture.ring(),
    };
    let (legend, height) = legend(view, bottom + 46.0);
    let background = rectangle((0.0, 0.0), (WIDTH, height), 0).set("fill", "#ffffff");
    let heading = format!("{}: {}", view.title, view.products());
    let mut document = Document::new()
        .set("viewBox", (0, 0, WIDTH as u32, height.ceil() as u32))
        .set("width", WIDTH)
        .set("height", height.ceil())
        .set("role", "img")
        .set("font-family", "'DejaVu Sans', Verdana, 'Helvetica Neue', Arial, sans-serif")
        .add(Title::new(heading.clone()))
        .add(Description::new().add(svg::node::Text::new(format!("{}: {}", view.topology, view.why))))
        .add(background)
        .add(text(heading, (40.0, 50.0), 22, INK).set("font-weight", "bold"))
        .add(
            text(
                view.topology.clone(),
                (40.0, 79.0),
                16,
                if view.algorithms.is_empty() { MISSING } else { INK },
            )
            .set("font-weight", "bold"),
        )
        .add(text(view.why.clone(), (40.0, 101.0), 13, FAINT));
    document = document.add(picture.lines).add(picture.labels);
    for (index, at) in picture.places.iter().enumerate() {
        document = document.add(device(view, index, *at));
    }
    document.add(legend)
}

struct Picture<'a> {
    view: &'a View,
    /// Below everything: panels, then connections.
    lines: Group,
    labels: Group,
    /// Centres of the devices.
    places: Vec<Point>,
}

impl Picture<'_> {
    /// A connection with its number of links on a small plate, `part` of the way from a to b.
    fn links(&mut self, a: Point, b: Point, colour: &'static str, links: u32, part: f64) {
        self.add(LineStyle::Links(colour, links).line(a, b));
        let (x, y) = between(a, b, part);
        let label = format!("NV{links}");
        let wide = 12.0 + 8.0 * label.len() as f64;
        let plate = rectangle((x - wide / 2.0, y - 10.0), (wide, 20.0), 10);
        self.label(plate.set("fill", "#ffffff").set("stroke", colour).set("stroke-width", 1));
        self.label(centred(label, (x, y + 4.5), 12, colour).set("font-weight", "bold"));
    }

    fn add(&mut self, node: impl Into<Box<dyn svg::Node>>) {
        self.lines = std::mem::take(&mut self.lines).add(node);
    }

    fn label(&mut self, node: impl Into<Box<dyn svg::Node>>) {
        self.labels = std::mem::take(&mut self.labels).add(node);
    }

    /// What there is between two devices that are not linked.
    fn unlinked(&mut self, a: usize, b: usize) {
        let (from, to) = (self.places[a], self.places[b]);
        let decides = self.view.cube.is_none() && self.view.unlinked == Some((a, b));
        if self.view.devices[a].p2p.contains(&b) {
            self.add(LineStyle::Access.line(from, to));
        }
        if decides {
            self.add(LineStyle::Missing.line(from, to));
            let (x, y) = between(from, to, 0.5);
            self.label(
                rectangle((x - 36.0, y - 11.0), (72.0, 22.0), 11)
                    .set("fill", "#ffffff")
                    .set("stroke", MISSING),
            );
            self.label(centred("no link", (x, y + 4.5), 12, MISSING).set("font-weight", "bold"));
        }
    }

    /// Two quads side by side, each bent towards the outside, relays on one height: so relay links cross nothing, and
    /// of the links within a quad only its two long ones do.
    fn quads(&mut self, cube: &Cube) -> f64 {
        const LEVELS: [f64; 4] = [0.0, 118.0, 276.0, 394.0];
        let (panel, height) = ((WIDTH - 80.0) * 0.42, 394.0 + 130.0);
        self.places = vec![(0.0, 0.0); 8];
        for (level, &(left, right)) in cube.relays.iter().enumerate() {
            let outside = matches!(level, 0 | 3);
            let inset = if outside { 82.0 } else { panel - 90.0 };
            let y = TOP + 70.0 + LEVELS[level] + 8.0;
            self.places[left] = (40.0 + inset, y);
            self.places[right] = (WIDTH - 40.0 - inset, y);
        }
        let names = ["quad of the first device", "the other quad"];
        for ((name, x), fill) in
            names.into_iter().zip([40.0, WIDTH - 40.0 - panel]).zip(["#eef4fb", "#f4f1fa"])
        {
            self.add(rectangle((x, TOP), (panel, height), 16).set("fill", fill));
            self.add(centred(name, (x + panel / 2.0, TOP + 24.0), 13, FAINT));
        }
        for &(left, right) in &cube.relays {
            let links = self.view.links[left][right];
            self.links(self.places[left], self.places[right], RELAY, links, 0.5);
        }
        let sides: [[usize; 4]; 2] = [cube.relays.map(|(left, _)| left), cube.relays.map(|(_, right)| right)];
        for side in sides {
            for (i, j) in (0..4).flat_map(|j| (0..j).map(move |i| (i, j))) {
                // The two that cross are labelled near their outer ends.
                let part = match (i, j) {
                    (0, 2) => 0.3,
                    (1, 3) => 0.7,
                    _ => 0.5,
                };
                let links = self.view.links[side[i]][side[j]];
                self.links(self.places[side[i]], self.places[side[j]], DIRECT, links, part);
            }
        }
        TOP + height
    }

    /// Devices above and below a box of NVSwitches.
    fn rows(&mut self) -> f64 {
        let count = self.view.devices.len();
        let above = count.div_ceil(2).max(count.min(4));
        let switches = (TOP + 140.0, TOP + 210.0);
        for index in 0..count {
            let (row, column) = (index / above, index % above);
            let in_row = if row == 0 { above } else { count - above };
            let step = (WIDTH - 80.0) / in_row as f64;
            let y = if row == 0 { TOP + 40.0 } else { switches.1 + 100.0 };
            self.places.push((40.0 + step * (column as f64 + 0.5), y));
        }
        for index in 0..count {
            let at = self.places[index];
            let edge = (at.0, if at.1 < switches.0 { switches.0 } else { switches.1 });
            match self.view.devices[index].switch {
                0 => {
                    self.add(LineStyle::Missing.line(at, edge));
                    let y = (edge.1 + at.1) / 2.0 + if at.1 < switches.0 { 16.0 } else { -8.0 };
                    self.label(centred("no link", (at.0 + 32.0, y), 12, MISSING).set("font-weight", "bold"));
                }
                links => {
                    let start = (at.0, at.1 + if at.1 < switches.0 { DEVICE.1 } else { -DEVICE.1 } / 2.0);
                    self.add(LineStyle::Links(SWITCH, links).line(at, edge));
                    self.plate(start, edge, links);
                }
            }
        }
        let size = (WIDTH - 80.0, switches.1 - switches.0);
        self.label(
            rectangle((40.0, switches.0), size, 14)
                .set("fill", "#e6f4ee")
                .set("stroke", SWITCH)
                .set("stroke-width", 2),
        );
        let middle = (switches.0 + switches.1) / 2.0;
        self.label(centred("NVSwitch", (WIDTH / 2.0, middle - 1.0), 18, SWITCH).set("font-weight", "bold"));
        let note = "all interconnected: a pair has as many links as the one with fewer";
        self.label(centred(note, (WIDTH / 2.0, middle + 19.0), 12, FAINT));
        for (a, b) in self.pairs() {
            // Direct links beside the switches; none of the known nodes has both.
            let direct = self.view.links[a][b].saturating_sub(self.shared(a, b));
            if direct > 0 && self.view.links[a][b] != u32::MAX {
                self.links(self.places[a], self.places[b], DIRECT, direct, 0.5);
            }
        }
        if count > above { switches.1 + 140.0 } else { switches.1 + 10.0 }
    }

    fn plate(&mut self, a: Point, b: Point, links: u32) {
        let (x, y) = between(a, b, 0.5);
        self.label(
            rectangle((x - 17.0, y - 10.0), (34.0, 20.0), 10).set("fill", "#ffffff").set("stroke", SWITCH),
        );
        self.label(centred(links.to_string(), (x, y + 4.5), 12, SWITCH).set("font-weight", "bold"));
    }

    fn shared(&self, a: usize, b: usize) -> u32 {
        self.view.devices[a].switch.min(self.view.devices[b].switch)
    }

    fn pairs(&self) -> Vec<(usize, usize)> {
        let count = self.view.devices.len();
        (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b))).collect()
    }

    /// Devices on a circle.
    fn ring(&mut self) -> f64 {
        let count = self.view.devices.len();
        let (across, down, start): (f64, f64, f64) = match count {
            0 | 1 => (0.0, 0.0, 0.0),
            2 => (230.0, 0.0, TAU / 2.0),
            4 => (330.0, 190.0, TAU * 5.0 / 8.0),
            _ => (350.0, 235.0, TAU * 3.0 / 4.0),
        };
        let middle = (WIDTH / 2.0, TOP + down.max(20.0) + 40.0);
        for index in 0..count {
            let angle = start + TAU * index as f64 / count as f64;
            self.places.push((middle.0 + across * angle.cos(), middle.1 + down * angle.sin()));
        }
        for (a, b) in self.pairs() {
            match self.view.links[a][b] {
                0 => self.unlinked(a, b),
                u32::MAX => {}
                links => {
                    let beside = b - a == 1 || b - a == count - 1;
                    // Off the middle, where the long ones cross.
                    let part = if beside { 0.5 } else { 0.24 };
                    self.links(self.places[a], self.places[b], DIRECT, links, part);
                }
            }
        }
        middle.1 + down.max(20.0) + 30.0
    }
}

fn device(view: &View, index: usize, (x, y): Point) -> Group {
    let device = &view.devices[index];
    let bare = device.direct + device.switch == 0;
    let position = view.cube.as_ref().and_then(|cube| cube.positions.iter().position(|at| *at == index));
    // A third line grows the box on both sides.
    let more = if position.is_some() { 8.0 } else { 0.0 };
    let corner = (x - DEVICE.0 / 2.0, y - DEVICE.1 / 2.0 - more);
    let size = (DEVICE.0, DEVICE.1 + 2.0 * more);
    let frame = rectangle(corner, size, 10).set("fill", if bare { "#fdf0f0" } else { "#ffffff" });
    // `0000:06:00.0` in place of the long spelling of the domain, where nothing is lost.
    let place = device.pci_bus_id.strip_prefix("0000").unwrap_or(&device.pci_bus_id).to_owned();
    let mut group = Group::new()
        .add(frame.set("stroke", if bare { MISSING } else { INK }).set("stroke-width", 1.6))
        .add(centred(view.name(index), (x, y - 3.0 - more), 16, INK).set("font-weight", "bold"))
        .add(centred(place, (x, y + 16.0 - more), 11, FAINT));
    if let Some(position) = position {
        group = group.add(centred(format!("position {position}"), (x, y + 32.0 - more), 11, FAINT));
    }
    group
}

/// The key, and where the drawing ends.
fn legend(view: &View, top: f64) -> (Group, f64) {
    let pairs = || (0..view.devices.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
    let mut entries: Vec<(LineStyle, String)> = Vec::new();
    if view.devices.iter().any(|device| device.switch > 0) {
        let links: BTreeSet<u32> =
            view.devices.iter().map(|device| device.switch).filter(|n| *n > 0).collect();
        entries.extend(
            links.into_iter().map(|n| (LineStyle::Links(SWITCH, n), format!("{n} links to NVSwitches"))),
        );
    } else {
        let joins_quads = |a: usize, b: usize| {
            view.cube
                .as_ref()
                .is_some_and(|cube| cube.relays.contains(&(a, b)) || cube.relays.contains(&(b, a)))
        };
        for (colour, relay) in [(DIRECT, false), (RELAY, true)] {
            let links: BTreeSet<u32> = pairs()
                .filter(|&(a, b)| joins_quads(a, b) == relay)
                .map(|(a, b)| view.links[a][b])
                .filter(|links| !matches!(links, 0 | &u32::MAX))
                .collect();
            let what = match (relay, view.cube.is_some()) {
                (true, _) => ", to the relay",
                (false, true) => ", within a quad",
                (false, false) => "",
            };
            let name = |n: u32| format!("{n} NVLink{}{what}", if n == 1 { "" } else { "s" });
            entries.extend(links.into_iter().map(|n| (LineStyle::Links(colour, n), name(n))));
        }
        if view.cube.is_none()
            && pairs().any(|(a, b)| view.links[a][b] == 0 && view.devices[a].p2p.contains(&b))
        {
            entries.push((LineStyle::Access, "peer access, no NVLink".to_owned()));
        }
    }
    let mut group = Group::new();
    let columns = 3;
    for (index, (stroke, name)) in entries.iter().enumerate() {
        let x = 40.0 + (index % columns) as f64 * 300.0;
        let y = top + (index / columns) as f64 * 26.0;
        group =
            group.add(stroke.line((x + 6.0, y), (x + 46.0, y))).add(text(name, (x + 62.0, y + 4.5), 13, INK));
    }
    let rows = entries.len().div_ceil(columns);
    let outcome = match view.algorithms.as_slice() {
        [] => format!("rendezvous {}", view.rendezvous),
        some => format!("algorithms: {}", some.join(", ")),
    };
    let y = top + rows as f64 * 26.0 + 6.0;
    let dot =
        circle((46.0, y - 4.0), 5.0).set("fill", if view.algorithms.is_empty() { MISSING } else { SWITCH });
    group = group.add(dot).add(text(outcome, (62.0, y), 13, INK));
    (group, y + 26.0)
}
