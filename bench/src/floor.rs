//! The floor: a kernel that does nothing, and a flag that goes to a peer and back many times within one kernel, so that
//! launching costs nothing.

use std::mem::offset_of;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cuda::{self, Event, Function, Graph, Memory, Module, Pinned, Stream};
use crate::passes::{Passes, time};
use crate::plan::Work;
use crate::row::{Absent, Floor, Mode, Samples, Times};
use crate::statistics::{mean, percentile};
use crate::team::Meeting;

#[path = "../kernels-gpu/src/parameters.rs"]
#[allow(unreachable_pub)] // The device's crate has it public.
pub(crate) mod parameters;
use parameters::{Flags, Parameters};

/// All kernels of the floor, and those of single steps.
pub(crate) const PTX: &str = include_str!("../ptx/floor.ptx");
/// Launches of the flag round trip, of `rounds` round trips each.
const RUNS: u64 = 20;
/// Threads of the empty kernel: the library's largest block.
const THREADS: u32 = 512;

/// What one rank needs for it.
pub(crate) struct Probe<'a> {
    rounds: u64,
    addresses: &'a Mutex<Vec<u64>>,
    rank: usize,
    memory: Memory,
    empty: Function,
    ping_pongs: [(&'static str, Function); 2],
    _module: Module,
}

impl<'a> Probe<'a> {
    /// Loads and allocates, and says in `addresses` where this rank's flags are.
    pub(crate) fn new(
        rounds: u64,
        addresses: &'a Mutex<Vec<u64>>,
        rank: usize,
        stream: &Stream,
    ) -> Result<Self> {
        let module = Module::load(PTX)?;
        let memory = Memory::new(size_of::<Flags>(), stream)?;
        addresses.lock().unwrap_or_else(PoisonError::into_inner)[rank] = memory.address();
        let empty = module.function("floor_empty")?;
        let ping_pongs = [
            ("flag round trip", module.function("floor_ping_pong")?),
            ("relaxed flag round trip", module.function("floor_ping_pong_relaxed")?),
        ];
        Ok(Self { rounds, addresses, rank, memory, empty, ping_pongs, _module: module })
    }

    /// Measures; rank 0 has the result. All ranks have their probes.
    pub(crate) fn measure(
        &self,
        work: &Work,
        meeting: &Meeting,
        stream: &Stream,
        events: &[Event],
    ) -> Result<(Vec<Floor>, Vec<Absent>)> {
        let (mut floor, mut absent) = (Vec::new(), Vec::new());
        if self.rank == 0 {
            floor = self.empty(work, stream, events)?;
        }
        let device = |rank: usize| if work.shared_device { 0 } else { rank as u32 };
        let reached = cuda::reach_each_other(device(0), device(1))?;
        if reached && self.rank < 2 && !work.shared_device {
            cuda::enable_peer(device(1 - self.rank))?;
        }
        for (index, (what, kernel)) in (0..).zip(&self.ping_pongs) {
            meeting.wait()?;
            let round_trips = match reached {
                true => self.round_trips((index, what, *kernel), work, meeting, stream)?,
                false => Err("the GPUs of ranks 0 and 1 do not access each other's memory".into()),
            };
            match round_trips {
                Ok(line) => floor.extend(line),
                Err(reason) => absent.push(Absent { what: (*what).into(), reason, asked: false }),
            }
        }
        meeting.wait()?;
        Ok((floor, absent))
    }

    fn empty(&self, work: &Work, stream: &Stream, events: &[Event]) -> Result<Vec<Floor>> {
        // SAFETY: the module is loaded, and the kernel ignores its parameter.
        let launch = || unsafe { self.empty.launch(THREADS, stream, &Parameters::default()) };
        let mut floor = Vec::new();
        let samples = time(stream, &Passes::plain(work), events, launch)?;
        floor.push(line("empty kernel", Mode::Plain, work.iterations, samples)?);
        if let Some(calls) = work.graph_calls {
            let graph = Graph::capture(stream, || (0..calls).try_for_each(|_| launch()))?;
            // SAFETY: the module outlives the replays, which are waited for before `graph` goes.
            let samples =
                time(stream, &Passes::replays(work, calls), events, || unsafe { graph.launch(stream) })?;
            floor.push(line(
                &format!("empty kernel, graph x{calls}"),
                Mode::Graph,
                work.iterations,
                samples,
            )?);
        }
        Ok(floor)
    }

    /// Rank 0 has the line; an error is why a flag did not come back.
    fn round_trips(
        &self,
        (index, what, kernel): (u64, &str, Function),
        work: &Work,
        meeting: &Meeting,
        stream: &Stream,
    ) -> Result<Result<Option<Floor>, String>> {
        let flags = |rank: usize| self.addresses.lock().unwrap_or_else(PoisonError::into_inner)[rank];
        let mut through = Pinned::new(size_of::<Flags>())?;
        let mut micros = Vec::new();
        let limit = work.deadline.min(Duration::from_secs(10));
        for run in 0..RUNS {
            meeting.wait()?;
            if self.rank > 1 {
                continue;
            }
            let parameters = Parameters {
                own: flags(self.rank),
                peer: flags(1 - self.rank),
                base: (index * RUNS + run).wrapping_mul(self.rounds),
                rounds: self.rounds,
                serves: u64::from(self.rank == 0),
                deadline_ns: limit.as_nanos() as u64,
                ..Parameters::default()
            };
            // SAFETY: the module is loaded; both memories live until both ranks have met again behind the last launch.
            unsafe { kernel.launch(1, stream, &parameters) }?;
            stream.synchronize()?;
            let report = Report::read(&self.memory, &mut through, stream)?;
            if report.completed < self.rounds {
                // All ranks meet once a run; the peer gives up in this run or in the next one, which it finds alone.
                for _ in run + 1..RUNS {
                    meeting.wait()?;
                }
                return Ok(Err(format!(
                    "{} of {} round trips within {} s",
                    report.completed,
                    self.rounds,
                    limit.as_secs_f64()
                )));
            }
            let nanos = report.ended.saturating_sub(report.began) as f64;
            micros.push(nanos / 1e3 / (self.rounds - 1).max(1) as f64);
        }
        if self.rank > 0 {
            return Ok(Ok(None));
        }
        Ok(Ok(Some(Floor {
            what: format!("{what}, ranks 0 and 1"),
            mode: None,
            iterations: (RUNS * self.rounds) as usize,
            time_us: mean(&micros).context("no runs")?,
            p50_us: percentile(&micros, 50.0).context("no runs")?,
            p99_us: percentile(&micros, 99.0).context("no runs")?,
            host_p50_us: None,
            host_p99_us: None,
        })))
    }
}

/// What the flag's kernel leaves behind.
struct Report {
    completed: u64,
    began: u64,
    ended: u64,
}

impl Report {
    fn read(memory: &Memory, through: &mut Pinned, stream: &Stream) -> Result<Self> {
        let bytes = memory.read(size_of::<Flags>(), through, stream)?;
        let word = |offset: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[offset..offset + 8]);
            u64::from_le_bytes(word)
        };
        Ok(Self {
            completed: word(offset_of!(Flags, completed)),
            began: word(offset_of!(Flags, began)),
            ended: word(offset_of!(Flags, ended)),
        })
    }
}

fn line(what: &str, mode: Mode, iterations: usize, samples: Samples) -> Result<Floor> {
    let times = Times::of_slowest(&[samples]).context("nothing was measured")?;
    Ok(Floor {
        what: what.into(),
        mode: Some(mode),
        iterations,
        time_us: times.time_us,
        p50_us: times.device_p50_us,
        p99_us: times.device_p99_us,
        host_p50_us: Some(times.host_p50_us),
        host_p99_us: Some(times.host_p99_us),
    })
}
