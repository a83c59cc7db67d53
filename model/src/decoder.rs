//! One decoder for Llama, Qwen2 and Qwen3, told apart by their [`ModelConfig`].
//!
//! The same layers serve sampling ([`Decoder::prefill`], [`Decoder::decode`]) and learning
//! ([`Decoder::forward`], in [`crate::tape`]); only where attention finds its keys differs.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::{
    adapter::{Adapter, LoraPair},
    config::ModelConfig,
    dropout::{DropMask, Dropout},
    error::{ModelError, Result},
    kernels::attention::{Heads, Segment},
    kv::{KvCache, OpenPrompt, PromptKv},
    load::{LoadOptions, Loader},
    lora::LoraModule,
    ops::{
        attention::attention,
        cpu_tensor,
        linear::{Linear, LoraUse},
        rows::{Angles, RmsNorm, rotate, silu_mul},
        with_slices,
    },
    packed_rows::PackedRows,
    weights::Weights,
};

/// Rows of a prompt that are computed at a time on a CPU; their number changes no bits.
const PREFILL_ROWS: usize = 512;

/// A model's frozen weights, ready to compute.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    dtype: DType,
    fused: bool,
    frequencies: Vec<f32>,
    attention_factor: f32,
    embedding: Linear,
    head: Option<Linear>,
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

/// LoRA as one layer of a pass uses it.
pub(crate) struct LayerLora<'a> {
    pub(crate) pairs: &'a [Option<LoraPair>; 7],
    /// A and B of each pair: the pair's own, or variables that stand for them.
    pub(crate) tensors: &'a [Option<(Tensor, Tensor)>; 7],
    pub(crate) scale: f32,
    pub(crate) dropout: Option<(Dropout, Arc<Vec<u64>>)>,
    pub(crate) layer: usize,
}

impl LayerLora<'_> {
    fn of(&self, module: LoraModule) -> Option<LoraUse<'_>> {
        let index = module as usize;
        let pair = self.pairs[index].as_ref()?;
        let (a, b) = self.tensors[index].as_ref()?;
        let dropout = self
            .dropout
            .as_ref()
            .map(|(dropout, keys)| DropMask::new(*dropout, keys, self.layer, index));
        Some(LoraUse {
            pair,
            a: a.clone(),
            b: b.clone(),
            scale: self.scale,
            dropout,
        })
    }
}

/// The pairs of every layer as constants: no gradients.
pub(crate) fn constants(adapter: &Adapter, layer: usize) -> [Option<(Tensor, Tensor)>; 7] {
    let pairs = &adapter.layers[layer];
    std::array::from_fn(|i| pairs[i].as_ref().map(|p| (p.a.detach(), p.b.detach())))
}

/// The shape of a pass that all layers share.
pub(crate) struct Pass {
    pub(crate) angles: Angles,
    pub(crate) segments: Arc<Vec<Segment>>,
}

impl Decoder {
    /// Loads the weights that `config` calls for.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape (the error names it), or the device or type
    /// can't be had.
    pub fn load(
        config: &ModelConfig,
        weights: &dyn Weights,
        options: &LoadOptions,
    ) -> Result<Self> {
        let loader = Loader::new(weights, options)?;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        // A tied embedding is also the output projection, and gets its backward packing.
        let embedding = loader.linear(
            "model.embed_tokens",
            (vocab, hidden),
            false,
            options.train && config.tied_embeddings,
        )?;
        let head = (!config.tied_embeddings)
            .then(|| loader.linear("lm_head", (vocab, hidden), false, options.train))
            .transpose()?;
        let layers = (0..config.layers)
            .map(|i| loader.layer(config, &format!("model.layers.{i}")))
            .collect::<Result<Vec<_>>>()?;
        let (frequencies, attention_factor) = config.rope_frequencies();
        Ok(Self {
            config: config.clone(),
            device: options.device.clone(),
            dtype: loader.dtype,
            fused: loader.fused,
            frequencies,
            attention_factor,
            embedding,
            head,
            layers,
            norm: loader.norm("model.norm.weight", hidden, config.rms_eps)?,
        })
    }

    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it is computed.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Names the arithmetic: two decoders of the same model and the same numerics give the same
    /// bits.
    pub fn numerics(&self) -> String {
        let place = if self.device.is_cpu() { "cpu" } else { "cuda" };
        let dtype = self.dtype.as_str();
        let path = if self.fused { "fused" } else { "composed" };
        format!("{place}-{dtype}-{path}")
    }

    pub(crate) fn heads(&self) -> Heads {
        let c = &self.config;
        Heads {
            queries: c.heads,
            keys: c.kv_heads,
            width: c.head_dim,
        }
    }

    /// The output projection, `[vocab, hidden]`.
    pub(crate) fn output(&self) -> &Linear {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    pub(crate) fn compute_dtype(&self) -> DType {
        self.dtype
    }

    /// A cache for `slots` sequences of at most `max_tokens` tokens.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new_cache(&self, slots: usize, max_tokens: usize) -> Result<KvCache> {
        let layers = self.config.layers;
        let (heads, fused) = (self.heads(), self.fused);
        KvCache::new(
            heads,
            layers,
            slots,
            max_tokens,
            fused,
            self.dtype,
            &self.device,
        )
    }

    /// Checks that token ids are in the vocabulary and positions in the context.
    pub(crate) fn check_tokens(&self, tokens: &[u32], positions: &[u32]) -> Result<()> {
        if let Some(id) = tokens
            .iter()
            .find(|id| **id as usize >= self.config.vocab_size)
        {
            let size = self.config.vocab_size;
            return Err(ModelError::OutOfRange(format!(
                "token id {id} in a vocabulary of {size}"
            )));
        }
        let last = positions.iter().max().map_or(0, |p| *p as usize + 1);
        if last > self.config.max_positions {
            return Err(ModelError::OutOfRange(format!(
                "a sequence of {last} tokens; the model's context is {}",
                self.config.max_positions
            )));
        }
        Ok(())
    }

    pub(crate) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        Ok(self.embedding.gather(tokens)?)
    }

    pub(crate) fn angles(&self, positions: &[u32]) -> Result<Angles> {
        let shape = (positions.len(), self.frequencies.len());
        // The angle is rounded to f32 as in the reference; its cosine and sine are exact to the bit.
        let angle = |(p, f): (u32, &f32)| f64::from(p as f32 * f);
        let each = |f: fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = positions
                .iter()
                .flat_map(|p| self.frequencies.iter().map(move |w| (*p, w)))
                .map(|x| f(angle(x)) as f32 * self.attention_factor)
                .collect();
            Ok(Tensor::from_vec(values, shape, &self.device)?)
        };
        Ok(Angles {
            cos: each(f64::cos)?,
            sin: each(f64::sin)?,
        })
    }

    /// q, k and v of a layer: x `[rows, hidden]`.
    fn project(
        &self,
        layer: &Layer,
        x: &Tensor,
        angles: &Angles,
        lora: Option<&LayerLora<'_>>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let normed = layer.input_norm.forward(x)?;
        let linear = |m: LoraModule| layer.linear(m, &normed, lora);
        let (q, k, v) = (
            linear(LoraModule::Q)?,
            linear(LoraModule::K)?,
            linear(LoraModule::V)?,
        );
        let width = self.config.head_dim;
        let turned = |x: Tensor, norm: &Option<RmsNorm>| -> Result<Tensor> {
            let x = match norm {
                None => x,
                Some(norm) => {
                    let (rows, wide) = x.dims2()?;
                    let heads = x.reshape((rows, wide / width, width))?;
                    norm.forward(&heads)?.reshape((rows, wide))?
                }
            };
            Ok(rotate(&x, angles, width, self.fused)?)
        };
        Ok((turned(q, &layer.q_norm)?, turned(k, &layer.k_norm)?, v))
    }

    /// The rest of a layer after attention: x `[rows, hidden]`, mixed `[rows, queries * width]`.
    fn finish(
        &self,
        layer: &Layer,
        x: &Tensor,
        mixed: &Tensor,
        lora: Option<&LayerLora<'_>>,
    ) -> Result<Tensor> {
        let x = (x + layer.linear(LoraModule::O, mixed, lora)?)?;
        let normed = layer.post_norm.forward(&x)?;
        let gate = layer.linear(LoraModule::Gate, &normed, lora)?;
        let up = layer.linear(LoraModule::Up, &normed, lora)?;
        let inner = silu_mul(&gate, &up, self.fused)?;
        Ok((x + layer.linear(LoraModule::Down, &inner, lora)?)?)
    }

    /// One layer over the rows of a pass: x `[rows, hidden]` to the same, with its k and v.
    pub(crate) fn layer(
        &self,
        index: usize,
        x: &Tensor,
        pass: &Pass,
        lora: Option<&LayerLora<'_>>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let layer = &self.layers[index];
        let (q, k, v) = self.project(layer, x, &pass.angles, lora)?;
        let mixed = attention(&q, &k, &v, &pass.segments, self.heads(), self.fused)?;
        Ok((self.finish(layer, x, &mixed, lora)?, k, v))
    }

    /// Logits of final-normed rows, f32: hidden `[rows, hidden]` to `[rows, vocab]`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.output().product(hidden)?.to_dtype(DType::F32)?)
    }

    /// Computes a prompt: its keys and values, which all completions of its group share, and the
    /// logits `[vocab]` of its last token.
    ///
    /// # Errors
    /// When the prompt is empty, too long for the cache or the model, or holds an unknown id.
    pub fn prefill(
        &self,
        cache: &mut KvCache,
        prompt: &[u32],
        adapter: Option<&Adapter>,
    ) -> Result<(PromptKv, Vec<f32>)> {
        if prompt.is_empty() {
            return Err(ModelError::OutOfRange("an empty prompt".into()));
        }
        let positions: Vec<u32> = (0..prompt.len() as u32).collect();
        self.check_tokens(prompt, &positions)?;
        let (kv, last) = match cache.open_prompt(prompt.len())? {
            Some(open) => self.prefill_pages(cache, open, prompt, adapter)?,
            None => self.prefill_tensors(prompt, adapter)?,
        };
        let logits = self.logits(&self.norm.forward(&last)?)?;
        Ok((kv, logits.squeeze(0)?.to_vec1()?))
    }

    /// A prompt's pages, some rows at a time, and its last row `[1, hidden]`.
    fn prefill_pages(
        &self,
        cache: &mut KvCache,
        open: OpenPrompt,
        prompt: &[u32],
        adapter: Option<&Adapter>,
    ) -> Result<(PromptKv, Tensor)> {
        let mut last = None;
        for (i, tokens) in prompt.chunks(PREFILL_ROWS).enumerate() {
            let first = i * PREFILL_ROWS;
            let positions: Vec<u32> = (first..first + tokens.len()).map(|p| p as u32).collect();
            let angles = self.angles(&positions)?;
            let mut x = self.embed(tokens)?;
            for (i, layer) in self.layers.iter().enumerate() {
                let tensors = adapter.map(|a| constants(a, i));
                let lora = layer_lora(adapter, tensors.as_ref(), i);
                let (q, k, v) = self.project(layer, &x, &angles, lora.as_ref())?;
                let mut mixed = vec![0f32; q.elem_count()];
                with_slices(&[&q, &k, &v], |s| {
                    cache.attend_prompt(&open, i, first, [s[0], s[1], s[2]], &mut mixed)
                })??;
                let mixed = cpu_tensor(mixed, q.shape())?;
                x = self.finish(layer, &x, &mixed, lora.as_ref())?;
            }
            last = Some(x.narrow(0, tokens.len() - 1, 1)?);
        }
        let empty = || ModelError::OutOfRange("an empty prompt".into());
        Ok((open.finish(), last.ok_or_else(empty)?))
    }

    /// The same where keys and values are kept as tensors.
    fn prefill_tensors(
        &self,
        prompt: &[u32],
        adapter: Option<&Adapter>,
    ) -> Result<(PromptKv, Tensor)> {
        let mut rows = PackedRows::new();
        rows.push_sequence(0, prompt);
        let pass = Pass {
            angles: self.angles(&rows.positions)?,
            segments: Arc::new(rows.segments),
        };
        let mut x = self.embed(prompt)?;
        let mut kept = Vec::with_capacity(self.layers.len());
        for i in 0..self.layers.len() {
            let tensors = adapter.map(|a| constants(a, i));
            let lora = layer_lora(adapter, tensors.as_ref(), i);
            let (next, k, v) = self.layer(i, &x, &pass, lora.as_ref())?;
            kept.push((k.contiguous()?, v.contiguous()?));
            x = next;
        }
        let last = x.narrow(0, prompt.len() - 1, 1)?;
        Ok((PromptKv::from_tensors(prompt.len(), kept), last))
    }

    /// One decoding step: each slot takes its token; logits `[n, vocab]`, f32, in the same order.
    ///
    /// # Errors
    /// When a slot is empty, full or named twice, or an id is unknown.
    pub fn decode(
        &self,
        cache: &mut KvCache,
        step: &[(usize, u32)],
        adapter: Option<&Adapter>,
    ) -> Result<Tensor> {
        let (slots, tokens): (Vec<usize>, Vec<u32>) = step.iter().copied().unzip();
        if slots.is_empty() {
            return Err(ModelError::OutOfRange(
                "a decoding step of no sequences".into(),
            ));
        }
        self.check_tokens(&tokens, &[])?;
        let plan = cache.plan(&slots)?;
        self.check_tokens(&[], &plan.positions)?;
        let angles = self.angles(&plan.positions)?;
        let mut x = self.embed(&tokens)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let tensors = adapter.map(|a| constants(a, i));
            let lora = layer_lora(adapter, tensors.as_ref(), i);
            let (q, k, v) = self.project(layer, &x, &angles, lora.as_ref())?;
            let mixed = cache.attend(&plan, i, &q, &k, &v)?;
            x = self.finish(layer, &x, &mixed, lora.as_ref())?;
        }
        self.logits(&self.norm.forward(&x)?)
    }
}

/// LoRA of a layer without gradients and without dropout.
pub(crate) fn layer_lora<'a>(
    adapter: Option<&'a Adapter>,
    tensors: Option<&'a [Option<(Tensor, Tensor)>; 7]>,
    layer: usize,
) -> Option<LayerLora<'a>> {
    let (adapter, tensors) = (adapter?, tensors?);
    let pairs = &adapter.layers[layer];
    Some(LayerLora {
        pairs,
        tensors,
        scale: adapter.config.scale(),
        dropout: None,
        layer,
    })
}

impl Layer {
    fn linear(
        &self,
        module: LoraModule,
        x: &Tensor,
        lora: Option<&LayerLora<'_>>,
    ) -> Result<Tensor> {
        let lora = lora.and_then(|l| l.of(module));
        Ok(self.linears[module as usize].forward(x, lora)?)
    }
}
