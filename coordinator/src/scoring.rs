//! From a completion's tokens to its rewards: pure work on text, bounded by the text's length.

use std::sync::Arc;

use tina_model::Tokenizer;
use tina_proto::v1;
use tina_reward::{Reward, Verdict};

use crate::scheduler::types::{RewardValue, Scored};

/// Gives completions their verdicts.
#[derive(Clone, Debug)]
pub struct Scorer {
    tokenizer: Arc<Tokenizer>,
    rewards: Arc<[(Arc<str>, Reward)]>,
    eval: usize,
}

impl Scorer {
    /// `rewards` in the config's order; number `eval` says what is right in an evaluation.
    pub fn new(tokenizer: Arc<Tokenizer>, rewards: Vec<Reward>, eval: usize) -> Self {
        let named = rewards
            .into_iter()
            .map(|reward| (reward.name().into(), reward))
            .collect();
        Self {
            tokenizer,
            rewards: named,
            eval,
        }
    }

    /// The verdicts on one completion; `gold` is the problem's answer.
    ///
    /// Tokens that are no text at all can't be judged. A reward of weight 0 is logged, and takes
    /// no part in the sum nor in whether the completion counts as judged.
    pub fn score(&self, worker: Arc<str>, completion: v1::Completion, gold: &str) -> Scored {
        let text = self.tokenizer.decode(&completion.tokens, true);
        let (mut sum, mut judged, mut correct) = (0.0, true, false);
        let mut rewards = Vec::with_capacity(self.rewards.len());
        for (at, (name, reward)) in self.rewards.iter().enumerate() {
            let verdict = match &text {
                Ok(text) => reward.score(text, gold),
                Err(error) => Verdict::NotJudged(error.to_string()),
            };
            let value = match verdict {
                Verdict::Scored(value) if value.is_finite() => Some(value),
                _ => None,
            };
            match value {
                Some(value) => sum += reward.weight() * value,
                None => judged &= reward.weight() == 0.0,
            }
            correct |= at == self.eval && value.is_some_and(|value| value >= 1.0);
            rewards.push(RewardValue {
                name: name.clone(),
                value,
            });
        }
        let text = text.unwrap_or_default();
        Scored {
            completion,
            worker,
            text,
            reward: sum,
            judged,
            correct,
            rewards,
        }
    }
}
