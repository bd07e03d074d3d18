//! What the system allows this process, as far as channels depend on it.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, geteuid, getrlimit};
use serde::{Deserialize, Serialize};

/// Limits, rights and namespaces of this process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct System {
    /// Bytes that the process may lock in memory; `None`: any.
    pub memlock: Option<u64>,
    /// The process may lock memory beyond the limit.
    pub ipc_lock: bool,
    /// It is root in its user namespace.
    pub root: bool,
    /// Its namespaces.
    pub namespaces: Vec<Namespace>,
    /// Device files of NICs; `None`: there is no folder for them.
    pub uverbs: Option<Vec<Uverbs>>,
}

/// A namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Namespace {
    /// `pid`, `user`, `net`.
    pub kind: String,
    /// Its number.
    pub number: u64,
    /// It is the machine's first one; `None`: the kernel gives that one no fixed number.
    pub initial: Option<bool>,
}

/// The device file of a NIC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Uverbs {
    /// Its name in `/dev/infiniband`.
    pub name: String,
    /// The process may open it.
    pub usable: bool,
}

/// Numbers of the machine's first namespaces (`include/linux/proc_ns.h`).
const INITIAL: [(&str, Option<u64>); 4] =
    [("pid", Some(0xEFFF_FFFC)), ("user", Some(0xEFFF_FFFD)), ("ipc", Some(0xEFFF_FFFF)), ("net", None)];

/// The bit of `CAP_IPC_LOCK`.
const CAP_IPC_LOCK: u32 = 14;

impl System {
    /// Asks the kernel.
    pub fn of_this_process() -> Self {
        let namespaces = INITIAL.iter().filter_map(|(kind, initial)| {
            let link = fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
            // `pid:[4026531836]`
            let number = link.to_str()?.split('[').nth(1)?.trim_end_matches(']').parse().ok()?;
            Some(Namespace {
                kind: (*kind).to_owned(),
                number,
                initial: initial.map(|initial| initial == number),
            })
        });
        Self {
            memlock: getrlimit(Resource::Memlock).current,
            ipc_lock: fs::read_to_string("/proc/self/status")
                .is_ok_and(|status| has_capability(&status, CAP_IPC_LOCK)),
            root: geteuid().is_root(),
            namespaces: namespaces.collect(),
            uverbs: uverbs(Path::new("/dev/infiniband")),
        }
    }

    /// A namespace by its kind.
    pub fn namespace(&self, kind: &str) -> Option<&Namespace> {
        self.namespaces.iter().find(|namespace| namespace.kind == kind)
    }
}

/// Whether the effective capabilities of `/proc/PID/status` have a bit.
fn has_capability(status: &str, bit: u32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    set.is_some_and(|set| set >> bit & 1 == 1)
}

fn uverbs(folder: &Path) -> Option<Vec<Uverbs>> {
    let entries = fs::read_dir(folder).ok()?;
    let mut found: Vec<Uverbs> = entries
        .filter_map(|entry| {
            let name =
                entry.ok()?.file_name().into_string().ok().filter(|name| name.starts_with("uverbs"))?;
            // Opening one does nothing yet; it is what the library does first.
            let usable = fs::OpenOptions::new().read(true).write(true).open(folder.join(&name)).is_ok();
            Some(Uverbs { name, usable })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_bits_of_the_effective_set() {
        let status = "Name:\tx\nCapInh:\t0000000000004000\nCapEff:\t0000000000004001\n";
        assert!(has_capability(status, 14) && has_capability(status, 0));
        assert!(!has_capability(status, 13));
        assert!(!has_capability("CapEff:\tnone\n", 0) && !has_capability("", 0));
    }

    #[test]
    fn this_process_has_namespaces_with_numbers() {
        let system = System::of_this_process();
        assert!(system.namespace("pid").is_some_and(|pid| pid.number > 0 && pid.initial.is_some()));
        assert!(system.namespace("net").is_some_and(|net| net.initial.is_none()));
    }

    #[test]
    fn device_files_that_may_not_be_opened_are_told() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("uverbs0"), "").unwrap();
        // Not even root opens a folder for writing.
        fs::create_dir(folder.path().join("uverbs1")).unwrap();
        fs::write(folder.path().join("rdma_cm"), "").unwrap();
        let found = uverbs(folder.path()).unwrap();
        let told: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.usable)).collect();
        assert_eq!(told, [("uverbs0", true), ("uverbs1", false)]);
        assert!(uverbs(&folder.path().join("nowhere")).is_none());
    }
}
