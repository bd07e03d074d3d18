//! Puts what the parts left behind into one report, for programs and for people.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::part::{Log, Outcome, Part, Table, write_whole};
use super::place::EMULATED;

/// Where the parts are and what else is known.
#[derive(Args, Clone, Debug)]
pub struct Gather {
    /// Folder with NAME.json, NAME.log and NAME.exit of every part; report.json and report.md are put there
    #[arg(long, value_name = "DIR")]
    pub folder: PathBuf,
    /// The parts that were to run, in order
    #[arg(long, value_name = "NAME", value_delimiter = ',', required = true)]
    pub parts: Vec<String>,
    /// When it was run
    #[arg(long, value_name = "TIME", default_value = "")]
    pub when: String,
    /// The command by which it was run
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub command: String,
    /// What the bundle was built from
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
}

/// The report.
#[derive(Clone, Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    outcome: Outcome,
    when: String,
    command: String,
    /// What the bundle was built from.
    bundle: Value,
    parts: Vec<Entry>,
}

/// A part, and how its process ended.
#[derive(Clone, Debug, Serialize)]
struct Entry {
    name: String,
    #[serde(flatten)]
    outcome: Outcome,
    /// Its process's exit code; `None` if it was never started.
    exit_code: Option<i32>,
    part: Option<Part>,
    /// What a program said that leaves no part behind, or one that failed.
    output: String,
}

/// The exit code of `timeout` for what it had to end, and of a process that it killed.
const TIMED_OUT: [i32; 2] = [124, 137];
/// Lines of a failed part's output that are shown.
const LAST_LINES: usize = 40;

impl Gather {
    /// Writes both reports; `false` if anything failed.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn run(&self) -> Result<bool> {
        let report = self.report();
        let json = serde_json::to_string_pretty(&report)?;
        write_whole(&self.folder.join("report.json"), &(json + "\n"))?;
        write_whole(&self.folder.join("report.md"), &report.markdown())?;
        println!("{}", summary(&report.parts));
        println!("{}: {}", self.folder.join("report.md").display(), report.outcome);
        Ok(!matches!(report.outcome, Outcome::Fail(_)))
    }

    fn report(&self) -> Report {
        let parts: Vec<Entry> = self.parts.iter().map(|name| Entry::read(&self.folder, name)).collect();
        let failed: Vec<&str> = parts
            .iter()
            .filter(|entry| matches!(entry.outcome, Outcome::Fail(_)))
            .map(|entry| entry.name.as_str())
            .collect();
        let outcome = match &failed[..] {
            [] => Outcome::Pass,
            names => Outcome::Fail(names.join(", ")),
        };
        let manifest = self.manifest.as_ref().and_then(|file| fs::read_to_string(file).ok());
        let bundle = manifest.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(Value::Null);
        Report { outcome, when: self.when.clone(), command: self.command.clone(), bundle, parts }
    }
}

impl Entry {
    fn read(folder: &Path, name: &str) -> Self {
        let text = |ending: &str| fs::read_to_string(folder.join(format!("{name}.{ending}")));
        let exit_code = text("exit").ok().and_then(|code| code.trim().parse().ok());
        let log = text("log").unwrap_or_default();
        let part = text("json").context("it left nothing behind").and_then(|json| {
            serde_json::from_str::<Part>(&json).context("what it left behind cannot be read")
        });
        // A program of its own, such as the benchmark, leaves its output and no part.
        let is_part = part.is_ok() || text("json").is_ok();
        let outcome = match (&part, exit_code) {
            (_, None) => Outcome::Fail("it was never started, or its end was not noted".to_owned()),
            (_, Some(code)) if TIMED_OUT.contains(&code) => {
                Outcome::Fail(format!("it took too long and was ended (exit code {code})"))
            }
            (Ok(part), Some(0)) => part.outcome(),
            (Ok(part), Some(code)) => match part.outcome() {
                Outcome::Fail(reason) => Outcome::Fail(reason),
                _ => Outcome::Fail(format!("exit code {code}")),
            },
            (Err(_), Some(0)) if !is_part => Outcome::Pass,
            (Err(error), Some(0)) => Outcome::Fail(format!("{error:#}")),
            (Err(error), Some(code)) => Outcome::Fail(format!("exit code {code}; {error:#}")),
        };
        let part = part.ok();
        let output = match (&part, &outcome) {
            (None, Outcome::Pass) => log,
            (_, Outcome::Fail(_)) => last_lines(&log),
            _ => String::new(),
        };
        Self { name: name.to_owned(), outcome, exit_code, part, output }
    }

    fn title(&self) -> &str {
        self.part.as_ref().map_or(&self.name, |part| &part.title)
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// One line a part.
fn summary(parts: &[Entry]) -> String {
    let lines = parts.iter().map(|entry| format!("{:<16}{}", entry.name, entry.outcome));
    lines.collect::<Vec<_>>().join("\n")
}

impl Report {
    fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# meshreduce on this machine: {}\n", self.outcome)?;
        let emulated = |part: &Part| part.place.contains(EMULATED);
        if self.parts.iter().filter_map(|entry| entry.part.as_ref()).any(emulated) {
            writeln!(out, "**An emulated node: no GPU took part, and no time says anything of one.**\n")?;
        }
        writeln!(out, "- when: {}", self.when)?;
        writeln!(out, "- command: `{}`", self.command)?;
        if let Value::Object(manifest) = &self.bundle {
            for (key, value) in manifest.iter().filter(|(_, value)| value.is_string()) {
                writeln!(out, "- {key}: {}", value.as_str().unwrap_or_default())?;
            }
        }
        writeln!(out, "\n| part | outcome | checks | seconds |\n|---|---|---|---|")?;
        for entry in &self.parts {
            let (checks, seconds) = entry.part.as_ref().map_or(("-".into(), "-".into()), |part| {
                (part.checks.len().to_string(), format!("{:.1}", part.seconds))
            });
            writeln!(
                out,
                "| {} | {} | {checks} | {seconds} |",
                entry.title(),
                cell(&entry.outcome.to_string())
            )?;
        }
        for entry in &self.parts {
            writeln!(out, "\n## {}\n", entry.title())?;
            if let Some(part) = &entry.part {
                write_part(part, out)?;
            }
            if !entry.output.trim().is_empty() {
                write_block(entry.output.trim_end(), out)?;
            }
        }
        Ok(())
    }
}

fn write_part(part: &Part, out: &mut String) -> std::fmt::Result {
    if !part.place.is_empty() {
        writeln!(out, "On {}.\n", part.place)?;
    }
    if !part.checks.is_empty() {
        writeln!(out, "| check | outcome | | seconds |\n|---|---|---|---|")?;
        for check in &part.checks {
            let outcome = cell(&check.outcome.to_string());
            writeln!(
                out,
                "| {} | {outcome} | {} | {:.1} |",
                cell(&check.name),
                cell(&check.detail),
                check.seconds
            )?;
        }
    }
    for table in part.tables.iter().filter(|table| !table.rows.is_empty()) {
        write_table(table, out)?;
    }
    for Log { title, text } in &part.logs {
        writeln!(out, "\n<details><summary>{title}</summary>\n")?;
        write_block(text, out)?;
        writeln!(out, "\n</details>")?;
    }
    Ok(())
}

fn write_table(table: &Table, out: &mut String) -> std::fmt::Result {
    match table.folded {
        true => writeln!(out, "\n<details><summary>{}</summary>\n", table.title)?,
        false => writeln!(out, "\n{}:\n", table.title)?,
    }
    writeln!(out, "| {} |", table.header.join(" | "))?;
    writeln!(out, "|{}", "---|".repeat(table.header.len()))?;
    for row in &table.rows {
        let cells: Vec<String> = row.iter().map(|text| cell(text)).collect();
        writeln!(out, "| {} |", cells.join(" | "))?;
    }
    if table.folded { writeln!(out, "\n</details>") } else { Ok(()) }
}

/// A text as it is. The fence is longer than any run of backquotes in it.
fn write_block(text: &str, out: &mut String) -> std::fmt::Result {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(3.max(longest + 1));
    writeln!(out, "{fence}text\n{text}\n{fence}")
}

/// A text as a cell of a table: one line, no bars.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', "<br>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu_check::part::{Done, Recorder};

    struct Scene(tempfile::TempDir);

    impl Scene {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> &Path {
            self.0.path()
        }

        fn part(&self, name: &str, answer: Result<Done>, exit: i32) {
            let file = self.path().join(format!("{name}.json"));
            let mut recorder = Recorder::new(name, &format!("Part {name}"), Some(file)).unwrap();
            recorder.place("one shared GPU").unwrap();
            recorder.check("a | check", || answer).unwrap();
            recorder.table("Numbers", &["a", "b"], vec![vec!["1".into(), "2\n3".into()]], false);
            recorder.finish().unwrap();
            self.exit(name, exit);
        }

        fn exit(&self, name: &str, code: i32) {
            fs::write(self.path().join(format!("{name}.exit")), format!("{code}\n")).unwrap();
        }

        fn log(&self, name: &str, text: &str) {
            fs::write(self.path().join(format!("{name}.log")), text).unwrap();
        }

        /// Whether all is well, the JSON and the Markdown.
        fn report(&self, parts: &[&str]) -> (bool, Value, String) {
            let gather = Gather {
                folder: self.path().to_owned(),
                parts: parts.iter().map(|&name| name.to_owned()).collect(),
                when: "today".into(),
                command: "run.sh".into(),
                manifest: None,
            };
            let well = gather.run().unwrap();
            let read = |name| fs::read_to_string(self.path().join(name)).unwrap();
            (well, serde_json::from_str(&read("report.json")).unwrap(), read("report.md"))
        }
    }

    fn well(detail: &str) -> Result<Done> {
        Ok(Done::Well(detail.to_owned()))
    }

    #[test]
    fn a_report_over_parts_that_passed_passes() {
        let scene = Scene::new();
        scene.part("one", well("fine"), 0);
        scene.part("two", Ok(Done::NotApplicable("no second GPU".into())), 0);
        let (all_well, json, markdown) = scene.report(&["one", "two"]);
        assert!(all_well);
        assert_eq!(json["outcome"], "pass");
        assert_eq!(json["parts"][1]["outcome"], "not-applicable");
        assert_eq!(json["parts"][0]["part"]["checks"][0]["detail"], "fine");
        assert!(markdown.contains("| Part one | pass | 1 |"), "{markdown}");
        assert!(markdown.contains("not applicable: no second GPU"), "{markdown}");
        assert!(markdown.contains("| a \\| check | pass | fine |"), "{markdown}");
        assert!(markdown.contains("| 1 | 2<br>3 |"), "{markdown}");
    }

    #[test]
    fn a_report_of_an_emulated_node_says_so_before_anything_else() {
        let scene = Scene::new();
        scene.part("one", well(""), 0);
        assert!(!scene.report(&["one"]).2.contains("emulated"));
        let mut recorder = Recorder::new("one", "One", Some(scene.path().join("one.json"))).unwrap();
        recorder.place("8 x emulated GPU").unwrap();
        recorder.finish().unwrap();
        let markdown = scene.report(&["one"]).2;
        let line = markdown.lines().position(|line| line.contains("no GPU took part"));
        assert_eq!(line, Some(2), "{markdown}");
    }

    #[test]
    fn one_failed_check_fails_the_report_and_shows_the_end_of_the_output() {
        let scene = Scene::new();
        scene.part("one", well(""), 0);
        scene.part("two", Err(anyhow::anyhow!("element 3 is wrong")), 1);
        scene.log("two", &(0..100).map(|line| format!("line {line}\n")).collect::<String>());
        let (all_well, json, markdown) = scene.report(&["one", "two"]);
        assert!(!all_well);
        assert_eq!((&json["outcome"], &json["reason"]), (&"fail".into(), &"two".into()));
        assert!(markdown.contains("FAIL: element 3 is wrong"), "{markdown}");
        assert!(markdown.contains("line 99") && !markdown.contains("line 12\n"), "{markdown}");
    }

    #[test]
    fn a_part_that_took_too_long_crashed_or_never_ran_is_a_failure() {
        let scene = Scene::new();
        scene.part("slow", well(""), 124);
        scene.exit("crashed", 139);
        scene.log("crashed", "before the crash");
        scene.part("liar", well(""), 2);
        let (all_well, json, markdown) = scene.report(&["slow", "crashed", "liar", "never"]);
        assert!(!all_well);
        let reason = |index: usize| json["parts"][index]["reason"].as_str().unwrap().to_owned();
        assert!(reason(0).contains("too long"));
        assert!(reason(1).contains("139"));
        assert!(reason(2).contains("exit code 2"));
        assert!(reason(3).contains("never started"));
        assert!(markdown.contains("before the crash"), "{markdown}");
    }

    #[test]
    fn a_program_without_a_part_is_judged_by_its_exit_code_and_shown_in_full() {
        let scene = Scene::new();
        scene.exit("bench", 0);
        scene.log("bench", "bytes  time\n```\n");
        let (all_well, json, markdown) = scene.report(&["bench"]);
        assert!(all_well);
        assert_eq!(json["parts"][0]["output"], "bytes  time\n```\n");
        assert!(markdown.contains("````text\nbytes  time\n```\n````"), "{markdown}");
    }

    #[test]
    fn what_a_part_left_half_written_is_a_failure() {
        let scene = Scene::new();
        scene.exit("half", 0);
        fs::write(scene.path().join("half.json"), "{\"name\":").unwrap();
        let (all_well, json, _) = scene.report(&["half"]);
        assert!(!all_well);
        assert!(json["parts"][0]["reason"].as_str().unwrap().contains("cannot be read"));
    }
}
