//! Models, tokenizers and adapters, through the doors that a run uses.

use std::{collections::BTreeMap, path::PathBuf};

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use serde_json::{Value, json};
use tina_model::{
    Adapter, LoraConfig, LoraModule, MapWeights, ModelConfig, ModelSource, Tokenizer, open,
    stop_token_ids,
};

use crate::{file, place};

/// Tokens of the tiny model's vocabulary.
const VOCABULARY: usize = 32;

/// `config.json` of a model of two layers.
fn config() -> Value {
    json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY,
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "eos_token_id": 2,
    })
}

/// The tiny model's shape.
pub fn shape() -> ModelConfig {
    ModelConfig::from_hf_json(&config().to_string()).expect("a config")
}

/// Letters of GPT-2's byte alphabet, two merges' worth of pairs, and two special tokens.
fn tokens() -> Vec<String> {
    let letters = (b'a'..=b'z').map(|letter| char::from(letter).to_string());
    let others = ["<|end|>", "<|start|>", "\u{120}", "ab", "cd", "abcd"].map(str::to_owned);
    letters.chain(others).collect()
}

const MERGES: [&str; 3] = ["a b", "c d", "ab cd"];

fn tokenizer_json() -> Value {
    let tokens = tokens();
    let vocab: BTreeMap<&str, usize> = tokens.iter().map(String::as_str).zip(0..).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{
            "id": 26, "content": "<|end|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                           "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                     "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": MERGES, "unk_token": null },
    })
}

fn safetensors_of(tensors: BTreeMap<String, Tensor>) -> Vec<u8> {
    let path = file("seed.safetensors", &[]);
    candle_core::safetensors::save(&tensors.into_iter().collect(), &path).expect("saved");
    std::fs::read(path).expect("read")
}

/// Opens a model, and reads every one of its weights.
fn read_whole(source: &ModelSource) {
    let Ok(model) = open(source) else { return };
    for (name, shape) in model.text.config.tensors() {
        let _ = model.weights.load(&name, &shape);
    }
    let _ = model.text.tokenizer.encode("abcd ab<|end|>");
}

/// A GGUF file: header, metadata, tokenizer, template, and tensors of several types.
pub mod gguf {
    use super::*;

    /// Opens it as a model.
    pub fn run(bytes: &[u8]) {
        read_whole(&ModelSource::Gguf(file("model.gguf", bytes)));
    }

    /// A Llama in blocks of four and eight bits, and a Qwen in floats.
    pub fn seeds() -> Vec<Vec<u8>> {
        let types = [
            &[GgmlDType::Q4_0, GgmlDType::Q8_0][..],
            &[GgmlDType::F32, GgmlDType::BF16, GgmlDType::F16],
        ];
        let names = ["llama", "qwen2"];
        names
            .iter()
            .zip(types)
            .map(|(name, types)| seed(name, types))
            .collect()
    }

    fn seed(architecture: &str, types: &[GgmlDType]) -> Vec<u8> {
        use gguf_file::Value as V;
        let number = V::U32;
        let texts = |all: &[&str]| {
            V::Array(
                all.iter()
                    .map(|text| V::String((*text).to_owned()))
                    .collect(),
            )
        };
        let tokens = tokens();
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let kinds = (0..VOCABULARY).map(|id| V::I32(if id == 26 || id == 27 { 3 } else { 1 }));
        let keyed = |key: &str| format!("{architecture}.{key}");
        let metadata = [
            (
                "general.architecture".to_owned(),
                V::String(architecture.to_owned()),
            ),
            ("general.alignment".to_owned(), number(32)),
            (keyed("embedding_length"), number(32)),
            (keyed("feed_forward_length"), number(64)),
            (keyed("block_count"), number(2)),
            (keyed("attention.head_count"), number(4)),
            (keyed("attention.head_count_kv"), number(2)),
            (keyed("context_length"), number(64)),
            (keyed("attention.layer_norm_rms_epsilon"), V::F32(1e-5)),
            (keyed("rope.freq_base"), V::F32(1e4)),
            (
                "tokenizer.ggml.model".to_owned(),
                V::String("gpt2".to_owned()),
            ),
            (
                "tokenizer.ggml.pre".to_owned(),
                V::String("qwen2".to_owned()),
            ),
            ("tokenizer.ggml.tokens".to_owned(), texts(&tokens)),
            (
                "tokenizer.ggml.token_type".to_owned(),
                V::Array(kinds.collect()),
            ),
            ("tokenizer.ggml.merges".to_owned(), texts(&MERGES)),
            ("tokenizer.ggml.eos_token_id".to_owned(), number(26)),
            ("tokenizer.ggml.add_bos_token".to_owned(), V::Bool(false)),
            (
                "tokenizer.chat_template".to_owned(),
                V::String("{% for m in messages %}{{ m.content }}{% endfor %}".to_owned()),
            ),
        ];
        let metadata: Vec<(&str, &V)> = metadata
            .iter()
            .map(|(key, value)| (key.as_str(), value))
            .collect();
        let shape = ModelConfig {
            qkv_bias: architecture == "qwen2",
            ..shape()
        };
        let random = MapWeights::random(&shape, 3).expect("weights").0;
        let tensors: Vec<(String, QTensor)> = random
            .into_iter()
            .enumerate()
            .map(|(at, (name, tensor))| {
                let plain = tensor.to_dtype(DType::F32).expect("floats");
                let dtype = match tensor.rank() {
                    1 => GgmlDType::F32,
                    _ => types[at % types.len()],
                };
                let stored = QTensor::quantize(&plain, dtype).expect("quantised");
                (gguf_name(&name), stored)
            })
            .collect();
        let tensors: Vec<(&str, &QTensor)> = tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect();
        let mut out = std::io::Cursor::new(Vec::new());
        gguf_file::write(&mut out, &metadata, &tensors).expect("written");
        out.into_inner()
    }

    fn gguf_name(name: &str) -> String {
        let pairs = [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("model.layers", "blk"),
            ("post_attention_layernorm", "ffn_norm"),
            ("input_layernorm", "attn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ];
        pairs
            .iter()
            .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
    }
}

/// A folder in Hugging Face layout with this file in it; gives the file's place.
fn folder(of: &str, name: &str, bytes: &[u8]) -> PathBuf {
    let there = format!("{of}/config.json");
    if !place(&there).exists() {
        file(&there, config().to_string().as_bytes());
        let tokenizer = tokenizer_json().to_string();
        file(&format!("{of}/tokenizer.json"), tokenizer.as_bytes());
    }
    file(&format!("{of}/{name}"), bytes)
}

fn parent(path: PathBuf) -> ModelSource {
    ModelSource::Folder(path.parent().map(PathBuf::from).unwrap_or_default())
}

/// `model.safetensors`: header and weights.
pub mod safetensors {
    use super::*;

    /// Opens it with a folder around it.
    pub fn run(bytes: &[u8]) {
        read_whole(&parent(folder("plain", "model.safetensors", bytes)));
    }

    /// All weights, in f32 and in bf16; and a header alone.
    pub fn seeds() -> Vec<Vec<u8>> {
        let weights = MapWeights::random(&shape(), 5).expect("weights").0;
        let narrow = weights
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.to_dtype(DType::BF16).expect("narrow")))
            .collect();
        let one = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).expect("a tensor");
        let small = BTreeMap::from([("model.norm.weight".to_owned(), one)]);
        [weights, narrow, small].map(safetensors_of).to_vec()
    }
}

/// `model.safetensors.index.json`.
pub mod shard_index {
    use super::*;

    /// Opens it with a folder and one shard around it.
    pub fn run(bytes: &[u8]) {
        if !place("sharded/one.safetensors").exists() {
            let weights = MapWeights::random(&shape(), 5).expect("weights").0;
            folder("sharded", "one.safetensors", &safetensors_of(weights));
        }
        read_whole(&parent(folder(
            "sharded",
            "model.safetensors.index.json",
            bytes,
        )));
    }

    /// All weights in one shard.
    pub fn seeds() -> Vec<Vec<u8>> {
        let names = shape().tensors().into_iter().map(|(name, _)| name);
        let map: BTreeMap<String, &str> = names.map(|name| (name, "one.safetensors")).collect();
        let few: BTreeMap<_, _> = map.iter().take(2).collect();
        [
            json!({ "weight_map": map }),
            json!({ "metadata": {}, "weight_map": few }),
        ]
        .map(|index| index.to_string().into_bytes())
        .to_vec()
    }
}

/// `config.json`, and the ids that end a completion.
pub mod hf_config {
    use super::*;

    /// Reads it, and computes what a decoder first asks of it.
    pub fn run(bytes: &[u8]) {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        let _ = stop_token_ids(text, Some(text));
        if let Ok(config) = ModelConfig::from_hf_json(text) {
            let (frequencies, _) = config.rope_frequencies();
            assert_eq!(frequencies.len(), config.head_dim / 2);
            assert!(config.parameter_count() > 0);
        }
    }

    /// Llama and Qwen, with each way to stretch positions.
    pub fn seeds() -> Vec<Vec<u8>> {
        let ropes = [
            Value::Null,
            json!({ "rope_type": "linear", "factor": 2.0 }),
            json!({ "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 32 }),
            json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
                    "beta_fast": 32.0, "beta_slow": 1.0 }),
        ];
        let with = |rope: Value| {
            let mut config = config();
            config["rope_scaling"] = rope;
            config["eos_token_id"] = json!([2, 3]);
            config
        };
        let mut all: Vec<Value> = ropes.into_iter().map(with).collect();
        let mut qwen = config();
        qwen["model_type"] = json!("qwen3");
        qwen["architectures"] = json!(["Qwen3ForCausalLM"]);
        qwen["head_dim"] = json!(8);
        qwen["use_sliding_window"] = json!(false);
        all.push(qwen);
        all.iter()
            .map(|config| config.to_string().into_bytes())
            .collect()
    }
}

/// `tokenizer.json`.
pub mod tokenizer {
    use super::*;

    /// Reads it, and goes from a text to ids and back.
    pub fn run(bytes: &[u8]) {
        let Ok(tokenizer) = Tokenizer::from_json(bytes) else {
            return;
        };
        if let Ok(ids) = tokenizer.encode("abcd ab\u{e9}\u{1f600}<|end|> zz") {
            let _ = tokenizer.decode(&ids, true);
        }
        let _ = tokenizer.decode(&[0, 31, u32::MAX], false);
        let _ = tokenizer.encode_document("ab");
    }

    /// Byte-level BPE, and whole words.
    pub fn seeds() -> Vec<Vec<u8>> {
        let mut words = tokenizer_json();
        words["model"] =
            json!({ "type": "WordLevel", "vocab": { "ab": 0, "?": 1 }, "unk_token": "?" });
        words["pre_tokenizer"] = json!({ "type": "Whitespace" });
        words["decoder"] = json!({ "type": "Fuse" });
        [tokenizer_json(), words]
            .map(|tokenizer| tokenizer.to_string().into_bytes())
            .to_vec()
    }
}

/// The tiny adapter's shape.
pub fn lora() -> LoraConfig {
    LoraConfig {
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        rslora: false,
        target_modules: vec![LoraModule::Q, LoraModule::V],
    }
}

/// PEFT's `adapter_model.safetensors`, which also crosses the wire.
pub mod adapter {
    use super::*;

    /// Reads it as the adapter of the tiny model; what is taken is written alike.
    pub fn run(bytes: &[u8]) {
        let read = |bytes: &[u8]| Adapter::from_safetensors(bytes, &lora(), &shape(), &Device::Cpu);
        if let Ok(adapter) = read(bytes) {
            let written = adapter
                .to_safetensors()
                .expect("what was read can be written");
            let again = read(&written).expect("what was written can be read");
            assert_eq!(again.to_safetensors().ok(), Some(written));
        }
    }

    /// One that was just made, in f32, and the same in bf16.
    pub fn seeds() -> Vec<Vec<u8>> {
        let fresh = Adapter::init(&lora(), &shape(), 1, &Device::Cpu).expect("an adapter");
        let names = fresh.parameter_names().into_iter();
        let narrow = names
            .zip(fresh.parameters())
            .map(|(name, tensor)| (name, tensor.to_dtype(DType::BF16).expect("narrow")))
            .collect();
        vec![
            fresh.to_safetensors().expect("written"),
            safetensors_of(narrow),
        ]
    }
}

/// PEFT's `adapter_config.json`.
pub mod adapter_config {
    use super::*;

    /// Reads it; what is taken is written alike.
    pub fn run(bytes: &[u8]) {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        if let Ok(config) = LoraConfig::from_peft_json(text) {
            let again = LoraConfig::from_peft_json(&config.peft_json("base"));
            assert_eq!(again.ok(), Some(config));
        }
    }

    /// One as Tina writes it.
    pub fn seeds() -> Vec<Vec<u8>> {
        vec![lora().peft_json("base").into_bytes()]
    }
}
