//! The kernel's modules that the machine loads, in the order in which it must.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use object::Endianness;
use object::read::elf::ElfFile64;
use object::read::{Object as _, ObjectSection as _};

/// Soft RoCE, what it asks the kernel's cryptography for by name (so no module depends on it), and pairs of network devices.
const WANTED: [&str; 4] = ["crc32_generic", "crc32c_generic", "rdma_rxe", "veth"];

/// The files of the modules below `/lib/modules/VERSION`; each comes after those it depends on. What is built into the
/// kernel is not among them.
pub(crate) fn modules(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = BTreeMap::new();
    collect(&folder.join("kernel"), &mut files)?;
    let built_in = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let mut order = Vec::new();
    for name in WANTED {
        add(name, &files, &built_in, &mut order)?;
    }
    Ok(order)
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    built_in: &str,
    order: &mut Vec<PathBuf>,
) -> Result<()> {
    let Some(file) = files.get(name) else {
        if built_in.lines().any(|path| name_of(path).as_deref() == Some(name)) {
            return Ok(());
        }
        bail!("the kernel has no module {name}");
    };
    if order.contains(file) {
        return Ok(());
    }
    let data = fs::read(file)?;
    let depends = depends(&data).with_context(|| format!("reading {}", file.display()))?;
    for other in depends {
        add(&other, files, built_in, order)?;
    }
    order.push(file.clone());
    Ok(())
}

/// The modules that a module says it depends on.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    let file = ElfFile64::<Endianness>::parse(module)
        .context("not an ELF file (compressed modules, as of Debian 13, are not understood)")?;
    let information = file.section_by_name(".modinfo").context("no section .modinfo")?.data()?;
    let fields = information.split(|byte| *byte == 0).filter_map(|field| std::str::from_utf8(field).ok());
    let names = fields.filter_map(|field| field.strip_prefix("depends=")).flat_map(|names| names.split(','));
    Ok(names.filter(|name| !name.is_empty()).map(normal).collect())
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = path.to_str().and_then(name_of) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// A module's name, of its file: `net/ipv6/ip6-udp-tunnel.ko.xz` is `ip6_udp_tunnel`.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    file.split_once(".ko").map(|(name, _)| normal(name))
}

/// The kernel takes `-` and `_` for the same in a module's name.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_named_as_the_kernel_names_them() {
        assert_eq!(name_of("kernel/lib/crc-t10dif.ko").as_deref(), Some("crc_t10dif"));
        assert_eq!(name_of("rdma_rxe.ko.xz").as_deref(), Some("rdma_rxe"));
        assert_eq!(name_of("modules.builtin"), None);
    }

    #[test]
    fn a_module_that_is_built_in_is_not_loaded_and_one_that_is_nowhere_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("kernel")).unwrap();
        assert!(modules(folder.path()).unwrap_err().to_string().contains("crc32_generic"));
        let built_in = WANTED.map(|name| format!("kernel/x/{name}.ko\n")).concat();
        fs::write(folder.path().join("modules.builtin"), built_in).unwrap();
        assert_eq!(modules(folder.path()).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_is_no_module_says_so() {
        assert!(depends(b"\xfd7zXZ").is_err());
    }
}
