//! What the project's PTX must and must not contain.
//!
//! The rules keep a change of compiler or source from silently undoing what the memory model, exact arithmetic and
//! launch bounds need. They look at one line at a time, except [`Rule::NonCoherent`], which follows addresses.

use std::{collections::HashMap, fmt, mem::offset_of};

use meshreduce_wire::{GroupParams, Isa, LaneParams, LaunchParams, MAX_RANKS, SliceParams, Slices};

use crate::ptx_text::{FLOOR, LAUNCH_BOUNDS, parse_name};

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// Targets that the shipped texts are for.
    Target,
    /// No functions but entries, and no declarations of others.
    Function,
    /// No calls.
    Call,
    /// No local memory.
    Local,
    /// `.volatile` and `.mmio` accesses are relaxed and order nothing.
    Volatile,
    /// Atomics and fences say their ordering and have system scope; only the count of blocks, which no other device touches,
    /// has gpu scope.
    Scope,
    /// Strong loads and stores have system scope (block scope in shared memory).
    StrongScope,
    /// `ld.global.nc` only where the address comes from the launch's input.
    NonCoherent,
    /// Additions and multiplications of floats are fp32, round to nearest even and keep subnormals.
    Rounding,
    /// No fused multiply-add on floats.
    Contraction,
    /// No block barrier but `bar.sync 0` and `bar.red.or.pred` of barrier 0.
    Barrier,
    /// Every entry states its launch bounds.
    LaunchBound,
    /// Entries have the name that [`meshreduce_wire::KernelName`] gives them, or are of the floor, and take one `LaunchParams` or as
    /// much; those of slices one `SliceParams`, those of lists one `GroupParams`.
    Entry,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::Target => "the text must be for sm_70 and PTX 7.0 or, with its suffix, sm_80 and PTX 8.4; 64-bit addresses",
            Rule::Function => "no function but entries",
            Rule::Call => "no call",
            Rule::Local => "no local memory",
            Rule::Volatile => "volatile and mmio accesses order nothing",
            Rule::Scope => "an atomic or fence must state its ordering and `.sys`",
            Rule::StrongScope => "a strong access must have `.sys` (`.cta` in shared memory)",
            Rule::NonCoherent => "ld.global.nc is for the launch's input alone",
            Rule::Rounding => "float arithmetic must be fp32 with `.rn` and without `.ftz`",
            Rule::Contraction => "no fused multiply-add",
            Rule::Barrier => "no block barrier but `bar.sync 0` and `bar.red.or.pred` of barrier 0",
            Rule::LaunchBound => "an entry must state its launch bounds",
            Rule::Entry => "an entry must be named after its kernel and take one LaunchParams, or of slices SliceParams, or of lists \
                 GroupParams",
        })
    }
}

/// A line that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Line of the text, from 1.
    pub(crate) line: usize,
    /// The line.
    pub(crate) text: String,
    /// The rule.
    pub(crate) rule: Rule,
}

impl Finding {
    /// The finding as a line of a report about `file`.
    pub(crate) fn at(&self, file: &str) -> String {
        format!("{file}:{}: {}: `{}`", self.line, self.rule, self.text)
    }
}

/// All findings in a text, with its header or without, in the order of lines.
pub(crate) fn lint(text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut entry: Option<Entry<'_>> = None;
    let mut directives = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = Line { number: index + 1, text: line.split("//").next().unwrap_or_default().trim() };
        let mut report = |line: Line<'_>, rule| {
            findings.push(Finding { line: line.number, text: line.text.to_owned(), rule });
        };
        if [".version ", ".target ", ".address_size "].iter().any(|word| line.text.starts_with(word)) {
            directives.push(line.text);
        }
        if let Some((_, name)) = line.text.split_once(".entry ") {
            entry = Some(Entry::new(line, name.trim_end_matches('(')));
        }
        // What the floor's kernels measure is just what accesses of each scope take.
        let measured = entry.as_ref().is_some_and(|entry| FLOOR.contains(&entry.name));
        let of_scope = |rule: &Rule| matches!(rule, Rule::Scope | Rule::StrongScope);
        for rule in rules_of_line(line.text).into_iter().filter(|rule| !(measured && of_scope(rule))) {
            report(line, rule);
        }
        let Some(current) = &mut entry else { continue };
        current.read(line);
        if line.text == "}" {
            current.finish().into_iter().for_each(|(line, rule)| report(line, rule));
            entry = None;
        }
    }
    let suffixed = text.lines().any(|line| line.contains(&format!("{}(", Isa::V84.suffix())));
    let wanted = match suffixed {
        true => [".version 8.4", ".target sm_80", ".address_size 64"],
        false => [".version 7.0", ".target sm_70", ".address_size 64"],
    };
    if directives != wanted {
        findings.push(Finding {
            line: 1,
            text: text.lines().next().unwrap_or_default().into(),
            rule: Rule::Target,
        });
    }
    findings.sort_by_key(|finding| finding.line);
    findings
}

#[derive(Clone, Copy, Debug)]
struct Line<'a> {
    number: usize,
    text: &'a str,
}

/// The count of blocks.
const COUNT: &str = "atom.acq_rel.gpu.global.inc.u32";

/// The rules that a line breaks whatever surrounds it.
fn rules_of_line(line: &str) -> Vec<Rule> {
    let mut broken = Vec::new();
    let words = || line.split_whitespace();
    if words().any(|word| word == ".func" || word == ".extern") {
        broken.push(Rule::Function);
    }
    if words().any(|word| word == ".local") || line.contains("__local_depot") {
        broken.push(Rule::Local);
    }
    let instruction = words().find(|word| !word.starts_with('@')).unwrap_or_default().trim_end_matches(';');
    let mut parts = instruction.split('.');
    let operation = parts.next().unwrap_or_default();
    let modifiers: Vec<&str> = parts.collect();
    let has = |modifier: &str| modifiers.contains(&modifier);
    let float = ["f16", "f16x2", "bf16", "bf16x2", "f32", "f64"].into_iter().any(has);
    let strong = ["relaxed", "acquire", "release"].into_iter().any(has);
    match operation {
        "call" => broken.push(Rule::Call),
        "ld" | "st" => {
            if has("local") && !broken.contains(&Rule::Local) {
                broken.push(Rule::Local);
            }
            if has("volatile") || has("mmio") {
                broken.push(Rule::Volatile);
            }
            if strong && !(has("sys") || has("cta") && has("shared")) {
                broken.push(Rule::StrongScope);
            }
        }
        "atom" | "red" | "fence" => {
            let ordered = strong || has("acq_rel") || has("sc");
            if !(ordered && has("sys") || instruction == COUNT) {
                broken.push(Rule::Scope);
            }
        }
        "membar" => broken.push(Rule::Scope),
        "bar" | "barrier" if !is_block_barrier(line) => broken.push(Rule::Barrier),
        "fma" => broken.push(Rule::Contraction),
        "mad" if float => broken.push(Rule::Contraction),
        "add" | "sub" | "mul" | "div" | "rcp" | "sqrt"
            if float && (!has("f32") || !has("rn") || has("ftz")) =>
        {
            broken.push(Rule::Rounding);
        }
        _ if has("ftz") => broken.push(Rule::Rounding),
        _ => {}
    }
    broken
}

/// Whether a line is one of the two barriers that the kernels have, unguarded: of the whole block, at barrier 0.
fn is_block_barrier(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["bar.sync", "0;"] => true,
        ["bar.red.or.pred", result, "0,", _] => result.starts_with('%'),
        _ => false,
    }
}

/// Where a value comes from, as far as [`Rule::NonCoherent`] cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Origin {
    /// The launch's input pointer.
    readable: bool,
    /// Another pointer among the parameters, or something that was itself loaded from memory.
    foreign: bool,
}

/// An entry while its lines are read.
struct Entry<'a> {
    declared: Line<'a>,
    name: &'a str,
    launch_bounds: Vec<&'a str>,
    params: Vec<&'a str>,
    in_body: bool,
    body: Vec<Line<'a>>,
}

impl<'a> Entry<'a> {
    fn new(declared: Line<'a>, name: &'a str) -> Self {
        Self {
            declared,
            name,
            launch_bounds: Vec::new(),
            params: Vec::new(),
            in_body: false,
            body: Vec::new(),
        }
    }

    fn read(&mut self, line: Line<'a>) {
        if line.text == "{" {
            self.in_body = true;
        } else if self.in_body {
            self.body.push(line);
        } else if line.text.starts_with(".param") {
            self.params.push(line.text);
        } else {
            self.launch_bounds.push(line.text);
        }
    }

    /// Whether it takes a [`SliceParams`].
    fn is_of_slices(&self) -> bool {
        parse_name(self.name).is_some_and(|entry| entry.text.algorithm.is_of_slices())
    }

    fn finish(&self) -> Vec<(Line<'a>, Rule)> {
        let mut broken = Vec::new();
        // The floor's parameter is as long, so that launches can be compared.
        let bytes = match parse_name(self.name).map(|entry| entry.text.algorithm) {
            Some(algorithm) if algorithm.is_of_slices() => size_of::<SliceParams>(),
            Some(algorithm) if algorithm.is_of_lists() => size_of::<GroupParams>(),
            _ => size_of::<LaunchParams>(),
        };
        let param = format!(".param .align 8 .b8 {}_param_0[{bytes}]", self.name);
        let known = parse_name(self.name).is_some() || FLOOR.contains(&self.name);
        if !known || self.params != [param.as_str()] {
            broken.push((self.declared, Rule::Entry));
        }
        if !LAUNCH_BOUNDS.lines().all(|bound| self.launch_bounds.contains(&bound)) {
            broken.push((self.declared, Rule::LaunchBound));
        }
        let origins = self.origins();
        for line in &self.body {
            let Some((instruction, operands)) = operands(line.text) else { continue };
            if !instruction.starts_with("ld.global.nc.") {
                continue;
            }
            let address =
                operands.last().and_then(|address| origins.get(address)).copied().unwrap_or_default();
            if !address.readable || address.foreign {
                broken.push((*line, Rule::NonCoherent));
            }
        }
        broken
    }

    /// Where every register's value comes from: what any instruction that writes it reads, to a fixed point.
    fn origins(&self) -> HashMap<&'a str, Origin> {
        let param = format!("{}_param_0", self.name);
        let mut origins: HashMap<&str, Origin> = HashMap::new();
        loop {
            let mut changed = false;
            for line in &self.body {
                let Some((instruction, operands)) = operands(line.text) else { continue };
                let Some((results, sources)) = split_results(instruction, &operands) else { continue };
                let origin = match instruction.split('.').collect::<Vec<_>>().as_slice() {
                    ["ld", "param", ..] => match line.text.split_once(&param) {
                        Some((_, rest)) => of_parameter(rest, self.is_of_slices()),
                        None => Origin::default(),
                    },
                    // A count or index that was loaded moves an address, but an address that was loaded is foreign.
                    ["ld" | "atom", .., "u64" | "b64"] => Origin { readable: false, foreign: true },
                    ["ld" | "atom", ..] => Origin::default(),
                    _ => sources.iter().fold(Origin::default(), |joined, source| {
                        let origin = origins.get(source).copied().unwrap_or_default();
                        Origin {
                            readable: joined.readable | origin.readable,
                            foreign: joined.foreign | origin.foreign,
                        }
                    }),
                };
                for result in results {
                    let known = origins.entry(result).or_default();
                    let joined = Origin {
                        readable: known.readable | origin.readable,
                        foreign: known.foreign | origin.foreign,
                    };
                    changed |= *known != joined;
                    *known = joined;
                }
            }
            if !changed {
                return origins;
            }
        }
    }
}

/// Where a parameter, given as what follows its name, comes from.
fn of_parameter(rest: &str, of_slices: bool) -> Origin {
    let offset =
        rest.strip_prefix('+').and_then(|rest| rest.split_once(']')?.0.parse::<usize>().ok()).unwrap_or(0);
    let addresses = |slices: usize| {
        let first = slices + offset_of!(Slices, addresses);
        of_slices && (first..first + MAX_RANKS * size_of::<u64>()).contains(&offset)
    };
    let host_page = offset_of!(LaunchParams, lane) + offset_of!(LaneParams, host_page);
    // The lane's memory, ranks' memory, the output.
    let foreign = offset <= host_page
        || offset == offset_of!(LaunchParams, output)
        || addresses(offset_of!(SliceParams, received));
    let readable = offset == offset_of!(LaunchParams, input) || addresses(offset_of!(SliceParams, sent));
    Origin { readable, foreign }
}

/// An instruction and the registers among its operands, in order.
fn operands(line: &str) -> Option<(&str, Vec<&str>)> {
    let line = line.strip_suffix(';')?;
    let line =
        if line.starts_with('@') { line.split_once(char::is_whitespace)?.1.trim_start() } else { line };
    let (instruction, rest) = line.split_once(char::is_whitespace)?;
    if instruction.starts_with('.') {
        return None;
    }
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '%' | '_' | '$' | '.');
    Some((instruction, rest.split(|c| !is_part(c)).filter(|word| word.starts_with('%')).collect()))
}

/// The registers that an instruction writes and those that it reads; `None` if it writes none.
fn split_results<'a>(instruction: &str, operands: &[&'a str]) -> Option<(Vec<&'a str>, Vec<&'a str>)> {
    let mut parts = instruction.split('.');
    let results = match parts.next()? {
        "st" | "red" | "bra" | "bar" | "ret" | "trap" | "fence" => return None,
        _ if instruction.contains(".v4.") => 4,
        _ if instruction.contains(".v2.") => 2,
        _ => 1,
    };
    let results = results.min(operands.len());
    Some((operands[..results].to_vec(), operands[results..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_with(body: &str) -> String {
        format!(
            ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry one_shot_bf16_sum_w8(\n\
             \t.param .align 8 .b8 one_shot_bf16_sum_w8_param_0[200]\n)\n{LAUNCH_BOUNDS}\n{{\n{body}\n\tret;\n}}\n"
        )
    }

    /// The rules that a line in an otherwise clean text breaks; they must point at that line.
    fn broken_by(line: &str) -> Vec<Rule> {
        let findings = lint(&text_with(line));
        for finding in &findings {
            assert_eq!((finding.line, finding.text.as_str()), (10, line.trim()));
        }
        findings.into_iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn a_clean_text_has_no_findings() {
        for line in [
            "\tatom.acq_rel.sys.global.add.u32 %r1, [%rd1], %r2;",
            "\tatom.acq_rel.gpu.global.inc.u32 %r1, [%rd1], %r2;",
            "\tld.acquire.sys.global.u64 %rd1, [%rd2];",
            "\tst.release.sys.global.u32 [%rd2], %r1;",
            "\tst.relaxed.cta.shared.u32 [flags], %r1;",
            "\tfence.acq_rel.sys;",
            "\tadd.rn.f32 %r1, %r2, %r3;",
            "\tmin.f32 %r1, %r2, %r3;",
            "\tcvt.rn.f16.f32 %rs1, %r3;",
            "\tadd.s64 %rd1, %rd2, 16;",
            "\tmad.wide.u32 %rd1, %r2, 16, %rd3;",
            "\tbar.sync \t0;",
            "\tbar.red.or.pred \t%p2, 0, %p1;",
            "\t@%p1 bra $L__BB0_1;",
            "\tadd.s32 %r1, %r2, 1; // call .local .func",
        ] {
            assert_eq!(broken_by(line), [], "{line}");
        }
    }

    #[test]
    fn functions_and_calls_are_found() {
        assert_eq!(broken_by("\tcall.uni (retval0), helper, (param0);"), [Rule::Call]);
        assert_eq!(broken_by("\t@%p1 call helper;"), [Rule::Call]);
        let findings =
            lint(&text_with("").replace(".visible .entry", ".extern .func panic;\n.visible .entry"));
        assert_eq!((findings.len(), findings[0].line, findings[0].rule), (1, 4, Rule::Function));
    }

    #[test]
    fn local_memory_is_found() {
        assert_eq!(broken_by("\t.local .align 4 .b8 \t__local_depot3[32];"), [Rule::Local]);
        assert_eq!(broken_by("\tst.local.b32 \t[%rd1], %r7;"), [Rule::Local]);
    }

    #[test]
    fn atomics_and_fences_without_ordering_or_system_scope_are_found() {
        for line in [
            "\tatom.global.add.u32 %r1, [%rd1], %r2;",
            "\tatom.acq_rel.gpu.global.add.u32 %r1, [%rd1], %r2;",
            "\tatom.sys.global.add.u32 %r1, [%rd1], %r2;",
            "\tred.release.global.add.u32 [%rd1], %r2;",
            "\tfence.sc.gpu;",
            "\tmembar.sys;",
        ] {
            assert_eq!(broken_by(line), [Rule::Scope], "{line}");
        }
    }

    #[test]
    fn strong_accesses_without_system_scope_are_found() {
        assert_eq!(broken_by("\tst.release.gpu.global.u64 [%rd1], %rd2;"), [Rule::StrongScope]);
        assert_eq!(broken_by("\tld.acquire.cta.global.u64 %rd1, [%rd2];"), [Rule::StrongScope]);
    }

    #[test]
    fn what_measures_accesses_may_have_any_scope_and_nothing_else_that_is_against_a_rule() {
        let of = |name: &str, line: &str| {
            let entry = text_with(line).replace("one_shot_bf16_sum_w8", name);
            lint(&entry).into_iter().map(|finding| finding.rule).collect::<Vec<_>>()
        };
        for line in ["\tfence.acq_rel.gpu;", "\tld.relaxed.gpu.global.u64 %rd1, [%rd2];"] {
            assert_eq!(of("floor_fence_gpu", line), [], "{line}");
            assert_eq!(of("one_shot_bf16_sum_w8", line).len(), 1, "{line}");
        }
        assert_eq!(of("floor_fence_gpu", "\tld.volatile.global.u32 %r1, [%rd1];"), [Rule::Volatile]);
    }

    #[test]
    fn volatile_accesses_are_found() {
        assert_eq!(broken_by("\tld.volatile.global.u32 %r1, [%rd1];"), [Rule::Volatile]);
        assert_eq!(broken_by("\tst.volatile.global.u32 [%rd1], %r1;"), [Rule::Volatile]);
    }

    #[test]
    fn inexact_float_arithmetic_is_found() {
        for line in [
            "\tadd.f32 %r1, %r2, %r3;",
            "\tmul.ftz.f32 %r1, %r2, %r3;",
            "\tadd.rn.ftz.f32 %r1, %r2, %r3;",
            "\tadd.rz.f32 %r1, %r2, %r3;",
            "\tadd.rn.f16 %rs1, %rs2, %rs3;",
            "\tdiv.full.f32 %r1, %r2, %r3;",
            "\tmax.ftz.f32 %r1, %r2, %r3;",
        ] {
            assert_eq!(broken_by(line), [Rule::Rounding], "{line}");
        }
        assert_eq!(broken_by("\tfma.rn.f32 %r1, %r2, %r3, %r4;"), [Rule::Contraction]);
        assert_eq!(broken_by("\tmad.rn.f32 %r1, %r2, %r3, %r4;"), [Rule::Contraction]);
    }

    #[test]
    fn other_barriers_are_found() {
        assert_eq!(broken_by("\tbar.sync \t1;"), [Rule::Barrier]);
        assert_eq!(broken_by("\t@%p1 bar.sync \t0;"), [Rule::Barrier]);
        assert_eq!(broken_by("\tbar.red.or.pred \t%p2, 1, %p1;"), [Rule::Barrier]);
        assert_eq!(broken_by("\tbar.red.and.pred \t%p2, 0, %p1;"), [Rule::Barrier]);
        assert_eq!(broken_by("\tbar.red.or.pred \t%p2, 0, 64, %p1;"), [Rule::Barrier]);
        assert_eq!(broken_by("\tbarrier.sync \t0, 64;"), [Rule::Barrier]);
    }

    #[test]
    fn entries_without_launch_bound_or_with_other_parameters_are_found() {
        let rules = |text: &str| {
            lint(text).into_iter().map(|finding| (finding.line, finding.rule)).collect::<Vec<_>>()
        };
        let text = text_with("");
        assert_eq!(rules(&text.replace(".maxntid 512, 1, 1\n", "")), [(4, Rule::LaunchBound)]);
        assert_eq!(rules(&text.replace("512", "1024")), [(4, Rule::LaunchBound)]);
        assert_eq!(rules(&text.replace(".maxnreg 64\n", "")), [(4, Rule::LaunchBound)]);
        assert_eq!(rules(&text.replace("_sum_", "_product_")), [(4, Rule::Entry)]);
        assert_eq!(rules(&text.replace("[200]", "[192]")), [(4, Rule::Entry)]);
        assert_eq!(rules(&text.replace("sm_70", "sm_90")), [(1, Rule::Target)]);
    }

    #[test]
    fn non_coherent_loads_of_what_was_loaded_or_is_written_are_found() {
        let rules =
            |body: &str| lint(&text_with(body)).into_iter().map(|f| (f.line, f.rule)).collect::<Vec<_>>();
        let input = "\tld.param.b64 %rd1, [one_shot_bf16_sum_w8_param_0+144];\n\
                     \tmad.wide.u32 %rd2, %r1, 16, %rd1;\n\tld.global.nc.v4.u32 {%r2, %r3, %r4, %r5}, [%rd2];";
        assert_eq!(rules(input), []);
        let loaded =
            "\tld.param.b64 %rd1, [one_shot_bf16_sum_w8_param_0+144];\n\tld.global.nc.u64 %rd3, [%rd1];";
        assert_eq!(rules(loaded), []);
        let peer = format!(
            "{loaded}\n\tadd.s64 %rd4, %rd3, %rd9;\n\tld.global.nc.v4.u32 {{%r1, %r2, %r3, %r4}}, [%rd4];"
        );
        assert_eq!(rules(&peer), [(13, Rule::NonCoherent)]);
        for other in ["_param_0]", "_param_0+56]", "_param_0+64]", "_param_0+104]", "_param_0+152]"] {
            assert_eq!(rules(&input.replace("_param_0+144]", other)), [(12, Rule::NonCoherent)], "{other}");
        }
        let of_slices = |place: &str| {
            let text = text_with(&input.replace("+144]", place));
            let text = text.replace("one_shot_bf16_sum_w8", "exchange_w8").replace("[200]", "[624]");
            lint(&text).into_iter().map(|f| (f.line, f.rule)).collect::<Vec<_>>()
        };
        for (place, is_sent) in
            [("+200]", true), ("+256]", true), ("+312]", false), ("+152]", false), ("+264]", false)]
        {
            let expected = if is_sent { vec![] } else { vec![(12, Rule::NonCoherent)] };
            assert_eq!(of_slices(place), expected, "{place}");
        }
    }
}
