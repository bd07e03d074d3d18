//! The command line of the main job, and the cases it stands for.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, ensure};
use clap::Args;
use meshreduce::{Algorithm, Collective, DType, Isa, Op};
use meshreduce_wire::{MAX_RANKS, MIN_RANKS};

use crate::cluster::Placement;
use crate::job::{Case, ForcedTopology};

/// What to run, and where.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Emulated node: a shipped name or the file of a description [default: hgx-h100, where no GPUs are found]
    #[arg(long, value_name = "NAME|FILE")]
    pub node: Option<String>,
    /// Every shipped node with several numbers of ranks, one table; what is not given is chosen to take a minute or two
    #[arg(long, conflicts_with = "node")]
    pub all_nodes: bool,
    /// Takes the links for this, whatever they are
    #[arg(long, value_name = "TOPOLOGY")]
    pub force_topology: Option<ForcedTopology>,
    /// Number of ranks, 2 to 8 [default: 8, or the number of real GPUs; with --all-nodes 2, 4, 6 and 8]
    #[arg(long, value_name = "N", value_parser = ranks)]
    pub ranks: Option<usize>,
    /// All ranks are threads of one process
    #[arg(long, conflicts_with = "processes")]
    pub threads: bool,
    /// Every rank is a process of its own (the default)
    #[arg(long)]
    pub processes: bool,
    /// all-reduce, all-gather, reduce-scatter, broadcast, reduce, all-to-all or barrier; several with commas [default: all-reduce]
    #[arg(long, value_name = "C", value_delimiter = ',', value_parser = |text: &str| text.parse::<Collective>())]
    pub collective: Vec<Collective>,
    /// one-shot, two-shot or hybrid-cube-mesh, of other collectives exchange or reduce-scatter, by packets with -ll behind; several
    /// with commas [default: all that are there]
    #[arg(long, value_name = "A", value_delimiter = ',', value_parser = |text: &str| text.parse::<Algorithm>())]
    pub algorithm: Vec<Algorithm>,
    /// bf16, f16 or f32; several with commas [default: all]
    #[arg(long, value_name = "D", value_delimiter = ',', value_parser = |text: &str| text.parse::<DType>())]
    pub dtype: Vec<DType>,
    /// sum, avg, min or max; several with commas [default: sum; with --all-nodes all]
    #[arg(long, value_name = "OP", value_delimiter = ',', value_parser = |text: &str| text.parse::<Op>())]
    pub op: Vec<Op>,
    /// Message sizes (of other collectives those of a slice) with commas: bytes, or with the suffix KiB or MiB; whole elements
    /// [default: 4,4KiB,60004,256KiB; with --all-nodes 4,4KiB,60004]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = bytes)]
    pub bytes: Vec<usize>,
    /// Elements by which the buffers are shifted from alignment
    #[arg(long, value_name = "ELEMENTS", default_value_t = 0)]
    pub offset: usize,
    /// Input and output are different buffers
    #[arg(long)]
    pub out_of_place: bool,
    /// Launches of every case [default: 3; with --all-nodes 1]
    #[arg(long, value_name = "N", value_parser = at_least_one::<usize>)]
    pub launches: Option<usize>,
    /// Seed of the random inputs
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// PTX text to run in place of the shipped one
    #[arg(long, value_name = "FILE")]
    pub ptx: Option<PathBuf>,
    /// Latest PTX ISA whose texts may be used, 7.0 or 8.4; with --adversary the only one [default: 8.4; with --adversary each]
    #[arg(long, value_name = "V", value_parser = |text: &str| text.parse::<Isa>())]
    pub isa: Option<Isa>,
    /// Seconds that a kernel waits for a peer
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    pub deadline: f64,
    /// Run the kernels on the adversary instead: one process, weak memory, hostile scheduling; `--seed` is the first seed
    #[arg(long)]
    pub adversary: bool,
    /// Seeds of every case for the adversary [default: 200; a tenth of them for the hybrid cube mesh among others]
    #[arg(long, value_name = "N", requires = "adversary", value_parser = at_least_one::<u64>)]
    pub seeds: Option<u64>,
    /// Print the interleaving that led to the adversary's finding, shortened
    #[arg(long, requires = "adversary")]
    pub explain: bool,
    /// One JSON object a line instead of a table
    #[arg(long)]
    pub json: bool,
}

impl Plan {
    /// Threads or processes.
    pub fn placement(&self) -> Placement {
        if self.threads { Placement::Threads } else { Placement::Processes }
    }

    /// The collectives that were asked for.
    pub fn collectives(&self) -> Vec<Collective> {
        or_else(&self.collective, &[Collective::AllReduce])
    }

    /// The algorithms that were asked for, of those that any of the collectives is made of.
    pub fn algorithms(&self) -> Vec<Algorithm> {
        let serving = |algorithm: &Algorithm| {
            self.collectives().into_iter().any(|collective| algorithm.serves(collective))
        };
        let all: Vec<Algorithm> = Algorithm::every().filter(serving).collect();
        or_else(&self.algorithm, &all)
    }

    /// The element types that were asked for.
    pub fn dtypes(&self) -> Vec<DType> {
        or_else(&self.dtype, &DType::ALL)
    }

    /// The operations that were asked for.
    pub fn ops(&self) -> Vec<Op> {
        or_else(&self.op, if self.all_nodes { &Op::ALL } else { &[Op::Sum] })
    }

    /// The message sizes that were asked for, in bytes.
    pub fn sizes(&self) -> Vec<usize> {
        const SIZES: [usize; 4] = [4, 4 << 10, 60_004, 256 << 10];
        or_else(&self.bytes, if self.all_nodes { &SIZES[..3] } else { &SIZES })
    }

    /// Launches of every case.
    pub fn launches(&self) -> usize {
        self.launches.unwrap_or(if self.all_nodes { 1 } else { 3 })
    }

    /// Every combination that was asked for, by algorithm, collective, type and operation, then size. What a collective does not
    /// look at is not varied.
    ///
    /// # Errors
    /// If a size is not a whole number of elements, or an algorithm is none of any collective that was asked for.
    pub fn cases(&self) -> Result<Vec<Case>> {
        let (offset, in_place) = (self.offset, !self.out_of_place);
        let mut cases = Vec::new();
        for algorithm in self.algorithms() {
            let asked = self.collectives();
            let mut served =
                asked.iter().copied().filter(|&collective| algorithm.serves(collective)).peekable();
            ensure!(
                served.peek().is_some(),
                "{algorithm} is no algorithm of {}",
                asked.iter().map(Collective::to_string).collect::<Vec<_>>().join(", ")
            );
            for collective in served {
                let mut dtypes = self.dtypes();
                let mut ops = self.ops();
                let mut sizes = self.sizes();
                if !collective.reduces() {
                    // Elements that move have a size alone.
                    dtypes.dedup_by_key(|dtype| dtype.size());
                    ops.truncate(1);
                }
                if collective == Collective::Barrier {
                    dtypes.truncate(1);
                    sizes.truncate(1);
                }
                for dtype in dtypes {
                    for &op in &ops {
                        for &bytes in &sizes {
                            ensure!(
                                bytes.is_multiple_of(dtype.size()) && bytes > 0,
                                "{bytes} bytes are not a whole number of {dtype} elements"
                            );
                            cases.push(Case { collective, algorithm, dtype, op, bytes, offset, in_place });
                        }
                    }
                }
            }
        }
        Ok(cases)
    }
}

/// What was given, or what stands for nothing.
fn or_else<T: Clone>(given: &[T], default: &[T]) -> Vec<T> {
    if given.is_empty() { default.to_vec() } else { given.to_vec() }
}

fn ranks(text: &str) -> Result<usize> {
    let ranks = text.parse().ok().filter(|ranks| (MIN_RANKS..=MAX_RANKS).contains(ranks));
    ranks.ok_or_else(|| anyhow::anyhow!("a communicator has {MIN_RANKS} to {MAX_RANKS} ranks"))
}

/// A time that a deadline can be.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=1e6).contains(&seconds) => Ok(seconds),
        _ => Err("a deadline is 0.001 to 1000000 seconds".to_owned()),
    }
}

fn at_least_one<T: FromStr + Default + PartialEq>(text: &str) -> Result<T> {
    let number = text.parse().ok().filter(|number| *number != T::default());
    number.ok_or_else(|| anyhow::anyhow!("it takes at least one"))
}

/// A size: bytes, or with the suffix KiB or MiB.
pub(crate) fn bytes(text: &str) -> Result<usize> {
    let (digits, unit) = match text.strip_suffix("MiB") {
        Some(digits) => (digits, 1 << 20),
        None => text.strip_suffix("KiB").map_or((text, 1), |digits| (digits, 1 << 10)),
    };
    let number: usize =
        digits.parse().map_err(|_| anyhow::anyhow!("'{text}' is not a size such as 4096, 4KiB or 1MiB"))?;
    number.checked_mul(unit).ok_or_else(|| anyhow::anyhow!("'{text}' is too large"))
}

#[cfg(test)]
impl Plan {
    /// What `--all-nodes` stands for.
    pub(crate) fn of_all_nodes() -> Self {
        tests::plan("--all-nodes").unwrap_or_else(|error| panic!("{error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        plan: Plan,
    }

    pub(super) fn plan(line: &str) -> Result<Plan, clap::Error> {
        Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace())).map(|line| line.plan)
    }

    #[test]
    fn lists_are_crossed() {
        let plan = plan("--algorithm one-shot --dtype bf16,f32 --op sum,max --bytes 4KiB,1MiB").unwrap();
        let cases = plan.cases().unwrap();
        assert_eq!(cases.len(), 8);
        assert_eq!(cases[1].bytes, 1 << 20);
        assert_eq!(cases[7].op, Op::Max);
    }

    #[test]
    fn other_collectives_go_by_their_own_algorithms_and_vary_what_they_look_at() {
        let cases = plan("--collective all-gather,reduce --op sum,max --bytes 8").unwrap().cases().unwrap();
        let of = |collective| cases.iter().filter(move |case| case.collective == collective);
        assert_eq!(of(Collective::AllGather).count(), 3 * 2, "three algorithms, elements of 2 and 4 bytes");
        assert_eq!(
            of(Collective::Reduce).count(),
            3 * 3 * 2,
            "three algorithms, three types, two operations"
        );
        assert_eq!(plan("--collective barrier").unwrap().cases().unwrap().len(), 3);
        let error = plan("--collective all-gather --algorithm one-shot").unwrap().cases().unwrap_err();
        assert_eq!(error.to_string(), "one-shot is no algorithm of all-gather");
    }

    #[test]
    fn what_is_not_given_depends_on_how_many_nodes_there_are() {
        let one = plan("").unwrap();
        assert_eq!((one.ops(), one.sizes().len(), one.launches()), (vec![Op::Sum], 4, 3));
        let all = plan("--all-nodes").unwrap();
        assert_eq!((all.ops(), all.sizes().len(), all.launches()), (Op::ALL.to_vec(), 3, 1));
        let given = plan("--all-nodes --op avg --bytes 8 --launches 2").unwrap();
        assert_eq!((given.ops(), given.sizes(), given.launches()), (vec![Op::Avg], vec![8], 2));
        assert!(plan("--all-nodes --node dgx-1v").is_err());
    }

    #[test]
    fn numbers_that_would_check_nothing_are_refused_with_what_is_allowed() {
        for ranks in ["0", "1", "9", "-2", "two"] {
            let error = plan(&format!("--ranks={ranks}")).unwrap_err().to_string();
            assert!(error.contains("2 to 8 ranks"), "{error}");
        }
        assert_eq!(plan("--ranks 8").unwrap().ranks, Some(8));
        for line in ["--launches 0", "--adversary --seeds 0"] {
            let error = plan(line).unwrap_err().to_string();
            assert!(error.contains("at least one"), "{error}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        assert_eq!(bytes("12").unwrap(), 12);
        assert_eq!(bytes("3KiB").unwrap(), 3072);
        for text in ["", "KiB", "-1", "1.5MiB", "4 KiB", "99999999999999999MiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        assert!(plan("--bytes 6 --dtype f32").unwrap().cases().is_err(), "half an element");
        assert!(plan("--algorithm ring").is_err());
        assert!(plan("--threads --processes").is_err());
    }
}
