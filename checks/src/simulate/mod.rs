//! How long a call takes on a described machine, simulated; see `docs/simulate.md`. No figure here is a measurement.
//!
//! What runs are the shipped kernels, by text and launch parameters, with the ranks' memory as the adversary has it. The
//! result is compared bit by bit. [`report`] is the command.
#![forbid(unsafe_code)]

pub mod report;
pub mod timeline;

use anyhow::{Context, Result};
use meshreduce_emulator_timed::{Parameters, Session, Step, TimedError};
use meshreduce_wire::Collective;
use meshreduce_wire::packets;

use crate::adversary::Expected;
use crate::one_call::{self, Prepared, Subject};

/// Packet memory that is set up at most, by source and phase: calls for which it must be larger are not simulated.
const MOST_PACKETS: u64 = 1 << 20;

/// A call on a machine.
#[derive(Debug)]
pub struct Simulated {
    /// What the kernel's name begins with.
    pub family: String,
    /// From the first kernel's beginning to the last store of a result, in microseconds; 0 where there is none.
    pub result_us: f64,
    /// To the end of the last kernel, its stores acknowledged.
    pub kernel_us: f64,
    /// Elements of the results that are wrong.
    pub wrong: usize,
    /// Instructions, counted by thread.
    pub instructions: u64,
    /// What led to the result, if it was followed.
    pub path: Vec<Named>,
    /// All steps, if they were followed.
    pub steps: Vec<Step>,
}

/// A step, and what its address is called.
#[derive(Clone, Debug)]
pub struct Named {
    /// The step.
    pub step: Step,
    /// Whose memory, and what for.
    pub place: String,
}

/// Why a call is in no table.
#[derive(Debug, PartialEq, Eq)]
pub enum Absent {
    /// The kernel accesses the memory of a device without a link.
    NoLink(usize, usize),
    /// Its packets need more memory than is set up.
    Packets,
}

/// What came of a call.
pub type Outcome = std::result::Result<Simulated, Absent>;

/// Simulates a call of a shipped kernel.
///
/// # Errors
/// If there is no such kernel, or it goes wrong.
pub fn simulate(
    machine: &Parameters,
    subject: Subject,
    collective: Collective,
    follow: bool,
) -> Result<Outcome> {
    let count = (subject.bytes / subject.dtype.size()) as u64;
    if packets::phase_bytes(subject.algorithm, count, subject.dtype, subject.ranks as u32) > MOST_PACKETS {
        return Ok(Err(Absent::Packets));
    }
    timed(machine, subject, one_call::prepare(subject, collective)?, follow)
}

/// Simulates an all-reduce of a kernel of a text with the shipped names.
///
/// # Errors
/// As [`simulate`].
pub fn simulate_text(machine: &Parameters, text: &str, subject: Subject, follow: bool) -> Result<Outcome> {
    timed(machine, subject, one_call::prepare_text(text, subject)?, follow)
}

fn timed(
    machine: &Parameters,
    subject: Subject,
    (prepared, expected): Prepared,
    follow: bool,
) -> Result<Outcome> {
    let mut session = Session::new(machine, subject.ranks);
    for (owner, address, bytes) in prepared.contents() {
        session.add_memory(owner.map(|device| device.index()), address, bytes);
    }
    for (device, launch) in prepared.launches() {
        session.launch(device.index(), launch.clone());
    }
    let results: Vec<_> =
        expected.iter().map(|part| part.address..part.address + part.bytes.len() as u64).collect();
    let timed = match session.run(&results, follow) {
        Ok(timed) => timed,
        Err(TimedError::NoLink { from, to, .. }) => return Ok(Err(Absent::NoLink(from, to))),
        Err(error) => return Err(error).context("simulating"),
    };
    let size = subject.dtype.size();
    let wrong = |part: &Expected| {
        let got = timed.read(part.address, part.bytes.len());
        got.chunks(size).zip(part.bytes.chunks(size)).filter(|(got, right)| got != right).count()
    };
    let microseconds = |picoseconds: u64| picoseconds as f64 / 1e6;
    let named = |step: &Step| {
        let place = if step.address == 0 { String::new() } else { prepared.name_of(step.address) };
        Named { step: step.clone(), place }
    };
    Ok(Ok(Simulated {
        family: format!("{}{}", subject.algorithm.kernel_name(), subject.isa.suffix()),
        result_us: timed.result.map_or(0.0, microseconds),
        kernel_us: microseconds(timed.end()),
        wrong: expected.iter().map(wrong).sum(),
        instructions: timed.instructions,
        path: timed.path.iter().map(named).collect(),
        steps: timed.steps,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adversary::Kernels;
    use crate::mutants::text::{Edit, Entry};
    use meshreduce_emulator_timed::StepKind;
    use meshreduce_wire::{Algorithm, DType, Isa, Op};

    const SUBJECT: Subject = Subject {
        algorithm: Algorithm::OneShot,
        ranks: 4,
        isa: Isa::V70,
        dtype: DType::Bf16,
        op: Op::Sum,
        bytes: 8192,
    };

    fn machine(name: &str) -> Parameters {
        Parameters::shipped(name).unwrap()
    }

    fn run(subject: Subject, collective: Collective) -> Simulated {
        let of_cube_mesh = subject.algorithm.is_of_slices() && subject.algorithm.is_of_cube_mesh();
        let name = if of_cube_mesh { "dgx-1v" } else { "hgx-h100" };
        simulate(&machine(name), subject, collective, true).unwrap().unwrap()
    }

    #[test]
    fn all_shipped_kernels_of_all_reduces_give_the_right_bits() {
        for (algorithm, ranks, isa) in one_call::shipped() {
            // World sizes that are no power of two among them.
            if algorithm.is_of_slices() || ![2, 3, 8].contains(&ranks) {
                continue;
            }
            let bytes = 4 << 10;
            let done = run(Subject { algorithm, ranks, isa, bytes, ..SUBJECT }, Collective::AllReduce);
            assert_eq!(done.wrong, 0, "{algorithm} over {ranks} ranks, {isa}");
            assert!(done.result_us > 0.0 && done.kernel_us >= done.result_us);
        }
    }

    #[test]
    fn all_collectives_give_the_right_bits() {
        for algorithm in Algorithm::OF_SLICES {
            for collective in Collective::ALL {
                if collective == Collective::AllReduce || !algorithm.serves(collective) {
                    continue;
                }
                let ranks = if algorithm.is_of_cube_mesh() { 8 } else { SUBJECT.ranks };
                let done = run(Subject { algorithm, ranks, bytes: 2048, ..SUBJECT }, collective);
                assert_eq!(done.wrong, 0, "{collective} by {algorithm}");
                assert!(done.kernel_us > 0.0);
            }
        }
    }

    #[test]
    fn what_has_no_link_is_said_and_the_hybrid_cube_mesh_needs_none_else() {
        let mesh = machine("dgx-1v");
        let of = |algorithm| Subject { algorithm, ranks: 8, ..SUBJECT };
        let absent = simulate(&mesh, of(Algorithm::OneShot), Collective::AllReduce, false).unwrap();
        assert!(matches!(absent, Err(Absent::NoLink(..))));
        for algorithm in [Algorithm::HybridCubeMesh, Algorithm::HybridCubeMeshLl] {
            let done = simulate(&mesh, of(algorithm), Collective::AllReduce, false).unwrap().unwrap();
            assert_eq!(done.wrong, 0);
        }
    }

    #[test]
    fn a_call_whose_packets_need_too_much_memory_is_said() {
        let large = Subject { algorithm: Algorithm::OneShotLl, bytes: 64 << 20, ..SUBJECT };
        let absent = simulate(&machine("hgx-h100"), large, Collective::AllReduce, false).unwrap();
        assert_eq!(absent.unwrap_err(), Absent::Packets);
    }

    #[test]
    fn a_kernel_that_waits_once_more_over_nvlink_shows_it_in_time_and_path() {
        let subject = Subject { ranks: 2, bytes: 2048, ..SUBJECT };
        let shipped = Kernels::shipped_text(subject.algorithm, subject.ranks, subject.isa).unwrap();
        let entry = Entry::of(&shipped, "one_shot_bf16_sum_w2").unwrap();
        let place = *entry.all("st.release.sys.global.u64").first().unwrap();
        let operands: Vec<String> =
            entry.operands(place).iter().map(|operand| operand.trim_matches(['[', ']']).to_owned()).collect();
        let (to, value) = (&operands[0], &operands[1]);
        // The signal carries a value that the peer's slot has to give first.
        let with = vec![
            format!("ld.relaxed.sys.global.u64 %md0, [{to}];"),
            "and.b64 %md0, %md0, 0;".to_owned(),
            format!("add.s64 {value}, {value}, %md0;"),
            entry.lines[place].clone(),
        ];
        let changed = entry.render(&[Edit { at: place, with }]);
        let run = |text: &str| simulate_text(&machine("hgx-h100"), text, subject, true).unwrap().unwrap();
        let (before, behind) = (run(&shipped), run(&changed));
        assert_eq!((before.wrong, behind.wrong), (0, 0));
        let one_way = f64::from(machine("hgx-h100").nvlink.one_way_ns) / 1000.0;
        // The fence of the release waited for the staging meanwhile, so that a part of the trip costs nothing.
        let more = behind.result_us - before.result_us;
        assert!((one_way..3.0 * one_way).contains(&more), "{more} us more");
        let remote = |done: &Simulated| {
            done.path.iter().filter(|named| named.step.kind == StepKind::RemoteLoad).count()
        };
        assert_eq!(remote(&behind), remote(&before) + 1);
    }

    #[test]
    fn simulating_is_the_same_every_time() {
        let once = || {
            let done = run(SUBJECT, Collective::AllReduce);
            (done.result_us, done.kernel_us, done.instructions, done.steps)
        };
        assert_eq!(once(), once());
    }
}
