//! Tokens to a syntax tree: directives, declarations, instructions.

use super::ast::{Ast, Entry, Instruction, Operand, Statement, Variable};
use super::error::At;
use super::lexer::{Lexeme, Token, lex};
use super::types::{Space, Type};

/// Parses a whole module.
pub(crate) fn parse(source: &str) -> Result<Ast<'_>, At> {
    let lexemes = lex(source)?;
    let mut parser = Parser { lexemes: &lexemes, at: 0 };
    let mut ast = Ast::default();
    while parser.peek().is_some() {
        parser.module_item(&mut ast)?;
    }
    let end = parser.line();
    if ast.version == (0, 0) {
        return Err(At::new(end, "no .version directive"));
    }
    if ast.target.is_empty() {
        return Err(At::new(end, "no .target directive"));
    }
    if ast.address_size != 64 {
        return Err(At::new(end, "only .address_size 64 is supported"));
    }
    Ok(ast)
}

struct Parser<'t, 'a> {
    lexemes: &'t [Lexeme<'a>],
    at: usize,
}

impl<'a> Parser<'_, 'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.lexemes.get(self.at).map(|lexeme| lexeme.token)
    }

    fn peek_second(&self) -> Option<Token<'a>> {
        self.lexemes.get(self.at + 1).map(|lexeme| lexeme.token)
    }

    /// Line of the next token, or of the last one at the end.
    fn line(&self) -> u32 {
        self.lexemes.get(self.at).or(self.lexemes.last()).map_or(1, |lexeme| lexeme.line)
    }

    fn fail<T>(&self, reason: impl Into<String>) -> Result<T, At> {
        Err(At::new(self.line(), reason))
    }

    fn unexpected<T>(&self, wanted: &str) -> Result<T, At> {
        match self.peek() {
            Some(token) => self.fail(format!("expected {wanted}, found {}", show(token))),
            None => self.fail(format!("expected {wanted}, found the end of the text")),
        }
    }

    fn advance(&mut self) -> Option<Token<'a>> {
        let token = self.peek();
        self.at += usize::from(token.is_some());
        token
    }

    fn eat(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    fn eat_dot(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Token::Dot(word));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: char) -> Result<(), At> {
        if self.eat(mark) { Ok(()) } else { self.unexpected(&format!("`{mark}`")) }
    }

    fn word(&mut self, what: &str) -> Result<&'a str, At> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.unexpected(what),
        }
    }

    fn int(&mut self, what: &str) -> Result<u64, At> {
        match self.peek() {
            Some(Token::Int(value)) => {
                self.at += 1;
                Ok(value)
            }
            _ => self.unexpected(what),
        }
    }

    fn small(&mut self, what: &str) -> Result<u32, At> {
        let line = self.line();
        u32::try_from(self.int(what)?).map_err(|_| At::new(line, format!("{what} is too large")))
    }

    fn module_item(&mut self, ast: &mut Ast<'a>) -> Result<(), At> {
        let Some(Token::Dot(directive)) = self.peek() else { return self.unexpected("a directive") };
        let line = self.line();
        match directive {
            "version" => {
                self.at += 1;
                let Some(Token::Double(version)) = self.advance() else {
                    return Err(At::new(line, "expected a version such as 7.0"));
                };
                ast.version = (version as u32, (version.fract() * 10.0).round() as u32);
            }
            "target" => {
                self.at += 1;
                ast.target = self.word("a target such as sm_70")?;
                while self.eat(',') {
                    match self.word("a target option")? {
                        "debug" | "texmode_unified" | "texmode_independent" => {}
                        other => return self.fail(format!("unknown target option {other}")),
                    }
                }
            }
            "address_size" => {
                self.at += 1;
                ast.address_size = self.small("an address size")?;
            }
            "file" | "pragma" => self.skip_line(),
            "section" => self.skip_body()?,
            "visible" | "extern" | "weak" | "common" | "entry" | "func" | "global" | "const" | "shared" => {
                self.linked_item(ast)?;
            }
            "alias" | "tex" | "surf" | "sampler" | "reg" | "local" | "param" => {
                return self.fail(format!("directive .{directive} is not supported at module scope"));
            }
            _ => return self.fail(format!("unknown directive .{directive}")),
        }
        Ok(())
    }

    fn linked_item(&mut self, ast: &mut Ast<'a>) -> Result<(), At> {
        let mut external = false;
        loop {
            match self.peek() {
                Some(Token::Dot("visible" | "weak" | "common")) => self.at += 1,
                Some(Token::Dot("extern")) => {
                    external = true;
                    self.at += 1;
                }
                Some(Token::Dot("entry")) => {
                    self.at += 1;
                    let entry = self.entry()?;
                    ast.entries.push(entry);
                    return Ok(());
                }
                Some(Token::Dot("func")) => return self.skip_body(),
                _ => {
                    ast.variables.extend(self.variables(external)?);
                    return Ok(());
                }
            }
        }
    }

    /// Skips to the end of the line.
    fn skip_line(&mut self) {
        let line = self.line();
        while self.lexemes.get(self.at).is_some_and(|lexeme| lexeme.line == line) {
            self.at += 1;
        }
    }

    /// Skips a function, which nothing may call, or a section: up to its `;` or past its braces.
    fn skip_body(&mut self) -> Result<(), At> {
        let line = self.line();
        let mut depth = 0;
        while let Some(token) = self.advance() {
            match token {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') if depth <= 1 => return Ok(()),
                Token::Mark('}') => depth -= 1,
                Token::Mark(';') if depth == 0 => return Ok(()),
                _ => {}
            }
        }
        Err(At::new(line, "no end of this body"))
    }

    fn space(&mut self) -> Result<Space, At> {
        let space = match self.peek() {
            Some(Token::Dot("global")) => Space::Global,
            Some(Token::Dot("shared" | "shared::cta")) => Space::Shared,
            Some(Token::Dot("local")) => Space::Local,
            Some(Token::Dot("const")) => Space::Const,
            Some(Token::Dot("param")) => Space::Param,
            _ => return self.unexpected("a state space"),
        };
        self.at += 1;
        Ok(space)
    }

    fn ty(&mut self) -> Result<Type, At> {
        let ty = match self.peek() {
            Some(Token::Dot(name)) => Type::parse(name),
            _ => None,
        };
        match ty {
            Some(ty) => {
                self.at += 1;
                Ok(ty)
            }
            None => self.unexpected("a type"),
        }
    }

    /// `.space {.align n} {.vN} .type name{[n]} {= init} {, name ...};`
    fn variables(&mut self, external: bool) -> Result<Vec<Variable<'a>>, At> {
        let space = self.space()?;
        let mut found = Vec::new();
        let (align, ty, lanes) = self.variable_type()?;
        loop {
            let mut variable = self.declarator(space, align, ty, lanes)?;
            variable.external = external;
            if self.eat('=') {
                variable.init = Some(self.initialiser(ty, variable.bytes)?);
            }
            found.push(variable);
            if !self.eat(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(found)
    }

    fn variable_type(&mut self) -> Result<(Option<u32>, Type, u32), At> {
        let (mut align, mut lanes) = (None, 1);
        loop {
            if self.eat_dot("align") {
                let value = self.small("an alignment")?;
                if !value.is_power_of_two() || value > 1 << 16 {
                    return self.fail("an alignment must be a power of two");
                }
                align = Some(value);
            } else if self.eat_dot("v2") {
                lanes = 2;
            } else if self.eat_dot("v4") {
                lanes = 4;
            } else {
                let ty = self.ty()?;
                if ty == Type::Pred {
                    return self.fail("a variable cannot be a predicate");
                }
                return Ok((align, ty, lanes));
            }
        }
    }

    fn declarator(
        &mut self,
        space: Space,
        align: Option<u32>,
        ty: Type,
        lanes: u32,
    ) -> Result<Variable<'a>, At> {
        let line = self.line();
        let name = self.word("a variable's name")?;
        let element = u64::from(ty.bytes() * lanes);
        let mut bytes = element;
        while self.eat('[') {
            let count = if self.peek() == Some(Token::Mark(']')) { 0 } else { self.int("an array length")? };
            self.expect(']')?;
            bytes = match bytes.checked_mul(count) {
                Some(bytes) if bytes <= 1 << 32 => bytes,
                _ => return Err(At::new(line, "this array is too large")),
            };
        }
        let align = align.unwrap_or(element as u32);
        Ok(Variable { line, space, name, align, bytes, external: false, init: None })
    }

    fn initialiser(&mut self, ty: Type, bytes: u64) -> Result<Vec<u8>, At> {
        let line = self.line();
        let mut init = Vec::new();
        let braces = self.eat('{');
        loop {
            let value = match self.operand()? {
                Operand::Int(value) => value,
                Operand::Single(bits) if ty.bits() == 32 => u64::from(bits),
                Operand::Double(value) if ty == Type::F32 => u64::from((value as f32).to_bits()),
                Operand::Double(value) if ty.bits() == 64 => value.to_bits(),
                _ => return Err(At::new(line, "only numbers can initialise a variable")),
            };
            init.extend_from_slice(&value.to_le_bytes()[..ty.bytes() as usize]);
            if !(braces && self.eat(',')) {
                break;
            }
        }
        if braces {
            self.expect('}')?;
        }
        if init.len() as u64 > bytes {
            return Err(At::new(line, "more initial values than elements"));
        }
        Ok(init)
    }

    fn entry(&mut self) -> Result<Entry<'a>, At> {
        let line = self.line();
        let name = self.word("a kernel's name")?;
        let mut params = Vec::new();
        if self.eat('(') && !self.eat(')') {
            loop {
                if self.space()? != Space::Param {
                    return self.fail("a kernel's parameters are in .param");
                }
                let (align, ty, lanes) = self.variable_type()?;
                if self.eat_dot("ptr") {
                    while matches!(self.peek(), Some(Token::Dot("global" | "shared" | "local" | "const"))) {
                        self.at += 1;
                    }
                    if self.eat_dot("align") {
                        self.small("an alignment")?;
                    }
                }
                params.push(self.declarator(Space::Param, align, ty, lanes)?);
                if !self.eat(',') {
                    break;
                }
            }
            self.expect(')')?;
        }
        let mut entry =
            Entry { name, line, params, max_threads: None, required_threads: None, body: Vec::new() };
        self.performance_directives(&mut entry)?;
        self.expect('{')?;
        self.body(&mut entry.body)?;
        Ok(entry)
    }

    fn performance_directives(&mut self, entry: &mut Entry<'a>) -> Result<(), At> {
        while let Some(Token::Dot(directive)) = self.peek() {
            self.at += 1;
            match directive {
                "maxntid" => entry.max_threads = Some(self.extent()?),
                "reqntid" => entry.required_threads = Some(self.extent()?),
                "minnctapersm" | "maxnctapersm" | "maxnreg" => {
                    self.small("a count")?;
                }
                "noreturn" => {}
                "pragma" => self.skip_line(),
                _ => {
                    self.at -= 1;
                    return self.fail(format!("unknown directive .{directive}"));
                }
            }
        }
        Ok(())
    }

    fn extent(&mut self) -> Result<[u32; 3], At> {
        let mut extent = [1; 3];
        extent[0] = self.small("a count of threads")?;
        for axis in &mut extent[1..] {
            if !self.eat(',') {
                break;
            }
            *axis = self.small("a count of threads")?;
        }
        Ok(extent)
    }

    /// The statements of a body whose `{` is eaten, and its `}`.
    fn body(&mut self, body: &mut Vec<Statement<'a>>) -> Result<(), At> {
        let mut depth = 0;
        loop {
            let line = self.line();
            match self.peek() {
                Some(Token::Mark('{')) => {
                    depth += 1;
                    body.push(Statement::Open);
                    self.at += 1;
                }
                Some(Token::Mark('}')) => {
                    self.at += 1;
                    if depth == 0 {
                        return Ok(());
                    }
                    depth -= 1;
                    body.push(Statement::Close);
                }
                Some(Token::Mark(';')) => self.at += 1,
                Some(Token::Dot("reg")) => self.registers(body)?,
                Some(Token::Dot("shared" | "local" | "const" | "global" | "param")) => {
                    for variable in self.variables(false)? {
                        body.push(Statement::Variable(variable));
                    }
                }
                Some(Token::Dot("extern")) if self.peek_second() == Some(Token::Dot("shared")) => {
                    self.at += 1;
                    for variable in self.variables(true)? {
                        body.push(Statement::Variable(variable));
                    }
                }
                Some(Token::Dot("loc" | "pragma" | "file")) => self.skip_line(),
                Some(Token::Dot(directive)) => return self.fail(format!("unknown directive .{directive}")),
                Some(Token::Word(name)) if self.peek_second() == Some(Token::Mark(':')) => {
                    self.at += 2;
                    if self.eat_dot("branchtargets") {
                        let mut labels = vec![self.word("a label")?];
                        while self.eat(',') {
                            labels.push(self.word("a label")?);
                        }
                        self.expect(';')?;
                        body.push(Statement::Targets { name, labels });
                    } else {
                        body.push(Statement::Label { line, name });
                    }
                }
                Some(Token::Word(_) | Token::Mark('@')) => {
                    let instruction = self.instruction()?;
                    body.push(Statement::Instruction(instruction));
                }
                _ => return self.unexpected("an instruction"),
            }
        }
    }

    fn registers(&mut self, body: &mut Vec<Statement<'a>>) -> Result<(), At> {
        self.at += 1;
        let line = self.line();
        let ty = self.ty()?;
        if ty.bits() == 8 {
            return Err(At::new(line, "registers of 8 bits do not exist"));
        }
        loop {
            let name = self.word("a register's name")?;
            let mut count = None;
            if self.eat('<') {
                count = Some(self.small("a count of registers")?);
                self.expect('>')?;
            }
            body.push(Statement::Registers { line, ty, name, count });
            if !self.eat(',') {
                break;
            }
        }
        self.expect(';')
    }

    fn instruction(&mut self) -> Result<Instruction<'a>, At> {
        let mut guard = None;
        if self.eat('@') {
            let negated = self.eat('!');
            guard = Some((self.word("a guard predicate")?, negated));
        }
        let line = self.line();
        let opcode = self.word("an instruction")?;
        let mut modifiers = Vec::new();
        while let Some(Token::Dot(modifier)) = self.peek() {
            modifiers.push(modifier);
            self.at += 1;
        }
        let mut operands = Vec::new();
        if self.peek() != Some(Token::Mark(';')) {
            if self.peek() == Some(Token::Mark('(')) || opcode == "call" {
                return Err(At::new(line, "calls are not supported: a kernel must be inlined completely"));
            }
            loop {
                operands.push(self.operand()?);
                if !self.eat(',') {
                    break;
                }
            }
        }
        if !self.eat(';') {
            return self.unexpected("`;`");
        }
        Ok(Instruction { line, guard, opcode, modifiers, operands })
    }

    fn operand(&mut self) -> Result<Operand<'a>, At> {
        if !self.eat('{') {
            return self.scalar();
        }
        let mut lanes = Vec::new();
        loop {
            lanes.push(self.scalar()?);
            if !self.eat(',') {
                break;
            }
        }
        self.expect('}')?;
        Ok(Operand::Vector(lanes))
    }

    fn scalar(&mut self) -> Result<Operand<'a>, At> {
        Ok(match self.advance() {
            Some(Token::Mark('[')) => {
                let base = match self.peek() {
                    Some(Token::Word(name)) => {
                        self.at += 1;
                        Some(name)
                    }
                    _ => None,
                };
                let offset = if base.is_none() { self.int("an address")? as i64 } else { self.offset()? };
                self.expect(']')?;
                Operand::Address(base, offset)
            }
            Some(Token::Mark('!')) => Operand::Not(self.word("a predicate")?),
            Some(Token::Mark('-')) => match self.advance() {
                Some(Token::Int(value)) => Operand::Int(value.wrapping_neg()),
                Some(Token::Double(value)) => Operand::Double(-value),
                Some(Token::Single(bits)) => Operand::Single(bits ^ 1 << 31),
                _ => {
                    self.at -= 1;
                    return self.unexpected("a number");
                }
            },
            Some(Token::Int(value)) => Operand::Int(value),
            Some(Token::Single(bits)) => Operand::Single(bits),
            Some(Token::Double(value)) => Operand::Double(value),
            Some(Token::Word(name)) => match self.peek() {
                Some(Token::Dot(element)) => {
                    self.at += 1;
                    Operand::Element(name, element)
                }
                Some(Token::Mark('|')) => {
                    self.at += 1;
                    Operand::Pair(name, self.word("a predicate")?)
                }
                Some(Token::Mark('+' | '-')) => Operand::Sum(name, self.offset()?),
                _ => Operand::Name(name),
            },
            _ => {
                self.at = self.at.saturating_sub(1);
                return self.unexpected("an operand");
            }
        })
    }

    /// `+4`, `-4`, `+-4` or nothing.
    fn offset(&mut self) -> Result<i64, At> {
        let negative = if self.eat('+') {
            self.eat('-')
        } else if self.eat('-') {
            true
        } else {
            return Ok(0);
        };
        let offset = self.int("an offset")? as i64;
        Ok(if negative { offset.wrapping_neg() } else { offset })
    }
}

fn show(token: Token<'_>) -> String {
    match token {
        Token::Word(word) => format!("`{word}`"),
        Token::Dot(word) => format!("`.{word}`"),
        Token::Int(value) => format!("`{value}`"),
        Token::Single(bits) => format!("`0f{bits:08x}`"),
        Token::Double(value) => format!("`{value}`"),
        Token::Text(text) => format!("{text:?}"),
        Token::Mark(mark) => format!("`{mark}`"),
    }
}
