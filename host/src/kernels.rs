//! The PTX texts and the kernels loaded from them.

use std::sync::Arc;

use meshreduce_device::{ComputeCapability, DriverError, Function, Module, PrimaryContext};
use meshreduce_store::sockets::hex;
use meshreduce_wire::{Algorithm, DType, Isa, KernelName, MAX_RANKS, MAX_THREADS, MIN_RANKS, Op, TextName};
use sha2::{Digest, Sha256};

use crate::algorithms::{self, Description, Interconnect};
use crate::config::Config;
use crate::error::Error;

/// A PTX text that this library contains: the kernels of one algorithm for one world size, in one ISA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShippedKernels {
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// The number of ranks that it is for.
    pub world_size: usize,
    /// The ISA that it is in.
    pub isa: Isa,
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
    Isa::ALL.into_iter().flat_map(|isa| {
        algorithms::SHIPPED.iter().flat_map(move |description| {
            (MIN_RANKS..=MAX_RANKS).filter_map(move |world_size| {
                let ptx = description.text(world_size, isa)?;
                Some(ShippedKernels { algorithm: description.algorithm, world_size, isa, ptx })
            })
        })
    })
}

impl Config {
    /// Runs this PTX text in place of the shipped one. Its digest is not checked; all ranks need the same text.
    ///
    /// Devices must be what its `.target` asks for, rather than what the shipped one does: a rank whose device is older
    /// makes the outcome *not applicable* ([`crate::NotApplicableReason::DeviceTooOld`]). Of a target such as `sm_90a` only the number
    /// counts there. Whatever else the driver has against the text is an error ([`Error::KernelsRefused`]).
    ///
    /// # Safety
    ///
    /// The text's kernels run on the device, with the addresses of the callers' and of all ranks' memory: they do with these
    /// what the shipped ones of the same names do. All kernels by packets in it are of one ISA. (Those of a later one than is
    /// agreed on are not used.)
    pub unsafe fn ptx(mut self, text: Option<impl Into<Arc<str>>>) -> Self {
        self.ptx = text.map(Into::into);
        self
    }

    /// The latest PTX ISA whose texts may be used, for comparisons: of what each rank allows and its device and driver take,
    /// the least is used on all of them ([`crate::Communicator::isa`]). The default is the latest that there is. The results
    /// are the same.
    pub fn latest_isa(mut self, isa: Isa) -> Self {
        self.latest_isa = isa;
        self
    }
}

/// A PTX text with the name it is spoken of by.
#[derive(Clone, Debug)]
pub(crate) struct KernelText {
    name: String,
    text: Text,
    /// The one algorithm in it, and its ISA; `None`: whichever it contains.
    shipped: Option<(Algorithm, Isa)>,
}

#[derive(Clone, Debug)]
enum Text {
    Shipped(&'static str),
    Given(Arc<str>),
}

impl KernelText {
    /// The texts for `world_size` ranks: the one in `config`, else all shipped ones in any ISA, their digests checked.
    pub(crate) fn choose(config: &Config, world_size: usize) -> Result<Vec<Self>, Error> {
        if let Some(text) = &config.ptx {
            return Ok(vec![Self {
                name: "given in the configuration".into(),
                text: Text::Given(text.clone()),
                shipped: None,
            }]);
        }
        let shipped = shipped_kernels().filter(|shipped| shipped.world_size == world_size).map(|shipped| {
            let ShippedKernels { algorithm, isa, ptx, .. } = shipped;
            let name = format!("{}.ptx", TextName { algorithm, world_size, isa });
            let kernels = Self { name, text: Text::Shipped(ptx), shipped: Some((algorithm, isa)) };
            verify(&kernels.name, ptx).map(|()| kernels)
        });
        shipped.collect()
    }

    /// Of every algorithm the text in the latest ISA that is not later than `isa`.
    pub(crate) fn agreed(texts: Vec<Self>, isa: Isa) -> Vec<Self> {
        let better = |(algorithm, own): (Algorithm, Isa)| {
            let others = texts.iter().filter_map(|text| text.shipped);
            others.filter(|(other, _)| *other == algorithm).any(|(_, other)| other > own && other <= isa)
        };
        let kept: Vec<bool> = texts
            .iter()
            .map(|text| text.shipped.is_none_or(|shipped| shipped.1 <= isa && !better(shipped)))
            .collect();
        texts.into_iter().zip(kept).filter_map(|(text, kept)| kept.then_some(text)).collect()
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

/// The compute capability that a device needs for the shipped texts for `world_size` ranks: those for every device.
pub(crate) fn needed_for_shipped(world_size: usize) -> Option<ComputeCapability> {
    let texts = shipped_kernels().filter(|text| text.world_size == world_size && text.isa == Isa::V70);
    texts.filter_map(|text| target(text.ptx)).max()
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

/// A kernel and the ISA of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) function: Function,
    pub(crate) isa: Isa,
}

/// Kernels by what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Functions([[[Option<Kernel>; Op::ALL.len()]; DType::ALL.len()]; Algorithm::COUNT]);

/// Where an operation's kernel is found: at the operation that it is named after.
const fn kernel_of(op: Op) -> usize {
    let op = match op {
        Op::Avg => Op::Sum,
        Op::Min => Op::Max,
        op => op,
    };
    op as usize - 1
}

impl Functions {
    fn get(&self, algorithm: Algorithm, dtype: DType, op: Op) -> Option<Kernel> {
        self.0[algorithm as usize - 1][dtype as usize - 1][kernel_of(op)]
    }

    fn set(&mut self, algorithm: Algorithm, dtype: DType, op: Op, kernel: Kernel) {
        self.0[algorithm as usize - 1][dtype as usize - 1][kernel_of(op)] = Some(kernel);
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
    /// Loads every kernel that can be launched on `interconnect` by `world_size` ranks that take no later ISA than `isa`.
    pub(crate) fn load(
        context: &Arc<PrimaryContext>,
        texts: &[KernelText],
        interconnect: Interconnect,
        isa: Isa,
        world_size: usize,
    ) -> Result<Self, Error> {
        let mut modules = Vec::new();
        let mut functions = Functions::default();
        let mut occupancy = u32::MAX;
        for text in texts {
            // A text that cannot be used here costs a compilation for nothing.
            let wanted =
                |description: &&Description| text.shipped.is_none_or(|(one, _)| one == description.algorithm);
            if interconnect.every().find(wanted).is_none() {
                continue;
            }
            let module = Loaded::load(context, text)?;
            for description in interconnect.every().filter(wanted) {
                for dtype in DType::ALL {
                    for op in [Op::Sum, Op::Max] {
                        // A text that was given says by its entries' names which ISA it is in.
                        for isa in Isa::ALL.into_iter().filter(|own| *own <= isa) {
                            let name = TextName { algorithm: description.algorithm, world_size, isa };
                            let entry = KernelName::new(name, dtype, op).to_string();
                            let Some(function) = module.function(&entry)? else { continue };
                            // SAFETY: its module was loaded just now, in this context.
                            let fits = unsafe { function.occupancy(context, MAX_THREADS) }?;
                            occupancy = occupancy.min(fits);
                            functions.set(description.algorithm, dtype, op, Kernel { function, isa });
                        }
                    }
                }
            }
            modules.push(module);
        }
        if functions == Functions::default() {
            let algorithm =
                interconnect.algorithms().next().map_or(Algorithm::OneShot, |first| first.algorithm);
            let name = texts.iter().map(|text| text.name.as_str()).collect::<Vec<_>>().join(", ");
            let text = TextName { algorithm, world_size, isa: Isa::V70 };
            let entry = KernelName::new(text, DType::Bf16, Op::Sum).to_string();
            return Err(Error::KernelMissing { name, entry });
        }
        Ok(Self { functions, occupancy, _modules: modules })
    }

    pub(crate) fn kernel(&self, algorithm: Algorithm, dtype: DType, op: Op) -> Option<Kernel> {
        self.functions.get(algorithm, dtype, op)
    }

    pub(crate) fn occupancy(&self) -> u32 {
        self.occupancy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_texts_are_as_they_were_built_and_have_every_entry() {
        for world_size in 2..=8 {
            let texts = KernelText::choose(&Config::default(), world_size).unwrap();
            assert_eq!(texts.len(), if world_size == 8 { 18 } else { 14 });
            for text in &texts {
                let (algorithm, isa) = text.shipped.unwrap();
                for dtype in DType::ALL {
                    for op in Op::ALL {
                        let name = TextName { algorithm, world_size, isa };
                        let entry = KernelName::new(name, dtype, op);
                        assert!(text.text().contains(&format!(".entry {entry}(")), "{entry}");
                    }
                }
            }
        }
    }

    #[test]
    fn of_every_algorithm_the_best_text_that_all_ranks_take_is_used() {
        for world_size in 2..=8 {
            for (isa, later) in [(Isa::V70, 0), (Isa::V84, 5)] {
                let texts =
                    KernelText::agreed(KernelText::choose(&Config::default(), world_size).unwrap(), isa);
                let mut algorithms: Vec<_> = texts.iter().map(|text| text.shipped.unwrap()).collect();
                assert_eq!(algorithms.iter().filter(|(_, isa)| *isa == Isa::V84).count(), later);
                algorithms.sort_unstable_by_key(|(algorithm, _)| *algorithm as u8);
                algorithms.dedup_by_key(|(algorithm, _)| *algorithm);
                assert_eq!(algorithms.len(), texts.len(), "one text of each");
                assert_eq!(texts.len(), if world_size == 8 { 13 } else { 9 });
            }
        }
    }

    #[test]
    fn every_kernel_has_a_place_of_its_own() {
        let all = || {
            Algorithm::every().flat_map(|algorithm| {
                DType::ALL.into_iter().flat_map(move |dtype| Op::ALL.map(|op| (algorithm, dtype, op)))
            })
        };
        let functions = (1..).map(|number| Kernel {
            // SAFETY: it is not launched.
            function: unsafe { Function::from_raw(std::ptr::without_provenance_mut::<()>(number)) },
            isa: Isa::V70,
        });
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
        let shipped = algorithms::SHIPPED[2].text(2, Isa::V70).unwrap();
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
            for isa in Isa::ALL {
                let ((major, minor), _) = isa.needs();
                let agreed = KernelText::agreed(texts.clone(), isa);
                assert_eq!(KernelText::needed(&agreed), at_least(major, minor));
            }
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
