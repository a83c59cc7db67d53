//! A model's shape, read from Hugging Face's `config.json` and checked before anything is allocated.

use std::f32::consts::PI;

use crate::{
    error::{ModelError, Result},
    kernels::attention::Heads,
};

mod hf_json;
#[cfg(test)]
mod tests;

pub use hf_json::stop_token_ids;

/// The decoder families that are served; they differ in what [`ModelConfig`] says and in names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM, SmolLM2 and the many models that share their layout.
    Llama,
    /// Qwen2 and Qwen2.5, DeepSeek-R1-Distill-Qwen.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
}

impl Architecture {
    /// The value of `model_type` in `config.json`, and of `general.architecture` in a GGUF file.
    pub const ALL: [(&'static str, Self); 3] = [
        ("llama", Self::Llama),
        ("qwen2", Self::Qwen2),
        ("qwen3", Self::Qwen3),
    ];

    /// Finds an architecture by its `model_type`.
    ///
    /// # Errors
    /// When it is not one that is served; the error names those that are.
    pub fn from_model_type(model_type: &str) -> Result<Self> {
        let known = Self::ALL.iter().find(|(name, _)| *name == model_type);
        known.map(|(_, architecture)| *architecture).ok_or_else(|| {
            ModelError::Unsupported(format!(
                "architecture `{model_type}`; served are llama, qwen2 and qwen3"
            ))
        })
    }

    /// The architecture's `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// How rotary position embeddings reach beyond the positions that a model was trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// How many times longer the context becomes.
        factor: f32,
    },
    /// Llama 3.1's: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// How many times longer the context becomes.
        factor: f32,
        /// Wavelengths above `original_max_positions / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// The context that the model was first trained on.
        original_max_positions: usize,
    },
    /// Each frequency divided by its own factor, as GGUF files store Llama 3's.
    Factors {
        /// One per frequency: `head_dim / 2`.
        factors: Vec<f32>,
    },
    /// YaRN (arXiv 2309.00071): a ramp over dimensions, and cosines and sines scaled.
    Yarn {
        /// How many times longer the context becomes.
        factor: f32,
        /// Dimensions that turn more often than this within the first context are kept.
        beta_fast: f32,
        /// Dimensions that turn less often than this are divided.
        beta_slow: f32,
        /// What cosines and sines are multiplied by.
        attention_factor: f32,
        /// The context that the model was first trained on.
        original_max_positions: usize,
    },
}

/// What a decoder needs to know of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The decoder family.
    pub architecture: Architecture,
    /// Rows of the embedding, which may be more than the tokenizer has tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// The longest context the model is meant for, in tokens.
    pub max_positions: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Whether the output projection is the embedding.
    pub tied_embeddings: bool,
    /// Whether the q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// Whether each head's q and k pass an RMS norm of their own before the rotation.
    pub qk_norm: bool,
}

impl ModelConfig {
    /// Reads `config.json`, with the defaults that `transformers` has for what it leaves out.
    ///
    /// # Errors
    /// When the text is not such a file, a value is missing or impossible, or the model asks for
    /// something that is not served; the error names the key.
    pub fn from_hf_json(text: &str) -> Result<Self> {
        hf_json::parse(text)
    }

    /// The number of weights, a tied output projection counted once.
    pub fn parameter_count(&self) -> u64 {
        let size = |shape: &[usize]| shape.iter().map(|n| *n as u64).product::<u64>();
        self.tensors().iter().map(|(_, shape)| size(shape)).sum()
    }

    /// Every weight's Hugging Face name and shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, mlp) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![
            (
                "model.embed_tokens.weight".to_owned(),
                vec![self.vocab_size, hidden],
            ),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if !self.tied_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size, hidden]));
        }
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[hidden]);
            add("post_attention_layernorm.weight", &[hidden]);
            add("self_attn.q_proj.weight", &[q, hidden]);
            add("self_attn.k_proj.weight", &[kv, hidden]);
            add("self_attn.v_proj.weight", &[kv, hidden]);
            add("self_attn.o_proj.weight", &[hidden, q]);
            add("mlp.gate_proj.weight", &[mlp, hidden]);
            add("mlp.up_proj.weight", &[mlp, hidden]);
            add("mlp.down_proj.weight", &[hidden, mlp]);
            if self.qkv_bias {
                add("self_attn.q_proj.bias", &[q]);
                add("self_attn.k_proj.bias", &[kv]);
                add("self_attn.v_proj.bias", &[kv]);
            }
            if self.qk_norm {
                add("self_attn.q_norm.weight", &[self.head_dim]);
                add("self_attn.k_norm.weight", &[self.head_dim]);
            }
        }
        tensors
    }

    /// The shape of its attention heads.
    pub(crate) fn shape_of_heads(&self) -> Heads {
        Heads {
            queries: self.heads,
            keys: self.kv_heads,
            width: self.head_dim,
        }
    }

    /// The rotary frequencies, `head_dim / 2` of them in radians per position, and the factor that
    /// cosines and sines are multiplied by; as `transformers` computes them.
    pub fn rope_frequencies(&self) -> (Vec<f32>, f32) {
        let dim = self.head_dim as f32;
        let plain = (0..self.head_dim)
            .step_by(2)
            .map(|i| 1.0 / self.rope_theta.powf(i as f32 / dim))
            .collect::<Vec<_>>();
        match self.rope_scaling {
            RopeScaling::Factors { ref factors } => (
                plain
                    .iter()
                    .zip(factors)
                    .map(|(frequency, f)| frequency / f)
                    .collect(),
                1.0,
            ),
            RopeScaling::None => (plain, 1.0),
            RopeScaling::Linear { factor } => (plain.iter().map(|f| f / factor).collect(), 1.0),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                let original = original_max_positions as f32;
                let scaled = plain.iter().map(|&frequency| {
                    let wavelength = 2.0 * PI / frequency;
                    if wavelength < original / high_freq_factor {
                        frequency
                    } else if wavelength > original / low_freq_factor {
                        frequency / factor
                    } else {
                        let smooth = (original / wavelength - low_freq_factor)
                            / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                });
                (scaled.collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                attention_factor,
                original_max_positions,
            } => {
                // The dimension that makes `turns` full turns within the first context.
                let dimension = |turns: f32| {
                    dim * (original_max_positions as f32 / (turns * 2.0 * PI)).ln()
                        / (2.0 * self.rope_theta.ln())
                };
                let low = dimension(beta_fast).floor().max(0.0);
                let mut high = dimension(beta_slow).ceil().min(dim - 1.0);
                if low == high {
                    high += 0.001;
                }
                let scaled = plain.iter().enumerate().map(|(i, &frequency)| {
                    let ramp = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * ramp + frequency * (1.0 - ramp)
                });
                (scaled.collect(), attention_factor)
            }
        }
    }

    /// Refuses shapes that no model has, so that later sizes neither overflow nor exhaust memory.
    ///
    /// # Errors
    /// Names the first value that cannot be.
    pub(crate) fn check(self) -> Result<Self> {
        let bounds = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 17),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", self.layers, 1 << 10),
            ("num_attention_heads", self.heads, 1 << 10),
            ("num_key_value_heads", self.kv_heads, 1 << 10),
            ("head_dim", self.head_dim, 1 << 12),
            ("max_position_embeddings", self.max_positions, 1 << 28),
        ];
        for (key, value, most) in bounds {
            if value == 0 || value > most {
                return bad(format!("{key} is {value}, expected 1 to {most}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return bad(format!(
                "num_attention_heads is {}, which num_key_value_heads, {}, does not divide",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return bad(format!(
                "head_dim is {}, expected an even number",
                self.head_dim
            ));
        }
        positive("rms_norm_eps", self.rms_eps)?;
        positive("rope_theta", self.rope_theta)?;
        Ok(self)
    }
}

fn positive(key: &str, value: f32) -> Result<f32> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    bad(format!("{key} is {value}, expected a number above 0"))
}

fn bad<T>(message: String) -> Result<T> {
    Err(ModelError::Config(message))
}
