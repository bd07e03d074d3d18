//! The tables as text that fits 80 columns, and the page that holds them between two marks.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};

use super::rules::{Bound, Rule};
use super::{AfterResult, Counted};

const BEGIN: &str = "<!-- counted: begin -->\n";
const END: &str = "<!-- counted: end -->";

/// What the page has between its marks.
pub fn generated(all: &[Counted], rules: &[Rule]) -> String {
    format!("\n{}\n{}\n", counts(all), bounds(rules))
}

/// The page with its generated part replaced.
///
/// # Errors
/// If it lacks a mark.
pub fn filled(page: &str, generated: &str) -> Result<String> {
    let lacks = || format!("the page lacks its marks {} and {END}", BEGIN.trim());
    let (before, rest) = page.split_once(BEGIN).with_context(lacks)?;
    let (_, behind) = rest.split_once(END).with_context(lacks)?;
    Ok(format!("{before}{BEGIN}{generated}{END}{behind}"))
}

/// A row a call.
pub fn counts(all: &[Counted]) -> String {
    let header = ["kernel", "W", "size", "trips", "acks", "local", "behind", "sys", "gpu"];
    let rows = all.iter().map(|counted| {
        let Counted { behind, .. } = counted;
        let local: Vec<String> = counted.local.iter().map(u16::to_string).collect();
        [
            counted.family.clone(),
            counted.ranks.to_string(),
            size(counted.bytes),
            format!("{:.1}", counted.trips),
            counted.acknowledgements.to_string(),
            local.join("+"),
            told(behind),
            format!("{}+{}", counted.system_fences, behind.system_fences),
            format!("{}+{}", counted.gpu_fences, behind.gpu_fences),
        ]
    });
    table(header, rows.collect())
}

fn size(bytes: usize) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => bytes.to_string(),
    }
}

fn told(behind: &AfterResult) -> String {
    if behind.trips > 0.0 { format!("{:.1} rt", behind.trips) } else { behind.local.to_string() }
}

/// A row a family: what holds, and the goal.
pub fn bounds(rules: &[Rule]) -> String {
    let header = ["kernel", "", "trips", "acks", "local", "behind", "sys"];
    let cells = |name: &str, what: &str, bound: &Bound| {
        [
            name.to_owned(),
            what.to_owned(),
            format!("{:.1}", bound.trips),
            bound.acknowledgements.to_string(),
            bound.local.map_or_else(|| "-".to_owned(), |local| local.to_string()),
            bound.behind.to_string(),
            bound.system_fences.to_string(),
        ]
    };
    let rows = rules.iter().flat_map(|rule| {
        let goal = (rule.goal != rule.holds).then(|| cells("", "goal", &rule.goal));
        [cells(rule.family, if goal.is_some() { "holds" } else { "both" }, &rule.holds)]
            .into_iter()
            .chain(goal)
    });
    table(header, rows.collect())
}

/// Markdown, padded so that it is a table to the eye, too.
fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].len()).chain([header[at].len()]).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!(" {cell:width$} |"));
        format!("|{}\n", cells.collect::<String>())
    };
    let rule: String = widths.iter().map(|width| format!("{}|", "-".repeat(width + 2))).collect();
    let body = rows.iter().map(|row| line(std::array::from_fn(|at| row[at].as_str())));
    format!("{}|{rule}\n{}", line(header), body.collect::<String>())
}

#[cfg(test)]
mod tests {
    use meshreduce_wire::{DType, Op};

    use super::super::rules::{RULES, broken};
    use super::super::{Subject, count, shipped};
    use super::*;

    fn counted() -> Counted {
        Counted {
            family: "hybrid_cube_mesh_ll".to_owned(),
            ranks: 8,
            bytes: 1 << 20,
            trips: 10.5,
            acknowledgements: 1,
            host: 0,
            local: vec![12, 3, 14],
            system_fences: 1,
            gpu_fences: 0,
            behind: AfterResult { trips: 0.5, ..AfterResult::default() },
            acknowledged_trips: 2.5,
        }
    }

    #[test]
    fn tables_fit_eighty_columns() {
        let text = generated(&[counted()], &RULES);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(text.contains("| 1MiB | 10.5  | 1    | 12+3+14 | 0.5 rt |"), "{text}");
        let widths: Vec<usize> = text.lines().skip(1).take(3).map(str::len).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
    }

    #[test]
    fn the_page_is_what_the_shipped_kernels_give_and_no_path_is_too_long() {
        let all: Vec<Counted> = shipped()
            .into_iter()
            .map(|(algorithm, ranks, isa)| {
                let (dtype, op) = (DType::Bf16, Op::Sum);
                count(Subject { algorithm, ranks, isa, dtype, op, bytes: 8 << 10 }).unwrap().counted
            })
            .collect();
        let page = include_str!("../../../docs/path.md");
        assert_eq!(filled(page, &generated(&all, &RULES)).unwrap(), page, "`cargo xtask path` makes it anew");
        let broken: Vec<String> = all.iter().flat_map(|counted| broken(&RULES, counted)).collect();
        assert_eq!(broken, Vec::<String>::new());
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let page = format!("before\n{BEGIN}old\n{END}\nbehind\n");
        let new = filled(&page, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}new\n{END}\nbehind\n"));
        assert_eq!(filled(&new, "new\n").unwrap(), new);
        assert!(filled("no marks", "new").unwrap_err().to_string().contains("marks"));
    }
}
