//! Learning passes on a CPU: a forward over packed rows that keeps what the backward needs.

use std::sync::Arc;

use half::bf16;

use super::{
    Activations, Angles, Attend, HostModel, LayerLora, Workspace,
    backward::{Backward, LayerGradients},
    buffers::{Kept, KeptLayers},
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
    tape::KeptLast,
};

/// A forward pass, and what its backward pass needs.
#[derive(Debug)]
pub(crate) struct HostTape {
    angles: Angles,
    segments: Vec<Segment>,
    keys: Arc<Vec<u64>>,
    dropout: Option<Dropout>,
    /// Whether there can be a backward pass: there are no gradients but an adapter's.
    pub(crate) kept: bool,
    /// One a layer, unless nothing is kept.
    pub(crate) layers: KeptLayers,
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
        dropout: Option<Dropout>,
        keep: Option<KeptLast>,
    ) -> Result<HostTape> {
        let _hot = team::stay_hot();
        let mut tape = HostTape {
            angles,
            segments: rows.segments.clone(),
            keys: rows.shared_keys(),
            dropout: dropout.filter(|d| d.p > 0.0),
            kept: keep.is_some() && adapter.is_some(),
            layers: KeptLayers::new(&self.pool),
            last: Vec::new(),
            hidden: Vec::new(),
            scored: None,
        };
        // Layers from here on keep their activations.
        let mut whole_from = self.layers.len();
        if let Some(KeptLast { layers, bytes }) = keep {
            whole_from = whole_from.saturating_sub(layers);
            self.pool.prepare(layers, bytes);
        }
        self.with_workspace(|w| {
            let mut x = std::mem::take(&mut w.next);
            self.embed(&rows.tokens, &mut x);
            for index in 0..self.layers.len() {
                let whole = index >= whole_from;
                let mut a = if whole {
                    self.pool.take()
                } else {
                    std::mem::take(&mut w.layer)
                };
                std::mem::swap(&mut a.input, &mut x);
                let mut own = Own {
                    segments: &tape.segments,
                    heads: self.heads,
                    stats: whole,
                };
                let lora = adapter.map(|a| tape.lora(a, index));
                let angles = &tape.angles;
                let done = self.layer(index, &mut a, &mut x, angles, lora.as_ref(), &mut own, w);
                if whole {
                    tape.layers.layers.push(Kept::Whole(Box::new(a)));
                } else {
                    if tape.kept {
                        let input = std::mem::take(&mut a.input);
                        tape.layers.layers.push(Kept::Input(input));
                    }
                    w.layer = a;
                }
                done?;
            }
            self.norm.run(&x, &mut tape.hidden);
            tape.last = x;
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
        // However this ends, they go back to the pool.
        let mut kept = std::mem::take(&mut tape.layers);
        self.with_workspace(|w| {
            for (index, layer) in kept.layers.iter_mut().enumerate().rev() {
                let lora = tape.lora(adapter, index);
                let sums = &mut gradients[index];
                match layer {
                    Kept::Whole(a) => self.layer_back(index, a, &mut d, &lora, sums, &tape, w)?,
                    Kept::Input(input) => {
                        // In memory that is used for every layer in turn.
                        let mut a = std::mem::take(&mut w.layer);
                        let mut out = std::mem::take(&mut w.next);
                        std::mem::swap(&mut a.input, input);
                        let mut own = Own {
                            segments: &tape.segments,
                            heads: self.heads,
                            stats: true,
                        };
                        let angles = &tape.angles;
                        let done = self
                            .layer(index, &mut a, &mut out, angles, Some(&lora), &mut own, w)
                            .and_then(|()| {
                                self.layer_back(index, &a, &mut d, &lora, sums, &tape, w)
                            });
                        // The input is of no more use.
                        *input = Vec::new();
                        (w.layer, w.next) = (a, out);
                        done?;
                    }
                }
            }
            Ok(())
        })
    }

    fn layer_back(
        &self,
        index: usize,
        a: &Activations,
        d: &mut Vec<f32>,
        lora: &LayerLora<'_>,
        gradients: &mut LayerGradients,
        tape: &HostTape,
        w: &mut Workspace,
    ) -> Result<()> {
        let mut pass = Backward {
            angles: &tape.angles,
            segments: &tape.segments,
            half: &mut w.half,
            normed: &mut w.normed,
            inner: &mut w.inner,
            back: &mut w.back,
        };
        self.layer_backward(index, a, d, lora, gradients, &mut pass)
    }
}

impl HostTape {
    fn lora<'a>(&'a self, adapter: &'a Adapter, layer: usize) -> LayerLora<'a> {
        LayerLora::new(adapter, layer, self.dropout.map(|d| (d, &self.keys)))
    }
}
