//! How ranks that MPI started become a group.
#![forbid(unsafe_code)]

use std::ffi::c_int;
use std::fmt;
use std::num::NonZero;
use std::sync::Arc;

use super::backend::MpiBackend;
use super::communicator::Communicator;
use super::error::MpiError;
use super::runtime::{self, World};
use crate::backend::{Backend, BackendContext, BackendFactory};
use crate::error::Error;
use crate::types::DeviceType;

/// Makes the backend `mpi`, which [`crate::Registry::default`] knows. See [the module](super).
///
/// ```no_run
/// use std::sync::Arc;
///
/// use meshreduce_process_group::mpi::MpiFactory;
/// use meshreduce_process_group::store::FileStore;
/// use meshreduce_process_group::{ProcessGroup, ReduceOp};
///
/// // Started by mpirun.
/// let (rank, world_size) = MpiFactory::new().rank_and_world_size()?;
/// let store = Arc::new(FileStore::open("/shared/job-17")?);
/// let group = ProcessGroup::builder(store, rank, world_size).backend("cpu:mpi".parse()?).build()?;
/// let mut data = [rank as f32; 4];
/// group.all_reduce(&mut data, ReduceOp::Sum)?;
/// group.shutdown()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct MpiFactory;

impl MpiFactory {
    /// Initialises nothing: MPI is initialised when the first backend is made.
    pub fn new() -> Self {
        Self
    }

    /// This process's rank among MPI's, and how many they are: what the group of all ranks is to be made with. Initialises MPI.
    ///
    /// # Errors
    ///
    /// [`MpiError::Threads`], [`MpiError::Finalised`].
    pub fn rank_and_world_size(&self) -> Result<(usize, usize), MpiError> {
        runtime::initialise().map(|world| (world.rank, world.size))
    }
}

impl BackendFactory for MpiFactory {
    fn name(&self) -> &str {
        "mpi"
    }

    fn devices(&self) -> &[DeviceType] {
        &[DeviceType::Cpu]
    }

    /// Initialises MPI if nobody has. The ranks meet over the store, within the timeout, and see whether they are MPI's ranks;
    /// then they make a communicator, which has no timeout of its own, but a rank that ends meanwhile ends the job.
    ///
    /// Two groups that several ranks share must be made in the same order on these ranks, or by one thread at a time.
    fn create(&self, context: BackendContext) -> Result<Arc<dyn Backend>, Error> {
        let name: Arc<str> = self.name().into();
        // Ranks where MPI fails come too, so that the others need not wait for them.
        let own = Member::here(runtime::initialise());
        let members = context.until_death().meet(&name, own.to_string().as_bytes())?;
        let members: Vec<Member> = members.iter().map(|text| Member::parse(text)).collect();
        let group = Arc::clone(&context.group);
        let made = judge(&members, &group.ranks).and_then(|()| {
            let communicator = Communicator::create(&group.ranks, creation_tag(&group.name))?;
            let world_size = NonZero::new(group.world_size).unwrap_or(NonZero::<usize>::MIN);
            MpiBackend::new(Arc::clone(&name), group, world_size, communicator)
        });
        match made {
            Ok(backend) => Ok(Arc::new(backend)),
            Err(error) => Err(context.not_made(&name, error)),
        }
    }
}

/// What a rank tells the others of its MPI.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Member {
    Ready { world: World, job: String },
    Unable(String),
}

impl Member {
    fn here(world: Result<World, MpiError>) -> Self {
        match world {
            // MPI has no name for a job; PMIx, which starts the ranks of most MPIs, has.
            Ok(world) => Self::Ready { world, job: std::env::var("PMIX_NAMESPACE").unwrap_or_default() },
            Err(error) => Self::Unable(error.to_string()),
        }
    }

    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let ready = || {
            let mut words = text.strip_prefix("ready ")?.splitn(3, ' ');
            let (rank, size) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some(Self::Ready { world: World { rank, size }, job: words.next()?.to_owned() })
        };
        ready().unwrap_or_else(|| Self::Unable(text.into_owned()))
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { world, job } => write!(f, "ready {} {} {job}", world.rank, world.size),
            Self::Unable(problem) => f.write_str(problem),
        }
    }
}

/// Whether these can be a group, whose ranks are `expected` among all. The same on all ranks.
fn judge(members: &[Member], expected: &[usize]) -> Result<(), MpiError> {
    let mut first: Option<(usize, String)> = None;
    for (rank, (member, expected)) in members.iter().zip(expected).enumerate() {
        let (world, job) = match member {
            Member::Ready { world, job } => (world, job),
            Member::Unable(problem) => {
                return Err(MpiError::Elsewhere { rank, problem: problem.clone() });
            }
        };
        let job = match job.as_str() {
            "" => format!("{} ranks", world.size),
            name => format!("{name} of {} ranks", world.size),
        };
        match &first {
            Some((of, first)) if *first != job => {
                return Err(MpiError::OtherJob { ranks: (*of, rank), jobs: (first.clone(), job) });
            }
            Some(_) => {}
            None => first = Some((rank, job)),
        }
        if world.rank != *expected {
            return Err(MpiError::OtherRank { rank, expected: *expected, found: world.rank });
        }
    }
    Ok(())
}

/// Tells the creations of communicators apart that go on at the same time (FNV-1a, cut to what every MPI takes as a tag).
fn creation_tag(group: &str) -> c_int {
    let hash =
        group.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    c_int::from((hash ^ (hash >> 16)) as u16 & 0x7fff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(rank: usize, size: usize, job: &str) -> Member {
        Member::Ready { world: World { rank, size }, job: job.to_owned() }
    }

    #[test]
    fn what_a_rank_tells_is_understood() {
        for member in [ready(3, 8, "12 34"), ready(0, 1, ""), Member::Unable("ready or not".into())] {
            assert_eq!(Member::parse(member.to_string().as_bytes()), member);
        }
    }

    #[test]
    fn ranks_that_are_not_those_of_mpi_are_refused_by_name() {
        let two = [ready(0, 2, "a"), ready(1, 2, "a")];
        assert_eq!(judge(&two, &[0, 1]), Ok(()));
        assert_eq!(judge(&two, &[1, 0]), Err(MpiError::OtherRank { rank: 0, expected: 1, found: 0 }));
        let alone = [ready(0, 1, "a"), ready(0, 1, "b")];
        assert!(matches!(judge(&alone, &[0, 1]), Err(MpiError::OtherJob { ranks: (0, 1), .. })));
        let lacks = [ready(0, 2, "a"), Member::Unable("MPI was finalised already".into())];
        assert!(matches!(judge(&lacks, &[0, 1]), Err(MpiError::Elsewhere { rank: 1, .. })));
    }
}
