use candle_core::{D, DType, Device};

use super::*;
use crate::{
    Distribution, Dtype, LoadOptions, LoraConfig, LoraModule, MapWeights, ModelConfig, Target,
};

fn config(model_type: &str) -> ModelConfig {
    let json = serde_json::json!({
        "model_type": model_type, "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "tie_word_embeddings": model_type == "llama",
    });
    ModelConfig::from_hf_json(&json.to_string()).unwrap()
}

fn adapter(config: &ModelConfig) -> Adapter {
    let lora = LoraConfig {
        rank: 3,
        alpha: 6.0,
        dropout: 0.0,
        rslora: false,
        target_modules: LoraModule::ALL.to_vec(),
    };
    let fresh = Adapter::init(&lora, config, 2, &Device::Cpu).unwrap();
    let wave = |i: usize, t: &Tensor| {
        let n = t.elem_count();
        let values: Vec<f32> = (0..n).map(|j| ((i * 13 + j) as f32).sin() * 0.2).collect();
        Tensor::from_vec(values, t.dims(), &Device::Cpu).unwrap()
    };
    let tensors = fresh
        .parameters()
        .iter()
        .enumerate()
        .map(|(i, t)| wave(i, t))
        .collect();
    fresh.with_parameters(tensors).unwrap()
}

fn rows() -> (PackedRows, Vec<Target>, Vec<f32>) {
    let mut rows = PackedRows::new();
    let mut targets = Vec::new();
    let groups: [(&[u32], &[&[u32]]); 2] = [
        (&[1, 2, 3], &[&[4, 5, 6], &[7], &[8, 9]]),
        (&[11, 12], &[&[13, 14, 15, 16]]),
    ];
    for (key, (prompt, completions)) in groups.into_iter().enumerate() {
        targets.extend(
            rows.push_group(key as u64 * 100, prompt, completions)
                .concat(),
        );
    }
    let d = (0..targets.len()).map(|i| ((i * 5) as f32).cos()).collect();
    (rows, targets, d)
}

/// Σ d_i · log_prob_i in double precision.
fn loss(decoder: &Decoder, adapter: &Adapter, dropout: Option<Dropout>) -> f64 {
    let (rows, targets, d) = rows();
    let options = ForwardOptions {
        keep: Keep::Nothing,
        dropout,
    };
    let tape = decoder.forward(&rows, Some(adapter), &options).unwrap();
    let (Body::Composed(model), TapeBody::Composed(tape)) = (&decoder.body, tape.body) else {
        panic!("double precision is composed");
    };
    let logits = model.output().product(&tape.hidden).unwrap();
    assert_eq!(logits.dtype(), DType::F64);
    let log_sum = logits
        .log_sum_exp(D::Minus1)
        .unwrap()
        .to_vec1::<f64>()
        .unwrap();
    let logits = logits.to_vec2::<f64>().unwrap();
    let term = |(t, d): (&Target, &f32)| {
        let row = t.row as usize;
        f64::from(*d) * (logits[row][t.token as usize] - log_sum[row])
    };
    targets.iter().zip(&d).map(term).sum()
}

fn gradients(decoder: &Decoder, adapter: &Adapter, options: ForwardOptions) -> Vec<Vec<f32>> {
    let (rows, targets, d) = rows();
    let mut tape = decoder.forward(&rows, Some(adapter), &options).unwrap();
    decoder
        .log_probs(&mut tape, &targets, &Distribution::FULL)
        .unwrap();
    let mut sums = decoder.gradients();
    decoder.backward(tape, &d, adapter, &mut sums).unwrap();
    let found = sums.into_tensors(adapter).unwrap().unwrap();
    found
        .iter()
        .map(|g| g.flatten_all().unwrap().to_vec1().unwrap())
        .collect()
}

#[test]
fn lora_gradients_equal_finite_differences_in_f64() {
    for (model_type, dropout) in [
        ("llama", None),
        ("qwen2", Some(Dropout { p: 0.3, seed: 4 })),
        ("qwen3", None),
    ] {
        let config = config(model_type);
        let weights = MapWeights::random(&config, 9).unwrap();
        let load = |dtype, fused| {
            let options = LoadOptions {
                dtype,
                fused,
                ..LoadOptions::new(Device::Cpu, true)
            };
            Decoder::load(&config, &weights, &options).unwrap()
        };
        let double = load(Dtype::F64, false);
        let single = adapter(&config);
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        let parameters: Vec<Tensor> = single.parameters().iter().map(wide).collect();
        let options = ForwardOptions {
            keep: Keep::ALL,
            dropout,
        };
        let fused = gradients(&load(Dtype::F32, true), &single, options);
        let composed = gradients(&load(Dtype::F32, false), &single, options);
        for (i, parameter) in parameters.iter().enumerate() {
            let n = parameter.elem_count();
            for at in [0, n / 3, n - 1] {
                let moved = |by: f64| {
                    let mut all = parameters.clone();
                    let mut values = parameter.flatten_all().unwrap().to_vec1().unwrap();
                    let value: &mut f64 = &mut values[at];
                    *value += by;
                    all[i] = Tensor::from_vec(values, parameter.dims(), &Device::Cpu).unwrap();
                    loss(&double, &single.with_parameters(all).unwrap(), dropout)
                };
                let h = 1e-5;
                let want = (moved(h) - moved(-h)) / (2.0 * h);
                for got in [fused[i][at], composed[i][at]] {
                    let error = (f64::from(got) - want).abs();
                    assert!(
                        error < 2e-4 * (1.0 + want.abs()),
                        "{model_type} {}[{at}]: {got} against {want}",
                        single.parameter_names()[i]
                    );
                }
            }
        }
    }
}

#[test]
fn recomputed_and_kept_layers_give_the_same_gradient_bits_in_any_mixture() {
    let config = ModelConfig {
        layers: 4,
        ..config("qwen3")
    };
    let weights = MapWeights::random(&config, 9).unwrap();
    let adapter = adapter(&config);
    let dropout = Some(Dropout { p: 0.2, seed: 8 });
    for (fused, dtype) in [(true, Dtype::F32), (true, Dtype::Bf16), (false, Dtype::F32)] {
        let options = LoadOptions {
            fused,
            dtype,
            ..LoadOptions::new(Device::Cpu, true)
        };
        let decoder = Decoder::load(&config, &weights, &options).unwrap();
        let run = |keep| gradients(&decoder, &adapter, ForwardOptions { keep, dropout });
        let all = run(Keep::ALL);
        assert_eq!(all, run(Keep::INPUTS));
        let (rows, targets, _) = rows();
        let shape = PassShape::of(&rows, targets.len());
        let memory = decoder.pass_memory(&shape, Some(adapter.config()));
        // With 3 of 4 kept, computing the fourth again would take more than keeping it.
        for kept in 1..3 {
            let bytes = memory.activations(kept);
            assert_eq!(memory.layers_kept(bytes), kept);
            assert_eq!(all, run(Keep::Activations { bytes }), "{kept} kept");
        }
    }
}

/// Rows of `groups` prompts of 5 tokens with 3 completions of `len`.
fn groups(groups: u32, len: u32) -> (PackedRows, Vec<Target>) {
    let mut rows = PackedRows::new();
    let mut targets = Vec::new();
    for group in 0..groups {
        let prompt: Vec<u32> = (0..5).map(|i| (group + i) % 40).collect();
        let completions: Vec<Vec<u32>> = (0..3)
            .map(|c| (0..len).map(|i| (group + 7 * c + i) % 40).collect())
            .collect();
        let completions: Vec<&[u32]> = completions.iter().map(Vec::as_slice).collect();
        targets.extend(
            rows.push_group(u64::from(group) << 8, &prompt, &completions)
                .concat(),
        );
    }
    (rows, targets)
}

#[test]
fn a_tape_holds_what_the_formula_says_and_the_pool_no_more_than_the_largest_pass() {
    for model_type in ["llama", "qwen3"] {
        let config = ModelConfig {
            layers: 5,
            ..config(model_type)
        };
        let weights = MapWeights::random(&config, 9).unwrap();
        let decoder =
            Decoder::load(&config, &weights, &LoadOptions::new(Device::Cpu, true)).unwrap();
        let Body::Host(model) = &decoder.body else {
            panic!("a CPU computes with its own kernels");
        };
        let adapter = adapter(&config);
        let mut largest = 0;
        // All layers of small passes, few of large ones, and back.
        for (n, len, kept) in [
            (1, 6, 5),
            (9, 9, 1),
            (2, 4, 5),
            (6, 9, 2),
            (1, 6, 5),
            (9, 9, 0),
        ] {
            let (rows, targets) = groups(n, len);
            let shape = PassShape::of(&rows, targets.len());
            let memory = decoder.pass_memory(&shape, Some(adapter.config()));
            let bytes = memory.activations(kept);
            let options = ForwardOptions {
                keep: Keep::Activations { bytes },
                dropout: None,
            };
            let mut tape = decoder.forward(&rows, Some(&adapter), &options).unwrap();
            let TapeBody::Host(host) = &tape.body else {
                panic!("a tape of the host's");
            };
            let own = kept * (memory.layer - memory.input);
            largest = own.max(largest);
            let held = host.layers.bytes();
            let formula = own + 5 * memory.input;
            // Buffers that a larger pass left may be in use.
            assert!(
                held >= formula,
                "{model_type}, {kept} of {n}: {held} < {formula}"
            );
            let most = largest + 5 * memory.input;
            let all = held + model.pool.bytes();
            let slack = 9 * 32 * 64;
            assert!(
                all <= most + slack,
                "{model_type}, {kept} of {n}: {all} > {most}"
            );
            decoder
                .log_probs(&mut tape, &targets, &Distribution::FULL)
                .unwrap();
            let mut sums = decoder.gradients();
            let slopes = vec![1.0; targets.len()];
            decoder
                .backward(tape, &slopes, &adapter, &mut sums)
                .unwrap();
            let pool = model.pool.bytes();
            assert!(pool <= largest && pool >= own, "{own}, {pool}, {largest}");
        }
    }
}

#[test]
fn a_pass_that_ends_early_gives_its_memory_back() {
    let config = config("llama");
    let weights = MapWeights::random(&config, 9).unwrap();
    let decoder = Decoder::load(&config, &weights, &LoadOptions::new(Device::Cpu, true)).unwrap();
    let Body::Host(model) = &decoder.body else {
        panic!("a CPU computes with its own kernels");
    };
    let adapter = adapter(&config);
    let (rows, targets, _) = rows();
    let options = ForwardOptions {
        keep: Keep::ALL,
        dropout: None,
    };
    let pass = || decoder.forward(&rows, Some(&adapter), &options).unwrap();
    drop(pass());
    let pool = model.pool.bytes();
    assert!(pool > 0);
    let mut tape = pass();
    assert_eq!(model.pool.bytes(), 0);
    decoder
        .log_probs(&mut tape, &targets, &Distribution::FULL)
        .unwrap();
    let refused = decoder.backward(tape, &[1.0], &adapter, &mut decoder.gradients());
    assert!(refused.is_err());
    assert_eq!(model.pool.bytes(), pool);
}

/// What several processes do with gradients: each pass by itself, sums over the wire.
#[test]
fn gradients_are_joined_in_any_order_and_come_back_from_their_values() {
    let config = config("llama");
    let weights = MapWeights::random(&config, 9).unwrap();
    let adapter = adapter(&config);
    for fused in [true, false] {
        let options = LoadOptions {
            dtype: Dtype::F32,
            fused,
            ..LoadOptions::new(Device::Cpu, true)
        };
        let decoder = Decoder::load(&config, &weights, &options).unwrap();
        let pass = |scale: f32, gradients: &mut Gradients| {
            let (rows, targets, d) = rows();
            let options = ForwardOptions {
                keep: Keep::ALL,
                dropout: None,
            };
            let mut tape = decoder.forward(&rows, Some(&adapter), &options).unwrap();
            decoder
                .log_probs(&mut tape, &targets, &Distribution::FULL)
                .unwrap();
            let d: Vec<f32> = d.iter().map(|d| d * scale).collect();
            decoder.backward(tape, &d, &adapter, gradients).unwrap();
        };
        let alone = |scale: f32| {
            let mut gradients = decoder.gradients();
            pass(scale, &mut gradients);
            gradients
        };
        let bits = |gradients: &Gradients| -> Vec<u32> {
            let values = gradients.to_values().unwrap();
            values.iter().map(|value| value.to_bits()).collect()
        };
        let (a, b) = (alone(0.37), alone(-1.91));
        let elements = bits(&a).into_iter().zip(bits(&b));
        let sum = |(a, b)| (f32::from_bits(a) + f32::from_bits(b)).to_bits();
        let want: Vec<u32> = elements.map(sum).collect();
        let mut there = alone(0.37);
        there.add(b).unwrap();
        let mut back = alone(-1.91);
        back.add(a).unwrap();
        assert!(bits(&there) == want && bits(&back) == want);
        // Into nothing, and of nothing.
        let mut empty = decoder.gradients();
        empty.add(there).unwrap();
        assert_eq!(bits(&empty), want);
        assert!(decoder.gradients().to_values().unwrap().is_empty());

        let values = empty.to_values().unwrap();
        let again = decoder.gradients_of(&adapter, &values).unwrap();
        let flat = |gradients: Gradients| -> Vec<Vec<f32>> {
            let tensors = gradients.into_tensors(&adapter).unwrap().unwrap();
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
            tensors.iter().map(flat).collect()
        };
        assert_eq!(flat(again), flat(empty));
        assert!(decoder.gradients_of(&adapter, &values[1..]).is_err());
    }
}

/// Random weights, rounded to bf16, whose output projection is `sharpness` times as large.
fn rounded_weights(config: &ModelConfig, sharpness: f64) -> MapWeights {
    let mut weights = MapWeights::random(config, 9).unwrap();
    for (name, tensor) in &mut weights.0 {
        let factor = if name == "lm_head.weight" {
            sharpness
        } else {
            1.0
        };
        let scaled = (&*tensor * factor).unwrap();
        *tensor = scaled
            .to_dtype(DType::BF16)
            .unwrap()
            .to_dtype(DType::F32)
            .unwrap();
    }
    weights
}

#[test]
fn gradients_in_bf16_are_those_of_f64_also_where_the_policy_is_sure() {
    let config = config("qwen2");
    // Tokens that the policy is sure of: half of their log-probs are within 0.002 of 0.
    for sharpness in [1.0, 60.0] {
        let weights = rounded_weights(&config, sharpness);
        let load = |dtype, fused| {
            let options = LoadOptions {
                dtype,
                fused,
                ..LoadOptions::new(Device::Cpu, true)
            };
            Decoder::load(&config, &weights, &options).unwrap()
        };
        let adapter = adapter(&config);
        let likeliest = |decoder: &Decoder, targets: &mut Vec<Target>, rows: &PackedRows| {
            // Each row's target becomes the token that the model would choose there.
            let mut tape = decoder
                .forward(rows, Some(&adapter), &ForwardOptions::default())
                .unwrap();
            for target in targets.iter_mut() {
                let all: Vec<Target> = (0..40)
                    .map(|token| Target {
                        row: target.row,
                        token,
                    })
                    .collect();
                let found = decoder
                    .log_probs(&mut tape, &all, &Distribution::FULL)
                    .unwrap();
                let best = (0..40)
                    .max_by(|a, b| found[*a].logprob.total_cmp(&found[*b].logprob))
                    .unwrap();
                target.token = best as u32;
            }
        };
        let (rows, mut targets, d) = rows();
        likeliest(&load(Dtype::F32, true), &mut targets, &rows);
        let run = |decoder: &Decoder| -> (Vec<f32>, Vec<f32>) {
            let options = ForwardOptions {
                keep: Keep::ALL,
                dropout: None,
            };
            let mut tape = decoder.forward(&rows, Some(&adapter), &options).unwrap();
            let found = decoder
                .log_probs(&mut tape, &targets, &Distribution::FULL)
                .unwrap();
            let mut sums = decoder.gradients();
            decoder.backward(tape, &d, &adapter, &mut sums).unwrap();
            let tensors = sums.into_tensors(&adapter).unwrap().unwrap();
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (
                tensors.iter().flat_map(flat).collect(),
                found.iter().map(|t| t.logprob).collect(),
            )
        };
        // The f32 path is held to finite differences in f64 above.
        let (want, logprobs) = run(&load(Dtype::F32, true));
        let (got, _) = run(&load(Dtype::Bf16, true));
        if sharpness > 1.0 {
            let sure = logprobs.iter().filter(|p| **p > -0.002).count();
            assert!(2 * sure >= logprobs.len(), "{logprobs:?}");
        }
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let terms = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            terms.sum()
        };
        let cosine = dot(&got, &want) / (dot(&got, &got) * dot(&want, &want)).sqrt();
        let size = (dot(&got, &got) / dot(&want, &want)).sqrt();
        assert!(
            // How sure a policy is that sharp moves with the rounding of its rows.
            cosine > 0.99 && (size - 1.0).abs() < 0.25,
            "sharpness {sharpness}: cosine {cosine}, {size} times as large"
        );
    }
}

#[test]
fn a_tape_that_kept_nothing_has_no_backward() {
    let config = config("llama");
    let weights = MapWeights::random(&config, 9).unwrap();
    let decoder = Decoder::load(&config, &weights, &LoadOptions::new(Device::Cpu, true)).unwrap();
    let (rows, targets, d) = rows();
    let adapter = adapter(&config);
    let mut tape = decoder
        .forward(&rows, Some(&adapter), &ForwardOptions::default())
        .unwrap();
    decoder
        .log_probs(&mut tape, &targets, &Distribution::FULL)
        .unwrap();
    assert!(matches!(
        decoder.backward(tape, &d, &adapter, &mut decoder.gradients()),
        Err(ModelError::OutOfRange(_))
    ));
}
