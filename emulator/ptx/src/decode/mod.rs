//! Syntax tree to decoded program: names and labels are resolved, operand types checked.

mod arithmetic;
mod compare;
mod control;
mod memory;
mod modifiers;
mod names;
mod registers;

use std::collections::HashMap;
use std::sync::Arc;

pub(crate) use self::names::Placed;

use self::modifiers::Modifiers;
use self::names::Names;
use super::ast::{Entry, Instruction, Statement};
use super::error::At;
use super::program::{Guard, Kernel, Op, Param, Slot, Step};
use super::types::{Space, Type};

/// Decodes one entry.
pub(crate) fn decode(
    entry: &Entry<'_>,
    globals: &[Placed<'_>],
    constant_memory: &Arc<[u8]>,
    source: &Arc<str>,
) -> Result<Kernel, At> {
    let mut decoder = Decoder {
        names: Names::new(globals),
        code: Vec::new(),
        branches: Vec::new(),
        tables: Vec::new(),
        labels: HashMap::new(),
        sites: 0,
        carry: None,
    };
    let mut params = Vec::new();
    let mut offset = 0u64;
    for param in &entry.params {
        offset = offset.next_multiple_of(u64::from(param.align));
        params.push(Param {
            name: param.name.to_owned(),
            offset: offset as u32,
            bytes: param.bytes as u32,
            align: param.align,
        });
        decoder.names.define_variable(param, Space::Param, offset)?;
        offset += param.bytes;
        // 32,764 bytes since PTX ISA 8.1, 4,352 before.
        if offset > 32_764 {
            return Err(At::new(param.line, "the kernel's parameters are too large"));
        }
    }
    for statement in &entry.body {
        decoder.statement(statement)?;
    }
    decoder.push(Op::Exit, Guard::Always, entry.line);
    decoder.resolve_labels()?;
    let dynamic_shared_offset = decoder.names.finish_shared();
    let Decoder { names, mut code, sites, .. } = decoder;
    let accesses_b128 = code.iter().any(|step| match &step.op {
        Op::Load(load) => load.whole,
        Op::Store(store) => store.whole,
        _ => false,
    });
    let allocation = registers::allocate(&mut code, &names.kinds, entry.line)?;
    Ok(Kernel {
        name: entry.name.to_owned(),
        params,
        param_bytes: offset as u32,
        max_threads: entry.max_threads,
        required_threads: entry.required_threads,
        shared_bytes: names.shared_bytes as u32,
        local_bytes: names.local_bytes.next_multiple_of(16) as u32,
        registers: allocation.pressure,
        code: code.into(),
        dynamic_shared_offset,
        register_slots: allocation.slots,
        constants: allocation.constants.into(),
        specials: allocation.specials.into(),
        sites,
        accesses_b128,
        constant_memory: constant_memory.clone(),
        source: source.clone(),
    })
}

struct Decoder<'a> {
    names: Names<'a>,
    code: Vec<Step>,
    /// Branches whose labels are not resolved yet: step, place in its table, label, the scopes around it, line.
    branches: Vec<Unresolved<'a>>,
    /// `.branchtargets`, by name.
    tables: Vec<(&'a str, Vec<&'a str>)>,
    labels: HashMap<(usize, &'a str), u32>,
    sites: u16,
    /// The slot of the carry flag, once it is used.
    carry: Option<Slot>,
}

struct Unresolved<'a> {
    step: usize,
    place: usize,
    label: &'a str,
    scopes: Vec<usize>,
    line: u32,
}

/// An instruction with its modifiers, while it is decoded.
struct Line<'i, 'a> {
    instruction: &'i Instruction<'a>,
    modifiers: Modifiers<'a>,
}

impl<'a> Line<'_, 'a> {
    fn fail<T>(&self, reason: impl Into<String>) -> Result<T, At> {
        Err(At::new(self.instruction.line, reason))
    }

    /// The instruction's type, its last modifier that is one.
    fn ty(&mut self) -> Result<Type, At> {
        match self.modifiers.take_type() {
            Some(ty) => Ok(ty),
            None => self.fail(format!("{} needs a type", self.instruction.opcode)),
        }
    }

    fn unsupported<T>(&self) -> Result<T, At> {
        let Instruction { opcode, modifiers, .. } = self.instruction;
        let dots: String = modifiers.iter().map(|modifier| format!(".{modifier}")).collect();
        self.fail(format!("instruction {opcode}{dots} is not supported"))
    }
}

impl<'a> Decoder<'a> {
    fn statement(&mut self, statement: &Statement<'a>) -> Result<(), At> {
        match statement {
            Statement::Open => self.names.open(),
            Statement::Close => self.names.close(),
            Statement::Label { line, name } => {
                let scope = self.names.scope();
                if self.labels.insert((scope, name), self.code.len() as u32).is_some() {
                    return Err(At::new(*line, format!("label {name} is defined twice")));
                }
            }
            Statement::Registers { line, ty, name, count } => {
                self.names.define_registers(*line, *ty, name, *count)?;
            }
            Statement::Variable(variable) => match variable.space {
                Space::Shared | Space::Local => self.names.declare(variable)?,
                Space::Param => {}
                _ => {
                    return Err(At::new(
                        variable.line,
                        "variables of this space are supported at module scope only",
                    ));
                }
            },
            Statement::Targets { name, labels } => self.tables.push((name, labels.clone())),
            Statement::Instruction(instruction) => self.instruction(instruction)?,
        }
        Ok(())
    }

    fn push(&mut self, op: Op, guard: Guard, line: u32) {
        self.code.push(Step { op, guard, line });
    }

    fn instruction(&mut self, instruction: &Instruction<'a>) -> Result<(), At> {
        let guard = match instruction.guard {
            None => Guard::Always,
            Some((name, negated)) => {
                let slot = self.names.register(name, Type::Pred, false, instruction.line)?;
                if negated { Guard::Unless(slot) } else { Guard::If(slot) }
            }
        };
        let mut line = Line { instruction, modifiers: Modifiers::new(&instruction.modifiers) };
        let op = self.operation(&mut line)?;
        if let Some(extra) = line.modifiers.left() {
            return line.fail(format!("{} does not take the modifier .{extra}", instruction.opcode));
        }
        self.push(op, guard, instruction.line);
        Ok(())
    }

    fn operation(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        match line.instruction.opcode {
            "ld" | "ldu" => self.load(line),
            "st" => self.store(line),
            "atom" | "red" => self.atomic(line),
            "fence" | "membar" => self.fence(line),
            "prefetch" | "prefetchu" | "applypriority" | "discard" => self.hint(line),
            "bra" | "brx" | "bar" | "barrier" | "ret" | "exit" | "trap" | "nanosleep" | "brkpt" => {
                self.control(line)
            }
            _ => self.arithmetic(line),
        }
    }

    fn resolve_labels(&mut self) -> Result<(), At> {
        for Unresolved { step, place, label, scopes, line } in &self.branches {
            let target = scopes.iter().rev().find_map(|scope| self.labels.get(&(*scope, *label)));
            let Some(&target) = target else {
                return Err(At::new(*line, format!("label {label} is not defined")));
            };
            match &mut self.code[*step].op {
                Op::Branch { target: slot } => *slot = target,
                Op::BranchTable { targets, .. } => targets[*place] = target,
                _ => {}
            }
        }
        Ok(())
    }
}
