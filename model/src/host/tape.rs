//! Learning passes on a CPU: a forward over packed rows that keeps what the backward needs.

use std::sync::Arc;

use half::bf16;

use super::{
    Activations, Angles, Attend, HostModel, LayerLora,
    backward::{Backward, LayerGradients},
    sized,
};
use crate::{
    adapter::Adapter,
    distribution::Distribution,
    dropout::Dropout,
    error::{ModelError, Result},
    kernels::{
        attention::{self, Heads, Segment},
        team,
    },
    packed_rows::{PackedRows, Target},
    tape::{ForwardOptions, Keep},
};

/// A forward pass, and what its backward pass needs.
#[derive(Debug)]
pub(crate) struct HostTape {
    angles: Angles,
    segments: Vec<Segment>,
    keys: Arc<Vec<u64>>,
    dropout: Option<Dropout>,
    keep: Keep,
    /// Whether an adapter took part: there are no gradients but its own.
    adapted: bool,
    /// One a layer, unless nothing is kept.
    layers: Vec<Activations>,
    /// The last layer's result, `[rows, hidden]`.
    last: Vec<f32>,
    /// `last`, normed.
    pub(crate) hidden: Vec<f32>,
    /// What [`HostModel::log_probs`] was asked last.
    pub(crate) scored: Option<Scored>,
}

/// Targets whose log-probs were computed, and their distributions where these are kept.
#[derive(Debug)]
pub(crate) struct Scored {
    pub(crate) targets: Vec<Target>,
    pub(super) dist: Distribution,
    pub(super) kept: Option<Probabilities>,
}

/// Distributions over the vocabulary: what the backward pass multiplies with W.
#[derive(Debug)]
pub(super) struct Probabilities {
    /// `[targets, vocab]`; 0 for the target itself, whose bf16 could not tell 0.998 from 1.
    pub(super) others: Vec<bf16>,
    /// 1 − p of the target, `[targets]`.
    pub(super) complements: Vec<f32>,
}

/// Attention of a pass over its own rows.
struct Own<'a> {
    segments: &'a [Segment],
    heads: Heads,
    stats: bool,
}

impl Attend for Own<'_> {
    fn attend(&mut self, _: usize, a: &mut Activations) -> Result<()> {
        let stats = self.stats.then(|| {
            let rows = a.q.len() / self.heads.query_row();
            sized(&mut a.stats, rows * self.heads.stats_row());
            &mut a.stats[..]
        });
        attention::forward(
            &a.q,
            &a.k,
            &a.v,
            self.segments,
            self.heads,
            &mut a.mixed,
            stats,
        );
        Ok(())
    }
}

impl HostModel {
    /// Runs the layers over packed rows.
    pub(crate) fn forward(
        &self,
        rows: &PackedRows,
        angles: Angles,
        adapter: Option<&Adapter>,
        options: &ForwardOptions,
    ) -> Result<HostTape> {
        let _hot = team::stay_hot();
        let mut tape = HostTape {
            angles,
            segments: rows.segments.clone(),
            keys: rows.shared_keys(),
            dropout: options.dropout.filter(|d| d.p > 0.0),
            keep: options.keep,
            adapted: adapter.is_some(),
            layers: Vec::new(),
            last: Vec::new(),
            hidden: Vec::new(),
            scored: None,
        };
        self.with_workspace(|w| {
            let mut layer = std::mem::take(&mut w.layer);
            self.embed(&rows.tokens, &mut layer.input);
            for index in 0..self.layers.len() {
                let mut next = std::mem::take(&mut w.next);
                let mut own = Own {
                    segments: &tape.segments,
                    heads: self.heads,
                    stats: tape.keep == Keep::Activations,
                };
                let lora = adapter.map(|a| tape.lora(a, index));
                self.layer(
                    index,
                    &mut layer,
                    &mut next,
                    &tape.angles,
                    lora.as_ref(),
                    &mut own,
                    w,
                )?;
                match tape.keep {
                    Keep::Nothing => w.next = std::mem::replace(&mut layer.input, next),
                    Keep::Activations => {
                        let mut fresh = self.take();
                        w.next = std::mem::replace(&mut fresh.input, next);
                        tape.layers.push(std::mem::replace(&mut layer, fresh));
                    }
                    Keep::LayerInputs => {
                        let mut kept = self.take();
                        w.next = std::mem::replace(
                            &mut kept.input,
                            std::mem::replace(&mut layer.input, next),
                        );
                        tape.layers.push(kept);
                    }
                }
            }
            self.norm.run(&layer.input, &mut tape.hidden);
            tape.last = std::mem::take(&mut layer.input);
            w.layer = layer;
            Ok::<_, ModelError>(())
        })?;
        Ok(tape)
    }

    /// Gradients of a scalar onto `gradients`, given its gradient with respect to `tape.hidden`.
    pub(crate) fn backward(
        &self,
        mut tape: HostTape,
        d_hidden: &[f32],
        adapter: &Adapter,
        gradients: &mut [LayerGradients],
    ) -> Result<()> {
        let _hot = team::stay_hot();
        let mut d = Vec::new();
        self.norm.run_backward(&tape.last, d_hidden, &mut d);
        let mut layers = std::mem::take(&mut tape.layers);
        let done = self.with_workspace(|w| {
            for (index, layer) in layers.iter_mut().enumerate().rev() {
                let lora = tape.lora(adapter, index);
                let again = tape.keep == Keep::LayerInputs;
                if again {
                    // In memory that is used for every layer in turn.
                    let input = std::mem::take(&mut layer.input);
                    std::mem::swap(layer, &mut w.layer);
                    w.next = std::mem::replace(&mut layer.input, input);
                    let mut own = Own {
                        segments: &tape.segments,
                        heads: self.heads,
                        stats: true,
                    };
                    let mut out = std::mem::take(&mut w.next);
                    self.layer(
                        index,
                        layer,
                        &mut out,
                        &tape.angles,
                        Some(&lora),
                        &mut own,
                        w,
                    )?;
                    w.next = out;
                }
                let mut pass = Backward {
                    angles: &tape.angles,
                    segments: &tape.segments,
                    half: &mut w.half,
                    normed: &mut w.normed,
                    inner: &mut w.inner,
                    back: &mut w.back,
                };
                self.layer_backward(
                    index,
                    layer,
                    &mut d,
                    &lora,
                    &mut gradients[index],
                    &mut pass,
                )?;
                if again {
                    std::mem::swap(layer, &mut w.layer);
                    std::mem::swap(&mut layer.input, &mut w.layer.input);
                }
            }
            Ok::<_, ModelError>(())
        });
        self.give_back(layers);
        done
    }
}

impl HostTape {
    fn lora<'a>(&'a self, adapter: &'a Adapter, layer: usize) -> LayerLora<'a> {
        LayerLora::new(adapter, layer, self.dropout.map(|d| (d, &self.keys)))
    }

    /// Whether there can be a backward pass.
    pub(crate) fn kept(&self) -> bool {
        self.keep != Keep::Nothing && self.adapted
    }
}
