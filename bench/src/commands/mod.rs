//! The benchmarks.

pub(crate) mod adapters;
pub(crate) mod cluster;
pub(crate) mod cpu;
pub(crate) mod policy;
pub(crate) mod side;
pub(crate) mod step;
pub(crate) mod verify;
