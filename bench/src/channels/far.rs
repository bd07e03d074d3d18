//! The far end, in a thread or a process of its own: it does what it is told.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context as _, Result, anyhow, bail};
use meshreduce_channels::{CounterDescriptor, Owned, RegionDescriptor};
use serde::{Deserialize, Serialize};

use super::count::driver_calls;
use super::way::{Buffer, End, LONG, Single, Way};

/// What the far end is to do. `way` is the number of a way that was opened.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Meet the near end at an address.
    Open { way: usize, what: Way, address: String },
    /// Send back what comes, so often.
    Echo { way: usize, bytes: usize, count: usize },
    /// Take what comes, so often; so many receives at a time.
    Take { way: usize, bytes: usize, count: usize, window: usize, with_stream: bool },
    /// Register memory to be written to.
    Offer { way: usize, bytes: usize },
    /// Wait until so many batches have been written.
    Await { way: usize, batches: u64 },
    /// Give the memory up.
    Withdraw { way: usize },
    /// End the way.
    Close { way: usize },
}

/// What comes of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It is done, with so many calls of the driver if that was to be known.
    Done { driver_calls: Option<u64> },
    /// The memory is registered.
    Offered { region: RegionDescriptor, counter: CounterDescriptor },
    /// It cannot be done.
    Failed(String),
}

/// Who does it.
pub(crate) enum Far {
    Thread { orders: Sender<Order>, answers: Receiver<Answer> },
    Process { child: Child, answers: BufReader<std::process::ChildStdout> },
}

impl Far {
    /// A thread of this process.
    pub(crate) fn thread() -> Result<Self> {
        let ((orders, told), (say, answers)) = (channel::<Order>(), channel());
        let serve = move || {
            let mut server = Server::default();
            for order in told {
                if say.send(server.obey(order)).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("far end".to_owned()).spawn(serve).context("starting a thread")?;
        Ok(Self::Thread { orders, answers })
    }

    /// Another process, of this program.
    pub(crate) fn process() -> Result<Self> {
        let program = std::env::current_exe().context("finding this program's own file")?;
        let mut command = Command::new(program);
        let mut child = command.arg("far-end").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let answers = BufReader::new(child.stdout.take().context("the far end has an output")?);
        Ok(Self::Process { child, answers })
    }

    /// Tells it to do something, without waiting.
    pub(crate) fn order(&mut self, order: Order) -> Result<()> {
        match self {
            Self::Thread { orders, .. } => orders.send(order).map_err(|_| anyhow!("the far end has ended")),
            Self::Process { child, .. } => {
                let input = child.stdin.as_mut().context("the far end has an input")?;
                writeln!(input, "{}", serde_json::to_string(&order)?).context("telling the far end")
            }
        }
    }

    /// Waits until the last order is done.
    pub(crate) fn answer(&mut self) -> Result<Answer> {
        let answer = match self {
            Self::Thread { answers, .. } => {
                answers.recv_timeout(2 * LONG).context("the far end says nothing")?
            }
            Self::Process { answers, .. } => {
                let mut line = String::new();
                answers.read_line(&mut line).context("listening to the far end")?;
                serde_json::from_str(&line).with_context(|| format!("the far end says {line:?}"))?
            }
        };
        match answer {
            Answer::Failed(why) => bail!("at the far end: {why}"),
            answer => Ok(answer),
        }
    }

    /// Both, one behind the other.
    pub(crate) fn ask(&mut self, order: Order) -> Result<Answer> {
        self.order(order)?;
        self.answer()
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Self::Process { child, .. } = self {
            // It ends when nothing more comes.
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

/// Serves orders from standard input.
///
/// # Errors
/// What is not an order, or an output that nobody reads.
pub(crate) fn serve() -> Result<()> {
    let mut server = Server::default();
    let mut output = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let order = serde_json::from_str(&line?).context("reading an order")?;
        writeln!(output, "{}", serde_json::to_string(&server.obey(order))?)?;
        output.flush()?;
    }
    Ok(())
}

#[derive(Default)]
struct Server {
    ends: Vec<Option<End>>,
    /// Memory of the last order, which is given back when the next one has come: until then time may be taken.
    kept: Vec<Buffer>,
}

impl Server {
    fn obey(&mut self, order: Order) -> Answer {
        self.kept.clear();
        self.done(order).unwrap_or_else(|error| Answer::Failed(format!("{error:#}")))
    }

    fn end(&mut self, way: usize) -> Result<&mut End> {
        self.ends.get_mut(way).and_then(Option::as_mut).context("the way is not open")
    }

    fn done(&mut self, order: Order) -> Result<Answer> {
        let mut calls = None;
        match order {
            Order::Open { way, what, address } => {
                let end = Single::new(&what, true)?.connect(&address)?;
                self.ends.resize_with(self.ends.len().max(way + 1), || None);
                self.ends[way] = Some(end);
            }
            Order::Echo { way, bytes, count } => echo(self.end(way)?, bytes, count)?,
            Order::Take { way, bytes, count, window, with_stream } => {
                let before = driver_calls();
                self.kept = take(self.end(way)?, bytes, count, window, with_stream)?;
                calls = driver_calls().zip(before).map(|(after, before)| after - before);
            }
            Order::Offer { way, bytes } => {
                let (region, counter) = self.end(way)?.offer(bytes)?;
                return Ok(Answer::Offered { region, counter });
            }
            Order::Await { way, batches } => {
                let (_, counter) = self.end(way)?.region.as_ref().context("nothing is offered")?;
                counter.wait(batches, LONG)?;
            }
            Order::Withdraw { way } => drop(self.end(way)?.region.take()),
            Order::Close { way } => drop(self.ends.get_mut(way).and_then(Option::take)),
        }
        Ok(Answer::Done { driver_calls: calls })
    }
}

fn echo(end: &End, bytes: usize, count: usize) -> Result<()> {
    let mut memory = end.buffer(bytes)?;
    for _ in 0..count {
        (memory, _) =
            end.endpoint.recv(memory, end.remote, None).wait(LONG).map_err(|failed| failed.error)?;
        (memory, _) =
            end.endpoint.send(memory, end.remote, None).wait(LONG).map_err(|failed| failed.error)?;
    }
    Ok(())
}

/// Takes messages. All memory is there before the first one is asked for, and left over.
fn take(end: &End, bytes: usize, count: usize, window: usize, with_stream: bool) -> Result<Vec<Buffer>> {
    let mut ready = (0..window.min(count)).map(|_| end.buffer(bytes)).collect::<Result<Vec<_>>>()?;
    let mut under_way: VecDeque<Owned<Buffer>> = VecDeque::new();
    for _ in 0..count {
        let memory = match ready.pop() {
            Some(memory) => memory,
            None => {
                let first = under_way.pop_front().context("as many as fit")?;
                first.wait(LONG).map_err(|failed| failed.error)?.0
            }
        };
        under_way.push_back(end.endpoint.recv(memory, end.remote, end.after(with_stream)));
    }
    for last in under_way {
        ready.push(last.wait(LONG).map_err(|failed| failed.error)?.0);
    }
    Ok(ready)
}
