//! RMSNorm, rotary embedding, SiLU·up.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor};

use super::{cpu_tensor, f32_slice, wide, with_slices};
use crate::kernels::rows as kernels;

/// RMSNorm over the last dimension; the weight is frozen.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f32,
    fused: bool,
}

impl RmsNorm {
    pub(crate) fn new(weight: Tensor, eps: f32, fused: bool) -> Self {
        Self { weight, eps, fused }
    }

    /// x `[rows, width]`, or `[rows, heads, width]` for a norm of each head.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.fused {
            let op = RmsNormOp {
                weight: self.weight.clone(),
                eps: self.eps,
            };
            return x.contiguous()?.apply_op1(op);
        }
        let wide = x.to_dtype(wide(x.dtype()))?;
        let mean = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = wide.broadcast_div(&(mean + f64::from(self.eps))?.sqrt()?)?;
        normed
            .to_dtype(x.dtype())?
            .broadcast_mul(&self.weight.to_dtype(x.dtype())?)
    }
}

struct RmsNormOp {
    weight: Tensor,
    eps: f32,
}

impl CustomOp1 for RmsNormOp {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout)?;
        let mut out = vec![0f32; x.len()];
        with_slices(&[&self.weight], |s| {
            kernels::rms_norm(x, s[0], self.eps, &mut out, None)
        })?;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, d_out: &Tensor) -> Result<Option<Tensor>> {
        let mut d_x = vec![0f32; x.elem_count()];
        with_slices(&[x, &self.weight, d_out], |s| {
            kernels::rms_norm_backward(s[0], s[1], self.eps, s[2], &mut d_x);
        })?;
        Ok(Some(cpu_tensor(d_x, x.shape())?))
    }
}

/// Cosines and sines of every row of a pass, `[rows, head_dim / 2]`, f32.
#[derive(Clone, Debug)]
pub(crate) struct Angles {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

/// Rotary embedding in the half-split form: x `[rows, heads * width]`.
pub(crate) fn rotate(x: &Tensor, angles: &Angles, width: usize, fused: bool) -> Result<Tensor> {
    if fused {
        return x.contiguous()?.apply_op1(RotateOp {
            angles: angles.clone(),
            width,
            sign: 1.0,
        });
    }
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

struct RotateOp {
    angles: Angles,
    width: usize,
    sign: f32,
}

impl CustomOp1 for RotateOp {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout)?;
        let mut out = vec![0f32; x.len()];
        with_slices(&[&self.angles.cos, &self.angles.sin], |s| {
            kernels::rotate(x, s[0], s[1], self.sign, self.width, &mut out);
        })?;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _out: &Tensor, d_out: &Tensor) -> Result<Option<Tensor>> {
        let back = RotateOp {
            angles: self.angles.clone(),
            width: self.width,
            sign: -self.sign,
        };
        Ok(Some(d_out.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

/// silu(gate) * up.
pub(crate) fn silu_mul(gate: &Tensor, up: &Tensor, fused: bool) -> Result<Tensor> {
    if fused {
        return gate.contiguous()?.apply_op2(&up.contiguous()?, SiluMulOp);
    }
    gate.silu()? * up
}

struct SiluMulOp;

impl CustomOp2 for SiluMulOp {
    fn name(&self) -> &'static str {
        "silu-mul"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (f32_slice(gate, gate_layout)?, f32_slice(up, up_layout)?);
        let mut out = vec![0f32; gate.len()];
        kernels::silu_mul(gate, up, &mut out, None);
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let n = gate.elem_count();
        let (mut d_gate, mut d_up) = (vec![0f32; n], vec![0f32; n]);
        with_slices(&[gate, up, d_out], |s| {
            kernels::silu_mul_backward(s[0], s[1], s[2], &mut d_gate, &mut d_up);
        })?;
        let shape = gate.shape();
        Ok((
            Some(cpu_tensor(d_gate, shape)?),
            Some(cpu_tensor(d_up, shape)?),
        ))
    }
}
