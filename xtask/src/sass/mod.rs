//! `cargo xtask sass`: what the assembler makes of the kernels, read from the machine code: registers, instructions,
//! loops, loads in flight, fences, occupancy. `docs/sass.md` is its output.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use meshreduce_wire::{Algorithm, DType, KernelName, Op};
use serde::Serialize;
use xshell::{Shell, cmd};

use crate::{
    nvidia_tools::{NVDISASM, PTXAS},
    ptx_text::{self, parse_name},
    ptxas::{self, Assembled, TARGETS},
    repository,
};

mod disassembly;
mod fences;
mod flow;
mod loads;
mod occupancy;
mod report;
mod waits;

use disassembly::Instruction;
use fences::Fences;
use loads::VectorLoop;

/// Read the kernels' machine code: loads in flight, loops, fences, registers, occupancy.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail when docs/sass.md is stale or a kernel breaks a rule.
    #[arg(long)]
    check: bool,
    /// One JSON object a kernel and target on standard output; docs/sass.md is left as it is.
    #[arg(long)]
    json: bool,
    /// Targets, separated by commas, for a look: tables on standard output; docs/sass.md is left as it is. With --check the rules
    /// on these alone, and of docs/sass.md only whether it is of the shipped PTX.
    #[arg(long, value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    target: Vec<String>,
    /// Fail when ptxas or nvdisasm is not there, instead of only saying so.
    #[arg(long)]
    required: bool,
}

/// A kernel on a target.
#[derive(Clone, Debug, Serialize)]
struct Examined {
    #[serde(flatten)]
    assembled: Assembled,
    /// Blocks of 512 threads that a multiprocessor holds.
    blocks_per_multiprocessor: u32,
    /// Loops with 128-bit loads, in the order of addresses.
    loops: Vec<VectorLoop>,
    /// Where it waits for memory.
    fences: Fences,
    /// Rules that it breaks.
    broken: Vec<String>,
}

/// The programs that made a report.
struct Tools {
    ptxas: PathBuf,
    nvdisasm: PathBuf,
    /// Their versions, in words.
    versions: String,
}

impl Args {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<ExitCode> {
        let shell = Shell::new()?;
        let page = repository::root().join("docs/sass.md");
        let files = repository::ptx_files(&repository::shipped_ptx())?;
        let digest = digest(&files)?;
        let recorded = fs::read_to_string(&page).unwrap_or_default();
        if self.check {
            report::check_digest(&recorded, &digest)?;
            println!("docs/sass.md is of the shipped PTX");
        }
        let Some(tools) = Tools::find(&shell)? else {
            return Ok(if self.required { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        };
        let looks = self.json || !self.target.is_empty();
        let targets = if self.target.is_empty() { TARGETS.map(str::to_owned).to_vec() } else { self.target };
        let kernels = examine(&tools, &files, &targets)?;
        if self.json {
            for kernel in &kernels {
                println!("{}", serde_json::to_string(kernel)?);
            }
        } else if looks && self.check {
            println!("docs/sass.md is compared with all targets only");
        } else if looks {
            println!("{}", report::tables(&kernels, &targets));
        } else {
            let text = report::page(&kernels, &targets, &digest, &tools.versions);
            if !self.check {
                fs::write(&page, text)?;
                println!("docs/sass.md: {} kernels x targets, by {}", kernels.len(), tools.versions);
            } else if !report::is_by(&recorded, &tools.versions) {
                println!("NOT compared: docs/sass.md was made by other versions than {}", tools.versions);
            } else if text != recorded {
                bail!("docs/sass.md is stale; `cargo xtask sass` makes it anew");
            } else {
                println!("docs/sass.md is what {} give", tools.versions);
            }
        }
        let mut broken = 0;
        for kernel in kernels.iter().filter(|kernel| !kernel.broken.is_empty()) {
            let Assembled { kernel: name, target, .. } = &kernel.assembled;
            eprintln!("{name} on {target}: {}", kernel.broken.join("; "));
            broken += 1;
        }
        if broken > 0 {
            eprintln!("{broken} of {} kernels x targets break a rule", kernels.len());
            return Ok(ExitCode::FAILURE);
        }
        if !self.json {
            println!(
                "{} kernels x targets issue every load that a reduction needs before its first float operation, and tell of another launch before they meet",
                kernels.len()
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Tools {
    /// The tools; `None`, and said aloud, if one is not there.
    fn find(shell: &Shell) -> Result<Option<Self>> {
        let (ptxas, nvdisasm) = (PTXAS.find(shell)?, NVDISASM.find(shell)?);
        for (tool, found) in [(PTXAS, &ptxas), (NVDISASM, &nvdisasm)] {
            if found.is_none() {
                eprintln!("NOT CHECKED: {} is not there\n{}", tool.name, tool.how_to_get_it);
            }
        }
        let (Some(ptxas), Some(nvdisasm)) = (ptxas, nvdisasm) else { return Ok(None) };
        let versions = format!(
            "ptxas {} and nvdisasm {}",
            PTXAS.version(shell, &ptxas)?,
            NVDISASM.version(shell, &nvdisasm)?
        );
        Ok(Some(Self { ptxas, nvdisasm, versions }))
    }
}

/// One digest of the texts, by names and contents. The headers are left out: the code does not depend on them.
fn digest(files: &[PathBuf]) -> Result<String> {
    let mut all = String::new();
    for file in files {
        let stamped = fs::read_to_string(file)?;
        let (stamp, _) = ptx_text::unstamp(&stamped).with_context(|| repository::shown(file))?;
        all += &format!("{} {}\n", file.file_name().unwrap_or_default().to_string_lossy(), stamp.text);
    }
    Ok(ptx_text::sha256(all.as_bytes()))
}

fn examine(tools: &Tools, files: &[PathBuf], targets: &[String]) -> Result<Vec<Examined>> {
    ptxas::for_each_text(files, targets, |shell, file, target, cubin| {
        let assembled = ptxas::assemble_one(shell, &tools.ptxas, file, target, cubin)?;
        let code = disassemble(shell, &tools.nvdisasm, target, cubin)
            .and_then(|text| disassembly::parse(&text))
            .with_context(|| format!("reading the code of {} for {target}", repository::shown(file)))?;
        let examine = |kernel: Assembled| {
            let code = code.get(&kernel.kernel).with_context(|| format!("no code of {}", kernel.kernel))?;
            Examined::new(kernel, code)
        };
        assembled.into_iter().map(examine).collect()
    })
}

/// The text of a cubin's code.
///
/// nvdisasm from CUDA 13.1 on refuses sm_70 and still reads sm_75, whose encoding is the same for what ptxas makes of
/// these kernels: of the 135 kernels for sm_70 of that day, nvdisasm 12.4, which reads them as they are, and 13.5, which is told that
/// they are for sm_75, print the same 100,880 instructions. So the cubin says sm_75 while it is read.
fn disassemble(shell: &Shell, nvdisasm: &Path, target: &str, cubin: &Path) -> Result<String> {
    if target == "sm_70" {
        let mut bytes = fs::read(cubin)?;
        relabel(&mut bytes)?;
        fs::write(cubin, bytes)?;
    }
    Ok(cmd!(shell, "{nvdisasm} -c {cubin}").quiet().ignore_stderr().read()?)
}

/// Makes a cubin for sm_70 say that it is for sm_75.
fn relabel(cubin: &mut [u8]) -> Result<()> {
    /// Where a 64-bit ELF header has its flags. In a cubin the lowest byte is the target, the third the virtual one.
    const FLAGS: usize = 48;
    for at in [FLAGS, FLAGS + 2] {
        match cubin.get_mut(at) {
            Some(architecture @ 70) => *architecture = 75,
            found => bail!("the cubin's flags do not say sm_70 but {found:?}"),
        }
    }
    Ok(())
}

impl Examined {
    fn new(assembled: Assembled, code: &[Instruction]) -> Result<Self> {
        let (loops, fences) = (loads::vector_loops(code), Fences::of(code));
        let name = &assembled.kernel;
        let entry = parse_name(name).with_context(|| format!("{name} is no kernel's name"))?;
        let blocks_per_multiprocessor =
            occupancy::blocks(&assembled.target, assembled.registers, assembled.shared_bytes)
                .with_context(|| format!("the limits of {} are not known", assembled.target))?;
        let mut broken = broken(entry, &loops);
        if !assembled.ok {
            broken.push("too many registers, a stack, or spills".to_owned());
        }
        let late = waits::late(code);
        if !late.is_empty() {
            broken.push(format!("who gives up a wait meets others before telling it: loops at {late:x?}"));
        }
        if blocks_per_multiprocessor < 2 {
            broken.push("two blocks do not fit a multiprocessor".to_owned());
        }
        Ok(Self { assembled, blocks_per_multiprocessor, loops, fences, broken })
    }
}

/// The 128-bit loads that each reducing loop of a kernel, or each that polls packets, must have in flight, in the order of
/// phases.
fn expected(entry: KernelName) -> Vec<u32> {
    match entry.text.algorithm {
        // A quad of ranks, then two partial results in fp32, each one vector or two.
        Algorithm::HybridCubeMeshLl | Algorithm::CubeMeshExchangeLl => vec![4, 4],
        // A quad's of the relay's slice, of the own one, and the other quad's partial result.
        Algorithm::CubeMeshReduceScatterLl => vec![4, 4, 2],
        Algorithm::HybridCubeMesh => {
            vec![4, if entry.reduces.is_some_and(|(dtype, _)| dtype == DType::F32) { 2 } else { 4 }]
        }
        Algorithm::TwoShotLl => vec![entry.text.world_size as u32; 2],
        // A loop for each type and operation.
        Algorithm::ReduceScatter => {
            vec![entry.text.world_size as u32; DType::ALL.len() * [Op::Sum, Op::Max].len()]
        }
        _ => vec![entry.text.world_size as u32],
    }
}

/// What is wrong with the loops of a kernel.
fn broken(entry: KernelName, loops: &[VectorLoop]) -> Vec<String> {
    let expected = expected(entry);
    if entry.text.algorithm.is_by_packets() {
        // All are issued before any is looked at: one that is looked at first would have more behind.
        let under_way = |found: &VectorLoop| match entry.text.algorithm.serves_all_world_sizes() {
            // Ranks that do not exist are not asked.
            true => found.passed_before_use,
            false => found.before_use,
        };
        let polling = loops.iter().filter(|found| found.loads > 1 && under_way(found) == found.loads);
        let found: Vec<u32> = polling.map(|found| found.loads).collect();
        let wrong = (found != expected).then(|| {
            format!("loops that poll with {found:?} loads under way where {expected:?} were expected")
        });
        return wrong.into_iter().collect();
    }
    if entry.text.algorithm == Algorithm::Exchange {
        // Nothing is computed. Its loops take whole vectors of all ranks or ragged ones of each, so that no number of loads is
        // under way on every path.
        return Vec::new();
    }
    let reducing: Vec<&VectorLoop> = loops.iter().filter(|found| found.reduced > 0).collect();
    if reducing.len() != expected.len() {
        return vec![format!("{} reducing loops where {} were expected", reducing.len(), expected.len())];
    }
    let wrong = reducing
        .into_iter()
        .zip(expected)
        .filter(|(found, expected)| found.reduced != *expected || found.before_operation != *expected);
    wrong
        .map(|(found, expected)| {
            format!(
                "the loop at {:#x} issues {} of its {} loads before the first float operation that needs one, not {expected}",
                found.address, found.before_operation, found.reduced
            )
        })
        .collect()
}

/// Kernels of one target, by name.
fn by_name<'a>(kernels: &'a [Examined], target: &str) -> BTreeMap<&'a str, &'a Examined> {
    let of_target = kernels.iter().filter(|kernel| kernel.assembled.target == target);
    of_target.map(|kernel| (kernel.assembled.kernel.as_str(), kernel)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reducing(reduced: u32, before_operation: u32) -> VectorLoop {
        VectorLoop {
            address: 0x40,
            instructions: 9,
            loads: reduced,
            stores: 1,
            reduced,
            before_operation,
            before_use: before_operation,
            passed_before_use: before_operation,
        }
    }

    fn judge(name: &str, loops: &[VectorLoop]) -> usize {
        broken(parse_name(name).unwrap(), loops).len()
    }

    #[test]
    fn every_rank_must_be_read_before_the_first_addition() {
        let moving = VectorLoop { reduced: 0, ..reducing(3, 0) };
        assert_eq!(judge("two_shot_f16_sum_w3", &[moving.clone(), reducing(3, 3), moving.clone()]), 0);
        assert_eq!(judge("two_shot_f16_sum_w3", &[reducing(3, 2)]), 1);
        assert_eq!(judge("two_shot_f16_sum_w3", &[reducing(2, 2)]), 1);
        assert_eq!(judge("two_shot_f16_sum_w3", &[moving]), 1, "a kernel without a reducing loop");
        let each = |before| [3, 3, 3, 3, 3, before].map(|before| reducing(3, before));
        assert_eq!(judge("reduce_scatter_w3", &each(3)), 0);
        assert_eq!(judge("reduce_scatter_w3", &each(1)), 1);
        assert_eq!(judge("reduce_scatter_w3", &[reducing(3, 3)]), 1, "a type or an operation is missing");
    }

    #[test]
    fn a_cube_mesh_reads_its_quad_and_then_two_partial_results() {
        assert_eq!(judge("hybrid_cube_mesh_bf16_max_w8", &[reducing(4, 4), reducing(4, 4)]), 0);
        assert_eq!(judge("hybrid_cube_mesh_f32_max_w8", &[reducing(4, 4), reducing(2, 2)]), 0);
        assert_eq!(judge("hybrid_cube_mesh_f32_max_w8", &[reducing(4, 4)]), 1);
        assert_eq!(judge("hybrid_cube_mesh_f32_max_w8", &[reducing(4, 3), reducing(2, 1)]), 2);
    }

    #[test]
    fn only_a_cubin_for_sm_70_is_relabelled() {
        let mut cubin = vec![0; 64];
        (cubin[48], cubin[49], cubin[50]) = (70, 5, 70);
        relabel(&mut cubin).unwrap();
        assert_eq!(cubin[48..51], [75, 5, 75]);
        assert!(relabel(&mut cubin).is_err());
        assert!(relabel(&mut [70; 8]).is_err());
    }
}
