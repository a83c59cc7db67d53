//! What arrives for one step, checked before anything is computed or allocated for it.

use std::collections::BTreeSet;

use tina_model::Distribution;
use tina_proto::v1::{
    BeginStep, Completion, EndStep, FinishReason, PolicyVersion, SamplingParams,
    TrainingCompletion, TrainingGroup, VersionSpan,
};

/// A log-prob above this can't be a probability, whatever the rounding.
pub(crate) const LOGPROB_CEILING: f32 = 1e-3;

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
    /// The batch was sampled by versions that this learner did not make.
    #[error(
        "tokens of the batch were sampled by version {version}, which this learner, at {held}, \
         never made"
    )]
    ForeignVersion {
        /// One of them.
        version: String,
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
    /// Policy versions between the sampling of each token and the step, summed up, and at most.
    pub staleness: (u64, u64),
}

impl Batch {
    fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.groups.iter().flat_map(|group| &group.samples)
    }

    /// Policy versions between the sampling of a token and the step, on average.
    pub fn staleness_mean(&self) -> f64 {
        let tokens: usize = self.samples().map(|sample| sample.tokens.len()).sum();
        let sum: u64 = self.samples().map(|sample| sample.staleness.0).sum();
        sum as f64 / tokens.max(1) as f64
    }

    /// The same, at most.
    pub fn staleness_max(&self) -> u64 {
        let all = self.samples().map(|sample| sample.staleness.1);
        all.max().unwrap_or(0)
    }
}

/// A batch on its way in. The first thing wrong with it decides; what follows is dropped.
#[derive(Debug)]
pub struct Assembly {
    limits: Limits,
    /// Versions that may have sampled its tokens.
    known: Vec<PolicyVersion>,
    expected: u32,
    seen: BTreeSet<u64>,
    received: u64,
    batch: Batch,
    error: Option<BatchError>,
}

impl Assembly {
    /// Starts a batch; `held` is the version that the learner holds, `made` those before it that it
    /// remembers.
    pub fn begin(
        begin: BeginStep,
        held: &PolicyVersion,
        made: &[PolicyVersion],
        limits: Limits,
    ) -> Self {
        let asked = begin.version.unwrap_or_default();
        let foreign = |version: &&PolicyVersion| {
            let own = made.iter().chain([held]);
            let mut own = own.filter(|own| own.step == version.step);
            version.step > held.step || own.any(|own| own != *version)
        };
        let error = if asked != *held {
            Some(BatchError::UnknownVersion {
                asked: asked.short().to_string(),
                held: held.short().to_string(),
            })
        } else if let Some(version) = begin.known.iter().find(foreign) {
            Some(BatchError::ForeignVersion {
                version: version.short().to_string(),
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
            known: begin.known,
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
            staleness: self.staleness(&completion),
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

    /// Of spans that are checked.
    fn staleness(&self, completion: &Completion) -> (u64, u64) {
        let spans = completion.versions.iter();
        let next = spans.clone().skip(1).map(|span| u64::from(span.start));
        let ends = next.chain([completion.tokens.len() as u64]);
        let (mut sum, mut most) = (0, 0);
        for (span, end) in spans.zip(ends) {
            let step = span.version.as_ref().map_or(0, |version| version.step);
            let age = self.batch.version.step.saturating_sub(step);
            sum += age * end.saturating_sub(u64::from(span.start));
            most = most.max(age);
        }
        (sum, most)
    }

    /// Every token was sampled by the version that the step starts from, or one that was announced.
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
        let step = |span: &VersionSpan| span.version.as_ref().map_or(0, |version| version.step);
        if let Some(back) = spans
            .windows(2)
            .find(|pair| step(&pair[0]) >= step(&pair[1]))
        {
            return Err(format!(
                "its tokens go back from version {} to version {}",
                step(&back[0]),
                step(&back[1])
            ));
        }
        let held = &self.batch.version;
        let known = |version: &PolicyVersion| version == held || self.known.contains(version);
        match spans
            .iter()
            .find(|span| !span.version.as_ref().is_some_and(known))
        {
            Some(span) => {
                let found = span.version.clone().unwrap_or_default();
                Err(format!(
                    "sampled by version {} from token {} on, which was not announced; this learner \
                     holds {}",
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
pub(crate) fn distribution(params: &SamplingParams) -> Result<Distribution, String> {
    let SamplingParams {
        temperature,
        top_p,
        top_k,
        min_p,
        ..
    } = *params;
    let distribution = Distribution {
        temperature,
        top_p,
        top_k,
        min_p,
    };
    distribution.check().map_err(|error| error.to_string())?;
    Ok(distribution)
}

#[cfg(test)]
mod tests;
