//! What a program needs of the machine that it runs on, read from its ELF file.

use anyhow::{Context as _, Result, bail};
use object::elf::{DT_NEEDED, DT_RPATH, DT_RUNPATH, EM_X86_64, FileHeader64, PT_INTERP, SHT_SYMTAB};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _, SectionHeader as _};
use object::{Endianness, SectionIndex};

/// The newest glibc whose symbols may be needed.
const GLIBC: [u32; 2] = [2, 36];
/// What every machine with that glibc has.
const LIBRARIES: [&str; 6] =
    ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "libpthread.so.0", "libdl.so.2"];
const INTERPRETER: &str = "/lib64/ld-linux-x86-64.so.2";

/// What a program needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    machine: u16,
    interpreter: String,
    /// Dynamic libraries.
    libraries: Vec<String>,
    /// Symbol versions, such as `GLIBC_2.34`.
    versions: Vec<String>,
    /// Folders in which it looks for libraries.
    search_paths: Vec<String>,
    /// It has symbols that only a debugger wants.
    symbols: bool,
}

impl Needs {
    /// Reads an ELF file of 64 bits.
    pub(crate) fn of(data: &[u8]) -> Result<Self> {
        let header = FileHeader64::<Endianness>::parse(data).context("not an ELF file of 64 bits")?;
        let endian = header.endian()?;
        let sections = header.sections(endian, data)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
        let mut needs = Self { machine: header.e_machine(endian), ..Self::default() };
        for segment in
            header.program_headers(endian, data)?.iter().filter(|it| it.p_type(endian) == PT_INTERP)
        {
            let Ok(path) = segment.data(endian, data) else {
                bail!("the interpreter's name is not in the file")
            };
            needs.interpreter = text(path);
        }
        if let Some((entries, strings)) = sections.dynamic(endian, data)? {
            let strings = sections.strings(endian, data, strings)?;
            for entry in entries {
                let list = match entry.tag32(endian) {
                    Some(DT_NEEDED) => &mut needs.libraries,
                    Some(DT_RPATH | DT_RUNPATH) => &mut needs.search_paths,
                    _ => continue,
                };
                list.push(text(entry.string(endian, strings)?));
            }
        }
        if let Some((mut files, strings)) = sections.gnu_verneed(endian, data)? {
            let strings = sections.strings(endian, data, SectionIndex(strings.0))?;
            while let Some((_, mut versions)) = files.next()? {
                while let Some(version) = versions.next()? {
                    needs.versions.push(text(version.name(endian, strings)?));
                }
            }
        }
        needs.symbols = sections.iter().any(|section| section.sh_type(endian) == SHT_SYMTAB);
        Ok(needs)
    }

    /// Everything that keeps the program from running on a machine with that glibc and nothing else.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        if self.machine != EM_X86_64 {
            complaints.push(format!("it is for machine {}, not for x86-64", self.machine));
        }
        if self.interpreter != INTERPRETER {
            complaints.push(format!("its interpreter is {:?}, not {INTERPRETER}", self.interpreter));
        }
        let strange = self.libraries.iter().filter(|name| !LIBRARIES.contains(&name.as_str()));
        complaints.extend(strange.map(|name| format!("it needs the library {name}")));
        let newer = self.versions.iter().filter(|version| is_too_new(version));
        complaints.extend(newer.map(|version| format!("it needs a symbol of version {version}")));
        let paths = self.search_paths.iter();
        complaints.extend(paths.map(|path| format!("it looks for libraries in {path}")));
        if self.symbols {
            complaints.push("it is not stripped".to_owned());
        }
        complaints
    }
}

/// Whether glibc 2.36 does not have symbols of this version. (Other libraries' versions are as old as the libraries.)
fn is_too_new(version: &str) -> bool {
    let Some(numbers) = version.strip_prefix("GLIBC_") else { return false };
    let numbers: Option<Vec<u32>> = numbers.split('.').map(|number| number.parse().ok()).collect();
    // GLIBC_PRIVATE and the like belong to one build of glibc.
    numbers.is_none_or(|numbers| numbers.as_slice() > GLIBC.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs() -> Needs {
        Needs {
            machine: EM_X86_64,
            interpreter: INTERPRETER.to_owned(),
            libraries: vec!["libc.so.6".into(), "libm.so.6".into()],
            versions: vec!["GLIBC_2.2.5".into(), "GLIBC_2.36".into(), "GCC_3.0".into()],
            ..Needs::default()
        }
    }

    #[test]
    fn a_program_that_needs_glibc_alone_is_fine() {
        assert_eq!(needs().complaints(), Vec::<String>::new());
    }

    #[test]
    fn versions_are_numbers_not_text() {
        for fine in ["GLIBC_2.4", "GLIBC_2.2.5", "GLIBC_2.36", "GCC_4.2.0"] {
            assert!(!is_too_new(fine), "{fine}");
        }
        for new in
            ["GLIBC_2.37", "GLIBC_2.36.1", "GLIBC_3.0", "GLIBC_2.100", "GLIBC_PRIVATE", "GLIBC_ABI_DT_RELR"]
        {
            assert!(is_too_new(new), "{new}");
        }
    }

    #[test]
    fn everything_else_is_named() {
        let needs = Needs {
            machine: 183,
            interpreter: "/lib/ld-musl-x86_64.so.1".into(),
            libraries: vec!["libcuda.so.1".into(), "libc.so.6".into()],
            versions: vec!["GLIBC_2.38".into()],
            search_paths: vec!["/home/me/lib".into()],
            symbols: true,
        };
        let complaints = needs.complaints();
        assert_eq!(complaints.len(), 6, "{complaints:?}");
        for word in ["183", "musl", "libcuda.so.1", "GLIBC_2.38", "/home/me/lib", "stripped"] {
            assert!(complaints.iter().any(|complaint| complaint.contains(word)), "{word}: {complaints:?}");
        }
    }

    #[test]
    fn an_elf_file_is_read() {
        // This very program: built by the same toolchain, with its symbols.
        let data = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = Needs::of(&data).unwrap();
        assert!(needs.libraries.iter().any(|library| library == "libc.so.6"), "{needs:?}");
        assert!(needs.versions.iter().any(|version| version.starts_with("GLIBC_2.")), "{needs:?}");
        assert!(needs.interpreter.contains("ld-linux"), "{needs:?}");
        assert!(needs.symbols);
        assert!(Needs::of(b"#!/bin/sh\n").is_err());
    }
}
