//! A rendezvous: each of many clients sets its key, waits for those of all, and gets them.

use std::error::Error;
use std::io::Write as _;
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use meshreduce_store::{Store, StoreError, TcpStore};

use crate::LONG;
use crate::server::Process;

/// How the keys of all are had.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// By one question.
    Together,
    /// By a question for each.
    OneByOne,
}

impl Way {
    pub(crate) const ALL: [Self; 2] = [Self::Together, Self::OneByOne];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Together => "multi_get",
            Self::OneByOne => "a get for each",
        }
    }
}

/// Who meets: connected clients of one server.
pub(crate) enum Party<'a> {
    /// Of this crate, a thread each.
    Own(&'a [TcpStore]),
    /// torch's, in a Python process, a thread each.
    Torch(Box<Process>),
}

impl Party<'_> {
    pub(crate) fn torch(python: &str, address: &str, clients: usize) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(python);
        command.args(["-W", "ignore", "-c", include_str!("clients.py"), address]);
        let mut process = Process::start(command.arg(clients.to_string()))?;
        match &*process.line()? {
            "connected" => Ok(Self::Torch(Box::new(process))),
            other => Err(format!("torch's clients say {other:?}").into()),
        }
    }

    /// Meets under keys that begin with `name`, which nobody has used; from the moment when all are ready until the last one
    /// has what it wants.
    pub(crate) fn meet(&mut self, name: &str, way: Way) -> Result<Duration, Box<dyn Error>> {
        match self {
            Self::Own(stores) => Ok(meet(stores, name, way)?),
            Self::Torch(process) => {
                let stdin = process.child.stdin.as_mut().ok_or("no input")?;
                writeln!(stdin, "{name} {way:?}")?;
                Ok(Duration::from_secs_f64(process.line()?.parse()?))
            }
        }
    }
}

fn meet(stores: &[TcpStore], name: &str, way: Way) -> Result<Duration, StoreError> {
    let keys: Vec<String> = (0..stores.len()).map(|client| format!("{name}/{client}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let (start, end) = (Barrier::new(stores.len() + 1), Barrier::new(stores.len() + 1));
    std::thread::scope(|scope| {
        let threads: Vec<_> = stores
            .iter()
            .zip(&keys)
            .map(|(store, own)| {
                let (keys, start, end) = (&keys, &start, &end);
                scope.spawn(move || {
                    start.wait();
                    let result = (|| {
                        store.set(own, &[7; 64])?;
                        store.wait(keys, LONG)?;
                        match way {
                            Way::Together => store.multi_get(keys, LONG).map(drop),
                            Way::OneByOne => keys.iter().try_for_each(|key| store.get(key, LONG).map(drop)),
                        }
                    })();
                    end.wait();
                    result
                })
            })
            .collect();
        start.wait();
        let begin = Instant::now();
        end.wait();
        let took = begin.elapsed();
        // A thread that panicked would not have come to the end.
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))?;
        Ok(took)
    })
}
