//! `cargo xtask ptxas`: NVIDIA's own assembler judges the PTX: registers, stack and spills of every kernel on every
//! target.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use object::{Object as _, ObjectSection as _};
use rayon::prelude::*;
use serde::Serialize;
use xshell::{Shell, cmd};

use crate::{nvidia_tools::PTXAS, repository};

/// The targets: V100, A100, H100, B200.
pub(crate) const TARGETS: [&str; 4] = ["sm_70", "sm_80", "sm_90", "sm_100"];

/// At this many registers and 512 threads a block, two blocks fit a multiprocessor.
const MOST_REGISTERS: u32 = 64;

/// Assemble PTX with NVIDIA's ptxas and check registers, stack and spills.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Texts to assemble. Default: the checked-in ones.
    files: Vec<PathBuf>,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Fail when ptxas is not there, instead of only saying so.
    #[arg(long)]
    required: bool,
}

impl Args {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<ExitCode> {
        let shell = Shell::new()?;
        let Some(ptxas) = PTXAS.find(&shell)? else {
            eprintln!("NOT CHECKED: ptxas is not there\n{}", PTXAS.how_to_get_it);
            return Ok(if self.required { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        };
        let files = if self.files.is_empty() { repository::all_ptx()? } else { self.files };
        let kernels = assemble(&ptxas, &files)?;
        if self.json {
            for kernel in &kernels {
                println!("{}", serde_json::to_string(kernel)?);
            }
        } else {
            println!("{}", table(&kernels));
        }
        let broken = kernels.iter().filter(|kernel| !kernel.ok).count();
        if broken > 0 {
            eprintln!(
                "{broken} of {} kernels break the limits: at most {MOST_REGISTERS} registers, no stack, no spills",
                kernels.len()
            );
        } else if !self.json {
            println!(
                "{} kernels x targets: at most {MOST_REGISTERS} registers, no stack, no spills",
                kernels.len()
            );
        }
        Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// A kernel on a target, as assembled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Assembled {
    pub(crate) kernel: String,
    pub(crate) target: String,
    /// Registers of a thread.
    pub(crate) registers: u32,
    pub(crate) stack_bytes: u32,
    pub(crate) spill_store_bytes: u32,
    pub(crate) spill_load_bytes: u32,
    /// Shared memory of a block, in bytes.
    pub(crate) shared_bytes: u32,
    /// Machine instructions, the padding at the end not counted.
    pub(crate) sass_instructions: u32,
    /// At most 64 registers, no stack, no spills.
    pub(crate) ok: bool,
}

fn assemble(ptxas: &Path, files: &[PathBuf]) -> Result<Vec<Assembled>> {
    let targets = TARGETS.map(str::to_owned);
    for_each_text(files, &targets, |shell, file, target, cubin| {
        assemble_one(shell, ptxas, file, target, cubin)
    })
}

/// Does `work` for every text and every target that it runs on, several at once, each with a shell and the path of a cubin of its
/// own. What it gives is in the order of texts, then of targets.
pub(crate) fn for_each_text<T: Send>(
    files: &[PathBuf],
    targets: &[String],
    work: impl Fn(&Shell, &Path, &str, &Path) -> Result<Vec<T>> + Sync,
) -> Result<Vec<T>> {
    let mut pairs = Vec::new();
    for file in files {
        for target in targets {
            if runs_on(file, target)? {
                pairs.push((file, target));
            }
        }
    }
    let progress = ProgressBar::new(pairs.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?);
    let scratch = tempfile::tempdir()?;
    let found = pairs
        .par_iter()
        .enumerate()
        .map(|(index, (file, target))| {
            progress.set_message(format!("{} for {target}", repository::shown(file)));
            let cubin = scratch.path().join(format!("{index}.cubin"));
            let found = work(&Shell::new()?, file, target, &cubin)?;
            fs::remove_file(&cubin).with_context(|| format!("removing {}", cubin.display()))?;
            progress.inc(1);
            Ok(found)
        })
        .collect::<Result<Vec<_>>>()?;
    progress.finish_and_clear();
    Ok(found.into_iter().flatten().collect())
}

/// Whether a text is for this target or an earlier one.
pub(crate) fn runs_on(file: &Path, target: &str) -> Result<bool> {
    let number =
        |target: &str| target.trim_start_matches("sm_").trim_end_matches(['a', 'f']).parse::<u32>().ok();
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", repository::shown(file)))?;
    let own = text.lines().find_map(|line| line.strip_prefix(".target "));
    // Of a text that does not say so, ptxas knows what is wrong.
    Ok(own.and_then(number).is_none_or(|own| number(target).is_none_or(|target| target >= own)))
}

/// Assembles one text for one target to `cubin`. Kernels are in the order of their names.
pub(crate) fn assemble_one(
    shell: &Shell,
    ptxas: &Path,
    file: &Path,
    target: &str,
    cubin: &Path,
) -> Result<Vec<Assembled>> {
    let output =
        cmd!(shell, "{ptxas} -v -arch={target} {file} -o {cubin}").quiet().ignore_status().output()?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("ptxas refuses {} for {target}:\n{log}", repository::shown(file));
    }
    let instructions = instructions(&fs::read(cubin)?)?;
    let found = parse(&log, target, &instructions)
        .with_context(|| format!("reading what ptxas says about {}", repository::shown(file)))?;
    if found.is_empty() {
        bail!("ptxas found no kernel in {}", repository::shown(file));
    }
    Ok(found)
}

/// Reads the log of `ptxas -v`.
fn parse(log: &str, target: &str, instructions: &BTreeMap<String, u32>) -> Result<Vec<Assembled>> {
    let mut kernels = Vec::new();
    let mut kernel = None;
    let mut frame = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().map(str::to_owned);
        } else if line.contains("bytes stack frame") {
            let mut sizes = line.split(',').map(|part| number_before(part, " bytes"));
            frame = Some([sizes.next(), sizes.next(), sizes.next()].map(Option::flatten));
        } else if let Some(registers) =
            line.split_once("Used ").and_then(|(_, rest)| number_before(rest, " registers"))
        {
            let name = kernel.take().context("registers of no kernel")?;
            let Some([Some(stack_bytes), Some(spill_store_bytes), Some(spill_load_bytes)]) = frame.take()
            else {
                bail!("no stack size of {name}");
            };
            let sass_instructions =
                *instructions.get(&name).with_context(|| format!("no machine code of {name}"))?;
            kernels.push(Assembled {
                kernel: name,
                target: target.to_owned(),
                registers,
                stack_bytes,
                spill_store_bytes,
                spill_load_bytes,
                shared_bytes: line
                    .split(',')
                    .find_map(|part| number_before(part, " bytes smem"))
                    .unwrap_or(0),
                sass_instructions,
                ok: registers <= MOST_REGISTERS && stack_bytes + spill_store_bytes + spill_load_bytes == 0,
            });
        }
    }
    kernels.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    Ok(kernels)
}

fn number_before(text: &str, unit: &str) -> Option<u32> {
    text.split_once(unit)?.0.trim().parse().ok()
}

/// Machine instructions of every kernel in a cubin: the 16-byte words of its `.text.{kernel}` section that are not NOP.
/// (No disassembler is needed, and NVIDIA's newer ones do not read sm_70.)
fn instructions(cubin: &[u8]) -> Result<BTreeMap<String, u32>> {
    /// The low 12 bits of a NOP, from sm_70 on.
    const NOP: u16 = 0x918;
    let file = object::File::parse(cubin).context("reading the cubin")?;
    let mut counts = BTreeMap::new();
    for section in file.sections() {
        if let Some(kernel) = section.name()?.strip_prefix(".text.") {
            let words = section.data()?.chunks_exact(16);
            let count = words.filter(|word| u16::from_le_bytes([word[0], word[1]]) & 0xfff != NOP).count();
            counts.insert(kernel.to_owned(), count as u32);
        }
    }
    Ok(counts)
}

/// One line a kernel, one column a target.
fn table(kernels: &[Assembled]) -> Table {
    let mut rows: BTreeMap<&str, BTreeMap<&str, &Assembled>> = BTreeMap::new();
    for kernel in kernels {
        rows.entry(&kernel.kernel).or_default().insert(&kernel.target, kernel);
    }
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    let mut header = vec!["kernel (registers, stack + spill bytes, SASS instructions)".to_owned()];
    header.extend(TARGETS.map(str::to_owned));
    table.set_header(header);
    for (name, targets) in rows {
        let mut row = vec![name.to_owned()];
        row.extend(TARGETS.map(|target| targets.get(target).map(|kernel| kernel.cell()).unwrap_or_default()));
        table.add_row(row);
    }
    table
}

impl Assembled {
    fn cell(&self) -> String {
        let spilled = self.stack_bytes + self.spill_store_bytes + self.spill_load_bytes;
        let mark = if self.ok { "" } else { " !" };
        format!("{:2}, {spilled}, {:4}{mark}", self.registers, self.sass_instructions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'b' for 'sm_70'
ptxas info    : Function properties for b
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 12 bytes smem, 408 bytes cmem[0]
ptxas info    : Compiling entry function 'a' for 'sm_70'
ptxas info    : Function properties for a
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 65 registers, used 1 barriers
ptxas info    : Compiling entry function 'c' for 'sm_70'
ptxas info    : Function properties for c
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 64 registers
";

    fn counts() -> BTreeMap<String, u32> {
        ["a", "b", "c"].map(|name| (name.to_owned(), 7)).into()
    }

    #[test]
    fn spills_and_too_many_registers_break_the_limits() {
        let kernels = parse(LOG, "sm_70", &counts()).unwrap();
        let found: Vec<_> =
            kernels.iter().map(|k| (k.kernel.as_str(), k.registers, k.spill_load_bytes, k.ok)).collect();
        assert_eq!(found, [("a", 65, 0, false), ("b", 64, 12, false), ("c", 64, 0, true)]);
        let shared: Vec<_> = kernels.iter().map(|k| k.shared_bytes).collect();
        assert_eq!(shared, [0, 12, 0]);
    }

    #[test]
    fn a_log_that_is_not_understood_is_an_error() {
        assert!(parse(&LOG.replace("bytes stack frame", "bytes"), "sm_70", &counts()).is_err());
        assert!(parse(LOG, "sm_70", &BTreeMap::new()).is_err());
    }
}
