//! Logits equal those of candle-transformers' own Llama, Qwen2 and Qwen3 on random weights, with
//! and without LoRA (which candle gets merged into its weights).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, qwen2, qwen3};
use tina_model::{Adapter, Decoder, LoadOptions, LoraConfig, LoraModule, MapWeights, ModelConfig};

const TOKENS: [u32; 11] = [1, 17, 3, 250, 99, 4, 4, 180, 63, 7, 201];

fn config(json: serde_json::Value) -> ModelConfig {
    ModelConfig::from_hf_json(&json.to_string()).unwrap()
}

fn shape(model_type: &str, tied: bool, extra: serde_json::Value) -> serde_json::Value {
    let mut json = serde_json::json!({
        "model_type": model_type, "vocab_size": 256, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": tied,
    });
    for (key, value) in extra.as_object().unwrap() {
        json[key] = value.clone();
    }
    json
}

/// An adapter whose B is not zero.
fn adapter(config: &ModelConfig) -> Adapter {
    let lora = LoraConfig {
        rank: 4,
        alpha: 6.0,
        dropout: 0.0,
        rslora: false,
        target_modules: LoraModule::ALL.to_vec(),
    };
    let fresh = Adapter::init(&lora, config, 5, &Device::Cpu).unwrap();
    let tensors = fresh
        .parameters()
        .iter()
        .enumerate()
        .map(|(i, t)| {
            let n = t.elem_count();
            let wave: Vec<f32> = (0..n)
                .map(|j| ((i * 31 + j * 7) as f32 * 0.37).sin() * 0.1)
                .collect();
            Tensor::from_vec(wave, t.dims(), &Device::Cpu).unwrap()
        })
        .collect();
    fresh.with_parameters(tensors).unwrap()
}

/// W + s B A for every pair.
fn merged(weights: &MapWeights, adapter: &Adapter) -> HashMap<String, Tensor> {
    let mut map: HashMap<String, Tensor> = weights.0.clone().into_iter().collect();
    let names = adapter.parameter_names();
    let tensors = adapter.parameters();
    for pair in 0..names.len() / 2 {
        let name = names[2 * pair]
            .replace("base_model.model.", "")
            .replace(".lora_A.weight", ".weight");
        let update = tensors[2 * pair + 1].matmul(&tensors[2 * pair]).unwrap();
        let scale = f64::from(adapter.config().scale());
        let sum = (&map[&name] + (update * scale).unwrap()).unwrap();
        map.insert(name, sum);
    }
    map
}

/// Logits of every position by our decoder: each prefix is a prompt.
fn ours(decoder: &Decoder, adapter: Option<&Adapter>) -> Vec<Vec<f32>> {
    let mut cache = decoder.new_cache(1, 64).unwrap();
    (1..=TOKENS.len())
        .map(|n| {
            decoder
                .prefill(&mut cache, &[&TOKENS[..n]], adapter)
                .unwrap()
                .remove(0)
                .1
        })
        .collect()
}

fn check(config: &ModelConfig, theirs: &dyn Fn(HashMap<String, Tensor>) -> Vec<Vec<f32>>) {
    let weights = MapWeights::random(config, 3).unwrap();
    let adapter = adapter(config);
    for fused in [true, false] {
        let options = LoadOptions {
            fused,
            ..LoadOptions::new(Device::Cpu, false)
        };
        let decoder = Decoder::load(config, &weights, &options).unwrap();
        for lora in [None, Some(&adapter)] {
            let map = match lora {
                None => weights.0.clone().into_iter().collect(),
                Some(adapter) => merged(&weights, adapter),
            };
            for (a, b) in ours(&decoder, lora).iter().zip(theirs(map)) {
                for (a, b) in a.iter().zip(b) {
                    assert!((a - b).abs() <= 1e-4, "{a} against {b}, fused {fused}");
                }
            }
        }
    }
    let plain = Decoder::load(config, &weights, &LoadOptions::new(Device::Cpu, false)).unwrap();
    assert_ne!(
        ours(&plain, None),
        ours(&plain, Some(&adapter)),
        "LoRA changes something"
    );
}

/// Candle's models give the logits of the last position: one run a prefix.
fn by_prefix(mut run: impl FnMut(&Tensor) -> Tensor) -> Vec<Vec<f32>> {
    (1..=TOKENS.len())
        .map(|n| {
            let input = Tensor::new(&TOKENS[..n], &Device::Cpu)
                .unwrap()
                .unsqueeze(0)
                .unwrap();
            run(&input).flatten_all().unwrap().to_vec1().unwrap()
        })
        .collect()
}

#[test]
fn llama_equals_candles() {
    for (tied, theta) in [(true, 10_000.0), (false, 100_000.0)] {
        let json = shape("llama", tied, serde_json::json!({ "rope_theta": theta }));
        let reference: llama::LlamaConfig = serde_json::from_value(json.clone()).unwrap();
        let reference = reference.into_config(false);
        check(&config(json), &|map| {
            let vb = VarBuilder::from_tensors(map, DType::F32, &Device::Cpu);
            let model = llama::Llama::load(vb, &reference).unwrap();
            by_prefix(|input| {
                let mut cache =
                    llama::Cache::new(false, DType::F32, &reference, &Device::Cpu).unwrap();
                model.forward(input, 0, &mut cache).unwrap()
            })
        });
    }
}

#[test]
fn llama3_rope_scaling_equals_candles() {
    let json = shape(
        "llama",
        true,
        serde_json::json!({
            "max_position_embeddings": 64,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
        }),
    );
    let reference: llama::LlamaConfig = serde_json::from_value(json.clone()).unwrap();
    let reference = reference.into_config(false);
    check(&config(json), &|map| {
        let vb = VarBuilder::from_tensors(map, DType::F32, &Device::Cpu);
        let model = llama::Llama::load(vb, &reference).unwrap();
        by_prefix(|input| {
            let mut cache = llama::Cache::new(false, DType::F32, &reference, &Device::Cpu).unwrap();
            model.forward(input, 0, &mut cache).unwrap()
        })
    });
}

#[test]
fn qwen2_equals_candles() {
    for tied in [true, false] {
        let extra = serde_json::json!({
            "use_sliding_window": false, "sliding_window": 512, "max_window_layers": 3,
        });
        let json = shape("qwen2", tied, extra);
        let reference: qwen2::Config = serde_json::from_value(json.clone()).unwrap();
        check(&config(json), &|map| {
            let vb = VarBuilder::from_tensors(map, DType::F32, &Device::Cpu);
            let mut model = qwen2::ModelForCausalLM::new(&reference, vb).unwrap();
            by_prefix(|input| {
                model.clear_kv_cache();
                model.forward(input, 0).unwrap()
            })
        });
    }
}

#[test]
fn qwen3_equals_candles() {
    for tied in [true, false] {
        let extra = serde_json::json!({
            "head_dim": 16, "attention_bias": false, "use_sliding_window": false,
            "sliding_window": null, "max_window_layers": 3,
        });
        let json = shape("qwen3", tied, extra);
        let reference: qwen3::Config = serde_json::from_value(json.clone()).unwrap();
        check(&config(json), &|map| {
            let vb = VarBuilder::from_tensors(map, DType::F32, &Device::Cpu);
            let mut model = qwen3::ModelForCausalLM::new(&reference, vb).unwrap();
            by_prefix(|input| {
                model.clear_kv_cache();
                model.forward(input, 0).unwrap()
            })
        });
    }
}
