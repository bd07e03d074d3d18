//! What the virtual machine is made of: QEMU, a kernel and a few programs, from the system or unpacked below
//! `target/rdma-vm`.
//!
//! What is missing is downloaded with apt and unpacked, not installed: that needs no root, upgrades nothing, and puts no
//! libibverbs where the dynamic loader of some other program finds it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use super::folder;
use crate::test_mpi::is_on_path;

/// A file that is needed, with the Debian package that has it, and where it may lie below `/` or what was unpacked.
struct Part {
    package: &'static str,
    paths: &'static [&'static str],
}

const QEMU: Part = Part { package: "qemu-system-x86", paths: &["usr/bin/qemu-system-x86_64"] };
const BUSYBOX: Part = Part { package: "busybox-static", paths: &["bin/busybox", "usr/bin/busybox"] };
const IP: Part = Part { package: "iproute2", paths: &["usr/sbin/ip", "sbin/ip", "usr/bin/ip"] };
const RDMA: Part = Part { package: "iproute2", paths: &["usr/bin/rdma", "usr/sbin/rdma", "bin/rdma"] };
const VERBS: Part = Part {
    package: "libibverbs1",
    paths: &[
        "usr/lib/x86_64-linux-gnu/libibverbs.so.1",
        "usr/lib64/libibverbs.so.1",
        "usr/lib/libibverbs.so.1",
    ],
};
const PROVIDER: Part = Part {
    package: "ibverbs-providers",
    paths: &[
        "usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav34.so",
        "usr/lib64/libibverbs/librxe-rdmav34.so",
        "usr/lib/libibverbs/librxe-rdmav34.so",
    ],
};
const PROVIDER_NAME: Part = Part { package: "ibverbs-providers", paths: &["etc/libibverbs.d/rxe.driver"] };
const ALL: [&Part; 7] = [&QEMU, &BUSYBOX, &IP, &RDMA, &VERBS, &PROVIDER, &PROVIDER_NAME];

/// The package that depends on the newest kernel.
const KERNEL: &str = "linux-image-amd64";
/// What is kept of a kernel's package.
const OF_KERNEL: [&str; 7] = [
    "./boot/vmlinuz-*",
    "./lib/modules/*/modules.builtin",
    "./lib/modules/*/kernel/crypto/*",
    "./lib/modules/*/kernel/drivers/infiniband/*",
    "./lib/modules/*/kernel/drivers/net/veth.ko*",
    "./lib/modules/*/kernel/lib/*",
    "./lib/modules/*/kernel/net/*",
];

/// Where everything is.
pub(crate) struct Packages {
    pub(crate) qemu: PathBuf,
    pub(crate) busybox: PathBuf,
    pub(crate) ip: PathBuf,
    pub(crate) rdma: PathBuf,
    /// The real libibverbs.
    pub(crate) verbs: PathBuf,
    /// libibverbs' part for soft RoCE, and the file that names it.
    pub(crate) provider: PathBuf,
    pub(crate) provider_name: PathBuf,
    pub(crate) kernel: PathBuf,
    /// `/lib/modules/VERSION` of the kernel.
    pub(crate) modules: PathBuf,
    /// Folders of unpacked libraries, for programs that were unpacked too.
    pub(crate) libraries: PathBuf,
    /// Folders of unpacked firmware, if QEMU was unpacked.
    pub(crate) firmware: Vec<PathBuf>,
}

/// What is not there.
pub(crate) struct Missing(Vec<&'static str>);

impl Missing {
    /// What to do about it.
    pub(crate) fn message(&self) -> String {
        let packages = self.0.join(" ");
        let unpacked = crate::repository::shown(&unpacked());
        format!(
            "not found: {packages}\n\
             `cargo xtask test-rdma --install` downloads these packages of Debian 12 with apt (some 90 MB) and unpacks them \
             in {unpacked}; the system stays as it is, and root is not needed.\n\
             All but the kernel may as well be installed: apt-get install --no-install-recommends qemu-system-x86 \
             busybox-static iproute2 ibverbs-providers"
        )
    }
}

/// Where packages are unpacked, as if it were `/`.
fn unpacked() -> PathBuf {
    folder().join("root")
}

impl Packages {
    /// Looks for everything, in the system first. `Err` names what is missing.
    pub(crate) fn find() -> Result<Self, Missing> {
        let missing = missing();
        let root = unpacked();
        let (Some((kernel, modules)), true) = (kernel(&root), missing.is_empty()) else {
            return Err(Missing(
                missing.into_iter().chain(kernel(&root).is_none().then_some(KERNEL)).collect(),
            ));
        };
        let at = |part: &Part| find(part).expect("nothing is missing");
        let qemu = at(&QEMU);
        let firmware = match qemu.starts_with(&root) {
            true => ["usr/share/qemu", "usr/share/seabios"].map(|path| root.join(path)).to_vec(),
            false => Vec::new(),
        };
        Ok(Self {
            qemu,
            busybox: at(&BUSYBOX),
            ip: at(&IP),
            rdma: at(&RDMA),
            verbs: at(&VERBS),
            provider: at(&PROVIDER),
            provider_name: at(&PROVIDER_NAME),
            kernel,
            modules,
            libraries: root.join("usr/lib/x86_64-linux-gnu"),
            firmware,
        })
    }

    /// Something in QEMU's place, and nothing else.
    #[cfg(test)]
    pub(crate) fn of_qemu(qemu: PathBuf) -> Self {
        let none = PathBuf::new;
        Self {
            qemu,
            busybox: none(),
            ip: none(),
            rdma: none(),
            verbs: none(),
            provider: none(),
            provider_name: none(),
            kernel: none(),
            modules: none(),
            libraries: none(),
            firmware: Vec::new(),
        }
    }

    /// Where a file would be if it had been installed: below `/`, and not where it was unpacked.
    pub(crate) fn in_system(&self, file: &Path) -> Result<PathBuf> {
        let below = file.strip_prefix(unpacked()).or_else(|_| file.strip_prefix("/"));
        Ok(Path::new("/").join(below.with_context(|| format!("{} is no absolute path", file.display()))?))
    }

    /// Downloads and unpacks what the system does not have; says how many bytes came.
    pub(crate) fn install(shell: &Shell) -> Result<u64> {
        ensure!(
            is_on_path("apt-get") && is_on_path("dpkg"),
            "apt and dpkg are needed for that: this is no Debian"
        );
        // Lists of packages may be old, or absent. Without root they stay as they are, and may do.
        cmd!(shell, "apt-get update -qq").quiet().ignore_status().ignore_stdout().ignore_stderr().run()?;
        let debs = tempfile::Builder::new().prefix("packages-").tempdir_in(folder())?;
        let _there = shell.push_dir(debs.path());
        let kernel = newest_kernel(shell)?;
        let names = with_dependencies(shell)?;
        cmd!(shell, "apt-get download -qq -o APT::Sandbox::User=root {names...} {kernel}")
            .quiet()
            .run()
            .context("downloading packages (as root, `apt-get update` comes before)")?;
        let root = tempfile::Builder::new().prefix("root-").tempdir_in(folder())?;
        let mut bytes = 0;
        for deb in fs::read_dir(debs.path())? {
            let deb = deb?;
            bytes += deb.metadata()?.len();
            match deb.file_name().to_string_lossy().starts_with(&format!("{kernel}_")) {
                true => unpack_kernel(&deb.path(), root.path())?,
                false => {
                    let (deb, root) = (deb.path(), root.path());
                    cmd!(shell, "dpkg --extract {deb} {root}").quiet().run()?;
                }
            }
        }
        let goal = unpacked();
        if goal.exists() {
            fs::remove_dir_all(&goal).with_context(|| format!("clearing {}", goal.display()))?;
        }
        fs::rename(root.keep(), &goal).with_context(|| format!("renaming to {}", goal.display()))?;
        Ok(bytes)
    }
}

/// Packages of parts that are nowhere, each once.
fn missing() -> Vec<&'static str> {
    let mut packages: Vec<_> =
        ALL.into_iter().filter(|part| find(part).is_none()).map(|part| part.package).collect();
    packages.dedup();
    packages
}

fn find(part: &Part) -> Option<PathBuf> {
    let roots = [PathBuf::from("/"), unpacked()];
    roots.iter().flat_map(|root| part.paths.iter().map(|path| root.join(path))).find(|path| path.is_file())
}

/// The kernel below a root, and its folder of modules.
fn kernel(root: &Path) -> Option<(PathBuf, PathBuf)> {
    fs::read_dir(root.join("boot")).ok()?.flatten().find_map(|entry| {
        let version = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        let modules = root.join("lib/modules").join(version);
        modules.is_dir().then(|| (entry.path(), modules))
    })
}

/// The package of the newest kernel.
fn newest_kernel(shell: &Shell) -> Result<String> {
    let depends = cmd!(shell, "apt-cache depends --important {KERNEL}").quiet().read()?;
    let name = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned));
    name.with_context(|| format!("apt knows no {KERNEL}; as root, `apt-get update` may help"))
}

/// The packages of the parts that the system does not have, and what these depend on and the system does not have either.
fn with_dependencies(shell: &Shell) -> Result<Vec<String>> {
    let in_system = |part: &Part| part.paths.iter().any(|path| Path::new("/").join(path).is_file());
    let packages: Vec<_> = ALL.into_iter().filter(|part| !in_system(part)).map(|part| part.package).collect();
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    let plan = cmd!(shell, "apt-get install --simulate --no-install-recommends {packages...}")
        .quiet()
        .read()
        .context("asking apt what to download")?;
    Ok(new_packages(&plan))
}

/// What a simulated installation would install and not merely upgrade: upgrades have the old version in brackets.
fn new_packages(plan: &str) -> Vec<String> {
    let installed = plan.lines().filter_map(|line| line.strip_prefix("Inst "));
    installed
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, rest)| !rest.starts_with('['))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// Unpacks what is needed of a kernel's package: all its modules would be 400 MB.
fn unpack_kernel(deb: &Path, root: &Path) -> Result<()> {
    let mut reader =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn()?;
    let archive = reader.stdout.take().context("it is piped")?;
    let extracted = Command::new("tar")
        .args(["--extract", "--wildcards", "--directory"])
        .arg(root)
        .args(OF_KERNEL)
        .stdin(archive)
        .status();
    let read = reader.wait()?;
    ensure!(
        extracted?.success() && read.success(),
        "{} cannot be read, or has another layout than Debian 12's kernels",
        deb.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_would_be_upgraded_are_not_new() {
        let plan = "Reading package lists...\n\
                    Inst seabios (1.16.2-1 Debian:12.14/oldstable [all])\n\
                    Inst udev [252.17-1] (252.39-1 Debian:12.14/oldstable [amd64]) [systemd:amd64 ]\n\
                    Remv qemu-utils [1:10.0.2]\n\
                    Inst libfdt1 (1.6.1-4+b1 Debian:12.14/oldstable [amd64])\n\
                    Conf seabios (1.16.2-1 Debian:12.14/oldstable [all])\n";
        assert_eq!(new_packages(plan), ["seabios", "libfdt1"]);
    }

    #[test]
    fn a_kernel_without_its_modules_is_none() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("boot")).unwrap();
        fs::write(root.path().join("boot/vmlinuz-6.1.0-1-amd64"), "").unwrap();
        assert!(kernel(root.path()).is_none());
        fs::create_dir_all(root.path().join("lib/modules/6.1.0-1-amd64")).unwrap();
        let (_, modules) = kernel(root.path()).unwrap();
        assert!(modules.ends_with("6.1.0-1-amd64"));
    }
}
