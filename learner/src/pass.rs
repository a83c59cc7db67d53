//! One forward and backward pass: all that its gradient is a function of beside model and adapter,
//! and what comes of it. Any process that has these makes the same bits of it.

use std::{borrow::Cow, time::Instant};

use tina_model::{
    Adapter, Decoder, Distribution, Dropout, ForwardOptions, Gradients, Keep, PackedRows,
    PassShape, Tape, Target, TokenLogProb,
};

use crate::{
    batch::Batch,
    loss::{LossStats, Terms},
    memory::StepMemory,
    micro_batch::MicroBatch,
    settings::TrainSettings,
    trainer::TrainError,
};

/// A pass and its place in the loss.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pass<'a> {
    pub(crate) parts: Vec<Part<'a>>,
    /// What all of its tokens were sampled from.
    pub(crate) distribution: Distribution,
    /// Log-probs under the base model, once they are computed; one a target.
    pub(crate) base: Option<Vec<f32>>,
    /// Log-probs under the adapter that the step starts from, once they are computed.
    pub(crate) start: Option<Vec<f32>>,
}

/// Completions of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part<'a> {
    /// Names each completion for dropout, whichever pass it is in.
    pub(crate) key: u64,
    pub(crate) prompt: Cow<'a, [u32]>,
    pub(crate) completions: Vec<Scored<'a>>,
}

/// A completion with all that the loss takes of the rest of the batch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scored<'a> {
    /// Never empty.
    pub(crate) tokens: Cow<'a, [u32]>,
    /// Log-probs recorded at sampling, one a token.
    pub(crate) sampled: Cow<'a, [f32]>,
    pub(crate) advantage: f64,
    /// See [`Terms::weight`].
    pub(crate) weight: f64,
}

/// What a pass comes to, its gradient apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) stats: LossStats,
    /// Sum over the tokens.
    pub(crate) entropy: f64,
    /// Rows that went through a forward pass.
    pub(crate) rows: u64,
    /// Log-probs under the adapter, one a target.
    pub(crate) new: Vec<f32>,
    /// Log-probs under the base model, if the pass had to compute them.
    pub(crate) base: Option<Vec<f32>>,
    pub(crate) seconds_forward: f64,
    pub(crate) seconds_backward: f64,
}

impl<'a> Pass<'a> {
    /// The completions of `batch` that `cut` names; `scored`: advantage and weight by group and sample.
    pub(crate) fn new(
        batch: &'a Batch,
        cut: &MicroBatch,
        scored: impl Fn(usize, usize) -> (f64, f64),
    ) -> Self {
        let part = |part: &crate::micro_batch::Part| {
            let group = &batch.groups[part.group];
            let completion = |sample: &usize| {
                let (advantage, weight) = scored(part.group, *sample);
                let sample = &group.samples[*sample];
                Scored {
                    tokens: Cow::Borrowed(&sample.tokens),
                    sampled: Cow::Borrowed(&sample.logprobs),
                    advantage,
                    weight,
                }
            };
            Part {
                key: (part.group as u64) << 32 | part.offset as u64,
                prompt: Cow::Borrowed(&group.prompt),
                completions: part.samples.iter().map(completion).collect(),
            }
        };
        // A pass holds groups of one distribution.
        let distribution = cut.parts.first().map_or(Distribution::FULL, |part| {
            batch.groups[part.group].distribution
        });
        Self {
            parts: cut.parts.iter().map(part).collect(),
            distribution,
            base: None,
            start: None,
        }
    }

    /// Its completions, in order.
    pub(crate) fn completions(&self) -> impl Iterator<Item = &Scored<'a>> {
        self.parts.iter().flat_map(|part| &part.completions)
    }

    /// Log-probs that it has.
    pub(crate) fn targets(&self) -> usize {
        self.completions().map(|one| one.tokens.len()).sum()
    }

    /// Rows that it computes: of a completion's tokens the last predicts nothing.
    pub(crate) fn rows(&self) -> usize {
        let part = |part: &Part<'_>| {
            let tokens = part.completions.iter().map(|one| one.tokens.len());
            part.prompt.len() + tokens.map(|tokens| tokens.saturating_sub(1)).sum::<usize>()
        };
        self.parts.iter().map(part).sum()
    }
}

/// Computes passes of one gradient.
pub(crate) struct Computer<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) settings: &'a TrainSettings,
    pub(crate) adapter: &'a Adapter,
    pub(crate) dropout: Option<Dropout>,
    /// Rows of the largest pass that this process computes of it: memory that one worked in stays.
    pub(crate) most_rows: usize,
    /// Passes of the whole gradient.
    pub(crate) passes: usize,
}

impl Computer<'_> {
    /// Loss and gradient of one pass.
    pub(crate) fn run(&self, pass: &Pass<'_>) -> Result<(Gradients, Outcome), TrainError> {
        let Self {
            decoder,
            settings,
            adapter,
            dropout,
            ..
        } = *self;
        let started = Instant::now();
        let packed = Packed::new(pass);
        let mut outcome = Outcome::default();
        let rows = packed.rows.len() as u64;
        if settings.loss.kl.in_loss() && pass.base.is_none() {
            let scored = packed.forward(decoder, None, &ForwardOptions::default())?.1;
            outcome.base = Some(scored.iter().map(|token| token.logprob).collect());
            outcome.rows += rows;
        }
        let keep = packed.keep(self);
        let options = ForwardOptions { keep, dropout };
        let (tape, scored) = packed.forward(decoder, Some(adapter), &options)?;
        outcome.rows += rows;
        let entropies = scored.iter().map(|token| f64::from(token.entropy));
        outcome.entropy = entropies.sum();
        outcome.new = scored.iter().map(|token| token.logprob).collect();
        let base = pass.base.as_ref().or(outcome.base.as_ref());
        let start = pass.start.as_ref().unwrap_or(&outcome.new);
        let mut slopes = Vec::with_capacity(outcome.new.len());
        for one in pass.completions() {
            let span = slopes.len()..slopes.len() + one.tokens.len();
            let terms = Terms {
                advantage: one.advantage,
                weight: one.weight,
                sampled: &one.sampled,
                start: &start[span.clone()],
                new: &outcome.new[span.clone()],
                base: base.map(|base| &base[span]),
            };
            slopes.extend(settings.loss.completion(&terms, &mut outcome.stats));
        }
        let forwarded = Instant::now();
        let mut gradients = decoder.gradients();
        decoder.backward(tape, &slopes, adapter, &mut gradients)?;
        decoder.device().synchronize()?;
        outcome.seconds_forward = (forwarded - started).as_secs_f64();
        outcome.seconds_backward = forwarded.elapsed().as_secs_f64();
        Ok((gradients, outcome))
    }
}

/// Log-probs of a pass's targets under the base model, and the rows computed.
pub(crate) fn base_log_probs(
    decoder: &Decoder,
    pass: &Pass<'_>,
) -> Result<(Vec<f32>, u64), TrainError> {
    let packed = Packed::new(pass);
    let scored = packed.forward(decoder, None, &ForwardOptions::default())?.1;
    let found = scored.iter().map(|token| token.logprob).collect();
    Ok((found, packed.rows.len() as u64))
}

/// The rows of one pass, and where in them each completion's tokens are predicted.
struct Packed {
    rows: PackedRows,
    targets: Vec<Target>,
    distribution: Distribution,
}

impl Packed {
    fn new(pass: &Pass<'_>) -> Self {
        let mut rows = PackedRows::new();
        let mut targets = Vec::new();
        for part in &pass.parts {
            let completions = part.completions.iter();
            let tokens: Vec<&[u32]> = completions.map(|one| &*one.tokens).collect();
            targets.extend(rows.push_group(part.key, &part.prompt, &tokens).concat());
        }
        Self {
            rows,
            targets,
            distribution: pass.distribution,
        }
    }

    /// What the forward pass keeps.
    fn keep(&self, computer: &Computer<'_>) -> Keep {
        let Computer {
            decoder,
            settings,
            adapter,
            most_rows,
            passes,
            ..
        } = *computer;
        let shape = PassShape::of(&self.rows, self.targets.len());
        let largest = PassShape {
            rows: most_rows,
            targets: most_rows,
            ..shape
        };
        let own = StepMemory::new(decoder, adapter, settings, &shape).with_passes(adapter, passes);
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
    ) -> Result<(Tape, Vec<TokenLogProb>), TrainError> {
        let mut tape = decoder.forward(&self.rows, adapter, options)?;
        let scored = decoder.log_probs(&mut tape, &self.targets, &self.distribution)?;
        Ok((tape, scored))
    }
}
