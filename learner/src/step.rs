//! The gradient of one batch: advantages, passes of bounded size, log-probs, loss, backward.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Instant,
};

use candle_core::Tensor;
use tina_model::{
    Adapter, Decoder, Distribution, Dropout, ForwardOptions, Keep, PackedRows, PassShape, Target,
    TokenLogProb,
};

use crate::{
    advantage::advantages,
    batch::Batch,
    loss::{Kl, Loss, LossStats, Normaliser, Terms},
    memory::StepMemory,
    micro_batch::{GroupShape, MicroBatch, cut},
    settings::TrainSettings,
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

    fn add(&self, completions: usize) {
        self.done.fetch_add(completions as u32, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
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
    batch: &'a Batch,
    advantages: Vec<Vec<f64>>,
    normaliser: Normaliser,
    passes: Vec<Pass>,
}

struct Pass {
    cut: MicroBatch,
    /// Log-probs under the base model, once they are computed.
    base: Option<Vec<f32>>,
    /// Log-probs under the adapter that the step starts from, once they are computed.
    start: Option<Vec<f32>>,
}

impl Pass {
    fn new(cut: MicroBatch) -> Self {
        Self {
            cut,
            base: None,
            start: None,
        }
    }
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
        let packed = Packed::new(batch, &cut);
        let scored = packed.forward(decoder, None, &ForwardOptions::default())?.1;
        let mut rest = &scored[..];
        for &(group, sample) in &packed.completions {
            let sampled = &batch.groups[group].samples[sample].logprobs;
            let (own, after) = rest.split_at(sampled.len());
            rest = after;
            let base: Vec<f32> = own.iter().map(|token| token.logprob).collect();
            penalties[group][sample] = kl.beta * kl.estimator.of_completion(&base, sampled);
        }
        // A pass over a batch takes its time, and who gets nowhere for long is told to end.
        progress.add(packed.completions.len());
        cost.rows_forwarded += packed.rows.len() as u64;
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
        let passes = cut(&shapes, settings.micro_batch_tokens);
        let passes = passes.into_iter().map(Pass::new).collect();
        Self {
            batch,
            advantages,
            normaliser,
            passes,
        }
    }

    /// Completions that go through a pass.
    pub(crate) fn completions(&self) -> usize {
        let parts = self.passes.iter().flat_map(|pass| &pass.cut.parts);
        parts.map(|part| part.samples.len()).sum()
    }

    /// Loss and gradient of the whole batch under `adapter`, accumulated in one fixed order.
    pub(crate) fn gradient(
        &mut self,
        decoder: &Decoder,
        settings: &TrainSettings,
        adapter: &Adapter,
        dropout: Option<Dropout>,
        progress: &Progress,
        cost: &mut Cost,
    ) -> Result<BatchGradient, TrainError> {
        let mut sums = decoder.gradients();
        let mut stats = LossStats::default();
        let mut entropy = 0.0;
        let mut completions = 0;
        let Self {
            batch,
            advantages,
            normaliser,
            passes,
        } = self;
        let most_rows = passes.iter().map(|pass| pass.cut.rows).max().unwrap_or(0);
        for pass in passes {
            if progress.is_cancelled() {
                return Err(TrainError::Cancelled);
            }
            let started = Instant::now();
            let packed = Packed::new(batch, &pass.cut);
            if settings.loss.kl.in_loss() && pass.base.is_none() {
                let scored = packed.forward(decoder, None, &ForwardOptions::default())?.1;
                pass.base = Some(scored.iter().map(|token| token.logprob).collect());
                cost.rows_forwarded += packed.rows.len() as u64;
            }
            let keep = packed.keep(decoder, adapter, settings, most_rows);
            let options = ForwardOptions { keep, dropout };
            let (tape, scored) = packed.forward(decoder, Some(adapter), &options)?;
            cost.rows_forwarded += packed.rows.len() as u64;
            entropy += scored
                .iter()
                .map(|token| f64::from(token.entropy))
                .sum::<f64>();
            let new: Vec<f32> = scored.iter().map(|token| token.logprob).collect();
            let start = pass.start.get_or_insert_with(|| new.clone());
            let slopes = packed.loss(
                &settings.loss,
                (advantages, normaliser),
                &new,
                start,
                pass.base.as_deref(),
                &mut stats,
            );
            let forwarded = Instant::now();
            decoder.backward(tape, &slopes, adapter, &mut sums)?;
            decoder.device().synchronize()?;
            completions += packed.completions.len() as u32;
            progress.add(packed.completions.len());
            cost.seconds_forward += (forwarded - started).as_secs_f64();
            cost.seconds_backward += forwarded.elapsed().as_secs_f64();
        }
        Ok(BatchGradient {
            gradients: sums.into_tensors(adapter)?,
            stats,
            entropy,
            completions,
        })
    }
}

/// The rows of one pass, and where in them each completion's tokens are predicted.
struct Packed<'a> {
    batch: &'a Batch,
    rows: PackedRows,
    targets: Vec<Target>,
    /// Group and sample of each completion, in the order of `targets`.
    completions: Vec<(usize, usize)>,
    dist: Distribution,
}

impl<'a> Packed<'a> {
    fn new(batch: &'a Batch, cut: &MicroBatch) -> Self {
        let mut rows = PackedRows::new();
        let mut targets = Vec::new();
        let mut completions = Vec::new();
        for part in &cut.parts {
            let group = &batch.groups[part.group];
            let tokens: Vec<&[u32]> = part
                .samples
                .iter()
                .map(|s| group.samples[*s].tokens.as_slice())
                .collect();
            // Names each completion for dropout, whichever pass it is in.
            let key = (part.group as u64) << 32 | part.offset as u64;
            targets.extend(rows.push_group(key, &group.prompt, &tokens).concat());
            completions.extend(part.samples.iter().map(|sample| (part.group, *sample)));
        }
        // A pass holds groups of one distribution.
        let dist = cut.parts.first().map_or(Distribution::FULL, |part| {
            batch.groups[part.group].distribution
        });
        Self {
            batch,
            rows,
            targets,
            completions,
            dist,
        }
    }

    /// What the forward pass keeps; `most_rows`: of any of the step's passes, since memory that a
    /// larger pass worked in stays.
    fn keep(
        &self,
        decoder: &Decoder,
        adapter: &Adapter,
        settings: &TrainSettings,
        most_rows: usize,
    ) -> Keep {
        let shape = PassShape::of(&self.rows, self.targets.len());
        let largest = PassShape {
            rows: most_rows,
            targets: most_rows,
            ..shape
        };
        let own = StepMemory::new(decoder, adapter, settings, &shape);
        let bytes = StepMemory {
            pass: own
                .pass
                .beside(&decoder.pass_memory(&largest, Some(&settings.lora))),
            ..own
        }
        .for_activations(settings.memory);
        Keep::Activations { bytes }
    }

    fn forward(
        &self,
        decoder: &Decoder,
        adapter: Option<&Adapter>,
        options: &ForwardOptions,
    ) -> Result<(tina_model::Tape, Vec<TokenLogProb>), TrainError> {
        let mut tape = decoder.forward(&self.rows, adapter, options)?;
        let scored = decoder.log_probs(&mut tape, &self.targets, &self.dist)?;
        Ok((tape, scored))
    }

    /// d loss / d log-prob of every target; log-probs are those of the targets in order.
    fn loss(
        &self,
        loss: &Loss,
        (advantages, normaliser): (&[Vec<f64>], &Normaliser),
        new: &[f32],
        start: &[f32],
        base: Option<&[f32]>,
        stats: &mut LossStats,
    ) -> Vec<f32> {
        let mut slopes = Vec::with_capacity(new.len());
        for &(group, sample) in &self.completions {
            let sampled = &self.batch.groups[group].samples[sample].logprobs;
            let span = slopes.len()..slopes.len() + sampled.len();
            let terms = Terms {
                group,
                advantage: advantages[group][sample],
                sampled,
                start: &start[span.clone()],
                new: &new[span.clone()],
                base: base.map(|base| &base[span]),
            };
            slopes.extend(loss.completion(&terms, normaliser, stats));
        }
        slopes
    }
}
