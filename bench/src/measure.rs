//! Collectives, timed: every rank a thread with a stream of its own.
//!
//! What is allocated or loaded is there before the first launch, and ranks meet before and after whatever the driver may
//! make wait for the device: on a GPU that ranks share, a rank that waits for the device while a kernel there waits for
//! that rank would wait for ever.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use meshreduce::{
    Algorithm, Collective, Communicator, Config, Error, Lane, Limits, MemoryStore, Outcome, PrefixStore,
    rendezvous,
};
use meshreduce_checks::collectives::{self, Draw, Images};
use meshreduce_checks::job;

use crate::cuda::{self, Current, Event, Graph, Memory, Pinned, Stream};
use crate::floor::Probe;
use crate::latencies;
use crate::passes::{IN_FLIGHT, Passes, time};
use crate::plan::{Case, Way, Work};
use crate::row::{Absent, Floor, Latency, Mode, OWN, Place, Row, Samples, Times};
use crate::statistics;
use crate::team::{self, Meeting};

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Calls.
    pub rows: Vec<Row>,
    /// The floor.
    pub floor: Vec<Floor>,
    /// Single steps.
    pub latencies: Vec<Latency>,
    /// What was left out.
    pub absent: Vec<Absent>,
}

/// What is told while it is measured.
#[derive(Clone, Debug)]
pub enum ProgressEvent {
    /// This is measured now.
    Now(String),
    /// A row is there.
    Row(Row),
    /// A part of the floor is.
    Floor(Floor),
    /// What a step takes is.
    Latency(Latency),
    /// Something is left out.
    Absent(Absent),
}

impl Measured {
    /// Keeps what is to be kept.
    pub fn hear(&mut self, news: ProgressEvent) {
        match news {
            ProgressEvent::Now(_) => {}
            ProgressEvent::Row(row) => self.rows.push(row),
            ProgressEvent::Floor(floor) => self.floor.push(floor),
            ProgressEvent::Latency(latency) => self.latencies.push(latency),
            ProgressEvent::Absent(absent) => self.absent.push(absent),
        }
    }
}

/// Whoever hears of it as it is measured.
pub type OnProgress<'a> = &'a (dyn Fn(ProgressEvent) + Sync);

/// Measures everything; `asked` says whether a way was asked for by name, `hear` hears of everything at once.
///
/// # Errors
/// If a rank fails.
pub fn run(work: &Work, asked: &(dyn Fn(Way) -> bool + Sync), hear: OnProgress<'_>) -> Result<()> {
    let (store, flags) = (MemoryStore::new(), Mutex::new(vec![0; work.ranks]));
    let (expected, samples) = (Mutex::default(), Mutex::default());
    let everyone = Everyone { work, asked, hear, store, flags, expected, samples };
    cuda::initialise()?;
    team::run(work.ranks, |rank, meeting| everyone.rank(rank, meeting))?;
    Ok(())
}

/// What must come of a case on a rank.
type Results = HashMap<(usize, usize), Arc<Vec<u8>>>;

/// What the ranks share.
struct Everyone<'a> {
    work: &'a Work,
    asked: &'a (dyn Fn(Way) -> bool + Sync),
    hear: OnProgress<'a>,
    store: MemoryStore,
    /// Addresses of the floor's flags, by rank.
    flags: Mutex<Vec<u64>>,
    /// Results by case, so that one rank computes what all compare with; where each has its own, by rank, too.
    expected: Mutex<Results>,
    /// What ranks have measured of a row that others are not through with.
    samples: Mutex<Vec<Samples>>,
}

impl Everyone<'_> {
    /// What is the same on all ranks is told by the first.
    fn tell(&self, rank: usize, news: impl FnOnce() -> ProgressEvent) {
        if rank == 0 {
            (self.hear)(news());
        }
    }

    /// A rank is through with a row; the last one makes it known. Ranks meet within every row, so that none is two ahead.
    fn through(&self, row: Row, own: Samples) -> Result<()> {
        let mut all = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(own);
        if all.len() < self.work.ranks {
            return Ok(());
        }
        let samples = std::mem::take(&mut *all);
        drop(all);
        let times = Times::of_slowest(&samples).context("a rank has measured nothing")?;
        let wrong = samples.iter().map(|samples| samples.wrong).sum();
        (self.hear)(ProgressEvent::Row(Row { times, wrong: Some(wrong), ..row }.with_bandwidth()));
        Ok(())
    }

    fn rank(&self, rank: usize, meeting: &Meeting) -> Result<()> {
        let work = self.work;
        let device = if work.shared_device { 0 } else { rank as u32 };
        let _context = Current::new(device)?;
        let longest = work.cases.iter().map(|case| most_bytes(case, work.ranks)).max().unwrap_or(0).max(1);
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
            self.tell(rank, || ProgressEvent::Now("the floor".into()));
            let (floor, absent) = probe.measure(work, meeting, &bench.stream, &bench.events)?;
            floor.into_iter().for_each(|floor| self.tell(rank, || ProgressEvent::Floor(floor)));
            absent.into_iter().for_each(|absent| self.tell(rank, || ProgressEvent::Absent(absent)));
            if let Some(rounds) = work.floor.filter(|_| rank == 0) {
                let latencies = latencies::measure(rounds, &bench.stream)?;
                latencies.into_iter().for_each(|latency| self.tell(rank, || ProgressEvent::Latency(latency)));
            }
            meeting.wait()?;
        }
        drop(probe);
        // One after the other, so that each has the whole device, as in a program that has one.
        for &way in &work.ways {
            let communicator = match self.communicator(rank, device, way)? {
                Ok(communicator) => communicator,
                Err(reason) => {
                    let absent = || Absent { what: way.name().into(), reason, asked: (self.asked)(way) };
                    self.tell(rank, || ProgressEvent::Absent(absent()));
                    continue;
                }
            };
            // No rank loads or allocates while another one's kernels wait for it.
            meeting.wait()?;
            let mut lane = communicator.lane(0)?;
            let is_of_way =
                |case: &Case| way.forced().is_none_or(|algorithm| algorithm.serves(case.collective));
            for (index, case) in work.cases.iter().enumerate().filter(|(_, case)| is_of_way(case)) {
                match algorithm(&communicator, &limits(work), way, case) {
                    Ok(algorithm) => bench.case(&communicator, &mut lane, (way, algorithm), index, case)?,
                    Err(reason) => {
                        let what = match case.collective {
                            Collective::AllReduce => format!("{} {} bytes", way.name(), case.bytes),
                            other => format!("{other} by {} {} bytes", way.name(), case.bytes),
                        };
                        self.tell(rank, || ProgressEvent::Absent(Absent { what, reason, asked: false }));
                    }
                }
            }
            drop(lane);
            meeting.wait()?;
            communicator.close()?;
        }
        meeting.wait()?;
        Ok(())
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
            .latest_isa(work.isa)
            .force_algorithm(way.forced());
        let store = PrefixStore::new(way.name(), &self.store)?;
        match rendezvous(&store, rank, work.ranks, device, &config) {
            Ok(Outcome::Ready(communicator)) => Ok(Ok(communicator)),
            Ok(Outcome::NotApplicable(reason)) => Ok(Err(format!("not applicable: {reason}"))),
            Err(error @ Error::AlgorithmNotPossible { .. }) => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// What `rank` must have of a case; computed by the first rank that asks.
    fn expected(&self, call: &collectives::Case, draw: Draw<'_>, rank: usize) -> Arc<Vec<u8>> {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let whose = if call.collective == Collective::AllReduce { 0 } else { rank };
        let compute = || Arc::new(call.expected(draw, rank));
        Arc::clone(expected.entry((draw.case, whose)).or_insert_with(compute))
    }
}

/// The library's limits, but no more than is measured: staging of several communicators must fit a shared GPU.
fn limits(work: &Work) -> Limits {
    // The slices of a reduction have a share of a limit.
    let longest = work.cases.iter().map(|case| most_bytes(case, work.ranks)).max().unwrap_or(0).max(1);
    Limits::default().at_most(longest as u64, work.ranks)
}

/// Bytes of the longest buffer of a case.
fn most_bytes(case: &Case, ranks: usize) -> usize {
    statistics::counted_bytes(case.collective, case.bytes, ranks)
}

/// The call of a case, the same on all ranks: slices are equal, and the first rank is the root.
fn call(case: &Case, place: Place, ranks: usize) -> collectives::Case {
    let Case { collective, dtype, op, bytes } = *case;
    // Which algorithm makes it does not matter here.
    let algorithm = Algorithm::OneShot;
    let case = job::Case { collective, algorithm, dtype, op, bytes, offset: 0, in_place: place == Place::In };
    collectives::Case::of_job(&case, 0, ranks)
}

/// Elements of `size` bytes that are not the same bits.
fn wrong_elements(got: &[u8], want: &[u8], size: usize) -> usize {
    got.chunks(size).zip(want.chunks(size)).filter(|(got, want)| got != want).count()
}

/// The algorithm of a case, or why it is left out: beyond the limits of the algorithm. (One that is forced would take it in pieces.)
fn algorithm(
    communicator: &Communicator,
    limits: &Limits,
    way: Way,
    case: &Case,
) -> Result<Algorithm, String> {
    let bytes = case.bytes as u64;
    let selected = match case.collective {
        Collective::AllReduce => communicator.select(bytes, case.dtype, case.op),
        collective => communicator.select_for(collective, bytes),
    };
    let is_within = |algorithm: &Algorithm| {
        way.forced().is_none() || bytes <= limits.of(*algorithm, communicator.world_size())
    };
    selected.filter(is_within).ok_or_else(|| format!("beyond the limit of {}", way.name()))
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
        (way, algorithm): (Way, Algorithm),
        index: usize,
        case: &Case,
    ) -> Result<()> {
        let work = self.everyone.work;
        let algorithm = match way {
            Way::Forced(_) => algorithm.to_string(),
            Way::Selected => format!("auto: {algorithm}"),
        };
        let modes = [Some((Mode::Plain, 1)), work.graph_calls.map(|calls| (Mode::Graph, calls))];
        for (mode, graph_calls) in modes.into_iter().flatten() {
            // A barrier is in no place.
            let places = if case.collective == Collective::Barrier { 1 } else { 2 };
            for place in [Place::Out, Place::In].into_iter().take(places) {
                let what = format!("{} by {algorithm}", case.collective);
                let now = || format!("{what} {} {} bytes", mode.name(), case.bytes);
                self.everyone.tell(self.rank, || ProgressEvent::Now(now()));
                let samples = self
                    .row(communicator, lane, index, case, mode, graph_calls, place)
                    .with_context(|| format!("{what}, {} bytes, {}", case.bytes, mode.name()))?;
                let (dtype, op) = case.kind();
                let row = Row {
                    collective: case.collective,
                    implementation: OWN.into(),
                    algorithm: algorithm.clone(),
                    mode,
                    graph_calls,
                    place,
                    dtype,
                    op,
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
                self.everyone.through(row, samples)?;
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
        let (order, case) = (communicator.mesh().positions(), call(case, place, work.ranks));
        let draw = Draw { seed: 0, case: index, launch: 0, order: &order };
        let images = case.images(draw, self.rank);
        let want = self.everyone.expected(&case, draw, self.rank);
        self.load(&images)?;
        // What is sent lies elsewhere, or in the one memory.
        let memory = if images.sent.is_some() { &self.output } else { &self.input };
        let input = self.input.address() + images.input as u64;
        let addresses = (input, memory.address() + images.output.start as u64);
        let Self { meeting, rank, events, stream, .. } = self;
        let mut call = Call { lane, rank: *rank, addresses, case: &case, stream };
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
        self.load(&images)?;
        self.meeting.wait()?;
        let mut call = Call { lane, rank: self.rank, addresses, case: &case, stream: &self.stream };
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
        let memory = if images.sent.is_some() { &self.output } else { &self.input };
        if !images.memory.is_empty() {
            let got = memory.read(images.memory.len(), &mut self.through, &self.stream)?;
            samples.wrong = wrong_elements(&got[images.output], &want, case.element());
        }
        // Nobody overwrites staging or buffers for the next row before all have theirs.
        self.meeting.wait()?;
        Ok(samples)
    }

    /// Puts what this rank sends into the input, and something else where the result goes.
    fn load(&mut self, images: &Images) -> Result<()> {
        let Images { memory, sent, .. } = images;
        let buffers = match sent {
            Some(sent) => [(&self.output, memory), (&self.input, sent)],
            None => [(&self.input, memory), (&self.output, &Vec::new())],
        };
        // The driver refuses to copy nothing.
        for (buffer, image) in buffers.into_iter().filter(|(_, image)| !image.is_empty()) {
            buffer.write(image, &mut self.through, &self.stream)?;
        }
        Ok(())
    }
}

/// One call, to be made many times.
struct Call<'a> {
    lane: &'a mut Lane,
    rank: usize,
    /// Of input and output.
    addresses: (u64, u64),
    case: &'a collectives::Case,
    stream: &'a Stream,
}

impl Call<'_> {
    fn enqueue(&mut self) -> Result<()> {
        // SAFETY: there lie the case's images, until the stream has been waited for.
        unsafe { self.case.call(self.lane, self.rank, self.addresses, self.stream.raw().cast()) }?;
        Ok(())
    }

    fn graph(&mut self, calls: usize) -> Result<Graph> {
        // Whoever launches the graph sees to the replays.
        Graph::capture(self.stream, || (0..calls).try_for_each(|_| self.enqueue()))
    }
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
}
