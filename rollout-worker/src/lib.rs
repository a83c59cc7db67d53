//! Samples completions: a batched decoding engine and its service loop.
//!
//! - [`run`], [`WorkerOptions`]: a worker's whole life: dials a coordinator, loads the run's model,
//!   then adapters and samples as told.
//!
//! From the pure to the shell:
//! - [`seed`]: a completion's random numbers, from its name alone.
//! - [`stop`]: stop strings, found in the text as tokens come.
//! - [`check`]: what arrives, checked before memory is taken.
//! - [`queue`]: which samples wait, which slot holds what.
//! - [`sequence`]: one completion: tokens, log-probs, its end.
//! - [`adapter`]: adapters made ready beside the engine.
//! - [`engine`]: continuous batching over a `Decoder`; `thread` drives it.
//! - `outbox`: completions that are not acknowledged yet.
//! - `relay`: where it hands adapters on to other workers.
//! - `state`: what to do about each thing that happens; `service` is the shell around it.

pub mod adapter;
pub mod check;
pub mod engine;
mod outbox;
pub mod queue;
mod relay;
pub mod seed;
pub mod sequence;
mod service;
mod state;
pub mod stop;
#[cfg(test)]
mod testing;
mod thread;

pub use relay::{RelayError, RelayOptions};
pub use service::{WorkerError, WorkerOptions, run};
