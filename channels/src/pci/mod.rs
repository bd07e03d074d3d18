//! Which NIC is near which GPU, from what the system says of the PCI tree.
//!
//! GPUDirect RDMA is fast where GPU and NIC sit below one PCI switch, slow across a host bridge, and slower still between sockets;
//! and a machine has several of each. [`Topology::read`] reads GPUs, NICs, and the bridges above them from sysfs (whose root is a
//! parameter); [`Pairing::new`] says for each GPU which ports it sends and receives by, or why there is none; a [`Map`] lets
//! the user say otherwise.
//!
//! ```
//! use meshreduce_channels::pci::{Map, Pairing, Topology};
//!
//! let topology = Topology::read("/sys".as_ref(), &[]).unwrap_or_default();
//! let pairing = Pairing::new(&topology, &Map::default());
//! for gpu in &topology.gpus {
//!     match pairing.of_gpu(gpu.address()) {
//!         Ok(paired) => println!("{}: {} ({})", gpu.path, paired.ports[0], paired.distance),
//!         Err(why) => println!("{}: {why}", gpu.path),
//!     }
//! }
//! ```
//!
//! Everything but the reading is pure: the same topology gives the same pairing, in whichever process, whichever GPUs that
//! process sees, whatever the NICs are called, and in whatever order they were found.
#![forbid(unsafe_code)]

mod acs;
mod distance;
mod map;
mod natural;
mod nic;
mod pairing;
mod path;
mod peermem;
mod rails;
mod read;
mod share;
mod topology;
mod write;

pub use acs::Acs;
pub use distance::Distance;
pub use map::{BadMap, Map, Target};
pub use nic::{LinkLayer, Nic, NicPort, NodeType, NotAPort, Port, PortName, PortState, Skip};
pub use pairing::{NoNic, Paired, Pairing, Source};
pub use path::{Component, NotAPciPath, PciPath};
pub use peermem::{Peermem, PeermemModule};
pub use rails::{Alignment, align};
pub use read::NoSysfs;
pub use topology::{Gpu, Topology};
