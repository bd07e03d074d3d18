//! The programs that check meshreduce where it runs, and what they share with the tests.
//!
//! [`plan`] turns a command line into cases, [`cluster`] starts worker processes, [`worker`] is what they run,
//! [`mod@reference`] is what they compare with, [`report`] is what a person or a program reads in the end. [`adversary_report`] is
//! the same under the PTX memory model, [`mutants`] shows what it finds, [`path`] counts what a call waits for, [`simulate`] how long that
//! would take, [`topo`] draws how
//! devices are linked. [`gpu_check`] is the program for machines with GPUs, [`torch_check`] the one for machines with PyTorch,
//! [`doctor`] the one that says which channels are viable, and [`gdr`] the one for channels over RDMA.

pub mod adversary;
pub mod adversary_report;
pub mod buffer;
pub mod channels;
pub mod cluster;
pub mod collectives;
pub mod curves;
pub mod doctor;
pub mod emulated_node;
pub mod forced;
pub mod gdr;
pub mod gpu_check;
pub mod graph;
pub mod groups;
pub mod in_process;
pub mod inputs;
pub mod job;
pub mod latch;
pub mod launched;
pub mod mutants;
pub mod one_call;
pub mod params;
pub mod path;
pub mod plan;
pub mod probe;
pub mod programs;
pub mod reference;
pub mod report;
pub mod shapes;
pub mod simulate;
pub mod stream;
pub mod tables;
pub mod tally;
pub mod topo;
pub mod torch_check;
pub mod worker;
