//! The policy: architecture, weights, tokenizer, chat template, LoRA, kernels.

mod adapter;
mod chat;
mod composed;
mod config;
mod decoder;
mod distribution;
mod dropout;
mod error;
mod host;
pub mod kernels;
mod kv;
mod load;
mod lora;
mod memory;
mod packed_rows;
mod random;
mod source;
mod tape;
mod tensors;
mod tokenizer;
mod weights;

pub use adapter::{Adapter, adapter_digest};
pub use chat::{ChatMessage, ChatTemplate};
pub use config::{Architecture, ModelConfig, RopeScaling, stop_token_ids};
pub use decoder::{Decoder, PREFILL_ROWS};
pub use distribution::{Distribution, Sampled, Scratch, TokenLogProb, each_row};
pub use dropout::Dropout;
pub use error::{ModelError, Result};
pub use kv::{KvCache, OpenPrompt, PromptKv};
pub use load::{Dtype, LoadOptions, parse_device};
pub use lora::{LoraConfig, LoraModule};
pub use memory::{PassMemory, PassShape};
pub use packed_rows::{PackedRows, Target};
pub use source::{DatasetFile, Model, ModelSource, TextModel, gguf_file, open, open_text};
pub use tape::{ForwardOptions, Gradients, Keep, Tape};
pub use tokenizer::Tokenizer;
pub use weights::{
    MapWeights, Weights,
    blocks::{Bits, Blocks},
};
