//! A model's shape, read from Hugging Face's `config.json` and checked before anything is allocated.

use std::f32::consts::PI;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{ModelError, Result};

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
        let raw: HfConfig = serde_json::from_str(text)
            .map_err(|error| ModelError::Config(format!("config.json: {error}")))?;
        raw.resolve()
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

/// The ids that end a completion: every `eos_token_id`, a number or a list, of `config.json` and of
/// `generation_config.json`, sorted.
///
/// # Errors
/// When one is not a token id.
pub fn stop_token_ids(config: &str, generation_config: Option<&str>) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    let files = [
        ("config.json", Some(config)),
        ("generation_config.json", generation_config),
    ];
    for (file, text) in files {
        let Some(text) = text else { continue };
        let json: Value = serde_json::from_str(text)
            .map_err(|error| ModelError::Config(format!("{file}: {error}")))?;
        let listed = match &json["eos_token_id"] {
            Value::Null => continue,
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        for id in listed {
            match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) => ids.push(id),
                None => return bad(format!("{file}: eos_token_id holds {id}, not a token id")),
            }
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// `config.json` as it is written; keys that change the arithmetic are here, others are ignored.
#[derive(Deserialize)]
struct HfConfig {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    rope_interleaved: Option<bool>,
    partial_rotary_factor: Option<f32>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    use_sliding_window: Option<bool>,
    sliding_window: Option<usize>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
}

/// `rope_scaling`, or `rope_parameters` as newer files have it.
#[derive(Deserialize)]
struct Rope {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<usize>,
    beta_fast: Option<f32>,
    beta_slow: Option<f32>,
    attention_factor: Option<f32>,
    mscale: Option<f32>,
    mscale_all_dim: Option<f32>,
    truncate: Option<bool>,
}

impl HfConfig {
    fn resolve(self) -> Result<ModelConfig> {
        let Some(model_type) = &self.model_type else {
            return bad("config.json has no model_type".to_owned());
        };
        let architecture = Architecture::from_model_type(model_type)?;
        self.refuse_what_is_not_served(architecture)?;

        if self.num_attention_heads == 0 {
            return bad("num_attention_heads is 0".to_owned());
        }
        let head_dim = match (self.head_dim, architecture) {
            (Some(head_dim), _) => head_dim,
            (None, Architecture::Qwen3) => 128,
            (None, _) if self.hidden_size.is_multiple_of(self.num_attention_heads) => {
                self.hidden_size / self.num_attention_heads
            }
            (None, _) => {
                return bad(format!(
                    "hidden_size is {}, which num_attention_heads, {}, does not divide; head_dim is not given",
                    self.hidden_size, self.num_attention_heads
                ));
            }
        };
        let max_positions = self.max_position_embeddings.unwrap_or(match architecture {
            Architecture::Llama => 2048,
            Architecture::Qwen2 | Architecture::Qwen3 => 32768,
        });
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        ModelConfig {
            architecture,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            max_positions,
            rms_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: rope
                .and_then(|rope| rope.rope_theta)
                .or(self.rope_theta)
                .unwrap_or(1e4),
            rope_scaling: rope.map_or(Ok(RopeScaling::None), |rope| rope.resolve(max_positions))?,
            tied_embeddings: self.tie_word_embeddings.unwrap_or(false),
            qkv_bias: match architecture {
                Architecture::Qwen2 => true,
                Architecture::Llama | Architecture::Qwen3 => self.attention_bias.unwrap_or(false),
            },
            qk_norm: architecture == Architecture::Qwen3,
        }
        .check()
    }

    fn refuse_what_is_not_served(&self, architecture: Architecture) -> Result<()> {
        let refuse = |what: String| Err(ModelError::Unsupported(what));
        if let Some(classes) = &self.architectures
            && !classes.iter().any(|class| class.ends_with("ForCausalLM"))
        {
            return refuse(format!(
                "architectures is {classes:?}; only models for text generation (…ForCausalLM) are served"
            ));
        }
        if let Some(act) = &self.hidden_act
            && !["silu", "swish"].contains(&act.as_str())
        {
            return refuse(format!("hidden_act `{act}`; only silu is served"));
        }
        if self.mlp_bias == Some(true) {
            return refuse("mlp_bias: the MLP's projections must have no bias".to_owned());
        }
        let window = match architecture {
            Architecture::Llama => self.sliding_window,
            // From layer `max_window_layers` on, and only when switched on.
            Architecture::Qwen2 | Architecture::Qwen3 => self.sliding_window.filter(|_| {
                self.use_sliding_window == Some(true)
                    && self.max_window_layers.unwrap_or(28) < self.num_hidden_layers
            }),
        };
        if let Some(window) = window {
            return refuse(format!(
                "sliding-window attention (sliding_window is {window}); use a model whose layers all see the whole context"
            ));
        }
        let other_layer = |kind: &&String| kind.as_str() != "full_attention";
        if let Some(kind) = self.layer_types.iter().flatten().find(other_layer) {
            return refuse(format!(
                "layer_types holds `{kind}`; only full_attention is served"
            ));
        }
        if self.rope_interleaved == Some(true) {
            return refuse("rope_interleaved; only half-split rotary embeddings are served".into());
        }
        let ropes = [&self.rope_parameters, &self.rope_scaling]
            .into_iter()
            .flatten();
        let partial = ropes.filter_map(|rope| rope.partial_rotary_factor);
        if let Some(factor) = partial
            .chain(self.partial_rotary_factor)
            .find(|&f| f != 1.0)
        {
            return refuse(format!(
                "partial_rotary_factor is {factor}; only 1 is served"
            ));
        }
        if let Some(quantization) = &self.quantization_config {
            return refuse(format!(
                "quantization_config ({}): give the unquantised model or a .gguf file",
                quantization["quant_method"]
                    .as_str()
                    .unwrap_or("of an unnamed method")
            ));
        }
        Ok(())
    }
}

impl Rope {
    fn resolve(&self, max_positions: usize) -> Result<RopeScaling> {
        let kind = self.rope_type.as_ref().or(self.old_type.as_ref());
        let need = |key: &str, value: Option<f32>| match value {
            Some(value) => positive(&format!("rope_scaling.{key}"), value),
            None => bad(format!("rope_scaling has no {key}")),
        };
        let original = self
            .original_max_position_embeddings
            .unwrap_or(max_positions)
            .max(1);
        match kind.map_or("default", String::as_str) {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: need("factor", self.factor)?,
            }),
            "llama3" => {
                let low_freq_factor = need("low_freq_factor", self.low_freq_factor)?;
                let high_freq_factor = need("high_freq_factor", self.high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    return bad(format!(
                        "rope_scaling.high_freq_factor is {high_freq_factor}, expected more than \
                         low_freq_factor, {low_freq_factor}"
                    ));
                }
                Ok(RopeScaling::Llama3 {
                    factor: need("factor", self.factor)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_positions: original,
                })
            }
            "yarn" => {
                if self.truncate == Some(false) {
                    return Err(ModelError::Unsupported(
                        "rope_scaling.truncate = false".into(),
                    ));
                }
                let factor = need("factor", self.factor)?;
                let mscale = |by: f32| {
                    if factor <= 1.0 {
                        1.0
                    } else {
                        0.1 * by * factor.ln() + 1.0
                    }
                };
                let default = match (self.mscale, self.mscale_all_dim) {
                    (Some(a), Some(b)) if a != 0.0 && b != 0.0 => mscale(a) / mscale(b),
                    _ => mscale(1.0),
                };
                Ok(RopeScaling::Yarn {
                    factor,
                    beta_fast: need("beta_fast", self.beta_fast.or(Some(32.0)))?,
                    beta_slow: need("beta_slow", self.beta_slow.or(Some(1.0)))?,
                    attention_factor: need(
                        "attention_factor",
                        self.attention_factor.or(Some(default)),
                    )?,
                    original_max_positions: original,
                })
            }
            other => Err(ModelError::Unsupported(format!(
                "rope_scaling of type `{other}`; served are default, linear, llama3 and yarn"
            ))),
        }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn smollm2() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 1,
            "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
            "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
            "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
            "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
            "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 49152
        })
    }

    fn with(mut config: Value, changes: Value) -> Result<ModelConfig> {
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        ModelConfig::from_hf_json(&config.to_string())
    }

    #[test]
    fn llama_is_read_with_every_field() {
        let config = with(smollm2(), json!({})).unwrap();
        assert_eq!(
            config,
            ModelConfig {
                architecture: Architecture::Llama,
                vocab_size: 49152,
                hidden_size: 576,
                intermediate_size: 1536,
                layers: 30,
                heads: 9,
                kv_heads: 3,
                head_dim: 64,
                max_positions: 8192,
                rms_eps: 1e-5,
                rope_theta: 1e5,
                rope_scaling: RopeScaling::None,
                tied_embeddings: true,
                qkv_bias: false,
                qk_norm: false,
            }
        );
        assert_eq!(config.parameter_count(), 134_515_008);
    }

    #[test]
    fn qwen_families_differ_in_bias_and_norms() {
        // Qwen2.5-0.5B and Qwen3-0.6B.
        let qwen = json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
            "intermediate_size": 4864, "num_attention_heads": 14, "num_hidden_layers": 24,
            "num_key_value_heads": 2, "use_sliding_window": false, "sliding_window": 32768,
            "max_window_layers": 24, "max_position_embeddings": 32768, "vocab_size": 151936,
            "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": true
        });
        let config = with(qwen.clone(), json!({})).unwrap();
        assert!(config.qkv_bias && !config.qk_norm);
        assert_eq!(config.parameter_count(), 494_032_768);
        let config = with(
            qwen,
            json!({
                "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
                "intermediate_size": 3072, "num_attention_heads": 16, "num_hidden_layers": 28,
                "num_key_value_heads": 8, "head_dim": 128, "attention_bias": false,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0}
            }),
        )
        .unwrap();
        assert!(!config.qkv_bias && config.qk_norm);
        assert_eq!(config.rope_theta, 5e6);
        assert_eq!(config.parameter_count(), 596_049_920);
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        let cases = [
            (
                json!({"model_type": "mistral"}),
                "architecture `mistral`; served are llama, qwen2",
            ),
            (json!({"sliding_window": 4096}), "sliding_window is 4096"),
            (
                json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 64,
                       "max_window_layers": 3}),
                "sliding_window is 64",
            ),
            (
                json!({"layer_types": ["full_attention", "linear_attention"]}),
                "linear_attention",
            ),
            (json!({"mlp_bias": true}), "mlp_bias"),
            (json!({"hidden_act": "gelu"}), "hidden_act `gelu`"),
            (
                json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
                "type `dynamic`",
            ),
            (json!({"rope_interleaved": true}), "rope_interleaved"),
            (
                json!({"partial_rotary_factor": 0.5}),
                "partial_rotary_factor is 0.5",
            ),
            (
                json!({"quantization_config": {"quant_method": "gptq"}}),
                "gptq",
            ),
            (
                json!({"architectures": ["LlamaForSequenceClassification"]}),
                "ForCausalLM",
            ),
        ];
        for (change, expected) in cases {
            let error = with(smollm2(), change.clone()).unwrap_err();
            assert!(
                matches!(error, ModelError::Unsupported(_)),
                "{change}: {error}"
            );
            assert!(error.to_string().contains(expected), "{change}: {error}");
        }
    }

    #[test]
    fn impossible_values_are_errors_that_name_the_key() {
        let cases = [
            (
                json!({"num_attention_heads": 0}),
                "num_attention_heads is 0",
            ),
            (
                json!({"num_key_value_heads": 2}),
                "num_key_value_heads, 2, does not divide",
            ),
            (
                json!({"num_attention_heads": 7, "num_key_value_heads": 7}),
                "head_dim is not given",
            ),
            (json!({"head_dim": 63}), "head_dim is 63"),
            (
                json!({"vocab_size": 1u64 << 40}),
                "vocab_size is 1099511627776",
            ),
            (json!({"hidden_size": -1}), "config.json"),
            (json!({"hidden_size": null}), "config.json"),
            (json!({"rms_norm_eps": 0.0}), "rms_norm_eps is 0"),
            (json!({"rope_theta": -5.0}), "rope_theta is -5"),
            (
                json!({"rope_scaling": {"rope_type": "linear"}}),
                "rope_scaling has no factor",
            ),
            (
                json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                       "low_freq_factor": 4.0, "high_freq_factor": 1.0}}),
                "high_freq_factor is 1",
            ),
            (json!({"model_type": null}), "no model_type"),
        ];
        for (change, expected) in cases {
            let error = with(smollm2(), change.clone()).unwrap_err();
            assert!(matches!(error, ModelError::Config(_)), "{change}: {error}");
            assert!(error.to_string().contains(expected), "{change}: {error}");
        }
        assert!(ModelConfig::from_hf_json("{").is_err());
    }

    #[test]
    fn a_llama_with_attention_bias_has_qkv_bias() {
        assert!(
            with(smollm2(), json!({"attention_bias": true}))
                .unwrap()
                .qkv_bias
        );
    }

    #[test]
    fn stop_tokens_come_from_both_files_as_number_or_list() {
        let ids = |config: Value, generation: Option<Value>| {
            stop_token_ids(
                &config.to_string(),
                generation.map(|g| g.to_string()).as_deref(),
            )
        };
        let config = json!({"eos_token_id": 151645});
        let generation = json!({"eos_token_id": [151645, 151643]});
        assert_eq!(
            ids(config.clone(), Some(generation)).unwrap(),
            [151643, 151645]
        );
        assert_eq!(ids(config, None).unwrap(), [151645]);
        assert_eq!(ids(json!({"eos_token_id": null}), None).unwrap(), [0u32; 0]);
        let error = ids(json!({}), Some(json!({"eos_token_id": [1, "x"]}))).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("generation_config.json: eos_token_id holds \"x\"")
        );
    }

    #[test]
    fn rope_frequencies_are_those_of_transformers() {
        let cases: [(Value, f32, [f32; 8]); 3] = [
            (
                json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
                1.0,
                [
                    0.25,
                    0.0592843406,
                    0.0140585322,
                    0.00592843397,
                    0.00249999994,
                    0.000790569466,
                    0.000187473546,
                    3.33380376e-05,
                ],
            ),
            (
                json!({
                    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
                    "rope_theta": 500000.0
                }),
                1.0,
                [
                    1.0,
                    0.128687382,
                    0.0165604409,
                    0.00483942125,
                    0.000524846022,
                    3.42810235e-05,
                    4.41153452e-06,
                    3.7673226e-07,
                ],
            ),
            (
                json!({
                    "rope_type": "yarn", "factor": 4.0, "rope_theta": 1000000.0,
                    "original_max_position_embeddings": 32768
                }),
                1.138_629_4,
                [
                    1.0,
                    0.115478203,
                    0.0133352149,
                    0.0030431177,
                    0.000583333371,
                    4.44569851e-05,
                    5.13381246e-06,
                    3.84981632e-07,
                ],
            ),
        ];
        for (parameters, factor, expected) in cases {
            let config = with(smollm2(), json!({"rope_parameters": parameters})).unwrap();
            let (found, found_factor) = config.rope_frequencies();
            assert_eq!(found.len(), 32);
            assert!((found_factor - factor).abs() < 1e-6);
            for (at, expected) in [0, 5, 10, 13, 16, 20, 25, 31].into_iter().zip(expected) {
                assert!(
                    (found[at] / expected - 1.0).abs() < 1e-5,
                    "{at}: {} {expected}",
                    found[at]
                );
            }
        }
        // What GGUF stores of the same: one divisor a frequency.
        let mut config = with(smollm2(), json!({})).unwrap();
        let plain = config.rope_frequencies().0;
        config.rope_scaling = RopeScaling::Factors {
            factors: vec![2.0; 32],
        };
        assert_eq!(config.rope_frequencies().0[3], plain[3] / 2.0);
    }
}
