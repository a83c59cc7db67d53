//! The policy on a CPU: whole layers on plain rows of f32, forward and backward in closed form.
//!
//! - `layer`: one layer forward, for sampling and learning alike
//! - `backward`: one layer backward, from the activations that were kept
//! - `sampling`: passes over prompts' rows and slots' tokens
//! - `tape`: learning passes; `vocabulary`: log-probs and their gradient
//! - `buffers`: the memory that they work in, allocated once

mod backward;
mod buffers;
mod layer;
mod sampling;
mod tape;
mod vocabulary;

use std::sync::{Arc, Mutex};

use half::bf16;

use crate::{
    adapter::{Adapter, LayerPairs, LoraPair},
    dropout::{DropMask, Dropout},
    error::Result,
    kernels::{
        attention::Heads,
        bf16::to_bf16,
        matmul::{Format, Frozen, Rows, Store, Then, matmul, product, rows_format},
        rows,
    },
    lora::LoraModule,
    weights::blocks::Blocks,
};

pub(crate) use backward::LayerGradients;
use buffers::lock;
pub(crate) use buffers::{Activations, Pool, Workspace, sized};
use layer::Attend;
pub(crate) use tape::HostTape;

/// A model's frozen weights, packed for the CPU's kernels.
#[derive(Debug)]
pub(crate) struct HostModel {
    pub(crate) heads: Heads,
    pub(crate) format: Format,
    /// What products read their rows in.
    rows: Format,
    pub(crate) embedding: HostLinear,
    pub(crate) head: Option<HostLinear>,
    pub(crate) layers: Vec<HostLayer>,
    pub(crate) norm: HostNorm,
    pub(crate) pool: Arc<Pool>,
    work: Mutex<Vec<Workspace>>,
}

/// One layer's frozen weights.
#[derive(Debug)]
pub(crate) struct HostLayer {
    pub(crate) input_norm: HostNorm,
    pub(crate) post_norm: HostNorm,
    pub(crate) q_norm: Option<HostNorm>,
    pub(crate) k_norm: Option<HostNorm>,
    /// In the order of [`LoraModule::ALL`].
    pub(crate) linears: [HostLinear; 7],
}

/// The weight of an RMSNorm.
#[derive(Debug)]
pub(crate) struct HostNorm {
    pub(crate) weight: Vec<f32>,
    pub(crate) eps: f32,
}

/// A frozen linear layer: packed for `x Wᵀ`, and for `x W` where gradients are asked for.
#[derive(Debug)]
pub(crate) struct HostLinear {
    pub(crate) forward: Frozen,
    pub(crate) backward: Option<Frozen>,
    pub(crate) bias: Option<Vec<f32>>,
}

impl HostLinear {
    /// Packs `weight` `[outer, inner]`, its `blocks` where it is to stay quantised; `train`: for the backward
    /// pass as well.
    pub(crate) fn new(
        weight: &[f32],
        blocks: Option<&Blocks>,
        outer: usize,
        inner: usize,
        bias: Option<Vec<f32>>,
        format: Format,
        train: bool,
    ) -> Self {
        Self {
            forward: match blocks {
                Some(blocks) => Frozen::of_blocks(blocks),
                None => Frozen::transposed(weight, outer, inner, format),
            },
            backward: train.then(|| Frozen::direct(weight, outer, inner, format)),
            bias,
        }
    }

    /// The rows `ids` of the matrix, `[ids, inner]`: an embedding's look-up.
    fn gather(&self, ids: &[u32], out: &mut Vec<f32>) {
        let inner = self.forward.inner();
        sized(out, ids.len() * inner);
        for (row, id) in out.chunks_exact_mut(inner).zip(ids) {
            self.forward.column(*id as usize, row);
        }
    }
}

/// The angles of a pass's rows: cosines and sines `[rows, head_dim / 2]`.
#[derive(Debug, Default)]
pub(crate) struct Angles {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

/// LoRA as one layer of a pass uses it.
pub(crate) struct LayerLora<'a> {
    pairs: &'a LayerPairs,
    scale: f32,
    dropout: Option<(Dropout, &'a Arc<Vec<u64>>)>,
    layer: usize,
}

impl<'a> LayerLora<'a> {
    /// Layer `layer` of `adapter`; `dropout` with the keys of the pass's rows.
    pub(crate) fn new(
        adapter: &'a Adapter,
        layer: usize,
        dropout: Option<(Dropout, &'a Arc<Vec<u64>>)>,
    ) -> Self {
        Self {
            pairs: &adapter.layers[layer],
            scale: adapter.config.scale(),
            dropout,
            layer,
        }
    }

    fn pair(&self, module: LoraModule) -> Option<&'a LoraPair> {
        self.pairs[module as usize].as_ref()
    }

    fn mask(&self, module: LoraModule) -> Option<DropMask> {
        self.dropout
            .map(|(dropout, keys)| DropMask::new(dropout, keys, self.layer, module as usize))
    }

    /// low = s · dropout(x) · Aᵀ, `[rows, rank]`.
    fn low(
        &self,
        module: LoraModule,
        pair: &LoraPair,
        x: &[f32],
        low: &mut Vec<f32>,
    ) -> Result<()> {
        let a = &pair.packed()?.a;
        sized(low, x.len() / a.inner() * a.columns());
        match self.mask(module) {
            None => matmul(x, a, low, Store::Scaled(self.scale)),
            Some(mask) => matmul(&mask.apply(x, a.inner()), a, low, Store::Scaled(self.scale)),
        }
        Ok(())
    }
}

/// Rows that a product reads, in f32 and, where it reads bf16, rounded to that.
#[derive(Clone, Copy)]
struct Operand<'a> {
    wide: &'a [f32],
    rows: Rows<'a>,
}

impl HostModel {
    pub(crate) fn new(
        heads: Heads,
        format: Format,
        embedding: HostLinear,
        head: Option<HostLinear>,
        layers: Vec<HostLayer>,
        norm: HostNorm,
    ) -> Self {
        Self {
            heads,
            format,
            rows: rows_format(format),
            embedding,
            head,
            layers,
            norm,
            pool: Arc::default(),
            work: Mutex::default(),
        }
    }

    /// The output projection, `[vocab, hidden]`.
    pub(crate) fn output(&self) -> &HostLinear {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    pub(crate) fn embed(&self, tokens: &[u32], out: &mut Vec<f32>) {
        self.embedding.gather(tokens, out);
    }

    /// `half`, sized for `n` values that a product reads, where it reads bf16.
    fn rounded<'a>(&self, n: usize, half: &'a mut Vec<bf16>) -> Option<&'a mut [bf16]> {
        (self.rows == Format::Bf16).then(|| {
            sized(half, n);
            &mut half[..]
        })
    }

    /// Rows and, where products read bf16, the same rounded.
    fn as_operand<'a>(&self, wide: &'a [f32], half: &'a [bf16]) -> Operand<'a> {
        let rows = match self.rows {
            Format::F32 | Format::Blocks => Rows::F32(wide),
            Format::Bf16 => Rows::Bf16(half),
        };
        Operand { wide, rows }
    }

    fn operand<'a>(&self, wide: &'a [f32], half: &'a mut Vec<bf16>) -> Operand<'a> {
        if let Some(half) = self.rounded(wide.len(), half) {
            to_bf16(wide, half);
        }
        self.as_operand(wide, half)
    }

    /// x `[rows, hidden]`, normed.
    fn normed<'a>(
        &self,
        norm: &HostNorm,
        x: &[f32],
        wide: &'a mut Vec<f32>,
        half: &'a mut Vec<bf16>,
    ) -> Operand<'a> {
        sized(wide, x.len());
        let rounded = self.rounded(x.len(), half);
        rows::rms_norm(x, &norm.weight, norm.eps, wide, rounded);
        self.as_operand(wide, half)
    }

    /// Turns all heads of x `[rows, heads * width]` by their rows' angles, or back with `sign` −1.
    fn turn(&self, x: &mut [f32], angles: &Angles, sign: f32) {
        let width = self.heads.width;
        let rows = (2 * angles.cos.len()).checked_div(width).unwrap_or(0);
        let stride = x.len().checked_div(rows).unwrap_or(0);
        let all = 0..stride;
        rows::rotate_in_place(x, stride, all, &angles.cos, &angles.sin, sign, width);
    }

    /// Logits of final-normed rows: hidden `[rows, hidden]` to `[rows, vocab]`.
    pub(crate) fn logits(&self, hidden: &[f32], half: &mut Vec<bf16>, logits: &mut Vec<f32>) {
        let output = &self.output().forward;
        sized(logits, hidden.len() / output.inner() * output.columns());
        let x = self.operand(hidden, half);
        product(x.rows, output, logits, Then::default());
    }

    /// Runs `f` with a workspace that nobody else uses meanwhile.
    pub(crate) fn with_workspace<R>(&self, f: impl FnOnce(&mut Workspace) -> R) -> R {
        let mut work = lock(&self.work).pop().unwrap_or_default();
        let done = f(&mut work);
        lock(&self.work).push(work);
        done
    }
}
