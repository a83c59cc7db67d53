//! Passes that mix prompts in chunks, decoding and sequences that take several tokens: each row's
//! logits are those of a prompt that ends there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use candle_core::Device;
use tina_model::{
    Adapter, Decoder, Dtype, KvCache, LoadOptions, LoraConfig, LoraModule, MapWeights, ModelConfig,
    OpenPrompt,
};

const VOCAB: usize = 320;

fn config() -> ModelConfig {
    let json = serde_json::json!({
        "model_type": "qwen3", "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    ModelConfig::from_hf_json(&json.to_string()).unwrap()
}

fn adapter(config: &ModelConfig) -> Adapter {
    let lora = LoraConfig {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        rslora: false,
        target_modules: LoraModule::ALL.to_vec(),
    };
    let fresh = Adapter::init(&lora, config, 11, &Device::Cpu).unwrap();
    let some = |t: &candle_core::Tensor| (t.ones_like().unwrap() * 0.01).unwrap();
    let tensors = fresh.parameters();
    let tensors = tensors.iter().map(|t| (t + some(t)).unwrap()).collect();
    fresh.with_parameters(tensors).unwrap()
}

/// A sequence, and how far it is.
struct Walk {
    tokens: Vec<u32>,
    prompt: usize,
    open: Option<OpenPrompt>,
    /// Tokens that are computed.
    done: usize,
}

/// Three sequences (prompt, whole) that share nothing.
fn walks(decoder: &Decoder, cache: &mut KvCache) -> Vec<Walk> {
    let walk = |(i, (prompt, whole)): (u32, (usize, usize))| {
        let token = |t: u32| (t * t * 7 + t * 3 + i * 31) % VOCAB as u32;
        let tokens: Vec<u32> = (0..whole as u32).map(token).collect();
        Walk {
            open: Some(decoder.open_prompt(cache, &tokens[..prompt]).unwrap()),
            tokens,
            prompt,
            done: 0,
        }
    };
    (0..).zip([(40, 70), (5, 60), (17, 19)]).map(walk).collect()
}

/// Takes all of them to their end; returns (sequence, tokens computed, logits) of each row that a
/// pass gave logits of.
fn run(decoder: &Decoder, adapter: &Adapter) -> Vec<(usize, usize, Vec<f32>)> {
    let mut cache = decoder.new_cache(3, 80).unwrap();
    let mut walks = walks(decoder, &mut cache);
    let (mut found, mut logits) = (Vec::new(), Vec::new());
    for pass in 0.. {
        // Some sit a pass out; those in slots take one token in most passes, else some.
        let share = |i: usize| match (pass * 5 + i * 3) % 7 {
            0 => 0,
            n => n * n % 12 + 1,
        };
        let (mut prompts, mut slots, mut of_slots, mut ends) = (vec![], vec![], vec![], vec![]);
        for (i, walk) in walks.iter_mut().enumerate() {
            let left = match &walk.open {
                Some(open) => open.rest(),
                None => walk.tokens.len() - walk.done,
            };
            let several = walk.open.is_some() || pass % 3 == 0;
            let n = share(i).min(left).min(if several { 99 } else { 1 });
            if n == 0 {
                continue;
            }
            let next = walk.done + n;
            match &mut walk.open {
                Some(open) => {
                    prompts.push((open, n));
                    ends.push((i, next));
                }
                None => {
                    slots.push((i, &walk.tokens[walk.done..next]));
                    of_slots.push((i, next));
                }
            }
            walk.done = next;
        }
        if prompts.is_empty() && slots.is_empty() {
            continue;
        }
        decoder
            .advance(&mut cache, &mut prompts, &slots, Some(adapter), &mut logits)
            .unwrap();
        ends.extend(of_slots);
        assert_eq!(logits.len(), ends.len() * VOCAB);
        for ((i, end), logits) in ends.into_iter().zip(logits.chunks(VOCAB)) {
            found.push((i, end, logits.to_vec()));
        }
        for (i, walk) in walks.iter_mut().enumerate() {
            if let Some(open) = walk.open.take_if(|open| open.rest() == 0) {
                assert_eq!(walk.done, walk.prompt);
                cache.attach(i, &open.finish().unwrap()).unwrap();
            }
        }
        if walks.iter().all(|walk| walk.done == walk.tokens.len()) {
            return found;
        }
    }
    unreachable!("passes without end")
}

#[test]
fn rows_are_the_same_in_whatever_pass_they_are_computed() {
    let config = config();
    let weights = MapWeights::random(&config, 1).unwrap();
    let adapter = adapter(&config);
    for (fused, dtype) in [(true, Dtype::F32), (true, Dtype::Bf16), (false, Dtype::F32)] {
        let options = LoadOptions {
            fused,
            dtype,
            ..LoadOptions::new(Device::Cpu, false)
        };
        let decoder = Decoder::load(&config, &weights, &options).unwrap();
        let found = run(&decoder, &adapter);
        assert!(found.len() > 60);
        let mut cache = decoder.new_cache(1, 80).unwrap();
        let whole = walks(&decoder, &mut cache);
        for (i, end, logits) in found {
            let prefix = &whole[i].tokens[..end];
            let alone = decoder.prefill(&mut cache, &[prefix], Some(&adapter));
            let alone = alone.unwrap().remove(0).1;
            for (a, b) in logits.iter().zip(&alone) {
                let equal = a.to_bits() == b.to_bits();
                let near = (a - b).abs() < 1e-4;
                assert!(equal || (!fused && near), "{i} at {end}: {a} for {b}");
            }
        }
    }
}

#[test]
fn a_pass_that_fails_leaves_prompts_and_slots_as_they_were() {
    let config = config();
    let weights = MapWeights::random(&config, 1).unwrap();
    let adapter = adapter(&config);
    let decoder = Decoder::load(&config, &weights, &LoadOptions::new(Device::Cpu, false)).unwrap();
    let mut cache = decoder.new_cache(2, 12).unwrap();
    let kv = decoder.prefill(&mut cache, &[&[1, 2, 3]], Some(&adapter));
    cache.attach(0, &kv.unwrap().remove(0).0).unwrap();
    let mut open = decoder.open_prompt(&mut cache, &[4; 10]).unwrap();
    let mut logits = Vec::new();
    let long = [5; 10];
    let slots: [&[(usize, &[u32])]; 6] = [
        &[],
        &[(0, &[])],
        &[(0, &[VOCAB as u32])],
        &[(0, &long)],
        &[(1, &[5])],
        &[(0, &[5]), (0, &[6])],
    ];
    for (case, slots) in slots.into_iter().enumerate() {
        let rows = if case == 0 { 11 } else { 4 };
        let done = decoder.advance(
            &mut cache,
            &mut [(&mut open, rows)],
            slots,
            Some(&adapter),
            &mut logits,
        );
        assert!(done.is_err(), "case {case}");
        assert_eq!((open.rest(), cache.len(0), cache.len(1)), (10, 3, 0));
    }
    assert!(
        decoder
            .advance(&mut cache, &mut [], &[], None, &mut logits)
            .is_err()
    );
    assert!(open.finish().is_err(), "rows are missing");
}
