//! The worker's engine and the learner's trainer around one decoder, without a coordinator.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use serde::Serialize;
use tina_learner::{
    batch::{Batch, Group, Sample},
    settings::Settings,
    step::Progress,
    trainer::Trainer,
};
use tina_model::{Decoder, Distribution};
use tina_proto::v1::{Completion, PolicyVersion, RunSpec, SamplingParams, StepMetrics};
use tina_rollout_worker::{
    check::run_plan,
    engine::{Capacity, Engine, Event, Work as Order},
    queue::GroupTask,
    stop::TokenText,
};

use crate::{
    error::{BenchError, Result},
    shapes::mix,
};

/// One round, in seconds where nothing else is said.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) prefill_seconds: f64,
    pub(crate) prefill_tokens: u64,
    /// From the order to the last completion, prompts included.
    pub(crate) sample_seconds: f64,
    pub(crate) sample_tokens: u64,
    /// Without the engine's first step, which computes the prompts.
    pub(crate) decode_seconds: f64,
    pub(crate) decode_tokens: u64,
    pub(crate) decode_steps: u64,
    pub(crate) learn_seconds: f64,
    pub(crate) learn_forward_seconds: f64,
    pub(crate) learn_backward_seconds: f64,
    pub(crate) learn_optimizer_seconds: f64,
    pub(crate) learn_rows: u64,
    pub(crate) learn_tokens: u64,
    /// |learner's log-prob − worker's|, over all sampled tokens.
    pub(crate) logprob_diff_max: f64,
    pub(crate) logprob_diff_mean: f64,
}

pub(crate) fn random_tokens(stream: u64, n: u32, vocab: usize) -> Vec<u32> {
    (0..u64::from(n))
        .map(|i| (mix(stream << 32 | i) % vocab as u64) as u32)
        .collect()
}

/// The engine asks for text only where there are stop strings.
pub(crate) struct NoText;

impl TokenText for NoText {
    fn text(&self, _: &[u32]) -> std::result::Result<String, String> {
        Err("random weights have no text".into())
    }
}

/// Worker and learner around one decoder.
pub(crate) struct Roles {
    decoder: Arc<Decoder>,
    engine: Engine,
    trainer: Trainer,
    groups: u64,
}

/// What the engine sampled, by group and sample.
struct Sampled {
    tasks: Vec<Arc<GroupTask>>,
    completions: Vec<Vec<Completion>>,
    seconds: f64,
    decode_seconds: f64,
    decode_steps: u64,
    decode_tokens: u64,
}

impl Roles {
    pub(crate) fn new(decoder: Arc<Decoder>, spec: &RunSpec, slots: usize) -> Result<Self> {
        let plan = run_plan(spec, decoder.config()).map_err(BenchError::Other)?;
        let engine = Engine::new(
            decoder.clone(),
            Arc::new(NoText),
            plan,
            Capacity::fixed(slots),
        )?;
        let trainer = Trainer::init(decoder.clone(), Settings::from_spec(spec)?.train)?;
        Ok(Self {
            decoder,
            engine,
            trainer,
            groups: 0,
        })
    }

    /// Prompts are computed, completions sampled, and a step taken on them.
    pub(crate) fn round(
        &mut self,
        prompts: u32,
        completions: u32,
        length: u32,
        tokens: u32,
    ) -> Result<Round> {
        let version = self.trainer.version().clone();
        let vocab = self.decoder.config().vocab_size;
        let tasks: Vec<_> = (0..prompts)
            .map(|_| {
                self.groups += 1;
                let prompt = random_tokens(self.groups, length, vocab);
                Arc::new(task(self.groups, prompt, tokens, version.clone()))
            })
            .collect();
        let prefill_seconds = self.prefill(&tasks)?;
        let prefill_tokens = u64::from(prompts) * u64::from(length);
        eprintln!("prompts of {prefill_tokens} tokens computed in {prefill_seconds:.3} s");
        load(
            &mut self.engine,
            version,
            self.trainer.adapter_bytes().to_vec(),
        )?;
        let sampled = self.sample(tasks, completions)?;
        let sample_tokens = u64::from(prompts * completions) * u64::from(tokens);
        eprintln!("{sample_tokens} tokens sampled in {:.3} s", sampled.seconds);
        let began = Instant::now();
        let metrics = self.learn(&sampled)?;
        let learn_seconds = began.elapsed().as_secs_f64();
        eprintln!(
            "learnt from {} tokens in {learn_seconds:.3} s",
            metrics.tokens_trained
        );
        Ok(Round {
            prefill_seconds,
            prefill_tokens,
            sample_seconds: sampled.seconds,
            sample_tokens,
            decode_seconds: sampled.decode_seconds,
            decode_tokens: sampled.decode_tokens,
            decode_steps: sampled.decode_steps,
            learn_seconds,
            learn_forward_seconds: metrics.seconds_forward,
            learn_backward_seconds: metrics.seconds_backward,
            learn_optimizer_seconds: metrics.seconds_optimizer,
            learn_rows: metrics.tokens_forwarded,
            learn_tokens: metrics.tokens_trained,
            logprob_diff_max: metrics.logprob_diff_max,
            logprob_diff_mean: metrics.logprob_diff_mean,
        })
    }

    /// Seconds for the prompts alone, one after the other, as the engine computes them.
    fn prefill(&self, tasks: &[Arc<GroupTask>]) -> Result<f64> {
        let longest = tasks
            .iter()
            .map(|task| task.prompt.len())
            .max()
            .unwrap_or(1);
        let mut cache = self.decoder.new_cache(1, longest)?;
        let began = Instant::now();
        for task in tasks {
            // Its logits come back to the host, so it is done when it returns.
            self.decoder
                .prefill(&mut cache, &[&task.prompt], Some(self.trainer.adapter()))?;
        }
        Ok(began.elapsed().as_secs_f64())
    }

    fn sample(&mut self, tasks: Vec<Arc<GroupTask>>, count: u32) -> Result<Sampled> {
        let mut events = Vec::new();
        let known = self.engine.gauges().prompt_tokens.load(Ordering::Relaxed);
        let began = Instant::now();
        for task in &tasks {
            let (task, indices) = (task.clone(), (0..count).collect());
            self.engine.submit(
                Order::Sample {
                    task,
                    indices,
                    epoch: 1,
                },
                &mut events,
            );
        }
        let gauges = self.engine.gauges();
        let prompts = || gauges.prompt_tokens.load(Ordering::Relaxed);
        let all = known + tasks.iter().map(|t| t.prompt.len() as u64).sum::<u64>();
        while prompts() < all && !self.engine.is_idle() {
            self.engine.step(&mut events);
        }
        let decoding = Instant::now();
        let mut decode_steps = 0;
        let tokens = || gauges.tokens.load(Ordering::Relaxed);
        let before = tokens();
        while !self.engine.is_idle() {
            self.engine.step(&mut events);
            decode_steps += 1;
        }
        let (seconds, decode_seconds) = (began.elapsed(), decoding.elapsed());
        let mut completions = vec![Vec::new(); tasks.len()];
        for event in events {
            match event {
                Event::Completed { completion, .. } => {
                    let place = tasks.iter().position(|t| t.group_id == completion.group_id);
                    completions[place.unwrap_or_default()].push(completion);
                }
                Event::Failed(failed) => return Err(BenchError::Other(failed.error)),
                Event::Loaded(_) => {}
            }
        }
        completions
            .iter_mut()
            .for_each(|group| group.sort_by_key(|c| c.sample_index));
        Ok(Sampled {
            tasks,
            completions,
            seconds: seconds.as_secs_f64(),
            decode_seconds: decode_seconds.as_secs_f64(),
            decode_steps,
            decode_tokens: tokens() - before,
        })
    }

    fn learn(&mut self, sampled: &Sampled) -> Result<StepMetrics> {
        let groups = sampled
            .tasks
            .iter()
            .zip(&sampled.completions)
            .map(|(task, completions)| {
                let samples = completions.iter().map(|completion| Sample {
                    index: completion.sample_index,
                    tokens: completion.tokens.clone(),
                    logprobs: completion.logprobs.clone(),
                    // All different and none the mean, so that every completion has an advantage.
                    reward: Some(f64::from(completion.sample_index + 1).ln()),
                    truncated: true,
                    staleness: (0, 0),
                });
                Group {
                    id: task.group_id,
                    prompt: task.prompt.clone(),
                    distribution: Distribution::FULL,
                    samples: samples.collect(),
                }
            });
        let batch = Batch {
            version: self.trainer.version().clone(),
            groups: groups.collect(),
        };
        let result = self.trainer.step(&batch, &Progress::default())?;
        Ok(result.metrics.unwrap_or_default())
    }
}

/// Gives an idle engine the adapter that it samples with from now on.
pub(crate) fn load(engine: &mut Engine, version: PolicyVersion, bytes: Vec<u8>) -> Result<()> {
    let mut events = Vec::new();
    let ready = engine.loader().load(version, &bytes);
    let adapter = Box::new(ready.map_err(BenchError::Other)?);
    let order = Order::Load { adapter, epoch: 1 };
    engine.submit(order, &mut events);
    engine.step(&mut events);
    match events.into_iter().next() {
        Some(Event::Loaded(loaded)) if loaded.error.is_empty() => Ok(()),
        Some(Event::Loaded(loaded)) => Err(BenchError::Other(loaded.error)),
        other => Err(BenchError::Other(format!(
            "the engine loaded no adapter: {other:?}"
        ))),
    }
}

pub(crate) fn task(
    group_id: u64,
    prompt: Vec<u32>,
    tokens: u32,
    version: PolicyVersion,
) -> GroupTask {
    let mut prompt_key = [0; 32];
    prompt_key[..8].copy_from_slice(&group_id.to_le_bytes());
    let params = SamplingParams {
        temperature: 1.0,
        top_p: 1.0,
        max_tokens: tokens,
        ..SamplingParams::default()
    };
    GroupTask {
        group_id,
        prompt,
        prompt_key,
        params,
        version,
        exact: false,
    }
}
