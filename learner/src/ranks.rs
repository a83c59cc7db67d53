//! Several learner ranks: processes that compute one step's gradient together.
//!
//! Rank 0 is the learner as the coordinator knows it: adapter, optimiser, checkpoints. It opens a door
//! of its own ([`Door`], service `Ranks`), at which the others dial in. They hold the frozen model;
//! for each gradient they get the adapter and passes, and give back sums of gradients.
//!
//! - `wire`: the messages, made and checked. `hub`: the ranks that are there, as [`crate::share`]
//!   sees them. `door`: who may come in. `client`: the other ranks' side; `work`: what they compute.
//!   [`trial`]: messages tried out without a network.
//!
//! What always holds: the result is that of rank 0 alone, to the bit ([`crate::tree`]). A rank that
//! is lost, late or strange costs time: what it had is computed by those who are there.

mod client;
mod door;
mod hub;
#[cfg(test)]
mod tests;
pub mod trial;
mod wire;
mod work;

pub use client::{Rank0, RankError, RankOptions, run};
pub(crate) use door::Door;
pub use door::{DoorError, DoorOptions};
pub(crate) use hub::{HubCrew, Identity};

/// File in a run's folder with the address of its learner's door, while there is one.
pub const ADDRESS_FILE: &str = "learner.addr";
