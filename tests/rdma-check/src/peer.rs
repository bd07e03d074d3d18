//! A second process of this program, and the connection to it.
#![forbid(unsafe_code)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long the other process may be silent.
const PATIENCE: Duration = Duration::from_secs(150);

/// Messages, one JSON text a line.
pub(crate) struct Link {
    reader: BufReader<UnixStream>,
}

impl Link {
    fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// The connection to the process that started this one: its standard input.
    pub(crate) fn inherited() -> Result<Self> {
        let stream: UnixStream = std::io::stdin().as_fd().try_clone_to_owned()?.into();
        Self::new(stream)
    }

    pub(crate) fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line).context("the other process is gone")
    }

    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        let length = self.reader.read_line(&mut line).context("waiting for the other process")?;
        ensure!(length > 0, "the other process ended");
        serde_json::from_str(&line).with_context(|| format!("the other process says {line:?}"))
    }

    /// Sends, and gives what the other process sends in turn.
    pub(crate) fn exchange<T: Serialize, U: DeserializeOwned>(&mut self, message: &T) -> Result<U> {
        self.send(message)?;
        self.receive()
    }
}

/// The other process. Killed when this is dropped, unless it has ended.
pub(crate) struct Peer {
    child: Child,
    pub(crate) link: Link,
}

impl Peer {
    /// Starts this program again with `peer` and these arguments.
    pub(crate) fn start(arguments: &[String]) -> Result<Self> {
        let (here, there) = UnixStream::pair()?;
        let child = Command::new(std::env::current_exe()?)
            .arg("peer")
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(there)))
            .spawn()
            .context("starting the other process")?;
        Ok(Self { child, link: Link::new(here)? })
    }

    /// Kills it, without a word.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end, which is to be well.
    pub(crate) fn end(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "the other process ended with {status}");
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
