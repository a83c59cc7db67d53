//! A tiny random model and made-up batches for this crate's tests.

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use tina_model::{
    Adapter, Decoder, Distribution, LoadOptions, LoraConfig, LoraModule, MapWeights, ModelConfig,
};
use tina_proto::v1::{AlgorithmSpec, LearnerSpec, LoraSpec, ModelSpec, PolicyVersion, RunSpec};

use crate::{
    adamw::AdamWConfig,
    advantage::Scale,
    batch::{Batch, Group, Sample},
    loss::{Loss, Name},
    schedule::Schedule,
    settings::TrainSettings,
};

pub(crate) fn model_config_json() -> String {
    serde_json::json!({
        "model_type": "llama", "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "tie_word_embeddings": true,
    })
    .to_string()
}

pub(crate) fn decoder() -> Arc<Decoder> {
    let config = ModelConfig::from_hf_json(&model_config_json()).unwrap();
    let weights = MapWeights::random(&config, 5).unwrap();
    let options = LoadOptions::new(Device::Cpu, true);
    Arc::new(Decoder::load(&config, &weights, &options).unwrap())
}

/// A folder with the model of [`decoder`].
pub(crate) fn write_model(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let json = model_config_json();
    let config = ModelConfig::from_hf_json(&json).unwrap();
    let weights = MapWeights::random(&config, 5).unwrap();
    let vocab: HashMap<String, usize> = (0..config.vocab_size)
        .map(|id| (format!("<{id}>"), id))
        .collect();
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<0>"},
    });
    fs::write(folder.join("config.json"), json).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let weights: HashMap<String, candle_core::Tensor> = weights.0.into_iter().collect();
    candle_core::safetensors::save(&weights, folder.join("model.safetensors")).unwrap();
}

/// The specification of a run of the model in `folder/model`, with these settings; the loss is GRPO.
pub(crate) fn run_spec(folder: &Path, train: &TrainSettings) -> RunSpec {
    let loss = &train.loss;
    RunSpec {
        run_id: "run".to_owned(),
        seed: train.seed,
        model: Some(ModelSpec {
            source: folder.join("model").display().to_string(),
            dtype: "auto".to_owned(),
        }),
        lora: Some(LoraSpec {
            rank: train.lora.rank as u32,
            alpha: train.lora.alpha,
            dropout: train.lora.dropout,
            rslora: train.lora.rslora,
            target_modules: train
                .lora
                .target_modules
                .iter()
                .map(ToString::to_string)
                .collect(),
        }),
        algorithm: Some(AlgorithmSpec {
            loss: "grpo".to_owned(),
            clip_low: Some(loss.clip.low),
            clip_high: Some(loss.clip.high),
            kl_beta: loss.kl.beta,
            iterations: train.iterations,
            mask_truncated: train.mask_truncated,
            advantage: train.advantage.to_string(),
            max_completion_tokens: train.max_completion_tokens as u32,
            ..AlgorithmSpec::default()
        }),
        learner: Some(LearnerSpec {
            lr: train.schedule.lr,
            min_lr_ratio: train.schedule.min_lr_ratio,
            warmup_steps: train.schedule.warmup_steps,
            schedule_steps: train.schedule.schedule_steps,
            beta1: train.optimiser.beta1,
            beta2: train.optimiser.beta2,
            eps: train.optimiser.eps,
            weight_decay: train.optimiser.weight_decay,
            max_grad_norm: train.max_grad_norm,
            micro_batch_tokens: train.micro_batch_tokens as u32,
            checkpoint_every: 1,
            memory_bytes: None,
            ranks: 1,
            rank_timeout_s: 30.0,
            ranks_by_nccl: false,
        }),
        probe_tokens: train.probe.clone(),
        max_sequence_tokens: 64,
        run_dir: folder.join("run").display().to_string(),
        ..Default::default()
    }
}

pub(crate) fn settings() -> TrainSettings {
    TrainSettings {
        seed: 17,
        lora: LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            rslora: false,
            target_modules: LoraModule::ALL.to_vec(),
        },
        loss: Loss::of(&Name::Grpo.recipe()),
        advantage: Scale::GroupStd,
        max_completion_tokens: 16,
        mask_truncated: false,
        iterations: 1,
        schedule: Schedule {
            lr: 1e-2,
            min_lr_ratio: 0.1,
            warmup_steps: 0,
            schedule_steps: 0,
        },
        optimiser: AdamWConfig {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.01,
        },
        max_grad_norm: 1.0,
        micro_batch_tokens: 1000,
        memory: None,
        probe: vec![1, 2, 3, 4],
    }
}

/// A fresh adapter has B = 0, which hides mistakes: this one does something.
pub(crate) fn lively(adapter: &Adapter) -> Adapter {
    let wave = |i: usize, t: &Tensor| {
        let values = (0..t.elem_count())
            .map(|j| ((i * 31 + j) as f32).sin() * 0.1)
            .collect();
        Tensor::from_vec::<_, f32>(values, t.dims(), &Device::Cpu).unwrap()
    };
    let tensors = adapter
        .parameters()
        .iter()
        .enumerate()
        .map(|(i, t)| wave(i, t))
        .collect();
    adapter.with_parameters(tensors).unwrap()
}

/// Log-probs of the completion's tokens, as sampling under `adapter` records them.
pub(crate) fn log_probs(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    prompt: &[u32],
    completion: &[u32],
    distribution: &Distribution,
) -> Vec<f32> {
    let tokens = [prompt, completion].concat();
    let all = decoder
        .sequence_log_probs(&tokens, adapter, distribution)
        .unwrap();
    all[prompt.len() - 1..].to_vec()
}

/// Groups of completions of different lengths whose rewards differ, "sampled" by `adapter`.
pub(crate) fn batch(decoder: &Decoder, adapter: &Adapter, version: &PolicyVersion) -> Batch {
    let distribution = Distribution {
        temperature: 0.8,
        ..Distribution::FULL
    };
    let groups = (0..3u32).map(|g| {
        let prompt: Vec<u32> = (0..3 + g).map(|i| (7 * i + 5 * g + 1) % 48).collect();
        let samples = (0..4u32).map(|s| {
            let tokens: Vec<u32> = (0..1 + (s * 2 + g) % 6)
                .map(|i| (11 * i + 3 * s + 13 * g + 2) % 48)
                .collect();
            Sample {
                index: s,
                logprobs: log_probs(decoder, Some(adapter), &prompt, &tokens, &distribution),
                tokens,
                // No reward is the group's mean, so every completion has an advantage.
                reward: Some(f64::from(s * s + g)),
                truncated: false,
                staleness: (0, 0),
            }
        });
        let samples = samples.collect();
        Group {
            id: u64::from(100 + g),
            prompt: prompt.clone(),
            distribution,
            samples,
        }
    });
    Batch {
        version: version.clone(),
        groups: groups.collect(),
    }
}
