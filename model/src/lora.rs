//! The shape of a LoRA adapter: rank, scale, target modules, and PEFT's `adapter_config.json`.

use std::{fmt, str::FromStr};

use serde_json::json;

use crate::{
    config::ModelConfig,
    error::{ModelError, Result},
};

/// A linear layer that LoRA can stand behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoraModule {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The attention's output.
    O,
    /// The MLP's gate.
    Gate,
    /// The MLP's way up.
    Up,
    /// The MLP's way down.
    Down,
}

impl LoraModule {
    /// All seven, in the order of their parameters.
    pub const ALL: [Self; 7] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// PEFT's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Its weight's place in a layer, under Hugging Face's name.
    pub(crate) fn path(self) -> String {
        let block = if self < Self::Gate {
            "self_attn"
        } else {
            "mlp"
        };
        format!("{block}.{}", self.name())
    }

    /// (inner, outer): the widths that it maps from and to.
    pub fn widths(self, model: &ModelConfig) -> (usize, usize) {
        let q = model.heads * model.head_dim;
        let kv = model.kv_heads * model.head_dim;
        match self {
            Self::Q => (model.hidden_size, q),
            Self::K | Self::V => (model.hidden_size, kv),
            Self::O => (q, model.hidden_size),
            Self::Gate | Self::Up => (model.hidden_size, model.intermediate_size),
            Self::Down => (model.intermediate_size, model.hidden_size),
        }
    }
}

impl fmt::Display for LoraModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LoraModule {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|m| m.name() == text)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                ModelError::Adapter(format!(
                    "`{text}` is not a target module; known are {known}"
                ))
            })
    }
}

/// The shape of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the update, r.
    pub rank: usize,
    /// The update is scaled by alpha / r, or alpha / √r with [`LoraConfig::rslora`].
    pub alpha: f32,
    /// Probability that an input value of A is dropped in training.
    pub dropout: f32,
    /// Rank-stabilised scaling (arXiv 2312.03732).
    pub rslora: bool,
    /// Layers with an adapter.
    pub target_modules: Vec<LoraModule>,
}

impl LoraConfig {
    /// What `B A x` is multiplied by.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// PEFT's `adapter_config.json`, for an adapter of `base_model`.
    pub fn peft_json(&self, base_model: &str) -> String {
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "target_modules": self.target_modules.iter().map(|m| m.name()).collect::<Vec<_>>(),
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "inference_mode": true,
            "modules_to_save": null,
        });
        format!("{config:#}\n")
    }

    /// Reads PEFT's `adapter_config.json`.
    ///
    /// # Errors
    /// When it is not one, or asks for what Tina does not do (DoRA, biases, ranks by pattern,
    /// modules saved whole, modules of other names).
    pub fn from_peft_json(text: &str) -> Result<Self> {
        let bad = |what: String| ModelError::Adapter(format!("adapter_config.json: {what}"));
        let json: serde_json::Value =
            serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
        if json["peft_type"] != "LORA" {
            return Err(bad(format!(
                "peft_type is {}, expected \"LORA\"",
                json["peft_type"]
            )));
        }
        let empty = |v: &serde_json::Value| {
            v.is_null()
                || v == &json!(false)
                || v == &json!("none")
                || v.as_array().is_some_and(Vec::is_empty)
                || v.as_object().is_some_and(serde_json::Map::is_empty)
        };
        for key in [
            "use_dora",
            "bias",
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
        ] {
            if !empty(&json[key]) {
                return Err(bad(format!("{key} = {} is not supported", json[key])));
            }
        }
        let number = |key: &str| {
            json[key]
                .as_f64()
                .ok_or_else(|| bad(format!("{key} is {}, not a number", json[key])))
        };
        let modules = json["target_modules"]
            .as_array()
            .ok_or_else(|| bad("target_modules is not a list".into()))?
            .iter()
            .map(|m| m.as_str().unwrap_or_default().parse())
            .collect::<Result<Vec<LoraModule>>>()?;
        let config = Self {
            rank: number("r")? as usize,
            alpha: number("lora_alpha")? as f32,
            dropout: json["lora_dropout"].as_f64().unwrap_or(0.0) as f32,
            rslora: json["use_rslora"].as_bool().unwrap_or(false),
            target_modules: modules,
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses ranks, scales and modules that can't be.
    pub(crate) fn check(&self) -> Result<()> {
        if self.rank == 0 || self.rank > 1 << 14 {
            return Err(ModelError::Adapter(format!(
                "rank is {}, expected 1 to {}",
                self.rank,
                1 << 14
            )));
        }
        if self.target_modules.is_empty() {
            return Err(ModelError::Adapter("no target modules".into()));
        }
        if !self.alpha.is_finite() || !(0.0..1.0).contains(&self.dropout) {
            return Err(ModelError::Adapter(format!(
                "alpha {} must be finite, and dropout {} in 0 to below 1",
                self.alpha, self.dropout
            )));
        }
        Ok(())
    }
}
