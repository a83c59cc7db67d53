//! Memory that passes work in. Buffers keep their room between uses.

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

/// Makes `buffer` hold `n` values; what they are is of no interest.
pub(crate) fn sized(buffer: &mut Vec<f32>, n: usize) {
    buffer.resize(n, 0.0);
}
