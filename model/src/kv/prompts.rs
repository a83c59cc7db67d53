//! Prompts on their way into the cache.

use std::sync::Arc;

use candle_core::Tensor;

use super::{Kept, KvCache, Lease, PromptKv, Store};
use crate::{
    error::{ModelError, Result},
    kernels::attention::PAGE,
};

/// A prompt whose rows are computed some at a time; dropped half-way, its memory is free again.
#[derive(Debug)]
pub struct OpenPrompt {
    tokens: Vec<u32>,
    /// Rows that are computed.
    done: usize,
    room: Room,
}

#[derive(Debug)]
enum Room {
    /// For all of its rows.
    Pages(Lease),
    /// Of the rows that are computed, one a layer: (k, v), each `[done, kv_heads * head_dim]`.
    Tensors(Vec<(Tensor, Tensor)>),
}

impl OpenPrompt {
    /// Rows that are still to be computed.
    pub fn rest(&self) -> usize {
        self.tokens.len() - self.done
    }

    /// The prompt, to be shared by the completions of its group.
    ///
    /// # Errors
    /// When some of its rows are not computed yet.
    pub fn finish(self) -> Result<PromptKv> {
        if self.rest() > 0 {
            return Err(ModelError::OutOfRange(format!(
                "a prompt of {} tokens, of which {} are computed",
                self.tokens.len(),
                self.done
            )));
        }
        Ok(PromptKv {
            tokens: self.tokens.len(),
            kept: match self.room {
                Room::Pages(lease) => Kept::Pages(Arc::new(lease)),
                Room::Tensors(layers) => Kept::Tensors(Arc::new(layers)),
            },
        })
    }

    /// Its next tokens, and the position of the first of them.
    pub(crate) fn next(&self, rows: usize) -> (&[u32], usize) {
        (&self.tokens[self.done..self.done + rows], self.done)
    }

    /// The next rows were computed, and their keys and values written.
    pub(crate) fn advance(&mut self, rows: usize) {
        self.done += rows;
    }

    /// Keys and values of the rows that are computed; none for a prompt in pages.
    pub(crate) fn tensors(&self) -> &[(Tensor, Tensor)] {
        match &self.room {
            Room::Pages(_) => &[],
            Room::Tensors(layers) => layers,
        }
    }

    /// Those of all rows up to the next, in their place.
    pub(crate) fn set_tensors(&mut self, layers: Vec<(Tensor, Tensor)>) {
        self.room = Room::Tensors(layers);
    }

    /// Its pages by position, its next position, and `rows`.
    pub(super) fn run(&self, rows: usize) -> (&[u32], usize, usize) {
        let table = match &self.room {
            Room::Pages(lease) => lease.pages(),
            Room::Tensors(_) => &[],
        };
        (table, self.done, rows)
    }
}

impl KvCache {
    /// Room for a prompt; a fault of its tokens is the caller's.
    pub(crate) fn open_prompt(&mut self, tokens: &[u32]) -> Result<OpenPrompt> {
        self.check_prompt(tokens.len())?;
        let room = match &mut self.store {
            Store::Host(pool) => {
                let mut lease = pool.lease();
                for _ in 0..tokens.len().div_ceil(PAGE) {
                    pool.take(&mut lease);
                }
                Room::Pages(lease)
            }
            Store::Device(_) => Room::Tensors(Vec::new()),
        };
        Ok(OpenPrompt {
            tokens: tokens.to_vec(),
            done: 0,
            room,
        })
    }
}
