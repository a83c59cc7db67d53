//! One forward: what a worker records while it decodes, and what the learner computes over packed
//! rows, are the same bits on a CPU, whatever else is in the batch and whatever truncation.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use candle_core::Device;
use tina_model::{
    Adapter, Decoder, Distribution, Dtype, ForwardOptions, LoadOptions, LoraConfig, LoraModule,
    MapWeights, ModelConfig, PackedRows, Scratch,
};

fn config(model_type: &str) -> ModelConfig {
    let json = serde_json::json!({
        "model_type": model_type, "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    ModelConfig::from_hf_json(&json.to_string()).unwrap()
}

fn adapter(config: &ModelConfig) -> Adapter {
    let lora = LoraConfig {
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        rslora: true,
        target_modules: LoraModule::ALL.to_vec(),
    };
    let fresh = Adapter::init(&lora, config, 11, &Device::Cpu).unwrap();
    let some = |t: &candle_core::Tensor| (t.ones_like().unwrap() * 0.01).unwrap();
    let tensors = fresh
        .parameters()
        .iter()
        .map(|t| (t + some(t)).unwrap())
        .collect();
    fresh.with_parameters(tensors).unwrap()
}

/// A sampled completion: tokens and the log-probs that were recorded.
type Completion = (Vec<u32>, Vec<f32>);

/// Decodes the completions of each prompt, `slots` at a time, a sequence leaving when it is done.
fn sample(
    decoder: &Decoder,
    adapter: &Adapter,
    dist: &Distribution,
    prompts: &[Vec<u32>],
    lengths: &[usize],
    slots: usize,
) -> Vec<Vec<Completion>> {
    let mut cache = decoder.new_cache(slots, 128).unwrap();
    let (mut scratch, mut logits) = (Scratch::default(), Vec::new());
    let uniform = |p: usize, c: usize, t: usize| {
        (((p * 7 + c * 131 + t * 17) as f64) * 0.618_033_988_7).fract()
    };
    let mut out: Vec<Vec<Completion>> = prompts.iter().map(|_| Vec::new()).collect();
    let mut waiting: Vec<(usize, usize)> = (0..prompts.len())
        .flat_map(|p| (0..lengths.len()).map(move |c| (p, c)))
        .rev()
        .collect();
    for done in &mut out {
        done.resize(lengths.len(), (Vec::new(), Vec::new()));
    }
    let mut active: Vec<Option<(usize, usize)>> = vec![None; slots];
    loop {
        for slot in 0..slots {
            if active[slot].is_none()
                && let Some((p, c)) = waiting.pop()
            {
                let (kv, logits) = decoder
                    .prefill(&mut cache, &[&prompts[p]], Some(adapter))
                    .unwrap()
                    .remove(0);
                cache.attach(slot, &kv).unwrap();
                let first = dist.sample(&logits, uniform(p, c, 0), &mut scratch);
                out[p][c].0.push(first.token);
                out[p][c].1.push(first.logprob);
                active[slot] = Some((p, c));
            }
        }
        let step: Vec<(usize, u32)> = active
            .iter()
            .enumerate()
            .filter_map(|(slot, a)| a.map(|(p, c)| (slot, *out[p][c].0.last().unwrap())))
            .collect();
        if step.is_empty() {
            return out;
        }
        decoder
            .decode(&mut cache, &step, Some(adapter), &mut logits)
            .unwrap();
        let vocab = decoder.config().vocab_size;
        for ((slot, _), logits) in step.iter().zip(logits.chunks_exact(vocab)) {
            let (p, c) = active[*slot].unwrap();
            let place = &mut out[p][c];
            let drawn = dist.sample(logits, uniform(p, c, place.0.len()), &mut scratch);
            place.0.push(drawn.token);
            place.1.push(drawn.logprob);
            if place.0.len() >= lengths[c] {
                cache.release(*slot);
                active[*slot] = None;
            }
        }
    }
}

fn bits(completions: &[Vec<Completion>]) -> Vec<Vec<(Vec<u32>, Vec<u32>)>> {
    let one = |c: &Completion| (c.0.clone(), c.1.iter().map(|x| x.to_bits()).collect());
    completions
        .iter()
        .map(|g| g.iter().map(one).collect())
        .collect()
}

#[test]
fn recorded_and_recomputed_log_probs_are_equal_to_the_last_bit() {
    let formats = [Dtype::F32, Dtype::Bf16];
    let families = ["llama", "qwen2", "qwen3"];
    for (model_type, dtype) in families.iter().flat_map(|t| formats.map(|d| (t, d))) {
        let config = config(model_type);
        let weights = MapWeights::random(&config, 1).unwrap();
        let options = LoadOptions {
            dtype,
            ..LoadOptions::new(Device::Cpu, false)
        };
        let decoder = Decoder::load(&config, &weights, &options).unwrap();
        let adapter = adapter(&config);
        let prompts: Vec<Vec<u32>> = vec![
            (3..20).collect(),
            vec![5],
            (100..133).map(|t| t * 2).collect(),
        ];
        let lengths = [2, 9, 30, 17];
        for dist in [
            Distribution::FULL,
            Distribution {
                temperature: 0.7,
                top_p: 0.9,
                top_k: 50,
                min_p: 0.01,
            },
        ] {
            let batched = sample(&decoder, &adapter, &dist, &prompts, &lengths, 5);
            let alone = sample(&decoder, &adapter, &dist, &prompts, &lengths, 1);
            assert_eq!(
                bits(&batched),
                bits(&alone),
                "{model_type}, {dtype:?}: a batch of 5 against 1"
            );
            let mut rows = PackedRows::new();
            let mut targets = Vec::new();
            for (prompt, group) in prompts.iter().zip(&batched) {
                let tokens: Vec<&[u32]> = group.iter().map(|c| c.0.as_slice()).collect();
                targets.extend(rows.push_group(0, prompt, &tokens));
            }
            let mut tape = decoder
                .forward(&rows, Some(&adapter), &ForwardOptions::default())
                .unwrap();
            let recorded = batched.iter().flatten().map(|c| &c.1);
            for (targets, recorded) in targets.iter().zip(recorded) {
                let again = decoder.log_probs(&mut tape, targets, &dist).unwrap();
                let again: Vec<u32> = again.iter().map(|t| t.logprob.to_bits()).collect();
                let recorded: Vec<u32> = recorded.iter().map(|x| x.to_bits()).collect();
                assert_eq!(
                    again, recorded,
                    "{model_type}, {dtype:?}: learner against worker"
                );
            }
        }
    }
}

#[test]
fn the_composed_path_agrees_with_the_fused_one() {
    let config = config("qwen3");
    let weights = MapWeights::random(&config, 1).unwrap();
    let adapter = adapter(&config);
    let prompts: Vec<Vec<u32>> = vec![(3..20).collect(), vec![5, 6]];
    let mut found = Vec::new();
    for fused in [true, false] {
        let options = LoadOptions {
            fused,
            ..LoadOptions::new(Device::Cpu, false)
        };
        let decoder = Decoder::load(&config, &weights, &options).unwrap();
        found.push(sample(
            &decoder,
            &adapter,
            &Distribution::FULL,
            &prompts,
            &[5, 12, 8],
            4,
        ));
    }
    for (a, b) in found[0].iter().flatten().zip(found[1].iter().flatten()) {
        assert_eq!(a.0, b.0);
        for (x, y) in a.1.iter().zip(&b.1) {
            assert!((x - y).abs() < 1e-4);
        }
    }
}
