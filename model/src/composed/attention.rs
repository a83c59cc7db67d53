//! Causal attention over packed rows.

use candle_core::{D, Device, Result, Tensor};

use crate::kernels::attention::{Heads, Segment};
use crate::tensors::wide;

/// Attention of all rows of a pass: q `[rows, queries * width]`, k and v `[rows, keys * width]`.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &[Segment],
    heads: Heads,
) -> Result<Tensor> {
    let mut outs = Vec::with_capacity(segments.len());
    for segment in segments {
        let keys = |m: &Tensor| -> Result<Tensor> {
            let own = m.narrow(0, segment.start, segment.len)?;
            match segment.prefix {
                Some((start, len)) => Tensor::cat(&[&m.narrow(0, start, len)?, &own], 0),
                None => Ok(own),
            }
        };
        let q = q.narrow(0, segment.start, segment.len)?;
        outs.push(last_rows(&q, &keys(k)?, &keys(v)?, heads)?);
    }
    Tensor::cat(&outs, 0)
}

/// Attention of the last rows of a sequence: q `[n, queries * width]`, k and v of the whole of it,
/// `[before + n, keys * width]`.
pub(crate) fn last_rows(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads) -> Result<Tensor> {
    let (n, all) = (q.dim(0)?, k.dim(0)?);
    let mask = causal_mask(n, all - n, q.device())?.unsqueeze(0)?;
    let (q, k, v) = (q.unsqueeze(0)?, k.unsqueeze(0)?, v.unsqueeze(0)?);
    composed(&q, &k, &v, &mask, heads)?.squeeze(0)
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
