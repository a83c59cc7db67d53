//! Turns groups into GRPO updates of the LoRA weights: losses, optimiser, checkpoints.
