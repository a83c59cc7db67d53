//! Turns groups into GRPO updates of the LoRA weights: losses, optimiser, checkpoints.

pub mod adamw;
pub mod advantage;
pub mod batch;
pub mod checkpoint;
pub mod loss;
mod memory;
pub mod micro_batch;
mod moments;
pub mod schedule;
mod seed;
pub mod settings;
pub mod step;
#[cfg(test)]
mod testing;
pub mod trainer;
