//! The text format: lines to [`Litmus`] tests; texts of Dat3M's format are read too.

use super::dat3m;
use super::draft::Draft;
use super::error::{LitmusError, LitmusErrorKind};
use super::program::Litmus;
use super::text::keyword;

/// Rounds of a loop that are looked at unless told otherwise.
const ROUNDS: usize = 2;

type Kind = LitmusErrorKind;

/// Parses the tests of a text, which is in the format of this crate or of Dat3M. `file` is its name for errors.
///
/// ```
/// use meshreduce_emulator_weak_memory::litmus::{Expectation, enumerate, parse};
/// let tests = parse(
///     "message passing",
///     "test mp
///      location x = 0
///      location y = 0
///      thread 0: device 0, block 0
///          st.weak.global.u32 [x], 1;
///          st.release.sys.global.u32 [y], 1;
///      thread 1: device 1, block 0
///          ld.acquire.sys.global.u32 %r0, [y];
///          ld.weak.global.u32 %r1, [x];
///      exists 1:%r0 == 1 && 1:%r1 == 0
///      forbidden: what acquires the flag sees the data
///     ",
/// )?;
/// assert_eq!(tests[0].verdict, Expectation::Forbidden);
/// assert!(!enumerate(&tests[0]).iter().any(|outcome| tests[0].condition.holds(outcome)));
/// # Ok::<(), meshreduce_emulator_weak_memory::litmus::LitmusError>(())
/// ```
///
/// # Errors
///
/// [`LitmusError`] names the first line that is not understood, not legal, or too much to enumerate.
pub fn parse(file: &str, text: &str) -> Result<Vec<Litmus>, LitmusError> {
    parse_bounded(file, text, ROUNDS)
}

/// The same, with loops gone round at most `rounds` times.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_bounded(file: &str, text: &str, rounds: usize) -> Result<Vec<Litmus>, LitmusError> {
    if dat3m::is_one(text) {
        return dat3m::parse(file, text, rounds).map(|test| vec![test]);
    }
    let at = |line: u32| move |kind: Kind| LitmusError { file: file.to_owned(), line, kind };
    let mut tests: Vec<Litmus> = Vec::new();
    let mut open: Option<Draft> = None;
    let mut last = 1;
    for (line, content) in (1..).zip(text.lines()) {
        let content = content.split("//").next().unwrap_or("").trim();
        if content.is_empty() {
            continue;
        }
        last = line;
        if let Some(name) = keyword(content, "test") {
            if let Some(draft) = &open {
                return Err(at(line)(Kind::Missing { test: draft.name.clone(), part: "verdict" }));
            }
            let name = test_name(name).map_err(at(line))?;
            if tests.iter().any(|test| test.name == name) {
                return Err(at(line)(Kind::Twice { what: "test", name }));
            }
            open = Some(Draft { name, line, ..Draft::default() });
            continue;
        }
        let Some(mut draft) = open.take() else {
            return Err(at(line)(Kind::Expected { expected: "`test NAME`", found: content.to_owned() }));
        };
        match draft.line_of(line, content).map_err(at(line))? {
            None => open = Some(draft),
            Some((verdict, reason)) => tests.push(draft.finish(verdict, reason, rounds).map_err(at(line))?),
        }
    }
    match open {
        Some(draft) => Err(at(last)(Kind::Missing { test: draft.name, part: "verdict" })),
        None => Ok(tests),
    }
}

fn test_name(name: &str) -> Result<String, Kind> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "+-_.".contains(c);
    if name.is_empty() || !name.chars().all(legal) {
        let expected = "a name of letters, digits and +-_.";
        return Err(Kind::Expected { expected, found: name.to_owned() });
    }
    Ok(name.to_owned())
}
