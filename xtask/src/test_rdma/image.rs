//! The machine's first and only file system: programs, all libraries that they need, modules and scripts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use xshell::{Shell, cmd};

use super::Job;
use super::cpio::Archive;
use super::modules::modules;
use super::packages::Packages;

const INIT: &str = include_str!("init.sh");
/// Where the emulated node's libraries, the library that plays nvidia-peermem, and the programs are in the machine.
const NODE: &str = "/node";
const PEERMEM: &str = "/peermem/libibverbs-peermem.so";
const PROGRAMS: &str = "/programs";
/// Which node is emulated: the smallest with several GPUs.
const EMULATED: &str = "a100x4";

/// What the image is built of.
pub(crate) struct Content<'a> {
    pub(crate) packages: &'a Packages,
    /// The folder of the emulated node's libraries.
    pub(crate) node: &'a Path,
    /// The library that plays nvidia-peermem.
    pub(crate) peermem: &'a Path,
    pub(crate) jobs: &'a [Job],
}

impl Content<'_> {
    /// The whole image.
    pub(crate) fn pack(&self, shell: &Shell) -> Result<Vec<u8>> {
        let mut image = Image { archive: Archive::default(), shell, packages: self.packages };
        for (link, folder) in
            [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
        {
            image.archive.folder(folder)?;
            image.archive.link(link, folder)?;
        }
        for folder in ["proc", "sys", "dev", "tmp", "run", "applets"] {
            image.archive.folder(folder)?;
        }
        let Packages { busybox, ip, rdma, verbs, provider, provider_name, .. } = self.packages;
        image.file(busybox, Path::new("/bin/busybox"))?;
        for own in [ip, rdma, verbs, provider, provider_name] {
            image.with_libraries(own, &self.packages.in_system(own)?)?;
        }
        for library in fs::read_dir(self.node)? {
            let library = library?;
            // The stand-in for libibverbs, which has a folder of its own, is not wanted in the machine.
            if library.file_type()?.is_dir() {
                continue;
            }
            let place = Path::new(NODE).join(library.file_name());
            match fs::read_link(library.path()) {
                Ok(to) => image.archive.link(place, to)?,
                Err(_) => image.with_libraries(&library.path(), &place)?,
            }
        }
        image.with_libraries(self.peermem, Path::new(PEERMEM))?;
        let mut order = String::new();
        for module in modules(&self.packages.modules)? {
            let name = module.file_name().context("a file's name")?.to_str().context("a name in UTF-8")?;
            image.file(&module, &Path::new("/modules").join(name))?;
            order += &format!("{name}\n");
        }
        image.archive.file("/modules/order", order.as_bytes())?;
        for (number, job) in self.jobs.iter().enumerate() {
            let place = Path::new(PROGRAMS).join(job.program.file_name().context("a program's name")?);
            if !image.archive.has(&place) {
                image.with_libraries(&job.program, &place)?;
            }
            let script = self.script(job, &place)?;
            image.archive.file(format!("/scenarios/{number:03}.{}", job.name), script.as_bytes())?;
            image.archive.file(format!("/seconds/{}", job.name), format!("{}\n", job.seconds).as_bytes())?;
        }
        let placed = |path| Ok::<_, anyhow::Error>(self.packages.in_system(path)?.display().to_string());
        let init = INIT.replace("@IP@", &placed(ip)?).replace("@RDMA@", &placed(rdma)?);
        image.archive.file("/init", init.as_bytes())?;
        image.archive.finish()
    }

    /// What a scenario's shell is given.
    fn script(&self, job: &Job, program: &Path) -> Result<String> {
        let verbs = self.packages.in_system(&self.packages.verbs)?.display().to_string();
        let used = if job.peermem { PEERMEM } else { &verbs };
        let environment = [
            ("MESHREDUCE_VERBS", used),
            ("MESHREDUCE_REAL_VERBS", &verbs),
            ("MESHREDUCE_EMULATED_NODE", NODE),
            ("MESHREDUCE_DRIVER", &format!("{NODE}/libcuda.so.1")),
            ("MESHREDUCE_NCCL", &format!("{NODE}/libnccl.so.2")),
            ("NCCL_SOCKET_IFNAME", "lo"),
            ("MESHREDUCE_NODE", EMULATED),
            ("MESHREDUCE_NODE_ID", &job.name),
            ("RUST_BACKTRACE", "1"),
        ];
        let mut script = String::new();
        for (name, value) in environment.into_iter().chain(job.environment.iter().copied()) {
            script += &format!("export {name}={}\n", quoted(value));
        }
        let program = program.display().to_string();
        let words: Vec<String> =
            [&program].into_iter().chain(&job.arguments).map(|word| quoted(word)).collect();
        script += &format!("exec {}\n", words.join(" "));
        Ok(script)
    }
}

struct Image<'a> {
    archive: Archive,
    shell: &'a Shell,
    packages: &'a Packages,
}

impl Image<'_> {
    fn file(&mut self, from: &Path, to: &Path) -> Result<()> {
        let data = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.archive.file(to, &data)
    }

    /// A program or library, and all libraries that it is linked with, these at their places in the system.
    fn with_libraries(&mut self, from: &Path, to: &Path) -> Result<()> {
        if self.archive.has(to) {
            return Ok(());
        }
        self.file(from, to)?;
        let listed = cmd!(self.shell, "ldd {from}")
            .env("LD_LIBRARY_PATH", &self.packages.libraries)
            .quiet()
            .ignore_stderr()
            // It fails for what is no program, and has no libraries.
            .ignore_status()
            .read()?;
        for library in libraries(&listed).with_context(|| format!("{}", from.display()))? {
            let place = self.packages.in_system(&library)?;
            if !self.archive.has(&place) {
                self.file(&library, &place)?;
            }
        }
        Ok(())
    }
}

/// The paths in what `ldd` prints: `NAME => PATH (ADDRESS)`, and the dynamic loader as `PATH (ADDRESS)`.
fn libraries(listed: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in listed.lines().map(str::trim) {
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        if path == "not found" {
            bail!("it needs a library that is not there: {line}");
        }
        if let Some((path, _)) = path.split_once(" (").filter(|(path, _)| path.starts_with('/')) {
            found.push(path.into());
        }
    }
    Ok(found)
}

/// A word as the shell takes it, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_the_list_that_the_loader_prints() {
        let listed = "\tlinux-vdso.so.1 (0x00007fcaa6906000)\n\
                      \tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007fcaa68b9000)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007fcaa6908000)\n";
        let expected = ["/lib/x86_64-linux-gnu/libmnl.so.0", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(listed).unwrap(), expected.map(PathBuf::from));
        assert_eq!(libraries("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
        assert!(libraries("\tlibx.so => not found\n").unwrap_err().to_string().contains("libx.so"));
    }

    #[test]
    fn a_word_stays_one_word() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
