//! How long the path of a kernel may be: one row a family.
//!
//! `holds` is what must be true now; `goal` is what is worth reaching, and where a family has reached it, the two are
//! the same. A family that ships and has no row fails the check, and so does a path that is longer than its row says. A
//! row for a family that does not ship yet binds its kernels from their first day.
#![forbid(unsafe_code)]

use super::Counted;

/// The most that a path may have, to the result's last store.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Round trips to other devices.
    pub trips: f64,
    /// Accesses to the own device's memory that wait for one another; `None`: any number.
    pub local: Option<u16>,
    /// Fences of system scope.
    pub system_fences: u16,
    /// Stores to other devices for whose acknowledgement a fence waits.
    pub acknowledgements: usize,
    /// Local accesses behind the result.
    pub behind: u16,
}

/// A family of kernels and its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What the kernels' names begin with, before type, operation and world size.
    pub family: &'static str,
    /// What must be true now.
    pub holds: Bound,
    /// What is worth reaching.
    pub goal: Bound,
}

/// Any number of local accesses.
pub const ANY: u16 = u16::MAX;

/// The rows: trips, local accesses, system fences, acknowledgements waited for, local accesses behind the result.
pub const RULES: [Rule; 18] = [
    row("one_shot", (1.5, 4, 1, 0, 0), (1.5, 4, 1, 0, 0)),
    row("two_shot", (3.0, 7, 2, 0, 0), (3.0, 6, 2, 0, 0)),
    row("hybrid_cube_mesh", (3.0, 6, 2, 0, 0), (3.0, 6, 2, 0, 0)),
    row("one_shot_ll", (0.5, 3, 0, 0, 0), (0.5, 3, 0, 0, 0)),
    row("one_shot_ll_b128", (0.5, 3, 0, 0, 0), (0.5, 3, 0, 0, 0)),
    row("two_shot_ll", (1.0, 5, 0, 0, 0), (1.0, 5, 0, 0, 0)),
    row("two_shot_ll_b128", (1.0, 5, 0, 0, 0), (1.0, 5, 0, 0, 0)),
    row("hybrid_cube_mesh_ll", (1.0, 5, 0, 0, 0), (1.0, 5, 0, 0, 0)),
    row("exchange", (1.5, 5, 1, 0, 0), (1.5, 4, 1, 0, 0)),
    row("exchange_ll", (0.5, 4, 0, 0, 0), (0.5, 3, 0, 0, 0)),
    row("exchange_ll_b128", (0.5, 4, 0, 0, 0), (0.5, 3, 0, 0, 0)),
    row("reduce_scatter", (1.5, 5, 1, 0, 0), (1.5, 4, 1, 0, 0)),
    row("reduce_scatter_ll", (0.5, 4, 0, 0, 0), (0.5, 3, 0, 0, 0)),
    row("reduce_scatter_ll_b128", (0.5, 4, 0, 0, 0), (0.5, 3, 0, 0, 0)),
    row("cube_mesh_exchange_ll", (1.0, 5, 0, 0, 0), (1.0, 5, 0, 0, 0)),
    row("cube_mesh_reduce_scatter_ll", (1.0, 5, 0, 0, 0), (1.0, 5, 0, 0, 0)),
    row("group_ll", (0.5, 3, 0, 0, 0), (0.5, 3, 0, 0, 0)),
    row("group_ll_b128", (0.5, 3, 0, 0, 0), (0.5, 3, 0, 0, 0)),
];

type Row = (f64, u16, u16, usize, u16);

const fn row(family: &'static str, holds: Row, goal: Row) -> Rule {
    Rule { family, holds: bound(holds), goal: bound(goal) }
}

const fn bound((trips, local, system_fences, acknowledgements, behind): Row) -> Bound {
    let local = if local == ANY { None } else { Some(local) };
    Bound { trips, local, system_fences, acknowledgements, behind }
}

/// The row of a family.
pub fn of<'a>(rules: &'a [Rule], family: &str) -> Option<&'a Rule> {
    rules.iter().find(|rule| rule.family == family)
}

/// What a counted path breaks, in words.
pub fn broken(rules: &[Rule], counted: &Counted) -> Vec<String> {
    let name = format!("{} over {} ranks, {} bytes", counted.family, counted.ranks, counted.bytes);
    let Some(Rule { holds, .. }) = of(rules, &counted.family) else {
        return vec![format!("{name}: its family has no rule")];
    };
    let mut all = Vec::new();
    let mut most = |what: &str, found: f64, bound: f64| {
        if found > bound {
            all.push(format!("{name}: {found} {what}, at most {bound} allowed"));
        }
    };
    most("round trips", counted.trips, holds.trips);
    most("local accesses in a row", counted.all_local().into(), holds.local.map_or(f64::INFINITY, f64::from));
    most("system fences", counted.system_fences.into(), holds.system_fences.into());
    let (found, bound) = (counted.acknowledgements as f64, holds.acknowledgements as f64);
    most("stores to other devices that a fence waits for", found, bound);
    most("local accesses behind the result", counted.behind.local.into(), holds.behind.into());
    most("accesses to host memory", counted.host.into(), 0.0);
    all
}

#[cfg(test)]
mod tests {
    use super::super::AfterResult;
    use super::*;

    const ROWS: [Rule; 1] = [row("ring", (2.5, 5, 1, 1, 2), (1.5, ANY, 1, 0, 0))];

    fn counted() -> Counted {
        Counted {
            family: "ring".to_owned(),
            ranks: 4,
            bytes: 8192,
            trips: 2.5,
            acknowledgements: 1,
            host: 0,
            local: vec![2, 3],
            system_fences: 1,
            gpu_fences: 3,
            behind: AfterResult { local: 2, ..AfterResult::default() },
            acknowledged_trips: 2.5,
        }
    }

    #[test]
    fn a_path_within_its_bounds_breaks_nothing() {
        assert_eq!(broken(&ROWS, &counted()), Vec::<String>::new());
    }

    #[test]
    fn every_bound_is_kept_and_a_family_without_a_row_is_told() {
        type Change = fn(&mut Counted);
        let changes: [(Change, &str); 7] = [
            (|counted| counted.trips = 3.0, "3 round trips, at most 2.5"),
            (|counted| counted.local = vec![2, 3, 1], "6 local accesses in a row, at most 5"),
            (|counted| counted.system_fences = 2, "2 system fences, at most 1"),
            (|counted| counted.acknowledgements = 2, "2 stores to other devices"),
            (|counted| counted.behind.local = 3, "3 local accesses behind"),
            (|counted| counted.host = 1, "1 accesses to host memory"),
            (|counted| counted.family = "star".to_owned(), "no rule"),
        ];
        for (change, expected) in changes {
            let mut counted = counted();
            change(&mut counted);
            let said = broken(&ROWS, &counted);
            assert!(said.len() == 1 && said[0].contains(expected), "{expected}: {said:?}");
        }
    }

    #[test]
    fn no_family_has_two_rows_and_no_goal_is_weaker_than_what_holds() {
        for (at, Rule { family, holds, goal }) in RULES.iter().enumerate() {
            assert_eq!(RULES.iter().position(|rule| rule.family == *family), Some(at));
            assert!(goal.trips <= holds.trips && goal.acknowledgements <= holds.acknowledgements, "{family}");
        }
    }
}
