//! The command line of the benchmark, and what it stands for.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use meshreduce::{Algorithm, Collective, DType, Isa, Op, Topology};
use meshreduce_checks::job::ForcedTopology;

/// What to measure, and where.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// `real`: this machine's GPUs; else an emulated node, a shipped name or the file of a description
    /// [default: what MESHREDUCE_DRIVER says; else real GPUs, where enough are found; else hgx-h100]
    #[arg(long, value_name = "real|NAME|FILE")]
    pub node: Option<String>,
    /// Number of ranks, threads of one process [default: 8 or the number of GPUs; 2 with --shared-device]
    #[arg(long, value_name = "N")]
    pub ranks: Option<usize>,
    /// All ranks share the first GPU: measures protocol and kernels, not NVLink
    #[arg(long)]
    pub shared_device: bool,
    /// Takes the links for this, whatever they are; --shared-device does so anyway
    #[arg(long, value_name = "TOPOLOGY", conflicts_with = "shared_device")]
    pub force_topology: Option<ForcedTopology>,
    /// all-reduce, all-gather, reduce-scatter, broadcast, reduce, all-to-all or barrier; several with commas
    #[arg(long, value_name = "C", value_delimiter = ',', default_value = "all-reduce", value_parser = |text: &str| text.parse::<Collective>())]
    pub collective: Vec<Collective>,
    /// one-shot, two-shot, hybrid-cube-mesh, of other collectives exchange or reduce-scatter, by packets with -ll behind; auto: what
    /// the library selects; all; several with commas [default: all]
    #[arg(long, value_name = "A", value_delimiter = ',')]
    pub algorithm: Vec<Choice>,
    /// Latest PTX ISA whose texts may be used, 7.0 or 8.4: packets have 64 bits in the first, 128 in the second
    #[arg(long, value_name = "V", default_value = "8.4", value_parser = |text: &str| text.parse::<Isa>())]
    pub isa: Isa,
    /// bf16, f16 or f32; several with commas
    #[arg(long, value_name = "D", value_delimiter = ',', default_value = "bf16", value_parser = |text: &str| text.parse::<DType>())]
    pub dtype: Vec<DType>,
    /// sum, avg, min or max; several with commas
    #[arg(long, value_name = "O", value_delimiter = ',', default_value = "sum", value_parser = |text: &str| text.parse::<Op>())]
    pub op: Vec<Op>,
    /// Message sizes, of other collectives those of a slice from rank to rank: MIN..MAX (by doubling, MAX included) or a list with commas; bytes, or with the suffix KiB or MiB
    /// [default: 1KiB..10MiB; on an emulated node 1KiB,8KiB]
    #[arg(long, value_name = "MIN..MAX|LIST")]
    pub bytes: Option<Sizes>,
    /// Calls (replays of a graph) that are not measured, before those that are [default: 20; on an emulated node 1]
    #[arg(long, value_name = "N")]
    pub warmup: Option<usize>,
    /// Measured calls (replays of a graph) of every case [default: 1000; on an emulated node 5]
    #[arg(long, value_name = "N")]
    pub iterations: Option<usize>,
    /// Also replays of a CUDA graph of several calls
    #[arg(long)]
    pub graph: bool,
    /// Leave out the floor: the empty kernel and the flag round trip
    #[arg(long)]
    pub no_floor: bool,
    /// Leave out NCCL and torch's symmetric memory (run by python3, or MESHREDUCE_PYTHON, where that has torch)
    #[arg(long)]
    pub no_peers: bool,
    /// Seconds that each of the two may take; what it has not measured by then is not run
    #[arg(long, value_name = "SECONDS", default_value_t = 20.0)]
    pub peer_seconds: f64,
    /// Seconds that a kernel waits for a peer
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub deadline: f64,
    /// One JSON object a line, as it is measured, instead of tables
    #[arg(long)]
    pub json: bool,
    /// Also write the rows as CSV, as they are measured
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Also draw time over size
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// An algorithm, as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one, forced.
    One(Algorithm),
    /// The one that the library selects.
    Auto,
    /// Each one, forced.
    All,
}

impl FromStr for Choice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "all" => Ok(Self::All),
            name => match name.parse::<Algorithm>() {
                Ok(algorithm) => Ok(Self::One(algorithm)),
                Err(error) => bail!("{error}, auto or all"),
            },
        }
    }
}

/// Message sizes in bytes, in the order in which they are measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes(pub Vec<usize>);

impl FromStr for Sizes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((min, max)) = text.split_once("..") {
            let (min, max) = (size(min)?, size(max)?);
            ensure!(min <= max, "'{text}': the first size is larger than the last");
            let mut sizes: Vec<usize> = std::iter::successors(Some(min), |size| size.checked_mul(2))
                .take_while(|size| *size < max)
                .collect();
            sizes.push(max);
            return Ok(Self(sizes));
        }
        text.split(',').map(size).collect::<Result<_>>().map(Self)
    }
}

/// A size in bytes.
fn size(text: &str) -> Result<usize> {
    let (digits, unit) = match text.strip_suffix("MiB") {
        Some(digits) => (digits, 1 << 20),
        None => text.strip_suffix("KiB").map_or((text, 1), |digits| (digits, 1 << 10)),
    };
    let number: usize =
        digits.parse().with_context(|| format!("'{text}' is not a size such as 4096, 4KiB or 1MiB"))?;
    let bytes = number.checked_mul(unit).filter(|bytes| *bytes <= LONGEST);
    let bytes = bytes.with_context(|| format!("'{text}' is more than {} MiB", LONGEST >> 20))?;
    ensure!(bytes > 0, "a message of no bytes is not launched");
    Ok(bytes)
}

/// The longest message that a limit can be set to.
const LONGEST: usize = 1 << 30;

/// What is measured over one communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One algorithm, forced.
    Forced(Algorithm),
    /// The one that the library selects.
    Selected,
}

impl Way {
    /// The algorithm that is forced.
    pub fn forced(self) -> Option<Algorithm> {
        match self {
            Self::Forced(algorithm) => Some(algorithm),
            Self::Selected => None,
        }
    }

    /// How tables call it.
    pub fn name(self) -> &'static str {
        self.forced().map_or("auto", |algorithm| algorithm.name())
    }
}

/// One case: a message of one kind, one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Collective.
    pub collective: Collective,
    /// Element type.
    pub dtype: DType,
    /// Operation.
    pub op: Op,
    /// Bytes of the message, or of each slice.
    pub bytes: usize,
}

impl Case {
    /// Elements of the message, or of each slice.
    pub fn count(&self) -> usize {
        self.bytes / self.dtype.size()
    }

    /// What the table says of type and operation: `-` where the collective does not look at them.
    pub fn kind(&self) -> (String, String) {
        match self.collective {
            Collective::Barrier => ("-".into(), "-".into()),
            collective if collective.reduces() => (self.dtype.to_string(), self.op.to_string()),
            _ => (self.dtype.to_string(), "-".into()),
        }
    }
}

/// The cases of one collective, which vary what it looks at.
fn cases(collective: Collective, dtypes: &[DType], ops: &[Op], sizes: &[usize]) -> Result<Vec<Case>> {
    let (mut dtypes, mut ops, mut sizes) = (dtypes.to_vec(), ops.to_vec(), sizes.to_vec());
    if !collective.reduces() {
        ops.truncate(1);
    }
    if collective == Collective::Barrier {
        dtypes.truncate(1);
        sizes = vec![0];
    }
    let mut cases = Vec::new();
    for &dtype in &dtypes {
        for &op in &ops {
            for &bytes in &sizes {
                ensure!(
                    bytes.is_multiple_of(dtype.size()),
                    "{bytes} bytes are not a whole number of {dtype} elements"
                );
                cases.push(Case { collective, dtype, op, bytes });
            }
        }
    }
    Ok(cases)
}

/// What a plan comes to on a machine.
#[derive(Clone, Debug)]
pub struct Work {
    /// Number of ranks.
    pub ranks: usize,
    /// All ranks are on device 0.
    pub shared_device: bool,
    /// Taken for the topology whatever the links are.
    pub topology: Option<Topology>,
    /// The latest ISA whose texts may be used.
    pub isa: Isa,
    /// Ways, one communicator each.
    pub ways: Vec<Way>,
    /// Cases of every way.
    pub cases: Vec<Case>,
    /// Calls that are not measured.
    pub warmup: usize,
    /// Calls that are.
    pub iterations: usize,
    /// Calls of a graph; `None`: no graphs.
    pub graph_calls: Option<usize>,
    /// Round trips of the flag in a launch; `None`: the floor is not measured.
    pub floor: Option<u64>,
    /// How long a kernel waits.
    pub deadline: std::time::Duration,
}

impl Plan {
    /// The ways that were asked for, without repetition; of all algorithms those of any collective that was asked for.
    fn ways(&self) -> Result<Vec<Way>> {
        let serves = |algorithm: &Algorithm| self.collective.iter().any(|&one| algorithm.serves(one));
        let all = || Algorithm::every().filter(serves).map(Way::Forced).collect::<Vec<_>>();
        let asked: Vec<Way> = match self.algorithm.as_slice() {
            [] => all(),
            some => some
                .iter()
                .flat_map(|choice| match choice {
                    Choice::One(algorithm) => vec![Way::Forced(*algorithm)],
                    Choice::Auto => vec![Way::Selected],
                    Choice::All => all(),
                })
                .collect(),
        };
        let mut ways = Vec::new();
        for way in asked {
            if let Some(algorithm) = way.forced().filter(|algorithm| !serves(algorithm)) {
                let names: Vec<_> = self.collective.iter().map(Collective::to_string).collect();
                bail!("{algorithm} is no algorithm of {}", names.join(", "));
            }
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        Ok(ways)
    }

    /// Whether this algorithm was asked for by name.
    pub fn names(&self, way: Way) -> bool {
        self.algorithm.iter().any(|choice| match choice {
            Choice::One(algorithm) => way == Way::Forced(*algorithm),
            Choice::Auto => way == Way::Selected,
            Choice::All => false,
        })
    }

    /// What it comes to where there are `devices` GPUs.
    ///
    /// # Errors
    /// If there are too many ranks or too few, or a size is not a whole number of elements.
    pub fn work(&self, devices: usize, emulated: bool) -> Result<Work> {
        let ranks = self.ranks.unwrap_or(if self.shared_device { 2 } else { devices.min(8) });
        ensure!((2..=8).contains(&ranks), "{ranks} ranks: there must be 2 to 8");
        if self.shared_device {
            ensure!(devices > 0, "there is no GPU to share");
        } else {
            ensure!(
                ranks <= devices,
                "{ranks} ranks need as many GPUs, here are {devices}; --shared-device puts all ranks on one"
            );
        }
        let sizes = match &self.bytes {
            Some(sizes) => sizes.clone(),
            None if emulated => "1KiB,8KiB".parse()?,
            None => "1KiB..10MiB".parse()?,
        };
        let mut all = Vec::new();
        for &collective in &self.collective {
            all.extend(cases(collective, &self.dtype, &self.op, &sizes.0)?);
        }
        let cases = all;
        let iterations = self.iterations.unwrap_or(if emulated { 5 } else { 1_000 });
        if iterations == 0 || cases.is_empty() {
            bail!("nothing to do");
        }
        let deadline = std::time::Duration::try_from_secs_f64(self.deadline).context("the deadline")?;
        Ok(Work {
            ranks,
            shared_device: self.shared_device,
            topology: match self.shared_device {
                true => Some(Topology::FullyConnected),
                false => self.force_topology.map(Into::into),
            },
            isa: self.isa,
            ways: self.ways()?,
            cases,
            warmup: self.warmup.unwrap_or(if emulated { 1 } else { 20 }),
            iterations,
            graph_calls: self.graph.then_some(if emulated { 3 } else { 20 }),
            floor: (!self.no_floor).then_some(if emulated { 5 } else { 1_000 }),
            deadline,
        })
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

    fn plan(line: &str) -> Result<Plan, clap::Error> {
        Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace())).map(|line| line.plan)
    }

    #[test]
    fn a_range_doubles_and_ends_with_its_end() {
        let sizes = |text: &str| text.parse::<Sizes>().unwrap().0;
        assert_eq!(sizes("1KiB..8KiB"), [1024, 2048, 4096, 8192]);
        assert_eq!(sizes("4MiB..10MiB"), [4 << 20, 8 << 20, 10 << 20]);
        assert_eq!(sizes("64..64"), [64]);
        assert_eq!(sizes("64,1KiB,16"), [64, 1024, 16]);
    }

    #[test]
    fn what_is_no_size_or_range_is_refused() {
        for text in
            ["", "8..4", "..4", "4..", "0..8", "0", "1.5MiB", "-4", "2000MiB", "4,,8", "99999999999999999999"]
        {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
            assert!(plan(&format!("--bytes={text}")).is_err(), "{text}");
        }
        let halves = plan("--bytes 6 --dtype f32").unwrap().work(8, true).unwrap_err();
        assert!(halves.to_string().contains("whole number of f32"), "{halves}");
    }

    #[test]
    fn ranks_need_devices_unless_they_share_one() {
        let error = |line: &str, devices| plan(line).unwrap().work(devices, true).unwrap_err().to_string();
        assert!(error("--ranks 4", 2).contains("need as many GPUs"));
        assert!(error("--ranks 9 --shared-device", 1).contains("2 to 8"));
        assert!(error("--ranks 1", 8).contains("2 to 8"));
        assert!(error("", 1).contains("2 to 8"));
        assert!(error("--shared-device", 0).contains("no GPU"));
        assert_eq!(plan("--shared-device --ranks 8").unwrap().work(1, true).unwrap().ranks, 8);
        assert_eq!(plan("").unwrap().work(16, true).unwrap().ranks, 8);
        assert_eq!(plan("").unwrap().work(4, true).unwrap().ranks, 4);
    }

    #[test]
    fn algorithms_are_one_some_all_or_the_librarys_choice() {
        let ways = |line: &str| plan(line).unwrap().work(8, true).unwrap().ways;
        assert_eq!(ways(""), Algorithm::ALL.map(Way::Forced));
        assert_eq!(ways("--algorithm all"), Algorithm::ALL.map(Way::Forced));
        assert_eq!(ways("--algorithm auto,two-shot,auto"), [Way::Selected, Way::Forced(Algorithm::TwoShot)]);
        assert!(plan("--algorithm ring").is_err());
        let slices = [Algorithm::Exchange, Algorithm::ExchangeLl, Algorithm::CubeMeshExchangeLl];
        let slices = slices.map(Way::Forced);
        assert_eq!(ways("--collective all-gather,barrier"), slices);
        let error = plan("--collective reduce --algorithm exchange").unwrap().work(8, true).unwrap_err();
        assert_eq!(error.to_string(), "exchange is no algorithm of reduce");
    }

    #[test]
    fn collectives_vary_what_they_look_at() {
        let line = "--collective all-gather,reduce,barrier --op sum,max --dtype bf16,f32 --bytes 8,16";
        let cases = plan(line).unwrap().work(8, true).unwrap().cases;
        let of = |collective| cases.iter().filter(move |case| case.collective == collective);
        assert_eq!(of(Collective::AllGather).count(), 2 * 2);
        assert_eq!(of(Collective::Reduce).count(), 2 * 2 * 2);
        let barriers: Vec<_> = of(Collective::Barrier).map(|case| (case.bytes, case.kind())).collect();
        assert_eq!(barriers, [(0, ("-".into(), "-".into()))]);
    }

    #[test]
    fn an_isa_is_one_that_there_are_texts_in() {
        let isa = |line: &str| plan(line).map(|plan| plan.work(8, true).unwrap().isa);
        assert_eq!(isa("").unwrap(), Isa::V84);
        assert_eq!(isa("--isa 7.0").unwrap(), Isa::V70);
        assert!(isa("--isa 8.0").is_err());
    }

    #[test]
    fn what_is_not_given_depends_on_where_it_runs() {
        let emulated = plan("--graph").unwrap().work(8, true).unwrap();
        let real = plan("--graph").unwrap().work(8, false).unwrap();
        assert!(emulated.iterations < real.iterations && emulated.cases.len() < real.cases.len());
        assert_eq!(real.cases.last().unwrap().bytes, 10 << 20);
        assert!(plan("--iterations 0").unwrap().work(8, true).is_err());
    }
}
