//! What is run in the machine.

/// One program with arguments, run alone.
pub(crate) struct Scenario {
    /// A word of letters, digits and underscores.
    pub(crate) name: &'static str,
    /// What it shows when it passes.
    pub(crate) shows: &'static str,
    /// Its package and its program.
    pub(crate) program: (&'static str, &'static str),
    pub(crate) arguments: &'static [&'static str],
    /// Whether libibverbs is the one that plays nvidia-peermem for emulated GPUs, or else the real one alone.
    pub(crate) peermem: bool,
    /// It is killed after that many seconds.
    pub(crate) seconds: u32,
    /// Whether it belongs to the short form.
    pub(crate) quick: bool,
}

const RDMA_CHECK: (&str, &str) = ("meshreduce-rdma-check", "rdma-check");

/// All scenarios, in the order in which they are run. Another one is another line.
#[rustfmt::skip]
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "devices", program: RDMA_CHECK, arguments: &["devices"], peermem: false, seconds: 60, quick: true,
        shows: "four NICs, each with an active port and a RoCE v2 address of its own" },
    Scenario { name: "devices-peermem", program: RDMA_CHECK, arguments: &["devices"], peermem: true, seconds: 60, quick: true,
        shows: "the same, through the library that plays nvidia-peermem" },
    Scenario { name: "rails", program: RDMA_CHECK, arguments: &["rails"], peermem: false, seconds: 120, quick: true,
        shows: "queue pairs connect within each rail, and fail by their deadline across rails" },
    Scenario { name: "host", program: RDMA_CHECK, arguments: &["transfer"], peermem: false, seconds: 180, quick: true,
        shows: "two processes write 1 MiB of host memory with immediate, ten times each way on each rail" },
    Scenario { name: "refused", program: RDMA_CHECK, arguments: &["refused"], peermem: false, seconds: 60, quick: true,
        shows: "errors of registration; without nvidia-peermem, device memory is EFAULT and a dma-buf is EOPNOTSUPP" },
    Scenario { name: "granted", program: RDMA_CHECK, arguments: &["granted"], peermem: true, seconds: 60, quick: true,
        shows: "with nvidia-peermem, any range of an allocation in device memory is registered, and nothing beyond it" },
    Scenario { name: "device", program: RDMA_CHECK, arguments: &["transfer", "--memory", "device"], peermem: true, seconds: 180, quick: true,
        shows: "two processes write 1 MiB of device memory with immediate, ten times each way on each rail" },
    Scenario { name: "dma-buf", program: RDMA_CHECK, arguments: &["transfer", "--memory", "dma-buf", "--count", "3"], peermem: true, seconds: 120, quick: true,
        shows: "the same for device memory registered as a dma-buf" },
    Scenario { name: "lost-peer", program: RDMA_CHECK, arguments: &["lost-peer"], peermem: false, seconds: 90, quick: true,
        shows: "writes to a process that was killed: the first fails with its retries, the others are flushed" },
    Scenario { name: "one-byte", program: RDMA_CHECK, arguments: &["transfer", "--memory", "device", "--bytes", "1", "--count", "200"], peermem: true, seconds: 180, quick: false,
        shows: "four hundred writes of one byte on each rail" },
    Scenario { name: "large", program: RDMA_CHECK, arguments: &["transfer", "--memory", "device", "--bytes", "67108864", "--count", "1", "--rail", "1"], peermem: true, seconds: 300, quick: false,
        shows: "writes of 64 MiB of device memory: eight times the longest message that soft RoCE announces" },
];
