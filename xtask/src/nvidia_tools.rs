//! Where NVIDIA's programs are: from a CUDA toolkit, or from PyPI, which has each by itself.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use xshell::{Shell, cmd};

/// One of NVIDIA's programs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    /// Name of the program.
    pub(crate) name: &'static str,
    /// The environment variable that says where it is, before anything else is tried.
    variable: &'static str,
    /// How a reader gets it.
    pub(crate) how_to_get_it: &'static str,
}

/// The assembler.
pub(crate) const PTXAS: Tool = Tool {
    name: "ptxas",
    variable: "MESHREDUCE_PTXAS",
    how_to_get_it: "\
it comes with the CUDA toolkit (12.8 to 12.9 know all targets), and by itself from PyPI:
    python3 -m pip install nvidia-cuda-nvcc-cu12==12.9.86
it is looked for in MESHREDUCE_PTXAS, PATH and python3's packages",
};

/// The disassembler.
pub(crate) const NVDISASM: Tool = Tool {
    name: "nvdisasm",
    variable: "MESHREDUCE_NVDISASM",
    how_to_get_it: "\
it comes with the CUDA toolkit (12.8 and later know all targets), and by itself from PyPI:
    python3 -m pip install nvidia-cuda-nvdisasm==13.5.37
it is looked for in MESHREDUCE_NVDISASM, PATH and python3's packages",
};

impl Tool {
    /// The program, if it is anywhere.
    pub(crate) fn find(self, shell: &Shell) -> Result<Option<PathBuf>> {
        if let Some(path) = env::var_os(self.variable).map(PathBuf::from) {
            if !path.is_file() {
                bail!("{} is {}, which is no file", self.variable, path.display());
            }
            return Ok(Some(path));
        }
        let on_path = env::var_os("PATH").unwrap_or_default();
        let places = env::split_paths(&on_path).collect::<Vec<_>>();
        Ok(places
            .into_iter()
            .chain(python_places(shell))
            .map(|place| place.join(self.name))
            .find(|path| path.is_file()))
    }

    /// The version of the program at `path`, such as `12.9.86`.
    pub(crate) fn version(self, shell: &Shell, path: &Path) -> Result<String> {
        let said = cmd!(shell, "{path} --version").quiet().ignore_stderr().read()?;
        version_in(&said).with_context(|| format!("{} --version says no version:\n{said}", self.name))
    }
}

/// The version in what a program of the toolkit says of itself: `Cuda compilation tools, release 12.9, V12.9.86`.
fn version_in(said: &str) -> Option<String> {
    let (_, rest) = said.split_once(", V")?;
    rest.split_whitespace().next().map(str::to_owned)
}

/// Where NVIDIA's Python packages put their programs.
fn python_places(shell: &Shell) -> Vec<PathBuf> {
    let script = "import site, sys; print('\\n'.join([*site.getsitepackages(), site.getusersitepackages(), *sys.path]))";
    let folders = cmd!(shell, "python3 -c {script}").quiet().ignore_stderr().read().unwrap_or_default();
    let folders =
        folders.lines().filter(|folder| !folder.is_empty()).map(|folder| Path::new(folder).join("nvidia"));
    folders.flat_map(|nvidia| ["cuda_nvcc/bin", "cu12/bin", "cu13/bin"].map(|bin| nvidia.join(bin))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_full_one() {
        let said = "nvdisasm: NVIDIA (R) CUDA disassembler\nCuda compilation tools, release 13.5, V13.5.37\nBuild cuda_13\n";
        assert_eq!(version_in(said).as_deref(), Some("13.5.37"));
        assert_eq!(version_in("nvdisasm"), None);
    }
}
