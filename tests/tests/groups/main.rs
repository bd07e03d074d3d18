//! Process groups: every backend, what goes wrong, and what the mesh does for them.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod captures;
mod collectives;
mod devices;
mod ends;
mod errors;
mod mesh;
mod mesh_differ;
mod mesh_slices;
mod mesh_together;
mod transfers;
