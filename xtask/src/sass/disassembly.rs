//! nvdisasm's text as instructions: what each reads and writes, and where it goes next.
//!
//! NVIDIA documents the names of machine instructions (CUDA Binary Utilities, "Instruction Set Reference") and not their
//! operands. What is used here is plain in every listing: results stand first, a wide value is named by its first
//! register, and the width is a modifier.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result, bail};

/// A general (`R`) or uniform (`UR`) register. RZ and URZ, which hold zero, are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Register {
    /// Of a thread.
    General(u16),
    /// Of a warp.
    Uniform(u16),
}

impl Register {
    fn parse(name: &str) -> Option<Self> {
        let (uniform, number) = match name.strip_prefix("UR") {
            Some(number) => (true, number),
            None => (false, name.strip_prefix('R')?),
        };
        let number = number.parse().ok()?;
        Some(if uniform { Register::Uniform(number) } else { Register::General(number) })
    }

    fn and_following(self, count: u16) -> impl Iterator<Item = Self> {
        (0..count).map(move |offset| match self {
            Register::General(number) => Register::General(number + offset),
            Register::Uniform(number) => Register::Uniform(number + offset),
        })
    }
}

/// Where a thread goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// To the following instruction.
    Falls,
    /// To the instruction of this index.
    Jumps(usize),
    /// To the instruction of this index or the following one.
    Branches(usize),
    /// Nowhere.
    Ends,
    /// Some threads end, others fall through.
    MayEnd,
}

/// A machine instruction.
#[derive(Clone, Debug)]
pub(super) struct Instruction {
    /// Its address in the kernel, in bytes.
    pub(super) address: u32,
    /// Whether a predicate may turn it off.
    pub(super) guarded: bool,
    /// Its name without modifiers.
    pub(super) operation: String,
    modifiers: Vec<String>,
    /// Registers that it writes.
    pub(super) writes: Vec<Register>,
    /// Registers that it reads; those of addresses included.
    pub(super) reads: Vec<Register>,
    /// Operands as text, without the target of a jump.
    pub(super) operands: Vec<String>,
    /// Where a thread goes.
    pub(super) next: Next,
}

impl Instruction {
    /// Whether it has a modifier.
    pub(super) fn has(&self, modifier: &str) -> bool {
        self.modifiers.iter().any(|found| found == modifier)
    }

    /// Whether it is a 128-bit load from global memory.
    pub(super) fn is_vector_load(&self) -> bool {
        self.operation == "LDG" && self.has("128")
    }

    /// Whether it is a 128-bit store to global memory.
    pub(super) fn is_vector_store(&self) -> bool {
        self.operation == "STG" && self.has("128")
    }
}

/// The kernels of a disassembled cubin, by name.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, Vec<Instruction>>> {
    let mut kernels: BTreeMap<String, Vec<Instruction>> = BTreeMap::new();
    let mut section: Option<(String, Section)> = None;
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once(".section\t") {
            if let Some((name, section)) = section.take() {
                kernels.insert(name, section.finish()?);
            }
            let name = rest.strip_prefix(".text.").and_then(|rest| rest.split(',').next());
            section = name.map(|name| (name.to_owned(), Section::default()));
        } else if let Some((name, section)) = &mut section {
            section.read(line).with_context(|| format!("reading `{}` of {name}", line.trim()))?;
        }
    }
    if let Some((name, section)) = section.take() {
        kernels.insert(name, section.finish()?);
    }
    Ok(kernels)
}

/// A kernel's code while its lines are read.
#[derive(Default)]
struct Section {
    instructions: Vec<Instruction>,
    labels: HashMap<String, usize>,
    /// Jumps that wait for their labels: which instruction, whether it may fall through, and where it goes.
    jumps: Vec<(usize, bool, String)>,
}

impl Section {
    fn read(&mut self, line: &str) -> Result<()> {
        let line = line.trim();
        if let Some(label) = line.strip_suffix(':') {
            self.labels.insert(label.to_owned(), self.instructions.len());
            return Ok(());
        }
        let Some((address, rest)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) else {
            return Ok(());
        };
        let Some((statement, _)) = rest.split_once(';') else { return Ok(()) };
        let address = u32::from_str_radix(address, 16).context("the address is no number")?;
        let (instruction, label) = instruction(address, statement.trim())?;
        if let Some((label, falls)) = label {
            self.jumps.push((self.instructions.len(), falls, label));
        }
        self.instructions.push(instruction);
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Instruction>> {
        for (index, falls, label) in self.jumps {
            let target = *self.labels.get(&label).with_context(|| format!("no label {label}"))?;
            self.instructions[index].next = if falls { Next::Branches(target) } else { Next::Jumps(target) };
        }
        Ok(self.instructions)
    }
}

/// Reads an instruction; with the label that it jumps to, and whether a thread may fall through instead.
fn instruction(address: u32, statement: &str) -> Result<(Instruction, Option<(String, bool)>)> {
    let (guarded, statement) = match statement.strip_prefix('@') {
        Some(rest) => (true, rest.split_once(char::is_whitespace).context("a guard alone")?.1.trim()),
        None => (false, statement),
    };
    let (name, rest) = statement.split_once(char::is_whitespace).unwrap_or((statement, ""));
    let mut parts = name.split('.').map(str::to_owned);
    let operation = parts.next().unwrap_or_default();
    let modifiers: Vec<String> = parts.collect();
    let mut operands: Vec<String> =
        rest.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();

    let mut next = Next::Falls;
    let mut jump = None;
    match operation.as_str() {
        // A call that does not count up the depth of calls and never returns: a branch to where a branch does not reach.
        "CALL" if !modifiers.iter().any(|modifier| modifier == "NOINC") => {
            bail!("a call: its effect on registers is not known")
        }
        "BRA" | "CALL" => {
            let target = operands.pop().context("a jump without a target")?;
            let label = target.strip_prefix("`(").and_then(|target| target.strip_suffix(')'));
            let label = label.with_context(|| format!("`{target}` is no label"))?;
            // `BRA P4, label`: a second predicate, or'd in no way that matters here: either way it may fall through.
            let conditional = guarded || !operands.is_empty();
            jump = Some((label.to_owned(), conditional));
        }
        "EXIT" => next = if guarded || !operands.is_empty() { Next::MayEnd } else { Next::Ends },
        "RET" | "BRX" | "BRXU" | "JMP" | "JMX" | "JMXU" => bail!("a jump whose target is not in the text"),
        _ => {}
    }

    let results = results(&operation, &operands);
    let wide = |operand: &str, index: usize| width(&operation, &modifiers, operand, index, operands.len());
    let registers = |range: std::ops::Range<usize>| {
        let mut found = Vec::new();
        for index in range {
            for (name, addressed) in names(&operands[index]) {
                if let Some(register) = Register::parse(name) {
                    let count = if addressed { 2 } else { wide(&operands[index], index) };
                    found.extend(register.and_following(count));
                }
            }
        }
        found
    };
    let writes = registers(0..results);
    let reads = registers(results..operands.len());
    Ok((Instruction { address, guarded, operation, modifiers, writes, reads, operands, next }, jump))
}

/// How many of the first operands are results.
fn results(operation: &str, operands: &[String]) -> usize {
    let none =
        ["ST", "RED", "BAR", "MEMBAR", "CCTL", "BSSY", "BSYNC", "BRA", "CALL", "WARPSYNC", "BMOV", "R2P"];
    if none.iter().any(|prefix| operation.starts_with(prefix)) {
        return 0;
    }
    let is_predicate = |operand: &String| {
        ["P", "UP"].iter().any(|prefix| {
            operand.strip_prefix(prefix).is_some_and(|rest| rest == "T" || rest.parse::<u8>().is_ok())
        })
    };
    let predicates = operands.iter().take_while(|operand| is_predicate(operand)).count();
    if predicates == 0 {
        // Results that are predicates, such as carries, follow.
        let carries = operands.iter().skip(1).take_while(|operand| is_predicate(operand)).count();
        return (1 + carries).min(operands.len());
    }
    let compares = ["ISETP", "FSETP", "HSETP2", "DSETP", "UISETP", "PLOP3", "UPLOP3"].contains(&operation);
    // `LOP3.LUT P1, R2, ...` and `ATOMG.E.ADD PT, R0, [...], R5`: a predicate and a value.
    if compares { predicates.min(2) } else { (predicates + 1).min(operands.len()) }
}

/// Registers from the one that an operand names, by the instruction's modifiers.
fn width(operation: &str, modifiers: &[String], operand: &str, index: usize, operands: usize) -> u16 {
    let has = |modifier: &str| modifiers.iter().any(|found| found == modifier);
    let packed = ["FADD2", "FMUL2", "FFMA2"].contains(&operation);
    let clock = operation == "CS2R" && !has("32") && index == 0;
    // A widening product: the result and the addend, which is last, are wide.
    let product = has("WIDE") && (index == 0 || index + 1 == operands);
    if operand.starts_with('[') {
        // Before sm_80 an address does not say that it is 64 bits; an access to shared or local memory has fewer.
        2
    } else if has("128") {
        4
    } else if has("64") || operand.contains(".64") || packed || clock || product {
        2
    } else {
        1
    }
}

/// The register names in an operand, each with whether it is a 64-bit address or part of one.
fn names(operand: &str) -> impl Iterator<Item = (&str, bool)> {
    let bracketed = operand.contains('[') && !operand.starts_with("c[");
    operand
        .split(|character: char| !(character.is_ascii_alphanumeric() || character == '.' || character == '_'))
        .filter_map(move |word| {
            let (name, suffixes) = word.split_once('.').unwrap_or((word, ""));
            (!name.is_empty()).then_some((
                name,
                bracketed && (name.starts_with("UR") || suffixes.split('.').any(|s| s == "64")),
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(statement: &str) -> Instruction {
        instruction(0, statement).unwrap().0
    }

    fn general(numbers: impl IntoIterator<Item = u16>) -> Vec<Register> {
        numbers.into_iter().map(Register::General).collect()
    }

    #[test]
    fn a_wide_load_writes_all_its_registers_and_reads_its_address() {
        let load = read("@!P2 LDG.E.128 R4, desc[UR10][R36.64+0x10]");
        assert!(load.guarded && load.is_vector_load());
        assert_eq!(load.writes, general(4..8));
        assert!(load.reads.contains(&Register::General(37)) && load.reads.contains(&Register::Uniform(10)));
        // Before sm_80 there are no descriptors.
        let load = read("LDG.E.128.SYS R8, [R2+0x600]");
        assert_eq!((load.writes, load.reads), (general(8..12), general([2, 3])));
    }

    #[test]
    fn a_store_writes_no_register() {
        let store = read("STG.E.EF.128 desc[UR4][R8.64], R4");
        assert!(store.is_vector_store() && store.writes.is_empty());
        assert!(general(4..8).iter().all(|register| store.reads.contains(register)));
    }

    #[test]
    fn predicates_and_carries_among_the_results_are_skipped() {
        assert_eq!(read("IADD3 R12, P0, P1, R30.reuse, -R35, RZ").writes, general([12]));
        assert_eq!(read("IADD3 R12, P0, P1, R30.reuse, -R35, RZ").reads, general([30, 35]));
        assert_eq!(read("FSETP.NAN.AND P0, PT, |R4|, R8.reuse, PT").reads, general([4, 8]));
        assert_eq!(read("LOP3.LUT P1, R2, R6, 0xf, RZ, 0xc0, !PT").writes, general([2]));
        assert_eq!(read("IMAD.WIDE.U32 R8, R0.reuse, 0x10, R38").writes, general([8, 9]));
        assert_eq!(read("IMAD.WIDE.U32 R8, R0.reuse, 0x10, R38").reads, general([0, 38, 39]));
        assert_eq!(read("HADD2.F32 R5, -RZ, R6.H1_H1").reads, general([6]));
    }

    #[test]
    fn jumps_find_their_labels_and_calls_are_refused() {
        let text = "\
\t.section\t.text.k,\"ax\",@progbits
k:
        /*0000*/                   MOV R0, R1 ;
.L_x_0:
        /*0010*/              @!P1 BRA P4, `(.L_x_1) ;
        /*0020*/                   BRA `(.L_x_0) ;
.L_x_1:
        /*0030*/               @P0 EXIT ;
        /*0040*/                   EXIT;
";
        let kernels = parse(text).unwrap();
        let next: Vec<_> = kernels["k"].iter().map(|instruction| instruction.next).collect();
        assert_eq!(next, [Next::Falls, Next::Branches(3), Next::Jumps(1), Next::MayEnd, Next::Ends]);
        assert!(parse(&text.replace("BRA P4", "BRX P4")).is_err());
        assert!(parse(&text.replace(".L_x_1:", ".L_x_2:")).is_err());
        assert!(instruction(0, "CALL.REL `(f)").is_err());
    }
}
