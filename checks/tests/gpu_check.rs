//! The parts of `gpu-check` on an emulated node, and what fails is told. (All of them on several GPUs and on a shared one, the longest
//! only there: `cargo xtask gpu-bundle --run-emulated`.)

use std::path::Path;
use std::process::{Command, Output};

use meshreduce_checks::emulated_node::EmulatedNode;
use meshreduce_checks::gpu_check::part::{Outcome, Part};
use meshreduce_checks::programs;
use tempfile::TempDir;

fn node(name: &str) -> EmulatedNode {
    EmulatedNode::new(name).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a part on an emulated HGX H100, quickly, and returns what it left behind.
fn run(part: &str, options: &[&str]) -> (Output, Part) {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("part.json");
    let output = program(part, options, &file)
        .envs(node("hgx-h100").environment())
        .output()
        .expect("the program runs");
    (output, read(&file))
}

fn program(part: &str, options: &[&str], file: &Path) -> Command {
    let mut command = Command::new(programs::program("gpu-check"));
    command.args([part, "--quick", "--json"]).arg(file).args(options);
    command.env("CUDA_DEVICE_MAX_CONNECTIONS", "32").env("CUDA_MODULE_LOADING", "EAGER");
    command
}

fn read(file: &Path) -> Part {
    let text = std::fs::read_to_string(file).expect("what the part left behind");
    serde_json::from_str(&text).expect("a part")
}

/// The part passed, with all these words among its checks.
fn passes(part: &str, options: &[&str], words: &[&str]) {
    let (output, left) = run(part, options);
    let said =
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(left.outcome(), Outcome::Pass, "{said}");
    assert!(left.checks.iter().all(|check| check.outcome == Outcome::Pass), "{said}");
    assert!(output.status.success(), "{said}");
    assert!(left.place.is_empty() || left.place.contains("emulated"), "{}", left.place);
    let shared = options.contains(&"--shared-device");
    assert!(left.place.is_empty() || left.place.starts_with("one shared") == shared, "{}", left.place);
    for word in words {
        assert!(left.checks.iter().any(|check| check.name.contains(word)), "{word}: {said}");
    }
}

const EVERY_ALGORITHM: [&str; 6] = [
    "one-shot, ",
    "two-shot, ",
    "hybrid-cube-mesh, 8 ranks",
    "one-shot-ll, ",
    "two-shot-ll, ",
    "hybrid-cube-mesh-ll, 8 ranks",
];
const SHARED: &[&str] = &["--shared-device"];

#[test]
fn the_machine_is_described_as_emulated() {
    passes("machine", &[], &["a driver", "devices", "links"]);
    let (_, left) = run("machine", &[]);
    let cells = left.tables.iter().flat_map(|table| table.rows.iter().flatten());
    let cells: Vec<_> = cells.collect();
    assert!(cells.iter().any(|cell| cell.contains("EMULATED")), "{cells:?}");
    assert!(cells.iter().any(|cell| cell.contains("H100")), "{cells:?}");
}

#[test]
fn the_driver_takes_every_text_and_says_what_the_kernels_need() {
    passes("modules", &[], &["one_shot_w2", "two_shot_w8", "hybrid_cube_mesh_w8"]);
    let (_, left) = run("modules", &[]);
    assert_eq!(left.checks.len(), meshreduce::shipped_kernels().count());
    let kernels = &left.tables[1];
    let entries = |text: meshreduce::ShippedKernels| text.ptx.matches(".visible .entry ").count();
    assert_eq!(kernels.rows.len(), meshreduce::shipped_kernels().map(entries).sum::<usize>());
    assert!(kernels.rows.iter().all(|row| row[1].parse::<u32>().unwrap() > 0), "registers");
    assert!(left.logs.iter().any(|log| log.text.contains("one_shot_bf16_sum_w2")), "{:?}", left.logs.first());
}

#[test]
fn results_on_a_hybrid_cube_mesh() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("part.json");
    let output = program("results", &[], &file).envs(node("dgx-1v").environment()).output().unwrap();
    let left = read(&file);
    assert!(output.status.success(), "{left:?}");
    // A quad; larger worlds share its GPUs, and the mesh's own algorithm has all eight.
    assert!(left.place.starts_with("4 x "), "{}", left.place);
}

#[test]
fn processes_on_a_shared_gpu() {
    passes("processes", SHARED, &["results, 4 ranks", "dies"]);
}

#[test]
fn failures_on_a_shared_gpu() {
    passes("failures", SHARED, &EVERY_ALGORITHM);
}

#[test]
fn graphs_on_a_shared_gpu() {
    passes("graphs", SHARED, &["one-shot and two-shot, by packets and by barriers", "hybrid cube mesh"]);
}

#[test]
fn nccl_on_several_gpus() {
    passes("nccl", &[], &["a library", "all_reduce, 8 ranks", "batch, 8 ranks", "an abort"]);
}

#[test]
fn nccl_on_one_gpu_has_one_rank() {
    let (output, left) = run("nccl", SHARED);
    assert!(output.status.success() && left.outcome() == Outcome::Pass, "{left:?}");
    assert!(left.checks.iter().any(|check| check.name == "all_to_all, 1 ranks"), "{left:?}");
    let abort = left.checks.last().unwrap();
    assert_eq!(abort.outcome, Outcome::NotApplicable("it needs two devices".into()));
}

#[test]
fn without_nccl_its_part_says_so() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("part.json");
    let mut program = program("nccl", &[], &file);
    program.envs(node("hgx-h100").environment()).env("MESHREDUCE_NCCL", "/nonexistent/libnccl.so.2");
    assert!(program.output().unwrap().status.success());
    let outcome = read(&file).outcome();
    assert!(
        matches!(&outcome, Outcome::NotApplicable(reason) if reason.contains("/nonexistent/libnccl.so.2")),
        "{outcome}"
    );
}

/// The part passed, with what it says of the kinds that are viable here.
fn channels_pass(options: &[&str]) {
    let (output, left) = run("channels", options);
    assert!(output.status.success() && left.outcome() == Outcome::Pass, "{left:?}");
    for kind in ["xth, threads", "ipc, processes", "basic, threads", "basic, processes"] {
        let check = left.checks.iter().find(|check| check.name == kind).expect("every kind is there");
        assert_eq!(check.outcome, Outcome::Pass, "{left:?}");
    }
}

#[test]
fn channels_on_a_shared_gpu() {
    channels_pass(SHARED);
}

#[test]
fn soak_on_a_shared_gpu() {
    passes("soak", &["--shared-device", "--calls", "730"], &["730 calls"]);
}

#[test]
fn without_a_driver_every_part_fails_and_says_why() {
    let directory = TempDir::new().unwrap();
    for part in [
        "machine",
        "modules",
        "results",
        "collectives",
        "processes",
        "failures",
        "graphs",
        "nccl",
        "channels",
        "soak",
    ] {
        let file = directory.path().join(part);
        let driver = ("MESHREDUCE_DRIVER", "/nonexistent/libcuda.so.1");
        let output = program(part, &[], &file).envs([driver]).output().unwrap();
        assert!(!output.status.success(), "{part}");
        let left = read(&file);
        let told = left.checks.iter().any(|check| match &check.outcome {
            Outcome::Fail(reason) => reason.contains("/nonexistent/libcuda.so.1"),
            _ => false,
        });
        assert!(told, "{part}: {left:?}");
    }
}
