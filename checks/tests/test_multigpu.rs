//! `test-multigpu` as it is called: what it says in the end, and when that is a failure.

use std::process::Command;

use meshreduce_checks::programs::program;
use serde_json::Value;

/// Exit code, standard output and standard error, on a screen of `columns`.
fn run(arguments: &str, columns: u16) -> (Option<i32>, String, String) {
    let mut command = Command::new(program("multigpu"));
    command.args(arguments.split_whitespace()).env("COLUMNS", columns.to_string());
    let output = command.output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Two quick ranks, and all algorithms, of which those of a hybrid cube mesh cannot run there.
const SOME: &str = "--node hgx-h100 --ranks 2 --threads --dtype bf16,f32 --bytes 4,64 --launches 1";

#[test]
fn a_run_ends_with_a_verdict_and_tells_every_reason_once() {
    for columns in [80, 120] {
        let (code, out, complaint) = run(SOME, columns);
        assert_eq!(code, Some(0), "{out}{complaint}");
        assert_eq!(out.lines().last(), Some("ok: 16 cases run, 0 failed, 8 not run"), "{out}");
        let not_run: Vec<&str> = out.lines().filter(|line| line.starts_with("not run: ")).collect();
        let why = "4 cases: the topology is fully connected";
        let expected = ["", "-ll"].map(|kind| format!("not run: hybrid-cube-mesh{kind}, {why}"));
        assert_eq!(not_run, expected);
        let widest = out.lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= columns.into()), "{out}");
        assert_eq!(out.matches("hybrid-cube-mesh").count(), 2, "{out}");
    }
}

#[test]
fn the_last_record_of_a_json_report_is_the_verdict() {
    let (code, out, complaint) = run(&format!("{SOME} --json"), 80);
    assert_eq!(code, Some(0), "{out}{complaint}");
    let records: Vec<Value> =
        out.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    let (verdict, cases) = records.split_last().expect("records");
    assert_eq!(verdict["verdict"], "ok");
    assert_eq!([&verdict["run"], &verdict["failed"], &verdict["not_run"]], [16, 0, 8]);
    assert_eq!(cases.len(), 24);
    for case in cases {
        let of_cube_mesh =
            case["algorithm"].as_str().is_some_and(|name| name.starts_with("hybrid-cube-mesh"));
        let expected = if of_cube_mesh { Value::Null } else { Value::Bool(true) };
        assert_eq!(case["ok"], expected, "{case}");
        assert_eq!(case["ran"].as_bool(), Some(!expected.is_null()), "{case}");
    }
}

#[test]
fn a_run_that_checked_nothing_is_a_failure_that_says_why() {
    for (arguments, why) in [
        ("--node pcie-x8 --ranks 2", "no NVLink between the devices of ranks 0 and 1"),
        ("--node hgx-h100 --ranks 2 --algorithm hybrid-cube-mesh", "the topology is fully connected"),
    ] {
        let (code, out, complaint) = run(&format!("{arguments} --threads --launches 1"), 80);
        assert_eq!(code, Some(1), "{out}{complaint}");
        let last = out.lines().last().unwrap_or_default();
        assert!(last.starts_with("FAILED: 0 cases run") && last.contains("nothing was checked"), "{out}");
        assert!(last.contains(why), "{out}");
        assert_eq!(out.lines().filter(|line| line.starts_with("not run: ")).count(), 1, "{out}");
        let (code, out, _) = run(&format!("{arguments} --threads --launches 1 --json"), 80);
        let last: Value = serde_json::from_str(out.lines().last().unwrap_or_default()).expect("a record");
        assert_eq!((code, &last["verdict"]), (Some(1), &Value::from("failed")), "{out}");
    }
}

#[test]
fn every_other_collective_is_run_by_each_of_its_algorithms() {
    let others = "--collective all-gather,reduce-scatter,broadcast,reduce,all-to-all,barrier";
    let some = "--node hgx-h100 --ranks 3 --threads --dtype bf16 --bytes 10,4098 --launches 2";
    let (code, out, complaint) = run(&format!("{some} {others}"), 80);
    assert_eq!(code, Some(0), "{out}{complaint}");
    assert_eq!(out.lines().last(), Some("ok: 22 cases run, 0 failed, 9 not run"), "{out}");
    assert!(out.contains("all-to-all: exchange-ll") && out.contains("reduce: reduce-scatter"), "{out}");
    assert!(out.lines().all(|line| line.chars().count() <= 80), "{out}");
    let (code, out, complaint) = run(&format!("{some} --collective barrier --algorithm two-shot"), 80);
    assert_eq!((code, out.lines().count()), (Some(2), 0), "{complaint}");
    assert!(complaint.contains("two-shot is no algorithm of barrier"), "{complaint}");
}

#[test]
fn what_was_asked_for_by_name_must_run() {
    let (code, out, _) = run(&format!("{SOME} --algorithm one-shot,hybrid-cube-mesh"), 80);
    let last = out.lines().last().unwrap_or_default();
    assert_eq!(code, Some(1), "{out}");
    assert!(last.starts_with("FAILED: 4 cases run, 0 failed, 4 not run; hybrid-cube-mesh"), "{out}");
}

#[test]
fn numbers_of_ranks_that_cannot_be_are_refused_with_what_is_allowed() {
    for (arguments, allowed) in [
        ("--ranks 0", "2 to 8"),
        ("--ranks 1", "2 to 8"),
        ("--ranks 9", "2 to 8"),
        ("--node a100x4 --ranks 5", "2 to 4"),
        ("--node rtx3090x2 --ranks 8", "2 to 2"),
        ("--all-nodes --ranks 0", "2 to 8"),
        ("--adversary --ranks 9", "2 to 8"),
    ] {
        let (code, out, complaint) = run(arguments, 80);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments}: {complaint}");
        assert!(complaint.contains(allowed), "{arguments}: {complaint}");
    }
}

#[test]
fn the_adversarys_report_ends_with_a_verdict_and_fits_the_screen() {
    for columns in [80, 120] {
        let (code, out, complaint) = run("--adversary --seeds 2 --ranks 2 --algorithm one-shot", columns);
        assert_eq!(code, Some(0), "{out}{complaint}");
        assert_eq!(out.lines().last(), Some("ok: 1 cases run, 0 failed, 0 not run"));
        assert!(out.lines().all(|line| line.chars().count() <= columns.into()), "{out}");
    }
}
