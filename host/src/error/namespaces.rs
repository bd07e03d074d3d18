//! What CUDA's IPC needs two processes to share.
#![forbid(unsafe_code)]

/// Whether two processes share the namespaces that CUDA's IPC needs them to share. `None`: the system does not tell.
///
/// Containers have namespaces of their own, unless they are started otherwise; those of one Kubernetes pod share the
/// IPC namespace, but not that of process ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedNamespaces {
    /// The namespace of process ids, by which the driver looks for the process that exported the memory.
    pub pid: Option<bool>,
    /// The IPC namespace.
    pub ipc: Option<bool>,
}

impl SharedNamespaces {
    /// By the inodes of two processes' namespaces of process ids and their IPC namespaces, of which 0 is not known.
    pub(crate) fn of(pid: (u64, u64), ipc: (u64, u64)) -> Self {
        let same = |(one, other): (u64, u64)| (one != 0 && other != 0).then_some(one == other);
        Self { pid: same(pid), ipc: same(ipc) }
    }

    /// What a message says of them: the cure where they are not shared.
    pub(super) fn told(self) -> String {
        const CURE: &str = "run both in one container, or in containers that share the host's (docker run --pid=host \
                            --ipc=host), or in one pod (with shareProcessNamespace: true)";
        let kinds = |wanted: bool| {
            let kind = |name: &'static str, shared: Option<bool>| (shared == Some(wanted)).then_some(name);
            [kind("pid", self.pid), kind("IPC", self.ipc)]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" and ")
        };
        match (kinds(false), kinds(true)) {
            (apart, _) if !apart.is_empty() => format!(
                "; their processes are in different {apart} namespaces, and CUDA opens no memory across these: {CURE}"
            ),
            (_, shared) if !shared.is_empty() => format!("; their processes share the {shared} namespace"),
            _ => format!("; if their processes are in different pid or IPC namespaces, {CURE}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_compared_by_inode_if_both_are_known() {
        let SharedNamespaces { pid, ipc } = SharedNamespaces::of((7, 7), (8, 9));
        assert_eq!((pid, ipc), (Some(true), Some(false)));
        for ipc in [(0, 9), (9, 0), (0, 0)] {
            assert_eq!(SharedNamespaces::of((7, 8), ipc), SharedNamespaces { pid: Some(false), ipc: None });
        }
    }

    #[test]
    fn what_is_not_shared_is_named_with_the_cure() {
        let told = |pid, ipc| SharedNamespaces { pid, ipc }.told();
        let (yes, no) = (Some(true), Some(false));
        for (pid, ipc, named) in [
            (no, no, "different pid and IPC namespaces"),
            (no, yes, "different pid namespaces"),
            (no, None, "different pid namespaces"),
            (yes, no, "different IPC namespaces"),
            (None, None, "if their processes are in different"),
        ] {
            let told = told(pid, ipc);
            assert!(told.contains(named), "{told}");
            assert!(
                told.contains("--pid=host --ipc=host") && told.contains("shareProcessNamespace"),
                "{told}"
            );
        }
        assert_eq!(told(yes, yes), "; their processes share the pid and IPC namespace");
        assert_eq!(told(yes, None), "; their processes share the pid namespace");
    }
}
