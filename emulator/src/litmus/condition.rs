//! Conditions over final states: `1:%r0 == 1 && (x == 2 || y != 0)`.

use super::enumerate::Outcome;
use super::error::LitmusErrorKind;
use super::parse::number;

/// A condition over a final state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Both hold.
    And(Box<Condition>, Box<Condition>),
    /// One of them holds.
    Or(Box<Condition>, Box<Condition>),
    /// Something has this value (`true`), or another (`false`).
    Is(Observable, bool, u64),
}

/// Something with a final value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observable {
    /// A register.
    Register {
        /// Index of the thread.
        thread: usize,
        /// Index of the register within the thread.
        register: usize,
    },
    /// A location, by index.
    Location(usize),
}

impl Condition {
    /// Whether it holds in `outcome`, which must be of the same test.
    pub fn holds(&self, outcome: &Outcome) -> bool {
        match self {
            Self::And(a, b) => a.holds(outcome) && b.holds(outcome),
            Self::Or(a, b) => a.holds(outcome) || b.holds(outcome),
            Self::Is(what, equal, value) => (outcome.value(*what) == *value) == *equal,
        }
    }

    /// Parses a condition; `resolve` knows the names.
    pub(super) fn parse(
        text: &str,
        resolve: &dyn Fn(&str) -> Option<Observable>,
    ) -> Result<Self, LitmusErrorKind> {
        let tokens = tokens(text)?;
        let mut parser = Parser { tokens: &tokens, resolve, depth: 0 };
        let condition = parser.either()?;
        match parser.tokens {
            [] => Ok(condition),
            [left, ..] => Err(LitmusErrorKind::Condition(format!("`{left}` after its end"))),
        }
    }
}

/// Parentheses within parentheses that a condition may have: a bound on the parser's own stack.
const DEPTH: u32 = 32;

fn tokens(text: &str) -> Result<Vec<&str>, LitmusErrorKind> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '(' | ')' => 1,
            '&' | '|' | '=' | '!' => {
                let two = ["&&", "||", "==", "!="].iter().find(|two| rest.starts_with(**two));
                two.ok_or_else(|| LitmusErrorKind::Condition(format!("a lone `{first}`")))?.len()
            }
            _ => rest.find(|c: char| c.is_whitespace() || "()&|=!".contains(c)).unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(len);
        tokens.push(token);
        rest = after.trim_start();
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: &'a [&'a str],
    resolve: &'a dyn Fn(&str) -> Option<Observable>,
    depth: u32,
}

impl<'a> Parser<'a> {
    fn take(&mut self, wanted: &str) -> bool {
        let found = self.tokens.first() == Some(&wanted);
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }

    fn next(&mut self, wanted: &str) -> Result<&'a str, LitmusErrorKind> {
        let [first, rest @ ..] = self.tokens else {
            return Err(LitmusErrorKind::Condition(format!("it ends where {wanted} is expected")));
        };
        self.tokens = rest;
        Ok(first)
    }

    fn either(&mut self) -> Result<Condition, LitmusErrorKind> {
        let mut left = self.both()?;
        while self.take("||") {
            left = Condition::Or(Box::new(left), Box::new(self.both()?));
        }
        Ok(left)
    }

    fn both(&mut self) -> Result<Condition, LitmusErrorKind> {
        let mut left = self.one()?;
        while self.take("&&") {
            left = Condition::And(Box::new(left), Box::new(self.one()?));
        }
        Ok(left)
    }

    fn one(&mut self) -> Result<Condition, LitmusErrorKind> {
        if self.take("(") {
            self.depth += 1;
            if self.depth > DEPTH {
                return Err(LitmusErrorKind::Condition(format!("more than {DEPTH} parentheses deep")));
            }
            let inner = self.either()?;
            self.depth -= 1;
            return match self.next("`)`")? {
                ")" => Ok(inner),
                other => Err(LitmusErrorKind::Condition(format!("`{other}` where `)` is expected"))),
            };
        }
        let name = self.next("a register or location")?;
        let what = (self.resolve)(name)
            .ok_or_else(|| LitmusErrorKind::Unknown { what: "register or location", name: name.into() })?;
        let equal = match self.next("`==` or `!=`")? {
            "==" => true,
            "!=" => false,
            other => {
                return Err(LitmusErrorKind::Condition(format!("`{other}` where `==` is expected")));
            }
        };
        let value = number(self.next("a number")?)?;
        Ok(Condition::Is(what, equal, value))
    }
}
