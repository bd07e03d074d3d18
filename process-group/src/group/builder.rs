//! How a group is made.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use meshreduce_store::Store;

use super::ProcessGroup;
use super::family::Family;
use super::shared::{Settings, Shared};
use crate::backend::{GroupInfo, Registry};
use crate::config::{BackendConfig, ConfigError};
use crate::error::Error;
use crate::flight_recorder::{MOST_ENTRIES, Settings as Recording, SettingsError};

/// What ranks compare of a call has 20 bits for a root and one more value for none.
const MOST_RANKS: usize = (1 << 20) - 1;

/// A group of all ranks that is about to be made.
///
/// ```
/// use meshreduce_process_group::{ProcessGroup, ReduceOp};
/// use meshreduce_process_group::store::MemoryStore;
/// use std::sync::Arc;
///
/// let group = ProcessGroup::builder(Arc::new(MemoryStore::new()), 0, 1).backend("cpu:host".parse()?).build()?;
/// let mut data = [1.0_f32, 2.0];
/// group.all_reduce(&mut data, ReduceOp::Sum)?;
/// assert_eq!(data, [1.0, 2.0]); // a world of one
/// group.shutdown()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Builder {
    store: Arc<dyn Store>,
    rank: usize,
    world_size: usize,
    name: Arc<str>,
    config: BackendConfig,
    registry: Registry,
    settings: Settings,
    recorded_calls: Option<usize>,
    dump_to: Option<Option<PathBuf>>,
}

impl ProcessGroup {
    /// A group of `world_size` ranks, of which this process is `rank`, that meet over `store`. Groups that exist at once over
    /// one store need a [`meshreduce_store::PrefixStore`] each.
    pub fn builder(store: Arc<dyn Store>, rank: usize, world_size: usize) -> Builder {
        Builder {
            store,
            rank,
            world_size,
            name: "world".into(),
            config: BackendConfig::Undefined,
            registry: Registry::default(),
            settings: Settings::default(),
            recorded_calls: None,
            dump_to: None,
        }
    }
}

impl Builder {
    /// What the group is called in errors, logs and the flight recorder. The default is `world`.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Which backend serves which kind of device. The default is undefined: every kind's default.
    pub fn backend(mut self, config: BackendConfig) -> Self {
        self.config = config;
        self
    }

    /// The backends there are. The default is [`Registry::default`].
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = registry;
        self
    }

    /// The CUDA ordinal of the device of this rank's CUDA tensors. It is never guessed: without it there are none.
    pub fn cuda_device(mut self, ordinal: u32) -> Self {
        self.settings.cuda_device = Some(ordinal);
        self
    }

    /// How long each step of making a backend, and of the group's end, waits for the other ranks, and [`crate::init_with`] for the job's
    /// store. The default is 60 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// How long a call may take; `None`: for ever. The default is 60 s.
    pub fn deadline(mut self, deadline: Option<Duration>) -> Self {
        self.settings.deadline = deadline;
        self
    }

    /// Whether ranks compare, through the store, what each collective is before any of them makes it: those that call
    /// different things get [`Error::Mismatch`]. For finding mistakes: it costs two round trips to the store a call.
    pub fn check_calls(mut self, check: bool) -> Self {
        self.settings.check_calls = check;
        self
    }

    /// Whether calls that only the backend behind `mesh` could serve are refused.
    pub fn forbid_fallback(mut self, forbid: bool) -> Self {
        self.settings.forbid_fallback = forbid;
        self
    }

    /// How many calls the flight recorder keeps, [`crate::flight_recorder::MOST_ENTRIES`] at most. The default is what
    /// `TORCH_FR_BUFFER_SIZE` says, or 2000.
    pub fn recorded_calls(mut self, calls: usize) -> Self {
        self.recorded_calls = Some(calls);
        self
    }

    /// Where the flight recorder is written to when a call is late or the group is aborted: the file whose name is this and the
    /// rank; `None`: nowhere. The default is what torch's variables say, see [`crate::flight_recorder::Settings`].
    pub fn dump_to(mut self, prefix: Option<PathBuf>) -> Self {
        self.dump_to = Some(prefix);
        self
    }

    /// Whether [`Builder::build`] would find a mistake.
    pub(super) fn check(self) -> Result<Self, Error> {
        let Self { rank, world_size, .. } = self;
        if rank >= world_size {
            return Err(Error::InvalidRank { rank, world_size });
        }
        if world_size > MOST_RANKS {
            return Err(Error::TooManyRanks { world_size, most: MOST_RANKS });
        }
        self.config.resolve(&self.registry)?;
        Recording::from_env()?;
        if let Some(calls) = self.recorded_calls.filter(|calls| *calls > MOST_ENTRIES) {
            return Err(Error::Recording(SettingsError::TooMany { calls }));
        }
        Ok(self)
    }

    /// What it was given so far.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The same over another store.
    pub(super) fn over(self, store: Arc<dyn Store>) -> Self {
        Self { store, ..self }
    }

    /// Makes the group. It meets nobody: a backend is made with its first call, or by [`ProcessGroup::connect`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRank`]; [`Error::TooManyRanks`] beyond 1,048,575; [`Error::Config`]; [`Error::Recording`].
    pub fn build(self) -> Result<ProcessGroup, Error> {
        let Self { store, rank, world_size, name, config, registry, settings, recorded_calls, dump_to } =
            self.check()?;
        let resolved = config.resolve(&registry)?;
        let mut recording = Recording::from_env()?;
        if let Some(calls) = recorded_calls {
            recording.entries = calls;
        }
        if let Some(prefix) = dump_to {
            recording.dump_on_timeout = prefix.is_some();
            recording.prefix = prefix.unwrap_or_default();
        }
        let family = Family::new(rank, registry, recording, &store);
        let ranks = (0..world_size).collect();
        let info = Arc::new(GroupInfo { name, rank, world_size, ranks });
        Ok(ProcessGroup::of(Shared::new(
            (&family, Weak::new()),
            info,
            "default_pg",
            store,
            resolved,
            settings,
        )))
    }
}

impl From<meshreduce_store::LauncherError> for Error {
    fn from(error: meshreduce_store::LauncherError) -> Self {
        Error::Launch(crate::Cause::new(error))
    }
}

impl From<meshreduce_store::JobError> for Error {
    fn from(error: meshreduce_store::JobError) -> Self {
        Error::Launch(crate::Cause::new(error))
    }
}

/// The environment variable with the configuration of [`super::init`]'s group.
pub(super) const BACKEND: &str = "MESHREDUCE_BACKEND";

pub(super) fn config_from_environment() -> Result<BackendConfig, ConfigError> {
    std::env::var_os(BACKEND).map_or(Ok(BackendConfig::Undefined), |text| text.to_string_lossy().parse())
}
