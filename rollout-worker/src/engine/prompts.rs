//! The prompts of groups: computed once for all their completions, some rows at a time.

use std::sync::Arc;

use tina_model::{Decoder, KvCache, ModelError, OpenPrompt, PromptKv};

use crate::queue::GroupTask;

/// A prompt that completions can begin with.
pub(super) struct Known {
    task: Arc<GroupTask>,
    pub(super) kv: PromptKv,
    /// Of the last token: what first tokens are sampled from.
    pub(super) logits: Vec<f32>,
}

/// One whose rows are not all computed.
pub(super) struct Open {
    pub(super) task: Arc<GroupTask>,
    pub(super) rows: OpenPrompt,
}

/// All prompts that somebody waits for or may begin with.
#[derive(Default)]
pub(super) struct Prompts {
    known: Vec<Known>,
    /// In the order of opening.
    pub(super) open: Vec<Open>,
}

/// By content as well: a group's name may be given to another prompt.
pub(super) fn same_prompt(a: &GroupTask, b: &GroupTask) -> bool {
    a.group_id == b.group_id && a.prompt == b.prompt
}

impl Prompts {
    /// The prompt of `task`, if it is known; opens it if nobody has.
    pub(super) fn find(
        &mut self,
        task: &Arc<GroupTask>,
        decoder: &Decoder,
        cache: &mut KvCache,
    ) -> Result<Option<&Known>, ModelError> {
        let known = self.known.iter().find(|p| same_prompt(&p.task, task));
        if known.is_none() && !self.open.iter().any(|p| same_prompt(&p.task, task)) {
            let rows = decoder.open_prompt(cache, &task.prompt)?;
            let task = Arc::clone(task);
            self.open.push(Open { task, rows });
        }
        Ok(known)
    }

    /// Whether the prompt of `task` is known or on its way.
    pub(super) fn has(&self, task: &GroupTask) -> bool {
        let known = self.known.iter().map(|prompt| &prompt.task);
        let open = self.open.iter().map(|prompt| &prompt.task);
        known.chain(open).any(|other| same_prompt(other, task))
    }

    /// The open prompt `which` is computed to its end.
    pub(super) fn finish(&mut self, which: usize, logits: &[f32]) -> Result<(), ModelError> {
        let Open { task, rows } = self.open.remove(which);
        self.known.push(Known {
            task,
            kv: rows.finish()?,
            logits: logits.to_vec(),
        });
        Ok(())
    }

    /// Forgets the prompts of all other groups; what is half computed is dropped.
    pub(super) fn retain(&mut self, held: impl Fn(u64) -> bool) {
        self.known.retain(|prompt| held(prompt.task.group_id));
        self.open.retain(|prompt| held(prompt.task.group_id));
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty() && self.open.is_empty()
    }
}
