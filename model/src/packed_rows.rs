//! The rows of one learning pass, packed without padding.

use std::{ops::Range, sync::Arc};

use crate::{dropout::mix, kernels::attention::Segment};

/// A token whose log-prob is wanted: the row whose logits predict it, and the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Row of the pass.
    pub row: u32,
    /// The token that follows it.
    pub token: u32,
}

/// Token rows of several groups. A group's prompt stands once, before its completions, and is
/// computed once for all of them.
#[derive(Clone, Debug, Default)]
pub struct PackedRows {
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) segments: Vec<Segment>,
    /// Names each row by its place in the group, for dropout.
    pub(crate) keys: Vec<u64>,
}

impl PackedRows {
    /// No rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Rows that [`PackedRows::push_group`] would add: a completion's last token predicts nothing
    /// and needs none.
    pub fn rows_of_group(prompt: &[u32], completions: &[&[u32]]) -> usize {
        prompt.len()
            + completions
                .iter()
                .map(|c| c.len().saturating_sub(1))
                .sum::<usize>()
    }

    /// One sequence, all its tokens as rows.
    pub fn push_sequence(&mut self, key: u64, tokens: &[u32]) -> Range<usize> {
        self.push(key, tokens, None)
    }

    /// A prompt and completions of it; returns the targets of each completion, one a token.
    ///
    /// Dropout knows completion i by `key + i` and the prompt by its tokens: a group that is cut
    /// between two passes drops the same values when the second is given `key` plus the completions
    /// that went before.
    pub fn push_group(
        &mut self,
        key: u64,
        prompt: &[u32],
        completions: &[&[u32]],
    ) -> Vec<Vec<Target>> {
        let name = prompt.iter().fold(0, |h, token| mix(h ^ u64::from(*token)));
        let prompt = self.push(name, prompt, None);
        let prefix = Some((prompt.start, prompt.len()));
        let mut targets = Vec::with_capacity(completions.len());
        for (i, completion) in completions.iter().enumerate() {
            let rows = completion
                .split_last()
                .map_or(&[][..], |(_, before)| before);
            let own = self.push(mix(key.wrapping_add(i as u64)), rows, prefix);
            let predicted_by = |t: usize| match t {
                0 => prompt.end.saturating_sub(1),
                t => own.start + t - 1,
            };
            targets.push(
                completion
                    .iter()
                    .enumerate()
                    .map(|(t, token)| Target {
                        row: predicted_by(t) as u32,
                        token: *token,
                    })
                    .collect(),
            );
        }
        targets
    }

    fn push(&mut self, key: u64, tokens: &[u32], prefix: Option<(usize, usize)>) -> Range<usize> {
        let start = self.tokens.len();
        let offset = prefix.map_or(0, |p| p.1);
        self.tokens.extend_from_slice(tokens);
        self.positions
            .extend((0..tokens.len()).map(|i| (offset + i) as u32));
        self.keys
            .extend((0..tokens.len()).map(|i| mix(key ^ mix((offset + i) as u64))));
        if !tokens.is_empty() {
            self.segments.push(Segment {
                start,
                len: tokens.len(),
                prefix,
            });
        }
        start..start + tokens.len()
    }

    pub(crate) fn shared_keys(&self) -> Arc<Vec<u64>> {
        Arc::new(self.keys.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_stands_as_its_prompt_and_then_its_completions() {
        let mut rows = PackedRows::new();
        rows.push_sequence(9, &[1, 2]);
        let targets = rows.push_group(1, &[10, 11, 12], &[&[20, 21], &[30], &[40, 41, 42]]);
        assert_eq!(rows.tokens, [1, 2, 10, 11, 12, 20, 40, 41]);
        assert_eq!(rows.positions, [0, 1, 0, 1, 2, 3, 3, 4]);
        let rows_and_tokens: Vec<Vec<_>> = targets
            .iter()
            .map(|t| t.iter().map(|t| (t.row, t.token)).collect())
            .collect();
        assert_eq!(rows_and_tokens[0], [(4, 20), (5, 21)]);
        assert_eq!(rows_and_tokens[1], [(4, 30)]);
        assert_eq!(rows_and_tokens[2], [(4, 40), (6, 41), (7, 42)]);
        assert_eq!(
            rows.len(),
            2 + PackedRows::rows_of_group(&[0; 3], &[&[0; 2], &[0], &[0; 3]])
        );
    }

    #[test]
    fn a_completion_keeps_its_keys_when_its_group_is_cut() {
        let (mut whole, mut part) = (PackedRows::new(), PackedRows::new());
        whole.push_group(5, &[1, 2], &[&[3, 4], &[5, 6]]);
        part.push_group(6, &[1, 2], &[&[5, 6]]);
        assert_eq!(whole.keys[3], part.keys[2]);
        assert_eq!(whole.keys[..2], part.keys[..2]);
    }
}
