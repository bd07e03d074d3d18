//! The format of Dat3M's PTX tests: threads side by side in columns.
//!
//! ```text
//! PTX MP
//! { x=0; y=0; P1:r0=0; }
//!  P0@cta 0,gpu 0      | P1@cta 1,gpu 0      ;
//!  st.weak x, 1        | ld.acquire.gpu r0, y;
//!  st.release.gpu y, 1 | ld.weak r1, x       ;
//! ~exists (P1:r0 == 1 /\ P1:r1 == 0)
//! ```
//!
//! Every instruction is rewritten to that of the crate's own format. All values have 32 bits.

use super::condition::Condition;
use super::draft::Draft;
use super::error::{LitmusError, LitmusErrorKind as Kind};
use super::outcome::Observable;
use super::program::{Expectation, Home, Litmus, Location, Register, Width};
use super::text::{is_name, number};

/// Whether a text is in this format.
pub(super) fn is_one(text: &str) -> bool {
    let first = text.split_whitespace().next();
    first.is_some_and(|word| word.eq_ignore_ascii_case("ptx"))
}

/// Reads the one test of a text.
pub(super) fn parse(file: &str, text: &str, rounds: usize) -> Result<Litmus, LitmusError> {
    let text = without_comments(text);
    let mut reader = Reader {
        draft: Draft { line: 1, named_barriers: true, ..Draft::default() },
        line: 1,
        guards: 0,
        synonyms: Vec::new(),
    };
    let read = reader.read(&text, rounds);
    read.map_err(|kind| LitmusError { file: file.to_owned(), line: reader.line, kind })
}

/// The text with blanks for its comments, line for line.
fn without_comments(text: &str) -> String {
    let mut rest = text;
    let mut out = String::new();
    while let Some((before, after)) = rest.split_once("(*") {
        let (comment, behind) = after.split_once("*)").unwrap_or((after, ""));
        out += before;
        out.extend(comment.chars().filter(|c| *c == '\n'));
        rest = behind;
    }
    out + rest
}

struct Reader {
    draft: Draft,
    /// Of the text, for errors.
    line: u32,
    /// Predicates of the thread so far.
    guards: usize,
    /// Names of addresses, and the locations that have them.
    synonyms: Vec<(String, String)>,
}

/// A column: block, device, and its instructions with their lines.
struct Column {
    block: String,
    device: String,
    code: Vec<(u32, String)>,
}

fn expected(expected: &'static str, found: &str) -> Kind {
    Kind::Expected { expected, found: found.trim().chars().take(60).collect() }
}

impl Reader {
    fn read(&mut self, text: &str, rounds: usize) -> Result<Litmus, Kind> {
        let (head, rest) = text.split_once('{').ok_or_else(|| expected("`{`", text))?;
        let name = head.split_whitespace().nth(1).unwrap_or("");
        let legal = |c: char| c.is_ascii_alphanumeric() || "+-_.".contains(c);
        self.draft.name = name.chars().map(|c| if legal(c) { c } else { '_' }).collect();
        if name.is_empty() {
            return Err(expected("`PTX NAME`", head));
        }
        self.line = 1 + lines(head);
        let (initial, rest) = rest.split_once('}').ok_or_else(|| expected("`}`", rest))?;
        let initial = self.initial(initial)?;
        self.line += lines(&text[head.len()..text.len() - rest.len()]);

        let end = question(rest).ok_or_else(|| expected("`exists`, `~exists` or `forall`", rest))?;
        let (program, asked) = rest.split_at(end);
        let columns = self.columns(program)?;
        for (_, cell) in columns.iter().flat_map(|column| &column.code) {
            self.declare(cell);
        }
        for (number, column) in columns.iter().enumerate() {
            self.draft.resolve_branches()?;
            self.draft.thread(&format!("{number}: device {}, block {}", column.device, column.block))?;
            self.guards = 0;
            for (_, register, value) in initial.iter().filter(|(thread, ..)| *thread == number) {
                self.draft.instruction(self.line, &format!("mov.u32 %{register}, {value};"))?;
            }
            for (line, cell) in &column.code {
                self.line = *line;
                for instruction in self.rewritten(cell)? {
                    self.draft.instruction(*line, &instruction)?;
                }
            }
        }
        self.draft.resolve_branches()?;
        let verdict = self.condition(asked)?;
        std::mem::take(&mut self.draft).finish(verdict, "it is asked".to_owned(), rounds)
    }

    /// Initial values: of locations, which are added, and of registers, which are returned.
    fn initial(&mut self, text: &str) -> Result<Vec<(usize, String, u64)>, Kind> {
        let mut registers = Vec::new();
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            if let Some((name, of)) = part.split_once(" aliases ") {
                let (name, proxy) = name.split_once('@').unwrap_or((name, ""));
                let (name, proxy, of) = (name.trim(), proxy.trim(), of.trim());
                match proxy {
                    _ if !is_name(name) => return Err(expected("`NAME @ PROXY aliases LOCATION`", part)),
                    "generic" => self.draft.add_alias(name, of)?,
                    // Where another proxy has the address of a generic one; which proxy it is says the instruction.
                    "surface" | "texture" | "constant" => self.synonyms.push((name.into(), self.at(of))),
                    _ => return Err(Kind::Foreign { what: "proxies", found: part.to_owned() }),
                }
                continue;
            }
            if part.contains('@') || part.contains('&') {
                return Err(Kind::Foreign { what: "addresses as values", found: part.to_owned() });
            }
            let (name, value) = part.split_once('=').ok_or_else(|| expected("`NAME=VALUE`", part))?;
            let (name, value) = (name.trim(), value.trim());
            let Ok(value) = number(value) else {
                return Err(Kind::Foreign { what: "addresses as values", found: part.to_owned() });
            };
            if value > u64::from(u32::MAX) {
                return Err(Kind::Number(value.to_string()));
            }
            match name.split_once(':') {
                None => self.location(name, value)?,
                Some((thread, register)) => {
                    let thread = thread.trim().trim_start_matches('P').parse();
                    let thread = thread.map_err(|_| expected("`P0:r0=VALUE`", part))?;
                    registers.push((thread, register.trim().to_owned(), value));
                }
            }
        }
        Ok(registers)
    }

    /// The location of that name, or whose address it is.
    fn at(&self, name: &str) -> String {
        let known = self.synonyms.iter().find(|(synonym, _)| synonym == name);
        known.map_or(name, |(_, location)| location).to_owned()
    }

    fn location(&mut self, name: &str, initial: u64) -> Result<(), Kind> {
        if !is_name(name) {
            return Err(expected("a location", name));
        }
        let name = name.to_owned();
        self.draft.add_location(Location { name, width: Width::B32, initial, device: 0, home: Home::Global })
    }

    /// Adds the location of an instruction if nobody has named it: it begins as 0.
    fn declare(&mut self, cell: &str) {
        let (opcode, operands) = cell.split_once(char::is_whitespace).unwrap_or((cell, ""));
        let at = match opcode.split('.').next() {
            Some("st" | "red" | "sust") => 0,
            Some("ld" | "atom" | "suld" | "tld" | "cold") => 1,
            _ => return,
        };
        let name = operands.split(',').nth(at).unwrap_or("").trim();
        if is_name(name) && !is_register(name) && self.at(name) == name {
            // A second declaration is refused, which says that it is known.
            let _ = self.location(name, 0);
        }
    }

    fn columns(&mut self, program: &str) -> Result<Vec<Column>, Kind> {
        let mut columns: Vec<Column> = Vec::new();
        let mut line = self.line;
        for row in program.split(';') {
            let at = line + lines(&row[..row.len() - row.trim_start().len()]);
            line += lines(row);
            self.line = at;
            let row = row.trim();
            if columns.is_empty() {
                for (number, cell) in row.split('|').map(str::trim).enumerate() {
                    let place = cell.split_once('@').and_then(|(thread, place)| {
                        let (block, device) = place.split_once(',')?;
                        let block = block.trim().strip_prefix("cta")?.trim().to_owned();
                        let device = device.trim().strip_prefix("gpu")?.trim().to_owned();
                        (thread.trim() == format!("P{number}")).then_some((block, device))
                    });
                    let (block, device) =
                        place.ok_or_else(|| expected("`P0@cta 0,gpu 0 | P1@...`, in order", cell))?;
                    columns.push(Column { block, device, code: Vec::new() });
                }
                continue;
            }
            if row.is_empty() {
                continue;
            }
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            if cells.len() > columns.len() {
                return Err(expected("as many columns as threads", row));
            }
            for (column, cell) in columns.iter_mut().zip(cells).filter(|(_, cell)| !cell.is_empty()) {
                column.code.push((at, cell.to_owned()));
            }
        }
        Ok(columns)
    }

    /// An instruction in the format of this crate.
    fn rewritten(&mut self, cell: &str) -> Result<Vec<String>, Kind> {
        if cell.ends_with(':') {
            return Ok(vec![cell.to_owned()]);
        }
        let (mnemonic, operands) = cell.split_once(char::is_whitespace).unwrap_or((cell, ""));
        let operands: Vec<&str> = operands.split(',').map(str::trim).filter(|o| !o.is_empty()).collect();
        let words: Vec<&str> = mnemonic.split('.').collect();
        let not_known = || Kind::Instruction {
            instruction: cell.to_owned(),
            reason: "not in the subset of litmus tests".to_owned(),
        };
        let one = |text: String| Ok(vec![text]);
        let order = || {
            words[1..]
                .iter()
                .filter(|word| **word != "weak")
                .map(|word| format!(".{word}"))
                .collect::<String>()
        };
        let at = |name: &str| self.at(name);
        match (words[0], &operands[..]) {
            ("suatom" | "sured", _) => {
                Err(Kind::Foreign { what: "atomics of surfaces", found: cell.to_owned() })
            }
            ("tld" | "suld" | "cold", [d, x]) => {
                one(format!("{}{}.u32 {}, [{}];", words[0], order(), value(d), at(x)))
            }
            ("sust", [x, a]) => one(format!("sust{}.u32 [{}], {};", order(), at(x), value(a))),
            ("fence", []) => one(format!("{mnemonic};")),
            ("ld", [d, a]) if words.len() == 1 => one(format!("mov.u32 {}, {};", value(d), value(a))),
            ("ld", [d, x]) => one(format!("ld{}.global.u32 {}, [{x}];", order(), value(d))),
            ("st", [x, a]) => one(format!("st{}.global.u32 [{x}], {};", order(), value(a))),
            ("add" | "sub" | "mul", [d, a, b]) => {
                let lo = if words[0] == "mul" { ".lo" } else { "" };
                one(format!("{}{lo}.u32 {}, {}, {};", words[0], value(d), value(a), value(b)))
            }
            ("atom" | "red", [rest @ .., a]) => {
                let [before @ .., operation] = &words[1..] else { return Err(not_known()) };
                // A `red` returns nothing to acquire with, and PTX has none that would.
                let order: String = before
                    .iter()
                    .map(|&word| match word {
                        "acq_rel" if words[0] == "red" => ".release".to_owned(),
                        "acquire" if words[0] == "red" => ".relaxed".to_owned(),
                        word => format!(".{word}"),
                    })
                    .collect();
                // PTX has no atomic difference: the sum with what it takes away from zero.
                let (operation, a) = match (*operation, number(a)) {
                    ("sub", Ok(value)) => ("add", (value as u32).wrapping_neg().to_string()),
                    ("sub", Err(_)) => return Err(not_known()),
                    (other, _) => (other, value(a)),
                };
                let ty = if ["add", "min", "max"].contains(&operation) { "u32" } else { "b32" };
                let opcode = words[0];
                match (opcode, rest) {
                    ("atom", [d, x]) if operation != "cas" => {
                        one(format!("atom{order}.global.{operation}.{ty} {}, [{x}], {a};", value(d)))
                    }
                    ("atom", [d, x, from]) => one(format!(
                        "atom{order}.global.{operation}.{ty} {}, [{x}], {}, {a};",
                        value(d),
                        value(from)
                    )),
                    ("red", [x]) => one(format!("red{order}.global.{operation}.{ty} [{x}], {a};")),
                    _ => Err(not_known()),
                }
            }
            ("bar", [instance, rest @ ..]) => {
                let mode = words.last().copied().unwrap_or("");
                let id = rest.first().unwrap_or(instance);
                match rest.get(1) {
                    None => one(format!("bar.{mode} {};", value(id))),
                    Some(quorum) => {
                        one(format!("bar.{mode} {}, {};", value(id), number(quorum)?.saturating_mul(32)))
                    }
                }
            }
            ("goto", [label]) => one(format!("bra {label};")),
            (branch, [a, b, label]) if branch.len() == 3 && branch.starts_with('b') => {
                let p = self.guards;
                self.guards += 1;
                Ok(vec![
                    format!("setp.{}.s32 %p{p}, {}, {};", &branch[1..], value(a), value(b)),
                    format!("@%p{p} bra {label};"),
                ])
            }
            _ => Err(not_known()),
        }
    }

    /// The condition that is asked about, and how.
    fn condition(&mut self, text: &str) -> Result<Expectation, Kind> {
        let text = text.trim().trim_end_matches(';').trim();
        let (filter, text) = match text.strip_prefix("filter") {
            None => (None, text),
            Some(rest) => {
                let end = question(rest).ok_or_else(|| expected("`exists`, `~exists` or `forall`", rest))?;
                (Some(rest[..end].trim().trim_end_matches(';')), &rest[end..])
            }
        };
        let begins = [("exists", true), ("~exists", false), ("forall", false)];
        let found = begins.iter().find_map(|&(word, some)| Some((word, some, text.strip_prefix(word)?)));
        let (word, some, rest) = found.ok_or_else(|| expected("`exists`, `~exists` or `forall`", text))?;
        let mut condition = self.parsed(rest)?;
        if word == "forall" {
            condition = Condition::Not(Box::new(condition));
        }
        if let Some(filter) = filter {
            condition = Condition::And(Box::new(self.parsed(filter)?), Box::new(condition));
        }
        self.draft.condition = Some(condition);
        Ok(Expectation::Asked(some))
    }

    fn parsed(&mut self, text: &str) -> Result<Condition, Kind> {
        let text = comparisons(&text.replace("/\\", "&&").replace("\\/", "||").replace('~', "!"));
        let text = text.split(':').map(str::trim_start).collect::<Vec<_>>().join(":");
        // A register that no instruction names is 0 for ever.
        for word in text.split(|c: char| c.is_whitespace() || "()&|=!<>".contains(c)) {
            if let Some((thread, register)) = word.split_once(':')
                && let Ok(thread) = thread.trim_start_matches('P').parse::<usize>()
                && is_register(register)
                && let Some(thread) = self.draft.threads.get_mut(thread)
            {
                let name = format!("%{register}");
                if !thread.registers.iter().any(|known| known.name == name) {
                    thread.registers.push(Register { name, width: Width::B32 });
                }
            }
        }
        let resolve = |name: &str| -> Option<Observable> {
            match name.split_once(':') {
                Some((thread, register)) => {
                    self.draft.observable(&format!("{}:%{register}", thread.trim_start_matches('P')))
                }
                None => self.draft.observable(name.trim_matches(['[', ']'])),
            }
        };
        Condition::parse(&text, &resolve)
    }
}

fn lines(text: &str) -> u32 {
    text.matches('\n').count() as u32
}

fn is_register(text: &str) -> bool {
    text.strip_prefix('r')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()))
}

/// A register of this crate's format, or a number.
fn value(text: &str) -> String {
    if is_register(text) { format!("%{text}") } else { text.to_owned() }
}

/// The text with `==` for every lone `=`.
fn comparisons(text: &str) -> String {
    let mut out = String::new();
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        out.push(c);
        if "=!<>".contains(c) {
            out.extend(characters.next_if_eq(&'='));
            if c == '=' && !out.ends_with("==") {
                out.push('=');
            }
        }
    }
    out
}

/// Where the question begins.
fn question(text: &str) -> Option<usize> {
    ["filter", "~exists", "exists", "forall"].iter().filter_map(|word| text.find(word)).min()
}
