//! The measurement: all ways take turns, size by size, round by round, beside plain copies.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::copies::{Copies, window};
use super::near::{FarEnds, Open};
use super::row::{Absent, Extra, Line, Row};
use super::way::Way;

/// How a plain copy, and one through slots, are called.
pub(crate) const COPY: &str = "one memcpy";
pub(crate) const CHAINED: &str = "two memcpys through slots";

/// What is to be measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) sizes: Vec<usize>,
    pub(crate) rounds: usize,
    pub(crate) slice_ms: u64,
    /// Names of kinds; empty: all.
    pub(crate) kinds: Vec<String>,
    /// Without the GPUs.
    pub(crate) host_only: bool,
}

/// Says what there is, as it is measured.
fn say(line: &Line) -> Result<()> {
    let mut output = std::io::stdout();
    writeln!(output, "{}", serde_json::to_string(line)?)?;
    Ok(output.flush()?)
}

/// Measures in this process and a child, and says so line by line on standard output.
///
/// # Errors
/// What is wrong with a way that could be opened: a wrong byte, a lost peer.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    let mut fars = FarEnds::default();
    let mut open = Vec::new();
    let wanted = |way: &Way| {
        (plan.kinds.is_empty() || plan.kinds.contains(&way.kind)) && !(plan.host_only && way.device)
    };
    for (number, way) in Way::all().iter().filter(|way| wanted(way)).enumerate() {
        match Open::new(way, number, &mut fars) {
            Ok(one) => open.push(one),
            Err(error) => say(&Line::Absent(Absent { way: way.name(), why: format!("{error:#}") }))?,
        }
    }
    let slice = Duration::from_millis(plan.slice_ms);
    for &bytes in &plan.sizes {
        messages(bytes, plan.rounds, slice, &mut open, &mut fars)?;
    }
    extras(&mut open, &mut fars)?;
    for one in open {
        one.close(&mut fars)?;
    }
    Ok(())
}

fn messages(
    bytes: usize,
    rounds: usize,
    slice: Duration,
    open: &mut [Open],
    fars: &mut FarEnds,
) -> Result<()> {
    let mut copies = Copies::new(bytes);
    let (mut of_copies, mut followed) = ([Vec::new(), Vec::new()], Vec::new());
    let mut looks: Vec<(Vec<f64>, Vec<f64>)> = open.iter().map(|_| Default::default()).collect();
    // The first round is not counted: memory is mapped, slots are made, a size's time is not known.
    for round in 0..=rounds {
        say(&Line::Progress { what: format!("{bytes} bytes, round {round} of {rounds}") })?;
        let begun = std::time::Instant::now();
        while begun.elapsed() < slice {
            let (one, chained) = (copies.one(bytes), copies.chained(bytes));
            if round > 0 {
                of_copies[0].push(one);
                of_copies[1].push(chained);
            }
        }
        let count = 4 * window(bytes);
        let micros = copies.follow(bytes, count);
        if round > 0 {
            followed.push((bytes * count) as f64 / micros);
        }
        for (one, (halves, rates)) in open.iter_mut().zip(&mut looks) {
            let look = one.look(bytes, slice, fars)?;
            if round > 0 {
                halves.extend(look.halves);
                rates.extend(look.rate);
            }
        }
    }
    ensure!(copies.wrong(bytes, window(bytes)) == 0, "plain copies do not arrive");
    let of_one: Vec<f64> = of_copies[0].iter().map(|micros| bytes as f64 / f64::max(*micros, 1e-3)).collect();
    for ((name, times), rates) in [COPY, CHAINED].iter().zip(&of_copies).zip([of_one, followed]) {
        if let Some(row) = Row::new((*name).to_owned(), bytes, times, &rates, false) {
            say(&Line::Row(row))?;
        }
    }
    for (one, (halves, rates)) in open.iter().zip(&looks) {
        if let Some(row) = Row::new(one.way.name(), bytes, halves, rates, one.is_emulated()) {
            say(&Line::Row(row))?;
        }
    }
    Ok(())
}

/// Bytes of the message whose driver calls are counted: it fits every kind's slot.
const COUNTED: usize = 64 << 10;
/// Pages of a batch whose cost is shared out.
const PAGES: u64 = 1024;
/// Bytes of a page: next to nothing, so that only posting is left, and a page of a KV cache.
const PAGE_BYTES: [usize; 2] = [64, 16 << 10];
/// Bytes of allocations that are registered.
const REGISTERED: [usize; 2] = [1 << 20, 64 << 20];

fn extras(open: &mut [Open], fars: &mut FarEnds) -> Result<()> {
    for one in open.iter_mut().filter(|one| one.way.device) {
        let (way, emulated) = (one.way.name(), one.is_emulated());
        let extra = |what: String, value: f64, unit: &str| {
            say(&Line::Extra(Extra { way: way.clone(), what, value, unit: unit.to_owned(), emulated }))
        };
        say(&Line::Progress { what: format!("{way}: calls, pages, registration") })?;
        match one.calls(COUNTED, fars)? {
            Some((here, Some(there))) => {
                extra("driver calls of a send".to_owned(), here, "calls")?;
                extra("driver calls of a receive".to_owned(), there, "calls")?;
            }
            Some((both, None)) => extra("driver calls of a send and its receive".to_owned(), both, "calls")?,
            None => {}
        }
        if one.way.kind == "basic" {
            continue;
        }
        for page in PAGE_BYTES {
            let (one_page, _) = one.pages(page, 1, fars)?;
            let (many, counted) = one.pages(page, PAGES, fars)?;
            let each = (many - one_page) / (PAGES - 1) as f64;
            extra(format!("a further page of {page} bytes, written"), each, "us")?;
            let rate = (page as u64 * PAGES) as f64 / counted / 1e3;
            extra(format!("{PAGES} scattered pages of {page} bytes, until counted"), rate, "GB/s")?;
        }
        for bytes in REGISTERED {
            let (cold, warm) = one.registration(bytes)?;
            extra(format!("registering {} MiB, cold", bytes >> 20), cold, "us")?;
            extra(format!("registering {} MiB, again", bytes >> 20), warm, "us")?;
        }
    }
    Ok(())
}
