//! The benchmarks.

pub(crate) mod policy;
pub(crate) mod step;
pub(crate) mod verify;
