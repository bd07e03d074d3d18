//! The one driver library of the process.

use std::ffi::{OsString, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// The environment variable that names the driver library.
const VARIABLE: &str = "MESHREDUCE_DRIVER";
/// What is opened when nothing else is asked for.
const DEFAULT: &str = "libcuda.so.1";

/// Why there is no driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The library could not be opened.
    #[error("cannot open the CUDA driver {}: {message}", library.display())]
    Open {
        /// The library that was asked for.
        library: PathBuf,
        /// What the dynamic loader says.
        message: String,
    },
    /// The library was opened but is not a CUDA driver.
    #[error("{} is not a CUDA driver: it has no function {symbol}", library.display())]
    NotADriver {
        /// The library that was opened.
        library: PathBuf,
        /// The function that every driver has.
        symbol: &'static str,
    },
}

/// [`use_library`] came too late: the driver is open, or was found missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the CUDA driver {} is in use already", library.display())]
pub struct AlreadyOpen {
    /// The library in use.
    pub library: PathBuf,
}

struct Driver {
    path: PathBuf,
    library: Result<Library, LoadError>,
}

static CHOSEN: Mutex<Option<PathBuf>> = Mutex::new(None);
static DRIVER: OnceLock<Driver> = OnceLock::new();

/// Chooses the driver library of this process, before the first call of a driver function.
///
/// # Safety
///
/// The library's code runs in this process, when it is opened and whenever a driver function is called: it is a CUDA
/// driver, whose functions do what NVIDIA's documentation says.
///
/// # Errors
///
/// [`AlreadyOpen`] if another library is in use already. Choosing the one in use is fine.
pub unsafe fn use_library(path: impl Into<PathBuf>) -> Result<(), AlreadyOpen> {
    let path = path.into();
    let mut chosen = CHOSEN.lock().unwrap_or_else(PoisonError::into_inner);
    match DRIVER.get() {
        Some(driver) if driver.path != path => Err(AlreadyOpen { library: driver.path.clone() }),
        _ => {
            *chosen = Some(path);
            Ok(())
        }
    }
}

/// Whether there is a driver; opens it if that has not happened yet.
///
/// # Errors
///
/// [`LoadError`] with the library that was asked for and the dynamic loader's message.
pub fn status() -> Result<(), LoadError> {
    driver().library.as_ref().map(|_| ()).map_err(Clone::clone)
}

/// The library as it was asked for: a path, or a bare name for the dynamic loader. Opens it if need be.
pub fn library_path() -> &'static Path {
    &driver().path
}

/// The folder of the driver library, if it was given as a path: where a `libnvidia-ml.so.1` that belongs to it lies.
pub fn library_directory() -> Option<&'static Path> {
    driver().path.parent().filter(|folder| !folder.as_os_str().is_empty())
}

/// The address of a function of the driver, for calls that [`crate::sys`] does not have. `None` if there is no driver
/// or it has no such function.
pub fn symbol(name: &str) -> Option<NonNull<c_void>> {
    lookup(driver().library.as_ref().ok()?, name)
}

fn lookup(library: &Library, name: &str) -> Option<NonNull<c_void>> {
    // SAFETY: the symbol is only taken as an address; whoever calls it vouches for its type.
    let symbol = unsafe { library.get::<*mut c_void>(name.as_bytes()) }.ok()?;
    NonNull::new(symbol.into_raw())
}

fn driver() -> &'static Driver {
    DRIVER.get_or_init(|| {
        let chosen = CHOSEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let from_environment = || std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        let path =
            chosen.unwrap_or_else(|| from_environment().unwrap_or_else(|| OsString::from(DEFAULT)).into());
        let library = open(&path);
        Driver { path, library }
    })
}

fn open(path: &Path) -> Result<Library, LoadError> {
    // SAFETY: the library's initialisers run; whoever chose it, through the environment or
    // through `use_library`, vouches for it as the CUDA driver of this process.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| LoadError::Open { library: path.into(), message: message(&error) })?;
    match lookup(&library, "cuInit") {
        Some(_) => Ok(library),
        None => Err(LoadError::NotADriver { library: path.into(), symbol: "cuInit" }),
    }
}

/// The dynamic loader's own words, which `libloading` keeps as the error's source.
fn message(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}
