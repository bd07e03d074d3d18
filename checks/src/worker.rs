//! The rank program: rendezvous, launches, comparison with the reference.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cust::context::Context;
use cust::device::Device;
use meshreduce::store::{FileStore, PrefixStore, Store};
use meshreduce::{Algorithm, Communicator, Config, Error, Lane, Outcome};
use sha2::{Digest, Sha256};

use crate::collectives::{self, Draw};
use crate::forced::forced;
use crate::job::{Action, Case, Event, Fault, Job, topology};

/// Runs every rank of `job` on a thread of its own and says on standard output what happens.
///
/// Returns whether all ranks did all they were told to.
///
/// Ranks that share a device must be processes: between launches memory is allocated and freed here, which waits for
/// everything in the device's context, kernels of other ranks among it that wait for this one's next launch.
pub fn run(job: &Job) -> bool {
    let voice = EventWriter(Mutex::new(std::io::stdout()));
    std::thread::scope(|scope| {
        let threads: Vec<_> = job
            .ranks
            .iter()
            .map(|&rank| {
                scope.spawn({
                    let voice = &voice;
                    move || Rank { job, rank, voice }.run()
                })
            })
            .collect();
        let done: Vec<bool> = threads.into_iter().map(|thread| thread.join().unwrap_or(false)).collect();
        done.into_iter().all(|done| done)
    })
}

struct EventWriter(Mutex<std::io::Stdout>);

impl EventWriter {
    fn say(&self, event: &Event) {
        let mut line = serde_json::to_string(event).expect("events are plain data");
        line.push('\n');
        let mut out = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // If nobody listens any more there is nobody to tell.
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }
}

struct Rank<'a> {
    job: &'a Job,
    rank: usize,
    voice: &'a EventWriter,
}

impl Rank<'_> {
    fn run(&self) -> bool {
        let outcome = self.cases();
        if self.skipping() > 0 && !self.skips(self.rank) {
            self.ended(1);
        }
        match outcome {
            Ok(()) => true,
            Err((case, error)) => {
                let kind = error.downcast_ref::<Error>().map_or_else(|| "Other".to_owned(), variant);
                let message = format!("{error:#}");
                self.voice.say(&Event::Failed { rank: self.rank, case, kind, message });
                false
            }
        }
    }

    /// Runs the cases in order, over one communicator for each algorithm.
    fn cases(&self) -> Result<(), (Option<usize>, anyhow::Error)> {
        let own = self.job.devices.get(self.rank);
        let here = |rank: &&usize| self.job.devices.get(**rank) == own;
        if self.job.shared_devices && self.job.ranks.iter().filter(here).count() > 1 {
            let error =
                anyhow::anyhow!("ranks that share a device must be processes here: see `worker::run`");
            return Err((None, error));
        }
        self.fault(None);
        let cases: Vec<(usize, &Case)> = self.job.cases.iter().enumerate().collect();
        for cases in cases.chunk_by(|(_, a), (_, b)| a.algorithm == b.algorithm) {
            match self.rendezvous(cases[0].1.algorithm) {
                Ok(Outcome::Ready(communicator)) => self.all_cases(communicator, cases)?,
                Ok(Outcome::NotApplicable(reason)) => {
                    self.voice.say(&Event::NotApplicable { rank: self.rank, reason: reason.to_string() });
                    return Ok(());
                }
                Err(error) => match error.downcast_ref() {
                    Some(Error::AlgorithmNotPossible { .. }) => {
                        cases.iter().for_each(|(index, _)| self.unsupported(*index, &error));
                    }
                    _ => return Err((None, error)),
                },
            }
        }
        Ok(())
    }

    fn rendezvous(&self, algorithm: Algorithm) -> Result<Outcome> {
        let job = self.job;
        let ptx =
            job.ptx.as_ref().map(std::fs::read_to_string).transpose().context("reading the PTX text")?;
        let config = Config::default()
            .deadline(Some(Duration::from_millis(job.deadline_ms)))
            .timeout(Duration::from_millis(job.rendezvous_ms))
            .allow_shared_devices(job.shared_devices)
            .force_topology(job.force_topology.map(topology))
            .latest_isa(job.isa)
            .lanes(job.lanes)
            .first_call_number(job.first_call_number);
        let config = forced(config, algorithm);
        // SAFETY: it is the shipped text, or one that whoever ran this program has chosen to run in it.
        let config = unsafe { config.ptx(ptx) };
        let store = FileStore::open(&job.store).map_err(Error::from)?;
        let store = PrefixStore::new(algorithm.name(), &store)?;
        Ok(meshreduce::rendezvous(&store, self.rank, job.world_size, job.devices[self.rank], &config)?)
    }

    fn all_cases(
        &self,
        communicator: Communicator,
        cases: &[(usize, &Case)],
    ) -> Result<(), (Option<usize>, anyhow::Error)> {
        self.voice.say(&Event::Ready { rank: self.rank });
        let nowhere = |error: anyhow::Error| (None, error);
        let device = Device::get_device(communicator.device()).map_err(|error| nowhere(error.into()))?;
        let _context = Context::new(device).map_err(|error| nowhere(error.into()))?;
        let mut lane = communicator.lane(0).map_err(|error| nowhere(error.into()))?;
        for &(index, case) in cases {
            match self.case(&communicator, &mut lane, index, case) {
                Ok(event) => self.voice.say(&event),
                Err(error) => match error.downcast_ref() {
                    Some(Error::Unsupported { .. }) => self.unsupported(index, &error),
                    _ => return Err((Some(index), error)),
                },
            }
        }
        drop(lane);
        communicator.close().map_err(|error| nowhere(error.into()))?;
        self.voice.say(&Event::Closed { rank: self.rank });
        Ok(())
    }

    fn unsupported(&self, case: usize, reason: &anyhow::Error) {
        self.voice.say(&Event::Unsupported { rank: self.rank, case, reason: format!("{reason:#}") });
    }

    fn case(&self, communicator: &Communicator, lane: &mut Lane, index: usize, case: &Case) -> Result<Event> {
        let job = self.job;
        let mut digest = Sha256::new();
        let mut mismatch = None;
        let mut spent = Duration::ZERO;
        let stream = cust::stream::Stream::new(cust::stream::StreamFlags::DEFAULT, None)?;
        let order = communicator.mesh().positions();
        for launch in 0..job.launches {
            let draw = Draw { seed: job.seed, case: index, launch, order: &order };
            let call = collectives::Case::of_job(case, launch, job.world_size);
            let buffers = call.buffers(draw, self.rank)?;
            let mut enqueue = true;
            let mut abort = false;
            let mut made = call.clone();
            match self.fault(Some(index * job.launches + launch)) {
                Some(Action::FewerElements(elements)) => {
                    made.counts.iter_mut().flatten().for_each(|count| *count -= elements);
                }
                Some(Action::Skip) => enqueue = false,
                Some(Action::Abort) => abort = true,
                _ => {}
            }
            let start = Instant::now();
            if enqueue {
                // SAFETY: the buffers are those of the call, or of one of more elements, and live until `synchronize` has returned
                // below.
                let work = unsafe { made.call(lane, self.rank, buffers.addresses(), stream.as_inner()) }?;
                if abort {
                    communicator.abort();
                }
                work.synchronize()?;
            }
            spent += start.elapsed();

            let found = buffers.found()?;
            digest.update(&found);
            if mismatch.is_none() {
                mismatch = call.mismatch(&buffers, &found, draw, self.rank)?;
            }
        }
        Ok(Event::Case {
            rank: self.rank,
            case: index,
            digest: hex(&digest.finalize()),
            mismatch,
            micros: spent.as_micros() as u64,
            instructions: emulated_instructions(),
        })
    }

    /// Does what is to go wrong before `launch`, as far as it can be done here.
    fn fault(&self, launch: Option<usize>) -> Option<Action> {
        let due = |fault: &&Fault| fault.rank == self.rank && fault.launch == launch;
        let action = self.job.faults.iter().find(due)?.action.clone();
        match action {
            Action::Die => std::process::abort(),
            Action::Sleep(ms) => std::thread::sleep(Duration::from_millis(ms)),
            Action::Skip => self.wait_for_those_that_do_not_skip(),
            Action::FewerElements(_) | Action::Abort => {}
        }
        Some(action)
    }

    fn skips(&self, rank: usize) -> bool {
        self.job.faults.iter().any(|fault| fault.rank == rank && fault.action == Action::Skip)
    }

    /// Ranks that leave a launch out.
    fn skipping(&self) -> usize {
        (0..self.job.world_size).filter(|rank| self.skips(*rank)).count()
    }

    /// Adds to the number of ranks that have ended, and returns it.
    fn ended(&self, more: i64) -> i64 {
        let counted = FileStore::open(&self.job.store).and_then(|store| store.add("ended", more));
        counted.expect("a store that was there for the rendezvous")
    }

    fn wait_for_those_that_do_not_skip(&self) {
        let others = (self.job.world_size - self.skipping()) as i64;
        let start = Instant::now();
        while self.ended(0) < others {
            assert!(start.elapsed() < Duration::from_secs(300), "the other ranks do not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of the error's variant, which tests and programs compare.
fn variant(error: &Error) -> String {
    let text = format!("{error:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

/// PTX instructions that this process has executed, if its driver is the emulated node's.
fn emulated_instructions() -> Option<u64> {
    let address = meshreduce_driver_loader::symbol("meshreduceEmulatorInstructions")?;
    // SAFETY: only the emulated node's driver exports this name, with this signature.
    let count: unsafe extern "C" fn(*mut u64) -> i32 = unsafe { std::mem::transmute(address) };
    let mut instructions = 0;
    // SAFETY: the function writes one u64 to the address.
    (unsafe { count(&mut instructions) } == 0).then_some(instructions)
}
