//! The KV cache of a sampling engine: prompts shared by their group, and one slot a sequence.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::{
    error::{ModelError, Result},
    kernels::attention::{Heads, Keys, attend},
    ops::{attention::composed, cpu_tensor, with_slices},
};

/// Keys and values of a prompt, shared by all completions of its group. A clone shares them.
#[derive(Clone, Debug)]
pub struct PromptKv {
    pub(crate) tokens: usize,
    /// One a layer: (k, v), each `[tokens, kv_heads * head_dim]`.
    pub(crate) layers: Arc<Vec<(Tensor, Tensor)>>,
}

impl PromptKv {
    /// Tokens of the prompt.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether the prompt has no tokens (it never has none).
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }
}

/// Room for the keys and values of `slots` sequences.
#[derive(Debug)]
pub struct KvCache {
    heads: Heads,
    max_tokens: usize,
    slots: Vec<Slot>,
    store: Store,
}

/// What a slot holds.
#[derive(Clone, Debug, Default)]
struct Slot {
    prompt: Option<PromptKv>,
    /// Tokens decoded after the prompt.
    decoded: usize,
}

impl Slot {
    fn len(&self) -> usize {
        self.prompt.as_ref().map_or(0, |p| p.tokens) + self.decoded
    }
}

#[derive(Debug)]
enum Store {
    /// `[slot][layer]`: (k, v) of the decoded tokens; prompts stay where they are.
    Host(Vec<Vec<(Vec<f32>, Vec<f32>)>>),
    /// `[layer]`: (k, v), each `[slots * max_tokens, kv_heads * head_dim]`; prompts are copied in.
    Device(Vec<(Tensor, Tensor)>),
}

/// What one decoding step needs to know of its sequences.
pub(crate) struct DecodePlan {
    /// Slots, in the order of the step's rows.
    slots: Vec<usize>,
    /// Position of each new token.
    pub(crate) positions: Vec<u32>,
    /// On a device: rows to write `[n, row]`, rows to read `[n * longest]`, mask `[n, 1, longest]`.
    device: Option<(Tensor, Tensor, Tensor)>,
}

impl KvCache {
    pub(crate) fn new(
        heads: Heads,
        layers: usize,
        slots: usize,
        max_tokens: usize,
        fused: bool,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if slots == 0 || max_tokens == 0 {
            return Err(ModelError::OutOfRange(format!(
                "a cache of {slots} slots of {max_tokens} tokens"
            )));
        }
        let store = if fused {
            Store::Host(vec![vec![(Vec::new(), Vec::new()); layers]; slots])
        } else {
            let shape = (slots * max_tokens, heads.key_row());
            let layer = |_| {
                let zeros = || Tensor::zeros(shape, dtype, device);
                Ok((zeros()?, zeros()?))
            };
            Store::Device((0..layers).map(layer).collect::<candle_core::Result<_>>()?)
        };
        Ok(Self {
            heads,
            max_tokens,
            slots: vec![Slot::default(); slots],
            store,
        })
    }

    /// Sequences that it has room for.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Tokens in a slot, its prompt's included.
    pub fn len(&self, slot: usize) -> usize {
        self.slots.get(slot).map_or(0, Slot::len)
    }

    /// Whether a slot holds nothing.
    pub fn is_empty(&self, slot: usize) -> bool {
        self.len(slot) == 0
    }

    /// Refuses a prompt that leaves no room in a slot.
    pub(crate) fn check_prompt(&self, tokens: usize) -> Result<()> {
        if tokens > self.max_tokens {
            return Err(ModelError::OutOfRange(format!(
                "a prompt of {tokens} tokens in a cache of {} tokens a slot",
                self.max_tokens
            )));
        }
        Ok(())
    }

    /// Starts a completion of `prompt` in `slot`.
    ///
    /// # Errors
    /// When there is no such slot, it is taken, or the prompt doesn't fit.
    pub fn attach(&mut self, slot: usize, prompt: &PromptKv) -> Result<()> {
        self.check_prompt(prompt.tokens)?;
        let place = self.slots.get_mut(slot).ok_or_else(|| no_slot(slot))?;
        if place.prompt.is_some() {
            return Err(ModelError::OutOfRange(format!("slot {slot} is taken")));
        }
        if let Store::Device(layers) = &self.store {
            for ((k, v), (prompt_k, prompt_v)) in layers.iter().zip(prompt.layers.iter()) {
                k.slice_set(prompt_k, 0, slot * self.max_tokens)?;
                v.slice_set(prompt_v, 0, slot * self.max_tokens)?;
            }
        }
        *place = Slot {
            prompt: Some(prompt.clone()),
            decoded: 0,
        };
        Ok(())
    }

    /// Empties a slot.
    pub fn release(&mut self, slot: usize) {
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Slot::default();
        }
        if let Store::Host(slots) = &mut self.store
            && let Some(layers) = slots.get_mut(slot)
        {
            for (k, v) in layers {
                k.clear();
                v.clear();
            }
        }
    }

    /// Takes one more token into each of `slots`.
    pub(crate) fn plan(&mut self, slots: &[usize]) -> Result<DecodePlan> {
        for (i, slot) in slots.iter().enumerate() {
            let place = self.slots.get(*slot).ok_or_else(|| no_slot(*slot))?;
            if place.prompt.is_none() {
                return Err(ModelError::OutOfRange(format!(
                    "slot {slot} holds no prompt"
                )));
            }
            if place.len() >= self.max_tokens {
                return Err(ModelError::OutOfRange(format!(
                    "slot {slot} is full: {} tokens",
                    self.max_tokens
                )));
            }
            if slots[..i].contains(slot) {
                return Err(ModelError::OutOfRange(format!(
                    "slot {slot} stands twice in a step"
                )));
            }
        }
        let positions: Vec<u32> = slots.iter().map(|s| self.slots[*s].len() as u32).collect();
        let device = match &self.store {
            Store::Host(_) => None,
            Store::Device(layers) => {
                let device = layers.first().map_or(&Device::Cpu, |(k, _)| k.device());
                let (n, row) = (slots.len(), self.heads.key_row());
                let at = slots.iter().zip(&positions).flat_map(|(slot, position)| {
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
                Some((write, read, mask))
            }
        };
        for slot in slots {
            self.slots[*slot].decoded += 1;
        }
        Ok(DecodePlan {
            slots: slots.to_vec(),
            positions,
            device,
        })
    }

    /// Attention of one layer of a decoding step: q `[n, queries * width]`, k and v of the new
    /// tokens `[n, keys * width]`, which are kept.
    pub(crate) fn attend(
        &mut self,
        plan: &DecodePlan,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        let heads = self.heads;
        match &mut self.store {
            Store::Host(store) => {
                let row = heads.key_row();
                with_slices(&[k, v], |s| {
                    for (i, slot) in plan.slots.iter().enumerate() {
                        let (k, v) = &mut store[*slot][layer];
                        k.extend_from_slice(&s[0][i * row..(i + 1) * row]);
                        v.extend_from_slice(&s[1][i * row..(i + 1) * row]);
                    }
                })?;
                host_attention(heads, &self.slots, store, plan, layer, q)
            }
            Store::Device(layers) => {
                let missing = || ModelError::OutOfRange("a decoding step without its plan".into());
                let (write, read, mask) = plan.device.as_ref().ok_or_else(missing)?;
                let (all_k, all_v) = &layers[layer];
                all_k.scatter_set(write, &k.contiguous()?, 0)?;
                all_v.scatter_set(write, &v.contiguous()?, 0)?;
                let shape = (plan.slots.len(), mask.dim(2)?, heads.key_row());
                let seen = |all: &Tensor| all.index_select(read, 0)?.reshape(shape);
                let out = composed(&q.unsqueeze(1)?, &seen(all_k)?, &seen(all_v)?, mask, heads)?;
                Ok(out.squeeze(1)?)
            }
        }
    }
}

fn no_slot(slot: usize) -> ModelError {
    ModelError::OutOfRange(format!("there is no slot {slot}"))
}

fn host_attention(
    heads: Heads,
    slots: &[Slot],
    store: &[Vec<(Vec<f32>, Vec<f32>)>],
    plan: &DecodePlan,
    layer: usize,
    q: &Tensor,
) -> Result<Tensor> {
    use rayon::prelude::*;

    let row = heads.query_row();
    let prompts = plan
        .slots
        .iter()
        .map(|slot| {
            let prompt = slots[*slot].prompt.as_ref();
            prompt
                .and_then(|p| p.layers.get(layer))
                .ok_or_else(|| no_slot(*slot))
        })
        .collect::<Result<Vec<_>>>()?;
    // Completions of one prompt share its tensors: all slices first, then the rows in parallel.
    let mut tensors = vec![q];
    tensors.extend(prompts.iter().flat_map(|(k, v)| [k, v]));
    let out = with_slices(&tensors, |s| {
        let mut out = vec![0f32; plan.slots.len() * row];
        out.par_chunks_mut(row).enumerate().for_each_init(
            Vec::new,
            |scores: &mut Vec<f32>, (i, out)| {
                let (own_k, own_v) = &store[plan.slots[i]][layer];
                let keys = [
                    Keys {
                        k: s[1 + 2 * i],
                        v: s[2 + 2 * i],
                    },
                    Keys { k: own_k, v: own_v },
                ];
                scores.clear();
                scores.resize((keys[0].k.len() + own_k.len()) / heads.key_row(), 0.0);
                attend(&s[0][i * row..(i + 1) * row], &keys, heads, scores, out);
            },
        );
        out
    })?;
    Ok(cpu_tensor(out, (plan.slots.len(), row))?)
}
