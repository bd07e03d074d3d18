//! All-reduces, timed: every rank a thread with a stream of its own.
//!
//! What is allocated or loaded is there before the first launch, and ranks meet before and after whatever the driver may
//! make wait for the device: on a GPU that ranks share, a rank that waits for the device while a kernel there waits for
//! that rank would wait for ever.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use meshreduce::{Communicator, Config, Error, Lane, Limits, MemoryStore, Outcome, PrefixStore, rendezvous};
use meshreduce_tests::{inputs, reference};

use crate::cuda::{self, Current, Event, Graph, Memory, Pinned, Stream};
use crate::floor::Probe;
use crate::plan::{Case, Way, Work};
use crate::row::{Absent, Floor, Mode, OWN, Place, Row, Samples, Times};
use crate::team::{self, Meeting};

/// Calls that a rank enqueues before it waits for its stream. A driver's queue holds about a thousand commands; a
/// host that has to wait for room in it may keep other threads from launching.
const IN_FLIGHT: usize = 64;
/// The same for replays.
const REPLAYS_IN_FLIGHT: usize = 16;

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// All-reduces.
    pub rows: Vec<Row>,
    /// The floor.
    pub floor: Vec<Floor>,
    /// What was left out.
    pub absent: Vec<Absent>,
}

/// Measures everything; `asked` says whether a way was asked for by name, `progress` hears of every row.
///
/// # Errors
/// If a rank fails.
pub fn run(
    work: &Work,
    asked: &(dyn Fn(Way) -> bool + Sync),
    progress: &(dyn Fn(&str) + Sync),
) -> Result<Measured> {
    let (store, flags) = (MemoryStore::new(), Mutex::new(vec![0; work.ranks]));
    let everyone = Everyone { work, asked, progress, store, flags, expected: Mutex::default() };
    cuda::initialise()?;
    let ranks = team::run(work.ranks, |rank, meeting| everyone.rank(rank, meeting))?;
    let mut measured = Measured::default();
    let mut rows = Vec::new();
    for (rank, told) in ranks.into_iter().enumerate() {
        rows.push(told.rows);
        if rank == 0 {
            (measured.floor, measured.absent) = (told.floor, told.absent);
        }
    }
    // All ranks have gone through the same program, so they have measured the same rows.
    for index in 0..rows.first().map_or(0, Vec::len) {
        let samples: Vec<Samples> = rows.iter().map(|rank| rank[index].1.clone()).collect();
        let row = rows[0][index].0.clone();
        let times = Times::of_slowest(&samples).context("a rank has measured nothing")?;
        let wrong = samples.iter().map(|samples| samples.wrong).sum();
        measured.rows.push(Row { times, wrong: Some(wrong), ..row }.with_bandwidth());
    }
    Ok(measured)
}

/// What the ranks share.
struct Everyone<'a> {
    work: &'a Work,
    asked: &'a (dyn Fn(Way) -> bool + Sync),
    progress: &'a (dyn Fn(&str) + Sync),
    store: MemoryStore,
    /// Addresses of the floor's flags, by rank.
    flags: Mutex<Vec<u64>>,
    /// Results by case, so that one rank computes what all compare with.
    expected: Mutex<HashMap<u64, Arc<Vec<u8>>>>,
}

/// What one rank has to say.
#[derive(Default)]
struct Told {
    rows: Vec<(Row, Samples)>,
    floor: Vec<Floor>,
    absent: Vec<Absent>,
}

impl Everyone<'_> {
    fn rank(&self, rank: usize, meeting: &Meeting) -> Result<Told> {
        let work = self.work;
        let device = if work.shared_device { 0 } else { rank as u32 };
        let _context = Current::new(device)?;
        let mut told = Told::default();
        let longest = work.cases.iter().map(|case| case.bytes).max().unwrap_or(0);
        let stream = Stream::new()?;
        let mut bench = Bench {
            everyone: self,
            meeting,
            rank,
            input: Memory::new(longest, &stream)?,
            output: Memory::new(longest, &stream)?,
            through: Pinned::new(longest)?,
            events: (0..=IN_FLIGHT).map(|_| Event::new()).collect::<Result<_>>()?,
            stream,
        };
        let probe =
            work.floor.map(|rounds| Probe::new(rounds, &self.flags, rank, &bench.stream)).transpose()?;
        bench.stream.synchronize()?;
        meeting.wait()?;
        if let Some(probe) = &probe {
            (self.progress)("the floor");
            let (floor, absent) = probe.measure(work, meeting, &bench.stream, &bench.events)?;
            told.floor = floor;
            told.absent.extend(absent);
        }
        drop(probe);
        // One after the other, so that each has the whole device, as in a program that has one.
        for &way in &work.ways {
            let communicator = match self.communicator(rank, device, way)? {
                Ok(communicator) => communicator,
                Err(reason) => {
                    told.absent.push(Absent { what: way.name().into(), reason, asked: (self.asked)(way) });
                    continue;
                }
            };
            // No rank loads or allocates while another one's kernels wait for it.
            meeting.wait()?;
            let mut lane = communicator.lane(0)?;
            for (index, case) in work.cases.iter().enumerate() {
                if let Some(reason) = not_run(&communicator, way, case) {
                    let what = format!("{} {} bytes", way.name(), case.bytes);
                    told.absent.push(Absent { what, reason, asked: false });
                    continue;
                }
                bench.case(&communicator, &mut lane, way, index, case, &mut told)?;
            }
            drop(lane);
            meeting.wait()?;
            communicator.close()?;
        }
        meeting.wait()?;
        Ok(told)
    }

    /// This rank's communicator for one way; a reason, the same on all ranks, if there can be none.
    fn communicator(&self, rank: usize, device: u32, way: Way) -> Result<Result<Communicator, String>> {
        let work = self.work;
        let config = Config::default()
            .deadline(Some(work.deadline))
            .timeout(Duration::from_secs(60))
            .limits(limits(work))
            .allow_shared_devices(work.shared_device)
            .force_topology(work.topology)
            .force_algorithm(way.forced());
        let store = PrefixStore::new(way.name(), &self.store)?;
        match rendezvous(&store, rank, work.ranks, device, &config) {
            Ok(Outcome::Ready(communicator)) => Ok(Ok(communicator)),
            Ok(Outcome::NotApplicable(reason)) => Ok(Err(format!("not applicable: {reason}"))),
            Err(error @ Error::AlgorithmNotPossible { .. }) => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// What the all-reduce of a case must give; computed by the first rank that asks.
    fn expected(&self, communicator: &Communicator, index: usize, case: &Case) -> Arc<Vec<u8>> {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let compute = || {
            let messages: Vec<_> =
                communicator.mesh().positions().iter().map(|&rank| message(index, rank, case)).collect();
            Arc::new(reference::all_reduce(&messages, case.dtype, case.op))
        };
        Arc::clone(expected.entry(index as u64).or_insert_with(compute))
    }
}

/// The library's limits, but no more than is measured: staging of several communicators must fit a shared GPU.
fn limits(work: &Work) -> Limits {
    let longest = work.cases.iter().map(|case| case.bytes as u64).max().unwrap_or(0).max(1);
    let Limits { one_shot, two_shot, hybrid_cube_mesh } = Limits::default();
    Limits {
        one_shot: one_shot.min(longest),
        two_shot: two_shot.min(longest),
        hybrid_cube_mesh: hybrid_cube_mesh.min(longest),
    }
}

fn message(index: usize, rank: usize, case: &Case) -> Vec<u8> {
    inputs::message(0, index, 0, rank, case.count(), case.dtype)
}

/// Elements of `size` bytes that are not the same bits.
fn wrong_elements(got: &[u8], want: &[u8], size: usize) -> usize {
    got.chunks(size).zip(want.chunks(size)).filter(|(got, want)| got != want).count()
}

/// Why a case is left out: beyond the limits of the algorithm.
fn not_run(communicator: &Communicator, way: Way, case: &Case) -> Option<String> {
    match communicator.select(case.bytes as u64, case.dtype, case.op) {
        Some(_) => None,
        None => Some(format!("beyond the limit of {}", way.name())),
    }
}

/// One rank at work.
struct Bench<'a> {
    everyone: &'a Everyone<'a>,
    meeting: &'a Meeting,
    rank: usize,
    input: Memory,
    output: Memory,
    through: Pinned,
    events: Vec<Event>,
    stream: Stream,
}

impl Bench<'_> {
    fn case(
        &mut self,
        communicator: &Communicator,
        lane: &mut Lane,
        way: Way,
        index: usize,
        case: &Case,
        told: &mut Told,
    ) -> Result<()> {
        let work = self.everyone.work;
        let algorithm = communicator
            .select(case.bytes as u64, case.dtype, case.op)
            .map_or("none", |algorithm| algorithm.name());
        let algorithm = match way {
            Way::Forced(_) => algorithm.to_owned(),
            Way::Selected => format!("auto: {algorithm}"),
        };
        let modes = [Some((Mode::Plain, 1)), work.graph_calls.map(|calls| (Mode::Graph, calls))];
        for (mode, graph_calls) in modes.into_iter().flatten() {
            for place in [Place::Out, Place::In] {
                if self.rank == 0 {
                    (self.everyone.progress)(&format!("{algorithm} {} {} bytes", mode.name(), case.bytes));
                }
                let samples = self
                    .row(communicator, lane, index, case, mode, graph_calls, place)
                    .with_context(|| format!("{algorithm}, {} bytes, {}", case.bytes, mode.name()))?;
                let row = Row {
                    implementation: OWN.into(),
                    algorithm: algorithm.clone(),
                    mode,
                    graph_calls,
                    place,
                    dtype: case.dtype.to_string(),
                    op: case.op.to_string(),
                    ranks: work.ranks,
                    bytes: case.bytes,
                    count: case.count(),
                    iterations: work.iterations,
                    times: Times {
                        time_us: 0.0,
                        device_p50_us: 0.0,
                        device_p99_us: 0.0,
                        host_p50_us: 0.0,
                        host_p99_us: 0.0,
                    },
                    algbw_gbps: 0.0,
                    busbw_gbps: 0.0,
                    wrong: None,
                };
                told.rows.push((row, samples));
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // what makes a row
    fn row(
        &mut self,
        communicator: &Communicator,
        lane: &mut Lane,
        index: usize,
        case: &Case,
        mode: Mode,
        graph_calls: usize,
        place: Place,
    ) -> Result<Samples> {
        let work = self.everyone.work;
        let mine = message(index, self.rank, case);
        let want = self.everyone.expected(communicator, index, case);
        self.load(&mine, place)?;
        let target = if place == Place::In { self.input.address() } else { self.output.address() };
        let Self { meeting, input, events, stream, .. } = self;
        let mut call = Call { lane, input: input.address(), output: target, case, stream };
        // Capturing makes the driver allocate.
        meeting.wait()?;
        let mut samples = match mode {
            Mode::Plain => {
                meeting.wait()?;
                time(stream, &Passes::plain(work), events, || call.enqueue())?
            }
            Mode::Graph => {
                let graph = call.graph(graph_calls)?;
                meeting.wait()?;
                let passes = Passes::replays(work, graph_calls);
                // SAFETY: buffers and communicator outlive the replays, which are waited for before `graph` goes.
                let samples = time(stream, &passes, events, || unsafe { graph.launch(stream) });
                meeting.wait()?;
                samples?
            }
        };
        meeting.wait()?;
        lane.status()?;
        self.load(&mine, place)?;
        self.meeting.wait()?;
        let mut call = Call { lane, input: self.input.address(), output: target, case, stream: &self.stream };
        match mode {
            Mode::Plain => {
                call.enqueue()?;
                self.stream.synchronize()?;
            }
            Mode::Graph => {
                let graph = call.graph(1)?;
                self.meeting.wait()?;
                // SAFETY: as above; it is waited for here.
                unsafe { graph.launch(&self.stream) }?;
                self.stream.synchronize()?;
                self.meeting.wait()?;
            }
        }
        lane.status()?;
        let target = if place == Place::In { &self.input } else { &self.output };
        let got = target.read(case.bytes, &mut self.through, &self.stream)?;
        samples.wrong = wrong_elements(got, &want, case.dtype.size());
        // Nobody overwrites staging or buffers for the next row before all have theirs.
        self.meeting.wait()?;
        Ok(samples)
    }

    /// Puts this rank's message into the input, and something else where the result goes.
    fn load(&mut self, mine: &[u8], place: Place) -> Result<()> {
        if place == Place::Out {
            self.output.write(&vec![0x5a; mine.len()], &mut self.through, &self.stream)?;
        }
        self.input.write(mine, &mut self.through, &self.stream)
    }
}

/// One all-reduce, to be made many times.
struct Call<'a> {
    lane: &'a mut Lane,
    input: u64,
    output: u64,
    case: &'a Case,
    stream: &'a Stream,
}

impl Call<'_> {
    fn enqueue(&mut self) -> Result<()> {
        let Case { dtype, op, .. } = *self.case;
        // SAFETY: both buffers hold the message, are the same or apart, and live until the stream has been waited for.
        unsafe {
            self.lane.all_reduce_raw(self.input, self.output, self.case.count(), dtype, op, self.stream.raw())
        }?;
        Ok(())
    }

    fn graph(&mut self, calls: usize) -> Result<Graph> {
        let Case { dtype, op, .. } = *self.case;
        Graph::capture(self.stream, || {
            for _ in 0..calls {
                // SAFETY: as for `enqueue`; whoever launches the graph sees to the replays.
                unsafe {
                    self.lane.all_reduce_raw(
                        self.input,
                        self.output,
                        self.case.count(),
                        dtype,
                        op,
                        self.stream.raw(),
                    )
                }?;
            }
            Ok(())
        })
    }
}

/// How often what is done.
pub(crate) struct Passes {
    warmup: usize,
    iterations: usize,
    in_flight: usize,
    /// Calls of one launch.
    calls: usize,
}

impl Passes {
    /// Of launches one by one.
    pub(crate) fn plain(work: &Work) -> Self {
        Self { warmup: work.warmup, iterations: work.iterations, in_flight: IN_FLIGHT, calls: 1 }
    }

    /// Of replays of a graph of `calls` calls.
    pub(crate) fn replays(work: &Work, calls: usize) -> Self {
        Self { in_flight: REPLAYS_IN_FLIGHT, calls, ..Self::plain(work) }
    }

    /// How many launches go between two waits for the stream.
    fn chunks(&self, total: usize) -> impl Iterator<Item = usize> {
        let in_flight = self.in_flight;
        (0..total).step_by(in_flight).map(move |done| in_flight.min(total - done))
    }
}

/// Three passes: batches between two events; an event behind every launch; the host's clock around launch and
/// synchronisation. In the first two every chunk begins with a launch that is not measured: it brings the ranks in step, and
/// the host ahead of the device.
///
/// # Errors
/// The driver's, and those of `launch`.
pub(crate) fn time(
    stream: &Stream,
    passes: &Passes,
    events: &[Event],
    mut launch: impl FnMut() -> Result<()>,
) -> Result<Samples> {
    let per_call = 1.0 / passes.calls as f64;
    for chunk in passes.chunks(passes.warmup) {
        (0..chunk).try_for_each(|_| launch())?;
        stream.synchronize()?;
    }
    let mut samples = Samples::default();
    let [first, behind @ ..] = events else { bail!("no events") };
    let [second, ..] = behind else { bail!("one event") };
    let mut batch = 0.0;
    for chunk in passes.chunks(passes.iterations) {
        launch()?;
        first.record(stream)?;
        (0..chunk).try_for_each(|_| launch())?;
        second.record(stream)?;
        stream.synchronize()?;
        batch += second.micros_since(first)?;
    }
    samples.batches.push(batch / passes.iterations as f64 * per_call);
    for chunk in passes.chunks(passes.iterations) {
        launch()?;
        first.record(stream)?;
        for event in &behind[..chunk] {
            launch()?;
            event.record(stream)?;
        }
        stream.synchronize()?;
        for (before, after) in events.iter().zip(&behind[..chunk]) {
            samples.device.push(after.micros_since(before)? * per_call);
        }
    }
    for _ in 0..passes.iterations {
        let start = Instant::now();
        launch()?;
        stream.synchronize()?;
        samples.host.push(start.elapsed().as_secs_f64() * 1e6 * per_call);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_wrong_if_one_of_its_bytes_is() {
        assert_eq!(wrong_elements(&[1, 2, 3, 4], &[1, 2, 3, 4], 2), 0);
        assert_eq!(wrong_elements(&[0, 2, 3, 0], &[1, 2, 3, 4], 2), 2);
        assert_eq!(wrong_elements(&[0, 0, 3, 4], &[1, 2, 3, 4], 2), 1);
    }

    #[test]
    fn launches_go_in_chunks_that_add_up() {
        let passes = Passes { warmup: 0, iterations: 150, in_flight: 64, calls: 1 };
        assert_eq!(passes.chunks(passes.iterations).collect::<Vec<_>>(), [64, 64, 22]);
        assert_eq!(passes.chunks(passes.warmup).count(), 0);
    }
}
