//! The program as it is called.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use meshreduce_bench::row::Row;
use meshreduce_checks::emulated_node::EmulatedNode;
use serde_json::Value;

fn bench(arguments: &str) -> Command {
    let mut command =
        Command::new(std::env::var_os("CARGO_BIN_EXE_meshreduce-bench").expect("cargo says where it is"));
    // Far enough to mean that something is broken.
    command.args(["--deadline", "60"]);
    command.args(arguments.split_whitespace()).env_remove("MESHREDUCE_DRIVER").env_remove("MESHREDUCE_NODE");
    command
}

fn end(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code(), text(&stdout), text(&stderr))
}

#[test]
fn the_drivers_environment_is_enough_to_run_on_an_emulated_node() {
    let node = EmulatedNode::new("h100x4").expect("the emulated node is built");
    let folder = tempfile::tempdir().unwrap();
    let (csv, svg) = (folder.path().join("rows.csv"), folder.path().join("rows.svg"));
    let mut command = bench("--ranks 2 --algorithm auto --bytes 16..32 --iterations 2 --graph --json");
    command.arg("--csv").arg(&csv).arg("--svg").arg(&svg).envs(node.environment());
    let (code, out, complaint) = end(&mut command);
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{out}");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["kind"], "machine");
    assert_eq!((&lines[0]["emulated"], &lines[0]["devices"]), (&true.into(), &4.into()));
    let rows: Vec<Row> = lines
        .into_iter()
        .filter(|line| line["kind"] == "row")
        .map(|line| serde_json::from_value(line).unwrap())
        .collect();
    // Two sizes, plain and replayed, out of place and in place.
    assert_eq!(rows.len(), 8);
    assert!(rows.iter().all(|row| row.wrong == Some(0)));
    assert_eq!(std::fs::read_to_string(csv).unwrap().lines().count(), 9);
    assert!(std::fs::read_to_string(svg).unwrap().contains("EMULATED"));
}

#[test]
fn a_cube_mesh_is_measured_by_name_and_the_table_says_that_it_is_emulated() {
    let mut command = bench("--node dgx-1v --algorithm hybrid-cube-mesh --bytes 64 --iterations 1");
    let (code, out, complaint) = end(&mut command);
    assert_eq!(code, Some(0), "{out}{complaint}");
    assert!(out.contains("EMULATED") && out.contains("no property of the kernels"), "{out}");
    assert!(out.contains("8 ranks"), "{out}");
}

#[test]
fn every_collective_is_measured_by_each_of_its_algorithms() {
    let node = EmulatedNode::new("h100x4").expect("the emulated node is built");
    let all = "all-gather,reduce-scatter,broadcast,reduce,all-to-all,barrier";
    let mut command = bench(&format!(
        "--ranks 3 --collective {all} --bytes 64,1KiB --iterations 2 --graph --no-floor --json"
    ));
    let (code, out, complaint) = end(command.envs(node.environment()));
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{out}");
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let rows: Vec<Row> = lines
        .filter(|line| line["kind"] == "row")
        .map(|line| serde_json::from_value(line).unwrap())
        .collect();
    assert!(rows.iter().all(|row| row.wrong == Some(0)));
    let of = |name: &str| rows.iter().filter(move |row| row.collective.name() == name).count();
    // By packets and by barriers, two sizes, plain and replayed, out of place and in place; of a barrier there is one.
    assert_eq!(all.split(',').map(of).collect::<Vec<_>>(), [16, 16, 16, 16, 16, 4]);
}

#[test]
fn every_row_is_told_as_it_is_measured_and_what_there_is_is_shown_when_it_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("rows.csv");
    // Many more rows than come before the signal.
    let mut command = bench(
        "--node h100x4 --ranks 2 --algorithm one-shot,two-shot --bytes 16..4096 --iterations 50 --graph",
    );
    command.arg("--csv").arg(&csv).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut told = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("one-shot bf16 sum 16 bytes out of place: ") {
        line.clear();
        assert_ne!(told.read_line(&mut line).unwrap(), 0, "no row was told");
    }
    let written = std::fs::read_to_string(&csv).unwrap();
    assert!(
        written.lines().nth(1).is_some_and(|row| row.starts_with("all-reduce,meshreduce,one-shot,plain")),
        "{written}"
    );
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        shown.contains("2 ranks") && shown.contains("one-shot") && !shown.contains("two-shot"),
        "{shown}"
    );
    assert_eq!(output.status.code(), Some(128 + 15));
}

#[test]
fn an_algorithm_that_was_asked_for_by_name_and_cannot_run_is_a_failure() {
    let mut command =
        bench("--node h100x4 --ranks 2 --algorithm hybrid-cube-mesh,one-shot --bytes 64 --iterations 1");
    let (code, out, _) = end(&mut command);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("hybrid-cube-mesh: ") && out.contains("fully connected"), "{out}");
}

#[test]
fn a_node_without_links_is_measured_only_if_the_topology_is_forced() {
    let arguments = "--node pcie-x8 --ranks 2 --algorithm one-shot --bytes 64 --iterations 1";
    let (code, out, complaint) = end(&mut bench(arguments));
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("empty kernel"), "{out}");
    assert!(complaint.contains("nothing could be measured: one-shot: not applicable"), "{complaint}");
    let (code, out, complaint) = end(&mut bench(&format!("{arguments} --force-topology fully-connected")));
    assert_eq!(code, Some(0), "{out}{complaint}");
}

#[test]
fn what_cannot_be_run_is_an_error_that_says_why() {
    let refused = |arguments: &str, why: &str| {
        let (code, out, complaint) = end(&mut bench(arguments));
        assert!(matches!(code, Some(1 | 2)), "{arguments}: {code:?}");
        assert!(complaint.contains(why), "{arguments}: {complaint}");
        assert_eq!(out, "", "{arguments}");
    };
    refused("--node h100x4 --ranks 5", "5 ranks need as many GPUs, here are 4");
    refused("--node h100x4 --ranks 9 --shared-device", "there must be 2 to 8");
    refused("--node h100x4 --bytes 3", "3 bytes are not a whole number of bf16 elements");
    refused("--node h100x4 --bytes 64..8", "the first size is larger than the last");
    refused("--node nowhere", "nowhere");
}

#[test]
fn no_driver_is_an_error_that_names_the_library() {
    let mut command = bench("--ranks 2");
    let (code, out, complaint) = end(command.env("MESHREDUCE_DRIVER", "/nowhere/libcuda.so.1"));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(complaint.contains("cannot open the CUDA driver /nowhere/libcuda.so.1"), "{complaint}");
}
