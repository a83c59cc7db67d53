//! Prompts and decoding steps.

use super::{Activations, Angles, Attend, HostModel, LayerLora};
use crate::{
    adapter::Adapter,
    error::Result,
    kernels::team,
    kv::{DecodePlan, KvCache, OpenPrompt, PromptKv},
};

/// Rows of prompts, one run of each, over the cache's pages.
struct Prompts<'a> {
    cache: &'a mut KvCache,
    /// A prompt, its first position among the rows, and how many.
    runs: &'a [(&'a OpenPrompt, usize, usize)],
}

impl Attend for Prompts<'_> {
    fn attend(&mut self, layer: usize, a: &mut Activations) -> Result<()> {
        let rows = [&a.q[..], &a.k[..], &a.v[..]];
        self.cache
            .attend_prompts(self.runs, layer, rows, &mut a.mixed)
    }
}

/// One row a slot.
struct Decoding<'a> {
    cache: &'a mut KvCache,
    plan: &'a DecodePlan,
}

impl Attend for Decoding<'_> {
    fn attend(&mut self, layer: usize, a: &mut Activations) -> Result<()> {
        let rows = [&a.q[..], &a.k[..], &a.v[..]];
        self.cache.attend_rows(self.plan, layer, rows, &mut a.mixed)
    }
}

impl HostModel {
    /// Computes prompts that fit into one pass, or one long one in several: their pages, and the
    /// logits of their last tokens.
    pub(crate) fn prefill(
        &self,
        cache: &mut KvCache,
        prompts: &[&[u32]],
        rows_at_a_time: usize,
        angles: impl Fn(&[u32]) -> Angles,
        adapter: Option<&Adapter>,
    ) -> Result<Vec<(PromptKv, Vec<f32>)>> {
        let _hot = team::stay_hot();
        let open = prompts
            .iter()
            .map(|prompt| cache.open_prompt(prompt.len()))
            .collect::<Result<Vec<_>>>()?;
        let vocab = self.output().forward.columns();
        let mut logits: Vec<Vec<f32>> = vec![Vec::new(); prompts.len()];
        // Runs of rows in the order of the prompts, as many as a pass takes.
        let (mut prompt, mut first) = (0, 0);
        while prompt < prompts.len() {
            let (mut tokens, mut positions) = (Vec::new(), Vec::new());
            let (mut runs, mut last) = (Vec::new(), Vec::new());
            while prompt < prompts.len() && tokens.len() < rows_at_a_time {
                let rest = &prompts[prompt][first..];
                let n = rest.len().min(rows_at_a_time - tokens.len());
                runs.push((&open[prompt], first, n));
                tokens.extend_from_slice(&rest[..n]);
                positions.extend((first..first + n).map(|p| p as u32));
                first += n;
                if n == rest.len() {
                    last.push((prompt, tokens.len() - 1));
                    (prompt, first) = (prompt + 1, 0);
                }
            }
            let angles = angles(&positions);
            let mut attend = Prompts { cache, runs: &runs };
            let ends: Vec<usize> = last.iter().map(|(_, row)| *row).collect();
            self.run(
                &tokens,
                &angles,
                adapter,
                &mut attend,
                Some(&ends),
                |found| {
                    for ((prompt, _), row) in last.iter().zip(found.chunks_exact(vocab)) {
                        logits[*prompt] = row.to_vec();
                    }
                },
            )?;
        }
        let kept = open.into_iter().map(OpenPrompt::finish);
        Ok(kept.zip(logits).collect())
    }

    /// One decoding step: logits `[n, vocab]` into `logits`.
    pub(crate) fn decode(
        &self,
        cache: &mut KvCache,
        plan: &DecodePlan,
        tokens: &[u32],
        angles: &Angles,
        adapter: Option<&Adapter>,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let _hot = team::stay_hot();
        let mut attend = Decoding { cache, plan };
        self.run(tokens, angles, adapter, &mut attend, None, |found| {
            std::mem::swap(logits, found);
        })
    }

    /// Rows through all layers; the logits of the rows `wanted` (all, unless they are named) go to
    /// `take`.
    fn run(
        &self,
        tokens: &[u32],
        angles: &Angles,
        adapter: Option<&Adapter>,
        attend: &mut dyn Attend,
        wanted: Option<&[usize]>,
        take: impl FnOnce(&mut Vec<f32>),
    ) -> Result<()> {
        self.with_workspace(|w| {
            let mut layer = std::mem::take(&mut w.layer);
            let mut next = std::mem::take(&mut w.next);
            self.embed(tokens, &mut layer.input);
            for index in 0..self.layers.len() {
                let lora = adapter.map(|a| LayerLora::new(a, index, None));
                self.layer(
                    index,
                    &mut layer,
                    &mut next,
                    angles,
                    lora.as_ref(),
                    attend,
                    w,
                )?;
                std::mem::swap(&mut layer.input, &mut next);
            }
            if let Some(wanted) = wanted {
                let width = self.norm.weight.len();
                next.clear();
                for row in wanted {
                    next.extend_from_slice(&layer.input[row * width..(row + 1) * width]);
                }
                std::mem::swap(&mut layer.input, &mut next);
            }
            let mut normed = std::mem::take(&mut w.normed);
            self.norm.run(&layer.input, &mut normed);
            self.logits(&normed, &mut w.half, &mut w.logits);
            (w.normed, w.layer, w.next) = (normed, layer, next);
            take(&mut w.logits);
            Ok(())
        })
    }
}
