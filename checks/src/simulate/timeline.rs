//! The timeline of one simulated call as SVG: a row for each rank and kind of step, and the critical path.
#![forbid(unsafe_code)]

use meshreduce_emulator_timed::{Step, StepKind};
use svg::Document;
use svg::node::element::{Group, Polyline, Title};

use super::Simulated;
use crate::shapes::{DIRECT, FAINT, INK, MISSING, Point, RELAY, SWITCH, n, rectangle, text};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 92.0;
/// Height of a row of steps of one kind.
const ROW: f64 = 9.0;
/// Rows of a rank: the kinds of [`row_of`], and one of space.
const ROWS: f64 = 6.0;
/// Steps of a row that are drawn at most, evenly chosen: a drawing is for the eye.
const MOST: usize = 400;

/// Draws a call whose steps were followed; `None` if there is nothing to draw.
pub fn draw(done: &Simulated, ranks: usize, title: &str) -> Option<String> {
    let end = done.steps.iter().map(|step| step.end).max().filter(|end| *end > 0)?;
    let x = |time: u64| LEFT + time as f64 / end as f64 * (WIDTH - LEFT - RIGHT);
    let y = |rank: usize, row: usize| TOP + rank as f64 * ROWS * ROW + row as f64 * ROW;
    let height = y(ranks, 0) + 70.0;
    let heading = format!("{title}, simulated");
    let mut document = Document::new()
        .set("viewBox", (0, 0, WIDTH, n(height)))
        .set("font-family", "sans-serif")
        .add(Title::new(heading.clone()))
        .add(rectangle((0.0, 0.0), (WIDTH, height), 0).set("fill", "#ffffff"))
        .add(text(heading, (LEFT, 26.0), 15, INK))
        .add(text(
            "SIMULATED, not measured; the line is the critical path to the result",
            (LEFT, 46.0),
            12,
            MISSING,
        ));
    let step = tick(end);
    for time in (0..=end).step_by(step as usize) {
        let at = x(time);
        document = document
            .add(rectangle((at, TOP - 8.0), (1.0, height - TOP - 50.0), 0).set("fill", "#e3e8ee"))
            .add(text(format!("{} us", time as f64 / 1e6), (at, TOP - 14.0), 11, FAINT));
    }
    for rank in 0..ranks {
        document = document.add(text(format!("rank {rank}"), (20.0, y(rank, 2) + 4.0), 12, INK));
        for (row, (name, colour)) in NAMES.iter().enumerate() {
            document = document.add(text(*name, (84.0, y(rank, row) + 8.0), 8, FAINT));
            let mine = |step: &&Step| step.device == rank && row_of(step.kind) == row;
            let steps: Vec<&Step> = done.steps.iter().filter(mine).collect();
            let mut group = Group::new().set("fill", *colour).set("fill-opacity", 0.35);
            for step in steps.iter().step_by(steps.len().div_ceil(MOST).max(1)) {
                let wide = (x(step.end) - x(step.begin)).max(0.6);
                group = group.add(rectangle((x(step.begin), y(rank, row)), (wide, ROW - 2.0), 0));
            }
            document = document.add(group);
        }
    }
    let corner = |step: &Step, time: u64| (x(time), y(step.device, row_of(step.kind)) + ROW / 2.0 - 1.0);
    let mut points: Vec<Point> = Vec::new();
    let mut before = 0;
    for named in &done.path {
        let step = &named.step;
        points.extend([corner(step, before.max(step.begin)), corner(step, step.end)]);
        before = step.end;
    }
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", x, y)).collect();
    let path = Polyline::new().set("points", points.join(" ")).set("fill", "none");
    let path = path.set("stroke", INK).set("stroke-width", 1.6).set("stroke-linejoin", "round");
    Some(document.add(path).to_string())
}

const NAMES: [(&str, &str); 5] = [
    ("load", SWITCH),
    ("load over NVLink", RELAY),
    ("store", DIRECT),
    ("store over NVLink", "#7b4fb0"),
    ("fence, barrier", MISSING),
];

fn row_of(kind: StepKind) -> usize {
    match kind {
        StepKind::Load | StepKind::Atomic | StepKind::Host => 0,
        StepKind::RemoteLoad | StepKind::RemoteAtomic => 1,
        StepKind::Store => 2,
        StepKind::RemoteStore => 3,
        StepKind::Fence | StepKind::Barrier => 4,
    }
}

/// Picoseconds between marks: a power of ten times 1, 2 or 5, so that there are ten at most.
fn tick(end: u64) -> u64 {
    let mut step = 1000;
    loop {
        for part in [1, 2, 5] {
            if end / (step * part) < 10 {
                return step * part;
            }
        }
        step *= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::Named;

    fn step(device: usize, kind: StepKind, begin: u64, end: u64) -> Step {
        let text = String::new();
        Step { kind, device, block: 0, warp: 0, line: 1, text, address: 0, begin, end }
    }

    fn done(steps: Vec<Step>) -> Simulated {
        let named = |step: &Step| Named { step: step.clone(), place: String::new() };
        Simulated {
            family: String::new(),
            result_us: 0.0,
            kernel_us: 0.0,
            wrong: 0,
            instructions: 0,
            path: steps.iter().map(named).collect(),
            steps,
        }
    }

    #[test]
    fn a_call_has_its_ranks_and_its_path_and_says_that_it_is_simulated() {
        let call = done(vec![
            step(1, StepKind::RemoteStore, 100_000, 700_000),
            step(0, StepKind::Load, 650_000, 900_000),
            step(0, StepKind::Store, 900_000, 1_000_000),
        ]);
        let drawn = draw(&call, 2, "Title").unwrap();
        assert!(drawn.contains("Title, simulated") && drawn.contains("SIMULATED"), "{drawn}");
        assert!(drawn.contains("rank 1") && !drawn.contains("rank 2"), "{drawn}");
        assert_eq!(drawn.matches("<polyline").count(), 1);
        assert!(!drawn.contains("NaN"));
    }

    #[test]
    fn nothing_cannot_be_drawn() {
        assert!(draw(&done(Vec::new()), 2, "").is_none());
    }

    #[test]
    fn there_are_ten_marks_at_most() {
        for end in [1, 999, 12_345, 9_999_999, 123_456_789_012] {
            assert!(end / tick(end) < 10, "{end}");
        }
    }
}
