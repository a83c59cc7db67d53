//! The KV cache of a sampling engine: prompts shared by their group, and one slot a sequence.
//!
//! On a CPU a sequence's keys and values stand in pages of 16 tokens
//! ([`kernels::attention::Pages`](crate::kernels::attention::Pages)). A prompt's pages serve all
//! completions of its group; the page that it ends in is copied by a completion that goes on in it
//! (PagedAttention, arXiv 2309.06180). Memory follows the tokens that are held, and a page that is
//! given back serves the next sequence.
//!
//! - `prompts`: prompts on their way into the cache
//! - `pool`: the pages, and who holds them
//! - `device`: the cache as tensors, for GPUs and for the composed path

mod device;
mod pool;
mod prompts;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

pub use self::prompts::OpenPrompt;
use self::{
    device::{Rows, Step},
    pool::{Lease, Pool},
};
use crate::{
    error::{ModelError, Result},
    kernels::attention::{self, Heads, PAGE, Places, Span},
};

/// Keys and values of a prompt, shared by all completions of its group. A clone shares them.
#[derive(Clone, Debug)]
pub struct PromptKv {
    tokens: usize,
    kept: Kept,
}

#[derive(Clone, Debug)]
enum Kept {
    /// Pages of the cache that computed it.
    Pages(Arc<Lease>),
    /// One a layer: (k, v), each `[tokens, kv_heads * head_dim]`.
    Tensors(Arc<Vec<(Tensor, Tensor)>>),
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
#[derive(Debug, Default)]
struct Slot {
    prompt: Option<PromptKv>,
    /// Tokens decoded after the prompt.
    decoded: usize,
    /// Its pages by position / [`PAGE`], the prompt's first.
    table: Vec<u32>,
    /// Those of them that are its own.
    own: Option<Lease>,
}

impl Slot {
    fn len(&self) -> usize {
        self.prompt.as_ref().map_or(0, |p| p.tokens) + self.decoded
    }
}

#[derive(Debug)]
enum Store {
    Host(Pool),
    Device(Rows),
}

/// What a pass needs to know of the slots that take tokens in it.
#[derive(Default)]
pub(crate) struct SlotPlan {
    /// (slot, position of its first new token, how many), in the order of the pass's rows.
    runs: Vec<(usize, usize, usize)>,
    /// Position of each new token.
    pub(crate) positions: Vec<u32>,
    /// On a CPU, where every slot takes one token: where that goes.
    places: Option<Places>,
    device: Option<Step>,
}

impl KvCache {
    pub(crate) fn new(
        heads: Heads,
        layers: usize,
        slots: usize,
        max_tokens: usize,
        host: bool,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if slots == 0 || max_tokens == 0 {
            return Err(ModelError::OutOfRange(format!(
                "a cache of {slots} slots of {max_tokens} tokens"
            )));
        }
        let store = if host {
            Store::Host(Pool::new(heads, layers, slots, max_tokens))
        } else {
            Store::Device(Rows::new(heads, layers, slots, max_tokens, dtype, device)?)
        };
        Ok(Self {
            heads,
            max_tokens,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            store,
        })
    }

    /// Sequences that it has room for.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Bytes allocated for keys and values. On a CPU they grow with the tokens that prompts and
    /// slots hold at once, by slabs of some 16 MiB.
    pub fn bytes(&self) -> usize {
        match &self.store {
            Store::Host(pool) => pool.pages.bytes(),
            Store::Device(rows) => rows.bytes(),
        }
    }

    /// Bytes of the pages that prompts and slots hold, and of one page ([`PAGE`] tokens of all layers);
    /// none for a cache that allocates its slots whole.
    pub fn pages_held(&self) -> Option<(usize, usize)> {
        match &self.store {
            Store::Host(pool) => {
                let page = pool.pages.bytes().checked_div(pool.pages.count());
                let page = page.unwrap_or_default();
                Some(((pool.pages.count() - pool.free()) * page, page))
            }
            Store::Device(_) => None,
        }
    }

    /// Pages that so many more tokens in `slot` would take; its own copy of the page that its prompt ends
    /// in is one of them.
    pub fn pages_for(&self, slot: usize, tokens: usize) -> usize {
        let Some(place) = self.slots.get(slot).filter(|_| tokens > 0) else {
            return 0;
        };
        let own = place.own.as_ref().map_or(&[][..], Lease::pages);
        let is_there = |index: &usize| place.table.get(*index).is_some_and(|p| own.contains(p));
        let pages = place.len() / PAGE..=(place.len() + tokens - 1) / PAGE;
        pages.filter(|index| !is_there(index)).count()
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
    /// When there is no such slot, it is taken, the prompt doesn't fit, or another cache computed
    /// it.
    pub fn attach(&mut self, slot: usize, prompt: &PromptKv) -> Result<()> {
        self.check_prompt(prompt.tokens)?;
        let place = self.slots.get_mut(slot).ok_or_else(|| no_slot(slot))?;
        if place.prompt.is_some() {
            return Err(ModelError::OutOfRange(format!("slot {slot} is taken")));
        }
        let (table, own) = match (&self.store, &prompt.kept) {
            (Store::Host(pool), Kept::Pages(lease)) if pool.knows(lease) => {
                (lease.pages().to_vec(), Some(pool.lease()))
            }
            (Store::Device(rows), Kept::Tensors(layers)) => {
                rows.attach(slot, layers)?;
                (Vec::new(), None)
            }
            _ => {
                return Err(ModelError::OutOfRange(
                    "a prompt that another cache computed".into(),
                ));
            }
        };
        *place = Slot {
            prompt: Some(prompt.clone()),
            decoded: 0,
            table,
            own,
        };
        Ok(())
    }

    /// Empties a slot; pages that were its own are free again.
    pub fn release(&mut self, slot: usize) {
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Slot::default();
        }
    }

    /// Takes so many more tokens into each of `slots`.
    pub(crate) fn plan(&mut self, slots: &[(usize, usize)]) -> Result<SlotPlan> {
        for (i, (slot, tokens)) in slots.iter().enumerate() {
            let place = self.slots.get(*slot).ok_or_else(|| no_slot(*slot))?;
            if place.prompt.is_none() {
                return Err(ModelError::OutOfRange(format!(
                    "slot {slot} holds no prompt"
                )));
            }
            if *tokens == 0 || *tokens > self.max_tokens.saturating_sub(place.len()) {
                return Err(ModelError::OutOfRange(format!(
                    "{tokens} more tokens in slot {slot}, which holds {} of {}",
                    place.len(),
                    self.max_tokens
                )));
            }
            if slots[..i].iter().any(|(other, _)| other == slot) {
                return Err(ModelError::OutOfRange(format!(
                    "slot {slot} stands twice in a step"
                )));
            }
        }
        let run = |(slot, n): &(usize, usize)| (*slot, self.slots[*slot].len(), *n);
        let runs: Vec<(usize, usize, usize)> = slots.iter().map(run).collect();
        let each = |&(slot, first, n): &(usize, usize, usize)| {
            (first..first + n).map(move |position| (slot, position as u32))
        };
        let (rows, positions): (Vec<usize>, Vec<u32>) = runs.iter().flat_map(each).unzip();
        let device = match &self.store {
            Store::Device(store) if !rows.is_empty() => Some(store.step(self.heads, &runs)?),
            _ => None,
        };
        let mut places = Vec::new();
        for slot in rows {
            let place = &mut self.slots[slot];
            if let Store::Host(pool) = &mut self.store {
                places.push(place.next_place(pool));
            }
            place.decoded += 1;
        }
        // Slots stand once in a step, and the page that one writes is its own.
        let single = runs.iter().all(|(_, _, n)| *n == 1);
        Ok(SlotPlan {
            runs,
            positions,
            places: single.then(|| Places::new(places)).flatten(),
            device,
        })
    }

    /// Takes out again what `plan` took in: its pass failed.
    pub(crate) fn undo(&mut self, plan: &SlotPlan) {
        for (slot, _, n) in &plan.runs {
            self.slots[*slot].decoded -= n;
        }
    }

    /// Attention of one layer of the slots' rows: q `[n, queries * width]`, k and v of the new
    /// tokens `[n, keys * width]`, which are kept; for a cache of tensors.
    pub(crate) fn attend_tensors(
        &self,
        plan: &SlotPlan,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        let missing = || ModelError::OutOfRange("a decoding step without its plan".into());
        let (Store::Device(rows), Some(step)) = (&self.store, &plan.device) else {
            return Err(missing());
        };
        rows.attend(step, layer, self.heads, q, k, v)
    }

    /// Attention of one layer of a pass, for a cache on a CPU: rows of prompts, so many of each, one
    /// behind the other, and behind them those of the slots. q and out `[rows, queries * width]`, k
    /// and v `[rows, keys * width]`, which are kept.
    pub(crate) fn attend_rows(
        &mut self,
        prompts: &[(&OpenPrompt, usize)],
        plan: &SlotPlan,
        layer: usize,
        [q, k, v]: [&[f32]; 3],
        out: &mut [f32],
    ) -> Result<()> {
        let row = self.heads.key_row();
        let pool = host(&mut self.store)?;
        let of_prompts = prompts.iter().map(|(prompt, n)| prompt.run(*n));
        let of_slots = (plan.runs.iter()).map(|(slot, first, n)| {
            let table = &self.slots[*slot].table[..];
            (table, *first, *n)
        });
        let mut start = 0;
        let spans: Vec<Span<'_>> = (of_prompts.chain(of_slots))
            .map(|(table, first, len)| {
                let span = Span {
                    start,
                    len,
                    first,
                    table,
                };
                start += len;
                span
            })
            .collect();
        let written = match &plan.places {
            Some(_) => &spans[..prompts.len()],
            None => &spans[..],
        };
        let mut end = 0;
        for span in written {
            end = span.start + span.len;
            let range = span.start * row..end * row;
            let (k, v) = (&k[range.clone()], &v[range]);
            pool.pages.write(layer, span.table, span.first, k, v);
        }
        if let Some(places) = &plan.places {
            let behind = end * row..;
            pool.pages
                .append(layer, places, &k[behind.clone()], &v[behind]);
        }
        attention::attend(&pool.pages, layer, &spans, q, out, None);
        Ok(())
    }
}

impl Slot {
    /// Where its next token goes, in a page of its own: a new one, or a copy of the one that its
    /// prompt ends in.
    fn next_place(&mut self, pool: &mut Pool) -> (u32, usize) {
        let (index, lane) = (self.len() / PAGE, self.len() % PAGE);
        let own = self.own.get_or_insert_with(|| pool.lease());
        match self.table.get(index).copied() {
            None => self.table.push(pool.take(own)),
            Some(shared) if !own.pages().contains(&shared) => {
                let copy = pool.take(own);
                pool.pages.copy(shared, copy);
                self.table[index] = copy;
            }
            Some(_) => {}
        }
        (self.table[index], lane)
    }
}

fn host(store: &mut Store) -> Result<&mut Pool> {
    match store {
        Store::Host(pool) => Ok(pool),
        Store::Device(_) => Err(ModelError::OutOfRange(
            "slices for a cache that holds tensors".into(),
        )),
    }
}

fn no_slot(slot: usize) -> ModelError {
    ModelError::OutOfRange(format!("there is no slot {slot}"))
}
