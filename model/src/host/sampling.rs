//! Passes of sampling: rows of prompts, and tokens of slots.

use super::{Activations, Angles, Attend, HostModel, LayerLora};
use crate::{
    adapter::Adapter,
    error::Result,
    kernels::team,
    kv::{KvCache, OpenPrompt, SlotPlan},
};

/// Rows of prompts, and behind them those of slots, over the cache's pages.
struct Sampling<'a> {
    cache: &'a mut KvCache,
    prompts: &'a [(&'a OpenPrompt, usize)],
    slots: &'a SlotPlan,
}

impl Attend for Sampling<'_> {
    fn attend(&mut self, layer: usize, a: &mut Activations) -> Result<()> {
        let rows = [&a.q[..], &a.k[..], &a.v[..]];
        self.cache
            .attend_rows(self.prompts, self.slots, layer, rows, &mut a.mixed)
    }
}

impl HostModel {
    /// Prompts' next rows and slots' next tokens: the logits of each one's last row into `logits`,
    /// `[prompts + slots, vocab]`.
    pub(crate) fn advance(
        &self,
        cache: &mut KvCache,
        prompts: &[(&mut OpenPrompt, usize)],
        (plan, slots): (&SlotPlan, &[(usize, &[u32])]),
        angles: impl Fn(&[u32]) -> Angles,
        adapter: Option<&Adapter>,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let _hot = team::stay_hot();
        let prompts: Vec<(&OpenPrompt, usize)> = prompts.iter().map(|(p, n)| (&**p, *n)).collect();
        let (mut tokens, mut positions) = (Vec::new(), Vec::new());
        let mut ends = Vec::with_capacity(prompts.len() + slots.len());
        for (prompt, rows) in &prompts {
            let (next, first) = prompt.next(*rows);
            tokens.extend_from_slice(next);
            positions.extend((first..first + rows).map(|p| p as u32));
            ends.push(tokens.len() - 1);
        }
        for (_, next) in slots {
            tokens.extend_from_slice(next);
            ends.push(tokens.len() - 1);
        }
        positions.extend_from_slice(&plan.positions);
        let wanted = (ends.len() < tokens.len()).then_some(&ends[..]);
        let mut attend = Sampling {
            cache,
            prompts: &prompts,
            slots: plan,
        };
        let angles = angles(&positions);
        self.run(&tokens, &angles, adapter, &mut attend, wanted, |found| {
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
