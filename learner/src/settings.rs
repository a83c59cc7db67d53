//! The run's specification as the learner uses it: parsed once, every value checked.

use std::time::Duration;

use tina_model::{Dtype, LoraConfig, LoraModule, ModelSource};
use tina_proto::v1::{AlgorithmSpec, LearnerSpec, LoraSpec, RunSpec};

use crate::{
    adamw::AdamWConfig,
    advantage::Scale,
    loss::{Estimator, Importance, Kl, Loss, Name, Recipe},
    schedule::Schedule,
};

/// A value of the run's specification that the learner can't work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("run specification, {key}: {problem}")]
pub struct SpecError {
    key: &'static str,
    problem: String,
}

fn bad(key: &'static str, problem: impl Into<String>) -> SpecError {
    SpecError {
        key,
        problem: problem.into(),
    }
}

/// Refuses a value that is not finite or lies outside `[low, high]`.
fn within(key: &'static str, value: f64, low: f64, high: f64) -> Result<f64, SpecError> {
    if value.is_finite() && value >= low && value <= high {
        return Ok(value);
    }
    Err(bad(
        key,
        format!("{value} does not lie between {low} and {high}"),
    ))
}

fn at_least_one(key: &'static str, value: u64) -> Result<u64, SpecError> {
    if value == 0 {
        Err(bad(key, "it must be at least 1"))
    } else {
        Ok(value)
    }
}

/// What the training step is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSettings {
    /// The run's seed.
    pub seed: u64,
    /// The adapter's shape.
    pub lora: LoraConfig,
    /// The loss's constants.
    pub loss: Loss,
    /// How rewards become advantages.
    pub advantage: Scale,
    /// The longest completion that is sampled.
    pub max_completion_tokens: usize,
    /// Completions that hit the token limit are left out of the loss.
    pub mask_truncated: bool,
    /// Optimiser updates on one batch.
    pub iterations: u32,
    /// The learning rate of each step.
    pub schedule: Schedule,
    /// The optimiser's constants.
    pub optimiser: AdamWConfig,
    /// Gradients of a larger norm are scaled down to it; 0: never.
    pub max_grad_norm: f64,
    /// Rows of one pass at most.
    pub micro_batch_tokens: usize,
    /// Bytes that the process should take at most: activations give way. `None`: no limit.
    pub memory: Option<usize>,
    /// The sequence whose log-probs prove that learner and worker hold the same adapter.
    pub probe: Vec<u32>,
}

/// Ranks of one learner at most.
const MOST_RANKS: u32 = 256;

/// How a step is shared out among processes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankSettings {
    /// Processes that compute a step's gradient, the learner itself among them.
    pub ranks: u32,
    /// How long another rank is waited for, beyond what the learner's own share took, and as long
    /// again.
    pub timeout: Duration,
    /// Gradients of ranks on other GPUs of this machine come by NCCL.
    pub nccl: bool,
}

/// The whole specification.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The run's name.
    pub run_id: String,
    /// The run's folder on the coordinator's machine.
    pub run_dir: String,
    /// Where the base model comes from.
    pub source: ModelSource,
    /// What the base weights are computed in.
    pub dtype: Dtype,
    /// The longest sequence that the run can ask for.
    pub max_sequence_tokens: usize,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// How a step is shared out.
    pub ranks: RankSettings,
    /// What the training step is made of.
    pub train: TrainSettings,
}

impl Settings {
    /// Parses and checks `spec`; the error names the key.
    pub fn from_spec(spec: &RunSpec) -> Result<Self, SpecError> {
        let missing = |key| move || bad(key, "it is missing");
        let model = spec.model.as_ref().ok_or_else(missing("model"))?;
        let lora = spec.lora.as_ref().ok_or_else(missing("lora"))?;
        let algorithm = spec.algorithm.as_ref().ok_or_else(missing("algorithm"))?;
        let learner = spec.learner.as_ref().ok_or_else(missing("learner"))?;
        if spec.run_id.is_empty() {
            return Err(bad("run_id", "it is empty"));
        }
        if spec.probe_tokens.len() < 2 {
            return Err(bad("probe_tokens", "it needs at least 2 tokens"));
        }
        Ok(Self {
            run_id: spec.run_id.clone(),
            run_dir: spec.run_dir.clone(),
            source: model
                .source
                .parse::<ModelSource>()
                .map_err(|error| bad("model.source", error.to_string()))?,
            dtype: model
                .dtype
                .parse::<Dtype>()
                .map_err(|error| bad("model.dtype", error.to_string()))?,
            max_sequence_tokens: at_least_one(
                "max_sequence_tokens",
                spec.max_sequence_tokens.into(),
            )? as usize,
            checkpoint_every: at_least_one("learner.checkpoint_every", learner.checkpoint_every)?,
            ranks: RankSettings::new(learner)?,
            train: TrainSettings::new(spec, lora, algorithm, learner)?,
        })
    }
}

impl RankSettings {
    fn new(learner: &LearnerSpec) -> Result<Self, SpecError> {
        let most = f64::from(MOST_RANKS);
        within("learner.ranks", learner.ranks.into(), 0.0, most)?;
        let seconds = within("learner.rank_timeout_s", learner.rank_timeout_s, 0.0, 1e9)?;
        Ok(Self {
            ranks: learner.ranks.max(1),
            timeout: Duration::from_secs_f64(seconds),
            nccl: learner.ranks_by_nccl,
        })
    }

    /// Of a specification of which nothing else is looked at.
    pub fn of_spec(spec: &RunSpec) -> Result<Self, SpecError> {
        Self::new(&spec.learner.unwrap_or_default())
    }
}

impl TrainSettings {
    fn new(
        spec: &RunSpec,
        lora: &LoraSpec,
        algorithm: &AlgorithmSpec,
        learner: &LearnerSpec,
    ) -> Result<Self, SpecError> {
        let name = algorithm.loss.parse::<Name>();
        let recipe = name.map_err(|e| bad("algorithm.loss", e))?.recipe();
        Ok(Self {
            seed: spec.seed,
            lora: lora_config(lora)?,
            loss: loss(algorithm, &recipe)?,
            advantage: match algorithm.advantage.as_str() {
                "" => recipe.advantage,
                named => named
                    .parse::<Scale>()
                    .map_err(|e| bad("algorithm.advantage", e))?,
            },
            max_completion_tokens: at_least_one(
                "algorithm.max_completion_tokens",
                algorithm.max_completion_tokens.into(),
            )? as usize,
            mask_truncated: algorithm.mask_truncated,
            iterations: at_least_one("algorithm.iterations", algorithm.iterations.into())? as u32,
            schedule: Schedule {
                lr: within("learner.lr", learner.lr, 0.0, 1.0)?,
                min_lr_ratio: within("learner.min_lr_ratio", learner.min_lr_ratio, 0.0, 1.0)?,
                warmup_steps: learner.warmup_steps,
                schedule_steps: learner.schedule_steps,
            },
            optimiser: AdamWConfig {
                beta1: within("learner.beta1", learner.beta1, 0.0, 1.0 - f64::EPSILON)?,
                beta2: within("learner.beta2", learner.beta2, 0.0, 1.0 - f64::EPSILON)?,
                // Moments start at 0, so without it the first update could divide by 0.
                eps: within("learner.eps", learner.eps, f64::MIN_POSITIVE, 1.0)?,
                weight_decay: within("learner.weight_decay", learner.weight_decay, 0.0, 1e3)?,
            },
            max_grad_norm: within(
                "learner.max_grad_norm",
                learner.max_grad_norm,
                0.0,
                f64::MAX,
            )?,
            micro_batch_tokens: at_least_one(
                "learner.micro_batch_tokens",
                learner.micro_batch_tokens.into(),
            )? as usize,
            memory: learner
                .memory_bytes
                .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            probe: spec.probe_tokens.clone(),
        })
    }
}

/// The loss of that name, with what the specification says otherwise.
fn loss(spec: &AlgorithmSpec, recipe: &Recipe) -> Result<Loss, SpecError> {
    let mut loss = Loss::of(recipe);
    if let Some(low) = spec.clip_low {
        loss.clip.low = within("algorithm.clip_low", low, 0.0, 1.0)?;
    }
    if let Some(high) = spec.clip_high {
        loss.clip.high = within("algorithm.clip_high", high, 0.0, f64::MAX)?;
    }
    loss.kl = Kl {
        beta: within("algorithm.kl_beta", spec.kl_beta, 0.0, f64::MAX)?,
        estimator: spec
            .kl_estimator
            .parse::<Estimator>()
            .map_err(|e| bad("algorithm.kl_estimator", e))?,
        in_reward: match spec.kl_in.as_str() {
            "loss" | "" => false,
            "reward" => true,
            other => {
                let problem = format!("unknown place \"{other}\": \"loss\" or \"reward\"");
                return Err(bad("algorithm.kl_in", problem));
            }
        },
    };
    loss.importance = match spec.importance.as_str() {
        "none" | "" => None,
        level => Some(Importance {
            level: level.parse().map_err(|e| bad("algorithm.importance", e))?,
            cap: within("algorithm.importance_cap", spec.importance_cap, 1.0, 1e6)?,
            mode: spec
                .importance_mode
                .parse()
                .map_err(|e| bad("algorithm.importance_mode", e))?,
        }),
    };
    Ok(loss)
}

fn lora_config(spec: &LoraSpec) -> Result<LoraConfig, SpecError> {
    let target_modules = spec
        .target_modules
        .iter()
        .map(|name| name.parse::<LoraModule>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad("lora.target_modules", format!("{error}")))?;
    if target_modules.is_empty() {
        return Err(bad("lora.target_modules", "it names no module"));
    }
    Ok(LoraConfig {
        rank: at_least_one("lora.rank", spec.rank.into())? as usize,
        alpha: within("lora.alpha", spec.alpha.into(), 0.0, f64::from(f32::MAX))? as f32,
        dropout: within("lora.dropout", spec.dropout.into(), 0.0, 0.999)? as f32,
        rslora: spec.rslora,
        target_modules,
    })
}

#[cfg(test)]
mod tests {
    use tina_proto::v1::ModelSpec;

    use super::*;
    use crate::loss::importance::{Level, Mode};

    fn spec() -> RunSpec {
        RunSpec {
            run_id: "test".to_owned(),
            seed: 7,
            model: Some(ModelSpec {
                source: "hf:org/name".to_owned(),
                dtype: "f32".to_owned(),
            }),
            lora: Some(LoraSpec {
                rank: 4,
                alpha: 8.0,
                dropout: 0.0,
                rslora: false,
                target_modules: vec!["q_proj".to_owned(), "down_proj".to_owned()],
            }),
            algorithm: Some(AlgorithmSpec {
                loss: "dapo".to_owned(),
                clip_low: None,
                clip_high: Some(0.3),
                kl_beta: 0.04,
                iterations: 2,
                mask_truncated: true,
                advantage: "unscaled".to_owned(),
                max_completion_tokens: 48,
                kl_estimator: "k2".to_owned(),
                kl_in: "reward".to_owned(),
                importance: "sequence".to_owned(),
                importance_cap: 3.0,
                importance_mode: "mask".to_owned(),
            }),
            learner: Some(LearnerSpec {
                lr: 1e-5,
                min_lr_ratio: 0.1,
                warmup_steps: 3,
                schedule_steps: 100,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.01,
                max_grad_norm: 1.0,
                micro_batch_tokens: 4096,
                checkpoint_every: 1,
                memory_bytes: Some(5000),
                ranks: 2,
                rank_timeout_s: 30.0,
                ranks_by_nccl: false,
            }),
            probe_tokens: vec![1, 2, 3],
            max_sequence_tokens: 64,
            run_dir: "runs/test".to_owned(),
            adapter_transport: String::new(),
            adapter_swap: String::new(),
            adapter_fan_out: 0,
        }
    }

    #[test]
    fn every_part_of_a_sound_specification_is_taken_over() {
        let settings = Settings::from_spec(&spec()).unwrap();
        let train = settings.train;
        assert_eq!(train.lora.target_modules, [LoraModule::Q, LoraModule::Down]);
        let loss = train.loss;
        assert_eq!(loss.aggregation, Name::Dapo.recipe().aggregation);
        assert_eq!((loss.clip.low, loss.clip.high), (0.2, 0.3));
        assert_eq!((loss.kl.beta, loss.kl.in_reward), (0.04, true));
        assert_eq!(loss.kl.estimator, Estimator::K2);
        let importance = loss.importance.unwrap();
        assert_eq!(
            (importance.level, importance.mode),
            (Level::Sequence, Mode::Mask)
        );
        assert_eq!(importance.cap, 3.0);
        assert_eq!(
            (train.iterations, train.mask_truncated, train.memory),
            (2, true, Some(5000))
        );
        assert_eq!(train.advantage, Scale::Unscaled);
        assert_eq!(train.max_completion_tokens, 48);
        assert_eq!(train.schedule.warmup_steps, 3);
        assert_eq!(train.optimiser.beta2, 0.95);
        assert_eq!(
            (settings.max_sequence_tokens, settings.checkpoint_every),
            (64, 1)
        );
        assert_eq!(settings.ranks.ranks, 2);
        assert_eq!(settings.ranks.timeout, Duration::from_secs(30));
    }

    #[test]
    fn a_value_that_cannot_be_is_named() {
        type Spoil = fn(&mut RunSpec);
        let cases: [(&str, Spoil); 18] = [
            ("model:", |s| s.model = None),
            ("model.source", |s| {
                s.model.as_mut().unwrap().source = "hf:".to_owned()
            }),
            ("lora.target_modules", |s| {
                s.lora.as_mut().unwrap().target_modules.clear()
            }),
            ("lora.rank", |s| s.lora.as_mut().unwrap().rank = 0),
            ("algorithm.loss", |s| {
                s.algorithm.as_mut().unwrap().loss = "ppo".to_owned()
            }),
            ("algorithm.advantage", |s| {
                s.algorithm.as_mut().unwrap().advantage = "none".to_owned()
            }),
            ("algorithm.kl_estimator", |s| {
                s.algorithm.as_mut().unwrap().kl_estimator = "k4".to_owned()
            }),
            ("algorithm.kl_in", |s| {
                s.algorithm.as_mut().unwrap().kl_in = "data".to_owned()
            }),
            ("algorithm.importance:", |s| {
                s.algorithm.as_mut().unwrap().importance = "group".to_owned()
            }),
            ("algorithm.importance_cap", |s| {
                s.algorithm.as_mut().unwrap().importance_cap = 0.5
            }),
            ("algorithm.importance_mode", |s| {
                s.algorithm.as_mut().unwrap().importance_mode.clear()
            }),
            ("algorithm.max_completion_tokens", |s| {
                s.algorithm.as_mut().unwrap().max_completion_tokens = 0
            }),
            ("algorithm.iterations", |s| {
                s.algorithm.as_mut().unwrap().iterations = 0
            }),
            ("learner.lr", |s| s.learner.as_mut().unwrap().lr = f64::NAN),
            ("learner.beta1", |s| s.learner.as_mut().unwrap().beta1 = 1.0),
            ("learner.ranks", |s| {
                s.learner.as_mut().unwrap().ranks = 1000
            }),
            ("learner.rank_timeout_s", |s| {
                s.learner.as_mut().unwrap().rank_timeout_s = f64::INFINITY
            }),
            ("probe_tokens", |s| s.probe_tokens.truncate(1)),
        ];
        for (key, spoil) in cases {
            let mut spec = spec();
            spoil(&mut spec);
            let error = Settings::from_spec(&spec).unwrap_err().to_string();
            assert!(error.contains(key), "{key} is not in: {error}");
        }
    }
}
