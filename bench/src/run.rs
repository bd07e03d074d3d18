//! A plan from beginning to end, in a process whose environment has been settled.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::interrupt;
use crate::live::Live;
use crate::measure::{self, Measured, ProgressEvent};
use crate::peers;
use crate::place::Place;
use crate::plan::{names, work};
use crate::plot;
use crate::row::OWN;
use meshreduce_arguments::bench::Plan;

/// Measures and shows; `false` if a result was wrong, or something that was asked for by name was not measured. What was
/// measured is shown also if it fails midway, or the process is interrupted or terminated (which then ends).
///
/// # Errors
/// If it cannot run at all: no driver, too few devices, a rank that fails.
pub fn run(plan: &Plan) -> Result<bool> {
    let machine = Place::look()?;
    let work = work(plan, machine.devices, machine.emulated)?;
    let peer_limit = Duration::try_from_secs_f64(plan.peer_seconds).context("--peer-seconds")?;
    let emulated = machine.emulated;
    let live = Live::begin(plan, machine, work)?;
    let ended = live.clone();
    interrupt::then(move || ended.cut_short())?;
    if let Err(error) = measure::run(live.work(), &|way| names(plan, way), &|news| live.hear(news)) {
        live.cut_short();
        return Err(error);
    }
    if !plan.no_peers {
        live.hear(ProgressEvent::Now("NCCL and torch's symmetric memory".into()));
        if let Err(error) = peers::measure(live.work(), emulated, peer_limit, &|news| live.hear(news)) {
            live.cut_short();
            return Err(error);
        }
    }
    let measured = live.end();
    if let Some(path) = &plan.svg {
        let (title, warning) = live.titles(&measured);
        let drawn = plot::draw(&measured.rows, &title, warning);
        write(path, &drawn.context("there is nothing to draw")?)?;
    }
    let own = measured.rows.iter().any(|row| row.implementation == OWN);
    ensure!(own, "nothing could be measured: {}", reasons(&measured));
    Ok(live.is_well(&measured))
}

fn reasons(measured: &Measured) -> String {
    let reasons = measured.absent.iter().map(|absent| format!("{}: {}", absent.what, absent.reason));
    reasons.collect::<Vec<_>>().join("; ")
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
