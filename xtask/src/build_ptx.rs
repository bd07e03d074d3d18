//! `cargo xtask build-ptx`: compiles the device crate to the PTX that is checked in, or checks that it is what the
//! sources give.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use indicatif::ProgressBar;
use meshreduce_wire::{Isa, KernelName};
use rayon::prelude::*;
use xshell::Shell;

use crate::{
    ptx_builder::{self, PtxBuilder},
    ptx_lint,
    ptx_text::{self, FLOOR, FLOOR_STEM, Stamp, unstamp},
    repository,
    toolchain::Toolchain,
};

/// Compile kernels-gpu (and the benchmark's own kernels) to PTX, or check the checked-in PTX.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail when the checked-in PTX is stale or edited. It is compared byte by byte with a rebuild where
    /// the compiler that its header names is installed.
    #[arg(long)]
    check: bool,
    /// Write the library's texts (or, with --check, look for them) here instead of host/ptx; no others then.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Args {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mut parts = Vec::new();
        let kernels = || Isa::ALL.map(PtxBuilder::kernels).to_vec();
        match self.out {
            Some(folder) => parts.push((kernels(), folder)),
            None => {
                parts.push((kernels(), repository::shipped_ptx()));
                parts.push((vec![PtxBuilder::floor()], repository::floor_ptx()));
            }
        }
        for (builders, folder) in parts {
            if self.check { check(&builders, folder) } else { build(&builders, folder) }?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn build(builders: &[PtxBuilder], folder: PathBuf) -> Result<()> {
    let shell = Shell::new()?;
    let toolchain = Toolchain::find(&shell)?;
    let texts = compile(builders, &toolchain)?;
    ptx_builder::write(&folder, &texts)?;
    let bytes: usize = texts.values().map(String::len).sum();
    println!(
        "{} texts, {} KiB, in {} ({})",
        texts.len(),
        bytes >> 10,
        repository::shown(&folder),
        toolchain.identity
    );
    Ok(())
}

fn check(builders: &[PtxBuilder], folder: PathBuf) -> Result<()> {
    let sources = builders.iter().map(PtxBuilder::sources_digest).collect::<Result<Vec<_>>>()?;
    let mut shipped = BTreeMap::new();
    let mut compilers = BTreeMap::new();
    for path in repository::ptx_files(&folder)? {
        let shown = repository::shown(&path);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {shown}"))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        check_text(&stem, &text, &sources)
            .map(|stamp| compilers.insert(stamp.compiler, shown.clone()))
            .with_context(|| {
                format!("{shown} is not what the sources give; `cargo xtask build-ptx` makes it anew")
            })?;
        shipped.insert(stem, text);
    }
    let recorded = match compilers.len() {
        0 => bail!("there is no PTX in {}", repository::shown(&folder)),
        1 => compilers.into_keys().next().unwrap_or_default(),
        _ => bail!("the texts come from several compilers: {compilers:?}"),
    };
    println!(
        "{}: {} texts: digests of sources and texts agree, entries complete, lint clean",
        repository::shown(&folder),
        shipped.len()
    );

    let shell = Shell::new()?;
    match Toolchain::find(&shell) {
        Ok(toolchain) if toolchain.identity == recorded => {
            compare(&shipped, &compile(builders, &toolchain)?)?;
            println!("rebuilt with {recorded}: every byte agrees");
        }
        Ok(toolchain) => {
            println!("NOT rebuilt: the PTX was made by {recorded}, here is {}", toolchain.identity);
        }
        Err(error) => println!("NOT rebuilt: {error}"),
    }
    Ok(())
}

/// Checks one text by itself: digests, lint, and that every kernel is there.
/// `sources` are the digests of the compilations; every one of the kernels is for an ISA of its own, in the order of those.
fn check_text(stem: &str, stamped: &str, sources: &[String]) -> Result<Stamp> {
    let (stamp, text) = unstamp(stamped)?;
    let isa = names(text).find_map(ptx_text::parse_name).map_or(Isa::V70, |entry| entry.text.isa);
    let sources = sources.get(isa as usize - 1).context("there is no compilation for its ISA")?;
    if stamp.sources != *sources {
        bail!("stale: the sources' digest is {sources}, the header says {}", stamp.sources);
    }
    if let Some(finding) = ptx_lint::lint(stamped).first() {
        bail!("{}", finding.at(stem));
    }
    if stem == FLOOR_STEM {
        let found: Vec<&str> = names(text).collect();
        if found != FLOOR {
            bail!("kernels {found:?} where {FLOOR:?} were expected");
        }
        return Ok(stamp);
    }
    let found: Vec<KernelName> = names(text).filter_map(ptx_text::parse_name).collect();
    let expected = found.first().map_or(1, |first| ptx_text::entries(first.text));
    if found.len() != expected || found.iter().any(|entry| entry.text.to_string() != stem) {
        bail!("{} kernels where {expected} of {stem} were expected", found.len());
    }
    Ok(stamp)
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix(".visible .entry ")?.strip_suffix('('))
}

fn compare(shipped: &BTreeMap<String, String>, rebuilt: &BTreeMap<String, String>) -> Result<()> {
    if shipped.keys().ne(rebuilt.keys()) {
        bail!("the sources give {:?}, checked in are {:?}", rebuilt.keys(), shipped.keys());
    }
    for (stem, text) in shipped {
        let differing = text.lines().zip(rebuilt[stem].lines()).position(|(old, new)| old != new);
        if let Some(index) = differing {
            bail!("{stem}.ptx differs from a rebuild from line {} on", index + 1);
        }
        if *text != rebuilt[stem] {
            bail!("{stem}.ptx differs from a rebuild in its length");
        }
    }
    Ok(())
}

/// Several at once: each is one unit of code, which the compiler works on with one thread.
fn compile(builders: &[PtxBuilder], toolchain: &Toolchain) -> Result<BTreeMap<String, String>> {
    let spinner = ProgressBar::new_spinner();
    let packages = builders.iter().map(PtxBuilder::package).collect::<BTreeSet<_>>();
    let packages = packages.into_iter().collect::<Vec<_>>().join(", ");
    spinner.set_message(format!("compiling {packages} with {}", toolchain.identity));
    spinner.enable_steady_tick(Duration::from_millis(100));
    let built = builders
        .par_iter()
        .map(|builder| builder.build(&Shell::new()?, toolchain))
        .collect::<Result<Vec<_>>>();
    spinner.finish_and_clear();
    Ok(built?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx_text::stamp;

    fn shipped(stem: &str) -> String {
        fs::read_to_string(repository::shipped_ptx().join(format!("{stem}.ptx"))).unwrap()
    }

    #[test]
    fn shipped_ptx_is_complete_and_unedited() {
        let text = shipped("one_shot_w8");
        let (found, _) = unstamp(&text).unwrap();
        assert_eq!(check_text("one_shot_w8", &text, std::slice::from_ref(&found.sources)).unwrap(), found);
    }

    #[test]
    fn stale_edited_and_misplaced_ptx_is_refused() {
        let text = shipped("one_shot_w2");
        let (found, body) = unstamp(&text).unwrap();
        let stale = check_text("one_shot_w2", &text, &["another".into()]).unwrap_err();
        assert!(stale.to_string().contains("stale"), "{stale}");
        let misplaced = check_text("one_shot_w3", &text, std::slice::from_ref(&found.sources)).unwrap_err();
        assert!(misplaced.to_string().contains("expected"), "{misplaced}");
        let edited = check_text(
            "one_shot_w2",
            &text.replacen("add.rn", "sub.rn", 1),
            std::slice::from_ref(&found.sources),
        )
        .unwrap_err();
        assert!(edited.to_string().contains("edited"), "{edited}");
        let without_last = &body[..body.rfind(".visible").unwrap()];
        let incomplete = stamp(without_last, &found.compiler, &found.sources);
        let incomplete =
            check_text("one_shot_w2", &incomplete, std::slice::from_ref(&found.sources)).unwrap_err();
        assert!(incomplete.to_string().contains("5 kernels"), "{incomplete}");
    }

    #[test]
    fn the_floor_has_its_kernels_and_no_others() {
        let text = fs::read_to_string(repository::floor_ptx().join("floor.ptx")).unwrap();
        let (found, body) = unstamp(&text).unwrap();
        assert_eq!(check_text("floor", &text, std::slice::from_ref(&found.sources)).unwrap(), found);
        let without_last = &body[..body.rfind(".visible").unwrap()];
        let incomplete = stamp(without_last, &found.compiler, &found.sources);
        let incomplete = check_text("floor", &incomplete, std::slice::from_ref(&found.sources)).unwrap_err();
        assert!(incomplete.to_string().contains("were expected"), "{incomplete}");
    }

    #[test]
    fn a_rebuild_that_differs_names_the_first_line() {
        let texts = |text: &str| BTreeMap::from([("a".to_owned(), text.to_owned())]);
        assert!(compare(&texts("x\ny\n"), &texts("x\ny\n")).is_ok());
        assert!(compare(&texts("x\ny\n"), &texts("x\nz\n")).unwrap_err().to_string().contains("line 2"));
        assert!(compare(&texts("x\n"), &texts("x\ny\n")).unwrap_err().to_string().contains("length"));
        assert!(compare(&texts("x\n"), &BTreeMap::new()).is_err());
    }
}
