//! `gpu-bundle`: a folder that runs on a machine with an NVIDIA driver and nothing else.

mod elf;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use meshreduce_wire::Algorithm;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use xshell::{Shell, cmd};

use crate::{emulated_node, repository};

/// The name of the folder in the archive.
const NAME: &str = "meshreduce-gpu-bundle";
/// Package, program.
const PROGRAMS: [(&str, &str); 4] = [
    ("meshreduce-checks", "gpu-check"),
    ("meshreduce-checks", "channel-party"),
    ("meshreduce-checks", "multigpu"),
    ("meshreduce-bench", "meshreduce-bench"),
];
/// The most that the folder may take.
const MAX_BYTES: u64 = 63 << 20;
const SCRIPT: &str = include_str!("run.sh");

/// Build a folder of programs, kernels and a script that runs on any Linux machine with an NVIDIA driver
///
/// It needs glibc 2.36 or later on x86-64 there, neither Rust nor a CUDA toolkit. It is checked for what it needs, and
/// lies with its archive in `gpu-bundle` of the target directory.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build and check, but make no archive
    #[arg(long)]
    check: bool,
    /// Run a copy of the bundle on an emulated HGX H100, on several GPUs and on one that all ranks share
    #[arg(long)]
    run_emulated: bool,
    /// With --run-emulated: fewer cases
    #[arg(long, requires = "run_emulated")]
    quick: bool,
}

impl Args {
    /// Builds, checks, packs and runs, as far as was asked for.
    pub(crate) fn run(self) -> Result<ExitCode> {
        let shell = Shell::new()?;
        shell.change_dir(repository::root());
        let place = repository::target().join("gpu-bundle");
        let folder = place.join(NAME);
        let bytes = build(&shell, &folder)?;
        println!("{}: {:.1} MiB", folder.display(), bytes as f64 / f64::from(1 << 20));
        if !self.check {
            let archive = place.join(format!("{NAME}.tar.gz"));
            cmd!(
                shell,
                "tar --create --gzip --owner=0 --group=0 --file={archive} --directory={place} {NAME}"
            )
            .quiet()
            .run()
            .context("packing the bundle")?;
            println!(
                "{}: {:.1} MiB",
                archive.display(),
                fs::metadata(&archive)?.len() as f64 / f64::from(1 << 20)
            );
        }
        if self.run_emulated {
            return run_emulated(&shell, &folder, &place.join("emulated"), self.quick);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Fills the folder and checks what is in it; returns its size.
fn build(shell: &Shell, folder: &Path) -> Result<u64> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("clearing {}", folder.display()))?;
    }
    fs::create_dir_all(folder.join("bin"))?;
    let profile = repository::profile();
    for (package, program) in PROGRAMS {
        eprintln!("building {program} ...");
        cmd!(
            shell,
            "cargo rustc --quiet --profile {profile} --package {package} --bin {program} -- -C strip=symbols"
        )
        .quiet()
        .run()
        .with_context(|| format!("building {program}"))?;
        let goal = folder.join("bin").join(program);
        fs::copy(repository::built_program(program), &goal).with_context(|| format!("copying {program}"))?;
        check_program(&goal)?;
    }
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    fs::copy(repository::root().join("docs/gpu-bundle.md"), folder.join("README.md"))?;
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        fs::copy(repository::root().join(licence), folder.join(licence))?;
    }
    let files = files_below(folder)?;
    let bytes = files.iter().map(|file| Ok(fs::metadata(folder.join(file))?.len())).sum::<Result<u64>>()?;
    ensure!(bytes < MAX_BYTES, "the bundle has {bytes} bytes, and may have {MAX_BYTES}");
    fs::write(folder.join("MANIFEST.json"), manifest(shell, folder, &files)?)?;
    Ok(bytes)
}

/// Checks what a program needs, and that it knows nothing of where it was built.
fn check_program(program: &Path) -> Result<()> {
    let data = fs::read(program)?;
    let mut complaints = elf::Needs::of(&data)?.complaints();
    let root = repository::root();
    if contains(&data, root.as_os_str().as_encoded_bytes()) {
        complaints.push(format!("it contains the path {}, where it was built", root.display()));
    }
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{}:\n    {}", repository::shown(program), complaints.join("\n    "))
}

fn contains(data: &[u8], text: &[u8]) -> bool {
    data.windows(text.len()).any(|window| window == text)
}

/// What the bundle was built from, and the digest of every file.
fn manifest(shell: &Shell, folder: &Path, files: &[PathBuf]) -> Result<String> {
    let said = |command: xshell::Cmd<'_>| command.quiet().ignore_stderr().read().ok();
    let commit = said(cmd!(shell, "git rev-parse HEAD")).map(|commit| {
        let changed = said(cmd!(shell, "git status --porcelain")).is_none_or(|status| !status.is_empty());
        if changed { format!("{commit}, changed") } else { commit }
    });
    let mut digests = BTreeMap::new();
    for file in files {
        let digest = Sha256::digest(fs::read(folder.join(file))?);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        digests.insert(file.display().to_string(), digest);
    }
    let manifest = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": commit.unwrap_or_else(|| "unknown".to_owned()),
        "compiler": said(cmd!(shell, "rustc --version")).unwrap_or_else(|| "unknown".to_owned()),
        "sha256": digests,
    });
    Ok(serde_json::to_string_pretty(&manifest)? + "\n")
}

/// All files below a folder, by their paths in it, sorted.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            match path.is_dir() {
                true => open.push(path),
                false => files.push(path.strip_prefix(folder)?.to_owned()),
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Runs a copy of the bundle, away from the repository, as a user of a machine without Rust would: first on several
/// GPUs, then with all ranks on one.
fn run_emulated(shell: &Shell, folder: &Path, reports: &Path, quick: bool) -> Result<ExitCode> {
    let node = emulated_node::build(shell)?;
    let away = tempfile::tempdir().context("making a folder for the copy")?;
    let copy = away.path().join("bundle");
    for file in files_below(folder)? {
        let goal = copy.join(&file);
        fs::create_dir_all(goal.parent().unwrap_or(&copy))?;
        fs::copy(folder.join(&file), goal)?;
    }
    let mut all_well = true;
    for (name, shared) in [("several-gpus", false), ("shared-gpu", true)] {
        let out = reports.join(name);
        println!("\n== the bundle on an emulated HGX H100, {name}");
        let began = Instant::now();
        let mut command = Command::new(copy.join("run.sh"));
        command
            .arg("--out")
            .arg(&out)
            .args(if quick { &QUICKLY[..] } else { &[] })
            .args(shared.then_some("--shared-device"));
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(away.path());
        command.env("MESHREDUCE_DRIVER", node.join("libcuda.so.1")).env("MESHREDUCE_NODE", "hgx-h100");
        command.env("MESHREDUCE_NCCL", node.join("libnccl.so.2")).env("NCCL_SOCKET_IFNAME", "lo");
        command.env("MESHREDUCE_NODE_ID", format!("bundle-{}-{name}", std::process::id()));
        let status = command.status().context("starting run.sh")?;
        println!("{status} after {:.0} s", began.elapsed().as_secs_f64());
        ensure!(out.join("report.md").is_file(), "{name}: no report");
        let report = fs::read(out.join("report.json")).with_context(|| format!("{name}: no report"))?;
        let missing = algorithms_without_results(&serde_json::from_slice(&report)?);
        ensure!(missing.is_empty(), "{name}: nothing was checked of {}", missing.join(", "));
        all_well &= status.success();
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What an emulated node is asked for where it is to be quick: a call takes it a thousand times as long as a GPU.
const QUICKLY: [&str; 5] = ["--quick", "--soak-calls", "500", "--bench-bytes", "1KiB"];

/// The algorithms of which a report has no result, by name.
fn algorithms_without_results(report: &Value) -> Vec<String> {
    let parts = report["parts"].as_array().into_iter().flatten();
    let of_results = parts.filter(|part| part["name"] == "results" || part["name"] == "collectives");
    let checks = of_results.filter_map(|part| part["part"]["checks"].as_array()).flatten();
    let checked: Vec<&str> = checks.filter_map(|check| check["name"].as_str()).collect();
    let has_none = |name: &String| !checked.iter().any(|check| check.starts_with(&format!("{name}, ")));
    Algorithm::every().map(|algorithm| algorithm.to_string()).filter(has_none).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_wherever_it_stands() {
        assert!(contains(b"abc/folder/def", b"/folder"));
        assert!(!contains(b"abc/folde", b"/folder"));
    }

    #[test]
    fn an_algorithm_that_a_report_leaves_out_is_named() {
        let checks = |left_out: Option<Algorithm>| {
            let algorithms = Algorithm::every().filter(|algorithm| Some(*algorithm) != left_out);
            algorithms.map(|algorithm| json!({"name": format!("{algorithm}, 8 ranks")})).collect()
        };
        let report = |left_out| {
            let checks: Vec<Value> = checks(left_out);
            json!({"parts": [{"name": "results", "part": {"checks": checks}}, {"name": "bench", "part": null}]})
        };
        assert!(algorithms_without_results(&report(None)).is_empty());
        for algorithm in Algorithm::every() {
            assert_eq!(algorithms_without_results(&report(Some(algorithm))), [algorithm.to_string()]);
        }
    }

    #[test]
    fn files_are_listed_by_their_paths_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("b")).unwrap();
        fs::write(folder.path().join("b/c"), "").unwrap();
        fs::write(folder.path().join("a"), "").unwrap();
        assert_eq!(files_below(folder.path()).unwrap(), [Path::new("a"), Path::new("b/c")]);
    }
}
