//! Rows of several prompts at a time.

use super::{KvCache, OpenPrompt, host};
use crate::{
    error::Result,
    kernels::attention::{self, Span},
};

impl KvCache {
    /// Attention of one layer of runs of prompts' rows, each (prompt, position of its first row,
    /// rows), one behind the other: q and out `[rows, queries * width]`, k and v
    /// `[rows, keys * width]`, which are kept. Rows before a run's first were given earlier.
    pub(crate) fn attend_prompts(
        &mut self,
        runs: &[(&OpenPrompt, usize, usize)],
        layer: usize,
        [q, k, v]: [&[f32]; 3],
        out: &mut [f32],
    ) -> Result<()> {
        let row = self.heads.key_row();
        let pool = host(&mut self.store)?;
        let mut start = 0;
        let mut spans = Vec::with_capacity(runs.len());
        for (prompt, first, len) in runs {
            let (table, range) = (prompt.lease.pages(), start * row..(start + len) * row);
            pool.pages
                .write(layer, table, *first, &k[range.clone()], &v[range]);
            spans.push(Span {
                start,
                len: *len,
                first: *first,
                table,
            });
            start += len;
        }
        attention::attend(&pool.pages, layer, &spans, q, out, None);
        Ok(())
    }
}
