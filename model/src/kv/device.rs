//! The cache as candle's tensors, for any device: a row a token, prompts copied into their slots.

use candle_core::{DType, Device, Tensor};

use crate::{
    composed::attention::{composed, last_rows},
    error::Result,
    kernels::attention::Heads,
};

/// `[layer]`: (k, v), each `[slots * max_tokens, kv_heads * head_dim]`.
#[derive(Debug)]
pub(super) struct Rows {
    layers: Vec<(Tensor, Tensor)>,
    max_tokens: usize,
}

/// Slots that take tokens in a pass, one behind the other.
#[derive(Debug)]
pub(super) struct Step {
    /// Rows to write, `[n, row]`.
    write: Tensor,
    /// The first of the slots, which take one token each: how many, rows to read `[n * longest]`, and
    /// mask `[n, 1, longest]`.
    single: Option<(usize, Tensor, Tensor)>,
    /// The others: (slot, position of its first new token, how many).
    longer: Vec<Run>,
}

type Run = (usize, usize, usize);

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

    pub(super) fn step(&self, heads: Heads, runs: &[Run]) -> Result<Step> {
        let device = self
            .layers
            .first()
            .map_or(&Device::Cpu, |(k, _)| k.device());
        let row = heads.key_row();
        let at = runs.iter().flat_map(|(slot, first, n)| {
            let start = slot * self.max_tokens + first;
            (start..start + n).flat_map(|index| std::iter::repeat_n(index as u32, row))
        });
        let at: Vec<u32> = at.collect();
        let write = (at.len() / row, row);
        let write = Tensor::from_vec(at, write, device)?;
        let singles = runs.iter().take_while(|run| run.2 == 1).count();
        let (single, longer) = runs.split_at(singles);
        Ok(Step {
            write,
            single: match singles {
                0 => None,
                n => Some(self.gather(single, device).map(|(r, m)| (n, r, m))?),
            },
            longer: longer.to_vec(),
        })
    }

    /// Rows to read and mask of slots that take one token each.
    fn gather(&self, runs: &[Run], device: &Device) -> Result<(Tensor, Tensor)> {
        let n = runs.len();
        let longest = runs.iter().map(|run| run.1 + 1).max().unwrap_or(0);
        let read = runs.iter().flat_map(|(slot, ..)| {
            let start = (slot * self.max_tokens) as u32;
            start..start + longest as u32
        });
        let read = Tensor::from_vec(read.collect::<Vec<_>>(), n * longest, device)?;
        let mask = runs.iter().flat_map(|(_, position, _)| {
            let seen = move |j: usize| {
                if j <= *position {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            };
            (0..longest).map(seen)
        });
        let mask = Tensor::from_vec(mask.collect::<Vec<f32>>(), (n, 1, longest), device)?;
        Ok((read, mask))
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
        let mut outs = Vec::with_capacity(1 + step.longer.len());
        let mut row = 0;
        if let Some((n, read, mask)) = &step.single {
            let shape = (*n, mask.dim(2)?, heads.key_row());
            let seen = |all: &Tensor| all.index_select(read, 0)?.reshape(shape);
            let q = q.narrow(0, 0, *n)?.unsqueeze(1)?;
            outs.push(composed(&q, &seen(all_k)?, &seen(all_v)?, mask, heads)?.squeeze(1)?);
            row = *n;
        }
        for (slot, first, n) in &step.longer {
            let seen = |all: &Tensor| all.narrow(0, slot * self.max_tokens, first + n);
            let q = q.narrow(0, row, *n)?;
            outs.push(last_rows(&q, &seen(all_k)?, &seen(all_v)?, heads)?);
            row += n;
        }
        Ok(Tensor::cat(&outs, 0)?)
    }
}
