//! A litmus test as PTX kernels, one per device, for an executor to run.

use std::fmt::Write as _;
use std::sync::Arc;

use super::program::{Home, Instruction, Litmus, Location, Op, Operand, Participants, Proxy, Reduce, Thread};
use meshreduce_emulator_ptx::{Kernel, Module, PtxError};

/// The threads of one device as a kernel: one launch.
#[derive(Debug)]
pub struct DeviceKernel {
    /// The device, as the test numbers it.
    pub device: u32,
    /// The kernel. Its parameters, 64 bits each: the addresses of the test's locations in their order, but of those in shared
    /// memory or behind another, then the address of the results.
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

/// Why a test has no kernels.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The PTX front end refuses an instruction: the subset that the litmus parser takes is not checked for all that
    /// PTX demands, such as `.b32` for `atom.exch`.
    #[error(transparent)]
    Ptx(#[from] PtxError),
    /// Barriers that name a count, or that are not for the whole block, which depend on what a thread reads: the lanes
    /// that make a warp of each thread could not follow it.
    #[error("thread {thread}: barriers with counts need constant numbers, and neither guards nor branches")]
    Barriers {
        /// The thread.
        thread: usize,
    },
    /// Accesses through other proxies than the generic one, for which a test has no surfaces, textures or constants.
    #[error("thread {thread}: surfaces, textures, constants and proxy fences are for the axioms alone")]
    Proxies {
        /// The thread.
        thread: usize,
    },
    /// Barriers of warps beside barriers with counts, for which every thread is made a warp of its own.
    #[error("thread {thread}: bar.warp.sync beside barriers with counts")]
    Warps {
        /// The thread.
        thread: usize,
    },
    /// Threads of a block smaller than another, which do not come to the same barriers: those that fill it up could
    /// not take part.
    #[error(
        "the threads of device {device} block {block} come to different barriers, and the block is to be filled up"
    )]
    Fill {
        /// The device.
        device: u32,
        /// The block.
        block: u32,
    },
}

/// Threads of a warp.
const WARP: usize = 32;

/// The kernels of a test, one per device that it names. Where barriers name counts, every thread of the test is the first
/// lane of a warp, and the other lanes come to its barriers only.
///
/// # Errors
///
/// [`KernelError`] where the test cannot be run so.
pub fn kernels(litmus: &Litmus) -> Result<Vec<DeviceKernel>, KernelError> {
    let mut devices: Vec<u32> = litmus.threads.iter().map(|thread| thread.device).collect();
    devices.sort_unstable();
    devices.dedup();
    devices.into_iter().map(|device| kernel(litmus, device)).collect()
}

/// How the barriers of a device's threads are written.
struct Barriers<'a> {
    litmus: &'a Litmus,
    /// Whether every thread is a warp.
    warps: bool,
}

impl<'a> Barriers<'a> {
    fn new(litmus: &'a Litmus, members: &[usize]) -> Result<Self, KernelError> {
        let counted = |op: &Op| matches!(op, Op::Barrier { count: Some(_), .. });
        let barriers = |member: &usize| litmus.threads[*member].barriers();
        let any = members.iter().flat_map(barriers).count() > 0;
        let named = litmus.participants == Participants::Named;
        let warps = any && (named || members.iter().flat_map(barriers).any(|one| counted(&one.op)));
        let constant = |op: &Op| matches!(op, Op::Barrier { id: Operand::Constant(_), .. });
        for &thread in members {
            let proxied = |op: &Op| match op {
                Op::Load { proxy, .. } | Op::Store { proxy, .. } => *proxy != Proxy::Generic,
                op => matches!(op, Op::ProxyFence(_)),
            };
            if litmus.threads[thread].source.iter().any(|one| one.op.scalars().iter().any(proxied)) {
                return Err(KernelError::Proxies { thread });
            }
        }
        if warps {
            for &thread in members {
                let own = &litmus.threads[thread];
                if own.source.iter().any(|one| matches!(one.op, Op::WarpBarrier { .. })) {
                    return Err(KernelError::Warps { thread });
                }
                let fixed = own.barriers_are_fixed() && own.barriers().all(|one| constant(&one.op));
                if own.barriers().count() > 0 && !fixed {
                    return Err(KernelError::Barriers { thread });
                }
            }
        }
        Ok(Self { litmus, warps })
    }

    /// How many threads of the test meet, if not the whole block.
    fn count(&self, member: usize, op: &Op) -> Option<usize> {
        let Op::Barrier { id, count, .. } = op else { return None };
        let threads = &self.litmus.threads;
        let block = (threads[member].device, threads[member].block);
        let names = |thread: &&Thread| {
            let same = |one: &Instruction| matches!(&one.op, Op::Barrier { id: known, .. } if known == id);
            (thread.device, thread.block) == block && thread.barriers().any(same)
        };
        match self.litmus.participants {
            _ if count.is_some() => count.map(|count| count as usize),
            Participants::Named => Some(threads.iter().filter(names).count()),
            Participants::Block => None,
        }
    }

    /// The barrier of a thread whose barriers are fixed; of those who only follow it there, what counts for nothing.
    fn text(&self, member: usize, op: &Op) -> String {
        let Op::Barrier { id, arrive, vote, .. } = op else { return String::new() };
        let id = match id {
            Operand::Constant(id) => *id,
            Operand::Register(_) => 0,
        };
        if let Some(vote) = vote {
            return match vote.of {
                Reduce::Count => format!("bar.red.popc.u32 %counted, {id}, %never;"),
                Reduce::And => format!("bar.red.and.pred %heard, {id}, %always;"),
                Reduce::Or => format!("bar.red.or.pred %heard, {id}, %never;"),
            };
        }
        let mode = if *arrive { "arrive" } else { "sync" };
        match self.count(member, op) {
            Some(count) => format!("bar.{mode} {id}, {};", count * WARP),
            None => format!("bar.{mode} {id};"),
        }
    }

    /// What the other lanes of a thread's warp come to.
    fn all(&self, member: usize) -> Vec<String> {
        self.litmus.threads[member].barriers().map(|one| self.text(member, &one.op)).collect()
    }

    /// What threads that fill up a block come to: the barriers that are for the whole block.
    fn whole(&self, member: usize) -> Vec<String> {
        let whole =
            self.litmus.threads[member].barriers().filter(|one| self.count(member, &one.op).is_none());
        whole.map(|one| self.text(member, &one.op)).collect()
    }
}

fn kernel(litmus: &Litmus, device: u32) -> Result<DeviceKernel, KernelError> {
    let on_device = |&index: &usize| litmus.threads[index].device == device;
    let members: Vec<usize> = (0..litmus.threads.len()).filter(on_device).collect();
    let mut blocks: Vec<u32> = members.iter().map(|&index| litmus.threads[index].block).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let in_block = |block: u32| members.iter().copied().filter(move |&m| litmus.threads[m].block == block);
    let barriers = Barriers::new(litmus, &members)?;
    let lanes = if barriers.warps { WARP } else { 1 };
    // A count beyond the threads there are lets nobody go on.
    let counts = members.iter().flat_map(|&m| litmus.threads[m].barriers().map(move |one| (m, one)));
    let most = counts.filter_map(|(m, one)| barriers.count(m, &one.op)).max().unwrap_or(0);
    let warps = blocks.iter().map(|&block| in_block(block).count()).max().unwrap_or(1).max(most);
    let threads = warps * lanes;

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
            let number = place * threads + lane * lanes;
            let first = members.iter().position(|&other| other == member).map_or(0, |at| slots[at]);
            line(&mut dispatch, format_args!("setp.eq.u32 %is, %number, {number};"));
            line(&mut dispatch, format_args!("@%is bra THREAD{member};"));
            if lanes > 1 {
                line(&mut dispatch, format_args!("setp.lt.u32 %is, %number, {};", number + lanes));
                line(&mut dispatch, format_args!("@%is bra LANES{member};"));
                follow(&mut bodies, &format!("LANES{member}"), &barriers.all(member));
            }
            declare(&mut registers, member, &litmus.threads[member]);
            body(&mut bodies, &barriers, member, first);
        }
        // The threads that fill the block up take part in its barriers.
        let mut whole = in_block(block).map(|member| barriers.whole(member));
        let first = whole.next().unwrap_or_default();
        if in_block(block).count() < warps {
            let fixed = in_block(block).all(|member| litmus.threads[member].barriers_are_fixed());
            if whole.any(|other| other != first) || !first.is_empty() && !fixed {
                return Err(KernelError::Fill { device, block });
            }
            line(&mut dispatch, format_args!("setp.eq.u32 %is, %block, {place};"));
            line(&mut dispatch, format_args!("@%is bra FILL{place};"));
            follow(&mut bodies, &format!("FILL{place}"), &first);
        }
    }

    let mut text = String::from(".version 7.0\n.target sm_70\n.address_size 64\n");
    let global: Vec<&str> = addressed(litmus).map(|at| litmus.locations[at].name.as_str()).collect();
    let is_shared = |location: &&Location| matches!(location.home, Home::Shared { .. });
    let shared: Vec<&str> = litmus.locations.iter().filter(is_shared).map(|one| one.name.as_str()).collect();
    let params: Vec<String> = global
        .iter()
        .map(|name| format!(".param .u64 at_{name}"))
        .chain([".param .u64 results".to_owned()])
        .collect();
    let _ = writeln!(text, ".visible .entry litmus_device{device}({})\n{{", params.join(", "));
    line(&mut text, format_args!(".reg .pred %is, %never, %always, %heard;"));
    line(&mut text, format_args!(".reg .b32 %block, %lane, %number, %counted;"));
    line(&mut text, format_args!(".reg .b64 %results;"));
    for name in global.iter().chain(&shared) {
        line(&mut text, format_args!(".reg .b64 %at_{name};"));
    }
    for name in &shared {
        // As long as the longest vector.
        line(&mut text, format_args!(".shared .align 32 .b8 shared_{name}[32];"));
    }
    text += &registers;
    for name in &shared {
        line(&mut text, format_args!("mov.u64 %at_{name}, shared_{name};"));
    }
    for name in &global {
        line(&mut text, format_args!("ld.param.u64 %at_{name}, [at_{name}];"));
    }
    line(&mut text, format_args!("ld.param.u64 %results, [results];"));
    line(&mut text, format_args!("mov.u32 %block, %ctaid.x;"));
    line(&mut text, format_args!("mov.u32 %lane, %tid.x;"));
    line(&mut text, format_args!("mad.lo.u32 %number, %block, {threads}, %lane;"));
    line(&mut text, format_args!("setp.ne.u32 %never, %number, %number;"));
    line(&mut text, format_args!("setp.eq.u32 %always, %number, %number;"));
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

/// The locations that have an address which a kernel is told, by index.
pub(super) fn addressed(litmus: &Litmus) -> impl Iterator<Item = usize> {
    let is_told = |&at: &usize| matches!(litmus.locations[at].home, Home::Global | Home::Alias { .. });
    (0..litmus.locations.len()).filter(is_told)
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "    {content}");
}

/// The code of a thread that only comes to barriers.
fn follow(text: &mut String, label: &str, barriers: &[String]) {
    let _ = writeln!(text, "{label}:");
    barriers.iter().for_each(|barrier| line(text, format_args!("{barrier}")));
    line(text, format_args!("ret;"));
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
fn body(text: &mut String, barriers: &Barriers<'_>, member: usize, first: usize) {
    let litmus = barriers.litmus;
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
    for (index, instruction) in thread.source.iter().enumerate() {
        label_at(text, index);
        match instruction.op {
            Op::Barrier { vote: None, .. } if barriers.warps => {
                line(text, format_args!("{}", barriers.text(member, &instruction.op)));
            }
            _ => line(text, format_args!("{};", renamed(litmus, member, instruction))),
        }
    }
    label_at(text, thread.source.len());
    for (place, register) in thread.registers.iter().enumerate() {
        let ty = format!("b{}", register.width.bits());
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
        let offset = match litmus.locations[location].home {
            Home::Behind { offset, .. } => format!("+{offset}"),
            _ => String::new(),
        };
        let first = &litmus.locations[litmus.first_of(location)].name;
        text = format!("{}[%at_{first}{offset}]", renamed_registers(before, member));
        rest = after;
    }
    text + &renamed_registers(rest, member)
}

fn renamed_registers(text: &str, member: usize) -> String {
    text.replace('%', &format!("%t{member}_"))
}
