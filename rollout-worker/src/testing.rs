//! A tiny random model, for tests.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use tina_model::{Adapter, Decoder, LoadOptions, LoraConfig, LoraModule, MapWeights, ModelConfig};
use tina_proto::v1::PolicyVersion;

use crate::{
    check::{AdapterSwap, RunPlan},
    seed::Uniforms,
    stop::TokenText,
};

const LAYERS: usize = 2;
pub(crate) const VOCAB: usize = 40;
pub(crate) const LONGEST: usize = 64;

/// Token 0 is "a", 1 is "b" ...
pub(crate) struct Letters;

impl TokenText for Letters {
    fn text(&self, tokens: &[u32]) -> Result<String, String> {
        Ok(tokens
            .iter()
            .map(|&token| char::from(b'a' + (token % 26) as u8))
            .collect())
    }
}

fn config_json() -> String {
    format!(
        r#"{{"model_type": "llama", "vocab_size": {VOCAB}, "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": {LAYERS}, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true}}"#
    )
}

pub(crate) fn config() -> ModelConfig {
    ModelConfig::from_hf_json(&config_json()).unwrap()
}

/// The same in every test.
fn weights() -> BTreeMap<String, Tensor> {
    let mut uniforms = Uniforms::new(7, &[0; 32], 0, &[0; 32]);
    let mut tensor = |shape: &[usize], scale: f64| {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| ((uniforms.next_uniform() - 0.5) * scale) as f32)
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let ones = |n: usize| Tensor::ones(n, DType::F32, &Device::Cpu).unwrap();
    let mut weights = BTreeMap::new();
    weights.insert(
        "model.embed_tokens.weight".to_owned(),
        tensor(&[VOCAB, 16], 3.0),
    );
    weights.insert("model.norm.weight".to_owned(), ones(16));
    for layer in 0..LAYERS {
        let mut add = |name: &str, tensor: Tensor| {
            weights.insert(format!("model.layers.{layer}.{name}.weight"), tensor);
        };
        add("input_layernorm", ones(16));
        add("post_attention_layernorm", ones(16));
        for (name, shape) in [
            ("self_attn.q_proj", [16, 16]),
            ("self_attn.k_proj", [8, 16]),
            ("self_attn.v_proj", [8, 16]),
            ("self_attn.o_proj", [16, 16]),
            ("mlp.gate_proj", [32, 16]),
            ("mlp.up_proj", [32, 16]),
            ("mlp.down_proj", [16, 32]),
        ] {
            add(name, tensor(&shape, 1.0));
        }
    }
    weights
}

pub(crate) fn decoder() -> Arc<Decoder> {
    let options = LoadOptions::new(Device::Cpu, false);
    Arc::new(Decoder::load(&config(), &MapWeights(weights()), &options).unwrap())
}

/// Writes the model in Hugging Face layout; its tokens are letters and then `<26>`, `<27>` ...
pub(crate) fn write_model(folder: &Path) {
    let vocab: HashMap<String, usize> = (0..VOCAB)
        .map(|id| match u8::try_from(id) {
            Ok(id) if id < 26 => (char::from(b'a' + id).to_string(), id.into()),
            _ => (format!("<{id}>"), id),
        })
        .collect();
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(folder.join("config.json"), config_json()).unwrap();
    let weights: HashMap<String, Tensor> = weights().into_iter().collect();
    candle_core::safetensors::save(&weights, folder.join("model.safetensors")).unwrap();
}

pub(crate) fn plan() -> RunPlan {
    RunPlan {
        seed: 42,
        lora: LoraConfig {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            rslora: false,
            target_modules: LoraModule::ALL.to_vec(),
        },
        probe: vec![1, 2, 3, 4],
        vocab_size: VOCAB,
        max_sequence_tokens: LONGEST,
        swap: AdapterSwap::Drain,
    }
}

/// An adapter that changes what the model says: `shift` moves every parameter.
pub(crate) fn adapter(shift: f64) -> (PolicyVersion, Vec<u8>) {
    let adapter = Adapter::init(&plan().lora, &config(), 3, &Device::Cpu).unwrap();
    let moved = adapter
        .parameters()
        .iter()
        .map(|p| (p + shift).unwrap())
        .collect();
    let bytes = adapter
        .with_parameters(moved)
        .unwrap()
        .to_safetensors()
        .unwrap();
    (PolicyVersion::of_bytes(1, &bytes), bytes)
}
