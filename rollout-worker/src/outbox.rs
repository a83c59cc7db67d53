//! Completions that the coordinator has not acknowledged yet (pure).

use std::collections::VecDeque;

use tina_proto::v1::{Completion, PolicyVersion};

use crate::{queue::GroupTask, seed::PROMPT_KEY_BYTES};

/// Completions kept at most.
const MAX_KEPT: usize = 8192;
/// Tokens of all kept completions at most (with their log-probs eight bytes each).
const MAX_TOKENS: usize = 32 << 20;

/// Keeps completions until they are acknowledged, so that they can be sent again after a
/// reconnect. Bounded: the oldest give way, and the coordinator asks for them again.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    kept: VecDeque<Kept>,
    tokens: usize,
}

#[derive(Debug)]
struct Kept {
    prompt_key: [u8; PROMPT_KEY_BYTES],
    /// The version that was asked for; a newer one may have sampled it.
    asked: PolicyVersion,
    completion: Completion,
}

impl Kept {
    fn is(&self, group_id: u64, index: u32) -> bool {
        self.completion.group_id == group_id && self.completion.sample_index == index
    }
}

impl Outbox {
    /// Keeps a completion; returns how many had to give way.
    pub(crate) fn keep(
        &mut self,
        prompt_key: [u8; PROMPT_KEY_BYTES],
        asked: PolicyVersion,
        completion: Completion,
    ) -> usize {
        self.forget(completion.group_id, &[completion.sample_index]);
        self.tokens += completion.tokens.len();
        self.kept.push_back(Kept {
            prompt_key,
            asked,
            completion,
        });
        let before = self.kept.len();
        while self.kept.len() > MAX_KEPT || (self.tokens > MAX_TOKENS && self.kept.len() > 1) {
            if let Some(oldest) = self.kept.pop_front() {
                self.tokens -= oldest.completion.tokens.len();
            }
        }
        before - self.kept.len()
    }

    /// They are in the journal, or nobody wants them; no indices: all of the group.
    pub(crate) fn forget(&mut self, group_id: u64, indices: &[u32]) {
        let tokens = &mut self.tokens;
        self.kept.retain(|kept| {
            let completion = &kept.completion;
            let gone = completion.group_id == group_id
                && (indices.is_empty() || indices.contains(&completion.sample_index));
            if gone {
                *tokens -= completion.tokens.len();
            }
            !gone
        });
    }

    /// The completion of this very sample, if it is kept.
    pub(crate) fn find(&self, task: &GroupTask, index: u32) -> Option<&Completion> {
        let kept = self
            .kept
            .iter()
            .find(|kept| kept.is(task.group_id, index))?;
        (kept.prompt_key == task.prompt_key && kept.asked == task.version)
            .then_some(&kept.completion)
    }

    /// All of them, oldest first.
    pub(crate) fn completions(&self) -> impl Iterator<Item = &Completion> {
        self.kept.iter().map(|kept| &kept.completion)
    }

    /// Forgets everything: another run begins.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(group_id: u64, sample_index: u32, tokens: usize) -> Completion {
        Completion {
            group_id,
            sample_index,
            tokens: vec![0; tokens],
            ..Completion::default()
        }
    }

    fn keep(outbox: &mut Outbox, completion: Completion) -> usize {
        outbox.keep([0; 32], PolicyVersion::default(), completion)
    }

    fn names(outbox: &Outbox) -> Vec<(u64, u32)> {
        outbox
            .completions()
            .map(|c| (c.group_id, c.sample_index))
            .collect()
    }

    #[test]
    fn completions_stay_until_they_are_acknowledged() {
        let mut outbox = Outbox::default();
        for (group, index) in [(1, 0), (1, 1), (2, 0)] {
            assert_eq!(keep(&mut outbox, completion(group, index, 3)), 0);
        }
        outbox.forget(1, &[0]);
        outbox.forget(9, &[0]);
        assert_eq!(names(&outbox), [(1, 1), (2, 0)]);
        outbox.forget(1, &[]);
        assert_eq!(names(&outbox), [(2, 0)]);
        assert_eq!(outbox.tokens, 3);
    }

    #[test]
    fn the_oldest_give_way_when_it_is_full() {
        let mut outbox = Outbox::default();
        for index in 0..MAX_KEPT as u32 {
            assert_eq!(keep(&mut outbox, completion(1, index, 0)), 0);
        }
        assert_eq!(keep(&mut outbox, completion(2, 0, 0)), 1);
        assert_eq!(names(&outbox)[0], (1, 1));
        assert_eq!(
            keep(&mut outbox, completion(3, 0, MAX_TOKENS + 1)),
            MAX_KEPT
        );
        assert_eq!(names(&outbox), [(3, 0)]);
    }
}
