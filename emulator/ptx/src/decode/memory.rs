//! Loads, stores, atomics and fences.

use super::{Decoder, Line};
use crate::ast::Operand;
use crate::error::At;
use crate::program::{Address, Atomic, Load, Op, Slot, Store};
use crate::semantics::atomic::AtomicOp;
use crate::types::{Order, Scope, Space, Type};

const CACHE_HINTS: [&str; 12] = [
    "ca",
    "cg",
    "cs",
    "cv",
    "lu",
    "wb",
    "wt",
    "L1::no_allocate",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
];

impl<'a> Decoder<'a> {
    fn space(&mut self, line: &mut Line<'_, 'a>) -> Space {
        let space = line.modifiers.find(|word| match word {
            "global" => Some(Space::Global),
            "shared" | "shared::cta" => Some(Space::Shared),
            "local" => Some(Space::Local),
            "const" => Some(Space::Const),
            "param" | "param::entry" => Some(Space::Param),
            _ => None,
        });
        space.unwrap_or(Space::Generic)
    }

    fn scope(line: &mut Line<'_, 'a>) -> Option<Scope> {
        line.modifiers.find(|word| match word {
            "cta" => Some(Scope::Cta),
            "cluster" => Some(Scope::Cluster),
            "gpu" => Some(Scope::Gpu),
            "sys" => Some(Scope::Sys),
            _ => None,
        })
    }

    fn order(line: &mut Line<'_, 'a>) -> Option<Order> {
        line.modifiers.find(|word| match word {
            "weak" => Some(Order::Weak),
            "volatile" => Some(Order::Volatile),
            "relaxed" => Some(Order::Relaxed),
            "acquire" => Some(Order::Acquire),
            "release" => Some(Order::Release),
            "acq_rel" => Some(Order::AcqRel),
            _ => None,
        })
    }

    fn lanes(line: &mut Line<'_, 'a>, ty: Type) -> Result<u8, At> {
        let lanes = if line.modifiers.take("v2") {
            2
        } else if line.modifiers.take("v4") {
            4
        } else {
            1
        };
        if ty == Type::Pred || ty.bits() * u32::from(lanes) > 128 {
            return line.unsupported();
        }
        Ok(lanes)
    }

    /// Ordering and scope of a load or store, which allow each other only in some combinations.
    fn strength(line: &mut Line<'_, 'a>, allowed: Order) -> Result<(Order, Scope), At> {
        let order = Self::order(line).unwrap_or(Order::Weak);
        let scope = Self::scope(line);
        match order {
            Order::Weak if scope.is_none() => Ok((order, Scope::Cta)),
            Order::Volatile if scope.is_none() => Ok((order, Scope::Sys)),
            Order::Weak | Order::Volatile => line.fail("a scope needs .relaxed, .acquire or .release"),
            _ if order != Order::Relaxed && order != allowed => line.unsupported(),
            _ => match scope {
                Some(scope) => Ok((order, scope)),
                None => line.fail("a strong operation needs a scope: .cta, .gpu or .sys"),
            },
        }
    }

    fn target(&mut self, line: &Line<'_, 'a>, space: Space, operand: &Operand<'a>) -> Result<Address, At> {
        let at = line.instruction.line;
        let &Operand::Address(name, offset) = operand else {
            return line.fail("an address in brackets is needed");
        };
        let (base, named, offset) = self.names.base(name, offset, at)?;
        let space = match (space, named) {
            (space, Some(named)) if space == named => space,
            (Space::Generic, Some(Space::Global)) => Space::Global,
            (Space::Generic, Some(_)) => {
                return line.fail("a variable's address is not a generic address: name its state space");
            }
            (space, Some(_)) => {
                return line.fail(format!("the variable is not in the space {space:?} of the instruction"));
            }
            (space, None) => space,
        };
        let offset = i32::try_from(offset).or_else(|_| line.fail("an offset beyond 32 bits"))?;
        let site = self.sites;
        let Some(next) = site.checked_add(1) else { return line.fail("too many memory instructions") };
        self.sites = next;
        Ok(Address { space, base, site, offset })
    }

    fn vector(
        line: &Line<'_, 'a>,
        operand: &Operand<'a>,
        lanes: u8,
        mut each: impl FnMut(&Operand<'a>) -> Result<Slot, At>,
    ) -> Result<[Slot; 4], At> {
        let mut slots = [0; 4];
        match operand {
            Operand::Vector(parts) if parts.len() == usize::from(lanes) && lanes > 1 => {
                for (slot, part) in slots.iter_mut().zip(parts) {
                    *slot = each(part)?;
                }
            }
            Operand::Vector(_) => {
                return line.fail("as many registers are needed as the vector has elements");
            }
            single if lanes == 1 => slots[0] = each(single)?,
            _ => return line.fail("a vector of registers in braces is needed"),
        }
        Ok(slots)
    }

    pub(super) fn load(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let at = line.instruction.line;
        let space = self.space(line);
        let noncoherent = line.modifiers.take("nc") | (line.instruction.opcode == "ldu");
        let (order, scope) = Self::strength(line, Order::Acquire)?;
        self.cache_hints(line);
        let ty = line.ty()?;
        let lanes = Self::lanes(line, ty)?;
        if noncoherent && (!matches!(space, Space::Global | Space::Generic) || order != Order::Weak) {
            return line.fail(".nc belongs to weak loads from .global only");
        }
        if order.is_strong() && matches!(space, Space::Const | Space::Param) {
            return line.fail("this space is read only: a strong load has no meaning there");
        }
        let [d, address] = line.instruction.operands.as_slice() else {
            return line.fail("a load takes a destination and an address");
        };
        let target = self.target(line, space, address)?;
        if ty == Type::B128 {
            let [low, high] = self.names.wide(d, at)?;
            let d = [low, high, 0, 0];
            let ty = Type::B64;
            return Ok(Op::Load(Load { target, order, scope, noncoherent, ty, lanes: 2, whole: true, d }));
        }
        let d = Self::vector(line, d, lanes, |part| self.names.destination(part, ty, true, at))?;
        Ok(Op::Load(Load { target, order, scope, noncoherent, ty, lanes, whole: false, d }))
    }

    fn cache_hints(&mut self, line: &mut Line<'_, 'a>) {
        while line.modifiers.one_of(&CACHE_HINTS).is_some() {}
        while line.modifiers.one_of(&["L2::64B", "L2::128B", "L2::256B"]).is_some() {}
    }

    pub(super) fn store(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let at = line.instruction.line;
        let space = self.space(line);
        let (order, scope) = Self::strength(line, Order::Release)?;
        self.cache_hints(line);
        let ty = line.ty()?;
        let lanes = Self::lanes(line, ty)?;
        if matches!(space, Space::Const | Space::Param) {
            return line.fail("this space is read only");
        }
        let [address, a] = line.instruction.operands.as_slice() else {
            return line.fail("a store takes an address and a source");
        };
        let target = self.target(line, space, address)?;
        if ty == Type::B128 {
            let [low, high] = self.names.wide(a, at)?;
            let (ty, a) = (Type::B64, [low, high, 0, 0]);
            return Ok(Op::Store(Store { target, order, scope, ty, lanes: 2, whole: true, a }));
        }
        let a = Self::vector(line, a, lanes, |part| self.names.source(part, ty, true, at))?;
        Ok(Op::Store(Store { target, order, scope, ty, lanes, whole: false, a }))
    }

    pub(super) fn atomic(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let at = line.instruction.line;
        let returns = line.instruction.opcode == "atom";
        let space = self.space(line);
        // Without qualifiers: relaxed, at gpu scope (PTX ISA, `atom`).
        let order = Self::order(line).unwrap_or(Order::Relaxed);
        let scope = Self::scope(line).unwrap_or(Scope::Gpu);
        let Some(op) = line.modifiers.find(AtomicOp::parse) else {
            return line.fail("an atomic operation is needed, such as .add");
        };
        line.modifiers.take("noftz");
        let ty = line.ty()?;
        let legal_order = match order {
            Order::Weak | Order::Volatile | Order::SeqCst => false,
            // `red` reads nothing that it could acquire with.
            Order::Acquire | Order::AcqRel => returns,
            Order::Relaxed | Order::Release => true,
        };
        if !op.takes(ty)
            || !legal_order
            || !returns && matches!(op, AtomicOp::Exchange | AtomicOp::CompareSwap)
        {
            return line.unsupported();
        }
        if !matches!(space, Space::Generic | Space::Global | Space::Shared) {
            return line.fail("atomics work on .global and .shared only");
        }
        let mut operands = line.instruction.operands.as_slice();
        let d = match operands {
            [d, rest @ ..] if returns => {
                operands = rest;
                Some(self.names.destination(d, ty, false, at)?)
            }
            _ => None,
        };
        let wanted = if op == AtomicOp::CompareSwap { 3 } else { 2 };
        if operands.len() != wanted {
            return line.fail("wrong number of operands for this atomic operation");
        }
        let target = self.target(line, space, &operands[0])?;
        let a = self.names.source(&operands[1], ty, false, at)?;
        let b = match operands.get(2) {
            Some(b) => self.names.source(b, ty, false, at)?,
            None => a,
        };
        Ok(Op::Atomic(Box::new(Atomic { target, order, scope, op, ty, d, a, b })))
    }

    pub(super) fn fence(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        if !line.instruction.operands.is_empty() {
            return line.fail("a fence takes no operands");
        }
        if line.instruction.opcode == "membar" {
            // `membar` is `fence.sc` from sm_70 on (PTX ISA, `membar`).
            let scope = line.modifiers.find(|word| match word {
                "cta" => Some(Scope::Cta),
                "gl" => Some(Scope::Gpu),
                "sys" => Some(Scope::Sys),
                _ => None,
            });
            let Some(scope) = scope else { return line.fail("membar needs .cta, .gl or .sys") };
            return Ok(Op::Fence { order: Order::SeqCst, scope });
        }
        let order = line.modifiers.find(|word| match word {
            "sc" => Some(Order::SeqCst),
            "acq_rel" => Some(Order::AcqRel),
            "acquire" => Some(Order::Acquire),
            "release" => Some(Order::Release),
            _ => None,
        });
        let Some(scope) = Self::scope(line) else { return line.fail("a fence needs a scope") };
        Ok(Op::Fence { order: order.unwrap_or(Order::AcqRel), scope })
    }

    /// Prefetches and their like, which change nothing that a program can see.
    pub(super) fn hint(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        self.space(line);
        let levels = ["L1", "L2", "L2::evict_last", "L2::evict_normal", "uniform"];
        if line.modifiers.one_of(&levels).is_none() || line.instruction.opcode == "discard" {
            return line.unsupported();
        }
        Ok(Op::Nothing)
    }
}
