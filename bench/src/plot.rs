//! Time over message size, as SVG.
#![forbid(unsafe_code)]

pub use meshreduce_checks::curves::{Series, draw_lines};

use meshreduce::Collective;

use crate::row::{Mode, Place, Row};

/// Draws the out-of-place rows, or those in place where there are no others. `None` if there is nothing to draw.
pub fn draw(rows: &[Row], title: &str, warning: Option<&str>) -> Option<String> {
    draw_lines(&series(rows), title, warning)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Times;

    fn row(algorithm: &str, bytes: usize, time_us: f64) -> Row {
        Row {
            collective: meshreduce::Collective::AllReduce,
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
