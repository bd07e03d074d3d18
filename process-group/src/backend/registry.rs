//! Which backends there are.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::BackendFactory;
use crate::config::ConfigError;
use crate::nccl::NcclFactory;
use crate::types::DeviceType;

/// The backends that configurations can name. A value: a program that wants more than the default ones registers them in one
/// and gives it to the groups that it makes.
#[derive(Clone)]
pub struct Registry {
    factories: BTreeMap<Arc<str>, Arc<dyn BackendFactory>>,
}

impl Registry {
    /// One without any.
    pub fn empty() -> Self {
        Self { factories: BTreeMap::new() }
    }

    /// Adds one.
    ///
    /// # Errors
    ///
    /// [`ConfigError::BadName`] if its name is none, [`ConfigError::NameTaken`] if there is another of that name.
    pub fn register(&mut self, factory: impl BackendFactory + 'static) -> Result<(), ConfigError> {
        let name: Arc<str> = factory.name().into();
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if name.is_empty()
            || !name.chars().all(is_part)
            || DeviceType::ALL.iter().any(|kind| kind.name() == &*name)
        {
            return Err(ConfigError::BadName { name: name.to_string() });
        }
        if self.factories.contains_key(&name) {
            return Err(ConfigError::NameTaken { name: name.to_string() });
        }
        self.factories.insert(name, Arc::new(factory));
        Ok(())
    }

    /// Adds one of this crate's.
    fn add(&mut self, factory: impl BackendFactory + 'static) {
        self.factories.insert(factory.name().into(), Arc::new(factory));
    }

    /// Adds one in place of the one of its name, which must be there: the same backend with other options.
    ///
    /// # Errors
    ///
    /// [`ConfigError::UnknownBackend`].
    pub fn replace(&mut self, factory: impl BackendFactory + 'static) -> Result<(), ConfigError> {
        self.factory(factory.name())?;
        self.factories.insert(factory.name().into(), Arc::new(factory));
        Ok(())
    }

    /// The names of all of them, in order.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.factories.keys()
    }

    /// The one with this name.
    ///
    /// # Errors
    ///
    /// [`ConfigError::UnknownBackend`], with those that there are.
    pub fn factory(&self, name: &str) -> Result<&Arc<dyn BackendFactory>, ConfigError> {
        self.factories.get(name).ok_or_else(|| ConfigError::UnknownBackend {
            name: name.to_owned(),
            known: self.names().map(ToString::to_string).collect(),
        })
    }
}

impl Default for Registry {
    /// With the backends of this crate.
    fn default() -> Self {
        let mut registry = Self::empty();
        registry.add(crate::HostFactory::new());
        registry.add(crate::MeshFactory::new());
        #[cfg(feature = "mpi")]
        registry.add(crate::mpi::MpiFactory::new());
        registry.add(NcclFactory);
        registry
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}
