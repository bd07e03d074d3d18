//! Time over message size, both logarithmic, as SVG.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use svg::Document;
use svg::node::element::{Circle, Group, Line, Polyline, Rectangle, Text, Title};

use meshreduce::Collective;

use crate::row::{Mode, Place, Row};

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

/// Draws the out-of-place rows, or those in place where there are no others. `None` if there is nothing to draw.
pub fn draw(rows: &[Row], title: &str, warning: Option<&str>) -> Option<String> {
    draw_lines(&series(rows), title, warning)
}

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

fn series(rows: &[Row]) -> Series {
    let place = if rows.iter().any(|row| row.place == Place::Out) { Place::Out } else { Place::In };
    let mut series = Series::new();
    // A barrier has no size.
    for row in rows.iter().filter(|row| row.place == place && row.bytes > 0 && row.times.time_us > 0.0) {
        let mode = match row.mode {
            Mode::Plain => String::new(),
            Mode::Graph => format!(", graph x{}", row.graph_calls),
        };
        let Row { collective, implementation, algorithm, dtype, op, .. } = row;
        let other = match collective {
            Collective::AllReduce => String::new(),
            other => format!("{other} "),
        };
        let name = format!("{other}{implementation} {algorithm}, {dtype} {op}{mode}");
        series.entry(name).or_default().push((row.bytes as f64, row.times.time_us));
    }
    series.values_mut().for_each(|points| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    series
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Times;

    fn row(algorithm: &str, bytes: usize, time_us: f64) -> Row {
        Row {
            implementation: "meshreduce".into(),
            algorithm: algorithm.into(),
            mode: Mode::Plain,
            graph_calls: 1,
            place: Place::Out,
            dtype: "bf16".into(),
            op: "sum".into(),
            ranks: 2,
            bytes,
            count: bytes / 2,
            iterations: 1,
            times: Times {
                time_us,
                device_p50_us: 0.0,
                device_p99_us: 0.0,
                host_p50_us: 0.0,
                host_p99_us: 0.0,
            },
            algbw_gbps: 0.0,
            busbw_gbps: 0.0,
            wrong: None,
        }
    }

    #[test]
    fn every_way_is_a_line_with_a_point_a_size() {
        let rows = [row("one-shot", 2048, 20.0), row("one-shot", 1024, 3.0), row("two-shot", 1 << 20, 900.0)];
        let text = draw(&rows, "Title", Some("EMULATED")).unwrap();
        assert_eq!(text.matches("<polyline").count(), 2, "{text}");
        assert_eq!(text.matches("<circle").count(), 3, "{text}");
        assert!(text.contains("EMULATED") && text.contains("Title"), "{text}");
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn one_point_can_be_drawn_and_none_cannot() {
        assert!(!draw(&[row("one-shot", 1024, 1.0)], "", None).unwrap().contains("NaN"));
        assert!(draw(&[], "", None).is_none());
    }
}
