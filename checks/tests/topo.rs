//! `topo`: what it prints, draws and refuses.

use std::process::{Command, Output};

use meshreduce_checks::programs::program;
use meshreduce_emulator_node::node::Node;
use serde_json::Value;

fn topo(arguments: &[&str], visible: Option<&str>) -> Output {
    let mut command = Command::new(program("multigpu"));
    command.arg("topo").args(arguments).env_remove("CUDA_VISIBLE_DEVICES");
    command.envs(visible.map(|visible| ("CUDA_VISIBLE_DEVICES", visible)));
    command.output().expect("the program starts")
}

fn text(arguments: &[&str]) -> String {
    let output = topo(arguments, None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(arguments: &[&str], visible: Option<&str>) -> Value {
    let output = topo(&[arguments, &["--json"]].concat(), visible);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn column(view: &Value, name: &str) -> Vec<String> {
    view["devices"].as_array().expect("a list").iter().map(|device| device[name].to_string()).collect()
}

#[test]
fn the_matrix_is_that_of_the_description() {
    for name in Node::shipped() {
        let node = Node::load(name).unwrap();
        let view = json(&["--node", name], None);
        for (a, one) in node.gpus.iter().enumerate() {
            for (b, other) in node.gpus.iter().enumerate().filter(|(b, _)| *b != a) {
                let links = one.links_to(b) + one.links_to_switches().min(other.links_to_switches());
                assert_eq!(view["links"][a][b], links, "{name}: {a} and {b}");
                let p2p = view["devices"][a]["p2p"].as_array().unwrap().contains(&b.into());
                assert_eq!(p2p, one.p2p[b], "{name}: {a} and {b}");
            }
        }
    }
}

#[test]
fn the_text_shows_links_finding_quads_and_relays() {
    let cube = text(&["--node", "dgx-1v"]);
    assert!(cube.contains("GPU0     X     NV1    NV1    NV2    NV2    none   none   none\n"), "{cube}");
    assert!(cube.contains("Detected:    hybrid cube mesh: GPU0 and GPU5 have no link, but"), "{cube}");
    assert!(cube.contains("Relays:      GPU0-GPU4 GPU1-GPU5 GPU2-GPU6 GPU3-GPU7"), "{cube}");
    assert!(cube.contains("Algorithms:  hybrid-cube-mesh"), "{cube}");
    let pcie = text(&["--node", "pcie-x8"]);
    assert!(pcie.contains("GPU7    P2P") && pcie.contains("no device has an active NVLink"), "{pcie}");
    let part = text(&["--node", "dgx-1v", "--devices", "7,6,1"]);
    assert!(
        part.contains("GPU7     X     NV2    none\n") && part.contains("GPU7 and GPU1 have no link"),
        "{part}"
    );
}

#[test]
fn devices_come_in_the_order_of_cuda_visible_devices() {
    let all = json(&["--node", "dgx-1v"], None);
    let uuids = column(&all, "uuid");
    let unquoted = |index: usize| uuids[index].trim_matches('"').to_owned();
    for visible in ["5,0,3".to_owned(), format!("{},0,{}", unquoted(5), &unquoted(3)[..12])] {
        let view = json(&["--node", "dgx-1v"], Some(&visible));
        assert_eq!(column(&view, "uuid"), [5, 0, 3].map(|index| uuids[index].clone()), "{visible}");
        assert_eq!(column(&view, "ordinal"), ["0", "1", "2"]);
        assert_eq!(view["links"][1][2], all["links"][0][3]);
    }
}

#[test]
fn a_bad_description_is_refused_with_file_key_and_reason() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bad.toml");
    let shipped = include_str!("../../emulator/node/nodes/rtx3090x2.toml");
    std::fs::write(&file, shipped.replace("[4, 0]", "[3, 0]")).unwrap();
    let file = file.to_str().unwrap();
    let output = topo(&["--node", file], None);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains(file) && error.contains("nvlink.direct[1][0]") && error.contains("is 3"),
        "{error}"
    );
}

#[test]
fn devices_that_are_too_old_are_told_by_compute_capability() {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let shipped = include_str!("../../emulator/node/nodes/rtx3090x2.toml").replace("8.6", "6.0");
    std::fs::write(file.path(), shipped).unwrap();
    let node = file.path().to_str().unwrap();
    let view = json(&["--node", node], None);
    assert_eq!(column(&view, "compute_capability"), ["\"6.0\"", "\"6.0\""]);
    let reason =
        "not applicable: the device of rank 0 has compute capability 6.0: the kernels need 7.0 or later";
    assert_eq!(view["rendezvous"], reason);
    let text = text(&["--node", node]);
    assert!(text.contains("fully connected") && !text.contains("Algorithms:"), "{text}");
}

#[test]
fn links_to_hidden_switches_are_told_with_what_to_do() {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let shipped = include_str!("../../emulator/node/nodes/hgx-h100.toml");
    std::fs::write(file.path(), shipped.replace("[nvlink]", "[nvlink]\nhidden_switches = true")).unwrap();
    let view = json(&["--node", file.path().to_str().unwrap()], None);
    assert_eq!(column(&view, "hidden"), ["18"; 8]);
    assert_eq!(column(&view, "switch"), ["0"; 8]);
    let (why, rendezvous) = (view["why"].as_str().unwrap(), view["rendezvous"].as_str().unwrap());
    assert!(why.contains("NVML does not tell where they lead"), "{why}");
    assert!(rendezvous.contains("ranks 0 and 1 have 18 and 18 NVLinks that are up"), "{rendezvous}");
    assert!(rendezvous.contains("Config::force_topology"), "{rendezvous}");
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let output = topo(&["--node", "h100x4", "--devices", "0,4"], None);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("no CUDA device 4") && error.contains("sees 4"), "{error}");
}

#[test]
fn every_shipped_node_can_be_drawn() {
    let directory = tempfile::tempdir().unwrap();
    for name in Node::shipped() {
        let file = directory.path().join(name).with_extension("svg");
        text(&["--node", name, "--svg", file.to_str().unwrap()]);
        let drawing = std::fs::read_to_string(&file).unwrap();
        for device in 0..Node::load(name).unwrap().gpus.len() {
            assert!(drawing.contains(&format!("GPU{device}")), "{name}: no GPU{device}");
        }
        for event in svg::read(&drawing).unwrap() {
            assert!(!matches!(event, svg::parser::Event::Error(_)), "{name}: {event:?}");
        }
    }
}

/// `cargo xtask topo --node NAME --svg docs/nodes/NAME.svg` brings them up to date.
#[test]
fn the_drawings_in_the_documentation_are_up_to_date() {
    let directory = tempfile::tempdir().unwrap();
    for (name, checked_in) in [
        ("dgx-1v", include_str!("../../docs/nodes/dgx-1v.svg")),
        ("hgx-h100", include_str!("../../docs/nodes/hgx-h100.svg")),
    ] {
        let file = directory.path().join("drawn.svg");
        text(&["--node", name, "--svg", file.to_str().unwrap()]);
        assert!(std::fs::read_to_string(&file).unwrap() == checked_in, "docs/nodes/{name}.svg is stale");
    }
}

#[test]
fn the_example_of_the_format_is_a_node() {
    let page = include_str!("../../docs/nodes.md");
    let (_, example) = page.split_once("```toml\n").unwrap();
    let node = Node::parse(example.split_once("```").unwrap().0, "docs/nodes.md").unwrap();
    assert_eq!((node.gpus[0].links_to(1), node.gpus[1].memory_mib), (3, 256));
    for name in Node::shipped() {
        assert!(
            page.contains(&format!("\n| `{name}` | {} x ", Node::load(name).unwrap().gpus.len())),
            "{name}"
        );
    }
}
