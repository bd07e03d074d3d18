//! A text that is given, such as a mutant that somebody else made, before every detector.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use meshreduce_emulator_ptx::{Kernel, Module};
use meshreduce_emulator_weak_memory::adversary::Options;
use meshreduce_wire::{Algorithm, Collective, DType, Isa, KernelName, MAX_RANKS, Op, TextName};
use serde::Serialize;

use super::stage::{Stage, Trouble};
use super::{LONGEST, Player};
use crate::adversary::{Kernels, Others, SliceKernels};

/// What a detector says of a text.
#[derive(Clone, Debug, Serialize)]
pub struct Detection {
    /// The detector: `lint`, `direct`, `adversary` or `stages`.
    pub detector: &'static str,
    /// Whether it finds something.
    pub found: bool,
    /// What, or what it has looked at.
    pub what: String,
}

/// The kernels of a text: whose they are, by the names of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    algorithm: Algorithm,
    ranks: usize,
    isa: Isa,
}

impl Identity {
    fn text(self) -> TextName {
        TextName { algorithm: self.algorithm, world_size: self.ranks, isa: self.isa }
    }

    fn of(module: &Module) -> Option<Self> {
        let names: Vec<&str> = module.kernels().iter().map(|kernel| kernel.name.as_str()).collect();
        let mut all = Algorithm::every().flat_map(|algorithm| {
            Isa::ALL
                .into_iter()
                .flat_map(move |isa| (2..=MAX_RANKS).map(move |ranks| Self { algorithm, ranks, isa }))
        });
        all.find(|one| {
            let kinds = DType::ALL.into_iter().flat_map(|dtype| Op::ALL.map(|op| (dtype, op)));
            kinds
                .into_iter()
                .any(|(dtype, op)| names.contains(&&*KernelName::new(one.text(), dtype, op).to_string()))
        })
    }
}

/// Asks every detector but the lint about the text in a file: the stages with so many seeds, the adversary with five times as
/// many.
///
/// # Errors
/// If the text cannot be read, or has no kernels with the names of shipped ones.
pub fn judge(file: &Path, seeds: u64) -> Result<Vec<Detection>> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {shown}"))?;
    let module = Module::parse(&text).with_context(|| format!("{shown} is not understood"))?;
    let identity = Identity::of(&module);
    let identity = identity.with_context(|| format!("no kernel of {shown} has the name of a shipped one"))?;
    Ok(vec![
        direct(file, identity)?,
        adversary(&text, identity, IN_A_ROW * seeds)?,
        stages(&module, identity, seeds),
    ])
}

/// Seeds of calls in a row, which are quick, for each of calls that cannot end well.
const IN_A_ROW: u64 = 5;

/// The main job on the direct executor, by this program once more.
fn direct(file: &Path, Identity { algorithm, ranks, .. }: Identity) -> Result<Detection> {
    if algorithm.is_of_lists() {
        let what = "not asked: the main job launches no lists".to_owned();
        return Ok(Detection { detector: "direct", found: false, what });
    }
    let program: PathBuf = std::env::current_exe().context("finding this program")?;
    let (algorithm_name, ranks_text) = (algorithm.to_string(), ranks.to_string());
    let served = Collective::ALL.into_iter().filter(|&collective| algorithm.serves(collective));
    let collectives = served.map(|collective| collective.to_string()).collect::<Vec<_>>().join(",");
    let arguments = ["--algorithm", &algorithm_name, "--ranks", &ranks_text, "--op", "sum,avg,min,max"];
    let mut command = Command::new(program);
    command.args(arguments).arg("--collective").arg(collectives).arg("--ptx").arg(file);
    let run = command.stdin(Stdio::null()).output();
    let output = run.context("starting the main job")?;
    // Another code says that it could not run.
    let found = match output.status.code() {
        Some(0) => false,
        Some(1) => true,
        _ => bail!("the main job ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
    };
    let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
    Ok(Detection { detector: "direct", found, what: format!("{algorithm} on {ranks} ranks: {last}") })
}

/// Calls in a row.
fn adversary(text: &str, identity: Identity, seeds: u64) -> Result<Detection> {
    let Identity { algorithm, ranks, isa } = identity;
    let kernels = if algorithm.is_of_slices() {
        let shipped = SliceKernels::shipped(ranks, isa)?.with_focus(algorithm);
        Player::Slices(shipped.with_text(algorithm, text)?)
    } else {
        let kernels = Kernels::parse(text, algorithm, ranks)?;
        Player::AllReduces(kernels.beside(Others::shipped(algorithm, ranks, isa)?))
    };
    let options = Options { max_instructions: LONGEST, ..Options::default() };
    for seed in 0..seeds {
        if let Err(failure) = kernels.play(seed, options)? {
            let what = format!("seed {seed}: {}", first_lines(&failure.to_string()));
            return Ok(Detection { detector: "adversary", found: true, what });
        }
    }
    Ok(Detection { detector: "adversary", found: false, what: format!("{seeds} seeds are clean") })
}

/// Calls that cannot end well: of the bf16 sum, or of slices of 16 bits.
fn stages(module: &Module, identity: Identity, seeds: u64) -> Detection {
    let Identity { algorithm, ranks, .. } = identity;
    let name = KernelName::new(identity.text(), DType::Bf16, Op::Sum).to_string();
    let Some(kernel): Option<Arc<Kernel>> = module.kernel(&name) else {
        let what = format!("not asked: there is no {name}");
        return Detection { detector: "stages", found: false, what };
    };
    let options = Options { max_instructions: LONGEST, ..Options::default() };
    for seed in 1..=seeds {
        for trouble in Trouble::of(algorithm).filter(|trouble| trouble.is_played(seed)) {
            let stage = Stage { kernel: &kernel, algorithm, ranks, halfway: None, queued: seed / 2 % 2 == 1 };
            if let Err(failure) = stage.play(trouble, seed, options) {
                let what = format!("seed {seed}, {}: {}", trouble.name(), first_lines(&failure.to_string()));
                return Detection { detector: "stages", found: true, what };
            }
        }
    }
    Detection { detector: "stages", found: false, what: format!("{seeds} seeds are clean") }
}

fn first_lines(text: &str) -> String {
    text.lines().take(3).map(str::trim).collect::<Vec<_>>().join("; ")
}

/// Prints what was found. Whether anything was.
///
/// # Errors
/// If nothing was asked.
pub fn show(detections: &[Detection], json: bool) -> Result<bool> {
    ensure!(!detections.is_empty(), "no detector was asked");
    let found: Vec<&str> = detections.iter().filter(|one| one.found).map(|one| one.detector).collect();
    if json {
        let all = serde_json::json!({ "detections": detections, "found_by": found });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        for Detection { detector, found, what } in detections {
            println!("{detector:10} {} {what}", if *found { "FOUND" } else { "-    " });
        }
        match found.is_empty() {
            true => println!("found by none"),
            false => println!("found by {}", found.join(", ")),
        }
    }
    Ok(!found.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_known_by_the_names_of_its_entries() {
        for (algorithm, ranks, isa) in [
            (Algorithm::OneShot, 3, Isa::V70),
            (Algorithm::TwoShotLl, 2, Isa::V84),
            (Algorithm::Exchange, 4, Isa::V70),
            (Algorithm::ReduceScatterLl, 8, Isa::V84),
        ] {
            let text = Kernels::shipped_text(algorithm, ranks, isa).unwrap();
            let identity = Identity::of(&Module::parse(&text).unwrap());
            assert_eq!(identity, Some(Identity { algorithm, ranks, isa }));
        }
    }

    #[test]
    fn the_detectors_find_dropped_signals_and_packets_and_nothing_in_the_shipped_texts() {
        let of = |text: &str| {
            let identity = Identity::of(&Module::parse(text).unwrap()).unwrap();
            let stages = stages(&Module::parse(text).unwrap(), identity, 2);
            (adversary(text, identity, 5).unwrap().found, stages.found)
        };
        for (algorithm, sends) in [
            (Algorithm::OneShot, "st.release.sys.global.u64"),
            (Algorithm::Exchange, "st.release.sys.global.u64"),
            (Algorithm::ReduceScatter, "st.release.sys.global.u64"),
            (Algorithm::ExchangeLl, "st.relaxed.sys.global.v2.u64"),
        ] {
            let text = Kernels::shipped_text(algorithm, 2, Isa::V70).unwrap();
            assert_eq!(of(&text), (false, false), "{algorithm}");
            let dropped =
                |line: &str| if line.contains(sends) { "\n".to_owned() } else { format!("{line}\n") };
            let without: String = text.lines().map(dropped).collect();
            assert_eq!(of(&without), (true, true), "{algorithm}");
        }
    }
}
