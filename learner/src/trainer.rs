//! The learner's state between steps, and what a step makes of it.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use candle_core::Tensor;
use tina_model::{Adapter, Decoder, Distribution, Dropout, ModelError, PassShape};
use tina_proto::v1::{PolicyVersion, StepMetrics, StepResult};
use tracing::warn;

use crate::{
    adamw::{AdamW, clip_scale, global_norm},
    batch::Batch,
    checkpoint::Checkpoint,
    host,
    loss::LossStats,
    memory::StepMemory,
    moments, seed,
    settings::TrainSettings,
    share::{AdapterFile, Crew},
    step::{BatchGradient, Cost, Progress, Work, penalised_kl, penalties},
};

/// Why a step can't be made.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model can't compute it.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// Infinite gradients, or worse, in one step after the other.
    #[error(
        "step {step}: the gradient's norm is {norm}, for the {MAX_SKIPPED}rd step in a row; lower \
         learner.lr, or set learner.max_grad_norm if it is 0"
    )]
    NotFinite {
        /// The step that was to be made.
        step: u64,
        /// The norm.
        norm: f64,
    },
    /// A checkpoint that does not fit the run.
    #[error("checkpoint of step {step}: {problem}")]
    Checkpoint {
        /// Its step.
        step: u64,
        /// What doesn't fit.
        problem: String,
    },
    /// The learner's ranks between them left something out.
    #[error("a step shared among ranks came to nothing: {0}")]
    Ranks(String),
    /// Called off through [`Progress::cancel`].
    #[error("the step was called off")]
    Cancelled,
}

/// Adapter, optimiser and version; a step leaves all of them changed, or none.
#[derive(Debug)]
pub struct Trainer {
    decoder: Arc<Decoder>,
    settings: TrainSettings,
    adapter: Adapter,
    bytes: Arc<[u8]>,
    optimiser: AdamW,
    version: PolicyVersion,
    parent: Option<PolicyVersion>,
    /// The versions before it that this trainer made or went on from, oldest first.
    made: VecDeque<PolicyVersion>,
    result: Option<StepResult>,
    /// Steps that were skipped, the last ones, for want of a finite gradient.
    skipped: u32,
}

/// Steps in a row whose gradient is not finite before the learner gives up.
const MAX_SKIPPED: u32 = 3;

/// Versions that are remembered: more than a run may sample ahead.
const REMEMBERED: usize = 256;

impl Trainer {
    /// Version 0: the adapter that the run's seed gives.
    pub fn init(decoder: Arc<Decoder>, settings: TrainSettings) -> Result<Self, TrainError> {
        let seed = seed::adapter(settings.seed);
        let adapter = Adapter::init(&settings.lora, decoder.config(), seed, decoder.device())?;
        let bytes: Arc<[u8]> = adapter.to_safetensors()?.into();
        let optimiser = AdamW::new(settings.optimiser, &adapter.parameters())?;
        let version = PolicyVersion::of_bytes(0, &bytes);
        Ok(Self {
            decoder,
            settings,
            adapter,
            bytes,
            optimiser,
            version,
            parent: None,
            made: VecDeque::new(),
            result: None,
            skipped: 0,
        })
    }

    /// The state that `checkpoint` was taken of.
    pub fn restore(
        decoder: Arc<Decoder>,
        settings: TrainSettings,
        checkpoint: Checkpoint,
    ) -> Result<Self, TrainError> {
        let step = checkpoint.version.step;
        let problem = |problem: String| TrainError::Checkpoint { step, problem };
        let (lora, device) = (&settings.lora, decoder.device());
        let adapter =
            Adapter::from_safetensors(&checkpoint.adapter, lora, decoder.config(), device)?;
        let parameters = adapter.parameters();
        let names = adapter.parameter_names();
        let (first, second) =
            moments::from_safetensors(&checkpoint.optimizer, &names, &parameters, device)
                .map_err(problem)?;
        let optimiser = AdamW::restore(settings.optimiser, checkpoint.updates, first, second);
        Ok(Self {
            decoder,
            settings,
            adapter,
            bytes: checkpoint.adapter.into(),
            optimiser,
            version: checkpoint.version,
            made: checkpoint.parent.iter().cloned().collect(),
            parent: checkpoint.parent,
            result: checkpoint.result,
            skipped: 0,
        })
    }

    /// All that [`Trainer::restore`] needs.
    pub fn checkpoint(&self, run_id: &str, model_digest: &str) -> Result<Checkpoint, TrainError> {
        let problem = |problem: String| TrainError::Checkpoint {
            step: self.version.step,
            problem,
        };
        let optimizer = moments::to_safetensors(
            &self.adapter.parameter_names(),
            self.optimiser.first_moments(),
            self.optimiser.second_moments(),
        )
        .map_err(problem)?;
        Ok(Checkpoint {
            run_id: run_id.to_owned(),
            model_digest: model_digest.to_owned(),
            version: self.version.clone(),
            parent: self.parent.clone(),
            updates: self.optimiser.updates(),
            adapter: self.bytes.to_vec(),
            optimizer,
            result: self.result.clone(),
        })
    }

    /// What a step takes of memory at most, with sequences of up to `longest` tokens, and how many
    /// layers keep their activations.
    pub fn memory(&self, longest: usize) -> (usize, usize) {
        // A sequence longer than a pass goes alone.
        let rows = self.settings.micro_batch_tokens.max(longest);
        let shape = PassShape::at_most(rows, longest);
        let memory = StepMemory::new(&self.decoder, &self.adapter, &self.settings, &shape);
        let kept = memory.layers_kept(self.settings.memory);
        (memory.peak(kept), kept)
    }

    /// The adapter's version.
    pub fn version(&self) -> &PolicyVersion {
        &self.version
    }

    /// The version that the last step started from; none for version 0.
    pub fn parent(&self) -> Option<&PolicyVersion> {
        self.parent.as_ref()
    }

    /// The versions before it that are remembered.
    pub fn made(&self) -> impl Iterator<Item = &PolicyVersion> {
        self.made.iter()
    }

    /// The adapter as safetensors: what the version's digest is of.
    pub fn adapter_bytes(&self) -> Arc<[u8]> {
        self.bytes.clone()
    }

    /// The adapter itself.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The result of the step that made the version, when that is not 0.
    pub fn result(&self) -> Option<&StepResult> {
        self.result.as_ref()
    }

    /// Sets the times that are known only after the step, and adds them to its total.
    pub fn note_seconds(&mut self, checkpoint: f64, publish: f64) {
        if let Some(metrics) = self
            .result
            .as_mut()
            .and_then(|result| result.metrics.as_mut())
        {
            metrics.seconds_total += checkpoint + publish;
            metrics.seconds_checkpoint += checkpoint;
            metrics.seconds_publish += publish;
        }
    }

    /// Log-probs of the probe's tokens 1.. under the adapter.
    pub fn probe(&self) -> Result<Vec<f32>, TrainError> {
        let probe = &self.settings.probe;
        Ok(self
            .decoder
            .sequence_log_probs(probe, Some(&self.adapter), &Distribution::FULL)?)
    }

    #[cfg(test)]
    pub(crate) fn limit_memory(&mut self, bytes: Option<usize>) {
        self.settings.memory = bytes;
    }

    /// One step on `batch`, which [`crate::batch::Assembly`] has checked against this version.
    pub fn step(&mut self, batch: &Batch, progress: &Progress) -> Result<StepResult, TrainError> {
        self.step_with(batch, progress, None)
    }

    /// [`Trainer::step`], to the same bytes, where other ranks may compute parts of the gradient.
    pub(crate) fn step_with(
        &mut self,
        batch: &Batch,
        progress: &Progress,
        mut crew: Option<&mut dyn Crew>,
    ) -> Result<StepResult, TrainError> {
        let started = Instant::now();
        let settings = &self.settings;
        let index = self.version.step;
        let lr = settings.schedule.lr(index);
        let mut cost = Cost::default();
        let penalties = penalties(batch, &self.decoder, settings, progress, &mut cost)?;
        let mut work = Work::new(batch, settings, &penalties);
        progress.begin(work.completions() * settings.iterations as usize);

        let (mut adapter, mut optimiser) = (self.adapter.clone(), self.optimiser.clone());
        let mut seconds_optimizer = 0.0;
        let mut passes = Vec::new();
        let mut skipped = false;
        let mut file = AdapterFile {
            version: self.version.clone(),
            bytes: self.bytes.clone(),
        };
        for iteration in 0..settings.iterations {
            let dropout = (settings.lora.dropout > 0.0).then(|| Dropout {
                p: settings.lora.dropout,
                seed: seed::dropout(settings.seed, index, iteration),
            });
            if iteration > 0 && crew.is_some() {
                file.bytes = adapter.to_safetensors()?.into();
                file.version = PolicyVersion::of_bytes(index, &file.bytes);
            }
            let crew = match &mut crew {
                Some(crew) => {
                    let crew: &mut dyn Crew = &mut **crew;
                    Some((crew, &file))
                }
                None => None,
            };
            let mut pass = work.gradient(
                &self.decoder,
                settings,
                &adapter,
                dropout,
                crew,
                progress,
                &mut cost,
            )?;
            let updating = Instant::now();
            let parameters = adapter.parameters();
            let gradients = match pass.gradients.take() {
                Some(gradients) => gradients,
                None => parameters
                    .iter()
                    .map(Tensor::zeros_like)
                    .collect::<Result<_, _>>()?,
            };
            let norm = global_norm(&gradients)?;
            if !norm.is_finite() {
                self.skipped += 1;
                if self.skipped >= MAX_SKIPPED {
                    return Err(TrainError::NotFinite {
                        step: index + 1,
                        norm,
                    });
                }
                warn!(
                    step = index + 1,
                    norm, "the gradient is not finite: the step leaves the adapter as it is"
                );
                (adapter, optimiser) = (self.adapter.clone(), self.optimiser.clone());
                passes.clear();
                skipped = true;
                break;
            }
            let scale = clip_scale(norm, settings.max_grad_norm);
            adapter =
                adapter.with_parameters(optimiser.update(&parameters, &gradients, scale, lr)?)?;
            self.decoder.device().synchronize()?;
            seconds_optimizer += updating.elapsed().as_secs_f64();
            passes.push((pass, norm));
        }

        if !skipped {
            self.skipped = 0;
        }
        let bytes: Arc<[u8]> = adapter.to_safetensors()?.into();
        let version = PolicyVersion::of_bytes(index + 1, &bytes);
        let probe_logprobs = self.decoder.sequence_log_probs(
            &settings.probe,
            Some(&adapter),
            &Distribution::FULL,
        )?;
        let learnt = metrics(&passes);
        let metrics = StepMetrics {
            lr,
            tokens_forwarded: cost.rows_forwarded,
            seconds_forward: cost.seconds_forward,
            seconds_backward: cost.seconds_backward,
            seconds_optimizer,
            seconds_total: started.elapsed().as_secs_f64(),
            peak_rss_bytes: host::peak_rss_bytes(),
            staleness_mean: batch.staleness_mean(),
            staleness_max: batch.staleness_max(),
            skipped,
            kl: penalised_kl(batch, &settings.loss.kl, &penalties).unwrap_or(learnt.kl),
            ..learnt
        };
        let result = StepResult {
            version: Some(version.clone()),
            adapter_bytes: bytes.len() as u64,
            metrics: Some(metrics),
            probe_logprobs,
            ..Default::default()
        };
        self.adapter = adapter;
        self.optimiser = optimiser;
        self.bytes = bytes;
        let parent = std::mem::replace(&mut self.version, version);
        self.made.push_back(parent.clone());
        if self.made.len() > REMEMBERED {
            self.made.pop_front();
        }
        self.parent = Some(parent);
        self.result = Some(result.clone());
        Ok(result)
    }
}

/// Means over the step's iterations. The difference to the sampled log-probs is the first
/// iteration's: later ones compute under an adapter that has moved on.
fn metrics(passes: &[(BatchGradient, f64)]) -> StepMetrics {
    let count = passes.len().max(1) as f64;
    let mut all = LossStats::default();
    let mut metrics = StepMetrics::default();
    for (
        BatchGradient {
            stats,
            entropy,
            completions,
            ..
        },
        norm,
    ) in passes
    {
        all.tokens += stats.tokens;
        all.kl += stats.kl;
        all.ratio += stats.ratio;
        all.ratio_squared += stats.ratio_squared;
        all.corrected += stats.corrected;
        all.clipped += stats.clipped;
        metrics.ratio_max = metrics.ratio_max.max(stats.ratio_max);
        metrics.loss += stats.loss / count;
        metrics.grad_norm += norm / count;
        metrics.entropy += entropy;
        metrics.completions_trained = *completions;
    }
    if let Some((BatchGradient { stats, .. }, _)) = passes.first() {
        metrics.logprob_diff_max = stats.diff_max;
        metrics.logprob_diff_mean = stats.per_token(stats.diff);
    }
    StepMetrics {
        kl: all.per_token(all.kl),
        entropy: all.per_token(metrics.entropy),
        ratio_mean: all.per_token(all.ratio),
        clip_fraction: all.per_token(all.clipped as f64),
        effective_sample_share: all.effective_share(),
        corrected_fraction: all.per_token(all.corrected as f64),
        tokens_trained: all.tokens,
        ..metrics
    }
}

#[cfg(test)]
mod tests;
