//! What launchers of many processes tell each of them through the environment.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::net::ToSocketAddrs;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use crate::config::{Config, ConfigError, Unset};
use crate::store::{Store, StoreError, TcpStore};

/// This process's place in its job, as `torchrun` and others like it put it into the environment.
///
/// ```no_run
/// use meshreduce::{Launcher, rendezvous};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let launcher = Launcher::from_env()?;
/// let store = launcher.store(Duration::from_secs(60))?; // rank 0 hosts it, the others connect
/// let outcome =
///     rendezvous(&store, launcher.rank, launcher.world_size, launcher.local_rank, &launcher.config()?)?;
/// // ... all-reduces, then `Communicator::close` ...
/// # drop(outcome);
/// store.close(Duration::from_secs(60)); // rank 0 waits for the others
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launcher {
    /// This process's rank: `RANK`.
    pub rank: usize,
    /// Ranks in the job: `WORLD_SIZE`.
    pub world_size: usize,
    /// This process's number among those on its host, taken for the CUDA ordinal of its device: `LOCAL_RANK`.
    pub local_rank: u32,
    /// Name or address of rank 0's host: `MASTER_ADDR`.
    pub address: String,
    /// A port there on which rank 0 may listen: `MASTER_PORT`. Where the launcher itself listens on that port (an
    /// elastic agent that hosts a store of its own does), give all ranks another one.
    pub port: u16,
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

impl Launcher {
    /// Reads `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`.
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
        Ok(Self { rank, world_size, local_rank, address, port })
    }

    /// The default configuration as the environment changes it, for a program that was started to communicate: unlike
    /// [`Config::from_env`] it is enabled where `ENABLE_INTRA_NODE_COMM` is not set, and disabled where that says no (0,
    /// false, no, n, an empty value). `TEST_INTRA_NODE_COMM` is read as there.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NotAYesOrNo`] for a word that is neither.
    pub fn config(&self) -> Result<Config, ConfigError> {
        Config::from_process(Unset::Enabled)
    }

    /// The store of this job: rank 0 hosts it at [`Launcher::address`] and waits for the others, which connect.
    ///
    /// Rank 0 must stay until the others are done with it, see [`TcpStore::close`].
    ///
    /// # Errors
    ///
    /// On rank 0 [`StoreError::NotHosted`] if the port is taken, [`StoreError::Timeout`] with a key `launcher/<rank>`
    /// for each rank that did not come within `timeout`; on the others [`StoreError::Unreachable`].
    pub fn store(&self, timeout: Duration) -> Result<TcpStore, StoreError> {
        let place = match self.address.contains(':') {
            true => format!("[{}]:{}", self.address, self.port),
            false => format!("{}:{}", self.address, self.port),
        };
        let resolve = || (self.address.as_str(), self.port).to_socket_addrs().map(Iterator::collect);
        let key = |rank: usize| format!("launcher/{rank}");
        if self.rank == 0 {
            let store = TcpStore::host_at(&place, resolve())?;
            let others: Vec<String> = (1..self.world_size).map(key).collect();
            let others: Vec<&str> = others.iter().map(String::as_str).collect();
            store.wait(&others, timeout)?;
            Ok(store)
        } else {
            let store = TcpStore::connect_to(&place, &resolve, timeout)?;
            store.set(&key(self.rank), b"")?;
            Ok(store)
        }
    }
}

fn number<T: FromStr<Err: Display>>(variable: &'static str, value: String) -> Result<T, LauncherError> {
    value.trim().parse().map_err(|problem: T::Err| LauncherError::NotANumber {
        variable,
        problem: problem.to_string(),
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 5] = [
        ("RANK", "3"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "localhost"),
        ("MASTER_PORT", "29500"),
    ];

    /// The good environment, with `variable` as `value`.
    fn with(variable: &str, value: Option<&str>) -> Result<Launcher, LauncherError> {
        Launcher::from_variables(|name| {
            let good = GOOD.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            (if name == variable { value } else { good }).map(str::to_owned)
        })
    }

    #[test]
    fn every_variable_has_its_field() {
        let launcher = with("", None).unwrap();
        let expected =
            Launcher { rank: 3, world_size: 8, local_rank: 1, address: "localhost".into(), port: 29500 };
        assert_eq!(launcher, expected);
        assert_eq!(with("MASTER_ADDR", Some("[::1]")).unwrap().address, "::1");
        assert_eq!(with("RANK", Some(" 2\n")).unwrap().rank, 2);
    }

    #[test]
    fn a_missing_variable_is_named() {
        for (variable, _) in GOOD {
            assert_eq!(with(variable, None).unwrap_err(), LauncherError::Missing { variable });
        }
    }

    #[test]
    fn what_is_no_number_is_shown() {
        for (variable, bad) in [
            ("RANK", "-1"),
            ("RANK", ""),
            ("WORLD_SIZE", "eight"),
            ("LOCAL_RANK", "4294967296"),
            ("MASTER_PORT", "0"),
            ("MASTER_PORT", "65536"),
            ("MASTER_PORT", "29500x"),
        ] {
            match with(variable, Some(bad)).unwrap_err() {
                LauncherError::NotANumber { variable: named, value, .. } => {
                    assert_eq!((named, value.as_str()), (variable, bad));
                }
                other => panic!("{variable}={bad}: {other:?}"),
            }
        }
    }

    #[test]
    fn ranks_are_below_the_world_size() {
        let error =
            |variable, value, world_size| LauncherError::NotBelowWorldSize { variable, value, world_size };
        assert_eq!(with("RANK", Some("8")).unwrap_err(), error("RANK", 8, 8));
        assert_eq!(with("WORLD_SIZE", Some("0")).unwrap_err(), error("RANK", 3, 0));
        assert_eq!(with("LOCAL_RANK", Some("9")).unwrap_err(), error("LOCAL_RANK", 9, 8));
    }

    #[test]
    fn an_address_that_names_nothing_is_refused() {
        for bad in ["", "  ", "[]", "\u{fffd}"] {
            let error = with("MASTER_ADDR", Some(bad)).unwrap_err();
            assert_eq!(error, LauncherError::NotAName { variable: "MASTER_ADDR", value: bad.into() });
        }
    }

    fn launcher(rank: usize, world_size: usize, address: &str, port: u16) -> Launcher {
        Launcher { rank, world_size, local_rank: rank as u32, address: address.into(), port }
    }

    /// A port that was free a moment ago, on an address that nothing else uses.
    fn free(address: &str) -> u16 {
        std::net::TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port()
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn rank_0_hosts_and_the_others_connect_whoever_comes_first() {
        let address = "127.71.3.1";
        let port = free(address);
        std::thread::scope(|scope| {
            for rank in [2, 1, 0] {
                scope.spawn(move || {
                    let store = launcher(rank, 3, address, port).store(LONG).unwrap();
                    store.add("sum", rank as i64 + 1).unwrap();
                    store.set(&rank.to_string(), b"").unwrap();
                    store.wait(&["0", "1", "2"], LONG).unwrap();
                    assert_eq!(store.add("sum", 0).unwrap(), 6);
                    assert_eq!(store.close(LONG), 0);
                });
                std::thread::sleep(Duration::from_millis(20));
            }
        });
    }

    #[test]
    fn rank_0_names_the_ranks_that_do_not_come() {
        let address = "127.71.3.2";
        match launcher(0, 3, address, free(address)).store(Duration::from_millis(20)).map(|_| ()) {
            Err(StoreError::Timeout { keys, .. }) => assert_eq!(keys, ["launcher/1", "launcher/2"]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_rank_without_rank_0_says_where_it_looked() {
        let address = "127.71.3.3";
        let port = free(address);
        let timeout = Duration::from_millis(50);
        let start = std::time::Instant::now();
        match launcher(1, 2, address, port).store(timeout).map(|_| ()) {
            Err(StoreError::Unreachable { place, .. }) => assert_eq!(place, format!("{address}:{port}")),
            other => panic!("{other:?}"),
        }
        assert!(start.elapsed() >= timeout);
    }
}
