//! The PTX texts and the kernels loaded from them.

use std::sync::Arc;

use meshreduce_device::{ComputeCapability, DriverError, Function, Module, PrimaryContext};
use meshreduce_store::sockets::hex;
use meshreduce_wire::{Algorithm, DType, MAX_RANKS, MAX_THREADS, MIN_RANKS, Op};
use sha2::{Digest, Sha256};

use crate::algorithms::{self, Description, Ground};
use crate::config::Config;
use crate::error::Error;

/// A PTX text that this library contains: the kernels of one algorithm for one world size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShippedKernels {
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// The number of ranks that it is for.
    pub world_size: usize,
    /// The text.
    pub ptx: &'static str,
}

/// Every PTX text that this library contains, for programs that look at them or compile them ahead of time.
///
/// ```
/// let texts: Vec<_> = meshreduce::shipped_kernels().collect();
/// assert!(texts.iter().all(|text| text.ptx.contains(".entry")));
/// ```
pub fn shipped_kernels() -> impl Iterator<Item = ShippedKernels> {
    algorithms::SHIPPED.iter().flat_map(|description| {
        (MIN_RANKS..=MAX_RANKS).filter_map(|world_size| {
            let ptx = description.text(world_size)?;
            Some(ShippedKernels { algorithm: description.algorithm, world_size, ptx })
        })
    })
}

impl Config {
    /// Runs this PTX text in place of the shipped one. Its digest is not checked; all ranks need the same text.
    ///
    /// Devices must be what its `.target` asks for, rather than what the shipped one does: a rank whose device is older
    /// makes the outcome *not applicable* ([`crate::Reason::DeviceTooOld`]). Of a target such as `sm_90a` only the number
    /// counts there. Whatever else the driver has against the text is an error ([`Error::KernelsRefused`]).
    ///
    /// # Safety
    ///
    /// The text's kernels run on the device, with the addresses of the callers' and of all ranks' memory: they do with these
    /// what the shipped ones of the same names do.
    pub unsafe fn ptx(mut self, text: Option<impl Into<Arc<str>>>) -> Self {
        self.ptx = text.map(Into::into);
        self
    }
}

/// A PTX text with the name it is spoken of by.
#[derive(Clone, Debug)]
pub(crate) struct KernelText {
    name: String,
    text: Text,
    /// The one algorithm in it; `None`: whichever it contains.
    algorithm: Option<Algorithm>,
}

#[derive(Clone, Debug)]
enum Text {
    Shipped(&'static str),
    Given(Arc<str>),
}

impl KernelText {
    /// The texts for `world_size` ranks: the one in `config`, else all shipped ones, their digests checked.
    pub(crate) fn choose(config: &Config, world_size: usize) -> Result<Vec<Self>, Error> {
        if let Some(text) = &config.ptx {
            return Ok(vec![Self {
                name: "given in the configuration".into(),
                text: Text::Given(text.clone()),
                algorithm: None,
            }]);
        }
        let shipped = algorithms::SHIPPED.iter().filter_map(|description| {
            let name = format!("{}_w{world_size}.ptx", description.algorithm.kernel_name());
            let text = description.text(world_size)?;
            let kernels = Self { name, text: Text::Shipped(text), algorithm: Some(description.algorithm) };
            Some(verify(&kernels.name, text).map(|()| kernels))
        });
        shipped.collect()
    }

    fn text(&self) -> &str {
        match &self.text {
            Text::Shipped(text) => text,
            Text::Given(text) => text,
        }
    }

    /// The compute capability that a device needs for all texts, as far as they say.
    pub(crate) fn needed(texts: &[Self]) -> Option<ComputeCapability> {
        texts.iter().filter_map(|text| target(text.text())).max()
    }

    /// One digest over all texts, to be compared between ranks.
    pub(crate) fn digest(texts: &[Self]) -> String {
        let mut hash = Sha256::new();
        texts.iter().for_each(|text| hash.update(Sha256::digest(text.text())));
        hex(&hash.finalize())
    }
}

/// The compute capability that a device needs for the shipped texts for `world_size` ranks.
pub(crate) fn needed_for_shipped(world_size: usize) -> Option<ComputeCapability> {
    shipped_kernels().filter(|text| text.world_size == world_size).filter_map(|text| target(text.ptx)).max()
}

/// The compute capability in a text's `.target` (PTX ISA, "PTX Module Directives"), from which on it runs. What a suffix
/// asks for beside is left to the driver, and so is a text without a target that can be read.
fn target(ptx: &str) -> Option<ComputeCapability> {
    let code = ptx.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    let mut words = code.flat_map(|line| line.split([' ', '\t', ','])).filter(|word| !word.is_empty());
    words.find(|word| *word == ".target")?;
    let number: u32 = words.next()?.strip_prefix("sm_")?.trim_end_matches(['a', 'f']).parse().ok()?;
    Some(ComputeCapability { major: number / 10, minor: number % 10 })
}

/// Checks that a shipped text is the one whose digest its header records: that nobody edited it by hand.
pub(crate) fn verify(name: &str, ptx: &str) -> Result<(), Error> {
    let (header, text) = ptx.split_once("\n\n").unwrap_or((ptx, ""));
    let recorded =
        header.lines().find_map(|line| line.strip_prefix("// text: sha256 ")).unwrap_or("nothing").trim();
    let found = hex(&Sha256::digest(text));
    if recorded == found {
        Ok(())
    } else {
        Err(Error::KernelsEdited { name: name.to_owned(), recorded: recorded.to_owned(), found })
    }
}

/// A loaded text: through `cust` where that is built in.
#[derive(Debug)]
enum Loaded {
    #[cfg(feature = "cust")]
    Cust(crate::cust::CustModule),
    Own(Module),
}

impl Loaded {
    fn load(context: &Arc<PrimaryContext>, text: &KernelText) -> Result<Self, Error> {
        #[cfg(feature = "cust")]
        if let Some(module) = crate::cust::CustModule::load(context, text.text())? {
            return Ok(Loaded::Cust(module));
        }
        let refused = |(source, log)| Error::KernelsRefused { name: text.name.clone(), source, log };
        Module::load(context, text.text()).map(Loaded::Own).map_err(refused)
    }

    fn function(&self, name: &str) -> Result<Option<Function>, DriverError> {
        match self {
            #[cfg(feature = "cust")]
            Loaded::Cust(module) => module.function(name),
            Loaded::Own(module) => module.function(name),
        }
    }
}

/// Functions by what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Functions([[[Option<Function>; Op::ALL.len()]; DType::ALL.len()]; Algorithm::ALL.len()]);

/// Where an operation's kernel is found: with the first that has the same.
const fn kernel_of(op: Op) -> usize {
    let op = match op {
        Op::Avg => Op::Sum,
        Op::Min => Op::Max,
        op => op,
    };
    op as usize - 1
}

impl Functions {
    fn get(&self, algorithm: Algorithm, dtype: DType, op: Op) -> Option<Function> {
        self.0[algorithm as usize - 1][dtype as usize - 1][kernel_of(op)]
    }

    fn set(&mut self, algorithm: Algorithm, dtype: DType, op: Op, function: Function) {
        self.0[algorithm as usize - 1][dtype as usize - 1][kernel_of(op)] = Some(function);
    }
}

/// The kernels of one communicator, all loaded: a module that is loaded behind a spinning kernel would wait for it.
#[derive(Debug)]
pub(crate) struct Kernels {
    functions: Functions,
    /// Blocks of the largest size that fit a multiprocessor, of the kernel that needs most.
    occupancy: u32,
    /// Unloaded with the kernels.
    _modules: Vec<Loaded>,
}

impl Kernels {
    /// Loads every kernel that can be launched on `ground` by `world_size` ranks.
    pub(crate) fn load(
        context: &Arc<PrimaryContext>,
        texts: &[KernelText],
        ground: Ground,
        world_size: usize,
    ) -> Result<Self, Error> {
        let mut modules = Vec::new();
        let mut functions = Functions::default();
        let mut occupancy = u32::MAX;
        for text in texts {
            // A text that cannot be used here costs a compilation for nothing.
            let wanted =
                |description: &&Description| text.algorithm.is_none_or(|one| one == description.algorithm);
            if ground.algorithms().find(wanted).is_none() {
                continue;
            }
            let module = Loaded::load(context, text)?;
            for description in ground.algorithms().filter(wanted) {
                for dtype in DType::ALL {
                    for op in [Op::Sum, Op::Max] {
                        let entry = entry(description.algorithm, dtype, op, world_size);
                        if let Some(function) = module.function(&entry)? {
                            // SAFETY: its module was loaded just now, in this context.
                            let fits = unsafe { function.occupancy(context, MAX_THREADS) }?;
                            occupancy = occupancy.min(fits);
                            functions.set(description.algorithm, dtype, op, function);
                        }
                    }
                }
            }
            modules.push(module);
        }
        if functions == Functions::default() {
            let algorithm = ground.algorithms().next().map_or(Algorithm::OneShot, |first| first.algorithm);
            let name = texts.iter().map(|text| text.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::KernelMissing {
                name,
                entry: entry(algorithm, DType::Bf16, Op::Sum, world_size),
            });
        }
        Ok(Self { functions, occupancy, _modules: modules })
    }

    pub(crate) fn function(&self, algorithm: Algorithm, dtype: DType, op: Op) -> Option<Function> {
        self.functions.get(algorithm, dtype, op)
    }

    pub(crate) fn occupancy(&self) -> u32 {
        self.occupancy
    }
}

/// The name of a kernel entry.
fn entry(algorithm: Algorithm, dtype: DType, op: Op, world_size: usize) -> String {
    format!("{}_{dtype}_{}_w{world_size}", algorithm.kernel_name(), op.kernel_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_texts_are_as_they_were_built_and_have_every_entry() {
        for world_size in 2..=8 {
            let texts = KernelText::choose(&Config::default(), world_size).unwrap();
            assert_eq!(texts.len(), if world_size == 8 { 6 } else { 4 });
            for (text, description) in texts.iter().zip(algorithms::SHIPPED) {
                for dtype in DType::ALL {
                    for op in Op::ALL {
                        let entry = entry(description.algorithm, dtype, op, world_size);
                        assert!(text.text().contains(&format!(".entry {entry}(")), "{entry}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_kernel_has_a_place_of_its_own() {
        let all = || {
            Algorithm::ALL.into_iter().flat_map(|algorithm| {
                DType::ALL.into_iter().flat_map(move |dtype| Op::ALL.map(|op| (algorithm, dtype, op)))
            })
        };
        // SAFETY: they are not launched.
        let functions =
            (1..).map(|number| unsafe { Function::from_raw(std::ptr::without_provenance_mut::<()>(number)) });
        let named = all().filter(|(.., op)| matches!(op, Op::Sum | Op::Max)).zip(functions);
        let mut table = Functions::default();
        for ((algorithm, dtype, op), function) in named.clone() {
            assert_eq!(table.get(algorithm, dtype, op), None);
            table.set(algorithm, dtype, op, function);
        }
        for ((algorithm, dtype, op), function) in named {
            assert_eq!(table.get(algorithm, dtype, op), Some(function));
        }
        assert!(all().all(|(algorithm, dtype, op)| {
            let same = |other: Op| other.kernel_name() == op.kernel_name();
            let (_, first) = (algorithm, Op::ALL.into_iter().find(|other| same(*other)).unwrap());
            table.get(algorithm, dtype, op) == table.get(algorithm, dtype, first)
        }));
    }

    #[test]
    fn a_text_that_was_edited_by_hand_is_found_out() {
        let shipped = algorithms::SHIPPED[0].text(2).unwrap();
        verify("whole.ptx", shipped).unwrap();
        let edited = shipped.replacen("st.release.sys", "st.relaxed.sys", 1);
        assert_ne!(edited, shipped);
        match verify("edited.ptx", &edited) {
            Err(Error::KernelsEdited { name, recorded, found }) => {
                assert_eq!(name, "edited.ptx");
                assert_ne!(recorded, found);
            }
            other => panic!("{other:?}"),
        }
        assert!(verify("bare.ptx", ".version 7.0\n").is_err(), "a text without a header was not built");
    }

    #[test]
    fn what_a_device_must_be_is_read_from_the_target() {
        let at_least = |major, minor| Some(ComputeCapability { major, minor });
        for (text, needed) in [
            ("// .target sm_20\n.version 7.0\n.target sm_70\n.address_size 64", at_least(7, 0)),
            (".version 8.8 .target\tsm_90a, debug // Hopper alone", at_least(9, 0)),
            (".target sm_103f", at_least(10, 3)),
            (".target sm_120", at_least(12, 0)),
            (".target compute_70", None),
            (".version 7.0", None),
            (".target", None),
        ] {
            assert_eq!(target(text), needed, "{text}");
        }
        for world_size in 2..=8 {
            let texts = KernelText::choose(&Config::default(), world_size).unwrap();
            assert_eq!(KernelText::needed(&texts), at_least(7, 0));
            assert_eq!(needed_for_shipped(world_size), at_least(7, 0));
        }
    }

    #[test]
    fn a_given_text_is_not_checked_and_changes_the_digest() {
        // SAFETY: it is not run.
        let given = unsafe { Config::default().ptx(Some(".version 7.0")) };
        let texts = KernelText::choose(&given, 2).unwrap();
        assert_eq!(texts[0].text(), ".version 7.0");
        let shipped = KernelText::choose(&Config::default(), 2).unwrap();
        assert_ne!(KernelText::digest(&texts), KernelText::digest(&shipped));
    }
}
