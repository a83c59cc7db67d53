//! Turns groups into GRPO updates of the LoRA weights: losses, optimiser, checkpoints.

pub mod adamw;
pub mod advantage;
pub mod loss;
pub mod schedule;
