//! The gradient of one batch: advantages, passes of bounded size, log-probs, loss, backward.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Instant,
};

use candle_core::Tensor;
use tina_model::{Adapter, Decoder, Dropout};

use crate::{
    advantage::advantages,
    batch::Batch,
    loss::{Kl, LossStats, Normaliser},
    micro_batch::{GroupShape, cut},
    pass::{Computer, Pass, base_log_probs},
    settings::TrainSettings,
    share::{self, AdapterFile, Crew},
    trainer::TrainError,
};

/// How far a step is; shared with whoever reports it, or calls it off.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU32,
    total: AtomicU32,
    cancelled: AtomicBool,
}

impl Progress {
    /// Completions that have been through backward, and of how many.
    pub fn done_of_total(&self) -> (u32, u32) {
        (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        )
    }

    /// The step ends before its next pass, and changes nothing.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn begin(&self, total: usize) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total as u32, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, completions: usize) {
        self.done.fetch_add(completions as u32, Ordering::Relaxed);
    }

    /// Completions that must be computed again: who had them is lost.
    pub(crate) fn take_back(&self, completions: usize) {
        self.done.fetch_sub(completions as u32, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// What a step has cost so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) rows_forwarded: u64,
    pub(crate) seconds_forward: f64,
    pub(crate) seconds_backward: f64,
}

/// What one pass over the whole batch yields.
#[derive(Debug)]
pub(crate) struct BatchGradient {
    /// In the order of the adapter's parameters; none when no completion has a gradient.
    pub(crate) gradients: Option<Vec<Tensor>>,
    pub(crate) stats: LossStats,
    /// Sum over the trained tokens.
    pub(crate) entropy: f64,
    pub(crate) completions: u32,
}

/// A batch made ready: who is in the loss, with which advantage, in which pass.
pub(crate) struct Work<'a> {
    passes: Vec<Pass<'a>>,
}

/// What is taken off the reward of every completion, group by group, where the divergence from the
/// base model is no part of the loss; needs a pass of the base model over all of them.
pub(crate) fn penalties(
    batch: &Batch,
    decoder: &Decoder,
    settings: &TrainSettings,
    progress: &Progress,
    cost: &mut Cost,
) -> Result<Vec<Vec<f64>>, TrainError> {
    let none = |group: &crate::batch::Group| vec![0.0; group.samples.len()];
    let mut penalties: Vec<Vec<f64>> = batch.groups.iter().map(none).collect();
    let kl = settings.loss.kl;
    if kl.beta == 0.0 || !kl.in_reward {
        return Ok(penalties);
    }
    let shapes: Vec<GroupShape> = (0..batch.groups.len())
        .map(|index| shape(batch, index, |_, sample| sample.reward.is_some()))
        .collect();
    progress.begin(shapes.iter().map(|shape| shape.samples.len()).sum());
    for cut in cut(&shapes, settings.micro_batch_tokens) {
        if progress.is_cancelled() {
            return Err(TrainError::Cancelled);
        }
        let started = Instant::now();
        let pass = Pass::new(batch, &cut, |_, _| (0.0, 0.0));
        let (base, rows) = base_log_probs(decoder, &pass)?;
        let mut rest = &base[..];
        let parts = cut.parts.iter();
        let all = parts.flat_map(|part| part.samples.iter().map(|sample| (part.group, *sample)));
        for (group, sample) in all {
            let sampled = &batch.groups[group].samples[sample].logprobs;
            let (own, after) = rest.split_at(sampled.len());
            rest = after;
            penalties[group][sample] = kl.beta * kl.estimator.of_completion(own, sampled);
        }
        // A pass over a batch takes its time, and who gets nowhere for long is told to end.
        progress.add(pass.completions().count());
        cost.rows_forwarded += rows;
        cost.seconds_forward += started.elapsed().as_secs_f64();
    }
    Ok(penalties)
}

/// The mean estimate a token that `penalties` are made of, where the KL counts in the reward.
pub(crate) fn penalised_kl(batch: &Batch, kl: &Kl, penalties: &[Vec<f64>]) -> Option<f64> {
    if kl.beta == 0.0 || !kl.in_reward {
        return None;
    }
    let judged = batch.groups.iter().flat_map(|group| &group.samples);
    let judged = judged.filter(|sample| sample.reward.is_some());
    let tokens: usize = judged.map(|sample| sample.tokens.len()).sum();
    let sum: f64 = penalties.iter().flatten().sum();
    Some(sum / kl.beta / tokens.max(1) as f64)
}

/// A group's completions that go through a pass.
fn shape(
    batch: &Batch,
    index: usize,
    goes: impl Fn(usize, &crate::batch::Sample) -> bool,
) -> GroupShape {
    let group = &batch.groups[index];
    let samples = group.samples.iter().enumerate();
    let same = |other: &crate::batch::Group| other.distribution == group.distribution;
    GroupShape {
        group: index,
        prompt: group.prompt.len(),
        samples: samples
            .filter(|(s, sample)| goes(*s, sample))
            .map(|(s, sample)| (s, sample.tokens.len()))
            .collect(),
        kind: batch.groups.iter().position(same).unwrap_or(index),
    }
}

impl<'a> Work<'a> {
    /// Completions that could not be judged, and truncated ones where those are masked, are not in
    /// the loss. One with advantage 0 is, but needs no pass where there is no KL term: it adds
    /// exactly nothing. `penalties`: see [`penalties`].
    pub(crate) fn new(batch: &'a Batch, settings: &TrainSettings, penalties: &[Vec<f64>]) -> Self {
        let completions = batch.groups.iter().map(|group| group.samples.len()).sum();
        let mut normaliser = Normaliser::new(completions, settings.max_completion_tokens);
        let rewards: Vec<Vec<Option<f64>>> = batch
            .groups
            .iter()
            .zip(penalties)
            .map(|(group, penalties)| {
                let pairs = group.samples.iter().zip(penalties);
                pairs
                    .map(|(sample, penalty)| Some(sample.reward? - penalty))
                    .collect()
            })
            .collect();
        let advantages = advantages(&rewards, settings.advantage);
        let in_loss = |sample: &crate::batch::Sample| {
            sample.reward.is_some() && !(settings.mask_truncated && sample.truncated)
        };
        let mut shapes = Vec::with_capacity(batch.groups.len());
        for (index, group) in batch.groups.iter().enumerate() {
            let counted = group.samples.iter().filter(|sample| in_loss(sample));
            counted.for_each(|sample| normaliser.count(index, sample.tokens.len()));
            let own = &advantages[index];
            shapes.push(shape(batch, index, |s, sample| {
                in_loss(sample) && (own[s] != 0.0 || settings.loss.kl.in_loss())
            }));
        }
        let aggregation = settings.loss.aggregation;
        let scored = |group: usize, sample: usize| {
            let tokens = batch.groups[group].samples[sample].tokens.len();
            let weight = normaliser.token_weight(aggregation, group, tokens);
            (advantages[group][sample], weight)
        };
        let cuts = cut(&shapes, settings.micro_batch_tokens);
        let passes = cuts.iter().map(|cut| Pass::new(batch, cut, scored));
        Self {
            passes: passes.collect(),
        }
    }

    /// Completions that go through a pass.
    pub(crate) fn completions(&self) -> usize {
        let passes = self.passes.iter();
        passes.map(|pass| pass.completions().count()).sum()
    }

    /// Loss and gradient of the whole batch under `adapter`. Passes are added up in the order of
    /// [`crate::tree`], by this process and the ranks of `crew`, to which `adapter` goes as that file.
    pub(crate) fn gradient(
        &mut self,
        decoder: &Decoder,
        settings: &TrainSettings,
        adapter: &Adapter,
        dropout: Option<Dropout>,
        crew: Option<(&mut dyn Crew, &AdapterFile)>,
        progress: &Progress,
        cost: &mut Cost,
    ) -> Result<BatchGradient, TrainError> {
        let computer = Computer {
            decoder,
            settings,
            adapter,
            dropout,
            most_rows: self.passes.iter().map(Pass::rows).max().unwrap_or(0),
            passes: self.passes.len(),
        };
        let (gradients, outcomes) = share::gradient(&computer, &self.passes, crew, progress)?;
        let mut found = BatchGradient {
            gradients: None,
            stats: LossStats::default(),
            entropy: 0.0,
            completions: self.completions() as u32,
        };
        // In the order of the passes, whoever computed them.
        for (pass, outcome) in self.passes.iter_mut().zip(outcomes) {
            found.stats.add(&outcome.stats);
            found.entropy += outcome.entropy;
            cost.rows_forwarded += outcome.rows;
            cost.seconds_forward += outcome.seconds_forward;
            cost.seconds_backward += outcome.seconds_backward;
            pass.start.get_or_insert(outcome.new);
            pass.base = pass.base.take().or(outcome.base);
        }
        if let Some(gradients) = gradients {
            found.gradients = gradients.into_tensors(adapter)?;
        }
        Ok(found)
    }
}
