//! The text: matrix, finding, devices.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::view::View;

/// All of it.
pub(crate) fn text(view: &View) -> String {
    let mut text = format!("{}: {}\n\n", view.title, view.products());
    text += &matrix(view);
    text += "\n";
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<12} {value}");
        }
    };
    line("Detected:", &format!("{}: {}", view.topology, view.why));
    if let Some(cube) = &view.cube {
        for (name, quad) in ["Quads:", ""].iter().zip(&cube.quads) {
            line(name, &view.names(quad));
        }
        let relays = cube.relays.map(|(a, b)| format!("{}-{}", view.name(a), view.name(b)));
        line("Relays:", &relays.join(" "));
        line("Tree:", &format!("{} (positions 0 to 7)", view.names(&cube.positions)));
    }
    line("Rendezvous:", &view.rendezvous);
    line("Algorithms:", &view.algorithms.join(", "));
    text + "\n" + &devices(view) + "\n"
}

/// An entry as `nvidia-smi topo -m` would print it; where there is no NVLink, what is known.
fn entry(view: &View, a: usize, b: usize) -> String {
    match view.links[a][b] {
        _ if a == b => "X".to_owned(),
        // Only of one device named twice.
        u32::MAX => "same".to_owned(),
        0 if view.devices[a].p2p.contains(&b) => "P2P".to_owned(),
        0 => "none".to_owned(),
        links => format!("NV{links}"),
    }
}

fn matrix(view: &View) -> String {
    let all = 0..view.devices.len();
    let line = |first: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!(" {cell:^6}")).collect();
        format!("{}\n", format!("{first:<6}{cells}").trim_end())
    };
    let mut text = line("", all.clone().map(|index| view.name(index)).collect());
    for a in all.clone() {
        text += &line(&view.name(a), all.clone().map(|b| entry(view, a, b)).collect());
    }
    let shown = |what: &str| all.clone().any(|a| all.clone().any(|b| entry(view, a, b).starts_with(what)));
    text += "\n";
    for (symbol, meaning) in [
        ("NV", "NV#   that many NVLinks, direct or through NVSwitches"),
        ("P2P", "P2P   no NVLink, but access to each other's memory"),
        ("none", "none  neither"),
        ("same", "same  the same device"),
    ] {
        if shown(symbol) {
            let _ = writeln!(text, "  {meaning}");
        }
    }
    text
}

fn devices(view: &View) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "device",
        "name",
        "compute",
        "PCI bus id",
        "UUID",
        "direct",
        "switch",
        "down",
        "other",
        "hidden",
        "P2P with",
    ]);
    for (index, device) in view.devices.iter().enumerate() {
        let others = view.devices.len() - 1;
        table.add_row([
            view.name(index),
            device.name.clone(),
            device.compute_capability.clone(),
            device.pci_bus_id.clone(),
            device.uuid.clone(),
            device.direct.to_string(),
            device.switch.to_string(),
            device.inactive.to_string(),
            device.other.to_string(),
            device.hidden.to_string(),
            match device.p2p.len() {
                0 => "none".to_owned(),
                count if count == others && others > 1 => "all".to_owned(),
                _ => device
                    .p2p
                    .iter()
                    .map(|peer| view.devices[*peer].ordinal.to_string())
                    .collect::<Vec<_>>()
                    .join(" "),
            },
        ]);
    }
    for column in 5..10 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}
