//! Memory that passes work in. Buffers keep their room between uses.

use std::sync::{Arc, Mutex, MutexGuard};

use half::bf16;

/// What a layer's forward pass computes and its backward pass reads; row-major f32.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    /// `[rows, hidden]`
    pub(crate) input: Vec<f32>,
    /// Before the norm of each head, where the architecture has one: `[rows, queries * width]`.
    pub(crate) raw_q: Vec<f32>,
    /// As `raw_q`, `[rows, keys * width]`.
    pub(crate) raw_k: Vec<f32>,
    /// After rotation, `[rows, queries * width]`.
    pub(crate) q: Vec<f32>,
    /// After rotation, `[rows, keys * width]`.
    pub(crate) k: Vec<f32>,
    /// `[rows, keys * width]`
    pub(crate) v: Vec<f32>,
    /// Attention's result, `[rows, queries * width]`.
    pub(crate) mixed: Vec<f32>,
    /// What attention's backward pass needs to know of its softmax.
    pub(crate) stats: Vec<f32>,
    /// After attention, `[rows, hidden]`.
    pub(crate) middle: Vec<f32>,
    /// `[rows, intermediate]`
    pub(crate) gate: Vec<f32>,
    /// `[rows, intermediate]`
    pub(crate) up: Vec<f32>,
    /// s x Aᵀ of each module, `[rows, rank]`.
    pub(crate) low: [Vec<f32>; 7],
}

impl Activations {
    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        let own = [
            &self.input,
            &self.raw_q,
            &self.raw_k,
            &self.q,
            &self.k,
            &self.v,
            &self.mixed,
            &self.stats,
            &self.middle,
            &self.gate,
            &self.up,
        ];
        let floats = own
            .into_iter()
            .chain(&self.low)
            .map(Vec::capacity)
            .sum::<usize>();
        floats * size_of::<f32>()
    }
}

/// What a pass computes and forgets.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// Normed rows, `[rows, hidden]`.
    pub(crate) normed: Vec<f32>,
    /// silu(gate) * up, `[rows, intermediate]`.
    pub(crate) inner: Vec<f32>,
    /// Rows of a product, rounded.
    pub(crate) half: Vec<bf16>,
    /// Activations of a layer that nobody keeps.
    pub(crate) layer: Activations,
    /// The next layer's input.
    pub(crate) next: Vec<f32>,
    /// Logits of a slice of rows.
    pub(crate) logits: Vec<f32>,
    /// Of a pass's targets, `[targets, vocab]`.
    pub(crate) probabilities: Vec<bf16>,
    /// Of the backward pass.
    pub(crate) back: Back,
}

/// Gradients that the backward pass of a layer goes through.
#[derive(Debug, Default)]
pub(crate) struct Back {
    pub(crate) middle: Vec<f32>,
    pub(crate) inner: Vec<f32>,
    pub(crate) gate: Vec<f32>,
    pub(crate) up: Vec<f32>,
    pub(crate) normed: Vec<f32>,
    pub(crate) mixed: Vec<f32>,
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
    /// Of a value before it was rotated or normed.
    pub(crate) turned: Vec<f32>,
    /// s dY B, `[rows, rank]`.
    pub(crate) low: Vec<f32>,
}

/// Makes `buffer` hold `n` values, with room for no more where it has to grow; what they are is of
/// no interest.
pub(crate) fn sized<T: Copy + Default>(buffer: &mut Vec<T>, n: usize) {
    if buffer.capacity() < n {
        // The old memory goes first, and its values are not copied.
        *buffer = Vec::new();
        buffer.reserve_exact(n);
    }
    buffer.resize(n, T::default());
}

/// A layer of a tape.
#[derive(Debug)]
pub(crate) enum Kept {
    /// All of its activations.
    Whole(Box<Activations>),
    /// Its input, `[rows, hidden]`; the rest is computed again.
    Input(Vec<f32>),
}

/// Activations that no tape holds at present, without inputs: memory that is used again.
///
/// What it holds never exceeds what the largest pass so far has asked for, whatever the order in
/// which passes of different sizes come.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Store>);

#[derive(Debug, Default)]
struct Store {
    free: Vec<Activations>,
    /// Bytes of the largest pass so far.
    most: usize,
}

impl Pool {
    /// Makes ready for a pass that takes `count` layers of `need` bytes: memory is let go until
    /// what there will be then is no more than the largest pass took.
    pub(crate) fn prepare(&self, count: usize, need: usize) {
        let mut store = lock(&self.0);
        store.most = store.most.max(count * need);
        // The largest are taken first, from the end.
        store.free.sort_by_key(Activations::bytes);
        while !store.free.is_empty() {
            let taken = store.free.len().saturating_sub(count);
            let sizes = store.free.iter().map(Activations::bytes).enumerate();
            let held: usize = sizes
                .map(|(i, size)| if i < taken { size } else { size.max(need) })
                .sum();
            let fresh = count.saturating_sub(store.free.len()) * need;
            if held + fresh <= store.most {
                break;
            }
            // One that is not needed, or one that is larger than it need be.
            let last = store.free.len() - 1;
            store.free.remove(if taken > 0 { 0 } else { last });
        }
    }

    /// A layer's activations, or empty ones.
    pub(crate) fn take(&self) -> Activations {
        lock(&self.0).free.pop().unwrap_or_default()
    }

    fn give_back(&self, layers: impl Iterator<Item = Activations>) {
        let mut store = lock(&self.0);
        let mut held: usize = store.free.iter().map(Activations::bytes).sum();
        for mut layer in layers {
            // Inputs go from layer to layer, so they are not of one size.
            layer.input = Vec::new();
            held += layer.bytes();
            if held <= store.most {
                store.free.push(layer);
            }
        }
    }

    /// Bytes that it holds.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        lock(&self.0).free.iter().map(Activations::bytes).sum()
    }
}

/// The layers of a tape. However the pass ends, their memory goes back to the pool.
#[derive(Debug, Default)]
pub(crate) struct KeptLayers {
    pub(crate) layers: Vec<Kept>,
    pool: Arc<Pool>,
}

impl KeptLayers {
    pub(crate) fn new(pool: &Arc<Pool>) -> Self {
        Self {
            layers: Vec::new(),
            pool: pool.clone(),
        }
    }

    /// Bytes that they hold.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let bytes = |kept: &Kept| match kept {
            Kept::Whole(a) => a.bytes(),
            Kept::Input(input) => size_of::<f32>() * input.capacity(),
        };
        self.layers.iter().map(bytes).sum()
    }
}

impl Drop for KeptLayers {
    fn drop(&mut self) {
        let whole = |kept| match kept {
            Kept::Whole(activations) => Some(*activations),
            Kept::Input(_) => None,
        };
        self.pool.give_back(self.layers.drain(..).filter_map(whole));
    }
}

/// A poisoned lock guards plain memory: nothing in it can be half-done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
