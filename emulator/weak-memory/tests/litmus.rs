//! The shipped litmus tests, the enumerator and the text format.

use std::collections::BTreeSet;
use std::{fs, path::PathBuf};

use meshreduce_emulator_weak_memory::litmus::{
    Expectation, KernelError, Litmus, LitmusErrorKind, compare, enumerate, interleave, judge, kernels, parse,
    random,
};
use proptest::prelude::*;

/// Random programs; `cargo xtask litmus --random` takes more.
const RANDOM: u64 = 2000;

/// The texts of the shipped files, by name.
fn texts() -> Vec<(String, String)> {
    let folder = PathBuf::from("litmus");
    let entries = fs::read_dir(folder).expect("the folder of litmus tests");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let read = |file: PathBuf| {
        let text = fs::read_to_string(&file).expect("a readable file");
        (file.display().to_string(), text)
    };
    files.into_iter().map(read).collect()
}

fn shipped() -> Vec<(String, Vec<Litmus>)> {
    let parsed = |(name, text): (String, String)| {
        let tests = parse(&name, &text).unwrap_or_else(|error| panic!("{error}"));
        (name, tests)
    };
    texts().into_iter().map(parsed).collect()
}

/// Whether the enumerator lets the condition of `test` happen.
fn possible(test: &Litmus) -> bool {
    enumerate(test).iter().any(|outcome| test.condition.holds(outcome))
}

/// The only test of `text`.
fn one(text: &str) -> Litmus {
    let mut tests = parse("here", text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(tests.len(), 1);
    tests.remove(0)
}

#[test]
fn every_stated_verdict_is_the_enumerators() {
    let mut wrong = Vec::new();
    for (file, tests) in shipped() {
        for test in tests {
            if possible(&test) != (test.verdict == Expectation::Allowed) {
                wrong.push(format!("{file}:{} {} is not {:?}", test.line, test.name, test.verdict));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_shipped_tests_cover_scopes_and_devices_and_have_unique_names() {
    let mut names = BTreeSet::new();
    let (mut allowed, mut two_devices) = (0, 0);
    for (_, tests) in shipped() {
        for test in tests {
            allowed += usize::from(test.verdict == Expectation::Allowed);
            two_devices += usize::from(test.threads.iter().any(|t| t.device != test.threads[0].device));
            assert!(names.insert(test.name.clone()), "{} is there twice", test.name);
        }
    }
    assert!(names.len() >= 60, "{}", names.len());
    assert!(allowed >= 30 && names.len() - allowed >= 30, "{allowed} of {} allowed", names.len());
    assert!(two_devices >= 30 && names.len() - two_devices >= 30, "{two_devices}");
}

#[test]
fn what_is_sequentially_consistent_is_allowed() {
    for (_, tests) in shipped() {
        for test in tests {
            let (strong, allowed) = (interleave(&test), enumerate(&test));
            assert!(!strong.is_empty() || test.terminates == Some(false), "{}", test.name);
            assert!(strong.is_subset(&allowed), "{}: {:?}", test.name, strong.difference(&allowed));
        }
    }
}

#[test]
fn the_front_end_takes_every_shipped_test() {
    for (_, tests) in shipped() {
        for test in tests {
            let kernels = match kernels(&test) {
                Err(KernelError::Proxies { .. }) if test.name.starts_with("proxies.") => continue,
                kernels => kernels.unwrap_or_else(|error| panic!("{}: {error}", test.name)),
            };
            let members: usize = kernels.iter().map(|kernel| kernel.members.len()).sum();
            assert_eq!(members, test.threads.len());
        }
    }
}

/// A test of two threads on two devices over x and y, both 0.
fn two(first: &str, second: &str, condition: &str) -> Litmus {
    one(&format!(
        "test two
         location x = 0
         location y = 0
         thread 0: device 0, block 0
         {first}
         thread 1: device 1, block 0
         {second}
         exists {condition}
         allowed: it is asked, not stated"
    ))
}

#[test]
fn the_enumerator_lists_exactly_the_outcomes_of_store_buffering() {
    let thread = |own: &str, other: &str, fence: &str| {
        format!("st.relaxed.sys.u32 [{own}], 1;\n{fence}\nld.relaxed.sys.u32 %r0, [{other}];")
    };
    let outcomes = |fence: &str| -> BTreeSet<(u64, u64)> {
        let test = two(&thread("x", "y", fence), &thread("y", "x", fence), "x == 1");
        enumerate(&test).iter().map(|o| (o.registers[0][0], o.registers[1][0])).collect()
    };
    assert_eq!(outcomes(""), BTreeSet::from([(0, 0), (0, 1), (1, 0), (1, 1)]));
    assert_eq!(outcomes("fence.acq_rel.sys;"), BTreeSet::from([(0, 0), (0, 1), (1, 0), (1, 1)]));
    assert_eq!(outcomes("fence.sc.sys;"), BTreeSet::from([(0, 1), (1, 0), (1, 1)]));
}

#[test]
fn a_test_of_one_thread_has_one_outcome() {
    let test = one("test alone
        location x: b64 = 0x100000000
        thread 0: device 0, block 0
        ld.global.u64 %rd0, [x];
        add.u64 %rd1, %rd0, 5;
        st.global.u64 [x], %rd1;
        atom.global.cas.b64 %rd2, [x], 0x100000005, 7;
        atom.global.cas.b64 %rd3, [x], 0, 9;
        exists x == 7
        allowed: program order");
    let outcomes = enumerate(&test);
    assert_eq!(outcomes, interleave(&test));
    let [outcome] = outcomes.iter().collect::<Vec<_>>()[..] else { panic!("{outcomes:?}") };
    assert_eq!(outcome.memory, [7]);
    assert_eq!(outcome.registers, [[1 << 32, (1 << 32) + 5, (1 << 32) + 5, 7]]);
}

#[test]
fn arithmetic_wraps_at_the_registers_width() {
    let test = one("test wrap
        location x = 0xffffffff
        thread 0: device 0, block 0
        atom.global.add.u32 %r0, [x], 2;
        add.u32 %r1, %r0, 3;
        exists x == 1 && 0:%r1 == 2
        allowed: modulo 2^32");
    assert!(enumerate(&test).iter().all(|outcome| test.condition.holds(outcome)));
}

#[test]
fn a_branch_skips_what_lies_before_its_label() {
    let test = one("test skip
        location x = 1
        location y = 0
        thread 0: device 0, block 0
        ld.global.u32 %r0, [x];
        setp.eq.u32 %p0, %r0, 1;
        @%p0 bra THERE;
        st.global.u32 [y], 1;
        THERE:
        @!%p0 st.global.u32 [y], 2;
        @%p0 mov.u32 %r1, 3;
        exists y == 0 && 0:%r1 == 3
        allowed: the branch is taken");
    assert_eq!(enumerate(&test), interleave(&test));
    assert!(enumerate(&test).iter().all(|outcome| test.condition.holds(outcome)));
}

#[test]
fn racing_writes_may_each_be_last() {
    let finals = |order: &str| -> BTreeSet<u64> {
        let first = format!("st{order}.global.u32 [x], 1;\nst{order}.global.u32 [x], 2;");
        let second = format!("st{order}.global.u32 [x], 3;");
        enumerate(&two(&first, &second, "x == 1")).iter().map(|outcome| outcome.memory[0]).collect()
    };
    assert_eq!(finals(""), BTreeSet::from([2, 3]));
    assert_eq!(finals(".relaxed.sys"), BTreeSet::from([2, 3]));
}

#[test]
fn stronger_orderings_allow_no_more() {
    let allowed = |release: &str, acquire: &str| {
        let first = format!("st.global.u32 [x], 1;\nst{release}.global.u32 [y], 1;");
        let second = format!("ld{acquire}.global.u32 %r0, [y];\nld.global.u32 %r1, [x];");
        enumerate(&two(&first, &second, "x == 1"))
    };
    let weak = allowed("", "");
    for (release, acquire) in
        [(".relaxed.sys", ".relaxed.sys"), (".release.gpu", ".acquire.gpu"), (".release.sys", ".acquire.sys")]
    {
        assert!(allowed(release, acquire).is_subset(&weak));
    }
    assert!(allowed(".release.sys", ".acquire.sys").len() < weak.len());
}

/// The line and kind of the error that `text` gives.
fn refused(text: &str) -> (u32, LitmusErrorKind) {
    let error = parse("bad.litmus", text).expect_err(text);
    assert_eq!(error.file, "bad.litmus");
    assert!(error.to_string().starts_with(&format!("bad.litmus:{}: ", error.line)), "{error}");
    (error.line, error.kind)
}

/// A test whose only thread has `code`, which begins at line 5.
fn refused_code(code: &str) -> (u32, LitmusErrorKind) {
    refused(&format!(
        "test t\nlocation x = 0\nlocation w: b64 = 0\nthread 0: device 0, block 0\n{code}\n\
         exists x == 0\nallowed: yes"
    ))
}

#[test]
fn lines_that_do_not_belong_are_refused_with_their_line() {
    use LitmusErrorKind as Kind;
    assert!(matches!(refused("\n// nothing\nlocation x = 0"), (3, Kind::Expected { .. })));
    assert!(matches!(refused("test a b"), (1, Kind::Expected { .. })));
    assert!(matches!(refused("test t\nlocation x"), (2, Kind::Expected { .. })));
    assert!(matches!(refused("test t\nlocation x: b24 = 0"), (2, Kind::Expected { .. })));
    assert!(matches!(refused("test t\nlocation x = 4294967296"), (2, Kind::Number(_))));
    assert!(matches!(refused("test t\nlocation x = -1"), (2, Kind::Number(_))));
    assert!(matches!(refused("test t\nlocation x = 0\nlocation x = 1"), (3, Kind::Twice { .. })));
    assert!(matches!(refused("test t\nthread 1: device 0, block 0"), (2, Kind::Expected { .. })));
    assert!(matches!(refused("test t\nst.global.u32 [x], 1;"), (2, Kind::Expected { .. })));
    assert!(matches!(refused("test t\nlocation x = 0"), (2, Kind::Missing { part: "verdict", .. })));
    assert!(matches!(refused("test t\nlocation x = 0\ntest u"), (3, Kind::Missing { .. })));
    assert!(matches!(refused("test t\nallowed: yes"), (2, Kind::Missing { part: "thread", .. })));
    let (line, kind) =
        refused("test t\nlocation x = 0\nthread 0: device 0, block 0\nexists x == 0\nallowed:");
    assert!(line == 5 && matches!(kind, Kind::Missing { .. }), "{kind}");
}

#[test]
fn instructions_outside_the_subset_are_refused() {
    use LitmusErrorKind as Kind;
    for code in [
        "mul.hi.u32 %r0, %r1, %r2;",
        "ld.global.f16 %r0, [x];",
        "atom.global.max.f32 %r0, [x], 1;",
        "atom.global.inc.u64 %rd0, [w], 1;",
        "atom.global.dec.s32 %r0, [x], 1;",
        "ld.shared.u32 %r0, [x];",
        "ld.global.v2.u32 {%r0, %r1}, [x];",
        "ld.global.v2.u32 %r0, [x];",
        "st.global.v8.u32 [x], 1;",
        "ld.acquire.global.u32 %r0, [x];",
        "ld.release.sys.global.u32 %r0, [x];",
        "ld.weak.sys.global.u32 %r0, [x];",
        "ld.volatile.sys.global.u32 %r0, [x];",
        "ld.relaxed.sys.global.nc.u32 %r0, [x];",
        "ld.global.u32 %rd0, [x];",
        "ld.global.u32 %r0;",
        "st.global.u32 [x], 4294967296;",
        "st.acquire.sys.global.u32 [x], 1;",
        "red.acquire.sys.global.add.u32 [x], 1;",
        "red.global.exch.b32 [x], 1;",
        "atom.global.u32 %r0, [x], 1;",
        "fence.sc;",
        "bar.sync 16;",
        "bar.sync 1, 48;",
        "bar.arrive 1;",
        "bar.red.popc.u32 %r0, 1, 32, %p0;",
        "bar.red.popc.pred %p1, 1, %p0;",
        "bar.red.xor.pred %p1, 1, %p0;",
        "bar.warp.sync %r0;",
        "bar.warp.arrive 1;",
        "fence.proxy.async;",
        "suld.acquire.u32 %r0, [x];",
        "setp.lo.u32 %p0, 1, 2;",
        "@%r0 st.global.u32 [x], 1;",
        "@%p0;",
    ] {
        let (line, kind) = refused_code(code);
        assert!(matches!(kind, Kind::Instruction { .. }), "{code}: {kind}");
        assert!(line >= 5, "{code}: line {line}");
    }
    assert!(matches!(refused_code("st.global.u32 [x], 1"), (5, Kind::Expected { .. })));
    assert!(matches!(refused_code("ld.global.u32 %r0, [z];"), (5, Kind::Unknown { .. })));
    assert!(matches!(refused_code("bra NOWHERE;"), (6, Kind::Unknown { .. })));
    let (_, kind) = refused_code("ld.global.u32 %r0, [w];");
    assert_eq!(kind, Kind::MixedSize { location: "w".into(), declared: 64, accessed: 32 });
}

#[test]
fn memory_of_other_kinds_is_declared_and_named_as_it_is() {
    use LitmusErrorKind as Kind;
    let test = |declared: &str, code: &str| {
        let text = "exists x == 0\nallowed: yes";
        parse("kinds", &format!("test t\n{declared}\nthread 0: device 0, block 0\n{code}\n{text}"))
    };
    let reason = |declared: &str, code: &str| match test(declared, code).map_err(|error| error.kind) {
        Err(Kind::Instruction { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let shared = "location x = 0, device 0, block 0";
    assert!(test(shared, "st.shared.u32 [x], 1;").is_ok());
    assert_eq!(reason(shared, "st.u32 [x], 1;"), "x is shared memory: .shared is needed");
    assert_eq!(reason(shared, "st.global.u32 [x], 1;"), "x is shared memory");
    assert_eq!(reason("location x = 0", "st.shared.u32 [x], 1;"), "x is global memory");
    let other = "location x = 0, device 0, block 1";
    assert_eq!(reason(other, "st.shared.u32 [x], 1;"), "x is shared memory of another block");
    let expected =
        |declared| matches!(test(declared, "").map_err(|error| error.kind), Err(Kind::Expected { .. }));
    assert!(expected("location x = 1, device 0, block 0"), "shared memory begins as zeros");
    assert!(
        expected("location x: v3.b32 = 0") && expected("alias 1 = x") && expected("location x = 0, block 0")
    );
    assert!(matches!(test("alias y = x", "").map_err(|error| error.kind), Err(Kind::Unknown { .. })));

    let vector = "location x: v4.b32 = 0";
    assert!(test(vector, "ld.v4.u32 {%r0, %r1, %r2, %r3}, [x];\nst.v2.u32 [x+8], {%r0, 1};").is_ok());
    for (code, wrong) in [
        ("ld.v2.u32 {%r0, %r1}, [x+4];", "[x+4] does not begin 2 locations of one vector"),
        ("ld.v4.u32 {%r0, %r1}, [x];", "4 registers in braces are needed"),
        ("ld.v2.u32 {%r0, %r0}, [x];", "a register takes two scalars of the vector"),
    ] {
        assert_eq!(reason(vector, code), wrong);
    }
    let two = "location x = 0\nlocation y = 0";
    assert_eq!(reason(two, "ld.v2.u32 {%r0, %r1}, [x];"), "[x] does not begin 2 locations of one vector");
}

#[test]
fn a_vector_is_its_scalars_in_any_order() {
    let test = one("test vector
        location x: v4.b32 = 7
        thread 0: device 0, block 0
        ld.v4.u32 {%r0, %r1, %r2, %r3}, [x];
        st.v2.u32 [x+8], {1, %r0};
        ld.acquire.gpu.v2.u32 {%r4, %r5}, [x+8];
        exists x+8 == 1 && x+12 == 7 && 0:%r4 == 1 && 0:%r5 == 7 && x == 7
        allowed: each scalar goes to its place");
    let outcomes = enumerate(&test);
    assert_eq!((outcomes.len(), &outcomes), (1, &interleave(&test)));
    assert!(outcomes.iter().all(|outcome| test.condition.holds(outcome)));
    // In a loop the scalars are as many in every round.
    let test = one("test loop
        location x: v2.b32 = 0
        thread 0: device 0, block 0
        AGAIN:
        ld.v2.u32 {%r0, %r1}, [x];
        add.u32 %r0, %r0, 1;
        st.v2.u32 [x], {%r0, %r0};
        setp.lt.u32 %p0, %r0, 2;
        @%p0 bra AGAIN;
        exists x == 2 && x+4 == 2 && 0:%r1 == 1
        allowed: twice");
    assert!(enumerate(&test).iter().all(|outcome| test.condition.holds(outcome)));
    assert_eq!(enumerate(&test), interleave(&test));
}

#[test]
fn who_comes_to_a_vote_or_a_barrier_of_a_warp_must_be_known() {
    let reason = |first: &str, second: &str| {
        let text = format!(
            "test t\nlocation x = 0\nthread 0: device 0, block 0\n{first}\nthread 1: device 0, block 0\n{second}\n\
             exists x == 0\nallowed: yes"
        );
        match parse("barriers", &text).map_err(|error| error.kind) {
            Ok(_) => None,
            Err(LitmusErrorKind::Instruction { reason, .. }) => Some(reason),
            Err(other) => panic!("{other}"),
        }
    };
    let vote = "bar.red.or.pred %p0, 0, %p1;";
    assert_eq!(reason(vote, vote), None);
    for other in ["", "@%p1 bar.red.or.pred %p0, 0, %p1;", "bar.red.and.pred %p0, 0, %p1;", "bar.sync 0;"] {
        let known = reason(vote, other).expect(other);
        assert_eq!(known, "the threads of its block come to different barriers, or not always");
    }
    assert_eq!(reason("bar.warp.sync 3;", "bar.warp.sync 3;"), None);
    assert_eq!(reason("bar.warp.sync 0xffffffff;", "bar.warp.sync 0xffffffff;"), None);
    assert_eq!(reason("bar.warp.sync 1;", ""), None, "a lane may be alone");
    assert_eq!(reason("bar.warp.sync 2;", "").as_deref(), Some("the mask does not have the thread itself"));
    for other in ["", "@%p0 bar.warp.sync 3;", "bar.warp.sync 2;", "bar.warp.sync 3;\nbar.warp.sync 3;"] {
        let known = reason("bar.warp.sync 3;", other).expect(other);
        assert_eq!(known, "the lanes of its mask come to different barriers, or not always");
    }
    let both =
        one("test t\nlocation x = 0\nthread 0: device 0, block 0\nbar.sync 1, 32;\nbar.warp.sync 1;\n\
                    exists x == 0\nallowed: yes");
    assert!(matches!(kernels(&both), Err(KernelError::Warps { thread: 0 })), "a warp cannot be two things");
}

#[test]
fn conditions_are_checked() {
    use LitmusErrorKind as Kind;
    let condition = |text: &str| {
        refused(&format!("test t\nlocation x = 0\nthread 0: device 0, block 0\nexists {text}\nallowed: yes"))
            .1
    };
    for text in ["x = 1", "x == 1 &", "x == 1 && ", "(x == 1", "x == 1)", "x 1", "x == 1 x == 2"] {
        assert!(matches!(condition(text), Kind::Condition(_)), "{text}");
    }
    assert!(matches!(condition("y == 1"), Kind::Unknown { .. }));
    assert!(matches!(condition("0:%r0 == 1"), Kind::Unknown { .. }));
    assert!(matches!(condition("x == one"), Kind::Number(_)));
    assert!(matches!(condition(&"(".repeat(10_000)), Kind::Condition(_)));
}

#[test]
fn conjunction_binds_tighter_than_disjunction() {
    let code = "mov.u32 %r0, 1;\nmov.u32 %r1, 0;";
    let holds = |condition: &str| {
        let test = two(code, "mov.u32 %r0, 0;", condition);
        enumerate(&test).iter().any(|outcome| test.condition.holds(outcome))
    };
    assert!(holds("0:%r0 == 1 || 0:%r1 == 1 && x == 5"));
    assert!(!holds("(0:%r0 == 1 || 0:%r1 == 1) && x == 5"));
    assert!(holds("0:%r0 != 0x0"));
}

#[test]
fn what_is_too_much_to_enumerate_is_refused() {
    use LitmusErrorKind as Kind;
    let stores = "st.global.u32 [x], 1;\n".repeat(7);
    assert!(matches!(refused_code(&stores).1, Kind::TooLarge { what: "writes to a location", .. }));
    let loads = "ld.global.u32 %r0, [x];\n".repeat(33);
    assert!(matches!(refused_code(&loads).1, Kind::TooLarge { .. }));
    let fences = "fence.sc.sys;\n".repeat(7);
    assert!(matches!(refused_code(&fences).1, Kind::TooLarge { what: "fence.sc", .. }));
}

/// Lines that make texts which are nearly tests.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,30}",
        Just("test t".to_owned()),
        Just("location x = 0".to_owned()),
        Just("location y: b64 = 0, device 1".to_owned()),
        Just("thread 0: device 0, block 0".to_owned()),
        Just("thread 1: device 1, block 0".to_owned()),
        Just("exists x == 1 && (1:%r0 == 0 || y != 2)".to_owned()),
        Just("forbidden: no".to_owned()),
        Just("L:".to_owned()),
        Just("@!%p0 bra L;".to_owned()),
        Just("location z: v2.b32 = 0, device 0, block 0".to_owned()),
        Just("alias a = x".to_owned()),
        "(ld|st|atom|red|fence|bar|setp|add|suld|sust)(\\.(relaxed|acquire|sys|gpu|u32|b64|add|inc|cas|nc|sync|v2|shared|red|popc|\
         warp|proxy|alias)){0,4} (%r0|%rd1|\\[x\\]|\\[y\\]|\\[z\\]|\\{%r0, %r1\\}|%p0|0|1)(, (%r0|%rd1|\\[x\\]|\\[z\\]|7)){0,3};",
    ]
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(lines in prop::collection::vec(line(), 0..16)) {
        let _ = parse("random", &lines.join("\n"));
    }

    #[test]
    fn no_change_of_a_shipped_test_makes_the_judges_panic(
        file in 0_usize..21, test in 0_usize..64, line in 0_usize..24, with in line(), drop in any::<bool>()
    ) {
        let files = texts();
        let (_, text) = &files[file % files.len()];
        let tests: Vec<&str> = text.split("\n\n").skip(1).collect();
        let mut lines: Vec<&str> = tests[test % tests.len()].lines().collect();
        let at = line % lines.len();
        if drop { lines.remove(at); } else { lines[at] = &with; }
        for test in parse("changed", &lines.join("\n")).unwrap_or_default() {
            let allowed = enumerate(&test);
            prop_assert!(interleave(&test).is_subset(&allowed), "{}", lines.join("\n"));
            let _ = kernels(&test);
        }
    }
}

#[test]
fn the_adversary_executor_stays_within_what_is_allowed() {
    let (mut weak, mut reached) = (0, 0);
    for (file, tests) in shipped() {
        for test in tests {
            let judgement = judge(&test, 0..200);
            let place = format!("{file}:{} {}", test.line, test.name);
            let by_other_proxies = matches!(judgement.unfit, Some(KernelError::Proxies { .. }));
            assert!(judgement.unfit.is_none() || by_other_proxies, "{place}: {:?}", judgement.unfit);
            assert!(judgement.false_race().is_none(), "{place}: a data race in seed {:?}", judgement.race);
            assert!(judgement.stopped.is_empty(), "{place}: {:?}", judgement.stopped[0]);
            if let Some((outcome, seed)) = judgement.excess().next() {
                panic!("{place}: seed {seed} gave {outcome:?}, which the axioms do not allow");
            }
            weak += judgement.weak.len();
            reached += judgement.weak_seen();
        }
    }
    println!("{reached} of {weak} weak outcomes reached");
    assert!(reached * 2 > weak, "{reached} of {weak} weak outcomes reached");
}

#[test]
fn random_programs_have_outcomes_and_races_that_the_axioms_know() {
    for seed in 0..RANDOM {
        let text = random(seed);
        let comparison = compare(&one(&text), 0..60);
        if let Some((run, wrong)) = comparison.wrong {
            panic!("cargo xtask litmus --random 1 --seed {seed}: run {run} gave {wrong}\n{text}");
        }
    }
}
