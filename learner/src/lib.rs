//! The learner: turns groups into GRPO updates of the LoRA weights.
//!
//! Pure: [`advantage`] (group-normalised rewards), [`loss`] (clipped ratio and k3, per token),
//! [`schedule`] (learning rate), [`micro_batch`] (how a batch is cut into passes), [`batch`] (what
//! arrives, checked before anything is computed), [`settings`] (the run's specification, checked).
//!
//! On tensors: [`adamw`] (optimiser, clipping), [`step`] (a batch's gradient), [`trainer`] (adapter,
//! optimiser and version; one step). On disk: [`checkpoint`].
//!
//! The shell: [`run`] dials the coordinator, and holds an engine (model, trainer, checkpoints of
//! one run) that computes in a thread of its own.
//!
//! What always holds: the same batch on the same state gives the same adapter bytes, resumed or
//! not; a batch is trained on only if every one of its tokens was sampled by the version held; a
//! step's checkpoint is on disk before its result is sent.

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
pub mod schedule;
mod seed;
mod service;
pub mod settings;
pub mod step;
#[cfg(test)]
mod testing;
pub mod trainer;

pub use engine::EngineError;
pub use service::{LearnerError, LearnerOptions, run};
