//! Turns groups into GRPO updates of the LoRA weights: losses, optimiser, checkpoints.

pub mod adamw;
pub mod advantage;
pub mod checkpoint;
pub mod loss;
pub mod micro_batch;
pub mod schedule;
pub mod seed;
