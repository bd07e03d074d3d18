//! Compiles a device crate to PTX, in the shape of Rust-CUDA's `CudaBuilder`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use meshreduce_wire::Isa;
use xshell::{Shell, cmd};

use crate::{ptx_lint, ptx_text, repository, toolchain::Toolchain};

/// Options of the compiler beside the target's. Panics become `trap`, since with unwinding or plain abort a call to a
/// function that is not there would stay. Jump threading may duplicate barriers (rust-lang/rust#137086).
const OPTIONS: &str = "-Zunstable-options -Cpanic=immediate-abort -Zmir-enable-passes=-JumpThreading";

/// A compilation of a device crate.
///
/// ```ignore
/// let texts = PtxBuilder::kernels(Isa::V70).build(&shell, &toolchain)?;
/// ```
#[derive(Clone, Debug)]
pub(crate) struct PtxBuilder {
    path: PathBuf,
    package: String,
    /// What it is compiled from beside its own folder: folders of crates, and files.
    also: Vec<PathBuf>,
    /// The compute capability that it is for, and later ones.
    arch: &'static str,
    /// The compiler's name of the PTX ISA.
    ptx_feature: &'static str,
    /// The crate's features.
    features: &'static [&'static str],
}

impl PtxBuilder {
    /// Of the library's kernels that there are for `isa`.
    pub(crate) fn kernels(isa: Isa) -> Self {
        let root = repository::root();
        let builder = Self::new(root.join("kernels-gpu"), "meshreduce-kernels", vec![root.join("wire")]);
        match isa {
            Isa::V84 => Self { arch: "sm_80", ptx_feature: "ptx84", features: &["b128"], ..builder },
            _ => builder,
        }
    }

    /// Of the kernels that measure the floor.
    pub(crate) fn floor() -> Self {
        let root = repository::root();
        let shared = ["signal", "time"].map(|module| root.join(format!("kernels-gpu/src/{module}.rs")));
        Self::new(root.join("bench/kernels-gpu"), "meshreduce-floor", shared.to_vec())
    }

    /// Of the crate in the folder `path`, which is compiled from what is there and from `also`.
    fn new(path: PathBuf, package: &str, also: Vec<PathBuf>) -> Self {
        Self { path, package: package.into(), also, arch: "sm_70", ptx_feature: "ptx70", features: &[] }
    }

    /// Digest of all that decides the text, the compiler aside: the sources, by path and content in the order of paths, and
    /// the recipe.
    pub(crate) fn sources_digest(&self) -> Result<String> {
        let mut files = Vec::new();
        for part in std::iter::once(&self.path).chain(&self.also) {
            if part.is_dir() {
                files.push(part.join("Cargo.toml"));
                collect(&part.join("src"), &mut files)?;
            } else {
                files.push(part.clone());
            }
        }
        files.push(self.path.join("Cargo.lock"));
        let mut named = BTreeMap::new();
        for file in files {
            let content = fs::read(&file).with_context(|| format!("reading {}", repository::shown(&file)))?;
            named.insert(repository::shown(&file), content);
        }
        let mut summary = format!("{} {}\n", self.rustflags(), self.features.join(","));
        for (name, content) in named {
            summary += &format!("{name} {}\n", ptx_text::sha256(&content));
        }
        Ok(ptx_text::sha256(summary.as_bytes()))
    }

    /// Compiles, splits, lints and stamps. Returns the texts by file stem.
    pub(crate) fn build(&self, shell: &Shell, toolchain: &Toolchain) -> Result<BTreeMap<String, String>> {
        let sources = self.sources_digest()?;
        let mut texts = ptx_text::split(&self.compile(shell, toolchain)?)?;
        for (stem, text) in &mut texts {
            let stamped = ptx_text::stamp(text, &toolchain.identity, &sources);
            let findings = ptx_lint::lint(&stamped);
            if !findings.is_empty() {
                let lines = findings.iter().map(|finding| finding.at(&format!("{stem}.ptx")));
                bail!("the compiler's PTX breaks the rules:\n{}", lines.collect::<Vec<_>>().join("\n"));
            }
            *text = stamped;
        }
        Ok(texts)
    }

    /// The name of the crate.
    pub(crate) fn package(&self) -> &str {
        &self.package
    }

    fn rustflags(&self) -> String {
        format!("-Ctarget-cpu={} -Ctarget-feature=+{} {OPTIONS}", self.arch, self.ptx_feature)
    }

    fn compile(&self, shell: &Shell, toolchain: &Toolchain) -> Result<String> {
        let key = ptx_text::sha256(format!("{}{}", toolchain.identity, self.rustflags()).as_bytes());
        let features = self.features.join(",");
        let target = repository::target().join("device").join(&key[..12]);
        let release = target.join("nvptx64-nvidia-cuda/release");
        // The crate itself is always compiled anew (`core` is not), so that exactly one assembly file is there.
        let library = format!("{}-", self.package.replace('-', "_"));
        remove_starting_with(&release.join("deps"), &library)?;
        remove_starting_with(&release.join(".fingerprint"), &format!("{}-", self.package))?;

        let _in_crate = shell.push_dir(&self.path);
        let Toolchain { rustc, cargo, .. } = toolchain;
        let output = cmd!(
            shell,
            "{cargo} rustc --release --locked --features={features} --target nvptx64-nvidia-cuda -Zbuild-std=core --crate-type rlib -- --emit=asm"
        )
        .env("RUSTC", rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", self.rustflags())
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN")
        .quiet()
        .ignore_status()
        .output()?;
        if !output.status.success() {
            bail!("the device crate does not compile:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        let mut assembly = files_starting_with(&release.join("deps"), &library)?;
        assembly.retain(|path| path.extension().is_some_and(|extension| extension == "s"));
        let [path] = assembly.as_slice() else {
            bail!(
                "{} assembly files in {} where one was expected",
                assembly.len(),
                release.join("deps").display()
            );
        };
        fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
    }
}

/// Writes texts into a folder and removes PTX from it that is not among them.
pub(crate) fn write(folder: &Path, texts: &BTreeMap<String, String>) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", repository::shown(folder)))?;
    for old in repository::ptx_files(folder)? {
        let kept =
            old.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| texts.contains_key(stem));
        if !kept {
            fs::remove_file(&old).with_context(|| format!("removing {}", repository::shown(&old)))?;
        }
    }
    for (stem, text) in texts {
        let path = folder.join(format!("{stem}.ptx"));
        fs::write(&path, text).with_context(|| format!("writing {}", repository::shown(&path)))?;
    }
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in folder.read_dir().with_context(|| format!("reading {}", repository::shown(folder)))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn files_starting_with(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let Ok(entries) = folder.read_dir() else { return Ok(Vec::new()) };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn remove_starting_with(folder: &Path, prefix: &str) -> Result<()> {
    for path in files_starting_with(folder, prefix)? {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}
