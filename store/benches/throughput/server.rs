//! Processes that host a store to be measured.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use meshreduce_store::TcpStore;

/// torch's server with libuv, its default; prints its address, and ends with its input.
const TORCH: &str = "\
import sys, torch.distributed
store = torch.distributed.TCPStore('127.0.0.1', 0, None, True, wait_for_workers=False, use_libuv=True)
print(f'127.0.0.1:{store.port}', flush=True)
sys.stdin.read()";

/// A process that is ended, at the latest, when this is dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    lines: io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self, Box<dyn Error>> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        Ok(Self { child, lines })
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> Result<String, Box<dyn Error>> {
        Ok(self.lines.next().ok_or("it has ended")??)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Each ends with its standard input, and one that does not is not waited for.
        drop(self.child.stdin.take());
        let end = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that hosts a store.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) address: String,
    process: Process,
}

impl Server {
    fn start(name: String, command: &mut Command) -> Result<Self, Box<dyn Error>> {
        let mut process = Process::start(command)?;
        let address = process.line()?;
        Ok(Self { name, address, process })
    }

    /// This program, as [`serve`].
    pub(crate) fn own() -> Result<Self, Box<dyn Error>> {
        Self::start("meshreduce".to_owned(), Command::new(std::env::current_exe()?).arg("--serve"))
    }

    /// Processor time that it has used, by all threads that it has now: unlike what a clock says, others on the machine
    /// hardly change it.
    pub(crate) fn cpu(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.process.child.id()));
        let nanoseconds = threads.into_iter().flatten().flatten().filter_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    pub(crate) fn torch(python: &str) -> Result<Self, Box<dyn Error>> {
        let version = "import torch.distributed, torch; torch.distributed.TCPStore; print(torch.__version__)";
        let output = Command::new(python).args(["-W", "ignore", "-c", version]).output();
        let output = output.map_err(|error| format!("{python} does not start: {error}"))?;
        if !output.status.success() {
            let problem = String::from_utf8_lossy(&output.stderr);
            let problem = problem.lines().last().unwrap_or_default();
            return Err(format!("{python} has no torch with a TCPStore: {problem}").into());
        }
        let name = format!("torch {}", String::from_utf8_lossy(&output.stdout).trim());
        Self::start(name, Command::new(python).args(["-W", "ignore", "-c", TORCH]))
    }
}

/// Hosts a store until the input ends.
pub(crate) fn serve() -> Result<(), Box<dyn Error>> {
    let store = TcpStore::host("127.0.0.1:0")?;
    println!("{}", store.local_addr());
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    store.close(Duration::ZERO);
    Ok(())
}
