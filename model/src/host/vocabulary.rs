//! Log-probs over the vocabulary and their gradient, in slices of rows: logits are never held for a
//! whole pass. Where a backward pass follows, its operand is: the probabilities, in bf16.

use half::bf16;

use super::{
    HostModel, HostTape,
    backward::trainable,
    sized,
    tape::{Probabilities, Scored},
};
use crate::{
    distribution::{Distribution, TokenLogProb, each_row},
    error::Result,
    kernels::{
        elementwise,
        matmul::{Format, Rows, Then, product},
        team,
    },
    packed_rows::Target,
};

/// Bytes of probabilities that a pass may keep; beyond, they are computed again.
const KEPT_BYTES: usize = 256 << 20;

/// One target on its way through the vocabulary.
struct Row<'a> {
    target: Target,
    logits: &'a mut [f32],
    probabilities: Option<&'a mut [bf16]>,
    found: TokenLogProb,
}

impl HostModel {
    /// Rows of logits that are held at a time: for vocabularies of some 50,000
    /// tokens they stay in the processor's cache.
    pub(crate) const SLICE: usize = 64;

    /// Bytes of the probabilities that a pass keeps; `None`: they are computed again.
    pub(crate) fn probability_bytes(format: Format, targets: usize, vocab: usize) -> Option<usize> {
        let bytes = targets * vocab * size_of::<bf16>();
        (format != Format::F32 && bytes <= KEPT_BYTES).then_some(bytes)
    }

    /// The log-prob of each target and the entropy at its row. The tape remembers what its backward
    /// pass needs of it.
    pub(crate) fn log_probs(
        &self,
        tape: &mut HostTape,
        targets: &[Target],
        dist: &Distribution,
    ) -> Result<Vec<TokenLogProb>> {
        let vocab = self.output().forward.columns();
        let keep =
            tape.kept && Self::probability_bytes(self.format, targets.len(), vocab).is_some();
        let mut found = Vec::with_capacity(targets.len());
        let kept = self.with_workspace(|w| {
            let _hot = team::stay_hot();
            let mut kept = keep.then(|| std::mem::take(&mut w.probabilities));
            if let Some(kept) = &mut kept {
                sized(kept, targets.len() * vocab);
            }
            let mut rest = kept.as_deref_mut();
            for slice in targets.chunks(Self::SLICE) {
                gather(&tape.hidden, slice, &mut w.normed, self.hidden());
                self.logits(&w.normed, &mut w.half, &mut w.logits);
                let mut rows: Vec<Row<'_>> = w
                    .logits
                    .chunks_exact_mut(vocab)
                    .zip(slice)
                    .map(|(logits, target)| Row {
                        target: *target,
                        logits,
                        probabilities: rest.take().map(|all| {
                            let (own, others) = all.split_at_mut(vocab);
                            rest = Some(others);
                            own
                        }),
                        found: TokenLogProb::default(),
                    })
                    .collect();
                each_row(&mut rows, |row, scratch| {
                    let token = row.target.token;
                    row.found = dist.log_prob(row.logits, token, scratch);
                    if let Some(out) = &mut row.probabilities {
                        dist.probabilities(scratch, out);
                        out[token as usize] = bf16::ZERO;
                    }
                });
                found.extend(rows.iter().map(|row| row.found));
            }
            kept
        });
        let complement = |token: &TokenLogProb| -f64::from(token.logprob).exp_m1() as f32;
        let kept = kept.map(|others| Probabilities {
            others,
            complements: found.iter().map(complement).collect(),
        });
        if tape.kept {
            tape.scored = Some(Scored {
                targets: targets.to_vec(),
                dist: *dist,
                kept,
            });
        }
        Ok(found)
    }

    /// The gradient of Σ slopes\[i\] · log_prob(targets\[i\]) with respect to the hidden rows,
    /// `[rows, hidden]`, for the targets of the last [`HostModel::log_probs`]:
    /// slope / T (W\[token\] − p W) at the target's row, the token's own share of p W taken together
    /// with W\[token\], as nothing would be left of their difference in bf16 where p is close to 1.
    pub(crate) fn log_probs_backward(
        &self,
        hidden: &[f32],
        scored: Scored,
        slopes: &[f32],
    ) -> Result<Vec<f32>> {
        let width = self.hidden();
        let w_out = trainable(self.output().backward.as_ref())?;
        let vocab = self.output().forward.columns();
        let mut sum = vec![0f32; hidden.len()];
        let Scored {
            targets,
            dist,
            kept,
        } = scored;
        let inverse_temperature = 1.0 / dist.scored().temperature;
        self.with_workspace(|w| {
            let _hot = team::stay_hot();
            for (i, slice) in targets.chunks(Self::SLICE).enumerate() {
                let slopes = &slopes[i * Self::SLICE..][..slice.len()];
                sized(&mut w.next, slice.len() * width);
                if let Some(kept) = &kept {
                    let others = &kept.others[i * Self::SLICE * vocab..][..slice.len() * vocab];
                    let complements = &kept.complements[i * Self::SLICE..][..slice.len()];
                    product(Rows::Bf16(others), w_out, &mut w.next, Then::default());
                    let own: Vec<u32> = slice.iter().map(|t| t.token).collect();
                    self.output().gather(&own, &mut w.normed);
                    let rows = w
                        .next
                        .chunks_exact_mut(width)
                        .zip(w.normed.chunks_exact(width));
                    for (((mean, own), slope), complement) in rows.zip(slopes).zip(complements) {
                        let slope = slope * inverse_temperature;
                        for (mean, own) in mean.iter_mut().zip(own) {
                            *mean = slope * (complement * own - *mean);
                        }
                    }
                } else {
                    gather(hidden, slice, &mut w.normed, width);
                    self.logits(&w.normed, &mut w.half, &mut w.logits);
                    let mut rows: Vec<_> = w
                        .logits
                        .chunks_exact_mut(vocab)
                        .zip(slice)
                        .zip(slopes)
                        .collect();
                    each_row(&mut rows, |((logits, target), slope), scratch| {
                        dist.log_prob_gradient(logits, target.token, **slope, scratch);
                    });
                    let d = self.operand(&w.logits, &mut w.half);
                    product(d.rows, w_out, &mut w.next, Then::default());
                }
                for (target, d) in slice.iter().zip(w.next.chunks_exact(width)) {
                    let at = target.row as usize * width;
                    elementwise::add(&mut sum[at..at + width], d);
                }
            }
            if let Some(kept) = kept {
                w.probabilities = kept.others;
            }
        });
        Ok(sum)
    }

    /// Floats of a hidden row.
    fn hidden(&self) -> usize {
        self.norm.weight.len()
    }
}

/// The hidden rows of `targets`.
fn gather(hidden: &[f32], targets: &[Target], out: &mut Vec<f32>, width: usize) {
    out.clear();
    for target in targets {
        let at = target.row as usize * width;
        out.extend_from_slice(&hidden[at..at + width]);
    }
}
