//! The archive that a kernel unpacks as its first file system: cpio in its "newc" form, not compressed (the emulated
//! processor would unpack it slower than QEMU copies it).
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use anyhow::{Context, Result, ensure};

const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const PROGRAM: u32 = 0o100_755;

/// An archive that is being written. Folders above an entry are made where they are missing.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// Whether there is an entry of this name.
    pub(crate) fn has(&self, path: &Path) -> bool {
        name(path).is_ok_and(|name| self.names.contains(&name))
    }

    pub(crate) fn folder(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let name = name(path.as_ref())?;
        if name.is_empty() || self.names.contains(&name) {
            return Ok(());
        }
        self.entry(name, FOLDER, &[])
    }

    /// A file, which may be run.
    pub(crate) fn file(&mut self, path: impl AsRef<Path>, data: &[u8]) -> Result<()> {
        self.entry(name(path.as_ref())?, PROGRAM, data)
    }

    pub(crate) fn link(&mut self, path: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let to = to.as_ref().to_str().context("a link to no UTF-8")?;
        self.entry(name(path.as_ref())?, LINK, to.as_bytes())
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.raw("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, name: String, mode: u32, data: &[u8]) -> Result<()> {
        ensure!(!self.names.contains(&name), "/{name} is in the image already");
        if let Some((above, _)) = name.rsplit_once('/') {
            self.folder(above)?;
        }
        self.raw(&name, mode, data)?;
        self.names.insert(name);
        Ok(())
    }

    fn raw(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<()> {
        let length = u32::try_from(data.len()).context("a file beyond 4 GiB")?;
        let inode = u32::try_from(self.names.len())? + 1;
        let named = u32::try_from(name.len())? + 1;
        // Inode, mode, user, group, links, time, length, device twice, special device twice, length of the name, checksum.
        let numbers = [inode, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, named, 0];
        self.bytes.extend(b"070701");
        self.bytes.extend(numbers.iter().flat_map(|number| format!("{number:08X}").into_bytes()));
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A path as the archive has it: below the root, without dots. Debian's and most other systems have one folder for each of
/// these pairs, and the image has too.
fn name(path: &Path) -> Result<String> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::RootDir => {}
            Component::Normal(part) => parts.push(part.to_str().context("a name that is no UTF-8")?),
            _ => anyhow::bail!("{} is no plain path", path.display()),
        }
    }
    let below_usr = matches!(parts.first(), Some(&("bin" | "sbin" | "lib" | "lib64"))) && parts.len() > 1;
    let name = parts.join("/");
    Ok(if below_usr { format!("usr/{name}") } else { name })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and data of all entries, read as the kernel does.
    fn entries(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            assert_eq!(&archive[..6], b"070701");
            let number = |at: usize| {
                let digits = std::str::from_utf8(&archive[6 + 8 * at..14 + 8 * at]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, length, named) = (number(1), number(6) as usize, number(11) as usize);
            let name = std::str::from_utf8(&archive[110..110 + named - 1]).unwrap().to_owned();
            assert_eq!(archive[110 + named - 1], 0);
            let data = (110 + named).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, mode, archive[data..data + length].to_vec()));
            archive = &archive[(data + length).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_is_put_in_comes_out_with_the_folders_above_it() {
        let mut archive = Archive::default();
        archive.link("lib", "usr/lib").unwrap();
        archive.file("/lib/x/a.so", b"abcde").unwrap();
        archive.file("/usr/lib/x/b", b"").unwrap();
        assert!(archive.has(Path::new("/lib/x/a.so")) && archive.has(Path::new("/usr/lib/x/a.so")));
        let bytes = archive.finish().unwrap();
        let entries = entries(&bytes);
        let found: Vec<_> =
            entries.iter().map(|(name, mode, data)| (name.as_str(), *mode, &data[..])).collect();
        assert_eq!(
            found,
            [
                ("lib", LINK, &b"usr/lib"[..]),
                ("usr", FOLDER, b""),
                ("usr/lib", FOLDER, b""),
                ("usr/lib/x", FOLDER, b""),
                ("usr/lib/x/a.so", PROGRAM, b"abcde"),
                ("usr/lib/x/b", PROGRAM, b""),
            ]
        );
    }

    #[test]
    fn two_files_of_one_name_and_paths_with_dots_are_refused() {
        let mut archive = Archive::default();
        archive.file("/a", b"1").unwrap();
        assert!(archive.file("a", b"2").is_err());
        assert!(archive.file("/b/../a", b"2").is_err());
    }
}
