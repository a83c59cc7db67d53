//! The cache as candle's tensors, for any device: a row a token, prompts copied into their slots.

use candle_core::{DType, Device, Tensor};

use crate::{composed::attention::composed, error::Result, kernels::attention::Heads};

/// `[layer]`: (k, v), each `[slots * max_tokens, kv_heads * head_dim]`.
#[derive(Debug)]
pub(super) struct Rows {
    layers: Vec<(Tensor, Tensor)>,
    max_tokens: usize,
}

/// Rows to write `[n, row]`, rows to read `[n * longest]`, mask `[n, 1, longest]`.
#[derive(Debug)]
pub(super) struct Step {
    write: Tensor,
    read: Tensor,
    mask: Tensor,
}

impl Rows {
    pub(super) fn new(
        heads: Heads,
        layers: usize,
        slots: usize,
        max_tokens: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shape = (slots * max_tokens, heads.key_row());
        let layer = |_| {
            let zeros = || Tensor::zeros(shape, dtype, device);
            Ok((zeros()?, zeros()?))
        };
        Ok(Self {
            layers: (0..layers).map(layer).collect::<candle_core::Result<_>>()?,
            max_tokens,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        let size = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        self.layers.iter().map(|(k, v)| size(k) + size(v)).sum()
    }

    /// Copies a prompt's keys and values, one pair a layer, to the start of a slot.
    pub(super) fn attach(&self, slot: usize, prompt: &[(Tensor, Tensor)]) -> Result<()> {
        for ((k, v), (prompt_k, prompt_v)) in self.layers.iter().zip(prompt) {
            k.slice_set(prompt_k, 0, slot * self.max_tokens)?;
            v.slice_set(prompt_v, 0, slot * self.max_tokens)?;
        }
        Ok(())
    }

    pub(super) fn step(&self, heads: Heads, slots: &[usize], positions: &[u32]) -> Result<Step> {
        let device = self
            .layers
            .first()
            .map_or(&Device::Cpu, |(k, _)| k.device());
        let (n, row) = (slots.len(), heads.key_row());
        let at = slots.iter().zip(positions).flat_map(|(slot, position)| {
            let index = (slot * self.max_tokens) as u32 + position;
            std::iter::repeat_n(index, row)
        });
        let write = Tensor::from_vec(at.collect::<Vec<_>>(), (n, row), device)?;
        let longest = positions.iter().max().map_or(0, |p| *p as usize + 1);
        let read = slots.iter().flat_map(|slot| {
            let start = (slot * self.max_tokens) as u32;
            start..start + longest as u32
        });
        let read = Tensor::from_vec(read.collect::<Vec<_>>(), n * longest, device)?;
        let mask = positions.iter().flat_map(|p| {
            let seen = move |j: usize| {
                if j <= *p as usize {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            };
            (0..longest).map(seen)
        });
        let mask = Tensor::from_vec(mask.collect::<Vec<f32>>(), (n, 1, longest), device)?;
        Ok(Step { write, read, mask })
    }

    /// q `[n, queries * width]`, k and v `[n, keys * width]`.
    pub(super) fn attend(
        &self,
        step: &Step,
        layer: usize,
        heads: Heads,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        let (all_k, all_v) = &self.layers[layer];
        all_k.scatter_set(&step.write, &k.contiguous()?, 0)?;
        all_v.scatter_set(&step.write, &v.contiguous()?, 0)?;
        let shape = (q.dim(0)?, step.mask.dim(2)?, heads.key_row());
        let seen = |all: &Tensor| all.index_select(&step.read, 0)?.reshape(shape);
        let out = composed(
            &q.unsqueeze(1)?,
            &seen(all_k)?,
            &seen(all_v)?,
            &step.mask,
            heads,
        )?;
        Ok(out.squeeze(1)?)
    }
}
