//! What did not run, and why: a line for every reason, however many cases it concerns.

use comfy_table::Table;

use super::Line;
use crate::tables;

/// Cases that did not run, by algorithm and reason.
#[derive(Default)]
pub(super) struct LeftOut {
    groups: Vec<Group>,
}

struct Group {
    /// The algorithm, or that it is all of them.
    algorithm: String,
    reason: String,
    cases: usize,
    /// Nodes, and numbers of ranks there.
    places: Vec<(String, Vec<usize>)>,
}

impl LeftOut {
    /// Adds what did not run of all cases of some ranks on one node.
    pub(super) fn add(&mut self, node: &str, ranks: usize, lines: &[Line]) {
        let of_all = lines.first().filter(|first| {
            lines.iter().all(|line| line.ok.is_none() && reason(line) == reason(first))
                && lines.iter().any(|line| line.algorithm != first.algorithm)
        });
        if let Some(first) = of_all {
            return self.group("all", reason(first), lines.len(), node, ranks);
        }
        for line in lines.iter().filter(|line| line.ok.is_none()) {
            self.group(&line.algorithm, reason(line), 1, node, ranks);
        }
    }

    fn group(&mut self, algorithm: &str, reason: &str, cases: usize, node: &str, ranks: usize) {
        let known =
            self.groups.iter_mut().find(|group| (&*group.algorithm, &*group.reason) == (algorithm, reason));
        let place = (node.to_owned(), vec![ranks]);
        let Some(group) = known else {
            let (algorithm, reason) = (algorithm.to_owned(), reason.to_owned());
            return self.groups.push(Group { algorithm, reason, cases, places: vec![place] });
        };
        group.cases += cases;
        match group.places.iter_mut().find(|(other, _)| other == node) {
            Some((_, numbers)) if numbers.contains(&ranks) => {}
            Some((_, numbers)) => numbers.push(ranks),
            None => group.places.push(place),
        }
    }

    /// The reasons, in the order in which they came.
    pub(super) fn reasons(&self) -> Vec<String> {
        self.groups.iter().map(|group| group.reason.clone()).collect()
    }

    /// A line for every reason.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.groups.iter().map(|Group { algorithm, reason, cases, .. }| {
            let subject = if algorithm == "all" { "all algorithms" } else { algorithm };
            format!("not run: {subject}, {cases} cases: {reason}")
        })
    }

    /// A row for every reason, with the places that it concerns; `None` if everything ran.
    pub(super) fn table(&self, width: u16) -> Option<Table> {
        if self.groups.is_empty() {
            return None;
        }
        let mut table = tables::table(width, ["not run", "cases", "why", "node and ranks"], &[1]);
        for Group { algorithm, reason, cases, places } in &self.groups {
            let places = places.iter().map(|(node, ranks)| {
                let ranks: Vec<String> = ranks.iter().map(ToString::to_string).collect();
                format!("{node} {}", ranks.join(" "))
            });
            let places = places.collect::<Vec<_>>().join("\n");
            table.add_row([algorithm.clone(), cases.to_string(), reason.clone(), places]);
        }
        Some(table)
    }
}

/// Why a case did not run, without what the group says already.
fn reason<'a>(line: &'a Line<'_>) -> &'a str {
    line.result.split_once("is not possible here: ").map_or(&line.result, |(_, why)| why)
}

#[cfg(test)]
mod tests {
    use super::super::tests::line;
    use super::*;

    const WHY: &str = "the topology is fully connected";

    #[test]
    fn cases_with_one_reason_are_one_line() {
        let refused = format!("hybrid-cube-mesh is not possible here: {WHY}");
        let mut lines: Vec<Line> = (0..12).map(|_| line("hybrid-cube-mesh", None, &refused)).collect();
        lines.push(line("one-shot", Some(true), "bit-identical"));
        let mut left_out = LeftOut::default();
        left_out.add("n", 8, &lines);
        let told: Vec<String> = left_out.lines().collect();
        assert_eq!(told, [format!("not run: hybrid-cube-mesh, 12 cases: {WHY}")]);
    }

    #[test]
    fn a_node_on_which_nothing_runs_is_one_line() {
        let lines: Vec<Line> = ["one-shot", "two-shot", "hybrid-cube-mesh"]
            .iter()
            .flat_map(|algorithm| (0..12).map(|_| line(algorithm, None, "no NVLink")))
            .collect();
        let mut left_out = LeftOut::default();
        left_out.add("n", 8, &lines);
        assert_eq!(left_out.lines().collect::<Vec<_>>(), ["not run: all algorithms, 36 cases: no NVLink"]);
        assert_eq!(left_out.reasons(), ["no NVLink"]);
    }

    #[test]
    fn a_reason_is_one_row_wherever_it_holds_and_fits_the_screen() {
        let mut left_out = LeftOut::default();
        assert!(left_out.table(80).is_none());
        let nodes: Vec<String> = (0..9).map(|node| format!("a-node-with-a-name-{node}")).collect();
        for ranks in [2, 4, 6, 8] {
            for node in &nodes {
                left_out.add(node, ranks, &[line("hybrid-cube-mesh", None, WHY)]);
            }
        }
        assert_eq!(left_out.groups.len(), 1);
        assert_eq!(left_out.groups[0].cases, 36);
        for width in [80, 120] {
            let table = left_out.table(width).unwrap();
            tables::assert_fits(&table, width.into());
            assert!(nodes.iter().all(|node| table.to_string().contains(node)), "{table}");
        }
    }
}
