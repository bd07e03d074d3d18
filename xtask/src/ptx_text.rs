//! From the compiler's one PTX text to the checked-in ones: cleaned, split by algorithm and world size, given launch
//! bounds, and stamped with a header.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context as _, Result, bail};
use meshreduce_wire::{Algorithm, DType, Isa, KernelName, MAX_RANKS, MIN_RANKS, Op, TextName};
use sha2::{Digest as _, Sha256};

const MAGIC: &str = "// meshreduce PTX 1";
const COMPILER: &str = "// compiler: ";
const SOURCES: &str = "// sources: sha256 ";
const TEXT: &str = "// text: sha256 ";

/// What every entry promises: blocks of at most [`meshreduce_wire::MAX_THREADS`] threads. And what the assembler may
/// take: 64 registers a thread are what lets two such blocks fit a multiprocessor, and `cargo xtask ptxas` holds it to
/// them. ptxas orders instructions against the bound before it allocates; `cargo xtask sass` finds out where it therefore
/// delays loads. The compiler has no attribute for either.
pub(crate) const LAUNCH_BOUNDS: &str = ".maxntid 512, 1, 1\n.maxnreg 64";

const _: () = assert!(meshreduce_wire::MAX_THREADS == 512);

/// Reads the name of a kernel entry; `None` if it is not one.
pub(crate) fn parse_name(name: &str) -> Option<KernelName> {
    let isa = Isa::ALL.into_iter().rev().find(|isa| name.ends_with(isa.suffix()))?;
    let base = name.strip_suffix(isa.suffix())?;
    let for_all = Algorithm::every()
        .find(|algorithm| algorithm.serves_all_world_sizes() && algorithm.kernel_name() == base);
    if let Some(algorithm) = for_all {
        // It holds of them all what holds of the most.
        let text = TextName { algorithm, world_size: MAX_RANKS, isa };
        return Some(KernelName::new(text, DType::Bf16, Op::Sum));
    }
    let (rest, ranks) = base.rsplit_once("_w")?;
    let world_size = ranks.parse().ok().filter(|ranks| (MIN_RANKS..=MAX_RANKS).contains(ranks))?;
    let algorithm = Algorithm::every()
        .filter(|algorithm| rest.starts_with(algorithm.kernel_name()))
        .max_by_key(|algorithm| algorithm.kernel_name().len())?;
    let text = TextName { algorithm, world_size, isa };
    let mut all = DType::ALL.into_iter().flat_map(|dtype| Op::ALL.map(|op| KernelName::new(text, dtype, op)));
    all.find(|known| known.to_string() == name)
}

/// Entries of a text.
pub(crate) fn entries(text: TextName) -> usize {
    if text.algorithm.has_kernel_per_kind() { DType::ALL.len() * [Op::Sum, Op::Max].len() } else { 1 }
}

/// The kernels that measure the floor, in the order of their names, and the file that they go to, without `.ptx`.
pub(crate) const FLOOR: [&str; 17] = [
    "floor_arithmetic",
    "floor_atomic_gpu",
    "floor_atomic_sys",
    "floor_barrier",
    "floor_empty",
    "floor_fence_gpu",
    "floor_fence_sys",
    "floor_load_acquire_sys",
    "floor_load_gpu",
    "floor_load_l1",
    "floor_load_memory",
    "floor_load_sys",
    "floor_ping_pong",
    "floor_ping_pong_relaxed",
    "floor_store_fence_gpu",
    "floor_store_fence_sys",
    "floor_timer",
];
/// The file of [`FLOOR`].
pub(crate) const FLOOR_STEM: &str = "floor";

/// The file that an entry goes to, without `.ptx`; `None` if that is not the name of a kernel.
fn file_stem(name: &str) -> Option<String> {
    match parse_name(name) {
        Some(entry) => Some(entry.text.to_string()),
        None => FLOOR.contains(&name).then(|| FLOOR_STEM.to_owned()),
    }
}

/// Splits the compiler's text into one text per file, by file stem: one per algorithm and world size,
/// and one of the floor.
///
/// Every text has the module's directives and shared variables and, with launch bounds, its own entries in the order
/// of their names. Functions that are no entries are left out: no entry calls any (the lint checks that). Comment
/// lines and empty lines are left out.
pub(crate) fn split(compiled: &str) -> Result<BTreeMap<String, String>> {
    let mut preamble = String::new();
    let mut entries = BTreeMap::new();
    let mut lines = compiled
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.trim_start().is_empty() && !line.trim_start().starts_with("//"));
    while let Some(line) = lines.next() {
        if line.ends_with(';')
            || line.starts_with(".version")
            || line.starts_with(".target")
            || line.starts_with(".address_size")
        {
            writeln!(preamble, "{line}")?;
            continue;
        }
        if !line.contains(".entry ") && !line.contains(".func ") {
            bail!("unexpected at module scope: `{line}`");
        }
        let mut body = String::new();
        let mut next = Some(line);
        loop {
            let line = next.with_context(|| format!("the body of `{line}` does not end"))?;
            if line == "{" {
                writeln!(body, "{LAUNCH_BOUNDS}")?;
            }
            writeln!(body, "{line}")?;
            if line == "}" {
                break;
            }
            next = lines.next();
        }
        if let Some((_, rest)) = line.split_once(".entry ") {
            let name = rest.trim_end_matches('(');
            let stem = file_stem(name).with_context(|| format!("`{name}` is not the name of a kernel"))?;
            entries.insert((stem, name.to_owned()), body);
        }
    }
    let mut texts = BTreeMap::new();
    for ((stem, _), body) in entries {
        let text: &mut String = texts.entry(stem).or_insert_with(|| preamble.clone());
        write!(text, "\n{body}")?;
    }
    Ok(texts)
}

/// What a text's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The compiler, as [`crate::toolchain::Toolchain::identity`] gives it.
    pub(crate) compiler: String,
    /// Digest of the sources, in hexadecimal.
    pub(crate) sources: String,
    /// Digest of the text behind the header, in hexadecimal.
    pub(crate) text: String,
}

/// Puts a header before a text.
pub(crate) fn stamp(text: &str, compiler: &str, sources: &str) -> String {
    let digest = sha256(text.as_bytes());
    format!("{MAGIC}\n{COMPILER}{compiler}\n{SOURCES}{sources}\n{TEXT}{digest}\n\n{text}")
}

/// Takes a text's header off and checks the text's digest.
pub(crate) fn unstamp(stamped: &str) -> Result<(Stamp, &str)> {
    let (header, text) = stamped.split_once("\n\n").context("there is no header")?;
    let mut lines = header.lines();
    if lines.next() != Some(MAGIC) {
        bail!("the first line is not `{MAGIC}`");
    }
    let mut field = |prefix: &str| {
        let value = lines.next().and_then(|line| line.strip_prefix(prefix));
        value.map(str::to_owned).with_context(|| format!("the header has no line `{prefix}`"))
    };
    let stamp = Stamp { compiler: field(COMPILER)?, sources: field(SOURCES)?, text: field(TEXT)? };
    let digest = sha256(text.as_bytes());
    if digest != stamp.text {
        bail!("the text was edited: its digest is {digest}, the header says {}", stamp.text);
    }
    Ok((stamp, text))
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPILED: &str = "\
//
// Generated by LLVM
//

.version 7.0
.target sm_70
.address_size 64
.shared .align 4 .b8 flags[12];

\t// .globl\tbegin_unwind
.visible .func begin_unwind(
\t.param .b64 p
)
.noreturn
{
$L__BB0_1:
\tbra.uni \t$L__BB0_1;
}
.visible .entry one_shot_f32_sum_w3(
\t.param .align 8 .b8 one_shot_f32_sum_w3_param_0[56]
)
{
\t// begin inline asm
\tret;
}
.visible .entry one_shot_bf16_sum_w2(
\t.param .align 8 .b8 one_shot_bf16_sum_w2_param_0[56]
)
{
\tret;
}
.visible .entry one_shot_bf16_max_w2(
\t.param .align 8 .b8 one_shot_bf16_max_w2_param_0[56]
)
{
\tret;
}
";

    #[test]
    fn a_text_is_split_by_algorithm_and_world_size() {
        let texts = split(COMPILED).unwrap();
        assert_eq!(texts.keys().collect::<Vec<_>>(), ["one_shot_w2", "one_shot_w3"]);
        assert_eq!(
            texts["one_shot_w3"],
            ".version 7.0\n.target sm_70\n.address_size 64\n.shared .align 4 .b8 flags[12];\n\n\
             .visible .entry one_shot_f32_sum_w3(\n\t.param .align 8 .b8 one_shot_f32_sum_w3_param_0[56]\n)\n\
             .maxntid 512, 1, 1\n.maxnreg 64\n{\n\tret;\n}\n"
        );
        let (max, sum) = (texts["one_shot_w2"].find("_max_"), texts["one_shot_w2"].find("_sum_"));
        assert!(max.unwrap() < sum.unwrap(), "entries are in the order of their names");
        assert!(!texts["one_shot_w2"].contains("unwind"), "functions that are no entries are left out");
    }

    #[test]
    fn what_cannot_be_split_is_refused() {
        let misnamed = COMPILED.replace("one_shot_f32_sum_w3", "one_shot_f64_sum_w3");
        assert!(split(&misnamed).unwrap_err().to_string().contains("one_shot_f64_sum_w3"));
        let cut = COMPILED.trim_end().trim_end_matches('}');
        assert!(split(cut).unwrap_err().to_string().contains("does not end"));
        assert!(split(".pragma \"nounroll\"").unwrap_err().to_string().contains("module scope"));
    }

    #[test]
    fn a_stamp_survives_the_round_trip() {
        let stamped = stamp("ret;\n\nret;\n", "rustc 1", "abc");
        let (found, text) = unstamp(&stamped).unwrap();
        assert_eq!(
            (found.compiler.as_str(), found.sources.as_str(), text),
            ("rustc 1", "abc", "ret;\n\nret;\n")
        );
    }

    #[test]
    fn an_edited_text_is_refused() {
        let stamped = stamp("add.rn.f32 a, b, c;\n", "rustc 1", "abc");
        let edited = stamped.replace("add", "sub");
        assert!(unstamp(&edited).unwrap_err().to_string().contains("edited"));
        assert!(unstamp("add.rn.f32 a, b, c;\n").is_err());
        assert!(
            unstamp(&stamped.replace("// sources", "// source")).unwrap_err().to_string().contains("sources")
        );
    }

    #[test]
    fn entry_names_parse_back_and_nothing_else_does() {
        for (isa, suffix) in [(Isa::V70, ""), (Isa::V84, "_b128")] {
            for (algorithm, name, stem, count) in [
                (Algorithm::TwoShot, "two_shot_f16_max_w8", "two_shot_w8", 6),
                (Algorithm::OneShotLl, "one_shot_ll_w8", "one_shot_ll_w8", 1),
                (Algorithm::ReduceScatter, "reduce_scatter_w8", "reduce_scatter_w8", 1),
                (Algorithm::ExchangeLl, "exchange_ll_w8", "exchange_ll_w8", 1),
            ] {
                let text = TextName { algorithm, world_size: 8, isa };
                let known = KernelName::new(text, DType::F16, Op::Min);
                assert_eq!(known.to_string(), format!("{name}{suffix}"));
                assert_eq!(text.to_string(), format!("{stem}{suffix}"));
                assert_eq!(entries(text), count);
                assert_eq!(parse_name(&known.to_string()), Some(known));
            }
        }
        for wrong in [
            "one_shot_bf16_sum_w9",
            "one_shot_bf16_avg_w8",
            "one_shot_bf16_min_w8",
            "one_shot_bf16_sum_w08",
            "one_shot_bf16_sum",
            "one_shot_ll_bf16_sum_w8",
            "one_shot_ll_w8_b64",
            "one_shot_w8",
            "reduce_scatter_bf16_sum_w8",
        ] {
            assert_eq!(parse_name(wrong), None, "{wrong}");
        }
    }
}
