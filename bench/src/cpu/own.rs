//! Our own side of a contest, in a process of its own: the model, and what a coordinator would tell
//! the roles of a run.

use std::{path::PathBuf, sync::Arc};

use candle_core::{Device, Tensor};
use serde::Serialize;
use tina_coordinator::config::RunConfig;
use tina_model::{
    Adapter, Decoder, Distribution, Dtype, LoadOptions, LoraConfig, ModelSource, TextModel,
};
use tina_proto::v1::{PolicyVersion, RunSpec};
use tina_rollout_worker::{
    check::run_plan,
    engine::{Capacity, Engine},
};

use crate::{
    error::{BenchError, Result},
    roles::{NoText, load, random_tokens},
};

/// Which model, and what a run does with it where nothing else is said.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OwnArgs {
    /// The run's config
    #[arg(long, default_value = "bench/grpo_step.toml")]
    pub(crate) config: PathBuf,
    /// Set a key of the config: section.key=value
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
}

/// A model as a role of a run has it.
pub(crate) struct Own {
    pub(crate) text: TextModel,
    pub(crate) decoder: Arc<Decoder>,
    pub(crate) config: RunConfig,
}

/// What every report of ours tells besides its figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct About {
    pub(crate) numerics: String,
    pub(crate) threads: usize,
}

impl Own {
    /// As the learner loads it where `train`, else as a rollout worker does.
    pub(crate) fn load(args: &OwnArgs, train: bool) -> Result<Self> {
        let config = RunConfig::load(&args.config, &args.sets)?;
        let model = tina_model::open(&config.model.source.parse::<ModelSource>()?)?;
        let options = LoadOptions {
            dtype: config.model.dtype.as_str().parse::<Dtype>()?,
            ..LoadOptions::new(Device::Cpu, train)
        };
        let decoder = Decoder::load(&model.text.config, &*model.weights, &options)?;
        Ok(Self {
            text: model.text,
            decoder: Arc::new(decoder),
            config,
        })
    }

    pub(crate) fn about(&self) -> About {
        About {
            numerics: self.decoder.numerics(),
            threads: rayon::current_num_threads(),
        }
    }

    /// For sequences of at most so many tokens.
    pub(crate) fn spec(&self, max_sequence_tokens: usize) -> RunSpec {
        let probe = random_tokens(0, 8, self.decoder.config().vocab_size);
        let longest = max_sequence_tokens.max(probe.len());
        self.config.run_spec("bench", "", probe, longest as u32)
    }

    /// The worker's engine with an adapter loaded, and that adapter's version. A new adapter changes
    /// nothing; one that has learnt has values everywhere.
    pub(crate) fn engine(
        &self,
        slots: usize,
        max_sequence_tokens: usize,
        learnt: bool,
    ) -> Result<(Engine, PolicyVersion)> {
        let spec = self.spec(max_sequence_tokens);
        let plan = run_plan(&spec, self.decoder.config()).map_err(BenchError::Other)?;
        let bytes = self.adapter(&plan.lora, learnt)?;
        let version = PolicyVersion::of_bytes(0, &bytes);
        let mut engine = Engine::new(
            self.decoder.clone(),
            Arc::new(NoText),
            plan,
            Capacity::fixed(slots),
        )?;
        load(&mut engine, version.clone(), bytes)?;
        Ok((engine, version))
    }

    fn adapter(&self, lora: &LoraConfig, learnt: bool) -> Result<Vec<u8>> {
        let fresh = Adapter::init(lora, self.decoder.config(), 1, self.decoder.device())?;
        if !learnt {
            return Ok(fresh.to_safetensors()?);
        }
        let parameters = fresh.parameters();
        let values = parameters.iter().map(|p| p.randn_like(0.0, 1e-3));
        let values = values.collect::<candle_core::Result<Vec<Tensor>>>()?;
        Ok(fresh.with_parameters(values)?.to_safetensors()?)
    }

    /// Log-probs of a completion's tokens under the base model.
    pub(crate) fn log_probs(&self, prompt: &[u32], tokens: &[u32]) -> Result<Vec<f32>> {
        let whole: Vec<u32> = prompt.iter().chain(tokens).copied().collect();
        let all = self
            .decoder
            .sequence_log_probs(&whole, None, &Distribution::FULL)?;
        Ok(all[prompt.len() - 1..].to_vec())
    }
}
