//! What launchers of many processes tell each of them through the environment.

mod job;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::net::ToSocketAddrs;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

pub use job::{Job, JobError, JobStore};

/// This process's place in its job, as `torchrun` and others like it put it into the environment.
///
/// ```no_run
/// use meshreduce_store::{Launcher, Store};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let launcher = Launcher::from_env()?;
/// let store = launcher.store(Duration::from_secs(60))?;
/// store.set(&format!("hello/{}", launcher.rank), b"world")?;
/// // ... a rendezvous over the store, and what follows from it ...
/// store.close(Duration::from_secs(60)); // who hosts it waits for the others
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launcher {
    /// This process's rank: `RANK`.
    pub rank: usize,
    /// Ranks in the job: `WORLD_SIZE`.
    pub world_size: usize,
    /// This process's number among those on its host, taken for the CUDA ordinal of its device: `LOCAL_RANK`. (A launcher
    /// that shows every rank one device only gives all of them 0.)
    pub local_rank: u32,
    /// Name or address of the host of the store: `MASTER_ADDR`.
    pub address: String,
    /// The store's port there: `MASTER_PORT`.
    pub port: u16,
    /// Whether the launcher's agent hosts the store, so that every rank is a client, rank 0 too:
    /// `TORCHELASTIC_USE_AGENT_STORE`. If not, rank 0 hosts it.
    pub agent_store: bool,
    /// What tells this job from others: `TORCHELASTIC_RUN_ID`. `none`, which is what `torchrun` says where its user has said
    /// nothing, is no id.
    pub run_id: Option<String>,
    /// How often the launcher has started all ranks anew: `TORCHELASTIC_RESTART_COUNT`; 0 where it is not set.
    pub restart_count: u64,
}

/// What is wrong with a launcher's environment variables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LauncherError {
    /// A variable is not set.
    #[error("{variable} is not set: was this process started by a launcher?")]
    Missing {
        /// The variable.
        variable: &'static str,
    },
    /// A variable is no number of the range that it needs.
    #[error("{variable}={value:?} is no number that can be: {problem}")]
    NotANumber {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A variable that must name something is empty, or is no text.
    #[error("{variable}={value:?} names no host")]
    NotAName {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// A variable that says yes or no says something else.
    #[error("{variable}={value:?} is neither True nor False")]
    NotAYesOrNo {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// A rank that is not below the world size.
    #[error("{variable}={value}, but WORLD_SIZE={world_size}: ranks count from 0")]
    NotBelowWorldSize {
        /// `RANK` or `LOCAL_RANK`.
        variable: &'static str,
        /// Its value.
        value: usize,
        /// The world size.
        world_size: usize,
    },
}

const AGENT_STORE: &str = "TORCHELASTIC_USE_AGENT_STORE";
const RESTART_COUNT: &str = "TORCHELASTIC_RESTART_COUNT";

impl Launcher {
    /// Reads `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`, and, where they are set,
    /// `TORCHELASTIC_USE_AGENT_STORE`, `TORCHELASTIC_RUN_ID` and `TORCHELASTIC_RESTART_COUNT`.
    ///
    /// # Errors
    ///
    /// [`LauncherError`], with the variable and its value.
    pub fn from_env() -> Result<Self, LauncherError> {
        Self::from_variables(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, LauncherError> {
        let text = |variable| get(variable).ok_or(LauncherError::Missing { variable });
        let rank: usize = number("RANK", text("RANK")?)?;
        let world_size: usize = number("WORLD_SIZE", text("WORLD_SIZE")?)?;
        let local_rank: u32 = number("LOCAL_RANK", text("LOCAL_RANK")?)?;
        for (variable, value) in [("RANK", rank), ("LOCAL_RANK", local_rank as usize)] {
            if value >= world_size {
                return Err(LauncherError::NotBelowWorldSize { variable, value, world_size });
            }
        }
        let value = text("MASTER_ADDR")?;
        // An IPv6 address may stand in brackets, as before a port.
        let bare = value.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = bare.unwrap_or(value.trim()).to_owned();
        // The replacement character is what is left of bytes that are no text.
        if address.is_empty() || address.contains(char::REPLACEMENT_CHARACTER) {
            return Err(LauncherError::NotAName { variable: "MASTER_ADDR", value });
        }
        let port = number::<NonZeroU16>("MASTER_PORT", text("MASTER_PORT")?)?.get();
        let agent_store = match get(AGENT_STORE).unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "true" | "1" => true,
            "" | "false" | "0" => false,
            _ => {
                let value = text(AGENT_STORE)?;
                return Err(LauncherError::NotAYesOrNo { variable: AGENT_STORE, value });
            }
        };
        let run_id = get("TORCHELASTIC_RUN_ID").filter(|id| !id.is_empty() && id != "none");
        let restart_count =
            get(RESTART_COUNT).map(|value| number(RESTART_COUNT, value)).transpose()?.unwrap_or(0);
        Ok(Self { rank, world_size, local_rank, address, port, agent_store, run_id, restart_count })
    }

    /// The job's name, if its launcher gave it an id: for stores that several jobs share, a folder for instance, as the
    /// prefix of a [`crate::PrefixStore`]. It is another one after every restart.
    pub fn job_name(&self) -> Option<String> {
        self.run_id.as_ref().map(|id| format!("{id}/{}", self.restart_count))
    }

    /// The store of this job: the agent's if it has one, else one that rank 0 hosts at [`Launcher::address`] and the others
    /// connect to. Rank 0 does not wait for the others here; it must stay until they are done with the store, see
    /// [`JobStore::close`].
    ///
    /// # Errors
    ///
    /// [`JobError`]: no store there within `timeout`, or the port is taken on rank 0; the store of another job; another
    /// process with this rank.
    pub fn store(&self, timeout: Duration) -> Result<JobStore, JobError> {
        JobStore::open(self, timeout)
    }

    /// The store's address as text.
    fn place(&self) -> String {
        match self.address.contains(':') {
            true => format!("[{}]:{}", self.address, self.port),
            false => format!("{}:{}", self.address, self.port),
        }
    }

    fn resolve(&self) -> std::io::Result<Vec<std::net::SocketAddr>> {
        (self.address.as_str(), self.port).to_socket_addrs().map(Iterator::collect)
    }
}

/// With blanks around it, or a sign, as Python's `int()` takes it, by which torch's ranks of the job read theirs.
fn number<T: FromStr<Err: Display>>(variable: &'static str, value: String) -> Result<T, LauncherError> {
    value.trim().parse().map_err(|problem: T::Err| LauncherError::NotANumber {
        variable,
        problem: problem.to_string(),
        value,
    })
}
