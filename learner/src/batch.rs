//! What arrives for one step, checked before anything is computed or allocated for it.

use std::collections::BTreeSet;

use tina_model::Distribution;
use tina_proto::v1::{
    BeginStep, Completion, EndStep, FinishReason, PolicyVersion, SamplingParams,
    TrainingCompletion, TrainingGroup,
};

/// A log-prob above this can't be a probability, whatever the rounding.
const LOGPROB_CEILING: f32 = 1e-3;

/// Why a batch is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The step starts from another version than the learner holds.
    #[error("the step starts from version {asked}; this learner holds {held}")]
    UnknownVersion {
        /// The version in BeginStep.
        asked: String,
        /// The learner's own.
        held: String,
    },
    /// A group came without a step to belong to, or a step ended that had not begun.
    #[error("{what} came outside of a step; send BeginStep first")]
    OutsideStep {
        /// The message that came.
        what: String,
    },
    /// EndStep names another step than BeginStep.
    #[error("EndStep is for step {found}; the batch makes step {expected}")]
    WrongStep {
        /// The step that BeginStep's version leads to.
        expected: u64,
        /// The step in EndStep.
        found: u64,
    },
    /// Groups are missing, or there are too many.
    #[error("{found} groups came; BeginStep announced {expected}")]
    GroupCount {
        /// Announced.
        expected: u32,
        /// Received.
        found: u64,
    },
    /// A group that can't be trained on.
    #[error("group {group}: {problem}")]
    Group {
        /// The group's id.
        group: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// A completion that can't be trained on.
    #[error("group {group}, sample {sample}: {problem}")]
    Sample {
        /// The group's id.
        group: u64,
        /// The completion's sample index.
        sample: u32,
        /// What is wrong with it.
        problem: String,
    },
}

/// What a batch is checked against.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Tokens are below this.
    pub vocab_size: usize,
    /// Prompt and completion together are at most this long.
    pub max_sequence_tokens: usize,
}

/// The groups of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The version that the step starts from.
    pub version: PolicyVersion,
    /// In the order they were sent in.
    pub groups: Vec<Group>,
}

/// The completions of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The coordinator's name for it.
    pub id: u64,
    /// Never empty.
    pub prompt: Vec<u32>,
    /// What its tokens were sampled from.
    pub distribution: Distribution,
    /// By sample index.
    pub samples: Vec<Sample>,
}

/// One completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its index in the group.
    pub index: u32,
    /// Never empty.
    pub tokens: Vec<u32>,
    /// One a token, finite.
    pub logprobs: Vec<f32>,
    /// `None`: it could not be judged.
    pub reward: Option<f64>,
    /// It hit the token limit.
    pub truncated: bool,
}

/// A batch on its way in. The first thing wrong with it decides; what follows is dropped.
#[derive(Debug)]
pub struct Assembly {
    limits: Limits,
    expected: u32,
    seen: BTreeSet<u64>,
    received: u64,
    batch: Batch,
    error: Option<BatchError>,
}

impl Assembly {
    /// Starts a batch; `held` is the version that the learner holds.
    pub fn begin(begin: BeginStep, held: &PolicyVersion, limits: Limits) -> Self {
        let asked = begin.version.unwrap_or_default();
        let error = if asked != *held {
            Some(BatchError::UnknownVersion {
                asked: asked.short().to_string(),
                held: held.short().to_string(),
            })
        } else if begin.groups == 0 {
            Some(BatchError::GroupCount {
                expected: 0,
                found: 0,
            })
        } else {
            None
        };
        Self {
            limits,
            expected: begin.groups,
            seen: BTreeSet::new(),
            received: 0,
            batch: Batch {
                version: asked,
                groups: Vec::new(),
            },
            error,
        }
    }

    /// The step that the batch makes.
    pub fn step(&self) -> u64 {
        self.batch.version.step.saturating_add(1)
    }

    /// Takes the next group.
    pub fn push(&mut self, group: TrainingGroup) {
        self.received += 1;
        if self.error.is_some() {
            return;
        }
        if self.received > u64::from(self.expected) {
            self.error = Some(BatchError::GroupCount {
                expected: self.expected,
                found: self.received,
            });
            return;
        }
        match self.check(group) {
            Ok(group) => self.batch.groups.push(group),
            Err(error) => self.error = Some(error),
        }
    }

    /// The batch, or the first thing that was wrong with it.
    pub fn finish(self, end: &EndStep) -> Result<Batch, BatchError> {
        let expected = self.step();
        if let Some(error) = self.error {
            return Err(error);
        }
        if end.step != expected {
            return Err(BatchError::WrongStep {
                expected,
                found: end.step,
            });
        }
        if self.received != u64::from(self.expected) {
            return Err(BatchError::GroupCount {
                expected: self.expected,
                found: self.received,
            });
        }
        Ok(self.batch)
    }

    fn check(&mut self, group: TrainingGroup) -> Result<Group, BatchError> {
        let id = group.group_id;
        let bad = |problem: String| BatchError::Group { group: id, problem };
        if !self.seen.insert(id) {
            return Err(bad("it came twice".to_owned()));
        }
        if group.prompt_tokens.is_empty() {
            return Err(bad("its prompt is empty".to_owned()));
        }
        if group.completions.is_empty() {
            return Err(bad("it has no completions".to_owned()));
        }
        self.check_tokens(&group.prompt_tokens)
            .map_err(|problem| bad(format!("prompt: {problem}")))?;
        let params = group
            .params
            .ok_or_else(|| bad("its sampling parameters are missing".to_owned()))?;
        let distribution = distribution(&params).map_err(bad)?;

        let prompt = group.prompt_tokens.len();
        let mut samples = Vec::with_capacity(group.completions.len());
        for completion in group.completions {
            samples.push(self.check_sample(id, prompt, completion)?);
        }
        samples.sort_by_key(|sample| sample.index);
        if let Some(twice) = samples
            .windows(2)
            .find(|pair| pair[0].index == pair[1].index)
        {
            return Err(bad(format!("sample {} came twice", twice[0].index)));
        }
        Ok(Group {
            id,
            prompt: group.prompt_tokens,
            distribution,
            samples,
        })
    }

    fn check_sample(
        &self,
        group: u64,
        prompt: usize,
        trained: TrainingCompletion,
    ) -> Result<Sample, BatchError> {
        let Some(completion) = trained.completion else {
            let problem = "a completion is missing".to_owned();
            return Err(BatchError::Group { group, problem });
        };
        let index = completion.sample_index;
        let bad = |problem: String| BatchError::Sample {
            group,
            sample: index,
            problem,
        };
        if completion.group_id != group {
            return Err(bad(format!("it belongs to group {}", completion.group_id)));
        }
        let tokens = completion.tokens.len();
        if tokens == 0 {
            return Err(bad("it has no tokens".to_owned()));
        }
        if prompt + tokens > self.limits.max_sequence_tokens {
            return Err(bad(format!(
                "prompt and completion have {} tokens; the run's limit is {}",
                prompt + tokens,
                self.limits.max_sequence_tokens
            )));
        }
        if completion.logprobs.len() != tokens {
            return Err(bad(format!(
                "{tokens} tokens, but {} log-probs",
                completion.logprobs.len()
            )));
        }
        self.check_tokens(&completion.tokens).map_err(bad)?;
        let odd = completion
            .logprobs
            .iter()
            .position(|p| !p.is_finite() || *p > LOGPROB_CEILING);
        if let Some(at) = odd {
            let found = completion.logprobs[at];
            return Err(bad(format!("the log-prob of token {at} is {found}")));
        }
        if trained.judged && !trained.reward.is_finite() {
            return Err(bad(format!("its reward is {}", trained.reward)));
        }
        self.check_versions(&completion).map_err(bad)?;
        let truncated = match completion.finish_reason() {
            FinishReason::Stop => false,
            FinishReason::Length => true,
            FinishReason::Unspecified => return Err(bad("it has no finish reason".to_owned())),
        };
        Ok(Sample {
            index,
            tokens: completion.tokens,
            logprobs: completion.logprobs,
            reward: trained.judged.then_some(trained.reward),
            truncated,
        })
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), String> {
        let vocab = self.limits.vocab_size;
        match tokens.iter().position(|token| *token as usize >= vocab) {
            Some(at) => Err(format!(
                "token {at} is {}; the vocabulary has {vocab}",
                tokens[at]
            )),
            None => Ok(()),
        }
    }

    /// Every token was sampled by the version that the step starts from.
    fn check_versions(&self, completion: &Completion) -> Result<(), String> {
        let spans = &completion.versions;
        if spans.first().is_none_or(|first| first.start != 0) {
            return Err("no version is given for its first token".to_owned());
        }
        if spans.windows(2).any(|pair| pair[0].start >= pair[1].start)
            || spans
                .iter()
                .any(|span| span.start as usize >= completion.tokens.len())
        {
            return Err("its version spans are out of order".to_owned());
        }
        let held = &self.batch.version;
        match spans
            .iter()
            .find(|span| span.version.as_ref() != Some(held))
        {
            Some(span) => {
                let found = span.version.clone().unwrap_or_default();
                Err(format!(
                    "sampled by version {} from token {} on; this learner holds {}",
                    found.short(),
                    span.start,
                    held.short()
                ))
            }
            None => Ok(()),
        }
    }
}

/// What tokens under these parameters are sampled from.
fn distribution(params: &SamplingParams) -> Result<Distribution, String> {
    let SamplingParams {
        temperature,
        top_p,
        top_k,
        min_p,
        ..
    } = *params;
    if !(temperature.is_finite() && temperature >= 0.0) {
        return Err(format!(
            "temperature {temperature} is not a number of 0 or more"
        ));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(format!("top_p {top_p} does not lie in (0, 1]"));
    }
    if !(0.0..1.0).contains(&min_p) {
        return Err(format!("min_p {min_p} does not lie in [0, 1)"));
    }
    Ok(Distribution {
        temperature,
        top_p,
        top_k,
        min_p,
    })
}

#[cfg(test)]
mod tests {
    use tina_proto::v1::VersionSpan;

    use super::*;

    const LIMITS: Limits = Limits {
        vocab_size: 100,
        max_sequence_tokens: 8,
    };

    fn version() -> PolicyVersion {
        PolicyVersion::new(4, [7; 32])
    }

    fn completion(group: u64, index: u32, tokens: &[u32]) -> TrainingCompletion {
        TrainingCompletion {
            completion: Some(Completion {
                group_id: group,
                sample_index: index,
                tokens: tokens.to_vec(),
                logprobs: vec![-0.5; tokens.len()],
                finish_reason: FinishReason::Stop.into(),
                versions: vec![VersionSpan {
                    start: 0,
                    version: Some(version()),
                }],
                decode_seconds: 0.1,
            }),
            reward: 1.0,
            judged: true,
        }
    }

    fn group(id: u64) -> TrainingGroup {
        TrainingGroup {
            group_id: id,
            prompt_tokens: vec![1, 2, 3],
            completions: vec![completion(id, 1, &[4, 5]), completion(id, 0, &[6])],
            params: Some(SamplingParams {
                temperature: 0.7,
                top_p: 1.0,
                ..Default::default()
            }),
        }
    }

    fn begin(groups: u32) -> Assembly {
        Assembly::begin(
            BeginStep {
                version: Some(version()),
                groups,
            },
            &version(),
            LIMITS,
        )
    }

    /// The error of a step of this one group.
    fn refusal(group: TrainingGroup) -> String {
        let mut assembly = begin(1);
        assembly.push(group);
        assembly
            .finish(&EndStep { step: 5 })
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_sound_batch_keeps_the_order_of_groups_and_sorts_their_samples() {
        let mut assembly = begin(2);
        let mut second = group(3);
        second.completions[0].judged = false;
        second.completions[1]
            .completion
            .as_mut()
            .unwrap()
            .finish_reason = FinishReason::Length.into();
        assembly.push(group(9));
        assembly.push(second);
        let batch = assembly.finish(&EndStep { step: 5 }).unwrap();
        assert_eq!(
            batch.groups.iter().map(|g| g.id).collect::<Vec<_>>(),
            [9, 3]
        );
        let samples = &batch.groups[1].samples;
        assert_eq!((samples[0].index, &samples[0].tokens), (0, &vec![6]));
        assert_eq!((samples[0].reward, samples[0].truncated), (Some(1.0), true));
        assert_eq!((samples[1].reward, samples[1].truncated), (None, false));
    }

    #[test]
    fn a_step_from_another_version_is_refused() {
        for other in [
            PolicyVersion::new(4, [8; 32]),
            PolicyVersion::new(3, [7; 32]),
        ] {
            let begin = BeginStep {
                version: Some(other),
                groups: 1,
            };
            let mut assembly = Assembly::begin(begin, &version(), LIMITS);
            assembly.push(group(1));
            let error = assembly.finish(&EndStep { step: 5 }).unwrap_err();
            assert!(
                matches!(error, BatchError::UnknownVersion { .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn a_completion_of_another_version_is_refused_by_name() {
        let mut bad = group(2);
        let spans = &mut bad.completions[0].completion.as_mut().unwrap().versions;
        spans.push(VersionSpan {
            start: 1,
            version: Some(PolicyVersion::new(3, [9; 32])),
        });
        let error = refusal(bad);
        assert!(
            error.contains("group 2, sample 1") && error.contains("3:09090909"),
            "{error}"
        );
    }

    #[test]
    fn missing_surplus_and_repeated_groups_are_refused() {
        let finish = |announced, ids: &[u64]| {
            let mut assembly = begin(announced);
            ids.iter().for_each(|id| assembly.push(group(*id)));
            assembly.finish(&EndStep { step: 5 }).unwrap_err()
        };
        assert_eq!(
            finish(2, &[1]),
            BatchError::GroupCount {
                expected: 2,
                found: 1
            }
        );
        assert_eq!(
            finish(1, &[1, 2]),
            BatchError::GroupCount {
                expected: 1,
                found: 2
            }
        );
        assert_eq!(
            finish(0, &[]),
            BatchError::GroupCount {
                expected: 0,
                found: 0
            }
        );
        assert!(finish(2, &[1, 1]).to_string().contains("came twice"));
        let mut assembly = begin(1);
        assembly.push(group(1));
        let error = assembly.finish(&EndStep { step: 6 }).unwrap_err();
        assert_eq!(
            error,
            BatchError::WrongStep {
                expected: 5,
                found: 6
            }
        );
    }

    #[test]
    fn whatever_is_wrong_in_a_completion_is_named() {
        type Spoil = fn(&mut Completion);
        let cases: [(&str, Spoil); 10] = [
            ("token 1 is 100; the vocabulary has 100", |c| {
                c.tokens[1] = 100
            }),
            ("the log-prob of token 0 is NaN", |c| {
                c.logprobs[0] = f32::NAN
            }),
            ("the log-prob of token 1 is -inf", |c| {
                c.logprobs[1] = f32::NEG_INFINITY
            }),
            ("the log-prob of token 1 is 0.5", |c| c.logprobs[1] = 0.5),
            ("2 tokens, but 1 log-probs", |c| c.logprobs.truncate(1)),
            ("it has no tokens", |c| c.tokens.clear()),
            ("9 tokens; the run's limit is 8", |c| {
                c.tokens = vec![1; 6];
                c.logprobs = vec![-1.0; 6];
            }),
            ("it belongs to group 8", |c| c.group_id = 8),
            ("no version is given", |c| c.versions.clear()),
            ("no finish reason", |c| c.finish_reason = 0),
        ];
        for (expected, spoil) in cases {
            let mut bad = group(2);
            spoil(bad.completions[0].completion.as_mut().unwrap());
            let error = refusal(bad);
            assert!(error.starts_with("group 2, sample 1: "), "{error}");
            assert!(error.contains(expected), "{expected} is not in: {error}");
        }
    }

    #[test]
    fn whatever_is_wrong_in_a_group_is_named() {
        type Spoil = fn(&mut TrainingGroup);
        let cases: [(&str, Spoil); 8] = [
            ("its prompt is empty", |g| g.prompt_tokens.clear()),
            ("prompt: token 2 is 4000", |g| g.prompt_tokens[2] = 4000),
            ("it has no completions", |g| g.completions.clear()),
            ("a completion is missing", |g| {
                g.completions[1].completion = None
            }),
            ("sample 0 came twice", |g| {
                g.completions[0].completion.as_mut().unwrap().sample_index = 0;
            }),
            ("sampling parameters are missing", |g| g.params = None),
            ("temperature NaN", |g| {
                g.params.as_mut().unwrap().temperature = f32::NAN
            }),
            ("its reward is inf", |g| {
                g.completions[0].reward = f64::INFINITY
            }),
        ];
        for (expected, spoil) in cases {
            let mut bad = group(2);
            spoil(&mut bad);
            let error = refusal(bad);
            assert!(
                error.starts_with("group 2") && error.contains(expected),
                "{error}"
            );
        }
    }
}
