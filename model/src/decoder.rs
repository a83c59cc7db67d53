//! One decoder for Llama, Qwen2 and Qwen3, told apart by their [`ModelConfig`].
//!
//! The same layers serve sampling ([`Decoder::advance`]) and learning ([`Decoder::forward`], in
//! [`crate::tape`]); only where attention finds its keys differs. On a CPU
//! they are computed by [`crate::host`], on any other device by [`crate::composed`].

use candle_core::{DType, Device, Tensor};

use crate::{
    adapter::Adapter,
    composed::{ComposedModel, Pass, rows},
    config::ModelConfig,
    error::{ModelError, Result},
    host::{Angles, HostModel},
    kernels::matmul,
    kv::{KvCache, OpenPrompt, PromptKv},
    load::{LoadOptions, Loader},
    packed_rows::PackedRows,
    weights::Weights,
};

/// Rows of prompts that are computed at a time; on a CPU their number changes no bits.
pub const PREFILL_ROWS: usize = 512;

/// A model's frozen weights, ready to compute.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    frequencies: Vec<f32>,
    attention_factor: f32,
    pub(crate) body: Body,
}

/// By what a decoder computes.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a process has one")]
pub(crate) enum Body {
    Host(HostModel),
    Composed(ComposedModel),
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
        let body = Loader::new(config, weights, options).body()?;
        let (frequencies, attention_factor) = config.rope_frequencies();
        Ok(Self {
            config: config.clone(),
            device: options.device.clone(),
            frequencies,
            attention_factor,
            body,
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
        match &self.body {
            Body::Host(model) => format!("{place}-{}-fused", matmul::numerics(model.format)),
            Body::Composed(model) => format!("{place}-{}-composed", model.dtype.as_str()),
        }
    }

    /// A cache for `slots` sequences of at most `max_tokens` tokens.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new_cache(&self, slots: usize, max_tokens: usize) -> Result<KvCache> {
        let (heads, layers) = (self.config.shape_of_heads(), self.config.layers);
        let (host, dtype) = match &self.body {
            Body::Host(_) => (true, DType::F32),
            Body::Composed(model) => (false, model.dtype),
        };
        KvCache::new(heads, layers, slots, max_tokens, host, dtype, &self.device)
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

    pub(crate) fn angles(&self, positions: &[u32]) -> Angles {
        // The angle is rounded to f32 as in the reference; its cosine and sine are exact to the bit.
        let angle = |(p, f): (u32, &f32)| f64::from(p as f32 * f);
        let each = |f: fn(f64) -> f64| -> Vec<f32> {
            positions
                .iter()
                .flat_map(|p| self.frequencies.iter().map(move |w| (*p, w)))
                .map(|x| f(angle(x)) as f32 * self.attention_factor)
                .collect()
        };
        Angles {
            cos: each(f64::cos),
            sin: each(f64::sin),
        }
    }

    fn composed_angles(&self, positions: &[u32]) -> Result<rows::Angles> {
        let Angles { cos, sin } = self.angles(positions);
        let shape = (positions.len(), self.frequencies.len());
        Ok(rows::Angles {
            cos: Tensor::from_vec(cos, shape, &self.device)?,
            sin: Tensor::from_vec(sin, shape, &self.device)?,
        })
    }

    pub(crate) fn composed_pass(&self, rows: &PackedRows) -> Result<Pass> {
        Ok(Pass {
            angles: self.composed_angles(&rows.positions)?,
            segments: rows.segments.clone(),
        })
    }

    /// Makes room for a prompt, whose rows [`Decoder::advance`] computes.
    ///
    /// # Errors
    /// When the prompt is empty, too long for the cache or the model, or holds an unknown id.
    pub fn open_prompt(&self, cache: &mut KvCache, prompt: &[u32]) -> Result<OpenPrompt> {
        let last = prompt.len().checked_sub(1);
        let last = last.ok_or_else(|| ModelError::OutOfRange("an empty prompt".into()))?;
        self.check_tokens(prompt, &[last as u32])?;
        cache.open_prompt(prompt)
    }

    /// One pass: the next rows of prompts, so many of each, and the next tokens of slots. Logits
    /// `[prompts + slots, vocab]`, f32, of the last row of each, go to `logits`, in that order. On a
    /// CPU all rows go through a layer together, and what else is in the pass changes no bits.
    ///
    /// # Errors
    /// When there are no rows, a prompt has fewer, a slot is empty, full or named twice, or an id is
    /// unknown. Prompts and slots are then what they were before.
    pub fn advance(
        &self,
        cache: &mut KvCache,
        prompts: &mut [(&mut OpenPrompt, usize)],
        slots: &[(usize, &[u32])],
        adapter: Option<&Adapter>,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        if prompts.is_empty() && slots.is_empty() {
            return Err(ModelError::OutOfRange("a pass without rows".into()));
        }
        for (prompt, rows) in prompts.iter() {
            if *rows == 0 || *rows > prompt.rest() {
                return Err(ModelError::OutOfRange(format!(
                    "{rows} rows of a prompt that has {} left",
                    prompt.rest()
                )));
            }
        }
        for (slot, tokens) in slots {
            // Before the cache takes the tokens in.
            let end = (cache.len(*slot) + tokens.len()) as u32;
            self.check_tokens(tokens, &[end.saturating_sub(1)])?;
        }
        let counts: Vec<_> = slots.iter().map(|(slot, t)| (*slot, t.len())).collect();
        let plan = cache.plan(&counts)?;
        let done = match &self.body {
            Body::Host(model) => {
                let angles = |positions: &[u32]| self.angles(positions);
                let slots = (&plan, slots);
                model.advance(cache, prompts, slots, angles, adapter, logits)
            }
            Body::Composed(model) => {
                let angles = |positions: &[u32]| self.composed_angles(positions);
                let found = model.advance(cache, prompts, (&plan, slots), angles, adapter);
                found.map(|found| *logits = found)
            }
        };
        match done {
            Ok(()) => prompts.iter_mut().for_each(|(p, rows)| p.advance(*rows)),
            Err(_) => cache.undo(&plan),
        }
        done
    }

    /// Computes prompts to their end: of each its keys and values, which all completions of its
    /// group share, and the logits `[vocab]` of its last token.
    ///
    /// # Errors
    /// As [`Decoder::open_prompt`].
    pub fn prefill(
        &self,
        cache: &mut KvCache,
        prompts: &[&[u32]],
        adapter: Option<&Adapter>,
    ) -> Result<Vec<(PromptKv, Vec<f32>)>> {
        let mut open = (prompts.iter())
            .map(|prompt| self.open_prompt(cache, prompt))
            .collect::<Result<Vec<_>>>()?;
        let mut last = vec![Vec::new(); prompts.len()];
        let (mut logits, mut ended) = (Vec::new(), 0);
        while ended < open.len() {
            let mut room = PREFILL_ROWS;
            let mut rows = Vec::new();
            for prompt in &mut open[ended..] {
                let n = prompt.rest().min(room);
                if n > 0 {
                    rows.push((prompt, n));
                }
                room -= n;
            }
            self.advance(cache, &mut rows, &[], adapter, &mut logits)?;
            let found = logits.chunks_exact(self.config.vocab_size);
            for ((prompt, _), logits) in rows.iter().zip(found) {
                if prompt.rest() == 0 {
                    last[ended] = logits.to_vec();
                    ended += 1;
                }
            }
        }
        let kept = open.into_iter().map(OpenPrompt::finish);
        kept.zip(last).map(|(kv, l)| Ok((kv?, l))).collect()
    }

    /// One decoding step: each slot takes its token; f32 logits `[n, vocab]` into `logits`, in the
    /// same order.
    ///
    /// # Errors
    /// When a slot is empty, full or named twice, or an id is unknown.
    pub fn decode(
        &self,
        cache: &mut KvCache,
        step: &[(usize, u32)],
        adapter: Option<&Adapter>,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let slots: Vec<(usize, &[u32])> = (step.iter())
            .map(|(slot, token)| (*slot, std::slice::from_ref(token)))
            .collect();
        self.advance(cache, &mut [], &slots, adapter, logits)
    }
}
