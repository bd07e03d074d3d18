//! A contestant at work: its ranks' processes and the pipes to them.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};

use crate::protocol::{Command, Times};

/// How long ranks may take to begin, and a command to end.
const LIMIT: Duration = Duration::from_secs(60);
/// How long ranks may take to end when they are told to.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ranks that wait for commands. Dropping it ends them.
pub(crate) struct Job {
    children: Vec<Child>,
    commands: Vec<File>,
    replies: Receiver<String>,
    /// Holds the pipes.
    _folder: tempfile::TempDir,
}

impl Job {
    /// Makes the pipes in a folder, has `start` start the processes there, and waits until they are ready.
    pub(crate) fn start(processes: usize, start: impl FnOnce(&Path) -> Result<Vec<Child>>) -> Result<Self> {
        let folder = tempfile::tempdir().context("making a folder for pipes")?;
        let pipe = |name: String| {
            let path = folder.path().join(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .with_context(|| format!("making the pipe {}", path.display()))?;
            // Opened for both, it waits for nobody.
            File::options().read(true).write(true).open(&path).context("opening a pipe")
        };
        let commands = (0..processes).map(|rank| pipe(rank.to_string())).collect::<Result<Vec<_>>>()?;
        let reader = BufReader::new(pipe("replies".to_owned())?);
        let (sender, replies) = channel();
        // Ends with the program: nothing else ends a read of a pipe that this process could write too.
        thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let children = start(folder.path())?;
        let mut job = Self { children, commands, replies, _folder: folder };
        let ready = job.reply()?;
        ensure!(ready == "ready", "{}", ready.strip_prefix("error ").unwrap_or(&ready));
        Ok(job)
    }

    /// Has the command made, and gives the times.
    pub(crate) fn measure(&mut self, command: Command) -> Result<Times> {
        let line = format!("{command}\n");
        for pipe in &mut self.commands {
            pipe.write_all(line.as_bytes()).context("writing a command")?;
        }
        self.reply()?.parse()
    }

    fn reply(&mut self) -> Result<String> {
        let start = Instant::now();
        loop {
            match self.replies.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Disconnected) => bail!("its pipe is broken"),
                Err(RecvTimeoutError::Timeout) => {}
            }
            for child in &mut self.children {
                if let Some(status) = child.try_wait().context("looking for a process")? {
                    // It may have said why just before.
                    let last = self.replies.recv_timeout(Duration::from_millis(100));
                    bail!("a process ended with {status}: {}", last.as_deref().unwrap_or("it said nothing"));
                }
            }
            ensure!(start.elapsed() < LIMIT, "it has said nothing for {} s", LIMIT.as_secs());
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for pipe in &mut self.commands {
            let _ = pipe.write_all(b"quit\n");
        }
        let start = Instant::now();
        for child in &mut self.children {
            let mut was_told = false;
            while matches!(child.try_wait(), Ok(None)) {
                // mpirun ends its ranks when it is asked to, but not when it is killed.
                if start.elapsed() > PATIENCE && !was_told {
                    was_told = true;
                    let _ = kill_process(Pid::from_child(child), Signal::TERM);
                }
                if start.elapsed() > 2 * PATIENCE {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
