//! Log-probs over the vocabulary and their gradient, in slices of rows: the logits of a whole batch
//! are never held.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::{ComposedModel, ComposedTape};
use crate::{
    distribution::{Distribution, Scratch, TokenLogProb},
    error::Result,
    packed_rows::Target,
    tape::Scored,
    tensors::{cpu_tensor, with_slices},
};

impl ComposedModel {
    /// Bytes of logits that are held at a time.
    pub(crate) const SLICE_BYTES: usize = 32 << 20;

    fn vocab(&self) -> Result<usize> {
        Ok(self.output().weight.dim(0)?)
    }

    fn targets_per_slice(&self) -> Result<usize> {
        Ok((Self::SLICE_BYTES / (4 * self.vocab()?)).max(8))
    }

    /// The log-prob of each target and the entropy at its row.
    pub(crate) fn log_probs(
        &self,
        tape: &mut ComposedTape,
        targets: &[Target],
        dist: &Distribution,
    ) -> Result<Vec<TokenLogProb>> {
        let vocab = self.vocab()?;
        let mut out = Vec::with_capacity(targets.len());
        for slice in targets.chunks(self.targets_per_slice()?) {
            let logits = self.logits(&target_rows(&tape.hidden, slice)?)?;
            if !logits.device().is_cpu() && !dist.truncates() {
                out.extend(device_log_probs(&logits, slice, dist)?);
                continue;
            }
            let logits = logits.to_device(&Device::Cpu)?;
            out.extend(with_slices(&[&logits], |s| {
                let rows = s[0].par_chunks(vocab).zip(slice);
                rows.map_init(Scratch::default, |scratch, (logits, target)| {
                    dist.log_prob(logits, target.token, scratch)
                })
                .collect::<Vec<_>>()
            })?);
        }
        tape.scored = Some(Scored {
            targets: targets.to_vec(),
            dist: *dist,
        });
        Ok(out)
    }

    /// The gradient of Σ slopes\[i\] · log_prob(targets\[i\]) with respect to the hidden rows,
    /// `[rows, hidden]`. The logits are computed again, slice by slice.
    pub(crate) fn log_probs_backward(
        &self,
        hidden: &Tensor,
        Scored { targets, dist }: &Scored,
        slopes: &[f32],
    ) -> Result<Tensor> {
        let vocab = self.vocab()?;
        let mut sum = hidden.zeros_like()?;
        let size = self.targets_per_slice()?;
        for (slice, d) in targets.chunks(size).zip(slopes.chunks(size)) {
            let logits = self.logits(&target_rows(hidden, slice)?)?;
            let index = Tensor::new(
                slice.iter().map(|t| t.row).collect::<Vec<u32>>(),
                hidden.device(),
            )?;
            let d_rows = if !logits.device().is_cpu() && !dist.truncates() {
                self.device_gradient(&logits, slice, dist, d)?
            } else {
                let mut values = logits.flatten_all()?.to_vec1::<f32>()?;
                values
                    .par_chunks_mut(vocab)
                    .zip(slice)
                    .zip(d)
                    .for_each_init(Scratch::default, |scratch, ((logits, target), d)| {
                        dist.log_prob_gradient(logits, target.token, *d, scratch);
                    });
                let d_logits = cpu_tensor(values, (slice.len(), vocab))?
                    .to_device(hidden.device())?
                    .to_dtype(self.dtype)?;
                self.output().product_backward(&d_logits)?
            };
            sum = sum.index_add(&index, &d_rows.to_dtype(sum.dtype())?, 0)?;
        }
        Ok(sum)
    }

    /// As [`Distribution::log_prob_gradient`], composed on the device: d/T (1[token] − p) W. The
    /// difference is taken in f32: p that is close to 1 would be 1 in bf16.
    fn device_gradient(
        &self,
        logits: &Tensor,
        targets: &[Target],
        dist: &Distribution,
        d: &[f32],
    ) -> Result<Tensor> {
        let temperature = f64::from(dist.scored().temperature);
        let tokens: Vec<u32> = targets.iter().map(|t| t.token).collect();
        let tokens = Tensor::new(tokens, logits.device())?.unsqueeze(1)?;
        let ones = Tensor::ones((targets.len(), 1), DType::F32, logits.device())?;
        let rest =
            softmax(&(logits / temperature)?)?
                .neg()?
                .scatter_add(&tokens, &ones, D::Minus1)?;
        let rows = self
            .output()
            .product_backward(&rest.to_dtype(self.dtype)?)?;
        let d = (Tensor::new(d, logits.device())? / temperature)?.unsqueeze(1)?;
        Ok(rows.to_dtype(DType::F32)?.broadcast_mul(&d)?)
    }
}

/// Hidden states of the targets' rows, `[targets, hidden]`.
fn target_rows(hidden: &Tensor, targets: &[Target]) -> Result<Tensor> {
    let index: Vec<u32> = targets.iter().map(|t| t.row).collect();
    Ok(hidden.index_select(&Tensor::new(index, hidden.device())?, 0)?)
}

fn softmax(x: &Tensor) -> candle_core::Result<Tensor> {
    let exps = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    exps.broadcast_div(&exps.sum_keepdim(D::Minus1)?)
}

/// As [`Distribution::log_prob`], composed on the device.
fn device_log_probs(
    logits: &Tensor,
    targets: &[Target],
    dist: &Distribution,
) -> Result<Vec<TokenLogProb>> {
    let x = (logits / f64::from(dist.scored().temperature))?;
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?;
    let exps = x.exp()?;
    let sum = exps.sum_keepdim(D::Minus1)?;
    let log_sum = sum.log()?;
    let tokens: Vec<u32> = targets.iter().map(|t| t.token).collect();
    let tokens = Tensor::new(tokens, x.device())?.unsqueeze(1)?;
    let logprobs = (x.gather(&tokens, D::Minus1)? - &log_sum)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    let weighted = (exps * &x)?.sum_keepdim(D::Minus1)?.div(&sum)?;
    let entropies = (log_sum - weighted)?.flatten_all()?.to_vec1::<f32>()?;
    let pairs = logprobs.into_iter().zip(entropies);
    Ok(pairs
        .map(|(logprob, entropy)| TokenLogProb { logprob, entropy })
        .collect())
}
