//! A loaded module: its kernels, its variables, and what it was compiled for.

use std::fmt;
use std::sync::Arc;

use super::ast::{Ast, Variable as AstVariable};
use super::decode::{Placed, decode};
use super::error::{At, PtxError};
use super::parser::parse;
use super::program::Kernel;
use super::types::Space;

/// A PTX text, checked and decoded.
///
/// ```
/// use meshreduce_emulator_ptx::Module;
/// let text = ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry nothing() { ret; }";
/// let module = Module::parse(text)?;
/// assert_eq!(module.kernels().len(), 1);
/// assert!(module.kernel("nothing").is_some());
/// # Ok::<(), meshreduce_emulator_ptx::PtxError>(())
/// ```
#[derive(Debug)]
pub struct Module {
    version: (u32, u32),
    target: Target,
    kernels: Vec<Arc<Kernel>>,
    variables: Vec<Variable>,
}

/// The architecture that a module was compiled for (`.target sm_70`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The compute capability, `(7, 0)` for `sm_70`.
    pub capability: (u32, u32),
    /// The suffix `a` or `f`: runs on that architecture (family) only, not on later ones.
    pub specific: bool,
}

impl Target {
    fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sm_")?;
        let number = digits.trim_end_matches(['a', 'f']);
        let value: u32 = number.parse().ok().filter(|_| number.len() >= 2)?;
        Some(Self { capability: (value / 10, value % 10), specific: number.len() != digits.len() })
    }

    /// Whether a device of compute capability `device` can run a module for this target.
    pub fn runs_on(self, device: (u32, u32)) -> bool {
        if self.specific { device == self.capability } else { device >= self.capability }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(f, "sm_{major}{minor}{}", if self.specific { "a" } else { "" })
    }
}

/// A module-scope variable in `.const` or `.global`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its address in its own space.
    pub address: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Bytes of constant memory that a module may declare (PTX ISA, "Constant State Space").
const CONSTANT_BYTES: u64 = 64 << 10;

impl Module {
    /// Checks and decodes a text.
    ///
    /// # Errors
    ///
    /// [`PtxError`] names the first line that is not understood or not legal. Variables in `.global` are among what
    /// is refused: they would need memory that a text alone does not have.
    pub fn parse(text: &str) -> Result<Self, PtxError> {
        Self::build(text).map_err(|at| at.in_text(text))
    }

    fn build(text: &str) -> Result<Self, At> {
        let ast: Ast<'_> = parse(text)?;
        let target = Target::parse(ast.target)
            .ok_or_else(|| At::new(1, format!("the target {} is not an architecture sm_XX", ast.target)))?;
        let source: Arc<str> = text.into();
        let (placed, image) = place(&ast.variables)?;
        let image: Arc<[u8]> = image.into();
        let mut kernels: Vec<Arc<Kernel>> = Vec::with_capacity(ast.entries.len());
        for entry in &ast.entries {
            if kernels.iter().any(|kernel| kernel.name == entry.name) {
                return Err(At::new(entry.line, format!("kernel {} is defined twice", entry.name)));
            }
            kernels.push(Arc::new(decode(entry, &placed, &image, &source)?));
        }
        let variables = placed.iter().filter(|placed| placed.variable.space == Space::Const);
        let variables = variables.map(|placed| Variable {
            name: placed.variable.name.to_owned(),
            address: placed.address,
            bytes: placed.variable.bytes,
        });
        Ok(Self { version: ast.version, target, kernels, variables: variables.collect() })
    }

    /// The ISA version of the text, `(7, 0)` for `.version 7.0`.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// What the text was compiled for.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Bits of an address; always 64.
    pub fn address_size(&self) -> u32 {
        64
    }

    /// The kernels, in the order of the text.
    pub fn kernels(&self) -> &[Arc<Kernel>] {
        &self.kernels
    }

    /// The kernel `name`.
    pub fn kernel(&self, name: &str) -> Option<Arc<Kernel>> {
        self.kernels.iter().find(|kernel| kernel.name == name).cloned()
    }

    /// The constant variables at module scope.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }
}

/// Lays constant memory out and fills it.
fn place<'a>(variables: &[AstVariable<'a>]) -> Result<(Vec<Placed<'a>>, Vec<u8>), At> {
    let mut image: Vec<u8> = Vec::new();
    let mut placed: Vec<Placed<'a>> = Vec::new();
    for variable in variables {
        if placed.iter().any(|known| known.variable.name == variable.name) {
            return Err(At::new(variable.line, format!("{} is declared twice", variable.name)));
        }
        let mut address = 0;
        match variable.space {
            Space::Shared if variable.init.is_some() => {
                return Err(At::new(variable.line, "shared memory cannot be initialised"));
            }
            Space::Shared => {}
            Space::Const if !variable.external => {
                let offset = (image.len() as u64).next_multiple_of(u64::from(variable.align));
                let end = offset + variable.bytes;
                if end > CONSTANT_BYTES {
                    return Err(At::new(variable.line, "more than 64 KiB of constant memory"));
                }
                image.resize(end as usize, 0);
                if let Some(init) = &variable.init {
                    image[offset as usize..][..init.len()].copy_from_slice(init);
                }
                address = offset;
            }
            _ => {
                return Err(At::new(
                    variable.line,
                    format!(
                        "variable {}: this kind of variable is not supported at module scope",
                        variable.name
                    ),
                ));
            }
        }
        placed.push(Placed { variable: variable.clone(), address });
    }
    Ok((placed, image))
}
