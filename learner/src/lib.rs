//! The learner: turns groups into GRPO updates of the LoRA weights.
//!
//! Pure: [`advantage`] (group-normalised rewards), [`loss`] (clipped ratio and k3, per token),
//! [`schedule`] (learning rate), [`micro_batch`] (how a batch is cut into passes), [`batch`] (what
//! arrives, checked before anything is computed), [`settings`] (the run's specification, checked),
//! `tree` (the order in which passes are added up).
//!
//! On tensors: [`adamw`] (optimiser, clipping), `pass` (one forward and backward pass), [`step`] (a
//! batch's gradient), `share` (the same, shared out among ranks), [`trainer`] (adapter, optimiser and
//! version; one step). On disk: [`checkpoint`].
//!
//! The shell: [`run`] dials the coordinator, and holds an engine (model, trainer, checkpoints of
//! one run) that computes in a thread of its own. [`ranks`]: other ranks dial in to it and compute
//! parts of its gradients; [`ranks::run`] is one of these.
//!
//! What always holds: the same batch on the same state gives the same adapter bytes, resumed or
//! not, with one rank or several; a batch is trained on only if every one of its tokens was sampled
//! by the version held; a step's checkpoint is on disk before its result is sent.

pub mod adamw;
pub mod advantage;
pub mod batch;
pub mod checkpoint;
mod engine;
mod host;
pub mod loss;
pub mod memory;
pub mod micro_batch;
mod moments;
mod pass;
pub mod ranks;
pub mod schedule;
mod seed;
mod service;
pub mod settings;
mod share;
pub mod step;
#[cfg(test)]
mod testing;
pub mod trainer;
mod tree;

pub use engine::EngineError;
pub use service::{LearnerError, LearnerOptions, run};
