//! What loads, and what is refused, where and why.

#![allow(clippy::unwrap_used, clippy::precedence, clippy::double_comparisons, clippy::needless_range_loop)]

use meshreduce_emulator_ptx::{Module, PtxError};
use proptest::prelude::*;

/// The text of a module with one kernel `k`, which takes `params` and has the given body.
fn kernel(params: &str, body: &str) -> String {
    format!(".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k({params})\n{{\n{body}\n}}\n")
}

fn refuse(body: &str) -> PtxError {
    Module::parse(&kernel(".param .u64 p", body)).expect_err(body)
}

const DECLARATIONS: &str =
    ".reg .pred %p<4>; .reg .b16 %h<4>; .reg .b32 %r<8>; .reg .f32 %f<4>; .reg .b64 %d<4>;\n";

#[test]
fn errors_name_line_text_and_reason() {
    let error = refuse(&format!("{DECLARATIONS}mov.u32 %r1, 1;\n  frobnicate.u32 %r1, %r2;\nret;"));
    assert_eq!((error.line, error.text.as_str()), (8, "frobnicate.u32 %r1, %r2;"));
    assert!(error.reason.contains("unknown instruction frobnicate"), "{error}");
    assert!(error.to_string().starts_with("line 8: "));
}

#[test]
fn what_is_not_legal_is_refused_with_its_reason() {
    for (instruction, reason) in [
        ("add.u32 %r1, %r2;", "3 operands"),
        ("add.u32.fast %r1, %r2, %r3;", "modifier .fast"),
        ("add.u32 %r1, %r2, %d1;", "%d1 is declared .b64, the instruction works on .u32"),
        ("add.f32 %f1, %f2, 1;", "an integer where the instruction works on .f32"),
        ("add.u32 %r1, %r2, %f1;", "%f1 is declared .f32"),
        ("add.u32 %r1, %r2, %r8;", "%r8 is not declared"),
        ("add.u32 %r1, %r2, %r01;", "%r01 is not declared"),
        ("fma.f32 %f1, %f1, %f1, %f1;", "not supported"),
        ("cvt.u32.f32 %r1, %f1;", "not supported"),
        ("cvt.rn.u32.u64 %r1, %d1;", "not supported"),
        ("setp.lo.s32 %p1, %r1, %r2;", "not supported"),
        ("@%r1 ret;", "%r1 is declared .b32"),
        ("bra nowhere;", "label nowhere is not defined"),
        ("twice: twice: ret;", "defined twice"),
        ("ld.global.acquire.u32 %r1, [%d1];", "needs a scope"),
        ("ld.global.sys.u32 %r1, [%d1];", "a scope needs"),
        ("ld.global.nc.relaxed.sys.u32 %r1, [%d1];", ".nc belongs to weak loads"),
        ("ld.release.sys.u32 %r1, [%d1];", "not supported"),
        ("st.acquire.sys.u32 [%d1], %r1;", "not supported"),
        ("red.acq_rel.sys.global.add.u32 [%d1], %r1;", "not supported"),
        ("ld.global.v2.u32 %r1, [%d1];", "in braces"),
        ("ld.global.v2.u32 {%r1, %r2, %r3}, [%d1];", "as many registers"),
        ("ld.global.v4.u64 {%d1, %d2, %d3, %d0}, [%d1];", "not supported"),
        ("ld.global.f32 %d1, [%h1];", "cannot hold an address"),
        ("ld.global.u64 %r1, [%d1];", "%r1 is declared .b32"),
        ("ld.u32 %r1, [p];", "name its state space"),
        ("st.param.u32 [p], %r1;", "read only"),
        ("call.uni f, (%r1);", "calls are not supported"),
        ("mov.u32 %r1, %globaltimer;", "has 64 bits"),
        ("bar.arrive 0;", "needs a count"),
        (".reg .b32 %r<3>;", "declared twice"),
        (".reg .b8 %b;", "8 bits"),
        (".frob 3;", "unknown directive .frob"),
        ("shfl.sync.idx.b32 %r1, %r1, 0, 31, -1;", "unknown instruction shfl"),
        ("mov.u32 %r1 %r2;", "expected `;`"),
        (".reg .b128 %w; ld.relaxed.sys.global.b128 %d1, [%d2];", "%d1 is no register of 128 bits"),
        (".reg .b128 %w; ld.global.u64 %w, [%d2];", "%w is declared .b128, the instruction works on .u64"),
        (".reg .b128 %w; ld.global.b128 %d1, [%w];", "%w cannot hold an address"),
        (".reg .b128 %w; mov.b128 %w, {%d1, %d2, %d3};", "two parts of 64 bits"),
        (".reg .b128 %w; mov.b128 %w, {%r1, %d2};", "%r1 is declared .b32"),
        (".reg .b128 %w; ld.global.v2.b128 {%w, %w}, [%d1];", "not supported"),
        ("mov.b128 {%d1, %d2}, %nothing;", "%nothing is not declared"),
    ] {
        let error = refuse(&format!("{DECLARATIONS}{instruction}"));
        assert!(error.reason.contains(reason), "{instruction}: {error}");
        assert_eq!(error.line, 7, "{instruction}: {error}");
    }
}

#[test]
fn a_text_that_is_no_module_is_refused() {
    for (text, reason) in [
        ("", "no .version"),
        (".version 7.0\n.address_size 64", "no .target"),
        (".version 7.0\n.target sm_70\n", "address_size 64"),
        (".version 7.0\n.target warp\n.address_size 64", "not an architecture"),
        (".version 7.0\n.target sm_70\n.address_size 64\n.entry k() {", "end of the text"),
        (".version 7.0\n.target sm_70\n.address_size 64\n.entry k() { ret; } .entry k() { ret; }", "twice"),
        (
            ".version 7.0\n.target sm_70\n.address_size 64\n.global .u32 x = 1;",
            "not supported at module scope",
        ),
        ("\u{7f}ELF", "unexpected character"),
    ] {
        let error = Module::parse(text).expect_err(text);
        assert!(error.reason.contains(reason), "{text}: {error}");
    }
}

#[test]
fn a_kernel_tells_what_the_driver_asks_about_it() {
    let text = "// header\n.version 7.8\n.target sm_90a, debug\n.address_size 64
        .shared .align 16 .b8 used[20]; .shared .align 4 .b8 unused[4000]; .extern .shared .align 16 .b8 dyn[];
        .visible .entry k(.param .u32 a, .param .align 8 .b8 b[12], .param .u64 .ptr .global .align 16 c)
        .maxntid 512, 1, 1 .minnctapersm 2
        { .reg .b32 %r<4>; .reg .b64 %rd<3>; mov.u32 %r1, used; mov.u32 %r2, dyn; add.u32 %r3, %r1, %r2; ret; }
        .visible .func f(.param .b32 x) { ret; }";
    let module = Module::parse(text).unwrap();
    assert_eq!(module.version(), (7, 8));
    assert_eq!(module.target().capability, (9, 0));
    assert!(module.target().runs_on((9, 0)) && !module.target().runs_on((10, 0)));
    let kernel = module.kernel("k").unwrap();
    let params: Vec<_> =
        kernel.params.iter().map(|p| (p.name.as_str(), p.offset, p.bytes, p.align)).collect();
    assert_eq!(params, [("a", 0, 4, 4), ("b", 8, 12, 8), ("c", 24, 8, 8)]);
    assert_eq!(kernel.param_bytes, 32);
    assert_eq!(kernel.max_threads, Some([512, 1, 1]));
    assert_eq!(kernel.shared_bytes, 20);
    assert_eq!(kernel.registers, 2);
}

const SAMPLE: &str = include_str!("../../../host/ptx/one_shot_w2.ptx");

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn mangled_text_never_panics(
        start in 0usize..SAMPLE.len(),
        length in 0usize..4000,
        edits in prop::collection::vec((any::<prop::sample::Index>(), "[-\\[\\]{}();,.:%@!|<>=+0-9a-zA-Z$_\"/* \n]{0,3}"), 1..8),
    ) {
        let head = ".version 7.0\n.target sm_70\n.address_size 64\n.entry k() {\n.reg .pred %p<99>; .reg .b16 %rs<99>; .reg .b32 %r<99>; .reg .b64 %rd<99>;\n";
        let mut body: Vec<char> = SAMPLE.chars().skip(start).take(length).collect();
        for (index, text) in edits {
            if !body.is_empty() {
                let at = index.index(body.len());
                body.splice(at..=at, text.chars());
            }
        }
        let body: String = body.into_iter().collect();
        let _ = Module::parse(&body);
        let _ = Module::parse(&format!("{head}{body}}}"));
    }

    #[test]
    fn any_text_never_panics(text in "\\PC{0,200}") {
        let _ = Module::parse(&text);
    }
}

#[test]
fn every_shipped_text_loads() {
    // From the package's folder, where cargo starts its tests.
    let folder = "../../host/ptx";
    let mut texts = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "ptx") {
            let text = std::fs::read_to_string(&path).unwrap();
            let module = Module::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(!module.kernels().is_empty());
            assert!(module.kernels().iter().all(|kernel| kernel.local_bytes == 0 && kernel.registers <= 128));
            texts += 1;
        }
    }
    assert!(texts > 0);
}

#[test]
fn what_rustc_wraps_around_inline_assembly_loads() {
    let text = format!(
        "{DECLARATIONS}// begin inline asm
        {{ .reg .pred p; setp.eq.u32 p, %r1, 0; @p bra skip; mov.u32 %r2, 1; skip: }}
        {{ .reg .pred p; setp.eq.u32 p, %r1, 0; @p bra skip; mov.u32 %r2, 2; skip: }}
        // end inline asm
        .loc 1 2 3
        {{ .reg .b16 tmp; mov.b32 {{tmp, %h1}}, %r2; }}
        .pragma \"nounroll\";
        mov.pred %p1, -1; @!%p1 bra.uni end; end: ret;"
    );
    Module::parse(&kernel("", &text)).unwrap();
}
