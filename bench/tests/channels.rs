//! The benchmark of channels: what it measures, and that figures of stand-ins say so.

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let program =
        std::env::var_os("CARGO_BIN_EXE_meshreduce-bench-channels").expect("cargo says where it is");
    let quick = ["--rounds", "1", "--slice", "1"];
    Command::new(program)
        .args(quick)
        .args(arguments)
        .env("COLUMNS", "80")
        .output()
        .expect("the program starts")
}

fn json(arguments: &[&str]) -> Value {
    let output = bench(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn all<'a>(report: &'a Value, list: &str) -> &'a Vec<Value> {
    report[list].as_array().expect("a list")
}

#[test]
fn every_way_is_measured_and_those_over_stand_ins_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let (csv, svg) = (folder.path().join("rows.csv"), folder.path().join("rows.svg"));
    let files = ["--csv", csv.to_str().unwrap(), "--svg", svg.to_str().unwrap()];
    let report = json(&[&["--sizes", "1,100KiB,2MiB"][..], &files].concat());
    assert_eq!(all(&report, "absent"), &Vec::<Value>::new());
    let rows = all(&report, "rows");
    // Two kinds of copies and nine ways.
    assert_eq!(rows.len(), 3 * 11);
    for row in rows {
        let way = row["way"].as_str().unwrap();
        assert_eq!(row["emulated"], way.contains("cuda") || way.contains("gdr"), "{row}");
        assert!(row["messages"].as_u64().unwrap() > 0 && row["gbps"].as_f64().unwrap() > 0.0, "{row}");
        let [least, median, most] = ["least_us", "p50_us", "p99_us"].map(|name| row[name].as_f64().unwrap());
        assert!(0.0 <= least && least <= median && median <= most, "{row}");
    }
    let csv = std::fs::read_to_string(csv).unwrap();
    assert_eq!(csv.lines().count(), 1 + rows.len());
    let svg = std::fs::read_to_string(svg).unwrap();
    assert!(svg.contains("EMULATED") && svg.contains("gdr cuda, two processes (E)"), "{svg}");
}

#[test]
fn a_message_needs_no_more_driver_calls_than_its_kind_promises() {
    let report = json(&["--sizes", "1", "--kinds", "xth,ipc"]);
    let calls = |way: &str, what: &str| {
        let found = all(&report, "extras").iter().find(|extra| extra["way"] == way && extra["what"] == what);
        found.and_then(|extra| extra["value"].as_f64()).unwrap_or_else(|| panic!("{way}: {what}: {report}"))
    };
    // Shared out over the messages of a turn are some calls that are not a message's: the receiver's memory.
    assert!(calls("ipc cuda, two processes", "driver calls of a send") <= 4.2);
    assert!(calls("ipc cuda, two processes", "driver calls of a receive") <= 4.2);
    assert!(calls("xth cuda, one process", "driver calls of a send and its receive") <= 6.2);
}

#[test]
fn host_memory_alone_needs_no_gpu_and_nothing_is_called_emulated() {
    let output = bench(&["--sizes", "4KiB", "--host-only", "--kinds", "xth,basic"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("EMULATED") && !text.contains("cuda"), "{text}");
    assert!(text.contains("basic cpu, two processes, 4 KiB: "), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80 || line.starts_with("basic cpu")), "{text}");
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    for (arguments, said) in [
        (&["--kinds", "pigeon"][..], "there is no kind \"pigeon\""),
        (&["--node", "no-such-node"], "no-such-node"),
        (&["--sizes", "0"], "no bytes"),
    ] {
        let output = bench(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(said), "{error}");
    }
}
