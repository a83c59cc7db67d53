//! How token losses become the batch's loss.

use std::fmt;

/// What the token losses are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// Mean over a completion's tokens, then over the batch's completions.
    SequenceMean,
    /// Sum over a completion's tokens, mean over the batch's completions.
    SequenceSum,
    /// Mean over the tokens of a group, then over the batch's groups.
    GroupTokenMean,
    /// Mean over all tokens of the batch.
    TokenMean,
    /// Sum over all tokens of the batch, divided by what they could be at most: the batch's
    /// completions times the token limit. The divisor is a constant, so the gradient neither favours
    /// short correct completions nor spares long wrong ones.
    Constant,
}

impl fmt::Display for Aggregation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SequenceMean => "mean over tokens, then over completions",
            Self::SequenceSum => "sum over tokens, mean over completions",
            Self::GroupTokenMean => "mean over a group's tokens, then over groups",
            Self::TokenMean => "mean over all tokens",
            Self::Constant => "sum over tokens, divided by completions x the token limit",
        })
    }
}

/// What the loss is divided by: counted over the whole batch before any forward pass, so that
/// micro-batches add up to the gradient of one big batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Normaliser {
    /// Tokens that the batch could have at most: all its completions, whether in the loss or not,
    /// times the token limit.
    most_tokens: u64,
    /// Completions in the loss, those with advantage 0 included.
    completions: u64,
    /// Their tokens.
    tokens: u64,
    /// Their tokens by group; 0 where none of a group is in the loss.
    by_group: Vec<u64>,
}

impl Normaliser {
    /// For a batch of `completions`, sampled with a limit of `max_tokens` each; none is counted yet.
    pub fn new(completions: usize, max_tokens: usize) -> Self {
        Self {
            most_tokens: completions as u64 * max_tokens as u64,
            completions: 0,
            tokens: 0,
            by_group: Vec::new(),
        }
    }

    /// Counts one completion of `tokens` tokens of the group with this number in the batch.
    pub fn count(&mut self, group: usize, tokens: usize) {
        self.completions += 1;
        self.tokens += tokens as u64;
        if self.by_group.len() <= group {
            self.by_group.resize(group + 1, 0);
        }
        self.by_group[group] += tokens as u64;
    }

    /// The weight of each token's loss in a completion of `tokens` tokens.
    pub fn token_weight(&self, aggregation: Aggregation, group: usize, tokens: usize) -> f64 {
        let completions = self.completions as f64;
        1.0 / match aggregation {
            Aggregation::SequenceMean => completions * tokens as f64,
            Aggregation::SequenceSum => completions,
            Aggregation::GroupTokenMean => {
                let groups = self.by_group.iter().filter(|tokens| **tokens > 0).count();
                let own = self.by_group.get(group).copied().unwrap_or(0);
                groups as f64 * own as f64
            }
            Aggregation::TokenMean => self.tokens as f64,
            Aggregation::Constant => self.most_tokens as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two groups: completions of 1 and 3 tokens, and one of 4; limit 10.
    #[test]
    fn weights_in_closed_form() {
        let mut normaliser = Normaliser::new(4, 10);
        for (group, tokens) in [(0, 1), (0, 3), (1, 4)] {
            normaliser.count(group, tokens);
        }
        for (aggregation, expected) in [
            (
                Aggregation::SequenceMean,
                [1.0 / 3.0, 1.0 / 9.0, 1.0 / 12.0],
            ),
            (Aggregation::SequenceSum, [1.0 / 3.0; 3]),
            (Aggregation::GroupTokenMean, [1.0 / 8.0; 3]),
            (Aggregation::TokenMean, [1.0 / 8.0; 3]),
            (Aggregation::Constant, [1.0 / 40.0; 3]),
        ] {
            let found = [(0, 1), (0, 3), (1, 4)]
                .map(|(group, tokens)| normaliser.token_weight(aggregation, group, tokens));
            assert_eq!(found, expected, "{aggregation}");
        }
        // Groups count alike however long their completions are.
        normaliser.count(1, 12);
        let weight = |group| normaliser.token_weight(Aggregation::GroupTokenMean, group, 1);
        assert_eq!([weight(0), weight(1)], [1.0 / 8.0, 1.0 / 32.0]);
    }
}
