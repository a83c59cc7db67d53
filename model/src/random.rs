//! Random weights of a given shape: for benchmarks of models that aren't at hand, and for tests.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::{
    config::ModelConfig, dropout::mix, error::Result, lora::LoraModule, weights::MapWeights,
};

impl MapWeights {
    /// Weights for `config`, uniform and of variance 1 / width so that activations keep their size
    /// through the layers; norms near 1. The same seed gives the same weights.
    ///
    /// # Errors
    /// When memory for them can't be had.
    pub fn random(config: &ModelConfig, seed: u64) -> Result<Self> {
        let mut weights = BTreeMap::new();
        let mut add = |name: String, shape: &[usize], around: f32, spread: f32| -> Result<()> {
            let place = name.bytes().fold(seed, |h, b| mix(h ^ u64::from(b)));
            let mut rng = ChaCha8Rng::seed_from_u64(place);
            let n = shape.iter().product();
            let values: Vec<f32> = (0..n)
                .map(|_| around + rng.random_range(-spread..spread))
                .collect();
            weights.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
            Ok(())
        };
        let spread = |inner: usize| (3.0 / inner as f32).sqrt();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        add(
            "model.embed_tokens.weight".into(),
            &[vocab, hidden],
            0.0,
            1.0,
        )?;
        if !config.tied_embeddings {
            add(
                "lm_head.weight".into(),
                &[vocab, hidden],
                0.0,
                spread(hidden),
            )?;
        }
        add("model.norm.weight".into(), &[hidden], 1.0, 0.1)?;
        for layer in 0..config.layers {
            let path = format!("model.layers.{layer}");
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                add(format!("{path}.{norm}.weight"), &[hidden], 1.0, 0.1)?;
            }
            for module in LoraModule::ALL {
                let (inner, outer) = module.widths(config);
                let name = format!("{path}.{}", module.path());
                add(
                    format!("{name}.weight"),
                    &[outer, inner],
                    0.0,
                    spread(inner),
                )?;
                if config.qkv_bias && module <= LoraModule::V {
                    add(format!("{name}.bias"), &[outer], 0.0, 0.1)?;
                }
            }
            if config.qk_norm {
                for norm in ["q_norm", "k_norm"] {
                    add(
                        format!("{path}.self_attn.{norm}.weight"),
                        &[config.head_dim],
                        1.0,
                        0.1,
                    )?;
                }
            }
        }
        Ok(Self(weights))
    }
}
