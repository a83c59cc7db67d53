//! Causal attention over packed rows.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, D, Device, Layout, Result, Shape, Tensor};

use super::{cpu_tensor, f32_slice, wide, with_slices};
use crate::kernels::attention::{self as kernels, Heads, Segment};

/// Attention of all rows of a pass: q `[rows, queries * width]`, k and v `[rows, keys * width]`.
/// `fused`: by the CPU's kernel.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Arc<Vec<Segment>>,
    heads: Heads,
    fused: bool,
) -> Result<Tensor> {
    if fused {
        let op = AttentionOp {
            segments: segments.clone(),
            heads,
            stats: OnceLock::new(),
        };
        return q
            .contiguous()?
            .apply_op3(&k.contiguous()?, &v.contiguous()?, op);
    }
    let mut outs = Vec::with_capacity(segments.len());
    for segment in segments.iter() {
        let keys = |m: &Tensor| -> Result<Tensor> {
            let own = m.narrow(0, segment.start, segment.len)?;
            match segment.prefix {
                Some((start, len)) => Tensor::cat(&[&m.narrow(0, start, len)?, &own], 0),
                None => Ok(own),
            }
        };
        let before = segment.prefix.map_or(0, |p| p.1);
        let mask = causal_mask(segment.len, before, q.device())?;
        let q = q.narrow(0, segment.start, segment.len)?.unsqueeze(0)?;
        let (k, v) = (keys(k)?.unsqueeze(0)?, keys(v)?.unsqueeze(0)?);
        outs.push(composed(&q, &k, &v, &mask.unsqueeze(0)?, heads)?.squeeze(0)?);
    }
    Tensor::cat(&outs, 0)
}

/// 0 where row i of `len` may see key j of `before + len`, −∞ where not; `[len, before + len]` f32.
fn causal_mask(len: usize, before: usize, device: &Device) -> Result<Tensor> {
    let all = before + len;
    let mask: Vec<f32> = (0..len)
        .flat_map(|i| {
            (0..all).map(move |j| {
                if j <= before + i {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            })
        })
        .collect();
    Tensor::from_vec(mask, (len, all), device)
}

/// Attention from candle's operations, a batch of `b`: q `[b, n, queries * width]`, k and v
/// `[b, m, keys * width]`, mask `[b or 1, n, m]` added to the scores. Scores and softmax are f32.
pub(crate) fn composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor,
    heads: Heads,
) -> Result<Tensor> {
    let ((b, n, _), m) = (q.dims3()?, k.dim(1)?);
    let share = heads.queries / heads.keys;
    // [b, keys, share * n, width]: query heads that share a key head go through one product.
    let q = q
        .reshape((b, n, heads.keys, share, heads.width))?
        .permute((0, 2, 3, 1, 4))?
        .contiguous()?
        .reshape((b, heads.keys, share * n, heads.width))?;
    let k = k
        .reshape((b, m, heads.keys, heads.width))?
        .permute((0, 2, 3, 1))?
        .contiguous()?;
    let v = v
        .reshape((b, m, heads.keys, heads.width))?
        .permute((0, 2, 1, 3))?
        .contiguous()?;
    let scores = (q.matmul(&k)?.to_dtype(wide(v.dtype()))? / (heads.width as f64).sqrt())?
        .reshape((b, heads.keys, share, n, m))?
        .broadcast_add(
            &mask
                .to_dtype(wide(v.dtype()))?
                .reshape((mask.dim(0)?, 1, 1, n, m))?,
        )?;
    let max = scores.max_keepdim(D::Minus1)?.detach();
    let exps = scores.broadcast_sub(&max)?.exp()?;
    let weights = exps
        .broadcast_div(&exps.sum_keepdim(D::Minus1)?)?
        .to_dtype(v.dtype())?;
    weights
        .reshape((b, heads.keys, share * n, m))?
        .matmul(&v)?
        .reshape((b, heads.queries, n, heads.width))?
        .permute((0, 2, 1, 3))?
        .contiguous()?
        .reshape((b, n, heads.queries * heads.width))
}

struct AttentionOp {
    segments: Arc<Vec<Segment>>,
    heads: Heads,
    /// What the forward leaves for the backward.
    stats: OnceLock<Vec<f32>>,
}

impl CustomOp3 for AttentionOp {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (
            f32_slice(q, q_layout)?,
            f32_slice(k, k_layout)?,
            f32_slice(v, v_layout)?,
        );
        let mut out = vec![0f32; q.len()];
        let rows = q.len() / self.heads.query_row();
        let mut stats = vec![0f32; rows * self.heads.stats_row()];
        let stats_out = Some(&mut stats[..]);
        kernels::forward(q, k, v, &self.segments, self.heads, &mut out, stats_out);
        let _ = self.stats.set(stats);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let stats = self.stats.get().map_or(&[][..], Vec::as_slice);
        let mut d = [q, k, v].map(|m| vec![0f32; m.elem_count()]);
        let [d_q, d_k, d_v] = &mut d;
        with_slices(&[q, k, v, out, d_out], |s| {
            let (segments, heads) = (&self.segments, self.heads);
            kernels::backward(
                s[0], s[1], s[2], s[3], s[4], stats, segments, heads, d_q, d_k, d_v,
            );
        })?;
        let [d_q, d_k, d_v] = d;
        let d_q = cpu_tensor(d_q, q.shape())?;
        let (d_k, d_v) = (cpu_tensor(d_k, k.shape())?, cpu_tensor(d_v, v.shape())?);
        Ok((Some(d_q), Some(d_k), Some(d_v)))
    }
}
