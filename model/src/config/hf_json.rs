//! `config.json` and `generation_config.json` as Hugging Face writes them.

use serde::Deserialize;
use serde_json::Value;

use super::{Architecture, ModelConfig, RopeScaling, bad, positive};
use crate::error::{ModelError, Result};

/// Reads `config.json`.
pub(super) fn parse(text: &str) -> Result<ModelConfig> {
    let raw: HfConfig = serde_json::from_str(text)
        .map_err(|error| ModelError::Config(format!("config.json: {error}")))?;
    raw.resolve()
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
