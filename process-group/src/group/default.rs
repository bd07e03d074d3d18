//! The default group: one that a program can have without handing it around. A convenience; no other part of the library knows it.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshreduce_store::clock::Pause;
use meshreduce_store::{JobStore, Launcher, MemoryStore};

use super::ProcessGroup;
use super::builder::{Builder, config_from_environment};
use crate::config::BackendConfig;
use crate::error::Error;

struct Default {
    group: ProcessGroup,
    /// The job's store, if [`init`] has opened it: who hosts it stays until the others are done.
    store: Option<Arc<JobStore>>,
}

/// How long the watching thread may take to be done with a group that has ended: it may be asking the store who is late.
const WATCHER: Duration = Duration::from_secs(2);

/// How long a rank waits for the one that hosts the job's store to close it: without that, a rank that begins anew at once would meet
/// the store that is about to end.
const HOST: Duration = Duration::from_secs(5);

static DEFAULT: Mutex<Option<Default>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Default>> {
    DEFAULT.lock().unwrap_or_else(PoisonError::into_inner)
}

const THERE_IS_ONE: Error =
    Error::Default("there is a default group already: destroy it before another one is made");

/// Makes the default group of the job that a launcher started this process for (`torchrun` or one like it): the store, the rank and
/// the world size are the launcher's ([`Launcher::from_env`]); `MESHREDUCE_BACKEND` says which backend serves which kind of device.
/// The CUDA device is the one whose ordinal is `LOCAL_RANK`, as these launchers mean it; a program that wants another one builds its
/// group itself and says so ([`set_default_group`]).
///
/// # Errors
///
/// [`Error::Default`] if there is a default group; [`Error::Config`] and [`Error::Recording`] for what the environment says, before
/// anybody is met; [`Error::Launch`].
pub fn init() -> Result<ProcessGroup, Error> {
    init_with(|group| group)
}

/// [`init`] with settings of the program's own. What `settings` says counts more than the environment, also about backends. The job's
/// store is waited for as long as its [`Builder::timeout`] says.
///
/// ```no_run
/// use meshreduce_process_group::{BackendConfig, init_with};
/// use std::time::Duration;
///
/// let backend: BackendConfig = "cpu:host,cuda:mesh".parse()?; // or a field of a configuration file: it is Deserialize
/// let group = init_with(|group| group.backend(backend).deadline(Some(Duration::from_secs(10))))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// As [`init`].
pub fn init_with(settings: impl FnOnce(Builder) -> Builder) -> Result<ProcessGroup, Error> {
    if lock().is_some() {
        return Err(THERE_IS_ONE);
    }
    let default = open(&Launcher::from_env()?, config_from_environment()?, settings)?;
    let group = default.group.clone();
    set(default)?;
    Ok(group)
}

/// The group of a launcher's job, over the job's store.
fn open(
    launcher: &Launcher,
    config: BackendConfig,
    settings: impl FnOnce(Builder) -> Builder,
) -> Result<Default, Error> {
    // Before anybody is met: a mistake that all ranks make is told on all of them, and the one that hosts the store does not leave with
    // it while the others look for it.
    let builder = ProcessGroup::builder(Arc::new(MemoryStore::new()), launcher.rank, launcher.world_size);
    let builder = settings(builder.backend(config).cuda_device(launcher.local_rank)).check()?;
    let store = Arc::new(launcher.store(builder.settings().timeout)?);
    let group = builder.over(Arc::clone(&store) as _).build()?;
    Ok(Default { group, store: Some(store) })
}

/// The store, when nobody else has it. The group's watching thread may, for a moment.
fn alone(mut store: Arc<JobStore>) -> Option<JobStore> {
    let mut pause = Pause::new(WATCHER);
    loop {
        store = match Arc::try_unwrap(store) {
            Ok(store) => return Some(store),
            Err(store) => store,
        };
        if !pause.again() {
            return None;
        }
    }
}

/// Makes `group` the default one.
///
/// # Errors
///
/// [`Error::Default`] if there is one.
pub fn set_default_group(group: &ProcessGroup) -> Result<(), Error> {
    set(Default { group: group.clone(), store: None })
}

fn set(new: Default) -> Result<(), Error> {
    match &mut *lock() {
        Some(_) => Err(THERE_IS_ONE),
        place => {
            *place = Some(new);
            Ok(())
        }
    }
}

/// The default group.
///
/// # Errors
///
/// [`Error::Default`] if there is none.
pub fn default_group() -> Result<ProcessGroup, Error> {
    let none = Error::Default("there is no default group: make one with init or set_default_group");
    lock().as_ref().map(|default| default.group.clone()).ok_or(none)
}

/// Shuts the default group down, and waits for the others to be done with the store if this rank hosts it; elsewhere, up to 5 s, for the
/// one that hosts it to come to that. There is none then, and all ranks can [`init`] anew.
///
/// Drop all other handles, parts and work objects first: one that is left keeps the store, and then nobody waits for the others (the log
/// says so).
///
/// # Errors
///
/// [`Error::Default`] if there is none; those of [`ProcessGroup::shutdown`].
pub fn destroy_default_group() -> Result<(), Error> {
    let Some(Default { group, store }) = lock().take() else {
        return Err(Error::Default("there is no default group to destroy"));
    };
    let ended = group.shutdown();
    let timeout = group.shared.settings.timeout;
    drop(group);
    if let Some(store) = store {
        match alone(store) {
            Some(store) => {
                if ended.is_ok() {
                    store.wait_for_the_host_to_close(HOST);
                }
                store.close(timeout);
            }
            None => tracing::warn!(
                "the default group is destroyed, but a handle, a part or a work object of it is left: nobody waits for the ranks \
                 that still use the job's store"
            ),
        }
    }
    ended
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use meshreduce_store::{JobError, StoreError};

    use super::*;

    #[test]
    fn the_store_of_the_job_is_waited_for_as_long_as_the_settings_say() {
        // Nobody hosts a store there.
        let taken = TcpListener::bind("127.71.4.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        drop(taken);
        let launcher = Launcher {
            rank: 1,
            world_size: 2,
            local_rank: 1,
            address: "127.71.4.1".to_owned(),
            port,
            agent_store: false,
            run_id: None,
            restart_count: 0,
        };
        let settings = |group: Builder| group.timeout(Duration::from_millis(300));
        let Err(error) = open(&launcher, BackendConfig::Undefined, settings) else {
            panic!("there is a store")
        };
        let Error::Launch(cause) = &error else { panic!("{error}") };
        let cause = cause.downcast_ref::<JobError>();
        let Some(JobError::Store(StoreError::Unreachable { waited, .. })) = cause else { panic!("{error}") };
        assert!(*waited <= Duration::from_millis(300), "{error}");
    }
}
