//! A plan from beginning to end, in a process whose environment has been settled.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::measure;
use crate::peers;
use crate::place::Place;
use crate::plan::Plan;
use crate::plot;
use crate::report::Report;
use crate::row::OWN;

/// Measures and shows; `false` if a result was wrong, or something that was asked for by name was not measured.
///
/// # Errors
/// If it cannot run at all: no driver, too few devices, a rank that fails.
pub fn run(plan: &Plan) -> Result<bool> {
    let machine = Place::look()?;
    let work = plan.work(machine.devices, machine.emulated)?;
    let spinner = if plan.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    spinner.set_style(ProgressStyle::with_template("{elapsed} {spinner} {msg}")?);
    spinner.enable_steady_tick(Duration::from_millis(200));
    let measured =
        measure::run(&work, &|way| plan.names(way), &|message| spinner.set_message(message.to_owned()));
    let mut measured = match measured {
        Ok(measured) => measured,
        Err(error) => {
            spinner.finish_and_clear();
            return Err(error);
        }
    };
    if !plan.no_peers {
        spinner.set_message("NCCL and torch's symmetric memory");
        let (rows, absent) = peers::measure(&work, machine.emulated)?;
        measured.rows.extend(rows);
        measured.absent.extend(absent);
    }
    spinner.finish_and_clear();
    let report = Report { machine: &machine, work: &work, measured: &measured };
    if plan.json {
        print!("{}", report.json()?)
    } else {
        print!("{}", report.text())
    }
    if let Some(path) = &plan.csv {
        write(path, &report.csv())?;
    }
    if let Some(path) = &plan.svg {
        let drawn = plot::draw(&measured.rows, &report.title(), report.short_warning());
        write(path, &drawn.context("there is nothing to draw")?)?;
    }
    let own = measured.rows.iter().any(|row| row.implementation == OWN);
    ensure!(own, "nothing could be measured: {}", reasons(&report));
    Ok(report.is_well())
}

fn reasons(report: &Report<'_>) -> String {
    let reasons = report.measured.absent.iter().map(|absent| format!("{}: {}", absent.what, absent.reason));
    reasons.collect::<Vec<_>>().join("; ")
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
