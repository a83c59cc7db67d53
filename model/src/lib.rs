//! The policy: architecture, weights, tokenizer, chat template, LoRA, kernels.

mod config;
mod error;
mod weights;

pub use config::{Architecture, ModelConfig, RopeScaling, stop_token_ids};
pub use error::{ModelError, Result};
pub use weights::{MapWeights, Weights};
