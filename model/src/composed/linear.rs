//! A frozen matrix, its bias, and LoRA behind it: `y = x Wᵀ + b + s (x Aᵀ) Bᵀ`.
//!
//! The frozen matrix never gets a gradient computed for it. LoRA is applied unmerged (merging
//! rounds the adapter away where weights are bf16).

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor,
    backend::BackendStorage,
};

use crate::dropout::DropMask;
use crate::tensors::wide;

/// A frozen linear layer `[outer, inner]`, in the type and on the device that it is computed in.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

/// LoRA as one pass uses it.
pub(crate) struct LoraUse {
    /// A `[rank, inner]` and B `[outer, rank]`: the pair's own values; variables when the pass
    /// wants their gradients.
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) scale: f32,
    pub(crate) dropout: Option<DropMask>,
}

impl Linear {
    /// The rows `ids` of the matrix, `[ids, inner]`: an embedding's look-up.
    pub(crate) fn gather(&self, ids: &[u32]) -> Result<Tensor> {
        self.weight
            .index_select(&Tensor::new(ids, self.weight.device())?, 0)
    }

    /// x `[rows, inner]` to `[rows, outer]`, without gradients, whatever x is.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(&x.detach(), None)
    }

    /// d `[rows, outer]` to `d W`, `[rows, inner]`.
    pub(crate) fn product_backward(&self, d: &Tensor) -> Result<Tensor> {
        d.matmul(&self.weight)
    }

    /// x `[rows, inner]` to `[rows, outer]`, LoRA included.
    pub(crate) fn forward(&self, x: &Tensor, lora: Option<LoraUse>) -> Result<Tensor> {
        let weight = &self.weight;
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
        }) = lora
        else {
            return Ok(y);
        };
        let mut x = x.to_dtype(wide(weight.dtype()))?;
        if let Some(mask) = &dropout {
            x = (&x
                * mask
                    .tensor(weight.dim(1)?, weight.device())?
                    .to_dtype(x.dtype())?)?;
        }
        let (a, b) = (a.to_dtype(x.dtype())?, b.to_dtype(x.dtype())?);
        let low = x.matmul(&a.t()?)?.matmul(&b.t()?)?;
        y + (low * f64::from(scale))?.to_dtype(weight.dtype())?
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
