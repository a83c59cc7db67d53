//! What a message may hold, by the run's config: checked before anything is kept of it.

use tina_proto::v1;

use crate::scheduler::types::{Purpose, RoundId};

/// Slots that a worker may offer.
const MAX_SLOTS: u32 = 1 << 16;
/// Characters of a name.
const MAX_NAME: usize = 256;
/// A log-prob may be above 0 by rounding.
const LOGPROB_SLACK: f32 = 1e-3;

/// Bounds on what workers send.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Longest completion of a step, in tokens.
    pub train_tokens: u32,
    /// Longest completion of an evaluation, in tokens.
    pub eval_tokens: u32,
    /// Groups of a step.
    pub groups: u32,
    /// Completions of a group.
    pub samples: u32,
    /// Problems of an evaluation.
    pub eval_problems: u32,
    /// Completions of a problem in an evaluation.
    pub eval_samples: u32,
}

impl Limits {
    /// Bytes of one message of a learner: metrics, and the probe's log-probs.
    pub const LEARNER_MESSAGE_BYTES: usize = 4 << 20;
    /// Bytes of one piece of an adapter.
    pub const ADAPTER_MESSAGE_BYTES: usize = 1 << 20;

    /// Bytes of one message of a worker: the longest completion, a token of which takes at most 5
    /// bytes and its log-prob 4; and the probe's log-probs.
    pub fn worker_message_bytes(&self) -> usize {
        (256 << 10) + 16 * self.train_tokens.max(self.eval_tokens) as usize
    }

    /// # Errors
    /// What is wrong with the completion.
    pub fn check_completion(&self, completion: &v1::Completion) -> Result<(), String> {
        let (round, group) = RoundId::of_group(completion.group_id);
        let (groups, samples, longest) = match round.purpose() {
            Purpose::Train => (self.groups, self.samples, self.train_tokens),
            Purpose::Eval => (self.eval_problems, self.eval_samples, self.eval_tokens),
        };
        let (tokens, logprobs) = (&completion.tokens, &completion.logprobs);
        let last = tokens.len() as u32;
        if group >= groups || completion.sample_index >= samples {
            Err("of a sample that the run doesn't have".into())
        } else if tokens.is_empty() || tokens.len() > longest as usize {
            Err(format!(
                "of {} tokens, 1 to {longest} are possible",
                tokens.len()
            ))
        } else if logprobs.len() != tokens.len() {
            Err(format!(
                "of {} tokens with {} log-probs",
                tokens.len(),
                logprobs.len()
            ))
        } else if let Some(token) = tokens.iter().find(|token| **token >= self.vocab_size) {
            Err(format!(
                "with token {token}, the vocabulary has {}",
                self.vocab_size
            ))
        } else if let Some(p) = logprobs
            .iter()
            .find(|p| !p.is_finite() || **p > LOGPROB_SLACK)
        {
            Err(format!("with a log-prob of {p}"))
        } else if !(completion.decode_seconds.is_finite() && completion.decode_seconds >= 0.0) {
            Err(format!("that took {} s", completion.decode_seconds))
        } else if completion.finish_reason() == v1::FinishReason::Unspecified {
            Err("that doesn't say why it ended".into())
        } else if completion.versions.is_empty()
            || completion.versions.iter().any(|span| span.start >= last)
        {
            Err("that doesn't say which policy version sampled it".into())
        } else {
            Ok(())
        }
    }

    /// # Errors
    /// What is wrong with the samples named.
    pub fn check_failed(&self, failed: &v1::SampleFailed) -> Result<(), String> {
        if failed.sample_indices.len() > self.samples.max(self.eval_samples).max(1) as usize {
            return Err(format!(
                "{} failed samples of one group",
                failed.sample_indices.len()
            ));
        }
        Ok(())
    }

    /// # Errors
    /// What is wrong with the slots offered.
    pub fn check_ready(ready: &v1::WorkerReady) -> Result<(), String> {
        if ready.slots > MAX_SLOTS || ready.model_digest.len() > MAX_NAME {
            return Err(format!(
                "{} slots, at most {MAX_SLOTS} are taken",
                ready.slots
            ));
        }
        Ok(())
    }

    /// # Errors
    /// What is wrong with a worker's load.
    pub fn check_heartbeat(beat: &v1::WorkerHeartbeat) -> Result<(), String> {
        if beat.slots > MAX_SLOTS {
            return Err(format!(
                "{} slots, at most {MAX_SLOTS} are taken",
                beat.slots
            ));
        }
        if !beat.tokens_per_second.is_finite() {
            return Err("tokens a second that are no number".into());
        }
        Ok(())
    }

    /// # Errors
    /// What is wrong with a name that a role gave itself.
    pub fn check_name(name: &str) -> Result<(), String> {
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(format!(
                "a name of 1 to {MAX_NAME} printable bytes is needed"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            vocab_size: 10,
            train_tokens: 4,
            eval_tokens: 8,
            groups: 2,
            samples: 3,
            eval_problems: 5,
            eval_samples: 1,
        }
    }

    fn completion() -> v1::Completion {
        v1::Completion {
            group_id: RoundId::train(1).group(1),
            sample_index: 2,
            tokens: vec![1, 9],
            logprobs: vec![-0.5, 0.0],
            finish_reason: v1::FinishReason::Stop.into(),
            versions: vec![v1::VersionSpan::default()],
            decode_seconds: 0.1,
        }
    }

    #[test]
    fn a_completion_beyond_the_config_is_refused_with_what_is_wrong() {
        assert_eq!(limits().check_completion(&completion()), Ok(()));
        type Spoil = fn(&mut v1::Completion);
        let cases: [(Spoil, &str); 10] = [
            (|c| c.tokens[0] = 10, "vocabulary"),
            (|c| c.tokens.clear(), "of 0 tokens"),
            (
                |c| (c.tokens, c.logprobs) = (vec![1; 5], vec![0.0; 5]),
                "of 5 tokens",
            ),
            (|c| c.logprobs.truncate(1), "1 log-probs"),
            (|c| c.logprobs[0] = f32::NAN, "NaN"),
            (|c| c.logprobs[0] = 0.5, "log-prob of 0.5"),
            (|c| c.group_id = RoundId::train(1).group(2), "doesn't have"),
            (|c| c.sample_index = 3, "doesn't have"),
            (|c| c.finish_reason = 0, "why it ended"),
            (|c| c.versions.clear(), "policy version"),
        ];
        for (spoil, message) in cases {
            let mut spoilt = completion();
            spoil(&mut spoilt);
            let error = limits().check_completion(&spoilt).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        let mut eval = completion();
        eval.group_id = RoundId::eval(0).group(4);
        assert!(limits().check_completion(&eval).is_err());
        eval.sample_index = 0;
        assert_eq!(limits().check_completion(&eval), Ok(()));
    }
}
