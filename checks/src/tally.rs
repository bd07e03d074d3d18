//! What a run of many cases comes to: the last line of every report.
#![forbid(unsafe_code)]

use std::fmt;

use anyhow::Result;
use serde::Serialize;

/// Cases by what became of them, and what else was wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Cases that ran.
    pub run: usize,
    /// Those of them whose result was wrong, or did not come.
    pub failed: usize,
    /// Cases that cannot run here.
    pub not_run: usize,
    /// What makes the run a failure whatever the cases say.
    pub problems: Vec<String>,
}

impl Tally {
    /// Counts a case: whether it was right, or `None` if it did not run.
    pub fn count(&mut self, ok: Option<bool>) {
        match ok {
            Some(ok) => {
                self.run += 1;
                self.failed += usize::from(!ok);
            }
            None => self.not_run += 1,
        }
    }

    /// Adds what is wrong with the run as a whole.
    pub fn problem(&mut self, what: impl Into<String>) {
        self.problems.push(what.into());
    }

    /// Whether something was checked, and all of it was right.
    pub fn is_ok(&self) -> bool {
        self.run > 0 && self.failed == 0 && self.problems.is_empty()
    }

    /// Prints it as the report's last line or record; answers whether all is well. A run that checked nothing is a
    /// failure for the first of `reasons`.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn show(mut self, json: bool, reasons: &[String]) -> Result<bool> {
        self.judge(reasons);
        match json {
            true => println!("{}", serde_json::to_string(&Record { verdict: self.word(), counts: &self })?),
            false => println!("{self}"),
        }
        Ok(self.is_ok())
    }

    fn judge(&mut self, reasons: &[String]) {
        if self.run == 0 {
            let why = reasons.first().map_or("there was no case", String::as_str);
            self.problems.insert(0, format!("nothing was checked: {why}"));
        }
    }

    fn word(&self) -> &'static str {
        if self.is_ok() { "ok" } else { "failed" }
    }
}

/// The last record of a JSON report.
#[derive(Serialize)]
struct Record<'a> {
    verdict: &'static str,
    #[serde(flatten)]
    counts: &'a Tally,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, failed, not_run, problems } = self;
        let word = if self.is_ok() { "ok" } else { "FAILED" };
        write!(f, "{word}: {run} cases run, {failed} failed, {not_run} not run")?;
        problems.iter().try_for_each(|problem| write!(f, "; {problem}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(outcomes: &[Option<bool>]) -> Tally {
        let mut verdict = Tally::default();
        outcomes.iter().for_each(|ok| verdict.count(*ok));
        verdict
    }

    #[test]
    fn a_run_is_well_if_something_was_checked_and_all_of_it_right() {
        let right = counted(&[Some(true), None, Some(true)]);
        assert!(right.is_ok());
        assert_eq!(right.to_string(), "ok: 2 cases run, 0 failed, 1 not run");
        let wrong = counted(&[Some(true), Some(false)]);
        assert!(!wrong.is_ok());
        assert_eq!(wrong.to_string(), "FAILED: 2 cases run, 1 failed, 0 not run");
        let mut unfinished = right;
        unfinished.problem("rank 1 did not end");
        assert_eq!(unfinished.to_string(), "FAILED: 2 cases run, 0 failed, 1 not run; rank 1 did not end");
    }

    #[test]
    fn a_run_that_checked_nothing_fails_and_says_why() {
        let mut nothing = counted(&[None, None]);
        nothing.judge(&["no links".to_owned(), "another".to_owned()]);
        let text = nothing.to_string();
        assert_eq!(text, "FAILED: 0 cases run, 0 failed, 2 not run; nothing was checked: no links");
        let record = serde_json::to_value(Record { verdict: nothing.word(), counts: &nothing }).unwrap();
        assert_eq!(record["verdict"], "failed");
        assert_eq!(record["not_run"], 2);
        assert_eq!(record["problems"][0], "nothing was checked: no links");
    }
}
