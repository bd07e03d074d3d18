//! Opening libibverbs.

use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use libloading::os::unix::{Library as Opened, RTLD_LOCAL, RTLD_NOW};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::device::DeviceList;
use crate::error::{Attempt, Error};
use crate::result;
use crate::sys::{Functions, functions};

/// The environment variable that names the library or its folder.
pub(crate) const VARIABLE: &str = "MESHREDUCE_VERBS";
/// What is opened when nothing else is asked for.
const DEFAULT: &str = "libibverbs.so.1";
/// What is looked for in a folder.
const NAMES: [&str; 2] = [DEFAULT, "libibverbs.so"];

/// An open libibverbs. Cheap to clone. Never closed: its providers keep threads and handlers of their own.
#[derive(Clone)]
pub struct Library(Arc<Inner>);

struct Inner {
    path: PathBuf,
    functions: Functions,
}

/// Whether the library copes with `fork`: `enum ibv_fork_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForkStatus {
    /// Registered memory is not safe in a process that forks.
    Disabled,
    /// `ibv_fork_init` was called in time, or `IBV_FORK_SAFE` is set.
    Enabled,
    /// The kernel copies pinned pages at the fork.
    Unneeded,
}

impl Library {
    /// The library of this process: the one that the environment variable `MESHREDUCE_VERBS` names (a file, or a folder
    /// with `libibverbs.so.1` in it), else `libibverbs.so.1` by the dynamic loader's rules. Opened at the first call;
    /// later calls answer the same, the reason of a failure too, unless that was [`Error::NoDescriptors`].
    ///
    /// Whoever may set a process's environment chooses the code that it runs, by this variable as by `LD_PRELOAD`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] with everything that was tried; [`Error::NotVerbs`]; [`Error::NoDescriptors`].
    pub fn find() -> Result<Self, Error> {
        static FOUND: Mutex<Option<Result<Library, Error>>> = Mutex::new(None);
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = &*found {
            return found.clone();
        }
        let named = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        // SAFETY: the user named it, or the system has it under the name of libibverbs.
        let opened = unsafe { open(&named.map_or_else(|| DEFAULT.into(), PathBuf::from)) };
        if !matches!(opened, Err(Error::NoDescriptors)) {
            *found = Some(opened.clone());
        }
        opened
    }

    /// Opens a library by its path, or by that of a folder with `libibverbs.so.1` in it. The same file opened twice is
    /// one library.
    ///
    /// # Safety
    ///
    /// The library's code runs in this process, when it is opened and whenever a verb is called: it is libibverbs,
    /// whose functions do what its manual pages say.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] with everything that was tried; [`Error::NotVerbs`]; [`Error::NoDescriptors`].
    pub unsafe fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        // SAFETY: the caller's.
        unsafe { open(path.as_ref()) }
    }

    /// The library that was opened: a path, or the bare name by which the dynamic loader found it.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The raw functions.
    pub fn functions(&self) -> &Functions {
        &self.0.functions
    }

    /// Whether the library has this function of [`functions`].
    pub fn has(&self, function: &str) -> bool {
        self.0.functions.has(function)
    }

    /// The devices that there are now. None is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: ENOSYS where the kernel has no RDMA, EPERM where it does not let this process see it.
    pub fn devices(&self) -> Result<DeviceList, Error> {
        DeviceList::new(self)
    }

    /// `ibv_fork_init`: memory stays registered correctly when the process forks. To be called before anything is
    /// registered.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: EINVAL when it is too late, ENOSYS when the kernel cannot; [`Error::TooOld`].
    pub fn fork_init(&self) -> Result<(), Error> {
        result::fork_init(self)
    }

    /// `ibv_is_fork_initialized`.
    ///
    /// # Errors
    ///
    /// [`Error::TooOld`] before `IBVERBS_1.13`.
    pub fn fork_status(&self) -> Result<ForkStatus, Error> {
        result::is_fork_initialized(self)
    }

    /// What an optional function's absence is.
    pub(crate) fn too_old(&self, function: &'static str) -> Error {
        let known = functions().iter().find(|known| known.name == function);
        Error::TooOld {
            library: self.path().into(),
            function,
            version: known.map_or("an unknown version", |known| known.version),
        }
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Library").field(&self.0.path).finish()
    }
}

/// # Safety
///
/// As [`Library::open`].
unsafe fn open(path: &Path) -> Result<Library, Error> {
    let candidates = if path.is_dir() {
        NAMES.iter().map(|name| path.join(name)).collect()
    } else {
        vec![path.to_owned()]
    };
    let mut tried = Vec::new();
    for path in candidates {
        // SAFETY: the library's initialisers run; the caller vouches for it.
        match unsafe { Opened::open(Some(&path), RTLD_NOW | RTLD_LOCAL) } {
            Ok(library) => return load(path, library),
            Err(error) => tried.push(Attempt { library: path, message: message(&error) }),
        }
    }
    // The loader's text says that too, in the user's language and behind the advice to install what is there.
    if has_no_descriptors() { Err(Error::NoDescriptors) } else { Err(Error::NotFound { tried }) }
}

/// Whether nothing can be opened at the moment.
fn has_no_descriptors() -> bool {
    let opened = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    matches!(opened, Err(Errno::MFILE | Errno::NFILE))
}

fn load(path: PathBuf, library: Opened) -> Result<Library, Error> {
    // The handle is given up, and with it the right to close the library.
    let handle = library.into_raw();
    // SAFETY: `handle` is that of a library which is never closed, and `lookup` answers the function's address in it.
    match unsafe { Functions::load(|name, version| lookup(handle, name, version)) } {
        Ok(functions) => Ok(Library(Arc::new(Inner { path, functions }))),
        Err(missing) => Err(Error::NotVerbs { library: path, missing }),
    }
}

/// The function of exactly this version: under the same name, a library keeps those of other signatures.
#[cfg(target_env = "gnu")]
fn lookup(handle: *mut c_void, name: &CStr, version: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: the handle is open, and the names are terminated.
    NonNull::new(unsafe { libc::dlvsym(handle, name.as_ptr(), version.as_ptr()) })
}

/// Where the dynamic loader does not know versions, by the name.
#[cfg(not(target_env = "gnu"))]
fn lookup(handle: *mut c_void, name: &CStr, _: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: as above.
    NonNull::new(unsafe { libc::dlsym(handle, name.as_ptr()) })
}

/// The dynamic loader's own words, which `libloading` keeps as the error's source.
fn message(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl Library {
    /// The address of a function that is not in [`Functions`]: an extension of one library. `None` if it has none of
    /// that name.
    pub fn symbol(&self, name: &str) -> Option<NonNull<c_void>> {
        let name = CString::new(name).ok()?;
        let path = self.path();
        // SAFETY: it is open already: nothing is initialised by opening it again.
        let library = unsafe { Opened::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.ok()?;
        // SAFETY: the symbol is only taken as an address; whoever calls it vouches for its type.
        let symbol = unsafe { library.get::<*mut c_void>(name.as_bytes()) }.ok()?.into_raw();
        NonNull::new(symbol)
    }
}
