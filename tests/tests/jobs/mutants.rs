//! The tests see what the PTX does: change one instruction of the shipped text, and a result is wrong or a rank fails.
//!
//! Every mutant is the shipped text with one place replaced; a mutant whose place is not found fails its test.

use std::fs;

use crate::support::{BRIEF_MS, Played, Scene, case};
use meshreduce::DType;
use meshreduce_checks::job::{Action, Case, Event, Fault};

const RANKS: usize = 3;

fn shipped() -> String {
    let file = "../host/ptx/one_shot_w3.ptx";
    fs::read_to_string(file).expect("the shipped PTX")
}

/// The text of the entry that the tests launch, and what stands before and behind it.
fn entry(text: &str, dtype: DType) -> (&str, &str, &str) {
    let start = text.find(&format!(".visible .entry one_shot_{dtype}_sum_w3")).expect("the entry");
    let end = start + text[start..].find("\n}").expect("the entry's end") + 2;
    (&text[..start], &text[start..end], &text[end..])
}

fn play(dtype: DType, mutate: impl Fn(&str) -> String) -> Played {
    let text = shipped();
    let (before, kernel, behind) = entry(&text, dtype);
    let mutant = mutate(kernel);
    let cases = [10_000, 10_000, 36].map(|bytes| Case { dtype, ..case(bytes) });
    let mut scene = Scene::new(RANKS, cases.to_vec());
    let file = scene.directory.path().with_extension("ptx");
    fs::write(&file, format!("{before}{mutant}{behind}")).expect("writing the mutant");
    scene.job.ptx = Some(file.clone());
    scene.job.deadline_ms = BRIEF_MS;
    // Without its wait a rank reads what a late peer has not written yet.
    scene.job.faults = (1..3)
        .map(|launch| Fault { rank: RANKS - 1, launch: Some(launch), action: Action::Sleep(1_000) })
        .collect();
    let played = scene.play();
    fs::remove_file(file).expect("removing the mutant");
    played
}

/// Replaces every line that contains `pattern` by what `with` makes of it; there must be `expected` of them.
fn replace(kernel: &str, pattern: &str, expected: usize, with: impl Fn(&str) -> String) -> String {
    let mut found = 0;
    let lines: Vec<String> = kernel
        .lines()
        .map(|line| match line.contains(pattern) {
            true => {
                found += 1;
                with(line)
            }
            false => line.to_owned(),
        })
        .collect();
    assert_eq!(found, expected, "lines of the shipped text with '{pattern}'");
    lines.join("\n")
}

/// The first operand of an instruction, its destination.
fn destination(line: &str) -> &str {
    line.split_whitespace().find(|word| word.starts_with('%')).expect("a register").trim_end_matches(',')
}

fn assert_killed(mutate: impl Fn(&str) -> String) {
    assert_killed_in(DType::Bf16, mutate);
}

fn assert_killed_in(dtype: DType, mutate: impl Fn(&str) -> String) {
    let played = play(dtype, mutate);
    let refused = played
        .events
        .iter()
        .any(|event| matches!(event, Event::Failed { kind, .. } if kind == "KernelsRefused"));
    assert!(!refused, "the mutant is no PTX\n{}", played.story());
    assert!(played.went_wrong(), "the mutant survived\n{}", played.story());
}

#[test]
fn the_text_without_a_change_is_right() {
    play(DType::Bf16, str::to_owned).assert_all_ok(RANKS, 3);
}

#[test]
fn reading_one_peers_staging_twice_is_noticed() {
    // Offset 16 of the parameters is the pad of position 2, before its staging; 8 that of position 1.
    assert_killed(|kernel| replace(kernel, "_param_0+16];", 1, |line| line.replace("+16];", "+8];")));
}

#[test]
fn reading_the_wrong_peers_staging_is_noticed() {
    assert_killed(|kernel| {
        replace(kernel, "_param_0];", 1, |line| line.replace("_param_0];", "_param_0+16];"))
    });
}

#[test]
fn skipping_the_wait_is_noticed() {
    assert_killed(|kernel| {
        replace(kernel, "ld.acquire.sys.global.u64", 2, |line| {
            format!("\tmov.u64 {}, -1;", destination(line))
        })
    });
}

#[test]
fn a_signal_that_is_not_given_is_noticed() {
    assert_killed(|kernel| replace(kernel, "st.release.sys.global.u64", 1, |_| String::new()));
}

#[test]
fn a_signal_of_the_call_before_is_noticed() {
    assert_killed(|kernel| {
        replace(kernel, "st.release.sys.global.u64", 1, |line| {
            let value = line.rsplit(", ").next().expect("an operand").trim_end_matches(';');
            let step = 1 << 20; // below is the tag
            format!("\tsub.s64 {value}, {value}, {step};\n{line}\n\tadd.s64 {value}, {value}, {step};")
        })
    });
}

#[test]
fn a_call_number_that_stands_still_is_noticed() {
    // The first store of 64 bits behind the count of blocks counts the call.
    assert_killed(|kernel| {
        let counted = kernel.find(".global.inc.u32").expect("the count of blocks");
        let stored = kernel[counted..].find("\tst.relaxed.sys.global.u64");
        let last = counted + stored.expect("the store of the number of calls");
        let end = last + kernel[last..].find('\n').expect("the line's end");
        format!("{}{}", &kernel[..last], &kernel[end..])
    });
}

#[test]
fn another_order_of_additions_is_noticed() {
    // In fp32, because rounding to 16 bits hides most of the last bit's differences.
    assert_killed_in(DType::F32, |kernel| {
        // (a + b) + c becomes (a + c) + b, in the first pair of additions.
        let mut sums = kernel.lines().filter(|line| line.contains("add.rn.f32"));
        let operands = |line: &str| -> Vec<String> {
            let operands = line.split("add.rn.f32").nth(1).expect("operands").trim().trim_end_matches(';');
            operands.split(", ").map(str::to_owned).collect()
        };
        let (first, second) = (sums.next().expect("a sum"), sums.next().expect("another"));
        let (a, c) = (operands(first), operands(second));
        assert_eq!(a[0], c[1], "the second addition uses the first");
        let swapped_first = format!("\tadd.rn.f32 {}, {}, {};", a[0], a[1], c[2]);
        let swapped_second = format!("\tadd.rn.f32 {}, {}, {};", c[0], c[1], a[2]);
        kernel.replacen(first, &swapped_first, 1).replacen(second, &swapped_second, 1)
    });
}

#[test]
fn rounding_ties_up_instead_of_to_even_is_noticed() {
    assert_killed(|kernel| replace(kernel, ", 32767;", 8, |line| line.replace(", 32767;", ", 32768;")));
}

#[test]
fn another_nan_than_the_canonical_one_is_noticed() {
    assert_killed(|kernel| replace(kernel, ", 32767, ", 4, |line| line.replace(", 32767, ", ", 32704, ")));
}

#[test]
fn results_stored_in_another_order_are_noticed() {
    assert_killed(|kernel| {
        replace(kernel, "st.global.cs.v4.u32", 1, |line| {
            let (head, list) = line.split_once('{').expect("a vector");
            let mut registers: Vec<_> = list.trim_end_matches("};").split(", ").collect();
            registers.swap(0, 1);
            format!("{head}{{{}}};", registers.join(", "))
        })
    });
}
