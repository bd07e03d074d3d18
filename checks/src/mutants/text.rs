//! One entry of a shipped text, and the places in it by what they are for: found by the shape of instructions, never
//! by the numbers of registers.

use anyhow::{Context, Result, ensure};

/// Registers that mutants may use, which no compiled kernel has.
const FRESH: &str = "\t.reg .pred %mp<4>; .reg .b32 %mr<4>; .reg .b64 %md<8>;";

/// One entry of a text.
pub struct Entry {
    /// What the module begins with: version, target, shared memory.
    head: String,
    /// The entry's lines.
    pub lines: Vec<String>,
    /// The number, in the shipped file, of the first.
    first: usize,
    /// Index of the line that opens the body.
    body: usize,
}

/// A change of some lines.
#[derive(Clone, Debug)]
pub struct Edit {
    /// Index of the line that is replaced.
    pub at: usize,
    /// What stands there instead: any number of lines.
    pub with: Vec<String>,
}

/// A changed entry.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// `{algorithm}/{what}`.
    pub name: String,
    /// The changes, each of another line.
    pub edits: Vec<Edit>,
}

impl Entry {
    /// The entry `name` of `text`.
    ///
    /// # Errors
    /// If there is none.
    pub fn of(text: &str, name: &str) -> Result<Self> {
        let head = &text[..text.find(".visible .entry").context("a text without entries")?];
        let start = text
            .find(&format!(".visible .entry {name}("))
            .with_context(|| format!("there is no kernel {name}"))?;
        let end = start + text[start..].find("\n}").context("an entry without end")? + 2;
        let lines: Vec<String> = text[start..end].lines().map(str::to_owned).collect();
        let body = lines.iter().position(|line| line == "{").context("an entry without body")?;
        Ok(Self { head: head.to_owned(), lines, first: text[..start].lines().count() + 1, body })
    }

    /// The kernel's name.
    pub fn name(&self) -> &str {
        let line = self.lines.first().map_or("", String::as_str);
        line.split_once(".entry ").map_or("", |(_, name)| name.trim_end_matches('('))
    }

    /// The number of a line in the shipped file, from 1.
    pub fn number(&self, at: usize) -> usize {
        self.first + at
    }

    /// The module with this entry alone, changed.
    pub fn render(&self, edits: &[Edit]) -> String {
        let mut text = self.head.clone();
        for (at, line) in self.lines.iter().enumerate() {
            match edits.iter().find(|edit| edit.at == at) {
                Some(edit) => edit.with.iter().for_each(|line| {
                    text += line;
                    text.push('\n');
                }),
                None => {
                    text += line;
                    text.push('\n');
                }
            }
            if at == self.body {
                text += FRESH;
                text.push('\n');
            }
        }
        text
    }

    /// All lines that contain `shape`, in order.
    pub fn all(&self, shape: &str) -> Vec<usize> {
        (0..self.lines.len()).filter(|&at| self.lines[at].contains(shape)).collect()
    }

    /// The lines that contain `shape`, which must be as many as `count`.
    ///
    /// # Errors
    /// If there are more or fewer.
    pub fn some(&self, shape: &str, count: usize) -> Result<Vec<usize>> {
        let all = self.all(shape);
        ensure!(all.len() == count, "{} lines with '{shape}', expected {count}", all.len());
        Ok(all)
    }

    /// The line that contains `shape`.
    ///
    /// # Errors
    /// If there is not exactly one.
    pub fn one(&self, shape: &str) -> Result<usize> {
        Ok(self.some(shape, 1)?[0])
    }

    /// The first line behind `at` that contains `shape`.
    ///
    /// # Errors
    /// If there is none within `within` lines.
    pub fn next(&self, at: usize, shape: &str, within: usize) -> Result<usize> {
        (at + 1..self.lines.len().min(at + 1 + within))
            .find(|&at| self.lines[at].contains(shape))
            .with_context(|| format!("no '{shape}' within {within} lines of '{}'", self.lines[at].trim()))
    }

    /// The last line before `at` that contains `shape`.
    ///
    /// # Errors
    /// If there is none within `within` lines.
    pub fn before(&self, at: usize, shape: &str, within: usize) -> Result<usize> {
        (at.saturating_sub(within)..at)
            .rev()
            .find(|&at| self.lines[at].contains(shape))
            .with_context(|| format!("no '{shape}' within {within} lines before '{}'", self.lines[at].trim()))
    }

    /// The label to which the branch at `at` leads.
    ///
    /// # Errors
    /// If there is none.
    pub fn target(&self, at: usize) -> Result<usize> {
        let label = self.lines[at].trim().trim_end_matches(';').rsplit(char::is_whitespace).next();
        let label = format!("{}:", label.unwrap_or_default());
        let found = self.lines.iter().position(|line| *line == label);
        found.with_context(|| format!("no target of '{}'", self.lines[at].trim()))
    }

    /// The guard of the instruction at `at`, and a space; nothing where there is none.
    pub fn guard(&self, at: usize) -> &str {
        let line = self.lines[at].trim_start();
        match line.find(' ') {
            Some(end) if line.starts_with('@') => &line[..=end],
            _ => "",
        }
    }

    /// The operands of the instruction at `at`; brackets and braces stay, its guard does not.
    pub fn operands(&self, at: usize) -> Vec<&str> {
        let line = self.lines[at].trim()[self.guard(at).len()..].trim_end_matches(';');
        let rest = line.split_once(char::is_whitespace).map_or("", |(_, rest)| rest).trim();
        let mut operands = Vec::new();
        let (mut begin, mut depth) = (0, 0);
        for (index, letter) in rest.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    operands.push(rest[begin..index].trim());
                    begin = index + 1;
                }
                _ => {}
            }
        }
        operands.push(rest[begin..].trim());
        operands
    }

    /// Replaces `from` by `to` in the line at `at`.
    ///
    /// # Errors
    /// If the line does not contain it.
    pub fn replaced(&self, at: usize, from: &str, to: &str) -> Result<Edit> {
        let line = &self.lines[at];
        ensure!(line.contains(from), "no '{from}' in '{}'", line.trim());
        Ok(Edit { at, with: vec![line.replacen(from, to, 1)] })
    }

    /// Leaves the line out.
    pub fn dropped(&self, at: usize) -> Edit {
        Edit { at, with: Vec::new() }
    }

    /// Leaves a barrier out. Where its threads agree on something, each takes what it came with for the answer.
    pub fn without_barrier(&self, at: usize) -> Edit {
        match self.operands(at).as_slice() {
            [told, _, asked] => Edit { at, with: vec![format!("\tmov.pred {told}, {asked};")] },
            _ => self.dropped(at),
        }
    }

    /// The line, and others behind it.
    pub fn followed(&self, at: usize, lines: &[String]) -> Edit {
        Edit { at, with: [&[self.lines[at].clone()], lines].concat() }
    }

    /// The line, and others before it.
    pub fn preceded(&self, at: usize, lines: &[String]) -> Edit {
        Edit { at, with: [lines, &[self.lines[at].clone()]].concat() }
    }

    /// The address of the access at `at` moved by `bytes`.
    ///
    /// # Errors
    /// If it is no access through a register alone.
    pub fn moved(&self, at: usize, bytes: i64) -> Result<Edit> {
        let line = &self.lines[at];
        let close = line.find(']').with_context(|| format!("no address in '{}'", line.trim()))?;
        ensure!(!line[..close].contains('+'), "an address with an offset in '{}'", line.trim());
        let sign = if bytes < 0 { "" } else { "+" };
        Ok(Edit { at, with: vec![format!("{}{sign}{bytes}{}", &line[..close], &line[close..])] })
    }

    /// What a load gives, replaced by a constant.
    pub fn constant(&self, at: usize, value: &str) -> Edit {
        let bits = if self.operands(at)[0].starts_with("%rd") { "b64" } else { "b32" };
        Edit { at, with: vec![format!("\tmov.{bits} {}, {value};", self.operands(at)[0])] }
    }
}
