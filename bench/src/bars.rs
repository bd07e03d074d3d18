//! Host cost as bars, as SVG.
#![forbid(unsafe_code)]

use svg::Document;
use svg::node::element::{Rectangle, Text, Title};

use crate::host_cost::Line;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 290.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const STEP: f64 = 26.0;

/// Draws what calls cost, in nanoseconds, medians. `None` if there are none.
pub fn draw(lines: &[Line]) -> Option<String> {
    let calls: Vec<_> = lines
        .iter()
        .filter_map(|line| match line {
            Line::HostCost { operation, nanos_p50, empty_launches, driver_calls, .. } => {
                Some((operation, *nanos_p50, *empty_launches, driver_calls.values().sum::<u64>()))
            }
            Line::Rendezvous { .. } => None,
        })
        .collect();
    let longest = calls.iter().map(|call| call.1).fold(0.0, f64::max);
    if longest <= 0.0 {
        return None;
    }
    let title = "Host cost of a call on a driver that does nothing (median)";
    let height = TOP + STEP * calls.len() as f64 + 14.0;
    let mut document = Document::new()
        .set("viewBox", (0, 0, WIDTH, height))
        .set("font-family", "sans-serif")
        .set("font-size", 12)
        .add(Title::new(title))
        .add(Rectangle::new().set("width", WIDTH).set("height", height).set("fill", "white"))
        .add(Text::new(title).set("x", 12).set("y", 24).set("font-size", 15));
    for (index, (operation, nanos, launches, driver_calls)) in calls.into_iter().enumerate() {
        let y = TOP + STEP * index as f64;
        let width = nanos / longest * (WIDTH - LEFT - RIGHT);
        let said = format!("{nanos:.0} ns, x{launches:.1}, {driver_calls} driver calls");
        document = document
            .add(
                Text::new(operation.as_str())
                    .set("x", LEFT - 8.0)
                    .set("y", y + 15.0)
                    .set("text-anchor", "end"),
            )
            .add(
                Rectangle::new()
                    .set("x", LEFT)
                    .set("y", y + 3.0)
                    .set("width", format!("{width:.1}"))
                    .set("height", STEP - 8.0)
                    .set("fill", if index == 0 { "#999999" } else { "#0072b2" }),
            )
            .add(
                Text::new(said)
                    .set("x", format!("{:.1}", LEFT + width + 6.0))
                    .set("y", y + 15.0)
                    .set("font-size", 11),
            );
    }
    Some(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(nanos_p50: f64) -> Line {
        Line::HostCost {
            operation: "select".into(),
            nanos_p50,
            nanos_p99: nanos_p50,
            empty_launches: 2.0,
            driver_calls: [("cuLaunchKernel".to_owned(), 3)].into(),
        }
    }

    #[test]
    fn every_call_is_a_bar_with_its_driver_calls() {
        let text = draw(&[line(20.0), line(10.0)]).unwrap();
        assert_eq!(text.matches("3 driver calls").count(), 2, "{text}");
        assert!(text.contains("width=\"420.0\"") && text.contains("width=\"210.0\""), "{text}");
        assert!(draw(&[]).is_none());
    }
}
