//! Finding a compiler that can make PTX.
//!
//! Two are known: Debian's packages, which put it in /usr/bin, and rustup's toolchain with the sources of `core`.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use xshell::{Shell, cmd};

/// The compiler's version. Another one is not tried: the recipe uses unstable options.
pub(crate) const VERSION: &str = "1.96.0";

const TARGET: &str = "nvptx64-nvidia-cuda";

const HOW_TO_GET_IT: &str = "\
either, on Debian 12 or later:
    apt-get install --no-install-recommends rustc-web cargo-web rust-web-src
or, with rustup:
    rustup toolchain install 1.96.0 --component rust-src";

/// A compiler with the NVPTX back end and the sources of `core`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) rustc: PathBuf,
    /// The cargo beside it.
    pub(crate) cargo: PathBuf,
    /// What PTX headers say, for example `rustc 1.96.0 (0123456 2026-05-25) LLVM 22.1.8`.
    pub(crate) identity: String,
}

impl Toolchain {
    /// The first usable toolchain of this machine, or an error that says what is wrong with each and how to get one.
    pub(crate) fn find(shell: &Shell) -> Result<Self> {
        let mut tried = Vec::new();
        for (place, bin) in [("Debian's packages", Some("/usr/bin".into())), ("rustup", rustup_bin(shell))] {
            let Some(bin) = bin else {
                tried.push(format!("{place}: no toolchain {VERSION}"));
                continue;
            };
            match Self::at(shell, &bin) {
                Ok(toolchain) => return Ok(toolchain),
                Err(reason) => tried.push(format!("{place}: {reason}")),
            }
        }
        bail!("no compiler for {TARGET} is installed\n  {}\nget one, {HOW_TO_GET_IT}", tried.join("\n  "))
    }

    fn at(shell: &Shell, bin: &Path) -> Result<Self, Unusable> {
        let (rustc, cargo) = (bin.join("rustc"), bin.join("cargo"));
        for tool in [&rustc, &cargo] {
            if !tool.is_file() {
                return Err(Unusable::Missing(tool.clone()));
            }
        }
        let run = |arguments: &[&str]| {
            cmd!(shell, "{rustc} {arguments...}")
                .env_remove("RUSTUP_TOOLCHAIN")
                .quiet()
                .ignore_stderr()
                .read()
                .map_err(|_| Unusable::Broken(rustc.clone()))
        };
        let identity = identity(&run(&["-vV"])?).ok_or_else(|| Unusable::Broken(rustc.clone()))?;
        judge(&rustc, &identity, &run(&["--print", "target-cpus", "--target", TARGET]).unwrap_or_default())?;
        let core =
            PathBuf::from(run(&["--print", "sysroot"])?).join("lib/rustlib/src/rust/library/core/Cargo.toml");
        if !core.is_file() {
            return Err(Unusable::Missing(core));
        }
        Ok(Self { rustc, cargo, identity })
    }
}

/// Whether a compiler is the right one, by its identity and the devices that it can compile for.
fn judge(rustc: &Path, identity: &str, devices: &str) -> Result<(), Unusable> {
    if !identity.starts_with(&format!("rustc {VERSION} ")) {
        return Err(Unusable::Version(identity.to_owned()));
    }
    if !devices.contains("sm_70") {
        return Err(Unusable::NoBackEnd(rustc.to_owned()));
    }
    Ok(())
}

/// The `bin` folder of rustup's toolchain, if rustup has it.
fn rustup_bin(shell: &Shell) -> Option<PathBuf> {
    let sysroot =
        cmd!(shell, "rustup run {VERSION} rustc --print sysroot").quiet().ignore_stderr().read().ok()?;
    Some(PathBuf::from(sysroot).join("bin"))
}

/// One line from the many of `rustc -vV`.
fn identity(verbose: &str) -> Option<String> {
    let mut lines = verbose.lines();
    let rustc = lines.next()?;
    let llvm = lines.find_map(|line| line.strip_prefix("LLVM version: "))?;
    Some(format!("{rustc} LLVM {llvm}"))
}

/// Why a place has no usable compiler.
enum Unusable {
    Missing(PathBuf),
    Broken(PathBuf),
    Version(String),
    NoBackEnd(PathBuf),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::Missing(path) => write!(f, "{} is not there", path.display()),
            Unusable::Broken(path) => write!(f, "{} does not run", path.display()),
            Unusable::Version(identity) => write!(f, "{identity}, not {VERSION}"),
            Unusable::NoBackEnd(path) => write!(f, "{} has no NVPTX back end", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_is_identified_by_its_release_and_its_llvm() {
        let verbose = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nLLVM version: 22.1.8\n";
        assert_eq!(identity(verbose).unwrap(), "rustc 1.96.0 (ac68faa20 2026-05-25) LLVM 22.1.8");
        assert_eq!(identity("rustc 1.96.0\n"), None);
    }

    #[test]
    fn what_is_no_usable_compiler_is_refused_with_its_reason() {
        let empty = tempfile::tempdir().unwrap();
        let missing = Toolchain::at(&Shell::new().unwrap(), empty.path()).unwrap_err();
        assert!(missing.to_string().ends_with("rustc is not there"), "{missing}");

        let judged =
            |identity, devices| judge(Path::new("rustc"), identity, devices).map_err(|e| e.to_string());
        let old = "rustc 1.80.0 (0 2024-07-21) LLVM 18.1.7";
        assert_eq!(judged(old, "sm_70"), Err(format!("{old}, not 1.96.0")));
        let right = "rustc 1.96.0 (0 2026-05-25) LLVM 22.1.8";
        assert_eq!(judged(right, ""), Err("rustc has no NVPTX back end".to_owned()));
        assert_eq!(judged(right, "sm_60\nsm_70\n"), Ok(()));
    }
}
