//! Text to tokens, each with its line.

use super::error::At;

/// A token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    /// An identifier: opcode, register, label, variable. `%` and `$` belong to it.
    Word(&'a str),
    /// A word with a leading dot, which is not part of the text here: directive, modifier, type, vector element.
    Dot(&'a str),
    /// An integer, as 64 bits.
    Int(u64),
    /// A `0f` literal: the bits of an fp32.
    Single(u32),
    /// A `0d` literal or a decimal number: an fp64.
    Double(f64),
    /// A quoted text.
    Text(&'a str),
    /// Any other character.
    Mark(char),
}

/// A token and the line that it is on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lexeme<'a> {
    pub(crate) token: Token<'a>,
    pub(crate) line: u32,
}

const MARKS: &str = "{}()[]<>,;:+-=@!|&^~*/?%";

/// Cuts `source` into tokens; comments and white space are dropped.
pub(crate) fn lex(source: &str) -> Result<Vec<Lexeme<'_>>, At> {
    let bytes = source.as_bytes();
    let mut lexemes = Vec::with_capacity(source.len() / 4);
    let (mut at, mut line) = (0, 1u32);
    while at < bytes.len() {
        let rest = &source[at..];
        let byte = bytes[at];
        if byte == b'\n' {
            line += 1;
            at += 1;
            continue;
        }
        if byte.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        }
        if rest.starts_with("/*") {
            let length = rest.find("*/").ok_or_else(|| At::new(line, "comment without an end"))? + 2;
            line += rest[..length].matches('\n').count() as u32;
            at += length;
            continue;
        }
        let (token, length) = next(rest, line)?;
        lexemes.push(Lexeme { token, line });
        at += length;
    }
    Ok(lexemes)
}

fn next(rest: &str, line: u32) -> Result<(Token<'_>, usize), At> {
    let first = rest.chars().next().unwrap_or('\0');
    if first == '"' {
        let length = rest[1..].find(['"', '\n']).filter(|end| rest.as_bytes()[1 + end] == b'"');
        let length = length.ok_or_else(|| At::new(line, "string without an end"))?;
        return Ok((Token::Text(&rest[1..1 + length]), length + 2));
    }
    if first.is_ascii_digit() {
        return number(rest, line);
    }
    if first == '.' {
        let length = 1 + dotted(&rest[1..]);
        if length > 1 {
            return Ok((Token::Dot(&rest[1..length]), length));
        }
    }
    if is_word_start(first) {
        let length = word(rest);
        if length > 1 || first != '%' {
            return Ok((Token::Word(&rest[..length]), length));
        }
    }
    if MARKS.contains(first) {
        return Ok((Token::Mark(first), 1));
    }
    Err(At::new(line, format!("unexpected character {first:?}")))
}

fn is_word_start(c: char) -> bool {
    c.is_ascii_alphabetic() || matches!(c, '_' | '$' | '%')
}

fn is_word_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$')
}

fn word(text: &str) -> usize {
    let first = text.chars().next().map_or(0, char::len_utf8);
    text[first..].find(|c| !is_word_part(c)).map_or(text.len(), |end| first + end)
}

/// Length of a dotted word, in which `::` is a part (`.L1::no_allocate`, `.shared::cta`).
fn dotted(text: &str) -> usize {
    let mut length = 0;
    loop {
        length += text[length..].find(|c| !is_word_part(c)).unwrap_or(text.len() - length);
        match text[length..].strip_prefix("::") {
            Some(rest) if length > 0 && rest.starts_with(is_word_part) => length += 2,
            _ => return length,
        }
    }
}

fn number(rest: &str, line: u32) -> Result<(Token<'_>, usize), At> {
    let length = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
    let bad = || At::new(line, format!("not a number: {}", &rest[..length]));
    let literal = &rest[..length];
    if let Some(hex) = literal.strip_prefix("0f").or(literal.strip_prefix("0F")) {
        if hex.len() != 8 {
            return Err(bad());
        }
        return Ok((Token::Single(u32::from_str_radix(hex, 16).map_err(|_| bad())?), length));
    }
    if let Some(hex) = literal.strip_prefix("0d").or(literal.strip_prefix("0D")) {
        if hex.len() != 16 {
            return Err(bad());
        }
        let bits = u64::from_str_radix(hex, 16).map_err(|_| bad())?;
        return Ok((Token::Double(f64::from_bits(bits)), length));
    }
    let fraction =
        rest[length..].strip_prefix('.').filter(|tail| tail.starts_with(|c: char| c.is_ascii_digit()));
    if let Some(tail) = fraction {
        let mut end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        if let Some(exponent) = tail[end..].strip_prefix(['e', 'E']) {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            let count = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            if count > 0 {
                end += 1 + (exponent.len() - digits.len()) + count;
            }
        }
        let length = length + 1 + end;
        return Ok((Token::Double(rest[..length].parse().map_err(|_| bad())?), length));
    }
    let digits = literal.strip_suffix(['u', 'U']).unwrap_or(literal);
    let (digits, radix) = if let Some(hex) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        (hex, 16)
    } else if let Some(binary) = digits.strip_prefix("0b").or(digits.strip_prefix("0B")) {
        (binary, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (&digits[1..], 8)
    } else {
        (digits, 10)
    };
    Ok((Token::Int(u64::from_str_radix(digits, radix).map_err(|_| bad())?), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token<'_>> {
        lex(text).unwrap().into_iter().map(|lexeme| lexeme.token).collect()
    }

    #[test]
    fn an_instruction_falls_into_words_modifiers_and_marks() {
        use Token::{Dot, Int, Mark, Word};
        assert_eq!(
            tokens("ld.global.L1::no_allocate.v2.u64 {%rd1,%rd2}, [%rd3+8]; // why"),
            [
                Word("ld"),
                Dot("global"),
                Dot("L1::no_allocate"),
                Dot("v2"),
                Dot("u64"),
                Mark('{'),
                Word("%rd1"),
                Mark(','),
                Word("%rd2"),
                Mark('}'),
                Mark(','),
                Mark('['),
                Word("%rd3"),
                Mark('+'),
                Int(8),
                Mark(']'),
                Mark(';')
            ]
        );
    }

    #[test]
    fn every_kind_of_number_is_read() {
        assert_eq!(tokens("0x1F 017 0b101 42U"), [31, 15, 5, 42].map(Token::Int));
        assert_eq!(tokens("0f3F800000 7.0"), [Token::Single(0x3f80_0000), Token::Double(7.0)]);
        assert_eq!(tokens("0d3FF0000000000000 1.5e-3"), [Token::Double(1.0), Token::Double(0.0015)]);
        for bad in ["0f12", "0x", "08", "12abc", "99999999999999999999"] {
            assert!(lex(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_count_through_comments() {
        let lexemes = lex("a /* \n\n */ b // c\nd").unwrap();
        assert_eq!(lexemes.iter().map(|lexeme| lexeme.line).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(lex("a\n\"open").unwrap_err().line, 2);
        assert_eq!(lex("a\n\nß").unwrap_err().line, 3);
    }
}
