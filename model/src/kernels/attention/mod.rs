//! Causal attention over pages of keys and values: sampling, prompts in chunks and learning alike.
//!
//! One definition of a row's bits serves all of them. For a query row and head at position n - 1:
//!
//! - score j = (q · scale) · k_j, one chain of fused multiply-adds over the width, in order;
//! - positions are cut into chunks of [`CHUNK`]; inside one, with m its largest score,
//!   p_j = exp(score_j - m), their sum in 16 lanes (lane = position % 16) and then over the lanes as
//!   a tree, and the weighted values, one chain over the positions for each float;
//! - chunks are combined in order, rescaled to the larger maximum (FlashAttention's online softmax,
//!   arXiv 2205.14135), and the result is divided by the sum.
//!
//! So it doesn't matter who computes a chunk, beside what, or whether a row comes alone over pages
//! that were filled one token at a time or with the other rows of a pass.
//!
//! - `pages`: what a page holds; room for pages
//! - [`attend()`], [`forward()`]: rows over pages; rows of a pass
//! - [`backward()`]: gradients of a pass
//! - `pass`: the pages and the strips of a pass's segments
//! - `tile`, `lanes`: the loops that stay in registers, once for all levels

mod backward;
mod forward;
mod lanes;
mod pages;
mod pass;
#[cfg(test)]
mod tests;
mod tile;

use std::cell::RefCell;

use self::pages::Aligned;
pub use self::{
    backward::backward,
    forward::{Span, attend},
    pages::{PAGE, Pages, Places},
    pass::forward,
};

/// Positions whose softmax is taken together; part of the definition of the bits.
pub const CHUNK: usize = 512;

/// The shape of the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; each serves `queries / keys` query heads in turn.
    pub keys: usize,
    /// Floats of one head.
    pub width: usize,
}

impl Heads {
    /// Floats of one row of keys.
    pub fn key_row(&self) -> usize {
        self.keys * self.width
    }

    /// Floats of one row of queries.
    pub fn query_row(&self) -> usize {
        self.queries * self.width
    }

    /// Floats of [`forward()`]'s `stats` for one row.
    pub fn stats_row(&self) -> usize {
        2 * self.queries
    }

    /// Query heads of a key head.
    fn share(&self) -> usize {
        self.queries / self.keys
    }

    fn scale(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }
}

/// Rows of a pass that form one sequence, or one completion after a shared prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row of its own.
    pub start: usize,
    /// Rows of its own.
    pub len: usize,
    /// Rows of the prompt it continues: (start, length), all visible to it.
    pub prefix: Option<(usize, usize)>,
}

impl Segment {
    /// Position of its first own row.
    fn first(&self) -> usize {
        self.prefix.map_or(0, |p| p.1)
    }
}

thread_local! {
    static SCRATCH: RefCell<Option<Aligned>> = const { RefCell::new(None) };
}

/// Runs `f` with `len` floats of this thread's scratch memory, whatever they hold.
fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut kept = SCRATCH.take().filter(|s| s.len() >= len);
    let scratch = kept.get_or_insert_with(|| Aligned::zeroed(len));
    let result = f(&mut scratch.as_mut_slice()[..len]);
    SCRATCH.set(kept);
    result
}
