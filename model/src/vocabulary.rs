//! Log-probs over the vocabulary and their gradient, in slices of rows: the logits of a whole batch
//! are never held.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use crate::{
    adapter::Adapter,
    decoder::Decoder,
    distribution::{Distribution, Scratch, TokenLogProb},
    error::{ModelError, Result},
    ops::{cpu_tensor, with_slices},
    packed_rows::{PackedRows, Target},
    tape::ForwardOptions,
};

/// Bytes of logits that are held at a time.
const SLICE_BYTES: usize = 32 << 20;

impl Decoder {
    fn targets_per_slice(&self) -> usize {
        (SLICE_BYTES / (4 * self.config().vocab_size)).max(8)
    }

    /// Hidden states of the targets' rows, `[targets, hidden]`.
    fn target_rows(&self, hidden: &Tensor, targets: &[Target]) -> Result<Tensor> {
        let rows = hidden.dim(0)?;
        if let Some(target) = targets.iter().find(|t| t.row as usize >= rows) {
            return Err(ModelError::OutOfRange(format!(
                "row {} of a pass of {rows} rows",
                target.row
            )));
        }
        let tokens: Vec<u32> = targets.iter().map(|t| t.token).collect();
        self.check_tokens(&tokens, &[])?;
        let index: Vec<u32> = targets.iter().map(|t| t.row).collect();
        Ok(hidden.index_select(&Tensor::new(index, hidden.device())?, 0)?)
    }

    /// The log-prob of each target and the entropy at its row. hidden: [`crate::Tape::hidden`].
    ///
    /// # Errors
    /// When a target's row or token does not exist.
    pub fn log_probs(
        &self,
        hidden: &Tensor,
        targets: &[Target],
        dist: &Distribution,
    ) -> Result<Vec<TokenLogProb>> {
        let mut out = Vec::with_capacity(targets.len());
        for slice in targets.chunks(self.targets_per_slice()) {
            let logits = self.logits(&self.target_rows(hidden, slice)?)?;
            if !logits.device().is_cpu() && !dist.truncates() {
                out.extend(device_log_probs(&logits, slice, dist)?);
                continue;
            }
            let logits = logits.to_device(&candle_core::Device::Cpu)?;
            out.extend(with_slices(&[&logits], |s| {
                let rows = s[0].par_chunks(self.config().vocab_size).zip(slice);
                rows.map_init(Scratch::default, |scratch, (logits, target)| {
                    dist.log_prob(logits, target.token, scratch)
                })
                .collect::<Vec<_>>()
            })?);
        }
        Ok(out)
    }

    /// The gradient of Σ d_logprobs\[i\] · log_prob(targets\[i\]) with respect to hidden,
    /// `[rows, hidden]`. The logits are computed again, slice by slice.
    ///
    /// # Errors
    /// When a target's row or token does not exist, or the counts differ.
    pub fn log_probs_backward(
        &self,
        hidden: &Tensor,
        targets: &[Target],
        dist: &Distribution,
        d_logprobs: &[f32],
    ) -> Result<Tensor> {
        if targets.len() != d_logprobs.len() {
            return Err(ModelError::OutOfRange(format!(
                "{} gradients for {} targets",
                d_logprobs.len(),
                targets.len()
            )));
        }
        let (rows, width) = hidden.dims2()?;
        let mut sum = hidden.zeros_like()?;
        let size = self.targets_per_slice();
        for (slice, d) in targets.chunks(size).zip(d_logprobs.chunks(size)) {
            let logits = self.logits(&self.target_rows(hidden, slice)?)?;
            let index = Tensor::new(
                slice.iter().map(|t| t.row).collect::<Vec<u32>>(),
                hidden.device(),
            )?;
            let d_rows = if !logits.device().is_cpu() && !dist.truncates() {
                self.device_gradient(&logits, slice, dist, d)?
            } else {
                let vocab = self.config().vocab_size;
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
                    .to_dtype(self.compute_dtype())?;
                self.output().product_backward(&d_logits)?
            };
            sum = sum.index_add(&index, &d_rows.to_dtype(sum.dtype())?, 0)?;
        }
        debug_assert_eq!(sum.dims(), [rows, width]);
        Ok(sum)
    }

    /// As [`Distribution::log_prob_gradient`], composed on the device: d/T (W\[token\] − p W).
    fn device_gradient(
        &self,
        logits: &Tensor,
        targets: &[Target],
        dist: &Distribution,
        d: &[f32],
    ) -> Result<Tensor> {
        let temperature = f64::from(dist.scored().temperature);
        let scaled = (logits / temperature)?;
        let p = softmax(&scaled)?.to_dtype(self.compute_dtype())?;
        let tokens: Vec<u32> = targets.iter().map(|t| t.token).collect();
        let own = self.output().gather(&tokens)?.to_dtype(DType::F32)?;
        let mean = self.output().product_backward(&p)?.to_dtype(DType::F32)?;
        let d = (Tensor::new(d, logits.device())? / temperature)?.unsqueeze(1)?;
        Ok((own - mean)?.broadcast_mul(&d)?)
    }

    /// Log-probs of tokens 1.. of one sequence, `tokens.len() - 1` of them.
    ///
    /// # Errors
    /// When the sequence is longer than the context or holds an unknown id.
    pub fn sequence_log_probs(
        &self,
        tokens: &[u32],
        adapter: Option<&Adapter>,
        dist: &Distribution,
    ) -> Result<Vec<f32>> {
        if tokens.len() < 2 {
            return Ok(Vec::new());
        }
        let mut rows = PackedRows::new();
        rows.push_sequence(0, &tokens[..tokens.len() - 1]);
        let tape = self.forward(&rows, adapter, &ForwardOptions::default())?;
        let targets: Vec<Target> = tokens[1..]
            .iter()
            .enumerate()
            .map(|(row, token)| Target {
                row: row as u32,
                token: *token,
            })
            .collect();
        let found = self.log_probs(tape.hidden(), &targets, dist)?;
        Ok(found.into_iter().map(|t| t.logprob).collect())
    }
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
