//! The library as its users see it: which symbols it has, and what it says where there is no real libibverbs.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::Endianness;
use object::elf::{FileHeader64, SHN_UNDEF};
use object::read::elf::{FileHeader as _, Sym as _};

/// Where the library is; built for the profile of this test if it is not up to date.
fn library() -> PathBuf {
    // <target>/<profile>/deps/<test>
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "meshreduce-rdma-peermem", "--target-dir"]);
    build.arg(profile.parent().unwrap()).args(profile.ends_with("release").then_some("--release"));
    assert!(build.status().unwrap().success(), "the library does not build");
    profile.join("libmeshreduce_rdma_peermem.so")
}

/// Name and version of all symbols that a library defines, with `@` for a version that is only found when it is asked for.
fn symbols(file: &Path) -> BTreeSet<String> {
    let data = std::fs::read(file).unwrap();
    let data = data.as_slice();
    let header = FileHeader64::<Endianness>::parse(data).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, data).unwrap();
    let versions = sections.versions(endian, data).unwrap().expect("symbols have versions");
    let table = sections.symbols(endian, data, object::elf::SHT_DYNSYM).unwrap();
    let mut found = BTreeSet::new();
    for (index, symbol) in table.enumerate() {
        let version = versions.version_index(endian, index);
        if symbol.st_shndx(endian) == SHN_UNDEF || version.is_local() {
            continue;
        }
        let name = String::from_utf8_lossy(symbol.name(endian, table.strings()).unwrap()).into_owned();
        let text =
            versions.version(version).unwrap().map(|it| String::from_utf8_lossy(it.name()).into_owned());
        let mark = if version.is_hidden() { "@" } else { "@@" };
        found.insert(text.map_or(name.clone(), |text| format!("{name}{mark}{text}")));
    }
    found
}

/// The real library, of the system or of `cargo xtask test-rdma`.
fn real() -> Option<PathBuf> {
    let unpacked = library().ancestors().nth(2).unwrap().join("rdma-vm/root");
    let roots = [PathBuf::from("/"), unpacked];
    roots.iter().map(|root| root.join("usr/lib/x86_64-linux-gnu/libibverbs.so.1")).find(|file| file.is_file())
}

#[test]
fn every_public_symbol_of_the_real_library_is_here_with_its_version() {
    let Some(real) = real() else {
        eprintln!("skipping: there is no libibverbs to compare with (apt install libibverbs1)");
        return;
    };
    // Without the nodes of versions, which are symbols too. A newer library than Debian 12's may have more than 1.14, and
    // callers see that it is absent.
    let is_public = |symbol: &String| {
        symbol.split_once('@').is_some_and(|(name, version)| {
            let minor = version
                .trim_start_matches('@')
                .strip_prefix("IBVERBS_1.")
                .and_then(|it| it.parse::<u32>().ok());
            !name.starts_with("IBVERBS_") && minor.is_some_and(|minor| minor <= 14)
        })
    };
    let real: BTreeSet<_> = symbols(&real).into_iter().filter(is_public).collect();
    let ours = symbols(&library());
    assert!(real.contains("ibv_reg_mr@@IBVERBS_1.1") && real.contains("ibv_reg_mr@IBVERBS_1.0"), "{real:?}");
    let missing: Vec<_> = real.difference(&ours).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn nothing_but_libibverbs_symbols_is_visible() {
    let strange: Vec<_> = symbols(&library()).into_iter().filter(|name| !name.contains("IBVERBS_")).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn providers_do_not_get_this_library_for_the_real_one() {
    let data = std::fs::read(library()).unwrap();
    let header = FileHeader64::<Endianness>::parse(data.as_slice()).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, data.as_slice()).unwrap();
    let (entries, strings) = sections.dynamic(endian, data.as_slice()).unwrap().unwrap();
    let strings = sections.strings(endian, data.as_slice(), strings).unwrap();
    let soname = entries
        .iter()
        .find(|entry| object::read::elf::Dyn::tag32(*entry, endian) == Some(object::elf::DT_SONAME));
    let name = object::read::elf::Dyn::string(soname.unwrap(), endian, strings).unwrap();
    assert_eq!(name, b"libmeshreduce_rdma_peermem.so");
}

const CHILD: &str = "MESHREDUCE_TEST_CHILD";

#[test]
fn without_a_real_library_a_call_ends_the_process_and_the_reason_is_told() {
    if let Some(file) = std::env::var_os(CHILD) {
        // SAFETY: this repository's library, which runs nothing of anybody else's: there is no real one for it.
        unsafe {
            let library = libloading::Library::new(file).unwrap();
            let fork_init: libloading::Symbol<unsafe extern "C" fn() -> i32> =
                library.get("ibv_fork_init").unwrap();
            fork_init();
        }
        unreachable!("the call came back");
    }
    for (path, told) in [("/no/such/libibverbs.so.1", "no real libibverbs"), ("relative.so", "absolute path")]
    {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "without_a_real_library_a_call_ends_the_process_and_the_reason_is_told",
                "--nocapture",
            ])
            .env(CHILD, library())
            .env("MESHREDUCE_REAL_VERBS", path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(told) && said.contains(path), "{said}");
        assert!(said.contains("could not be opened") && !said.contains("came back"), "{said}");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(6), "{said}");
    }
}
