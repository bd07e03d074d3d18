//! `test-mpi`: builds the process groups with the backend `mpi`, and runs its tests under mpirun.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use xshell::{Shell, cmd};

use crate::repository;

/// Debian's packages. bindgen, by which rsmpi finds the functions of MPI, needs libclang.
const SET_UP: &str = "apt install libopenmpi-dev openmpi-bin libclang-dev";
/// The test that must end the job, and is run alone.
const DEADLY: &str = "a_rank_that_dies_ends_the_job";

/// A rank's program, for `sh -c`, with all that it says in a file.
const TO_ITS_FILE: &str = r#"exec "$0" "$@" >"$MESHREDUCE_TEST_OUTPUT/$$" 2>&1"#;

/// Run the tests of the backend `mpi` under mpirun
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many ranks, one run each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
    ranks: Vec<usize>,
    /// Only tests whose name has this in it
    #[arg(long)]
    filter: Option<String>,
    /// Seconds that a run may take
    #[arg(long, default_value_t = 900)]
    timeout: u64,
    /// Skip, and say so, where no MPI is installed; else that is an error
    #[arg(long)]
    if_installed: bool,
    /// Print what came of it as JSON
    #[arg(long)]
    json: bool,
}

/// What came of one run.
#[derive(Serialize)]
struct Run {
    ranks: usize,
    passed: usize,
    failed: usize,
    /// Whether a rank that died ended the job.
    job_ended_with_rank: Option<bool>,
    ok: bool,
}

/// A run under mpirun that has ended.
struct Ended {
    /// All that each rank said.
    ranks: Vec<String>,
    /// What mpirun itself said.
    mpirun: String,
    /// Whether all ended well.
    well: bool,
}

#[derive(Serialize)]
struct Report {
    mpi: Option<String>,
    /// Why nothing was run.
    skipped: Option<String>,
    runs: Vec<Run>,
    ok: bool,
}

impl Args {
    /// Runs; fails if a test does.
    pub(crate) fn run(self) -> Result<ExitCode> {
        ensure!(!self.ranks.is_empty() && !self.ranks.contains(&0), "at least one rank");
        let shell = Shell::new()?;
        let missing: Vec<&str> =
            ["mpicc", "mpirun"].into_iter().filter(|program| !is_on_path(program)).collect();
        if !missing.is_empty() {
            let problem = format!("no {} found: {SET_UP}", missing.join(" and no "));
            ensure!(self.if_installed, "{problem}");
            eprintln!("skipping the tests of the backend mpi: {problem}");
            return self.report(Report { mpi: None, skipped: Some(problem), runs: Vec::new(), ok: true });
        }
        let version = cmd!(shell, "mpirun --version").quiet().ignore_stderr().read()?;
        let version = version.lines().next().unwrap_or_default().to_owned();
        eprintln!("building the tests with {version} ...");
        let program = self.build(&shell)?;
        let mut runs = Vec::new();
        for ranks in self.ranks.iter().copied() {
            runs.push(self.run_tests(&program, &version, ranks)?);
        }
        let ok = runs.iter().all(|run| run.ok);
        self.report(Report { mpi: Some(version), skipped: None, runs, ok })
    }

    fn report(&self, report: Report) -> Result<ExitCode> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            for run in &report.runs {
                let dead = match run.job_ended_with_rank {
                    Some(true) => "; a rank that died ended the job",
                    Some(false) => "; A RANK THAT DIED DID NOT END THE JOB",
                    None => "",
                };
                let Run { ranks, passed, failed, .. } = run;
                println!("{ranks} ranks: {passed} passed, {failed} failed on some rank{dead}");
            }
            let verdict = match (&report.skipped, report.ok) {
                (Some(_), _) => "SKIPPED",
                (None, true) => "OK",
                (None, false) => "FAILED",
            };
            println!("test-mpi: {verdict}");
        }
        Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Builds the tests, runs those that need no ranks, and gives the program for the others.
    fn build(&self, shell: &Shell) -> Result<PathBuf> {
        let _root = shell.push_dir(repository::root());
        let package = ["--package", "meshreduce-process-group", "--features", "mpi"];
        let built = cmd!(shell, "cargo test --quiet {package...} --test mpi --no-run --message-format json")
            .quiet()
            .read()
            .with_context(|| format!("building with MPI, which needs libclang too ({SET_UP})"))?;
        cmd!(shell, "cargo test --quiet {package...} --lib -- mpi::").quiet().ignore_stdout().run()?;
        let executable = |line: &str| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let is_test = message["target"]["name"] == "mpi" && message["profile"]["test"] == true;
            is_test.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
        };
        built.lines().find_map(executable).context("cargo names no program for the tests")
    }

    fn run_tests(&self, program: &Path, version: &str, ranks: usize) -> Result<Run> {
        eprintln!("running on {ranks} ranks ...");
        let filter = self.filter.iter().map(String::as_str);
        let Ended { ranks: said, mpirun, well } = self.mpirun(program, version, ranks, filter)?;
        let results: Vec<(usize, usize)> =
            said.iter().filter_map(|rank| rank.lines().rev().find_map(result_of)).collect();
        let passed = results.iter().map(|(passed, _)| *passed).min().unwrap_or(0);
        let failed = results.iter().map(|(_, failed)| *failed).max().unwrap_or(0);
        let ran = well && results.len() == ranks && passed > 0 && failed == 0;
        if !ran {
            eprintln!("{}{mpirun}", said.concat());
        }
        let job_ended_with_rank = match ranks > 1 && self.filter.is_none() {
            true => {
                let ended =
                    self.mpirun(program, version, ranks, ["--ignored", "--exact", DEADLY].into_iter())?;
                // It ends because of the rank, and not because time is up.
                Some(!ended.well && ended.mpirun.contains("signal 6"))
            }
            false => None,
        };
        let ok = ran && job_ended_with_rank != Some(false);
        Ok(Run { ranks, passed, failed, job_ended_with_rank, ok })
    }

    /// Runs the tests on so many ranks. Every rank writes a file of its own: what goes through mpirun comes out in pieces, one rank's words
    /// in the middle of another's.
    fn mpirun<'a>(
        &self,
        program: &Path,
        version: &str,
        ranks: usize,
        arguments: impl Iterator<Item = &'a str>,
    ) -> Result<Ended> {
        let (shared, said) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let mut command = Command::new("mpirun");
        if version.contains("Open MPI") || version.contains("OpenRTE") {
            command.args(["--oversubscribe", "--allow-run-as-root"]);
        }
        command.args(["-n", &ranks.to_string(), "sh", "-c", TO_ITS_FILE]).arg(program).args(arguments);
        command.args(["--test-threads", "1", "--color", "never"]);
        let output = command
            .env("MESHREDUCE_TEST_FOLDER", shared.path())
            .env("MESHREDUCE_TEST_OUTPUT", said.path())
            .env("MPIEXEC_TIMEOUT", self.timeout.to_string())
            .stdin(Stdio::null())
            .output()
            .context("starting mpirun")?;
        let read = |file: std::io::Result<std::fs::DirEntry>| Ok(std::fs::read(file?.path())?);
        let said = std::fs::read_dir(said.path())?.map(read).collect::<Result<Vec<Vec<u8>>>>()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ended {
            ranks: said.iter().map(|bytes| text(bytes)).collect(),
            mpirun: text(&[output.stdout, output.stderr].concat()),
            well: output.status.success(),
        })
    }
}

/// Tests that passed and failed, of a rank's last line. (A test's name may stand before it.)
fn result_of(line: &str) -> Option<(usize, usize)> {
    let (_, result) = line.split_once("test result: ")?;
    let number = |word: &str| {
        result.split(&[';', '.'][..]).find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
    };
    Some((number("passed")?, number("failed")?))
}

/// Whether a program of this name is in a folder of `PATH`.
pub(crate) fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_rank_is_understood() {
        let line = "test a ... test result: FAILED. 16 passed; 2 failed; 0 ignored; finished in 2.67s";
        assert_eq!(result_of(line), Some((16, 2)));
        assert_eq!(result_of("test result: ok. 18 passed; 0 failed; 1 ignored"), Some((18, 0)));
        assert_eq!(result_of("test it ... ok"), None);
    }
}
