//! The policy composed of candle's operations, which bring their gradients along: what runs on a
//! GPU, and on a CPU what the host's kernels are compared with.
//!
//! - [`linear`]: a frozen matrix, its bias, and LoRA behind it
//! - [`attention`]: causal attention over packed rows
//! - [`rows`]: RMSNorm, rotary embedding, SiLU·up
//! - `tape`: learning passes; `vocabulary`: log-probs and their gradient

pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod rows;
mod tape;
mod vocabulary;

use std::sync::Arc;

use candle_core::{DType, Tensor};

use self::{
    attention::attention,
    linear::{Linear, LoraUse},
    rows::{Angles, RmsNorm, rotate, silu_mul},
};
use crate::{
    adapter::{Adapter, LayerPairs},
    dropout::{DropMask, Dropout},
    error::Result,
    kernels::attention::{Heads, Segment},
    kv::{KvCache, OpenPrompt, SlotPlan},
    lora::LoraModule,
};

pub(crate) use tape::ComposedTape;

/// A model's frozen weights as tensors.
#[derive(Debug)]
pub(crate) struct ComposedModel {
    pub(crate) dtype: DType,
    pub(crate) heads: Heads,
    pub(crate) embedding: Linear,
    pub(crate) head: Option<Linear>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: RmsNorm,
}

/// One layer's frozen weights.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) input_norm: RmsNorm,
    pub(crate) post_norm: RmsNorm,
    pub(crate) q_norm: Option<RmsNorm>,
    pub(crate) k_norm: Option<RmsNorm>,
    /// In the order of [`LoraModule::ALL`].
    pub(crate) linears: [Linear; 7],
}

/// A and B of each pair of a layer: the pair's own, or variables that stand for them.
type PairTensors = [Option<(Tensor, Tensor)>; 7];

/// LoRA as one layer of a pass uses it.
struct LayerLora {
    tensors: PairTensors,
    scale: f32,
    dropout: Option<(Dropout, Arc<Vec<u64>>)>,
    layer: usize,
}

impl LayerLora {
    /// The pairs as constants: no gradients, no dropout.
    fn constant(adapter: &Adapter, layer: usize) -> Self {
        Self {
            tensors: constants(&adapter.layers[layer]),
            scale: adapter.config.scale(),
            dropout: None,
            layer,
        }
    }

    fn of(&self, module: LoraModule) -> Option<LoraUse> {
        let index = module as usize;
        let (a, b) = self.tensors[index].as_ref()?;
        let dropout = self
            .dropout
            .as_ref()
            .map(|(dropout, keys)| DropMask::new(*dropout, keys, self.layer, index));
        Some(LoraUse {
            a: a.clone(),
            b: b.clone(),
            scale: self.scale,
            dropout,
        })
    }
}

fn constants(pairs: &LayerPairs) -> PairTensors {
    std::array::from_fn(|i| pairs[i].as_ref().map(|p| (p.a.detach(), p.b.detach())))
}

/// The shape of a pass that all layers share.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) angles: Angles,
    pub(crate) segments: Vec<Segment>,
}

impl ComposedModel {
    /// The output projection, `[vocab, hidden]`.
    pub(crate) fn output(&self) -> &Linear {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        Ok(self.embedding.gather(tokens)?)
    }

    /// q, k and v of a layer: x `[rows, hidden]`.
    fn project(
        &self,
        layer: &Layer,
        x: &Tensor,
        angles: &Angles,
        lora: Option<&LayerLora>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let normed = layer.input_norm.forward(x)?;
        let linear = |m: LoraModule| layer.linear(m, &normed, lora);
        let (q, k, v) = (
            linear(LoraModule::Q)?,
            linear(LoraModule::K)?,
            linear(LoraModule::V)?,
        );
        let width = self.heads.width;
        let turned = |x: Tensor, norm: &Option<RmsNorm>| -> Result<Tensor> {
            let x = match norm {
                None => x,
                Some(norm) => {
                    let (rows, wide) = x.dims2()?;
                    let heads = x.reshape((rows, wide / width, width))?;
                    norm.forward(&heads)?.reshape((rows, wide))?
                }
            };
            Ok(rotate(&x, angles, width)?)
        };
        Ok((turned(q, &layer.q_norm)?, turned(k, &layer.k_norm)?, v))
    }

    /// The rest of a layer after attention: x `[rows, hidden]`, mixed `[rows, queries * width]`.
    fn finish(
        &self,
        layer: &Layer,
        x: &Tensor,
        mixed: &Tensor,
        lora: Option<&LayerLora>,
    ) -> Result<Tensor> {
        let x = (x + layer.linear(LoraModule::O, mixed, lora)?)?;
        let normed = layer.post_norm.forward(&x)?;
        let gate = layer.linear(LoraModule::Gate, &normed, lora)?;
        let up = layer.linear(LoraModule::Up, &normed, lora)?;
        let inner = silu_mul(&gate, &up)?;
        Ok((x + layer.linear(LoraModule::Down, &inner, lora)?)?)
    }

    /// One layer over the rows of a pass: x `[rows, hidden]` to the same, with its k and v.
    fn layer(
        &self,
        index: usize,
        x: &Tensor,
        pass: &Pass,
        lora: Option<&LayerLora>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let layer = &self.layers[index];
        let (q, k, v) = self.project(layer, x, &pass.angles, lora)?;
        let mixed = attention(&q, &k, &v, &pass.segments, self.heads)?;
        Ok((self.finish(layer, x, &mixed, lora)?, k, v))
    }

    /// Logits of final-normed rows, f32: hidden `[rows, hidden]` to `[rows, vocab]`.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.output().product(hidden)?.to_dtype(DType::F32)?)
    }

    /// Prompts' next rows, one prompt after the other, then those of `slots`: the logits `[vocab]` of
    /// each one's last row, f32, one behind the other.
    pub(crate) fn advance(
        &self,
        cache: &KvCache,
        prompts: &mut [(&mut OpenPrompt, usize)],
        (plan, slots): (&SlotPlan, &[(usize, &[u32])]),
        angles: impl Fn(&[u32]) -> Result<Angles>,
        adapter: Option<&Adapter>,
    ) -> Result<Vec<f32>> {
        let (mut found, mut kept) = (Vec::new(), Vec::with_capacity(prompts.len()));
        for (prompt, rows) in prompts.iter() {
            let (tokens, first) = prompt.next(*rows);
            let positions: Vec<u32> = (first..first + rows).map(|p| p as u32).collect();
            let angles = angles(&positions)?;
            let (layers, x) = self.prompt_rows(tokens, prompt.tensors(), &angles, adapter)?;
            kept.push(layers);
            found.push(x.narrow(0, rows - 1, 1)?);
        }
        if !slots.is_empty() {
            let tokens: Vec<u32> = slots.iter().flat_map(|s| s.1).copied().collect();
            let angles = angles(&plan.positions)?;
            let x = self.slot_rows(cache, plan, &tokens, &angles, adapter)?;
            let ends = slots.iter().scan(0, |end, (_, tokens)| {
                *end += tokens.len() as u32;
                Some(*end - 1)
            });
            let ends: Vec<u32> = ends.collect();
            found.push(if ends.len() == tokens.len() {
                x
            } else {
                x.index_select(&Tensor::new(ends, x.device())?, 0)?
            });
        }
        let last = self.norm.forward(&Tensor::cat(&found, 0)?)?;
        let logits = self.logits(&last)?.flatten_all()?.to_vec1()?;
        for ((prompt, _), layers) in prompts.iter_mut().zip(kept) {
            prompt.set_tensors(layers);
        }
        Ok(logits)
    }

    /// Rows of a prompt behind those that are `known`: keys and values of all of them by layer, and
    /// what the layers made of these, `[rows, hidden]`.
    fn prompt_rows(
        &self,
        tokens: &[u32],
        known: &[(Tensor, Tensor)],
        angles: &Angles,
        adapter: Option<&Adapter>,
    ) -> Result<(Vec<(Tensor, Tensor)>, Tensor)> {
        let mut x = self.embed(tokens)?;
        let mut kept = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let lora = adapter.map(|a| LayerLora::constant(a, i));
            let (q, k, v) = self.project(layer, &x, angles, lora.as_ref())?;
            let (k, v) = match known.get(i) {
                None => (k.contiguous()?, v.contiguous()?),
                Some((first_k, first_v)) => (
                    Tensor::cat(&[first_k, &k], 0)?,
                    Tensor::cat(&[first_v, &v], 0)?,
                ),
            };
            let mixed = attention::last_rows(&q, &k, &v, self.heads)?;
            x = self.finish(layer, &x, &mixed, lora.as_ref())?;
            kept.push((k, v));
        }
        Ok((kept, x))
    }

    /// What the layers make of new tokens of slots, `[rows, hidden]`.
    fn slot_rows(
        &self,
        cache: &KvCache,
        plan: &SlotPlan,
        tokens: &[u32],
        angles: &Angles,
        adapter: Option<&Adapter>,
    ) -> Result<Tensor> {
        let mut x = self.embed(tokens)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let lora = adapter.map(|a| LayerLora::constant(a, i));
            let (q, k, v) = self.project(layer, &x, angles, lora.as_ref())?;
            let mixed = cache.attend_tensors(plan, i, &q, &k, &v)?;
            x = self.finish(layer, &x, &mixed, lora.as_ref())?;
        }
        Ok(x)
    }
}

impl Layer {
    fn linear(&self, module: LoraModule, x: &Tensor, lora: Option<&LayerLora>) -> Result<Tensor> {
        let lora = lora.and_then(|l| l.of(module));
        Ok(self.linears[module as usize].forward(x, lora)?)
    }
}
