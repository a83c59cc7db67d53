//! A model on disk that is small, and whose adapter is as large as one of a model of 1.5B.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device};
use serde_json::json;
use tina_model::{Adapter, LoraConfig, LoraModule, ModelConfig, Weights as _};

use crate::{
    error::{BenchError, Result},
    shapes::RandomWeights,
};

const VOCABULARY: usize = 512;
/// Bytes between two numbers that change from one adapter to the next.
const STRIDE: usize = 1 << 20;
/// The length of a safetensors header, as the file begins with it.
const LENGTH_BYTES: usize = 8;

/// The model's folder, and adapters for it.
pub(super) struct Subject {
    folder: PathBuf,
    rank: u32,
    bytes: Vec<u8>,
    made: u64,
}

fn shape() -> serde_json::Value {
    // As many layers as 1.5B has, and so as many tensors in the adapter; all of it narrower.
    json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 512,
        "intermediate_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 8,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0, "hidden_act": "silu", "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
    })
}

impl Subject {
    /// Writes the model into the folder, and makes an adapter of this rank on all linears.
    pub(super) fn new(folder: &Path, rank: u32) -> Result<Self> {
        let shape = shape();
        let config = ModelConfig::from_hf_json(&shape.to_string())?;
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(BenchError::file(&path))
        };
        write("config.json", shape.to_string())?;
        let vocabulary: BTreeMap<String, usize> =
            (0..VOCABULARY).map(|id| (format!("<{id}>"), id)).collect();
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [],
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<0>" },
        });
        write("tokenizer.json", tokenizer.to_string())?;
        let random = RandomWeights(&config);
        let mut weights = HashMap::new();
        for (name, shape) in config.tensors() {
            let tensor = random.load(&name, &shape)?.to_dtype(DType::BF16)?;
            weights.insert(name, tensor);
        }
        candle_core::safetensors::save(&weights, folder.join("model.safetensors"))?;
        let lora = LoraConfig {
            rank: rank as usize,
            alpha: 2.0 * rank as f32,
            dropout: 0.0,
            rslora: false,
            target_modules: LoraModule::ALL.to_vec(),
        };
        let bytes = Adapter::init(&lora, &config, 1, &Device::Cpu)?.to_safetensors()?;
        Ok(Self {
            folder: folder.to_owned(),
            rank,
            bytes,
            made: 0,
        })
    }

    pub(super) fn adapter_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// An adapter as no one before.
    pub(super) fn next_adapter(&mut self) -> (u64, Vec<u8>) {
        self.made += 1;
        let header = self.bytes.first_chunk::<LENGTH_BYTES>();
        let header = header.map_or(0, |length| u64::from_le_bytes(*length) as usize);
        let value = 1e-3 * self.made as f32;
        let data = &mut self.bytes[LENGTH_BYTES + header..];
        for number in data.chunks_exact_mut(4).step_by(STRIDE / 4) {
            number.copy_from_slice(&value.to_le_bytes());
        }
        (self.made - 1, self.bytes.clone())
    }

    /// The run's config, for workers that take adapters in between two tokens.
    pub(super) fn config(&self, fan_out: u32) -> String {
        format!(
            "[run]\nname = \"spread\"\nsteps = 1\n[model]\nsource = {:?}\n\
             [lora]\nrank = {}\nalpha = {}\n[data]\nsource = \"arithmetic:add1\"\n\
             [sampling]\nmax_tokens = {MOST_TOKENS}\n[[reward]]\nkind = \"numeric\"\n\
             [algorithm]\nmax_staleness = 1\n[rollout]\nslots = 4\n[eval]\nproblems = 0\n\
             [cluster]\nlisten = \"127.0.0.1:0\"\nlaunch = false\nadapter_relay = {}\n\
             adapter_fan_out = {}\n",
            self.folder.display().to_string(),
            self.rank,
            2 * self.rank,
            fan_out > 0,
            fan_out.max(1),
        )
    }
}

/// Of a completion: more than are decoded while an adapter is on its way.
pub(super) const MOST_TOKENS: u32 = 3000;
/// Tokens of a prompt, and of the probe.
pub(super) const PROMPT: std::ops::Range<u32> = 1..17;
/// The model's vocabulary.
pub(super) const VOCABULARY_SIZE: u32 = VOCABULARY as u32;
