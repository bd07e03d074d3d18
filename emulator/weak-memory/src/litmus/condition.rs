//! Conditions over final states: `1:%r0 == 1 && (x <= 2 || !(y == 0:%r1))`.

use super::comparison::Compare;
use super::error::LitmusErrorKind;
use super::outcome::{Observable, Outcome};
use super::text::number;

/// A condition over a final state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Both hold.
    And(Box<Condition>, Box<Condition>),
    /// One of them holds.
    Or(Box<Condition>, Box<Condition>),
    /// It does not hold.
    Not(Box<Condition>),
    /// A comparison, unsigned.
    Is(Value, Compare, Value),
}

/// A side of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// What something is in the end.
    Final(Observable),
    /// A constant.
    Constant(u64),
}

impl Value {
    fn of(self, outcome: &Outcome) -> u64 {
        match self {
            Self::Final(what) => outcome.value(what),
            Self::Constant(value) => value,
        }
    }
}

impl Condition {
    /// Whether it holds in `outcome`, which must be of the same test.
    pub fn holds(&self, outcome: &Outcome) -> bool {
        match self {
            Self::And(a, b) => a.holds(outcome) && b.holds(outcome),
            Self::Or(a, b) => a.holds(outcome) || b.holds(outcome),
            Self::Not(a) => !a.holds(outcome),
            Self::Is(a, compare, b) => compare.holds(&a.of(outcome), &b.of(outcome)),
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
            '&' | '|' | '=' | '!' | '<' | '>' => {
                let two = ["&&", "||", "==", "!=", "<=", ">="].iter().find(|two| rest.starts_with(**two));
                match two {
                    Some(two) => two.len(),
                    None if "!<>".contains(first) => 1,
                    None => return Err(LitmusErrorKind::Condition(format!("a lone `{first}`"))),
                }
            }
            _ => rest.find(|c: char| c.is_whitespace() || "()&|=!<>".contains(c)).unwrap_or(rest.len()),
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
        let negated = self.tokens.first() == Some(&"!");
        if negated || self.tokens.first() == Some(&"(") {
            self.tokens = &self.tokens[1..];
            self.depth += 1;
            if self.depth > DEPTH {
                return Err(LitmusErrorKind::Condition(format!("more than {DEPTH} parentheses deep")));
            }
            let inner = if negated { Condition::Not(Box::new(self.one()?)) } else { self.either()? };
            self.depth -= 1;
            return match negated {
                true => Ok(inner),
                false => match self.next("`)`")? {
                    ")" => Ok(inner),
                    other => Err(LitmusErrorKind::Condition(format!("`{other}` where `)` is expected"))),
                },
            };
        }
        let left = self.value("a register or location")?;
        let compare = match self.next("a comparison")? {
            "==" => Compare::Eq,
            "!=" => Compare::Ne,
            "<" => Compare::Lt,
            "<=" => Compare::Le,
            ">" => Compare::Gt,
            ">=" => Compare::Ge,
            other => {
                return Err(LitmusErrorKind::Condition(format!("`{other}` where `==` is expected")));
            }
        };
        Ok(Condition::Is(left, compare, self.value("a number")?))
    }

    fn value(&mut self, wanted: &str) -> Result<Value, LitmusErrorKind> {
        let text = self.next(wanted)?;
        if let Some(what) = (self.resolve)(text) {
            return Ok(Value::Final(what));
        }
        if wanted == "a number" || text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains(':') {
            return number(text).map(Value::Constant);
        }
        Err(LitmusErrorKind::Unknown { what: "register or location", name: text.into() })
    }
}
