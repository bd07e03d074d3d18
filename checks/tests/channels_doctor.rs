//! The doctor for channels: what it prints, draws, requires and refuses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use meshreduce_channels::pci::Topology;
use meshreduce_checks::programs::program;
use meshreduce_emulator_node::node::{Node, sysfs};
use serde_json::Value;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("channels-doctor"));
    for name in ["MESHREDUCE_NICS", "MESHREDUCE_SYSFS", "MESHREDUCE_CHANNELS", "CUDA_VISIBLE_DEVICES"] {
        command.env_remove(name);
    }
    command.args(arguments).env("COLUMNS", "80");
    command
}

fn doctor(arguments: &[&str], map: Option<&str>) -> Output {
    let mut command = command(arguments);
    command.envs(map.map(|map| ("MESHREDUCE_NICS", map))).output().expect("the program starts")
}

fn text(arguments: &[&str]) -> String {
    let output = doctor(arguments, None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn records(arguments: &[&str], map: Option<&str>) -> Vec<Value> {
    let output = doctor(&[arguments, &["--json"]].concat(), map);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("a record a line")).collect()
}

fn of<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["record"] == kind).collect()
}

fn refusal(arguments: &[&str], map: Option<&str>) -> String {
    let output = doctor(arguments, map);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).expect("UTF-8")
}

fn trees() -> Vec<PathBuf> {
    let folder = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo says"))
        .join("../channels/tests/trees");
    let files =
        std::fs::read_dir(folder).expect("the folder of trees").map(|entry| entry.expect("an entry").path());
    let mut trees: Vec<PathBuf> =
        files.filter(|file| file.extension().is_some_and(|name| name == "toml")).collect();
    trees.sort();
    trees
}

fn tree(name: &str) -> String {
    let found = trees().into_iter().find(|file| file.file_stem().is_some_and(|stem| stem == name));
    found.expect("a tree of that name").to_str().expect("UTF-8").to_owned()
}

#[test]
fn every_captured_tree_is_shown_within_80_columns_with_a_verdict_at_the_end() {
    for file in trees() {
        let text = text(&["--tree", file.to_str().unwrap()]);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let verdict = text.lines().last().unwrap();
        assert!(
            verdict.starts_with("VERDICT  NICs for 8/8 GPUs; ") && !verdict.ends_with(" fault"),
            "{verdict}"
        );
    }
}

#[test]
fn findings_say_what_is_in_the_way_and_what_can_be_done() {
    let one_line =
        |name: &str| text(&["--tree", &tree(name)]).split_whitespace().collect::<Vec<_>>().join(" ");
    let dgx1 = one_line("dgx-1");
    assert!(
        dgx1.contains("warning ACS on 0000:04:0c.0 sends data between 0000:06:00.0 and mlx5_0"),
        "{dgx1}"
    );
    assert!(dgx1.contains("`setpci -s 0000:04:0c.0 ECAP_ACS+6.w=0`"), "{dgx1}");
    assert!(dgx1.contains("note GPUs share mlx5_0 (0000:06:00.0 0000:07:00.0), mlx5_1"), "{dgx1}");
    let flat = one_line("cloud-vm-flat");
    assert!(
        flat.contains("warning 0000:05:00.0 ... 0000:0c:00.0 (PHB): no NIC below a PCIe switch"),
        "{flat}"
    );
    let h100 = one_line("hgx-h100");
    assert!(h100.contains("note nothing goes by mlx5_2 mlx5_7 mlx5_8: port down"), "{h100}");
}

#[test]
fn records_are_one_a_line_with_the_summary_last() {
    let all = records(&["--tree", &tree("hgx-h100")], None);
    assert_eq!((of(&all, "gpu").len(), of(&all, "nic").len(), of(&all, "host").len()), (8, 12, 1));
    let summary = all.last().unwrap();
    assert_eq!((summary["record"].as_str(), summary["gpus_with_nic"].as_u64()), (Some("summary"), Some(8)));
    assert_eq!(of(&all, "gpu")[5]["way"]["ports"][0], "mlx5_9");
    assert_eq!(of(&all, "nic")[7]["skip"], "port down");
    assert_eq!(of(&all, "nic")[11]["rail"], 11);
}

#[test]
fn the_users_map_is_followed_and_shown() {
    let all = records(&["--tree", &tree("hgx-h100")], Some("0000:1b:00.0=mlx5_1;cpu=mlx5_9"));
    let gpus = of(&all, "gpu");
    assert_eq!(
        (gpus[0]["way"]["ports"][0].as_str(), gpus[0]["way"]["by_map"].as_bool()),
        (Some("mlx5_1"), Some(true))
    );
    assert_eq!(gpus[1]["way"]["by_map"], false);
    assert_eq!(of(&all, "host")[0]["ports"][0], "mlx5_9");
    let bad = refusal(&["--tree", &tree("hgx-h100")], Some("gpu0=mlx5_1"));
    assert!(bad.contains("MESHREDUCE_NICS") && bad.contains("\"gpu0=mlx5_1\""), "{bad}");
}

#[test]
fn a_sysfs_of_an_emulated_node_is_read_as_its_description_says() {
    for name in Node::shipped() {
        let node = Node::load(name).unwrap();
        let root = tempfile::tempdir().unwrap();
        sysfs::write(&node, "", root.path()).unwrap();
        let topology = Topology::read(root.path(), &[]).unwrap();
        assert_eq!(topology.gpus.len(), node.gpus.len(), "{name}");
        assert_eq!(topology.nics.len(), node.nics.len(), "{name}");
        for nic in &node.nics {
            let read = topology.nics.iter().find(|read| read.name == nic.name).unwrap();
            let path = read.path.as_ref().unwrap();
            assert_eq!(
                path.components().len(),
                nic.pci_path.len() + 2,
                "{name}: {}: a root, bridges, the device",
                nic.name
            );
            assert!(path.to_string().ends_with(&nic.pci.to_string()), "{name}: {path}");
            assert_eq!(read.ports.len(), 1);
            assert_eq!(read.ports[0].netdev, nic.netdev, "{name}: {}", nic.name);
            assert_eq!(read.ports[0].megabits, u64::from(nic.speed_gbps) * 1000);
            assert_eq!(read.ports[0].slave_of.is_some(), nic.bond_slave, "{name}: {}", nic.name);
            assert_eq!(read.ports[0].state == meshreduce_channels::pci::PortState::Active, nic.active);
        }
        for (read, gpu) in topology.gpus.iter().zip(&node.gpus) {
            assert_eq!(read.bar1, Some(gpu.bar1_bytes()), "{name}");
        }
    }
}

#[test]
fn a_node_is_seen_as_its_devices_and_its_sysfs_together() {
    let all = records(&["--node", "hgx-h100"], None);
    let gpus = of(&all, "gpu");
    assert_eq!(gpus.len(), 8);
    for (index, gpu) in gpus.iter().enumerate() {
        assert_eq!(gpu["ordinal"], index);
        assert_eq!(gpu["way"]["ports"][0], format!("mlx5_{index}"));
        assert_eq!(gpu["way"]["distance"], "Switch");
        assert_eq!(gpu["memory"], 1_u64 << 30);
    }
    assert_eq!(all.last().unwrap()["title"], "emulated node hgx-h100");
    let none = records(&["--node", "pcie-x8"], None);
    assert_eq!(of(&none, "gpu")[0]["way"]["why_none"], "there is no NIC with verbs");
}

#[test]
fn on_a_node_with_nics_every_kind_is_viable_and_every_nic_has_its_address() {
    let shown = text(&["--node", "hgx-h100", "--require", "gdr", "--require", "ipc"]);
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    let verdict = shown.lines().last().unwrap();
    assert_eq!(verdict, "VERDICT  viable: xth ipc gdr basic; NICs for 8/8 GPUs; no faults");
    let all = records(&["--node", "hgx-h100"], None);
    for (index, nic) in of(&all, "nic").iter().enumerate() {
        // The emulated node's NICs have 10.INDEX.x.y behind the entries that are link-local.
        assert!(nic["gid"].as_str().unwrap().starts_with(&format!("#3 10.{index}.")), "{nic}");
    }
    let details = text(&["--node", "hgx-h100", "--details"]);
    assert!(details.contains("  gdr: cuda:0: goes by mlx5_0"), "{details}");
}

#[test]
fn a_kind_that_is_required_and_not_viable_ends_in_failure_with_its_reason() {
    let output = doctor(&["--node", "pcie-x8", "--require", "basic", "--require", "gdr"], None);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("required, but not viable: gdr: ") && !said.contains("basic"), "{said}");
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(out.lines().last().unwrap().starts_with("VERDICT  viable: xth ipc basic; not: gdr;"), "{out}");
    let unknown = refusal(&["--node", "pcie-x8", "--require", "pigeon"], None);
    assert!(
        unknown.contains("there is no channel \"pigeon\"") && unknown.contains("xth, ipc, gdr, basic"),
        "{unknown}"
    );
}

#[test]
fn the_drawings_of_the_documentation_are_those_that_are_drawn() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["hgx-h100", "dgx-a100"] {
        let svg = folder.path().join(name);
        text(&["--tree", &tree(name), "--svg", svg.to_str().unwrap()]);
        let kept = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo says"))
            .join("../docs/channels")
            .join(name)
            .with_extension("svg");
        let (drawn, kept) = (std::fs::read_to_string(svg).unwrap(), std::fs::read_to_string(kept).unwrap());
        assert!(
            drawn == kept,
            "docs/channels/{name}.svg is stale: cargo xtask channels --tree channels/tests/trees/{name}.toml --svg docs/channels/{name}.svg"
        );
    }
}

#[test]
fn ordinals_are_the_drivers_and_hidden_gpus_keep_their_nics() {
    let mut command = command(&["--node", "hgx-h100", "--json"]);
    command.env("CUDA_VISIBLE_DEVICES", "5,2");
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let all: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let gpus = of(&all, "gpu");
    let shown: Vec<_> =
        gpus.iter().map(|gpu| (gpu["ordinal"].as_u64(), gpu["way"]["ports"][0].as_str().unwrap())).collect();
    assert_eq!(shown[..3], [(Some(0), "mlx5_5"), (Some(1), "mlx5_2"), (None, "mlx5_0")]);
    assert_eq!(shown.len(), 8);
}

#[test]
fn a_tree_that_was_captured_is_the_tree_that_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let captured = folder.path().join("captured.toml");
    let captured = captured.to_str().unwrap();
    let seen = records(&["--node", "dgx-a100", "--capture", captured], None);
    let again = records(&["--tree", captured], None);
    let ways =
        |records: &[Value]| of(records, "gpu").iter().map(|gpu| gpu["way"].clone()).collect::<Vec<_>>();
    assert_eq!(ways(&seen), ways(&again));
    // But for addresses, which are the node's and not the tree's.
    let nics = |records: &[Value]| -> Vec<Value> {
        let mut nics: Vec<Value> = of(records, "nic").into_iter().cloned().collect();
        nics.iter_mut().for_each(|nic| nic["gid"] = Value::Null);
        nics
    };
    assert_eq!(nics(&seen), nics(&again));
}

#[test]
fn the_drawing_has_every_device_and_a_line_for_every_pairing() {
    let folder = tempfile::tempdir().unwrap();
    for file in trees() {
        let svg = folder.path().join("drawing.svg");
        let arguments = ["--tree", file.to_str().unwrap(), "--svg", svg.to_str().unwrap()];
        let all = records(&arguments, None);
        let drawing = std::fs::read_to_string(&svg).unwrap();
        for nic in of(&all, "nic") {
            assert!(drawing.contains(&format!(">\n{}\n<", nic["name"].as_str().unwrap())), "{}", nic["name"]);
        }
        let pairings: usize =
            of(&all, "gpu").iter().map(|gpu| gpu["way"]["ports"].as_array().unwrap().len()).sum();
        assert_eq!(drawing.matches("<circle").count(), pairings, "{}", file.display());
    }
}

#[test]
fn what_cannot_be_looked_at_is_refused_with_its_name() {
    let missing = refusal(&["--tree", "no/such/tree.toml"], None);
    assert!(missing.contains("no/such/tree.toml"), "{missing}");
    let sysfs = refusal(&["--sysfs", "no/such/sysfs"], None);
    assert!(sysfs.contains("no/such/sysfs cannot be read as a sysfs"), "{sysfs}");
    let node = refusal(&["--node", "no-such-node"], None);
    assert!(node.contains("no-such-node"), "{node}");
    let channel = refusal(&["--tree", &tree("dgx-1"), "--require", "gdr"], None);
    assert!(channel.contains("a captured tree says nothing of channels"), "{channel}");
}
