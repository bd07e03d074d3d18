//! The few shapes and colours that drawings are made of.
#![forbid(unsafe_code)]

use svg::node::element::{Circle, Line, Rectangle, Text};

/// A point of the drawing, in its user units.
pub type Point = (f64, f64);

/// What is drawn and written.
pub const INK: &str = "#1f2933";
/// What is secondary.
pub const FAINT: &str = "#66788a";
/// Links between devices.
pub const DIRECT: &str = "#3f6fb0";
/// Links that data are relayed over; what is far.
pub const RELAY: &str = "#d9731a";
/// Links to switches; what is near.
pub const SWITCH: &str = "#2f8f6b";
/// What is not there, or wrong.
pub const MISSING: &str = "#c62f3b";

/// How a connection looks.
#[derive(Clone, Copy)]
pub enum LineStyle {
    /// NVLinks: the colour, and how many.
    Links(&'static str, u32),
    /// Peer access without NVLink.
    Access,
    /// The link whose absence decides.
    Missing,
}

impl LineStyle {
    /// A line that looks so.
    pub fn line(self, (x1, y1): Point, (x2, y2): Point) -> Line {
        let line = Line::new().set("x1", n(x1)).set("y1", n(y1)).set("x2", n(x2)).set("y2", n(y2));
        let line = line.set("stroke-linecap", "round");
        match self {
            LineStyle::Links(colour, links) => {
                line.set("stroke", colour).set("stroke-width", n(width(links)))
            }
            LineStyle::Access => {
                line.set("stroke", "#a9b5c1").set("stroke-width", 1.2).set("stroke-dasharray", "1.5 5")
            }
            LineStyle::Missing => {
                line.set("stroke", MISSING).set("stroke-width", 2).set("stroke-dasharray", "7 6")
            }
        }
    }
}

/// Line width for a number of links: told apart up to a handful, bounded beyond.
fn width(links: u32) -> f64 {
    let links = f64::from(links);
    if links <= 6.0 { 0.5 + 1.9 * links } else { 11.9 + (links - 6.0) * 0.15 }
}

/// Two decimals are enough, and make drawings small and reproducible.
pub fn n(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Text that begins at a point of its base line.
pub fn text(content: impl Into<String>, (x, y): Point, size: u32, fill: &str) -> Text {
    Text::new(content).set("x", n(x)).set("y", n(y)).set("font-size", size).set("fill", fill)
}

/// Text in the middle above a point.
pub fn centred(content: impl Into<String>, at: Point, size: u32, fill: &str) -> Text {
    text(content, at, size, fill).set("text-anchor", "middle")
}

/// A rectangle by its upper left corner, with rounded corners.
pub fn rectangle((x, y): Point, (width, height): Point, radius: u32) -> Rectangle {
    let rectangle = Rectangle::new().set("x", n(x)).set("y", n(y)).set("rx", radius);
    rectangle.set("width", n(width)).set("height", n(height))
}

/// A circle by its middle.
pub fn circle((x, y): Point, radius: f64) -> Circle {
    Circle::new().set("cx", n(x)).set("cy", n(y)).set("r", n(radius))
}

/// The point that is `part` of the way from one to the other.
pub fn between(a: Point, b: Point, part: f64) -> Point {
    (a.0 + (b.0 - a.0) * part, a.1 + (b.1 - a.1) * part)
}
