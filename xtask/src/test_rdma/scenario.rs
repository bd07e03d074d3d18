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
    /// Variables beside those that all have.
    pub(crate) environment: &'static [(&'static str, &'static str)],
    /// Whether libibverbs is the one that plays nvidia-peermem for emulated GPUs, or else the real one alone.
    pub(crate) peermem: bool,
    /// It is killed after that many seconds.
    pub(crate) seconds: u32,
    /// Whether it belongs to the short form.
    pub(crate) quick: bool,
}

const RDMA_CHECK: (&str, &str) = ("meshreduce-rdma-check", "rdma-check");
const CHANNEL_CHECK: (&str, &str) = ("meshreduce-checks", "channel-check");
const KV_CACHE: (&str, &str) = ("example-04_kv_cache", "04_kv_cache");

/// Soft RoCE has no PCI device, so GPUs are told their NICs: one rail each, the first side's end and the second's.
const MAP: &str = "cuda:0=rxa0;cuda:1=rxb0;cpu=rxa1";
/// Where sysfs is shown with the module nvidia-peermem in it; see `init.sh`.
const WITH_PEERMEM: (&str, &str) = ("MESHREDUCE_SYSFS", "/sys-with-peermem");

/// Arguments of `channel-check`: a scenario between the GPUs of two processes, and more.
macro_rules! between_gpus {
    ($scenario:literal $(, $more:literal)*) => {
        &["--scenario", $scenario, "--processes", "--a", "cuda:0", "--b", "cuda:1", "--nics", MAP, "--timeout", "17" $(, $more)*]
    };
}

/// As `between_gpus`, between the host memory of two processes.
macro_rules! between_hosts {
    ($scenario:literal $(, $more:literal)*) => {
        &["--scenario", $scenario, "--processes", "--nics", MAP, "--timeout", "17" $(, $more)*]
    };
}

/// All scenarios, in the order in which they are run. Another one is another line.
#[rustfmt::skip]
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "devices", program: RDMA_CHECK, arguments: &["devices"], environment: &[], peermem: false, seconds: 60, quick: true,
        shows: "four NICs, each with an active port and a RoCE v2 address of its own" },
    Scenario { name: "devices-peermem", program: RDMA_CHECK, arguments: &["devices"], environment: &[], peermem: true, seconds: 60, quick: true,
        shows: "the same, through the library that plays nvidia-peermem" },
    Scenario { name: "rails", program: RDMA_CHECK, arguments: &["rails"], environment: &[], peermem: false, seconds: 120, quick: true,
        shows: "queue pairs connect within each rail, and fail by their deadline across rails" },
    Scenario { name: "host", program: RDMA_CHECK, arguments: &["transfer", "--count", "4"], environment: &[], peermem: false, seconds: 180, quick: true,
        shows: "two processes write 1 MiB of host memory with immediate, four times each way on each rail" },
    Scenario { name: "refused", program: RDMA_CHECK, arguments: &["refused"], environment: &[], peermem: false, seconds: 60, quick: true,
        shows: "errors of registration; without nvidia-peermem, device memory is EFAULT and a dma-buf is EOPNOTSUPP" },
    Scenario { name: "granted", program: RDMA_CHECK, arguments: &["granted"], environment: &[], peermem: true, seconds: 60, quick: true,
        shows: "with nvidia-peermem, any range of an allocation in device memory is registered, and nothing beyond it" },
    Scenario { name: "device", program: RDMA_CHECK, arguments: &["transfer", "--memory", "device", "--count", "4"], environment: &[], peermem: true, seconds: 180, quick: true,
        shows: "two processes write 1 MiB of device memory with immediate, four times each way on each rail" },
    Scenario { name: "dma-buf", program: RDMA_CHECK, arguments: &["transfer", "--memory", "dma-buf", "--count", "3"], environment: &[], peermem: true, seconds: 120, quick: true,
        shows: "the same for device memory registered as a dma-buf" },
    Scenario { name: "lost-peer", program: RDMA_CHECK, arguments: &["lost-peer"], environment: &[], peermem: false, seconds: 90, quick: true,
        shows: "writes to a process that was killed: the first fails with its retries, the others are flushed" },
    Scenario { name: "one-byte", program: RDMA_CHECK, arguments: &["transfer", "--memory", "device", "--bytes", "1", "--count", "200"], environment: &[], peermem: true, seconds: 180, quick: false,
        shows: "four hundred writes of one byte on each rail" },
    Scenario { name: "large", program: RDMA_CHECK, arguments: &["transfer", "--memory", "device", "--bytes", "67108864", "--count", "1", "--rail", "1"], environment: &[], peermem: true, seconds: 300, quick: false,
        shows: "writes of 64 MiB of device memory: eight times the longest message that soft RoCE announces" },
    Scenario { name: "gdr-refused", program: CHANNEL_CHECK, arguments: between_gpus!["goes_by", "--channels", "gdr,basic", "--served-by", "basic", "--bytes", "10000"],
        environment: &[], peermem: false, seconds: 60, quick: true,
        shows: "without nvidia-peermem and dma-bufs, gdr serves no GPU, and the next channel does" },
    Scenario { name: "gdr-host", program: CHANNEL_CHECK, arguments: between_hosts!["transfers", "--count", "24", "--bytes", "300000"],
        environment: &[], peermem: false, seconds: 90, quick: true,
        shows: "gdr: transfers of changing lengths between the host memory of two processes, in both directions" },
    Scenario { name: "gdr-dma-buf", program: CHANNEL_CHECK, arguments: between_gpus!["transfers", "--count", "24", "--bytes", "300000"],
        environment: &[], peermem: true, seconds: 90, quick: true,
        shows: "gdr: the same between two GPUs, whose memory is registered as dma-bufs" },
    Scenario { name: "gdr-peermem", program: CHANNEL_CHECK, arguments: between_gpus!["transfers", "--count", "24", "--bytes", "300000", "--peermem-first"],
        environment: &[WITH_PEERMEM], peermem: true, seconds: 90, quick: true,
        shows: "gdr: the same, whose memory is registered by its address" },
    Scenario { name: "gdr-batches", program: CHANNEL_CHECK, arguments: between_gpus!["many_small_batches", "--count", "60"],
        environment: &[], peermem: true, seconds: 90, quick: true,
        shows: "gdr: batches of pages into a registered region, counted in order" },
    Scenario { name: "gdr-offsets", program: CHANNEL_CHECK, arguments: between_gpus!["offsets_in_allocations"],
        environment: &[], peermem: true, seconds: 90, quick: false,
        shows: "gdr: parts of allocations at any offset; what lies beside them stays" },
    Scenario { name: "gdr-lengths-differ", program: CHANNEL_CHECK, arguments: between_gpus!["lengths_that_differ"],
        environment: &[], peermem: true, seconds: 90, quick: false,
        shows: "gdr: lengths that differ are an error of both, and the channel goes on" },
    Scenario { name: "gdr-streams", program: CHANNEL_CHECK, arguments: between_gpus!["streams_are_waited_for_and_wait"],
        environment: &[], peermem: true, seconds: 180, quick: false,
        shows: "gdr: transfers wait for streams, and streams for transfers" },
    Scenario { name: "gdr-both-ways", program: CHANNEL_CHECK, arguments: between_gpus!["both_directions_at_once"],
        environment: &[], peermem: true, seconds: 240, quick: false,
        shows: "gdr: four of 6 MiB each way at the same time" },
    Scenario { name: "gdr-closed", program: CHANNEL_CHECK, arguments: between_gpus!["closed_during_transfers"],
        environment: &[], peermem: true, seconds: 180, quick: false,
        shows: "gdr: one side closes during transfers; all end with an error, and memory comes back" },
    Scenario { name: "gdr-many", program: CHANNEL_CHECK, arguments: between_gpus!["transfers", "--count", "1000", "--bytes", "100000"],
        environment: &[], peermem: true, seconds: 300, quick: false,
        shows: "gdr: a thousand transfers each way, every byte compared" },
    Scenario { name: "gdr-large", program: CHANNEL_CHECK, arguments: between_gpus!["lengths_up_to", "--bytes", "67108864"],
        environment: &[], peermem: true, seconds: 300, quick: false,
        shows: "gdr: from one byte to 64 MiB" },
    Scenario { name: "gdr-kills", program: CHANNEL_CHECK,
        arguments: between_gpus!["kills", "--kills", "10", "--stops", "3", "--silence-ms", "4000", "--bytes", "300000"],
        environment: &[], peermem: true, seconds: 300, quick: true,
        shows: "gdr: a peer that is killed (ten times) or stopped (three times) at a random moment is named in time, and nothing is left" },
    Scenario { name: "kv-cache", program: KV_CACHE, arguments: &["--layers", "3", "--pages", "8"],
        environment: &[("MESHREDUCE_CHANNELS", "gdr"), ("MESHREDUCE_NICS", MAP)], peermem: true, seconds: 120, quick: true,
        shows: "example 04_kv_cache, the same code as within a node, over soft RoCE" },
];
