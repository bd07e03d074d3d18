//! The kinds of channels that a process has.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use meshreduce_device::Device;
use serde::{Deserialize, Serialize};

use crate::basic::Basic;
use crate::channel::{ChannelContext, ChannelFactory, Environment};
use crate::choice::{Offered, Offers};
use crate::error::Error;
use crate::gdr::Gdr;
use crate::ipc::Ipc;
use crate::xth::Xth;

/// The environment variable with an allow list: `ipc,basic` allows these two and prefers `ipc`.
pub const ALLOWED: &str = "MESHREDUCE_CHANNELS";

/// What stands before the names of TensorPipe's channels: `cuda_ipc`.
const TENSORPIPE: &str = "cuda_";

/// Kinds of channels by name and priority, and which of them are allowed.
///
/// [`Registry::default`] has all that this crate has; those of other crates are added by [`Registry::register`].
#[derive(Clone, Debug)]
pub struct Registry {
    /// By descending priority.
    factories: Vec<Arc<dyn ChannelFactory>>,
    allowed: Option<Vec<String>>,
}

/// Why a kind of channel cannot be registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// There is one of that name.
    #[error("there is a channel {name} already")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// There is one of that priority.
    #[error("channel {name} has priority {priority}, as {other} has")]
    DuplicatePriority {
        /// The name of the new one.
        name: String,
        /// The priority.
        priority: u32,
        /// Who has it.
        other: String,
    },
    /// The name is not of lower case letters, digits and `_`, or begins as TensorPipe's do.
    #[error(
        "{name:?} cannot be the name of a channel: lower case letters, digits and _, not beginning with {TENSORPIPE}"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// An allow list allows nothing.
    #[error("{list:?} allows no channel: names are separated by commas")]
    EmptyList {
        /// The list.
        list: String,
    },
    /// An allow list has a name that no kind has.
    #[error("{text:?} is not a channel (in the allow list {list:?}); there are {}, separated by commas", known.join(", "))]
    UnknownName {
        /// The word.
        text: String,
        /// The list.
        list: String,
        /// The names that there are.
        known: Vec<String>,
    },
}

impl Default for Registry {
    /// `basic` and whatever else this crate has.
    fn default() -> Self {
        let mut factories: Vec<Arc<dyn ChannelFactory>> = vec![
            Arc::new(Xth),
            Arc::new(Ipc::default()),
            Arc::new(Gdr::default()),
            Arc::new(Basic::default()),
        ];
        factories.sort_by_key(|factory| std::cmp::Reverse(factory.priority()));
        Self { factories, allowed: None }
    }
}

impl Registry {
    /// One without kinds.
    pub fn empty() -> Self {
        Self { factories: Vec::new(), allowed: None }
    }

    /// Adds a kind.
    ///
    /// # Errors
    ///
    /// [`RegistryError`]: name and priority are its own, also if it is not viable here.
    pub fn register(&mut self, factory: impl ChannelFactory + 'static) -> Result<(), RegistryError> {
        let (name, priority) = (factory.name().to_owned(), factory.priority());
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || !name.chars().all(is_plain) || name.starts_with(TENSORPIPE) {
            return Err(RegistryError::BadName { name });
        }
        for other in &self.factories {
            if other.name() == name {
                return Err(RegistryError::DuplicateName { name });
            }
            if other.priority() == priority {
                let other = other.name().to_owned();
                return Err(RegistryError::DuplicatePriority { name, priority, other });
            }
        }
        let at = self.factories.partition_point(|other| other.priority() > priority);
        self.factories.insert(at, Arc::new(factory));
        Ok(())
    }

    /// Takes a kind out, to register another one in its place; whether it was there.
    pub fn unregister(&mut self, name: &str) -> bool {
        let before = self.factories.len();
        self.factories.retain(|factory| factory.name() != name);
        self.factories.len() < before
    }

    /// The names, by descending priority.
    pub fn names(&self) -> Vec<&str> {
        self.factories.iter().map(|factory| factory.name()).collect()
    }

    /// Allows the kinds of `list` alone, at least one, and prefers them in its order: `ipc,basic`. TensorPipe's names (`cuda_ipc`) are good
    /// too. Otherwise the environment variable [`ALLOWED`] tells, and else all are allowed, by descending priority.
    ///
    /// # Errors
    ///
    /// [`RegistryError::UnknownName`], [`RegistryError::EmptyList`].
    pub fn allow(&mut self, list: &str) -> Result<(), RegistryError> {
        self.allowed = Some(self.parse(list)?);
        Ok(())
    }

    fn parse(&self, list: &str) -> Result<Vec<String>, RegistryError> {
        let mut names: Vec<String> = Vec::new();
        for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            let is = |factory: &&Arc<dyn ChannelFactory>| {
                let name = factory.name();
                name == text || text.strip_prefix(TENSORPIPE) == Some(name)
            };
            let Some(factory) = self.factories.iter().find(is) else {
                let known = self.names().into_iter().map(str::to_owned).collect();
                return Err(RegistryError::UnknownName {
                    text: text.to_owned(),
                    list: list.to_owned(),
                    known,
                });
            };
            if !names.iter().any(|name| name == factory.name()) {
                names.push(factory.name().to_owned());
            }
        }
        if names.is_empty() {
            return Err(RegistryError::EmptyList { list: list.to_owned() });
        }
        Ok(names)
    }

    /// The kinds that are allowed, favourites first, and those that are not.
    fn sorted(&self) -> Result<(Factories<'_>, Factories<'_>), RegistryError> {
        let given = std::env::var(ALLOWED).ok().filter(|list| !list.trim().is_empty());
        let allowed = match (&self.allowed, given) {
            (Some(allowed), _) => allowed.clone(),
            (None, Some(list)) => self.parse(&list)?,
            (None, None) => return Ok((self.factories.iter().collect(), Vec::new())),
        };
        let place =
            |factory: &Arc<dyn ChannelFactory>| allowed.iter().position(|name| name == factory.name());
        let (mut yes, no): (Vec<_>, Vec<_>) =
            self.factories.iter().partition(|factory| place(factory).is_some());
        yes.sort_by_key(|factory| place(factory));
        Ok((yes, no))
    }

    /// What is viable here, for these devices, and what is not and why.
    ///
    /// # Errors
    ///
    /// As [`Context::new`](crate::Context::new).
    pub fn report(&self, devices: &[Device]) -> Result<Report, Error> {
        crate::Context::new(self, devices).map(|context| context.report())
    }
}

type Factories<'a> = Vec<&'a Arc<dyn ChannelFactory>>;

/// The kinds of a registry, made for an environment.
#[derive(Debug)]
pub(crate) struct Kinds {
    /// Those that are viable and allowed, favourites first.
    viable: Vec<Arc<dyn ChannelContext>>,
    rows: Vec<Row>,
}

impl Kinds {
    /// # Errors
    ///
    /// [`Error::Registry`].
    pub(crate) fn new(registry: &Registry, environment: &Environment) -> Result<Self, Error> {
        let (allowed, others) = registry.sorted()?;
        let (mut viable, mut rows) = (Vec::new(), Vec::new());
        for factory in allowed {
            let (name, priority) = (factory.name().to_owned(), factory.priority());
            match factory.context(environment) {
                Ok(context) => {
                    let devices = context.descriptors().into_iter().map(|(device, _)| device).collect();
                    let details = context.report();
                    rows.push(Row { name, priority, reason: None, devices, details });
                    viable.push(context);
                }
                Err(reason) => {
                    tracing::debug!(channel = name, %reason, "not viable");
                    let reason = Some(reason.to_string());
                    rows.push(Row { name, priority, reason, devices: Vec::new(), details: Vec::new() });
                }
            }
        }
        rows.extend(others.into_iter().map(|factory| Row {
            name: factory.name().to_owned(),
            priority: factory.priority(),
            reason: Some("the allow list does not have it".to_owned()),
            devices: Vec::new(),
            details: Vec::new(),
        }));
        Ok(Self { viable, rows })
    }

    /// Those that are viable and allowed, favourites first.
    pub(crate) fn viable(&self) -> &[Arc<dyn ChannelContext>] {
        &self.viable
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<dyn ChannelContext>> {
        self.viable.iter().find(|context| context.name() == name)
    }

    /// What the other side is told.
    pub(crate) fn offers(&self, devices: &[Device]) -> Offers {
        let kinds = self.viable.iter().map(|context| Offered {
            name: context.name().to_owned(),
            descriptors: context.descriptors().into_iter().collect(),
        });
        let without = self.rows.iter().filter_map(|row| Some((row.name.clone(), row.reason.clone()?)));
        Offers { devices: devices.to_vec(), kinds: kinds.collect(), without: without.collect() }
    }

    pub(crate) fn report(&self) -> Report {
        Report { rows: self.rows.clone() }
    }
}

/// Which kinds of channels are viable in a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// A row for every kind; those that are allowed first, favourites first.
    pub rows: Vec<Row>,
}

/// A kind of channel in a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its priority.
    pub priority: u32,
    /// Why it is not viable, or not allowed; `None`: it is.
    pub reason: Option<String>,
    /// The devices that it serves here.
    pub devices: Vec<Device>,
    /// What else there is to know of it, as names and values.
    pub details: Vec<(String, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Row { name, priority, reason, devices, details } in &self.rows {
            match reason {
                None => {
                    let devices: Vec<_> = devices.iter().map(Device::to_string).collect();
                    writeln!(f, "{name} ({priority}): viable for {}", devices.join(", "))?;
                }
                Some(reason) => writeln!(f, "{name} ({priority}): not viable: {reason}")?,
            }
            for (what, value) in details {
                writeln!(f, "  {what}: {value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Reason;

    #[derive(Debug)]
    struct Nothing(&'static str, u32);

    impl ChannelFactory for Nothing {
        fn name(&self) -> &str {
            self.0
        }

        fn priority(&self) -> u32 {
            self.1
        }

        fn context(&self, _: &Environment) -> Result<Arc<dyn ChannelContext>, Reason> {
            Err("it is never viable".into())
        }
    }

    fn registry() -> Registry {
        let mut registry = Registry::empty();
        for (name, priority) in [("ipc", 300), ("xth", 400), ("basic", 100)] {
            registry.register(Nothing(name, priority)).unwrap();
        }
        registry
    }

    #[test]
    fn kinds_are_in_the_order_of_their_priorities() {
        assert_eq!(registry().names(), ["xth", "ipc", "basic"]);
    }

    #[test]
    fn names_and_priorities_are_unique_also_of_kinds_that_are_not_viable() {
        let mut registry = registry();
        let error = registry.register(Nothing("ipc", 7)).unwrap_err();
        assert_eq!(error.to_string(), "there is a channel ipc already");
        let error = registry.register(Nothing("pigeon", 300)).unwrap_err();
        assert_eq!(error.to_string(), "channel pigeon has priority 300, as ipc has");
        for bad in ["", "Pigeon", "a b", "cuda_pigeon"] {
            assert!(
                matches!(registry.register(Nothing(bad, 8)), Err(RegistryError::BadName { .. })),
                "{bad}"
            );
        }
        assert!(registry.unregister("ipc") && !registry.unregister("ipc"));
        registry.register(Nothing("ipc", 7)).unwrap();
    }

    #[test]
    fn an_allow_list_gives_choice_and_order_and_takes_tensorpipes_names() {
        let mut registry = registry();
        registry.allow(" basic, cuda_xth,basic ").unwrap();
        let (yes, no) = registry.sorted().unwrap();
        let names = |factories: Vec<&Arc<dyn ChannelFactory>>| {
            factories.into_iter().map(|factory| factory.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!((names(yes), names(no)), (vec!["basic".to_owned(), "xth".into()], vec!["ipc".to_owned()]));
    }

    #[test]
    fn an_unknown_name_is_shown_with_those_that_there_are() {
        let error = registry().allow("basic,pigeon").unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"pigeon\" is not a channel (in the allow list \"basic,pigeon\"); there are xth, ipc, basic, separated by commas"
        );
    }

    #[test]
    fn an_allow_list_that_allows_nothing_is_refused() {
        for list in ["", ",", " , "] {
            let error = Registry::default().allow(list).unwrap_err();
            assert_eq!(error, RegistryError::EmptyList { list: list.to_owned() });
        }
        let error = Registry::default().allow("basic;ipc").unwrap_err().to_string();
        assert!(error.contains("\"basic;ipc\" is not a channel") && error.contains("commas"), "{error}");
    }
}
