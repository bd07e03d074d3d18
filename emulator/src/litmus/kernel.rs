//! A litmus test as PTX kernels, one per device, for an executor to run.

use std::fmt::Write as _;
use std::sync::Arc;

use super::program::{Instruction, Litmus, Op, Thread, Width};
use crate::ptx::{Kernel, Module, PtxError};

/// The threads of one device as a kernel: one launch.
#[derive(Debug)]
pub struct DeviceKernel {
    /// The device, as the test numbers it.
    pub device: u32,
    /// The kernel. Its parameters, 64 bits each: the addresses of the test's locations in their order, then the
    /// address of the results.
    pub kernel: Arc<Kernel>,
    /// The PTX text.
    pub text: String,
    /// Blocks of the grid.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// The test's threads that run here, by index.
    pub members: Vec<usize>,
    /// Bytes of the results: for every register of every member, in order, 8 bytes, of which the register's width
    /// is written.
    pub result_bytes: usize,
}

/// The kernels of a test, one per device that it names.
///
/// # Errors
///
/// [`PtxError`] when the PTX front end refuses an instruction: the subset that the litmus parser takes is not checked
/// for all that PTX demands, such as `.b32` for `atom.exch`.
pub fn kernels(litmus: &Litmus) -> Result<Vec<DeviceKernel>, PtxError> {
    let mut devices: Vec<u32> = litmus.threads.iter().map(|thread| thread.device).collect();
    devices.sort_unstable();
    devices.dedup();
    devices.into_iter().map(|device| kernel(litmus, device)).collect()
}

fn kernel(litmus: &Litmus, device: u32) -> Result<DeviceKernel, PtxError> {
    let on_device = |&index: &usize| litmus.threads[index].device == device;
    let members: Vec<usize> = (0..litmus.threads.len()).filter(on_device).collect();
    let mut blocks: Vec<u32> = members.iter().map(|&index| litmus.threads[index].block).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let in_block = |block: u32| members.iter().copied().filter(move |&m| litmus.threads[m].block == block);
    let threads = blocks.iter().map(|&block| in_block(block).count()).max().unwrap_or(1);

    let mut dispatch = String::new();
    let mut bodies = String::new();
    let mut registers = String::new();
    let mut slot = 0;
    let mut slots = Vec::new();
    for &member in &members {
        slots.push(slot);
        slot += litmus.threads[member].registers.len();
    }
    for (place, &block) in blocks.iter().enumerate() {
        for (lane, member) in in_block(block).enumerate() {
            let number = place * threads + lane;
            let first = members.iter().position(|&other| other == member).map_or(0, |at| slots[at]);
            line(&mut dispatch, format_args!("setp.eq.u32 %is, %number, {number};"));
            line(&mut dispatch, format_args!("@%is bra THREAD{member};"));
            declare(&mut registers, member, &litmus.threads[member]);
            body(&mut bodies, litmus, member, first);
        }
        // The threads that fill the block up take part in its barriers.
        let barriers = in_block(block).next().map_or(0, |member| litmus.threads[member].barriers());
        if barriers > 0 && in_block(block).count() < threads {
            line(&mut dispatch, format_args!("setp.eq.u32 %is, %block, {place};"));
            line(&mut dispatch, format_args!("@%is bra FILL{place};"));
            let _ = writeln!(bodies, "FILL{place}:");
            for _ in 0..barriers {
                line(&mut bodies, format_args!("bar.sync 0;"));
            }
            line(&mut bodies, format_args!("ret;"));
        }
    }

    let mut text = String::from(".version 7.0\n.target sm_70\n.address_size 64\n");
    let names: Vec<&str> = litmus.locations.iter().map(|location| location.name.as_str()).collect();
    let params: Vec<String> = names
        .iter()
        .map(|name| format!(".param .u64 at_{name}"))
        .chain([".param .u64 results".to_owned()])
        .collect();
    let _ = writeln!(text, ".visible .entry litmus_device{device}({})\n{{", params.join(", "));
    line(&mut text, format_args!(".reg .pred %is;"));
    line(&mut text, format_args!(".reg .b32 %block, %lane, %number;"));
    line(&mut text, format_args!(".reg .b64 %results;"));
    for name in &names {
        line(&mut text, format_args!(".reg .b64 %at_{name};"));
    }
    text += &registers;
    for name in &names {
        line(&mut text, format_args!("ld.param.u64 %at_{name}, [at_{name}];"));
    }
    line(&mut text, format_args!("ld.param.u64 %results, [results];"));
    line(&mut text, format_args!("mov.u32 %block, %ctaid.x;"));
    line(&mut text, format_args!("mov.u32 %lane, %tid.x;"));
    line(&mut text, format_args!("mad.lo.u32 %number, %block, {threads}, %lane;"));
    text += &dispatch;
    line(&mut text, format_args!("ret;"));
    text += &bodies;
    text += "}\n";

    let module = Module::parse(&text)?;
    Ok(DeviceKernel {
        device,
        kernel: module.kernels()[0].clone(),
        text,
        blocks: blocks.len() as u32,
        threads: threads as u32,
        members,
        result_bytes: slot * 8,
    })
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "    {content}");
}

fn declare(text: &mut String, member: usize, thread: &Thread) {
    for register in &thread.registers {
        let bits = register.width.bits();
        line(text, format_args!(".reg .b{bits} {};", own(member, &register.name)));
    }
    for predicate in &thread.predicates {
        line(text, format_args!(".reg .pred {};", own(member, predicate)));
    }
}

/// A register's name in a kernel that has the registers of several threads.
fn own(member: usize, name: &str) -> String {
    format!("%t{member}_{}", &name[1..])
}

/// The code of a thread: registers set to 0, its instructions, registers to the results.
fn body(text: &mut String, litmus: &Litmus, member: usize, first: usize) {
    let thread = &litmus.threads[member];
    let _ = writeln!(text, "THREAD{member}:");
    for register in &thread.registers {
        line(text, format_args!("mov.b{} {}, 0;", register.width.bits(), own(member, &register.name)));
    }
    for predicate in &thread.predicates {
        line(text, format_args!("setp.ne.u32 {}, %number, %number;", own(member, predicate)));
    }
    let label_at = |text: &mut String, index: usize| {
        for (label, _) in thread.labels.iter().filter(|(_, at)| *at == index) {
            let _ = writeln!(text, "T{member}_{label}:");
        }
    };
    for (index, instruction) in thread.code.iter().enumerate() {
        label_at(text, index);
        line(text, format_args!("{};", renamed(litmus, member, instruction)));
    }
    label_at(text, thread.code.len());
    for (place, register) in thread.registers.iter().enumerate() {
        let ty = match register.width {
            Width::B32 => "b32",
            Width::B64 => "b64",
        };
        let (offset, name) = ((first + place) * 8, own(member, &register.name));
        line(text, format_args!("st.global.{ty} [%results+{offset}], {name};"));
    }
    line(text, format_args!("ret;"));
}

/// The instruction with its registers, labels and locations renamed.
fn renamed(litmus: &Litmus, member: usize, instruction: &Instruction) -> String {
    let mut text = String::new();
    let mut rest = instruction.text.as_str();
    if let Op::Branch { .. } = instruction.op {
        // The label is the last word.
        let (before, label) = rest.rsplit_once(char::is_whitespace).unwrap_or((rest, ""));
        return format!("{} T{member}_{label}", renamed_registers(before, member));
    }
    if let Some((before, after)) = rest.split_once('[')
        && let Some((_, after)) = after.split_once(']')
        && let Some(location) = instruction.op.location()
    {
        text = format!("{}[%at_{}]", renamed_registers(before, member), litmus.locations[location].name);
        rest = after;
    }
    text + &renamed_registers(rest, member)
}

fn renamed_registers(text: &str, member: usize) -> String {
    text.replace('%', &format!("%t{member}_"))
}
