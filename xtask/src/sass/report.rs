//! The report as Markdown.

use std::fmt::Write as _;

use anyhow::{Result, bail};

use super::{Examined, VectorLoop, by_name};

const DIGEST: &str = "- shipped PTX: sha256 ";
const MADE_BY: &str = "- made by: ";

/// `docs/sass.md`.
pub(super) fn page(kernels: &[Examined], targets: &[String], digest: &str, versions: &str) -> String {
    format!(
        "\
# The kernels as machine code

Made by `cargo xtask sass`; `cargo xtask sass --check` fails when it is stale or a kernel breaks a rule. No GPU is
needed or was used, and nothing here is a time.

{DIGEST}{digest}
{MADE_BY}{versions}

**Rules.** A warp issues in order and waits where it first needs what a load has not brought yet. So every loop that
reduces issues all its 128-bit loads before the first float operation that needs one: one load a rank in one-shot and
two-shot; in the hybrid cube mesh one a rank of the quad, then those of two partial results in fp32 (two vectors each, one
with f32). At most 64 registers, no stack, no spills, and two blocks of 512 threads on a multiprocessor.

**How it is read.** Destinations and sources of every instruction are followed through one pass of a loop, on all its paths;
a load that some path leaves out is not counted. sm_70 is read as sm_75: the disassembler no longer takes sm_70, and the
encoding is the same (`xtask/src/sass/mod.rs` says how that was compared).

**Columns.** Registers of a thread; shared memory of a block in bytes; SASS instructions without padding; blocks of 512
threads that a multiprocessor holds by the documented limits of registers, threads, blocks and shared memory. Then one entry
for each loop with 128-bit loads, in the order of the code: `address: instructions on all its paths`, and for one that
reduces `loads before the first float operation / before the first instruction of any kind that needs one`, for one that only
moves the loads it has on all paths (the input is read by either of two predicated forms). Then the addresses of the fences, by
scope, also of those that only a call which fails comes through; [path.md](path.md) counts those on the way to the result.

{}",
        tables(kernels, targets)
    )
}

/// One table a target.
pub(super) fn tables(kernels: &[Examined], targets: &[String]) -> String {
    let mut text = String::new();
    for target in targets {
        let lines: String = by_name(kernels, target).values().map(|kernel| line(kernel)).collect();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{}## {target}\n\n\
             | kernel | registers | stack + spills | shared | instructions | blocks | loops that reduce | loops that move | system fences | GPU fences |\n\
             |---|---|---|---|---|---|---|---|---|---|\n{lines}",
            if text.is_empty() { "" } else { "\n" }
        );
    }
    text
}

fn line(kernel: &Examined) -> String {
    let of = &kernel.assembled;
    let spilled = of.stack_bytes + of.spill_store_bytes + of.spill_load_bytes;
    let (reducing, moving): (Vec<&VectorLoop>, Vec<_>) =
        kernel.loops.iter().partition(|found| found.reduced > 0);
    let reducing = joined(&reducing, |found| format!("{} / {}", found.before_operation, found.before_use));
    let moving = joined(&moving, |found| found.loads.to_string());
    let mark = if kernel.broken.is_empty() { "" } else { " **broken**" };
    format!(
        "| {}{mark} | {} | {spilled} | {} | {} | {} | {reducing} | {moving} | {} | {} |\n",
        of.kernel,
        of.registers,
        of.shared_bytes,
        of.sass_instructions,
        kernel.blocks_per_multiprocessor,
        addresses(&kernel.fences.system),
        addresses(&kernel.fences.gpu)
    )
}

fn addresses(all: &[u32]) -> String {
    let all: Vec<String> = all.iter().map(|address| format!("{address:#x}")).collect();
    all.join(", ")
}

fn joined(loops: &[&VectorLoop], loads: impl Fn(&VectorLoop) -> String) -> String {
    let all: Vec<String> = loops
        .iter()
        .map(|found| format!("{:#x}: {}, {}", found.address, found.instructions, loads(found)))
        .collect();
    all.join("; ")
}

/// Fails when a page is of other PTX.
pub(super) fn check_digest(page: &str, digest: &str) -> Result<()> {
    match page.lines().find_map(|line| line.strip_prefix(DIGEST)) {
        Some(recorded) if recorded == digest => Ok(()),
        Some(_) => bail!("docs/sass.md is stale: it is of other PTX; `cargo xtask sass` makes it anew"),
        None => bail!("docs/sass.md is not there or says of no PTX; `cargo xtask sass` makes it"),
    }
}

/// Whether a page was made by tools of these versions.
pub(super) fn is_by(page: &str, versions: &str) -> bool {
    page.lines().any(|line| line.strip_prefix(MADE_BY) == Some(versions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_stale_when_it_is_of_other_ptx() {
        let page = page(&[], &["sm_90".to_owned()], "abc", "ptxas 1 and nvdisasm 2");
        assert!(check_digest(&page, "abc").is_ok());
        assert!(check_digest(&page, "abd").unwrap_err().to_string().contains("other PTX"));
        assert!(check_digest("", "abc").is_err());
        assert!(is_by(&page, "ptxas 1 and nvdisasm 2") && !is_by(&page, "ptxas 1 and nvdisasm 3"));
        assert!(page.contains("## sm_90"));
    }
}
