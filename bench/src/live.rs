//! What is told of a run while it goes on, and what is left of it when it ends before its time.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::lines::CSV_HEADER;
use crate::measure::{Measured, ProgressEvent};
use crate::place::Place;
use crate::plan::Work;
use crate::report::{Report, watched};
use crate::row::Latency;
use meshreduce_arguments::bench::Plan;

/// A run that goes on. Clones are the same.
#[derive(Clone)]
pub struct Live(Arc<Shared>);

struct Shared {
    machine: Place,
    work: Work,
    json: bool,
    spinner: ProgressBar,
    state: Mutex<State>,
}

struct State {
    measured: Measured,
    csv: Option<File>,
    /// The tables have been printed.
    over: bool,
}

impl Live {
    /// Begins: with the machine in JSON, with a header in the file of comma-separated values.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn begin(plan: &Plan, machine: Place, work: Work) -> Result<Self> {
        let spinner = if plan.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        spinner.set_style(ProgressStyle::with_template("{elapsed} {spinner} {msg}")?);
        spinner.enable_steady_tick(Duration::from_millis(200));
        let csv = plan.csv.as_deref().map(|path| -> Result<File> {
            let mut file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
            writeln!(file, "{CSV_HEADER}")?;
            Ok(file)
        });
        let state = Mutex::new(State { measured: Measured::default(), csv: csv.transpose()?, over: false });
        let live = Self(Arc::new(Shared { machine, work, json: plan.json, spinner, state }));
        if plan.json {
            println!("{}", live.report(&Measured::default()).json_machine()?);
        }
        Ok(live)
    }

    /// What is to be measured.
    pub fn work(&self) -> &Work {
        &self.0.work
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report<'a>(&'a self, measured: &'a Measured) -> Report<'a> {
        Report { machine: &self.0.machine, work: &self.0.work, measured }
    }

    /// Keeps it, and tells whoever watches.
    pub fn hear(&self, news: ProgressEvent) {
        let mut state = self.state();
        if state.over {
            return;
        }
        if let (ProgressEvent::Row(row), Some(csv)) = (&news, &mut state.csv)
            && let Err(error) = writeln!(csv, "{}", self.report(&Measured::default()).csv(row))
        {
            eprintln!("the file of comma-separated values is not complete: {error}");
            state.csv = None;
        }
        if self.0.json {
            // A reader that has gone is no reason to stop: there may be a file.
            if let Ok(Some(line)) = self.report(&Measured::default()).json(&news) {
                let _ = writeln!(std::io::stdout(), "{line}");
            }
        } else {
            self.show(&news);
        }
        state.measured.hear(news);
    }

    fn show(&self, news: &ProgressEvent) {
        let Shared { spinner, .. } = &*self.0;
        let line = match news {
            ProgressEvent::Now(what) => return spinner.set_message(what.clone()),
            ProgressEvent::Row(row) => watched(row),
            ProgressEvent::Floor(floor) => format!("{}: {:.2} us", floor.what, floor.time_us),
            ProgressEvent::Latency(Latency { what, nanoseconds, .. }) => {
                format!("{what}: {nanoseconds:.1} ns")
            }
            ProgressEvent::Absent(absent) => format!("not measured: {}: {}", absent.what, absent.reason),
        };
        // Where there is no terminal, the spinner shows nothing.
        if spinner.is_hidden() { eprintln!("{line}") } else { spinner.println(line) }
    }

    /// Ends it and prints the tables, of what there is, once; later news are nobody's.
    pub fn end(&self) -> Measured {
        let mut state = self.state();
        let measured = state.measured.clone();
        if !std::mem::replace(&mut state.over, true) {
            self.0.spinner.finish_and_clear();
            if !self.0.json {
                print!("{}", self.report(&measured).text());
            }
        }
        measured
    }

    /// Ends it before its time.
    pub fn cut_short(&self) {
        let nothing = {
            let state = self.state();
            state.measured.rows.is_empty() && state.measured.floor.is_empty()
        };
        if nothing {
            self.0.spinner.finish_and_clear();
            self.state().over = true;
        } else {
            self.end();
        }
    }

    /// Whether it was well ([`Report::is_well`]).
    pub fn is_well(&self, measured: &Measured) -> bool {
        self.report(measured).is_well()
    }

    /// What a drawing of it is called, and the warning in few words.
    pub fn titles(&self, measured: &Measured) -> (String, Option<&'static str>) {
        let report = self.report(measured);
        (report.title(), report.short_warning())
    }
}
