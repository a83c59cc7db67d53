//! RMSNorm, SiLU·up, rotary embedding.

use candle_core::{D, Result, Tensor};

use crate::tensors::wide;

/// RMSNorm over the last dimension; the weight is frozen.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    pub(crate) weight: Tensor,
    pub(crate) eps: f32,
}

impl RmsNorm {
    /// x `[rows, width]`, or `[rows, heads, width]` for a norm of each head.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(wide(x.dtype()))?;
        let mean = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = wide.broadcast_div(&(mean + f64::from(self.eps))?.sqrt()?)?;
        normed
            .to_dtype(x.dtype())?
            .broadcast_mul(&self.weight.to_dtype(x.dtype())?)
    }
}

/// Cosines and sines of every row of a pass, `[rows, head_dim / 2]`, f32.
#[derive(Clone, Debug)]
pub(crate) struct Angles {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

/// Rotary embedding in the half-split form: x `[rows, heads * width]`.
pub(crate) fn rotate(x: &Tensor, angles: &Angles, width: usize) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let half = width / 2;
    let x4 = x
        .to_dtype(wide(x.dtype()))?
        .reshape((rows, columns / width, 2, half))?;
    let (a, b) = (x4.narrow(2, 0, 1)?, x4.narrow(2, 1, 1)?);
    let cos = angles
        .cos
        .to_dtype(x4.dtype())?
        .reshape((rows, 1, 1, half))?;
    let sin = angles
        .sin
        .to_dtype(x4.dtype())?
        .reshape((rows, 1, 1, half))?;
    let turned_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let turned_b = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[turned_a, turned_b], 2)?
        .reshape((rows, columns))?
        .to_dtype(x.dtype())
}

/// silu(gate) * up.
pub(crate) fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}
