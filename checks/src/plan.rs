//! The cases that the command line of the main job stands for.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use meshreduce::Collective;
use meshreduce_arguments::Plan;

use crate::cluster::Placement;
use crate::job::Case;

/// Threads or processes.
pub fn placement(plan: &Plan) -> Placement {
    if plan.threads { Placement::Threads } else { Placement::Processes }
}

/// Every combination that was asked for, by algorithm, collective, type and operation, then size. What a collective does not
/// look at is not varied.
///
/// # Errors
/// If a size is not a whole number of elements, or an algorithm is none of any collective that was asked for.
pub fn cases(plan: &Plan) -> Result<Vec<Case>> {
    let (offset, in_place) = (plan.offset, !plan.out_of_place);
    let mut cases = Vec::new();
    for algorithm in plan.algorithms() {
        let asked = plan.collectives();
        let mut served = asked.iter().copied().filter(|&collective| algorithm.serves(collective)).peekable();
        ensure!(
            served.peek().is_some(),
            "{algorithm} is no algorithm of {}",
            asked.iter().map(Collective::to_string).collect::<Vec<_>>().join(", ")
        );
        for collective in served {
            let mut dtypes = plan.dtypes();
            let mut ops = plan.ops();
            let mut sizes = plan.sizes();
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use clap::Parser;
    use meshreduce::Op;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        plan: Plan,
    }

    fn plan(line: &str) -> Result<Plan, clap::Error> {
        Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace())).map(|line| line.plan)
    }

    /// What `--all-nodes` stands for.
    pub(crate) fn of_all_nodes() -> Plan {
        plan("--all-nodes").unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn lists_are_crossed() {
        let plan = plan("--algorithm one-shot --dtype bf16,f32 --op sum,max --bytes 4KiB,1MiB").unwrap();
        let cases = cases(&plan).unwrap();
        assert_eq!(cases.len(), 8);
        assert_eq!(cases[1].bytes, 1 << 20);
        assert_eq!(cases[7].op, Op::Max);
    }

    #[test]
    fn other_collectives_go_by_their_own_algorithms_and_vary_what_they_look_at() {
        let some = cases(&plan("--collective all-gather,reduce --op sum,max --bytes 8").unwrap()).unwrap();
        let of = |collective| some.iter().filter(move |case| case.collective == collective);
        assert_eq!(of(Collective::AllGather).count(), 3 * 2, "three algorithms, elements of 2 and 4 bytes");
        assert_eq!(
            of(Collective::Reduce).count(),
            3 * 3 * 2,
            "three algorithms, three types, two operations"
        );
        assert_eq!(cases(&plan("--collective barrier").unwrap()).unwrap().len(), 3);
        let error = cases(&plan("--collective all-gather --algorithm one-shot").unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "one-shot is no algorithm of all-gather");
    }

    #[test]
    fn half_an_element_is_refused() {
        assert!(cases(&plan("--bytes 6 --dtype f32").unwrap()).is_err());
    }
}
