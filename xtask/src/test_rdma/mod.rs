//! `test-rdma`: RDMA over the real libibverbs and the kernel's soft RoCE, in a virtual machine.
//!
//! The machine's processor is emulated (TCG), so neither RDMA hardware, nor its kernel modules, nor KVM, nor root are
//! needed. See `docs/test-rdma.md`.

mod console;
mod cpio;
mod image;
mod machine;
mod modules;
mod packages;
mod scenario;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use xshell::{Shell, cmd};

use self::console::{Ended, Protocol, Stage};
use self::image::Content;
use self::machine::{Logs, Patience};
use self::packages::Packages;
use self::scenario::{SCENARIOS, Scenario};
use crate::{emulated_node, repository};

/// The library that plays nvidia-peermem: its package and its library.
const PEERMEM: (&str, &str) = ("meshreduce-rdma-peermem", "meshreduce_rdma_peermem");
/// Lines that a failed scenario's output is shown with.
const TAIL: usize = 40;

/// Run RDMA scenarios over the real libibverbs and the kernel's soft RoCE, in a virtual machine
///
/// QEMU emulates the machine's processor; RDMA hardware, KVM and root are not needed. In it: Debian's kernel, two rails of
/// two NICs each, the emulated node. Its logs are in `rdma-vm` of the target directory.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this scenario; may be given several times
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// The short form
    #[arg(long, conflicts_with = "scenario")]
    quick: bool,
    /// Say which scenarios there are, and run none
    #[arg(long)]
    list: bool,
    /// Download QEMU, a kernel and the like with apt where they are missing, and unpack them in the target directory
    #[arg(long)]
    install: bool,
    /// Skip, and say so, where something is missing; else that is an error
    #[arg(long)]
    if_installed: bool,
    /// Print everything that scenarios print
    #[arg(long, conflicts_with = "json")]
    verbose: bool,
    /// Print what came of it as JSON
    #[arg(long)]
    json: bool,
    /// Run this program in the machine, in place of scenarios: a file, built for this system, with its arguments
    #[arg(last = true, value_name = "PROGRAM", conflicts_with_all = ["scenario", "quick"])]
    program: Vec<String>,
    /// With PROGRAM: seconds after which it is killed
    #[arg(long, default_value_t = 300, requires = "program")]
    seconds: u32,
    /// With PROGRAM: without the part of nvidia-peermem
    #[arg(long, requires = "program")]
    no_peermem: bool,
}

/// One program that the machine runs.
pub(crate) struct Job {
    name: String,
    shows: String,
    program: PathBuf,
    arguments: Vec<String>,
    environment: &'static [(&'static str, &'static str)],
    peermem: bool,
    seconds: u32,
}

/// What came of one scenario.
#[derive(Serialize)]
struct Outcome {
    scenario: String,
    shows: String,
    ok: bool,
    /// The program's exit code; 137 if it was killed, as after the end of its time.
    code: i32,
    seconds: f64,
    output: Vec<String>,
}

#[derive(Default, Serialize)]
struct Report {
    /// Why nothing was run.
    skipped: Option<String>,
    image_bytes: usize,
    /// Seconds from the kernel's start until its first program ran, and until two rails were up.
    kernel_seconds: f64,
    rails_seconds: f64,
    /// Seconds from QEMU's start to its end.
    machine_seconds: f64,
    outcomes: Vec<Outcome>,
    ok: bool,
}

impl Args {
    /// Builds, boots and runs; fails if a scenario does, or if the machine does not say how they ended.
    pub(crate) fn run(self) -> Result<ExitCode> {
        if self.list {
            return list();
        }
        // Relative to where the user is.
        let program = self.program.first().map(|file| {
            Path::new(file).canonicalize().with_context(|| format!("{file}: `-- PROGRAM` is a file's path"))
        });
        let program = program.transpose()?;
        let chosen = self.chosen()?;
        let shell = Shell::new()?;
        shell.change_dir(repository::root());
        fs::create_dir_all(folder())?;
        // Another run in this folder would write the same files.
        let lock = File::create(folder().join("lock"))?;
        lock.lock().context("waiting for another run to end")?;
        let packages = match self.packages(&shell)? {
            Ok(packages) => packages,
            Err(missing) => {
                ensure!(self.if_installed, "{missing}");
                eprintln!("skipping the RDMA scenarios: {missing}");
                return self.report(&Report { skipped: Some(missing), ok: true, ..Report::default() });
            }
        };
        eprintln!(
            "building the emulated node and {} ...",
            if program.is_some() { "the rest" } else { "scenarios" }
        );
        let node = emulated_node::build(&shell)?;
        let peermem = build_peermem(&shell)?;
        let jobs = match program {
            Some(program) => vec![self.job(program)?],
            None => build(&shell, &chosen)?,
        };
        let content = Content { packages: &packages, node: &node, peermem: &peermem, jobs: &jobs };
        let image = content.pack(&shell).context("packing the machine's files")?;
        let file = folder().join("initramfs.cpio");
        fs::write(&file, &image)?;
        self.boot(&packages, &file, image.len(), &jobs)
    }

    /// The scenarios that were asked for.
    fn chosen(&self) -> Result<Vec<&'static Scenario>> {
        if let Some(unknown) = self.scenario.iter().find(|name| SCENARIOS.iter().all(|it| it.name != **name))
        {
            let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
            bail!("there is no scenario {unknown}; there are {}", names.join(", "));
        }
        let is_chosen = |it: &&Scenario| match self.scenario.is_empty() {
            true => it.quick || !self.quick,
            false => self.scenario.iter().any(|name| name == it.name),
        };
        Ok(SCENARIOS.iter().filter(is_chosen).collect())
    }

    /// The program of the command line.
    fn job(&self, program: PathBuf) -> Result<Job> {
        let name =
            program.file_name().and_then(|name| name.to_str()).context("the program's name is no UTF-8")?;
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
        Ok(Job {
            name: name.chars().map(|letter| if is_plain(letter) { letter } else { '_' }).collect(),
            shows: self.program.join(" "),
            arguments: self.program[1..].to_vec(),
            environment: &[],
            program,
            peermem: !self.no_peermem,
            seconds: self.seconds,
        })
    }

    /// What the machine is made of, or what is missing.
    fn packages(&self, shell: &Shell) -> Result<Result<Packages, String>> {
        let found = Packages::find();
        match found {
            Err(_) if self.install => {
                eprintln!("downloading QEMU, a kernel and the like ...");
                let began = Instant::now();
                let bytes = Packages::install(shell)?;
                eprintln!("{:.1} MB, {:.1} s", bytes as f64 / 1e6, began.elapsed().as_secs_f64());
                Ok(Packages::find().map_err(|missing| missing.message()))
            }
            found => Ok(found.map_err(|missing| missing.message())),
        }
    }

    fn boot(&self, packages: &Packages, image: &Path, image_bytes: usize, jobs: &[Job]) -> Result<ExitCode> {
        let logs = Logs { console: folder().join("console.log"), scenarios: folder().join("scenarios.log") };
        let bar = ProgressBar::new(jobs.len() as u64);
        bar.set_style(ProgressStyle::with_template("{spinner} [{pos}/{len}] {elapsed} {msg}")?);
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        let (mut shown, mut said) = (0, 0);
        let limit = |name: &str| jobs.iter().find(|job| job.name == name).map_or(0, |job| job.seconds);
        let began = Instant::now();
        let protocol = machine::run(packages, image, &logs, &Patience::default(), limit, |protocol| {
            if self.verbose {
                let lines = protocol.said();
                lines.iter().skip(said).for_each(|line| bar.suspend(|| println!("    {line}")));
                said = lines.len();
            }
            for ended in &protocol.ended()[shown..] {
                bar.suspend(|| eprintln!("{}", line_of(ended)));
                bar.inc(1);
            }
            shown = protocol.ended().len();
            bar.set_message(match protocol.stage() {
                Stage::Booting => "the kernel boots".to_owned(),
                Stage::SettingUp => "modules and rails".to_owned(),
                Stage::Running(name) => name.to_owned(),
                Stage::Between | Stage::Ended => String::new(),
            });
        })?;
        bar.finish_and_clear();
        let (kernel_seconds, rails_seconds) = protocol.boot().unwrap_or_default();
        let outcomes = outcomes(jobs, &protocol)?;
        self.report(&Report {
            skipped: None,
            image_bytes,
            kernel_seconds,
            rails_seconds,
            machine_seconds: began.elapsed().as_millis() as f64 / 1e3,
            ok: outcomes.iter().all(|outcome| outcome.ok),
            outcomes,
        })
    }

    fn report(&self, report: &Report) -> Result<ExitCode> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(report)?);
        } else if report.skipped.is_some() {
            println!("test-rdma: SKIPPED");
        } else {
            for outcome in report.outcomes.iter().filter(|outcome| !outcome.ok) {
                let Outcome { scenario, shows, code, output, .. } = outcome;
                let because = if *code == 137 { "was killed: time was up" } else { "failed" };
                println!("\n{scenario} ({shows}) {because}; exit code {code}. It said:");
                output[output.len().saturating_sub(TAIL)..].iter().for_each(|line| println!("    {line}"));
            }
            let Report { image_bytes, kernel_seconds, rails_seconds, machine_seconds, .. } = report;
            let failed = report.outcomes.iter().filter(|outcome| !outcome.ok).count();
            println!(
                "image {:.1} MB; kernel up after {kernel_seconds:.1} s, two rails after {rails_seconds:.1} s; {machine_seconds:.1} s from QEMU's start to its end",
                *image_bytes as f64 / 1e6
            );
            let verdict = if report.ok { "OK" } else { "FAILED" };
            println!("test-rdma: {verdict}, {} scenarios, {failed} failed", report.outcomes.len());
        }
        Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Where everything of this command is.
fn folder() -> PathBuf {
    repository::target().join("rdma-vm")
}

fn list() -> Result<ExitCode> {
    for Scenario { name, shows, quick, .. } in SCENARIOS {
        println!("{name:<20} {} {shows}", if *quick { "quick" } else { "     " });
    }
    Ok(ExitCode::SUCCESS)
}

fn line_of(ended: &Ended) -> String {
    let Ended { name, code, seconds, .. } = ended;
    let word = if *code == 0 { "pass" } else { "FAIL" };
    format!("{word}  {name:<20} {seconds:6.1} s")
}

/// What came of every job. The machine has to have run all of them.
fn outcomes(jobs: &[Job], protocol: &Protocol) -> Result<Vec<Outcome>> {
    let ended = protocol.ended();
    let ran: Vec<_> = ended.iter().map(|ended| &ended.name).collect();
    let asked: Vec<_> = jobs.iter().map(|job| &job.name).collect();
    ensure!(ran == asked, "the machine ran {ran:?} and not {asked:?}");
    let outcome = |(job, ended): (&Job, &Ended)| Outcome {
        scenario: job.name.clone(),
        shows: job.shows.clone(),
        ok: ended.code == 0,
        code: ended.code,
        seconds: ended.seconds,
        output: ended.output.clone(),
    };
    Ok(jobs.iter().zip(ended).map(outcome).collect())
}

/// Builds the scenarios' programs.
fn build(shell: &Shell, scenarios: &[&Scenario]) -> Result<Vec<Job>> {
    let programs: BTreeSet<_> = scenarios.iter().map(|scenario| scenario.program).collect();
    let profile = repository::profile();
    for (package, program) in programs {
        let of = repository::selection(package);
        cmd!(shell, "cargo build --quiet --profile {profile} {of...} --bin {program}")
            .quiet()
            .run()
            .with_context(|| format!("building {program}"))?;
    }
    let job = |scenario: &&Scenario| Job {
        name: scenario.name.to_owned(),
        shows: scenario.shows.to_owned(),
        program: repository::built_program(scenario.program.1),
        arguments: scenario.arguments.iter().map(|word| (*word).to_owned()).collect(),
        environment: scenario.environment,
        peermem: scenario.peermem,
        seconds: scenario.seconds,
    };
    Ok(scenarios.iter().map(job).collect())
}

fn build_peermem(shell: &Shell) -> Result<PathBuf> {
    let (package, library) = PEERMEM;
    let profile = repository::profile();
    let messages = cmd!(
        shell,
        "cargo build --profile {profile} --message-format=json-render-diagnostics --package {package}"
    )
    .quiet()
    .read()
    .context("building the library that plays nvidia-peermem")?;
    emulated_node::artifact(&messages, library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_have_names_of_their_own_that_a_script_can_be_called() {
        let names: BTreeSet<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        let plain = |name: &&str| name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-');
        assert!(names.iter().all(plain), "{names:?}");
    }
}
