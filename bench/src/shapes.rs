//! Models of a known shape with random weights: what a model costs does not depend on what it says.

use candle_core::{Device, Tensor};
use clap::ValueEnum;
use rayon::prelude::*;
use serde_json::json;
use tina_model::{ModelConfig, ModelError, Weights};

/// Values that a thread makes at a time.
const CHUNK: usize = 1 << 16;

/// A model's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// SmolLM2-135M
    Smollm2,
    /// DeepSeek-R1-Distill-Qwen-1.5B
    #[value(name = "qwen2-1.5b")]
    Qwen2,
    /// Two layers of a Llama: to try the benchmark itself
    Tiny,
}

impl Shape {
    pub(crate) fn config(self) -> Result<ModelConfig, ModelError> {
        let json = match self {
            Self::Smollm2 => json!({
                "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576,
                "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
                "rope_theta": 100_000.0, "hidden_act": "silu", "tie_word_embeddings": true,
            }),
            Self::Qwen2 => json!({
                "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 1536,
                "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
                "num_key_value_heads": 2, "max_position_embeddings": 131_072,
                "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "hidden_act": "silu",
                "use_sliding_window": false, "tie_word_embeddings": false,
            }),
            Self::Tiny => json!({
                "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
                "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
                "rope_theta": 10_000.0, "hidden_act": "silu", "tie_word_embeddings": false,
            }),
        };
        ModelConfig::from_hf_json(&json.to_string())
    }
}

/// Weights made when they are asked for, on all threads, so that a large model is never held a
/// second time. Uniform and of variance 1 / width, so that activations keep their size.
#[derive(Debug)]
pub(crate) struct RandomWeights<'a>(pub(crate) &'a ModelConfig);

impl Weights for RandomWeights<'_> {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.tensors().into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    }

    fn contains(&self, name: &str) -> bool {
        self.0.tensors().iter().any(|(known, _)| known == name)
    }

    /// Models of these shapes are published in bf16.
    fn is_wide(&self, _name: &str) -> bool {
        false
    }

    fn load(&self, name: &str, expected: &[usize]) -> Result<Tensor, ModelError> {
        let (around, spread) = match expected {
            [_, inner] => (0.0, (3.0 / *inner as f32).sqrt()),
            _ if name.ends_with("bias") => (0.0, 0.1),
            _ => (1.0, 0.1),
        };
        let seed = name.bytes().fold(1, |h, b| mix(h ^ u64::from(b)));
        let mut values = vec![0f32; expected.iter().product()];
        values
            .par_chunks_mut(CHUNK)
            .enumerate()
            .for_each(|(chunk, values)| {
                let first = (chunk * CHUNK) as u64;
                for (i, value) in values.iter_mut().enumerate() {
                    *value = around + spread * (2.0 * unit(mix(seed ^ (first + i as u64))) - 1.0);
                }
            });
        Ok(Tensor::from_vec(values, expected, &Device::Cpu)?)
    }
}

/// SplitMix64's finaliser (Steele, Lea and Flood, 2014).
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Uniform in [0, 1), from 24 bits.
fn unit(x: u64) -> f32 {
    (x >> 40) as f32 / (1u64 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_as_many_weights_as_their_models() {
        assert_eq!(
            Shape::Smollm2.config().unwrap().parameter_count(),
            134_515_008
        );
        assert_eq!(
            Shape::Qwen2.config().unwrap().parameter_count(),
            1_777_088_000
        );
    }

    #[test]
    fn weights_are_the_same_each_time_and_of_the_variance_meant() {
        let config = Shape::Tiny.config().unwrap();
        let weights = RandomWeights(&config);
        let load = || {
            let tensor = weights
                .load("model.embed_tokens.weight", &[512, 64])
                .unwrap();
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (one, two) = (load(), load());
        assert_eq!(one, two);
        let n = one.len() as f32;
        let mean = one.iter().sum::<f32>() / n;
        let variance = one.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
        assert!(
            mean.abs() < 3e-3 && (variance * 64.0 - 1.0).abs() < 0.02,
            "{mean} {variance}"
        );
    }
}
