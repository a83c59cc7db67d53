//! A frozen matrix, its bias, and LoRA behind it: `y = x Wᵀ + b + s (x Aᵀ) Bᵀ`.
//!
//! The frozen matrix never gets a gradient computed for it. LoRA is applied unmerged (merging
//! rounds the adapter away where weights are bf16).

use std::sync::Arc;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor,
    backend::BackendStorage,
};

use super::{cpu_tensor, f32_slice, wide, with_slices};
use crate::{
    adapter::LoraPair,
    dropout::DropMask,
    kernels::matmul::{Packed, Store, matmul},
};

/// A frozen linear layer `[outer, inner]`.
#[derive(Debug)]
pub(crate) struct Linear {
    inner: usize,
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Clone, Debug)]
enum Weight {
    /// Packed for the CPU's kernels: for `x Wᵀ`, and for `x W` where gradients are asked for.
    Packed {
        forward: Arc<Packed>,
        backward: Option<Arc<Packed>>,
    },
    /// `[outer, inner]` in the type and on the device that it is computed in.
    Dense(Tensor),
}

/// LoRA as one pass uses it.
pub(crate) struct LoraUse<'a> {
    pub(crate) pair: &'a LoraPair,
    /// A `[rank, inner]` and B `[outer, rank]`: the pair's own values; variables when the pass
    /// wants their gradients.
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) scale: f32,
    pub(crate) dropout: Option<DropMask>,
}

impl Linear {
    /// Packs `weight` `[outer, inner]` (any float type, on the CPU) for the CPU's kernels;
    /// `train`: for the backward pass as well.
    pub(crate) fn packed(weight: &Tensor, bias: Option<Tensor>, train: bool) -> Result<Self> {
        let (outer, inner) = weight.dims2()?;
        let weight = weight.to_dtype(DType::F32)?;
        let (forward, backward) = with_slices(&[&weight], |s| {
            let forward = Arc::new(Packed::transposed(s[0], outer, inner));
            (
                forward,
                train.then(|| Arc::new(Packed::direct(s[0], outer, inner))),
            )
        })?;
        Ok(Self {
            inner,
            weight: Weight::Packed { forward, backward },
            bias,
        })
    }

    /// Keeps `weight` `[outer, inner]` as it is, for candle's own products.
    pub(crate) fn dense(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (_, inner) = weight.dims2()?;
        Ok(Self {
            inner,
            weight: Weight::Dense(weight),
            bias,
        })
    }

    /// The rows `ids` of the matrix, `[ids, inner]`: an embedding's look-up.
    pub(crate) fn gather(&self, ids: &[u32]) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed { forward, .. } => {
                let mut out = vec![0f32; ids.len() * self.inner];
                for (row, id) in out.chunks_exact_mut(self.inner).zip(ids) {
                    forward.column(*id as usize, row);
                }
                cpu_tensor(out, (ids.len(), self.inner))
            }
            Weight::Dense(weight) => weight.index_select(&Tensor::new(ids, weight.device())?, 0),
        }
    }

    /// x `[rows, inner]` to `[rows, outer]`, without gradients, whatever x is.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(&x.detach(), None)
    }

    /// d `[rows, outer]` to `d W`, `[rows, inner]`.
    pub(crate) fn product_backward(&self, d: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed { backward, .. } => {
                let rows = d.dim(0)?;
                let mut out = vec![0f32; rows * self.inner];
                let packed = trainable(backward)?;
                with_slices(&[d], |s| matmul(s[0], packed, &mut out, Store::Set))?;
                cpu_tensor(out, (rows, self.inner))
            }
            Weight::Dense(weight) => d.matmul(weight),
        }
    }

    /// x `[rows, inner]` to `[rows, outer]`, LoRA included.
    pub(crate) fn forward(&self, x: &Tensor, lora: Option<LoraUse<'_>>) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed { forward, backward } => {
                let base = PackedOp {
                    forward: forward.clone(),
                    backward: backward.clone(),
                    bias: self.bias.clone(),
                };
                let x = x.contiguous()?;
                match lora {
                    None => x.apply_op1(base),
                    Some(LoraUse {
                        pair,
                        a,
                        b,
                        scale,
                        dropout,
                    }) => {
                        let op = LoraOp {
                            base,
                            pair: pair.clone(),
                            scale,
                            dropout,
                        };
                        x.apply_op3(&a, &b, op)
                    }
                }
            }
            Weight::Dense(weight) => self.composed(x, weight, lora),
        }
    }

    fn composed(&self, x: &Tensor, weight: &Tensor, lora: Option<LoraUse<'_>>) -> Result<Tensor> {
        let mut y = x.contiguous()?.apply_op1(FrozenProduct {
            weight: weight.clone(),
        })?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        let Some(LoraUse {
            a,
            b,
            scale,
            dropout,
            ..
        }) = lora
        else {
            return Ok(y);
        };
        let mut x = x.to_dtype(wide(weight.dtype()))?;
        if let Some(mask) = &dropout {
            x = (&x
                * mask
                    .tensor(self.inner, weight.device())?
                    .to_dtype(x.dtype())?)?;
        }
        let (a, b) = (a.to_dtype(x.dtype())?, b.to_dtype(x.dtype())?);
        let low = x.matmul(&a.t()?)?.matmul(&b.t()?)?;
        y + (low * f64::from(scale))?.to_dtype(weight.dtype())?
    }
}

fn trainable(backward: &Option<Arc<Packed>>) -> Result<&Packed> {
    backward.as_deref().ok_or_else(|| {
        candle_core::Error::Msg("the model was loaded without `train`: it has no gradients".into())
    })
}

/// `x Wᵀ + b` on the CPU.
struct PackedOp {
    forward: Arc<Packed>,
    backward: Option<Arc<Packed>>,
    bias: Option<Tensor>,
}

impl PackedOp {
    fn run(&self, x: &[f32]) -> Result<Vec<f32>> {
        let mut out = vec![0f32; x.len() / self.forward.inner() * self.forward.columns()];
        matmul(x, &self.forward, &mut out, Store::Set);
        if let Some(bias) = &self.bias {
            with_slices(&[bias], |s| {
                for row in out.chunks_exact_mut(self.forward.columns()) {
                    for (y, b) in row.iter_mut().zip(s[0]) {
                        *y += b;
                    }
                }
            })?;
        }
        Ok(out)
    }

    fn run_backward(&self, d_out: &[f32]) -> Result<Vec<f32>> {
        let packed = trainable(&self.backward)?;
        let mut d_x = vec![0f32; d_out.len() / self.forward.columns() * packed.columns()];
        matmul(d_out, packed, &mut d_x, Store::Set);
        Ok(d_x)
    }
}

impl CustomOp1 for PackedOp {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = self.run(f32_slice(storage, layout)?)?;
        Ok((
            CpuStorage::F32(out),
            (layout.dims()[0], self.forward.columns()).into(),
        ))
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, d_out: &Tensor) -> Result<Option<Tensor>> {
        let d_x = with_slices(&[d_out], |s| self.run_backward(s[0]))??;
        Ok(Some(cpu_tensor(d_x, x.shape())?))
    }
}

/// `x Wᵀ + b + s (x Aᵀ) Bᵀ` on the CPU, the thin products fused behind the frozen one.
struct LoraOp {
    base: PackedOp,
    pair: LoraPair,
    scale: f32,
    dropout: Option<DropMask>,
}

impl LoraOp {
    /// x with dropout's zeros, where there is dropout.
    fn dropped(&self, x: &[f32]) -> Option<Vec<f32>> {
        self.dropout
            .as_ref()
            .map(|mask| mask.apply(x, self.base.forward.inner()))
    }

    fn low(&self, x: &[f32]) -> Result<Vec<f32>> {
        let a = &self.pair.packed()?.a;
        let mut low = vec![0f32; x.len() / a.inner() * a.columns()];
        matmul(x, a, &mut low, Store::Set);
        Ok(low)
    }

    /// Gradients of x, A and B.
    fn gradients(&self, x: &[f32], d_out: &[f32]) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>)> {
        let (inner, outer, rank) = (
            self.base.forward.inner(),
            self.base.forward.columns(),
            self.pair.rank(),
        );
        let rows = x.len() / inner;
        let dropped = self.dropped(x);
        let lora_x = dropped.as_deref().unwrap_or(x);
        let packed = self.pair.packed_backward()?;
        // With u = dY B and t = x Aᵀ: dB = s dYᵀ t, dA = s uᵀ x, dx = dY W + s u A.
        let mut u = vec![0f32; rows * rank];
        matmul(d_out, &packed.b, &mut u, Store::Set);
        let mut d_x = self.base.run_backward(d_out)?;
        match &self.dropout {
            None => matmul(&u, &packed.a, &mut d_x, Store::AddScaled(self.scale)),
            Some(mask) => {
                let mut through = vec![0f32; d_x.len()];
                matmul(&u, &packed.a, &mut through, Store::Set);
                for (d, t) in d_x.iter_mut().zip(mask.apply(&through, inner)) {
                    *d = self.scale.mul_add(t, *d);
                }
            }
        }
        let t = transpose(&self.low(lora_x)?, rows, rank);
        let mut d_b = vec![0f32; rank * outer];
        matmul(
            &t,
            &Packed::direct(d_out, rows, outer),
            &mut d_b,
            Store::AddScaled(self.scale),
        );
        let mut d_a = vec![0f32; rank * inner];
        let u = transpose(&u, rows, rank);
        matmul(
            &u,
            &Packed::direct(lora_x, rows, inner),
            &mut d_a,
            Store::AddScaled(self.scale),
        );
        Ok((d_x, d_a, transpose(&d_b, rank, outer)))
    }
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0f32; values.len()];
    for (r, row) in values.chunks_exact(columns).enumerate() {
        for (c, value) in row.iter().enumerate() {
            out[c * rows + r] = *value;
        }
    }
    out
}

impl CustomOp3 for LoraOp {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        _a: &CpuStorage,
        _a_layout: &Layout,
        _b: &CpuStorage,
        _b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        // A and B are arguments so that candle asks for their gradients; their values are read
        // from the pair, packed once.
        let x = f32_slice(x, layout)?;
        let mut out = self.base.run(x)?;
        let dropped = self.dropped(x);
        let low = self.low(dropped.as_deref().unwrap_or(x))?;
        matmul(
            &low,
            &self.pair.packed()?.b,
            &mut out,
            Store::AddScaled(self.scale),
        );
        Ok((
            CpuStorage::F32(out),
            (layout.dims()[0], self.base.forward.columns()).into(),
        ))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (d_x, d_a, d_b) = with_slices(&[x, d_out], |s| self.gradients(s[0], s[1]))??;
        let d_x = cpu_tensor(d_x, x.shape())?;
        Ok((
            Some(d_x),
            Some(cpu_tensor(d_a, a.shape())?),
            Some(cpu_tensor(d_b, b.shape())?),
        ))
    }
}

/// `x Wᵀ` by candle's product, whose own backward pass would compute a gradient for W as well.
struct FrozenProduct {
    weight: Tensor,
}

/// (batch, m, n, k), as candle's backends ask for them.
type Sizes = (usize, usize, usize, usize);

impl FrozenProduct {
    fn layouts(&self, layout: &Layout) -> Result<(Sizes, Layout, Shape)> {
        let (outer, inner) = self.weight.dims2()?;
        let rows = layout.dims()[0];
        Ok((
            (1, rows, outer, inner),
            self.weight.layout().transpose(0, 1)?,
            (rows, outer).into(),
        ))
    }
}

impl CustomOp1 for FrozenProduct {
    fn name(&self) -> &'static str {
        "frozen-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (sizes, transposed, shape) = self.layouts(layout)?;
        match &*self.weight.storage_and_layout().0 {
            Storage::Cpu(w) => Ok((x.matmul(w, sizes, layout, &transposed)?, shape)),
            _ => Err(candle_core::Error::Msg(
                "x and its weight are on different devices".into(),
            )),
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (sizes, transposed, shape) = self.layouts(layout)?;
        match &*self.weight.storage_and_layout().0 {
            Storage::Cuda(w) => Ok((x.matmul(w, sizes, layout, &transposed)?, shape)),
            _ => Err(candle_core::Error::Msg(
                "x and its weight are on different devices".into(),
            )),
        }
    }

    fn bwd(&self, _x: &Tensor, _out: &Tensor, d_out: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(d_out.contiguous()?.matmul(&self.weight)?))
    }
}
