//! One completion under way: tokens, their log-probs, and when it ends (no model inside).

use std::{sync::Arc, time::Instant};

use tina_model::{Distribution, Scratch};
use tina_proto::v1::{Completion, FinishReason, PolicyVersion, VersionSpan};

use crate::{
    queue::GroupTask,
    seed::Uniforms,
    stop::{StopScan, TokenText},
};

/// A completion from its first token to its last.
pub struct Sequence {
    task: Arc<GroupTask>,
    index: u32,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    /// Which version sampled what.
    versions: Vec<VersionSpan>,
    distribution: Distribution,
    uniforms: Uniforms,
    scan: StopScan,
    /// The completion ends with this many tokens.
    limit: usize,
    started: Instant,
    end: Option<Result<FinishReason, String>>,
}

impl Sequence {
    /// A completion without tokens; `uniforms` are its own, and `max_sequence_tokens` bounds prompt
    /// and completion together.
    pub fn new(
        task: Arc<GroupTask>,
        index: u32,
        uniforms: Uniforms,
        max_sequence_tokens: usize,
    ) -> Self {
        let params = &task.params;
        let room = max_sequence_tokens.saturating_sub(task.prompt.len());
        Self {
            index,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            versions: Vec::new(),
            distribution: Distribution {
                temperature: params.temperature,
                top_p: params.top_p,
                top_k: params.top_k,
                min_p: params.min_p,
            },
            uniforms,
            scan: StopScan::new(&params.stop),
            limit: room.min(params.max_tokens as usize),
            started: Instant::now(),
            end: None,
            task,
        }
    }

    /// The tokens behind the first `cached` of prompt and completion: to be decoded next.
    pub fn tokens_behind(&self, cached: usize) -> &[u32] {
        let of_completion = cached.saturating_sub(self.task.prompt.len());
        self.tokens.get(of_completion..).unwrap_or_default()
    }

    /// Tokens of the completion so far.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the completion has ended, well or not.
    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Ends it without a completion.
    pub fn fail(&mut self, error: String) {
        self.end = Some(Err(error));
    }

    /// Samples the next token from the `logits` (one a vocabulary entry) that `version` gave.
    pub fn extend(
        &mut self,
        logits: &[f32],
        version: &PolicyVersion,
        decode: &dyn TokenText,
        scratch: &mut Scratch,
    ) {
        let uniform = self.uniforms.next_uniform();
        let sampled = self.distribution.sample(logits, uniform, scratch);
        if !sampled.logprob.is_finite() {
            let at = self.tokens.len();
            self.fail(format!(
                "token {at} got log-prob {}: the model's logits are not finite; \
                 was the adapter trained with too high a learning rate?",
                sampled.logprob
            ));
            return;
        }
        let span = self.versions.last().and_then(|span| span.version.as_ref());
        if span.is_none_or(|last| last.digest != version.digest) {
            // An adapter may have several names: the one that was asked for, if it is among them.
            let asked = &self.task.version;
            let same = asked.digest == version.digest;
            self.versions.push(VersionSpan {
                start: self.tokens.len() as u32,
                version: Some(if same { asked } else { version }.clone()),
            });
        }
        self.tokens.push(sampled.token);
        self.logprobs.push(sampled.logprob);
        self.end = if self.task.params.stop_token_ids.contains(&sampled.token) {
            Some(Ok(FinishReason::Stop))
        } else {
            match self.scan.reached(&self.tokens, decode) {
                Ok(true) => Some(Ok(FinishReason::Stop)),
                Err(error) => Some(Err(format!("looking for stop strings: {error}"))),
                Ok(false) if self.tokens.len() >= self.limit => Some(Ok(FinishReason::Length)),
                Ok(false) => None,
            }
        };
    }

    /// Its group.
    pub fn task(&self) -> &Arc<GroupTask> {
        &self.task
    }

    /// Which of the group's completions it is.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What became of it; an error for one that has not ended.
    pub fn into_completion(self) -> Result<Completion, String> {
        let reason = self
            .end
            .unwrap_or_else(|| Err("the completion has not ended".to_owned()))?;
        Ok(Completion {
            group_id: self.task.group_id,
            sample_index: self.index,
            tokens: self.tokens,
            logprobs: self.logprobs,
            finish_reason: reason.into(),
            versions: self.versions,
            decode_seconds: self.started.elapsed().as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use tina_proto::v1::{PolicyVersion, SamplingParams};

    use super::*;

    /// Token 0 is "a", 1 is "b" ...
    struct Letters;

    impl TokenText for Letters {
        fn text(&self, tokens: &[u32]) -> Result<String, String> {
            Ok(tokens
                .iter()
                .map(|&token| char::from(b'a' + token as u8))
                .collect())
        }
    }

    /// Greedy over one-hot logits: the completion is `forced`, until something ends it.
    fn run(
        params: SamplingParams,
        prompt: usize,
        max_sequence: usize,
        forced: &[u32],
    ) -> Completion {
        let task = Arc::new(GroupTask {
            group_id: 5,
            prompt: vec![0; prompt],
            prompt_key: [0; 32],
            params,
            version: PolicyVersion::of_bytes(2, b"adapter"),
            exact: false,
        });
        let version = task.version.clone();
        let uniforms = Uniforms::new(0, &[0; 32], 1, &[0; 32]);
        let mut sequence = Sequence::new(task, 1, uniforms, max_sequence);
        for (i, &token) in forced.iter().enumerate() {
            let mut logits = [0.0; 8];
            logits[token as usize] = 10.0;
            sequence.extend(&logits, &version, &Letters, &mut Scratch::default());
            assert_eq!(sequence.tokens_behind(prompt + i), [token]);
            if sequence.has_ended() {
                break;
            }
        }
        sequence.into_completion().unwrap()
    }

    fn greedy(max_tokens: u32) -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            top_p: 1.0,
            max_tokens,
            ..SamplingParams::default()
        }
    }

    #[test]
    fn a_stop_token_ends_the_completion_and_belongs_to_it() {
        let params = SamplingParams {
            stop_token_ids: vec![7, 3],
            ..greedy(10)
        };
        let completion = run(params, 2, 100, &[1, 2, 3, 4]);
        assert_eq!(completion.tokens, [1, 2, 3]);
        assert_eq!(completion.finish_reason(), FinishReason::Stop);
        assert_eq!(completion.logprobs.len(), 3);
        let span = &completion.versions[..];
        assert_eq!(span.len(), 1);
        assert_eq!(
            span[0].version,
            Some(PolicyVersion::of_bytes(2, b"adapter"))
        );
        assert_eq!((completion.group_id, completion.sample_index), (5, 1));
    }

    #[test]
    fn a_stop_string_ends_the_completion() {
        let params = SamplingParams {
            stop: vec!["cd".to_owned()],
            ..greedy(10)
        };
        let completion = run(params, 2, 100, &[2, 1, 2, 3, 4]);
        assert_eq!(completion.tokens, [2, 1, 2, 3]);
        assert_eq!(completion.finish_reason(), FinishReason::Stop);
    }

    #[test]
    fn the_token_limit_and_the_sequence_limit_end_it() {
        let completion = run(greedy(3), 2, 100, &[1; 9]);
        assert_eq!(completion.tokens.len(), 3);
        assert_eq!(completion.finish_reason(), FinishReason::Length);
        let completion = run(greedy(50), 2, 7, &[1; 9]);
        assert_eq!(completion.tokens.len(), 5);
        assert_eq!(completion.finish_reason(), FinishReason::Length);
    }

    #[test]
    fn a_stop_at_the_limit_is_a_stop() {
        let params = SamplingParams {
            stop_token_ids: vec![3],
            ..greedy(3)
        };
        let completion = run(params, 2, 100, &[1, 2, 3]);
        assert_eq!(completion.finish_reason(), FinishReason::Stop);
    }

    #[test]
    fn logits_that_are_no_numbers_fail_the_sample() {
        let task = Arc::new(GroupTask {
            group_id: 5,
            prompt: vec![0],
            prompt_key: [0; 32],
            params: SamplingParams {
                temperature: 1.0,
                ..greedy(3)
            },
            version: PolicyVersion::of_bytes(2, b"adapter"),
            exact: false,
        });
        let version = task.version.clone();
        let uniforms = Uniforms::new(0, &[0; 32], 1, &[0; 32]);
        let mut sequence = Sequence::new(task, 1, uniforms, 10);
        sequence.extend(&[f32::NAN; 8], &version, &Letters, &mut Scratch::default());
        assert!(sequence.has_ended());
        let error = sequence.into_completion().unwrap_err();
        assert!(error.contains("not finite"), "{error}");
    }
}
