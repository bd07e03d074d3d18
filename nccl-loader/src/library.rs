//! The one NCCL of the process.

use std::ffi::c_void;
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::sys;

/// The environment variable that names the library or its folder.
const VARIABLE: &str = "MESHREDUCE_NCCL";
/// What is opened when nothing else is asked for, and what is looked for in a folder.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// The function by which NCCL is known.
const MARK: &str = "ncclGetVersion";

/// A library that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What was to be opened: a path, or a bare name for the dynamic loader.
    pub library: PathBuf,
    /// What the dynamic loader says.
    pub message: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.library.display(), self.message)
    }
}

/// Why there is no NCCL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// No library could be opened.
    #[error("cannot open NCCL: {}; install it, or name its library in {VARIABLE}", joined(tried))]
    Open {
        /// Everything that was tried, in this order.
        tried: Vec<Attempt>,
    },
    /// The library was opened but is not NCCL.
    #[error("{} is not NCCL: it has no function {symbol}", library.display())]
    NotNccl {
        /// The library that was opened.
        library: PathBuf,
        /// The function that every NCCL has.
        symbol: &'static str,
    },
    /// The library was opened but lacks functions that NCCL has had since 2.7.
    #[error("{} is not a NCCL of 2.7 or later: it has no {}", library.display(), missing.join(", "))]
    Incomplete {
        /// The library that was opened.
        library: PathBuf,
        /// The functions that it does not have.
        missing: Vec<&'static str>,
    },
}

fn joined(tried: &[Attempt]) -> String {
    tried.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// [`use_library`] came too late: NCCL is open, or was found missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("NCCL is in use already: {}", library.display())]
pub struct AlreadyOpen {
    /// What was asked for then.
    pub library: PathBuf,
}

/// What was opened, and by which path.
type Opened = Result<(PathBuf, Library), LoadError>;

/// Which library it is to be.
enum Choice {
    /// The one that [`use_library`] was given, if any; it may change.
    Open(Option<PathBuf>),
    /// This one, which has been opened or is being opened.
    Taken(PathBuf),
}

static CHOICE: Mutex<Choice> = Mutex::new(Choice::Open(None));
static NCCL: OnceLock<Opened> = OnceLock::new();

/// Chooses the library of this process, or the folder in which it lies, before the first call of one of its functions.
///
/// # Safety
///
/// The library's code runs in this process, when it is opened and whenever a function is called: it is NCCL, whose
/// functions do what NVIDIA's documentation says.
///
/// # Errors
///
/// [`AlreadyOpen`] if another library is in use already. Choosing the one in use is fine.
pub unsafe fn use_library(path: impl Into<PathBuf>) -> Result<(), AlreadyOpen> {
    let path = path.into();
    let mut choice = CHOICE.lock().unwrap_or_else(PoisonError::into_inner);
    match &*choice {
        Choice::Taken(library) if *library != path => Err(AlreadyOpen { library: library.clone() }),
        Choice::Taken(_) => Ok(()),
        Choice::Open(_) => {
            *choice = Choice::Open(Some(path));
            Ok(())
        }
    }
}

/// Whether there is NCCL; opens it if that has not happened yet.
///
/// # Errors
///
/// [`LoadError`] with everything that was tried and the dynamic loader's words.
pub fn status() -> Result<(), LoadError> {
    nccl().as_ref().map(|_| ()).map_err(Clone::clone)
}

/// The library that was opened: a path, or the bare name by which the dynamic loader found it. Opens it if need be.
///
/// # Errors
///
/// [`LoadError`] if there is none.
pub fn library_path() -> Result<&'static Path, LoadError> {
    nccl().as_ref().map(|(path, _)| path.as_path()).map_err(Clone::clone)
}

/// The address of a function of NCCL, for calls that [`sys`] does not have. `None` if there is no NCCL or it has no
/// such function.
pub fn symbol(name: &str) -> Option<NonNull<c_void>> {
    let (_, library) = nccl().as_ref().ok()?;
    lookup(library, name)
}

fn lookup(library: &Library, name: &str) -> Option<NonNull<c_void>> {
    // SAFETY: the symbol is only taken as an address; whoever calls it vouches for its type.
    let symbol = unsafe { library.get::<*mut c_void>(name.as_bytes()) }.ok()?;
    NonNull::new(symbol.into_raw())
}

fn nccl() -> &'static Opened {
    NCCL.get_or_init(|| {
        let asked = take_choice();
        let candidates = match asked {
            Some(folder) if folder.is_dir() => NAMES.iter().map(|name| folder.join(name)).collect(),
            Some(path) => vec![path],
            None => NAMES.iter().map(PathBuf::from).collect(),
        };
        open_first(candidates)
    })
}

/// What was asked for, if anything; from now on it is settled.
fn take_choice() -> Option<PathBuf> {
    let mut choice = CHOICE.lock().unwrap_or_else(PoisonError::into_inner);
    let chosen = match &*choice {
        Choice::Open(chosen) => chosen.clone(),
        Choice::Taken(library) => Some(library.clone()),
    };
    let from_environment = || std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
    let asked = chosen.or_else(|| from_environment().map(PathBuf::from));
    *choice = Choice::Taken(asked.clone().unwrap_or_else(|| NAMES[0].into()));
    asked
}

fn open_first(candidates: Vec<PathBuf>) -> Result<(PathBuf, Library), LoadError> {
    let mut tried = Vec::new();
    for path in candidates {
        // SAFETY: the library's initialisers run; whoever chose it, through the environment or
        // through `use_library`, vouches for it as the NCCL of this process.
        match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) } {
            Ok(library) => return check(path, library),
            Err(error) => tried.push(Attempt { message: message(&error, &path), library: path }),
        }
    }
    Err(LoadError::Open { tried })
}

fn check(path: PathBuf, library: Library) -> Result<(PathBuf, Library), LoadError> {
    if lookup(&library, MARK).is_none() {
        return Err(LoadError::NotNccl { library: path, symbol: MARK });
    }
    let required = sys::TABLE.iter().filter(|function| function.required());
    let missing: Vec<_> =
        required.map(|function| function.name).filter(|name| lookup(&library, name).is_none()).collect();
    if missing.is_empty() {
        Ok((path, library))
    } else {
        Err(LoadError::Incomplete { library: path, missing })
    }
}

/// The dynamic loader's own words, which `libloading` keeps as the error's source, without the library's name, with which they may
/// begin.
fn message(error: &libloading::Error, library: &Path) -> String {
    let said = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    let name = format!("{}: ", library.display());
    said.strip_prefix(&name).map_or_else(|| said.clone(), str::to_owned)
}
