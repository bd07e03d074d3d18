//! What the command line of the benchmark comes to.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use meshreduce::{Algorithm, DType, Isa, Op, Topology};
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
    /// Element type.
    pub dtype: DType,
    /// Operation.
    pub op: Op,
    /// Message size in bytes.
    pub bytes: usize,
}

impl Case {
    /// Elements.
    pub fn count(&self) -> usize {
        self.bytes / self.dtype.size()
    }
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

/// The ways that were asked for, without repetition.
fn ways(plan: &Plan) -> Vec<Way> {
    let all = || Algorithm::ALL.into_iter().map(Way::Forced).collect::<Vec<_>>();
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
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    ways
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
    let mut cases = Vec::new();
    for &dtype in &plan.dtype {
        for &op in &plan.op {
            for &bytes in &sizes.0 {
                ensure!(
                    bytes.is_multiple_of(dtype.size()),
                    "{bytes} bytes are not a whole number of {dtype} elements"
                );
                cases.push(Case { dtype, op, bytes });
            }
        }
    }
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
        ways: ways(plan),
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
