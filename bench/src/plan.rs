//! What the command line of the benchmark comes to.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use meshreduce::{Algorithm, Collective, DType, Isa, Op, Topology};
use meshreduce_arguments::bench::{Choice, Plan};
use meshreduce_checks::job::topology;

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

/// The ways that were asked for, without repetition; of all algorithms those of any collective that was asked for.
fn ways(plan: &Plan) -> Result<Vec<Way>> {
    let serves = |algorithm: &Algorithm| plan.collective.iter().any(|&one| algorithm.serves(one));
    let all = || Algorithm::every().filter(serves).map(Way::Forced).collect::<Vec<_>>();
    let asked: Vec<Way> = match plan.algorithm.as_slice() {
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
            let names: Vec<_> = plan.collective.iter().map(Collective::to_string).collect();
            bail!("{algorithm} is no algorithm of {}", names.join(", "));
        }
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    Ok(ways)
}

/// Whether this algorithm was asked for by name.
pub fn names(plan: &Plan, way: Way) -> bool {
    plan.algorithm.iter().any(|choice| match choice {
        Choice::One(algorithm) => way == Way::Forced(*algorithm),
        Choice::Auto => way == Way::Selected,
        Choice::All => false,
    })
}

/// What it comes to where there are `devices` GPUs.
///
/// # Errors
/// If there are too many ranks or too few, or a size is not a whole number of elements.
pub fn work(plan: &Plan, devices: usize, emulated: bool) -> Result<Work> {
    let ranks = plan.ranks.unwrap_or(if plan.shared_device { 2 } else { devices.min(8) });
    ensure!((2..=8).contains(&ranks), "{ranks} ranks: there must be 2 to 8");
    if plan.shared_device {
        ensure!(devices > 0, "there is no GPU to share");
    } else {
        ensure!(
            ranks <= devices,
            "{ranks} ranks need as many GPUs, here are {devices}; --shared-device puts all ranks on one"
        );
    }
    let sizes = match &plan.bytes {
        Some(sizes) => sizes.clone(),
        None if emulated => "1KiB,8KiB".parse()?,
        None => "1KiB..10MiB".parse()?,
    };
    let mut all = Vec::new();
    for &collective in &plan.collective {
        all.extend(cases(collective, &plan.dtype, &plan.op, &sizes.0)?);
    }
    let cases = all;
    let iterations = plan.iterations.unwrap_or(if emulated { 5 } else { 1_000 });
    if iterations == 0 || cases.is_empty() {
        bail!("nothing to do");
    }
    let deadline = std::time::Duration::try_from_secs_f64(plan.deadline).context("the deadline")?;
    Ok(Work {
        ranks,
        shared_device: plan.shared_device,
        topology: match plan.shared_device {
            true => Some(Topology::FullyConnected),
            false => plan.force_topology.map(topology),
        },
        isa: plan.isa,
        ways: ways(plan)?,
        cases,
        warmup: plan.warmup.unwrap_or(if emulated { 1 } else { 20 }),
        iterations,
        graph_calls: plan.graph.then_some(if emulated { 3 } else { 20 }),
        floor: (!plan.no_floor).then_some(if emulated { 5 } else { 1_000 }),
        deadline,
    })
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
    fn half_an_element_is_refused() {
        let halves = work(&plan("--bytes 6 --dtype f32").unwrap(), 8, true).unwrap_err();
        assert!(halves.to_string().contains("whole number of f32"), "{halves}");
    }

    #[test]
    fn ranks_need_devices_unless_they_share_one() {
        let error = |line: &str, devices| work(&plan(line).unwrap(), devices, true).unwrap_err().to_string();
        assert!(error("--ranks 4", 2).contains("need as many GPUs"));
        assert!(error("--ranks 9 --shared-device", 1).contains("2 to 8"));
        assert!(error("--ranks 1", 8).contains("2 to 8"));
        assert!(error("", 1).contains("2 to 8"));
        assert!(error("--shared-device", 0).contains("no GPU"));
        assert_eq!(work(&plan("--shared-device --ranks 8").unwrap(), 1, true).unwrap().ranks, 8);
        assert_eq!(work(&plan("").unwrap(), 16, true).unwrap().ranks, 8);
        assert_eq!(work(&plan("").unwrap(), 4, true).unwrap().ranks, 4);
    }

    #[test]
    fn algorithms_are_one_some_all_or_the_librarys_choice() {
        let ways = |line: &str| work(&plan(line).unwrap(), 8, true).unwrap().ways;
        assert_eq!(ways(""), Algorithm::ALL.map(Way::Forced));
        assert_eq!(ways("--algorithm all"), Algorithm::ALL.map(Way::Forced));
        assert_eq!(ways("--algorithm auto,two-shot,auto"), [Way::Selected, Way::Forced(Algorithm::TwoShot)]);
        assert!(plan("--algorithm ring").is_err());
        let slices = [Algorithm::Exchange, Algorithm::ExchangeLl, Algorithm::CubeMeshExchangeLl];
        let slices = slices.map(Way::Forced);
        assert_eq!(ways("--collective all-gather,barrier"), slices);
        let error = work(&plan("--collective reduce --algorithm exchange").unwrap(), 8, true).unwrap_err();
        assert_eq!(error.to_string(), "exchange is no algorithm of reduce");
    }

    #[test]
    fn collectives_vary_what_they_look_at() {
        let line = "--collective all-gather,reduce,barrier --op sum,max --dtype bf16,f32 --bytes 8,16";
        let cases = work(&plan(line).unwrap(), 8, true).unwrap().cases;
        let of = |collective| cases.iter().filter(move |case| case.collective == collective);
        assert_eq!(of(Collective::AllGather).count(), 2 * 2);
        assert_eq!(of(Collective::Reduce).count(), 2 * 2 * 2);
        let barriers: Vec<_> = of(Collective::Barrier).map(|case| (case.bytes, case.kind())).collect();
        assert_eq!(barriers, [(0, ("-".into(), "-".into()))]);
    }

    #[test]
    fn an_isa_is_one_that_there_are_texts_in() {
        let isa = |line: &str| plan(line).map(|plan| work(&plan, 8, true).unwrap().isa);
        assert_eq!(isa("").unwrap(), Isa::V84);
        assert_eq!(isa("--isa 7.0").unwrap(), Isa::V70);
        assert!(isa("--isa 8.0").is_err());
    }

    #[test]
    fn what_is_not_given_depends_on_where_it_runs() {
        let emulated = work(&plan("--graph").unwrap(), 8, true).unwrap();
        let real = work(&plan("--graph").unwrap(), 8, false).unwrap();
        assert!(emulated.iterations < real.iterations && emulated.cases.len() < real.cases.len());
        assert_eq!(real.cases.last().unwrap().bytes, 10 << 20);
        assert!(work(&plan("--iterations 0").unwrap(), 8, true).is_err());
    }
}
