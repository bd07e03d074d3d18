//! Lines over message size, both axes logarithmic, as SVG.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use svg::Document;
use svg::node::element::{Circle, Group, Line, Polyline, Rectangle, Text, Title};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 310.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 50.0;
/// Readable on white and told apart by who does not see all colours (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

/// Lines by name; points are size in bytes and time in microseconds, in the order of the sizes.
pub type Series = BTreeMap<String, Vec<(f64, f64)>>;

/// Draws lines. `None` if there is nothing to draw, or a size or time is not positive.
pub fn draw_lines(series: &Series, title: &str, warning: Option<&str>) -> Option<String> {
    let points = || series.values().flatten();
    let (sizes, times) =
        (Axis::over(points().map(|point| point.0), 2.0)?, Axis::over(points().map(|point| point.1), 10.0)?);
    let x = |size: f64| LEFT + sizes.share(size) * (WIDTH - LEFT - RIGHT);
    let y = |time: f64| HEIGHT - BOTTOM - times.share(time) * (HEIGHT - TOP - BOTTOM);
    let mut document = Document::new()
        .set("viewBox", (0, 0, WIDTH, HEIGHT))
        .set("font-family", "sans-serif")
        .set("font-size", 12)
        .add(Title::new(title))
        .add(Rectangle::new().set("width", WIDTH).set("height", HEIGHT).set("fill", "white"))
        .add(Text::new(title).set("x", LEFT).set("y", 22).set("font-size", 15));
    if let Some(warning) = warning {
        document = document.add(Text::new(warning).set("x", LEFT).set("y", 42).set("fill", "#d55e00"));
    }
    for size in sizes.ticks() {
        document = document.add(grid_line(x(size), TOP, x(size), HEIGHT - BOTTOM)).add(
            Text::new(bytes(size))
                .set("x", x(size))
                .set("y", HEIGHT - BOTTOM + 18.0)
                .set("text-anchor", "middle"),
        );
    }
    for time in times.ticks() {
        document = document.add(grid_line(LEFT, y(time), WIDTH - RIGHT, y(time))).add(
            Text::new(format!("{time} us"))
                .set("x", LEFT - 6.0)
                .set("y", y(time) + 4.0)
                .set("text-anchor", "end"),
        );
    }
    for (index, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let dash = if index < COLOURS.len() { "none" } else { "6 3" };
        let path: Vec<String> =
            points.iter().map(|(size, time)| format!("{:.1},{:.1}", x(*size), y(*time))).collect();
        let mut group = Group::new().set("stroke", colour).set("fill", colour).add(
            Polyline::new()
                .set("points", path.join(" "))
                .set("fill", "none")
                .set("stroke-width", 2)
                .set("stroke-dasharray", dash),
        );
        for (size, time) in points {
            group = group.add(Circle::new().set("cx", x(*size)).set("cy", y(*time)).set("r", 3));
        }
        let line = TOP + 18.0 * index as f64;
        document = document.add(group).add(
            Text::new(name.as_str()).set("x", WIDTH - RIGHT + 14.0).set("y", line + 10.0).set("fill", colour),
        );
    }
    Some(document.to_string())
}

fn grid_line(x1: f64, y1: f64, x2: f64, y2: f64) -> Line {
    Line::new().set("x1", x1).set("y1", y1).set("x2", x2).set("y2", y2).set("stroke", "#dddddd")
}

/// A logarithmic axis from one power of its base to another.
struct Axis {
    base: f64,
    first: i32,
    last: i32,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, base: f64) -> Option<Self> {
        let (low, high) =
            values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        if !(low > 0.0 && high.is_finite() && low <= high) {
            return None;
        }
        let first = (low.log(base) + 1e-9).floor() as i32;
        Some(Self { base, first, last: ((high.log(base) - 1e-9).ceil() as i32).max(first + 1) })
    }

    fn share(&self, value: f64) -> f64 {
        (value.log(self.base) - f64::from(self.first)) / f64::from(self.last - self.first)
    }

    /// Powers of the base, eight at most or so.
    fn ticks(&self) -> Vec<f64> {
        let step = ((self.last - self.first) / 8 + 1) as usize;
        (self.first..=self.last).step_by(step).map(|power| self.base.powi(power)).collect()
    }
}

fn bytes(size: f64) -> String {
    match size {
        size if size >= 1_048_576.0 => format!("{} MiB", size / 1_048_576.0),
        size if size >= 1024.0 => format!("{} KiB", size / 1024.0),
        size => format!("{size} B"),
    }
}
