//! Texts in the format of Dat3M's PTX tests.

use meshreduce_emulator_weak_memory::litmus::{
    Expectation, Litmus, LitmusErrorKind, enumerate, explore, judge, parse, parse_bounded,
};

fn read(text: &str) -> Litmus {
    let mut tests = parse("here", text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(tests.len(), 1);
    tests.remove(0)
}

fn refused(text: &str) -> (u32, LitmusErrorKind) {
    let error = parse("here", text).expect_err("refused");
    (error.line, error.kind)
}

/// Whether the question of a test has the answer yes, and that the executor contradicts nothing.
fn holds(text: &str) -> bool {
    let test = read(text);
    let Expectation::Asked(some) = test.verdict else { panic!("it states a verdict") };
    let judged = judge(&test, 0..100);
    assert!(judged.holds(&test), "{text}\n{:?}", judged.stopped);
    judged.possible == some
}

/// Message passing with these instructions for flag and question.
fn message_passing(store: &str, load: &str, question: &str) -> String {
    format!(
        "PTX mp\n\"a description, which may be of\n two lines\"\n{{\nx=0;\nP1:r0=0; P1:r1=7;\n}}\n\
          P0@cta 0,gpu 0 | P1@cta 1,gpu 0 ;\n st.weak x, 1   | {load} r0, flag ;\n {store} flag, 1 | ld.weak r1, x ;\n\
         {question}"
    )
}

#[test]
fn columns_are_threads_and_the_three_questions_are_asked() {
    let never = "(P1:r0 == 1 /\\ P1:r1 == 0)";
    let text = |question: &str| message_passing("st.release.gpu", "ld.acquire.gpu", question);
    assert!(!holds(&text(&format!("exists {never}"))));
    assert!(holds(&text(&format!("~exists {never}"))));
    assert!(holds(&text("forall (P1:r0 == 0 \\/ ~(P1:r1 == 0))")));
    assert!(holds(&text("exists (1: r0 = 1 /\\ x >= 1)")));
    let relaxed = message_passing("st.relaxed.gpu", "ld.relaxed.gpu", &format!("exists {never}"));
    assert!(holds(&relaxed));
    assert!(!holds(&relaxed.replace("exists", "filter (P1:r1 == 1)\nexists")));
    let test = read(&text("exists x == 1"));
    assert_eq!((test.name.as_str(), test.threads.len()), ("mp", 2));
    assert_eq!((test.threads[1].block, test.threads[1].device), (1, 0));
    assert_eq!(test.locations.len(), 2, "the flag is declared by its use");
}

#[test]
fn instructions_are_those_of_the_isa() {
    let text = "PTX all { x=5; P0:r9=3; }\n P0@cta 0,gpu 0 ;\n ld r0, 2 ;\n add r1, r0, 3 ;\n mul r2, r1, r9 ;\n\
                atom.relaxed.gpu.sub r3, x, 1 ;\n red.acq_rel.sys.add x, 2 ;\n atom.acq_rel.sys.cas r4, x, 6, r2 ;\n\
                bgt r2, 14, LC00 ;\n ld r5, 1 ;\n LC00: ;\n fence.sc.sys ;\n st.relaxed.sys y, r4 ;\n\
                forall (P0:r1 == 5 /\\ P0:r2 == 15 /\\ P0:r3 == 5 /\\ P0:r4 == 6 /\\ x == 15 /\\ y == 6 /\\ P0:r5 == 0)";
    assert!(holds(text));
}

#[test]
fn barriers_are_for_those_that_name_them() {
    let text = |first: &str, second: &str, third: &str| {
        format!(
            "PTX sb {{ x=0; y=0; }}\n P0@cta 0,gpu 0 | P1@cta 0,gpu 0 | P2@cta 0,gpu 0 ;\n\
              st.weak x, 1 | st.weak y, 1 | {third} ;\n {first} | {second} | ;\n ld.weak r0, y | ld.weak r0, x | ;\n\
             exists (P0:r0 == 0 /\\ P1:r0 == 0)"
        )
    };
    assert!(!holds(&text("bar.cta.sync 1", "bar.cta.sync 1", "")));
    assert!(holds(&text("bar.cta.sync 1", "bar.cta.sync 2", "")));
    assert!(!holds(&text("bar.cta.sync 1, 3", "bar.cta.sync 2, 3", "")), "the second is the number");
    assert!(!holds(&text("bar.cta.sync 1, 1, 3", "bar.cta.sync 1, 1, 3", "bar.cta.sync 1, 1, 3")));
    let hangs = |text: &str| explore(&read(text)).terminates() == Some(false);
    assert!(hangs(&text("bar.cta.sync 1, 1, 3", "bar.cta.sync 1, 1, 3", "")), "two of three have come");
    assert!(
        hangs(&text("bar.cta.sync 1, 1, 2", "bar.cta.sync 1, 1, 2", "bar.cta.sync 1, 1, 2")),
        "one is left"
    );
}

#[test]
fn proxies_and_second_addresses_are_for_the_axioms() {
    let asked = |aliases: &str, code: &str| {
        let text = format!("PTX p {{ x=0; {aliases} }}\n P0@cta 0,gpu 0 ;\n {code} ;\n~exists P0:r0 != 1");
        let test = read(&text);
        let judged = judge(&test, 0..2);
        assert!(judged.holds(&test) && judged.unfit.is_some(), "{text}");
        !judged.possible
    };
    let surface = "s @ surface aliases x;";
    assert!(asked(surface, "st.weak x, 1 ;\n fence.proxy.surface ;\n suld.weak r0, s"));
    assert!(!asked(surface, "st.weak x, 1 ;\n suld.weak r0, s"));
    assert!(asked(surface, "sust.weak s, 1 ;\n suld.weak r0, s"), "of one proxy");
    // A surface of a second address needs both fences, in the order of the way.
    let both = "y @ generic aliases x; s @ surface aliases y;";
    assert!(asked(both, "st.weak x, 1 ;\n fence.proxy.alias ;\n fence.proxy.surface ;\n suld.weak r0, s"));
    assert!(!asked(both, "st.weak x, 1 ;\n fence.proxy.surface ;\n fence.proxy.alias ;\n suld.weak r0, s"));
    let constant = "c @ constant aliases x;";
    assert!(asked(constant, "st.weak x, 1 ;\n fence.proxy.constant ;\n cold.weak r0, c"));
    assert!(!asked("t @ texture aliases x;", "st.weak x, 1 ;\n fence.proxy.constant ;\n tld.weak r0, t"));
}

#[test]
fn loops_go_round_and_end_or_not() {
    let text = |store: &str| {
        format!(
            "PTX spin {{ f=0; }}\n P0@cta 0,gpu 0 | P1@cta 1,gpu 0 ;\n LC00: | {store} ;\n ld.relaxed.gpu r0, f | ;\n\
              bne r0, 1, LC01 | ;\n goto LC02 | ;\n LC01: | ;\n goto LC00 | ;\n LC02: | ;\nexists P0:r0 == 1"
        )
    };
    assert!(holds(&text("st.relaxed.gpu f, 1")));
    assert_eq!(explore(&read(&text("st.relaxed.gpu f, 1"))).terminates(), Some(true));
    assert_eq!(explore(&read(&text("st.relaxed.gpu f, 2"))).terminates(), Some(false));
    let judged = judge(&read(&text("st.relaxed.gpu f, 2")), 0..3);
    assert_eq!((judged.hung.len(), judged.seen.len(), judged.stopped.len()), (3, 0, 0));
    // What only a second round finds.
    let counts = "PTX twice { x=0; }\n P0@cta 0,gpu 0 ;\n LC00: ;\n atom.relaxed.gpu.add r0, x, 1 ;\n bne r0, 1, LC00 ;\nexists x == 2";
    let rounds = |rounds| enumerate(&parse_bounded("here", counts, rounds).expect("a test")[0]).len();
    assert_eq!((rounds(1), rounds(2)), (0, 1));
    let once = &parse_bounded("here", counts, 1).expect("a test")[0];
    assert_eq!(explore(once).terminates(), None, "a loop that stores is not followed to its end");
}

#[test]
fn what_is_not_read_is_refused_with_its_line() {
    use LitmusErrorKind as Kind;
    let head = "PTX t\n{ x=0; }\n P0@cta 0,gpu 0 ;\n";
    for (line, text) in [
        (2, "PTX t\n{ x=0; y@shared aliases x; }\n P0@cta 0,gpu 0 ;\nexists x == 0".to_owned()),
        (2, "PTX t\n{ x=0; P0:r0=&x; }\n P0@cta 0,gpu 0 ;\nexists x == 0".to_owned()),
        (2, "PTX t\n{ x=0; P0:r0=x; }\n P0@cta 0,gpu 0 ;\nexists x == 0".to_owned()),
        (4, format!("{head} sured.add x, 1 ;\nexists x == 0")),
        (5, format!("{head} fence.sc.gpu ;\n suatom.add r0, x, 1 ;\nexists x == 0")),
    ] {
        let (found, kind) = refused(&text);
        assert!(matches!(kind, Kind::Foreign { .. }) && found == line, "{found}: {kind}");
    }
    assert!(matches!(
        refused(&format!("{head} (* a comment\n *) nonsense r0 ;\nexists x == 0")),
        (5, Kind::Instruction { .. })
    ));
    assert!(matches!(refused("PTX t { x=0; }\n P1@cta 0,gpu 0 ;\nexists x == 0").1, Kind::Expected { .. }));
    assert!(matches!(refused(&format!("{head} st.weak x, 1 ;")).1, Kind::Expected { .. }));
    assert!(matches!(
        refused(&format!("{head} st.weak x, 1 | st.weak x, 2 ;\nexists x == 0")).1,
        Kind::Expected { .. }
    ));
    assert!(matches!(refused(&format!("{head} st.weak x, 1 ;\nexists (z == 0)")).1, Kind::Unknown { .. }));
}
