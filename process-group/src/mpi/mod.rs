//! The backend `mpi`, over the crate `mpi` (rsmpi) and the MPI that is installed: collectives of host memory on as many nodes as
//! MPI reaches.
//!
//! It is there with the cargo feature `mpi`, which needs an MPI-3 library with its compiler wrapper `mpicc`, and libclang, to
//! build: on Debian `apt install libopenmpi-dev openmpi-bin libclang-dev`. The program is started with `mpirun`.
//!
//! | what | how |
//! |---|---|
//! | ranks | the rank in the group of all ranks must be MPI's own rank; a group whose ranks are not is an error ([`MpiError::OtherRank`]) |
//! | types | f32, f64, i8 to i64, u8. f16 and bf16 are refused: MPI has no such types |
//! | min, max of floats | reductions of our own, since MPI's say nothing of NaN and -0 |
//! | lengths | at most 2^31 - 1 elements a call on each side: MPI counts in C's `int` |
//! | tags | up to what [`MpiBackend::max_tag`] says: 2^31 - 3 with Open MPI |
//! | results | every rank gets the same bits where MPI sees to that. It is advised to, not obliged |
//! | threads | `MPI_THREAD_MULTIPLE` is asked for and needed |
//! | a rank that dies | ends the whole job, as MPI does |
//! | a rank that does not come | the deadline: calls are made with MPI's non-blocking functions, and polled |
//!
//! # Memory
//!
//! MPI cannot take back a call. So that one that has missed its deadline, or was aborted, never touches memory that the caller
//! has back, MPI works on copies: of the input before the call, to the output after it. The copies of calls that never ended are
//! leaked, which a warning tells.
//!
//! # Beginning and end of MPI
//!
//! There is one MPI in a process. The first backend that is made initialises it, unless the program has done so already (then it
//! must have asked for `MPI_THREAD_MULTIPLE`). MPI can be neither initialised twice nor used after its end, so whoever
//! initialised it ends it: the program, after it has closed all groups; or else this module, when the process exits by returning
//! from `main` or by [`std::process::exit`]. The end waits for all of MPI's ranks. Calls that other threads make
//! meanwhile fail with [`MpiError::Finalised`].
//!
//! # Aborts and closing
//!
//! [`crate::Backend::abort`], a missed deadline, or an error of MPI's is told to the other ranks by messages, which they see when
//! they wait or poll. Closing a group in order exchanges one message between any two of its ranks, so that who did not come is
//! known by name, and gives the communicator back to MPI. A group that ended otherwise keeps its communicator.

mod arithmetic;
mod backend;
mod communicator;
mod error;
mod factory;
mod job;
mod pending;
mod runtime;
mod shared;
mod staging;

pub use backend::MpiBackend;
pub use error::MpiError;
pub use factory::MpiFactory;
