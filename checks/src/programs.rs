//! Where the programs of this package lie.

use std::path::{Path, PathBuf};

/// The program `name` of this package: where cargo says at run time (what was so when this was built is wrong in a copied checkout),
/// or else beside this program, or above it where it is a test (`target/<profile>/deps/<test>`).
///
/// # Panics
/// If the system does not say which program this is.
pub fn program(name: &str) -> PathBuf {
    match std::env::var_os(format!("CARGO_BIN_EXE_{name}")) {
        Some(program) => program.into(),
        None => {
            let this = std::env::current_exe().expect("this program's own file");
            let folder = this.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
            folder.unwrap_or(Path::new("")).join(name)
        }
    }
}
