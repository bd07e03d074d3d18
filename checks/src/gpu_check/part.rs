//! What a part leaves behind: checks with an outcome each, and tables. It is written after every check, so that a part
//! that is ended from outside still tells how far it came.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// How a check or a part ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "kebab-case")]
pub enum Outcome {
    /// It is as it should be.
    Pass,
    /// It is not, and why.
    Fail(String),
    /// It cannot be tried on this machine, and why.
    NotApplicable(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Pass => f.write_str("pass"),
            Outcome::Fail(reason) => write!(f, "FAIL: {reason}"),
            Outcome::NotApplicable(reason) => write!(f, "not applicable: {reason}"),
        }
    }
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What else is to be said of it.
    pub detail: String,
    /// How long it took.
    pub seconds: f64,
}

/// Rows of text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// What it is of.
    pub title: String,
    /// The columns' names.
    pub header: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
    /// It is long, and few will read it.
    pub folded: bool,
}

/// A text that a program said, such as a compiler's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// What it is of.
    pub title: String,
    /// The text.
    pub text: String,
}

/// A part of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The name by which programs speak of it.
    pub name: String,
    /// What a person reads.
    pub title: String,
    /// Where its ranks ran, if there were any.
    pub place: String,
    /// What was tried.
    pub checks: Vec<Check>,
    /// What was measured or counted.
    pub tables: Vec<Table>,
    /// What others said.
    pub logs: Vec<Log>,
    /// How long it took.
    pub seconds: f64,
    /// It came to its end.
    pub complete: bool,
}

impl Part {
    /// The outcome of all checks together.
    pub fn outcome(&self) -> Outcome {
        let failed = self.checks.iter().filter(|check| matches!(check.outcome, Outcome::Fail(_))).count();
        if failed > 0 {
            return Outcome::Fail(format!("{failed} of {} checks", self.checks.len()));
        }
        if !self.complete {
            return Outcome::Fail(format!("it did not come to its end; {} checks passed", self.checks.len()));
        }
        let reason = self.checks.iter().map(|check| match &check.outcome {
            Outcome::NotApplicable(reason) => Some(reason),
            _ => None,
        });
        match reason.collect::<Option<Vec<_>>>().as_deref() {
            Some([first, ..]) => Outcome::NotApplicable((*first).clone()),
            _ => Outcome::Pass,
        }
    }
}

/// How a check ended that did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Well, and what there is to say of it.
    Well(String),
    /// It cannot be tried here.
    NotApplicable(String),
}

/// Writes a part while it runs.
#[derive(Debug)]
pub struct Recorder {
    part: Part,
    file: Option<PathBuf>,
    began: Instant,
}

impl Recorder {
    /// The record of a part that begins now.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(name: &str, title: &str, file: Option<PathBuf>) -> Result<Self> {
        let part = Part {
            name: name.to_owned(),
            title: title.to_owned(),
            place: String::new(),
            checks: Vec::new(),
            tables: Vec::new(),
            logs: Vec::new(),
            seconds: 0.0,
            complete: false,
        };
        let recorder = Self { part, file, began: Instant::now() };
        println!("{title}");
        recorder.write()?;
        Ok(recorder)
    }

    /// Says where the ranks run.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn place(&mut self, place: &str) -> Result<()> {
        println!("  on {place}");
        self.part.place = place.to_owned();
        self.write()
    }

    /// Tries something; an error is a failure of the check and no more.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn check(&mut self, name: &str, what: impl FnOnce() -> Result<Done>) -> Result<()> {
        print!("  {name} ... ");
        // Progress that nobody reads is no failure.
        let _ = std::io::stdout().flush();
        let began = Instant::now();
        let (outcome, detail) = match what() {
            Ok(Done::Well(detail)) => (Outcome::Pass, detail),
            Ok(Done::NotApplicable(reason)) => (Outcome::NotApplicable(reason), String::new()),
            Err(error) => (Outcome::Fail(format!("{error:#}")), String::new()),
        };
        let seconds = began.elapsed().as_secs_f64();
        let comment = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        println!("{outcome}{comment}, {seconds:.1} s");
        self.part.checks.push(Check { name: name.to_owned(), outcome, detail, seconds });
        self.write()
    }

    /// Notes a failure.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn fail(&mut self, name: &str, error: &anyhow::Error) -> Result<()> {
        self.check(name, || Err(anyhow::anyhow!("{error:#}")))
    }

    /// Adds a table.
    pub fn table(&mut self, title: &str, header: &[&str], rows: Vec<Vec<String>>, folded: bool) {
        let header = header.iter().map(|&name| name.to_owned()).collect();
        self.part.tables.push(Table { title: title.to_owned(), header, rows, folded });
    }

    /// Adds what somebody said, unless it is nothing.
    pub fn log(&mut self, title: &str, text: &str) {
        if !text.trim().is_empty() {
            self.part.logs.push(Log { title: title.to_owned(), text: text.trim().to_owned() });
        }
    }

    /// The part has come to its end; says whether all is well.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn finish(mut self) -> Result<bool> {
        self.part.complete = true;
        self.write()?;
        Ok(!matches!(self.part.outcome(), Outcome::Fail(_)))
    }

    /// Writes beside the file and renames, so that who reads it never sees half of it.
    fn write(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let part = Part { seconds: self.began.elapsed().as_secs_f64(), ..self.part.clone() };
        write_whole(file, &serde_json::to_string_pretty(&part)?)
    }
}

/// Puts `text` in place of `file` in one step.
///
/// # Errors
/// If it cannot be written.
pub fn write_whole(file: &Path, text: &str) -> Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, text).with_context(|| format!("writing {}", beside.display()))?;
    std::fs::rename(&beside, file).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder(file: Option<PathBuf>) -> Recorder {
        Recorder::new("part", "A part", file).unwrap()
    }

    fn read(file: &Path) -> Part {
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
    }

    #[test]
    fn a_part_that_is_cut_short_is_a_failure_that_tells_how_far_it_came() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("part.json");
        let mut recorder = recorder(Some(file.clone()));
        recorder.check("one", || Ok(Done::Well("fine".into()))).unwrap();
        drop(recorder);
        let part = read(&file);
        assert_eq!(part.checks.len(), 1);
        assert_eq!(part.checks[0].outcome, Outcome::Pass);
        assert!(matches!(part.outcome(), Outcome::Fail(reason) if reason.contains("its end; 1 checks")));
    }

    #[test]
    fn an_error_fails_its_check_and_the_next_one_is_tried_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("part.json");
        let mut recorder = recorder(Some(file.clone()));
        recorder.check("one", || Err(anyhow::anyhow!("cause").context("effect"))).unwrap();
        recorder.check("two", || Ok(Done::Well(String::new()))).unwrap();
        assert!(!recorder.finish().unwrap());
        let part = read(&file);
        assert_eq!(part.checks[0].outcome, Outcome::Fail("effect: cause".into()));
        assert_eq!(part.checks[1].outcome, Outcome::Pass);
        assert_eq!(part.outcome(), Outcome::Fail("1 of 2 checks".into()));
    }

    #[test]
    fn a_part_is_not_applicable_if_all_of_it_is() {
        let mut all = recorder(None);
        all.check("one", || Ok(Done::NotApplicable("no second GPU".into()))).unwrap();
        all.part.complete = true;
        assert_eq!(all.part.outcome(), Outcome::NotApplicable("no second GPU".into()));
        all.check("two", || Ok(Done::Well(String::new()))).unwrap();
        assert_eq!(all.part.outcome(), Outcome::Pass);
    }
}
